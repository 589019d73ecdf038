"""Sealing and reading a trail: whatever happened to the job, the record of it is closed, or said to be broken."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from beam_entra.audit import find_trails
from beam_entra.audit.verify import verify
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditError,
    AuditUnavailable,
    BeamEntraError,
    ConfigError,
    IdentityRejected,
    NotGranted,
    TrailBroken,
)
from beam_entra.session import BundleSession, Session, open_trail, seal_job, seal_late
from beam_entra.session.sealing import _UnrecordedSession
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.storage_requests import StorageRequest, matching
from tests.session.conftest import Job, read_blob, write_blob


def test_a_job_that_went_well(job):
    """Everything the job did is in the seal's counts, and the trail verifies with the digest that was kept."""
    session = job.session()
    read_blob(session, job)
    write_blob(session, job)
    summary = job.seal_and_verify(session)
    assert summary.seal.outcome == "ok"
    assert summary.counts["read"] >= 2  # the properties count as one
    assert (summary.counts["staged"], summary.counts["committed"]) == (1, 1)
    assert summary.open_bundles == 0
    assert [segment.sealed.segment for segment in summary.segments] == sorted(set(job.trail.names()) - {"seal.jsonl"})


@pytest.mark.parametrize("outcome", ["failed", "interrupted"])
def test_a_job_that_failed_is_sealed_too(job, outcome):
    """The seal says how the job ended, and why; a bundle that was left open is no contradiction."""
    session = job.session()
    bundle = session.bundle("read")
    bundle.properties(job.source())
    sealed = seal_job(session, outcome=outcome, error="the disk is full")
    summary = verify(job.trail, seal_digest=sealed.digest)
    assert (summary.seal.outcome, summary.seal.error) == (outcome, "the disk is full")
    assert summary.open_bundles == 1


def test_a_job_that_did_nothing_is_sealed(job):
    """Even a trail of nothing but the sealing itself verifies."""
    assert job.seal_and_verify(job.session()).counts["bundle_opened"] == 1


def test_refusals_do_not_break_the_trail(make_job):
    """Denials of every kind, also those before a bundle was open, and the trail still verifies."""
    job = make_job(audiences=("https://graph.microsoft.com",))
    job.raw.upload("orders/a.jsonl", b"1")
    session = job.session()
    with pytest.raises(NotGranted):
        session.bundle("curious", audience="https://vault.azure.net")
    with session.bundle("curious") as bundle, pytest.raises(NotGranted):
        bundle.properties(job.source("secret/a.jsonl"))
    with session.bundle("curious") as bundle, pytest.raises(NotGranted):
        bundle.access_token("https://vault.azure.net")
    job.cloud.tenant.resources.remove("https://graph.microsoft.com")
    try:
        with pytest.raises(IdentityRejected):
            session.bundle("connector", audience="https://graph.microsoft.com")
    finally:
        job.cloud.tenant.resources.append("https://graph.microsoft.com")
    summary = job.seal_and_verify(session)
    assert summary.counts["denied"] == 4
    assert [record["by"] for record in job.records("denied")] == ["manifest", "manifest", "manifest", "entra"]


def test_segments_of_other_processes_are_sealed(job):
    """The launcher seals what its workers wrote."""
    launcher, *workers = [job.session() for _ in range(3)]
    for worker in workers:
        read_blob(worker, job)
        worker.close()
    summary = job.seal_and_verify(launcher)
    assert len(summary.segments) == 3
    assert summary.counts["segment_opened"] == 3


def test_sealing_ends_the_session(job):
    """After the seal nothing can be recorded, so nothing can be accessed."""
    session = job.session()
    bundle = session.bundle("read")
    blob = bundle.properties(job.source())
    seal_job(session, outcome="ok", error=None)
    with pytest.raises(AuditUnavailable):
        bundle.read(blob, 0, 10)
    with pytest.raises(AuditUnavailable):
        session.bundle("read")


