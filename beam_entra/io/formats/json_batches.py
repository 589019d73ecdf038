"""Blocks of JSON Lines to record batches by Arrow, which is ten times as fast as Python's json and not as strict.

Arrow's reader takes NaN for JSON, looks at no UTF-8, takes objects from wherever they lie, and gives a whole block up
for one bad line. So it gets only lines that can be told to be sound by looking at a block as a whole; of those, the
ones that it stumbles over are found and left out. What is left out is for Python's json to decide, line by line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from beam_entra.cpus import cpus
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.formats.line_bounds import Mask, Positions, line_bounds, lines_at, not_utf8

__all__ = ["ParsedLines", "check_schema", "parse_lines", "parse_value", "parse_values"]


_SPACE = np.zeros(256, np.bool_)
_SPACE[list(b" \t\r\n")] = True
_TRIMMED = 8  # characters of white space around a line's value; more are left to Python
_LONG_LINE = 500  # lines up to this length are neither nested too deeply nor hold a number too long
_DEEPEST = 400  # Arrow's inference recurses; Python's decoder gives up at about a thousand
_LONG_NUMBER = re.compile(rb"(?<!\d)\d{300}")  # no double; and Python refuses integers from 4,300 digits on
_NO_JSON = (re.compile(rb"NaN[\s,\]}]"), re.compile(rb"Inf(?:inity)?[\s,\]}]"))
_ROW = re.compile(r" in row (\d+)$")
_FEW, _PIECE = 8, 256
_PIECE_BYTES = 1 << 19  # a millisecond's work; to have another thread begin takes a twentieth
_CPUS = cpus(4)
_ATTEMPTS = 3000  # each costs 50 to 100 microseconds
_MOST_CELLS = 1 << 24  # of columns that are found in the data: each row has a place for each, be it null
_FIELD_BYTES = 5  # of a field at least: `"":1,`
_EXACT = 1 << 53  # below it a double is the integer that was written


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedLines:
    """What Arrow made of a block.

    Attributes:
        batch: The rows, in order; None if there are none.
        rows: The line of each row.
        rest: The lines that are for Python to decide. Blank ones are in neither.
        starts: Where each line of the block begins.
        ends: Where it ends, line end included.
    """

    batch: pa.RecordBatch | None
    rows: Positions
    rest: Positions
    starts: Positions
    ends: Positions

    def spans(self, lines: Positions) -> list[tuple[int, int]]:
        """Where these lines begin and end."""
        return list(zip(self.starts[lines].tolist(), self.ends[lines].tolist(), strict=True))


def parse_lines(
    data: bytes, schema: pa.Schema | None, *, infer: bool, pieces: int | None = None
) -> ParsedLines | None:
    """The lines of a block that Arrow parses as Python's json would.

    None: so many lines may have more columns between them than there is memory for; give it some of them at a time.

    Args:
        schema: Of the rows; with `infer` a first guess, such as another block's.
        infer: Whether the data says which columns there are. Texts stay texts, whatever they look like.
        pieces: How many are parsed at a time where it does not. By default, of a large block one for each CPU.
    """
    characters = np.frombuffer(data, np.uint8)
    starts, ends = line_bounds(data)
    sound, blank = _candidates(data, characters, starts, ends)
    batch = None
    if not infer:
        if pieces is None:
            pieces = min(_CPUS, round(len(data) / _PIECE_BYTES)) or 1
        batch = _in_pieces(data, schema, starts, ends, sound, pieces)
    else:
        guess = schema if schema is not None and len(ends) * _leaves(schema) <= _MOST_CELLS else None
        if len(ends) > 1 and len(ends) * len(data) > _MOST_CELLS * _FIELD_BYTES:
            batch = _known(data, guess, starts, ends, sound)
            if batch is None:
                return None
        else:
            batch = _infer(data, guess, starts, ends, sound)
    return ParsedLines(
        batch=batch, rows=np.flatnonzero(sound), rest=np.flatnonzero(~(sound | blank)), starts=starts, ends=ends
    )


def parse_values(values: list[bytes], schema: pa.Schema) -> ParsedLines:
    """JSON objects, each on a line of its own, to rows of a schema; those that do not fit are in `rest`."""
    ends = np.cumsum([len(value) for value in values], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    sound = np.ones(len(values), np.bool_)
    batch = _Search(b"".join(values), schema, starts, ends, sound, infer=False).batch()
    return ParsedLines(batch=batch, rows=np.flatnonzero(sound), rest=np.flatnonzero(~sound), starts=starts, ends=ends)


def parse_value(value: bytes, schema: pa.Schema) -> pa.RecordBatch | str:
    """A JSON object to a row of a schema, or why it is none."""
    try:
        return _parse(value, schema, others="ignore")
    except pa.ArrowException as error:
        return _ROW.sub("", str(error).partition("\n")[0]).removeprefix("JSON parse error: ")


def check_schema(schema: pa.Schema) -> None:
    """Whether Arrow can read JSON into these columns.

    Raises:
        ConfigError: It cannot.
    """
    names = schema.names
    if not names or len(set(names)) != len(names):
        raise ConfigError("the schema has no columns, or two of a name", Diagnosis(hint="name each column once"))
    try:
        _parse(b"{}\n", schema, others="ignore")
    except pa.ArrowNotImplementedError as error:
        raise ConfigError(
            f"JSON cannot be read into this schema: {error}", Diagnosis(hint="read plain types, and cast the batches")
        ) from None
    except pa.ArrowInvalid:
        pass  # a column that must not be null


# Which lines


def _candidates(
    data: bytes, characters: npt.NDArray[np.uint8], starts: Positions, ends: Positions
) -> tuple[Mask, Mask]:
    """Lines that are one object if Arrow parses as many objects as there are such lines; and blank lines.

    Where a line begins with `{` and the one before ends with `}`, no object goes on from one to the other: there would
    have to be a comma between. So each line has at least one, and if there are as many as lines, exactly one.
    """
    first, last = starts.copy(), ends - 1
    for _ in range(_TRIMMED):
        space = _SPACE[characters[last]] & (last > starts)
        if not space.any():
            break
        last -= space
    for _ in range(_TRIMMED):
        space = _SPACE[characters[first]] & (first < last)
        if not space.any():
            break
        first += space
    sound: Mask = (characters[first] == ord("{")) & (characters[last] == ord("}"))
    blank: Mask = _SPACE[characters[last]] & (first == last)
    sound[not_utf8(data, ends)] = False
    if b"\0" in data:
        sound[lines_at(np.flatnonzero(characters == 0), ends)] = False
    for letter, constant in zip(b"NI", _NO_JSON, strict=True):
        sound[lines_at(_constants(data, characters, letter, constant), ends)] = False
    for line in np.flatnonzero(sound & (ends - starts > _LONG_LINE)):
        text = data[starts[line] : ends[line]]
        if text.count(b"{") + text.count(b"[") > _DEEPEST or _LONG_NUMBER.search(text):
            sound[line] = False
    return sound, blank


def _constants(data: bytes, characters: npt.NDArray[np.uint8], letter: int, constant: re.Pattern[bytes]) -> list[int]:
    """Where this constant stands that JSON does not have, be it in a text."""
    if letter not in data:
        return []
    found = np.flatnonzero(characters[:-2] == letter)
    found = found[characters[found + 2] == constant.pattern[2]]
    return [at for at in found.tolist() if constant.match(data, at)]


# Parsing


class _Search:
    """Parses the sound lines of a block; makes those unsound that Arrow stumbles over.

    Args:
        sound: Which lines are; changed in place.
    """

    def __init__(
        self, data: bytes, schema: pa.Schema | None, starts: Positions, ends: Positions, sound: Mask, *, infer: bool
    ) -> None:
        self._data, self._schema, self._others = data, schema, "infer" if infer else "ignore"
        self._starts, self._ends, self._sound = starts, ends, sound
        self._attempts = _ATTEMPTS

    def batch(self) -> pa.RecordBatch | None:
        """The rows of all lines that are sound in the end, in order."""
        while (lines := np.flatnonzero(self._sound)).size:
            self._text, self._bounds = _joined(self._data, self._starts, self._ends, self._sound)
            self._doubtful: list[int] = []
            found = self._search(0, len(lines))
            if found is not None:
                return found
            self._sound[lines[self._doubtful] if self._doubtful else lines] = False  # all: only together they are not
        return None

    def _search(self, first: int, last: int) -> pa.RecordBatch | None:
        """The rows of these lines if all are sound; else some that are not are noted."""
        begin = first
        while begin < last:
            self._attempts -= 1
            if self._attempts < 0:
                self._doubtful += range(begin, last)
                return None
            try:
                found = _parse(self._text[self._bounds[begin] : self._bounds[last]], self._schema, others=self._others)
                row = None
            except pa.ArrowException as error:
                found, row = None, _row_of(error)
            if found is not None and found.num_rows == last - begin:
                return found if begin == first else None
            if row is not None and row < last - begin:  # a hint: all is parsed again without this line
                self._doubtful.append(begin + row)
                begin += row + 1
            elif last - begin <= _FEW:
                self._doubtful += range(begin, last)
                return None
            else:
                step = _PIECE if last - begin > 2 * _PIECE else (last - begin + 1) // 2
                for at in range(begin, last, step):
                    self._search(at, min(at + step, last))
                return None
        return None


def _in_pieces(
    data: bytes, schema: pa.Schema | None, starts: Positions, ends: Positions, sound: Mask, pieces: int
) -> pa.RecordBatch | None:
    """The rows of all lines that are sound in the end, in order; threads parse a piece of the block each.

    Arrow works without the interpreter's lock. A line that it stumbles over has no more than its piece parsed again.
    """

    def batch(first: int, last: int) -> pa.RecordBatch | None:
        piece = slice(first, last)
        return _Search(data, schema, starts[piece], ends[piece], sound[piece], infer=False).batch()

    def begun(first: int, last: int) -> Callable[[], pa.RecordBatch | None]:
        threads = _threads(os.getpid())
        try:
            return threads.submit(batch, first, last).result
        except RuntimeError:  # no more threads: too many, or the interpreter is ending
            return partial(batch, first, last)
        except BaseException:  # an interrupt may leave a thread that nothing else ends
            _threads.cache_clear()
            threads.shutdown(wait=False)
            raise

    begins = [len(data) * number // pieces for number in range(1, pieces)]
    first, *rest = pairwise([0, *np.searchsorted(ends, begins, side="right").tolist(), len(ends)])
    others = [begun(*each) for each in rest]
    batches = [batch(*first), *(other() for other in others)]
    found = [each for each in batches if each is not None]
    if len(found) < 2:
        return next(iter(found), None)
    (whole,) = pa.Table.from_batches(found).combine_chunks().to_batches()
    return whole


@cache
def _threads(pid: int) -> ThreadPoolExecutor:
    """Of this process: one that is forked has none of its parent's."""
    return ThreadPoolExecutor(max(_CPUS - 1, 1), thread_name_prefix="beam-entra-parse")


