"""Reading over the wire: what is matched is read once, in the version that was matched, and by nobody who may not."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.metrics.metric import Lineage
from apache_beam.portability import common_urns
from apache_beam.testing.util import assert_that, equal_to

from beam_entra import BadRecord, Csv, JsonLines, Lines, ReadAllFromBlob, ReadFromBlob, ScopedPipeline
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditUnavailable,
    BeamEntraError,
    BlobChanged,
    BlobNotFound,
    ConfigError,
    FormatError,
    NotGranted,
)
from beam_entra.io.match import match
from beam_entra.io.packs import Pack, keyed
from beam_entra.io.read import ReadSettings, _ReadBlocks
from beam_entra.io.source import BlobSource
from beam_entra.paths import BlobPath, BlobPattern
from beam_entra.session import JobScope, Session, tallied
from beam_entra.testing.storage_requests import matching


def data_requests(lake: Any) -> list[str]:
    """Operations that reached the container with the input."""
    return [seen.operation for seen in lake.cloud.proxy.requests if seen.request.container == lake.raw.name]


def run(lake: Any, *reads: Any, flags: tuple[str, ...] = ()) -> ScopedPipeline:
    """Run a job of these reads."""
    pipeline = lake.pipeline(*flags)
    with pipeline as p:
        for number, read in enumerate(reads):
            p | f"Read {number}" >> read
    return pipeline


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start work that is expected to fail; what it raises is in the list when the thread has ended."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BeamEntraError as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    return thread, raised


def test_every_way_to_name_blobs_reads_each_record_once(lake: Any) -> None:
    """Globs, one blob, other spellings, compression by name and by setting, several patterns at once."""
    for number in range(3):
        lake.upload_json(f"in/day/{number}.jsonl", [{"id": number * 10 + at} for at in range(3)])
    lake.upload_json("in/day/deeper/9.jsonl", [{"id": 90}])
    lake.raw.upload("in/day/0.csv", b"id,n\r\n1,x\r\n")
    lake.raw.upload("in/packed.jsonl.gz", gzip.compress(b'{"id":1}\n') + gzip.compress(b'{"id":2}\n'))
    lake.raw.upload("in/packed.data", gzip.compress(b"a\nb\n"))
    lake.raw.upload("in/plain.gz", b"not packed\n")
    lake.raw.upload("in/empty.jsonl", b"")
    lake.raw.upload("in-secret/1.jsonl", b'{"id":"secret"}\n')
    account, container = lake.raw.account, lake.raw.name
    days = [number * 10 + at for number in range(3) for at in range(3)]
    cases: dict[str, tuple[Any, list[Any]]] = {
        "a star": (ReadFromBlob(lake.raw.url("in/day/*.jsonl"), JsonLines(ident)), days),
        "two stars": (ReadFromBlob(lake.raw.url("in/day/**.jsonl"), JsonLines(ident)), [*days, 90]),
        "a class": (ReadFromBlob(lake.raw.url("in/day/[01].jsonl"), JsonLines(ident)), days[:6]),
        "one blob": (ReadFromBlob(lake.raw.url("in/day/1.jsonl"), JsonLines(ident)), days[3:6]),
        "azfs": (ReadFromBlob(f"azfs://{account}/{container}/in/day/0.jsonl", JsonLines(ident)), days[:3]),
        "https": (
            ReadFromBlob(f"https://{account}.blob.core.windows.net/{container}/in/day/0.jsonl", JsonLines(ident)),
            days[:3],
        ),
        "gzip by name": (ReadFromBlob(lake.raw.url("in/*.jsonl.gz"), JsonLines(ident)), [1, 2]),
        "gzip by setting": (ReadFromBlob(lake.raw.url("in/packed.data"), Lines(), compression="gzip"), ["a", "b"]),
        "no gzip by setting": (ReadFromBlob(lake.raw.url("in/plain.gz"), compression="none"), ["not packed"]),
        "csv": (ReadFromBlob(lake.raw.url("in/day/*.csv"), Csv()), [{"id": "1", "n": "x"}]),
        "an empty blob": (ReadFromBlob(lake.raw.url("in/empty.jsonl"), JsonLines()), []),
        "nothing, if allowed": (ReadFromBlob(lake.raw.url("in/none-*"), allow_empty=True), []),
        "no such blob, if allowed": (ReadFromBlob(lake.raw.url("in/none"), allow_empty=True), []),
    }
    pipeline = lake.pipeline()
    with pipeline as p:
        for name, (read, expected) in cases.items():
            assert_that(p | name >> read, equal_to(expected), label=f"check {name}")
        patterns = p | beam.Create([lake.raw.url("in/day/0.jsonl"), lake.raw.url("in/*.jsonl.gz")])
        assert_that(patterns | ReadAllFromBlob(JsonLines(ident)), equal_to([*days[:3], 1, 2]), label="check all")
    assert pipeline.report.outcome == "ok"
    lake.trail(pipeline.report.job).verify()


def test_markers_are_no_input_unless_they_are_asked_for(lake: Any) -> None:
    """A job reads what another wrote with the pattern that comes to mind: `_SUCCESS` and `_COMMITTING` stay out."""
    for folder in ("in/", "in/day/"):
        lake.upload_json(f"{folder}part-0.jsonl", [{"id": folder}])
        for marker in ("_COMMITTING", "_SUCCESS"):
            lake.upload_json(f"{folder}{marker}", [{"id": folder + marker}])
    lake.upload_json("in/_day/part-0.jsonl", [{"id": "in/_day/"}])
    cases = {
        "in/*": ["in/"],
        "in/": ["in/"],
        "in/**": ["in/", "in/day/", "in/_day/"],
        "in/*/*": ["in/day/", "in/_day/"],
        "in/_*": ["in/_COMMITTING", "in/_SUCCESS"],
        "in/*/_S*": ["in/day/_SUCCESS"],
        "in/_SUCCESS": ["in/_SUCCESS"],
    }
    with lake.pipeline() as p:
        for pattern, expected in cases.items():
            found = p | pattern >> ReadFromBlob(lake.raw.url(pattern), JsonLines(ident))
            assert_that(found, equal_to(expected), label=f"check {pattern}")
        everything = p | beam.Create([lake.raw.url("in/*")]) | ReadAllFromBlob(JsonLines(ident))
        assert_that(everything, equal_to(["in/"]), label="check all")


def test_markers_alone_are_no_input(lake: Any) -> None:
    """The job before had nothing to write: its markers are not its records."""
    lake.upload_json("in/_SUCCESS", [{"blobs": []}])
    with pytest.raises(BlobNotFound, match="no blob matches"):
        run(lake, ReadFromBlob(lake.raw.url("in/*")))
    run(lake, ReadFromBlob(lake.raw.url("in/*"), allow_empty=True))


def test_a_file_system_sees_markers(bundle: Any, lake: Any) -> None:
    """Beam's own globs know no hidden names."""
    lake.upload_json("in/_SUCCESS", [1])
    lake.upload_json("in/part-0", [1])
    names = [blob.path.name for blob in match(bundle, BlobPattern.parse(lake.raw.url("in/*")))]
    assert names == ["in/_SUCCESS", "in/part-0"]


