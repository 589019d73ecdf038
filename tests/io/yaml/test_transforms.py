"""Rows in Beam YAML: schemas, formats, dead letters, and what is refused before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.typehints import schemas
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.yaml import yaml_provider, yaml_transform
from apache_beam.yaml.json_utils import json_schema_to_beam_schema

from beam_entra import ScopedPipeline
from beam_entra.errors import ConfigError, FormatError
from beam_entra.io.watch import Watch
from beam_entra.io.yaml import PROVIDERS
from beam_entra.io.yaml.transforms import ReadRows, WriteRows, _watch
from beam_entra.launch.yaml import load, main

ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "quantity": {"type": "integer"},
        "price": {"type": "number"},
        "paid": {"type": "boolean"},
    },
    "required": ["id"],
}


def read(lake: Any, good: list[dict[str, Any]], bad: list[tuple[str, str]], **settings: Any) -> None:
    """Read `in/` of `raw`, and hold the rows, and record and reason of what was none, against these."""
    transform = ReadRows(lake.raw.url("in/*"), error_handling={"output": "letters"}, **settings)
    with lake.pipeline("--prism_location=none") as p:
        outputs = p | transform
        rows = outputs["good"] | "Good" >> beam.Map(lambda row: row._asdict())
        letters = outputs["letters"] | "Bad" >> beam.Map(lambda row: (row.record, row.reason))
        assert_that(rows, equal_to(good), label="good")
        assert_that(letters, equal_to(bad), label="bad")


def test_json_rows_have_the_schemas_types(lake: Any) -> None:
    """What is missing is null where it may be; what is of another type is a letter with its place."""
    lines = [
        '{"id": "a", "quantity": 2, "price": 1.5, "paid": true, "more": "is left out"}',
        '{"id": "b"}',
        '{"id": "c", "quantity": "2"}',
        '{"quantity": 2}',
        '{"id": "d", "quantity": true}',
        "[]",
        "no JSON",
        '{"id": "e", "price": 2}',
    ]
    lake.raw.upload("in/a.jsonl", "\n".join(lines).encode())
    good = [
        {"id": "a", "quantity": 2, "price": 1.5, "paid": True},
        {"id": "b", "quantity": None, "price": None, "paid": None},
        {"id": "e", "quantity": None, "price": 2, "paid": None},
    ]
    bad = [
        (lines[2], "ValueError: quantity is no integer"),
        (lines[3], "ValueError: id is missing"),
        (lines[4], "ValueError: quantity is no integer"),
        (lines[5], "ValueError: not an object"),
        (lines[6], "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ]
    read(lake, good, bad, format="json", schema=ORDER)


def test_csv_rows_are_converted(lake: Any) -> None:
    """Text to the schema's types; an empty field is null."""
    lake.raw.upload("in/a.csv", b"id,quantity,price,paid\na,2,1.5,true\nb,,,\nc,two,1,true\nd,1,1,perhaps\n")
    good = [
        {"id": "a", "quantity": 2, "price": 1.5, "paid": True},
        {"id": "b", "quantity": None, "price": None, "paid": None},
    ]
    bad = [
        ("c,two,1,true", "ValueError: quantity is no integer"),
        ("d,1,1,perhaps", "ValueError: paid is no boolean"),
    ]
    read(lake, good, bad, format="csv", schema=ORDER)


def test_text_rows_are_lines(lake: Any) -> None:
    """One field, and no schema."""
    lake.raw.upload("in/a.txt", b"one\ntwo\n\xff\n")
    reason = "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    read(lake, [{"line": "one"}, {"line": "two"}], [("\\xff", reason)], format="text")


def test_without_error_handling_a_bad_row_fails_the_job(lake: Any) -> None:
    """As with ReadFromBlob."""
    lake.raw.upload("in/a.jsonl", b"no JSON\n")
    with pytest.raises(FormatError), lake.pipeline("--prism_location=none") as p:
        p | ReadRows(lake.raw.url("in/*"), "json", ORDER)


@pytest.mark.parametrize(
    ("format", "expected"),
    [("json", ['{"id":"a","n":1}', '{"id":"b","n":2}']), ("csv", ["a,1", "b,2", "id,n"])],
)
def test_rows_are_written(lake: Any, format: str, expected: list[str]) -> None:
    """Each once; the output is a row a blob."""
    with lake.pipeline("--prism_location=none") as p:
        rows = p | beam.Create([("a", 1), ("b", 2)]) | beam.Map(lambda pair: beam.Row(id=str(pair[0]), n=int(pair[1])))
        out = rows | WriteRows(lake.curated.url("out/"), format, shards=1)
        name = "out/part-00000-of-00001" + {"json": ".jsonl", "csv": ".csv"}[format]
        assert_that(out | beam.Map(lambda row: (row.path, row.rows)), equal_to([(lake.curated.url(name), 2)]))
    (part,) = lake.parts()
    assert sorted(lake.curated.download(part).decode().split()) == expected


