"""Files over blobs: a reader that seeks and fetches ahead, a writer that stages as it goes and commits at its close."""

from __future__ import annotations

import io
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from beam_entra.errors import AuditError, BeamEntraError
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession
from beam_entra.storage import new_block_id

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["BlobReader", "BlobWriter", "BufferedBlob", "Translate"]

Translate = Callable[[str, str, BeamEntraError], Exception]
"""Makes what a file operation raises of our error: what was tried, the path, the error."""

_BEGINNING_BYTES = 64 << 10
_FIRST_BYTES = 256 << 10  # fetched at a place that nobody has read up to
_CHUNK_BYTES = 4 << 20  # fetched at once by who reads on and on
_AHEAD = 2
_BLOCK_BYTES = 4 << 20
_LARGEST_BLOCK_BYTES = 64 << 20
_BLOCKS_BEFORE_GROWTH = 5_000  # then blocks double: 50,000 of them, the most there can be, hold two terabytes
_IN_FLIGHT = 4


class BlobReader(io.RawIOBase):
    """A blob as a raw, seekable file. Wrap it in `BufferedBlob`; one thread at a time, as with any file.

    Every request insists on the version that was there when the file was opened. At most three chunks of 4 MiB are
    held. Who reads on and on is fetched ahead for; who jumps about gets what was asked for and little more.

    Args:
        bundle: Becomes the file's own, and is closed with it.
        path: Its beginning is fetched at once, and what it is with it.
        threads: Where chunks are fetched ahead.
    """

    mode = "rb"

    def __init__(self, bundle: BundleSession, path: BlobPath, threads: Executor, translate: Translate) -> None:
        super().__init__()
        self.name = str(path)
        self._bundle, self._threads, self._translate = bundle, threads, translate
        self._blob, self._chunk = bundle.read_beginning(path, _BEGINNING_BYTES)
        self._chunk_start = 0
        self._position = 0
        self._ahead: deque[tuple[int, int, Future[bytearray]]] = deque()
        self._step = _FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size_bytes}
        if whence not in base:
            raise ValueError(f"whence is {whence}, not 0, 1 or 2")
        if base[whence] + offset < 0:
            raise ValueError(f"{self.name} has no position {base[whence] + offset}")
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._blob.size_bytes - self._position)
        if wanted <= 0:
            return 0
        if not self._chunk_start <= self._position < self._chunk_start + len(self._chunk):
            self._fetch(wanted)
        begin = self._position - self._chunk_start
        piece = self._chunk[begin : begin + wanted]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._leave("ok")
            super().close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and hasattr(self, "_step"):
            self._chunk = bytearray()
            self._bundle.session.put_off(partial(self._leave, "abandoned"))
            super().close()

    def _fetch(self, wanted: int) -> None:
        """Make the chunk that holds the position the current one."""
        reads_on = self._position == self._chunk_start + len(self._chunk)
        while self._ahead and self._ahead[0][1] <= self._position:
            self._drop(self._ahead.popleft())
        if self._ahead and self._ahead[0][0] <= self._position:
            start, _, future = self._ahead.popleft()
        else:
            self._forget_ahead()
            self._step = min(self._step * 2, _CHUNK_BYTES) if reads_on else _FIRST_BYTES
            start, future = self._position, None
        try:
            if future is None:
                stop = min(start + max(wanted, self._step), start + _CHUNK_BYTES, self._blob.size_bytes)
                chunk = self._bundle.read(self._blob, start, stop)
            else:
                chunk = future.result()
        except BeamEntraError as error:
            raise self._translate("read", self.name, error) from error
        self._chunk_start, self._chunk = start, chunk
        if reads_on:
            self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        at = self._ahead[-1][1] if self._ahead else self._chunk_start + len(self._chunk)
        while len(self._ahead) < _AHEAD and at < self._blob.size_bytes:
            self._step = min(self._step * 2, _CHUNK_BYTES)
            stop = min(at + self._step, self._blob.size_bytes)
            self._ahead.append((at, stop, self._threads.submit(self._bundle.read, self._blob, at, stop)))
            at = stop

    def _forget_ahead(self) -> None:
        while self._ahead:
            self._drop(self._ahead.popleft())

    @staticmethod
    def _drop(ahead: tuple[int, int, Future[bytearray]]) -> None:
        if not ahead[2].cancel():
            wait([ahead[2]])

    def _leave(self, outcome: Any) -> None:
        self._forget_ahead()
        self._chunk = bytearray()
        with suppress(AuditError):  # every read has been waited for
            self._bundle.close(outcome, settle=False)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name} is closed")


