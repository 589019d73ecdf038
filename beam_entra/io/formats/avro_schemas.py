"""What an Avro schema means for record batches, and which values fastavro may be trusted with."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import fastavro
import fastavro.schema
import fastavro.validation
import pyarrow as pa

from beam_entra.errors import ConfigError, Diagnosis, FormatError
from beam_entra.io.formats.base import reason_of

__all__ = ["arrow_schema", "has_uuids", "is_record", "parsed", "uuids_as_text", "what_is_wrong"]

Check = Callable[[Any], bool]

_PRIMITIVES = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
    "enum": pa.string(),
}
_LOGICAL = {  # those that fastavro knows
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time32("ms"),
    ("long", "time-micros"): pa.time64("us"),
    ("long", "timestamp-millis"): pa.timestamp("ms", "UTC"),
    ("long", "timestamp-micros"): pa.timestamp("us", "UTC"),
    ("long", "local-timestamp-millis"): pa.timestamp("ms"),
    ("long", "local-timestamp-micros"): pa.timestamp("us"),
}
_RECORDS = ("record", "error")


def parsed(schema: Any) -> Any:
    """A schema as fastavro wants it.

    Raises:
        ConfigError: It is no Avro schema.
    """
    try:
        return fastavro.parse_schema(json.loads(schema) if isinstance(schema, str) else schema)
    except Exception as error:  # noqa: BLE001 - fastavro raises whatever it stumbles over
        raise ConfigError(
            f"this is no Avro schema: {reason_of(error)}", Diagnosis(hint="give a dict, or its JSON, as Avro asks")
        ) from None


def is_record(schema: Any) -> bool:
    """Whether what has the schema is a dict."""
    return isinstance(schema, dict) and schema["type"] in _RECORDS


def arrow_schema(schema: Any) -> pa.Schema:
    """The columns of record batches: a record's fields, or one named `value`.

    Raises:
        FormatError: A column would have values of several types.
    """
    whole: Any = fastavro.schema.expand_schema(schema)
    if is_record(whole):
        return pa.schema([_field(field["name"], field["type"], field["name"]) for field in whole["fields"]])
    return pa.schema([_field("value", whole, "the value")])


def _field(name: str, schema: Any, path: str) -> pa.Field:
    nullable = schema == "null" or (isinstance(schema, list) and "null" in schema)
    return pa.field(name, _arrow_type(schema, path), nullable=nullable)


def _arrow_type(schema: Any, path: str) -> pa.DataType:
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"] or ["null"]
        if len(branches) > 1:
            raise _no_column(path, "may be of several types")
        return _arrow_type(branches[0], path)
    if isinstance(schema, str):
        if schema not in _PRIMITIVES:
            raise _no_column(path, f"is of a type, {schema}, that holds itself")
        return _PRIMITIVES[schema]
    kind, logical = schema["type"], schema.get("logicalType")
    if not isinstance(kind, str):
        return _arrow_type(kind, path)
    if kind in _RECORDS:
        return pa.struct(
            [_field(field["name"], field["type"], f"{path}.{field['name']}") for field in schema["fields"]]
        )
    if kind == "array":
        return pa.list_(_field("item", schema["items"], f"{path}[]"))
    if kind == "map":
        return pa.map_(pa.string(), _field("value", schema["values"], f"{path}[]"))
    if logical == "decimal" and kind in ("bytes", "fixed"):
        precision, scale = schema["precision"], schema.get("scale", 0)
        try:
            return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, scale)
        except ValueError:
            raise _no_column(path, f"has {precision} digits") from None
    if kind == "fixed":
        return pa.binary(schema["size"])
    return _LOGICAL.get((kind, logical)) or _arrow_type(kind, path)


def _no_column(path: str, problem: str) -> FormatError:
    return FormatError(
        f"{path} of an Avro schema {problem}, which no Arrow column can hold",
        Diagnosis(hint="read elements, not batches; or leave the field out with Avro(reader_schema=...)"),
    )


def uuids_as_text(value: Any) -> Any:
    """The value with UUIDs, wherever in it they are, as Avro writes them."""
    if isinstance(value, dict):
        return {name: uuids_as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return list(map(uuids_as_text, value))
    return str(value) if isinstance(value, UUID) else value


def has_uuids(schema: Any) -> bool:
    """Whether fastavro makes UUIDs of some of what has the schema."""
    if isinstance(schema, list):
        return any(map(has_uuids, schema))
    if not isinstance(schema, dict):
        return False
    inner = [schema[key] for key in ("items", "values") if key in schema]
    inner += [field["type"] for field in schema.get("fields", ())]
    return schema.get("logicalType") == "uuid" or any(map(has_uuids, inner))


# Writing


@lru_cache(maxsize=64)
def _check_of(text: str) -> Check | None:
    schema = parsed(text)
    named: dict[str, Any] = {}
    fastavro.parse_schema(json.loads(text), named)
    return _check(schema, named, {})


def what_is_wrong(text: str, schema: Any, value: Any) -> str:
    """Why a value is none of the schema; empty where it is one, as far as fastavro does not find out when it writes.

    fastavro by itself writes 1.5 as 1 where the schema says `int`, and a time without a zone as that of wherever the
    worker is. Its own validation takes four times as long as writing: here it is asked only about doubtful values.

    Args:
        text: The schema as JSON.
        schema: The same, parsed.
    """
    check = _check_of(text)
    try:
        if check is None or check(value):
            return ""
    except ValueError as error:
        return str(error)
    return invalid(schema, value)


def invalid(schema: Any, value: Any) -> str:
    """What fastavro's validation says of a value; empty where it is valid."""
    try:
        validate: Any = fastavro.validation.validate  # typed without all of its arguments
        validate(value, schema, raise_errors=True, disable_tuple_notation=True)
    except fastavro.validation.ValidationError as error:
        return "; ".join(dict.fromkeys(_problem(found) for found in error.errors))
    except Exception as error:  # noqa: BLE001 - of values such as a list where a record should be
        return reason_of(error)
    return ""


