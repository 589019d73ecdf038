"""Parquet: each row group is read once however a blob is cut, and no byte is fetched that nobody wants."""

from __future__ import annotations

import dataclasses
import gc
import io
import itertools
import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra import Parquet, ReadFromBlob, WriteToBlob
from beam_entra.errors import BeamEntraError, ConfigError, FormatError, StorageError
from beam_entra.io.blocks import Block
from beam_entra.io.formats.parquet import _explained, _Held
from beam_entra.io.read import _Claims

PATH = "abfss://raw@lake.dfs.core.windows.net/a.parquet"
MIB = 1 << 20


class InMemory:
    """A blob in memory, which remembers the ranges that were asked for."""

    path = PATH
    max_record_bytes = 64 * MIB

    def __init__(self, data: bytes) -> None:
        self.data, self.size_bytes = data, len(data)
        self.asked: list[tuple[int, int]] = []

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """One range."""
        return self.ranges([(start, stop)])

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Ranges."""
        for start, stop in wanted:
            assert 0 <= start < stop <= len(self.data)
            self.asked.append((start, stop))
            yield self.data[start:stop]


def file_of(table: pa.Table, rows: int | None = None, **options: Any) -> bytes:
    """A file as pyarrow writes it, some rows to a row group."""
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=rows, **options)
    return file.getvalue()


def read_range(source: InMemory, tracker: OffsetRestrictionTracker, parquet: Parquet) -> Iterator[Block]:
    """What the splittable read does with one restriction, to its end."""
    claims, restriction = _Claims(tracker), tracker.current_restriction()
    yield from parquet.split(source, restriction.start, restriction.stop, claims)
    claims.finish()


def read(source: InMemory, parquet: Parquet) -> list[Block]:
    """All of a blob by one reader."""
    return list(read_range(source, OffsetRestrictionTracker(OffsetRange(0, source.size_bytes)), parquet))


def rows_of(blocks: Sequence[Block], parquet: Parquet) -> list[dict[str, Any]]:
    """The elements of blocks, by each way to decode them."""
    rows = [row for block in blocks for row in parquet.decode_all(block)]
    assert [row for block in blocks for row in parquet.decode_each(block, [])] == rows
    assert [row for block in blocks for batch in parquet.decode_batches(block, []) for row in batch.to_pylist()] == rows
    return rows


def in_pieces(data: bytes, step: int) -> Iterator[bytes]:
    """A blob as a whole, in pieces."""
    return (data[at : at + step] for at in range(0, len(data), step))


def wide(rows: int, columns: int = 20, *, seed: int = 1) -> pa.Table:
    """Columns that do not compress, `c00` and so on, and the number of the row."""
    draw = random.Random(seed)  # noqa: S311 - sample data
    numbers = {f"c{number:02d}": [draw.randrange(1 << 62) for _ in range(rows)] for number in range(columns - 1)}
    return pa.table({**numbers, "n": list(range(rows))})


def chunks_of(data: bytes, column: str) -> list[tuple[int, int]]:
    """Where a column's chunks are, a row group each."""
    metadata = pq.read_metadata(io.BytesIO(data))
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        (chunk,) = (group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == column)
        start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
        found.append((start, start + chunk.total_compressed_size))
    return found


# Splits

_tables = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.integers(-1000, 1000),
            "name": st.none() | st.text(max_size=5),
            "list": st.lists(st.floats(0, 1), max_size=2),
        }
    ),
    max_size=40,
).map(
    lambda rows: pa.Table.from_pylist(
        rows, pa.schema([("id", pa.int64()), ("name", pa.string()), ("list", pa.list_(pa.float64()))])
    )
)


