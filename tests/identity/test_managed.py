"""Managed identity against a metadata service and App Service's endpoint, both real servers."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError, IdentityRejected, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource, check_credential
from beam_entra.testing.https import Answer
from beam_entra.testing.local import DEFAULT_SUBJECT, LocalCloud
from tests.identity.hosts import AppService, Imds, identity_of, plain, said
from tests.identity.leaks import everything_in

OBJECT = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
RESOURCE = (
    "/subscriptions/6f1f7a52-0f0a-4b5e-8a53-3a2c1c6d9e11/resourceGroups/jobs/providers"
    "/Microsoft.ManagedIdentity/userAssignedIdentities/orders"
)
NOBODY = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of a platform in the environment."""
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def imds(beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, elsewhere: None) -> Iterator[Imds]:
    """A machine in Azure."""
    host = Imds(beam_entra_cloud)
    with plain(host) as url:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", url)
        yield host


@pytest.fixture
def app_service(beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, elsewhere: None) -> Iterator[AppService]:
    """An app in App Service."""
    host = AppService(beam_entra_cloud)
    with plain(host) as url:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", host.header)
        yield host


@dataclass(frozen=True)
class Assigned:
    """Which identity is meant, and what the metadata service is asked."""

    settings: dict[str, str]
    asked: tuple[str, str]


ASSIGNED = {
    "user-assigned, by the manifest's client": Assigned({}, ("client_id", "")),
    "user-assigned, by object id": Assigned({"object_id": OBJECT}, ("object_id", OBJECT)),
    "user-assigned, by resource id": Assigned({"resource_id": RESOURCE}, ("msi_res_id", RESOURCE)),
    "system-assigned": Assigned({"assigned": "system"}, ("system", "")),
}


@pytest.mark.parametrize("case", ASSIGNED.values(), ids=ASSIGNED)
def test_an_identity_of_the_machine(beam_entra_cloud, imds, case):
    """The metadata service is asked once, for exactly that identity and audience; the token says who gave it."""
    name, wanted = case.asked
    wanted = wanted or (beam_entra_cloud.client_id if name == "client_id" else "")
    imds.assigned = {(name, wanted): beam_entra_cloud.client_id}
    identity = identity_of(beam_entra_cloud, "managed_identity", **case.settings)
    token = EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert (token.claims.appid, token.claims.audience) == (beam_entra_cloud.client_id, STORAGE_AUDIENCE)
    assert token.source == "managed_identity"
    assert len(imds.requests) == 1
    ids = {"client_id", "object_id", "msi_res_id", "mi_res_id"} & imds.last.query.keys()
    assert ids == ({name} - {"system"})
    assert 3500 < (token.expires - token.acquired).total_seconds() <= 3600


def test_each_attempt_asks_anew(beam_entra_cloud, imds):
    """MSAL's cache does not stand between the broker and the platform."""
    source = EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now)
    assert source.acquire(STORAGE_AUDIENCE).secret.reveal() != source.acquire(STORAGE_AUDIENCE).secret.reveal()
    assert len(imds.requests) == 2


def test_no_proxy_sees_a_metadata_request(beam_entra_cloud, imds, monkeypatch):
    """HTTP_PROXY is for the world outside the machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    token = EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.claims.appid == beam_entra_cloud.client_id


def test_it_does_not_turn_into_workload_identity(beam_entra_cloud, imds, monkeypatch):
    """In a pod where both are to be had, the manifest's word counts."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(beam_entra_cloud.assertion_file))
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", beam_entra_cloud.authority)
    monkeypatch.setenv("AZURE_TENANT_ID", beam_entra_cloud.tenant_id)
    monkeypatch.setenv("AZURE_CLIENT_ID", beam_entra_cloud.client_id)
    EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert len(imds.requests) == 1


def test_app_service(beam_entra_cloud, app_service):
    """Its endpoint wants the header that it put into the environment."""
    token = EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.claims.appid == beam_entra_cloud.client_id
    assert app_service.last.query["client_id"] == beam_entra_cloud.client_id
    assert app_service.last.query["api-version"] == "2019-08-01"


def test_app_service_without_the_identity(beam_entra_cloud, app_service):
    """It says which identity it does not know; the header stays out of the error."""
    identity = identity_of(beam_entra_cloud, "managed_identity", client=NOBODY)
    with pytest.raises(IdentityRejected, match="No User Assigned") as caught:
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert "assign the identity" in caught.value.hint
    assert app_service.header not in everything_in(caught.value)


def test_a_machine_of_azure_arc_whose_key_is_not_ours(beam_entra_cloud, monkeypatch, elsewhere):
    """Its agent names a key file, which only some of the machine's users can read."""
    host = Imds(beam_entra_cloud)
    challenge = "Basic realm=/var/opt/azcmagent/tokens/beam-entra-test.key"
    host.instead = Answer(status=401, headers={"WWW-Authenticate": challenge})
    with plain(host) as url:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/metadata/identity/oauth2/token")
        monkeypatch.setenv("IMDS_ENDPOINT", url)
        with pytest.raises(IdentityRejected, match=r"Azure Arc's agent .* cannot be read: No such file") as caught:
            EntraSource(identity_of(beam_entra_cloud, "managed_identity", assigned="system"), clock=utc_now).acquire(
                STORAGE_AUDIENCE
            )
    assert "himds" in caught.value.hint


def test_app_service_repeats_its_header(beam_entra_cloud, app_service, monkeypatch):
    """It is a secret that looks like an id."""
    monkeypatch.setenv("IDENTITY_HEADER", NOBODY)
    app_service.instead = said(401, {"message": f"the header {NOBODY} is wrong"})
    with pytest.raises(IdentityRejected) as caught:
        EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert "the header [redacted] is wrong" in caught.value.message


