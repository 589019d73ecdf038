"""Columns of texts, and the bytes in which Arrow holds them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["bytes_of", "characters_of", "offsets_of"]


def offsets_of(column: pa.StringArray) -> npt.NDArray[np.int32]:
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
    offsets = offsets_of(column)
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]


def bytes_of(column: pa.StringArray) -> bytes:
    """The same as bytes, unchecked."""
    data = column.buffers()[2]
    if data is None or not len(column):
        return b""
    offsets = offsets_of(column)
    found: bytes = data.slice(int(offsets[0]), int(offsets[-1] - offsets[0])).to_pybytes()
    return found
