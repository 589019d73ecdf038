"""A launcher that is killed: its workers go with it, and its trail is sealed late."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from beam_entra.audit.verify import verify
from beam_entra.cli import main
from tests.chaos.strikes import MOMENTS, Storm, Strike, end
from tests.chaos.test_direct import DIRECT
from tests.io.conftest import Lake


@pytest.mark.parametrize("name", ["stage", pytest.param("commit", marks=pytest.mark.engine)])
def test_its_workers_end_and_the_trail_is_sealed_late(lakes: Callable[[], Lake], name: str) -> None:
    """Nobody is at work any more soon after; what is there is sealed, and says that it came late."""
    lake = lakes()
    (moment,) = (moment for moment in MOMENTS if moment.name == name)
    workers: list[int] = []

    def kill_launcher(sender: int) -> set[int]:
        workers.append(os.pidfd_open(sender))
        return end(launched.pid)

    storm = Storm(lake, [Strike(moment=moment, skip=1, done=False, what="launcher")], {"launcher": kill_launcher})
    storm.arm()
    launched = lake.launch(
        f"--input={lake.raw.url('in/*')}", f"--output={lake.curated.url('out/')}", "--block_bytes=200", flags=DIRECT
    )
    launched.communicate(timeout=120)
    assert storm.killed == {launched.pid}
    for worker in workers:
        assert select.select([worker], [], [], 60)[0], "the worker outlives its launcher"
        os.close(worker)
    (job,) = lake.jobs()
    flags = [f"--access_manifest={lake.write_manifest()}", f"--access_endpoints={lake.cloud.endpoints_file}"]
    sealed = CliRunner().invoke(main, ["audit", "seal", lake.audit.url(f"audit/{job}/"), *flags])
    assert sealed.exit_code == 0, sealed.output
    assert "sealed late" in sealed.stderr
    summary = verify(lake.trail(job), seal_digest=sealed.stdout.strip())
    assert summary.seal.outcome == "late"
    assert len(summary.segments) > 1
    shown = CliRunner().invoke(main, ["audit", "verify", lake.audit.url(f"audit/{job}/"), *flags])
    assert "not by its launcher" in shown.stdout
    # A worker may end its bundle before it finds that nobody waits for it; then all have been closed.
    assert ("ended without closing" in shown.stdout) == bool(summary.open_bundles)
