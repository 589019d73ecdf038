"""Record batches through real pipelines: coders, batched DoFns, rows with a schema."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints.batch import BatchConverter
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import BatchesToRows, JsonLines, ReadFromBlob
from beam_entra.errors import BeamEntraError, ConfigError, FormatError
from beam_entra.io.batches import RecordBatchCoder, columns_of

from .batched_dofns import Doubled, Sale, Sums
from .conftest import Lake

SALES = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("amount", pa.int64(), nullable=False),
        ("note", pa.string()),
    ]
)
ROWS = [{"key": f"k{number % 3}", "amount": number, "note": None} for number in range(1000)]
FN_API = ["--runner=DirectRunner", "--prism_location=/nonexistent"]
PROCESSES = [*FN_API, "--direct_running_mode=multi_processing", "--direct_num_workers=2"]


def upload(lake: Lake) -> str:
    """Rows in some blobs; gives their pattern."""
    for number in range(4):
        lake.upload_json(f"in/{number}.jsonl", ROWS[number * 250 : (number + 1) * 250])
    return lake.raw.url("in/*.jsonl")


# Through pipelines


@pytest.mark.parametrize("flags", [FN_API, PROCESSES], ids=["one process", "several processes"])
def test_batched_dofns_get_the_batches_as_they_were_read(lake: Lake, flags: list[str]) -> None:
    """Four blobs are four batches, through two batched DoFns, with no row made on the way."""
    pattern = upload(lake)
    with lake.pipeline(*flags) as p:
        batches = p | ReadFromBlob(pattern, JsonLines(schema=SALES), batched=True)
        sums = batches | BatchesToRows(SALES) | beam.ParDo(Doubled()) | beam.ParDo(Sums())
        assert_that(sums, equal_to([(sum(range(at, at + 250)) * 2, 250) for at in range(0, 1000, 250)]))


@pytest.mark.parametrize("flags", [FN_API, PROCESSES], ids=["one process", "several processes"])
def test_transforms_that_know_schemas_work_on_the_rows(lake: Lake, flags: list[str]) -> None:
    """Select and GroupBy by the names of fields."""
    pattern = upload(lake)
    with lake.pipeline(*flags) as p:
        batches = p | ReadFromBlob(pattern, JsonLines(schema=SALES), batched=True)
        rows = batches | BatchesToRows(SALES)
        totals = rows | beam.GroupBy("key").aggregate_field("amount", sum, "total")
        pairs = totals | beam.Map(lambda row: (row.key, row.total))
        assert_that(pairs, equal_to([(f"k{key}", sum(range(key, 1000, 3))) for key in range(3)]))
        selected = rows | beam.Select("amount", twice=lambda row: row.amount * 2) | beam.Map(lambda row: row.twice)
        assert_that(selected, equal_to([number * 2 for number in range(1000)]), label="selected")


def test_rows_may_be_of_a_named_tuple_class(lake: Lake) -> None:
    """Its fields say which columns there are. Where a process has not seen it, Beam makes its own."""
    pattern = upload(lake)
    with lake.pipeline(*PROCESSES) as p:
        rows = p | ReadFromBlob(pattern, JsonLines(schema=SALES), batched=True) | BatchesToRows(Sale)
        kinds = rows | "Kind" >> beam.Map(lambda sale: type(sale).__name__) | "Kinds" >> beam.Distinct()
        assert_that(kinds, equal_to(["Sale"]), label="kinds")
        keys = rows | beam.Reshuffle() | "Key" >> beam.Map(lambda sale: sale.key) | "Keys" >> beam.Distinct()
        assert_that(keys, equal_to(["k0", "k1", "k2"]), label="keys")


def test_rows_become_batches_again_behind_a_shuffle(lake: Lake) -> None:
    """Of single rows Beam makes batches, for who asks for them."""
    pattern = upload(lake)
    with lake.pipeline(*FN_API) as p:
        rows = p | ReadFromBlob(pattern, JsonLines(schema=SALES), batched=True) | BatchesToRows(SALES)
        sums = rows | beam.Reshuffle() | beam.ParDo(Sums())
        assert_that(
            sums | beam.CombineGlobally(lambda sums: sum(one for one, _ in map(_pair, sums))),
            equal_to([sum(range(1000))]),
        )


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, 0)


@pytest.mark.parametrize("flags", [FN_API, PROCESSES], ids=["one process", "several processes"])
def test_batches_go_through_a_group_by_key(lake: Lake, flags: list[str]) -> None:
    """Slices of them too, by their own coder."""
    pattern = upload(lake)

    def parts(batch: pa.RecordBatch) -> Iterable[tuple[int, pa.RecordBatch]]:
        for at in range(0, batch.num_rows, 50):
            yield at % 100, batch.slice(at, 50)

    def total(group: tuple[int, Iterable[pa.RecordBatch]]) -> tuple[int, int]:
        return group[0], sum(pc.sum(batch["amount"]).as_py() for batch in group[1])

    with lake.pipeline(*flags) as p:
        grouped = (
            p
            | ReadFromBlob(pattern, JsonLines(schema=SALES), batched=True)
            | beam.FlatMap(parts).with_output_types(tuple[int, pa.RecordBatch])
            | beam.GroupByKey()
            | beam.Map(total)
        )
        expected = [sum(number for number in range(1000) if number % 250 % 100 // 50 == half) for half in range(2)]
        assert_that(grouped, equal_to([(0, expected[0]), (50, expected[1])]))


def test_a_batched_dofn_right_behind_the_read_is_told_what_is_missing(lake: Lake) -> None:
    """There, a batch is an element."""
    pattern = upload(lake)
    p = lake.pipeline(*FN_API)
    batches = p | ReadFromBlob(pattern, JsonLines(), batched=True)
    with pytest.raises(TypeError) as caught:
        batches | beam.ParDo(Sums())
    assert "put BatchesToRows(schema) before" in str(caught.value.__cause__)


# The coder


_batches = st.lists(
    st.tuples(
        st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        st.none() | st.text(max_size=8),
        st.none() | st.lists(st.none() | st.booleans(), max_size=3),
    ),
    max_size=20,
)


def batch_of_rows(rows: list[tuple[Any, Any, Any]]) -> pa.RecordBatch:
    """A batch with three columns."""
    types = [pa.int64(), pa.string(), pa.list_(pa.bool_())]
    columns = [pa.array([row[number] for row in rows], type_) for number, type_ in enumerate(types)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(zip("abc", types, strict=True), {"k": "v"}))


@given(_batches, st.data())
def test_batches_and_their_slices_come_back_from_the_coder(
    rows: list[tuple[Any, Any, Any]], data: st.DataObject
) -> None:
    """Values, types and metadata."""
    batch = batch_of_rows(rows)
    at = data.draw(st.integers(0, len(rows)))
    for one in (batch, batch.slice(at), batch.slice(0, at)):
        again = RecordBatchCoder().decode(RecordBatchCoder().encode(one))
        again.validate(full=True)
        assert again.equals(one, check_metadata=True)


def test_a_slice_does_not_drag_its_batch_along() -> None:
    """Ten rows of a million are written as ten."""
    batch = pa.RecordBatch.from_pydict({"a": np.arange(1_000_000), "b": ["x" * 20] * 1_000_000})
    assert len(RecordBatchCoder().encode(batch.slice(500_000, 10))) < 2000
    assert RecordBatchCoder().estimate_size(batch.slice(500_000, 10)) < 1000


def test_the_coder_is_found_by_the_type() -> None:
    """Whoever reads batches need not name it."""
    assert isinstance(beam.coders.registry.get_coder(pa.RecordBatch), RecordBatchCoder)
    assert not RecordBatchCoder().is_deterministic()
    assert RecordBatchCoder().to_type_hint() is pa.RecordBatch


# The converter

ALL = pa.schema(
    [
        ("text", pa.string()),
        pa.field("count", pa.int64(), nullable=False),
        ("share", pa.float64()),
        ("flag", pa.bool_()),
        ("raw", pa.binary()),
        ("small", pa.int32()),
        ("at", pa.timestamp("us", "UTC")),
        ("price", pa.decimal128(9, 2)),
        ("tags", pa.list_(pa.string())),
    ]
)
VALUES = {
    "text": ["a", None],
    "count": [1, 2],
    "share": [0.5, None],
    "flag": [True, None],
    "raw": [b"\xff", None],
    "small": [7, None],
    "at": [1_700_000_000_000_000, None],
    "price": [Decimal("1.20"), None],
    "tags": [["x"], None],
}


def test_rows_and_batches_are_the_same_values() -> None:
    """There and back, nulls included."""
    batch = pa.RecordBatch.from_pydict(VALUES, schema=ALL)
    rows_type = BatchesToRows(ALL)._rows
    converter = BatchConverter.from_typehints(element_type=rows_type, batch_type=pa.RecordBatch)
    converter = pickle.loads(pickle.dumps(converter))  # noqa: S301 - our own
    first, second = converter.explode_batch(batch)
    assert (first.text, first.count, first.at, first.price) == ("a", 1, Timestamp(1_700_000_000), Decimal("1.20"))
    assert (second.text, second.at, list(first.tags)) == (None, None, ["x"])
    again = converter.produce_batch([first, second])
    assert again.to_pylist() == batch.to_pylist()
    assert converter.combine_batches([batch, batch]).num_rows == converter.get_length(batch) * 2
    assert converter.estimate_byte_size(batch) == batch.nbytes


def test_fields_that_may_be_null_are_optional() -> None:
    """Beam's schemas tell the two apart."""
    rows_type = BatchesToRows(ALL)._rows
    assert isinstance(rows_type, RowTypeConstraint)
    types = dict(rows_type._fields)
    assert types["count"] is int
    assert types["text"] == str | None


