"""Storage that is away for as long as Azurite takes to restart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.job import Job, check_output, check_trail
from tests.chaos.strikes import MOMENTS, Moment, Storm, Strike
from tests.io.conftest import Lake

ONE_PROCESS = ("--runner=DirectRunner", "--prism_location=/nonexistent")


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_an_outage_of_seconds_is_survived(lakes: Callable[[], Lake], moment: Moment) -> None:
    """Connections break, and nobody answers for a while: requests are sent again until somebody does."""
    lake = lakes()

    def restart(_sender: int) -> set[int]:
        lake.cloud.azurite.restart()
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