def test_an_odd_name_that_is_not_matched_is_nobodys_trouble(lake: Any) -> None:
    """It fails the reads that would have to read it, and names itself; the trail counts every name that was listed."""
    lake.upload_json("in/w/1.jsonl", [{"id": 1}])
    for odd in ("in/w/archive//old.jsonl", "in/w/archive/dots./x.jsonl"):
        lake.raw.upload(odd, b"{}\n")
    pipeline = lake.pipeline()
    with pipeline as p:
        assert_that(p | ReadFromBlob(lake.raw.url("in/w/*.jsonl"), JsonLines(ident)), equal_to([1]))
    records = lake.trail(pipeline.report.job).records("listed")
    (listed,) = (record for record in records if record["path"] == lake.raw.url("in/w/"))
    assert listed["blobs"] == 3
    with pytest.raises(ConfigError, match=r"in/w/archive//old\.jsonl") as caught:
        run(lake, ReadFromBlob(lake.raw.url("in/w/**.jsonl"), JsonLines(ident)))
    assert "rename the blob, or narrow the pattern" in caught.value.hint


def ident(value: dict[str, Any]) -> Any:
    """The id of a record."""
    return value["id"]


def test_bad_records_go_to_the_dead_letters_with_blob_and_offset(lake: Any) -> None:
    """The good ones go on; the bad ones say where they were, also in a compressed blob."""
    data = b'{"id":1}\n{oops\n\n{"id":2}\n'
    lake.raw.upload("in/a.jsonl", data)
    lake.raw.upload("in/b.jsonl.gz", gzip.compress(data))
    pipeline = lake.pipeline()
    with pipeline as p:
        good, bad = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines()).with_exception_handling()
        places = bad | beam.Map(place)
        assert_that(good, equal_to([{"id": 1}, {"id": 2}] * 2), label="good")
        expected = [(lake.raw.url(name), 9, b"{oops") for name in ("in/a.jsonl", "in/b.jsonl.gz")]
        assert_that(places, equal_to(expected), label="bad")
    assert pipeline.report.metrics["records_read"] == 4
    assert pipeline.report.metrics["records_bad"] == 2


