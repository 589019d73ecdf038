"""Audit, grants, public access, shared keys, the seal: each failing line, over the wire."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from beam_entra.audit import check_segments
from beam_entra.testing.https import Answer
from beam_entra.testing.local import LocalContainer
from beam_entra.testing.storage_requests import StorageRequest
from tests.doctor.conftest import LAKE, OTHER, Patient, Seen

READER, CONTRIBUTOR = "Storage Blob Data Reader", "Storage Blob Data Contributor"
Where = Callable[[StorageRequest], bool]


def doing(operation: str, container: LocalContainer, *, as_anybody: bool = False) -> Where:
    """Requests of an operation at a container, under a credential unless told otherwise."""

    def fits(request: StorageRequest) -> bool:
        same = (request.operation, request.container) == (operation, container.name)
        return same and (request.credential == "none") is as_anybody

    return fits


def role(seen: Seen, name: str, container: LocalContainer) -> str:
    """The fix that names a role."""
    who = seen.of("token").facts["object_id"]
    return f"give object id {who} the role {name} on container {container.name} of storage account {LAKE}"


# The grants


@pytest.mark.parametrize(
    ("grant", "operation", "name"),
    [
        ("read", "ListBlobs", READER),
        ("read", "GetBlobProperties", READER),
        ("write", "PutBlockList", CONTRIBUTOR),
        ("delete", "DeleteBlob", CONTRIBUTOR),
    ],
)
def test_a_grant_that_storage_does_not_back(patient: Patient, grant: str, operation: str, name: str) -> None:
    """The line of that grant alone fails, with role and scope; the refusal is recorded, and the trail sealed."""
    at = patient.raw if grant == "read" else patient.curated
    patient.cloud.proxy.without_role(where=doing(operation, at))
    seen = patient.examine(delete=[patient.curated.url("out/old")])
    assert seen.failures == (grant,)
    line = seen.of(grant)
    assert line.fix == role(seen, name, at)
    assert "HTTP 403, AuthorizationPermissionMismatch, request id " in line.found
    assert patient.trail(seen.job).seal.error == f"doctor: {grant}"
    assert len(patient.records(seen.job, "denied")) == 1
    assert {check: mark for check, mark in seen.marks().items() if mark == "fail"} == {grant: "fail"}


@pytest.mark.parametrize("grant", ["read", "write", "delete"])
def test_a_container_that_is_not_there(patient: Patient, grant: str) -> None:
    """It says so, and how to make it."""
    seen = patient.examine(**{grant: [f"abfss://nowhere@{LAKE}.dfs.core.windows.net/out/"]})
    assert seen.failures == (grant,)
    line = seen.of(grant, "nowhere")
    assert "the container does not exist" in line.found
    assert line.fix.startswith(f"create it: az storage container create --account-name {LAKE} --name nowhere")
    said = seen.of("public access", LAKE)
    assert (said.mark, "nowhere" in said.found, patient.audit.name in said.found) == ("ok", False, True)


def test_an_account_without_any_of_its_containers(patient: Patient) -> None:
    """Whether they would be public is not said."""
    seen = patient.examine(read=[f"abfss://nowhere@{OTHER}.dfs.core.windows.net/in/"])
    assert seen.failures == ("read",)
    assert seen.of("public access", OTHER).because == "there is no container to look at"
    assert seen.of("public access", LAKE).mark == "ok"


@pytest.mark.parametrize("one", [False, True], ids=["prefix", "one blob"])
def test_a_storage_that_looks_at_conditions_before_rights(patient: Patient, one: bool) -> None:
    """A missing right to write is found all the same: what is asked without a condition is refused."""
    writing = doing("PutBlockList", patient.curated)
    patient.cloud.proxy.respond(412, "ConditionNotMet", where=lambda each: writing(each) and "if-match" in each.headers)
    patient.cloud.proxy.without_role(where=lambda each: writing(each) and "if-match" not in each.headers)
    path = patient.curated.url("out/one" if one else "out/")
    seen = patient.examine(write=[path])
    assert seen.failures == ("write",)
    assert seen.of("write").fix == role(seen, CONTRIBUTOR, patient.curated)
    asked = [each["answer"] for each in patient.records(seen.job, "probed") if each["asked"] == "write"]
    assert asked == ["412 ConditionNotMet"]
    assert len(patient.records(seen.job, "denied")) == 1


def test_grants_on_one_blob_each(patient: Patient) -> None:
    """The blob itself is asked about, and stays what it was; one that is not there is a warning."""
    patient.curated.upload("out/one", b"1")
    one = patient.curated.url("out/one")
    read = [patient.raw.url("in/a.jsonl"), patient.raw.url("in/later.jsonl")]
    seen = patient.examine(read=read, write=[one], delete=[one])
    assert seen.failures == ()
    assert [line.mark for line in seen.examination.findings if line.check == "read"] == ["ok", "warn"]
    assert seen.of("read", "later").found == "allowed; there is no such blob"
    assert patient.curated.download("out/one") == b"1"
    assert {each["path"] for each in patient.records(seen.job, "probed") if each["asked"] in {"write"}} == {one}


def test_an_empty_prefix(patient: Patient) -> None:
    """Nothing is there, and it may be read all the same."""
    seen = patient.examine(read=[patient.raw.url("empty/")])
    assert (seen.of("read").mark, seen.of("read").found) == ("ok", "allowed, to list and to read; nothing is there")


def test_a_failure_that_says_nothing_of_the_right(patient: Patient) -> None:
    """An answer that is neither a refusal nor about the condition leaves the question open: the line fails with it."""
    patient.cloud.proxy.respond(409, "BlobImmutableDueToPolicy", where=doing("PutBlockList", patient.curated))
    seen = patient.examine()
    assert (seen.failures, seen.of("write").facts["code"]) == (("write",), "BlobImmutableDueToPolicy")
    assert [each["answer"] for each in patient.records(seen.job, "probed") if each["asked"] == "write"] == [
        "409 BlobImmutableDueToPolicy"
    ]


def test_the_right_is_asked_for_twice(patient: Patient) -> None:
    """Over a version that never was; and, of blocks that never were, without a condition."""
    patient.curated.upload("out/one", b"1")
    seen = patient.examine(write=[patient.curated.url("out/one")])
    asked = [each["answer"] for each in patient.records(seen.job, "probed") if each["asked"] == "write"]
    assert asked == ["412 ConditionNotMet", "400 InvalidBlockList"]
    assert patient.curated.download("out/one") == b"1"


def test_what_carries_out_a_request_that_cannot_be_is_not_storage(patient: Patient) -> None:
    """It says to look at the endpoint; and what was done is in the trail."""
    patient.cloud.proxy.stand_in(lambda request: Answer(status=201), where=doing("PutBlockList", patient.curated))
    seen = patient.examine()
    line = seen.of("write")
    assert (line.mark, "is not Storage" in line.fix) == ("fail", True)
    assert [each["answer"] for each in patient.records(seen.job, "probed") if each["asked"] == "write"] == ["201"]


@pytest.mark.parametrize("grant", ["read", "write", "delete"])
def test_no_answer_says_nothing_of_the_right(patient: Patient, grant: str) -> None:
    """A connection that breaks each time: the line fails, with what to look at; nothing is recorded as answered."""
    at = patient.raw if grant == "read" else patient.curated
    operations = {"read": "ListBlobs", "write": "PutBlockList", "delete": "DeleteBlob"}
    patient.cloud.proxy.reset(where=doing(operations[grant], at))
    seen = patient.examine(delete=[patient.curated.url("out/old")])
    assert seen.failures == (grant,)
    assert "Storage did not answer" in seen.of(grant).found
    assert seen.of(grant).fix == "see that the account's endpoint can be reached from this worker"
    assert grant not in {each["asked"] for each in patient.records(seen.job, "probed") if each["permission"] == grant}


def test_throttling_is_not_a_refusal(patient: Patient) -> None:
    """It is asked again, and then the line says so."""
    patient.cloud.proxy.respond(503, "ServerBusy", where=doing("PutBlockList", patient.curated), times=2)
    assert patient.examine().failures == ()
    patient.cloud.proxy.respond(503, "ServerBusy", where=doing("PutBlockList", patient.curated))
    seen = patient.examine()
    assert (seen.failures, seen.of("write").facts["code"]) == (("write",), "ServerBusy")
    assert "throttling" in seen.of("write").found


def test_nothing_secret_is_logged(patient: Patient, caplog: pytest.LogCaptureFixture) -> None:
    """Not at DEBUG, and not of a request that fails."""
    patient.cloud.proxy.respond(400, "InvalidHeaderValue", where=doing("DeleteBlob", patient.curated))
    with caplog.at_level(logging.DEBUG):
        seen = patient.examine(delete=[patient.curated.url("out/")])
    assert seen.failures == ("delete",)
    assert patient.cloud.find_leaks(caplog.text) == []


def test_tokens_for_other_services(patient: Patient) -> None:
    """Each that is granted is asked for; one that the tenant does not know fails, with Entra's code. None is shown."""
    seen = patient.examine(token=["https://graph.microsoft.com", "https://nobody.example"])
    assert seen.failures == ("audience",)
    assert seen.of("audience", "graph").mark == "ok"
    assert seen.of("audience", "nobody").facts["code"] == "AADSTS500011"
    audiences = [each["audience"] for each in patient.records(seen.job, "token_acquired")]
    assert audiences == ["https://storage.azure.com", "https://graph.microsoft.com"]
    assert patient.cloud.find_leaks(seen.everything()) == []
    patient.cloud.proxy.without_role()
    assert patient.examine(token=["https://graph.microsoft.com"]).marks()["audience"] == "skipped"


