"""Elements to records and back: what is written is what is read, and what cannot be written says why."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.errors import ConfigError, FormatError
from beam_entra.io.blocks import BadRecord, Block, stream_blocks, strip_line_end
from beam_entra.io.formats import Csv, Format, JsonLines, Lines

PATH = "abfss://raw@lake.dfs.core.windows.net/a"


def block_of(data: bytes) -> Block:
    """A block with these records."""
    return Block(path=PATH, offset=0, data=data)


def read_back(data: bytes, format: Format, *, piece: int = 64) -> tuple[list[Any], list[BadRecord]]:
    """Elements and bad records of a blob that holds `data`."""
    pieces = (data[at : at + piece] for at in range(0, len(data), piece))
    bad: list[BadRecord] = []
    good = [
        element
        for block in stream_blocks(PATH, pieces, format, max_record_bytes=1 << 30)
        for element in format.decode_each(block, bad)
    ]
    return good, bad


def written(elements: list[Any], format: Format) -> bytes:
    """The bytes of a blob with these elements."""
    return format.header() + b"".join(format.encode(element) for element in elements)


# Round trips

_text = st.text()  # any code point but surrogates
_line = st.text(st.characters(exclude_characters="\n", codec="utf-8")).filter(
    lambda text: not text.endswith("\r") and not text.startswith("\ufeff")
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(_line, max_size=10))
def test_lines_come_back_as_they_were(lines: list[str]) -> None:
    """Any text without a line end is a line, the empty one too."""
    assert read_back(written(lines, Lines()), Lines()) == (lines, [])


@given(st.lists(_json, max_size=6))
def test_json_values_come_back_as_they_were(values: list[Any]) -> None:
    """Any JSON value is a record, whatever is in its strings, halves of surrogate pairs included."""
    assert read_back(written(values, JsonLines()), JsonLines()) == (values, [])


def test_a_half_surrogate_pair_that_was_read_can_be_written() -> None:
    r"""JSON may say "\ud800"; what was read must not fail the write at the other end of the pipeline."""
    elements, _ = read_back(b'{"a":"\\ud800"}\n', JsonLines())
    assert elements == [{"a": "\ud800"}]
    assert JsonLines().encode(elements[0]) == b'{"a":"\\ud800"}\n'


@given(
    rows=st.lists(st.tuples(_text, _text), max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    header=st.booleans(),
    piece=st.integers(1, 50),
)
def test_csv_rows_come_back_as_they_were(
    rows: list[tuple[str, str]], delimiter: str, header: bool, piece: int
) -> None:
    """Quotes, separators, line ends and unicode in fields survive, however the blob is cut."""
    csv_format = Csv(["a", "b, c"], delimiter=delimiter, header=header)
    rows = [(first.removeprefix("\ufeff"), second) for first, second in rows]
    elements = [{"a": first, "b, c": second} for first, second in rows]
    assert read_back(written(elements, csv_format), csv_format, piece=piece) == (elements, [])


@given(st.lists(st.text(), max_size=8))
def test_one_column_of_empty_fields_is_not_lost(values: list[str]) -> None:
    """A row that is one empty field is a row; an empty line is none."""
    csv_format = Csv(["only"])
    elements = [{"only": value} for value in values]
    assert read_back(written(elements, csv_format), csv_format) == (elements, [])


@given(st.lists(st.lists(_text, min_size=3, max_size=3), max_size=5))
def test_csv_reads_what_the_csv_module_writes(rows: list[list[str]]) -> None:
    """Files of other programs that keep to RFC 4180 are read as the csv module reads them."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *rows])
    expected = [dict(zip("abc", row, strict=True)) for row in rows]
    assert read_back(text.getvalue().encode(), Csv()) == (expected, [])


def test_a_field_longer_than_the_csv_modules_limit_is_read() -> None:
    """The csv module's limit of 128 KiB a field is not ours: what `Csv` writes it reads."""
    element = {"a": 'long, "quoted" ' + "x" * 300_000}
    assert read_back(written([element], Csv(["a"])), Csv(), piece=1 << 20) == ([element], [])


# Elements


