"""One version of a blob, as a format reads it: in ranges that are fetched ahead, through a bundle session."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial

from beam_entra.io.blocks import Range, fetch_ahead
from beam_entra.io.threads import fetch_threads
from beam_entra.session import BundleSession, Fetched
from beam_entra.storage import BlobProperties

__all__ = ["BlobSource"]

_REQUESTS_AHEAD = 32
_REQUESTS_AT_ONCE = 4  # of long ones, at least
_BLOCKS_A_REQUEST = 8
_LONG_BYTES = 1 << 20


def _nothing(room_bytes: int) -> None:
    """Nobody else has a use for the room."""


class BlobSource:
    """The `Source` of one restriction.

    Args:
        block_bytes: How long the pieces of a stream are.
        prefetch_bytes: How much is under way, or here and not yet consumed, at most.

    Attributes:
        drained: Told, as soon as everything that is wanted has been asked for and then with each piece that has come,
            how much could be fetched besides. Something else may be begun with it.
    """

    def __init__(
        self,
        bundle: BundleSession,
        blob: BlobProperties,
        *,
        block_bytes: int,
        prefetch_bytes: int,
        max_record_bytes: int,
    ) -> None:
        self._bundle, self._blob = bundle, blob
        self._block_bytes, self._prefetch_bytes = block_bytes, prefetch_bytes
        self._request_bytes = max(min(_BLOCKS_A_REQUEST * block_bytes, prefetch_bytes // _REQUESTS_AT_ONCE), 1)
        self._threads = fetch_threads(bundle.session)
        self.path = str(blob.path)
        self.size_bytes = blob.size_bytes
        self.max_record_bytes = max_record_bytes
        self.drained: Callable[[int], None] = _nothing
        self._peeked: dict[Range, Fetched] = {}
        self._begun: dict[Range, Future[Fetched]] = {}

    def stream(self, start: int, stop: int) -> Iterator[bytes | bytearray]:
        """Bytes [start, stop) in pieces, in order, fetched ahead."""
        step = self._block_bytes
        for piece in self.ranges(self.requests(start, stop)):
            if len(piece) <= step:
                yield piece
            else:
                yield from (piece[at : at + step] for at in range(0, len(piece), step))
                self._bundle.session.buffers.give(piece)

    def requests(self, start: int, stop: int) -> Iterator[Range]:
        """First a block, which is soon here, then longer ones: a request costs the service what many bytes do."""
        length = min(self._block_bytes, self._request_bytes)
        while start < stop:
            end = min(start + length, stop)
            yield start, end
            start, length = end, self._request_bytes

    def ranges(self, wanted: Iterable[Range]) -> Iterator[bytearray]:
        """Each of these ranges whole, in order, fetched ahead."""
        with closing(self._arriving(wanted, self._fetch)) as arriving:
            for fetched in arriving:
                yield fetched.take()  # waits for the record here, where it keeps no thread from fetching

    def peek(self, start: int, stop: int) -> bytearray:
        """Bytes [start, stop) to plan by; `recorded` comes before anything that was planned."""
        if (start, stop) not in self._peeked:
            self._peeked[start, stop] = self._bundle.fetch(self._blob, start, stop)
        return self._peeked[start, stop].plan()

    def recorded(self) -> None:
        """Wait for the records of what was peeked at."""
        while self._peeked:
            self._peeked.popitem()[1].take()

    def content(self) -> bytes:
        """The whole blob, received where it stays."""
        file = io.BytesIO(bytes(self.size_bytes))
        with file.getbuffer() as whole:

            def fetch(start: int, stop: int) -> Fetched:
                return self._bundle.fetch(self._blob, start, stop, into=whole[start:stop])

            with closing(self._arriving(self.content_requests(), fetch)) as arriving:
                for (start, stop), fetched in zip(self.content_requests(), arriving, strict=True):
                    if elsewhere := fetched.take():  # it was begun before its time
                        whole[start:stop] = elsewhere
                        self._bundle.session.buffers.give(elsewhere)
        return file.getvalue()

    def content_requests(self) -> Iterator[Range]:
        """The ranges that `content` asks for."""
        length = self._request_bytes
        return ((at, min(at + length, self.size_bytes)) for at in range(0, self.size_bytes, length))

    # Before its time

    def begin(self, start: int, stop: int) -> None:
        """Ask for a range that will be wanted."""
        self._begun[start, stop] = self._threads.submit(self._fetch, start, stop)

    def give_up(self) -> None:
        """Wait for what was begun and nobody wanted, and drop it."""
        for begun in self._begun.values():
            if not begun.cancel():
                wait([begun])
                if begun.exception() is None:
                    self._bundle.session.buffers.give(begun.result().plan())
        self._begun.clear()

    # The steps

    def _arriving(
        self, wanted: Iterable[Range], fetch: Callable[[int, int], Fetched]
    ) -> Generator[Fetched, None, None]:
        return fetch_ahead(
            partial(self._asked, fetch),
            wanted,
            depth=_REQUESTS_AHEAD,
            ahead_bytes=self._prefetch_bytes,
            drained=self.drained,
        )

    def _asked(self, fetch: Callable[[int, int], Fetched], start: int, stop: int) -> Future[Fetched]:
        return self._begun.pop((start, stop), None) or self._threads.submit(fetch, start, stop)

    def _fetch(self, start: int, stop: int) -> Fetched:
        """What is short is here before its record could be durable: then those of several go in one append."""
        return self._bundle.fetch(self._blob, start, stop, prompt=stop - start >= _LONG_BYTES)
