"""Avro: each container block is read once however a blob is cut, and what is written others read."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import apache_beam as beam
import fastavro
import pyarrow as pa
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra import Avro, ReadFromBlob, WriteToBlob
from beam_entra.errors import ConfigError, FormatError
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.read import _Claims

PATH = "abfss://raw@lake.dfs.core.windows.net/a.avro"
CODECS = ["null", "deflate", "snappy", "bzip2", "xz"]  # zstandard: fastavro needs another library for it than we
SCHEMA = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": "id", "type": "long"}, {"name": "name", "type": ["null", "string"]}],
}
SYNC = bytes(range(16))


class InMemory:
    """A blob in memory, which remembers the ranges that were asked for."""

    path = PATH

    def __init__(self, data: bytes, *, piece_bytes: int = 1 << 20, max_record_bytes: int = 1 << 20) -> None:
        self.data, self.piece_bytes = data, piece_bytes
        self.size_bytes, self.max_record_bytes = len(data), max_record_bytes
        self.asked: list[tuple[int, int]] = []

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        """Pieces of a range."""
        step = self.piece_bytes
        return self.ranges([(at, min(at + step, stop)) for at in range(start, stop, step)])

    def ranges(self, wanted: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """Ranges."""
        for start, stop in wanted:
            assert 0 <= start < stop <= len(self.data)
            self.asked.append((start, stop))
            yield self.data[start:stop]


def file_of(records: Sequence[Any], schema: Any = SCHEMA, *, codec: str = "null", container_bytes: int = 100) -> bytes:
    """A file as fastavro writes it."""
    file = io.BytesIO()
    fastavro.writer(file, schema, records, codec=codec, sync_interval=container_bytes, sync_marker=SYNC)
    return file.getvalue()


def read_range(data: bytes, tracker: OffsetRestrictionTracker, *, piece_bytes: int = 1 << 20) -> Iterator[Block]:
    """What the splittable read does with one restriction, to its end."""
    claims, restriction = _Claims(tracker), tracker.current_restriction()
    source = InMemory(data, piece_bytes=piece_bytes)
    yield from Avro().split(source, restriction.start, restriction.stop, claims)
    claims.finish()


def whole(data: bytes, *, piece_bytes: int = 1 << 20, limit: int = 1 << 20) -> list[Block]:
    """A blob that is read as a whole."""
    return list(
        Avro().stream(PATH, InMemory(data, piece_bytes=piece_bytes).stream(0, len(data)), max_record_bytes=limit)
    )


def elements_of(blocks: Sequence[Block], avro: Avro | None = None) -> tuple[list[Any], list[BadRecord]]:
    """Good and bad records; where all are good, both ways to decode agree."""
    found: list[Any] = []
    bad: list[BadRecord] = []
    avro = avro or Avro()
    for block in blocks:
        before = len(bad)
        elements = list(avro.decode_each(block, bad))
        at_once = avro.decode_all(block)
        assert at_once == (elements if len(bad) == before else None)
        found += elements
    return found, bad


def written(format: Avro, elements: Sequence[Any], *, rows: int = 3) -> bytes:
    """A file as we write it, some rows to a container block."""
    blocks = (elements[at : at + rows] for at in range(0, len(elements), rows))
    return format.header() + b"".join(format.frame(b"".join(map(format.encode, some)), len(some)) for some in blocks)


# Splits

_records = st.lists(
    st.fixed_dictionaries({"id": st.integers(-(1 << 63), (1 << 63) - 1), "name": st.none() | st.text(max_size=40)}),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    records=_records,
    codec=st.sampled_from(CODECS),
    container_bytes=st.integers(1, 300),
    piece_bytes=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 2000), max_size=6),
)
def test_any_partition_of_a_blob_gives_each_record_once(
    records: list[Any], codec: str, container_bytes: int, piece_bytes: int, cuts: list[int]
) -> None:
    """The ranges of any partition together read what fastavro reads of the whole, in order."""
    data = file_of(records, codec=codec, container_bytes=container_bytes)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = []
    for start, stop in itertools.pairwise(bounds):
        tracker = OffsetRestrictionTracker(OffsetRange(start, stop))
        blocks = list(read_range(data, tracker, piece_bytes=piece_bytes))
        for block in blocks:
            assert block.offset in range(start, stop)
            assert data[block.offset :].startswith(block.data)
        found += elements_of(blocks)[0]
        tracker.check_done()
    assert found == list(fastavro.reader(io.BytesIO(data)))


@settings(max_examples=150, deadline=None)
@given(records=_records, piece_bytes=st.integers(1, 200), source=st.data())
def test_splits_while_reading_lose_and_repeat_nothing(
    records: list[Any], piece_bytes: int, source: st.DataObject
) -> None:
    """A runner may split before any claim; primary and residuals read each record once."""
    data = file_of(records, container_bytes=60)
    waiting, found, splits = [OffsetRange(0, len(data))], [], 0
    while waiting:
        tracker = OffsetRestrictionTracker(waiting.pop())
        reader = read_range(data, tracker, piece_bytes=piece_bytes)
        while True:
            if splits < 12 and source.draw(st.booleans(), label="split?"):
                split = tracker.try_split(source.draw(st.sampled_from([0, 0.1, 0.5, 0.9]), label="of the rest"))
                if split is not None:
                    splits += 1
                    waiting.append(split[1])
            block = next(reader, None)
            if block is None:
                break
            found += [(block.offset, element) for element in elements_of([block])[0]]
        tracker.check_done()
    assert [element for _, element in sorted(found, key=lambda pair: pair[0])] == records


def test_every_cut_of_a_file_gives_each_record_once() -> None:
    """Also those through a marker, at its first byte and at its last, and through the header."""
    records = [{"id": number, "name": None} for number in range(8)]
    data = file_of(records, container_bytes=1)
    for cut in range(1, len(data)):
        ranges = (OffsetRestrictionTracker(OffsetRange(*bounds)) for bounds in ((0, cut), (cut, len(data))))
        assert elements_of([block for tracker in ranges for block in read_range(data, tracker)])[0] == records


def test_a_range_is_read_no_further_than_its_last_container_block() -> None:
    """Neither a range without container blocks nor one that ends with one asks for what is behind it."""
    records = [{"id": number, "name": "x" * 300} for number in range(1000)]
    data = file_of(records, container_bytes=30_000)
    second = data.index(SYNC, data.index(SYNC) + 1) + 16
    for start, stop in ((second + 1, second + 1000), (0, second)):
        source = InMemory(data)
        list(Avro().split(source, start, stop, _Claims(OffsetRestrictionTracker(OffsetRange(start, stop)))))
        assert max(end for begin, end in source.asked if begin) <= stop


@settings(deadline=None)
@given(records=_records, codec=st.sampled_from(CODECS), piece_bytes=st.integers(1, 2000))
def test_a_blob_that_is_read_as_a_whole_is_read_as_fastavro_reads_it(
    records: list[Any], codec: str, piece_bytes: int
) -> None:
    """In pieces of any size, at the offsets at which the container blocks are."""
    data = file_of(records, codec=codec)
    blocks = whole(data, piece_bytes=piece_bytes)
    assert elements_of(blocks)[0] == list(fastavro.reader(io.BytesIO(data)))
    assert all(data[block.offset :].startswith(block.data) for block in blocks)


def test_a_block_is_a_piece_not_a_container_block() -> None:
    """Many small container blocks are handed on, and claimed, together."""
    data = file_of([{"id": number, "name": None} for number in range(500)], container_bytes=1)
    assert len(list(read_range(data, OffsetRestrictionTracker(OffsetRange(0, len(data)))))) == 1


# What is wrong with a blob


def test_a_corrupt_container_block_is_one_bad_record_and_costs_no_other() -> None:
    """Whatever in it is broken: its data, its count, its length; and the others of the same block are read."""
    records = [{"id": number, "name": "n" * 20} for number in range(30)]
    data = file_of(records, codec="deflate", container_bytes=100)
    marks = [at + 16 for at in range(len(data)) if data.startswith(SYNC, at)]
    begin, end = marks[1], marks[2]
    (lost,) = [list(fastavro.reader(io.BytesIO(data[: marks[0]] + data[begin:end])))]
    for at, what in ((begin, b"\x7f"), (begin, b"\x02"), (begin + 1, b"\x7f"), (begin + 5, b"\xff\xff\xff")):
        broken = data[:at] + what + data[at + len(what) :]
        good, bad = elements_of(whole(broken))
        assert [(record.path, record.offset, record.record) for record in bad] == [(PATH, begin, broken[begin:end])]
        assert bad[0].reason
        assert good == [record for record in records if record not in lost]


def test_a_blob_that_ends_too_early_has_a_bad_record_at_its_end() -> None:
    """Wherever it was cut off behind the header, and in each way to read it."""
    records = [{"id": number, "name": "n" * 20} for number in range(8)]
    data = file_of(records)
    last = data.rindex(SYNC, 0, len(data) - 16) + 16
    for length in range(last + 1, len(data)):
        tracker = OffsetRestrictionTracker(OffsetRange(0, length))
        for blocks in (whole(data[:length]), list(read_range(data[:length], tracker))):
            good, bad = elements_of(blocks)
            assert [record.offset for record in bad] == [last]
            assert good == records[: len(good)]


@pytest.mark.parametrize(
    "data",
    [b"{}\n" * 20, b"Obj", b"Obj\x01", b"Obj\x02" + b"x" * 50, file_of([])[:-1], b"Obj\x01\x02\x02a\x02b\x00" + SYNC],
)
def test_a_blob_that_is_no_avro_file_is_named(data: bytes) -> None:
    """Another format, another version, an unfinished header, a header without a schema."""
    source = InMemory(data)
    with pytest.raises(FormatError, match=f"{PATH} is no Avro file") as raised:
        list(Avro().split(source, 0, len(data), _Claims(OffsetRestrictionTracker(OffsetRange(0, len(data))))))
    assert raised.value.hint
    with pytest.raises(FormatError, match="is no Avro file"):
        whole(data, piece_bytes=5)


def test_an_empty_blob_has_no_records() -> None:
    """As one of lines has none; folders are such blobs in some accounts."""
    assert whole(b"") == []


def test_a_codec_that_we_do_not_know_is_named() -> None:
    """The error says which there are."""
    data = file_of([{"id": 1, "name": None}]).replace(b"\x08null", b"\x08lz44")
    with pytest.raises(FormatError, match="no Avro codec 'lz44'") as raised:
        whole(data)
    assert "deflate" in raised.value.hint


def test_a_container_block_without_an_end_in_sight_fails_the_read() -> None:
    """Rather than fill the memory; so does a header that goes on and on."""
    data = file_of([{"id": 1, "name": "x" * 5000}])
    tracker = OffsetRestrictionTracker(OffsetRange(0, len(data)))
    source = InMemory(data, piece_bytes=500, max_record_bytes=2000)
    with pytest.raises(FormatError, match="longer than 2000 bytes"):
        list(Avro().split(source, 0, len(data), _Claims(tracker)))
    with pytest.raises(FormatError, match="longer than 2000 bytes"):
        whole(data, piece_bytes=500, limit=2000)
    long_header = file_of([], {**SCHEMA, "doc": "x" * 100_000})
    source = InMemory(long_header, max_record_bytes=20_000)
    with pytest.raises(FormatError, match="longer than 20000 bytes"):
        list(Avro().split(source, 0, len(long_header), _Claims(tracker)))


def test_a_long_header_is_read_in_full() -> None:
    """Schemas of hundreds of kilobytes exist."""
    schema = {**SCHEMA, "doc": "x" * 300_000}
    data = file_of([{"id": 1, "name": None}], schema)
    assert elements_of(list(read_range(data, OffsetRestrictionTracker(OffsetRange(0, len(data))))))[0] == [
        {"id": 1, "name": None}
    ]


def test_a_reader_schema_resolves() -> None:
    """A field that is left out, one with another type, one with a default; in elements and in batches."""
    reader = {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "id", "type": "double"}, {"name": "more", "type": "string", "default": "d"}],
    }
    avro = Avro(reader_schema=reader)
    blocks = whole(file_of([{"id": 7, "name": "x"}]))
    assert elements_of(blocks, avro)[0] == [{"id": 7.0, "more": "d"}]
    (batch,) = avro.decode_batches(blocks[0], [])
    assert batch.schema == pa.schema([pa.field("id", pa.float64(), False), pa.field("more", pa.string(), False)])


# Types

EVERYTHING = {
    "type": "record",
    "name": "ns.Everything",
    "fields": [
        {"name": "b", "type": "boolean"},
        {"name": "i", "type": "int"},
        {"name": "f", "type": "float"},
        {"name": "d", "type": ["double", "null"]},
        {"name": "raw", "type": "bytes"},
        {"name": "four", "type": {"type": "fixed", "name": "Four", "size": 4}},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}},
        {"name": "again", "type": ["null", "Colour"]},
        {"name": "list", "type": {"type": "array", "items": ["null", "long"]}},
        {"name": "map", "type": {"type": "map", "values": "string"}},
        {
            "name": "inner",
            "type": ["null", {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "int"}]}],
        },
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "at_ms", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
        {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-micros"}},
        {"name": "clock", "type": {"type": "long", "logicalType": "time-micros"}},
        {"name": "clock_ms", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {
            "name": "huge",
            "type": {"type": "fixed", "name": "Huge", "size": 20, "logicalType": "decimal", "precision": 45},
        },
        {"name": "key", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "keys", "type": {"type": "array", "items": {"type": "string", "logicalType": "uuid"}}},
        {"name": "nothing", "type": "null"},
    ],
}
ROW = {
    "b": True,
    "i": -5,
    "f": 0.5,
    "d": None,
    "raw": b"\x00\xff",
    "four": b"abcd",
    "colour": "BLUE",
    "again": "RED",
    "list": [1, None, 3],
    "map": {"k": "v"},
    "inner": {"x": 3},
    "day": date(2024, 2, 29),
    "at": datetime(2024, 2, 29, 1, 2, 3, 456789, UTC),
    "at_ms": datetime(2024, 2, 29, 1, 2, 3, 456000, UTC),
    "local": datetime(2024, 2, 29, 1, 2, 3, 456789),  # noqa: DTZ001 - that is what it is
    "clock": time(1, 2, 3, 456789),
    "clock_ms": time(1, 2, 3, 456000),
    "price": Decimal("12.34"),
    "huge": Decimal(10) ** 44,
    "key": UUID(int=7),
    "keys": [UUID(int=8)],
    "nothing": None,
}


def test_batches_have_the_types_of_the_avro_schema() -> None:
    """Every type of Avro has its Arrow type, and its values come through."""
    (block,) = whole(file_of([ROW, {**ROW, "inner": None, "again": None}], EVERYTHING))
    (batch,) = Avro().decode_batches(block, [])
    assert dict(zip(batch.schema.names, map(str, batch.schema.types), strict=True)) == {
        "b": "bool",
        "i": "int32",
        "f": "float",
        "d": "double",
        "raw": "binary",
        "four": "fixed_size_binary[4]",
        "colour": "string",
        "again": "string",
        "list": "list<item: int64>",
        "map": "map<string, string>",
        "inner": "struct<x: int32 not null>",
        "day": "date32[day]",
        "at": "timestamp[us, tz=UTC]",
        "at_ms": "timestamp[ms, tz=UTC]",
        "local": "timestamp[us]",
        "clock": "time64[us]",
        "clock_ms": "time32[ms]",
        "price": "decimal128(9, 2)",
        "huge": "decimal256(45, 0)",
        "key": "string",
        "keys": "list<item: string not null>",
        "nothing": "null",
    }
    assert [field.name for field in batch.schema if field.nullable] == ["d", "again", "inner", "at_ms", "nothing"]
    first, second = batch.to_pylist(maps_as_pydicts="strict")
    assert first == {**ROW, "key": str(UUID(int=7)), "keys": [str(UUID(int=8))]}
    assert (second["inner"], second["again"]) == (None, None)


def test_batches_are_written_as_their_rows_are() -> None:
    """What was read as batches can be written to the same schema, and is the same."""
    (block,) = whole(file_of([ROW] * 3, EVERYTHING))
    (batch,) = Avro().decode_batches(block, [])
    avro = Avro(EVERYTHING)
    assert avro.encode_batch(batch) == avro.encode(ROW) * 3


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        (["int", "string"], "field of an Avro schema may be of several types"),
        ({"type": "array", "items": ["int", "string"]}, r"field\[\] of an Avro schema may be of several types"),
        (["null", "R"], "type, R, that holds itself"),
    ],
)
def test_what_no_column_can_hold_says_so_and_is_read_as_elements(field: Any, problem: str) -> None:
    """Unions of several types and records within themselves have no Arrow type."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "field", "type": field}]}
    value = {"array": [1, "x"]}.get(field["type"] if isinstance(field, dict) else "", None if "null" in field else 1)
    (block,) = whole(file_of([{"field": value}], schema))
    assert elements_of([block])[0] == [{"field": value}]
    with pytest.raises(FormatError, match=problem) as raised:
        list(Avro().decode_batches(block, []))
    assert "elements" in raised.value.hint


