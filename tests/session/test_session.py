"""Sessions at work: one token for everybody, refreshed ahead, bounded by the deadline, and in the record."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import format_datetime

import pytest

from beam_entra.access import AccessManifest, Endpoints, Permission, SasSpec, downscope
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AccessDenied,
    AuditUnavailable,
    BeamEntraError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    IdentityExpired,
    IdentityRejected,
    IdentityUnavailable,
    NotGranted,
)
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken
from beam_entra.paths import BlobPath
from beam_entra.session import adopt_session, close_session, open_session
from beam_entra.storage import DelegationKey, Sas, new_block_id
from beam_entra.testing.apps import App
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.storage_requests import matching
from tests.identity.leaks import everything_in
from tests.session.conftest import DATA, LAKE, Job, read_blob, write_blob

GRAPH = "https://graph.microsoft.com"
THREADS = 16
GET = matching("GetBlob")


@pytest.fixture
def short_tokens(beam_entra_cloud: LocalCloud) -> Iterator[int]:
    """Tokens of 3 seconds."""
    beam_entra_cloud.tenant.token_life_s = 3
    yield 3
    beam_entra_cloud.tenant.token_life_s = 3600


def in_threads(count: int, work) -> list:
    """Run `work(number)` in as many threads at once; the results in order."""
    barrier = threading.Barrier(min(count, THREADS))

    def begin(number: int):
        if number < THREADS:
            barrier.wait(20)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(60) for future in [pool.submit(begin, number) for number in range(count)]]


# ---------------------------------------------------------------- cheap


def test_one_token_and_one_key_for_a_whole_job(job):
    """48 bundles on 16 threads that read and write cost one token request and one delegation key."""
    session = job.session()

    def work(number: int) -> bool:
        if number % 3 == 0:
            write_blob(session, job, f"orders/out-{number}.jsonl")
        return read_blob(session, job) == DATA

    assert all(in_threads(48, work))
    assert job.cloud.tenant.token_requests == 1
    assert len(job.requests("GetUserDelegationKey")) == 1
    summary = job.seal_and_verify(session)
    assert (summary.counts["token_acquired"], summary.counts["key_acquired"]) == (1, 1)
    assert summary.counts["bundle_opened"] == summary.counts["bundle_closed"] == 48 + 16 + 1
    assert summary.counts["committed"] == 16
    assert session.take_counts()["tokens_acquired"] == 1


def test_one_key_also_when_the_job_is_as_short_as_a_sas(make_job):
    """A key that ends with the job is good until the job ends: nobody asks for the next one, which would end then."""
    job = make_job(lasts=timedelta(minutes=5))
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    for _ in range(5):
        read_blob(session, job)
    assert len(job.requests("GetUserDelegationKey")) == 1


def test_the_trail_costs_no_round_trip_an_access(job):
    """Records go to Storage in groups: far fewer appends than accesses."""
    session = job.session()
    with session.bundle("read") as bundle:
        blob = bundle.properties(job.source())
        bundle.settle()
        before = len(job.requests("AppendBlock"))
        in_threads(64, lambda number: bundle.read(blob, number, number + 10))
    assert len(job.requests("AppendBlock")) - before <= 40
    assert len(job.records("read")) == 65


def test_one_sas_for_a_path_and_a_bundle(job):
    """A bundle that reads a blob in pieces presents one SAS; the next bundle has one of its own."""
    session = job.session()
    for _ in range(2):
        with session.bundle("read") as bundle:
            blob = bundle.properties(job.source())
            for start in range(0, 1000, 100):
                bundle.read(blob, start, start + 100)
    signatures = Counter(each.request.parameters["scid"] for each in job.requests("GetBlob", "GetBlobProperties"))
    assert sorted(signatures.values()) == [11, 11]


def test_data_moves_under_sas_alone(job):
    """No request for data, or for the audit, carries the token: it goes to Entra and to the key's request only."""
    session = job.session()
    read_blob(session, job)
    write_blob(session, job)
    session.close()
    credentials = {each.operation: each.request.credential for each in job.requests()}
    assert {name for name, credential in credentials.items() if credential != "sas"} == {"GetUserDelegationKey"}


# ---------------------------------------------------------------- refreshed