class BufferedBlob(io.BufferedReader):
    """A buffer before a `BlobReader`. One that nobody closed does not close it, which has a finalizer of its own."""

    def __del__(self) -> None:
        """Not `io.BufferedReader`'s, which would close the file in the middle of anything."""


class BlobWriter(io.BufferedIOBase):
    """A new blob as a file. It becomes visible, over an old one of its name, when the file is closed, and only then.

    Blocks are staged as they fill up; at most six of them (4 MiB each at first) are held. A file that is dropped
    without being closed, or left by an exception in a `with`, leaves nothing that anybody can see.

    Args:
        bundle: Becomes the file's own, and is closed with it.
        threads: Where blocks are staged.
    """

    mode = "wb"

    def __init__(
        self,
        bundle: BundleSession,
        path: BlobPath,
        threads: Executor,
        translate: Translate,
        *,
        content_type: str,
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        super().__init__()
        self.name = str(path)
        self._bundle, self._path, self._threads, self._translate = bundle, path, threads, translate
        self._content_type = content_type
        self._block_bytes = block_bytes
        self._buffer = bytearray()
        self._blocks: list[str] = []
        self._under_way: deque[Future[None]] = deque()
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: ReadableBuffer) -> int:
        self._check_open()
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), self._block_bytes):  # so that one large write is not held twice
            self._buffer += view[begin : begin + self._block_bytes]
            while len(self._buffer) > self._block_bytes:
                self._stage()
        self._size += len(view)
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._commit()
        except BaseException as error:
            self._leave("failed")
            if isinstance(error, BeamEntraError):
                raise self._translate("write", self.name, error) from error
            raise
        self._leave("ok")

    def abandon(self) -> None:
        """Close without committing: nothing becomes visible, and Storage drops what was staged after a week."""
        if not self.closed:
            self._leave("abandoned")

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        if hasattr(self, "_size") and not self.closed:
            self._buffer = bytearray()
            self._bundle.session.put_off(partial(self._leave, "abandoned"))

    def _stage(self) -> None:
        block, data = new_block_id(), bytes(self._buffer[: self._block_bytes])
        del self._buffer[: self._block_bytes]
        try:
            while len(self._under_way) >= _IN_FLIGHT:
                self._under_way.popleft().result()
        except BeamEntraError as error:
            self._leave("failed")
            raise self._translate("write", self.name, error) from error
        self._under_way.append(self._threads.submit(self._bundle.stage, self._path, block, data))
        self._blocks.append(block)
        if len(self._blocks) % _BLOCKS_BEFORE_GROWTH == 0:
            self._block_bytes = min(self._block_bytes * 2, max(_LARGEST_BLOCK_BYTES, self._block_bytes))

    def _commit(self) -> None:
        commit_id = str(uuid.uuid4())
        if not self._blocks:
            self._bundle.write(self._path, bytes(self._buffer), commit_id=commit_id, content_type=self._content_type)
            return
        if self._buffer:
            self._stage()
        while self._under_way:
            self._under_way.popleft().result()
        self._bundle.settle()
        self._bundle.commit(
            self._path,
            self._blocks,
            commit_id=commit_id,
            size_bytes=self._size,
            rows=None,
            content_type=self._content_type,
            overwrite=True,
        )

    def _leave(self, outcome: Any) -> None:
        for future in self._under_way:
            if not future.cancel():
                wait([future])
        self._under_way.clear()
        self._buffer = bytearray()
        with suppress(AuditError):  # what was committed has been waited for
            self._bundle.close(outcome, settle=False)
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name} is closed")