def test_records_that_are_no_records() -> None:
    """A file may hold any type: in batches it is one column."""
    (block,) = whole(file_of([1, None, 3], ["null", "long"]))
    assert elements_of([block])[0] == [1, None, 3]
    (batch,) = Avro().decode_batches(block, [])
    assert batch.to_pydict() == {"value": [1, None, 3]}


def test_a_corrupt_container_block_is_left_out_of_batches() -> None:
    """The batch has the rows of the others."""
    records = [{"id": number, "name": "n" * 20} for number in range(9)]
    data = bytearray(file_of(records, container_bytes=90))
    data[data.index(SYNC) + 17] ^= 0x7F
    bad: list[BadRecord] = []
    (batch,) = Avro().decode_batches(whole(bytes(data))[0], bad)
    assert len(bad) == 1
    assert 0 < batch.num_rows < 9
    assert batch.to_pylist() == records[-batch.num_rows :]


# Writing


@settings(max_examples=100, deadline=None)
@given(records=_records, codec=st.sampled_from(CODECS), rows=st.integers(1, 9))
def test_what_we_write_fastavro_reads(records: list[Any], codec: str, rows: int) -> None:
    """Container blocks of several bundles, each with its own pickled copy of the format."""
    avro = Avro(SCHEMA, codec=codec)
    parts = [pickle.loads(pickle.dumps(avro)) for _ in range(2)]  # noqa: S301 - as Beam does
    data = avro.header()
    for number, at in enumerate(range(0, len(records), rows)):
        some = records[at : at + rows]
        data += parts[number % 2].frame(b"".join(map(parts[number % 2].encode, some)), len(some))
    assert list(fastavro.reader(io.BytesIO(data))) == records
    assert elements_of(whole(data))[0] == records