def test_a_sas_that_ends_within_a_read_is_replaced(make_job):
    """A read that takes longer than its SAS lives gets the next one on the way, and its bytes are the blob's."""
    job = make_job(sas_life="5s")
    content = os.urandom(3 << 20)
    job.raw.upload("orders/a.bin", content)
    session = job.session(pause=lambda seconds: threading.Event().wait(4))
    job.cloud.proxy.truncate(1 << 20, where=GET, times=2)
    with session.bundle("read") as bundle:
        blob = bundle.properties(job.source("orders/a.bin"))
        assert bytes(bundle.read(blob, 0, len(content))) == content
    reads = [record for record in job.records("read") if record["end"]]
    assert len({record["sas"] for record in reads}) == 3
    assert [each.status for each in job.requests() if each.status in {401, 403}] == []
    assert session.take_counts()["sas_refreshed"] == 2
    job.seal_and_verify(session)


def test_a_failing_entra_does_not_stop_a_job_that_has_a_token(job):
    """While the token at hand is good, an Entra that is away costs nothing."""
    session = job.session()
    read_blob(session, job)
    job.cloud.tenant.fail(503)
    assert read_blob(session, job) == DATA


def for_seconds(seconds: float, work: Callable[[], object]) -> None:
    """Do it again and again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        work()
        threading.Event().wait(0.1)


def revoked(make_job, **facts) -> tuple[Job, App]:
    """A job of an app of its own, with tokens of 3 seconds, which is about to be revoked."""
    app = make_job().cloud.add_client()
    job = make_job(client=app.client_id, **facts)
    job.raw.upload("orders/a.jsonl", DATA)
    return job, app


def test_a_revoked_app_opens_no_bundle(make_job, short_tokens):
    """An app that is disabled while its job runs gets no bundle after a token's life; the reason is on the record."""
    job, app = revoked(make_job)
    session = job.session()
    read_blob(session, job)
    job.cloud.tenant.revoke(app)
    began = time.monotonic()
    with pytest.raises(IdentityRejected) as caught:
        for_seconds(15, lambda: read_blob(session, job))
    assert time.monotonic() - began < short_tokens + 1
    assert caught.value.diagnosis.code == "AADSTS7000112"
    assert app.client_id in caught.value.diagnosis.identity
    assert job.records("denied")[-1]["by"] == "entra"
    job.check_unsealed()


def test_a_revoked_app_stops_a_long_bundle(make_job, short_tokens):
    """A bundle that reads on stops when its SAS ends: a SAS is issued under a live token only."""
    job, app = revoked(make_job, sas_life="5s")
    session = job.session()
    bundle = session.bundle("long")
    blob = bundle.properties(job.source())
    job.cloud.tenant.revoke(app)
    began = time.monotonic()
    with pytest.raises((IdentityRejected, AuditUnavailable)) as caught:
        for_seconds(15, lambda: bundle.read(blob, 0, 100))
    assert time.monotonic() - began < short_tokens + 5
    assert caught.value.diagnosis.code == "AADSTS7000112"
    job.check_unsealed()


# ---------------------------------------------------------------- denied


OTHER = BlobPath(account="fabrikamlake", container="raw", name="orders/a.jsonl")


@pytest.mark.parametrize(
    "name",
    ["orders-secret/a.jsonl", "products.csv.bak", "other.jsonl", "Orders/a.jsonl", "orders"],
)
def test_what_is_not_granted_sends_nothing(job, name):
    """A path outside the grants is NotGranted before anything is sent to it; the refusal is on the record."""
    session = job.session()
    path = BlobPath(account="contosolake", container=job.raw.name, name=name)
    with session.bundle("curious") as bundle:
        with pytest.raises(NotGranted) as caught:
            bundle.properties(path)
        assert isinstance(caught.value, PermissionError)
        with pytest.raises(NotGranted):
            bundle.stage(path, new_block_id(), b"x")
    assert job.data_requests() == []
    assert "[grants]" in caught.value.hint
    assert job.cloud.client_id in caught.value.diagnosis.identity
    denied = job.records("denied")
    assert [(each["path"], each["permission"], each["by"]) for each in denied] == [
        (str(path), "read", "manifest"),
        (str(path), "write", "manifest"),
    ]
    assert session.take_counts()["denials"] == 2


def test_permissions_are_not_exchanged(job):
    """A read grant is no write grant, nor the other way round, and neither is for another account."""
    session = job.session()
    blob = new_block_id()
    with session.bundle("curious") as bundle:
        with pytest.raises(NotGranted):
            bundle.stage(job.source(), blob, b"x")
        with pytest.raises(NotGranted):
            bundle.properties(job.target())
        with pytest.raises(NotGranted):
            list(bundle.list_blobs(job.target("orders/"), "orders/"))
        with pytest.raises(NotGranted):
            bundle.commit(job.source(), [blob], commit_id="c", size_bytes=1, rows=1, content_type="text/plain")
        with pytest.raises(NotGranted):
            bundle.properties(OTHER)
    assert job.data_requests() == []
    assert job.records("commit_intended") == []