@dataclass
class Order:
    """A dataclass."""

    id: int
    name: str


class Row(NamedTuple):
    """A named tuple."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Nested:
    """A dataclass with a dataclass in it."""

    order: Order


ELEMENTS: dict[str, tuple[Any, Any]] = {
    "dict": ({"id": 1, "name": "a"}, {"id": 1, "name": "a"}),
    "dataclass": (Order(1, "a"), {"id": 1, "name": "a"}),
    "named tuple": (Row(1, "a"), {"id": 1, "name": "a"}),
    "Beam row": (beam.Row(id=1, name="a"), {"id": 1, "name": "a"}),
    "nested dataclass": (Nested(Order(1, "a")), {"order": {"id": 1, "name": "a"}}),
    "row in a dict": ({"row": beam.Row(id=1)}, {"row": {"id": 1}}),
    "Decimal": ({"price": Decimal("19.90")}, {"price": "19.90"}),
    "date": ({"on": date(2024, 2, 29)}, {"on": "2024-02-29"}),
    "datetime": ({"at": datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC)}, {"at": "2024-02-29T01:02:03+00:00"}),
    "list": ([1, "a", None], [1, "a", None]),
    "str": ("a\nb", "a\nb"),
    "bad record": (
        BadRecord(path=PATH, offset=7, reason="why", record=b"\xffx"),
        {"source": PATH, "offset": 7, "reason": "why", "record": "\\xffx"},
    ),
}


@pytest.mark.parametrize(("element", "value"), ELEMENTS.values(), ids=ELEMENTS)
def test_elements_of_beams_kinds_are_written_as_json(element: Any, value: Any) -> None:
    """What pipelines pass around needs no mapping before it is written."""
    record = JsonLines().encode(element)
    assert record.endswith(b"\n")
    assert record.count(b"\n") == 1
    assert json.loads(record) == value


@pytest.mark.parametrize("name", ["dict", "dataclass", "named tuple", "Beam row"])
def test_elements_of_beams_kinds_are_written_as_csv(name: str) -> None:
    """The columns are found by name; their order is the format's."""
    assert Csv(["name", "id"]).encode(ELEMENTS[name][0]) == b"a,1\r\n"


def test_csv_takes_sequences_and_values_with_a_text() -> None:
    """A sequence is a row in the order of the columns; None is an empty field."""
    values = [1, None, 2.5, Decimal("0.10"), date(2024, 1, 2), True, "x"]
    csv_format = Csv([f"c{number}" for number in range(len(values))])
    assert csv_format.encode(values) == b"1,,2.5,0.10,2024-01-02,True,x\r\n"


@dataclass(frozen=True, kw_only=True)
class Unwritable:
    """An element that a format must refuse, and what the error must say."""

    name: str
    format: Format
    element: Any
    says: str


_circular: list[Any] = []
_circular.append(_circular)
UNWRITABLE = [
    Unwritable(name="a line end in a line", format=Lines(), element="a\nb", says="line end"),
    Unwritable(name="a carriage return at a line's end", format=Lines(), element="a\r", says="line end"),
    Unwritable(name="bytes as a line", format=Lines(), element=b"a", says="type bytes is no str"),
    Unwritable(name="half a surrogate pair", format=Lines(), element="\ud800", says="surrogate"),
    Unwritable(name="a line that begins with a mark", format=Lines(), element="\ufeffa", says="byte order mark"),
    Unwritable(name="not a number", format=JsonLines(), element={"a": math.nan}, says="JSON"),
    Unwritable(name="bytes in JSON", format=JsonLines(), element={"a": b"x"}, says="a bytes has no JSON form"),
    Unwritable(name="a set", format=JsonLines(), element={1, 2}, says="a set has no JSON form"),
    Unwritable(name="a key that is no text", format=JsonLines(), element={(1, 2): 3}, says="keys must be"),
    Unwritable(name="a circle", format=JsonLines(), element=_circular, says="ircular"),
    Unwritable(name="a column missing", format=Csv(["a", "b"]), element={"a": 1}, says="other columns"),
    Unwritable(name="a column too many", format=Csv(["a"]), element={"a": 1, "b": 2}, says="other columns"),
    Unwritable(name="a sequence too short", format=Csv(["a", "b"]), element=[1], says="is no row"),
    Unwritable(name="text for a row", format=Csv(["a", "b"]), element="ab", says="is no row"),
    Unwritable(name="a list in a field", format=Csv(["a"]), element={"a": [1]}, says="has a list in it"),
    Unwritable(name="bytes in a field", format=Csv(["a"]), element={"a": b"x"}, says="has a bytes in it"),
    Unwritable(name="a mark first in a row", format=Csv(["a"]), element={"a": "\ufeff1"}, says="byte order mark"),
    Unwritable(name="half a pair in a field", format=Csv(["a"]), element={"a": "\udfff"}, says="surrogate"),
]


