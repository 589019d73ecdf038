"""Text as record batches of one column: another way to the same lines and the same bad records."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.errors import FormatError
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.formats import Lines

PATH = "abfss://raw@lake.dfs.core.windows.net/a"
_pieces = st.sampled_from(
    [b"a", b"\n", b"\r", b"\r\n", b"\xff", b"\xc3", b"\xc3\xa4", b"\xef\xbb\xbf", b"\0", b"\x0b", b""]
)


def read(data: bytes, lines: Lines) -> tuple[list[str], list[BadRecord]]:
    """The lines of all batches."""
    bad: list[BadRecord] = []
    batches = list(lines.decode_batches(Block(path=PATH, offset=7, data=data), bad))
    for batch in batches:
        batch.validate(full=True)
        assert batch.schema == pa.schema([pa.field("line", pa.string(), nullable=False)])
    return [line for batch in batches for line in batch["line"].to_pylist()], bad


@settings(max_examples=500, deadline=None)
@given(st.lists(_pieces, max_size=30).map(b"".join))
def test_batches_hold_the_lines_that_are_read_one_by_one(data: bytes) -> None:
    """In their order, for any bytes; what is no UTF-8 is found with its place."""
    bad: list[BadRecord] = []
    lines = list(Lines().decode_each(Block(path=PATH, offset=7, data=data), bad))
    assert read(data, Lines()) == (lines, bad)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_many_bad_lines_among_many_good_ones_are_found(end: bytes) -> None:
    """In a block longer than what is checked at a time."""
    lines = [b"\xff" if number % 7 == 0 else b"%d \xc3\xa4" % number for number in range(50_000)]
    data = end.join(lines)
    good, bad = read(data, Lines())
    assert good == [f"{number} ä" for number in range(50_000) if number % 7]
    assert len(bad) == 50_000 - len(good)
    assert all(data[record.offset - 7] == 0xFF for record in bad)


def test_a_subclass_with_records_of_its_own_is_read_by_them() -> None:
    """Not by lines."""

    class Semicolons(Lines):
        def records(self, block: bytes) -> Iterator[bytes]:
            return iter(block.split(b";")[:-1])

    (batch,) = Semicolons().decode_batches(Block(path=PATH, offset=0, data=b"x;y;"), [])
    assert batch.to_pylist() == [{"value": "x"}, {"value": "y"}]


def test_a_subclass_of_lines_decodes_its_own_way() -> None:
    """A block at once would pass its `decode` by; its texts are a column `value`."""

    class Shouted(Lines):
        def decode(self, record: bytes, header: bytes) -> str:
            return super().decode(record, header).upper()

        def encode(self, element: str) -> bytes:
            return super().encode(element.lower())

    bad: list[BadRecord] = []
    (batch,) = Shouted().decode_batches(Block(path=PATH, offset=0, data=b"a\nb\n"), bad)
    assert batch.to_pydict() == {"value": ["A", "B"]}
    assert Shouted().encode_batch(batch) == b"a\nb\n"


# Writing


def column(*texts: str | None) -> pa.RecordBatch:
    """A batch of texts."""
    return pa.RecordBatch.from_pydict({"line": pa.array(texts, pa.string())})


@settings(deadline=None)
@given(
    st.lists(st.text(st.sampled_from("aä\r\ufeff\x0b\u2028"), max_size=4), max_size=8).map(
        lambda texts: [text.rstrip("\r").lstrip("\ufeff") for text in texts]
    ),
    st.integers(0, 8),
)
def test_a_batch_is_written_as_its_lines_are(texts: list[str], at: int) -> None:
    """The same bytes, of slices too."""
    batch = column(*texts).slice(min(at, len(texts)))
    assert Lines().encode_batch(batch) == b"".join(map(Lines().encode, batch["line"].to_pylist()))


UNWRITABLE = {
    "a line end": (column("a", "b\nc"), "line end"),
    "a carriage return at the end": (column("a\r"), "line end"),
    "a mark": (column("\ufeffa"), "byte order mark"),
    "a null": (column("a", None), "no str"),
    "two columns": (pa.RecordBatch.from_pydict({"a": ["x"], "b": ["y"]}), "one column of texts"),
    "numbers": (pa.RecordBatch.from_pydict({"a": [1]}), "one column of texts"),
    "no UTF-8": (
        pa.RecordBatch.from_arrays(
            [pa.StringArray.from_buffers(1, pa.array([0, 1], pa.int32()).buffers()[1], pa.py_buffer(b"\xff"))],
            names=["a"],
        ),
        "no value for",
    ),
}


@pytest.mark.parametrize(("batch", "says"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_cannot_be_written_says_why_and_what_to_do(batch: pa.RecordBatch, says: str) -> None:
    """As a single line does."""
    with pytest.raises(FormatError, match=says) as caught:
        Lines().encode_batch(batch)
    assert caught.value.hint