def test_a_listing_stays_below_its_prefix(job):
    """Neither the caller nor an answer widens a listing."""
    job.raw.upload("orders/b.jsonl", b"1")
    job.raw.upload("orders-secret/a.jsonl", b"1")
    session = job.session()
    with session.bundle("list") as bundle:
        names = [blob.path.name for blob in bundle.list_blobs(job.source("orders/"), "orders/")]
        assert names == ["orders/a.jsonl", "orders/b.jsonl"]
        asked = len(job.requests("ListBlobs"))
        for wider in ("", "orders", "orders-secret/"):
            with pytest.raises(ValueError, match="stays below the prefix"):
                next(bundle.list_blobs(job.source("orders/"), wider))
        with pytest.raises(NotGranted):
            next(bundle.list_blobs(job.source(""), ""))
        assert len(job.requests("ListBlobs")) == asked
    assert [(each["blobs"], each["path"]) for each in job.records("listed")] == [(2, str(job.source("orders/")))]


def test_a_page_that_nobody_waited_for_is_recorded_too(job):
    """The next page is fetched ahead: who stops at the first has listed two, and the trail says so."""
    for number in range(6):
        job.raw.upload(f"orders/{number}", b"x")
    with job.session().bundle("list") as bundle:
        found = bundle.list_blobs(job.source("orders/"), "orders/", page_size=2)
        assert next(found).path.name == "orders/0"
        found.close()
    assert [each["blobs"] for each in job.records("listed")] == [2, 2]
    assert len([each for each in job.cloud.proxy.requests if each.operation == "ListBlobs"]) == 2


def test_an_audience_that_is_not_granted(make_job):
    """A token for a service that the manifest does not name is NotGranted; nobody is asked for it."""
    job = make_job(audiences=(GRAPH,))
    session = job.session()
    with session.bundle("look up", audience=GRAPH) as bundle:
        assert bundle.access_token(GRAPH).audience == GRAPH
        with pytest.raises(NotGranted) as caught:
            bundle.access_token("https://vault.azure.net")
    assert "token in [grants]" in caught.value.hint
    assert {request.scope for request in job.cloud.tenant.requests if request.kind == "token"} <= {
        f"{GRAPH}/.default",
        "https://storage.azure.com/.default",
    }


def test_storages_own_token_is_handed_to_nobody(job):
    """It would reach past every grant on a path; asking for it is refused and recorded."""
    with job.session().bundle("connector") as bundle, pytest.raises(NotGranted, match="handed to nobody"):
        bundle.access_token("https://storage.azure.com")
    assert [(each["path"], each["permission"], each["by"]) for each in job.records("denied")] == [
        ("https://storage.azure.com", "token", "manifest")
    ]


def test_a_connectors_token_is_on_the_record_before_it_is_handed_out(make_job):
    """While the audit is out of reach no token leaves the session."""
    job = make_job(audiences=(GRAPH,))
    job.cloud.proxy.respond(403, "AuthorizationFailure", where=matching(container=job.audit.name))
    session = job.session()
    bundle = session.bundle("look up", audience=GRAPH)
    with pytest.raises(AuditUnavailable):
        bundle.access_token(GRAPH)


def test_storages_refusal(job):
    """What Storage refuses is AccessDenied with its request id, and on the record with it."""
    session = job.session()
    with session.bundle("read") as bundle:
        blob = bundle.properties(job.source())
        job.cloud.proxy.respond(403, "AuthorizationPermissionMismatch", where=GET)
        with pytest.raises(AccessDenied) as caught:
            bundle.read(blob, 0, 10)
    denied = job.records("denied")[0]
    assert denied["by"] == "storage"
    assert denied["request_id"] == caught.value.diagnosis.request_id == job.requests("GetBlob")[-1].request_id
    assert denied["client_request_id"] == caught.value.diagnosis.client_request_id


