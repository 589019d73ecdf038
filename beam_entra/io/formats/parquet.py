"""Parquet: row groups are what is read apart, columns are what is fetched.

See: https://parquet.apache.org/docs/file-format/
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_entra.errors import BeamEntraError, ConfigError, Diagnosis, FormatError
from beam_entra.io.blocks import BadRecord, Block, Claims, PlannedSource, Range, Source
from beam_entra.io.formats.base import Everything, FileFormat, FileWriter, as_mapping, batch_of, not_writable, reason_of
from beam_entra.io.formats.rows import check_times, plain, weight_bytes

__all__ = ["Parquet"]

_MAGIC = b"PAR1"
_ENCRYPTED = b"PARE"  # the footer is; pyarrow says what that means
_END_BYTES = 8  # the footer's length and the magic
_TAIL_BYTES = 64 << 10  # fetched first: most footers are shorter
_GAP_BYTES = 64 << 10  # so much that nobody wants is cheaper to fetch than another request
_PIECE_BYTES = 4 << 20  # longer ranges are cut, so that their parts travel side by side
_BATCH_ROWS = 1 << 16
_BATCH_BYTES = 16 << 20
_GATHERED_ROWS = 512  # dicts that wait to become a batch, unless they are long
_SMALL_BYTES = 64 << 10  # may be held for nothing
_MOST_FLOAT32 = (2 - 2**-23) * 2.0**127


class Parquet(FileFormat):
    """Parquet files: an element is a dict of a row's columns.

    Of a blob only the footer and the wanted columns of the wanted row groups are fetched. A row group belongs to the
    byte range in which it begins.

    Args:
        columns: Which to read, in this order; all if not given.
        filters: Which rows to read, as `pyarrow.parquet.read_table` takes them: `[("year", "=", 2024)]`, lists of such
            lists, or an expression. Row groups whose statistics rule them out are not fetched.
        schema: Of what is written. Needed for dicts; of record batches it is by default the first one's.
        compression: Of what is written: `zstd`, `snappy`, `gzip`, `brotli`, `lz4` or `none`.
        row_group_rows, row_group_bytes: How long a written row group becomes at most, in rows and in memory.

    Raises:
        ConfigError: The columns, the filters or the compression are none.
    """

    suffix = ".parquet"
    content_type = "application/vnd.apache.parquet"

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        *,
        filters: Any = None,
        schema: pa.Schema | None = None,
        compression: str = "zstd",
        row_group_rows: int = 1 << 20,
        row_group_bytes: int = 32 << 20,
    ) -> None:
        if columns is not None and (isinstance(columns, str) or not columns or len(set(columns)) != len(columns)):
            raise ConfigError(
                "Parquet columns are none, or one is named twice", Diagnosis(hint="give a list: columns=['id', 'name']")
            )
        if compression != "none" and not _is_codec(compression):
            raise ConfigError(
                f"there is no Parquet compression {compression!r}", Diagnosis(hint="use 'zstd', 'snappy' or 'none'")
            )
        if row_group_rows < 1 or row_group_bytes < 1:
            raise ConfigError("row_group_rows and row_group_bytes are at least 1")
        self.columns = None if columns is None else list(columns)
        self.filter = None if filters is None else _expression(filters)
        self.schema = schema
        self.compression = compression
        self.row_group_rows = row_group_rows
        self.row_group_bytes = row_group_bytes

    # Reading

    def split(self, source: Source, start: int, stop: int, claims: Claims) -> Iterator[Block]:
        held, file, groups, wanted = self._planned(source, start, stop)
        pieces = _plan(groups)
        fetched = source.ranges(pieces)
        arrived, claimed = 0, -1
        for group in groups:
            held.forget(before=pieces[group.pieces.start][0] if group.pieces else group.start)
            for begin, _ in pieces[arrived : group.pieces.stop]:
                held.add(begin, next(fetched))
            arrived = max(arrived, group.pieces.stop)
            if group.start > claimed and not claims.try_claim(group.start):
                return
            claimed = group.start
            for batch in self._batches(source.path, file, group.number, wanted):
                yield Block(path=source.path, offset=group.start, data=batch)

    def wanted(self, source: PlannedSource, start: int, stop: int) -> Iterator[Range]:
        if self.filter is None:  # else statistics decide
            yield from _plan(self._planned(source, start, stop)[2])

    def _planned(
        self, source: Source, start: int, stop: int
    ) -> tuple[_Held, pq.ParquetFile, list[_RowGroup], list[str]]:
        """The file, of which the footer is here, its row groups that begin in [start, stop), the columns to fetch."""
        held = _Held(source)
        held.add(*_footer_of(source))
        with _explained(f"{source.path} cannot be read as Parquet"):
            file = pq.ParquetFile(pa.PythonFile(held, mode="r"), pre_buffer=False, page_checksum_verification=True)
        wanted = self._columns_to_read(source.path, file.schema_arrow)
        groups = [group for group in _row_groups(file.metadata, wanted) if start <= group.start < stop]
        if self.filter is not None and groups:
            groups = _pruned(groups, held, file.schema_arrow, self.filter)
        return held, file, groups, wanted

    def stream(self, path: str, pieces: Iterator[bytes | bytearray], *, max_record_bytes: int) -> Iterator[Block]:
        whole = bytearray()
        for piece in pieces:
            whole += piece
            if len(whole) > max_record_bytes:
                raise FormatError(
                    f"{path} is longer than {max_record_bytes} bytes, and Parquet is read from its end",
                    Diagnosis(hint="raise max_record_bytes; or leave Parquet files as they are: they are compressed"),
                )
        if whole:
            yield from self.split(_Memory(path, whole), 0, len(whole), Everything())

    def decode_all(self, block: Block) -> Sequence[Any]:
        with _explained(f"a row group of {block.path} holds what Python has no value for"):
            return _dicts(block.data)

    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        yield from self.decode_all(block)
        rows: int = block.data.num_rows
        return rows

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        yield block.data

    def _columns_to_read(self, path: str, schema: pa.Schema) -> list[str]:
        """The columns to fetch: the wanted ones and those that the filter asks for."""
        columns = schema.names if self.columns is None else self.columns
        missing = [column for column in columns if column not in schema.names]
        if missing:
            raise FormatError(
                f"{path} has no column {' and no column '.join(missing)}",
                Diagnosis(hint=f"its columns are {', '.join(schema.names)}"),
            )
        if self.filter is None:
            return list(columns)
        either = {*columns, *_columns_of(self.filter, path, schema)}
        return [column for column in schema.names if column in either]  # as in the file: a filter may go by position

    def _batches(self, path: str, file: pq.ParquetFile, number: int, wanted: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of a row group, not too many at a time."""
        group = file.metadata.row_group(number)
        rows = _BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)
        with _explained(f"row group {number} of {path} cannot be read"):
            batches = file.iter_batches(min(max(rows, 1), _BATCH_ROWS), row_groups=[number], columns=wanted)
        while True:
            with _explained(f"row group {number} of {path} cannot be read"):
                batch = next(batches, None)
                if batch is None:
                    return
                if self.filter is not None:
                    batch = _filtered(batch, self.filter)
                batch = batch.select(file.schema_arrow.names if self.columns is None else self.columns)
            if batch.num_rows:
                yield batch

    # Writing

    def open(self, file: IO[bytes]) -> FileWriter:
        return _Writer(file, self)


