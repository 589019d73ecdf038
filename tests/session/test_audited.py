"""Audited or it did not happen: while the trail cannot be written, nothing is handed out, staged or committed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from beam_entra.access import Permission
from beam_entra.errors import AuditUnavailable, BeamEntraError, NotGranted
from beam_entra.session import BundleSession, Session, close_session, open_session
from beam_entra.storage import BlobProperties, new_block_id
from beam_entra.testing.storage_requests import matching
from tests.session.conftest import DATA, Job, read_blob, write_blob

GRAPH = "https://graph.microsoft.com"


def no_container(job: Job) -> None:
    """The audit container is not there."""
    job.cloud.proxy.respond(404, "ContainerNotFound", where=matching(container=job.audit.name))


def refused(job: Job) -> None:
    """The identity may not write the audit."""
    job.cloud.proxy.respond(403, "AuthorizationPermissionMismatch", where=matching(container=job.audit.name))


def busy(job: Job) -> None:
    """Storage is busy for ever."""
    job.cloud.proxy.respond(503, "ServerBusy", where=matching(container=job.audit.name))


def cut_off(job: Job) -> None:
    """Connections for the audit are reset."""
    job.cloud.proxy.reset(where=matching(container=job.audit.name))


def no_appends(job: Job) -> None:
    """Segments can be made and not written."""
    job.cloud.proxy.respond(403, "AuthorizationFailure", where=matching("AppendBlock", container=job.audit.name))


TROUBLES = [no_container, refused, busy, cut_off, no_appends]


@dataclass(frozen=True)
class Operation:
    """Something that a bundle does, and what it would have given."""

    act: Callable[[BundleSession, Job, BlobProperties], object]
    data: str  # the request that it sends, if it sends one; empty when it must not be sent at all


def _stage_and_settle(bundle: BundleSession, job: Job, blob: BlobProperties) -> None:
    bundle.stage(job.target(), new_block_id(), b"x")
    bundle.settle()


def all_durable(session: Session, bundle: BundleSession) -> None:
    """Also what the flusher itself has recorded meanwhile: the key and the SAS that it appends with."""
    bundle.settle()  # it has recorded them by then
    session.settle()


OPERATIONS = {
    "properties": Operation(lambda bundle, job, blob: bundle.properties(job.source()), "GetBlobProperties"),
    "list": Operation(lambda bundle, job, blob: next(bundle.list_blobs(job.source("orders/"), "orders/")), "ListBlobs"),
    "read": Operation(lambda bundle, job, blob: bundle.read(blob, 0, 10), "GetBlob"),
    "stage": Operation(_stage_and_settle, "PutBlock"),
    "commit": Operation(
        lambda bundle, job, blob: bundle.commit(
            job.target(), ["AAAA"], commit_id="c", size_bytes=1, rows=1, content_type="text/plain"
        ),
        "",
    ),
    "token": Operation(lambda bundle, job, blob: bundle.access_token(GRAPH), ""),
    "close": Operation(lambda bundle, job, blob: bundle.close(), ""),
}


@pytest.fixture
def watched(make_job: Callable[..., Job]) -> tuple[Job, Session, BlobProperties]:
    """A job with input, a session whose pauses take no time, and the blob as another session saw it."""
    job = make_job(audiences=(GRAPH,))
    job.raw.upload("orders/a.jsonl", DATA)
    with job.session().bundle("match") as bundle:
        blob = bundle.properties(job.source())
    job.cloud.proxy.requests.clear()
    return job, job.session(pause=lambda seconds: None), blob


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.__name__)
@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_handed_out_when_the_audit_is_away_from_the_start(watched, name, trouble):
    """Whatever is wrong with the store, every operation is AuditUnavailable, with the reason and the next step."""
    job, session, blob = watched
    trouble(job)
    with pytest.raises(AuditUnavailable) as caught:
        OPERATIONS[name].act(session.bundle("work"), job, blob)
    assert "the audit trail cannot be written" in caught.value.message
    assert caught.value.hint
    assert job.curated.list() == []
    assert {each.operation for each in job.data_requests()} <= {OPERATIONS[name].data}


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_handed_out_when_the_audit_goes_away(watched, name):
    """A bundle that was well recorded so far gets nothing more once the store is gone."""
    job, session, blob = watched
    bundle = session.bundle("work")
    bundle.settle()
    job.cloud.proxy.requests.clear()
    refused(job)
    with pytest.raises(AuditUnavailable):
        OPERATIONS[name].act(bundle, job, blob)
    assert {each.operation for each in job.data_requests()} <= {OPERATIONS[name].data}
    assert job.curated.list() == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_poisoned_session_hands_out_nothing_more(watched, name):
    """After one failure the session is done, also when the store is back: nothing is handed out, staged or written."""
    job, session, blob = watched
    bundle = session.bundle("work")
    bundle.settle()
    bundle.sas(job.source(), Permission.READ)
    bundle.settle()
    refused(job)
    with pytest.raises(AuditUnavailable):
        bundle.properties(job.source())
    assert session.broken
    job.cloud.proxy.clear_faults()
    job.cloud.proxy.requests.clear()
    with pytest.raises(AuditUnavailable):
        OPERATIONS[name].act(bundle, job, blob)
    assert [each for each in job.data_requests() if each.operation not in {"GetBlob", "GetBlobProperties"}] == []
    assert job.curated.list() == []


def test_nothing_is_handed_out_before_its_record_is_durable(watched):
    """While the append is under way the bytes wait, though they are here; when it is through, they are handed out."""
    job, session, blob = watched
    with session.bundle("work") as bundle:
        all_durable(session, bundle)
        held = job.cloud.proxy.hold(where=matching("AppendBlock"))
        assert held.gate is not None
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(bundle.read, blob, 0, 10)
            held.gate.wait_for_arrivals()
            job.cloud.proxy.wait_for(lambda seen: any(each.operation == "GetBlob" for each in seen))
            with pytest.raises(TimeoutError):
                reading.result(0.3)
            held.gate.open()
            assert reading.result(20) == DATA[:10]


def test_the_record_is_written_while_the_bytes_are_on_the_way(watched):
    """The append does not wait for the end of the body: it is through before the body is."""
    job, session, blob = watched
    with session.bundle("work") as bundle:
        bundle.sas(job.source(), Permission.READ)
        bundle.settle()
        held = job.cloud.proxy.hold(where=matching("GetBlob"), times=1, skip=1)
        job.cloud.proxy.truncate(100, where=matching("GetBlob"), times=1)
        assert held.gate is not None
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(bundle.read, blob, 0, 1000)
            job.cloud.proxy.wait_for(lambda seen: any(each.fault == "truncate" for each in seen))
            job.cloud.proxy.wait_for(lambda seen: seen[-1].operation == "AppendBlock")
            assert [record["end"] for record in job.records("read") if record["end"]] == [1000]
            held.gate.open()
            assert reading.result(20) == DATA[:1000]


@pytest.mark.parametrize("before_seal", [False, True])
def test_the_end_of_a_bundle_is_waited_for_where_the_trail_may_be_sealed_before_it(watched, before_seal):
    """A launcher closes its own session first."""
    job, session, _ = watched
    if before_seal:
        session.ends_before_seal = True
    bundle = session.bundle("work")
    all_durable(session, bundle)
    held = job.cloud.proxy.hold(where=matching("AppendBlock"))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(bundle.close)
        held.gate.wait_for_arrivals()
        with suppress(TimeoutError):
            closing.result(20 if before_seal else 0.3)
        ended = closing.done()
        held.gate.open()
    assert ended is before_seal
    session.close()
    assert [record["outcome"] for record in job.records("bundle_closed")][-1:] == ["ok"]


@pytest.mark.parametrize("act", [BundleSession.stage, BundleSession.sas], ids=["staged", "a SAS"])
def test_what_a_bundle_did_is_waited_for_whatever_closes_first(watched, act):
    """A SAS, too, that was presented for nothing."""
    job, session, _ = watched
    session.ends_before_seal = True
    bundle = session.bundle("work")
    all_durable(session, bundle)
    held = job.cloud.proxy.hold(where=matching("AppendBlock"))
    act(bundle, job.target(), *((new_block_id(), b"x") if act is BundleSession.stage else (Permission.WRITE,)))
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(bundle.close)
        held.gate.wait_for_arrivals()
        with suppress(TimeoutError):
            closing.result(0.3)
        ended = closing.done()
        held.gate.open()
    assert not ended


def test_a_commit_that_nobody_waits_for_is_durable_before_the_next_begins(watched):
    """So that a blob which says that all others are there comes behind their records."""
    job, session, _ = watched
    first, second = job.target("orders/1"), job.target("orders/2")
    facts = {"commit_id": "c", "size_bytes": 1, "rows": 1, "content_type": "text/plain"}
    with session.bundle("work") as bundle:
        for path in (first, second):
            bundle.stage(path, "AAAA", b"x")
        all_durable(session, bundle)
        held = job.cloud.proxy.hold(where=matching("AppendBlock"), skip=1)  # behind the intention
        bundle.commit(first, ["AAAA"], settle=False, **facts)
        held.gate.wait_for_arrivals()
        with ThreadPoolExecutor(1) as pool:
            committing = pool.submit(bundle.commit, second, ["AAAA"], **facts)
            with pytest.raises(TimeoutError):
                committing.result(0.3)
            assert job.curated.list() == [first.name]
            held.gate.open()
            committing.result(20)
    assert job.curated.list() == [first.name, second.name]


def test_a_lost_answer_of_the_audit_costs_nothing(job):
    """Appends and creations whose answers are lost are found to be done; the trail has every record once."""
    for operation in ("PutBlob", "AppendBlock"):
        job.cloud.proxy.lose_answer(where=matching(operation, container=job.audit.name), times=2)
    session = job.session(pause=lambda seconds: None)
    assert read_blob(session, job) == DATA
    write_blob(session, job)
    assert job.seal_and_verify(session).counts["committed"] == 1


def test_a_role_that_is_removed_while_a_segment_is_continued_leaves_a_trail_that_can_be_sealed(make_job):
    """The next segment cannot be made, so none is announced: whoever seals the trail misses nothing."""
    job = make_job(trail="segment_records = 100")
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    assert read_blob(session, job) == DATA
    job.cloud.proxy.without_role(where=matching("PutBlob", container=job.audit.name), times=1)
    with pytest.raises(AuditUnavailable) as caught:
        _ = [read_blob(session, job) for _ in range(100)]
    assert (caught.value.diagnosis.code, len(job.trail.names())) == ("AuthorizationPermissionMismatch", 1)
    assert job.seal_and_verify(job.session(), outcome="failed").counts["read"] > 1


def test_a_store_that_was_busy_for_a_moment_costs_nothing(job):
    """503 for a few times is waited out."""
    job.cloud.proxy.respond(503, "ServerBusy", where=matching(container=job.audit.name), times=4)
    session = job.session(pause=lambda seconds: None)
    assert read_blob(session, job) == DATA
    job.seal_and_verify(session)


def test_a_segment_that_somebody_else_writes_to_stops_the_session(watched):
    """Whoever appends to our segment breaks it for good; we notice at the next append."""
    job, session, blob = watched
    bundle = session.bundle("work")
    bundle.settle()
    name = next(name for name in job.trail.names() if session.process in name)
    client = job.audit.admin.client("contosolake")
    client.get_blob_client(job.audit.name, job.scope.folder.name + name).append_block(b"forged\n")
    with pytest.raises(AuditUnavailable):
        bundle.read(blob, 0, 10)


def test_a_denial_that_cannot_be_recorded_is_still_a_denial(watched):
    """The refusal stands, and says that it is not on the record."""
    job, session, _ = watched
    bundle = session.bundle("work")
    bundle.settle()
    refused(job)
    with pytest.raises(NotGranted) as caught:
        bundle.properties(job.source("secret"))
    assert any("could not be recorded" in note for note in caught.value.__notes__)


def test_a_bundle_that_is_tried_again_gets_a_new_segment(job):
    """When the store is back, the process's next session begins a segment of its own, and the trail verifies."""
    trouble = job.cloud.proxy.respond(403, "AuthorizationFailure", where=matching(container=job.audit.name))
    try:
        first = open_session(job.scope)
        with pytest.raises(AuditUnavailable):
            read_blob(first, job)
        trouble.clear()
        second = open_session(job.scope)
        assert second is not first
        assert read_blob(second, job) == DATA
        assert job.seal_and_verify(second).counts["read"] >= 2
    finally:
        with suppress(AuditUnavailable):
            close_session(job.scope.job)


