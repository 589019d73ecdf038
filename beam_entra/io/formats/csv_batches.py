"""Blocks of CSV to record batches and back, a column at a time."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.blocks import strip_line_end
from beam_entra.io.formats.line_bounds import Mask, Positions, ends_in_crlf, line_bounds, line_texts, lines_at, not_utf8
from beam_entra.io.formats.texts import bytes_of, characters_of, plain_texts, replaced

__all__ = ["Rows", "check_schema", "csv_lines_of", "parse_rows", "typed"]

_EMPTY = pa.scalar("")
_USUAL_DELIMITERS = ",;\t|"  # in no number, date or time


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one width.

    Attributes:
        columns: Of texts.
        spans: Where each row begins and ends in the block, an array of shape (rows, 2).
    """

    columns: list[pa.StringArray]
    spans: Positions


def check_schema(schema: pa.Schema, columns: Sequence[str] | None) -> None:
    """Whether texts can be read into these columns.

    Raises:
        ConfigError: They cannot, or the file has none of that name.
    """
    names = schema.names
    if not names or len(set(names)) != len(names) or (columns is not None and not set(names) <= set(columns)):
        raise ConfigError(
            "the schema has no columns, two of a name, or some that the file does not have",
            Diagnosis(hint=f"the file has {', '.join(columns)}" if columns else "name each column once"),
        )
    for field in schema:
        try:
            pa.array([], pa.string()).cast(field.type)
        except pa.ArrowException as error:
            raise ConfigError(
                f"texts cannot be read as the column {field.name}: {error}",
                Diagnosis(hint="read it as pa.string(), and cast the batches"),
            ) from None


def parse_rows(data: bytes, delimiter: str, width: int) -> tuple[list[Rows], list[tuple[int, int]]]:
    """The rows of a block whose records are sound beyond doubt, and where the other records begin and end.

    Records without quotes are split at the delimiter, all of them at once. The csv module gets those with quotes.
    """
    starts, ends = line_bounds(data)
    crlf = ends_in_crlf(data, ends)
    plain, begins = np.ones(len(ends), np.bool_), np.ones(len(ends), np.bool_)
    closes = begins
    characters = np.frombuffer(data, np.uint8)
    if b'"' in data:
        counts = np.bincount(lines_at(np.flatnonzero(characters == ord('"')), ends), minlength=len(ends))
        closes = np.cumsum(counts) % 2 == 0
        begins = np.concatenate([[True], closes[:-1]])[: len(ends)]
        plain = begins & (counts == 0)
        closes[-1:] = True
    if b"\r" in data:
        returns = np.bincount(lines_at(np.flatnonzero(characters == ord("\r")), ends), minlength=len(ends))
        plain &= returns == crlf
    ended = characters[ends - 1] == ord("\n")
    empty = plain & (ends - starts == ended.astype(np.int64) + crlf)
    plain[not_utf8(data, ends)] = False
    doubtful = np.flatnonzero(begins & ~plain)
    last = np.flatnonzero(closes)[np.searchsorted(np.flatnonzero(closes), doubtful)] if doubtful.size else doubtful
    spans = np.stack([starts[doubtful], ends[last]], axis=1)
    plain &= ~empty
    parsed, uneven = _split(data, delimiter, width, starts, ends, plain)
    quoted = _quoted(data, delimiter, width, spans)
    if quoted is not None:
        parsed.append(quoted)
        spans = spans[:0]
    rest = np.concatenate([spans, np.stack([starts[uneven], ends[uneven]], axis=1)])
    return parsed, sorted(map(tuple, rest.tolist()))


def _split(
    data: bytes, delimiter: str, width: int, starts: Positions, ends: Positions, plain: Mask
) -> tuple[list[Rows], Positions]:
    """The rows of lines without quotes, and the lines that have more or fewer fields."""
    lines = np.flatnonzero(plain)
    if not lines.size:
        return [], lines
    text, bounds = data, ends
    if lines.size < len(ends):
        edges = np.flatnonzero(np.diff(plain, prepend=False, append=False))
        runs = zip(starts[edges[::2]].tolist(), ends[edges[1::2] - 1].tolist(), strict=True)
        view = memoryview(data)
        text = b"".join(view[begin:end] for begin, end in runs)
        bounds = np.cumsum(ends[lines] - starts[lines])
    fields = pc.split_pattern(line_texts(text, bounds), delimiter)
    even = pc.equal(pc.list_value_length(fields), width).to_numpy(zero_copy_only=False)
    if not even.all():
        fields = fields.filter(pa.array(even))
    first = np.arange(len(fields)) * width
    values = fields.flatten()
    columns = [values.take(pa.array(first + number)) for number in range(width)]
    chosen = lines[even]
    return [Rows(columns, np.stack([starts[chosen], ends[chosen]], axis=1))], lines[~even]


