"""Watching over the wire: each version of a blob once, whoever carries on, and an end that loses nothing."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import JsonLines, Lines, ReadFromBlob, Watch
from beam_entra.clock import utc_now
from beam_entra.errors import BlobChanged, BlobNotFound, ConfigError, NotGranted
from beam_entra.io.blocks import BadRecord
from beam_entra.io.packs import Pack, keyed
from beam_entra.io.read import ReadSettings, _DecodeWatched, _DecodeWatchedBatches, _ReadWatched
from beam_entra.io.watch import WatchBlobs, Watched, WatchTracker, event_time, stamped
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session
from beam_entra.storage import BlobProperties
from beam_entra.testing.storage_requests import matching

HOUR = timedelta(hours=1)


class Runner:
    """Resumes a watch as a runner does: all that a look leaves is its restriction and watermark, encoded."""

    def __init__(self, lake: Any, watch: Watch, *, pattern: str = "in/*", url: str = "", **job: Any) -> None:
        self._lake, self.watch = lake, watch
        self.scope = JobScope.launch(lake.manifest(**job), now=utc_now())
        self._pattern = url or lake.raw.url(pattern)
        self.naps: list[float] = []
        self.state: bytes | None = self._new().restriction_coder().encode(Watched())
        self.watermark: Timestamp | None = None
        self.delay_s: float | None = None
        self.times: dict[str, Timestamp] = {}

    def _new(self) -> WatchBlobs:
        ends = self.watch.ends(self.scope)
        look = WatchBlobs(self.watch, ends=ends, small_bytes=1000, pack_blobs=100, pack_bytes=1 << 20)
        return look.scoped(self.scope, "Watch")

    def look(self) -> list[str]:
        """What a worker finds that has never heard of this job."""
        assert self.state is not None, "the watch is over"
        fn = self._new()
        fn._session = Session(self.scope, pause=self.naps.append)
        coder = fn.restriction_coder()
        tracker = ThreadsafeRestrictionTracker(fn.create_tracker(coder.decode(self.state)))
        estimator = ManualWatermarkEstimator(self.watermark)
        fn.start_bundle()
        packs = list(fn.process(self._pattern, RestrictionTrackerView(tracker), estimator))
        fn.finish_bundle()
        tracker.check_done()
        fn._session.close()
        rest = tracker.deferred_status()
        self.state, self.delay_s = (coder.encode(rest[0]), float(rest[1])) if rest else (None, None)
        self.watermark = estimator.current_watermark()
        found = [blob for pack in packs for blob in pack.value[1]]
        self.times |= {blob.path.name: event_time(blob, pack.timestamp) for pack in packs for blob in pack.value[1]}
        return [blob.path.name for blob in found]


def listings(lake: Any) -> int:
    """How often the input was listed."""
    return int(lake.cloud.proxy.count(matching("ListBlobs", container=lake.raw.name)))


def test_each_version_is_given_once_whoever_carries_on(lake: Any) -> None:
    """New ones and overwritten ones; not what is unchanged, nor markers. What has been given is in the restriction."""
    runner = Runner(lake, Watch(10))
    for name in ("in/a", "in/b", "in/_SUCCESS"):
        lake.raw.upload(name, b"1")
    assert sorted(runner.look()) == ["in/a", "in/b"]
    due(runner)
    assert runner.look() == []
    lake.raw.upload("in/a", b"2")
    lake.raw.upload("in/c", b"1")
    due(runner)
    assert sorted(runner.look()) == ["in/a", "in/c"]
    due(runner)
    assert runner.look() == []


def decoded(runner: Runner) -> Watched:
    """The restriction that the last look has left."""
    assert runner.state is not None
    state: Watched = runner._new().restriction_coder().decode(runner.state)
    return state


def due(runner: Runner, *, in_s: float = 0) -> None:
    """Have the next look due in so many seconds."""
    due_s = utc_now().timestamp() + in_s
    runner.state = runner._new().restriction_coder().encode(decoded(runner)._replace(due_s=due_s))


def test_what_is_deleted_is_forgotten(lake: Any) -> None:
    """The restriction grows with what is there, not with what has ever been: 16 bytes a blob."""
    runner = Runner(lake, Watch(10))
    for name in ("in/a", "in/b", "in/c"):
        lake.raw.upload(name, b"1")
    runner.look()
    assert len(decoded(runner).given) == 48
    lake.raw.delete("in/b")
    due(runner)
    assert runner.look() == []
    assert len(decoded(runner).given) == 32


def test_event_time_is_when_storage_wrote_it_and_the_watermark_goes_on_without(lake: Any) -> None:
    """Each look promises that nothing written before it is still to come; nothing that comes later is late."""
    runner = Runner(lake, Watch(10))
    lake.raw.upload("in/a", b"1")
    before = utc_now()
    runner.look()
    written = lake.cloud.admin.client(lake.raw.account).get_blob_client(lake.raw.name, "in/a").get_blob_properties()
    assert runner.times["in/a"] == Timestamp(written["last_modified"].timestamp())
    first = runner.watermark
    assert first is not None
    assert first >= Timestamp(int(before.timestamp()))
    assert first <= Timestamp(utc_now().timestamp())
    lake.raw.upload("in/b", b"1")
    due(runner)
    runner.look()
    assert runner.times["in/b"] >= first
    assert runner.watermark is not None
    assert runner.watermark >= first


def test_an_older_blob_that_turns_up_later_is_not_late() -> None:
    """One that was moved keeps its time; it counts from the watermark."""
    blob = BlobProperties(
        path=BlobPath.parse("abfss://raw@lake.dfs.core.windows.net/in/a"),
        size_bytes=1,
        etag='"1"',
        last_modified=datetime(2026, 1, 1, tzinfo=UTC),
        content_type="",
    )
    written = Timestamp(blob.last_modified.timestamp())
    assert event_time(blob, None) == written
    assert event_time(blob, written - 60) == written
    assert event_time(blob, written + 60) == written + 60


@given(st.lists(st.integers(0, 100), max_size=20), st.none() | st.integers(0, 100))
def test_no_blob_is_late_nor_later_than_it_was_found_whatever_it_travels_with(
    written: list[int], watermark: int | None
) -> None:
    """A pack's time is that of its earliest blob; the others' are made of it and of their own."""
    promised = None if watermark is None else Timestamp(watermark)
    blobs = [
        BlobProperties(
            path=BlobPath.parse(f"abfss://raw@lake.dfs.core.windows.net/in/{number}"),
            size_bytes=1 if number % 3 else 11,
            etag='"1"',
            last_modified=datetime.fromtimestamp(at, UTC),
            content_type="",
        )
        for number, at in enumerate(written)
    ]
    packs = list(stamped(blobs, promised, small_bytes=10, pack_blobs=4, pack_bytes=100))
    found = [blob for pack in packs for blob in pack.value[1]]
    assert sorted(str(blob.path) for blob in found) == sorted(str(blob.path) for blob in blobs)
    for pack in packs:
        assert promised is None or pack.timestamp >= promised
        for blob in pack.value[1]:
            assert event_time(blob, pack.timestamp) == event_time(blob, promised)


def test_a_watermark_that_is_ahead_stays_and_makes_nothing_late(lake: Any) -> None:
    """As after a worker whose clock was: what comes meanwhile counts from what that one has promised."""
    runner = Runner(lake, Watch(10))
    runner.look()
    ahead = runner.watermark = Timestamp(int(utc_now().timestamp()) + 3600)
    lake.raw.upload("in/a", b"1")
    due(runner)
    assert runner.look() == ["in/a"]
    assert runner.times["in/a"] == ahead
    assert runner.watermark == ahead


def test_a_look_that_comes_too_soon_asks_nothing(lake: Any) -> None:
    """Some runners resume at once, whatever they were told: Storage is asked at the interval all the same."""
    runner = Runner(lake, Watch(30))
    lake.raw.upload("in/a", b"1")
    assert runner.look() == ["in/a"]
    assert runner.delay_s is not None
    assert 20 < runner.delay_s <= 30
    due(runner, in_s=100)
    state, asked = runner.state, listings(lake)
    assert runner.look() == []
    assert (runner.naps, listings(lake), runner.state) == ([1.0], asked, state)
    assert 80 < runner.delay_s < 99.5
    due(runner, in_s=0.9)
    runner.look()
    assert listings(lake) == asked + 1
    assert len(runner.naps) <= 2, "what is due within a second is waited for"


@pytest.mark.parametrize(
    ("until", "job", "rolling", "ends"),
    [
        (None, "1h", False, timedelta(minutes=54)),
        (None, "24h", False, timedelta(hours=23, minutes=50)),
        (timedelta(minutes=5), "1h", False, timedelta(minutes=5)),
        (HOUR, "1h", False, timedelta(minutes=54)),
        (None, "2h", True, None),
        (HOUR * 9, "2h", True, HOUR * 9),
    ],
    ids=["a tenth to spare", "ten minutes at most", "as told", "not after the deadline", "rolling", "rolling, as told"],
)
def test_it_ends_as_told_and_in_time_before_the_deadline(
    lake: Any, until: timedelta | None, job: str, rolling: bool, ends: timedelta | None
) -> None:
    """What was found is to be read and written before the rights end; a rolling life has no end."""
    scope = JobScope.launch(lake.manifest(job=job, rolling=rolling), now=datetime(2026, 1, 1, tzinfo=UTC))
    assert Watch(1, until=until).ends(scope) == (None if ends is None else scope.launched + ends)


def test_the_look_after_its_end_is_the_last_one(lake: Any) -> None:
    """It finds what came until then, and is due at the end rather than at the interval."""
    runner = Runner(lake, Watch(600, until=utc_now() + timedelta(seconds=100)))
    runner.look()
    assert runner.delay_s is not None
    assert 80 < runner.delay_s <= 100
    lake.raw.upload("in/last", b"1")
    runner.watch = Watch(600, until=utc_now())
    due(runner)
    assert runner.look() == ["in/last"]
    over(runner)


def over(runner: Runner) -> None:
    """Nothing is looked for any more; the end comes in a bundle of its own, behind what was found last."""
    lake, asked = runner._lake, listings(runner._lake)
    lake.raw.upload("in/too-late", b"1")
    assert runner.delay_s is not None
    assert decoded(runner).last
    assert runner.delay_s <= 2
    due(runner)
    assert runner.look() == []
    assert (runner.state, listings(lake)) == (None, asked)


def test_a_blob_stops_it_from_outside(lake: Any) -> None:
    """When it is there, what was written before it is still found."""
    runner = Runner(lake, Watch(10, stop=lake.raw.url("in/_STOP")))
    assert runner.look() == []
    lake.raw.upload("in/last", b"1")
    lake.raw.upload("in/_STOP", b"")
    due(runner)
    assert runner.look() == ["in/last"]
    over(runner)


def test_what_stops_it_in_the_midst_of_a_look_loses_nothing(lake: Any) -> None:
    """What came behind the listing and before the stop is found by one more look, which is the last."""
    runner = Runner(lake, Watch(10, stop=lake.raw.url("in/_STOP")))
    held = lake.cloud.proxy.hold(answer=True, where=matching("ListBlobs", container=lake.raw.name), times=1)
    looked: list[list[str]] = []
    look = threading.Thread(target=lambda: looked.append(runner.look()))
    look.start()
    held.gate.wait_for_arrivals()
    lake.raw.upload("in/last", b"1")
    lake.raw.upload("in/_STOP", b"")
    held.gate.open()
    look.join()
    assert looked == [[]]
    due(runner)
    assert runner.look() == ["in/last"]
    over(runner)


def test_a_look_that_was_split_off_meanwhile_gives_nothing(lake: Any) -> None:
    """Whoever has what was split off looks for himself: given here as well, a version would be given twice."""
    lake.raw.upload("in/a", b"1")
    runner = Runner(lake, Watch(10))
    fn = runner._new()
    session = fn._session = Session(runner.scope)
    tracker = ThreadsafeRestrictionTracker(fn.create_tracker(Watched()))
    held = lake.cloud.proxy.hold(answer=True, where=matching("ListBlobs", container=lake.raw.name), times=1)
    given: list[Any] = []
    fn.start_bundle()
    estimator = ManualWatermarkEstimator(None)
    look = threading.Thread(
        target=lambda: given.extend(fn.process(runner._pattern, RestrictionTrackerView(tracker), estimator))
    )
    look.start()
    held.gate.wait_for_arrivals()
    assert tracker.try_split(0.0) == (Watched(over=True), Watched())
    held.gate.open()
    look.join()
    fn.finish_bundle()
    tracker.check_done()
    session.close()
    assert given == []
    assert (tracker.deferred_status(), estimator.current_watermark()) == (None, None)
    assert runner.look() == ["in/a"], "from what was split off"


def test_a_container_that_is_not_there_is_an_error(lake: Any) -> None:
    """Nothing will ever turn up in it; a blob or a prefix that is not there may."""
    nowhere = lake.raw.url("in/").replace(lake.raw.name, "no-such")
    with pytest.raises(BlobNotFound):
        Runner(lake, Watch(10), url=f"{nowhere}*", read=[nowhere]).look()
    runner = Runner(lake, Watch(10), pattern="in/one")
    assert runner.look() == []
    lake.raw.upload("in/one", b"1")
    due(runner)
    assert runner.look() == ["in/one"]


def test_a_runner_may_split_a_look_only_before_and_behind_it() -> None:
    """Before: all of it goes to the rest. Behind: what comes later. Twice, or when it is over: nothing."""
    rest = Watched(b"x" * 16, 5.0)
    tracker = WatchTracker(Watched())
    assert tracker.try_split(0.5) == (Watched(over=True), Watched())
    assert tracker.try_split(0) is None
    assert not tracker.try_claim(rest)
    tracker.check_done()
    tracker = WatchTracker(Watched())
    assert not tracker.is_bounded(), "whoever drains a job drops it"
    with pytest.raises(ValueError, match="before its end"):
        tracker.check_done()
    assert tracker.try_claim(rest)
    assert not tracker.try_claim(rest)
    with pytest.raises(ValueError, match="before its end"):
        tracker.check_done()
    assert tracker.try_split(0.5) == (Watched(over=True), rest)
    tracker.check_done()
    assert tracker.is_bounded()
    assert WatchTracker(Watched(over=True)).try_split(0) is None
    last = WatchTracker(Watched())
    assert last.try_claim(rest._replace(over=True))
    assert last.try_split(0) is None
    last.check_done()


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no time": (lambda: Watch("soon"), "is no time"),  # type: ignore[arg-type]  # what people write
    "a truth": (lambda: ReadFromBlob("abfss://raw@lake.dfs.core.windows.net/c", watch=True), "is no time"),
    "not a number": (lambda: Watch(float("nan")), "is no time"),
    "no interval": (lambda: Watch(0), "no interval"),
    "backwards": (lambda: Watch(timedelta(seconds=-1)), "no interval"),
    "no time zone": (lambda: Watch(1, until=datetime(2026, 1, 1)), "no time zone"),  # noqa: DTZ001 - the point
    "an end in seconds": (lambda: Watch(1, until=60), "until=60 is no time"),  # type: ignore[arg-type]  # likewise
    "a prefix to stop": (lambda: Watch(1, stop="abfss://raw@lake.dfs.core.windows.net/c/"), "is a prefix"),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_watch_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    """When it is made."""
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("stop", [False, True], ids=["the pattern", "what stops it"])
def test_what_is_not_granted_is_refused_at_launch(lake: Any, stop: bool) -> None:
    """The pattern, and the blob that stops the watch."""
    elsewhere = lake.raw.url("elsewhere/_STOP")
    watch = Watch(1, stop=elsewhere if stop else None)
    with pytest.raises(NotGranted), lake.pipeline() as p:
        p | ReadFromBlob(lake.raw.url("in/*") if stop else lake.raw.url("elsewhere/*"), watch=watch)


# Reading what was found


@pytest.fixture
def reading(lake: Any) -> Iterator[Callable[..., list[Any]]]:
    """Read a pack as the step after the watch does, and decode it."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    session = Session(scope)

    def read(pack: Pack, *, keep_gone: bool, batched: bool = False, block_bytes: int = 64) -> list[Any]:
        settings = ReadSettings(
            format=Lines(),
            compression="auto",
            block_bytes=block_bytes,
            prefetch_bytes=4 * block_bytes,
            max_record_bytes=1 << 20,
            allow_empty=False,
        )
        fn = _ReadWatched(settings, keep_gone=keep_gone).scoped(scope, "Read")
        fn._session = session
        tracker = fn.create_tracker(fn.initial_restriction(keyed(pack)))
        decode = (_DecodeWatchedBatches if batched else _DecodeWatched)(Lines(), keep_bad=keep_gone, job=scope.job)
        fn.start_bundle()
        blocks = list(fn.process(keyed(pack), Timestamp(0), tracker))
        fn.finish_bundle()
        assert {block.timestamp for block in blocks} <= {Timestamp(blob.last_modified.timestamp()) for blob in pack}
        return [element for block in blocks for element in decode.process(block.value)]

    yield read
    session.close()


