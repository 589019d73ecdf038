"""Chains: in the manifest's order, on to the next only where a source is not to be had, then the same for good."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure.identity import ClientAssertionCredential, CredentialUnavailableError

from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError, IdentityRejected, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource, check_credential, register
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import DEFAULT_SUBJECT, LocalCloud
from tests.identity.hosts import identity_of
from tests.identity.leaks import everything_in

GRAPH = "https://graph.microsoft.com"
NOT_HERE = "BEAM_ENTRA_TEST_UNSET"


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with nothing: no metadata service, no AKS, no CLI."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://127.0.0.1:{port}")
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "AZURE_FEDERATED_TOKEN_FILE", NOT_HERE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def chain(cloud: LocalCloud, entries: str, **settings: str) -> EntraSource:
    """A source that is this chain."""
    identity = identity_of(cloud, "chain", chain=entries, **settings)
    return EntraSource(identity, clock=utc_now, connect_timeout_s=1, read_timeout_s=5)


def test_the_first_that_is_here_gives_the_token(beam_entra_cloud, nowhere):
    """What is not to be had is passed over: no variable, no metadata service, no CLI. The token has its name."""
    source = chain(
        beam_entra_cloud,
        "client_secret, workload_identity, managed_identity, developer, federated:file, certificate",
        client_secret=f"env:{NOT_HERE}",
        assertion_file=str(beam_entra_cloud.assertion_file),
        certificate="file:/nonexistent",
    )
    # assertion_file is workload_identity's, too
    assert source.acquire(STORAGE_AUDIENCE).source == "workload_identity"
    source = chain(
        beam_entra_cloud,
        "client_secret, managed_identity, developer:azd, developer, federated:file, certificate",
        client_secret=f"env:{NOT_HERE}",
        assertion_file=str(beam_entra_cloud.assertion_file),
        certificate="file:/nonexistent",
    )
    assert source.acquire(STORAGE_AUDIENCE).source == "federated:file"


def test_the_order_is_the_manifests(beam_entra_cloud, tmp_path):
    """Of two that are here, the first."""
    write_private(tmp_path / "secret", beam_entra_cloud.app.add_secret().reveal().encode())
    settings = {"client_secret": f"file:{tmp_path / 'secret'}", "assertion_file": str(beam_entra_cloud.assertion_file)}
    for entries in ("client_secret, federated:file", "federated:file, client_secret"):
        token = chain(beam_entra_cloud, entries, **settings).acquire(STORAGE_AUDIENCE)
        assert token.source == entries.partition(",")[0]


def test_a_refusal_ends_the_attempt(beam_entra_cloud, tmp_path):
    """Entra has said no to the first: the job does not try to be somebody else."""
    write_private(tmp_path / "secret", b"not-the-secret")
    source = chain(
        beam_entra_cloud,
        "client_secret, federated:file",
        client_secret=f"file:{tmp_path / 'secret'}",
        assertion_file=str(beam_entra_cloud.assertion_file),
    )
    with pytest.raises(IdentityRejected) as caught:
        source.acquire(STORAGE_AUDIENCE)
    assert caught.value.diagnosis.code == "AADSTS7000215"
    assert caught.value.diagnosis.tried.endswith("by client_secret")


def test_a_throttled_source_ends_the_attempt(beam_entra_cloud):
    """It is here, and busy: that is for the broker to wait out."""
    source = chain(
        beam_entra_cloud, "federated:file, developer", assertion_file=str(beam_entra_cloud.assertion_file)
    )
    beam_entra_cloud.tenant.throttle(3, times=1)
    with pytest.raises(IdentityUnavailable) as caught:
        source.acquire(STORAGE_AUDIENCE)
    assert caught.value.diagnosis.retry_after_s == 3
    assert source.acquire(STORAGE_AUDIENCE).source == "federated:file"


def test_a_secret_that_others_can_read_ends_the_attempt(beam_entra_cloud, tmp_path):
    """A mistake is not passed over in silence."""
    write_private(tmp_path / "secret", b"s")
    (tmp_path / "secret").chmod(0o644)
    source = chain(
        beam_entra_cloud,
        "client_secret, federated:file",
        client_secret=f"file:{tmp_path / 'secret'}",
        assertion_file=str(beam_entra_cloud.assertion_file),
    )
    with pytest.raises(ConfigError, match="others on the machine can read"):
        source.acquire(STORAGE_AUDIENCE)
    assert beam_entra_cloud.tenant.token_requests == 0


def test_who_it_was_it_stays(beam_entra_cloud, tmp_path, nowhere):
    """The source of the first token gives every later one, for every audience; while it is gone, there is none."""
    file, secret = tmp_path / "assertion", tmp_path / "secret"
    beam_entra_cloud.issuer.write_assertion_file(file, DEFAULT_SUBJECT)
    source = chain(
        beam_entra_cloud, "client_secret, federated:file", client_secret=f"file:{secret}", assertion_file=str(file)
    )
    assert source.acquire(STORAGE_AUDIENCE).source == "federated:file"
    write_private(secret, beam_entra_cloud.app.add_secret().reveal().encode())  # earlier in the chain, and here now
    assert source.acquire(GRAPH).source == "federated:file"
    file.unlink()
    with pytest.raises(IdentityRejected, match="cannot be read"):
        source.acquire(STORAGE_AUDIENCE)


def test_threads_settle_on_one(beam_entra_cloud):
    """Two first tokens, asked for at once, come from one source: who comes second waits for what the first finds."""
    calls, within, second = itertools.count(1), threading.Event(), threading.Event()

    @register("test_wavering")
    def _wavering(identity, connection):
        if next(calls) == 1:
            within.set()
            second.wait(0.5)  # nobody comes
            raise CredentialUnavailableError("not yet")
        second.set()
        assertion = beam_entra_cloud.issuer.assertion(DEFAULT_SUBJECT).reveal
        return ClientAssertionCredential(identity.tenant, identity.client, assertion, **connection)

    source = chain(
        beam_entra_cloud, "test_wavering, federated:file", assertion_file=str(beam_entra_cloud.assertion_file)
    )
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.acquire, STORAGE_AUDIENCE)
        assert within.wait(10)
        other = pool.submit(source.acquire, GRAPH)
        assert [first.result(20).source, other.result(20).source] == ["federated:file"] * 2


def test_none_is_here(beam_entra_cloud, nowhere):
    """The error tells of each what was missing; it is worth a retry because a metadata service may have been slow."""
    source = chain(beam_entra_cloud, "workload_identity, managed_identity, developer")
    with pytest.raises(IdentityUnavailable) as caught:
        source.acquire(STORAGE_AUDIENCE)
    error = caught.value
    assert error.message.startswith("no source of the chain is to be had here: workload_identity: ")
    for said in ("AZURE_FEDERATED_TOKEN_FILE, which is not set", "managed_identity: ", "developer: "):
        assert said in error.message
    assert error.diagnosis.tried.endswith("by workload_identity, then managed_identity, then developer")
    assert "for workload_identity: set AZURE_FEDERATED_TOKEN_FILE" in error.hint
    assert beam_entra_cloud.client_id in error.diagnosis.identity
    assert beam_entra_cloud.find_leaks(everything_in(error)) == []


def test_none_can_ever_be_here(beam_entra_cloud, nowhere):
    """Without any that may have been slow, a retry would not help."""
    with pytest.raises(IdentityRejected, match="no source of the chain"):
        chain(beam_entra_cloud, "workload_identity, developer").acquire(STORAGE_AUDIENCE)


WRONG = {
    "no list": ({}, "chain: is no list of sources"),
    "one": ({"chain": "developer"}, "chain: is no list of sources"),
    "an empty entry": ({"chain": "developer,, workload_identity"}, "chain: is no list of sources"),
    "a chain in a chain": ({"chain": "developer, chain"}, "chain: is no list of sources"),
    "twice": ({"chain": "developer, workload_identity, developer"}, "names a source twice"),
    "unknown": ({"chain": "developer, magic"}, "no credential source 'magic'"),
    "an unknown kind": ({"chain": "developer:gh, workload_identity"}, "knows no kind 'gh'"),
    "a setting is missing": ({"chain": "developer, client_secret"}, "'client_secret' needs client_secret"),
    "nobody's setting": ({"chain": "developer, workload_identity", "aws_region": "x"}, "knows no setting aws_region"),
    "a kind twice said": (
        {"chain": "developer, federated:gcp", "assertion_from": "aws"},
        "knows no setting assertion_from",
    ),
}


@pytest.mark.parametrize(("settings", "says"), WRONG.values(), ids=WRONG)
def test_a_chain_that_will_not_do(beam_entra_cloud, settings, says):
    """Found at launch."""
    with pytest.raises(ConfigError, match=says) as caught:
        check_credential(identity_of(beam_entra_cloud, "chain", **settings))
    assert caught.value.hint


def test_azd(beam_entra_cloud, tmp_path, monkeypatch):
    """The Azure Developer CLI is asked when the manifest says so, and never instead of the other."""
    token = chain(
        beam_entra_cloud, "federated:file, developer", assertion_file=str(beam_entra_cloud.assertion_file)
    ).acquire(STORAGE_AUDIENCE)
    answer = f'{{"token": "{token.secret.reveal()}", "expiresOn": "2099-01-01T00:00:00Z"}}'
    azd = tmp_path / "azd"
    azd.write_text(f"#!/bin/sh\ncase \"$*\" in *{beam_entra_cloud.tenant_id}*) echo '{answer}';; *) exit 1;; esac\n")
    azd.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    identity = identity_of(beam_entra_cloud, "developer", developer_cli="azd")
    assert EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE).source == "developer:azd"
    azd.unlink()
    with pytest.raises(IdentityRejected) as caught:
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert "azd auth login" in caught.value.hint
