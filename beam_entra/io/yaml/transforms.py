"""`ReadFromBlob` and `WriteToBlob` as Beam YAML knows transforms: plain arguments, rows with a schema in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.portability.api import schema_pb2
from apache_beam.typehints import schemas
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.yaml.json_utils import json_schema_to_beam_schema, json_to_row
from apache_beam.yaml.yaml_utils import SafeLineLoader

from beam_entra.errors import ConfigError, Diagnosis, FormatError
from beam_entra.io.batches import arrow_type, concrete
from beam_entra.io.formats import Avro, BlobFormat, Csv, JsonLines, Lines, Parquet
from beam_entra.io.read import BadRecord, ReadFromBlob
from beam_entra.io.watch import Watch
from beam_entra.io.write import WriteToBlob
from beam_entra.session import CommittedBlob

__all__ = ["ReadRows", "WriteRows"]

_FORMATS = ("json", "csv", "text", "avro", "parquet")
_AVRO = {str: "string", int: "long", float: "double", bool: "boolean", bytes: "bytes"}
_TYPES: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
_TRUTH = {"true": True, "false": False}
_LETTER = [("source", str), ("offset", int), ("reason", str), ("record", str)]
_WRITTEN = [("path", str), ("etag", str), ("size_bytes", int), ("rows", int)]


class ReadRows(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Reads the blobs that a pattern matches, as the job of the access manifest.

    Args:
        path: `abfss://container@account.dfs.core.windows.net/orders/*.jsonl`.
        format: `json` (JSON Lines), `csv` (with a header), `avro`, `parquet`, `text` (rows with the one field `line`).
        schema: JSON Schema of a row, `{type: object, properties: {id: {type: string}, ...}}`, for all but `text`.
            Fields that are not listed under `required` may be missing; of `parquet`, others are not even fetched.
        compression: `auto`, which goes by names, `gzip`, `bzip2`, `zstd`, `deflate` or `none`.
        error_handling: `{output: NAME}` sends what is no such row to the output NAME, as rows of source, offset, reason
            and record. Without it, that is an error; and in any case it is if a file's own types are not the schema's.
        watch: Seconds from one look for new blobs to the next, or `{interval: 30, until: 3600, stop: PATH}`, of which
            `until` is in seconds from the launch on. What is written of it has to be in windows: `WindowInto`.
    """

    def __init__(  # type: ignore[no-untyped-def]
        self, path, format, schema=None, compression="auto", error_handling=None, watch=None
    ) -> None:
        super().__init__()
        self._row = _Row(format, SafeLineLoader.strip_metadata(schema))
        watching = _watch(SafeLineLoader.strip_metadata(watch))
        self._reading = ReadFromBlob(path, self._row.format(), compression=compression, watch=watching)
        self._errors = str(error_handling["output"]) if error_handling else ""

    def expand(self, pbegin: beam.pvalue.PBegin) -> Any:
        to_rows = beam.Map(self._row.of_element).with_output_types(self._row.type)
        if not self._errors:
            return pbegin | "Read" >> self._reading | "Rows" >> to_rows
        rows, bad = pbegin | "Read" >> self._reading.with_exception_handling()
        letters = bad | "Letters" >> beam.Map(_letter).with_output_types(RowTypeConstraint.from_fields(_LETTER))
        return {"good": rows | "Rows" >> to_rows, self._errors: letters}