def _quoted(data: bytes, delimiter: str, width: int, spans: Positions) -> Rows | None:
    """The rows of records with quotes, if all are sound."""
    if not len(spans):
        return None
    records = [strip_line_end(data[begin:end]) for begin, end in spans.tolist()]
    try:
        texts = [record.decode("utf-8") for record in records]
        rows = list(csv.reader(texts, delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(rows) != len(records) or any(len(row) != width for row in rows):  # one has run on into the next
        return None
    return Rows([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], spans)


def typed(rows: Rows, names: Sequence[str], schema: pa.Schema | None) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    """Rows as a record batch, without those that have a field of another type; which ones, and why."""
    if schema is None:
        columns = rows.columns or [pa.array([], pa.string())] * len(names)
        return pa.RecordBatch.from_arrays(columns, names=list(names)), []
    by_name = dict(zip(names, rows.columns, strict=False))
    wrong: dict[int, str] = {}
    arrays = []
    for field in schema:
        if field.name not in by_name:
            reason = f"the blob has no column {field.name}; it has {', '.join(names)}"
            return pa.RecordBatch.from_pylist([], schema), [(row, reason) for row in range(len(rows.spans))]
        column = by_name[field.name]
        empty = None
        if not pa.types.is_string(field.type) and not pa.types.is_large_string(field.type):
            empty = pc.equal(column, "")
            column = pc.if_else(empty, pa.scalar(None, pa.string()), column)
            if not field.nullable:
                wrong |= dict.fromkeys(np.flatnonzero(empty).tolist(), f"ValueError: {field.name} is empty")
        arrays.append(_cast(column, field, 0, wrong))
    sound = np.ones(len(rows.spans), np.bool_)
    sound[list(wrong)] = False
    if wrong:
        arrays = [array.filter(pa.array(sound)) for array in arrays]
    return pa.RecordBatch.from_arrays(arrays, schema=schema), sorted(wrong.items())


def _cast(column: pa.StringArray, field: pa.Field, first: int, wrong: dict[int, str]) -> pa.Array:
    """Texts to values; those that are none become null, and go to `wrong`."""
    try:
        return column.cast(field.type)
    except pa.ArrowException:
        if len(column) == 1:
            wrong.setdefault(first, f"ValueError: {field.name} is no {field.type}: {column[0].as_py()!r}"[:300])
            return pa.nulls(1, field.type)
    half = len(column) // 2
    halves = (_cast(column[:half], field, first, wrong), _cast(column[half:], field, first + half, wrong))
    return pa.concat_arrays(halves)


# Writing


def csv_lines_of(batch: pa.RecordBatch, columns: Sequence[str], delimiter: str) -> bytes | None:
    """A line for each row, as the csv module writes it; None if that is not sure."""
    names = batch.schema.names
    if sorted(names) != sorted(columns) or delimiter not in _USUAL_DELIMITERS:
        return None
    if not batch.num_rows:
        return b""
    fields = [_fields(batch.column(name), delimiter) for name in columns]
    if len(fields) == 1:  # an empty line would be none
        fields = [pc.if_else(pc.equal(fields[0], ""), '""', fields[0])]
    if pc.any(pc.starts_with(fields[0], "\ufeff")).as_py():
        return None
    between = [pa.scalar(delimiter)] * len(fields)
    pieces = list(itertools.chain.from_iterable(zip(fields, between, strict=True)))[:-1]
    return bytes_of(pc.binary_join_element_wise(*pieces, pa.scalar("\r\n"), _EMPTY))


def _fields(column: pa.Array, delimiter: str) -> pa.StringArray:
    """The values of a column as fields, quoted where they have to be."""
    texts = plain_texts(column, between=" ")
    if texts is None:
        if pa.types.is_floating(column.type):
            values = [None if value is None else repr(value) for value in column.to_pylist()]
        elif pa.types.is_boolean(column.type):
            values = [None if value is None else str(value) for value in column.to_pylist()]
        else:
            raise TypeError(f"a column of {column.type} is for Python to write")
        texts = pa.array(values, pa.string())
    if texts.null_count:
        texts = pc.fill_null(texts, _EMPTY)
    characters = characters_of(texts)
    special = (characters == ord('"')) | (characters == ord(delimiter))
    special |= (characters == ord("\r")) | (characters == ord("\n"))
    if not special.any():
        return texts
    return replaced(texts, special, lambda text: '"' + text.replace('"', '""') + '"')
