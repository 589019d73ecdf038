"""JSON Lines as record batches: another way to the same rows and the same bad records."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.errors import ConfigError, FormatError
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.formats import JsonLines
from beam_entra.io.formats.json_batches import parse_lines, parse_value
from beam_entra.io.formats.json_text import json_lines_of

PATH = "abfss://raw@lake.dfs.core.windows.net/a"
SCHEMA = pa.schema([("s", pa.string()), ("i", pa.int64()), ("f", pa.float64()), ("b", pa.bool_())])


def block_of(data: bytes) -> Block:
    """A block in the middle of a blob."""
    return Block(path=PATH, offset=1000, data=data)


def batches_of(data: bytes, format: JsonLines) -> tuple[list[pa.RecordBatch], list[BadRecord]]:
    """What the block gives as batches."""
    bad: list[BadRecord] = []
    batches = list(format.decode_batches(block_of(data), bad))
    for batch in batches:
        batch.validate(full=True)
    return batches, bad


def rows_of(data: bytes, format: JsonLines) -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """Rows of all batches."""
    batches, bad = batches_of(data, format)
    return [row for batch in batches for row in batch.to_pylist()], bad


def columns_of(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    """Names and columns."""
    return zip(batch.schema.names, batch.columns, strict=True)


def elements_of(data: bytes, format: JsonLines) -> tuple[list[Any], list[BadRecord]]:
    """What the block gives one by one."""
    bad: list[BadRecord] = []
    return list(format.decode_each(block_of(data), bad)), bad


def key(value: Any) -> str:
    """A value as a text that is the same for equal values; a field that is null is the same as none."""

    def plain(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {name: plain(field) for name, field in sorted(inner.items()) if plain(field) is not None}
        if isinstance(inner, list):
            return [plain(item) for item in inner]
        if isinstance(inner, float) and inner.is_integer():
            return int(inner)
        return inner

    return json.dumps(plain(value))


def fits(value: Any, kind: str) -> bool:
    """Whether a JSON value is one of a column's, by Python's types."""
    if value is None:
        return True
    if kind == "s":
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if kind == "b":
        return isinstance(value, bool)
    if kind == "i":
        return type(value) is int and -(1 << 63) <= value < 1 << 63
    return type(value) in {int, float}


def is_row(value: Any) -> bool:
    """Whether Arrow can hold a JSON value as a row."""
    try:
        return bool(value) and key(pa.RecordBatch.from_pylist([value]).to_pylist()) == key([value])
    except (pa.ArrowException, AttributeError, UnicodeError, OverflowError):
        return False


# The same as one by one

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-100, 100),
    st.integers(-(1 << 65), 1 << 65),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(["2024-01-02", "2024-01-02T03:04:05Z", "NaN,", "Inf ", "{", "\ud800", "\u2028", "Infinity]", ""]),
)
_fitting = st.fixed_dictionaries(
    {},
    optional={
        "s": st.none() | st.text(max_size=5) | st.sampled_from(["2024-01-02", "NaN}", 'a"}\n{"']),
        "i": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        "f": st.none() | st.floats(allow_nan=False) | st.integers(-(1 << 53), 1 << 53),
        "b": st.none() | st.booleans(),
        "t": st.text(max_size=3),
    },
)
_objects = st.dictionaries(st.sampled_from(["s", "i", "f", "b", "t"]), _scalars, max_size=4)
_nested = st.dictionaries(
    st.sampled_from(["s", "i", "n"]),
    st.recursive(
        _scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)


def _text(value: Any, ascii_: bool) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")


_valid = st.builds(_text, _fitting | _objects | _nested, st.booleans())
_odd = st.sampled_from(
    [
        b"",
        b"  \t ",
        b"\x0b",
        b"[]",
        b"{}",
        b"1",
        b"null",
        b'"x"',
        b"<order/>",
        b'{"i":1}{"i":2}',
        b'{"i":1} {"i":2}',
        b'{"i":1},{"i":2}',
        b'{"i":1',
        b'"s":"x"}',
        b'{"n":{"a":1}',
        b'"b":2}}',
        b'{"i":1,"i":2}',
        b'{"u":1,"u":2,"i":3}',
        b'{"u":NaN}',
        b'{"f":NaN}',
        b'{"f":-Infinity}',
        b'{"f":Inf}',
        b'{"f": NaN }',
        b'{"u":[NaN]}',
        b'{"f":1e400}',
        b'{"f":-0}',
        b'{"i":-0}',
        b'{"i":1.0}',
        b'{"i":1e2}',
        b'{"i":01}',
        b'{"i":+1}',
        b'{"i":1.}',
        b'{"i":9223372036854775808}',
        b'{"f":9007199254740993}',
        b'{"i":' + b"1" * 5000 + b"}",
        b'{"u":' + b"1" * 5000 + b"}",
        b'{"u":' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"s":"\xff"}',
        b'{"s":"\xed\xa0\x80"}',
        b'{"u":"\xc3"}',
        b'{"s":"a\0b"}',
        b'{"i":1}\0',
        b'\0{"i":1}',
        b'{"s":"\x01"}',
        b'{"s":"\\u0000"}',
        b'{"s":"\\ud800"}',
        b'{"s":"\\ud83d\\ude00"}',
        b'{"s":"\\x"}',
        b"{'s':1}",
        b'{"i":1,}',
        b'{"i":/**/1}',
        b'{"\\u0069":7}',
        b'\xef\xbb\xbf{"i":1}',
        b'{"i":1}\r{"i":2}',
        b'{"i":\r1}',
        b"   " * 9 + b'{"i":5}' + b"   " * 9,
    ]
)
_near = st.builds(
    lambda line, at, change: line[: at % (len(line) + 1)] + change + line[at % (len(line) + 1) :],
    _valid,
    st.integers(0, 1000),
    st.sampled_from([b"", b"}", b"{", b'"', b",", b"\xff", b"\0", b" ", b"\r", b"1", b"NaN"]),
)
_lines = st.lists(
    st.tuples(_valid | _odd | _near, st.sampled_from([b"\n", b"\r\n", b" \n"])).map(b"".join), max_size=12
)


def blocks(lines: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[bytes]:
    """Blocks of some lines; the last need not end."""
    return st.builds(lambda some, ended: b"".join(some)[: None if ended else -1], lines, st.booleans())


@settings(max_examples=200, deadline=None)
@given(st.lists(blocks(_lines), min_size=1, max_size=3))
def test_batches_without_a_schema_hold_what_is_read_one_by_one(datas: list[bytes]) -> None:
    """Whatever the lines, no object is lost, changed or added, and what is no JSON is found with its place."""
    json_lines = JsonLines()
    for data in datas:  # what was inferred of one block must not harm the next
        elements, expected_bad = elements_of(data, json_lines)
        rows, bad = rows_of(data, json_lines)
        no_rows = [record for record in bad if record not in expected_bad]
        assert [record for record in bad if record in expected_bad] == expected_bad
        assert [record.offset for record in bad] == sorted(record.offset for record in bad)
        others = [JsonLines().decode(record.record, b"") for record in no_rows]
        assert Counter(map(key, rows)) + Counter(map(key, others)) == Counter(map(key, elements))
        for value in others:  # what cannot be a row
            assert not is_row(value)


@settings(max_examples=200, deadline=None)
@given(blocks(_lines))
def test_batches_with_a_schema_hold_what_is_read_one_by_one_and_fits(data: bytes) -> None:
    """The others are bad records, and say why."""
    json_lines = JsonLines(schema=SCHEMA)
    elements, expected_bad = elements_of(data, json_lines)
    batches, bad = batches_of(data, json_lines)
    assert all(batch.schema == SCHEMA for batch in batches)
    fitting = [
        {name: element.get(name) for name in SCHEMA.names}
        for element in elements
        if isinstance(element, dict) and all(fits(element.get(name), name) for name in SCHEMA.names)
    ]
    rows = [row for batch in batches for row in batch.to_pylist()]
    doubles = [{**row, "f": None if row["f"] is None else float(row["f"])} for row in fitting]
    assert Counter(map(key, rows)) == Counter(map(key, doubles))
    assert [record for record in bad if record in expected_bad] == expected_bad
    assert len(bad) == len(expected_bad) + len(elements) - len(fitting)
    starts = {1000} | {1001 + at for at, byte in enumerate(data) if byte == ord("\n")}
    for record in bad:
        assert record.offset in starts
        assert data[record.offset - 1000 :].startswith(record.record)
        assert record.reason


def test_the_rows_keep_their_order_where_all_are_sound() -> None:
    """One batch, a row a line."""
    data = b"".join(b'{"i":%d,"s":"x"}\n' % number for number in range(5000))
    (batch,), bad = batches_of(data, JsonLines(schema=SCHEMA))
    assert batch.column("i").to_pylist() == list(range(5000))
    assert not bad


@dataclass(frozen=True, kw_only=True)
class Many:
    """A kind of bad line, many of them among many good ones."""

    name: str
    line: bytes
    reason: str


MANY = [
    Many(name="cut off", line=b'{"i":1,"s":"', reason="JSONDecodeError"),
    Many(name="another type", line=b'{"i":"1"}', reason="does not fit the schema: Column(/i) changed from number"),
    Many(name="an integer too large", line=b'{"i":9223372036854775808}', reason="does not fit the schema: Failed"),
    Many(name="a fraction for an integer", line=b'{"i":1.5}', reason="couldn't parse:1.5"),
    Many(name="no UTF-8", line=b'{"s":"\xff\xff"}', reason="UnicodeDecodeError"),
    Many(name="a list", line=b"[1]", reason="a JSON list is no row"),
    Many(name="two objects", line=b'{"i":1}{"i":2}', reason="there is more behind"),
    Many(name="a constant that JSON does not have", line=b'{"f":NaN}', reason="NaN is no JSON"),
]


@pytest.mark.parametrize("case", MANY, ids=lambda case: case.name)
@pytest.mark.parametrize("every", [2, 7, 200])
def test_bad_lines_are_found_wherever_and_however_many_they_are(case: Many, every: int) -> None:
    """Each with its offset; the good ones are all there."""
    good = [b'{"i":%d,"s":"x%d","f":0.5}' % (number, number) for number in range(3000)]
    lines = [case.line if number % every == 1 else line for number, line in enumerate(good)]
    data = b"\n".join(lines)
    rows, bad = rows_of(data, JsonLines(schema=SCHEMA))
    assert sorted(row["i"] for row in rows) == [number for number in range(3000) if number % every != 1]
    assert [record.record for record in bad] == [case.line] * lines.count(case.line)
    offsets = [1000 + sum(len(line) + 1 for line in lines[:number]) for number in range(1, 3000, every)]
    assert [record.offset for record in bad] == offsets
    assert all(case.reason in record.reason for record in bad)


@settings(max_examples=200, deadline=None)
@given(blocks(_lines), st.integers(2, 5))
def test_each_row_of_a_block_in_pieces_is_what_its_line_is_alone(data: bytes, pieces: int) -> None:
    """Whatever is in each: no line, no sound one, a part of a line. And no line of the block is in none."""
    whole, parts = (parse_lines(data, SCHEMA, infer=False, pieces=number) for number in (1, pieces))
    assert whole is not None
    assert parts is not None
    assert sorted([*parts.rows, *parts.rest]) == sorted([*whole.rows, *whole.rest])
    rows = parts.batch.to_pylist() if parts.batch else []
    for row, (start, end) in zip(rows, parts.spans(parts.rows), strict=True):
        alone = parse_value(data[start:end], SCHEMA)
        assert not isinstance(alone, str)
        assert alone.to_pylist() == [row]


@pytest.mark.parametrize("size", [(1 << 20) - 50, (1 << 20) + 50, 3 << 20])
def test_a_large_block_is_one_batch_in_the_order_of_its_lines(size: int) -> None:
    """However many CPUs there are; with a bad line at each end, two together, and a line as long as many."""
    lines = [b'{"i":%d,"s":"%s"}\n' % (number, b"s" * 100) for number in range(size // 120)]
    lines[3000] = b'{"i":3000,"s":"%s"}\n' % (b"s" * 100_000)
    for number in (bad := [0, 1000, 1001, len(lines) - 1]):
        lines[number] = b'{"i":"x"}\n'
    (batch,), refused = batches_of(b"".join(lines), JsonLines(schema=SCHEMA))
    assert batch["i"].to_pylist() == [number for number in range(len(lines)) if number not in bad]
    assert set(map(len, batch["s"].to_pylist())) == {100, 100_000}
    assert [record.offset for record in refused] == [1000 + sum(map(len, lines[:number])) for number in bad]


def test_a_process_that_is_forked_parses_with_threads_of_its_own() -> None:
    """None of its parent's are there."""
    lines = b'{"i":1}\n' * 100

    def rows() -> int:
        parsed = parse_lines(lines, SCHEMA, infer=False, pieces=3)
        return len(parsed.rows) if parsed else 0

    assert rows() == 100
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(rows()))
    child.start()
    child.join(30)
    assert child.exitcode == 100


