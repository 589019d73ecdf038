"""What a format is: how it cuts a blob into blocks, takes a block apart, and puts elements together again.

A format knows neither Beam nor Storage, and is pickled into the DoFns that use it.

    BlobFormat          reading: split or stream a blob into blocks; a block to elements, or to record batches
    +- BlockFormat      written as a header and blocks of records, by many bundles, in any order
    |  +- Format        records that end in a newline: Lines, JsonLines, Csv, and yours
    |  +- Avro
    +- FileFormat       written by one hand from beginning to end: Parquet, Bytes
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, ClassVar, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from beam_entra.errors import Diagnosis, FormatError
from beam_entra.io.blocks import (
    BadRecord,
    Block,
    Claims,
    PlannedSource,
    Range,
    Source,
    split_blocks,
    stream_blocks,
    strip_line_end,
)

__all__ = [
    "BlobFormat",
    "BlockFormat",
    "Decoded",
    "Everything",
    "FileFormat",
    "FileWriter",
    "Format",
    "as_mapping",
    "batch_of",
    "encoded",
    "in_order",
    "join_rows",
    "joined",
    "not_writable",
    "reason_of",
    "rows_of",
    "split_at_newlines",
]

_SHOWN_CHARACTERS = 300
_SCALARS = (str, bytes, int, float)
_MAX_RECORD_BYTES = 64 << 20


class Decoded(NamedTuple):
    """A record that has been decoded.

    Attributes:
        offset: Where it begins in the blob, in bytes.
        record: The bytes, without the line end.
        element: What they mean.
    """

    offset: int
    record: bytes
    element: Any


class BlobFormat(ABC):
    """What reading asks of any format.

    Attributes:
        suffix: What the names of written blobs end in.
        content_type: Media type that written blobs get.
        splittable: Whether records can be found from any byte on, so that one blob may be read in pieces.
        schema: Of the record batches; None where it is found out from the data.
        max_record_bytes: How long a record may be unless `ReadFromBlob` is told otherwise.
    """

    suffix: ClassVar[str]
    content_type: ClassVar[str]
    splittable: bool = True
    schema: pa.Schema | None = None
    max_record_bytes: ClassVar[int] = _MAX_RECORD_BYTES

    @abstractmethod
    def split(self, source: Source, start: int, stop: int, claims: Claims) -> Iterator[Block]:
        """The records that begin in [start, stop), where the format is `splittable`.

        Before a block is yielded, the start of its last record is claimed. Where that is refused, the range has become
        shorter; what begins behind the new `claims.stop()` is another reader's.
        """

    @abstractmethod
    def stream(self, path: str, pieces: Iterator[bytes | bytearray], *, max_record_bytes: int) -> Iterator[Block]:
        """All records of a blob that comes in pieces: a small one, a compressed one, or one that cannot be split."""

    def read(self, source: Source) -> Iterator[Block]:
        """All records of a blob that is neither compressed nor split."""
        return self.stream(source.path, source.stream(0, source.size_bytes), max_record_bytes=source.max_record_bytes)

    def wanted(self, source: PlannedSource, start: int, stop: int) -> Iterator[Range]:
        """What reading [start, stop) will ask for, in order, as far as that is known beforehand; it may peek.

        These ranges are asked for while something else is still being read.
        """
        return iter(())

    def decode_all(self, block: Block) -> Sequence[Any] | None:
        """The elements of a block at once, if that is faster and every record is a good one; else None."""
        return None

    @abstractmethod
    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        """The elements of a block; what cannot be decoded is added to `bad`. Returns the number of good ones."""

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        """The records of a block as record batches; what cannot be decoded is added to `bad`."""
        elements = self.decode_all(block)
        if elements is None:
            elements = list(self.decode_each(block, bad))
        if elements:
            yield batch_of(elements, self.schema)


class BlockFormat(BlobFormat):
    """A format whose blobs are a header and blocks of records, so that many bundles may write to one blob."""

    @abstractmethod
    def encode(self, element: Any) -> bytes:
        """One element to a record, with whatever ends it.

        Raises:
            FormatError: The element cannot be written so that it would be read back.
        """

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        """The rows of a record batch to records; the same bytes as `encode` of each as a dict.

        Raises:
            FormatError: A row cannot be written so that it would be read back.
        """
        return b"".join(map(self.encode, rows_of(batch)))

    def frame(self, records: bytes, rows: int) -> bytes:
        """Encoded records as a block that may stand behind the header and any other block."""
        return records

    def header(self) -> bytes:
        """What a written blob begins with.

        Raises:
            ConfigError: The format was made for reading alone.
        """
        return b""


class Format(BlockFormat):
    """Records separated by newlines; the base of `Lines`, `JsonLines`, `Csv` and of your own.

    A format of your own overrides `decode` and `encode`; one whose records may hold the separator also overrides
    `whole` and `records` and says `splittable = False`.

    Attributes:
        has_header: Whether the first record of a blob names the columns of the others.
    """

    has_header: bool = False

    @abstractmethod
    def decode(self, record: bytes, header: bytes) -> Any:
        """One record, without its line end, to an element. Whatever it raises makes the record a bad one.

        Args:
            header: The blob's first record if the format `has_header`, else empty.
        """

    def skips(self, record: bytes) -> bool:
        """Whether a record is none, such as an empty line."""
        return False

    def whole(self, buffer: bytes | bytearray, end: int) -> int:
        """Where the last whole record in `buffer[:end]` ends; 0 if there is none. The buffer begins with a record."""
        return buffer.rfind(b"\n", 0, end) + 1

    def records(self, block: bytes) -> Iterator[bytes]:
        """The records of a block of whole records, each with its line end if it has one."""
        return iter(block.splitlines(keepends=True)) if b"\r" not in block else split_at_newlines(block)

    def split(self, source: Source, start: int, stop: int, claims: Claims) -> Iterator[Block]:
        return split_blocks(
            source.path,
            source.stream,
            start,
            stop,
            source.size_bytes,
            claims,
            max_record_bytes=source.max_record_bytes,
        )

    def wanted(self, source: PlannedSource, start: int, stop: int) -> Iterator[Range]:
        return source.requests(max(start - 1, 0), min(stop, source.size_bytes))

    def stream(self, path: str, pieces: Iterator[bytes | bytearray], *, max_record_bytes: int) -> Iterator[Block]:
        return stream_blocks(path, pieces, self, max_record_bytes=max_record_bytes)

    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        good, offset, header = 0, block.offset, block.header
        skips, decode_record = self.skips, self.decode
        for line in self.records(block.data):
            record = strip_line_end(line)
            if not skips(record):
                try:
                    element = decode_record(record, header)
                except Exception as error:  # noqa: BLE001 - whatever a decoder raises, the record is a bad one
                    bad.append(BadRecord(path=block.path, offset=offset, reason=reason_of(error), record=record))
                else:
                    good += 1
                    yield element
            offset += len(line)
        return good

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        before = len(bad)
        elements = self.decode_all(block)
        if elements:
            try:
                batch = batch_of(elements, self.schema)
            except FormatError:
                pass  # of some record, which can be said
            else:
                yield batch
                return
        decoded = list(self.decode_lines(block, _numbered(self.records(block.data)), bad))
        yield from join_rows(decoded, self.schema, block.path, bad)
        in_order(bad, before)

    def decode_lines(self, block: Block, lines: Iterable[tuple[int, bytes]], bad: list[BadRecord]) -> Iterator[Decoded]:
        """Some lines of a block, each with where it begins in it, one after the other."""
        for at, line in lines:
            record = strip_line_end(line)
            if not self.skips(record):
                offset = block.offset + at
                try:
                    element = self.decode(record, block.header)
                except Exception as error:  # noqa: BLE001 - as in `decode_each`
                    bad.append(BadRecord(path=block.path, offset=offset, reason=reason_of(error), record=record))
                else:
                    yield Decoded(offset, record, element)


class Everything:
    """The claims on what is read as a whole."""

    def try_claim(self, position: int) -> bool:
        return True

    def stop(self) -> int:
        return sys.maxsize


class FileWriter(Protocol):
    """Writes the elements of one blob, in order."""

    def write(self, element: Any) -> None:
        """Add one element.

        Raises:
            FormatError: It cannot be written so that it would be read back.
        """
        ...  # pragma: no cover

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a record batch; as for `write`."""
        ...  # pragma: no cover

    def close(self) -> None:
        """Write what the blob ends in. The file stays open."""
        ...  # pragma: no cover