def _joined(data: bytes, starts: Positions, ends: Positions, sound: Mask) -> tuple[memoryview, Positions]:
    """The sound ones of these lines, one behind the other, and where each begins; at last, where they end."""
    whole = memoryview(data)
    if sound.all():
        view = whole[starts[0] : ends[-1]]
    else:
        edges = np.flatnonzero(np.diff(sound, prepend=False, append=False))
        runs = zip(starts[edges[::2]].tolist(), ends[edges[1::2] - 1].tolist(), strict=True)
        view = memoryview(b"".join(whole[begin:end] for begin, end in runs))
    return view, np.concatenate([np.zeros(1, np.int64), np.cumsum((ends - starts)[sound])])


def _infer(
    data: bytes, guess: pa.Schema | None, starts: Positions, ends: Positions, sound: Mask
) -> pa.RecordBatch | None:
    """The rows of what is sound, in columns that are found in the data."""
    if guess is not None:
        guess = pa.schema([field for field in guess if not pa.types.is_null(field.type)])
    given = sound.copy()
    batch = _Search(data, guess, starts, ends, sound, infer=True).batch()
    if guess is not None and np.count_nonzero(sound) < np.count_nonzero(given) * 7 // 8:  # other data than before
        sound[:], guess = given, None
        batch = _Search(data, guess, starts, ends, sound, infer=True).batch()
    if batch is None:
        return None
    settled = _settled(batch.schema)
    if settled != batch.schema or _nested(settled) != _nested(guess):
        batch = _Search(data, settled, starts, ends, sound, infer=True).batch()
    return None if batch is None else _exact_rows(batch, sound)


