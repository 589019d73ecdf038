"""From ranges of a blob to record-aligned blocks. Pure functions over a way to fetch bytes; neither Beam nor Storage.

The work is in blocks because a splittable DoFn pays for each output: it yields blocks of whole records, and the step
fused behind it takes them apart.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from beam_entra.errors import Diagnosis, FormatError
from beam_entra.io.formats import BYTE_ORDER_MARK, Format, strip_line_end

__all__ = ["Block", "Claims", "fetch_ahead", "gunzip", "split_blocks", "stream_blocks"]

_TAIL_BYTES = 64 * 1024  # fetched first beyond the end of a range, to complete its last record; doubles each time
_GUNZIP_BYTES = 64 * 1024  # fed at a time: zlib copies what it leaves, once for each member and piece
_GZIP = 31  # zlib's name for "gzip header and trailer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Whole records of one blob.

    Attributes:
        path: The blob, canonical.
        offset: Where the block begins in the (decompressed) blob, in bytes.
        data: The records with their line ends.
        header: The blob's first record, if its format has a header.
    """

    path: str
    offset: int
    data: bytes
    header: bytes = b""


class Claims(Protocol):
    """What a splittable read asks of its restriction: who owns the record that begins at this byte?"""

    def try_claim(self, position: int) -> bool:
        """Take all records that begin up to `position`; False if that is no longer ours."""
        ...  # pragma: no cover

    def stop(self) -> int:
        """The first byte whose records are not ours; may shrink until a claim has failed."""
        ...  # pragma: no cover


Fetch = Callable[[int, int], "bytes | bytearray"]


def fetch_ahead(
    fetch: Fetch, start: int, stop: int, *, chunk_bytes: int, executor: Executor, depth: int
) -> Iterator[bytes | bytearray]:
    """Bytes [start, stop) in chunks, in order, with at most `depth` requests under way ahead of the consumer."""
    begins = iter(range(start, stop, chunk_bytes))
    waiting: deque[Future[bytes | bytearray]] = deque()

    def refill() -> None:
        while len(waiting) < depth and (begin := next(begins, None)) is not None:
            waiting.append(executor.submit(fetch, begin, min(begin + chunk_bytes, stop)))

    try:
        refill()
        while waiting:
            chunk = waiting.popleft().result()
            refill()
            yield chunk
    finally:
        wait([future for future in waiting if not future.cancel()])


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
    buffer = bytearray()
    at = max(start - 1, 0)  # offset of buffer[0]
    aligned = start == 0
    with closing(_with_tail(chunks, at, stop, size, lambda: bool(buffer))) as pieces:
        for piece, last in pieces:
            buffer += piece
            if not aligned:
                newline = buffer.find(b"\n")
                if newline < 0:
                    at += len(buffer)
                    buffer.clear()
                    continue
                del buffer[: newline + 1]
                at, aligned = at + newline + 1, True
            end = len(buffer) if last else buffer.rfind(b"\n") + 1
            if end == 0:
                _check_record(path, at, len(buffer), max_record_bytes)
                continue
            final = at + buffer.rfind(b"\n", 0, end - 1) + 1
            if not claims.try_claim(final):
                end = _end_before(buffer, at, claims.stop(), end)
                if end:
                    yield _block(path, at, _head(buffer, end))
                return
            yield _block(path, at, _head(buffer, end))
            del buffer[:end]
            at += end


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


def _end_before(buffer: bytearray, at: int, stop: int, end: int) -> int:
    """Where in the buffer the records end that begin before `stop`."""
    if stop <= at:
        return 0
    newline = buffer.find(b"\n", stop - 1 - at, end)
    return newline + 1 if newline >= 0 else end


def stream_blocks(
    path: str, pieces: Iterator[bytes | bytearray], format: Format, *, max_record_bytes: int
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


def gunzip(path: str, pieces: Iterator[bytes | bytearray], *, piece_bytes: int) -> Iterator[bytes]:
    """Decompress a gzip stream, member after member, at most `piece_bytes` at a time.

    Raises:
        FormatError: It is no gzip stream, or it breaks off.
    """
    member = zlib.decompressobj(_GZIP)
    fresh = True  # between members: nothing of the next one has been seen
    begun = False
    out = bytearray()
    try:
        for data in _small(pieces):
            while data:
                if fresh and begun:
                    data = data.lstrip(b"\0")  # padding after the last member
                    if not data:
                        break
                out += member.decompress(data, piece_bytes - len(out))
                fresh, begun = False, True
                if len(out) >= piece_bytes:
                    yield bytes(out)
                    out.clear()
                if member.eof:
                    data = member.unused_data
                    member, fresh = zlib.decompressobj(_GZIP), True
                else:
                    data = member.unconsumed_tail
    except zlib.error as error:
        raise _bad_gzip(path, str(error)) from None
    if not fresh:
        raise _bad_gzip(path, "it breaks off before its end")
    if out:
        yield bytes(out)


def _small(pieces: Iterator[bytes | bytearray]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), _GUNZIP_BYTES):
            yield bytes(piece[at : at + _GUNZIP_BYTES])


def _bad_gzip(path: str, problem: str) -> FormatError:
    return FormatError(
        f"{path} is no sound gzip stream: {problem}",
        Diagnosis(hint="upload the blob again; if it is not compressed, read it with compression='none'"),
    )


def _head(buffer: bytearray, end: int) -> bytes:
    """The first `end` bytes, copied once: a slice of a bytearray would be a copy of its own."""
    with memoryview(buffer) as whole, whole[:end] as head:
        return bytes(head)


def _block(path: str, at: int, data: bytes) -> Block:
    stripped = data.removeprefix(BYTE_ORDER_MARK) if at == 0 else data
    return Block(path=path, offset=at + len(data) - len(stripped), data=stripped)


def _check_record(path: str, at: int, length: int, limit: int) -> None:
    if length > limit:
        raise FormatError(
            f"the record at byte {at} of {path} is longer than {limit} bytes",
            Diagnosis(hint="check that the blob has this format, or raise max_record_bytes"),
        )
