"""How records lie in a blob: `Lines`, `JsonLines`, `Csv`, and the base for one of your own.

A format is two pure pieces: framing (where does the last whole record of a buffer end?) and a codec (one record's bytes
to an element and back). It knows neither Beam nor Storage, and is pickled into the DoFns that use it.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, ClassVar, NoReturn

from beam_entra.errors import ConfigError, Diagnosis, FormatError

__all__ = ["BYTE_ORDER_MARK", "Csv", "Format", "JsonLines", "Lines", "strip_line_end"]

Parse = Callable[[Any], Any]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_JSON_SPACE = " \t\r\n"
_CSV_VALUES = (str, int, float, Decimal, date, time)  # what its text stands for; None is written as nothing

# The csv module refuses longer fields, in the whole process. What bounds a record here is `max_record_bytes`.
csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))


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

    def decode_all(self, block: bytes, header: bytes) -> Sequence[Any] | None:
        """The elements of a block of whole records at once, if that is faster and every record is a good one.

        None sends the block through `records` and `decode`, which find the bad ones.
        """
        return None

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

    def decode_all(self, block: bytes, header: bytes) -> Sequence[str] | None:
        if type(self) is not Lines or b"\r" in block:  # a subclass may have a decode of its own
            return None
        try:
            lines = block.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            return None
        if not lines[-1]:
            lines.pop()
        return lines

    def encode(self, element: Any) -> bytes:
        if not isinstance(element, str):
            raise _not_writable(element, "is no str", "map it to str before WriteToBlob(..., Lines())")
        if "\n" in element or element.endswith("\r"):
            raise _not_writable(element, "holds a line end", "escape it, or write it as JsonLines()")
        return _encoded(element, element) + b"\n"


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
        text = record.decode("utf-8").strip(_JSON_SPACE)
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise ValueError(f"there is more behind the JSON value, from character {end} on")
        return value if self.parse is None else self.parse(value)

    def encode(self, element: Any) -> bytes:
        value = _as_mapping(element)
        try:
            try:
                return _ENCODER.encode(value).encode("utf-8") + b"\n"
            except UnicodeEncodeError:  # half a surrogate pair, which JSON can say as an escape
                return _ASCII_ENCODER.encode(value).encode("ascii") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
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
            raise ConfigError("Csv columns are empty or one is named twice", Diagnosis(hint="give each its own name"))
        if columns is None and not header:
            raise ConfigError("Csv without a header needs its columns", Diagnosis(hint="name them: Csv(columns=[...])"))
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise ConfigError(f"{delimiter!r} is no CSV delimiter", Diagnosis(hint="use one character: delimiter=','"))
        self.columns = tuple(columns) if columns is not None else None
        self.has_header = header
        self.delimiter = delimiter
        self.parse = parse

    def decode(self, record: bytes, header: bytes) -> Any:
        text = record.decode("utf-8")
        plain = '"' not in text and "\r" not in text
        fields = text.split(self.delimiter) if plain else _csv_fields(text, self.delimiter)
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
        for value in values:
            if not isinstance(value, _CSV_VALUES) and value is not None:
                problem = f"has a {type(value).__name__} in it, which CSV cannot hold"
                raise _not_writable(element, problem, "map it to text before WriteToBlob")
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

    def _line(self, values: Sequence[Any], element: object) -> bytes:
        writer = csv.writer(_Echo(), delimiter=self.delimiter, lineterminator="\r\n")
        return _encoded(writer.writerow(values), element)  # what `_Echo.write` returns


class _Echo:
    """A file for `csv.writer` that gives each row back."""

    def write(self, row: str) -> str:
        return row


def strip_line_end(record: bytes) -> bytes:
    """The record without `\\n` or `\\r\\n`."""
    if record.endswith(b"\n"):
        return record[:-2] if record.endswith(b"\r\n") else record[:-1]
    return record


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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _as_mapping(element: Any) -> Any:
    """Rows of the kinds that Beam pipelines pass around, as dicts; anything else as it is."""
    if type(element) is dict or isinstance(element, (Mapping, str)):  # the first at a tenth of the second's price
        return element
    for method in ("as_dict", "_asdict"):  # beam.Row, BadRecord; named tuples
        convert = getattr(element, method, None)
        if callable(convert):
            return convert()
    if dataclasses.is_dataclass(element) and not isinstance(element, type):
        return dataclasses.asdict(element)
    return element


def _json_default(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    converted = _as_mapping(value)
    if converted is value:
        raise TypeError(f"a {type(value).__name__} has no JSON form")
    return converted


_encoder = partial(json.JSONEncoder, separators=(",", ":"), allow_nan=False, default=_json_default)
_ENCODER, _ASCII_ENCODER = _encoder(ensure_ascii=False), _encoder(ensure_ascii=True)


def _encoded(text: str, element: object) -> bytes:
    """The text as UTF-8; it must not begin with what a reader takes for a byte order mark."""
    if text.startswith("\ufeff"):
        raise _not_writable(element, "begins with a byte order mark", "strip it: text.lstrip('\\ufeff')")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise _not_writable(element, "holds half a surrogate pair", "replace it, or write JsonLines()") from None


def _not_writable(element: object, problem: str, hint: str) -> FormatError:
    return FormatError(f"an element of type {type(element).__name__} {problem}", Diagnosis(hint=hint))