# Columns that are found in the data


def test_texts_stay_texts_and_integers_integers() -> None:
    """Arrow by itself makes instants of the ones and rounds the others. What no column can hold is a bad record."""
    data = b'{"at":"2024-01-02T03:04:05Z","n":[{"on":"2024-01-02"}],"big":1}\n{"big":12345678901234567890}\n'
    rows, bad = rows_of(data, JsonLines())
    assert rows == [{"at": "2024-01-02T03:04:05Z", "n": [{"on": "2024-01-02"}], "big": 1}]
    assert "int too large" in bad[0].reason
    data = b'{"f":1.5}\n{"f":9007199254740993}\n'
    assert sorted(row["f"] for row in rows_of(data, JsonLines())[0]) == [1.5, 9007199254740993]


def test_a_field_that_only_some_objects_have_is_null_in_the_others() -> None:
    """No field is lost, whichever object comes first."""
    (batch,), _ = batches_of(b'{"a":1}\n{"b":"x"}\n', JsonLines())
    assert batch.to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_a_later_block_may_have_other_columns_and_types() -> None:
    """What was found in one block is a guess at the next, and no more."""
    json_lines = JsonLines()
    first = b'{"a":1,"t":"2024-01-02"}\n'
    assert rows_of(first, json_lines)[0] == [{"a": 1, "t": "2024-01-02"}]
    assert rows_of(b'{"a":1.5,"u":"2024-01-02"}\n' * 100, json_lines)[0][0] == {"a": 1.5, "u": "2024-01-02"}
    assert rows_of(b'{"a":"x"}\n' * 100, json_lines)[0][0]["a"] == "x"
    (batch,), _ = batches_of(b'{"a":"x"}\n' * 100, json_lines)
    assert batch.num_rows == 100


