"""Whole blobs: what is read is what was written, byte for byte, an empty blob included."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import Bytes, Lines, ReadFromBlob, WriteToBlob
from beam_entra.errors import BlobExists, ConfigError, FormatError

PATH = "abfss://raw@lake.dfs.core.windows.net/a.bin"


@given(pieces=st.lists(st.binary(max_size=20), max_size=5), with_path=st.booleans())
def test_a_blob_is_one_element_however_it_comes(pieces: list[bytes], with_path: bool) -> None:
    """All pieces, joined; none at all is empty content. The batch says the same."""
    chosen, whole = Bytes(with_path=with_path), b"".join(pieces)
    (block,) = chosen.stream(PATH, iter(pieces), max_record_bytes=1000)
    assert chosen.decode_all(block) == [(PATH, whole) if with_path else whole]
    assert list(chosen.decode_each(block, [])) == chosen.decode_all(block)
    (batch,) = chosen.decode_batches(block, [])
    batch.validate(full=True)
    assert batch.schema == chosen.schema
    assert batch.to_pylist() == [{"path": PATH, "content": whole}]


def test_content_is_not_copied_more_than_once() -> None:
    """One piece is taken as it is, several are joined; a batch refers to what was joined."""
    piece = bytes(1000)
    (block,) = Bytes().stream(PATH, iter([piece]), max_record_bytes=1000)
    assert block.data is piece
    (batch,) = Bytes().decode_batches(block, [])
    assert batch.column("content").buffers()[2].address == pa.py_buffer(piece).address


def test_what_is_too_long_is_not_taken_into_memory() -> None:
    """The stream is left as soon as it has gone too far."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(100)

    with pytest.raises(FormatError, match="longer than 1000 bytes") as caught:
        list(Bytes().stream(PATH, endless(), max_record_bytes=1000))
    assert taken == 11
    assert "max_record_bytes" in caught.value.hint


def test_a_blob_of_just_so_many_bytes_is_taken() -> None:
    """The bound is inclusive."""
    (block,) = Bytes().stream(PATH, iter([bytes(1000)]), max_record_bytes=1000)
    assert len(block.data) == 1000


@pytest.mark.parametrize("element", ["text", {"content": b"x"}, None, 3])
def test_what_is_no_bytes_is_not_written(element: Any) -> None:
    """The error says what to give."""
    with pytest.raises(FormatError, match="is no bytes") as caught:
        Bytes().open(io.BytesIO()).write(element)
    assert "(name, bytes)" in caught.value.hint


WITHOUT_CONTENT = {
    "no such column": {"text": ["a"]},
    "numbers": {"content": [1]},
    "a null": {"content": pa.array([None], pa.binary())},
}


@pytest.mark.parametrize("batch", WITHOUT_CONTENT.values(), ids=WITHOUT_CONTENT)
def test_a_batch_without_content_is_not_written(batch: Any) -> None:
    """Neither a null nor a number is content."""
    with pytest.raises(FormatError, match="content"):
        Bytes().open(io.BytesIO()).write_batch(pa.record_batch(batch))


# Over the wire

CONTENTS = {
    "a.bin": b"\0\1\n\r\n\xff",
    "b/empty.bin": b"",
    "b/long.bin": bytes(range(256)) * 40,
    "c.txt": "ünïcode".encode(),
}


def test_whole_blobs_are_read_small_large_and_empty(lake: Any) -> None:
    """In packs, in pieces of several requests, alone; with the path, and as batches."""
    for name, content in CONTENTS.items():
        lake.raw.upload(f"in/{name}", content)
    expected = [(lake.raw.url(f"in/{name}"), content) for name, content in CONTENTS.items()]
    with lake.pipeline() as p:
        everything = lake.raw.url("in/**")
        pairs = p | "pairs" >> ReadFromBlob(everything, Bytes(with_path=True), block_bytes=1000)
        assert_that(pairs, equal_to(expected), label="check pairs")
        plain = p | "plain" >> ReadFromBlob(everything, Bytes())
        assert_that(plain, equal_to(list(CONTENTS.values())), label="check plain")
        alone = p | "alone" >> ReadFromBlob(lake.raw.url("in/b/empty.bin"), Bytes())
        assert_that(alone, equal_to([b""]), label="check alone")
        lines = p | "lines" >> ReadFromBlob(lake.raw.url("in/b/empty.bin"), Lines())
        assert_that(lines, equal_to([]), label="check lines")
        batches = p | "batches" >> ReadFromBlob(everything, Bytes(), batched=True)
        rows = batches | beam.FlatMap(lambda batch: [tuple(row.values()) for row in batch.to_pylist()])
        assert_that(rows, equal_to(expected), label="check rows")


def test_a_compressed_blob_is_bounded_by_what_comes_out(lake: Any) -> None:
    """A bomb fails the read at the bound."""
    with lake.pipeline() as p:
        zeros = p | beam.Create([("zeros", bytes(1_000_000))])
        zeros | WriteToBlob(lake.curated.url("out/"), Bytes(), compression="zstd")
    assert lake.parts() == ["out/zeros.zst"]
    pipeline = lake.pipeline(manifest=lake.manifest(read=[lake.curated.url("out/")], write=[lake.curated.url("new/")]))
    with pytest.raises(FormatError, match="longer than 999999 bytes"), pipeline as p:
        p | ReadFromBlob(lake.curated.url("out/zeros.zst"), Bytes(), max_record_bytes=999_999)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_elements_become_blobs_of_their_names(lake: Any, compression: Any) -> None:
    """Names are relative to the prefix; content of any length is there whole, and reads back."""
    with lake.pipeline() as p:
        (
            p
            | beam.Create(CONTENTS.items())
            | WriteToBlob(lake.curated.url("out/"), Bytes(), block_bytes=1000, compression=compression)
        )
    suffix = ".gz" if compression == "gzip" else ""
    assert lake.parts() == [f"out/{name}{suffix}" for name in CONTENTS]
    assert lake.success()["rows"] == len(CONTENTS)
    if compression == "none":
        assert {name.removeprefix("out/"): lake.curated.download(name) for name in lake.parts()} == CONTENTS
    pipeline = lake.pipeline(manifest=lake.manifest(read=[lake.curated.url("out/")], write=[lake.curated.url("new/")]))
    with pipeline as p:
        found = p | ReadFromBlob(lake.curated.url("out/**"), Bytes())
        assert_that(found, equal_to(list(CONTENTS.values())))