def _known(
    data: bytes, schema: pa.Schema | None, starts: Positions, ends: Positions, sound: Mask
) -> pa.RecordBatch | None:
    """The rows of what is sound, if these columns are all that there are, and nothing is of another type."""
    lines = np.flatnonzero(sound)
    if schema is None or not lines.size:
        return None
    text, _ = _joined(data, starts, ends, sound)
    try:
        batch = _parse(text, schema, others="error")
    except pa.ArrowException:
        return None
    return _exact_rows(batch, sound) if batch.num_rows == len(lines) else None


def _exact_rows(batch: pa.RecordBatch, sound: Mask) -> pa.RecordBatch:
    """The rows in which no integer can have been rounded to a double; the lines of the others are not sound."""
    exact = _exact(batch)
    if exact is None or pc.all(exact).as_py():
        return batch
    sound[np.flatnonzero(sound)] = exact.to_numpy(zero_copy_only=False)
    return batch.filter(exact)


def _parse(data: bytes | memoryview, schema: pa.Schema | None, *, others: str) -> pa.RecordBatch:
    """The rows of some lines.

    Args:
        others: What to do with fields that the schema does not have: "infer", "ignore" or "error".
    """
    table = pj.read_json(
        pa.BufferReader(pa.py_buffer(data)),
        read_options=pj.ReadOptions(use_threads=False, block_size=max(len(data), 1) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others),
    )
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    return batch if others == "infer" else pa.RecordBatch.from_arrays(batch.columns, schema=schema)


