"""From ranges of a blob to record-aligned blocks. Pure functions over a way to fetch bytes; neither Beam nor Storage.

The work is in blocks because a splittable DoFn pays for each output: it yields blocks of whole records, and the step
fused behind it takes them apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from beam_entra.errors import Diagnosis, FormatError

__all__ = [
    "BYTE_ORDER_MARK",
    "BadRecord",
    "Block",
    "Claims",
    "PlannedSource",
    "Range",
    "Source",
    "fetch_ahead",
    "split_blocks",
    "stream_blocks",
    "strip_line_end",
]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Range = tuple[int, int]
"""Bytes [start, stop) of a blob."""

_TAIL_BYTES = 64 * 1024  # fetched first beyond the end of a range, to complete its last record; doubles each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Whole records of one blob.

    Attributes:
        path: The blob, canonical.
        offset: Where the block begins in the (decompressed) blob, in bytes.
        data: The records with their line ends, or as their format hands them on.
        header: What the format needs of the blob's beginning: CSV its first record, Avro the file's header.
    """

    path: str
    offset: int
    data: Any
    header: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that could not be decoded.

    Attributes:
        path: The blob, canonical.
        offset: Where the record begins, in bytes; in the decompressed stream if the blob is compressed.
        reason: What the decoder said.
        record: The bytes, without the line end.
    """

    path: str
    offset: int
    reason: str
    record: bytes

    def as_dict(self) -> dict[str, str | int]:
        """For a dead-letter file: bytes that are no UTF-8 appear as `\\xNN`."""
        text = self.record.decode("utf-8", "backslashreplace")
        return {"source": self.path, "offset": self.offset, "reason": self.reason, "record": text}


class Source(Protocol):
    """A blob as a format reads it: one version of it, as often as needed.

    Attributes:
        path: The blob, canonical.
        size_bytes: Its length.
        max_record_bytes: How much of a record may have been fetched without its end being in sight.
    """

    path: str
    size_bytes: int
    max_record_bytes: int

    def stream(self, start: int, stop: int) -> Iterator[bytes | bytearray]:
        """Bytes [start, stop) in pieces, in order, fetched ahead."""
        ...  # pragma: no cover

    def ranges(self, wanted: Sequence[Range]) -> Iterator[bytes | bytearray]:
        """Each of these ranges whole, in order, fetched ahead."""
        ...  # pragma: no cover

    def peek(self, start: int, stop: int) -> bytes | bytearray:
        """Bytes [start, stop) to plan by; nothing of them goes into an element."""
        ...  # pragma: no cover

    def content(self) -> bytes:
        """The whole blob, in one piece."""
        ...  # pragma: no cover


class PlannedSource(Source, Protocol):
    """A source that says beforehand what it will ask for."""

    def requests(self, start: int, stop: int) -> Iterator[Range]:
        """The ranges that `stream` asks for."""
        ...  # pragma: no cover

    def content_requests(self) -> Iterator[Range]:
        """The ranges that `content` asks for."""
        ...  # pragma: no cover


class Framing(Protocol):
    """Where records begin and end in a format that is read as a whole."""

    has_header: bool

    def whole(self, buffer: bytes | bytearray, end: int) -> int:
        """Where the last whole record in `buffer[:end]` ends; 0 if there is none."""
        ...  # pragma: no cover

    def records(self, block: bytes) -> Iterator[bytes]:
        """The records of a block, each with its line end if it has one."""
        ...  # pragma: no cover


class Claims(Protocol):
    """What a splittable read asks of its restriction: who owns the record that begins at this byte?"""

    def try_claim(self, position: int) -> bool:
        """Take all records that begin up to `position`; False if that is no longer ours."""
        ...  # pragma: no cover

    def stop(self) -> int:
        """The first byte whose records are not ours; may shrink until a claim has failed."""
        ...  # pragma: no cover


Chunk = TypeVar("Chunk")


def fetch_ahead(
    ask: Callable[[int, int], Future[Chunk]],
    wanted: Iterable[Range],
    *,
    depth: int,
    ahead_bytes: int,
    drained: Callable[[int], object] = lambda room_bytes: None,
) -> Generator[Chunk, None, None]:
    """These ranges of bytes, in order, fetched ahead of the consumer.

    Args:
        ask: Begins to fetch a range.
        depth: Requests that are under way or answered ahead of the consumer, at most.
        ahead_bytes: Bytes that are, at most, unless a single range is longer.
        drained: Told how much of `ahead_bytes` is free when all has been asked for, and with each piece after that.
    """
    ranges = iter(wanted)
    following = next(ranges, None)
    waiting: deque[tuple[Future[Chunk], int]] = deque()
    under_way_bytes = 0

    def refill() -> None:
        nonlocal following, under_way_bytes
        while following is not None and len(waiting) < depth:
            start, stop = following
            if waiting and under_way_bytes + stop - start > ahead_bytes:
                return
            waiting.append((ask(start, stop), stop - start))
            under_way_bytes += stop - start
            following = next(ranges, None)
        if following is None:
            drained(ahead_bytes - under_way_bytes)

    try:
        refill()
        while waiting:
            future, length = waiting.popleft()
            chunk = future.result()
            under_way_bytes -= length
            refill()
            yield chunk
            del chunk  # not held while the next one is waited for
    finally:
        wait([future for future, _ in waiting if not future.cancel()])


def split_blocks(
    path: str,
    chunks: Callable[[int, int], Iterator[bytes | bytearray]],
    start: int,
    stop: int,
    size: int,
    claims: Claims,
    *,
    max_record_bytes: int,
) -> Iterator[Block]:
    """The records that begin in [start, stop), for formats that can be read from any byte on.

    A record belongs to the range in which its first byte lies. The first one is found behind the first line end at or
    after `start - 1`; the last one is completed from beyond `stop`. Before a block is yielded, the start of its last
    record is claimed; if that is refused, the range has been split, and what begins behind the split is left out.

    Args:
        chunks: Fetches bytes [begin, end) of the blob, in order.
    """
    begun = bytearray()  # of a record whose end is still to come: no line end is in it
    at = max(start - 1, 0)  # offset of begun[0], or of the next piece
    aligned = start == 0
    with closing(_with_tail(chunks, at, stop, size, lambda: bool(begun))) as pieces:
        for piece, last in pieces:
            if not aligned:
                newline = piece.find(b"\n")
                at += newline + 1 or len(piece)
                if newline < 0:
                    continue
                piece, aligned = piece[newline + 1 :], True
            end = len(piece) if last else piece.rfind(b"\n") + 1
            if end == 0:
                begun += piece
                _check_record(path, at, len(begun), max_record_bytes)
                continue
            data = _joined(begun, piece, end)
            begun = bytearray(piece[end:])
            del piece  # as long as the consumer has the block, nothing else of it is held
            if not claims.try_claim(at + data.rfind(b"\n", 0, len(data) - 1) + 1):
                end = _end_before(data, at, claims.stop(), len(data))
                if end:
                    yield _block(path, at, data[:end])
                return
            yield _block(path, at, data)
            at += len(data)


def _with_tail(
    chunks: Callable[[int, int], Iterator[bytes | bytearray]],
    start: int,
    stop: int,
    size: int,
    incomplete: Callable[[], bool],
) -> Generator[tuple[bytes | bytearray, bool], None, None]:
    """The pieces up to `stop`, then more for as long as a record is incomplete; with each, whether the blob ends."""
    at = start
    for piece in chunks(start, min(stop, size)):
        at += len(piece)
        yield piece, at >= size
    tail = _TAIL_BYTES
    while at < size and incomplete():
        for piece in chunks(at, min(at + tail, size)):
            at += len(piece)
            yield piece, at >= size
        tail *= 2


def _end_before(buffer: bytes, at: int, stop: int, end: int) -> int:
    """Where in the buffer the records end that begin before `stop`."""
    if stop <= at:
        return 0
    newline = buffer.find(b"\n", stop - 1 - at, end)
    return newline + 1 if newline >= 0 else end


def stream_blocks(
    path: str, pieces: Iterator[bytes | bytearray], format: Framing, *, max_record_bytes: int
) -> Iterator[Block]:
    """All records of a blob that is read as a whole: compressed, or in a format that cannot be split."""
    buffer = bytearray()
    at, header, header_wanted, beginning, ended = 0, b"", format.has_header, True, False
    while not ended:
        piece = next(pieces, None)
        ended = piece is None
        buffer += piece or b""
        if beginning and (ended or len(buffer) >= len(BYTE_ORDER_MARK)):
            beginning = False
            if buffer.startswith(BYTE_ORDER_MARK):
                del buffer[: len(BYTE_ORDER_MARK)]
                at = len(BYTE_ORDER_MARK)
        end = len(buffer) if ended else format.whole(buffer, len(buffer))
        if end == 0 or beginning:
            _check_record(path, at, len(buffer), max_record_bytes)
            continue
        data = _head(buffer, end)
        del buffer[:end]
        if header_wanted:
            record = next(format.records(data))
            header, header_wanted = strip_line_end(record), False
            data, at = data[len(record) :], at + len(record)
        if data:
            yield Block(path=path, offset=at, data=data, header=header)
        at += len(data)


def strip_line_end(record: bytes) -> bytes:
    """The record without `\\n` or `\\r\\n`."""
    if record.endswith(b"\n"):
        return record[:-2] if record.endswith(b"\r\n") else record[:-1]
    return record


def _head(buffer: bytearray, end: int) -> bytes:
    """The first `end` bytes, copied once: a slice of a bytearray would be a copy of its own."""
    with memoryview(buffer) as whole, whole[:end] as head:
        return bytes(head)


def _joined(begun: bytearray, piece: bytes | bytearray, end: int) -> bytes:
    """What has begun and the first `end` bytes of the piece, copied once."""
    with memoryview(piece) as whole, whole[:end] as head:
        return b"".join((begun, head))


def _block(path: str, at: int, data: bytes) -> Block:
    stripped = data.removeprefix(BYTE_ORDER_MARK) if at == 0 else data
    return Block(path=path, offset=at + len(data) - len(stripped), data=stripped)


def _check_record(path: str, at: int, length: int, limit: int) -> None:
    if length > limit:
        raise FormatError(
            f"the record at byte {at} of {path} is longer than {limit} bytes",
            Diagnosis(hint="check that the blob has this format, or raise max_record_bytes"),
        )