class FileFormat(BlobFormat):
    """A format whose blobs are written by one hand from beginning to end: they end in an index, or are one element.

    Attributes:
        one_element: Whether each element is a blob of its own.
    """

    one_element: ClassVar[bool] = False

    @abstractmethod
    def open(self, file: IO[bytes]) -> FileWriter:
        """Begin a blob.

        Args:
            file: Takes the bytes, in order; it cannot seek.

        Raises:
            ConfigError: The format was made for reading alone.
        """


def split_at_newlines(block: bytes) -> Iterator[bytes]:
    """Like `splitlines`, which would also split at a lone carriage return."""
    *lines, rest = block.split(b"\n")
    yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for line in lines:
        yield at, line
        at += len(line)


def in_order(bad: list[BadRecord], first: int) -> None:
    """Sort what has been added from `first` on as it lies in the blob."""
    bad[first:] = sorted(bad[first:], key=lambda record: record.offset)


def join_rows(
    decoded: Sequence[Decoded], schema: pa.Schema | None, path: str, bad: list[BadRecord]
) -> Iterator[pa.RecordBatch]:
    """Elements to as few record batches as their types allow; what is no row, or none of this schema, is bad."""
    if not decoded:
        return
    try:
        batch = batch_of([row.element for row in decoded], schema)
    except FormatError as error:
        if len(decoded) == 1:
            ((offset, record, _),) = decoded
            bad.append(BadRecord(path=path, offset=offset, reason=error.message, record=record))
            return
        half = len(decoded) // 2
        parts = [*join_rows(decoded[:half], schema, path, bad), *join_rows(decoded[half:], schema, path, bad)]
        yield from joined(parts)
    else:
        yield batch


