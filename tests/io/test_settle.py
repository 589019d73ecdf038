"""Settling: a group is handed on when it is in a checkpoint, and not for ever if there is none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue

from beam_entra import EntraOptions, JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob
from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError
from beam_entra.io.settle import Settling, _Settle
from beam_entra.session import JobScope, Session
from beam_entra.testing.clock import FakeClock

CHECKPOINTED = "--checkpointing_interval=400"


class Finalizer:
    """What a runner calls when a bundle's effects are in a checkpoint."""

    def __init__(self) -> None:
        self.callbacks: list[Any] = []

    def register(self, callback: Any) -> None:
        """For the next checkpoint."""
        self.callbacks.append(callback)

    def checkpoint(self) -> None:
        """One is complete."""
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class Group:
    """One group, resumed as a runner does; its restriction is encoded each time."""

    def __init__(self, lake: Any, finalizer: Finalizer, *, interval_s: float = 0.4) -> None:
        self._finalizer, self._interval_s = finalizer, interval_s
        self.clock, self.naps = FakeClock(utc_now()), list[float]()
        self._session = Session(
            JobScope.launch(lake.manifest(), now=self.clock()), clock=self.clock, pause=self.naps.append
        )
        self.state: bytes | None = self._fn().restriction_coder().encode(Settling())

    def _fn(self) -> _Settle:
        fn = _Settle(self._interval_s)
        fn._session = self._session
        return fn

    def resume(self) -> list[str]:
        """What comes out of it."""
        fn = self._fn()
        assert self.state is not None, "the group has been given"
        tracker = ThreadsafeRestrictionTracker(fn.create_tracker(fn.restriction_coder().decode(self.state)))
        given = list(fn.process("group", self._finalizer, RestrictionTrackerView(tracker)))
        tracker.check_done()
        rest = tracker.deferred_status()
        self.state = fn.restriction_coder().encode(rest[0]) if rest else None
        return given

    def restore(self, state: bytes | None) -> None:
        """Go back to an earlier one."""
        self.state = state

    @property
    def since_s(self) -> float:
        """Since when it waits."""
        waiting: Settling = self._fn().restriction_coder().decode(self.state)
        return waiting.since_s

    def changed(self, **facts: Any) -> None:
        """Have it be another."""
        coder = self._fn().restriction_coder()
        self.state = coder.encode(coder.decode(self.state)._replace(**facts))


def test_a_group_waits_for_two_checkpoints(lake: Any) -> None:
    """The first one may have begun before the group came. Until the second nothing is given, however often resumed."""
    finalizer = Finalizer()
    group = Group(lake, finalizer)
    for _ in range(2):
        for _ in range(3):
            assert group.resume() == []
            assert len(finalizer.callbacks) == 1, "one note at a time"
        finalizer.checkpoint()
    assert group.resume() == ["group"]
    assert group.state is None


def test_a_group_whose_note_was_lost_waits_anew(lake: Any) -> None:
    """A restored one is resumed in a process that knows nothing of its note: what it had heard of before counts."""
    finalizer = Finalizer()
    group = Group(lake, finalizer)
    group.resume()
    finalizer.checkpoint()
    group.resume()
    group.changed(note="of a process that died")
    finalizer.callbacks.clear()
    assert group.resume() == []
    finalizer.checkpoint()
    assert group.resume() == ["group"]


def test_a_group_that_is_resumed_too_soon_waits(lake: Any) -> None:
    """As the session says, so that a job that is interrupted does not wait; who comes in time waits no more."""
    group = Group(lake, Finalizer(), interval_s=8)
    group.resume()
    assert group.naps == []
    group.resume()
    assert group.naps == [2.0]
    group.clock.advance(timedelta(seconds=4))
    group.resume()
    assert group.naps == [2.0]


def test_a_note_of_an_attempt_that_is_gone_counts_for_nobody(lake: Any) -> None:
    """A callback that comes after its group was given, or twice, changes nothing."""
    finalizer = Finalizer()
    group = Group(lake, finalizer)
    group.resume()
    (stale,) = finalizer.callbacks
    finalizer.checkpoint()
    group.resume()
    stale()
    assert group.resume() == []


def test_patience_has_an_end(lake: Any) -> None:
    """Where no checkpoint is ever complete, as while a job ends, nothing is held back for good."""
    group = Group(lake, Finalizer())
    group.resume()
    began_s = group.since_s
    group.clock.advance(timedelta(seconds=59))
    assert group.resume() == []
    assert group.since_s == began_s, "what was waited before counts"
    group.clock.advance(timedelta(seconds=2))
    assert group.resume() == ["group"]


