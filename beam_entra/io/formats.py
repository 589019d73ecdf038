"""How records lie in a blob: `Lines`, `JsonLines`, `Csv`, and the base for one of your own.

A format is two pure pieces: framing (where does the last whole record of a buffer end?) and a codec (one record's bytes
to an element and back). It knows neither Beam nor Storage, and is pickled into the DoFns that use it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

from beam_entra.errors import ConfigError, Diagnosis, FormatError

__all__ = ["BYTE_ORDER_MARK", "Csv", "Format", "JsonLines", "Lines", "strip_line_end"]

Parse = Callable[[Any], Any]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Format(ABC):
    """Records separated by newlines; the base of the formats here and of yours.

    A format of your own overrides `decode` and `encode`; one whose records may hold the separator also overrides
    `whole` and `records` and says `splittable = False`.

    Attributes:
        suffix: What the names of written blobs end in.
        content_type: Media type that written blobs get.
        splittable: Whether records can be found from any byte on, so that one blob may be read in pieces.
        has_header: Whether the first record of a blob names the columns of the others.
    """

    suffix: ClassVar[str]
    content_type: ClassVar[str]
    splittable: bool = True
    has_header: bool = False

    @abstractmethod
    def decode(self, record: bytes, header: bytes) -> Any:
        """One record, without its line end, to an element. Whatever it raises makes the record a bad one.

        Args:
            header: The blob's first record if the format `has_header`, else empty.
        """

    @abstractmethod
    def encode(self, element: Any) -> bytes:
        """One element to a record with its line end.

        Raises:
            FormatError: The element cannot be written so that it would be read back.
        """

    def header(self) -> bytes:
        """What a written blob begins with, line end included."""
        return b""

    def skips(self, record: bytes) -> bool:
        """Whether a record is none, such as an empty line."""
        return False

    def whole(self, buffer: bytes | bytearray, end: int) -> int:
        """Where the last whole record in `buffer[:end]` ends; 0 if there is none. The buffer begins with a record."""
        return buffer.rfind(b"\n", 0, end) + 1

    def records(self, block: bytes) -> Iterator[bytes]:
        """The records of a block of whole records, each with its line end if it has one."""
        return iter(block.splitlines(keepends=True)) if b"\r" not in block else _split_at_newlines(block)


def _split_at_newlines(block: bytes) -> Iterator[bytes]:
    """Like `splitlines`, which would also split at a lone carriage return."""
    *lines, rest = block.split(b"\n")
    yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


class Lines(Format):
    """Text: one element a line, a str without the line end."""

    suffix = ".txt"
    content_type = "text/plain; charset=utf-8"

    def decode(self, record: bytes, header: bytes) -> str:
        return record.decode("utf-8")

    def encode(self, element: Any) -> bytes:
        if not isinstance(element, str):
            raise _not_writable(element, "is no str", "map it to str before WriteToBlob(..., Lines())")
        if "\n" in element or element.endswith("\r"):
            raise _not_writable(element, "holds a line end", "escape it, or write it as JsonLines()")
        return element.encode("utf-8") + b"\n"


class JsonLines(Format):
    """JSON Lines: one JSON value a line, a dict as a rule. Blank lines are none.

    Args:
        parse: Makes an element of each decoded value. What it raises sends the record to the dead letters, with its
            blob and offset, like a record that is no JSON.
    """

    suffix = ".jsonl"
    content_type = "application/jsonl"

    def __init__(self, parse: Parse | None = None) -> None:
        self.parse = parse

    def decode(self, record: bytes, header: bytes) -> Any:
        value = _DECODER.decode(record.decode("utf-8"))
        return value if self.parse is None else self.parse(value)

    def encode(self, element: Any) -> bytes:
        try:
            text = json.dumps(
                _as_mapping(element), ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_json_default
            )
            return text.encode("utf-8") + b"\n"
        except (TypeError, ValueError) as error:
            raise _not_writable(element, f"is no JSON: {error}", "map it to plain values before WriteToBlob") from None

    def skips(self, record: bytes) -> bool:
        return not record or record.isspace()


class Csv(Format):
    """CSV as RFC 4180 says: fields may be quoted, and quoted fields may hold separators, quotes and line ends.

    Reading gives a dict a row, column name to text. A row with too few or too many fields is a bad record. A blob is
    read as a whole, since a line end in quotes looks like any other from the middle.

    Args:
        columns: The names. Needed for writing; for reading only if the blobs have no header.
        header: Whether the first row names the columns.
        delimiter: One character.
        parse: Makes an element of each row's dict; as for `JsonLines`.
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
        parse: Parse | None = None,
    ) -> None:
        if columns is not None and (not columns or len(set(columns)) != len(columns)):
            raise ConfigError("Csv columns are empty or name one twice", Diagnosis(hint="give each column its own name"))
        if columns is None and not header:
            raise ConfigError("Csv without a header needs its columns", Diagnosis(hint="name them: Csv(columns=[...])"))
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigError(f"{delimiter!r} is no CSV delimiter", Diagnosis(hint="use one character: Csv(delimiter=',')"))
        self.columns = tuple(columns) if columns is not None else None
        self.has_header = header
        self.delimiter = delimiter
        self.parse = parse

    def decode(self, record: bytes, header: bytes) -> Any:
        fields = _csv_fields(record, self.delimiter)
        names = _csv_header(header, self.delimiter) if self.has_header else self.columns or ()
        if self.has_header and self.columns is not None and names != self.columns:
            raise ValueError(f"the blob's columns are {', '.join(names)}, not {', '.join(self.columns)}")
        if len(fields) != len(names):
            raise ValueError(f"{len(fields)} fields for {len(names)} columns")
        row = dict(zip(names, fields, strict=True))
        return row if self.parse is None else self.parse(row)

    def encode(self, element: Any) -> bytes:
        row = _as_mapping(element)
        columns = self._columns_to_write()
        if isinstance(row, Mapping):
            if set(row) != set(columns):
                raise _not_writable(element, "has other columns than the file", f"give exactly {', '.join(columns)}")
            values = [row[column] for column in columns]
        elif isinstance(row, Sequence) and not isinstance(row, (str, bytes)) and len(row) == len(columns):
            values = list(row)
        else:
            raise _not_writable(element, "is no row", "write dicts, named tuples or sequences with a value a column")
        return self._line(values)

    def header(self) -> bytes:
        return self._line(self._columns_to_write()) if self.has_header else b""

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
        for line in _split_at_newlines(block):
            held = held + line if held else line
            if held.count(b'"') % 2 == 0:
                yield held
                held = b""
        if held:
            yield held

    def _columns_to_write(self) -> tuple[str, ...]:
        if self.columns is None:
            raise ConfigError("Csv cannot write without its columns", Diagnosis(hint="name them: Csv(columns=[...])"))
        return self.columns

    def _line(self, values: Sequence[Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self.delimiter, lineterminator="\r\n").writerow(values)
        return text.getvalue().encode("utf-8")


def strip_line_end(record: bytes) -> bytes:
    """The record without `\\n` or `\\r\\n`."""
    if record.endswith(b"\n"):
        return record[:-2] if record.endswith(b"\r\n") else record[:-1]
    return record


def _csv_fields(record: bytes, delimiter: str) -> tuple[str, ...]:
    reader = csv.reader(io.StringIO(record.decode("utf-8"), newline=""), delimiter=delimiter, strict=True)
    try:
        return tuple(next(reader, ()))
    except csv.Error as error:
        raise ValueError(str(error)) from None


_csv_header = lru_cache(maxsize=64)(_csv_fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _as_mapping(element: Any) -> Any:
    """Rows of the kinds that Beam pipelines pass around, as dicts; anything else as it is."""
    if dataclasses.is_dataclass(element) and not isinstance(element, type):
        return dataclasses.asdict(element)
    for method in ("_asdict", "as_dict"):  # named tuples, beam.Row
        convert = getattr(element, method, None)
        if callable(convert) and not isinstance(element, Mapping):
            return convert()
    return element


def _json_default(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    converted = _as_mapping(value)
    if converted is value:
        raise TypeError(f"a {type(value).__name__} has no JSON form")
    return converted


def _not_writable(element: object, problem: str, hint: str) -> FormatError:
    return FormatError(f"an element of type {type(element).__name__} {problem}", Diagnosis(hint=hint))