@pytest.mark.parametrize("case", UNWRITABLE, ids=lambda case: case.name)
def test_what_cannot_be_written_says_why_and_what_to_do(case: Unwritable) -> None:
    """A `FormatError` that names the element's type, the cause and the next step."""
    with pytest.raises(FormatError) as caught:
        case.format.encode(case.element)
    assert case.says in caught.value.message
    assert type(case.element).__name__ in caught.value.message
    assert caught.value.hint


# Bad input


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A blob with one bad record between good ones."""

    name: str
    format: Format
    data: bytes
    offset: int
    record: bytes
    reason: str
    good: int


BAD = [
    Bad(
        name="no UTF-8",
        format=Lines(),
        data=b"a\n\xff\nb\n",
        offset=2,
        record=b"\xff",
        reason="UnicodeDecodeError",
        good=2,
    ),
    Bad(name="no JSON", format=JsonLines(), data=b"1\n{oops\n2\n", offset=2, record=b"{oops", reason="JSON", good=2),
    Bad(name="JSON and more", format=JsonLines(), data=b"1\r\n2 3\r\n", offset=3, record=b"2 3", reason="more", good=1),
    Bad(name="NaN", format=JsonLines(), data=b"1\nNaN\n", offset=2, record=b"NaN", reason="NaN is no JSON", good=1),
    Bad(
        name="too many fields",
        format=Csv(),
        data=b"a,b\n1,2\n1,2,3\n3,4\n",
        offset=8,
        record=b"1,2,3",
        reason="3 fields for 2 columns",
        good=2,
    ),
    Bad(
        name="too few fields",
        format=Csv(["a", "b"], header=False),
        data=b"1\n1,2\n",
        offset=0,
        record=b"1",
        reason="1 fields for 2 columns",
        good=1,
    ),
    Bad(
        name="another header",
        format=Csv(["a", "b"]),
        data=b"a,c\n1,2\n",
        offset=4,
        record=b"1,2",
        reason="the blob's columns are a, c, not a, b",
        good=0,
    ),
    Bad(
        name="a column named twice",
        format=Csv(),
        data=b"a,a\n1,2\n",
        offset=4,
        record=b"1,2",
        reason="names a column twice: a, a",
        good=0,
    ),
    Bad(
        name="text behind a quoted field",
        format=Csv(),
        data=b'a,b\n1,2\n1,"2"x\n3,4\n',
        offset=8,
        record=b'1,"2"x',
        reason="stray quote",
        good=2,
    ),
    Bad(
        name="a quote that never ends",
        format=Csv(),
        data=b'a,b\n1,2\n3,"4\n5,6\n',
        offset=8,
        record=b'3,"4\n5,6',
        reason="stray quote",
        good=1,
    ),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
@pytest.mark.parametrize("piece", [1, 1000])
def test_a_bad_record_is_kept_with_its_place_and_the_others_are_read(case: Bad, piece: int) -> None:
    """One bad record costs no other; blob, offset, bytes and reason say where to look."""
    good, bad = read_back(case.data, case.format, piece=piece)
    assert len(good) == case.good
    assert [(record.path, record.offset, record.record) for record in bad] == [(PATH, case.offset, case.record)]
    assert case.reason in bad[0].reason
    assert "\n" not in bad[0].reason


def test_rows_with_stray_quotes_are_never_dropped_in_silence() -> None:
    """Quotes that break RFC 4180 make framing join rows; then all of these rows are one bad record, none is lost."""
    data = b'a,b\n1,5" pipe\n2,x\n3,7" pipe\n4,y\n'
    good, bad = read_back(data, Csv())
    assert good == [{"a": "4", "b": "y"}]
    assert [record.record for record in bad] == [b'1,5" pipe\n2,x\n3,7" pipe']


def test_rows_separated_by_carriage_returns_alone_are_not_read_as_one() -> None:
    """An old file's rows are a bad record, not one row with the rest of them lost."""
    good, bad = read_back(b"a,b\r\n1,2\r3,4\r5,6\r\n7,8\r\n", Csv())
    assert good == [{"a": "7", "b": "8"}]
    assert [record.record for record in bad] == [b"1,2\r3,4\r5,6"]


