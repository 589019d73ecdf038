"""Record batches to JSON Lines, column by column: each column to texts, the texts of a row joined by Arrow."""

from __future__ import annotations

from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_entra.io.formats.texts import bytes_of, characters_of, offsets_of

__all__ = ["json_lines_of"]

_MOST_BYTES = 256 << 20  # of a batch at a time: Arrow's texts end at 2 GiB
_FIXED_DIGITS = 6  # decimals of up to so many are never written with an exponent
_NULL = pa.scalar("null")
_QUOTE = pa.scalar('"')
_UTC = pa.scalar("+00:00")
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


def _plain(column: pa.Array) -> pa.Array | None:
    """The values of a column as Arrow writes them, where that is how JSON has them, without quotes; else None."""
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _plain(column.dictionary_decode()) if pa.types.is_string(type_.value_type) else None
    if pa.types.is_string(type_):
        return _escaped(column)
    if pa.types.is_large_string(type_):
        return _escaped(column.cast(pa.string()))
    if pa.types.is_integer(type_) or pa.types.is_boolean(type_):
        return column.cast(pa.string())
    if pa.types.is_decimal128(type_) and 0 <= type_.scale <= _FIXED_DIGITS:
        return column.cast(pa.string())
    if pa.types.is_date32(type_) and _years_of_four_digits(column):
        return column.cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.tz in {None, "UTC"} and _years_of_four_digits(column):
        seconds = column.cast(pa.timestamp("s", type_.tz), safe=False)
        if column.null_count == len(column) or pc.all(pc.equal(seconds.cast(type_), column)).as_py():
            text = seconds.cast(pa.int64()).cast(pa.timestamp("s")).cast(pa.string())
            text = pc.binary_replace_slice(text, 10, 11, "T")
            return pc.binary_join_element_wise(text, _UTC, _EMPTY) if type_.tz else text
    return None


def _years_of_four_digits(column: pa.Array) -> bool:
    years = pc.min_max(pc.year(column)).as_py()
    return years["min"] is None or (years["min"] >= 1 and years["max"] <= 9999)


def _escaped(column: pa.StringArray) -> pa.StringArray:
    """Texts with what JSON wants escaped; of most there is nothing."""
    characters, offsets = characters_of(column), offsets_of(column)
    special = (characters < ord(" ")) | (characters == ord('"')) | (characters == ord("\\"))
    if not special.any():
        return column
    rows = np.unique(np.searchsorted(offsets, np.flatnonzero(special) + offsets[0], side="right") - 1)
    mask = np.zeros(len(column), np.bool_)
    mask[rows] = True
    texts = column.filter(pa.array(mask)).to_pylist()
    escaped = [None if text is None else encode_basestring(text)[1:-1] for text in texts]
    return pc.replace_with_mask(column, pa.array(mask), pa.array(escaped, pa.string()))