def found(lake: Any, *names: str) -> Pack:
    """These blobs as a look finds them."""
    runner = Runner(lake, Watch(10))
    session = Session(runner.scope)
    with session.bundle("look") as bundle:
        pack = Pack([bundle.properties(BlobPath.parse(lake.raw.url(name))) for name in names])
    session.close()
    return pack


LONG = b"".join(b"%07d\n" % at for at in range(100))


@pytest.mark.parametrize("batched", [False, True])
def test_a_version_that_is_gone_before_it_is_read_is_kept_apart(lake: Any, reading: Any, batched: bool) -> None:
    """In a pack, and of a long blob alone: as a bad record without bytes. Its neighbours are read."""
    for name in ("in/stays", "in/replaced", "in/deleted"):
        lake.raw.upload(name, b"1\n2\n")
    lake.raw.upload("in/long", LONG)
    small, long = found(lake, "in/stays", "in/replaced", "in/deleted"), found(lake, "in/long")
    lake.raw.upload("in/replaced", b"3\n")
    lake.raw.upload("in/long", LONG)
    lake.raw.delete("in/deleted")
    read = [*reading(small, keep_gone=True, batched=batched), *reading(long, keep_gone=True, batched=batched)]
    bad = sorted((each.value for each in read if isinstance(each, beam.pvalue.TaggedOutput)), key=lambda bad: bad.path)
    assert [each.path for each in bad] == [lake.raw.url(name) for name in ("in/deleted", "in/long", "in/replaced")]
    assert all("replaced or deleted before the version of" in each.reason for each in bad)
    assert {(each.offset, each.record) for each in bad} == {(0, b"")}
    assert all(isinstance(each, BadRecord) for each in bad)
    good = [each for each in read if not isinstance(each, beam.pvalue.TaggedOutput)]
    assert [line for batch in good for line in (batch.column(0).to_pylist() if batched else [batch])] == ["1", "2"]


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_without_a_place_for_it_a_version_that_is_gone_is_an_error(lake: Any, reading: Any, change: str) -> None:
    """It names the blob and what to do."""
    for name in ("in/a", "in/b"):
        lake.raw.upload(name, b"1\n")
    pack = found(lake, "in/a", "in/b")
    lake.raw.upload("in/b", b"2\n") if change == "replaced" else lake.raw.delete("in/b")
    with pytest.raises((BlobChanged, BlobNotFound), match="in/b was replaced or deleted before the version") as caught:
        reading(pack, keep_gone=False)
    assert "with_exception_handling" in caught.value.hint


