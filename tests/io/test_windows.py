"""Writing in windows over the wire: each window committed once, for itself, and a repetition that changes nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.pipeline import PipelineVisitor
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.trigger import (
    AccumulationMode,
    AfterCount,
    AfterProcessingTime,
    AfterWatermark,
    Repeatedly,
)
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    GlobalWindows,
    IntervalWindow,
    Sessions,
    SlidingWindows,
    TimestampedValue,
    WindowFn,
)
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import Bytes, Csv, JsonLines, Parquet, ReadFromBlob, WriteToBlob
from beam_entra.clock import utc_now
from beam_entra.errors import BlobExists, ConfigError
from beam_entra.io.sink import AutoShards, WindowShards, window_name
from beam_entra.io.write import _Commit, _DealWindows, _StageWindows
from beam_entra.session import JobScope, close_session
from tests.io.test_write import settings_for

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
FIRST, SECOND = IntervalWindow(NOON.timestamp(), NOON.timestamp() + 60), IntervalWindow(
    NOON.timestamp() + 60, NOON.timestamp() + 120
)
FOLDERS = ["20261121T120000Z_20261121T120100Z", "20261121T120100Z_20261121T120200Z"]


def at(seconds: float, element: Any) -> TimestampedValue:
    """An element of so many seconds after noon."""
    return TimestampedValue(element, NOON.timestamp() + seconds)


def write(lake: Any, elements: list[TimestampedValue], windows: Any, *sink: Any, **settings: Any) -> Any:
    """Run a job that writes the elements in windows to `out/`, and return its pipeline."""
    pipeline = lake.pipeline()
    with pipeline as p:
        stamped = p | beam.Create(elements) | beam.Map(lambda element: element) | beam.WindowInto(windows)
        stamped | WriteToBlob(lake.curated.url("out/"), *sink, per_window=True, **settings)
    return pipeline


def by_folder(lake: Any) -> dict[str, list[str]]:
    """The visible blobs below `out/`, by folder."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in lake.curated.list("out/"):
        folder, _, blob = name.removeprefix("out/").rpartition("/")
        found[folder].append(blob)
    return dict(found)


# What comes out


@pytest.mark.parametrize("shards", [None, 2])
def test_each_window_is_committed_for_itself(lake: Any, shards: int | None) -> None:
    """A folder named after the window, in it its elements, `_COMMITTING`, and a `_SUCCESS` that tells the truth."""
    elements = [at(each, {"id": each}) for each in range(120)]
    pipeline = write(lake, elements, FixedWindows(60), JsonLines(), shards=shards)
    assert sorted(by_folder(lake)) == FOLDERS
    for number, folder in enumerate(FOLDERS):
        prefix = f"out/{folder}/"
        parts = lake.parts(prefix)
        assert sorted(row["id"] for row in lake.written(prefix)) == list(range(60 * number, 60 * number + 60))
        success = lake.success(prefix)
        assert success["rows"] == 60
        assert [blob["path"] for blob in success["blobs"]] == [lake.curated.url(name) for name in parts]
        assert [blob["etag"] for blob in success["blobs"]] == [lake.etag(lake.curated, name) for name in parts]
        assert json.loads(lake.curated.download(f"{prefix}_COMMITTING"))["commit"] == success["commit"]
        if shards:
            assert by_folder(lake)[folder][:2] == ["_COMMITTING", "_SUCCESS"]
            assert by_folder(lake)[folder][2:] == [f"part-0000{each}-of-00002.jsonl" for each in range(2)]
    assert len({lake.success(f"out/{folder}/")["commit"] for folder in FOLDERS}) == 2
    assert pipeline.report.metrics["records_written"] == 120
    lake.trail(pipeline.report.job).verify()


def test_the_output_is_in_the_window_and_can_be_read(lake: Any) -> None:
    """Each committed blob comes out in the window that it is of; one pattern reads all windows."""
    with lake.pipeline() as p:
        stamped = p | beam.Create([at(each, {"id": each}) for each in (0, 70)]) | beam.Map(lambda each: each)
        done = stamped | beam.WindowInto(FixedWindows(60)) | WriteToBlob(
            lake.curated.url("out/"), JsonLines(), shards=1, per_window=True
        )
        windows = done | beam.Map(lambda blob, window=beam.DoFn.WindowParam: window_name(window) in blob.path)
        assert_that(windows | "Together" >> beam.WindowInto(GlobalWindows()), equal_to([True, True]))
    with lake.pipeline(manifest=lake.manifest(read=[lake.curated.url("out/")])) as p:
        rows = p | ReadFromBlob(lake.curated.url("out/**.jsonl"), JsonLines())
        assert_that(rows, equal_to([{"id": 0}, {"id": 70}]))


