"""Rows in rows: what they are as dicts, what they weigh, and what Arrow would leave out of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, time, timedelta
from typing import Any

import pyarrow as pa

from beam_entra.io.formats.base import as_mapping

__all__ = ["check_times", "plain", "weight_bytes"]

_SCALAR_BYTES = 8
_SCALARS = frozenset((int, float, bool, type(None)))
_TEXTS = (str, bytes, bytearray)
_MICROSECONDS = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}


def plain(value: Any) -> Any:
    """The value with named tuples, dataclasses and `beam.Row` as dicts, wherever in it they are."""
    value = as_mapping(value)
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        inner = map(plain, value)
        return tuple(inner) if isinstance(value, tuple) else list(inner)
    return value


def weight_bytes(value: Any) -> int:
    """About how many bytes of memory a row takes, texts and bytes wherever in it they are."""
    if isinstance(value, _TEXTS):
        return len(value) + _SCALAR_BYTES
    if not isinstance(value, (dict, list, tuple, set)):
        if not hasattr(value, "__dict__"):
            return int(getattr(value, "nbytes", _SCALAR_BYTES))
        value = vars(value)  # of a dataclass, of beam.Row
    total = _SCALAR_BYTES * len(value)
    for inner in value.values() if isinstance(value, dict) else value:
        kind = type(inner)
        if kind in _TEXTS:
            total += len(inner)
        elif kind not in _SCALARS:
            total += weight_bytes(inner)
    return total


def check_times(values: Iterable[Any], kind: pa.DataType) -> None:
    """Refuse dates, times and durations that Arrow would convert in silence to others.

    Raises:
        ValueError: One has a zone and the type has none, or the other way round; or it is finer than the type.
    """
    if pa.types.is_date(kind):
        if any(isinstance(value, datetime) for value in values):
            raise ValueError(f"{kind} has no time of day")
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        zone = getattr(kind, "tz", None)
        step = _MICROSECONDS[kind.unit]
        for value in values:
            if isinstance(value, (datetime, time)) and (value.tzinfo is None) != (zone is None):
                raise ValueError(f"{kind} has {'no' if zone is None else 'a'} time zone")
            if (value.microseconds if isinstance(value, timedelta) else getattr(value, "microsecond", 0)) % step:
                raise ValueError(f"{kind} has no smaller fractions of a second")
    elif pa.types.is_struct(kind):
        rows = [as_mapping(value) for value in values if value is not None]
        for field in kind:
            check_times([row.get(field.name) for row in rows], field.type)
    elif pa.types.is_map(kind):
        pairs = [pair for value in values if value is not None for pair in dict(value).items()]
        check_times([key for key, _ in pairs], kind.key_type)
        check_times([item for _, item in pairs], kind.item_type)
    elif pa.types.is_nested(kind) and not pa.types.is_union(kind):
        check_times([item for value in values if value is not None for item in value], kind.value_type)
