"""Columns as texts, and the bytes in which Arrow holds those."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["bytes_of", "characters_of", "is_text", "plain_texts", "replaced"]

_FIXED_DIGITS = 6  # decimals of up to so many are never written with an exponent
_UTC = pa.scalar("+00:00")
_EMPTY = pa.scalar("")


def is_text(type_: pa.DataType) -> bool:
    """Whether a column holds texts."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def plain_texts(column: pa.Array, *, between: str) -> pa.StringArray | None:
    """The values of a column as Python writes them, nulls as nulls; None if Arrow has no quick way to do that.

    Args:
        between: What stands between date and time.
    """
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return plain_texts(column.dictionary_decode(), between=between)
    if is_text(type_) or pa.types.is_integer(type_):
        return column.cast(pa.string())
    if pa.types.is_decimal128(type_) and 0 <= type_.scale <= _FIXED_DIGITS:
        return column.cast(pa.string())
    if pa.types.is_date32(type_) and _years_of_four_digits(column):
        return column.cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.tz in {None, "UTC"} and _years_of_four_digits(column):
        seconds = column.cast(pa.timestamp("s", type_.tz), safe=False)
        if column.null_count == len(column) or pc.all(pc.equal(seconds.cast(type_), column)).as_py():
            text = seconds.cast(pa.int64()).cast(pa.timestamp("s")).cast(pa.string())
            if between != " ":
                text = pc.binary_replace_slice(text, 10, 11, between)
            return pc.binary_join_element_wise(text, _UTC, _EMPTY) if type_.tz else text
    return None


def _years_of_four_digits(column: pa.Array) -> bool:
    years = pc.min_max(pc.year(column)).as_py()
    return years["min"] is None or (years["min"] >= 1 and years["max"] <= 9999)


def replaced(column: pa.StringArray, special: npt.NDArray[np.bool_], replace: Callable[[str], str]) -> pa.StringArray:
    """The same with other texts where special characters stand.

    Args:
        special: Which of `characters_of(column)` are.
    """
    offsets = _offsets_of(column)
    rows = np.searchsorted(offsets, np.flatnonzero(special) + offsets[0], side="right") - 1
    chosen = np.zeros(len(column), np.bool_)
    chosen[rows] = True
    mask = pa.array(chosen)
    texts = [replace(text) for text in column.filter(mask).to_pylist()]
    return pc.replace_with_mask(column, mask, pa.array(texts, pa.string()))


def _offsets_of(column: pa.StringArray) -> npt.NDArray[np.int32]:
    """Where each text begins in the column's buffer, and where the last one ends."""
    if not len(column):
        return np.zeros(1, np.int32)
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]


def characters_of(column: pa.StringArray) -> npt.NDArray[np.uint8]:
    """The bytes of all texts, one behind the other.

    Raises:
        pa.ArrowInvalid: They are no UTF-8, which Arrow itself makes sure of only here and there.
    """
    column.validate(full=True)
    data = column.buffers()[2]
    if data is None or not len(column):
        return np.zeros(0, np.uint8)
    offsets = _offsets_of(column)
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]


def bytes_of(column: pa.StringArray) -> bytes:
    """The same as bytes, unchecked."""
    data = column.buffers()[2]
    if data is None or not len(column):
        return b""
    offsets = _offsets_of(column)
    found: bytes = data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_pybytes()
    return found
