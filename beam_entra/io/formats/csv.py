"""CSV as RFC 4180 says."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.blocks import BadRecord, Block, strip_line_end
from beam_entra.io.formats.base import Format, as_mapping, encoded, in_order, not_writable, split_at_newlines
from beam_entra.io.formats.csv_batches import Rows, check_schema, csv_lines_of, parse_rows, typed

__all__ = ["Csv"]

_VALUES = (str, int, float, Decimal, date, time)  # what its text stands for; None is written as nothing
_MOST_BYTES = 256 << 20  # at a time: Arrow's texts end at 2 GiB

# The csv module refuses longer fields, in the whole process. What bounds a record here is `max_record_bytes`.
csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))


class Csv(Format):
    """CSV as RFC 4180 says: fields may be quoted, and quoted fields may hold separators, quotes and line ends.

    Reading gives a dict a row, column name to text. A row with too few or too many fields is a bad record. A blob is
    read as a whole, since a line end in quotes looks like any other from the middle.

    As record batches the columns are texts too, or those of a `schema`: others are left out, an empty field of a column
    that is no text is null, and a field that is no value of its column's type makes the row a bad record.

    Args:
        columns: The names. Needed for writing; for reading only if the blobs have no header.
        header: Whether the first row names the columns.
        delimiter: One character.
        parse: Makes an element of each row's dict; as for `JsonLines`. Record batches are then made of its elements.
        schema: The columns of record batches and their types; with `parse`, those of its elements.
    """

    suffix = ".csv"
    content_type = "text/csv; charset=utf-8"
    splittable = False

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        *,
        header: bool = True,
        delimiter: str = ",",
        parse: Callable[[Any], Any] | None = None,
        schema: pa.Schema | None = None,
    ) -> None:
        if columns is not None and (not columns or len(set(columns)) != len(columns)):
            raise ConfigError("Csv columns are empty or one is named twice", Diagnosis(hint="give each its own name"))
        if columns is None and not header:
            raise ConfigError("Csv without a header needs its columns", Diagnosis(hint="name them: Csv(columns=[...])"))
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigError(f"{delimiter!r} is no CSV delimiter", Diagnosis(hint="use one character: delimiter=','"))
        self.columns = tuple(columns) if columns is not None else None
        self.has_header = header
        self.delimiter = delimiter
        self.parse = parse
        if schema is not None and parse is None:
            check_schema(schema, columns)
        self.schema = schema

    def decode(self, record: bytes, header: bytes) -> Any:
        text = record.decode("utf-8")
        plain = '"' not in text and "\r" not in text
        fields = text.split(self.delimiter) if plain else _csv_fields(text, self.delimiter)
        names = self._names(header)
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields for {len(names)} columns")
        row = dict(zip(names, fields, strict=True))
        return row if self.parse is None else self.parse(row)

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        own = type(self).decode is Csv.decode and type(self).skips is Csv.skips and type(self).records is Csv.records
        if not own or self.parse is not None or len(block.data) > _MOST_BYTES:
            yield from super().decode_batches(block, bad)
            return
        before = len(bad)
        try:
            names = self._names(block.header)
        except ValueError:  # which `decode` says of each record
            yield from super().decode_batches(block, bad)
            return
        parsed, rest = parse_rows(block.data, self.delimiter, len(names))
        if rest:
            lines = ((begin, block.data[begin:end]) for begin, end in rest)
            decoded = list(self.decode_lines(block, lines, bad))
            fields = list(zip(*(row.element.values() for row in decoded), strict=True))
            spans = np.array(
                [(row.offset - block.offset, row.offset - block.offset + len(row.record)) for row in decoded]
            )
            parsed.append(Rows([pa.array(column, pa.string()) for column in fields], spans.reshape(-1, 2)))
        for rows in parsed:
            batch, wrong = typed(rows, names, self.schema)
            for row, reason in wrong:
                begin, end = rows.spans[row].tolist()
                record = strip_line_end(block.data[begin:end])
                bad.append(BadRecord(path=block.path, offset=block.offset + begin, reason=reason, record=record))
            if batch.num_rows:
                yield batch
        in_order(bad, before)

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        if type(self).encode is Csv.encode and batch.nbytes <= _MOST_BYTES:
            try:
                lines = csv_lines_of(batch, self._columns_to_write(), self.delimiter)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                lines = None  # of some row, which is for `encode` to say
            if lines is not None:
                return lines
        return super().encode_batch(batch)

    def encode(self, element: Any) -> bytes:
        row = as_mapping(element)
        columns = self._columns_to_write()
        if isinstance(row, Mapping):
            if set(row) != set(columns):
                raise not_writable(element, "has other columns than the file", f"give exactly {', '.join(columns)}")
            values = [row[column] for column in columns]
        elif isinstance(row, Sequence) and not isinstance(row, (str, bytes)) and len(row) == len(columns):
            values = list(row)
        else:
            raise not_writable(element, "is no row", "write dicts, named tuples or sequences with a value a column")
        for value in values:
            if not isinstance(value, _VALUES) and value is not None:
                problem = f"has a {type(value).__name__} in it, which CSV cannot hold"
                raise not_writable(element, problem, "map it to text before WriteToBlob")
        return self._line(values, element)

    def header(self) -> bytes:
        return self._line(self._columns_to_write(), self.columns) if self.has_header else b""

    def skips(self, record: bytes) -> bool:
        return not record

    def whole(self, buffer: bytes | bytearray, end: int) -> int:
        quotes = buffer.count(b'"', 0, end)
        while True:
            newline = buffer.rfind(b"\n", 0, end)
            if newline < 0:
                return 0
            quotes -= buffer.count(b'"', newline, end)
            if quotes % 2 == 0:
                return newline + 1
            end = newline

    def records(self, block: bytes) -> Iterator[bytes]:
        held = b""
        for line in split_at_newlines(block):
            held = held + line if held else line
            if held.count(b'"') % 2 == 0:
                yield held
                held = b""
        if held:
            yield held

    def _names(self, header: bytes) -> tuple[str, ...]:
        names = _csv_header(header, self.delimiter) if self.has_header else self.columns or ()
        if self.has_header and self.columns is not None and names != self.columns:
            raise ValueError(f"the blob's columns are {', '.join(names)}, not {', '.join(self.columns)}")
        return names

    def _columns_to_write(self) -> tuple[str, ...]:
        if self.columns is None:
            raise ConfigError("Csv cannot write without its columns", Diagnosis(hint="name them: Csv(columns=[...])"))
        return self.columns

    def _line(self, values: Sequence[Any], element: object) -> bytes:
        writer = csv.writer(_Echo(), delimiter=self.delimiter, lineterminator="\r\n")
        return encoded(writer.writerow(values), element)  # what `_Echo.write` returns


class _Echo:
    """A file for `csv.writer` that gives each row back."""

    def write(self, row: str) -> str:
        return row


def _csv_fields(text: str, delimiter: str) -> list[str]:
    """The fields of exactly one row."""
    try:
        return next(csv.reader((text,), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise ValueError(f"no sound CSV row; look for a stray quote or carriage return ({error})") from None


@lru_cache(maxsize=64)
def _csv_header(header: bytes, delimiter: str) -> tuple[str, ...]:
    names = tuple(_csv_fields(header.decode("utf-8"), delimiter))
    if len(set(names)) != len(names):
        raise ValueError(f"the blob's header names a column twice: {', '.join(names)}")
    return names
