"""Jobs whose scoping is `bearer`: the token itself opens the blobs, and all else holds as it does under SAS."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from beam_entra.access import Permission
from beam_entra.audit import check_segments
from beam_entra.audit.record import SEAL_NAME
from beam_entra.audit.verify import verify
from beam_entra.clock import utc_now
from beam_entra.errors import AuditUnavailable, BlobChanged, IdentityExpired, IdentityRejected, NotGranted, TrailBroken
from beam_entra.identity import AccessToken, CredentialSource, EntraSource
from beam_entra.session import BundleSession, copy_blob
from beam_entra.storage import new_block_id
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.https import Answer
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.storage_requests import StorageRequest, matching
from tests.session.conftest import DATA, LAKE, Job, read_blob, write_blob


@pytest.fixture
def bearer(make_job: Callable[..., Job]) -> Job:
    """A job whose identity may not get a user delegation key, and whose input is there."""
    job = make_job(scoping="bearer", delete=("orders/old/",))
    job.raw.upload("orders/a.jsonl", DATA)
    job.cloud.proxy.without_role()
    return job


@pytest.fixture
def short_tokens(beam_entra_cloud: LocalCloud) -> Iterator[None]:
    """Tokens of 3 seconds."""
    beam_entra_cloud.tenant.token_life_s = 3
    yield
    beam_entra_cloud.tenant.token_life_s = 3600


class Files:
    """A trail's files, changed by an attacker."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def names(self) -> list[str]:
        """All of them."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """One."""
        return self.files[name]


def test_a_whole_job_without_a_delegation_key(bearer: Job) -> None:
    """It reads, lists, writes, deletes and seals; every request for data and audit carries the token, none a SAS."""
    session = bearer.session()
    assert read_blob(session, bearer) == DATA
    write_blob(session, bearer)
    bearer.curated.upload("orders/old/x", b"x")
    with session.bundle("list and delete") as bundle:
        found = [blob.path.name for blob in bundle.list_blobs(bearer.source("orders/"), "orders/")]
        assert found == ["orders/a.jsonl"]
        assert bundle.delete(bearer.target("orders/old/x"))
    summary = bearer.seal_and_verify(session)
    assert {each.request.credential for each in bearer.requests()} == {"bearer"}
    assert bearer.requests("GetUserDelegationKey") == []
    assert not any("sig" in each.request.parameters for each in bearer.requests())
    assert summary.scoping == "bearer"
    assert {"key_acquired", "sas_issued"} & summary.counts.keys() == set()
    assert summary.counts["token_acquired"] == bearer.cloud.tenant.token_requests == 1


def test_each_access_names_its_token(bearer: Job) -> None:
    """In place of the SAS; the first record of the segment says what opens the blobs."""
    session = bearer.session()
    read_blob(session, bearer)
    write_blob(session, bearer)
    session.close()
    (token,) = bearer.records("token_acquired")
    for kind in ("read", "staged", "commit_intended", "committed"):
        assert {record["token"] for record in bearer.records(kind)} == {token["token"]}
        assert not any("sas" in record for record in bearer.records(kind))
    assert [record["scoping"] for record in bearer.records("segment_opened")] == ["bearer"]
    bearer.check_unsealed()


def test_a_job_that_does_not_ask_for_it_says_so(job: Job) -> None:
    """Its segment's first record has `sas`, its accesses name SAS, and its session gives its token to no blob."""
    session = job.session()
    read_blob(session, job)
    assert [record["scoping"] for record in job.records("segment_opened")] == ["sas"]
    assert not any("token" in record for record in job.records("read"))
    with session.bundle("curious") as bundle, pytest.raises(ValueError, match="its scoping is SAS"):
        bundle._present_token(job.source(), Permission.READ)


@pytest.mark.parametrize("name", ["orders-secret/a.jsonl", "products.csv.bak", "other.jsonl", "orders"])
def test_what_is_not_granted_sends_nothing(bearer: Job, name: str) -> None:
    """The token would open it: our side refuses before the network, and the refusal is on the record."""
    bearer.raw.upload(name, b"x")
    session = bearer.session()
    path = bearer.source(name)
    with session.bundle("curious") as bundle:
        with pytest.raises(NotGranted):
            bundle.properties(path)
        with pytest.raises(NotGranted):
            bundle.stage(path, new_block_id(), b"x")
        with pytest.raises(NotGranted):
            bundle.delete(path)
        with pytest.raises(NotGranted):
            bundle.require(path, Permission.READ)
    assert bearer.data_requests() == []
    assert [each["permission"] for each in bearer.records("denied")] == ["read", "write", "delete", "read"]


def test_permissions_are_not_exchanged(bearer: Job) -> None:
    """A token that may do everything is used for what is granted on the path alone."""
    session = bearer.session()
    with session.bundle("curious") as bundle:
        for attempt in (
            lambda: bundle.stage(bearer.source(), new_block_id(), b"x"),
            lambda: bundle.properties(bearer.target()),
            lambda: bundle.delete(bearer.target()),
            lambda: next(bundle.list_blobs(bearer.target("orders/"), "orders/")),
            lambda: next(bundle.list_blobs(bearer.source(""), "")),
        ):
            with pytest.raises(NotGranted):
                attempt()
    assert bearer.data_requests() == []


