"""Storage that restarts under a job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.job import Job, check_output, check_trail
from tests.chaos.strikes import MOMENTS, Moment, Storm, Strike
from tests.io.conftest import Lake

ONE_PROCESS = ("--runner=DirectRunner", "--prism_location=/nonexistent")


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(moment, id=moment.name, marks=() if moment.name == "commit" else pytest.mark.engine)
        for moment in MOMENTS.values()
    ],
)
def test_a_restart_of_storage_is_survived(lakes: Callable[[], Lake], moment: Moment) -> None:
    """Connections break, some are refused, and then nobody answers for a while; what was staged is still there."""
    lake = lakes()

    def restart(_sender: int) -> set[int]:
        refused = lake.cloud.proxy.reset(times=4)
        held = lake.cloud.proxy.hold()  # however long it takes on a busy machine
        lake.cloud.azurite.restart()
        refused.clear()
        held.clear()
        return set()

    here = moment.sent_here()
    storm = Storm(lake, [Strike(moment=here, skip=1, done=False, what="restart")], {"restart": restart})
    job = Job(lake, "a/", ONE_PROCESS, shards=2)
    storm.arm()
    job.run(120)
    assert len(storm.struck) == 1
    assert job.error is None
    check_output(lake, "out/a/")
    check_trail(lake, job, storm, "ok")
