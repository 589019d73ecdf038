"""`ReadFromBlob` and `WriteToBlob` as Beam YAML knows transforms: plain arguments, rows with a schema in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.portability.api import schema_pb2
from apache_beam.typehints import schemas
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.yaml.json_utils import json_schema_to_beam_schema, json_to_row
from apache_beam.yaml.yaml_utils import SafeLineLoader

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.formats import Csv, Format, JsonLines, Lines
from beam_entra.io.read import BadRecord, ReadFromBlob
from beam_entra.io.write import WriteToBlob
from beam_entra.session import CommittedBlob

__all__ = ["ReadRows", "WriteRows"]

_FORMATS = ("json", "csv", "text")
_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
_TRUTH = {"true": True, "false": False}
_LETTER = [("source", str), ("offset", int), ("reason", str), ("record", str)]
_WRITTEN = [("path", str), ("etag", str), ("size_bytes", int), ("rows", int)]


class ReadRows(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Reads the blobs that a pattern matches, as the job of the access manifest.

    Args:
        path: `abfss://container@account.dfs.core.windows.net/orders/*.jsonl`.
        format: `json` (JSON Lines), `csv` (with a header) or `text` (rows with the one field `line`).
        schema: For `json` and `csv`: JSON Schema of a row, `{type: object, properties: {id: {type: string}, ...}}`.
            Fields that are not listed under `required` may be missing.
        compression: `auto`, `gzip` or `none`.
        error_handling: `{output: NAME}` sends what is no such row to the output NAME, as rows of source, offset, reason
            and record. Without it, that is an error.
    """

    def __init__(self, path, format, schema=None, compression="auto", error_handling=None) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self._row = _Row(format, SafeLineLoader.strip_metadata(schema))
        self._reading = ReadFromBlob(path, self._row.format(), compression=compression)
        self._errors = str(error_handling["output"]) if error_handling else ""

    def expand(self, pbegin: beam.pvalue.PBegin) -> Any:
        if not self._errors:
            return pbegin | "Read" >> self._reading | "Rows" >> beam.Map(_same).with_output_types(self._row.type)
        rows, bad = pbegin | "Read" >> self._reading.with_exception_handling()
        letters = bad | "Letters" >> beam.Map(_letter).with_output_types(RowTypeConstraint.from_fields(_LETTER))
        return {"good": rows | "Rows" >> beam.Map(_same).with_output_types(self._row.type), self._errors: letters}


class WriteRows(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Writes each row once to blobs below a prefix, as the job of the access manifest. Gives a row for each blob.

    Args:
        path: `abfss://container@account.dfs.core.windows.net/orders/clean/`.
        format: `json`, `csv` (columns are the input's fields) or `text` (of the input's one field).
        shards: Write exactly this many blobs; by default about one a worker process.
        compression: `none` or `gzip`.
        overwrite: Replace blobs of the same names, an earlier run's. Needs `shards`.
    """

    def __init__(self, path, format, shards=None, compression="none", overwrite=False) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        _check_format(format)
        self._path, self._format = path, format
        self._settings = {"shards": shards, "compression": compression, "overwrite": overwrite}

    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[Any]:
        fields = [name for name, _ in schemas.named_fields_from_element_type(rows.element_type)]
        if self._format == "text" and len(fields) != 1:
            raise ConfigError(
                f"text is written from rows of one field, and these have {', '.join(fields)}",
                Diagnosis(hint="map them to one field before WriteToBlob, or write json or csv"),
            )
        chosen: Format = {"json": JsonLines, "text": Lines}.get(self._format, lambda: Csv(fields))()
        values = beam.Map(_only_field, fields[0]) if self._format == "text" else beam.Map(_as_dict, fields)
        return (
            rows
            | "Values" >> values
            | "Write" >> WriteToBlob(self._path, chosen, **self._settings)
            | "Written" >> beam.Map(_written).with_output_types(RowTypeConstraint.from_fields(_WRITTEN))
        )


class _Row:
    """What a schema says of rows, and how text becomes one."""

    def __init__(self, format: str, schema: Mapping[str, Any] | None) -> None:
        _check_format(format)
        self._kind = format
        if (schema is None) is not (format == "text"):
            text = "text has the one field `line`"
            raise ConfigError(
                text if format == "text" else f"reading {format} needs the schema of its rows",
                Diagnosis(hint="give ReadFromBlob `schema: {type: object, properties: {...}}` for json and csv alone"),
            )
        described = schema or {"type": "object", "properties": {"line": {"type": "string"}}, "required": ["line"]}
        try:
            beam_schema = json_schema_to_beam_schema(dict(described))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the schema of ReadFromBlob is none: {error}", Diagnosis(hint="see ReadFromBlob in docs/filesystem.md")
            ) from None
        self._properties: Mapping[str, Any] = described["properties"]
        self._required = frozenset(described.get("required", ()))
        self._field_type = schema_pb2.FieldType(row_type=schema_pb2.RowType(schema=beam_schema))
        self.type = RowTypeConstraint.from_fields(schemas.named_fields_from_schema(beam_schema))

    def format(self) -> Format:
        """The format whose elements are the rows."""
        to_row, properties, required = json_to_row(self._field_type), self._properties, self._required
        if self._kind == "text":
            return _TextRows()
        if self._kind == "csv":
            return Csv(parse=lambda row: to_row(_checked(_from_text(row, properties), properties, required)))
        return JsonLines(lambda value: to_row(_checked(value, properties, required)))


class _TextRows(Lines):
    def decode(self, record: bytes, header: bytes) -> Any:
        return beam.Row(line=super().decode(record, header))


def _check_format(format: object) -> None:
    if format not in _FORMATS:
        raise ConfigError(f"there is no format {format!r}", Diagnosis(hint=f"use one of {', '.join(_FORMATS)}"))


def _checked(value: Any, properties: Mapping[str, Any], required: frozenset[str]) -> Mapping[str, Any]:
    """The value, if it is what the schema says: a coder further on would not know where it stood."""
    if not isinstance(value, Mapping):
        raise ValueError("not an object")
    for name, described in properties.items():
        if value.get(name) is None:
            if name in required:
                raise ValueError(f"{name} is missing")
            continue
        types = _TYPES.get(described["type"])
        if types and (not isinstance(value[name], types) or (isinstance(value[name], bool) and bool not in types)):
            raise ValueError(f"{name} is no {described['type']}")
    return value


def _from_text(row: Mapping[str, str], properties: Mapping[str, Any]) -> dict[str, Any]:
    """CSV holds text alone; nothing between two separators is nothing, but for a string."""
    convert: dict[str, Callable[[str], Any]] = {"integer": int, "number": float, "boolean": _TRUTH.__getitem__}
    values: dict[str, Any] = {}
    for name, described in properties.items():
        text, kind = row.get(name), described["type"]
        try:
            values[name] = text if text is None or kind == "string" else convert[kind](text) if text else None
        except (ValueError, KeyError):
            raise ValueError(f"{name} is no {kind}") from None
    return values


def _same(row: Any) -> Any:
    return row


def _letter(bad: BadRecord) -> beam.Row:
    return beam.Row(**bad.as_dict())


def _only_field(row: Any, name: str) -> str:
    return str(getattr(row, name))


def _as_dict(row: Any, fields: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in fields}


def _written(blob: CommittedBlob) -> beam.Row:
    return beam.Row(path=blob.path, etag=blob.etag, size_bytes=blob.size_bytes, rows=blob.rows)