def test_a_job_is_sealed_once(job):
    """A second sealing is refused, and the first seal stays."""
    session = job.session()
    first = seal_job(session, outcome="ok", error=None)
    with pytest.raises(AuditError, match="sealed already"):
        seal_job(job.session(), outcome="failed", error=None)
    assert job.trail.read("seal.jsonl").count(b"\n") == 1
    with pytest.raises(TrailBroken, match="not in the seal"):  # the second session's own segment came after
        verify(job.trail, seal_digest=first.digest)


def test_a_sealing_that_was_interrupted_can_be_done_again(job):
    """A launcher that died between making the seal's file and writing it: the next one writes it."""
    admin = job.audit.admin.client("contosolake")
    admin.get_blob_client(job.audit.name, f"{job.scope.folder.name}seal.jsonl").create_append_blob()
    session = job.session()
    read_blob(session, job)
    assert job.seal_and_verify(session).seal.outcome == "ok"


def until(instant: datetime) -> None:
    """Wait until then."""
    passed = threading.Event()
    while utc_now() < instant:
        passed.wait((instant - utc_now()).total_seconds())


def test_after_the_deadline(make_job):
    """A job whose time is over is sealed all the same, and its trail verifies."""
    job = make_job(sas_life="5s", lasts=timedelta(seconds=4))
    job.raw.upload("orders/a.jsonl", b"1")
    worker = job.session()
    read_blob(worker, job)
    worker.close()
    until(job.scope.deadline)
    sealed = seal_job(job.session(), outcome="late", error=None)
    summary = verify(job.trail, seal_digest=sealed.digest)
    assert summary.seal.outcome == "late"
    assert summary.counts["read"] >= 1


@pytest.mark.parametrize(
    ("scoping", "reads"), [("sas", "a worker's segment"), ("bearer", "a worker's segment"), ("sas", "its own")]
)
def test_it_takes_longer_than_the_job_had(make_job, scoping, reads):
    """The deadline comes while a segment is read: the rest is done without a record, and no SAS on record outlives it.

    So it is when the launcher's own segment takes longer to read than what was recorded for that lives.
    """
    job = make_job(scoping=scoping, lasts=timedelta(seconds=5))
    job.raw.upload("orders/a.jsonl", b"1")
    launcher, worker = job.session(), job.session()
    launcher.bundle("launch").close()
    read_blob(worker, job)
    worker.close()
    process = launcher.process if reads == "its own" else worker.process
    segment = f"{job.scope.folder.name}segment-{process}-00000.jsonl"
    held = job.cloud.proxy.hold(where=matching("GetBlob", blob=segment), times=1)
    with ThreadPoolExecutor(1) as other:
        sealing = other.submit(seal_job, launcher, outcome="ok", error=None)
        try:
            held.gate.wait_for_arrivals()
            until(job.scope.deadline)
        finally:
            held.gate.open()
        sealed = sealing.result()
    summary = verify(job.trail, seal_digest=sealed.digest)
    assert summary.counts["segment_opened"] == 2
    assert summary.open_bundles == (1 if reads == "a worker's segment" else 0), "the launcher's that sealed"


def test_who_seals_has_as_long_as_it_takes_and_no_longer_lived_key(job):
    """Its deadline moves on before a SAS could meet it; no key that it gets lives longer than two SAS."""
    clock = FakeClock(utc_now())
    sealer = _UnrecordedSession(job.scope, clock=clock)
    job.sessions.append(sealer)
    life, begun = job.manifest.lifetime.token, clock()
    while clock() < begun + timedelta(days=9):
        assert timedelta(0) < sealer.deadline - clock() - life
        assert sealer.deadline - clock() <= 2 * life + timedelta(seconds=2)
        assert sealer.check_deadline("seal") == clock()
        assert not sealer.over
        clock.advance(timedelta(hours=5, minutes=7))
    before = sealer.deadline
    clock.advance(life / 2)
    assert sealer.deadline == before, "one key serves for a while"