@settings(max_examples=60, deadline=None)
@given(table=_tables, rows=st.integers(1, 20), cuts=st.lists(st.integers(0, 6000), max_size=5))
def test_any_partition_of_a_blob_gives_each_row_once(table: pa.Table, rows: int, cuts: list[int]) -> None:
    """The ranges of any partition together read what pyarrow reads of the whole, in order."""
    data = file_of(table, rows)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    parquet, found = Parquet(), []
    for bound in itertools.pairwise(bounds):
        tracker = OffsetRestrictionTracker(OffsetRange(*bound))
        blocks = list(read_range(InMemory(data), tracker, parquet))
        assert all(block.offset in range(*bound) for block in blocks)
        found += rows_of(blocks, parquet)
        tracker.check_done()
    assert found == table.to_pylist()


def test_a_cut_where_a_row_group_begins_gives_it_to_the_second_range() -> None:
    """And one a byte earlier or later to where its first byte is."""
    table = pa.table({"n": list(range(30))})
    data = file_of(table, 10)
    for start, _ in chunks_of(data, "n"):
        for cut in (start - 1, start, start + 1):
            parts = [
                rows_of(
                    list(read_range(InMemory(data), OffsetRestrictionTracker(OffsetRange(*bounds)), Parquet())),
                    Parquet(),
                )
                for bounds in ((0, cut), (cut, len(data)))
            ]
            assert parts[0] + parts[1] == table.to_pylist()
            assert (len(parts[0]) // 10) == sum(begin < cut for begin, _ in chunks_of(data, "n"))


@settings(max_examples=60, deadline=None)
@given(table=_tables, rows=st.integers(1, 20), source=st.data())
def test_splits_while_reading_lose_and_repeat_nothing(table: pa.Table, rows: int, source: st.DataObject) -> None:
    """A runner may split before any claim; primary and residuals read each row group once."""
    data, parquet = file_of(table, rows), Parquet()
    waiting, found, splits = [OffsetRange(0, len(data))], [], 0
    while waiting:
        tracker = OffsetRestrictionTracker(waiting.pop())
        reader = read_range(InMemory(data), tracker, parquet)
        while True:
            if splits < 8 and source.draw(st.booleans(), label="split?"):
                split = tracker.try_split(source.draw(st.sampled_from([0, 0.1, 0.5, 0.9]), label="of the rest"))
                if split is not None:
                    splits += 1
                    waiting.append(split[1])
            block = next(reader, None)
            if block is None:
                break
            found += [(block.offset, row) for row in rows_of([block], parquet)]
        tracker.check_done()
    assert [row for _, row in sorted(found, key=lambda pair: pair[0])] == table.to_pylist()


def test_row_groups_are_claimed_where_they_begin() -> None:
    """Once each, in ascending order, however many batches one makes."""
    table = wide(300_000, 2)
    data = file_of(table, 150_000)
    claimed: list[int] = []

    class Recorded(_Claims):
        def try_claim(self, position: int) -> bool:
            claimed.append(position)
            return super().try_claim(position)

    claims = Recorded(OffsetRestrictionTracker(OffsetRange(0, len(data))))
    blocks = list(Parquet().split(InMemory(data), 0, len(data), claims))
    assert claimed == [start for start, _ in chunks_of(data, "c00")]
    assert len(blocks) > 4
    assert max(block.data.num_rows for block in blocks) <= 1 << 16
    assert sum(block.data.num_rows for block in blocks) == 300_000


def test_long_rows_come_in_short_batches() -> None:
    """A batch has about 16 MiB at most, so that a row group of gigabytes streams through."""
    draw = random.Random(5)  # noqa: S311 - sample data
    data = file_of(pa.table({"raw": [draw.randbytes(MIB) for _ in range(40)]}), compression="none")
    blocks = read(InMemory(data), Parquet())
    assert max(block.data.num_rows for block in blocks) <= 16
    assert sum(block.data.num_rows for block in blocks) == 40


@given(table=_tables, rows=st.integers(1, 20), step=st.integers(1, 4000))
@settings(max_examples=30, deadline=None)
def test_a_blob_that_is_read_as_a_whole_has_the_same_rows(table: pa.Table, rows: int, step: int) -> None:
    """In pieces of any size; columns and filters count there too."""
    data = file_of(table, rows)
    for parquet in (Parquet(), Parquet(["name", "id"], filters=[("id", ">", 0)])):
        whole = list(parquet.stream(PATH, in_pieces(data, step), max_record_bytes=MIB))
        assert rows_of(whole, parquet) == rows_of(read(InMemory(data), parquet), parquet)


def test_a_blob_that_is_read_as_a_whole_must_fit_the_memory() -> None:
    """The error says what to raise; an empty blob has no rows."""
    data = file_of(wide(1000))
    with pytest.raises(FormatError, match=f"longer than {len(data) - 1} bytes") as raised:
        list(Parquet().stream(PATH, in_pieces(data, 1000), max_record_bytes=len(data) - 1))
    assert "max_record_bytes" in raised.value.hint
    assert list(Parquet().stream(PATH, in_pieces(data, 1000), max_record_bytes=len(data)))
    assert list(Parquet().stream(PATH, iter(()), max_record_bytes=1)) == []


# What is fetched


def test_only_the_footer_and_the_wanted_chunks_are_fetched() -> None:
    """Two columns apart from each other: the footer in one request, then each chunk, and not a byte more."""
    table = wide(40_000)
    data = file_of(table, 20_000, compression="none", use_dictionary=False)
    source = InMemory(data)
    parquet = Parquet(["c15", "c02"])
    batches = [block.data for block in read(source, parquet)]
    assert pa.Table.from_batches(batches).equals(table.select(["c15", "c02"]))
    assert source.asked[0] == (len(data) - 65536, len(data))
    assert source.asked[1:] == sorted(chunks_of(data, "c02") + chunks_of(data, "c15"))


def test_neighbours_travel_together_and_long_chunks_in_parts() -> None:
    """Small gaps are fetched with what is around them, row groups or columns; no request is longer than 4 MiB."""
    data = file_of(wide(2_000), 100, compression="none", use_dictionary=False)
    source = InMemory(data)
    read(source, Parquet(["c00", "c18"]))
    assert len(source.asked) <= 3
    table = wide(1_500_000, 2)
    data = file_of(table, compression="none", use_dictionary=False)
    source = InMemory(data)
    assert pa.Table.from_batches([block.data for block in read(source, Parquet(["n"]))])["n"].equals(table["n"])
    assert len(source.asked) == 1 + sum(math.ceil((stop - start) / (4 * MIB)) for start, stop in chunks_of(data, "n"))
    assert max(stop - start for start, stop in source.asked) <= 4 * MIB


def test_each_byte_is_fetched_once_and_held_no_longer_than_needed() -> None:
    """While a row group is read, what was fetched for those before it is gone."""
    data = file_of(wide(200_000), 20_000, compression="none", use_dictionary=False)
    alive: list[int] = []
    most = 0

    class Counted(bytearray):
        def __del__(self) -> None:
            alive.remove(id(self))

    class Counting(InMemory):
        def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
            nonlocal most
            for piece in super().ranges(wanted):
                counted = Counted(piece)
                alive.append(id(counted))
                most = max(most, len(alive))
                yield counted
                del counted

    source = Counting(data)
    read(source, Parquet())
    fetched = sum(stop - start for start, stop in source.asked[1:])
    assert fetched <= len(data)
    assert len(source.asked) > 8
    assert most <= 4


def test_a_long_footer_is_read_in_two_requests() -> None:
    """Hundreds of columns make a footer that the first request does not cover."""
    table = pa.table({f"column_{number:05d}": [number] for number in range(1000)})
    data = file_of(table)
    source = InMemory(data)
    assert rows_of(read(source, Parquet()), Parquet()) == table.to_pylist()
    assert source.asked[0] == (len(data) - 65536, len(data))
    assert source.asked[1][1] == len(data) - 65536


@settings(max_examples=60, deadline=None)
@given(table=_tables, rows=st.integers(1, 20), least=st.integers(-1000, 1000), name=st.text(max_size=2))
def test_filters_are_pyarrows_own(table: pa.Table, rows: int, least: int, name: str) -> None:
    """In each form that pyarrow takes, exactly its rows, whichever columns are wanted."""
    data = file_of(table, rows)
    forms: list[Any] = [
        [("id", ">=", least)],
        [("id", ">=", least), ("name", "!=", name)],
        [[("id", "<", least)], [("name", "in", [name, "a"])]],
        (pc.field("id") > least) | pc.field("name").is_null(),
        ~pc.field("id").isin([least, 0]),
    ]
    for filters in forms:
        for columns in (None, ["list"], ["name", "id"]):
            parquet = Parquet(columns, filters=filters)
            expected = pq.read_table(io.BytesIO(data), columns=columns, filters=filters)
            expected = expected if columns is None else expected.select(columns)
            assert rows_of(read(InMemory(data), parquet), parquet) == expected.to_pylist()


def test_row_groups_that_the_statistics_rule_out_are_not_fetched() -> None:
    """Nor are columns that neither the filter nor the reader asks for."""
    table = wide(100_000)
    data = file_of(table, 20_000, compression="none", use_dictionary=False)
    source = InMemory(data)
    parquet = Parquet(["c03"], filters=[("n", ">=", 45_000), ("n", "<", 50_000)])
    batches = [block.data for block in read(source, parquet)]
    assert pa.Table.from_batches(batches).equals(table.select(["c03"]).slice(45_000, 5000).combine_chunks())
    assert source.asked[1:] == [chunks_of(data, "c03")[2], chunks_of(data, "n")[2]]
    source = InMemory(data)
    assert read(source, Parquet(filters=[("n", ">", 100_000)])) == []
    assert len(source.asked) == 1


def test_filters_find_their_columns_whatever_these_are_called() -> None:
    """Names within other names, with spaces, nested ones, and columns by position."""
    table = pa.table({"a": [1, 2], "aa": [3, 4], "a b": [5, 6], "s": [{"x": 7}, {"x": 8}], "z": [0, 1]})
    data = file_of(table)
    for expression in (
        pc.field("a b") == 6,
        pc.field("aa") == 4,
        pc.field("s", "x") == 8,
        (pc.field("a") == 2) & (pc.field("a b") > 1),
        pc.field(0) == 2,
        (pc.field(0) == 2) & (pc.field("aa") == 4),
    ):
        parquet = Parquet(["z"], filters=expression)
        assert rows_of(read(InMemory(data), parquet), parquet) == [{"z": 1}]


def test_columns_come_in_the_order_asked_for() -> None:
    """Nested ones whole; dots in names are names."""
    table = pa.table({"a": [1], "a.b": [2], "s": [{"x": 1, "y": [2]}]})
    table = table.append_column("m", pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())))
    data = file_of(table)
    for columns in (["s", "a"], ["a.b"], ["m", "s", "a.b", "a"]):
        (block,) = read(InMemory(data), Parquet(columns))
        assert block.data.schema.names == columns
        assert block.data.to_pylist() == table.select(columns).to_pylist()


