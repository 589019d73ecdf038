"""Writing over the wire: exactly what was written, once, and nothing to be seen before it is committed."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import io
import itertools
import json
import threading
import tracemalloc
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
import zstandard
from apache_beam.metrics.metric import Lineage
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import Bytes, Csv, Format, JsonLines, Lines, Parquet, ReadFromBlob, WriteToBlob
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AccessDenied,
    BlobChanged,
    BlobExists,
    ConfigError,
    FormatError,
    NotGranted,
    StorageError,
)
from beam_entra.io.batches import RecordBatchCoder
from beam_entra.io.commit import MOST_PLANNED, _planned, commit
from beam_entra.io.compression import Compression
from beam_entra.io.formats import BlobFormat, BlockFormat, FileFormat
from beam_entra.io.sink import AutoShards, FixedShards, Staged, WriteSettings, check_blocks, shards_of
from beam_entra.io.staging import BlockStager, FileStager, stager_for
from beam_entra.io.write import _NOBODYS, _Commit, _Deal, _Stage, _StageShard
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session, close_session, open_session, read_marker
from beam_entra.testing.storage_requests import StorageRequest

COMMIT_ID = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def write(lake: Any, elements: list[Any], *sink: Any, flags: tuple[str, ...] = (), **settings: Any) -> Any:
    """Run a job that writes the elements to `out/`, and return its pipeline."""
    pipeline = lake.pipeline(*flags)
    with pipeline as p:
        written = p | beam.Create(elements) | beam.Reshuffle()
        written | WriteToBlob(lake.curated.url("out/"), *sink, **settings)
    return pipeline


def in_output(lake: Any, operation: str = "") -> Callable[[StorageRequest], bool]:
    """Requests to the container that is written to."""
    return lambda request: request.container == lake.curated.name and operation in {"", request.operation}


def settings_for(lake: Any, format: Format | None = None, *, prefix: str = "out/", **changes: Any) -> WriteSettings:
    """Settings as `WriteToBlob` makes them."""
    values: dict[str, Any] = {
        "prefix": BlobPath.parse(lake.curated.url(prefix)),
        "format": format or JsonLines(),
        "shards": None,
        "compression": "none",
        "overwrite": False,
        "block_bytes": 1000,
        "sink": uuid.uuid4().hex,
    }
    return WriteSettings(**(values | changes))


def stage(bundle: Any, settings: WriteSettings, elements: list[Any]) -> list[Staged]:
    """What the first bundle of a process does."""
    stager = BlockStager(bundle, settings, shards_of(settings))
    for element in elements:
        stager.add(element)
    return stager.finish()


@pytest.fixture
def sessions(lake: Any) -> Iterator[Callable[[JobScope], Session]]:
    """Sessions of a job, each as if in a process of its own; closed at the end."""
    made: list[Session] = []

    def open_one(scope: JobScope) -> Session:
        made.append(Session(scope))
        return made[-1]

    yield open_one
    for session in made:
        session.close()


# What comes out


def test_success_tells_the_truth(lake: Any) -> None:
    """Paths, ETags, sizes and rows are those of Storage; job and pipeline are named; the output gives the same."""
    pipeline = lake.pipeline()
    with pipeline as p:
        done = (
            p
            | beam.Create([{"id": number} for number in range(1000)])
            | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=3)
        )
        assert_that(done | beam.Map(lambda blob: blob.rows) | beam.CombineGlobally(sum), equal_to([1000]))
    success = lake.success()
    assert (success["job"], success["pipeline"], success["environment"]) == (pipeline.report.job, "orders", "test")
    assert [blob["path"] for blob in success["blobs"]] == [lake.curated.url(name) for name in lake.parts()]
    for blob, name in zip(success["blobs"], lake.parts(), strict=True):
        content = lake.curated.download(name)
        assert blob["etag"] == lake.etag(lake.curated, name)
        assert blob["size_bytes"] == len(content)
        assert blob["rows"] == content.count(b"\n")
    assert success["rows"] == 1000
    assert success["size_bytes"] == sum(blob["size_bytes"] for blob in success["blobs"])
    committing = json.loads(lake.curated.download("out/_COMMITTING"))
    about = ("path", "rows", "size_bytes")
    assert [[blob[fact] for fact in about] for blob in committing["blobs"]] == [
        [blob[fact] for fact in about] for blob in success["blobs"]
    ]
    assert committing["commit"] == success["commit"]
    assert sorted(value["id"] for value in lake.written()) == list(range(1000))


def test_fixed_shards_are_as_many_as_asked_for_and_filled_alike(lake: Any) -> None:
    """N names, and bundles take turns beginning at different ones."""
    write(lake, list(range(1003)), JsonLines(), shards=4, block_bytes=64)
    assert lake.parts() == [f"out/part-{number:05d}-of-00004.jsonl" for number in range(4)]
    rows = [blob["rows"] for blob in lake.success()["blobs"]]
    assert sum(rows) == 1003
    assert max(rows) - min(rows) <= 30, "as many bundles as there may be begin at the same shard"
    assert sorted(lake.written()) == list(range(1003))


def test_fewer_elements_than_shards_make_fewer_blobs(lake: Any) -> None:
    """No blob is made for nothing."""
    write(lake, [1], shards=8, format=JsonLines())
    assert len(lake.parts()) == 1


def test_automatic_shards_are_one_blob_a_process(lake: Any) -> None:
    """However many bundles and threads a process runs, what they write lies together."""
    flags = ("--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=3")
    pipeline = write(lake, list(range(500)), JsonLines(), flags=flags)
    bundles = [r for r in lake.trail(pipeline.report.job).records("bundle_opened") if r["step"].endswith("/Stage")]
    assert len(bundles) > 1
    assert len(lake.parts()) == 1
    assert sorted(lake.written()) == list(range(500))


def test_a_long_blob_is_followed_by_another(lake: Any) -> None:
    """No blob of automatic shards comes near Storage's limits."""
    names = AutoShards(settings_for(lake))
    sizes = [200 << 20, 200 << 20, 200 << 20, 1]
    assert [names.path_for(0, size).name[-11:-6] for size in sizes] == ["00000", "00000", "00000", "00001"]
    small = [names.path_for(0, 0) for _ in range(10_001)]
    assert len(set(small)) == 2


@pytest.mark.parametrize(
    ("compression", "suffix", "content_type"),
    [
        ("gzip", ".gz", "application/gzip"),
        ("bzip2", ".bz2", "application/x-bzip2"),
        ("zstd", ".zst", "application/zstd"),
    ],
)
def test_compressed_blobs_are_members_in_any_order(
    lake: Any, compression: Compression, suffix: str, content_type: str
) -> None:
    """What several bundles stage to one compressed blob decompresses as one."""
    values = [{"id": number} for number in range(300)]
    write(lake, values, JsonLines(), compression=compression, shards=2, block_bytes=200)
    assert all(name.endswith(f"-of-00002.jsonl{suffix}") for name in lake.parts())
    contents = [UNPACKED[compression](lake.curated.download(name)) for name in lake.parts()]
    assert sorted(json.loads(line)["id"] for content in contents for line in content.splitlines()) == list(range(300))
    client = lake.cloud.admin.client(lake.curated.account).get_blob_client(lake.curated.name, lake.parts()[0])
    assert client.get_blob_properties().content_settings.content_type == content_type


UNPACKED: dict[Compression, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.decompress,
    "bzip2": bz2.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(),
}


@pytest.mark.parametrize("compression", UNPACKED)
def test_a_csv_header_stands_once_in_each_blob_whatever_the_bundles(
    lake: Any, bundle: Any, compression: Compression
) -> None:
    """Several bundles stage to the same blobs; each blob has one header, first."""
    settings = settings_for(lake, Csv(["id", "text"]), shards=2, compression=compression, block_bytes=50)
    staged = [
        part
        for first in (0, 20, 40)
        for part in stage(bundle, settings, [{"id": first + at, "text": "a\nb"} for at in range(20)])
    ]
    commit(bundle, settings, staged, COMMIT_ID)
    ids = []
    for name in lake.parts():
        content = lake.curated.download(name)
        text = UNPACKED[compression](content).decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        assert header == ["id", "text"]
        assert {row[1] for row in rows} == {"a\nb"}
        ids += [int(row[0]) for row in rows]
    assert sorted(ids) == list(range(60))
    assert sum(blob["rows"] for blob in lake.success()["blobs"]) == 60


def test_empty_input_leaves_markers_alone_and_a_csv_its_header(lake: Any) -> None:
    """A job that found nothing to write has succeeded, and says so."""
    pipeline = lake.pipeline()
    with pipeline as p:
        nothing = p | beam.Create([])
        nothing | "json" >> WriteToBlob(lake.curated.url("out/json/"), JsonLines())
        nothing | "csv" >> WriteToBlob(lake.curated.url("out/csv/"), Csv(["a", "b"]))
        nothing | "csv shards" >> WriteToBlob(lake.curated.url("out/fixed/"), Csv(["a", "b"]), shards=2)
    assert lake.curated.list("out/json/") == ["out/json/_COMMITTING", "out/json/_SUCCESS"]
    assert lake.parts("out/csv/") == ["out/csv/part-00000.csv"]
    assert lake.parts("out/fixed/") == ["out/fixed/part-00000-of-00002.csv"]
    assert lake.curated.download("out/csv/part-00000.csv") == b"a,b\r\n"
    assert lake.success("out/json/")["blobs"] == []


def test_windows_of_the_input_do_not_matter(lake: Any) -> None:
    """What was windowed upstream is written all the same, once."""
    pipeline = lake.pipeline()
    with pipeline as p:
        values = p | beam.Create(range(50)) | beam.Map(lambda at: TimestampedValue(at, at))
        values | beam.WindowInto(FixedWindows(10)) | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=1)
    assert sorted(lake.written()) == list(range(50))