# Reading


@dataclass(slots=True, kw_only=True)
class _RowGroup:
    """A row group of a file.

    Attributes:
        number: Its index in the footer.
        start: Where it begins in the file.
        chunks: Where its wanted columns are.
        pieces: Which of the ranges that are fetched hold them.
    """

    number: int
    start: int
    chunks: list[Range]
    pieces: range = range(0)


def _row_groups(metadata: pq.FileMetaData, wanted: Sequence[str]) -> list[_RowGroup]:
    """The row groups that have rows, as they lie in the file."""
    paths = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)]
    leaves = [
        leaf for leaf, path in enumerate(paths) if any(path == name or path.startswith(name + ".") for name in wanted)
    ]
    groups = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.num_rows and group.num_columns:
            chunks = sorted(_chunk(group.column(leaf)) for leaf in leaves)
            groups.append(_RowGroup(number=number, start=_chunk(group.column(0))[0], chunks=chunks))
    return sorted(groups, key=lambda group: group.start)


def _chunk(column: pq.ColumnChunkMetaData) -> Range:
    start = column.data_page_offset
    if column.dictionary_page_offset:  # some writers say 0 for none
        start = min(start, column.dictionary_page_offset)
    return start, start + column.total_compressed_size


def _pruned(groups: list[_RowGroup], held: _Held, schema: pa.Schema, expression: pc.Expression) -> list[_RowGroup]:
    """The row groups that the filter does not rule out by their statistics."""
    from pyarrow import dataset  # noqa: PLC0415 - a quarter of a second that only filters need

    fragment = dataset.ParquetFileFormat().make_fragment(
        pa.PythonFile(held, mode="r"), row_groups=[group.number for group in groups]
    )
    left = {group.id for group in fragment.subset(expression, schema=schema).row_groups}
    return [group for group in groups if group.number in left]