_ROWS = [{"id": "a", "quantity": 2, "price": 1.5, "paid": True}, {"id": "b"}]


@pytest.mark.parametrize("format", ["avro", "parquet"])
def test_files_of_rows_are_written_and_read(lake: Any, format: str) -> None:
    """With the input's fields; what may be null comes back as null."""
    schema = json_schema_to_beam_schema(ORDER)
    row_type = RowTypeConstraint.from_fields(schemas.named_fields_from_schema(schema))
    nulls = dict.fromkeys(ORDER["properties"])
    with lake.pipeline("--prism_location=none", manifest=lake.manifest(write=[lake.raw.url("in/")])) as p:
        rows = p | beam.Create(_ROWS) | beam.Map(lambda row: beam.Row(**{**nulls, **row})).with_output_types(row_type)
        rows | WriteRows(lake.raw.url("in/"), format, shards=1)
    (part,) = [name for name in lake.raw.list("in/") if name.endswith(format)]
    lake.raw.upload("read/a", lake.raw.download(part))
    with lake.pipeline("--prism_location=none", manifest=lake.manifest(read=[lake.raw.url("read/")])) as p:
        back = p | ReadRows(lake.raw.url("read/*"), format, ORDER)
        assert_that(back | beam.Map(lambda row: row._asdict()), equal_to([{**nulls, **row} for row in _ROWS]))


def test_a_file_of_other_types_than_the_schemas_fails_the_job(lake: Any) -> None:
    """Its records are sound; the schema is not its schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": [1], "quantity": [2], "price": [1.0], "paid": [True]}), sink)
    lake.raw.upload("in/a.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(FormatError, match="id is no string"), lake.pipeline("--prism_location=none") as p:
        p | ReadRows(lake.raw.url("in/*"), "parquet", ORDER)


@pytest.mark.parametrize("format", ["avro", "parquet"])
def test_fields_that_a_format_has_no_type_for_are_refused_at_once(lake: Any, format: str) -> None:
    """When the pipeline is built."""
    message = f"price is of type .*Decimal.* is not written as {format}"
    with pytest.raises(ConfigError, match=message), lake.pipeline() as p:
        p | beam.Create([beam.Row(price=Decimal(1))]) | WriteRows(lake.curated.url("out/"), format)


def test_text_is_written_from_one_field(lake: Any) -> None:
    """Rows of several are refused when the pipeline is built."""
    with lake.pipeline("--prism_location=none") as p:
        (
            p
            | beam.Create(["x", "y"])
            | beam.Map(lambda line: beam.Row(line=str(line)))
            | WriteRows(lake.curated.url("out/"), "text", shards=1)
        )
    assert sorted(lake.curated.download(lake.parts()[0]).split()) == [b"x", b"y"]
    with pytest.raises(ConfigError, match="one field"), lake.pipeline() as p:
        p | beam.Create([beam.Row(a=1, b=2)]) | WriteRows(lake.curated.url("out/"), "text")


@pytest.mark.parametrize(
    ("format", "schema", "message"),
    [
        ("xml", ORDER, "no format 'xml'"),
        ("json", None, "needs the schema"),
        ("csv", None, "needs the schema"),
        ("parquet", None, "needs the schema"),
        ("text", ORDER, "one field `line`"),
        ("json", {"type": "string"}, "schema of ReadFromBlob is none"),
        ("json", {"type": "object"}, "schema of ReadFromBlob is none"),
        ("json", {"type": "object", "properties": {"a": {"type": "date"}}}, "schema of ReadFromBlob is none"),
    ],
)
def test_what_cannot_be_is_refused_at_once(format: str, schema: Any, message: str) -> None:
    """With a hint, before anything is sent."""
    with pytest.raises(ConfigError, match=message) as refusal:
        ReadRows("abfss://raw@contosolake.dfs.core.windows.net/in/*", format, schema)
    assert refusal.value.hint
    assert message != "needs the schema" or "every format but text" in refusal.value.hint


def test_the_listing_provides_both(lake: Any) -> None:
    """A tool of one's own includes the file that the package ships."""
    provided = yaml_provider.merge_providers(yaml_provider.load_providers(str(PROVIDERS)))
    assert set(provided) == {"ReadFromBlob", "WriteToBlob"}
    lake.raw.upload("in/a.txt", b"one\n")
    spec = {
        "providers": [{"include": str(PROVIDERS)}],
        "pipeline": {
            "type": "chain",
            "transforms": [
                {"type": "ReadFromBlob", "config": {"path": lake.raw.url("in/*"), "format": "text"}},
                {"type": "WriteToBlob", "config": {"path": lake.curated.url("out/"), "format": "text"}},
            ],
        },
    }
    with lake.pipeline("--prism_location=none") as p:
        yaml_transform.expand_pipeline(p, json.dumps(spec))
    assert isinstance(p, ScopedPipeline)
    assert lake.curated.download(lake.parts()[0]) == b"one\n"