def test_a_name_that_looks_like_a_token_is_not_read(job):
    """What cannot be put into the trail cannot be accessed: nothing of such a blob is handed out."""
    name = "orders/eyJhbGciOiJub25lIn0.eyJzdWIiOiJub2JvZHkifQ.c2lnbmF0dXJlLXRlc3Q"
    job.raw.upload(name, DATA)
    session = job.session()
    with session.bundle("read") as bundle, pytest.raises(BeamEntraError, match=r"a JWT.*rename the blob"):
        bundle.properties(job.source(name))
    assert job.requests("GetBlobProperties") == []


@pytest.mark.parametrize(
    "name", ["orders/sig=4/a.jsonl", "orders/ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM", "orders/" + "Q1Jx8Kp9" * 6]
)
def test_a_name_that_looks_like_a_key_is_read(job, name):
    """Names are people's, and look like anything; refusals of such names are in the trail too."""
    job.raw.upload(name, DATA)
    session = job.session()
    assert read_blob(session, job, name) == DATA
    with session.bundle("read") as bundle, pytest.raises(NotGranted):
        bundle.properties(job.source("secret/" + name))
    job.seal_and_verify(session)
    assert len(job.records("denied")) == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_bytes_to_plan_by_are_taken_only_when_they_are_recorded(watched, in_place):
    """What to read next may be planned by them at once; who takes them waits, and learns that there is no record."""
    job, session, blob = watched
    bundle = session.bundle("work")
    bundle.settle()
    room = bytearray(10)
    good = bundle.fetch(blob, 0, 10, into=memoryview(room) if in_place else None)
    assert bytes(good.take() or room) == DATA[:10]
    refused(job)
    fetched = bundle.fetch(blob, 10, 20, into=memoryview(room) if in_place else None)
    assert bytes(fetched.plan() or room) == DATA[10:20]
    with pytest.raises(AuditUnavailable):
        fetched.take()


def test_many_threads_meet_a_failing_audit(watched):
    """Nobody hangs, nobody gets anything: 16 threads in one bundle when the store goes away."""
    job, session, blob = watched
    bundle = session.bundle("work")
    bundle.properties(job.source())
    refused(job)
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(bundle.read(replace(blob), 0, 10))
        except AuditUnavailable as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes == [AuditUnavailable] * 16