def _plan(groups: Sequence[_RowGroup]) -> list[Range]:
    """The ranges to fetch, so that few are requested and little is for nothing; tells the groups which are theirs."""
    pieces: list[Range] = []
    for group in groups:
        first = len(pieces)
        for start, stop in group.chunks:
            begin, end = pieces[-1] if pieces else (0, -_GAP_BYTES - 1)
            if begin <= start <= end + _GAP_BYTES and max(stop, end) - begin <= _PIECE_BYTES:
                pieces[-1] = (begin, max(stop, end))
                first = min(first, len(pieces) - 1)
            else:
                pieces += [(at, min(at + _PIECE_BYTES, stop)) for at in range(start, stop, _PIECE_BYTES)]
        group.pieces = range(first, len(pieces))
    return pieces


class _Held:
    """The parts of a file that have been fetched, as a file; a part that has not been is fetched when it is read."""

    closed = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parts: list[tuple[int, memoryview]] = []
        self._at = 0

    def add(self, start: int, data: bytes | bytearray) -> None:
        """Hold what begins at `start`."""
        self._parts.append((start, memoryview(data)))

    def forget(self, *, before: int) -> None:
        """Let go of the parts, but the first, which is the footer, that begin before this byte."""
        self._parts[1:] = [part for part in self._parts[1:] if part[0] >= before]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size_bytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, length: int = -1) -> bytes | memoryview:
        start = self._at
        stop = self._source.size_bytes if length < 0 else min(start + length, self._source.size_bytes)
        self._at = max(start, stop)
        found: list[memoryview] = []
        while start < stop:
            part = next((part for part in self._parts if part[0] <= start < part[0] + len(part[1])), None)
            if part is None:
                return b"".join([*found, *self._source.ranges([(start, stop)])])
            begin, data = part
            found.append(data[start - begin : stop - begin])
            start += len(found[-1])
        return found[0] if len(found) == 1 else b"".join(found)


class _Memory:
    """A blob that is here as a whole, as a source."""

    def __init__(self, path: str, data: bytearray) -> None:
        self.path, self.size_bytes, self.max_record_bytes = path, len(data), len(data)
        self._data = data

    def stream(self, start: int, stop: int) -> Iterator[bytes | bytearray]:
        return self.ranges([(start, stop)])

    def peek(self, start: int, stop: int) -> bytearray:
        return self._data[start:stop]

    def content(self) -> bytes:
        return bytes(self._data)

    def ranges(self, wanted: Sequence[Range]) -> Iterator[bytes | bytearray]:
        return (self._data[start:stop] for start, stop in wanted)