def test_a_missing_role_is_one_clear_error(job):
    """Without the right to a delegation key, every operation says which role is missing; nothing else is sent."""
    job.cloud.proxy.without_role()
    session = job.session()
    with suppress(AuditUnavailable), session.bundle("read") as bundle:
        with pytest.raises((AccessDenied, AuditUnavailable)) as caught:
            bundle.properties(job.source())
        assert "Storage Blob Delegator" in caught.value.hint
        assert caught.value.diagnosis.code == "AuthorizationPermissionMismatch"
    assert job.data_requests() == []


def test_a_key_is_asked_for_with_a_live_token(make_job, short_tokens):
    """A token that ended while Storage was busy is not shown again; the trail names the one that got the key."""
    job = make_job()
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session(pause=lambda seconds: threading.Event().wait(short_tokens + 1))
    job.cloud.proxy.respond(503, "ServerBusy", where=matching("GetUserDelegationKey"), times=1)
    read_blob(session, job)
    first, second = job.records("token_acquired")[:2]
    assert job.records("key_acquired")[0]["token"] == second["token"] != first["token"]
    job.seal_and_verify(session)


def test_an_account_that_is_throttled_stops_no_other(job):
    """While one account makes its key's request wait, bundles that work on another get theirs."""
    other = "otherlake"
    text = job.text.replace("read = [", f'read = ["abfss://raw@{other}.dfs.core.windows.net/", ')
    manifest = AccessManifest.parse(text, file="orders.access.toml").at(Endpoints.load(job.cloud.endpoints_file))
    there = replace(manifest.accounts[LAKE], endpoint=job.cloud.proxy.endpoint(other))
    job.scope = replace(job.scope, manifest=replace(manifest, accounts={**manifest.accounts, other: there}))
    session = job.session()
    held = job.cloud.proxy.hold(where=matching("GetUserDelegationKey", account=other), times=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(session.key, other)
        held.gate.wait_for_arrivals()
        try:
            assert within_ten_seconds(lambda: read_blob(session, job)) == DATA
            assert not waiting.done()
        finally:
            held.gate.open()
        with pytest.raises(BeamEntraError):  # there is no such account here
            waiting.result(20)


def within_ten_seconds(work: Callable[[], bytes]) -> bytes:
    """Do it in a thread that may get stuck, and fail rather than wait for it."""
    result: list[bytes] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(10)
    assert result, "stuck"
    return result[0]


# ---------------------------------------------------------------- the deadline


OPERATIONS = {
    "open": lambda bundle, job, blob: bundle.session.bundle("next"),
    "token": lambda bundle, job, blob: bundle.access_token(GRAPH),
    "properties": lambda bundle, job, blob: bundle.properties(job.source("orders/b.jsonl")),
    "properties again": lambda bundle, job, blob: bundle.properties(job.source()),
    "list": lambda bundle, job, blob: list(bundle.list_blobs(job.source("orders/"), "orders/")),
    "read": lambda bundle, job, blob: bundle.read(blob, 0, 10),
    "stage": lambda bundle, job, blob: bundle.stage(job.target(), new_block_id(), b"x"),
    "commit": lambda bundle, job, blob: bundle.commit(
        job.target(), ["AAAA"], commit_id="c", size_bytes=1, rows=1, content_type="text/plain"
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_after_the_deadline_nothing_is_done(make_job, name):
    """Whatever is asked for then is IdentityExpired, nothing is sent, and the hint says how to get more time."""
    job = make_job(audiences=(GRAPH,))
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock()
    session = job.session(clock=clock)
    bundle = session.bundle("work")
    blob = bundle.properties(job.source())
    bundle.settle()
    job.cloud.proxy.requests.clear()
    job.cloud.tenant.requests.clear()
    clock.set(job.scope.deadline)
    with pytest.raises(IdentityExpired) as caught:
        OPERATIONS[name](bundle, job, blob)
    assert "[lifetime] job" in caught.value.hint
    assert "the job's time ended at" in caught.value.message
    assert job.data_requests() == []
    assert job.cloud.tenant.token_requests == 0


def test_a_denial_after_the_deadline_is_not_in_the_trail(make_job):
    """No append SAS outlives the deadline, so such a denial cannot be recorded; its error says so."""
    job = make_job()
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock()
    session = job.session(clock=clock)
    bundle = session.bundle("work")
    bundle.settle()
    clock.set(job.scope.deadline)
    with pytest.raises(IdentityExpired) as caught:
        bundle.properties(job.source())
    assert any("the refusal could not be recorded" in note for note in caught.value.__notes__)
    assert job.records("denied") == []


def test_nothing_outlives_the_deadline(make_job):
    """The key and every SAS end with the job at the latest."""
    job = make_job(lasts=timedelta(minutes=3))
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    read_blob(session, job)
    session.close()
    ends = {record["expires"] for record in job.records("sas_issued") + job.records("key_acquired")}
    assert max(ends) <= job.scope.deadline.isoformat().replace("+00:00", "Z")


def test_a_clock_that_is_set_back_does_no_harm(make_job):
    """Decisions and records share one time, so a SAS that is issued after the step is valid in the trail too."""
    job = make_job(sas_life="1m")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now() + timedelta(minutes=4))
    session = job.session(clock=clock)
    read_blob(session, job)
    clock.set(utc_now())
    read_blob(session, job)
    write_blob(session, job)
    assert job.seal_and_verify(session).counts["committed"] == 1


# ---------------------------------------------------------------- two jobs


def test_two_jobs_share_nothing(make_job):
    """Two identities in one process: no token, key, SAS or segment of the one is used for the other."""
    first = make_job()
    app = first.cloud.add_client()
    second = make_job(client=app.client_id)
    sessions = {}
    for job in (first, second):
        job.raw.upload("orders/a.jsonl", DATA)
        sessions[job] = open_session(job.scope)
    try:
        in_threads(8, lambda number: read_blob(sessions[(first, second)[number % 2]], (first, second)[number % 2]))
        with sessions[first].bundle("curious") as bundle, pytest.raises(NotGranted):
            bundle.properties(second.source())
    finally:
        for job in (first, second):
            close_session(job.scope.job)
    assert {token.client for token in first.cloud.tenant.issued} == {first.cloud.client_id, app.client_id}
    for job, client in ((first, first.cloud.client_id), (second, app.client_id)):
        assert {record["appid"] for record in job.records("token_acquired")} == {client}
        mine = [each.request for each in job.requests() if each.request.container in {job.raw.name, job.audit.name}]
        objects = {request.parameters["skoid"] for request in mine}
        assert objects == {app.object_id if client == app.client_id else job.cloud.app.object_id}
        job.check_unsealed()
    segments = [set(job.trail.names()) for job in (first, second)]
    assert not segments[0] & segments[1]


# ---------------------------------------------------------------- writing and reading


def test_a_commit_is_intended_before_it_is_sent(job):
    """The intention is durable before Put Block List goes out: no blob of ours is there without a record."""
    session = job.session()
    with session.bundle("write") as bundle:
        block = new_block_id()
        bundle.stage(job.target(), block, b"1\n")
        bundle.settle()
        held = job.cloud.proxy.hold(where=matching("PutBlockList"))
        facts = {"commit_id": "c-1", "size_bytes": 2, "rows": 1, "content_type": "text/plain"}
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(bundle.commit, job.target(), [block], **facts)
            assert held.gate is not None
            held.gate.wait_for_arrivals()
            assert [record["commit"] for record in job.records("commit_intended")] == ["c-1"]
            held.gate.open()
            committed = done.result(20)
    assert not committed.confirmed
    assert job.records("committed")[0]["etag"] == committed.etag
    assert job.curated.download("orders/out.jsonl") == b"1\n"


def test_a_commit_whose_answer_was_lost(job):
    """It is found done, the record says so, and the trail verifies."""
    session = job.session()
    job.cloud.proxy.lose_answer(where=matching("PutBlockList"), times=1)
    write_blob(session, job)
    assert job.records("committed")[0]["confirmed"] is True
    job.seal_and_verify(session)


def test_errors_of_storage_pass_through(job):
    """A changed, foreign or missing blob is what it is, with the path in the error."""
    session = job.session()
    with session.bundle("work") as bundle:
        blob = bundle.properties(job.source())
        job.raw.upload("orders/a.jsonl", b"changed")
        with pytest.raises(BlobChanged):
            bundle.read(blob, 0, 10)
        with pytest.raises(BlobNotFound, match="does not exist"):
            bundle.properties(job.source("orders/nothing.jsonl"))
        job.curated.upload("orders/out.jsonl", b"theirs")
        block = new_block_id()
        bundle.stage(job.target(), block, b"ours")
        with pytest.raises(BlobExists) as caught:
            bundle.commit(job.target(), [block], commit_id="c", size_bytes=4, rows=1, content_type="text/plain")
    assert str(job.target()) in caught.value.diagnosis.tried
    assert job.curated.download("orders/out.jsonl") == b"theirs"
    job.seal_and_verify(session)


def test_records_join_the_platforms_logs(job):
    """Each access carries Storage's request id and ours; each token its uti; each SAS the bundle's id on the wire."""
    session = job.session()
    read_blob(session, job)
    session.close()
    by_id = {each.request.headers["x-ms-client-request-id"]: each for each in job.requests()}
    for record in job.records("read"):
        seen = by_id[record["client_request_id"]]
        assert seen.request_id == record["request_id"]
        assert seen.request.parameters["scid"] == record["bundle"]
    assert job.records("token_acquired")[0]["uti"] == job.cloud.tenant.issued[0].claims["uti"]
    key = next(each for each in job.requests("GetUserDelegationKey"))
    assert job.records("key_acquired")[0]["client_request_id"] == key.request.headers["x-ms-client-request-id"]


def test_concurrent_staging_settles_whole(job):
    """When `settle` returns, every block that was staged before, by whatever thread, is on the record."""
    session = job.session()
    with session.bundle("write") as bundle:
        for round_number in range(5):
            in_threads(16, lambda number: bundle.stage(job.target(f"orders/{number}"), new_block_id(), b"x"))
            bundle.settle()
            assert len(job.records("staged")) == 16 * (round_number + 1)


def test_a_closed_bundle_is_closed(job):
    """Closing again does nothing; the outcome is the first."""
    session = job.session()
    with session.bundle("read") as bundle:
        bundle.close("abandoned")
        bundle.close("ok")
    with pytest.raises(ZeroDivisionError), session.bundle("read"):
        raise ZeroDivisionError
    assert [record["outcome"] for record in job.records("bundle_closed")] == ["abandoned", "failed"]


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - {"open"}))
def test_a_closed_bundle_does_nothing(make_job, name):
    """Whatever is asked of it is refused, though the session lives on; nothing is sent, and no record comes of it."""
    job = make_job(audiences=(GRAPH,))
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    with session.bundle("work") as bundle:
        blob = bundle.properties(job.source())
    before = len(job.data_requests()), job.cloud.tenant.token_requests
    with pytest.raises(AuditUnavailable, match="the bundle is closed"):
        OPERATIONS[name](bundle, job, blob)
    assert (len(job.data_requests()), job.cloud.tenant.token_requests) == before
    assert read_blob(session, job) == DATA
    session.close()
    assert [each["kind"] for each in job.records() if each["bundle"] == bundle.id][-1] == "bundle_closed"