def joined(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch for all batches with the same columns."""
    groups: dict[pa.Schema, list[pa.RecordBatch]] = {}
    for batch in batches:
        groups.setdefault(batch.schema, []).append(batch)
    return [whole for group in groups.values() for whole in pa.Table.from_batches(group).combine_chunks().to_batches()]


def reason_of(error: Exception) -> str:
    """Why a record is bad, for its `BadRecord`."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:_SHOWN_CHARACTERS]


def batch_of(elements: Sequence[Any], schema: pa.Schema | None = None) -> pa.RecordBatch:
    """Elements as the rows of a record batch: mappings, named tuples, dataclasses and `beam.Row` by their fields.

    Texts, bytes and numbers are rows of one column, `value`. Without a schema the columns are all those that some
    element has, and a field that an element does not have is null in its row.

    Raises:
        FormatError: They are no rows, or no rows of this schema.
    """
    rows = [as_mapping(element) for element in elements]
    if any(isinstance(row, _SCALARS) for row in rows):
        rows = [{"value": row} if isinstance(row, _SCALARS) else row for row in rows]
    try:
        names = schema.names if schema is not None else list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        columns = [[row.get(name) for row in rows] for name in names]
        if not columns:
            raise ValueError("there is no field in them")
        types = schema.types if schema is not None else [None] * len(names)
        arrays = [pa.array(column, type_) for column, type_ in zip(columns, types, strict=True)]
        for column, array in zip(columns, arrays, strict=True):
            _check_numbers(column, array.type)
        for field in schema or ():
            if not field.nullable and None in columns[names.index(field.name)]:
                raise ValueError(f"{field.name} is missing")
        return pa.RecordBatch.from_arrays(arrays, names if schema is None else None, schema)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(
            f"elements of type {type(elements[0]).__name__} make no record batch: {reason_of(error)}",
            Diagnosis(hint="batches are of rows: give dicts, named tuples or beam.Row with values of one type a field"),
        ) from None


def rows_of(batch: pa.RecordBatch, **options: Any) -> list[dict[str, Any]]:
    """The rows of a record batch as dicts.

    Args:
        options: As `to_pylist` takes them.

    Raises:
        FormatError: A value has no counterpart in Python.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(**options)
    except KeyError:
        raise FormatError(
            "a record batch has a map with the same key twice, or two columns of one name",
            Diagnosis(hint="leave out what is double; Python's dicts hold it once"),
        ) from None
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise FormatError(
            f"a record batch holds what Python has no value for: {reason_of(error)}",
            Diagnosis(hint="look for texts that are no UTF-8 and for years beyond 9999, or leave the column out"),
        ) from None
    return rows


def _check_numbers(values: Iterable[Any], type_: pa.DataType) -> None:
    """Refuse what Arrow would convert in silence: fractions to integers, and booleans to numbers."""
    if pa.types.is_dictionary(type_):
        _check_numbers(values, type_.value_type)
    elif pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        lists = [value for value in values if value is not None]
        for value in lists:
            if isinstance(value, (str, bytes)):
                raise TypeError(f"{type(value).__name__} is no {type_}")
        _check_numbers(itertools.chain.from_iterable(lists), type_.value_type)
    elif pa.types.is_map(type_):
        pairs = [pair for value in values if value is not None for pair in dict(value).items()]
        _check_numbers([key for key, _ in pairs], type_.key_type)
        _check_numbers([item for _, item in pairs], type_.item_type)
    elif pa.types.is_struct(type_):
        rows = [as_mapping(value) for value in values if value is not None]
        for field in type_:
            _check_numbers([row.get(field.name) for row in rows], field.type)
    elif pa.types.is_integer(type_) or pa.types.is_floating(type_):
        whole = pa.types.is_integer(type_)
        for value in values:
            if type(value) is int or value is None:
                continue
            if isinstance(value, (bool, np.bool_)) or (whole and value != int(value)):
                raise TypeError(f"a {type(value).__name__} is no {type_}")


def as_mapping(element: Any) -> Any:
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


def encoded(text: str, element: object) -> bytes:
    """The text as UTF-8; it must not begin with what a reader takes for a byte order mark."""
    if text.startswith("\ufeff"):
        raise not_writable(element, "begins with a byte order mark", "strip it: text.lstrip('\\ufeff')")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise not_writable(element, "holds half a surrogate pair", "replace it, or write JsonLines()") from None


def not_writable(element: object, problem: str, hint: str) -> FormatError:
    """What `encode` raises."""
    return FormatError(f"an element of type {type(element).__name__} {problem}", Diagnosis(hint=hint))