def test_objects_of_other_types_than_the_others_come_in_batches_of_their_own() -> None:
    """They are sound JSON: without a schema nothing says which ones are wrong."""
    batches, bad = batches_of(b'{"a":1}\n' * 50 + b'{"a":"x"}\n' + b'{"a":2}\n' * 50, JsonLines())
    assert sorted(batch.num_rows for batch in batches) == [1, 100]
    assert not bad


def test_objects_that_share_no_fields_take_no_place_for_all_of_them_together() -> None:
    """Thousands of rows by thousands of columns are more than memory holds: they come in several batches."""
    data = b"".join(b'{"k%d":%d}\n' % (number, number) for number in range(6000))
    batches, bad = batches_of(data, JsonLines())
    assert max(batch.num_rows * batch.num_columns for batch in batches) <= 1 << 24
    found = [(name, column.drop_null().to_pylist()) for batch in batches for name, column in columns_of(batch)]
    assert [(name, values) for name, values in found if values] == [(f"k{n}", [n]) for n in range(6000)]
    assert not bad


def test_columns_of_an_earlier_block_take_no_place_beside_many_rows() -> None:
    """One object with thousands of fields is no guess at a block of thousands of others."""
    json_lines = JsonLines()
    wide = b"{" + b",".join(b'"k%d":1' % number for number in range(10_000)) + b"}\n"
    ((row,), _), rows = rows_of(wide, json_lines), b'{"a":1}\n' * 5000
    assert len(row) == 10_000
    batches, _ = batches_of(rows, json_lines)
    assert sum(batch.num_rows for batch in batches) == 5000
    assert {name for batch in batches for name in batch.schema.names} == {"a"}