def test_what_is_under_way_when_a_bundle_closes_is_recorded(job):
    """A prefetch that ends after the close does not break, and its access is in the trail."""
    session = job.session()
    with ThreadPoolExecutor(1) as pool:
        with session.bundle("work") as bundle:
            blob = bundle.properties(job.source())
            bundle.read(blob, 0, 10)
            held = job.cloud.proxy.hold(where=GET, times=1)
            ahead = pool.submit(bundle.read, blob, 10, 20)
            held.gate.wait_for_arrivals()
        held.gate.open()
        assert bytes(ahead.result(20)) == DATA[10:20]
    assert [(each["start"], each["end"]) for each in job.records("read") if each["end"]] == [(0, 10), (10, 20)]
    job.seal_and_verify(session)


# ---------------------------------------------------------------- no secret


def test_sessions_are_not_pickled(job):
    """Neither a session nor a bundle session, nor anything live in them, leaves the process."""
    session = job.session()
    with session.bundle("read") as bundle:
        bundle.properties(job.source())
        token = session.broker.get("https://storage.azure.com")
        for live in (session, bundle, token, session.broker, *session._keys.values(), *bundle._sas.values()):
            with pytest.raises(TypeError):
                pickle.dumps(live)
        with pytest.raises(TypeError, match="pickle its JobScope"):
            copy.deepcopy(session)


