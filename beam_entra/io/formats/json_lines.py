"""JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, NoReturn

from beam_entra.io.formats.base import Format, as_mapping, not_writable

__all__ = ["JsonLines"]

_JSON_SPACE = " \t\r\n"


class JsonLines(Format):
    """JSON Lines: one JSON value a line, a dict as a rule. Blank lines are none.

    Args:
        parse: Makes an element of each decoded value. What it raises sends the record to the dead letters, with its
            blob and offset, like a record that is no JSON.
    """

    suffix = ".jsonl"
    content_type = "application/jsonl"

    def __init__(self, parse: Callable[[Any], Any] | None = None) -> None:
        self.parse = parse

    def decode(self, record: bytes, header: bytes) -> Any:
        text = record.decode("utf-8").strip(_JSON_SPACE)
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise ValueError(f"there is more behind the JSON value, from character {end} on")
        return value if self.parse is None else self.parse(value)

    def encode(self, element: Any) -> bytes:
        value = as_mapping(element)
        try:
            try:
                return _ENCODER.encode(value).encode("utf-8") + b"\n"
            except UnicodeEncodeError:  # half a surrogate pair, which JSON can say as an escape
                return _ASCII_ENCODER.encode(value).encode("ascii") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise not_writable(element, f"is no JSON: {error}", "map it to plain values before WriteToBlob") from None

    def skips(self, record: bytes) -> bool:
        return not record or record.isspace()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _json_default(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    converted = as_mapping(value)
    if converted is value:
        raise TypeError(f"a {type(value).__name__} has no JSON form")
    return converted


_encoder = partial(json.JSONEncoder, separators=(",", ":"), allow_nan=False, default=_json_default)
_ENCODER, _ASCII_ENCODER = _encoder(ensure_ascii=False), _encoder(ensure_ascii=True)