def test_a_seal_that_the_launcher_began_is_ended(job, manifest_file):
    """It was killed between two appends: whoever seals late writes the rest, and the seal says how the job ended."""
    session = job.session()
    read_blob(session, job)
    seal_job(session, outcome="failed", error="the disk is full")
    whole = job.trail.read("seal.jsonl")
    client = job.audit.admin.client("contosolake")
    blob = client.get_blob_client(job.audit.name, f"{job.scope.folder.name}seal.jsonl")
    blob.delete_blob()
    blob.upload_blob(whole[:-40], blob_type="AppendBlob")
    ended = seal_late(str(job.scope.folder), manifest_file, job.cloud.endpoints_file)
    assert (ended.record.outcome, ended.record.error) == ("failed", "the disk is full")
    assert job.trail.read("seal.jsonl") == whole
    assert verify(job.trail, seal_digest=ended.digest).seal == ended.record


@pytest.mark.parametrize("over", [False, True], ids=["in time", "when its time is over"])
def test_a_launcher_ends_no_seal_of_another(make_job, over):
    """That one tells how the job ended, and may tell it otherwise than the launcher does, and its report."""
    job = make_job(lasts=timedelta(0) if over else None)
    if over:  # one that could be ended, as it stands
        sealed = seal_job(job.session(), outcome="failed", error=None)
        begun = sealed.record.line()[:-40]
        client = job.audit.admin.client("contosolake")
        client.get_blob_client(job.audit.name, f"{job.scope.folder.name}seal.jsonl").delete_blob()
    else:
        begun = b'{"seq":0,'
    job.audit.upload(f"{job.scope.folder.name}seal.jsonl", begun)
    with pytest.raises(AuditError, match="was begun by somebody else") as caught:
        seal_job(job.session(), outcome="ok", error=None)
    assert caught.value.hint == f"beam-entra audit seal {job.scope.folder}"
    assert job.trail.read("seal.jsonl") == begun


def tamper(job: Job, change) -> None:
    """Change the bytes of the first segment, past every SAS."""
    name = next(name for name in job.trail.names() if name.startswith("segment-"))
    client = job.audit.admin.client("contosolake").get_blob_client(job.audit.name, job.scope.folder.name + name)
    data = change(client.download_blob().readall())
    client.delete_blob()
    client.upload_blob(data, blob_type="AppendBlob")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"/orders/a.jsonl", b"/orders/b.jsonl", 1),
        lambda data: b"\n".join(data.split(b"\n")[:2] + data.split(b"\n")[3:]),
        lambda data: data[:-5],
        lambda data: data + data.split(b"\n")[-2] + b"\n",
    ],
    ids=["edited", "dropped", "cut", "added"],
)
def test_a_tampered_segment_is_not_sealed(job, change):
    """The launcher verifies before it seals: what was changed meanwhile is TrailBroken, and no seal is written."""
    worker = job.session()
    read_blob(worker, job)
    worker.close()
    tamper(job, change)
    with pytest.raises(TrailBroken) as caught:
        seal_job(job.session(), outcome="ok", error=None)
    assert "line" in caught.value.message
    assert "seal.jsonl" not in job.trail.names()


def test_that_a_trail_is_broken_is_said_though_no_more_can_be_recorded(job):
    """That the bundle cannot be closed hides nothing."""
    launcher = job.session(pause=lambda seconds: None)
    launcher.bundle("launch").close()
    job.audit.upload(f"{job.scope.folder.name}readme.txt", b"hello")
    (own,) = launcher.segments

    def is_end(request: StorageRequest) -> bool:
        return request.operation == "AppendBlock" and b'"kind":"listed"' in job.trail.read(own)

    refused = job.cloud.proxy.respond(403, "AuthorizationFailure", where=is_end)
    with pytest.raises(TrailBroken, match="neither a segment nor a seal"):
        seal_job(launcher, outcome="ok", error=None)
    assert refused.hits


def test_tampering_after_the_sealing_is_found(job):
    """What is changed later is found by whoever verifies."""
    session = job.session()
    read_blob(session, job)
    seal_job(session, outcome="ok", error=None)
    tamper(job, lambda data: data.replace(b"/orders/a.jsonl", b"/orders/b.jsonl", 1))
    with pytest.raises(TrailBroken):
        verify(job.trail)