def test_elements_are_what_pyarrow_makes_of_rows() -> None:
    """The fast way to dicts and `to_pylist` agree, nulls, nans and all."""
    values = {
        "i": pa.array([1, None, 3], pa.int32()),
        "u": pa.array([1, 2, (1 << 64) - 1], pa.uint64()),
        "f": pa.array([0.5, None, 1.5], pa.float32()),
        "g": pa.array([0.1, 2.5, math.inf], pa.float64()),
        "b": pa.array([True, False, True]),
        "c": pa.array([True, None, False]),
        "s": pa.array(["a", None, ""]),
        "raw": pa.array([b"a", None, b""]),
        "d": pa.array([date(2024, 1, 1), None, date(1, 1, 1)]),
        "t": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
        "x": pa.array([Decimal("1.20")] * 3),
        "dict": pa.array(["a", "b", "a"]).dictionary_encode(),
        "n": pa.nulls(3),
    }
    parquet = Parquet()
    (block,) = read(InMemory(file_of(pa.table(values))), parquet)
    expected = pa.table(values).to_pylist()
    for elements in (parquet.decode_all(block), list(parquet.decode_each(block, []))):
        assert elements == expected
        assert [list(map(type, row.values())) for row in elements] == [
            list(map(type, row.values())) for row in expected
        ]