class Shout(Format):
    """A format of a user's own."""

    suffix = ".shout"
    content_type = "text/x-shout"

    def decode(self, record: bytes, header: bytes) -> str:
        """Back to a whisper."""
        return record.decode().lower()

    def encode(self, element: str) -> bytes:
        """Louder."""
        return element.upper().encode() + b"\n"


def test_a_format_of_ones_own_is_written(lake: Any, bundle: Any) -> None:
    """Suffix and media type are the format's."""
    settings = settings_for(lake, Shout(), shards=1)
    commit(bundle, settings, stage(bundle, settings, ["a", "b"]), COMMIT_ID)
    assert lake.parts() == ["out/part-00000-of-00001.shout"]
    assert lake.curated.download(lake.parts()[0]) == b"A\nB\n"


def test_metrics_and_lineage_are_reported(lake: Any) -> None:
    """Records, bytes, blocks and blobs; each blob is a sink of the job."""
    pipeline = write(lake, list(range(100)), JsonLines(), shards=1)
    metrics = pipeline.report.metrics
    size = len(lake.curated.download(lake.parts()[0]))
    assert metrics["records_written"] == 100
    markers = sum(len(lake.curated.download(f"out/{name}")) for name in ("_COMMITTING", "_SUCCESS"))
    assert metrics["bytes_staged"] == size + markers
    assert metrics["blobs_committed"] == 3
    (sink,) = Lineage.query(pipeline.result.metrics(), Lineage.SINK)
    assert sink.replace("`", "") == f"abs:{lake.curated.account}.{lake.curated.name}.{lake.parts()[0]}"


# Record batches among the elements


def lines_of(batches: list[pa.RecordBatch]) -> list[Any]:
    """The rows."""
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize("shards", [None, 3])
def test_rows_of_record_batches_are_written_as_elements_are(lake: Any, shards: int | None) -> None:
    """Beside elements, each row a record, counted; an empty batch is nothing."""
    batches = [
        pa.record_batch({"id": list(range(start, start + length)), "text": [f"row {start}"] * length})
        for start, length in ((0, 1000), (1000, 0), (1000, 1), (1001, 400))
    ]
    single = [{"id": number, "text": "single"} for number in range(1401, 1411)]
    pipeline = write(lake, [*batches, *single], JsonLines(), shards=shards, block_bytes=2000)
    assert sorted(lake.written(), key=lambda row: row["id"]) == [*lines_of(batches), *single]
    assert lake.success()["rows"] == 1411
    assert pipeline.report.metrics["records_written"] == 1411
    assert len(lake.parts()) == (shards or 1)


def test_a_long_batch_is_cut_so_that_blocks_stay_near_their_length(lake: Any, bundle: Any) -> None:
    """Although nobody knows before how long rows are in the format: here a hundred times what they are in memory."""
    settings = settings_for(lake, shards=4, block_bytes=20_000)
    values = pa.array([number % 100 for number in range(8000)], pa.int8())
    batch = pa.record_batch({"a_long_name_" * 10: values, "id": pa.array(range(8000), pa.int16())})
    stager = BlockStager(bundle, settings, shards_of(settings))
    stager.add_batch(batch.slice(0, 4000))
    stager.add_batch(batch.slice(4000))
    staged = stager.finish()
    assert sum(part.rows for part in staged) == stager.rows == 8000
    sizes = [part.size_bytes for part in staged]
    assert max(sizes) - min(sizes) <= 2 * settings.block_bytes, "shards fill alike"
    blocks = [record["size"] for record in staged_blocks(lake)]
    assert max(blocks) <= 2.5 * settings.block_bytes
    assert len(blocks) <= sum(sizes) / settings.block_bytes + 8
    commit(bundle, settings, staged, COMMIT_ID)
    assert sorted(lake.written(), key=lambda row: row["id"]) == batch.to_pylist()


def test_a_short_batch_goes_to_all_shards(lake: Any, bundle: Any) -> None:
    """Where there are many rows to a shard; a few hundred are not taken apart."""
    settings = settings_for(lake, shards=4, block_bytes=1 << 20)
    for rows, shares in ((1000, [250] * 4), (400, [128, 128, 128, 16]), (100, [100])):
        stager = BlockStager(bundle, settings, shards_of(settings))
        stager.add_batch(pa.record_batch({"id": list(range(rows))}))
        assert sorted((part.rows for part in stager.finish()), reverse=True) == shares


def test_parts_of_a_long_batch_are_as_long_as_they_may_be(lake: Any, bundle: Any) -> None:
    """Once it is known how long rows are: each part has a price."""
    encoded: list[int] = []

    class Counting(Framed):
        def encode_batch(self, batch: pa.RecordBatch) -> bytes:
            encoded.append(batch.num_rows)
            return super().encode_batch(batch)

    settings = settings_for(lake, Counting(), shards=1, block_bytes=20_000)
    stager = BlockStager(bundle, settings, shards_of(settings))
    for _ in range(2):
        stager.add_batch(pa.record_batch({"value": [1000] * 20_000}))
    assert encoded == [128, *[4000] * 4, 3872, *[4000] * 5]
    assert sum(part.rows for part in stager.finish()) == 40_000


def staged_blocks(lake: Any) -> list[dict[str, Any]]:
    """What the only trail says of staged blocks."""
    found: list[dict[str, Any]] = lake.only_trail().records("staged")
    return found


class Framed(BlockFormat):
    """A format whose blocks say how many records they hold."""

    suffix = ".framed"
    content_type = "text/x-framed"

    def split(self, *_: Any, **__: Any) -> Any:
        """Not read here."""

    stream = decode_each = split

    def encode(self, element: Any) -> bytes:
        """One line."""
        return b"%d\n" % element

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        """All at once."""
        return b"".join(b"%d\n" % value for value in batch.column(0).to_pylist())

    def frame(self, records: bytes, rows: int) -> bytes:
        """A count before them."""
        return b"[%d]\n" % rows + records

    def header(self) -> bytes:
        """Not a block."""
        return b"FRAMED\n"


def test_each_block_is_framed_and_says_how_many_records_it_holds(lake: Any, bundle: Any) -> None:
    """Elements and batches, small bundles put together, and the header alone without a frame."""
    settings = settings_for(lake, Framed(), shards=2, block_bytes=40)
    shards = shards_of(settings)
    staged = []
    for number in range(20):
        stager = BlockStager(bundle, settings, shards)
        stager.add(number)
        stager.add_batch(pa.record_batch({"value": [100, 101, 102]}))
        stager.add(number)
        staged += stager.finish()
    commit(bundle, settings, staged, COMMIT_ID)
    found: list[int] = []
    for name in lake.parts():
        mark, *lines = lake.curated.download(name).decode().splitlines()
        assert mark == "FRAMED"
        while lines:
            rows = int(lines.pop(0).strip("[]"))
            found += map(int, lines[:rows])
            del lines[:rows]
    assert sorted(found) == sorted([*range(20), *range(20), *[100, 101, 102] * 20])


# Small bundles


def test_small_bundles_stage_one_block_when_there_are_many_of_them(lake: Any, bundle: Any) -> None:
    """The first of a process spread what they have over all shards; later ones take turns. Shards fill alike."""
    settings = settings_for(lake, shards=4, block_bytes=1000)
    shards = shards_of(settings)
    blocks = []
    staged = []
    for number in range(40):
        stager = BlockStager(bundle, settings, shards)
        for at in range(8):
            stager.add({"id": number * 8 + at})
        done = stager.finish()
        blocks.append([len(part.blocks) for part in done])
        staged += done
    assert blocks == [[1, 1, 1, 1]] * 16 + [[1]] * 24
    rows = [sum(part.rows for part in staged if part.path == path) for path in {part.path for part in staged}]
    assert rows == [80] * 4
    commit(bundle, settings, staged, COMMIT_ID)
    assert outcome(lake, "out/")[0] == list(range(320))


def test_a_bundle_that_is_not_small_stages_to_every_shard_whenever_it_comes(lake: Any, bundle: Any) -> None:
    """What does not fit into one block is spread."""
    settings = settings_for(lake, shards=4, block_bytes=100)
    shards = shards_of(settings)
    for _ in range(16):
        shards.begin()
    stager = BlockStager(bundle, settings, shards)
    for at in range(40):
        stager.add({"id": at})
    staged = stager.finish()
    assert [part.rows for part in staged] == [10] * 4


# Blobs that are written by one hand


class Ledger(FileFormat):
    """Lines, and at the end how many."""

    suffix = ".ledger"
    content_type = "text/x-ledger"

    def split(self, *_: Any, **__: Any) -> Any:
        """Not read here."""

    stream = decode_each = split

    def open(self, file: Any) -> Any:
        """Nothing stands at the beginning."""
        return LedgerWriter(file)


class LedgerWriter:
    """Writes lines as they come."""

    def __init__(self, file: Any) -> None:
        self.file, self.lines, self.at = file, 0, 0

    def write(self, element: int) -> None:
        """One line."""
        if not isinstance(element, int):
            raise FormatError(f"{element!r} is no number")
        self.lines += 1
        self.at += self.file.write(b"%d\n" % element)
        assert self.file.tell() == self.at

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """A line each."""
        for value in batch.column(0).to_pylist():
            self.write(value)

    def close(self) -> None:
        """The sum."""
        self.file.write(memoryview(b"total %d\n" % self.lines))