def test_a_long_block_is_one_batch_once_its_columns_are_known() -> None:
    """Objects of the same fields are parsed as a whole, nulls and nesting included; other fields are found."""
    json_lines = JsonLines()
    line = b'{"a":1,"b":null,"c":[null,{"d":"x"}],"e":{"f":1.5},"g":"2026-01-01"}\n'
    data = line * 4000
    first, _ = rows_of(data, json_lines)
    (batch,), bad = batches_of(data, json_lines)
    assert batch.to_pylist() == first == [json.loads(line)] * 4000
    rows, _ = rows_of(data + b'{"a":2,"h":1}\n' + data + b'{"a":"x"}\n[]\n', json_lines)
    assert sum(row["a"] == 2 and row["h"] == 1 for row in rows) == 1
    assert len(rows) == 8002
    assert not bad


@pytest.mark.parametrize("end", [b"\n", b""])
def test_bad_lines_of_a_long_block_are_found_where_they_are(end: bytes) -> None:
    """Also where the block is taken in parts, and the longest line is its first or its last."""
    lines = [b'{"a":"' + b"x" * 100_000 + b'"}', *[b'{"a":1}', b"{", b""] * 1000, b'{"b":"' + b"y" * 100_000 + b'"}']
    data = b"\n".join(lines) + end
    rows, bad = rows_of(data, JsonLines())
    assert len(rows) == 1002
    assert [record.offset for record in bad] == [1000 + 100_009 + 11 * line + 8 for line in range(1000)]