def _footer_of(source: Source) -> tuple[int, bytes | bytearray]:
    """Where the footer of a blob begins, or something before it, and the bytes from there on."""
    size = source.size_bytes
    start = max(size - _TAIL_BYTES, 0)
    tail = source.peek(start, size)
    if size <= _END_BYTES or tail[-4:] not in (_MAGIC, _ENCRYPTED):
        raise FormatError(
            f"{source.path} is no Parquet file: it does not end as one",
            Diagnosis(hint="check the pattern, and that the blobs are whole"),
        )
    length = int.from_bytes(tail[-_END_BYTES:-4], "little") + _END_BYTES
    if length > min(size, source.max_record_bytes):
        raise FormatError(
            f"{source.path} says that its Parquet footer has {length} bytes, of {size}",
            Diagnosis(hint="the blob is damaged; if the footer is that long, raise max_record_bytes"),
        )
    if length > len(tail):
        before = source.peek(size - length, start)
        return size - length, b"".join((before, tail))
    return start, tail


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Arrow's errors in terms of the blob; those of the storage stay."""
    try:
        yield
    except BeamEntraError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise FormatError(
            f"{what}: {reason_of(error)}", Diagnosis(hint="write the blob anew if it is damaged, or leave it out")
        ) from None


def _dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """As `to_pylist`, several times faster for the usual columns."""
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*map(_values, batch.columns), strict=True)]


def _values(array: pa.Array) -> list[Any]:
    kind = array.type
    whole = not array.null_count and (
        pa.types.is_integer(kind) or pa.types.is_float64(kind) or pa.types.is_float32(kind) or pa.types.is_boolean(kind)
    )
    if whole or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        values: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
    else:
        values = array.to_pylist()
    return values


# Filters


def _expression(filters: Any) -> pc.Expression:
    try:
        return pq.filters_to_expression(filters)
    except Exception as error:  # noqa: BLE001 - pyarrow raises whatever it stumbles over
        raise ConfigError(
            f"these are no Parquet filters: {reason_of(error)}",
            Diagnosis(
                hint="give tuples, [('year', '=', 2024)], or an expression, pyarrow.compute.field('year') == 2024"
            ),
        ) from None


def _columns_of(expression: pc.Expression, path: str, schema: pa.Schema) -> list[str]:
    """The columns that an expression needs, and perhaps more: Arrow tells only its text."""
    text = str(expression)
    named = [name for name in schema.names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]
    if "FieldPath" not in text:  # not by position
        try:
            schema.empty_table().select(named).filter(expression)
        except (pa.ArrowException, ValueError):
            pass
        else:
            return named
    with _explained(f"the filter does not fit the columns of {path}"):
        schema.empty_table().filter(expression)
    return list(schema.names)


def _filtered(batch: pa.RecordBatch, expression: pc.Expression) -> pa.RecordBatch:
    table = pa.Table.from_batches([batch]).filter(expression).combine_chunks()
    return next(iter(table.to_batches()), batch.slice(0, 0))


# Writing


