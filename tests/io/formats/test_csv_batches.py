"""CSV as record batches: another way to the same rows and the same bad records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.errors import ConfigError, FormatError
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.formats import Csv

PATH = "abfss://raw@lake.dfs.core.windows.net/a"


def read(data: bytes, format: Csv, header: bytes = b"") -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """The rows of all batches."""
    bad: list[BadRecord] = []
    batches = list(format.decode_batches(Block(path=PATH, offset=7, data=data, header=header), bad))
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()], bad


def read_each(data: bytes, format: Csv, header: bytes = b"") -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """The rows one by one."""
    bad: list[BadRecord] = []
    return list(format.decode_each(Block(path=PATH, offset=7, data=data, header=header), bad)), bad


def counted(rows: list[dict[str, Any]]) -> Counter[tuple[tuple[str, Any], ...]]:
    """Rows in no order."""
    return Counter(tuple(sorted(row.items())) for row in rows)


_bytes = st.sampled_from(
    [
        b"a",
        b",",
        b",",
        b"\n",
        b"\n",
        b"\r\n",
        b"\r",
        b'"',
        b'"',
        b'""',
        b'"a,b"',
        b'"\n"',
        b"\xff",
        b"\xc3\xa4",
        b"\xef\xbb\xbf",
        b"\0",
        b" ",
        b"1",
        b"x,y\n",
        b'x,"y"\n',
    ]
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(_bytes, max_size=30).map(b"".join), st.integers(1, 3))
def test_batches_hold_the_rows_that_are_read_one_by_one(data: bytes, width: int) -> None:
    """For any bytes, and any number of columns; what is no row is found with its place."""
    csv_format = Csv(["a", "b", "c"][:width], header=False)
    rows, bad = read(data, csv_format)
    expected, expected_bad = read_each(data, csv_format)
    assert counted(rows) == counted(expected)
    assert bad == expected_bad


@pytest.mark.parametrize("delimiter", [";", "\t", "ä"])
def test_any_delimiter_goes(delimiter: str) -> None:
    """Of any length in bytes."""
    data = f'1{delimiter}2\n"3"{delimiter}4\n5\n'.encode()
    csv_format = Csv(["a", "b"], header=False, delimiter=delimiter)
    assert read(data, csv_format) == read_each(data, csv_format)


def test_the_blobs_header_names_the_columns() -> None:
    """Where it cannot, each record says why."""
    assert read(b"1,2\n", Csv(), b"x,y")[0] == [{"x": "1", "y": "2"}]
    assert read(b"1,2\n", Csv(["a", "b"]), b"x,y") == read_each(b"1,2\n", Csv(["a", "b"]), b"x,y")
    assert "names a column twice" in read(b"1,2\n", Csv(), b"x,x")[1][0].reason


def test_rows_keep_their_order_where_none_has_quotes() -> None:
    """One batch a block."""
    data = b"".join(b"%d,x\r\n" % number for number in range(5000))
    rows, _ = read(data, Csv(["a", "b"], header=False))
    assert [row["a"] for row in rows] == [str(number) for number in range(5000)]


# Types

TYPES = pa.schema(
    [
        ("day", pa.date32()),
        ("count", pa.int64()),
        ("price", pa.decimal128(9, 2)),
        ("at", pa.timestamp("s", "UTC")),
        ("flag", pa.bool_()),
        ("name", pa.string()),
    ]
)
HEADER = b"name,count,price,day,at,flag,more"


def test_a_schema_gives_the_columns_types_and_leaves_others_out() -> None:
    """An empty field is null, except in a text."""
    data = b"a,1,2.50,2024-02-29,2024-02-29T01:02:03Z,true,x\n,,,,,,\n"
    rows, bad = read(data, Csv(schema=TYPES), HEADER)
    assert bad == []
    assert rows == [
        {
            "day": date(2024, 2, 29),
            "count": 1,
            "price": Decimal("2.50"),
            "at": datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC),
            "flag": True,
            "name": "a",
        },
        dict.fromkeys(TYPES.names) | {"name": ""},
    ]


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("quote", ["", '"'])
def test_fields_of_another_type_make_bad_records_and_no_others(every: int, quote: str) -> None:
    """Each with its place, and what it was."""
    schema = pa.schema([("n", pa.int64()), pa.field("d", pa.date32(), nullable=False)])
    lines = [
        f"{quote}{number}{quote},2024-01-01" if number % every else ["x,2024-01-01", f"{number},", "1,2"][number % 3]
        for number in range(300)
    ]
    data = "\n".join(lines).encode()
    rows, bad = read(data, Csv(["n", "d"], header=False, schema=schema))
    assert [row["n"] for row in rows] == [number for number in range(300) if number % every]
    assert [record.record.decode() for record in bad] == [lines[number] for number in range(0, 300, every)]
    assert all(data[record.offset - 7 :].startswith(record.record) for record in bad)
    reasons = {record.reason for record in bad}
    assert reasons <= {
        "ValueError: n is no int64: 'x'",
        "ValueError: d is empty",
        "ValueError: d is no date32[day]: '2'",
    }


def test_a_column_that_a_blob_does_not_have_makes_all_its_records_bad() -> None:
    """Another blob of the same read may have it."""
    schema = pa.schema([("z", pa.int64())])
    rows, bad = read(b"1,2\n3,4\n", Csv(schema=schema), b"x,y")
    assert rows == []
    assert [record.reason for record in bad] == ["the blob has no column z; it has x, y"] * 2


def test_elements_stay_texts_and_a_parsers_elements_make_the_batches() -> None:
    """A schema is for batches."""
    assert read_each(b"1,2\n", Csv(["a", "b"], header=False, schema=pa.schema([("a", pa.int64())])))[0] == [
        {"a": "1", "b": "2"}
    ]
    parsed = Csv(["a"], header=False, parse=lambda row: {"n": int(row["a"])}, schema=pa.schema([("n", pa.int32())]))
    rows, bad = read(b"1\nx\n", parsed)
    assert rows == [{"n": 1}]
    assert "invalid literal" in bad[0].reason


def test_a_subclass_decodes_its_own_way() -> None:
    """A vectorised pass would pass its `decode` by."""

    class Shouted(Csv):
        def decode(self, record: bytes, header: bytes) -> Any:
            return super().decode(record.upper(), header)

    assert read(b"x\n", Shouted(["a"], header=False)) == ([{"a": "X"}], [])


WRONG: dict[str, Callable[[], object]] = {
    "a column that is not there": lambda: Csv(["a"], schema=pa.schema([("b", pa.int64())])),
    "no columns": lambda: Csv(schema=pa.schema([])),
    "a type that no text has": lambda: Csv(schema=pa.schema([("a", pa.list_(pa.int64()))])),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_go_together_are_refused_at_once(make: Callable[[], object]) -> None:
    """With the next step."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.hint