def ledgers(lake: Any, unpack: Callable[[bytes], bytes] = bytes, prefix: str = "out/") -> dict[str, list[int]]:
    """The numbers in each ledger; each is whole, and `_SUCCESS` tells the truth of it."""
    found = {}
    told = {BlobPath.parse(blob["path"]).name: blob for blob in lake.success(prefix)["blobs"]}
    for name in lake.parts(prefix):
        content = lake.curated.download(name)
        *lines, total = unpack(content).decode().splitlines()
        assert total == f"total {len(lines)}"
        assert (told[name]["rows"], told[name]["size_bytes"]) == (len(lines), len(content))
        assert told[name]["etag"] == lake.etag(lake.curated, name)
        found[name.removeprefix(prefix)] = list(map(int, lines))
    assert len(told) == len(found)
    return found


def numbers_in(files: dict[str, list[int]]) -> list[int]:
    """All of them, in order."""
    return sorted(number for lines in files.values() for number in lines)


@pytest.mark.parametrize("compression", UNPACKED)
def test_a_file_is_staged_in_blocks_and_is_whole(lake: Any, compression: Compression) -> None:
    """One a bundle, of a name of its own; elements and rows of batches, in order, many blocks long."""
    elements = [*range(300), pa.record_batch({"n": list(range(300, 600))}), *range(600, 700)]
    pipeline = lake.pipeline()
    with pipeline as p:
        (
            p
            | beam.Create([elements])
            | beam.FlatMap(lambda all_of_them: all_of_them)
            | WriteToBlob(lake.curated.url("out/"), Ledger(), block_bytes=100, compression=compression)
        )
    ((name, lines),) = ledgers(lake, UNPACKED[compression]).items()
    assert lines == list(range(700))
    assert ".ledger" in name
    assert pipeline.report.metrics["records_written"] == 700
    blocks = [record for record in staged_blocks(lake) if name in record["path"]]
    assert len(blocks) == -(-len(b"".join(b"%d\n" % number for number in range(700)) + b"total 700\n") // 100)


def test_files_of_several_bundles_stand_beside_one_another(lake: Any) -> None:
    """Nothing of one is in another's."""
    write(lake, list(range(100)), Ledger())
    assert numbers_in(ledgers(lake)) == list(range(100))


def test_a_long_file_is_followed_by_another(lake: Any, bundle: Any) -> None:
    """It is closed when it has grown long, and each is whole."""
    settings = settings_for(lake, Ledger(), block_bytes=64)
    stager = FileStager(bundle, settings, blob_bytes=200)
    for number in range(1000, 1100):
        stager.add(number)
    commit(bundle, settings, stager.finish(), COMMIT_ID)
    files = ledgers(lake)
    assert [len(lines) for lines in files.values()] == [40, 40, 20]
    assert [number for lines in files.values() for number in lines] == list(range(1000, 1100))


def test_fixed_shards_of_files_are_as_many_as_asked_for_and_filled_alike(lake: Any) -> None:
    """Each is brought together from all bundles and written by one hand; batches are cut for it."""
    elements = [*range(1000), pa.record_batch({"n": list(range(1000, 1400))}), pa.record_batch({"n": [1400]})]
    write(lake, elements, Ledger(), shards=4, block_bytes=100)
    files = ledgers(lake)
    assert list(files) == [f"part-{number:05d}-of-00004.ledger" for number in range(4)]
    assert numbers_in(files) == list(range(1401))
    rows = [len(lines) for lines in files.values()]
    assert max(rows) - min(rows) <= 30, "as many bundles as there may be begin at the same shard"


def test_fewer_elements_than_shards_make_fewer_files(lake: Any) -> None:
    """As it is with other formats; what is written is whole."""
    write(lake, [7], Ledger(), shards=8)
    assert numbers_in(ledgers(lake)) == [7]
    assert len(lake.parts()) == 1


def test_overwriting_files_writes_all_of_them_the_empty_ones_too(lake: Any) -> None:
    """A file without records is still one of its format."""
    for rows in (20, 1, 0):
        write(lake, list(range(rows)), Ledger(), shards=3, overwrite=True, block_bytes=16)
        files = ledgers(lake)
        assert len(files) == 3
        assert numbers_in(files) == list(range(rows))


def test_no_files_are_made_of_nothing(lake: Any) -> None:
    """Only the marks, with shards and without."""
    pipeline = lake.pipeline()
    with pipeline as p:
        nothing = p | beam.Create([])
        nothing | "auto" >> WriteToBlob(lake.curated.url("out/auto/"), Ledger())
        nothing | "fixed" >> WriteToBlob(lake.curated.url("out/fixed/"), Ledger(), shards=2)
    assert (lake.parts("out/auto/"), lake.parts("out/fixed/")) == ([], [])
    assert lake.success("out/fixed/")["blobs"] == []


def test_windows_of_the_input_do_not_matter_for_files(lake: Any) -> None:
    """All of a shard is brought together, from whatever windows it comes."""
    with lake.pipeline() as p:
        values = p | beam.Create(range(50)) | beam.Map(lambda at: TimestampedValue(at, at))
        values | beam.WindowInto(FixedWindows(10)) | WriteToBlob(lake.curated.url("out/"), Ledger(), shards=2)
    files = ledgers(lake)
    assert (len(files), numbers_in(files)) == (2, list(range(50)))


@pytest.mark.parametrize("shards", [None, 2])
def test_a_failed_job_leaves_no_file(lake: Any, shards: int | None) -> None:
    """An element that cannot be written; what has been staged before stays unseen."""
    with pytest.raises(FormatError, match="no number"):
        write(lake, [*range(200), "two hundred"], Ledger(), shards=shards, block_bytes=16)
    assert lake.curated.list() == []


def test_a_bundle_of_files_that_is_tried_again_leaves_nothing_of_the_first_try(lake: Any) -> None:
    """The second try stages to other names; only what the bundle gave in the end is committed."""
    settings = settings_for(lake, Ledger(), block_bytes=16)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    fn = _Stage(settings).scoped(scope, "Write/Stage")
    fn.setup()
    for first in (0, 100):
        fn.start_bundle()
        for at in range(first, first + 20):
            fn.process(at)
    staged = [windowed.value[1] for windowed in fn.finish_bundle()]
    fn.teardown()
    with open_session(scope).bundle("commit") as bundle:
        commit(bundle, settings, staged, COMMIT_ID)
        commit(bundle, settings, staged, COMMIT_ID)
    assert numbers_in(ledgers(lake)) == list(range(100, 120))
    assert len(lake.parts()) == 1
    close_session(scope.job)


def test_a_shard_that_is_written_again_holds_nothing_of_the_first_attempt(lake: Any, bundle: Any) -> None:
    """Both stage to the same blob; the commit names the blocks of the one whose outputs the runner kept."""
    settings = settings_for(lake, Ledger(), shards=1, block_bytes=16)
    path = settings.shard(0)
    attempts = []
    for first in (0, 100):
        stager = FileStager(bundle, settings, path)
        for at in range(first, first + 20):
            stager.add(at)
        attempts.append(stager.finish())
    with pytest.raises(FormatError, match="nothing was made visible"):
        commit(bundle, settings, attempts[0] + attempts[1], COMMIT_ID)
    assert lake.curated.list() == []
    commit(bundle, settings, attempts[1], COMMIT_ID)
    assert numbers_in(ledgers(lake)) == list(range(100, 120))


def test_files_survive_what_a_network_does(lake: Any) -> None:
    """Resets, throttling and lost answers neither lose, double nor reorder a block, nor undo a commit."""
    faults = [
        lake.cloud.proxy.reset(where=in_output(lake, "PutBlock"), times=1),
        lake.cloud.proxy.lose_answer(where=in_output(lake, "PutBlock"), times=2),
        lake.cloud.proxy.respond(503, "ServerBusy", where=in_output(lake), times=2, skip=3),
        lake.cloud.proxy.lose_answer(where=in_output(lake, "PutBlockList"), times=3),
    ]
    write(lake, list(range(300)), Ledger(), shards=2, block_bytes=100)
    assert [fault.hits for fault in faults] == [1, 2, 2, 3]
    files = ledgers(lake)
    assert (len(files), numbers_in(files)) == (2, list(range(300)))


@given(
    counts=st.lists(st.one_of(st.just(None), st.integers(0, 400)), max_size=20),
    shards=st.integers(1, 40),
)
def test_dealing_gives_every_element_to_one_shard_and_each_alike(counts: list[int | None], shards: int) -> None:
    """Elements and rows of batches, in one bundle; what is grouped together stays short."""
    fn, number = _Deal(shards), 0
    elements: list[Any] = []
    for count in counts:  # None is a single element
        rows = list(range(number, number + (1 if count is None else count)))
        elements.append(rows[0] if count is None else pa.record_batch({"n": pa.array(rows, pa.int64())}))
        number += len(rows)
    fn.start_bundle()
    chunks = [chunk for element in elements for chunk in fn.process(element)]
    chunks += [windowed.value for windowed in fn.finish_bundle()]
    found: dict[int, list[int]] = defaultdict(list)
    counted = 0
    for shard, (counterpart, chunk) in chunks:
        counted += counterpart
        if shard == _NOBODYS:
            assert not chunk
            continue
        assert 0 <= shard < shards
        found[shard] += RecordBatchCoder().decode(chunk)["n"].to_pylist() if isinstance(chunk, bytes) else chunk
    assert counted == 0
    assert sorted(at for rows in found.values() for at in rows) == list(range(number))
    spread = [len(found[shard]) for shard in range(shards)]
    assert max(spread) - min(spread) <= sum(1 for count in counts if count) + 1


def test_many_bytes_in_one_batch_are_dealt_in_pieces() -> None:
    """A long batch is cut by bytes, also where there is one shard."""
    fn = _Deal(1)
    fn.start_bundle()
    chunks = list(fn.process(pa.record_batch({"n": pa.array([bytes(1000)] * 20_000)})))
    assert len(chunks) == 5
    assert max(len(chunk) for _, (_, chunk) in chunks) < 5 << 20


@dataclasses.dataclass
class Scan:
    """Something long in something else."""

    pages: list[bytes]


@pytest.mark.parametrize("long", [bytes(1 << 20), {"a": {"b": ["x" * (1 << 20)]}}, Scan([bytes(1 << 20)])])
def test_elements_that_are_long_are_not_held(long: Any) -> None:
    """Sixteen megabytes of them at the most, however few they are."""
    fn = _Deal(4)
    fn.start_bundle()
    passed_on = 0
    for number in range(60):
        passed_on += sum(len(chunk) for _, (_, chunk) in fn.process(long))
        assert number - passed_on < 16
    rest = [windowed.value for windowed in fn.finish_bundle()]
    assert passed_on + sum(len(chunk) for _, (_, chunk) in rest) == 60


@pytest.mark.parametrize("elements", [[1], list(range(40))], ids=["one element", "many"])
def test_shards_of_different_deals_are_not_committed_together(lake: Any, elements: list[int]) -> None:
    """A runner that lost a bundle's outputs deals anew: all shards of one deal are right, and no mixture is."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    settings = settings_for(lake, Ledger(), shards=2)
    deals = []
    for _ in range(2):
        fn, groups = _Deal(2), defaultdict(list)
        fn.start_bundle()
        dealt = [chunk for element in elements for chunk in fn.process(element)]
        for shard, chunk in [*dealt, *(windowed.value for windowed in fn.finish_bundle())]:
            groups[shard].append(chunk)
        deals.append(groups)
    write_shard = _StageShard(settings).scoped(scope, "Write/Stage")
    write_shard.setup()
    write_shard.start_bundle()
    staged = [
        {
            shard: [part for _, part in write_shard.process((shard, groups[shard]), GlobalWindow())]
            for shard in (0, 1, _NOBODYS)
            if shard in groups
        }
        for groups in deals
    ]
    list(write_shard.finish_bundle() or ())
    first, second = staged
    step = _Commit(settings).scoped(scope, "Write/Commit")
    step.setup()
    step.start_bundle()
    for shard in first.keys() | second.keys():
        mixed = {**first, shard: second.get(shard, [])}
        with pytest.raises(StorageError, match="dealt to shards twice") as caught:
            list(step.process(("", itertools.chain.from_iterable(mixed.values())), GlobalWindow()))
        assert "again" in caught.value.hint
    assert lake.curated.list() == []
    list(step.process(("", itertools.chain.from_iterable(second.values())), GlobalWindow()))
    assert numbers_in(ledgers(lake)) == elements
    for done in (write_shard, step):
        done.teardown()
    close_session(scope.job)


# Who sees what, and when


def test_nothing_is_visible_before_the_commit_and_nothing_unfinished_after(lake: Any) -> None:
    """While the commit of a part is held, there is `_COMMITTING` and nothing else; `_SUCCESS` comes last."""
    gate_marker = lake.cloud.proxy.hold(where=in_output(lake, "PutBlockList"), times=1)
    gate_part = lake.cloud.proxy.hold(where=in_output(lake, "PutBlockList"), times=1)
    thread = threading.Thread(target=lambda: write(lake, list(range(100)), JsonLines(), shards=1))
    thread.start()
    gate_marker.gate.wait_for_arrivals()
    assert lake.curated.list() == []
    gate_marker.gate.open()
    gate_part.gate.wait_for_arrivals()
    assert lake.curated.list() == ["out/_COMMITTING"]
    gate_part.gate.open()
    thread.join()
    order = [
        exchange.request.blob.rpartition("/")[2]
        for exchange in lake.cloud.proxy.requests
        if in_output(lake, "PutBlockList")(exchange.request)
    ]
    assert order == ["_COMMITTING", "part-00000-of-00001.jsonl", "_SUCCESS"]


def test_a_commit_is_told_when_all_of_it_is_recorded(lake: Any, bundle: Any) -> None:
    """Not while the record of the last blob is under way, though the blob is there."""
    settings = settings_for(lake, shards=1)
    stager = stager_for(bundle, settings)
    stager.add({"id": 1})
    staged = stager.finish()

    def behind_success(request: Any) -> bool:
        return request.operation == "AppendBlock" and "out/_SUCCESS" in lake.curated.list()

    held = lake.cloud.proxy.hold(where=behind_success, times=1)
    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit, bundle, settings, staged, COMMIT_ID)
        held.gate.wait_for_arrivals()
        with pytest.raises(TimeoutError):
            committing.result(0.3)
        held.gate.open()
        assert [blob.rows for blob in committing.result(20)] == [1]


def test_a_writer_needs_nothing_but_to_write_blocks(lake: Any) -> None:
    """Put Block and Put Block List with a SAS for one blob and `w`: it neither reads, lists nor deletes."""
    write(lake, [[number] for number in range(200)], Csv(["n"]))
    seen = {
        (
            exchange.operation,
            exchange.request.credential,
            exchange.request.parameters.get("sp"),
            exchange.request.parameters.get("sr"),
        )
        for exchange in lake.cloud.proxy.requests
        if exchange.request.container == lake.curated.name
    }
    assert seen == {("PutBlock", "sas", "w", "b"), ("PutBlockList", "sas", "w", "b")}


def test_a_failed_job_leaves_nothing_visible(lake: Any) -> None:
    """An element that cannot be written fails the job; what others have staged stays unseen."""
    with pytest.raises(FormatError, match="a set has no JSON form") as caught:
        write(lake, [{"id": number} for number in range(200)] + [{1, 2}], JsonLines(), block_bytes=64)
    assert "map it to plain values" in str(caught.value)
    assert lake.curated.list() == []
    assert lake.only_trail().verify().seal.outcome == "failed"


# Other jobs, other people's blobs


def test_a_second_job_into_the_same_prefix_is_refused_and_changes_nothing(lake: Any) -> None:
    """The error names `_COMMITTING`; every blob of the first job is as it was."""
    write(lake, list(range(10)), JsonLines(), shards=1)
    before = {name: (lake.curated.download(name), lake.etag(lake.curated, name)) for name in lake.curated.list()}
    with pytest.raises(BlobExists, match="this one made nothing visible there") as caught:
        write(lake, list(range(20)), JsonLines())
    assert lake.curated.url("out/_COMMITTING") in str(caught.value)
    after = {name: (lake.curated.download(name), lake.etag(lake.curated, name)) for name in lake.curated.list()}
    assert after == before


def test_a_foreign_blob_of_the_same_name_is_not_touched(lake: Any) -> None:
    """Somebody else's blob under the name of a shard stays; the job fails, without `_SUCCESS`."""
    foreign = "out/part-00001-of-00002.jsonl"
    lake.curated.upload(foreign, b"precious")
    etag = lake.etag(lake.curated, foreign)
    with pytest.raises(BlobExists) as caught:
        write(lake, list(range(100)), JsonLines(), shards=2, block_bytes=16)
    assert lake.curated.url(foreign) in str(caught.value)
    assert (lake.curated.download(foreign), lake.etag(lake.curated, foreign)) == (b"precious", etag)
    assert "out/_SUCCESS" not in lake.curated.list()


def test_overwrite_replaces_an_earlier_run(lake: Any) -> None:
    """With fixed shards and only when asked for; the records are then those of the later run."""
    for run in range(2):
        write(lake, [{"run": run, "id": at} for at in range(50)], JsonLines(), shards=2, overwrite=True, block_bytes=64)
    assert {value["run"] for value in lake.written()} == {1}
    assert sorted(value["id"] for value in lake.written()) == list(range(50))
    assert [blob["etag"] for blob in lake.success()["blobs"]] == [lake.etag(lake.curated, n) for n in lake.parts()]


@pytest.mark.parametrize("format", [JsonLines(), Csv(["id"])], ids=["json", "csv"])
def test_overwrite_leaves_nothing_of_a_run_that_wrote_more(lake: Any, format: Format) -> None:
    """Fewer rows than shards: all shards are written, the others empty (a CSV has its header), and so is the trail."""
    names = [f"out/part-{number:05d}-of-00004{format.suffix}" for number in range(4)]
    for rows in (40, 1, 0):
        elements = [{"id": f"run-{rows}-{at}"} for at in range(rows)]
        pipeline = write(lake, elements, format, shards=4, overwrite=True, block_bytes=16)
        assert lake.parts() == names
        content = b"".join(lake.curated.download(name) for name in names)
        assert content.count(b"run-") == content.count(b"run-%d-" % rows) == rows
        blobs = lake.success()["blobs"]
        assert [blob["etag"] for blob in blobs] == [lake.etag(lake.curated, name) for name in names]
        assert sum(blob["rows"] for blob in blobs) == rows
        trail = lake.trail(pipeline.report.job)
        trail.verify()
        empty = [blob["path"] for blob in blobs if not blob["size_bytes"]]
        assert bool(empty) == (rows < 4 and not format.header())
        intended = {record["path"]: record for record in trail.records("commit_intended")}
        committed = {record["path"]: record for record in trail.records("committed")}
        for path in empty:
            assert [intended[path][fact] for fact in ("blocks", "size", "rows")] == [0, 0, 0]
            assert [committed[path][fact] for fact in ("confirmed", "size", "rows")] == [False, 0, 0]


def test_an_empty_shard_is_read_back(lake: Any) -> None:
    """An empty blob holds no records, compressed or not."""
    for compression in UNPACKED:
        write(lake, [{"id": 1}], JsonLines(), shards=3, overwrite=True, compression=compression)
    grants = [lake.curated.url("out/")]
    pipeline = lake.pipeline(manifest=lake.manifest(read=grants, write=[lake.curated.url("other/")]))
    with pipeline as p:
        for suffix in ("jsonl", "jsonl.gz", "jsonl.bz2", "jsonl.zst"):
            found = p | suffix >> ReadFromBlob(lake.curated.url(f"out/*.{suffix}"), JsonLines())
            assert_that(found, equal_to([{"id": 1}]), label=f"check {suffix}")


def test_an_overwrite_that_dies_midway_leaves_no_success_of_the_run_before(lake: Any) -> None:
    """While blobs are replaced, `_SUCCESS` says so; after a job that died it still does, until one succeeds."""
    first = write(lake, [{"run": 0}] * 20, JsonLines(), shards=2, overwrite=True)
    assert lake.success()["state"] == "complete"
    where = in_output(lake, "PutBlockList")
    last = "out/part-00001-of-00002.jsonl"
    lake.cloud.proxy.respond(403, "AuthorizationFailure", where=lambda request: where(request) and request.blob == last)
    with pytest.raises(AccessDenied):
        write(lake, [{"run": 1}] * 20, JsonLines(), shards=2, overwrite=True)
    lake.cloud.proxy.clear_faults()
    told = lake.success()
    assert told["state"] == "in progress"
    assert told["job"] in lake.jobs()
    assert told["job"] != first.report.job
    assert "blobs" not in told
    assert b'"run":0' in lake.curated.download(last).replace(b" ", b"")
    write(lake, [{"run": 2}] * 20, JsonLines(), shards=2, overwrite=True)
    assert lake.success()["state"] == "complete"
    assert {value["run"] for value in lake.written()} == {2}


def test_an_overwrite_of_nothing_makes_no_success_before_its_end(lake: Any) -> None:
    """Where no run has been, a `_SUCCESS` that readers look for by name does not appear until all is there."""
    lake.cloud.proxy.respond(
        403,
        "AuthorizationFailure",
        where=lambda request: in_output(lake, "PutBlockList")(request) and "/part-" in request.blob,
    )
    with pytest.raises(AccessDenied):
        write(lake, [1] * 20, JsonLines(), shards=2, overwrite=True)
    assert lake.curated.list() == ["out/_COMMITTING"]


def test_two_sinks_on_one_prefix_are_refused_when_the_pipeline_is_built(lake: Any) -> None:
    """Else the second would fail when everything has been computed."""
    pipeline = lake.pipeline()
    values = pipeline | beam.Create([1])
    values | "One" >> WriteToBlob(lake.curated.url("out/"), JsonLines())
    with pytest.raises(ConfigError, match="two sinks") as caught:
        values | "Two" >> WriteToBlob(lake.curated.url("out/"), JsonLines())
    assert "prefix of its own" in caught.value.hint
    assert lake.curated.list() == []


def test_a_prefix_outside_the_grants_is_refused_at_launch_and_audited(lake: Any) -> None:
    """Nothing is sent to it; a prefix that merely begins alike is another."""
    pipeline = lake.pipeline()
    with pytest.raises(NotGranted) as caught, pipeline as p:
        p | beam.Create([1]) | WriteToBlob(lake.curated.url("out-secret/"), JsonLines())
    assert "write" in caught.value.hint
    assert lake.cloud.proxy.count(in_output(lake)) == 0
    (denied,) = lake.only_trail().records("denied")
    assert (denied["permission"], denied["path"]) == ("write", lake.curated.url("out-secret/"))
    steps = {record["step"] for record in lake.only_trail().records("bundle_opened")}
    assert steps == {"launch", "seal the audit trail"}, "it did not come as far as a worker"


def test_a_grant_for_one_blob_is_none_for_the_prefix(lake: Any) -> None:
    """The hint names the prefix: whoever follows it can run the job, and not merely fail later."""
    granted = [lake.curated.url("out/_SUCCESS"), lake.curated.url("out/part-00000-of-00001.jsonl")]
    pipeline = lake.pipeline(manifest=lake.manifest(write=granted))
    with pytest.raises(NotGranted) as caught, pipeline as p:
        p | beam.Create([1]) | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=1)
    assert f"has no grant to write {lake.curated.url('out/')};" in str(caught.value)
    assert f'"{lake.curated.url("out/")}"' in caught.value.hint
    assert "_SUCCESS" in caught.value.hint.partition("in place of")[2]
    assert lake.cloud.proxy.count(in_output(lake)) == 0
    (denied,) = lake.only_trail().records("denied")
    assert (denied["path"], denied["by"]) == (lake.curated.url("out/"), "manifest")