def place(bad: BadRecord) -> tuple[str, int, bytes]:
    """Where a bad record was."""
    return bad.path, bad.offset, bad.record


def test_a_bad_record_without_handling_is_one_clear_error(lake: Any) -> None:
    """The job fails with blob, byte and the way to keep such records apart; its trail is sealed as failed."""
    lake.raw.upload("in/a.jsonl", b'{"id":1}\n{oops\n')
    with pytest.raises(FormatError, match=r"record at byte 9 of abfss://.*/in/a.jsonl cannot be decoded") as caught:
        run(lake, ReadFromBlob(lake.raw.url("in/*"), JsonLines()))
    assert "with_exception_handling" in str(caught.value)
    assert lake.only_trail().verify().seal.outcome == "failed"


@pytest.mark.parametrize("name", ["in/none-*.jsonl", "in/none.jsonl"])
def test_input_that_is_not_there_is_an_error_that_names_it(lake: Any, name: str) -> None:
    """A typing error in a path is no empty input."""
    with pytest.raises(BlobNotFound) as caught:
        run(lake, ReadFromBlob(lake.raw.url(name)))
    assert lake.raw.url(name) in str(caught.value)
    assert "check the p" in str(caught.value)


@pytest.mark.parametrize("name", ["*.jsonl", "one.jsonl"])
def test_a_missing_container_is_an_error_even_where_empty_input_is_allowed(lake: Any, name: str) -> None:
    """`allow_empty` is about blobs; a container that is not there is a mistake."""
    nowhere = f"abfss://nowhere@{lake.raw.account}.dfs.core.windows.net/"
    pipeline = lake.pipeline(manifest=lake.manifest(read=[nowhere]))
    with pytest.raises(BlobNotFound, match="container does not exist"), pipeline as p:
        p | ReadFromBlob(nowhere + name, allow_empty=True)


# One version of a blob, or none


def test_a_blob_replaced_before_its_first_byte_is_an_error(lake: Any) -> None:
    """Matched, then overwritten, then read: the read insists on what was matched."""
    lake.raw.upload("in/a.txt", b"old\n")
    held = lake.cloud.proxy.hold(where=matching("GetBlob", container=lake.raw.name), times=1)
    thread, raised = in_background(lambda: run(lake, ReadFromBlob(lake.raw.url("in/a.txt"))))
    held.gate.wait_for_arrivals()
    lake.raw.upload("in/a.txt", b"new\n")
    held.gate.open()
    thread.join()
    assert [type(error) for error in raised] == [BlobChanged]
    assert lake.raw.url("in/a.txt") in str(raised[0])


def test_a_blob_replaced_between_two_ranges_is_an_error_not_a_mixture(lake: Any) -> None:
    """Some ranges of the old version are in already; none of the new one comes to them."""
    lake.raw.upload("in/a.txt", b"old 567\n" * 100)
    held = lake.cloud.proxy.hold(where=matching("GetBlob", container=lake.raw.name), times=1, skip=3)
    pipeline = lake.pipeline()

    def work() -> None:
        with pipeline as p:
            lines = p | ReadFromBlob(lake.raw.url("in/a.txt"), block_bytes=8)
            lines | beam.combiners.Count.PerElement() | beam.Map(print)

    thread, raised = in_background(work)
    held.gate.wait_for_arrivals()
    lake.raw.upload("in/a.txt", b"new 567\n" * 100)
    held.gate.open()
    thread.join()
    assert [type(error) for error in raised] == [BlobChanged]