def test_checksums_of_snappy_are_verified() -> None:
    """A literal byte that was changed decompresses without complaint."""
    data = bytearray(file_of([{"id": 1, "name": "abcdefghijk"}], codec="snappy"))
    data[data.index(b"abcdefghijk")] ^= 1
    good, (bad,) = elements_of(whole(bytes(data)))
    assert good == []
    assert "checksum" in bad.reason


def test_zstandard_comes_back() -> None:
    """Fastavro needs another library for it; we read what we write."""
    records = [{"id": number, "name": "x" * 50} for number in range(100)]
    data = written(Avro(SCHEMA, codec="zstandard"), records, rows=50)
    assert len(data) < 1500
    assert elements_of(whole(data))[0] == records


def test_nothing_makes_no_container_block() -> None:
    """A frame without rows is none."""
    assert Avro(SCHEMA).frame(b"", 0) == b""


def test_every_type_comes_back() -> None:
    """Also with the schema given as JSON."""
    assert elements_of(whole(written(Avro(json.dumps(EVERYTHING)), [ROW])))[0] == [ROW]


@dataclasses.dataclass
class Inner:
    """A dataclass."""

    x: int


class Order(NamedTuple):
    """A named tuple with a row in it."""

    inner: Any
    more: list[Any]


def test_rows_of_any_kind_are_written() -> None:
    """Dicts, named tuples, dataclasses and `beam.Row`, within one another too."""
    inner = {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "int"}]}
    schema = {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "inner", "type": inner}, {"name": "more", "type": {"type": "array", "items": "Inner"}}],
    }
    elements = [
        {"inner": {"x": 1}, "more": [{"x": 2}]},
        Order(Inner(1), [beam.Row(x=2)]),
        beam.Row(inner=beam.Row(x=1), more=(Inner(2),)),
    ]
    assert elements_of(whole(written(Avro(schema), elements)))[0] == [elements[0]] * 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"i": 1.5}, r"Everything\.i, of type float"),
        ({"i": 1 << 31}, r"Everything\.i, of type int, is not of Avro's int"),
        ({"i": True}, r"Everything\.i"),
        ({"b": 1}, r"Everything\.b"),
        ({"f": "0.5"}, r"Everything\.f"),
        ({"raw": "text"}, r"Everything\.raw"),
        ({"four": b"abc"}, r"Everything\.four"),
        ({"colour": "GREEN"}, r"Everything\.colour"),
        ({"list": "abc"}, r"Everything\.list"),
        ({"list": [1.5]}, r"Everything\.list"),
        ({"map": {"k": 1}}, r"Everything\.map"),
        ({"inner": {"x": 2.5}}, r"Everything\.inner"),
        ({"inner": {"x": 1, "y": 2}}, "more fields than the schema specifies: y"),
        ({"at": datetime(2024, 1, 1)}, r"Everything\.at has no time zone"),  # noqa: DTZ001 - that is what is wrong
        ({"at": 1.5}, r"Everything\.at"),
        ({"day": 1.5}, r"Everything\.day"),
        ({"price": Decimal("1.234")}, "Scale"),
        ({"nothing": 1}, r"Everything\.nothing"),
        ({"unknown": 1}, "more fields than the schema specifies: unknown"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_by_name(change: dict[str, Any], problem: str) -> None:
    """Nothing is written that would be read back as something else; the value itself is not in the error."""
    with pytest.raises(FormatError, match=problem) as raised:
        Avro(EVERYTHING).encode({**ROW, **change})
    assert "GREEN" not in raised.value.message
    assert raised.value.hint


def test_what_is_missing_is_refused_unless_it_has_a_default() -> None:
    """A field without a default has to be there."""
    fields = [{"name": "a", "type": "int"}, {"name": "b", "type": "int", "default": 5}]
    avro = Avro({"type": "record", "name": "R", "fields": fields})
    assert elements_of(whole(written(avro, [{"a": 1}])))[0] == [{"a": 1, "b": 5}]
    with pytest.raises(FormatError, match=r"R\.a"):
        avro.encode({"b": 1})
    with pytest.raises(FormatError, match="of type str"):
        avro.encode("text")


@pytest.mark.parametrize(
    "schema", ["{", "nonsense", {"type": "record"}, {"type": "enum", "name": "E"}, 5, {}, ["null", "nonsense"]]
)
def test_what_is_no_schema_is_refused_at_once(schema: Any) -> None:
    """Before the pipeline runs; for reading too."""
    for arguments in ({"schema": schema}, {"reader_schema": schema}):
        with pytest.raises(ConfigError, match="no Avro schema"):
            Avro(**arguments)


def test_a_format_for_reading_alone_does_not_write() -> None:
    """It has no schema; and there are codecs that nobody has."""
    for write in (Avro().header, lambda: Avro().encode({})):
        with pytest.raises(ConfigError, match="schema"):
            write()
    with pytest.raises(ConfigError, match="codec 'gzip'"):
        Avro(codec="gzip")


# Over the wire


def upload(lake: Any, name: str, records: Sequence[Any], **changes: Any) -> bytes:
    """Put a file as fastavro writes it into `raw`."""
    data = file_of(records, **changes)
    lake.raw.upload(name, data)
    return data


def records_of(seed: int, count: int) -> list[dict[str, Any]]:
    """Records that compress badly."""
    draw = random.Random(seed)  # noqa: S311 - sample data
    return [{"id": draw.randrange(1 << 60), "name": draw.randbytes(12).hex()} for _ in range(count)]


def in_order(batches: Sequence[pa.RecordBatch]) -> list[dict[str, Any]]:
    """The rows of batches, by id."""
    return sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["id"])


