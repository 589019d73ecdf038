"""The examination of a job that could run: what it says, what it sends, what it leaves behind."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from beam_entra.doctor import Examination, as_json
from beam_entra.errors import IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.testing.storage_requests import StorageExchange
from tests.doctor.conftest import LAKE, Patient

_ALL = {
    "manifest": "ok",
    "network": "ok",
    "clock": "ok",
    "credential": "ok",
    "token": "ok",
    "delegation key": "ok",
    "audit": "ok",
    "read": "ok",
    "write": "ok",
    "public access": "ok",
    "shared key": "skipped",
    "time": "ok",
    "seal": "ok",
}


def test_a_job_that_can_run(patient: Patient) -> None:
    """Every check is there, in order, and none fails; it says as whom."""
    seen = patient.examine()
    assert seen.marks() == _ALL
    assert list(seen.marks()) == list(_ALL)
    assert seen.failures == ()
    token = seen.of("token").facts
    assert (token["client"], token["tenant"]) == (patient.cloud.client_id, patient.cloud.tenant_id)
    assert token["object_id"] in seen.of("token").found
    assert str(token["expires"]).endswith("Z")
    assert [finding.about for finding in seen.examination.findings if finding.check == "network"] == ["authority", LAKE]
    assert seen.of("time").found.startswith("the job may run 1 h from launch; a SAS lives 5 min, this token ")


def test_it_reads_no_data_and_writes_nothing_but_its_trail(patient: Patient) -> None:
    """No blob is got; outside the audit path nothing is made, changed or deleted, and what is refused stays undone."""
    patient.curated.upload("out/there", b"as it was")
    before = {each.name: _content(each) for each in (patient.raw, patient.curated)}
    patient.audit.upload("audit/of-another-job", b"as it was")
    seen = patient.examine(delete=[patient.curated.url("out/there")], write=[patient.curated.url("out/")])
    assert seen.failures == ()
    assert {each.name: _content(each) for each in (patient.raw, patient.curated)} == before
    outside = [each for each in patient.cloud.proxy.requests if each.request.container != patient.audit.name]
    assert {each.operation for each in outside if each.status < 300} == {
        "ListBlobs",
        "GetBlobProperties",
        "GetUserDelegationKey",
    }
    assert not [each for each in outside if each.operation == "GetBlob"]
    listed = [each for each in outside if each.operation == "ListBlobs"]
    assert [each.request.parameters["maxresults"] for each in listed] == ["1"]
    assert _content(patient.audit).keys() == {"audit/of-another-job", *_trail_of(patient, seen.job)}
    assert patient.audit.download("audit/of-another-job") == b"as it was"


def test_every_request_that_could_write_carries_a_condition_that_never_holds(patient: Patient) -> None:
    """Even were the identity let do everything, nothing could come of it."""
    patient.examine(delete=[patient.curated.url("out/there")])
    asked = [each for each in patient.cloud.proxy.requests if _could_write(patient, each)]
    assert {each.operation for each in asked} == {"PutBlockList", "DeleteBlob", "PutBlob", "SetBlobMetadata"}
    conditions = {(each.operation, each.request.headers.get("if-match", "")) for each in asked}
    assert conditions == {(each.operation, '"0x0"') for each in asked} | {("PutBlockList", "")}
    bare = [each for each in asked if "if-match" not in each.request.headers]
    assert [each.status for each in bare] == [400], "blocks that were never staged are a condition, too"


def test_the_data_plane_sees_one_sas_for_one_thing(patient: Patient) -> None:
    """Each grant is asked for under the SAS that the job would have; two questions are asked without any credential."""
    patient.examine(delete=[patient.curated.url("out/there")])
    at_data = [
        each
        for each in patient.cloud.proxy.requests
        if each.request.container in {patient.raw.name, patient.curated.name}
    ]
    letters = {each.operation: each.request.parameters["sp"] for each in at_data if each.request.credential == "sas"}
    assert letters == {"ListBlobs": "l", "GetBlobProperties": "r", "PutBlockList": "w", "DeleteBlob": "d"}
    assert {each.operation for each in at_data if each.request.credential != "sas"} == {
        "GetContainerProperties",
        "GetBlobProperties",
    }
    assert "bearer" not in {each.request.credential for each in at_data}


def test_its_trail_verifies_and_tells_what_was_asked(patient: Patient) -> None:
    """One sealed trail of a job that says that none ran, with every question in it."""
    seen = patient.examine(delete=[patient.curated.url("out/")])
    summary = patient.trail(seen.job)
    assert summary.job.startswith("orders-doctor-")
    assert (summary.seal.outcome, summary.seal_digest) == ("ok", seen.of("seal").facts["seal_digest"])
    asked = [(each["asked"], each["permission"], "sas" in each) for each in patient.records(seen.job, "probed")]
    assert asked[:6] == [
        ("overwrite", "append", True),
        ("change", "append", True),
        ("delete", "append", True),
        ("write", "write", True),
        ("write", "write", True),
        ("delete", "delete", True),
    ]
    assert set(asked[6:]) == {("look", "read", False)}
    assert len(patient.records(seen.job, "listed")) == 2, "the prefix, and the trail itself when it is sealed"
    data = [each for each in patient.cloud.proxy.requests if each.request.container == patient.curated.name]
    recorded = {each["request_id"] for each in patient.records(seen.job, "probed")}
    assert {each.request_id for each in data} <= recorded


def test_a_failing_examination_is_sealed_as_failed(patient: Patient) -> None:
    """The seal names the checks that failed; the refusal is in the trail."""
    patient.cloud.proxy.without_role(where=lambda request: request.operation == "PutBlockList")
    seen = patient.examine()
    assert seen.failures == ("write",)
    summary = patient.trail(seen.job)
    assert (summary.seal.outcome, summary.seal.error) == ("failed", "doctor: write")
    (denied,) = patient.records(seen.job, "denied")
    assert (denied["permission"], denied["by"]) == ("write", "storage")


def test_the_shape_for_machines(patient: Patient) -> None:
    """One object with these names; each finding has the same six."""
    seen = patient.examine()
    data = json.loads(json.dumps(as_json(seen.examination)))
    assert {name: type(value) for name, value in data.items()} == {
        "doctor": int,
        "ok": bool,
        "failed": list,
        "job": str,
        "trail": str,
        "seal_digest": str,
        "checks": list,
    }
    assert (data["doctor"], data["ok"], data["failed"]) == (1, True, [])
    assert data["trail"] == patient.audit.url(f"audit/{seen.job}/")
    assert data["seal_digest"] == seen.of("seal").facts["seal_digest"]
    assert {tuple(check) for check in data["checks"]} == {("check", "about", "mark", "found", "fix", "facts")}
    assert {check["mark"] for check in data["checks"]} == {"ok", "skipped"}


def test_nothing_secret_is_said(patient: Patient) -> None:
    """Neither where all is well nor where Storage refuses everything."""
    said = patient.examine().everything()
    patient.cloud.proxy.without_role(where=lambda request: request.operation in {"PutBlockList", "ListBlobs"})
    said += patient.examine().everything()
    assert patient.cloud.find_leaks(said) == []


def test_no_credential_outlives_it(patient: Patient) -> None:
    """Also where somebody stops in the middle: the session is closed, its token gone."""
    examination = Examination(patient.manifest)
    running = examination.run()
    while next(running).check != "read":
        pass
    session = examination._visit.live
    assert session.broker.get(STORAGE_AUDIENCE)
    running.close()
    with pytest.raises(IdentityUnavailable, match="closed"):
        session.broker.get(STORAGE_AUDIENCE)


def test_what_the_session_warns_of_is_a_line(patient: Patient) -> None:
    """Of the check that was running, with its fix; nobody listens afterwards."""
    examination, before = Examination(patient.manifest), list(logging.getLogger("beam_entra").handlers)
    for finding in examination.run():
        if finding.check == "token":
            logging.getLogger("beam_entra.identity").warning("the secret is %d days old. Make a new one", 91)
            logging.getLogger("beam_entra.session").warning("this worker's clock is off")
            logging.getLogger("beam_entra.session").info("nothing")
    assert logging.getLogger("beam_entra").handlers == before
    (line,) = [each for each in examination.findings if each.mark == "warn"]
    assert (line.check, line.found, line.fix) == ("credential", "the secret is 91 days old", "make a new one")
    assert examination.failures == ()


def test_two_accounts_each_have_their_lines(patient: Patient, beam_entra_containers: Any) -> None:
    """What is wrong with one says nothing of the other."""
    other = beam_entra_containers("raw", account="fabrikamlake")
    patient.cloud.proxy.without_role(
        where=lambda request: request.operation == "GetUserDelegationKey" and request.account == "fabrikamlake"
    )
    seen = patient.examine(read=[patient.raw.url("in/"), other.url("in/")])
    assert seen.failures == ("delegation key",)
    assert (seen.of("delegation key", LAKE).mark, seen.of("delegation key", "fabrikamlake").mark) == ("ok", "fail")
    assert (seen.of("read", LAKE).mark, seen.of("read", "fabrikamlake").mark) == ("ok", "skipped")
    assert seen.of("read", "fabrikamlake").because == "fabrikamlake gives no delegation key"
    assert seen.of("public access", "fabrikamlake").mark == "skipped"
    assert patient.trail(seen.job).seal.outcome == "failed"


def _content(container: Any) -> dict[str, bytes]:
    return {name: container.download(name) for name in container.list()}


def _trail_of(patient: Patient, job: str) -> list[str]:
    return [f"audit/{job}/{name}" for name in patient.files(job).names()]


def _could_write(patient: Patient, each: StorageExchange) -> bool:
    probing = each.request.container != patient.audit.name or each.status >= 400
    return probing and each.request.method in {"PUT", "DELETE"}