def test_the_version_that_was_matched_travels_to_the_reader(lake: Any) -> None:
    """Between Match and Read of `ReadAllFromBlob` lies a shuffle; the ETag goes through it with the blob."""
    lake.raw.upload("in/a.txt", b"old\n")
    held = lake.cloud.proxy.hold(answer=True, where=matching("ListBlobs", container=lake.raw.name), times=1)
    pipeline = lake.pipeline()

    def work() -> None:
        with pipeline as p:
            p | beam.Create([lake.raw.url("in/*")]) | ReadAllFromBlob()

    thread, raised = in_background(work)
    held.gate.wait_for_arrivals()
    lake.raw.upload("in/a.txt", b"new\n")
    held.gate.open()
    thread.join()
    assert [type(error) for error in raised] == [BlobChanged]
    assert lake.only_trail().records("read") == [], "nothing of the new version was let in"


def test_reads_survive_what_a_network_does(lake: Any) -> None:
    """Resets, throttling and bodies that break off cost time, and no record."""
    lake.upload_json("in/a.jsonl", [{"id": number} for number in range(500)])
    read = matching("GetBlob", container=lake.raw.name)
    proxy = lake.cloud.proxy
    faults = [
        proxy.reset(where=read, times=1),
        proxy.respond(503, "ServerBusy", where=read, times=1),
        proxy.truncate(100, where=read, times=1),
        proxy.lose_answer(where=read, times=1),
    ]
    with lake.pipeline() as p:
        total = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(ident), block_bytes=2000) | beam.CombineGlobally(sum)
        assert_that(total, equal_to([sum(range(500))]))
    assert [fault.hits for fault in faults] == [1, 1, 1, 1]


# Who may


def test_a_read_outside_a_scoped_pipeline_is_refused_when_it_is_built(lake: Any) -> None:
    """Without a job there is no identity, so there is no access."""
    with pytest.raises(ConfigError, match="no job scope") as caught:
        beam.Pipeline() | ReadFromBlob(lake.raw.url("in/*"))
    assert "ScopedPipeline" in caught.value.hint


NOT_GRANTED = ["in-secret/*.jsonl", "in-secret/1.jsonl", "*", "other/in/1.jsonl"]


@pytest.mark.parametrize("name", NOT_GRANTED)
def test_a_pattern_outside_the_grants_is_refused_at_launch_and_audited(lake: Any, name: str) -> None:
    """Nothing is sent to the path, nothing runs, and the refusal is on record."""
    with pytest.raises(NotGranted) as caught:
        run(lake, ReadFromBlob(lake.raw.url(name)))
    assert "add to read" in caught.value.hint
    assert data_requests(lake) == []
    (denied,) = lake.only_trail().records("denied")
    assert (denied["by"], denied["request_id"]) == ("manifest", None)
    steps = {record["step"] for record in lake.only_trail().records("bundle_opened")}
    assert steps == {"launch", "seal the audit trail"}, "it did not come as far as a worker"
    assert lake.only_trail().verify().seal.outcome == "failed"


def test_a_pattern_that_is_data_is_held_against_the_grants_on_the_worker(lake: Any) -> None:
    """`ReadAllFromBlob` learns its patterns when the job runs; the worker refuses, records, and sends nothing."""
    pipeline = lake.pipeline()
    with pytest.raises(NotGranted, match="has no grant to read"), pipeline as p:
        p | beam.Create([lake.raw.url("in-secret/1.jsonl")]) | ReadAllFromBlob()
    assert data_requests(lake) == []
    (denied,) = lake.only_trail().records("denied")
    assert denied["path"] == lake.raw.url("in-secret/1.jsonl")
    assert denied["by"] == "manifest"
    assert denied["bundle"] is not None


WRONG = {
    "an unknown compression": {"compression": "zip"},
    "blocks of nothing": {"block_bytes": 0},
    "records of nothing": {"max_record_bytes": 0},
    "nothing ahead": {"prefetch_bytes": 0},
}