def test_what_a_parser_of_the_users_raises_makes_a_bad_record() -> None:
    """The dead letters take what does not parse, with the parser's own words."""

    def parse(value: dict[str, Any]) -> int:
        return 10 // int(value["n"])

    good, bad = read_back(b'{"n":5}\n{"n":0}\n{"m":1}\n', JsonLines(parse))
    assert good == [2]
    assert [record.reason.partition(":")[0] for record in bad] == ["ZeroDivisionError", "KeyError"]
    assert read_back(b"n\n5\n", Csv(parse=parse)) == ([2], [])


def test_blank_lines_are_no_json_records_and_are_lines() -> None:
    """Empty lines mean something in text, and nothing in JSON Lines and CSV."""
    assert read_back(b"1\n\n \r\n2\n\n", JsonLines()) == ([1, 2], [])
    assert read_back(b"a\n\n1\n\r\n", Csv()) == ([{"a": "1"}], [])
    assert read_back(b"1\n\n2\n", Lines()) == (["1", "", "2"], [])


def test_white_space_around_a_json_value_is_none_of_it() -> None:
    """JSON's own white space may stand around a value."""
    assert read_back(b' \t{"a": 1} \r\n', JsonLines()) == ([{"a": 1}], [])


ODD_LINES = ["", " ", "1 2", "{", "NaN", '"\\ud800"', ' {"a":1}', '{"a":1} ', "\ufeff1", "[" * 100_000, "-0"]


def json_lines() -> st.SearchStrategy[str]:
    """Lines of JSON, and what is none."""
    values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)
    others = st.text(st.characters(exclude_characters="\n", codec="utf-8"))
    return values.map(json.dumps) | st.sampled_from(ODD_LINES) | others


@given(st.lists(st.tuples(json_lines(), st.sampled_from(["\n", "\r\n", "\xff\n"]))))
def test_json_lines_come_one_by_one_to_what_they_come_to_in_a_loop(lines: list[tuple[str, str]]) -> None:
    """The same elements, and the same bad records at the same bytes, as a format has them that overrides `decode`."""
    data = b"".join(line.encode() + end.encode("latin-1") for line, end in lines)
    for parse in (None, _no_lists):
        block = Block(path="x", offset=7, data=data)
        outcomes = []
        for format_ in (JsonLines(parse), _OwnJsonLines(parse)):
            bad: list[BadRecord] = []
            elements = list(format_.decode_each(block, bad))
            outcomes.append((repr(elements), [(record.offset, record.record, record.reason) for record in bad]))
        assert outcomes[0] == outcomes[1]


class _OwnJsonLines(JsonLines):
    def decode(self, record: bytes, header: bytes) -> Any:
        return super().decode(record, header)


class _Doubled(JsonLines):
    def decode(self, record: bytes, header: bytes) -> Any:
        return 2 * super().decode(record, header)


def test_a_format_made_of_json_lines_decodes_in_its_own_way() -> None:
    """No shortcut goes past a `decode` that somebody has overridden."""
    assert read_back(b"1\n2\n", _Doubled()) == ([2, 4], [])


def _no_lists(value: Any) -> Any:
    if isinstance(value, list):
        raise TypeError("a list")
    return value


def test_a_lone_carriage_return_ends_no_record() -> None:
    """Only a newline does; the classic trap of `splitlines`."""
    assert read_back(b"a\rb\nc\x0bd\n", Lines()) == (["a\rb", "c\x0bd"], [])