# Writing

_instants = st.datetimes(timezones=st.just(UTC))
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "string": (pa.string(), st.text(max_size=5) | st.sampled_from(['"', ",", ";", "\n", "\r", " a", "\ufeff", "'"])),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a", 'b"', ""])),
    "int64": (pa.int64(), st.integers(-(1 << 63), (1 << 63) - 1)),
    "double": (pa.float64(), st.floats()),
    "bool": (pa.bool_(), st.booleans()),
    "null": (pa.null(), st.none()),
    "date": (pa.date32(), st.dates()),
    "seconds": (pa.timestamp("s"), st.datetimes().map(lambda at: at.replace(microsecond=0))),
    "microseconds UTC": (pa.timestamp("us", "UTC"), _instants | _instants.map(lambda at: at.replace(microsecond=0))),
    "decimal": (pa.decimal128(12, 4), st.decimals(-99999999, 99999999, places=4)),
    "small decimal": (pa.decimal128(20, 12), st.decimals(-9999, 9999, places=12)),
    "time": (pa.time64("us"), st.times()),
}


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_batch_is_written_as_its_rows_are(data: st.DataObject) -> None:
    """The same bytes, or the same refusal, whatever the types, the values, their nulls, and the slice that they are."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4))
    rows = data.draw(st.integers(0, 6))
    arrays = []
    for kind in kinds:
        type_, values = COLUMNS[kind]
        items = st.none() | values if data.draw(st.booleans()) else values
        arrays.append(pa.array(data.draw(st.lists(items, min_size=rows, max_size=rows)), type_))
    names = [f"c{number}" for number in range(len(kinds))]
    whole = pa.RecordBatch.from_arrays(arrays, names=names)
    batch = whole.slice(data.draw(st.integers(0, rows)), data.draw(st.integers(0, rows)))
    csv_format = Csv(data.draw(st.permutations(names)), delimiter=data.draw(st.sampled_from(",;|-.")))
    try:
        expected = b"".join(map(csv_format.encode, batch.to_pylist()))
    except FormatError as error:
        with pytest.raises(FormatError, match=error.message.split("(", maxsplit=1)[0]):
            csv_format.encode_batch(batch)
    else:
        assert csv_format.encode_batch(batch) == expected


def test_a_batch_with_other_columns_is_refused() -> None:
    """As an element is."""
    with pytest.raises(FormatError, match="has other columns"):
        Csv(["a"]).encode_batch(pa.RecordBatch.from_pydict({"a": [1], "b": [2]}))
    with pytest.raises(FormatError, match="has other columns"):
        Csv(["a", "b"]).encode_batch(pa.RecordBatch.from_pydict({"a": [1]}))
    with pytest.raises(FormatError, match="a list in it"):
        Csv(["a"]).encode_batch(pa.RecordBatch.from_pydict({"a": [[1]]}))


def test_what_a_batch_is_written_as_is_read_back() -> None:
    """Batches in, batches out."""
    batch = pa.RecordBatch.from_pylist(
        [{"day": date(2024, 1, 2), "count": 1, "price": Decimal("1.20"), "at": None, "flag": None, "name": 'x,"\n'}],
        schema=TYPES,
    )
    csv_format = Csv(TYPES.names, header=False, schema=TYPES)
    bad: list[BadRecord] = []
    (again,) = csv_format.decode_batches(Block(path=PATH, offset=0, data=csv_format.encode_batch(batch)), bad)
    assert again.equals(batch)