def test_a_segment_that_appears_meanwhile(job):
    """A worker that still writes while the launcher seals is said to be one; no seal is written."""
    launcher, worker = job.session(), job.session()
    listing = matching("ListBlobs", container=job.audit.name)
    held = job.cloud.proxy.hold(where=listing, skip=1)
    told: list[BaseException] = []

    def seal():
        try:
            seal_job(launcher, outcome="ok", error=None)
        except BeamEntraError as error:
            told.append(error)

    sealing = threading.Thread(target=seal)
    sealing.start()
    assert held.gate is not None
    held.gate.wait_for_arrivals()
    read_blob(worker, job)
    worker.close()
    held.gate.open()
    sealing.join(20)
    assert len(told) == 1
    assert isinstance(told[0], AuditError)
    assert "still" in str(told[0])
    assert "seal.jsonl" not in job.trail.names()


def sealing_while(job: Job, happens: Callable[[], object]) -> list[BeamEntraError]:
    """Seal, and between the reading of the segments and their last listing something happens; what was raised."""
    launcher = job.session()
    launcher.bundle("launch").close()
    held = job.cloud.proxy.hold(where=matching("ListBlobs", container=job.audit.name), skip=1)
    with ThreadPoolExecutor(1) as other:
        sealing = other.submit(seal_job, launcher, outcome="ok", error=None)
        try:
            held.gate.wait_for_arrivals()
            happens()
        finally:
            held.gate.open()
        error = sealing.exception()
    return [error] if isinstance(error, BeamEntraError) else []


def test_a_segment_that_grows_meanwhile(job):
    """A worker that writes on while the launcher seals is said to be at work; no seal is written."""
    worker = job.session()
    read_blob(worker, job)
    told = sealing_while(job, lambda: read_blob(worker, job))
    assert [type(error) for error in told] == [AuditError]
    assert "still" in str(told[0])
    assert "seal.jsonl" not in job.trail.names()


def test_a_segment_that_goes_meanwhile(job):
    """One that was read and is taken away while the launcher seals is in the seal: that it is missing is found."""
    worker = job.session()
    read_blob(worker, job)
    worker.close()
    (segment,) = job.trail.names()
    client = job.audit.admin.client("contosolake")
    blob = client.get_blob_client(job.audit.name, job.scope.folder.name + segment)
    assert sealing_while(job, blob.delete_blob) == []
    with pytest.raises(TrailBroken, match=segment):
        verify(job.trail)


@pytest.mark.parametrize("over", [False, True], ids=["in time", "when its time is over"])
def test_of_two_who_seal_at_once_one_is_told(make_job, over):
    """Each has read the trail and seen no seal; the one whose attempt fails first finds the other's, not its own."""
    job = make_job(lasts=timedelta(0) if over else None)
    other = job.audit.admin.client("contosolake").get_blob_client(job.audit.name, f"{job.scope.folder.name}seal.jsonl")

    def is_faster(seconds: float) -> None:
        other.append_block(b"the other's\n")

    session = job.session(pause=is_faster)
    seal_blob = f"{job.scope.folder.name}seal.jsonl"
    job.cloud.proxy.respond(503, "ServerBusy", where=matching("AppendBlock", blob=seal_blob), times=1)
    with pytest.raises(AuditUnavailable):
        seal_job(session, outcome="ok", error=None)
    assert job.trail.read("seal.jsonl") == b"the other's\n"


@pytest.mark.parametrize("over", [False, True], ids=["in time", "when its time is over"])
def test_a_seal_whose_answer_is_lost(make_job, over):
    """It is there, once: the next attempt finds its own."""
    job = make_job(lasts=timedelta(0) if over else None)
    session = job.session(pause=lambda seconds: None)
    seal_blob = f"{job.scope.folder.name}seal.jsonl"
    job.cloud.proxy.lose_answer(where=matching("AppendBlock", blob=seal_blob), times=1)
    assert job.seal_and_verify(session).seal.outcome == "ok"


def test_what_was_granted_ends_sooner_than_was_thought(job):
    """The own segment, which has ended, is read with another SAS, that is not on record."""
    session = job.session(pause=lambda seconds: None)
    read_blob(session, job)
    own = matching("GetBlob", blob=f"{job.scope.folder.name}{session.segments[0]}")
    job.cloud.proxy.respond(403, "AuthenticationFailed", where=own, times=2)
    assert job.seal_and_verify(session).seal.outcome == "ok"