def test_a_version_is_read_whole_or_not_at_all(lake: Any, reading: Any) -> None:
    """A long blob that changes while it is read is an error, kept apart or not: something of it has been handed on."""
    lake.raw.upload("in/long", LONG * 20)
    pack = found(lake, "in/long")

    def begins(request: Any) -> bool:  # others are under way with it: only this one's answer is handed on for sure
        return blobs_of_raw(request) and request.headers.get("x-ms-range", "").startswith("bytes=0-")

    blobs_of_raw = matching("GetBlob", container=lake.raw.name)
    held = lake.cloud.proxy.hold(answer=True, where=begins, times=1)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            reading(pack, keep_gone=True)
        except BlobChanged as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    held.gate.wait_for_arrivals()
    lake.raw.upload("in/long", b"x\n")
    held.gate.open()
    thread.join()
    assert failed


def test_a_long_blob_is_one_restriction(lake: Any) -> None:
    """Nothing of it may be read by a worker that finds another version than the others."""
    lake.raw.upload("in/long", LONG * 100)
    settings = ReadSettings(
        format=Lines(), compression="auto", block_bytes=64, prefetch_bytes=256, max_record_bytes=64, allow_empty=False
    )
    pack = found(lake, "in/long")
    fn = _ReadWatched(settings, keep_gone=False).scoped(Runner(lake, Watch(1)).scope, "Read")
    whole = fn.initial_restriction(keyed(pack))
    assert (whole.start, whole.stop) == (0, 1)


