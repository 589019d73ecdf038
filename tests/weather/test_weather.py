"""Jobs in bad weather: each ends by itself, with the right output or one clear error, and no record lost or doubled."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Self, TypeAlias, cast

import pytest

from beam_entra.clock import utc_now
from beam_entra.errors import TrailBroken
from beam_entra.session.sealing import seal_late
from beam_entra.testing.local import LocalCloud, LocalContainer
from tests.io.conftest import Lake
from tests.weather.cases import LONG, STORAGE, TOKEN, Case, data
from tests.weather.page import keep
from tests.weather.sky import DIRECT, Job, Met, expected, met, put_orders, recovered_after_s, sky_over

MakeContainer: TypeAlias = Callable[..., LocalContainer]
ASKED_FOR_BEFORE = 3  # blobs
HARD_END_S = 60.0
LONG_HARD_END_S = 110.0


class Run:
    """A case under a sky of its own."""

    def __init__(self, case: Case, cloud: LocalCloud, folder: Path, make: MakeContainer, up: ExitStack) -> None:
        self.case = case
        self.sky = up.enter_context(sky_over(cloud, folder))
        self.sky.tenant.token_life_s, self.sky.tenant.refresh_in_s = case.token_life_s, case.refresh_in_s
        self.lake = Lake(
            cloud=cast("LocalCloud", self.sky),
            raw=make("raw"),
            curated=make("curated"),
            audit=make("audit"),
            folder=folder,
        )
        put_orders(self.lake, padding=case.padding)
        self.job = Job(self.lake, self.lake.manifest(sas=case.sas, scoping=case.scoping), pace_s=case.pace_s)
        self.struck_at = utc_now()

    def start(self) -> Self:
        """Launch the job. When it asks for the fourth blob, the weather changes."""
        where = data("GetBlob", self.lake)
        self._struck = self.sky.proxy.run(self._strike, where=where, skip=ASKED_FOR_BEFORE)
        self.job.start()
        return self

    def _strike(self) -> None:
        self.struck_at = utc_now()
        self.case.strike(self.sky, self.lake)
        if self.case.old_token:
            threading.Event().wait(self.case.token_life_s)

    def check(self, most_s: float) -> None:
        """See that it ends as it has to, and keep how long that took."""
        self.job.wait(most_s)
        assert self._struck.hits == 1
        seen = met(self.sky)
        assert sum(each.fault for each in seen) >= self.case.least_hits
        self.check_end()
        self.sky.clear()
        self.check_trail()
        keep(self.case, self.took_s(seen))

    def took_s(self, seen: list[Met]) -> float:
        """Seconds until the job had recovered, or ended."""
        if self.case.error is not None:
            return (self.job.ended - next((each.time for each in seen if each.fault), self.struck_at)).total_seconds()
        if self.case.stalls:
            began = self.struck_at + timedelta(seconds=self.case.token_life_s)
            return (next(m.time for m in seen if m.kind == "token" and m.time > began) - began).total_seconds()
        return recovered_after_s(seen)

    def check_end(self) -> None:
        """The right output; or one error, with what to do, and then nothing that could be taken for output."""
        case, error = self.case, self.job.error
        if case.error is None:
            assert error is None
            assert self.job.written() == expected()
            assert self.lake.success()["rows"] == sum(expected().values())
            return
        assert isinstance(error, case.error)
        assert error.hint
        assert case.says in f"{error}\n{error.hint}"
        assert self.lake.curated.list("out/") == []

    def check_trail(self) -> None:
        """It verifies; or it is whole and says that it is not sealed, which an operator mends; or it is gone."""
        lake, trail = self.lake, self.job.trail
        if self.case.trail == "sealed":
            assert trail.verify().seal.outcome == ("failed" if self.case.error else "ok")
        elif self.case.trail == "unsealed":
            with pytest.raises(TrailBroken, match="not sealed"):
                trail.verify()
            manifest = lake.write_manifest(scoping=self.case.scoping)
            seal_late(lake.audit.url(f"audit/{self.job.id}/"), manifest, self.sky.endpoints_file)
            assert trail.verify().seal.outcome == "late"
        else:
            assert lake.audit.name not in self.sky.admin.list_containers(lake.audit.account)


@pytest.mark.long
@pytest.mark.timeout(170)
def test_jobs_in_weather_that_takes_its_time(
    beam_entra_cloud: LocalCloud, beam_entra_containers: MakeContainer, tmp_path: Path
) -> None:
    """A minute and more of it, in real time; each job under a sky of its own, all at once. The longest comes first."""
    with ExitStack() as up:
        runs = []
        for number, case in enumerate(LONG):
            folder = tmp_path / str(number)
            folder.mkdir()
            runs.append(Run(case, beam_entra_cloud, folder, beam_entra_containers, up).start())
        for run in runs:
            run.check(LONG_HARD_END_S)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("case", [*TOKEN, *STORAGE], ids=lambda case: case.name)
def test_a_job_in_bad_weather(
    case: Case, beam_entra_cloud: LocalCloud, beam_entra_containers: MakeContainer, tmp_path: Path
) -> None:
    """The weather changes in the middle of it."""
    with ExitStack() as up:
        Run(case, beam_entra_cloud, tmp_path, beam_entra_containers, up).start().check(HARD_END_S)


@pytest.mark.timeout(90)
def test_nobody_waits_for_a_pause_of_a_job_that_is_interrupted(
    beam_entra_cloud: LocalCloud, beam_entra_containers: MakeContainer, tmp_path: Path
) -> None:
    """Ctrl-C while Storage wants a job to come back in a minute and a half: it seals its trail, and is gone."""
    make = beam_entra_containers
    with sky_over(beam_entra_cloud, tmp_path) as sky:
        cloud = cast("LocalCloud", sky)
        lake = Lake(cloud=cloud, raw=make("raw"), curated=make("curated"), audit=make("audit"), folder=tmp_path)
        put_orders(lake, padding=0)
        where = data("GetBlob", lake)
        busy = sky.proxy.respond(503, "ServerBusy", headers={"Retry-After": "90"}, where=where, skip=ASKED_FOR_BEFORE)
        running = lake.launch(f"--input={lake.raw.url('in/*')}", f"--output={lake.curated.url('out/')}", flags=DIRECT)
        try:
            busy.wait_for_hits(timeout_s=60)
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=30)
        finally:
            running.kill()
        assert running.returncode == 130, said
        assert lake.only_trail().verify().seal.outcome == "interrupted"
        assert lake.curated.list("out/") == []
