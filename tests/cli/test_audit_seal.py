"""`beam-entra audit seal`: a job whose launcher was killed still gets its seal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from beam_entra.cli import main
from tests.io.conftest import Lake, lake

__all__ = ["lake"]  # the fixture


def audit(lake: Lake, command: str, path: str, *more: Any) -> Result:
    """Run a subcommand of `beam-entra audit` as the job's identity."""
    flags = [f"--access_manifest={lake.write_manifest()}", f"--access_endpoints={lake.cloud.endpoints_file}"]
    return CliRunner().invoke(main, ["audit", command, path, *flags, *more])


@pytest.fixture
def killed(lake: Lake) -> str:
    """The folder of a job whose launcher was killed while it committed what it had staged and recorded."""
    lake.upload_json("in/a.jsonl", [{"id": number} for number in range(10)])
    held = lake.cloud.proxy.hold(
        where=lambda request: (request.container, request.operation) == (lake.curated.name, "PutBlockList")
    )
    launched = lake.launch("--input", lake.raw.url("in/*"), "--output", lake.curated.url("out/"))
    try:
        held.gate.wait_for_arrivals(timeout_s=60)
    finally:
        launched.kill()
        held.gate.open()
        launched.communicate(timeout=30)
    (job,) = lake.jobs()
    return lake.audit.url(f"audit/{job}/")


def test_the_trail_of_a_killed_launcher_is_sealed_late(lake: Lake, killed: str) -> None:
    """Not sealed, says verify; then it is, by its digest, as `late`; and not a second time."""
    before = audit(lake, "verify", killed)
    assert before.exit_code == 1
    assert "not sealed" in before.output
    sealed = audit(lake, "seal", killed.removesuffix("/"))
    assert sealed.exit_code == 0, sealed.output
    digest = sealed.stdout.strip()
    (job,) = lake.jobs()
    assert f"sealed late  {job}" in sealed.stderr
    assert "how the job ended is not known" in sealed.stderr
    assert "ended without closing" in sealed.stderr, "the bundle that committed when the launcher died"
    after = audit(lake, "verify", killed, f"--seal-digest={digest}")
    assert after.exit_code == 0, after.output
    assert "ended late (sealed at " in after.stdout
    assert "not by its launcher; how the job ended is not known" in after.stdout
    assert "ended without closing" in after.stdout
    summary = lake.only_trail().verify()
    assert (summary.seal.outcome, summary.seal.error, summary.seal_digest) == ("late", None, digest)
    again = audit(lake, "seal", killed)
    assert again.exit_code == 1
    assert "sealed already" in again.output


def test_what_is_no_jobs_folder_is_not_sealed(lake: Lake) -> None:
    """Neither the audit path itself, nor one elsewhere, nor a job that never was; nothing is written."""
    for path, says in {
        lake.audit.url("audit/"): "not the folder of one job",
        lake.audit.url("audit/a/b/"): "not the folder of one job",
        lake.raw.url("in/"): "not below the manifest's audit path",
        lake.audit.url("audit/orders-0/"): "no audit trail at",
    }.items():
        ended = audit(lake, "seal", path)
        assert ended.exit_code == 1
        assert says in ended.output
    assert lake.audit.list() == []


def test_a_copy_is_not_sealed_and_an_identity_is_needed(lake: Lake, tmp_path: Path) -> None:
    """Usage errors: exit code 2."""
    assert audit(lake, "seal", str(tmp_path)).exit_code == 2
    ended = CliRunner().invoke(main, ["audit", "seal", lake.audit.url("audit/x/")])
    assert ended.exit_code == 2
    assert "--access_manifest" in ended.output