@pytest.mark.parametrize("first", [b"", b'{"n":null}\n', b'{"n":[]}\n', b'{"n":[null]}\n'])
@pytest.mark.parametrize("value", [[None, True], [None, 1], [None, None], [None, [None, 1]], [None, {"a": [None, 2]}]])
def test_nulls_that_a_list_begins_with_are_kept(value: list[Any], first: bytes) -> None:
    """Arrow by itself loses them, and leaves lists that end beyond what they hold."""
    rows, _ = rows_of(first + json.dumps({"n": value}).encode() + b"\n", JsonLines())
    assert rows[-1] == {"n": value}


def test_nesting_without_end_neither_crashes_nor_passes() -> None:
    """Arrow's inference recurses until the stack is used up."""
    deep = b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}\n"
    rows, bad = rows_of(b'{"a":[1]}\n' + deep, JsonLines())
    assert rows == [{"a": [1]}]
    assert "RecursionError" in bad[0].reason


# Elements by `parse` and `parse_batch`


def parse(value: Any) -> dict[str, Any]:
    """Twice the number; not all numbers are good."""
    if value["i"] < 0:
        raise ValueError("negative")
    return {"id": str(value["i"]), "twice": value["i"] * 2}


def parse_batch(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.BooleanArray]:
    """The same for a batch; what is too large it leaves to `parse`."""
    numbers = batch.column("i")
    sound = pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, 1000))
    columns = [pc.cast(numbers, pa.string()), pc.multiply(numbers, 2)]
    return pa.RecordBatch.from_arrays(columns, names=["id", "twice"]), sound


NUMBERS = pa.schema([("i", pa.int64())])
PARSED = JsonLines(parse, schema=NUMBERS, parse_batch=parse_batch)


@settings(deadline=None)
@given(
    blocks(
        st.lists(
            st.sampled_from(
                [
                    b'{"i":1}\n',
                    b'{"i":-1}\n',
                    b'{"i":5000}\n',
                    b'{"i":null}\n',
                    b'{"j":1}\n',
                    b'{"i":"x"}\n',
                    b'{"i":1.25}\n',
                    b"oops\n",
                    b"\n",
                ]
            ),
            max_size=10,
        )
    )
)
def test_what_a_batch_parser_does_is_what_the_parser_does(data: bytes) -> None:
    """Rows that it does not vouch for are for `parse` to judge: its errors, and its elements."""
    elements, expected_bad = elements_of(data, PARSED)
    batches, bad = batches_of(data, PARSED)
    rows = [row for batch in batches for row in batch.to_pylist()]
    unfit = [element for element in elements if not isinstance(element["twice"], int)]  # 1.25 goes through `parse`
    assert Counter(map(key, rows)) + Counter(map(key, unfit)) == Counter(map(key, elements))
    assert [record for record in bad if record in expected_bad] == expected_bad
    assert len(bad) == len(expected_bad) + len(unfit)
    assert len({str(batch.schema) for batch in batches}) <= 1