# The audit


@pytest.mark.parametrize("operation", ["PutBlob", "AppendBlock"])
def test_an_audit_that_cannot_be_written(patient: Patient, operation: str) -> None:
    """The line names the role; nothing else is accessed, since nothing could be recorded."""
    patient.cloud.proxy.without_role(where=doing(operation, patient.audit))
    seen = patient.examine()
    assert seen.failures == ("audit",)
    assert seen.of("audit").fix == role(seen, CONTRIBUTOR, patient.audit)
    assert seen.of("read").because == seen.of("seal").because == "nothing can be recorded"
    assert not [each for each in patient.cloud.proxy.requests if each.request.container == patient.raw.name]
    assert seen.examination.seal_digest == ""


def test_an_audit_container_that_is_not_there(patient: Patient) -> None:
    """It says how to make it."""
    seen = patient.examine(audit=f"abfss://nowhere@{LAKE}.dfs.core.windows.net/trails/")
    assert (seen.failures, seen.of("audit").fix[:46]) == (("audit",), "create it: az storage container create --accou")


@pytest.mark.parametrize(
    ("operation", "deed"), [("DeleteBlob", "delete"), ("SetBlobMetadata", "change"), ("PutBlob", "overwrite")]
)
def test_an_audit_that_can_be_changed(patient: Patient, operation: str, deed: str) -> None:
    """Only a refusal proves that the right to append is no more; that a condition did not hold proves nothing.

    Of an overwriting it does: that is within the right to create, which covers no blob that is there.
    """
    patient.cloud.proxy.respond(
        412,
        "ConditionNotMet",
        where=lambda each: doing(operation, patient.audit)(each) and each.headers.get("if-match") == '"0x0"',
    )
    seen = patient.examine()
    if deed == "overwrite":
        assert seen.failures == ()
        return
    assert seen.failures == ("audit",)
    assert seen.of("audit").found == f"written; but who may append to it may also {deed} it"
    assert patient.trail(seen.job).seal.error == "doctor: audit"