class _Writer:
    """Rows and record batches to row groups of one file."""

    def __init__(self, file: IO[bytes], format: Parquet) -> None:
        self._format = format
        self._sink = _Sink(file)
        self._schema = format.schema
        self._file: pq.ParquetWriter | None = None
        self._rows: list[Any] = []  # not yet a batch
        self._rows_bytes = 0
        self._batches: list[pa.RecordBatch] = []  # not yet a row group
        self._batch_rows = self._batch_bytes = 0

    def write(self, element: Any) -> None:
        row = as_mapping(element)
        if not isinstance(row, Mapping):
            raise not_writable(element, "is no row", "write dicts, named tuples, beam.Row or record batches")
        self._rows.append(row)
        self._rows_bytes += weight_bytes(row)
        if len(self._rows) >= _GATHERED_ROWS or self._rows_bytes >= self._format.row_group_bytes:
            self._gather()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self._gather()
        if self._schema is None:
            self._schema = batch.schema
        self._add(_cast(batch, self._schema))

    def close(self) -> None:
        self._gather()
        self._flush()
        with _writable():
            self._opened().close()

    def __del__(self) -> None:
        self._sink.abandon()  # pyarrow's writer, which goes next, would write a footer to a blob that was given up

    def _gather(self) -> None:
        """Make a batch of the rows that wait."""
        if self._rows:
            rows, self._rows, self._rows_bytes = self._rows, [], 0
            self._add(_batch_to_write(rows, self._schema_to_write()))

    def _add(self, batch: pa.RecordBatch) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_fixed_size_list(column.type) and column.null_count:  # Arrow writes that and cannot read it
                raise _does_not_fit(batch, f"has no {name} in some row, which a column of {column.type} has to have")
        limit = self._format.row_group_bytes
        step = max(batch.num_rows * limit // max(batch.nbytes, 1), 1)
        for at in range(0, batch.num_rows, step):
            part = batch.slice(at, step)
            if self._batches and self._batch_bytes + part.nbytes > limit:
                self._flush()
            self._batches.append(part)
            self._batch_rows += part.num_rows
            self._batch_bytes += part.nbytes
            if self._batch_rows >= self._format.row_group_rows:
                self._flush()
        if self._batches:
            self._batches[-1] = _alone(self._batches[-1])

    def _flush(self) -> None:
        """Write a row group."""
        if self._batches:
            table = pa.Table.from_batches(self._batches)
            self._batches, self._batch_rows, self._batch_bytes = [], 0, 0
            with _writable():
                self._opened().write_table(table, row_group_size=self._format.row_group_rows)

    def _opened(self) -> pq.ParquetWriter:
        if self._file is None:
            sink = pa.PythonFile(self._sink, mode="w")
            schema = self._schema_to_write()
            self._file = pq.ParquetWriter(sink, schema, compression=self._format.compression, write_page_checksum=True)
        return self._file

    def _schema_to_write(self) -> pa.Schema:
        if self._schema is None:
            raise ConfigError(
                "Parquet cannot write rows, or a file without any, without a schema",
                Diagnosis(hint="give it: Parquet(schema=...)"),
            )
        return self._schema


@contextmanager
def _writable() -> Iterator[None]:
    """Arrow's errors while a file is written in our words; those of the storage stay."""
    try:
        yield
    except BeamEntraError:
        raise
    except (pa.ArrowException, ValueError) as error:
        raise FormatError(
            f"Parquet cannot hold this: {reason_of(error)}", Diagnosis(hint="change the types in Parquet(schema=...)")
        ) from None


class _Sink:
    """A file that knows how much has been written to it, as pyarrow asks."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file
        self._written = 0

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            length = view.nbytes
            if self._file is not None:
                self._file.write(bytes(view))
        self._written += length
        return length

    def tell(self) -> int:
        return self._written

    def flush(self) -> None:
        """What is written waits for nothing."""

    def abandon(self) -> None:
        """Take nothing more."""
        self._file = None


def _alone(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch; a copy where it is a small part of a long one, all of which would be held with it."""
    if batch.get_total_buffer_size() <= 2 * batch.nbytes + _SMALL_BYTES:
        return batch
    return batch.take(pa.array(range(batch.num_rows)))


def _batch_to_write(rows: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    names = set(schema.names)
    for row in rows:
        if not names.issuperset(row):
            raise _does_not_fit(row, f"has a field {min(map(str, set(row) - names))} that is no column of the file")
    if not any(pa.types.is_nested(kind) for kind in schema.types):
        with suppress(FormatError, ValueError):
            return _checked_batch(rows, schema)
    rows = [plain(row) for row in rows]
    for row in rows:  # where something is wrong, or may be in silence: one by one
        for field in schema:
            _check_field(row, field)
    return batch_of(rows, schema)


def _checked_batch(rows: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    """As `batch_of`, and of nothing that would be read back as another value.

    Raises:
        ValueError: That would be so.
    """
    batch = batch_of(rows, schema)
    for field in schema:
        if pa.types.is_temporal(field.type) or pa.types.is_nested(field.type):
            check_times([row.get(field.name) for row in rows], field.type)
        elif pa.types.is_float32(field.type):
            values = (row.get(field.name) for row in rows)
            if any(value is not None and _MOST_FLOAT32 < abs(value) < math.inf for value in values):
                raise ValueError("float has no number so large")
    return batch


def _check_field(row: Any, field: pa.Field) -> None:
    value = row.get(field.name)
    if value is None and not field.nullable:
        raise _does_not_fit(row, f"has no {field.name}")
    kind = type(value).__name__
    try:
        _checked_batch([{field.name: value}], pa.schema([field]))
    except FormatError:
        raise _does_not_fit(row, f"has a {kind} in {field.name}, which is a column of {field.type}") from None
    except ValueError as error:
        raise _does_not_fit(row, f"has a {kind} in {field.name} that would be changed: {error}") from None
    if unknown := _unknown(value, field.type, field.name):
        raise _does_not_fit(row, f"has a field {unknown} that is in no column of the file")


def _unknown(value: Any, kind: pa.DataType, path: str) -> str:
    """A field somewhere in a value that its type does not have, and that Arrow would leave out; empty if none."""
    if pa.types.is_struct(kind) and isinstance(value, dict):
        fields = {field.name: field.type for field in kind}
        inner = [
            _unknown(item, fields[name], f"{path}.{name}") if name in fields else f"{path}.{name}"
            for name, item in value.items()
        ]
    elif pa.types.is_map(kind) and isinstance(value, (dict, list, tuple)):  # as pairs they are read
        inner = [_unknown(item, kind.item_type, path) for item in dict(value).values()]
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and isinstance(value, (list, tuple)):
        inner = [_unknown(item, kind.value_type, path) for item in value]
    else:
        return ""
    return next(filter(None, inner), "")


def _does_not_fit(element: object, problem: str) -> FormatError:
    return not_writable(element, problem, "map it to the columns of Parquet(schema=...) before WriteToBlob")


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch in the types of the file, if nothing of it is lost.

    Raises:
        FormatError: Something would be.
    """
    if len(set(batch.schema.names)) < len(batch.schema.names):
        raise _does_not_fit(batch, f"has columns of one name: {', '.join(batch.schema.names)}")
    if batch.schema.equals(schema) and not any(not field.nullable for field in schema):
        return batch
    if sorted(batch.schema.names) != sorted(schema.names):
        names = ", ".join(batch.schema.names)
        raise _does_not_fit(batch, f"has the columns {names}; those of the file are {', '.join(schema.names)}")
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if column.null_count and not field.nullable:
            raise _does_not_fit(batch, f"has no {field.name} in some row")
        columns.append(column if column.type == field.type else _cast_column(batch, column, field))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cast_column(batch: pa.RecordBatch, column: pa.Array, field: pa.Field) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    zones = [getattr(kind, "tz", None) is None for kind in (column.type, field.type) if pa.types.is_timestamp(kind)]
    if len(set(zones)) == 2:
        raise _does_not_fit(batch, f"has times in {field.name} with a zone where {field.type} has none, or without one")
    try:
        result = column.cast(field.type)
        if pa.types.is_null(column.type) or _is_same(result.cast(column.type), column):
            return result
    except (pa.ArrowException, ValueError):
        pass
    raise _does_not_fit(batch, f"has values of {column.type} in {field.name} that {field.type} cannot hold")


def _is_same(back: pa.Array, column: pa.Array) -> bool:
    if pa.types.is_floating(column.type):  # nothing equals nan
        back, column = (pc.if_else(pc.is_nan(values), None, values) for values in (back, column))
    same: bool = back.equals(column)
    return same


def _is_codec(name: str) -> bool:
    try:
        return bool(pa.Codec.is_available(name))
    except (ValueError, TypeError):
        return False