@pytest.mark.parametrize(
    ("prefetch_bytes", "lengths"), [(10_000, [10, 80, 80, 30]), (80, [10, *[20] * 9, 10]), (3, [1] * 200)]
)
def test_a_read_begins_with_a_block_and_goes_on_with_more(
    lake: Any, prefetch_bytes: int, lengths: list[int]
) -> None:
    """The next requests are of eight blocks, but of no more than a quarter of what may be fetched ahead."""
    lake.raw.upload("in/a.txt", b"123456789\n" * 20)
    with lake.pipeline() as p:
        lines = p | ReadFromBlob(lake.raw.url("in/a.txt"), block_bytes=10, prefetch_bytes=prefetch_bytes)
        assert_that(lines, equal_to(["123456789"] * 20))
    gets = matching("GetBlob", container=lake.raw.name)
    asked = [e.request.headers["x-ms-range"] for e in lake.cloud.proxy.requests if gets(e.request)]
    spans = sorted(tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in asked)
    assert [last + 1 - first for first, last in spans] == lengths


@pytest.mark.parametrize("settings", WRONG.values(), ids=WRONG)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    """Before anything is built."""
    with pytest.raises(ConfigError):
        ReadAllFromBlob(**settings)


# Splitting, metrics, lineage


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=3"),
    ],
    ids=["one worker", "three workers"],
)
def test_a_blob_is_read_in_pieces_by_several_workers(lake: Any, flags: tuple[str, ...]) -> None:
    """Ranges of one blob, read at the same time, give each record once; the record of the reads covers every byte."""
    lake.upload_json("in/a.jsonl", [{"id": number, "pad": "x" * (number % 90)} for number in range(2000)])
    size = len(lake.raw.download("in/a.jsonl"))
    pipeline = lake.pipeline(*flags)
    with pipeline as p:
        ids = p | ReadFromBlob(lake.raw.url("in/a.jsonl"), JsonLines(ident), block_bytes=1000)
        assert_that(ids, equal_to(list(range(2000))))
    trail = lake.trail(pipeline.report.job)
    trail.verify()
    reads = trail.records("read")
    assert len({record["etag"] for record in reads}) == 1
    begins = {record["start"] for record in reads}
    assert len([begin for begin in begins if begin % 1000 == 999]) >= size // 16_000 - 1, "it was read in pieces"
    covered = bytearray(size)
    for record in reads:
        covered[record["start"] : record["end"]] = b"\1" * (record["end"] - record["start"])
    assert covered == b"\1" * size


def test_metrics_and_lineage_are_reported(lake: Any) -> None:
    """Counters in the namespace `beam_entra`, and each blob as a source of the job."""
    for number in range(2):
        lake.upload_json(f"in/{number}.jsonl", [{"id": 1}, {"id": 2}])
    pipeline = run(lake, ReadFromBlob(lake.raw.url("in/*.jsonl"), JsonLines()))
    metrics = pipeline.report.metrics
    assert {name: metrics[name] for name in ("blobs_matched", "blobs_read", "records_read", "bytes_read")} == {
        "blobs_matched": 2,
        "blobs_read": 2,
        "records_read": 4,
        "bytes_read": 2 * len(lake.raw.download("in/0.jsonl")),
    }
    assert metrics["tokens_acquired"] == 1
    sources = Lineage.query(pipeline.result.metrics(), Lineage.SOURCE)
    assert {source.replace("`", "") for source in sources} == {
        f"abs:{lake.raw.account}.{lake.raw.name}.in/{number}.jsonl" for number in range(2)
    }


