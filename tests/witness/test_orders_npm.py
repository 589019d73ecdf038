"""`pipelines.orders` end to end with oidc-provider or emulate in place of the local tenant, or beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud
from tests.identity.leaks import everything_in
from tests.identity.test_application import Made
from tests.pipelines.conftest import Shop
from tests.witness.conftest import ENTRAS
from tests.witness.npm_servers import Emulate, EmulateFront, OidcProvider, Registered, Seeded
from tests.witness.test_orders import (
    SHORT_LIFE_S,
    Job,
    claims_of,
    ends_when_it_is_revoked,
    goes_on_with_the_next_token,
)

pytestmark = [pytest.mark.witness, pytest.mark.long, pytest.mark.xdist_group("npm witnesses")]
ProviderJob = Job[OidcProvider, Registered]


@pytest.fixture(scope="module")
def brief_provider(beam_entra_cloud: LocalCloud) -> Iterator[OidcProvider]:
    """Its tokens live for some seconds."""
    with OidcProvider(beam_entra_cloud.certificates, issuer=ENTRAS, token_life_s=SHORT_LIFE_S) as up:
        yield up


@pytest.fixture
def brief(shop: Shop, brief_provider: OidcProvider) -> ProviderJob:
    """A client there."""
    return Job(shop=shop, emulator=brief_provider, app=brief_provider.register_app())


def test_a_client_secret(shop: Shop, provider: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SAS, with oidc-provider's tokens and no proxy; the trail names the app and the token."""
    job: ProviderJob = Job(shop=shop, emulator=provider, app=provider.register_app())
    secret = job.app.add_secret()
    monkeypatch.setenv("ORDERS_SECRET", secret.reveal())
    job.run("client_secret", client_secret="env:ORDERS_SECRET")
    (record,) = job.tokens()
    assert (record["oid"], record["appid"], record["tenant"], record["source"]) == (
        job.app.client_id,
        job.app.client_id,
        provider.tenant_id,
        "client_secret",
    )
    assert record["uti"]
    written = [path.read_bytes() for path in (shop.folder / "trails").rglob("*") if path.is_file()]
    assert not any(secret.reveal().encode() in text for text in [*written, shop.report_file.read_bytes()])


def test_a_certificate(shop: Shop, provider: OidcProvider, tmp_path: Path) -> None:
    """The assertion that MSAL signs is what RFC 7523 wants: oidc-provider checks all of it."""
    made = Made.new()
    job: ProviderJob = Job(shop=shop, emulator=provider, app=provider.register_app(certificate=made.public))
    write_private(tmp_path / "certificate.pem", made.pem())
    job.run("certificate", certificate=f"file:{tmp_path / 'certificate.pem'}")
    assert [record["source"] for record in job.tokens()] == ["certificate"]


def test_tokens_that_end_before_the_job(brief: ProviderJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is slower than a token lives: the job goes on with the next one."""
    monkeypatch.setenv("ORDERS_SECRET", brief.app.add_secret().reveal())
    goes_on_with_the_next_token(brief)


def test_a_client_that_is_removed_in_the_middle(brief: ProviderJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends with one clear refusal, and has written nothing that anybody could take for an outcome."""
    monkeypatch.setenv("ORDERS_SECRET", brief.app.add_secret().reveal())
    ends_when_it_is_revoked(brief, brief.app.remove, "invalid_client")


def test_a_client_secret_at_emulate(shop: Shop, emulate_front: EmulateFront, monkeypatch: pytest.MonkeyPatch) -> None:
    """By SAS, with tokens that the front has made whole."""
    emulate_front.whole = True
    job: Job[Emulate, Seeded] = Job(shop=shop, emulator=emulate_front.emulate, app=emulate_front.emulate.app)
    monkeypatch.setenv("ORDERS_SECRET", job.app.add_secret().reveal())
    job.run("client_secret", client_secret="env:ORDERS_SECRET")
    (record,) = job.tokens()
    assert record["uti"] in {claims_of(each)["uti"] for each in emulate_front.issued}


# ---------------------------------------------------------------- federated with another provider


def federated(outside: OidcProvider, app: Registered, shop: Shop) -> dict[str, str]:
    """The manifest's settings of a job that is a client of that provider."""
    return {
        "assertion_from": "oidc",
        "oidc_endpoint": outside.token_url,
        "oidc_client": app.client_id,
        "oidc_client_secret": "env:PROVIDER_SECRET",
        "assertion_ca_file": str(shop.cloud.ca_file),
    }


@pytest.fixture
def at_outside(outside: OidcProvider, monkeypatch: pytest.MonkeyPatch) -> Registered:
    """A client there, whose secret is in the environment."""
    app = outside.register_app(method="client_secret_basic")
    monkeypatch.setenv("PROVIDER_SECRET", app.add_secret().reveal())
    return app


def test_another_providers_client(shop: Shop, outside: OidcProvider, at_outside: Registered) -> None:
    """Its token is the assertion: the tenant finds the provider's keys by discovery, and believes what they sign."""
    tenant = shop.cloud.tenant
    job = Job(shop=shop, emulator=tenant, app=tenant.register_app())
    job.app.add_federated_credential(outside.issuer, at_outside.client_id)
    job.run("federated", **federated(outside, at_outside, shop))
    (record,) = job.tokens()
    assert (record["source"], record["appid"]) == ("federated:oidc", job.app.client_id)
    assert [issued.client for issued in tenant.issued] == [job.app.client_id]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("nothing", ""),
        ("the secret", "HTTP 401"),
        ("the client is removed", "HTTP 401"),
        ("the subject", "AADSTS700213"),
        ("the issuer", "AADSTS700211"),
        ("the audience", "AADSTS700212"),
    ],
)
def test_what_another_providers_client_is_told(
    shop: Shop,
    outside: OidcProvider,
    at_outside: Registered,
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
    says: str,
) -> None:
    """The provider and the tenant look at different things, and each refusal says whose it is."""
    cloud = shop.cloud
    app = cloud.tenant.register_app()
    app.add_federated_credential(
        outside.issuer + ("/other" if wrong == "the issuer" else ""),
        "another" if wrong == "the subject" else at_outside.client_id,
        **({"audience": "api://another"} if wrong == "the audience" else {}),
    )
    secret = at_outside.add_secret().reveal()
    if wrong == "the secret":
        secret = "a-guess-that-is-wrong"
        monkeypatch.setenv("PROVIDER_SECRET", secret)
    if wrong == "the client is removed":
        at_outside.remove()
    identity = IdentitySettings(
        tenant=cloud.tenant_id,
        client=app.client_id,
        authority=cloud.authority,
        ca_file=str(cloud.ca_file),
        credential="federated",
        settings=federated(outside, at_outside, shop),
    )
    source = EntraSource(identity, clock=utc_now)
    if not says:
        token = source.acquire(STORAGE_AUDIENCE)
        assert (token.source, token.claims.appid) == ("federated:oidc", app.client_id)
        return
    with pytest.raises(IdentityRejected, match=says) as refused:
        source.acquire(STORAGE_AUDIENCE)
    assert secret not in everything_in(refused.value)
    if says == "HTTP 401":
        assert "invalid_client" in str(refused.value) or "client authentication failed" in str(refused.value)
        assert "oidc_client_secret" in refused.value.hint
