"""Rows in rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beam_entra.io.formats.base import as_mapping

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """The value with named tuples, dataclasses and `beam.Row` as dicts, wherever in it they are."""
    value = as_mapping(value)
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value
