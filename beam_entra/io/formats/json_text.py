"""Record batches to JSON Lines, column by column: each column to texts, the texts of a row joined by Arrow."""

from __future__ import annotations

from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from beam_entra.io.formats.texts import bytes_of, characters_of, is_text, plain_texts, replaced

__all__ = ["json_lines_of"]

_MOST_BYTES = 256 << 20  # of a batch at a time: Arrow's texts end at 2 GiB
_NULL = pa.scalar("null")
_QUOTE = pa.scalar('"')
_EMPTY = pa.scalar("")


def json_lines_of(batch: pa.RecordBatch, encode: Callable[[Any], str], *, most_bytes: int = _MOST_BYTES) -> bytes:
    """A line for each row, the same that `encode` would make of it as a dict.

    Args:
        encode: One value to JSON; whatever it raises is raised.
        most_bytes: How much of the batch to write at a time.
    """
    if not batch.num_rows:
        return b""
    if batch.nbytes > most_bytes and batch.num_rows > 1:
        half = batch.num_rows // 2
        parts = (batch.slice(0, half), batch.slice(half))
        return b"".join(json_lines_of(part, encode, most_bytes=most_bytes) for part in parts)
    pieces: list[Any] = []
    before = "{"
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        text, quoted = _texts(column, encode)
        quote = '"' if quoted else ""
        pieces += [pa.scalar(f"{before}{encode(name)}:{quote}"), text]
        before = f"{quote},"
    lines = pc.binary_join_element_wise(*pieces, pa.scalar(before[:-1] + "}\n"), _EMPTY)
    return bytes_of(lines)


def _texts(column: pa.Array, encode: Callable[[Any], str]) -> tuple[pa.Array, bool]:
    """The values of a column as JSON, none of them null; and whether all are still to be put in quotes."""
    text = _plain(column)
    if text is None:
        return pa.array([encode(value) for value in column.to_pylist()], pa.string()), False
    quoted = not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type))
    if not text.null_count:
        return text, quoted
    if quoted:
        text = pc.binary_join_element_wise(_QUOTE, text, _QUOTE, _EMPTY)
    return pc.fill_null(text, _NULL), False


def _plain(column: pa.Array) -> pa.StringArray | None:
    """The values of a column without quotes, or None where Arrow does not write them as Python does."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    text = plain_texts(column, between="T")
    return _escaped(text) if text is not None and is_text(column.type) else text


def _escaped(column: pa.StringArray) -> pa.StringArray:
    """Texts with what JSON wants escaped; of most there is nothing."""
    characters = characters_of(column)
    special = (characters < ord(" ")) | (characters == ord('"')) | (characters == ord("\\"))
    if not special.any():
        return column
    return replaced(column, special, lambda text: encode_basestring(text)[1:-1])