def test_the_segment_is_as_it_was_after_all_that_was_tried(patient: Patient) -> None:
    """Whatever was tried on it, it verifies, and its metadata is none."""
    seen = patient.examine()
    check_segments(patient.files(seen.job))
    (name,) = [name for name in patient.audit.list() if "segment-" in name]
    properties = patient.cloud.admin.client(LAKE).get_blob_client(patient.audit.name, name).get_blob_properties()
    assert (properties.blob_type, properties.metadata) == ("AppendBlob", {})


def test_a_trail_that_cannot_be_read_back(patient: Patient) -> None:
    """The launcher could not seal it: the last line fails, with the role."""
    patient.cloud.proxy.without_role(where=doing("ListBlobs", patient.audit))
    seen = patient.examine()
    assert seen.failures == ("seal",)
    assert seen.of("seal").fix == role(seen, READER, patient.audit)
    assert seen.examination.seal_digest == ""


def test_bearer_scoping(patient: Patient) -> None:
    """No delegation key is needed, and the audit cannot be held to appending: both are said."""
    patient.cloud.proxy.without_role()
    seen = patient.examine(scoping="bearer", delete=[patient.curated.url("out/old")])
    assert seen.failures == ()
    assert (seen.marks()["delegation key"], seen.marks()["audit"]) == ("skipped", "warn")
    assert "bearer" in seen.of("delegation key").found
    assert "immutability policy" in seen.of("audit").fix
    assert (seen.marks()["read"], seen.marks()["write"], seen.marks()["delete"]) == ("ok", "ok", "ok")
    assert seen.of("time").found.startswith("the job may run 1 h from launch; no SAS is used, this token ")
    patient.trail(seen.job)