def test_the_trail_is_appended_to_in_its_own_folder_alone(bearer: Job) -> None:
    """The right to append is decided as it is under SAS, though the token reaches further."""
    session = bearer.session()
    for path in (bearer.scope.manifest.audit.child("other-job/segment"), bearer.target()):
        with pytest.raises(NotGranted):
            session._authorise_append(path)
    assert bearer.requests() == []
    assert bearer.cloud.tenant.token_requests == 0, "no token is asked for what may not be done"


def test_a_listing_stays_below_its_prefix(bearer: Job) -> None:
    """Neither the caller nor an answer widens it."""
    bearer.raw.upload("orders-secret/a.jsonl", b"1")
    with bearer.session().bundle("list") as bundle:
        found = [blob.path.name for blob in bundle.list_blobs(bearer.source("orders/"), "orders/")]
        assert found == ["orders/a.jsonl"]
        with pytest.raises(ValueError, match="stays below the prefix"):
            next(bundle.list_blobs(bearer.source("orders/"), "orders"))
    assert [(each["blobs"], each["path"]) for each in bearer.records("listed")] == [(1, str(bearer.source("orders/")))]


def test_a_blob_that_changes_under_a_reader(bearer: Job) -> None:
    """The version is pinned."""
    with bearer.session().bundle("read") as bundle:
        blob = bundle.properties(bearer.source())
        bearer.raw.upload("orders/a.jsonl", b"other")
        with pytest.raises(BlobChanged):
            bundle.read(blob, 0, 3)


def test_a_copy_presents_the_token_twice(bearer: Job) -> None:
    """To write the one blob, and for Storage to read the other; the URL of the source has no SAS. (Azurite cannot.)"""
    sent: list[StorageRequest] = []

    def staged(request: StorageRequest) -> Answer:
        sent.append(request)
        return Answer(status=201, headers={"x-ms-request-id": "r-1"})

    bearer.cloud.proxy.stand_in(staged, where=matching("PutBlock"))
    session = bearer.session()
    with session.bundle("copy") as bundle:
        source = bundle.properties(bearer.source())
        bundle.copy_block(source, 0, 10, bearer.target("orders/copy"), new_block_id())
    (request,) = sent
    token = f"Bearer {bearer.cloud.tenant.issued[0].token.reveal()}"
    assert request.headers["x-ms-copy-source"] == f"{bearer.cloud.endpoint(LAKE)}/{bearer.raw.name}/orders/a.jsonl"
    assert request.headers["x-ms-copy-source-authorization"] == request.headers["authorization"] == token
    (record,) = bearer.records("copied")
    assert record["token"] == record["source_token"] == bearer.records("token_acquired")[0]["token"]
    bearer.check_unsealed()


def test_a_copy_that_storage_cannot_do_is_carried(bearer: Job) -> None:
    """Read and staged under the token, where Storage does not take it for the source."""
    session = bearer.session()
    with session.bundle("copy") as bundle:
        copy_blob(bundle, bundle.properties(bearer.source()), bearer.target("orders/copy"))
    assert bearer.curated.download("orders/copy") == DATA
    bearer.seal_and_verify(session)


def test_after_the_deadline_nothing_is_done(make_job: Callable[..., Job]) -> None:
    """A token that lives on is presented no more."""
    job = make_job(scoping="bearer", lasts=timedelta(minutes=5))
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    bundle = session.bundle("read")
    blob = bundle.properties(job.source())
    clock.advance(timedelta(minutes=6))
    asked = len(job.requests())
    with pytest.raises(IdentityExpired):
        bundle.read(blob, 0, 10)
    with pytest.raises(IdentityExpired):
        session.bundle("late")
    assert len(job.requests()) == asked


class Slow:
    """A credential source at which time passes."""

    def __init__(self, source: CredentialSource, clock: FakeClock) -> None:
        self.source, self.clock, self.takes = source, clock, timedelta(0)

    def acquire(self, audience: str, **claims: str) -> AccessToken:
        """Take so long."""
        token = self.source.acquire(audience, **claims)
        self.clock.advance(self.takes)
        return token


def test_a_token_that_comes_after_the_deadline_is_not_presented(
    make_job: Callable[..., Job], short_tokens: None
) -> None:
    """It was asked for in time, and Entra took long."""
    job = make_job(scoping="bearer", lasts=timedelta(minutes=5))
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    source = Slow(EntraSource(job.manifest.identity, clock=clock), clock)
    session = job.session(clock=clock, source=source)
    with suppress(AuditUnavailable), session.bundle("read") as bundle:
        clock.advance(timedelta(seconds=3))
        source.takes = timedelta(minutes=5)
        with pytest.raises(IdentityExpired):
            bundle._authorise(job.source(), Permission.READ)
    assert len(job.cloud.tenant.issued) >= 2, "it had come"
    assert job.data_requests() == []


