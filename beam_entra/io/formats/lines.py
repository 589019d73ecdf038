"""Text, line by line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beam_entra.errors import Diagnosis, FormatError
from beam_entra.io.blocks import BYTE_ORDER_MARK, BadRecord, Block
from beam_entra.io.formats.base import Format, encoded, not_writable, rows_of
from beam_entra.io.formats.line_bounds import line_bounds, line_texts, not_utf8
from beam_entra.io.formats.texts import bytes_of, characters_of

__all__ = ["Lines"]


_BATCH = pa.schema([pa.field("line", pa.string(), nullable=False)])
_MOST_BYTES = 1 << 30  # of a column's texts at a time: Arrow's end at 2 GiB


class Lines(Format):
    """Text: one element a line, a str without the line end. Record batches have one column of it, `line`."""

    suffix = ".txt"
    content_type = "text/plain; charset=utf-8"

    def decode(self, record: bytes, header: bytes) -> str:
        return record.decode("utf-8")

    def decode_all(self, block: Block) -> Sequence[str] | None:
        if type(self) is not Lines or b"\r" in block.data:  # a subclass may have a decode of its own
            return None
        try:
            lines: list[str] = block.data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            return None
        if not lines[-1]:
            lines.pop()
        return lines

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        plain = all(getattr(type(self), name) is getattr(Lines, name) for name in ("decode", "skips", "records"))
        if not plain or len(block.data) > _MOST_BYTES:
            yield from super().decode_batches(block, bad)
            return
        data: bytes = block.data
        starts, ends = line_bounds(data)
        wrong = not_utf8(data, ends)
        if wrong.size:
            lines = [(int(starts[line]), data[starts[line] : ends[line]]) for line in wrong]
            list(self.decode_lines(block, lines, bad))
            kept = itertools.pairwise([-1, *wrong.tolist(), len(ends)])
            runs = [data[starts[first + 1] : ends[last - 1]] for first, last in kept if last - first > 1]
            data = b"".join(runs)
            _, ends = line_bounds(data)
        if ends.size:
            yield pa.RecordBatch.from_arrays([line_texts(data, ends)], schema=_BATCH)

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        if batch.num_columns != 1 or not pa.types.is_string(batch.schema.types[0]):
            raise FormatError(
                f"Lines are written of record batches with one column of texts, not of {batch.schema.to_string()!r}",
                Diagnosis(hint="batch.select(['line']), or write JsonLines() or Csv(...)"),
            )
        ((name,), (column,)) = batch.schema.names, batch.columns
        own = type(self).encode is Lines.encode and batch.nbytes <= _MOST_BYTES
        if not own or not _all_lines(column):
            return b"".join(self.encode(row[name]) for row in rows_of(batch))
        lines = pc.binary_join_element_wise(column, pa.scalar("\n"), pa.scalar(""))
        return bytes_of(lines)

    def encode(self, element: Any) -> bytes:
        if not isinstance(element, str):
            raise not_writable(element, "is no str", "map it to str before WriteToBlob(..., Lines())")
        if "\n" in element or element.endswith("\r"):
            raise not_writable(element, "holds a line end", "escape it, or write it as JsonLines()")
        return encoded(element, element) + b"\n"


def _all_lines(column: pa.StringArray) -> bool:
    """Whether each text is one line that would be read back."""
    try:
        data = characters_of(column).tobytes()
    except pa.ArrowInvalid:
        return False
    if column.null_count or b"\n" in data:
        return False
    if b"\r" in data and pc.any(pc.ends_with(column, "\r")).as_py():
        return False
    return BYTE_ORDER_MARK not in data or not pc.any(pc.starts_with(column, "\ufeff")).as_py()