def test_a_reader_asks_for_no_more_than_it_needs(lake: Any) -> None:
    """List SAS for the pattern, read SAS for each blob, nothing else, and never the token itself."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    run(lake, ReadFromBlob(lake.raw.url("in/*"), JsonLines()))
    seen = [
        (exchange.operation, exchange.request.credential, exchange.request.parameters.get("sp"))
        for exchange in lake.cloud.proxy.requests
        if exchange.request.container == lake.raw.name
    ]
    assert set(seen) == {("ListBlobs", "sas", "l"), ("GetBlob", "sas", "r")}


def test_display_data_and_records_name_paths_as_they_are_compared(lake: Any) -> None:
    """Whatever the spelling, what is shown and recorded is canonical."""
    account, container = lake.raw.account, lake.raw.name
    read = ReadFromBlob(f"https://{account}.blob.core.windows.net/{container}/in/a%20b.txt")
    assert read.display_data()["pattern"] == lake.raw.url("in/a b.txt")
    assert json.dumps(read.display_data())


# Small blobs travel in packs


def test_small_blobs_of_every_kind_come_in_one_pack(lake: Any) -> None:
    """Plain, compressed, with a byte order mark, CRLF, without an end, empty: each record once, from the right blob."""
    lake.raw.upload("in/a.jsonl", b'{"id":1}\n{oops\n')
    lake.raw.upload("in/b.jsonl.gz", gzip.compress(b'{"id":2}\n'))
    lake.raw.upload("in/c.jsonl", b'\xef\xbb\xbf{"id":3}\r\n{"id":4}')
    lake.raw.upload("in/d.jsonl", b"")
    lake.raw.upload("in/e.jsonl", b'\n\n{"id":5}\n{oops')
    pipeline = lake.pipeline()
    with pipeline as p:
        good, bad = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(ident)).with_exception_handling()
        assert_that(good, equal_to([1, 2, 3, 4, 5]), label="good")
        expected = [(lake.raw.url("in/a.jsonl"), 9, b"{oops"), (lake.raw.url("in/e.jsonl"), 11, b"{oops")]
        assert_that(bad | beam.Map(place), equal_to(expected), label="bad")
    assert pipeline.report.metrics["blobs_read"] == 5
    trail = lake.trail(pipeline.report.job)
    trail.verify()
    assert len({record["bundle"] for record in trail.records("read")}) == 1, "they were one pack"


def test_a_pack_goes_on_while_one_of_its_blobs_is_slow(lake: Any) -> None:
    """The others are read, and recorded, before it answers."""
    for number in range(100):
        lake.upload_json(f"in/{number:03d}.jsonl", [{"id": number}])
    slow = lake.cloud.proxy.hold(where=lambda request: request.blob == "in/007.jsonl", times=1)
    pipeline = lake.pipeline()

    def work() -> None:
        with pipeline as p:
            ids = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(ident))
            assert_that(ids, equal_to(list(range(100))))

    thread, raised = in_background(work)
    slow.gate.wait_for_arrivals()
    others = lake.cloud.proxy.requests.wait_for(lambda seen: len(gets(seen)) == 99, timeout_s=60)
    slow.gate.open()
    thread.join()
    assert raised == []
    assert "in/007.jsonl" not in gets(others)


def gets(seen: list[Any]) -> list[str]:
    """The blobs of the input that have been read."""
    found = [each.request.blob for each in seen if each.operation == "GetBlob"]
    return [name for name in found if name.startswith("in/")]


def test_one_changed_blob_fails_its_pack(lake: Any) -> None:
    """A pack is no way around the version that was matched."""
    for number in range(20):
        lake.raw.upload(f"in/{number}.txt", b"old\n")
    held = lake.cloud.proxy.hold(where=matching("GetBlob", container=lake.raw.name), times=1)
    thread, raised = in_background(lambda: run(lake, ReadFromBlob(lake.raw.url("in/*"))))
    held.gate.wait_for_arrivals()
    for number in range(20):
        lake.raw.upload(f"in/{number}.txt", b"new\n")
    held.gate.open()
    thread.join()
    assert [type(error) for error in raised] == [BlobChanged]


def test_a_pack_shares_appends_to_the_trail(lake: Any) -> None:
    """Each blob has its own SAS and its own records, and they are written together."""
    for number in range(200):
        lake.raw.upload(f"in/{number}.txt", b"x\n")
    pipeline = run(lake, ReadFromBlob(lake.raw.url("in/*")))
    assert pipeline.report.records["read"] == 200
    assert pipeline.report.records["sas_issued"] >= 200
    appends = [seen for seen in lake.cloud.proxy.requests if seen.operation == "AppendBlock"]
    assert len(appends) < 200, "fewer appends than blobs, with two records for each"


def test_a_plan_is_recorded_before_anything_that_was_planned(lake):
    """A footer is at hand at once; whoever goes by it waits for its record first."""
    lake.raw.upload("in/a.txt", b"0123456789")
    bundle = Session(JobScope.launch(lake.manifest(), now=utc_now())).bundle("test")
    (blob,) = match(bundle, BlobPattern.parse(lake.raw.url("in/a.txt")))
    source = BlobSource(bundle, blob, block_bytes=100, prefetch_bytes=1000, max_record_bytes=1000)
    assert source.peek(8, 10) == b"89"
    source.recorded()
    lake.cloud.proxy.respond(403, "AuthorizationFailure", where=matching(container=lake.audit.name))
    assert source.peek(0, 2) == b"01"
    with pytest.raises(AuditUnavailable):
        source.recorded()
    with suppress(AuditUnavailable):  # it stays broken: what could not be recorded is not forgotten
        bundle.session.close()


def test_a_whole_blob_is_what_is_there_whatever_the_requests(lake, bundle):
    """Received where it stays, in several requests; one that breaks off goes on at the byte."""
    content = bytes(range(256)) * 40
    lake.raw.upload("in/a.bin", content)
    (blob,) = match(bundle, BlobPattern.parse(lake.raw.url("in/a.bin")))
    source = BlobSource(bundle, blob, block_bytes=100, prefetch_bytes=3000, max_record_bytes=len(content))
    lake.cloud.proxy.truncate(37, where=matching("GetBlob"), times=5)
    assert source.content() == content


def test_a_pipeline_that_reads_can_be_made_of_its_proto(lake: Any) -> None:
    """As runners do that rewrite pipelines: each element type can be told from its coder."""
    pipeline = lake.pipeline()
    pipeline | ReadFromBlob(lake.raw.url("in/*")) | beam.Map(print)
    proto = pipeline.to_runner_api()
    again = beam.Pipeline.from_runner_api(proto, pipeline.runner, pipeline.options)
    assert len(again.to_runner_api().components.transforms) == len(proto.components.transforms)


@pytest.mark.parametrize("kind", ["one", "each", "watched"])
def test_what_is_shuffled_is_coded_alike_before_and_after(lake: Any, kind: str) -> None:
    """A runner that shuffles in a way of its own, as Flink's does, hands the elements on as they came."""
    pipeline, pattern = lake.pipeline(), lake.raw.url("in/*")
    if kind == "each":
        pipeline | beam.Create([pattern]) | ReadAllFromBlob()
    else:
        pipeline | ReadFromBlob(pattern, watch=10 if kind == "watched" else None)
    components = pipeline.to_runner_api().components
    (shuffle,) = (
        each for each in components.transforms.values() if each.spec.urn == common_urns.composites.RESHUFFLE.urn
    )
    shuffled = [*shuffle.inputs.values(), *shuffle.outputs.values()]
    coders = {components.pcollections[name].coder_id for name in shuffled}
    assert [components.coders[coder].spec.urn for coder in coders] == [common_urns.coders.KV.urn]