# What is wrong


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    """Also one that the filter asks for."""
    data = file_of(pa.table({"a": [1], "b": [2]}))
    with pytest.raises(FormatError, match="has no column c and no column d") as raised:
        read(InMemory(data), Parquet(["a", "c", "d"]))
    assert "a, b" in raised.value.hint
    with pytest.raises(FormatError, match="the filter does not fit the columns of"):
        read(InMemory(data), Parquet(filters=[("c", "=", 1)]))


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1", b"{}\n" * 100, b"x" * 20 + (1 << 30).to_bytes(4, "little") + b"PAR1", b"x" * 20 + b"\x05\0\0\0PAR1"],
)
def test_a_blob_that_is_no_parquet_file_is_named(data: bytes) -> None:
    """Another format, a cut one, a footer longer than the blob, a footer that is none."""
    with pytest.raises(FormatError, match="Parquet") as raised:
        list(Parquet().stream(PATH, iter([data or b"x"]), max_record_bytes=MIB))
    assert PATH in raised.value.message
    assert raised.value.hint


def test_a_footer_that_is_encrypted_says_so() -> None:
    """In pyarrow's words."""
    data = file_of(pa.table({"a": [1]}))[:-4] + b"PARE"
    with pytest.raises(FormatError, match=r"cannot be read as Parquet.*ncrypt"):
        read(InMemory(data), Parquet())