def test_input_without_end_is_refused(lake: Any) -> None:
    """It would stage for ever and commit never."""
    pipeline = lake.pipeline()
    with pytest.raises(ConfigError, match="never does") as caught, pipeline as p:
        p | test_stream.TestStream() | WriteToBlob(lake.curated.url("out/"), JsonLines())
    assert caught.value.hint


class ReadOnly(BlobFormat):
    """A format of a user's own that reads and does not write."""

    suffix = ".own"
    content_type = "text/x-own"

    def split(self, *_: Any, **__: Any) -> Any:
        """Not of interest here."""

    stream = decode_each = split


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one blob for a prefix": ({"prefix": "abfss://curated@lake.dfs.core.windows.net/out"}, "not a prefix"),
    "no shards": ({"shards": 0}, "not between"),
    "too many shards": ({"shards": 10_001}, "not between"),
    "overwrite without shards": ({"overwrite": True}, "fixed number"),
    "an unknown compression": ({"compression": "zip"}, "cannot write compression"),
    "a compression without members": ({"compression": "deflate"}, "do not concatenate"),
    "guessing the compression": ({"compression": "auto"}, "cannot write compression"),
    "blocks of nothing": ({"block_bytes": 0}, "at least 1"),
    "a CSV without columns": ({"format": Csv()}, "column"),
    "Parquet files of no schema": ({"format": Parquet(), "shards": 2, "overwrite": True}, "without a schema"),
    "a format that cannot write": ({"format": ReadOnly()}, "ReadOnly reads and does not write"),
}


