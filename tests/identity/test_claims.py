"""Continuous access evaluation, at Entra's side: what each source asks for, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError, IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import Imds, identity_of, plain
from tests.identity.test_application import Made
from tests.identity.test_sources import by_secret, federated

CLAIMS = {"access_token": {"nbf": {"essential": True, "value": "1772366400"}}}


def _by_file(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    write_private(folder / "secret", cloud.app.add_secret().reveal().encode())
    return by_secret(cloud, f"file:{folder / 'secret'}")


def _by_certificate(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    made = Made.new()
    write_private(folder / "certificate", made.pem())
    cloud.app.add_certificate(made.public)
    return identity_of(cloud, "certificate", certificate=f"file:{folder / 'certificate'}")


SOURCES: dict[str, Callable[[LocalCloud, Path], IdentitySettings]] = {
    "an assertion": lambda cloud, folder: federated(cloud),
    "a client secret": _by_file,
    "a certificate": _by_certificate,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_token_request_says_that_challenges_are_understood(beam_entra_cloud, tmp_path, source):
    """Client capability `cp1` is asked for, and Entra puts it into the token; a challenge's claims join it."""
    entra = EntraSource(SOURCES[source](beam_entra_cloud, tmp_path), clock=utc_now)
    entra.acquire(STORAGE_AUDIENCE)
    entra.acquire(STORAGE_AUDIENCE, claims=json.dumps(CLAIMS))
    asked = [json.loads(each.claims)["access_token"] for each in beam_entra_cloud.tenant.requests if each.claims]
    capability = {"xms_cc": {"values": ["CP1"]}}
    assert asked == [capability, capability | CLAIMS["access_token"]]
    assert [each.claims["xms_cc"] for each in beam_entra_cloud.tenant.issued] == [["cp1"]] * 2


def test_a_managed_identity_is_asked_again(beam_entra_cloud, monkeypatch):
    """IMDS takes no claims; what it gives anew is all there is to have, and no cache of ours is in between."""
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    host = Imds(beam_entra_cloud)
    with plain(host) as url:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", url)
        entra = EntraSource(identity_of(beam_entra_cloud, "managed_identity"), clock=utc_now)
        first = entra.acquire(STORAGE_AUDIENCE)
        second = entra.acquire(STORAGE_AUDIENCE, claims=json.dumps(CLAIMS))
    assert first.secret.reveal() != second.secret.reveal()
    assert len(host.requests) == 2


def test_a_developer_is_told_to_sign_in_again(beam_entra_cloud):
    """The Azure CLI takes no claims either, and says how to sign in with them."""
    entra = EntraSource(identity_of(beam_entra_cloud, "developer"), clock=utc_now)
    with pytest.raises(IdentityRejected, match="claims"):
        entra.acquire(STORAGE_AUDIENCE, claims=json.dumps(CLAIMS))


@pytest.mark.parametrize("claims", ["no JSON", "[]", '{"access_token": []}', '{"access_token": {"xms_cc": 3}}'])
def test_claims_without_sense_are_refused_by_the_tenant(beam_entra_cloud, claims):
    """As Entra refuses a request that is not properly formatted."""
    from urllib.parse import urlencode  # noqa: PLC0415 - here alone

    import urllib3  # noqa: PLC0415 - here alone

    form = {
        "grant_type": "client_credentials",
        "client_id": beam_entra_cloud.client_id,
        "scope": f"{STORAGE_AUDIENCE}/.default",
        "claims": claims,
    }
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file)) as pool:
        answer = pool.request(
            "POST",
            beam_entra_cloud.tenant.token_url,
            body=urlencode(form),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
    assert (answer.status, answer.json()["error_codes"]) == (400, [90023])


@pytest.mark.parametrize("name", ["AZURE_REGIONAL_AUTHORITY_NAME", "MSAL_FORCE_REGION"])
@pytest.mark.parametrize("source", ["a client secret", "a certificate"])
def test_the_environment_does_not_move_the_token_endpoint(beam_entra_cloud, tmp_path, monkeypatch, name, source):
    """A region there would send the secret to another host; it is refused, and nothing is sent."""
    identity = SOURCES[source](beam_entra_cloud, tmp_path)
    monkeypatch.setenv(name, "westeurope")
    with pytest.raises(ConfigError, match=f"the worker's environment has {name}") as caught:
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert f"unset {name}" in caught.value.hint
    assert len(beam_entra_cloud.tenant.requests) == 0


@pytest.mark.parametrize("name", ["AZURE_REGIONAL_AUTHORITY_NAME", "MSAL_FORCE_REGION"])
@pytest.mark.parametrize("source", ["a client secret", "a certificate"])
def test_an_empty_region_is_none(beam_entra_cloud, tmp_path, monkeypatch, name, source):
    """A variable that is set to nothing moves nothing."""
    identity = SOURCES[source](beam_entra_cloud, tmp_path)
    monkeypatch.setenv(name, "")
    token = EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.claims.appid == beam_entra_cloud.client_id
    assert beam_entra_cloud.tenant.token_requests == 1


@pytest.mark.parametrize("name", ["AZURE_REGIONAL_AUTHORITY_NAME", "MSAL_FORCE_REGION"])
def test_an_assertion_goes_to_the_manifests_authority_whatever_the_environment(beam_entra_cloud, monkeypatch, name):
    """azure-identity reads no region for assertions."""
    monkeypatch.setenv(name, "westeurope")
    token = EntraSource(federated(beam_entra_cloud), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.claims.appid == beam_entra_cloud.client_id