# What is in the way


def open_to_anybody(patient: Patient, container: LocalContainer, width: str) -> None:
    """Let anybody read a container's blobs, or list them, too."""
    client: Any = patient.cloud.admin.client(LAKE).get_container_client(container.name)
    client.set_container_access_policy(signed_identifiers={}, public_access=width)


@pytest.mark.parametrize("width", ["blob", "container"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "empty"])
def test_public_access(patient: Patient, beam_entra_containers: Any, width: str, full: bool) -> None:
    """Found whether or not a blob is there. Where the job writes it fails; where it only reads, it is a warning."""
    read = patient.raw if full else beam_entra_containers("raw")
    open_to_anybody(patient, read, width)
    seen = patient.examine(read=[read.url("in/")])
    line = seen.of("public access", LAKE)
    assert (line.mark, line.found, seen.failures) == ("warn", f"anybody may read from {read.name}", ())
    assert f"az storage account update --name {LAKE} --allow-blob-public-access false" in line.fix
    open_to_anybody(patient, patient.curated, width)
    seen = patient.examine(read=[read.url("in/")])
    assert seen.failures == ("public access",)
    assert seen.of("public access", LAKE).found == f"anybody may read from {read.name}, {patient.curated.name}"


def test_a_public_audit(patient: Patient) -> None:
    """The trail is not for everybody."""
    open_to_anybody(patient, patient.audit, "blob")
    assert patient.examine().failures == ("public access",)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "ResourceNotFound"), (409, "PublicAccessNotPermitted"), (401, "NoAuthenticationInformation")],
)
def test_how_storage_says_that_it_is_off(patient: Patient, status: int, code: str) -> None:
    """In three ways, by the account's settings and the request's version."""
    patient.cloud.proxy.respond(status, code, where=lambda request: request.credential == "none" and request.container)
    assert patient.examine().of("public access", LAKE).mark == "ok"


def test_shared_keys(patient: Patient) -> None:
    """Off where Storage says so; else it is not known, and the line says whom to ask."""
    assert "allowSharedKeyAccess" in patient.examine().of("shared key", LAKE).found
    patient.cloud.proxy.respond(
        403, "KeyBasedAuthenticationNotPermitted", where=lambda request: request.credential == "key"
    )
    assert patient.examine().of("shared key", LAKE).mark == "ok"
