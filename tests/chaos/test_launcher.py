"""A launcher that is killed: its own workers go with it, a cluster's end their job; its trail is sealed late."""

from __future__ import annotations

import os
import select
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest
from click.testing import CliRunner

from beam_entra.audit.verify import TrailSummary, verify
from beam_entra.cli import main
from beam_entra.errors import TrailBroken
from tests.chaos.job import expected, total
from tests.chaos.strikes import MOMENTS, Storm, Strike, end
from tests.chaos.test_direct import DIRECT
from tests.chaos.test_flink import flink_flags
from tests.engines.clusters import Flink
from tests.engines.plugin import Boot
from tests.io.conftest import Lake


def launch_and_kill(lake: Lake, moment: str, flags: tuple[str, ...]) -> int:
    """Launch a job whose launcher is killed while a worker sends such a request: one of the worker, a pidfd."""
    workers: list[int] = []

    def kill_launcher(sender: int) -> set[int]:
        workers.append(os.pidfd_open(sender))
        return end(launched.pid)

    strike = Strike(moment=MOMENTS[moment], skip=1, done=False, what="launcher")
    storm = Storm(lake, [strike], {"launcher": kill_launcher})
    storm.arm()
    launched = lake.launch(
        f"--input={lake.raw.url('in/*')}", f"--output={lake.curated.url('out/')}", "--block_bytes=200", flags=flags
    )
    launched.communicate(timeout=120)
    assert storm.over.wait(60)
    assert storm.killed == {launched.pid}
    (worker,) = workers
    return worker


def wait_for_end(worker: int) -> None:
    """Nobody has it work any more, so it ends."""
    try:
        assert select.select([worker], [], [], 60)[0], "it outlives its job"
    finally:
        os.close(worker)


def seal_late(lake: Lake) -> TrailSummary:
    """The trail is not sealed; a person seals it, and both that and who looks at it later say that it came late."""
    (job,) = lake.jobs()
    with pytest.raises(TrailBroken, match="not sealed"):
        lake.trail(job).verify()
    flags = [f"--access_manifest={lake.write_manifest()}", f"--access_endpoints={lake.cloud.endpoints_file}"]
    sealed = CliRunner().invoke(main, ["audit", "seal", lake.audit.url(f"audit/{job}/"), *flags])
    assert sealed.exit_code == 0, sealed.output
    assert "sealed late" in sealed.stderr
    summary = verify(lake.trail(job), seal_digest=sealed.stdout.strip())
    assert summary.seal.outcome == "late"
    shown = CliRunner().invoke(main, ["audit", "verify", lake.audit.url(f"audit/{job}/"), *flags])
    assert "not by its launcher" in shown.stdout
    # A worker may end its bundle before it finds that nobody waits for it; then all have been closed.
    assert ("ended without closing" in shown.stdout) == bool(summary.open_bundles)
    return summary


@pytest.mark.parametrize("name", ["stage", pytest.param("commit", marks=pytest.mark.engine)])
def test_its_workers_end_and_the_trail_is_sealed_late(lakes: Callable[[], Lake], name: str) -> None:
    """Nobody is at work any more soon after; what is there is sealed, and says that it came late."""
    lake = lakes()
    worker = launch_and_kill(lake, name, DIRECT)
    wait_for_end(worker)
    assert len(seal_late(lake).segments) > 1


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_a_job_on_a_cluster_ends_without_it(lakes: Callable[[], Lake], flink: Flink, boot: Boot) -> None:
    """The job server and the workers do the rest; that the job has ended well, the cluster knows, and no seal."""
    lake = lakes()
    before = flink.jobs()
    worker = launch_and_kill(lake, "stage", flink_flags(flink, boot))
    (job,) = flink.jobs().keys() - before.keys()
    flink.processes.wait("jobmanager", f"Job {job} reached terminal state")
    assert flink.jobs()[job] == "FINISHED"
    assert lake.success()["state"] == "complete"
    assert Counter((order["id"], total(order)["total"]) for order in lake.written()) == expected()
    wait_for_end(worker)
    for pid in boot.pids():
        with suppress(ProcessLookupError):
            wait_for_end(os.pidfd_open(pid))
    summary = seal_late(lake)
    assert len(summary.segments) == 1 + len(boot.pids())
    assert summary.open_bundles == 0