class WriteRows(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Writes each row once to blobs below a prefix, as the job of the access manifest. Gives a row for each blob.

    Args:
        path: `abfss://container@account.dfs.core.windows.net/orders/clean/`.
        format: `json`, `csv`, `avro`, `parquet` (their columns are the input's fields) or `text` (of the input's one).
        shards: Write exactly this many blobs; by default about one a worker process.
        compression: `gzip`, `bzip2`, `zstd` or `none`.
        overwrite: Replace blobs of the same names, an earlier run's. Needs `shards`.
    """

    def __init__(self, path, format, shards=None, compression="none", overwrite=False) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        _check_format(format)
        self._path, self._format = path, format
        self._settings = {"shards": shards, "compression": compression, "overwrite": overwrite}

    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[Any]:
        types = dict(schemas.named_fields_from_element_type(rows.element_type))
        fields = list(types)
        if self._format == "text" and len(fields) != 1:
            raise ConfigError(
                f"text is written from rows of one field, and these have {', '.join(fields)}",
                Diagnosis(hint="map them to one field before WriteToBlob, or write json or csv"),
            )
        chosen = _format_of(self._format, types)
        values = beam.Map(_only_field, fields[0]) if self._format == "text" else beam.Map(_as_dict, fields)
        return (
            rows
            | "Values" >> values
            | "Write" >> WriteToBlob(self._path, chosen, **self._settings)
            | "Written" >> beam.Map(_written).with_output_types(RowTypeConstraint.from_fields(_WRITTEN))
        )


def _watch(given: Any) -> Watch | None:
    if given is None or isinstance(given, Watch):
        return given
    settings = dict(given) if isinstance(given, Mapping) else {"interval": given}
    try:
        interval, until, stop = settings.pop("interval"), settings.pop("until", None), settings.pop("stop", None)
        if not settings and (stop is None or isinstance(stop, str)):
            return Watch(interval, until=None if until is None else timedelta(seconds=until), stop=stop)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError):  # a time that is none, or too long for one
        pass
    raise ConfigError(
        f"watch: {given!r} says no interval, or more than can be said",
        Diagnosis(hint="watch: 30, or watch: {interval: 30, until: 3600, stop: PATH}; times in seconds"),
    )


def _format_of(kind: str, fields: Mapping[str, Any]) -> BlobFormat:
    """The format that writes rows with these fields."""
    if kind == "csv":
        return Csv(list(fields))
    if kind == "parquet":
        return Parquet(schema=pa.schema([(name, _column_type(name, type_)) for name, type_ in fields.items()]))
    if kind == "avro":
        return Avro({"type": "record", "name": "Row", "fields": [_avro_field(*field) for field in fields.items()]})
    return JsonLines() if kind == "json" else Lines()


def _column_type(name: str, type_: Any) -> pa.DataType:
    found = arrow_type(name, type_)
    if found is None:
        raise _not_writable(name, type_, "parquet")
    return found


def _avro_field(name: str, type_: Any) -> dict[str, Any]:
    python, nullable = concrete(type_)
    found = _AVRO.get({np.int64: int, np.float64: float}.get(python, python))
    if found is None:
        raise _not_writable(name, type_, "avro")
    return {"name": name, "type": ["null", found] if nullable else found}


def _not_writable(name: str, type_: Any, format: str) -> ConfigError:
    return ConfigError(
        f"the field {name} is of type {type_}, which is not written as {format}",
        Diagnosis(hint="map it to a text or a number before WriteToBlob, or write json"),
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
                Diagnosis(hint="give ReadFromBlob `schema: {type: object, properties: ...}` for every format but text"),
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

    def format(self) -> BlobFormat:
        """The format whose elements are the rows, or what `of_element` makes rows of."""
        to_row, properties, required = json_to_row(self._field_type), self._properties, self._required
        if self._kind == "avro":
            return Avro()
        if self._kind == "parquet":
            return Parquet(list(properties))
        if self._kind == "text":
            return _TextRows()
        if self._kind == "csv":
            return Csv(parse=lambda row: to_row(_checked(_from_text(row, properties), properties, required)))
        return JsonLines(lambda value: to_row(_checked(value, properties, required)))

    @property
    def of_element(self) -> Callable[[Any], Any]:
        """What makes a row of an element."""
        if self._kind not in {"avro", "parquet"}:
            return _same
        to_row, properties, required = json_to_row(self._field_type), self._properties, self._required

        def row(element: Any) -> Any:
            try:
                return to_row(_checked(element, properties, required))
            except ValueError as error:
                raise FormatError(
                    f"a record is not what the schema of ReadFromBlob says: {error}",
                    Diagnosis(hint="say in the schema what the file has; its own types are fixed"),
                ) from None

        return row


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