def test_a_damaged_row_group_is_named() -> None:
    """A page whose checksum is wrong, and one whose beginning is; the row groups before it are read."""
    table = pa.table({"a": list(range(1000))})
    for offset, options in ((-1, {"write_page_checksum": True, "compression": "none"}), (0, {})):
        data = bytearray(file_of(table, 500, **options))
        start, stop = chunks_of(bytes(data), "a")[1]
        at = start if offset == 0 else stop - 1
        data[at] ^= 0xFF
        reader = read_range(InMemory(bytes(data)), OffsetRestrictionTracker(OffsetRange(0, len(data))), Parquet())
        assert next(reader).data.num_rows == 500
        with pytest.raises(FormatError, match=f"row group 1 of {PATH} cannot be read"):
            next(reader)


def test_errors_of_the_storage_stay_what_they_are() -> None:
    """A blob that changed under the reader is no damaged file."""

    class Failing(InMemory):
        def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
            if self.asked:
                raise StorageError("gone")
            return super().ranges(wanted)

    with pytest.raises(StorageError, match="gone"):
        read(Failing(file_of(wide(100_000))), Parquet())
    old = file_of(pa.table({f"c{number}": [0] for number in range(1000)}))
    with pytest.raises(BeamEntraError, match="gone"):
        read(Failing(old), Parquet())


def test_what_was_not_foreseen_is_fetched_when_it_is_read() -> None:
    """Old writers give chunks wrong lengths. The storage's errors come through Arrow as they are."""
    table = wide(3000)
    data = file_of(table)
    assert pq.ParquetFile(pa.PythonFile(_Held(InMemory(data)), mode="r")).read().equals(table)

    class Failing(InMemory):
        def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
            raise StorageError("gone")

    with pytest.raises(StorageError, match="gone"), _explained("it cannot be read"):
        pq.ParquetFile(pa.PythonFile(_Held(Failing(data)), mode="r"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"columns": []}, "columns"),
        ({"columns": "a"}, "columns"),
        ({"columns": ["a", "a"]}, "columns"),
        ({"filters": [("a", "~", 1)]}, "filters"),
        ({"filters": "a = 1"}, "filters"),
        ({"compression": "zip"}, "compression 'zip'"),
        ({"row_group_rows": 0}, "row_group_rows"),
        ({"row_group_bytes": 0}, "row_group_bytes"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(arguments: dict[str, Any], problem: str) -> None:
    """Before the pipeline runs."""
    with pytest.raises(ConfigError, match=problem):
        Parquet(**arguments)


def test_it_travels_to_the_workers() -> None:
    """Filters and schema are pickled."""
    parquet = Parquet(["n"], filters=pc.field("n") > 2, schema=pa.schema([("n", pa.int64())]))
    there = pickle.loads(pickle.dumps(parquet))  # noqa: S301 - as Beam does
    assert rows_of(read(InMemory(file_of(wide(5, 2))), there), there) == [{"n": 3}, {"n": 4}]


# Writing

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("name", pa.string()),
        ("inner", pa.struct([("x", pa.int32())])),
        ("list", pa.list_(pa.struct([("y", pa.string())]))),
        ("map", pa.map_(pa.string(), pa.float64())),
    ]
)
FLAT = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string()), ("at", pa.timestamp("us", "UTC"))])