def test_a_pattern_is_watched_and_windows_are_written(lake: Any) -> None:
    """Until the blob is there that stops it; what is written is in windows."""
    lake.raw.upload("in/a.txt", b"one\n")
    lake.raw.upload("in/_STOP", b"")
    watch = {"interval": 1, "stop": lake.raw.url("in/_STOP")}
    reading = {"path": lake.raw.url("in/*"), "format": "text", "watch": watch}
    windowing = {"type": "fixed", "size": "60s"}
    spec = {
        "providers": [{"include": str(PROVIDERS)}],
        "pipeline": {
            "type": "chain",
            "transforms": [
                {"type": "ReadFromBlob", "config": reading},
                {"type": "WindowInto", "config": {"windowing": windowing}},
                {"type": "WriteToBlob", "config": {"path": lake.curated.url("out/"), "format": "text"}},
            ],
        },
    }
    with lake.pipeline("--prism_location=none") as p:
        yaml_transform.expand_pipeline(p, json.dumps(spec))
    (part,) = [name for name in lake.curated.list("out/") if name.endswith(".txt")]
    assert lake.curated.download(part) == b"one\n"
    assert part.count("/") == 2, "in the folder of its window"


@pytest.mark.parametrize(
    "watch",
    [
        {},
        {"until": 60},
        {"interval": 1, "every": 1},
        {"interval": 1, "until": "noon"},
        {"interval": 1, "until": 1e300},
        {"interval": 1e300},
        {"interval": 1, "stop": 5},
        {"interval": "1s"},
        "soon",
        0,
    ],
)
def test_a_watch_that_makes_no_sense_is_refused(watch: Any) -> None:
    """With what to write, before anything is sent."""
    with pytest.raises(ConfigError, match="watch") as refusal:
        ReadRows("abfss://raw@contosolake.dfs.core.windows.net/in/*", "text", watch=watch)
    assert refusal.value.hint or watch == 0


def test_a_watch_is_an_interval_in_seconds_or_more() -> None:
    """As `Watch` has it; its end is counted from the launch on."""
    stop = "abfss://raw@contosolake.dfs.core.windows.net/in/_STOP"
    assert _watch(30) == Watch(30)
    assert _watch({"interval": 30, "until": 60, "stop": stop}) == Watch(30, until=timedelta(minutes=1), stop=stop)


def test_the_launcher_says_where_the_listing_is(capsys: pytest.CaptureFixture[str]) -> None:
    """And does nothing else."""
    main(["--providers"])
    assert capsys.readouterr().out.strip() == str(PROVIDERS)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("a: [", "is no YAML"), ("{{ 1 +", "is no template"), ("a: 1", "has no `pipeline:`")],
)
def test_a_file_that_is_no_pipeline(tmp_path: Any, text: str | None, message: str) -> None:
    """Each says what is wrong with it."""
    file = tmp_path / "p.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(file, "{}")


def test_variables_are_filled_in(tmp_path: Any) -> None:
    """As Beam YAML does it."""
    file = tmp_path / "p.yaml"
    file.write_text("pipeline: {day: {{ day }}}")
    assert load(file, '{"day": "monday"}')["pipeline"]["day"] == "monday"
    with pytest.raises(ConfigError, match="jinja_variables"):
        load(file, "[]")


def test_a_flag_that_is_missing_is_named() -> None:
    """The launcher prints the error, not a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "beam_entra.launch.yaml"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "--yaml_pipeline_file" in done.stderr
    assert "Traceback" not in done.stderr