def test_no_secret_in_trail_logs_and_errors(make_job, caplog):
    """A job with every kind of trouble: neither its trail, nor any log at DEBUG, nor any error holds a secret."""
    job = make_job(audiences=(GRAPH,))
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session(pause=lambda seconds: None)
    errors: list[BeamEntraError] = []
    with caplog.at_level(logging.DEBUG):
        job.cloud.proxy.reset(where=GET, times=1)
        read_blob(session, job)
        write_blob(session, job)
        troubles = [
            lambda bundle: bundle.properties(job.source("secret")),
            lambda bundle: bundle.properties(job.source("orders/nothing")),
            lambda bundle: bundle.access_token("https://vault.azure.net"),
        ]
        for trouble in troubles:
            with session.bundle("work") as bundle, pytest.raises(BeamEntraError) as caught:
                trouble(bundle)
            errors.append(caught.value)
        for status, code in ((403, "AuthorizationFailure"), (503, "ServerBusy"), (412, "ConditionNotMet")):
            fault = job.cloud.proxy.respond(status, code, where=GET)
            with pytest.raises(BeamEntraError) as caught:
                read_blob(session, job)
            errors.append(caught.value)
            fault.clear()
        job.cloud.tenant.fail(400)
        with pytest.raises(IdentityRejected) as refused:
            session.bundle("connector", audience=GRAPH)
        errors.append(refused.value)
        session.close()
    assert len(errors) == 7
    for error in errors:
        shown = everything_in(error) + json.dumps(error.diagnostics())
        assert job.cloud.find_leaks(shown) == []
        assert "sig=" not in shown
        assert error.hint
    assert job.cloud.find_leaks(caplog.text) == []
    for name in job.trail.names():
        assert job.cloud.find_leaks(job.trail.read(name)) == []
    assert job.cloud.tenant.issued  # there was something to find