class OneWay:
    """A file that can be written to, and nothing else."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes."""
        assert type(data) is bytes
        self.data += data
        return len(data)


def written(parquet: Parquet, *elements: Any) -> bytes:
    """A file of elements, record batches among them."""
    file: Any = OneWay()
    writer = parquet.open(file)
    for element in elements:
        if isinstance(element, pa.RecordBatch):
            writer.write_batch(element)
        else:
            writer.write(element)
    writer.close()
    return bytes(file.data)


def table_of(data: bytes) -> pa.Table:
    """What pyarrow reads."""
    return pq.read_table(io.BytesIO(data))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"id": st.integers(-(1 << 63), (1 << 63) - 1)},
            optional={
                "name": st.none() | st.text(),
                "inner": st.fixed_dictionaries({"x": st.none() | st.integers(0, 9)}),
                "list": st.lists(st.fixed_dictionaries({"y": st.text()}), max_size=2),
                "map": st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=2),
            },
        ),
        max_size=30,
    ),
    group=st.integers(1, 40),
    compression=st.sampled_from(["zstd", "snappy", "none"]),
)
def test_rows_come_back(rows: list[dict[str, Any]], group: int, compression: str) -> None:
    """What is left out comes back as null; row groups are no longer than asked for."""
    data = written(Parquet(schema=SCHEMA, compression=compression, row_group_rows=group), *rows)
    assert table_of(data).schema.equals(SCHEMA)
    assert table_of(data).to_pylist(maps_as_pydicts="strict") == [
        {name: row.get(name) for name in SCHEMA.names} for row in rows
    ]
    metadata = pq.read_metadata(io.BytesIO(data))
    assert all(metadata.row_group(number).num_rows <= group for number in range(metadata.num_row_groups))
    assert rows_of(read(InMemory(data), Parquet()), Parquet()) == table_of(data).to_pylist()


def test_row_groups_are_bounded_in_bytes() -> None:
    """Whether rows come one by one or in one batch that is much too long."""
    draw = random.Random(3)  # noqa: S311 - sample data
    batch = pa.RecordBatch.from_pydict({"raw": [draw.randbytes(1000) for _ in range(2000)]})
    parquet = Parquet(schema=batch.schema, row_group_bytes=100_000)
    for data in (written(parquet, batch), written(parquet, *batch.slice(0, 1500).to_pylist(), batch.slice(1500))):
        assert table_of(data).to_batches()[0].schema == batch.schema
        assert table_of(data).combine_chunks().to_batches()[0].equals(batch)
        metadata = pq.read_metadata(io.BytesIO(data))
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
        assert max(sizes) < 600_000
        assert metadata.num_row_groups >= 4


def test_rows_and_batches_keep_their_order() -> None:
    """Rows before a batch are before it in the file."""
    batch = pa.RecordBatch.from_pydict({"n": [2, 3]})
    parquet = Parquet(schema=batch.schema)
    assert table_of(written(parquet, {"n": 1}, batch, {"n": 4}, batch))["n"].to_pylist() == [1, 2, 3, 4, 2, 3]


def test_the_first_batch_says_what_the_schema_is() -> None:
    """Where none was given; rows alone cannot."""
    batch = pa.RecordBatch.from_pydict({"n": [2, 3]})
    assert table_of(written(Parquet(), batch, {"n": 4}))["n"].to_pylist() == [2, 3, 4]
    with pytest.raises(ConfigError, match="without a schema") as raised:
        written(Parquet(), {"n": 1})
    assert "schema=" in raised.value.hint