def _row_of(error: pa.ArrowException) -> int | None:
    found = _ROW.search(str(error).partition("\n")[0])
    return int(found.group(1)) if found else None


def _leaves(fields: Iterable[pa.Field]) -> int:
    """How many columns these are, those in columns counted."""
    types = [field.type for field in fields]
    return len(types) + sum(_leaves([type_.field(at) for at in range(type_.num_fields)]) for type_ in types)


def _nested(schema: pa.Schema | None) -> list[pa.Field]:
    return [field for field in schema or () if pa.types.is_nested(field.type)]


def _settled(schema: pa.Schema) -> pa.Schema:
    """The same with texts where Arrow has taken them for instants, and where it has found nothing but nulls in a list.

    Lists that it has found by itself have to be parsed again in any case: it forgets the nulls that lists begin with.
    """
    types = [field.type if pa.types.is_null(field.type) else _as_text(field.type) for field in schema]
    if types == schema.types:
        return schema
    return pa.schema([field.with_type(type_) for field, type_ in zip(schema, types, strict=True)])


def _as_text(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_) or pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_list(type_):
        return pa.list_(_as_text(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_as_text(field.type)) for field in type_])
    return type_


def _exact(batch: pa.RecordBatch) -> pa.BooleanArray | None:
    """In which rows no integer can have been rounded to a double; None: in all."""
    result: Any = None
    for column in batch.columns:
        if pa.types.is_floating(column.type):
            small = pc.fill_null(pc.less(pc.abs(column), float(_EXACT)), True)
        elif pa.types.is_nested(column.type) and not _nested_exact(column):
            small = pa.array(np.zeros(batch.num_rows, np.bool_))
        else:
            continue
        result = small if result is None else pc.and_(result, small)
    return result


def _nested_exact(values: pa.Array) -> bool:
    if pa.types.is_struct(values.type):
        return all(_nested_exact(field) for field in values.flatten())
    if pa.types.is_list(values.type):
        return _nested_exact(values.flatten())
    largest = pc.max(pc.abs(values)).as_py() if pa.types.is_floating(values.type) else None
    return largest is None or largest < _EXACT