@dataclass(frozen=True)
class Trouble:
    """What the metadata service answers, and what becomes of it."""

    answer: Answer
    kind: type[Exception]
    says: str
    retry_after_s: float | None = None


NOT_FOUND = {"error": "invalid_request", "error_description": "Identity not found"}
TROUBLE = {
    "no such identity": Trouble(said(400, NOT_FOUND), IdentityRejected, "HTTP 400: Identity not found"),
    "throttled": Trouble(said(429, {}, Retry_After="7"), IdentityUnavailable, "HTTP 429", 7),
    "updating": Trouble(Answer(status=410), IdentityUnavailable, "HTTP 410"),
    "broken": Trouble(Answer(status=500, body=b"<html>"), IdentityUnavailable, "HTTP 500"),
    "no token": Trouble(said(200, {"hello": "world"}), IdentityUnavailable, "something that is no token"),
    "no JSON": Trouble(Answer(body=b"<html>Sign in"), IdentityUnavailable, "something that is no token"),
    "nested too deep": Trouble(Answer(body=b"[" * 100_000), IdentityUnavailable, "something that is no token"),
    "no life": Trouble(
        said(200, {"access_token": "opaque-and-short", "expires_in": "soon"}),
        IdentityUnavailable,
        "something that is no token",
    ),
    "elsewhere": Trouble(Answer(status=302, headers={"Location": "http://127.0.0.1:9/"}), IdentityRejected, "HTTP 302"),
}


@pytest.mark.parametrize("case", TROUBLE.values(), ids=TROUBLE)
def test_no_token_from_the_machine(beam_entra_cloud, imds, case, caplog):
    """What may pass is unavailable, the rest rejected; asked once, told as whom, and what to do."""
    imds.instead = case.answer
    with caplog.at_level(logging.DEBUG), pytest.raises(case.kind) as caught:
        EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    error = caught.value
    assert case.says in error.message
    assert error.diagnosis.retry_after_s == case.retry_after_s
    assert beam_entra_cloud.client_id in error.diagnosis.identity
    assert error.diagnosis.tried.endswith("by managed_identity")
    assert error.hint
    assert len(imds.requests) == 1
    assert "opaque-and-short" not in caplog.text + everything_in(error)


def test_not_in_azure(beam_entra_cloud, monkeypatch, elsewhere):
    """Where nobody answers, the error says that managed identities are Azure's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{port}")
    with pytest.raises(IdentityUnavailable, match="does not answer") as caught:
        EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert "workers in Azure" in caught.value.hint


def test_a_metadata_service_that_hangs(beam_entra_cloud, monkeypatch, elsewhere):
    """It is given up after the read timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv(
            "AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{listener.getsockname()[1]}"
        )
        source = EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now, read_timeout_s=0.2)
        with pytest.raises(IdentityUnavailable, match="ReadTimeoutError"):
            source.acquire(STORAGE_AUDIENCE)


def test_a_token_of_somebody_else_is_not_given_out(beam_entra_cloud, imds):
    """A machine with one user-assigned identity gives that one's token when asked for the machine's own."""
    other = beam_entra_cloud.add_client()
    other.add_federated_credential(beam_entra_cloud.issuer.url, DEFAULT_SUBJECT)
    imds.assigned = {("system", ""): other.client_id}
    identity = identity_of(beam_entra_cloud, "managed_identity", assigned="system")
    with pytest.raises(IdentityRejected) as caught:
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert f"gave a token of client {other.client_id}" in caught.value.message
    assert beam_entra_cloud.find_leaks(everything_in(caught.value)) == []


def test_a_token_of_another_tenant_is_not_given_out(beam_entra_cloud, imds):
    """A machine of another directory is not the manifest's."""
    identity = identity_of(beam_entra_cloud, "managed_identity", tenant=NOBODY)
    with pytest.raises(IdentityRejected, match=f"gave a token of tenant {beam_entra_cloud.tenant_id}"):
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)


def test_logs_hold_no_token(beam_entra_cloud, imds, caplog):
    """With every logger at DEBUG."""
    with caplog.at_level(logging.DEBUG):
        EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert caplog.records
    assert beam_entra_cloud.find_leaks(caplog.text) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"assigned": "user"}, "can only be system"),
        ({"assigned": "system", "object_id": OBJECT}, "takes one of"),
        ({"object_id": "orders"}, "object_id: is not a GUID"),
        ({"resource_id": "/subscriptions/x"}, "is not the id of a user-assigned identity"),
        ({"client_id": OBJECT}, "knows no setting client_id"),
    ],
)
def test_settings_that_will_not_do(beam_entra_cloud: LocalCloud, settings: dict[str, str], says: str) -> None:
    """Found at launch, without a network."""
    with pytest.raises(ConfigError, match=says) as caught:
        check_credential(identity_of(beam_entra_cloud, "managed_identity", **settings))
    assert caught.value.hint


def test_other_hosts_are_refused_in_words(beam_entra_cloud, monkeypatch, elsewhere):
    """Service Fabric, for one, wants a client that pins its certificate."""
    for name, value in {
        "IDENTITY_ENDPOINT": "https://127.0.0.1:9",
        "IDENTITY_HEADER": "x",
        "IDENTITY_SERVER_THUMBPRINT": "0" * 40,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(IdentityRejected, match="is not supported"):
        EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now).acquire(STORAGE_AUDIENCE)