def test_elements_without_names_are_given_some(lake: Any) -> None:
    """Each becomes a blob, the empty one, too, even when the answer to its commit is lost."""
    lake.cloud.proxy.lose_answer(
        where=lambda request: request.operation == "PutBlockList" and "/part-" in request.blob, times=3
    )
    with lake.pipeline() as p:
        p | beam.Create([b"one", b"", b"three"]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    assert all(name.endswith(".bin") for name in lake.parts())
    assert sorted(lake.curated.download(name) for name in lake.parts()) == [b"", b"one", b"three"]
    client = lake.cloud.admin.client(lake.curated.account).get_blob_client(lake.curated.name, lake.parts()[0])
    assert client.get_blob_properties().content_settings.content_type == "application/octet-stream"


def test_rows_of_batches_become_blobs(lake: Any) -> None:
    """A column `content`, and perhaps a column `name`."""
    named = pa.record_batch({"name": ["a", "b/c"], "content": [b"1", b""]})
    unnamed = pa.record_batch({"content": ["text", "more"]})
    with lake.pipeline() as p:
        p | beam.Create([named, unnamed]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    contents = {name: lake.curated.download(name) for name in lake.parts()}
    assert (contents.pop("out/a"), contents.pop("out/b/c")) == (b"1", b"")
    assert sorted(contents.values()) == [b"more", b"text"]
    assert lake.success()["rows"] == 4


def test_two_elements_of_one_name_fail_before_anything_is_visible(lake: Any) -> None:
    """Whichever bundles they are in."""
    pairs = [(f"{number}.bin", b"%d" % number) for number in range(20)] + [("7.bin", b"another")]
    pipeline = lake.pipeline()
    with pytest.raises(FormatError, match=r"2 elements are named .*; nothing was made visible"), pipeline as p:
        p | beam.Create(pairs) | beam.Reshuffle() | WriteToBlob(lake.curated.url("out/"), Bytes())
    assert lake.curated.list() == []


BAD_NAMES = {
    "up": "../secret",
    "a prefix": "folder/",
    "empty": "",
    "a full path": PATH,
    "rooted": "/a",
    "encoded up": "%2e%2e/secret",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_name_that_leads_elsewhere_is_refused(lake: Any, name: str) -> None:
    """As any path is that breaks a rule; nothing is sent."""
    pipeline = lake.pipeline()
    with pytest.raises((ConfigError, FormatError)), pipeline as p:
        p | beam.Create([(name, b"x")]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    assert lake.cloud.proxy.count(lambda request: request.container == lake.curated.name) == 0


@pytest.mark.parametrize("name", ["_SUCCESS", "_COMMITTING"])
def test_an_element_cannot_be_the_sinks_own_mark(lake: Any, name: str) -> None:
    """Who reads `_SUCCESS` relies on it. One further down is somebody's own."""
    pipeline = lake.pipeline()
    with pytest.raises(FormatError, match="no element may be named"), pipeline as p:
        p | beam.Create([(name, b"x")]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    with lake.pipeline() as p:
        p | beam.Create([(f"copy/{name}", b"x")]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    assert lake.curated.download(f"out/copy/{name}") == b"x"


@pytest.mark.parametrize("element", [("a", b"1", b"2"), (1, b"1")])
def test_a_tuple_is_a_name_and_content(lake: Any, element: Any) -> None:
    """Any other is refused."""
    pipeline = lake.pipeline()
    with pytest.raises(FormatError, match="no pair") as caught, pipeline as p:
        p | beam.Create([element]) | WriteToBlob(lake.curated.url("out/"), Bytes())
    assert "relative to the prefix" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"new"])
def test_somebody_elses_blob_is_not_touched(lake: Any, content: bytes) -> None:
    """Nor one that is empty replaced by one that is."""
    for foreign in (b"precious", b""):
        lake.curated.upload(f"out/{len(foreign)}/a.bin", foreign)
        etag = lake.etag(lake.curated, f"out/{len(foreign)}/a.bin")
        with pytest.raises(BlobExists) as caught, lake.pipeline() as p:
            p | beam.Create([("a.bin", content)]) | WriteToBlob(lake.curated.url(f"out/{len(foreign)}/"), Bytes())
        assert "a.bin" in str(caught.value)
        assert lake.etag(lake.curated, f"out/{len(foreign)}/a.bin") == etag


@pytest.mark.parametrize("settings", [{"shards": 2}, {"shards": 2, "overwrite": True}, {"overwrite": True}])
def test_there_are_no_shards_of_whole_blobs(settings: dict[str, Any]) -> None:
    """Before anything is built."""
    with pytest.raises(ConfigError, match="a blob of its own") as caught:
        WriteToBlob("abfss://curated@lake.dfs.core.windows.net/out/", Bytes(), **settings)
    assert "leave shards and overwrite out" in caught.value.hint