def test_no_rows_make_a_file_without_rows() -> None:
    """It has the schema."""
    assert table_of(written(Parquet(schema=FLAT))).equals(FLAT.empty_table())


def test_a_file_that_is_given_up_gets_no_footer() -> None:
    """A writer that goes away unclosed writes nothing more, and the file stays open for whoever has it."""
    file: Any = OneWay()
    writer = Parquet(row_group_rows=2).open(file)
    writer.write_batch(pa.RecordBatch.from_pydict({"n": [2, 3]}))
    length = len(file.data)
    assert length > 4
    del writer
    gc.collect()
    assert len(file.data) == length


@dataclasses.dataclass
class Inner:
    """A dataclass."""

    x: int


class Order(NamedTuple):
    """A named tuple with rows in it."""

    id: int
    inner: Any
    list: Any


def test_rows_of_any_kind_are_written() -> None:
    """Dicts, named tuples, dataclasses and `beam.Row`, within one another too."""
    rows = [
        {"id": 1, "inner": {"x": 1}, "list": [{"y": "a"}]},
        Order(1, Inner(1), [beam.Row(y="a")]),
        beam.Row(id=1, inner=beam.Row(x=1), list=({"y": "a"},)),
    ]
    read_back = table_of(written(Parquet(schema=SCHEMA), *rows)).to_pylist()
    assert read_back == [{**rows[0], "name": None, "map": None}] * 3  # type: ignore[dict-item]