def _problem(found: Any) -> str:
    """One thing that fastavro finds wrong, without the value, which is nobody's who reads a log."""
    wanted = found.schema.get("logicalType", found.schema["type"]) if isinstance(found.schema, dict) else found.schema
    if isinstance(wanted, list):
        wanted = "one of several types"
    return f"{found.field or 'it'}, of type {type(found.datum).__name__}, is not of Avro's {wanted}"


def _check(schema: Any, named: dict[str, Any], seen: dict[str, Check], path: str = "it") -> Check | None:
    """Says of a value whether it is surely one of the schema; None where fastavro refuses what is none."""
    if isinstance(schema, list):
        branches = [_check(branch, named, seen, path) for branch in schema if branch != "null"]
        sure = [check for check in branches if check is not None]
        if len(sure) < len(branches):
            return None
        return lambda value: value is None or any(check(value) for check in sure)
    if isinstance(schema, str):
        return _SURE[schema] if schema in _SURE else _check(named[schema], named, seen, path)
    kind, logical = schema["type"], schema.get("logicalType", "")
    if kind in _RECORDS:
        return _check_of_record(schema, named, seen)
    if kind in ("array", "map"):
        return _check_of_items(schema, named, seen, path)
    if logical.startswith("timestamp-"):
        return _check_of_times(path)
    return _check(kind, named, seen, path) if not logical or kind not in ("int", "long") else _not_a_float


def _check_of_record(schema: Any, named: dict[str, Any], seen: dict[str, Check]) -> Check:
    record = schema["name"]
    if record not in seen:
        checks: dict[str, Check] = {}

        def check(value: Any) -> bool:
            if type(value) is not dict:
                return False
            return all(name not in value or sure(value[name]) for name, sure in checks.items())

        seen[record] = check  # before the fields, which may hold such records
        for field in schema["fields"]:
            sure = _check(field["type"], named, seen, f"{record}.{field['name']}")
            if sure is not None:
                checks[field["name"]] = sure
    return seen[record]


def _check_of_items(schema: Any, named: dict[str, Any], seen: dict[str, Check], path: str) -> Check:
    if schema["type"] == "array":
        sure = _check(schema["items"], named, seen, path)
        return lambda value: type(value) is list and (sure is None or all(map(sure, value)))
    sure = _check(schema["values"], named, seen, path)
    return lambda value: type(value) is dict and (sure is None or all(map(sure, value.values())))


def _check_of_times(path: str) -> Check:
    def check(value: Any) -> bool:
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError(f"{path} has no time zone")
            return True
        return type(value) is int

    return check


def _not_a_float(value: Any) -> bool:
    return not isinstance(value, (float, bool))


_SURE: dict[str, Check | None] = {
    "null": lambda value: value is None,
    "boolean": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int and -(1 << 31) <= value < 1 << 31,
    "long": lambda value: type(value) is int,
    "float": lambda value: type(value) is float,
    "double": lambda value: type(value) is float,
    "bytes": None,
    "string": None,
    "fixed": None,
    "enum": None,
}