def test_a_read_is_a_few_steps_with_a_shuffle_that_runners_know(lake: Any) -> None:
    """Each step costs Beam some milliseconds before the first byte; a runner may shuffle in a way of its own."""
    pipeline = lake.pipeline()
    pipeline | ReadFromBlob(lake.raw.url("in/*"))
    kinds = Counter(each.spec.urn for each in pipeline.to_runner_api().components.transforms.values())
    assert kinds[common_urns.primitives.PAR_DO.urn] == 5
    assert kinds[common_urns.composites.RESHUFFLE.urn] == 1


@pytest.mark.parametrize(
    ("lines", "blobs", "block_bytes"),
    [(8, 1, 64), (2, 1, 64), (2, 3, 64), (0, 2, 64)],
    ids=["one in pieces", "a small one", "a pack", "a pack of empty ones"],
)
def test_a_blob_counts_as_read_when_its_end_has_been(lake: Any, lines: int, blobs: int, block_bytes: int) -> None:
    """While something of it is on its way to whoever decodes it, it does not; in the end each does, once."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    session = Session(scope)
    names = [f"in/{number}" for number in range(blobs)]
    for name in names:
        lake.raw.upload(name, b"%015d\n" % 7 * lines)
    with session.bundle("look") as bundle:
        pack = keyed(Pack([bundle.properties(BlobPath.parse(lake.raw.url(name))) for name in names]))
    settings = ReadSettings(
        format=Lines(),
        compression="auto",
        block_bytes=block_bytes,
        prefetch_bytes=4 * block_bytes,
        max_record_bytes=1 << 20,
        allow_empty=False,
    )
    fn = _ReadBlocks(settings).scoped(scope, "Read")
    fn._session = session
    fn.start_bundle()
    tracker = fn.create_tracker(fn.initial_restriction(pack))
    counted = [tallied(scope.job)["blobs_read"] for _ in fn.process(pack, tracker)]
    assert tallied(scope.job)["blobs_read"] == blobs
    assert counted == sorted(counted)
    assert counted[:1] == ([0] if lines else [])
    assert all(each < blobs for each in counted)
    fn.finish_bundle()
    session.close()