@pytest.mark.parametrize("before", [0, 600])
@pytest.mark.parametrize(
    ("schema", "row", "problem"),
    [
        (FLAT, {"id": "x"}, "has a str in id, which is a column of int64"),
        (FLAT, {"id": 1.5}, "has a float in id"),
        (FLAT, {"id": True}, "has a bool in id"),
        (FLAT, {"id": 1 << 63}, "has a int in id"),
        (FLAT, {"id": 1, "name": 5}, "has a int in name, which is a column of string"),
        (FLAT, {"id": 1, "at": "2024"}, "has a str in at"),
        (FLAT, {"name": "x"}, "has no id"),
        (FLAT, {"id": None}, "has no id"),
        (FLAT, {"id": 1, "more": 2}, "has a field more that is no column of the file"),
        (SCHEMA, {"id": 1, "inner": {"x": 1, "z": 2}}, r"has a field inner\.z that is in no column"),
        (SCHEMA, {"id": 1, "list": [{"y": "a"}, {"z": 2}]}, r"has a field list\.z"),
        (SCHEMA, {"id": 1, "inner": [1]}, "has a list in inner"),
        (SCHEMA, {"id": 1, "map": {"k": "v"}}, "has a dict in map"),
        (FLAT, "text", "is no row"),
        (FLAT, [1], "is no row"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_name(schema: Any, row: Any, problem: str, before: int) -> None:
    """Nothing is written that would be read back as something else, wherever among others it is."""
    with pytest.raises(FormatError, match=problem) as raised:
        written(Parquet(schema=schema), *[{"id": 1}] * before, row)
    assert raised.value.hint


def test_batches_of_other_types_are_cast_if_nothing_is_lost() -> None:
    """Narrower and wider numbers, other orders of columns, dictionaries, nulls."""
    base = pa.schema([("n", pa.int32()), ("s", pa.string()), ("f", pa.float32()), ("t", pa.timestamp("ms"))])
    same = pa.RecordBatch.from_arrays(
        [
            pa.array([0.5, math.nan], pa.float64()),
            pa.DictionaryArray.from_arrays(pa.array([1, 0]), ["b", "a", "unused"]),
            pa.array([1, None], pa.int64()),
            pa.array([datetime(2024, 1, 1), None], pa.timestamp("ns")),  # noqa: DTZ001 - the column has no zone
        ],
        ["f", "s", "n", "t"],
    )
    table = table_of(written(Parquet(schema=base), same, same.set_column(1, "s", pa.nulls(2))))
    assert table.schema.equals(base)
    assert table["n"].to_pylist() == [1, None] * 2
    assert table["s"].to_pylist() == ["a", "b", None, None]
    assert table["f"].to_pylist()[0] == 0.5
    for name, values in {
        "n": pa.array([1 << 40, 1]),
        "f": pa.array([0.1, 0.2]),
        "t": pa.array([1, 2], pa.timestamp("ns")),
    }.items():
        changed = same.set_column(same.schema.get_field_index(name), name, values)
        with pytest.raises(FormatError, match=f"in {name} that .* cannot hold"):
            written(Parquet(schema=base), changed)
    with pytest.raises(FormatError, match="has the columns f, s, n; those of the file are n, s, f, t"):
        written(Parquet(schema=base), same.select(["f", "s", "n"]))
    with pytest.raises(FormatError, match="has no id"):
        written(
            Parquet(schema=pa.schema([pa.field("id", pa.int64(), nullable=False)])),
            same.select([2]).rename_columns(["id"]),
        )


# Over the wire


def check_rows(expected: list[dict[str, Any]]) -> Callable[[list[pa.RecordBatch]], None]:
    """Raises unless the batches hold these rows."""

    def check(batches: list[pa.RecordBatch]) -> None:
        rows = [row for batch in batches for row in batch.to_pylist()]
        assert sorted(rows, key=str) == sorted(expected, key=str)

    return check


def test_small_and_large_blobs_are_read_over_the_wire(lake: Any) -> None:
    """In packs and in splits, as elements and as batches; Beam's own ReadFromParquet reads the same."""
    large, small = wide(5000), wide(20, seed=2)
    lake.raw.upload("in/large.parquet", file_of(large, 300))
    lake.raw.upload("in/small.parquet", file_of(small))
    pattern, columns = lake.raw.url("in/*.parquet"), ["n", "c07"]
    expected = large.select(columns).to_pylist() + small.select(columns).to_pylist()
    with lake.pipeline() as p:
        elements = p | "Elements" >> ReadFromBlob(pattern, Parquet(columns), block_bytes=4096)
        assert_that(elements, equal_to(expected), "elements")
        batches = p | "Batches" >> ReadFromBlob(pattern, Parquet(columns), block_bytes=30_000, batched=True)
        assert_that(batches, check_rows(expected), "batches")
        few = p | "Few" >> ReadFromBlob(pattern, Parquet(["n"], filters=[("n", "<", 3)]))
        assert_that(few, equal_to([{"n": 0}, {"n": 1}, {"n": 2}] * 2), "few")
        theirs = p | "Theirs" >> beam.io.ReadFromParquet(pattern, columns=columns)
        assert_that(theirs, equal_to(expected), "theirs")


def test_rows_and_batches_are_written_over_the_wire(lake: Any) -> None:
    """Beam's own ReadFromParquet reads what was written, and so do we."""
    rows = [{"id": number, "name": f"n{number}", "at": None} for number in range(2000)]
    batches = [pa.RecordBatch.from_pylist(rows[at : at + 500], FLAT) for at in range(1000, 2000, 500)]
    with lake.pipeline() as p:
        elements = p | beam.Create([*rows[:1000], *batches])
        elements | WriteToBlob(lake.curated.url("out/"), Parquet(schema=FLAT, row_group_rows=300), shards=2)
    assert all(name.endswith(".parquet") for name in lake.parts())
    found = [row for name in lake.parts() for row in table_of(lake.curated.download(name)).to_pylist()]
    assert sorted(found, key=lambda row: row["id"]) == rows
    pattern = lake.curated.url("out/*.parquet")
    with lake.pipeline(manifest=lake.manifest(read=[lake.curated.url("out/")])) as p:
        assert_that(p | "Ours" >> ReadFromBlob(pattern, Parquet()), equal_to(rows), "ours")
        assert_that(p | "Theirs" >> beam.io.ReadFromParquet(pattern), equal_to(rows), "theirs")