# The formats themselves

WRONG = {
    "no columns": lambda: Csv([]),
    "a column twice": lambda: Csv(["a", "a"]),
    "neither header nor columns": lambda: Csv(header=False),
    "a delimiter of two characters": lambda: Csv(delimiter="::"),
    "a quote as delimiter": lambda: Csv(delimiter='"'),
    "writing without columns": lambda: Csv().header(),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_go_together_are_refused_at_once(make: Callable[[], object]) -> None:
    """With the next step."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.hint


class KeyValue(Format):
    """A format of a user's own: `key=value`, and comments."""

    suffix = ".kv"
    content_type = "text/x-kv"

    def decode(self, record: bytes, header: bytes) -> tuple[str, str]:
        """Split at the first equals sign."""
        key, equals, value = record.decode().partition("=")
        if not equals:
            raise ValueError("no equals sign")
        return key, value

    def encode(self, element: tuple[str, str]) -> bytes:
        """Join with an equals sign."""
        return "{}={}\n".format(*element).encode()

    def skips(self, record: bytes) -> bool:
        """Comments are no records."""
        return record.startswith(b"#")


def test_a_format_of_ones_own_is_a_small_class() -> None:
    """Codec, suffix, media type; framing at newlines comes with the base."""
    data = written([("a", "1"), ("b", "x=y")], KeyValue())
    good, bad = read_back(b"# comment\n" + data + b"oops\n", KeyValue())
    assert good == [("a", "1"), ("b", "x=y")]
    assert [(record.offset, record.record) for record in bad] == [(20, b"oops")]


@pytest.mark.parametrize("format", [Lines(), JsonLines(), Csv(["a"], delimiter=";")], ids=lambda f: type(f).__name__)
def test_formats_travel(format: Format) -> None:
    """They are pickled into DoFns."""
    again = pickle.loads(pickle.dumps(format))  # noqa: S301  # our own pickle
    assert vars(again) == vars(format)


def test_a_dead_letter_can_be_printed() -> None:
    """As a dict its bytes are text, whatever they are."""
    record = BadRecord(path=PATH, offset=1, reason="r", record=b"\xff\n")
    assert record.as_dict()["record"] == "\\xff\n"
    assert set(dataclasses.asdict(record)) == {"path", "offset", "reason", "record"}


# A block at once


BLOCKS = {
    "lines": (b"a\nb\n", ["a", "b"]),
    "no end": (b"a\nb", ["a", "b"]),
    "blank lines": (b"\na\n\n", ["", "a", ""]),
    "one blank line": (b"\n", [""]),
    "beyond ASCII": ("ä\u2028ö\x0bx\x85y\n".encode(), ["ä\u2028ö\x0bx\x85y"]),
}


@pytest.mark.parametrize(("block", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_lines_are_decoded_a_block_at_a_time(block: bytes, expected: list[str]) -> None:
    """With the outcome that one record after the other has."""
    assert Lines().decode_all(block_of(block)) == expected


@given(st.binary(max_size=60), st.booleans())
def test_a_block_at_once_is_what_its_records_are(data: bytes, newlines: bool) -> None:
    """For any bytes: the same elements, or none, and then the slow way decides."""
    block = data.replace(b"\0", b"\n") if newlines else data
    decoded = Lines().decode_all(block_of(block))
    if decoded is not None:
        assert decoded == [strip_line_end(record).decode() for record in Lines().records(block)]


@pytest.mark.parametrize("block", [b"\xff\n", b"a\r\n", b"a\rb\n"])
def test_a_block_with_a_bad_record_or_a_carriage_return_goes_the_slow_way(block: bytes) -> None:
    """There each record is looked at."""
    assert Lines().decode_all(block_of(block)) is None


def test_a_subclass_of_lines_decodes_its_own_way() -> None:
    """A block at once would pass its `decode` by."""

    class Shouted(Lines):
        def decode(self, record: bytes, header: bytes) -> str:
            return super().decode(record, header).upper()

    assert Shouted().decode_all(block_of(b"a\n")) is None
