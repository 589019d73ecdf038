"""Whole blobs: each is one element."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import IO, Any, ClassVar

import pyarrow as pa

from beam_entra.errors import Diagnosis, FormatError
from beam_entra.io.blocks import BadRecord, Block, Claims, PlannedSource, Range, Source
from beam_entra.io.formats.base import FileFormat, FileWriter, not_writable

__all__ = ["Bytes"]

_LONGEST = 2**31 - 1  # what Arrow's and protobuf's lengths hold


class Bytes(FileFormat):
    """Each blob is one element, `bytes`; an empty one is, too.

    Batches have one row a blob, with the columns `path` (string) and `content` (large_binary).

    What is written is `bytes`, or a pair `(name, bytes)`, where the name is relative to the sink's prefix: each becomes
    a blob of its own. The rows of record batches have a column `content`, and perhaps a column `name`.

    Args:
        with_path: Give `(path, bytes)`, the path canonical.
    """

    suffix = ".bin"
    content_type = "application/octet-stream"
    splittable = False
    one_element = True
    schema = pa.schema([("path", pa.string()), ("content", pa.large_binary())])
    max_record_bytes: ClassVar[int] = _LONGEST

    def __init__(self, *, with_path: bool = False) -> None:
        self._with_path = with_path

    def split(self, source: Source, start: int, stop: int, claims: Claims) -> Iterator[Block]:
        raise NotImplementedError("a whole blob is not split")

    def read(self, source: Source) -> Iterator[Block]:
        if source.size_bytes > source.max_record_bytes:
            raise _too_long(source.path, source.max_record_bytes)
        yield Block(path=source.path, offset=0, data=source.content())

    def wanted(self, source: PlannedSource, start: int, stop: int) -> Iterator[Range]:
        return source.content_requests() if source.size_bytes <= source.max_record_bytes else iter(())

    def stream(self, path: str, pieces: Iterator[bytes | bytearray], *, max_record_bytes: int) -> Iterator[Block]:
        kept: list[bytes | bytearray] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > max_record_bytes:
                raise _too_long(path, max_record_bytes)
            kept.append(piece)
        yield Block(path=path, offset=0, data=b"".join(kept))

    def decode_all(self, block: Block) -> list[Any]:
        return [(block.path, block.data) if self._with_path else block.data]

    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        yield from self.decode_all(block)
        return 1

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        offsets = pa.array([0, len(block.data)], pa.int64()).buffers()[1]
        content = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(block.data)])  # no copy
        yield pa.RecordBatch.from_arrays([pa.array([block.path]), content], schema=self.schema)

    def open(self, file: IO[bytes]) -> FileWriter:
        return _BytesWriter(file)


def _too_long(path: str, max_record_bytes: int) -> FormatError:
    return FormatError(
        f"{path} is longer than {max_record_bytes} bytes, and is to be one element",
        Diagnosis(hint="raise max_record_bytes, or read it with a format that takes it apart"),
    )


class _BytesWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, element: Any) -> None:
        if not isinstance(element, (bytes, bytearray, memoryview)):
            raise not_writable(element, "is no bytes", "give bytes, or (name, bytes)")
        self._file.write(element)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        if "content" not in batch.schema.names:
            raise FormatError(
                f"a record batch of {', '.join(batch.schema.names)} has no column content",
                Diagnosis(hint="give content (binary or string), and name for names of one's own"),
            )
        for content in batch.column("content"):
            if not (content.is_valid and hasattr(content, "as_buffer")):
                raise FormatError(
                    f"a row has no bytes in content, which is a column of {content.type}",
                    Diagnosis(hint="each row has some, binary or string"),
                )
            self._file.write(content.as_buffer())

    def close(self) -> None:
        """There is nothing behind the content."""