# Jobs


@pytest.mark.parametrize("batched", [False, True])
def test_a_job_reads_what_comes_while_it_runs(lake: Any, batched: bool) -> None:
    """Blobs that come behind the first look, and one that is overwritten; the event time is the blob's."""
    lake.upload_json("in/1.jsonl", [{"id": 1}])
    first_looks = listings(lake)
    stop = lake.raw.url("in/_STOP")

    def go_on() -> None:
        lake.cloud.proxy.wait_for(lambda _: listings(lake) > first_looks, timeout_s=60)
        lake.upload_json("in/2.jsonl", [{"id": 2}, {"id": 3}])
        lake.raw.upload("in/_STOP", b"")

    meanwhile = threading.Thread(target=go_on)
    meanwhile.start()
    pipeline = lake.pipeline()
    with pipeline as p:
        read = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(), watch=Watch(0.1, stop=stop), batched=batched)
        rows = read | beam.FlatMap(lambda each: each.to_pylist() if batched else [each])
        assert_that(rows | beam.Map(lambda row: row["id"]), equal_to([1, 2, 3]))
        stamped = rows | beam.Map(lambda row, at=beam.DoFn.TimestampParam: float(at) > 1.7e9)
        assert_that(stamped, equal_to([True] * 3), label="check times")
    meanwhile.join()
    assert pipeline.report.metrics["blobs_matched"] == 2
    assert pipeline.report.metrics["records_read"] == 3
    assert not read.is_bounded
    lake.trail(pipeline.report.job).verify()


def test_a_job_keeps_bad_records_apart_while_it_watches(lake: Any) -> None:
    """As without a watch; the pattern is one blob, and the watch ends as told."""
    lake.raw.upload("in/1.jsonl", b'{"id": 1}\nno json\n')
    with lake.pipeline() as p:
        watch = Watch(0.1, until=timedelta(seconds=0))
        good, bad = p | ReadFromBlob(lake.raw.url("in/1.jsonl"), JsonLines(), watch=watch).with_exception_handling()
        assert_that(good, equal_to([{"id": 1}]))
        assert_that(bad | beam.Map(lambda record: record.record), equal_to([b"no json"]), label="check bad")


def test_a_read_without_a_watch_is_what_it_was(lake: Any) -> None:
    """No step of a watch is in the graph, and the elements are bounded."""
    lake.upload_json("in/1.jsonl", [{"id": 1}])
    pipeline = lake.pipeline()
    with pipeline as p:
        read = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
    assert read.is_bounded
    steps = json.dumps([step.unique_name for step in pipeline.to_runner_api().components.transforms.values()])
    assert "Watch" not in steps
    assert dataclasses.is_dataclass(Watch)