@pytest.mark.parametrize("status", [403, 503])
def test_a_seal_that_cannot_be_written(job, status):
    """When Storage refuses the seal, the launcher is told, and the segments stay as they are."""
    session = job.session(pause=lambda seconds: None)
    read_blob(session, job)
    seal_blob = f"{job.scope.folder.name}seal.jsonl"
    job.cloud.proxy.respond(status, "AuthorizationFailure", where=matching("AppendBlock", blob=seal_blob))
    with pytest.raises(AuditUnavailable):
        seal_job(session, outcome="ok", error=None)
    job.cloud.proxy.clear_faults()
    job.check_unsealed()


# ---------------------------------------------------------------- reading a trail


@pytest.fixture
def manifest_file(job: Job, tmp_path: Path) -> Path:
    """The job's manifest as a file."""
    path = tmp_path / "orders.access.toml"
    path.write_text(job.text, encoding="utf-8")
    return path


def test_an_auditor_reads_and_leaves_nothing(job, manifest_file):
    """Through the manifest's identity a trail is listed, read and verified; not one record comes of it."""
    session = job.session()
    read_blob(session, job)
    sealed = seal_job(session, outcome="ok", error=None)
    before = {name: job.trail.read(name) for name in job.trail.names()}
    trail = open_trail(str(job.scope.folder), manifest_file, job.cloud.endpoints_file)
    assert verify(trail, seal_digest=sealed.digest).job == job.scope.job
    above = open_trail(str(job.manifest.audit), manifest_file, job.cloud.endpoints_file)
    assert list(find_trails(above)) == [job.scope.job]
    assert {name: job.trail.read(name) for name in job.trail.names()} == before
    assert job.audit.list() == [job.scope.folder.name + name for name in sorted(before)]


def test_an_auditor_cannot_leave_the_audit(job, manifest_file):
    """The auditor's session reads below the audit path and nothing else, whatever else the manifest grants."""
    with pytest.raises(ConfigError, match="not below the manifest's audit path") as caught:
        open_trail(job.raw.url("orders/"), manifest_file, job.cloud.endpoints_file)
    assert "the manifest of the pipeline" in caught.value.hint
    trail = open_trail(str(job.manifest.audit), manifest_file, job.cloud.endpoints_file)
    with pytest.raises(NotGranted):
        trail._bundle.properties(job.source())


def test_a_trail_that_is_not_there(job, manifest_file):
    """No such folder, or container, is an empty trail."""
    assert open_trail(str(job.scope.folder), manifest_file, job.cloud.endpoints_file).names() == []
    job.cloud.proxy.respond(404, "ContainerNotFound", where=matching("ListBlobs"))
    assert open_trail(str(job.scope.folder), manifest_file, job.cloud.endpoints_file).names() == []


def test_a_job_cannot_read_its_own_trail(job):
    """A bundle of a pipeline's, which is not for sealing, neither reads, lists nor writes below the audit path."""
    session = job.session()
    with session.bundle("curious") as bundle:
        bundle.settle()
        own = job.scope.folder.child(job.trail.names()[0])
        with pytest.raises(NotGranted):
            bundle.properties(own)
        with pytest.raises(NotGranted):
            list(bundle.list_blobs(job.scope.folder, job.scope.folder.name))
        with pytest.raises(NotGranted):
            bundle.stage(own, "AAAA", b"forged")


def test_nothing_public_reaches_a_trail(job):
    """No session offers a bundle for sealing, nor an authorisation to append; the trail's own stays in its folder."""
    session = job.session()
    assert {name for name in dir(Session) if "append" in name and not name.startswith("_")} == set()
    for maker in (Session.bundle, BundleSession):
        assert "for_sealing" not in inspect.signature(maker).parameters
    before = len(job.requests())
    other = job.manifest.audit.child("orders-20300101T000000Z-abcdef/")
    for folder in (other, job.manifest.audit):
        with pytest.raises(NotGranted):
            session._authorise_append(folder.child("segment.jsonl"))
    assert len(job.requests()) == before