# ---------------------------------------------------------------- the registry


def test_one_session_a_process_and_job(make_job):
    """Whoever opens a job's session in this process gets the same one; another job has another."""
    first, second = make_job(), make_job()
    try:
        sessions = in_threads(32, lambda number: open_session((first, second)[number % 2].scope))
        assert len({id(session) for session in sessions}) == 2
        assert len({id(session) for session in sessions[::2]}) == 1
    finally:
        for job in (first, second):
            close_session(job.scope.job)


def test_a_closed_session_is_replaced(job):
    """After closing, the job's next session in this process is a new one, with a segment of its own."""
    first = open_session(job.scope)
    read_blob(first, job)
    close_session(job.scope.job)
    close_session(job.scope.job)  # nothing is there, and that is fine
    second = open_session(job.scope)
    try:
        assert second is not first
        read_blob(second, job)
    finally:
        close_session(job.scope.job)
    assert len(job.trail.names()) == 2
    job.check_unsealed()


def test_an_adopted_session_is_the_processs(job):
    """A test that brings a session of its own has the process's DoFns use it."""
    session = job.session(clock=FakeClock())
    adopt_session(session)
    try:
        assert open_session(job.scope) is session
    finally:
        close_session(job.scope.job)


def test_a_closed_session_holds_no_credential(job):
    """Token, key and SAS are gone from the process's memory, however the job went and whoever still has the session."""

    def credentials() -> list[object]:
        gc.collect()
        return [each for each in gc.get_objects() if type(each) in (AccessToken, DelegationKey, Sas)]

    def held() -> set[type]:
        return {type(each) for each in credentials() if id(each) not in known}

    before = credentials()  # other tests' own; held, so that no other object gets the id of one
    known = {id(each) for each in before}
    session = job.session()
    read_blob(session, job)
    job.cloud.proxy.respond(404, "BlobNotFound", where=GET, times=1)
    with suppress(BlobNotFound):
        read_blob(session, job)
    assert held() == {AccessToken, DelegationKey, Sas}
    session.close()
    assert held() == set()


def test_a_closed_session_does_nothing(job):
    """Its tokens are gone, its trail is ended."""
    session = job.session()
    bundle = session.bundle("read")
    session.close()
    with pytest.raises((IdentityUnavailable, AuditUnavailable)):
        bundle.properties(job.source())
    with pytest.raises((IdentityUnavailable, AuditUnavailable)):
        session.bundle("next")
    session.close()


def test_no_thread_is_left(job):
    """After closing there is no flusher and no refresh under way."""
    others = set(threading.enumerate())  # of sessions that other tests in this process have left
    session = job.session()
    read_blob(session, job)
    session.close()
    left = set(threading.enumerate()) - others
    assert [thread.name for thread in left if thread.name.startswith("beam-entra")] == []


