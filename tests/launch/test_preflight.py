"""`--preflight`: the doctor comes before the launch, and a job that could not run is not launched."""

from __future__ import annotations

from typing import Any

import pytest

from beam_entra import EntraOptions, JsonLines, ReadFromBlob, WriteToBlob
from beam_entra.errors import PreflightFailed
from tests.io.conftest import Lake


@pytest.fixture(autouse=True)
def assertion(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the job's assertion is."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(lake.cloud.assertion_file))


def copy_orders(lake: Lake, p: Any) -> None:
    """Read everything, write it."""
    orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
    orders | WriteToBlob(lake.curated.url("out/"), JsonLines())


def test_a_job_that_can_run_runs(lake: Lake, capfd: pytest.CaptureFixture[str]) -> None:
    """The lines are on standard error; the job has a trail of its own beside the examination's."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    with lake.pipeline("--preflight") as p:
        copy_orders(lake, p)
    assert "This job can run (" in capfd.readouterr().err
    assert lake.written() == [{"id": 1}]
    kinds = ["doctor" in job for job in lake.jobs()]
    assert sorted(kinds) == [False, True]
    for job in lake.jobs():
        lake.trail(job).verify()


def test_a_job_that_cannot_run_is_not_launched(lake: Lake, capfd: pytest.CaptureFixture[str]) -> None:
    """The error names each failing line and its fix; no record of a job is there, nothing was read or written."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    lake.cloud.proxy.without_role(where=lambda request: request.operation in {"PutBlockList", "GetBlobProperties"})
    with pytest.raises(PreflightFailed) as refused, lake.pipeline("--preflight") as p:
        copy_orders(lake, p)
    message = refused.value.message
    assert f"read: {lake.raw.url('in/')}: Storage refused" in message
    assert f"write: {lake.curated.url('out/')}: Storage refused" in message
    assert "Storage Blob Data Reader" in refused.value.hint
    assert "Storage Blob Data Contributor" in refused.value.hint
    assert "This job cannot run: see read, write" in capfd.readouterr().err
    data = {lake.raw.name, lake.curated.name}
    assert {each.operation for each in lake.cloud.proxy.requests if each.request.container in data} == {
        "ListBlobs",
        "GetBlobProperties",
        "GetContainerProperties",
        "PutBlockList",
    }
    assert lake.curated.list() == []
    assert ["doctor" in job for job in lake.jobs()] == [True], "the job itself left no trail"


def test_it_is_asked_for(lake: Lake, capfd: pytest.CaptureFixture[str]) -> None:
    """Without the flag nothing is examined."""
    assert EntraOptions([]).preflight is False
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    with lake.pipeline() as p:
        copy_orders(lake, p)
    assert "This job" not in capfd.readouterr().err
    assert len(lake.jobs()) == 1