def test_an_element_of_two_windows_is_in_both(lake: Any) -> None:
    """Sliding windows; a window without elements leaves nothing."""
    write(lake, [at(90, {"id": 1}), at(600, {"id": 2})], SlidingWindows(120, 60), JsonLines())
    assert {folder: [row["id"] for row in lake.written(f"out/{folder}/")] for folder in sorted(by_folder(lake))} == {
        "20261121T120000Z_20261121T120200Z": [1],
        "20261121T120100Z_20261121T120300Z": [1],
        "20261121T120900Z_20261121T121100Z": [2],
        "20261121T121000Z_20261121T121200Z": [2],
    }


def test_many_windows_in_one_bundle(lake: Any) -> None:
    """More than are staged at a time: each is whole, whatever the turn they come in."""
    elements = [at(60 * (each % 40) + each // 40, {"id": each}) for each in range(120)]
    write(lake, elements, FixedWindows(60), JsonLines(), shards=1, block_bytes=16)
    assert len(by_folder(lake)) == 40
    assert sorted(row["id"] for row in lake.written()) == list(range(120))
    assert all(len(lake.parts(f"out/{folder}/")) == 1 for folder in by_folder(lake))


@pytest.mark.parametrize("shards", [None, 2])
def test_files_and_batches_in_windows(lake: Any, shards: int | None) -> None:
    """Formats that are written by one hand; each window has its shards."""
    batches = [at(70 * each, pa.record_batch({"id": list(range(each, each + 10))})) for each in range(2)]
    write(lake, batches, FixedWindows(60), Parquet(schema=pa.schema([("id", pa.int64())])), shards=shards)
    for number, folder in enumerate(FOLDERS):
        parts = lake.parts(f"out/{folder}/")
        assert len(parts) == (shards or 1)
        tables = [pa.parquet.read_table(pa.BufferReader(lake.curated.download(name))) for name in parts]
        assert sorted(pa.concat_tables(tables)["id"].to_pylist()) == list(range(number, number + 10))


def test_each_element_a_blob_in_its_window(lake: Any) -> None:
    """Named by the element, within the window's folder; the markers' names are taken, those of panes, too."""
    write(lake, [at(0, ("a", b"1")), at(70, ("a", b"2"))], FixedWindows(60), Bytes())
    assert [lake.curated.download(f"out/{folder}/a") for folder in FOLDERS] == [b"1", b"2"]
    for name in ("_SUCCESS", "_SUCCESS-00001", "_COMMITTING-00000"):
        with pytest.raises(Exception, match="no element may be named"):
            write(lake, [at(0, (name, b"1"))], FixedWindows(60), Bytes())


def test_each_window_of_a_csv_begins_with_its_header(lake: Any) -> None:
    """One for each blob."""
    write(lake, [at(0, {"id": "1"}), at(70, {"id": "2"})], FixedWindows(60), Csv(columns=["id"]), shards=1)
    contents = [lake.curated.download(name).split() for name in lake.parts()]
    assert contents == [[b"id", b"1"], [b"id", b"2"]]


def test_bounded_input_is_one_commit_unless_told(lake: Any) -> None:
    """The graph of a batch is what it was."""
    with lake.pipeline() as p:
        stamped = p | beam.Create([at(each, {"id": each}) for each in (0, 70)]) | beam.Map(lambda each: each)
        stamped | beam.WindowInto(FixedWindows(60)) | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=1)
    assert list(by_folder(lake)) == [""]


# Names


whole_seconds = st.integers(0, 4_000_000_000)


@given(whole_seconds, whole_seconds, st.integers(1, 10**6))
def test_by_name_is_by_time(one: int, other: int, length: int) -> None:
    """And the name is one segment of a path, whatever the window."""
    first, second = (window_name(IntervalWindow(start, start + length)) for start in (one, other))
    assert (first < second) == (one < other)
    assert not set(first) - set("0123456789TZ_")


@given(st.integers(0, 10**9), st.integers(0, 999_999))
def test_windows_between_seconds_have_names_of_their_own(start: int, micros: int) -> None:
    """Behind the whole second."""
    whole = window_name(IntervalWindow(start, start + 1))
    between = window_name(IntervalWindow(Timestamp(start, micros), Timestamp(start + 1, micros)))
    assert (between == whole) == (micros == 0)
    assert between[:16] == whole[:16]


def test_a_window_without_beginning_and_end_is_refused() -> None:
    """Nothing could be named after it."""
    with pytest.raises(ConfigError, match="no beginning and end"):
        window_name(GlobalWindow())


def test_elements_without_a_time_are_told_so() -> None:
    """What was never stamped is in the first window of all, which is in no year."""
    (window,) = FixedWindows(60).assign(WindowFn.AssignContext(MIN_TIMESTAMP))
    with pytest.raises(ConfigError, match="have no time") as caught:
        window_name(window)
    assert "TimestampedValue" in caught.value.hint


# What is refused when the pipeline is built

TWICE = {"trigger": AfterWatermark(late=AfterCount(1)), "accumulation_mode": AccumulationMode.DISCARDING}
WEEK_S = 7 * 86400
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no windows": (beam.Map(lambda each: each), {}, "never does"),
    "the global window": (beam.WindowInto(GlobalWindows()), {}, "never does"),
    "sessions": (beam.WindowInto(Sessions(60)), {}, "grow together"),
    "overwriting": (beam.WindowInto(FixedWindows(60)), {"shards": 1, "overwrite": True}, "not overwritten"),
    "panes with shards": (beam.WindowInto(FixedWindows(60), **TWICE), {"shards": 2}, "more than once"),
    "lateness with shards": (beam.WindowInto(FixedWindows(60), allowed_lateness=60), {"shards": 2}, "more than once"),
    "longer than blocks are kept": (beam.WindowInto(FixedWindows(WEEK_S)), {}, "after a week"),
    "sliding ones": (beam.WindowInto(SlidingWindows(WEEK_S, 3600)), {}, "after a week"),
    "with late panes alone": (beam.WindowInto(FixedWindows(WEEK_S), **TWICE), {}, "after a week"),
    "accumulating": (
        beam.WindowInto(
            FixedWindows(60),
            trigger=Repeatedly(AfterProcessingTime(5)),
            accumulation_mode=AccumulationMode.ACCUMULATING,
        ),
        {},
        "written twice",
    ),
}