def test_threads_that_bundles_shared_end_though_somebody_holds_the_pool(job):
    """As the traceback of an interrupt does; the interpreter would wait for them at its end."""
    session = job.session()
    pool = session.resource("threads", lambda: ThreadPoolExecutor(1))
    thread = pool.submit(threading.current_thread).result()
    session.close()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_session(job):
    """A child neither uses its parent's session nor closes it: it opens its own, with its own segment."""
    parent = open_session(job.scope)
    try:
        read_blob(parent, job)
        child = os.fork()
        if child == 0:  # pragma: no cover - not measured in the child
            try:
                own = open_session(job.scope)
                good = own is not parent and read_blob(own, job) == DATA
                close_session(job.scope.job)
                with suppress(AuditUnavailable):
                    parent.bundle("a mistake")
                    good = False
                os._exit(0 if good else 1)
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it is
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert open_session(job.scope) is parent
        assert read_blob(parent, job) == DATA
    finally:
        close_session(job.scope.job)
    assert len(job.trail.names()) == 2
    job.check_unsealed()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_opens_a_session(make_job):
    """A child that is forked in that moment is not left with a lock that nobody in it will ever release."""
    first, second, third = make_job(), make_job(), make_job()
    slow, asked, go = threading.Event(), threading.Event(), threading.Event()

    def clock() -> datetime:
        if slow.is_set():
            asked.set()
            go.wait(20)
        return utc_now()

    adopt_session(first.session(clock=clock))
    slow.set()
    opening = threading.Thread(target=open_session, args=(second.scope,))
    opening.start()
    try:
        assert asked.wait(20)
        child = os.fork()
        if child == 0:  # pragma: no cover - not measured in the child
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the child
            signal.alarm(10)
            open_session(third.scope)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        slow.clear()
        go.set()
        opening.join(20)
        for job in (first, second):
            close_session(job.scope.job)


def test_a_session_whose_job_is_over_is_forgotten(make_job):
    """A worker that serves many jobs does not keep the sessions of those that are over."""
    old, new = make_job(), make_job()
    clock = FakeClock()
    ended = open_session(old.scope, clock=clock)
    with ended.bundle("work"):
        pass
    clock.set(old.scope.deadline)
    try:
        open_session(new.scope)
        assert open_session(old.scope) is not ended
    finally:
        for job in (old, new):
            close_session(job.scope.job)
    assert utc_now() < old.scope.deadline
    old.check_unsealed()


def test_a_resource_is_made_once(job):
    """What bundles share in a process is made by the first that asks."""
    session = job.session()
    made: list[int] = []
    shared = in_threads(16, lambda number: session.resource("pool", lambda: made.append(number) or object()))
    assert (len(made), len({id(each) for each in shared})) == (1, 1)


def test_a_sas_is_decided_on_again_where_something_was_waited_for(job: Job, monkeypatch: pytest.MonkeyPatch):
    """Once while key and token are at hand; again for a new key, and when the time has changed."""
    worker = FakeClock()
    session = job.session(clock=worker)
    path, life = job.source(), job.manifest.lifetime.token
    decided: list[datetime | None] = []

    def spec_for(key_expires: datetime | None) -> SasSpec:
        decided.append(key_expires)
        now, deadline = session.clock(), session.deadline
        return downscope(job.manifest, path, Permission.READ, now=now, deadline=deadline, key_expires=key_expires)

    def issued() -> list[datetime | None]:
        decided.clear()
        sas = session.issue(spec_for, path=path, permission=Permission.READ, bundle=None)
        assert timedelta(0) <= life - (sas.expires - session.clock()) < timedelta(seconds=1)
        return list(decided)

    def waits(passing: timedelta, told: timedelta = timedelta(0)) -> None:
        """The token takes so long, and the clock turns out to have been wrong by what it is told."""

        def get(audience: str) -> AccessToken:
            sent = worker.advance(passing)
            if told:
                session.clock.hear(format_datetime(sent + told), sent)
            return token

        monkeypatch.setattr(session.broker, "get", get)

    token = session.broker.get(STORAGE_AUDIENCE)
    assert issued() == [None, session.key(LAKE).expires]
    expires = session.key(LAKE).expires
    assert issued() == [expires]
    waits(timedelta(seconds=30))
    assert issued() == [expires, expires]
    waits(timedelta(seconds=30), told=timedelta(minutes=-9))
    assert issued() == [expires, expires]
    session._keys[LAKE] = replace(session.key(LAKE), expires=session.clock() + timedelta(seconds=1))
    waits(timedelta(seconds=2))
    assert issued() == [None, session.key(LAKE).expires]


def test_counts_are_taken_once(job: Job):
    """Counters go to Beam's metrics once each."""
    session = job.session()
    read_blob(session, job)
    counts = session.take_counts()
    assert counts["bytes_read"] == len(DATA)
    assert counts["tokens_acquired"] == counts["delegation_keys"] == 1
    assert counts["sas_issued"] == 2  # the blob's and the segment's
    assert session.take_counts() == {}
