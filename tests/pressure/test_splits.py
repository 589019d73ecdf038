"""Splits lose and repeat nothing, when it is Beam that splits: by the runner's requests in the middle of a read."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_entra import Lines, ReadFromBlob
from beam_entra.io.blocks import BadRecord, Block
from beam_entra.io.packs import Pack, keyed
from beam_entra.io.read import _ReadBlocks
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession
from beam_entra.storage import BlobProperties
from tests.pressure.conftest import Lake

_TEXT = st.text(st.characters(exclude_characters="\n\r\ufeff", exclude_categories=["Cs"]), max_size=12)
_END = st.sampled_from(["\n", "\r\n"])


@st.composite
def texts(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A blob of text and its lines: characters of one to four bytes, both line ends mixed, perhaps a BOM first."""
    lines = draw(st.lists(st.tuples(_TEXT, _END), min_size=1, max_size=20))
    text = "".join(line + end for line, end in lines)
    found = [line for line, _ in lines]
    if draw(st.booleans()) and lines[-1][0]:
        text = text.removesuffix(lines[-1][1])
    mark = "\ufeff" if draw(st.booleans()) else ""
    return (mark + text).encode("utf-8"), found


class Reader:
    """The reading DoFn as a worker holds it, its trackers wrapped as Beam's worker wraps them."""

    def __init__(self, bundle: BundleSession, blob: BlobProperties, block_bytes: int) -> None:
        self._fn = _ReadBlocks(ReadFromBlob(str(blob.path), Lines(), block_bytes=block_bytes)._settings)
        self._fn._session, self._fn._bundle = bundle.session, bundle
        self._pack = keyed(Pack((blob,)))

    def restrictions(self) -> list[OffsetRange]:
        """Those that a runner begins with."""
        return list(self._fn.split(self._pack, self._fn.initial_restriction(self._pack)))

    def read(self, restriction: OffsetRange) -> tuple[ThreadsafeRestrictionTracker, Iterator[Block]]:
        """A restriction's tracker, for the runner to split, and its blocks, as the worker gets them."""
        tracker = ThreadsafeRestrictionTracker(self._fn.create_tracker(restriction))
        return tracker, self._fn.process(self._pack, RestrictionTrackerView(tracker))


@pytest.mark.timeout(120)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blob=texts(), block_bytes=st.integers(3, 80), runner=st.data())
def test_splits_of_beams_trackers_lose_and_repeat_nothing(
    lake: Lake, bundle: BundleSession, blob: tuple[bytes, list[str]], block_bytes: int, runner: st.DataObject
) -> None:
    """Split before any block, at any fraction: primaries and residuals give each line once, byte for byte."""
    data, lines = blob
    lake.raw.upload("in/a.txt", data)
    reader = Reader(bundle, bundle.properties(BlobPath.parse(lake.raw.url("in/a.txt"))), block_bytes)
    waiting, blocks, splits = reader.restrictions(), [], 0
    while waiting:
        tracker, reading = reader.read(waiting.pop())
        more = True
        while more:
            if splits < 6 and runner.draw(st.booleans(), label="split?"):
                split = tracker.try_split(runner.draw(st.sampled_from([0, 0.1, 0.5, 0.9]), label="of the rest"))
                if split:  # what is read as a whole is not split
                    splits += 1
                    waiting.append(split[1])
            here = list(islice(reading, 1))
            blocks += here
            more = bool(here)
        tracker.check_done()
    bad: list[BadRecord] = []
    in_order = sorted(blocks, key=lambda block: block.offset)
    assert [line for block in in_order for line in Lines().decode_each(block, bad)] == lines
    assert bad == []


class Pause:
    """Where the worker stops in the middle of a bundle until the runner has split it."""

    def __init__(self) -> None:
        self._left = 0
        self._reached, self._go_on = threading.Event(), threading.Event()

    def begin(self, after: int) -> None:
        """For the runner, before a bundle: stop at this element."""
        self._left = after
        self._reached.clear()
        self._go_on.clear()

    def wait(self) -> None:
        """For the runner: until the worker has stopped, or its bundle has ended."""
        assert self._reached.wait(30)

    def go_on(self) -> None:
        """For the runner: let the worker go on."""
        self._go_on.set()

    def step(self) -> None:
        """For the worker: here is an element."""
        self._left -= 1
        if self._left == 0:
            self._reached.set()
            assert self._go_on.wait(30)

    def end(self) -> None:
        """For the worker: here is the end of the bundle."""
        self._reached.set()


PAUSE = Pause()  # the runner works in this process


class Stop(beam.DoFn):
    """Downstream of the read, and fused with it."""

    def process(self, line: str) -> Iterator[str]:
        PAUSE.step()
        yield line

    def finish_bundle(self) -> None:
        PAUSE.end()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(4))
def test_a_runner_that_splits_in_the_middle_of_bundles_gets_each_line_once(lake: Lake, seed: int) -> None:
    """Beam's own worker stops at a random element and is asked to split, twice; what it gives back is read as well."""
    choose = random.Random(seed)  # noqa: S311 - the same each time
    expected = []
    for number, (mark, end) in enumerate([("", "\n"), ("\ufeff", "\r\n"), ("", "\r\n"), ("\ufeff", "\n")]):
        lines = [f"{number} {at} " + "aé€😀"[choose.randrange(4)] * choose.randrange(60) for at in range(100)]
        text = mark + end.join(lines) + end * (number % 2)
        lake.raw.upload(f"in/{number}.txt", text.encode("utf-8"))
        expected += lines
    split: list[Any] = []

    def split_manager(restrictions: int) -> Iterator[float | None]:
        if not restrictions or len(split) >= 8:
            return
        PAUSE.begin(choose.randrange(1, 60))
        yield None
        PAUSE.wait()
        try:
            for _ in range(2):
                answer = yield choose.random()
                if answer is not None:
                    split.append(answer)
        finally:
            PAUSE.go_on()

    pipeline = lake.pipeline("--runner=FnApiRunner", "--direct_running_mode=multi_threading")
    with fn_runner.split_manager("Read/Read/Scoped", split_manager), pipeline as p:
        lines = p | "Read" >> ReadFromBlob(lake.raw.url("in/*.txt"), Lines(), block_bytes=256)
        assert_that(lines | beam.ParDo(Stop()), equal_to(expected))
    assert [answer for answer in split if answer.residual_roots], "it was split within a range"
    assert lake.trail(pipeline.scope.job).verify().seal.outcome == "ok"