def test_an_interval_that_is_no_number_is_refused(lake: Any) -> None:
    """When the pipeline is built, with what to write."""
    write, pipeline = WriteToBlob(lake.curated.url("out/"), per_window=True), lake.pipeline(CHECKPOINTED + "s")
    with pytest.raises(ConfigError, match="checkpointing_interval=400s is no number") as caught, pipeline as p:
        p | beam.Create([{"id": 1}]) | beam.WindowInto(FixedWindows(10)) | write
    assert "milliseconds" in caught.value.hint


def test_a_runner_may_split_before_and_behind_a_look() -> None:
    """The rest waits on; what is over is not split."""
    tracker = _Settle(1).create_tracker(Settling("note"))
    assert tracker.try_split(0.5) == (Settling(over=True), Settling("note"))
    assert not tracker.try_claim(Settling(over=True))
    tracker.check_done()
    assert _Settle(1).create_tracker(Settling(over=True)).try_split(0) is None
    tracker = _Settle(1).create_tracker(Settling("note"))
    with pytest.raises(ValueError, match="not been given"):
        tracker.check_done()
    assert tracker.try_claim(Settling(over=True))
    assert not tracker.try_claim(Settling(over=True))
    assert tracker.try_split(0) is None
    tracker.check_done()


def by_watch(pipeline: Any, lake: Any) -> None:
    """A job that begins with the one element of a watch."""
    pipeline | ReadFromBlob(lake.raw.url("in/*"), watch=10)


def in_windows(pipeline: Any, lake: Any) -> None:
    """A job that commits windows."""
    windows = pipeline | beam.Create([{"id": 1}]) | beam.WindowInto(FixedWindows(10))
    windows | WriteToBlob(lake.curated.url("out/"), JsonLines(), per_window=True)


def batch(pipeline: Any, lake: Any) -> None:
    """A job that does neither."""
    pipeline | ReadFromBlob(lake.raw.url("in/*")) | WriteToBlob(lake.curated.url("out/"))


@pytest.mark.parametrize(
    ("runner", "build", "told"),
    [
        ("FlinkRunner", by_watch, True),
        ("FlinkRunner", in_windows, True),
        ("FlinkRunner", batch, None),
        ("PortableRunner", by_watch, True),
        ("SparkRunner", by_watch, None),
        ("DirectRunner", by_watch, None),
    ],
)
def test_flink_is_told_to_end_bundles_before_a_checkpoint(lake: Any, runner: str, build: Any, told: Any) -> None:
    """What it ends in a checkpoint it keeps until the step's next bundle, and a watch's first step has no other."""
    pipeline = lake.pipeline(f"--runner={runner}", "--job_endpoint=127.0.0.1:1")
    build(pipeline, lake)
    options = pipeline.options.get_all_options(retain_unknown_options=True)
    assert options.get("finish_bundle_before_checkpointing") is told
    pipeline.seal()


@pytest.mark.parametrize("said", [True, False, "false"])
def test_who_says_otherwise_keeps_it(lake: Any, caplog: pytest.LogCaptureFixture, said: Any) -> None:
    """What the user's options set is not replaced, only warned of where it can keep a job from going on."""
    options = EntraOptions(
        ["--runner=FlinkRunner", "--job_endpoint=127.0.0.1:1"], finish_bundle_before_checkpointing=said
    )
    pipeline = ScopedPipeline(options=options, access_manifest=lake.manifest())
    by_watch(pipeline, lake)
    assert options.get_all_options(retain_unknown_options=True)["finish_bundle_before_checkpointing"] is said
    assert ("finish_bundle_before_checkpointing is false" in caplog.text) == (said is not True)
    pipeline.seal()


@pytest.mark.parametrize("flags", [(), (CHECKPOINTED,)], ids=["without checkpoints", "with"])
def test_windows_are_committed_behind_it(lake: Any, flags: tuple[str, ...]) -> None:
    """The step is in the graph only where checkpoints are; the outcome is the same."""
    pipeline = lake.pipeline(*flags)
    with pipeline as p:
        stamped = p | beam.Create([TimestampedValue({"id": each}, each) for each in range(20)])
        windows = stamped | "Stamp" >> beam.Map(lambda each: each) | beam.WindowInto(FixedWindows(10))
        done = windows | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=1, per_window=True)
        rows = done | beam.Map(lambda blob: blob.rows) | "Together" >> beam.WindowInto(GlobalWindows())
        assert_that(rows, equal_to([10, 10]))
    assert sorted(row["id"] for row in lake.written()) == list(range(20))
    steps = [step.unique_name for step in pipeline.to_runner_api().components.transforms.values()]
    assert any("Settle" in step for step in steps) == bool(flags)