def check_rows(expected: list[dict[str, Any]]) -> Callable[[list[pa.RecordBatch]], None]:
    """Raises unless the batches hold these rows."""

    def check(batches: list[pa.RecordBatch]) -> None:
        assert in_order(batches) == sorted(expected, key=lambda row: row["id"])

    return check


def test_small_and_large_blobs_are_read_over_the_wire(lake: Any) -> None:
    """In packs and in splits, as elements and as batches; Beam's own ReadFromAvro reads the same."""
    large, small = records_of(1, 20_000), records_of(2, 50)
    assert len(upload(lake, "in/large.avro", large, codec="deflate", container_bytes=8000)) > 400_000
    upload(lake, "in/small.avro", small)
    read = ReadFromBlob(lake.raw.url("in/*.avro"), Avro(), block_bytes=4096)
    with lake.pipeline() as p:
        assert_that(p | "Elements" >> read, equal_to(large + small), "elements")
        batches = p | "Batches" >> ReadFromBlob(lake.raw.url("in/*.avro"), Avro(), block_bytes=50_000, batched=True)
        assert_that(batches, check_rows(large + small), "batches")
        theirs = p | "Theirs" >> beam.io.ReadFromAvro(lake.raw.url("in/*.avro"))
        assert_that(theirs, equal_to(large + small), "theirs")