@pytest.mark.parametrize(("arguments", "reason"), WRONG.values(), ids=WRONG)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, Any], reason: str) -> None:
    """Before anything is built."""
    with pytest.raises(ConfigError, match=reason):
        WriteToBlob(**({"prefix": "abfss://curated@lake.dfs.core.windows.net/out/"} | arguments))


@pytest.mark.parametrize(("shards", "hint"), [(2, "more shards"), (None, "have larger blocks")])
def test_as_many_blocks_as_a_blob_holds_and_no_more(lake: Any, shards: int | None, hint: str) -> None:
    """Storage takes 50,000. What to do is what helps in this sink: none without shards is told to leave them out."""
    settings = settings_for(lake, shards=shards)
    check_blocks(settings, "a", 50_000, doing="commit")
    with pytest.raises(StorageError, match="a would have 50,001 blocks; a blob holds no more than 50,000") as caught:
        check_blocks(settings, "a", 50_001, doing="commit")
    assert hint in caught.value.hint
    assert ("leave shards out" in caught.value.hint) == bool(shards)
    assert caught.value.diagnosis.tried == "commit a"


@pytest.mark.parametrize(("format", "blocks"), [(JsonLines(), 50_000), (Csv(columns=("a",)), 49_999)])
def test_a_commit_of_too_many_blocks_makes_nothing_visible(lake: Any, bundle: Any, format: Format, blocks: int) -> None:
    """Only the commit sees what all processes have staged, and a header is a block too: it is told before any blob."""
    settings = settings_for(lake, format, shards=2)
    good = stage(bundle, settings, [{"a": 1}, {"a": 2}])  # a block in each shard
    many = tuple(f"{number:024d}" for number in range(blocks))
    much = Staged(path=str(settings.shard(1)), blocks=many, size_bytes=1, rows=1)
    with pytest.raises(StorageError, match=r"part-00001-of-00002.* would have 50,001 blocks") as caught:
        commit(bundle, settings, [*good, much], str(uuid.uuid4()))
    assert "leave shards out" in caught.value.hint
    assert lake.curated.list() == []