@pytest.mark.parametrize(("windows", "settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_kept_is_refused_at_construction(
    lake: Any, windows: Any, settings: dict[str, Any], message: str
) -> None:
    """With what to do instead."""
    with pytest.raises(ConfigError, match=message) as caught, lake.pipeline() as p:
        p | test_stream.TestStream() | windows | WriteToBlob(lake.curated.url("out/"), JsonLines(), **settings)
    assert caught.value.hint


def test_long_windows_may_be_of_input_that_ends_or_have_early_panes(lake: Any) -> None:
    """Neither leaves blocks uncommitted for a week."""
    write(lake, [at(0, {"id": 1})], FixedWindows(WEEK_S), JsonLines())
    assert [row["id"] for row in lake.written()] == [1]
    early = AfterWatermark(early=AfterProcessingTime(60))
    windows = beam.WindowInto(FixedWindows(WEEK_S), trigger=early, accumulation_mode=AccumulationMode.DISCARDING)
    with lake.pipeline() as p:
        events = p | test_stream.TestStream().advance_watermark_to_infinity()
        events | windows | WriteToBlob(lake.curated.url("out/"), JsonLines())


def test_input_that_ends_and_is_in_no_windows_has_none_to_commit(lake: Any) -> None:
    """The error says so, and not that the input is without end."""
    with pytest.raises(ConfigError, match="this input is in none"), lake.pipeline() as p:
        p | beam.Create([1]) | WriteToBlob(lake.curated.url("out/"), JsonLines(), per_window=True)


# Panes


def panes(lake: Any, prefix: str) -> list[dict[str, Any]]:
    """What the markers of panes say; their numbers have no gap."""
    successes = [name for name in lake.curated.list(prefix) if "_SUCCESS-" in name]
    assert successes == [f"{prefix}_SUCCESS-{pane:05d}" for pane in range(len(successes))]
    return [json.loads(lake.curated.download(name)) for name in successes]


def test_elements_that_come_behind_their_window_are_committed_once(lake: Any) -> None:
    """With allowed lateness, in whatever pane the runner gives them: its blobs are those that its marker names."""
    start = int(NOON.timestamp())
    events = (
        test_stream.TestStream()
        .advance_watermark_to(start)
        .add_elements([at(1, {"id": 1}), at(2, {"id": 2})])
        .advance_watermark_to(start + 61)
        .add_elements([at(3, {"id": 3})])
        .advance_watermark_to_infinity()
    )
    with lake.pipeline() as p:
        windows = beam.WindowInto(FixedWindows(60), allowed_lateness=3600, **TWICE)
        p | events | windows | WriteToBlob(lake.curated.url("out/"), JsonLines())
    prefix = f"out/{FOLDERS[0]}/"
    assert sorted(row["id"] for row in lake.written(prefix)) == [1, 2, 3]
    found = panes(lake, prefix)
    assert sum(pane["rows"] for pane in found) == 3
    listed = [blob["path"] for pane in found for blob in pane["blobs"]]
    assert sorted(listed) == [lake.curated.url(name) for name in lake.parts(prefix)]


def test_the_global_window_may_fire_by_a_trigger(lake: Any) -> None:
    """Its panes lie below the prefix itself."""
    events = test_stream.TestStream()
    for each in range(4):
        events = events.add_elements([{"id": each}]).advance_processing_time(1)
    with lake.pipeline() as p:
        windows = beam.WindowInto(
            GlobalWindows(), trigger=Repeatedly(AfterCount(2)), accumulation_mode=AccumulationMode.DISCARDING
        )
        p | events.advance_watermark_to_infinity() | windows | WriteToBlob(lake.curated.url("out/"), JsonLines())
    assert sorted(row["id"] for row in lake.written()) == list(range(4))
    assert sum(pane["rows"] for pane in panes(lake, "out/")) == 4


# Replays


class Sink:
    """The steps of one sink, as a runner calls them."""

    def __init__(self, lake: Any, *, panes: bool = False, **settings: Any) -> None:
        self.settings = settings_for(lake, **settings)
        self.scope = JobScope.launch(lake.manifest(), now=utc_now())
        self._panes = panes

    def stage(self, elements: list[tuple[Any, Any]]) -> dict[Any, list[Any]]:
        """What one bundle stages, by window."""
        fn = _StageWindows(self.settings, panes=self._panes).scoped(self.scope, "Write/Stage")
        fn.start_bundle()
        for window, element in elements:
            fn.process(element, window)
        staged: dict[Any, list[Any]] = defaultdict(list)
        for part in fn.finish_bundle():
            (window,) = part.windows
            assert part.timestamp == window.max_timestamp()
            staged[window].append(part.value[1])
        fn.teardown()
        return staged

    def commit(self, parts: list[Any], window: Any, pane: int = 0) -> list[Any]:
        """What the step behind the group does, in a bundle of its own."""
        fn = _Commit(self.settings, panes=self._panes, again="see the docs").scoped(self.scope, "Write/Commit")
        fn.start_bundle()
        info = PaneInfo(pane == 0, False, PaneInfoTiming.ON_TIME, pane, pane)
        try:
            done = list(fn.process(("", parts), window, info))
        except BaseException:
            fn.teardown()
            raise
        fn.finish_bundle()
        return done


@pytest.fixture
def sink(lake: Any) -> Iterator[Callable[..., Sink]]:
    """Sinks, whose sessions are closed at the end."""
    made: list[Sink] = []

    def make(**settings: Any) -> Sink:
        made.append(Sink(lake, **settings))
        return made[-1]

    yield make
    for each in made:
        close_session(each.scope.job)


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("panes", [False, True])
def test_a_commit_that_is_repeated_changes_nothing(lake: Any, sink: Any, shards: int | None, panes: bool) -> None:
    """The same group of the same window and pane: found done. A zombie may do it as well."""
    one = sink(panes=panes, shards=None if panes else shards)
    staged = one.stage([(FIRST, {"id": each}) for each in range(5)])[FIRST]
    done = one.commit(staged, FIRST)
    before = {name: lake.curated.download(name) for name in lake.parts()}
    again = one.commit(staged, FIRST)
    assert [blob.path for blob in again] == [blob.path for blob in done]
    assert all(blob.confirmed for blob in again)
    assert {name: lake.curated.download(name) for name in lake.parts()} == before


def test_a_replay_with_other_blocks_is_a_clear_error_and_loses_nothing(lake: Any, sink: Any) -> None:
    """A runner that went back to before the commit: what stands, stands; what came besides is not dropped silently."""
    one = sink()
    one.commit(one.stage([(FIRST, {"id": 1})])[FIRST], FIRST)
    with pytest.raises(BlobExists, match="has begun before") as caught:
        one.commit(one.stage([(FIRST, {"id": 1}), (FIRST, {"id": 2})])[FIRST], FIRST)
    assert "see the docs" in caught.value.hint
    assert [row["id"] for row in lake.written()] == [1]
    one.commit(one.stage([(SECOND, {"id": 3})])[SECOND], SECOND)
    assert [row["id"] for row in lake.written(f"out/{FOLDERS[1]}/")] == [3], "other windows are not concerned"


class Commits(PipelineVisitor):  # type: ignore[misc]  # Beam's class is untyped
    """What the commit steps of a pipeline say of a commit that has begun with other blocks."""

    def __init__(self) -> None:
        self.again: list[str] = []

    def visit_transform(self, node: Any) -> None:
        """Look at each step."""
        fn = getattr(node.transform, "fn", None)
        if isinstance(fn, _Commit):
            self.again.append(fn._again)


@pytest.mark.parametrize(
    ("endless", "trigger", "finished"),
    [(False, {}, True), (False, TWICE, False), (True, {}, False), (True, TWICE, False)],
    ids=["input that ends", "panes of it", "input without end", "panes"],
)
def test_only_windows_of_input_that_ends_are_finished_by_their_marker(
    lake: Any, endless: bool, trigger: dict[str, Any], finished: bool
) -> None:
    """A second attempt has the same records there alone; elsewhere it is told what to do."""
    source = test_stream.TestStream().advance_watermark_to_infinity() if endless else beam.Create([])
    commits = Commits()
    with lake.pipeline() as p:
        windows = beam.WindowInto(FixedWindows(60), **trigger)
        p | source | windows | WriteToBlob(lake.curated.url("out/"), JsonLines(), per_window=True)
        p.visit(commits)
    (again,) = commits.again
    assert ("docs/streaming.md" not in again) == finished
    assert (not again) == finished


def test_the_commit_id_is_of_job_sink_window_and_pane(lake: Any, sink: Any) -> None:
    """The same in every attempt, and nobody else's."""
    one, other = sink(panes=True), sink(panes=True, prefix="out/other/")
    for which in (one, other):
        for window in (FIRST, SECOND):
            for pane in range(2):
                which.commit(which.stage([(window, {"id": pane})])[window], window, pane)
    markers = [name for name in lake.curated.list("out/") if "_COMMITTING-" in name]
    assert len(markers) == 8
    assert len({json.loads(lake.curated.download(name))["commit"] for name in markers}) == 8


def test_a_pane_never_needs_the_blob_of_another(lake: Any, sink: Any) -> None:
    """Where a window may fire again, each bundle has blobs of its own; where not, a process shares them."""
    panes, once = sink(panes=True), sink(prefix="out/once/")
    first, second = (panes.stage([(FIRST, {"id": each})])[FIRST] for each in range(2))
    assert first[0].path != second[0].path
    panes.commit(first, FIRST, 0)
    panes.commit(second, FIRST, 1)
    first, second = (once.stage([(FIRST, {"id": each})])[FIRST] for each in range(2))
    assert first[0].path == second[0].path
    assert once.stage([(SECOND, {"id": 1})])[SECOND][0].path != first[0].path


def test_a_bundle_that_is_tried_again_leaves_nothing_of_the_first_try(lake: Any, sink: Any) -> None:
    """What it had staged stays unseen, in all of its windows."""
    one = sink(block_bytes=16)
    fn = _StageWindows(one.settings, panes=False).scoped(one.scope, "Write/Stage")
    for attempt in range(2):
        fn.start_bundle()
        for each in range(20):
            fn.process({"id": 100 * attempt + each}, FIRST if each % 2 else SECOND)
    staged = list(fn.finish_bundle())
    fn.teardown()
    for window in (FIRST, SECOND):
        one.commit([part.value[1] for part in staged if part.windows == (window,)], window)
    assert sorted(row["id"] for row in lake.written()) == list(range(100, 120))


def test_what_a_process_remembers_of_windows_is_bounded(lake: Any) -> None:
    """A job runs for months; the windows used last keep their blobs."""
    shards, settings = WindowShards(), settings_for(lake)
    made = [shards.of(settings.within(IntervalWindow(each, each + 1))) for each in range(1500)]
    assert len(shards._shards) == 1000
    assert shards.of(settings.within(IntervalWindow(1499, 1500))) is made[-1]
    assert shards.of(settings.within(IntervalWindow(0, 1))) is not made[0]
    assert isinstance(made[0], AutoShards)


def test_shards_are_dealt_within_a_window() -> None:
    """Chunks and their counterpart are in the window of their elements."""
    fn = _DealWindows(2)
    fn.start_bundle()
    for each in range(10):
        assert list(fn.process(each, FIRST if each < 3 else SECOND)) == []
    chunks = list(fn.finish_bundle())
    for window, elements in ((FIRST, [0, 1, 2]), (SECOND, list(range(3, 10)))):
        of_window = [chunk.value for chunk in chunks if chunk.windows == (window,)]
        assert sorted(each for _, (_, chunk) in of_window for each in chunk) == elements
        assert sum(number for _, (number, _) in of_window) == 0
    assert timedelta(0) < timedelta(seconds=float(chunks[0].timestamp - FIRST.start)) < timedelta(minutes=1)