def test_a_batch_parser_that_loses_rows_is_told_so() -> None:
    """It would shift all marks."""
    json_lines = JsonLines(parse, schema=NUMBERS, parse_batch=lambda batch: (batch.slice(1), pa.array([True])))
    with pytest.raises(FormatError, match="parse_batch got 2 rows, and gave 1"):
        batches_of(b'{"i":1}\n{"i":2}\n', json_lines)


def test_a_mark_that_is_null_is_no_mark() -> None:
    """Comparisons with null are null: such rows go to `parse`."""
    rows, bad = rows_of(b'{"i":null}\n{"i":3}\n', PARSED)
    assert rows == [{"id": "3", "twice": 6}]
    assert "TypeError" in bad[0].reason


def test_with_a_parser_alone_batches_are_of_its_elements() -> None:
    """One by one, so it is slow, and right."""
    rows, bad = rows_of(b'{"i":3}\n{"i":-3}\n', JsonLines(parse))
    assert rows == [{"id": "3", "twice": 6}]
    assert [record.offset for record in bad] == [1008]


def test_elements_of_a_parser_that_do_not_fit_the_schema_are_bad_records() -> None:
    """The schema is then one of its elements."""
    json_lines = JsonLines(lambda value: {"v": value["i"]}, schema=pa.schema([("v", pa.int64())]))
    rows, bad = rows_of(b'{"i":3}\n{"i":"x"}\n{"i":4}\n', json_lines)
    assert rows == [{"v": 3}, {"v": 4}]
    assert [(record.offset, record.record) for record in bad] == [(1008, b'{"i":"x"}')]


def test_a_subclass_with_records_of_its_own_is_read_by_them() -> None:
    """Not by lines."""

    class Semicolons(JsonLines):
        def records(self, block: bytes) -> Iterator[bytes]:
            return iter(block.split(b";")[:-1])

    (batch,) = Semicolons().decode_batches(Block(path=PATH, offset=0, data=b'{"a":1};{"a":2};'), [])
    assert batch.to_pylist() == [{"a": 1}, {"a": 2}]


def test_a_subclass_decodes_its_own_way() -> None:
    """A vectorised pass would pass its `decode` by."""

    class Shouted(JsonLines):
        def decode(self, record: bytes, header: bytes) -> Any:
            return super().decode(record.upper(), header)

    assert rows_of(b'{"a":"x"}\n', Shouted()) == ([{"A": "X"}], [])