def test_a_process_warns_before_a_blob_has_too_many_blocks(
    lake: Any, bundle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and it goes on: what failed bundles have staged is never committed, so that there may be room."""
    settings = settings_for(lake, shards=1)
    shards = FixedShards(settings, most_blocks=10)
    for value in range(12):
        assert ("has staged" in caplog.text) == (value >= 2)
        stager = BlockStager(bundle, settings, shards)
        stager.add(value)
        staged = stager.finish()
    assert "leave shards out" in caplog.text
    assert caplog.text.count("has staged") == caplog.text.count("has staged 2 blocks of") == 1
    commit(bundle, settings, staged, str(uuid.uuid4()))
    assert lake.written() == [11]


def test_a_file_of_too_many_blocks_is_refused_while_it_is_written(lake: Any, bundle: Any) -> None:
    """One that must be one blob; others are followed by another before."""
    settings = settings_for(lake, Bytes(), block_bytes=10)
    whole = FileStager(bundle, settings, settings.prefix.child("whole"), most_blocks=4)
    whole.add(b"x" * 49)
    with pytest.raises(StorageError, match="whole would have 5 blocks; a blob holds no more than 4") as caught:
        whole.add(b"x")
    assert str(caught.value.diagnosis.tried).startswith("stage ")
    whole.abandon()
    several = FileStager(bundle, settings, blob_blocks=3, most_blocks=4)
    for _ in range(7):
        several.add(b"x" * 10)
    assert [len(part.blocks) for part in several.finish()] == [3, 3, 1]


# Retries and zombies


def outcome(lake: Any, prefix: str) -> tuple[list[Any], dict[str, tuple[str, int]]]:
    """What is visible below a prefix, held against `_SUCCESS`: values, and sizes and rows by name."""
    success = lake.success(prefix)
    blobs = {}
    for blob in success["blobs"]:
        name = BlobPath.parse(blob["path"]).name
        assert blob["etag"] == lake.etag(lake.curated, name), name
        assert blob["size_bytes"] == len(lake.curated.download(name))
        blobs[name.removeprefix(prefix)] = (blob["size_bytes"], blob["rows"])
    assert sorted(blobs) == sorted(name.removeprefix(prefix) for name in lake.parts(prefix))
    return sorted(value["id"] for value in lake.written(prefix)), blobs


def test_a_commit_whose_answers_are_lost_ends_the_same(lake: Any, bundle: Any) -> None:
    """Each request of the step in turn is done and its answer dropped: the outcome is that of an undisturbed step."""

    def one(prefix: str, nth: int | None) -> tuple[tuple[list[Any], dict[str, Any]], int]:
        settings = settings_for(lake, prefix=prefix, shards=2, block_bytes=60)
        staged = stage(bundle, settings, [{"id": at} for at in range(30)])
        staged += stage(bundle, settings, [{"id": at} for at in range(30, 50)])
        before = len(lake.cloud.proxy.requests)
        fault = lake.cloud.proxy.lose_answer(where=in_output(lake), times=1, skip=nth) if nth is not None else None
        commit(bundle, settings, staged, str(uuid.uuid4()))
        seen = [e for e in lake.cloud.proxy.requests[before:] if in_output(lake)(e.request)]
        assert fault is None or fault.hits == 1
        lake.cloud.proxy.clear_faults()
        return outcome(lake, prefix), len(seen)

    undisturbed, requests = one("out/plain/", None)
    assert undisturbed[0] == list(range(50))
    assert requests == 6
    for nth in range(requests):
        assert one(f"out/{nth}/", nth)[0] == undisturbed


def test_an_overwrite_whose_answers_are_lost_ends_the_same(lake: Any, bundle: Any) -> None:
    """Each request of the step in turn: over an earlier run, with a shard to be emptied, and run again afterwards."""
    full, requests = settings_for(lake, shards=3, overwrite=True), 9

    def writing(request: StorageRequest) -> bool:
        return in_output(lake)(request) and request.operation.startswith("Put")

    for nth in range(requests):
        commit(bundle, full, stage(bundle, full, [{"id": at} for at in range(30)]), str(uuid.uuid4()))
        staged, commit_id = stage(bundle, full, [{"id": at} for at in range(2)]), str(uuid.uuid4())
        before = len(lake.cloud.proxy.requests)
        fault = lake.cloud.proxy.lose_answer(where=writing, times=1, skip=nth)
        commit(bundle, full, staged, commit_id)
        assert fault.hits == 1
        lake.cloud.proxy.clear_faults()
        seen = [each for each in lake.cloud.proxy.requests[before:] if writing(each.request)]
        assert len(seen) > requests, "the one that was lost, and its retry"
        commit(bundle, full, staged, commit_id)
        ids, blobs = outcome(lake, "out/")
        assert (ids, len(blobs), lake.success()["state"]) == ([0, 1], 3, "complete")


def test_a_commit_step_that_runs_again_changes_nothing_but_etags(lake: Any, bundle: Any) -> None:
    """A runner may repeat the step after it succeeded; `_SUCCESS` tells the truth after each time."""
    settings = settings_for(lake, Csv(["id"]), shards=2, block_bytes=60)
    staged = stage(bundle, settings, [{"id": at} for at in range(30)])
    first = commit(bundle, settings, staged, COMMIT_ID)
    contents = {name: lake.curated.download(name) for name in lake.parts()}
    for _ in range(2):
        again = commit(bundle, settings, list(reversed(staged)), COMMIT_ID)
        assert all(blob.confirmed for blob in again)
        assert [(blob.path, blob.rows) for blob in again] == [(blob.path, blob.rows) for blob in first]
        assert {name: lake.curated.download(name) for name in lake.parts()} == contents
        assert {blob["etag"] for blob in lake.success()["blobs"]} == {lake.etag(lake.curated, n) for n in lake.parts()}


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("died", ["_COMMITTING", "part-", "_SUCCESS", ""])
def test_an_attempt_with_other_blocks_finishes_what_was_begun(
    lake: Any, bundle: Any, shards: int | None, died: str
) -> None:
    """A runner that starts over stages all anew and repeats the step: wherever that died, the first plan stands."""
    settings = settings_for(lake, shards=shards, block_bytes=60)
    elements = [{"id": at} for at in range(30)]
    first, again = stage(bundle, settings, elements), stage(bundle, settings, elements)
    assert shards or first[0].path != again[0].path, "with automatic shards even the names differ"
    where = in_output(lake, "PutBlockList")
    fault = lake.cloud.proxy.respond(
        403,
        "AuthorizationFailure",
        where=lambda request: bool(died) and where(request) and died in request.blob,
        skip=1 if died == "part-" and shards else 0,
    )
    with pytest.raises(AccessDenied) if died else nullcontext():
        commit(bundle, settings, first, COMMIT_ID)
    fault.clear()
    begun = died != "_COMMITTING"
    done = commit(bundle, settings, again, COMMIT_ID)
    assert {blob.path for blob in done} == {part.path for part in (first if begun else again)}
    assert sum(blob.rows for blob in done) == 30
    assert outcome(lake, "out/")[0] == list(range(30))
    assert lake.success()["rows"] == 30
    assert [blob["etag"] for blob in lake.success()["blobs"]] == [lake.etag(lake.curated, n) for n in lake.parts()]
    once_more = commit(bundle, settings, again, COMMIT_ID)
    assert {blob.path for blob in once_more} == {blob.path for blob in done}
    assert outcome(lake, "out/")[0] == list(range(30))


def test_a_marker_that_this_commit_did_not_write_is_not_followed(
    lake: Any, bundle: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither another commit's, nor one that is no plan or leads out of the prefix, nor one that we may not read."""
    settings = settings_for(lake, block_bytes=60)
    staged = stage(bundle, settings, [{"id": 1}])
    blob = {"path": lake.curated.url("out/a"), "size_bytes": 1, "rows": 1, "unique": True, "blocks": ["AAAA"]}
    outside = {**blob, "path": lake.curated.url("outside/a")}
    for told in (
        b"",
        b"[]",
        b'{"commit": "' + COMMIT_ID.encode() + b'"}',
        json.dumps({"commit": str(uuid.uuid4()), "blobs": [blob]}).encode(),
        json.dumps({"commit": COMMIT_ID, "blobs": [outside]}).encode(),
        json.dumps({"commit": COMMIT_ID, "blobs": [{**blob, "more": 1}]}).encode(),
        json.dumps({"commit": COMMIT_ID, "blobs": ["a"]}).encode(),
    ):
        lake.curated.upload("out/_COMMITTING", told)
        with pytest.raises(BlobExists, match="has begun before"):
            commit(bundle, settings, staged, COMMIT_ID)
        assert lake.curated.list() == ["out/_COMMITTING"]
    lake.curated.upload("out/_COMMITTING", json.dumps({"commit": COMMIT_ID, "blobs": [blob]}).encode())
    lake.cloud.proxy.without_role(where=in_output(lake, "GetBlob"))
    lake.cloud.proxy.without_role(where=in_output(lake, "GetBlobProperties"))
    with caplog.at_level("WARNING"), pytest.raises(BlobExists, match="has begun before"):
        commit(bundle, settings, staged, COMMIT_ID)
    assert "an attempt that died is not finished" in caplog.text


def test_a_marker_stays_small() -> None:
    """It names blobs, and their blocks only where these are not too many for one small blob."""
    few, many = (
        Staged(path="a", size_bytes=1, rows=1, unique=True, blocks=("AAAA",) * count) for count in (100_000, 100_001)
    )
    assert [len(blob["blocks"]) for blob in _planned({"a": [few], "b": [few]}, MOST_PLANNED)] == [100_000] * 2
    assert _planned({"a": [few], "b": [many]}, MOST_PLANNED) == ["a", "b"]


def test_who_takes_up_a_commit_reads_its_marker_and_nothing_else(lake: Any, bundle: Any) -> None:
    """The SAS is for that one blob and `r`; nothing else under the prefix is read, and a bundle cannot do it."""
    settings = settings_for(lake, block_bytes=60)
    first, again = (stage(bundle, settings, [{"id": 1}]) for _ in range(2))
    commit(bundle, settings, first, COMMIT_ID)
    lake.cloud.proxy.clear()
    commit(bundle, settings, again, COMMIT_ID)
    read = [each.request for each in lake.cloud.proxy.requests if each.request.method in {"GET", "HEAD"}]
    assert {request.blob for request in read} == {"out/_COMMITTING"}
    assert {(request.parameters["sp"], request.parameters["sr"]) for request in read} == {("r", "b")}
    marker = BlobPath.parse(lake.curated.url("out/_COMMITTING"))
    with pytest.raises(NotGranted):
        bundle.properties(marker)
    for path in ("out/_SUCCESS", "out/part-a", "out/_COMMITTING/a", "elsewhere/_COMMITTING"):
        with pytest.raises(NotGranted):
            read_marker(bundle.session, BlobPath.parse(lake.curated.url(path)))


def test_two_attempts_of_the_commit_at_once_give_one_outcome(
    lake: Any, sessions: Callable[[JobScope], Session]
) -> None:
    """A zombie runs beside its successor, in another process: both end well, and nothing is doubled."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    for number in range(4):
        settings = settings_for(lake, prefix=f"out/{number}/", shards=3, block_bytes=60)
        with sessions(scope).bundle("stage") as bundle:
            staged = stage(bundle, settings, [{"id": at} for at in range(60)])
        barrier = threading.Barrier(2)

        def attempt(settings: WriteSettings = settings, staged: list[Staged] = staged, barrier: Any = barrier) -> Any:
            with sessions(scope).bundle("commit") as bundle:
                barrier.wait()
                return commit(bundle, settings, staged, COMMIT_ID)

        with ThreadPoolExecutor(2) as pool:
            first, second = (future.result() for future in [pool.submit(attempt), pool.submit(attempt)])
        assert [blob.path for blob in first] == [blob.path for blob in second]
        assert outcome(lake, f"out/{number}/")[0] == list(range(60))


def test_success_is_true_when_its_first_writer_was_overtaken(
    lake: Any, sessions: Callable[[JobScope], Session]
) -> None:
    """One attempt has committed and is about to say so; another confirms all blobs, which changes their ETags."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    settings = settings_for(lake, shards=2, block_bytes=60)
    with sessions(scope).bundle("stage") as bundle:
        staged = stage(bundle, settings, [{"id": at} for at in range(20)])
    held = lake.cloud.proxy.hold(
        where=lambda request: in_output(lake, "PutBlockList")(request) and request.blob == "out/_SUCCESS", times=1
    )

    def attempt() -> None:
        with sessions(scope).bundle("commit") as bundle:
            commit(bundle, settings, staged, COMMIT_ID)

    overtaken = threading.Thread(target=attempt)
    overtaken.start()
    held.gate.wait_for_arrivals()
    attempt()
    assert outcome(lake, "out/")[0] == list(range(20))
    held.gate.open()
    overtaken.join()
    assert outcome(lake, "out/")[0] == list(range(20))


def test_a_zombie_of_another_job_cannot_commit_over_the_one_that_came_first(
    lake: Any, sessions: Callable[[JobScope], Session]
) -> None:
    """Staged before, commits after: what the later job made visible stays as it is."""
    settings = settings_for(lake, shards=1, block_bytes=60)
    ids: dict[str, list[Staged]] = {}
    bundles = {}
    for name in ("zombie", "winner"):
        bundles[name] = sessions(JobScope.launch(lake.manifest(), now=utc_now())).bundle(name)
        ids[name] = stage(bundles[name], settings, [{"id": name}] * 5)
    commit(bundles["winner"], settings, ids["winner"], str(uuid.uuid4()))
    before = {name: lake.curated.download(name) for name in lake.curated.list()}
    with pytest.raises(BlobExists):
        commit(bundles["zombie"], settings, ids["zombie"], str(uuid.uuid4()))
    assert {name: lake.curated.download(name) for name in lake.curated.list()} == before
    assert {value["id"] for value in lake.written()} == {"winner"}


def everything(lake: Any) -> dict[str, tuple[bytes, str]]:
    """Content and ETag of all that is visible."""
    return {name: (lake.curated.download(name), lake.etag(lake.curated, name)) for name in lake.curated.list()}


@pytest.mark.parametrize(
    ("format", "other_job", "existed"),
    [
        (JsonLines(), False, False),
        (JsonLines(), True, True),
        (Csv(["id"]), False, True),
        (Csv(["id"]), True, False),
    ],
    ids=["json-attempt-new", "json-job-replaced", "csv-attempt-replaced", "csv-job-new"],
)
def test_a_zombie_cannot_empty_what_its_successor_has_filled(
    lake: Any, sessions: Callable[[JobScope], Session], format: Format, other_job: bool, existed: bool
) -> None:
    """It is to commit a shard without rows, and is paused; its successor overwrites all, that shard with rows."""
    settings = settings_for(lake, format, shards=2, block_bytes=60, overwrite=True)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    empty = settings.shard(1)
    zombie, successor = (sessions(scope).bundle(name) for name in ("zombie", "successor"))
    if existed:
        commit(successor, settings, stage(successor, settings, [{"id": at} for at in range(9)]), str(uuid.uuid4()))
    held = lake.cloud.proxy.hold(
        where=lambda request: in_output(lake, "PutBlockList")(request) and request.blob == empty.name, times=1
    )
    few = [part for part in stage(zombie, settings, [{"id": at} for at in range(9)]) if part.path != str(empty)]
    with ThreadPoolExecutor(1) as pool:
        # Of so many blocks that the marker does not name them: else the successor would finish what was begun.
        late = pool.submit(commit, zombie, settings, few, COMMIT_ID, most_planned=0)
        held.gate.wait_for_arrivals()
        many = stage(successor, settings, [{"id": at} for at in range(20, 50)])
        done = commit(successor, settings, many, str(uuid.uuid4()) if other_job else COMMIT_ID)
        assert all(blob.rows for blob in done)
        before = everything(lake)
        held.gate.open()
        with pytest.raises(BlobChanged, match="no longer what it was when this commit began") as caught:
            late.result()
    assert str(empty) in str(caught.value)
    assert everything(lake) == before
    assert lake.success()["state"] == "complete"


def test_who_finishes_an_overwrite_replaces_what_was_there_when_it_began(
    lake: Any, sessions: Callable[[JobScope], Session]
) -> None:
    """Not what another job has written since: the versions are in the plan that it takes up."""
    settings = settings_for(lake, shards=2, block_bytes=60, overwrite=True)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    zombie, successor = (sessions(scope).bundle(name) for name in ("zombie", "successor"))
    where, empty = in_output(lake, "PutBlockList"), settings.shard(1)
    few = [part for part in stage(zombie, settings, [{"id": at} for at in range(9)]) if part.path != str(empty)]
    lake.cloud.proxy.respond(
        403, "AuthorizationFailure", where=lambda request: where(request) and request.blob == empty.name
    )
    with pytest.raises(AccessDenied):
        commit(zombie, settings, few, COMMIT_ID)
    lake.cloud.proxy.clear_faults()
    held = lake.cloud.proxy.hold(where=lambda request: where(request) and request.blob == empty.name, times=1)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(commit, zombie, settings, [], COMMIT_ID)
        held.gate.wait_for_arrivals()
        many = stage(successor, settings, [{"id": at} for at in range(20, 50)])
        commit(successor, settings, many, str(uuid.uuid4()))
        before = everything(lake)
        held.gate.open()
        with pytest.raises(BlobChanged):
            late.result()
    assert everything(lake) == before


@pytest.mark.parametrize("paused", ["_COMMITTING", "_SUCCESS"])
def test_a_zombie_that_is_paused_at_a_marker_changes_nothing(
    lake: Any, sessions: Callable[[JobScope], Session], paused: str
) -> None:
    """Another job overwrites all meanwhile; its `_COMMITTING` and its `_SUCCESS` stay, too."""
    settings = settings_for(lake, shards=2, block_bytes=60, overwrite=True)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    zombie, successor = (sessions(scope).bundle(name) for name in ("zombie", "successor"))
    rows = [{"id": at} for at in range(9)]
    commit(successor, settings, stage(successor, settings, rows), str(uuid.uuid4()))
    held = lake.cloud.proxy.hold(
        where=lambda request: in_output(lake, "PutBlockList")(request) and request.blob == f"out/{paused}", times=1
    )
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(commit, zombie, settings, [], COMMIT_ID)
        held.gate.wait_for_arrivals()
        commit(successor, settings, stage(successor, settings, rows), str(uuid.uuid4()))
        before = everything(lake)
        held.gate.open()
        with pytest.raises(BlobExists if paused == "_COMMITTING" else BlobChanged):
            late.result()
    assert everything(lake) == before


def test_a_job_that_was_overtaken_before_its_commit_empties_nothing(
    lake: Any, sessions: Callable[[JobScope], Session]
) -> None:
    """Its blocks are gone: it fails at them before it comes to its shards without rows."""
    settings = settings_for(lake, shards=2, block_bytes=60, overwrite=True)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    zombie, successor = (sessions(scope).bundle(name) for name in ("zombie", "successor"))
    first = stage(zombie, settings, [{"id": 0}])
    commit(successor, settings, stage(successor, settings, [{"id": at} for at in range(9)]), str(uuid.uuid4()))
    parts = {name: lake.curated.download(name) for name in lake.parts()}
    with pytest.raises(StorageError, match="not there any more"):
        commit(zombie, settings, first, COMMIT_ID)
    assert {name: lake.curated.download(name) for name in lake.parts()} == parts


@pytest.mark.parametrize("format", [JsonLines(), Csv(["id"])], ids=["json", "csv"])
def test_an_overwrite_is_finished_as_it_was_begun(lake: Any, bundle: Any, format: Format) -> None:
    """An attempt that has other rows in each shard takes up the first one's plan, the shards without rows too."""
    settings = settings_for(lake, format, shards=3, block_bytes=60, overwrite=True)
    commit(bundle, settings, stage(bundle, settings, [{"id": f"old-{at}"} for at in range(30)]), str(uuid.uuid4()))
    where = in_output(lake, "PutBlockList")
    fault = lake.cloud.proxy.respond(
        403, "AuthorizationFailure", where=lambda request: where(request) and "part-" in request.blob, skip=2
    )
    first = [part for part in stage(bundle, settings, [{"id": at} for at in range(30)]) if "part-00001" in part.path]
    with pytest.raises(AccessDenied):
        commit(bundle, settings, first, COMMIT_ID)
    fault.clear()
    assert lake.success()["state"] == "in progress"
    for _ in range(2):
        done = commit(bundle, settings, stage(bundle, settings, [{"id": "new"}] * 30), COMMIT_ID)
        assert [blob.rows for blob in done] == [0, sum(part.rows for part in first), 0]
        content = b"".join(lake.curated.download(name) for name in lake.parts())
        assert b"old" not in content
        assert b"new" not in content
        assert [blob["etag"] for blob in lake.success()["blobs"]] == [lake.etag(lake.curated, n) for n in lake.parts()]


def test_a_commit_whose_marker_names_no_blocks_is_not_finished(lake: Any, bundle: Any) -> None:
    """There were too many: another attempt is refused, and what the first has committed stays."""
    settings = settings_for(lake, shards=2, block_bytes=60)
    rows = [{"id": at} for at in range(9)]
    first, again = stage(bundle, settings, rows), stage(bundle, settings, rows)
    most = sum(len(part.blocks) for part in first) - 1
    where = in_output(lake, "PutBlockList")
    fault = lake.cloud.proxy.respond(
        403, "AuthorizationFailure", where=lambda request: where(request) and "_SUCCESS" in request.blob
    )
    with pytest.raises(AccessDenied):
        commit(bundle, settings, first, COMMIT_ID, most_planned=most)
    fault.clear()
    before = everything(lake)
    assert json.loads(before["out/_COMMITTING"][0])["blobs"] == sorted(part.path for part in first)
    with pytest.raises(BlobExists, match="has begun before"):
        commit(bundle, settings, again, COMMIT_ID, most_planned=most)
    assert everything(lake) == before
    commit(bundle, settings, first, COMMIT_ID, most_planned=most)
    assert outcome(lake, "out/")[0] == list(range(9))


def test_who_overwrites_reads_no_content(lake: Any, bundle: Any) -> None:
    """The marker alone is read; of `_SUCCESS` and the shards that get no rows, the version is asked for."""
    settings = settings_for(lake, shards=2, block_bytes=60, overwrite=True)
    commit(bundle, settings, stage(bundle, settings, [{"id": at} for at in range(9)]), str(uuid.uuid4()))
    lake.cloud.proxy.clear()
    staged = [part for part in stage(bundle, settings, [{"id": at} for at in range(9)]) if "part-00000" in part.path]
    commit(bundle, settings, staged, COMMIT_ID)
    asked = [each.request for each in lake.cloud.proxy.requests if each.request.method in {"GET", "HEAD"}]
    assert {(request.parameters["sp"], request.parameters["sr"]) for request in asked} == {("r", "b")}
    assert {request.blob for request in asked if request.method == "GET"} == {"out/_COMMITTING"}
    assert {request.blob for request in asked} == {"out/_COMMITTING", "out/_SUCCESS", settings.shard(1).name}


def test_who_may_only_write_overwrites_shards_with_rows(lake: Any, bundle: Any) -> None:
    """An identity that may not read: blobs are replaced by others; by an empty one none is, and nothing is visible."""
    settings = settings_for(lake, shards=2, block_bytes=60, overwrite=True)
    rows = [{"id": at} for at in range(9)]
    commit(bundle, settings, stage(bundle, settings, rows), str(uuid.uuid4()))
    lake.cloud.proxy.without_role(where=in_output(lake, "GetBlob"))
    lake.cloud.proxy.without_role(where=in_output(lake, "GetBlobProperties"))
    commit(bundle, settings, stage(bundle, settings, rows), str(uuid.uuid4()))
    assert outcome(lake, "out/")[0] == list(range(9))
    before = everything(lake)
    with pytest.raises(AccessDenied, match="without rows: it might be another job's; nothing was made visible"):
        commit(bundle, settings, stage(bundle, settings, rows[:1]), str(uuid.uuid4()))
    assert everything(lake) == before


def test_staging_survives_what_a_network_does(lake: Any) -> None:
    """Resets, throttling and lost answers while staging neither lose nor double a record."""
    faults = [
        lake.cloud.proxy.reset(where=in_output(lake, "PutBlock"), times=1),
        lake.cloud.proxy.lose_answer(where=in_output(lake, "PutBlock"), times=2),
        lake.cloud.proxy.respond(503, "ServerBusy", where=in_output(lake), times=2, skip=3),
    ]
    write(lake, [{"id": number} for number in range(300)], JsonLines(), shards=2, block_bytes=100)
    assert [fault.hits for fault in faults] == [1, 2, 2]
    assert outcome(lake, "out/")[0] == list(range(300))


def test_blocks_of_a_bundle_that_was_given_up_are_in_no_blob(lake: Any, bundle: Any) -> None:
    """A dead attempt has staged to the same blob; the commit names only the blocks of bundles that succeeded."""
    settings = settings_for(lake, shards=1, block_bytes=20)
    dead = BlockStager(bundle, settings, shards_of(settings))
    for at in range(20):
        dead.add({"id": at})
    dead.abandon()
    staged = stage(bundle, settings, [{"id": at} for at in range(20)])
    commit(bundle, settings, staged, COMMIT_ID)
    assert outcome(lake, "out/")[0] == list(range(20))


def test_a_bundle_that_is_tried_again_in_the_same_process_holds_nothing_of_the_first_try(lake: Any) -> None:
    """The runner gives up on a bundle and starts it again with the same DoFn: only the second try counts."""
    settings = settings_for(lake, shards=1, block_bytes=60)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    fn = _Stage(settings).scoped(scope, "Write/Stage")
    fn.setup()
    for _ in range(2):
        fn.start_bundle()
        for at in range(20):
            fn.process({"id": at})
    staged = [windowed.value[1] for windowed in fn.finish_bundle()]
    fn.teardown()
    assert sum(part.rows for part in staged) == 20
    with open_session(scope).bundle("commit") as bundle:
        commit(bundle, settings, staged, COMMIT_ID)
    assert outcome(lake, "out/")[0] == list(range(20))
    close_session(scope.job)


def test_a_bundle_whose_last_blocks_fail_waits_for_the_others_before_it_ends(lake: Any) -> None:
    """What is under way when a bundle fails is over when the runner has been told that the bundle is given up."""
    settings = settings_for(lake, shards=4, block_bytes=10_000)
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    fn = _Stage(settings).scoped(scope, "Write/Stage")
    fn.start_bundle()
    for at in range(40):
        fn.process({"id": at})
    lake.cloud.proxy.respond(403, "AuthorizationPermissionMismatch", where=in_output(lake, "PutBlock"), times=1)
    held = lake.cloud.proxy.hold(0.3, where=in_output(lake, "PutBlock"), times=3)
    with pytest.raises(AccessDenied):
        list(fn.finish_bundle())
    fn.teardown()
    assert sum(exchange.fault == "hold" for exchange in lake.cloud.proxy.requests) == held.hits
    assert [r["outcome"] for r in lake.trail(scope.job).records("bundle_closed")] == ["abandoned"]
    close_session(scope.job)


def test_no_more_is_held_and_under_way_than_a_few_blocks(lake: Any, bundle: Any) -> None:
    """A bundle of any size waits when its blocks are not taken: memory is bounded."""
    held = lake.cloud.proxy.hold(where=in_output(lake, "PutBlock"))
    settings = settings_for(lake, shards=1, block_bytes=100)
    stager = BlockStager(bundle, settings, shards_of(settings))
    done = threading.Event()

    def feed() -> None:
        for at in range(1000):
            stager.add({"id": at})
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    held.gate.wait_for_arrivals(4)
    assert not done.wait(0.2)
    assert held.gate.arrived == 4
    assert stager.rows < 100
    held.gate.open()
    thread.join()
    assert sum(part.rows for part in stager.finish()) == 1000


@pytest.mark.parametrize(
    ("chosen", "element", "most"),
    [(Ledger(), 10**99, 4), (Bytes(), bytes(250), 5), (Bytes(), bytes(100), 4), (Bytes(), b"x", 16)],
    ids=["a file", "long elements", "elements of a block", "short elements"],
)
def test_no_more_is_under_way_whatever_the_format(
    lake: Any, bundle: Any, chosen: FileFormat, element: Any, most: int
) -> None:
    """Four blocks; and however short they are, sixteen requests."""
    held = lake.cloud.proxy.hold(where=in_output(lake, "PutBlock"))
    settings = settings_for(lake, chosen, block_bytes=100)
    stager = stager_for(bundle, settings)
    done = threading.Event()

    def feed() -> None:
        for _ in range(40):
            stager.add(element)
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    held.gate.wait_for_arrivals(most)
    assert not done.wait(0.2)
    assert held.gate.arrived == most
    held.gate.open()
    thread.join()
    assert sum(part.rows for part in stager.finish()) == 40


@pytest.mark.parametrize(("shards", "most"), [(8, 15 << 20), (64, 20 << 20)])
def test_the_memory_of_writing_is_that_of_some_blocks(lake: Any, bundle: Any, shards: int, most: int) -> None:
    """However much is written: half a buffer for each shard, all of 16 MiB at the most, and four blocks under way."""
    settings = settings_for(lake, Lines(), shards=shards, block_bytes=1 << 20)
    stager = BlockStager(bundle, settings, shards_of(settings))
    line = "x" * 16_383
    tracemalloc.start()
    try:
        for _ in range(32 << 6):
            stager.add(line)
        staged = stager.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [part.size_bytes for part in staged] == [(32 << 20) // shards] * shards
    assert peak < most


def test_what_is_staged_is_recorded_before_anybody_hears_of_it(lake: Any, bundle: Any) -> None:
    """The last block's record, too, is durable when a bundle says what it has staged."""
    settings = settings_for(lake, shards=1)
    stager = BlockStager(bundle, settings, shards_of(settings))
    stager.add({"id": 1})
    block = lake.cloud.proxy.hold(where=in_output(lake, "PutBlock"), times=1)
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(stager.finish)
        block.gate.wait_for_arrivals()
        bundle.settle()  # what has been recorded before
        record = lake.cloud.proxy.hold(where=lambda request: request.operation == "AppendBlock", times=1)
        block.gate.open()
        record.gate.wait_for_arrivals()
        assert not wait([finished], timeout=0.2).done
        record.gate.open()
        assert [part.rows for part in finished.result()] == [1]
