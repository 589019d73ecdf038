"""DirectRunner with worker processes: it starts none again, so the job ends, and the next launch does everything."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from beam_entra.errors import BlobExists, WorkerLost
from tests.chaos.job import SINKS, Job, check_output, check_trail
from tests.chaos.strikes import MOMENTS, Moment, Storm, Strike, end
from tests.io.conftest import Lake

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threads of Beam's

DIRECT = (
    "--runner=DirectRunner",
    "--prism_location=/nonexistent",
    "--direct_running_mode=multi_processing",
    "--direct_num_workers=2",
)
TIME_S = 120
ALWAYS = ("commit", True)  # Beam by itself waits for ever there
CASES = [
    pytest.param(
        moment,
        done,
        id=f"{moment.name}, {'done' if done else 'not yet'}",
        marks=() if (moment.name, done) == ALWAYS else pytest.mark.engine,
    )
    for moment in MOMENTS.values()
    for done in (False, True)
]


def state_of(lake: Lake, sink: str) -> str:
    """What can be seen of a sink's commit."""
    names = lake.curated.list(f"out/a/{sink}/")
    return "nothing" if not names else "complete" if f"out/a/{sink}/_SUCCESS" in names else "begun"


@pytest.mark.parametrize(("moment", "done"), CASES)
def test_a_worker_that_is_killed(lakes: Callable[[], Lake], moment: Moment, done: bool) -> None:
    """One clear error and a sealed trail; what was begun is refused, and a launch to where nothing is writes all."""
    lake = lakes()
    storm = Storm(lake, [Strike(moment=moment, skip=1, done=done, what="worker")], {"worker": end})
    job = Job(lake, "a/", DIRECT, shards=2)
    storm.arm()
    job.run(TIME_S)
    assert isinstance(job.error, WorkerLost)
    assert re.search(r"return code (137|-9)$", job.error.message)
    assert "launch the job again" in job.error.hint
    assert len(storm.killed) == 1
    dead = check_trail(lake, job, storm, "failed")
    assert dead or not moment.recorded
    states = {sink: state_of(lake, sink) for sink in SINKS}
    if moment.name in {"read", "stage"}:
        assert set(states.values()) == {"nothing"}
    again = Job(lake, "a/", DIRECT, shards=2)
    again.run(TIME_S)
    if set(states.values()) == {"nothing"}:
        assert again.error is None
        check_output(lake, "out/a/")
        return
    assert isinstance(again.error, BlobExists), "a commit by another job is not taken up"
    elsewhere = Job(lake, "b/", DIRECT, shards=2)
    elsewhere.run(TIME_S)
    assert elsewhere.error is None
    check_output(lake, "out/b/")


@pytest.mark.engine
def test_a_worker_that_is_killed_while_it_overwrites(lakes: Callable[[], Lake]) -> None:
    """The same launch again, to the same prefix, replaces whatever is there."""
    lake = lakes()
    storm = Storm(lake, [Strike(moment=MOMENTS["commit"], skip=3, done=True, what="worker")], {"worker": end})
    job = Job(lake, "a/", DIRECT, shards=2, overwrite=True)
    storm.arm()
    job.run(TIME_S)
    assert isinstance(job.error, WorkerLost)
    assert check_trail(lake, job, storm, "failed")
    again = Job(lake, "a/", DIRECT, shards=2, overwrite=True)
    again.run(TIME_S)
    assert again.error is None
    check_output(lake, "out/a/")