def test_rows_and_batches_are_written_over_the_wire(lake: Any) -> None:
    """By several bundles to one blob; fastavro, Beam's own ReadFromAvro and we read what was written."""
    rows = [{"id": number, "name": f"n{number}"} for number in range(2000)]
    columns = pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())])
    batches = [pa.RecordBatch.from_pylist(rows[at : at + 500], columns) for at in range(1000, 2000, 500)]
    with lake.pipeline() as p:
        elements = p | beam.Create([*rows[:1000], *batches])
        elements | WriteToBlob(lake.curated.url("out/"), Avro(SCHEMA), shards=2)
    files = [io.BytesIO(lake.curated.download(name)) for name in lake.parts()]
    assert sorted((row for file in files for row in fastavro.reader(file)), key=lambda row: row["id"]) == rows
    pattern = lake.curated.url("out/*.avro")
    with lake.pipeline(manifest=lake.manifest(read=[lake.curated.url("out/")])) as p:
        assert_that(p | "Ours" >> ReadFromBlob(pattern, Avro()), equal_to(rows), "ours")
        assert_that(p | "Theirs" >> beam.io.ReadFromAvro(pattern), equal_to(rows), "theirs")


def test_a_corrupt_container_block_goes_to_the_dead_letters(lake: Any) -> None:
    """With its blob and offset."""
    data = bytearray(upload(lake, "in/a.avro", records_of(3, 500), container_bytes=1000))
    at = data.index(SYNC) + 16
    data[at + 2] ^= 0xFF
    data[at + 1] ^= 0xFF
    lake.raw.upload("in/b.avro", bytes(data))
    with lake.pipeline() as p:
        good, bad = p | ReadFromBlob(lake.raw.url("in/b.avro"), Avro()).with_exception_handling()
        assert_that(bad | beam.Map(lambda record: record.offset), equal_to([at]), "bad")
        assert_that(good | beam.combiners.Count.Globally(), lambda counts: _between(counts[0], 400, 499), "good")


def _between(count: int, least: int, most: int) -> None:
    assert least <= count <= most