WRONG: dict[str, Callable[[], object]] = {
    "a batch parser without a schema": lambda: JsonLines(parse, parse_batch=parse_batch),
    "a batch parser without a parser": lambda: JsonLines(schema=NUMBERS, parse_batch=parse_batch),
    "no columns": lambda: JsonLines(schema=pa.schema([])),
    "a column twice": lambda: JsonLines(schema=pa.schema([("a", pa.int64()), ("a", pa.int64())])),
    "a type that JSON cannot be read into": lambda: JsonLines(
        schema=pa.schema([("a", pa.dictionary(pa.int32(), pa.string()))])
    ),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_go_together_are_refused_at_once(make: Callable[[], object]) -> None:
    """With the next step."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.hint


def test_a_column_that_must_not_be_null_makes_records_bad_that_lack_it() -> None:
    """And no others."""
    schema = pa.schema([pa.field("i", pa.int64(), nullable=False)])
    rows, bad = rows_of(b'{"i":1}\n{"i":null}\n{}\n{"i":2}\n', JsonLines(schema=schema))
    assert rows == [{"i": 1}, {"i": 2}]
    assert ["required" in record.reason for record in bad] == [True, True]


def test_it_travels_with_what_it_has_found() -> None:
    """It is pickled into DoFns."""
    json_lines = JsonLines()
    rows_of(b'{"a":1}\n', json_lines)
    again = pickle.loads(pickle.dumps(json_lines))  # noqa: S301  # our own pickle
    assert rows_of(b'{"a":1}\n', again) == ([{"a": 1}], [])


# Writing


_INSTANTS = st.datetimes(timezones=st.just(UTC))
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), st.text(max_size=6) | st.sampled_from(['"', "\\", "\n", "\x1f", "\x7f", "\u2028", "a\tb"])),
    "large_string": (pa.large_string(), st.text(max_size=6)),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", 'b"', "", "\n"])),
    "int64": (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    "uint8": (pa.uint8(), st.integers(0, 255)),
    "double": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "float": (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "bool": (pa.bool_(), st.booleans()),
    "null": (pa.null(), st.none()),
    "date": (pa.date32(), st.dates()),
    "seconds": (pa.timestamp("s"), st.datetimes().map(lambda at: at.replace(microsecond=0))),
    "seconds UTC": (pa.timestamp("ms", "UTC"), _INSTANTS.map(lambda at: at.replace(microsecond=0))),
    "microseconds": (pa.timestamp("us"), st.datetimes()),
    "microseconds UTC": (pa.timestamp("us", "UTC"), _INSTANTS),
    "elsewhere": (pa.timestamp("s", "Asia/Tokyo"), st.datetimes(datetime(1970, 1, 1), datetime(2099, 1, 1))),  # noqa: DTZ001
    "decimal": (pa.decimal128(12, 4), st.decimals(-99999999, 99999999, places=4)),
    "small decimal": (pa.decimal128(20, 12), st.decimals(-9999, 9999, places=12)),
    "list": (pa.list_(pa.string()), st.lists(st.none() | st.text(max_size=3), max_size=3)),
    "struct": (pa.struct([("x", pa.int64())]), st.fixed_dictionaries({"x": st.none() | st.integers(0, 9)})),
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_batch_is_written_as_its_rows_are(data: st.DataObject) -> None:
    """The same bytes, whatever the types, the values, their nulls, and the slice of a batch that they are."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4, unique=True))
    rows = data.draw(st.integers(0, 8))
    arrays = []
    for kind in kinds:
        type_, values = COLUMNS[kind]
        items = st.none() | values if data.draw(st.booleans()) else values
        arrays.append(pa.array(data.draw(st.lists(items, min_size=rows, max_size=rows)), type_))
    names = data.draw(st.lists(st.text(max_size=4), min_size=len(kinds), max_size=len(kinds), unique=True))
    whole = pa.RecordBatch.from_arrays(arrays, names=names)
    batch = whole.slice(data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows)))
    json_lines = JsonLines()
    assert json_lines.encode_batch(batch) == b"".join(map(json_lines.encode, batch.to_pylist()))


def test_a_long_batch_is_written_in_parts() -> None:
    """Arrow's texts end at 2 GiB."""
    batch = pa.RecordBatch.from_pydict({"a": [str(number) for number in range(100)]})
    assert json_lines_of(batch, json.dumps, most_bytes=50) == json_lines_of(batch, json.dumps)


UNWRITABLE = {
    "not a number": pa.RecordBatch.from_pydict({"a": [1.0, math.nan]}),
    "bytes": pa.RecordBatch.from_pydict({"a": [b"x"]}),
    "no UTF-8": pa.RecordBatch.from_arrays(
        [pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))], names=["a"]
    ),
    "a year that Python does not have": pa.RecordBatch.from_arrays(
        [pa.array([1 << 40], pa.int64()).cast(pa.timestamp("s"))], names=["a"]
    ),
}


@pytest.mark.parametrize("batch", UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_batch_with_a_row_that_cannot_be_written_says_why(batch: pa.RecordBatch) -> None:
    """As a single element does."""
    with pytest.raises(FormatError) as caught:
        JsonLines().encode_batch(batch)
    assert caught.value.hint


def test_columns_of_one_name_are_written_as_one_as_a_dict_has_them() -> None:
    """JSON with a name twice would be read as something else by each reader."""
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert JsonLines().encode_batch(batch) == b'{"a":2}\n'


def test_what_a_batch_is_written_as_is_read_back() -> None:
    """Batches in, batches out."""
    batch = pa.RecordBatch.from_pylist([{"s": 'a"\n', "i": 1, "f": 0.1, "b": None}], schema=SCHEMA)
    (again,), _ = batches_of(JsonLines().encode_batch(batch), JsonLines(schema=SCHEMA))
    assert again.equals(batch)