def test_no_method_for_connectors_gives_what_a_request_presents() -> None:
    """The token, or a SAS, goes into requests that the bundle sends, and records; it is handed to nobody."""
    methods = {name: method for name, method in vars(BundleSession).items() if not name.startswith("_")}
    given = {name for name, method in methods.items() if "Authorization" in str(getattr(method, "__annotations__", ""))}
    assert given == set()


def test_a_closed_bundle_presents_nothing(bearer: Job) -> None:
    """Nothing is begun in it any more."""
    session = bearer.session()
    with session.bundle("read") as bundle:
        blob = bundle.properties(bearer.source())
    with pytest.raises(AuditUnavailable, match="closed"):
        bundle.read(blob, 0, 10)


def test_a_token_that_ends_within_a_bundle_is_replaced(make_job: Callable[..., Job], short_tokens: None) -> None:
    """Each request presents a live token; the trail says which."""
    job = make_job(scoping="bearer")
    job.raw.upload("orders/a.jsonl", DATA)
    tenant, clock = job.cloud.tenant, FakeClock(utc_now())
    session = job.session(clock=clock)
    with session.bundle("long") as bundle:
        blob = bundle.properties(job.source())
        clock.advance(timedelta(seconds=3))
        assert bytes(bundle.read(blob, 0, 100)) == DATA[:100]
    assert tenant.token_requests == 2
    assert len({record["token"] for record in job.records("read")}) == 2
    assert {each.status for each in job.data_requests()} <= {200, 206}
    check_segments(job.trail, job=job.scope.job)


def test_a_revoked_app_stops_within_its_tokens_life(make_job: Callable[..., Job], short_tokens: None) -> None:
    """There is nothing that lives longer than the token: no key, no SAS."""
    cloud = make_job().cloud
    app = cloud.add_client()
    job = make_job(client=app.client_id, scoping="bearer")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    bundle = session.bundle("long")
    blob = bundle.properties(job.source())
    cloud.tenant.revoke(app)
    clock.advance(timedelta(seconds=3))
    with pytest.raises((IdentityRejected, AuditUnavailable)) as caught:
        bundle.read(blob, 0, 100)
    assert caught.value.diagnosis.code == "AADSTS7000112"


def test_a_claims_challenge_to_a_read_gets_one_new_token(bearer: Job) -> None:
    """Continuous access evaluation reaches the requests that carry the token; a second challenge is a refusal."""
    claims = base64.b64encode(b'{"access_token":{"nbf":{"essential":true}}}').decode()
    challenge = f'Bearer authorization_uri="https://login.example", error="insufficient_claims", claims="{claims}"'
    bearer.cloud.proxy.respond(
        401,
        "InvalidAuthenticationInfo",
        where=matching("GetBlob", container=bearer.raw.name),
        times=1,
        headers={"WWW-Authenticate": challenge},
    )
    assert read_blob(bearer.session(), bearer) == DATA
    assert bearer.cloud.tenant.token_requests == 2
    first, second = bearer.records("token_acquired")
    assert [record["token"] for record in bearer.records("read")] == [first["token"], second["token"]]
    bearer.check_unsealed()


def rewritten(job: Job, change: Callable[[dict[str, Any]], object]) -> Files:
    """The sealed trail with its records changed, chained again and sealed again."""
    files = {name: job.trail.read(name) for name in job.trail.names()}
    seal = json.loads(files.pop(SEAL_NAME))
    for entry in seal["segments"]:
        lines, prev = [], "0" * 64
        for line in files[entry["segment"]].splitlines():
            record = json.loads(line)
            change(record)
            lines.append(json.dumps(record | {"prev": prev}, separators=(",", ":")).encode())
            prev = hashlib.sha256(lines[-1]).hexdigest()
        files[entry["segment"]] = b"".join(line + b"\n" for line in lines)
        entry |= {"bytes": len(files[entry["segment"]]), "head": prev}
    files[SEAL_NAME] = json.dumps(seal, separators=(",", ":")).encode() + b"\n"
    return Files(files)


TAMPERED: dict[str, tuple[str, dict[str, Any]]] = {
    "another token": ("read", {"token": "token-of-somebody"}),
    "another token of a commit": ("committed", {"token": "token-of-somebody"}),
    "a token of another service": ("token_acquired", {"audience": "https://graph.microsoft.com"}),
    "a token that had ended": ("token_acquired", {"expires": "2020-01-01T00:00:00.000000Z"}),
    "a scoping that sounds better": ("segment_opened", {"scoping": "sas"}),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_token_is_found(bearer: Job, name: str) -> None:
    """Even by who chains and seals everything again: an access needs the token that it presented."""
    kind, changed = TAMPERED[name]
    session = bearer.session()
    read_blob(session, bearer)
    write_blob(session, bearer)
    bearer.seal_and_verify(session)
    verify(rewritten(bearer, lambda record: None))
    with pytest.raises(TrailBroken, match="rule 12: "):
        verify(rewritten(bearer, lambda record: record.update(changed) if record["kind"] == kind else None))