WRONG = {
    "a nested column": lambda: BatchesToRows(pa.schema([("a", pa.struct([("b", pa.int64())]))])),
    "a class without fields": lambda: BatchesToRows(dict),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_has_no_rows_is_refused_at_once(make: Any) -> None:
    """With the next step."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.hint


def test_columns_are_picked_ordered_and_cast() -> None:
    """Others are left out; what cannot be cast without loss says so."""
    batch = pa.RecordBatch.from_pydict({"b": [1.0, 2.0], "a": ["x", "y"], "c": [0, 0]})
    picked = columns_of(batch, [("a", pa.string()), ("b", pa.int64())])
    assert picked.to_pylist() == [{"a": "x", "b": 1}, {"a": "y", "b": 2}]
    with pytest.raises(FormatError, match="no column d"):
        columns_of(batch, [("d", None)])
    with pytest.raises(FormatError, match="the column a of a record batch is string, not int64"):
        columns_of(batch, [("a", pa.int64())])


# Reading


def test_bad_records_are_kept_apart_and_counted_with_batches_too(lake: Lake) -> None:
    """As with single elements: path, offset, reason."""
    lake.raw.upload("in/a.jsonl", b'{"key":"a","amount":1}\noops\n{"key":"b","amount":"x"}\n{"key":"c","amount":3}\n')
    with lake.pipeline(*FN_API) as p:
        read = ReadFromBlob(lake.raw.url("in/a.jsonl"), JsonLines(schema=SALES.remove(2)), batched=True)
        good, bad = p | read.with_exception_handling()
        assert good.element_type is pa.RecordBatch
        assert_that(
            good | beam.FlatMap(pa.RecordBatch.to_pylist) | beam.Map(lambda row: row["key"]), equal_to(["a", "c"])
        )
        assert_that(
            bad | beam.Map(lambda record: (record.offset, record.record[:4])),
            equal_to([(23, b"oops"), (28, b'{"ke')]),
            label="bad",
        )
    counters = {
        counter.key.metric.name: counter.committed
        for counter in p.result.metrics().query()["counters"]
        if counter.key.metric.namespace == "beam_entra"
    }
    assert (counters["records_read"], counters["records_bad"]) == (2, 2)


def test_without_exception_handling_the_first_bad_record_fails_the_job(lake: Lake) -> None:
    """The first in the blob, whichever was found first."""
    lake.raw.upload("in/a.jsonl", b'{"amount":"x"}\n{"amount":1}\noops\n')
    with pytest.raises((BeamEntraError, RuntimeError), match="the record at byte 0"), lake.pipeline(*FN_API) as p:
        p | ReadFromBlob(lake.raw.url("in/a.jsonl"), JsonLines(schema=SALES.remove(2).remove(0)), batched=True)
