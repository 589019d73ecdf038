"""Record batches of elements: how formats without a faster way make them, those of users among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest

from beam_entra.errors import FormatError
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.formats import Format, batch_of


class Evaluated(Format):
    """A user's format: a Python literal a line."""

    suffix = ".py"
    content_type = "text/x-python"

    def __init__(self, schema: pa.Schema | None = None) -> None:
        self.schema = schema

    def decode(self, record: bytes, header: bytes) -> Any:
        """Evaluate it."""
        return eval(record, {})  # noqa: S307 - a test's own literals

    def encode(self, element: Any) -> bytes:
        """Print it."""
        return repr(element).encode() + b"\n"


def read(data: bytes, format: Format) -> tuple[list[pa.RecordBatch], list[BadRecord]]:
    """The batches of a block."""
    bad: list[BadRecord] = []
    return list(format.decode_batches(Block(path="p", offset=100, data=data), bad)), bad


@dataclass
class Point:
    """A dataclass."""

    x: int


class Pair(NamedTuple):
    """A named tuple."""

    x: int


@pytest.mark.parametrize("element", [{"x": 1}, Point(1), Pair(1), beam.Row(x=1)], ids=lambda one: type(one).__name__)
def test_elements_of_beams_kinds_are_rows(element: Any) -> None:
    """By the names of their fields."""
    assert batch_of([element]).to_pydict() == {"x": [1]}


@pytest.mark.parametrize("values", [["a", "b"], [1, 2], [0.5, 1.5], [b"x", b"y"]], ids=repr)
def test_plain_values_are_rows_of_one_column(values: list[Any]) -> None:
    """Named `value`."""
    assert batch_of(values).to_pydict() == {"value": values}


def test_a_field_that_the_first_element_does_not_have_is_a_column_too() -> None:
    """In the order in which they come."""
    assert batch_of([{"a": 1}, {"b": 2, "a": None}]).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]


REFUSED: dict[str, tuple[list[Any], pa.DataType | None]] = {
    "a fraction as an integer": ([{"a": 1.5}], pa.int64()),
    "a fraction in a list": ([{"a": [1.5]}], pa.list_(pa.int64())),
    "a fraction in a row": ([{"a": {"b": 1.5}}], pa.struct([("b", pa.int64())])),
    "a truth as a number": ([{"a": True}], pa.float64()),
    "a truth among numbers": ([{"a": 0.5}, {"a": True}], None),
    "a number as a text": ([{"a": 1}], pa.string()),
    "an integer that no double is": ([{"a": (1 << 53) + 1}], pa.float64()),
    "an integer too large": ([{"a": 1 << 64}], None),
    "texts among numbers": ([{"a": 1}, {"a": "x"}], None),
    "a tuple": ([(1, 2)], None),
    "nothing": ([{}], None),
    "None": ([None], None),
}


@pytest.mark.parametrize(("elements", "type_"), REFUSED.values(), ids=REFUSED)
def test_what_a_column_cannot_hold_unchanged_is_refused(elements: list[Any], type_: pa.DataType | None) -> None:
    """Arrow by itself would cut some of it off in silence."""
    with pytest.raises(FormatError) as caught:
        batch_of(elements, None if type_ is None else pa.schema([("a", type_)]))
    assert caught.value.hint


def test_whole_numbers_are_integers_and_doubles_alike() -> None:
    """Nothing is lost."""
    assert batch_of([{"a": 2.0}], pa.schema([("a", pa.int64())])).to_pylist() == [{"a": 2}]
    assert batch_of([{"a": 2}], pa.schema([("a", pa.float64())])).to_pylist() == [{"a": 2.0}]


def test_a_users_format_gives_batches_and_bad_records_with_their_place() -> None:
    """Without a line of its own for it."""
    batches, bad = read(b"{'x':1}\noops(\n{'x':2}\n(1,2)\n{'x':3}\n", Evaluated())
    assert [row for batch in batches for row in batch.to_pylist()] == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert len({batch.schema for batch in batches}) == 1
    assert [(record.offset, record.record) for record in bad] == [(108, b"oops("), (122, b"(1,2)")]
    assert "type tuple make no record batch" in bad[1].reason


def test_a_users_format_may_say_the_types() -> None:
    """Then what does not fit is bad, and the others come in one batch."""
    schema = pa.schema([pa.field("x", pa.int8(), nullable=False)])
    (batch,), bad = read(b"{'x':1}\n{'x':1000}\n{}\n{'x':2,'y':0}\n", Evaluated(schema))
    assert batch.schema == schema
    assert batch.to_pydict() == {"x": [1, 2]}
    assert [record.offset for record in bad] == [108, 119]


def test_a_users_format_writes_the_rows_of_a_batch() -> None:
    """As dicts."""
    assert Evaluated().encode_batch(batch_of([{"x": 1}, {"x": 2}])) == b"{'x': 1}\n{'x': 2}\n"
