"""The local tenant, asked by azure-identity itself, and what its tokens say."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import jwt
import pytest
import urllib3
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import (
    CertificateCredential,
    ClientAssertionCredential,
    ClientSecretCredential,
    WorkloadIdentityCredential,
)

from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.tenant import GRAPH, STORAGE, LocalTenant

if TYPE_CHECKING:
    from tests.testing.conftest import ClientCertificate

SUBJECT = "system:serviceaccount:beam:orders"
SCOPE = f"{STORAGE}/.default"
Post = Callable[..., Any]


def verified(tenant: LocalTenant, http: urllib3.PoolManager, token: str) -> dict[str, Any]:
    """The claims of a token whose signature the tenant's published keys confirm."""
    base = f"{tenant.authority}/{tenant.tenant_id}"
    document = http.request("GET", f"{base}/v2.0/.well-known/openid-configuration").json()
    keys = jwt.PyJWKSet.from_dict(http.request("GET", document["jwks_uri"]).json())
    header = jwt.get_unverified_header(token)
    assert header["alg"] == "RS256"
    claims: dict[str, Any] = jwt.decode(token, keys[header["kid"]], algorithms=["RS256"], options={"verify_aud": False})
    return claims


def test_a_client_secret_gets_a_token(
    tenant: LocalTenant, http: urllib3.PoolManager, identity_options: dict[str, Any]
) -> None:
    """ClientSecretCredential gets a token whose claims and signature are right."""
    app = tenant.register_app(roles=["Storage.Use"])
    secret = app.add_secret()
    with ClientSecretCredential(tenant.tenant_id, app.client_id, secret.reveal(), **identity_options) as credential:
        token = credential.get_token(SCOPE)
    claims = verified(tenant, http, token.token)
    assert claims["iss"] == f"https://sts.windows.net/{tenant.tenant_id}/"
    assert claims["aud"] == STORAGE
    assert claims["appid"] == app.client_id
    assert claims["oid"] == claims["sub"] == app.object_id
    assert (claims["tid"], claims["ver"], claims["idtyp"]) == (tenant.tenant_id, "1.0", "app")
    assert claims["roles"] == ["Storage.Use"]
    assert claims["nbf"] == claims["iat"] < claims["exp"]
    assert tenant.requests[-3].grant == "secret"


def test_a_federated_assertion_gets_a_token(
    tenant: LocalTenant, issuer: WorkloadIssuer, http: urllib3.PoolManager, identity_options: dict[str, Any]
) -> None:
    """ClientAssertionCredential gets a token for an outside issuer's assertion."""
    app = tenant.register_app()
    app.add_federated_credential(issuer.url, SUBJECT)
    with ClientAssertionCredential(
        tenant.tenant_id, app.client_id, lambda: issuer.assertion(SUBJECT).reveal(), **identity_options
    ) as credential:
        claims = verified(tenant, http, credential.get_token(SCOPE).token)
    assert claims["appid"] == app.client_id
    assert "roles" not in claims
    assert {request.grant for request in tenant.requests if request.kind == "token"} == {"federated"}


def test_a_workload_identity_gets_a_token(
    tenant: LocalTenant, issuer: WorkloadIssuer, identity_options: dict[str, Any], tmp_path: Path
) -> None:
    """WorkloadIdentityCredential reads the assertion file that the issuer writes."""
    app = tenant.register_app()
    app.add_federated_credential(issuer.url, SUBJECT)
    issuer.write_assertion_file(tmp_path / "assertion", SUBJECT)
    with WorkloadIdentityCredential(
        tenant_id=tenant.tenant_id,
        client_id=app.client_id,
        token_file_path=str(tmp_path / "assertion"),
        **identity_options,
    ) as credential:
        assert credential.get_token(SCOPE).token == tenant.issued[-1].token.reveal()


def test_a_certificate_gets_a_token(
    tenant: LocalTenant, identity_options: dict[str, Any], client_certificate: ClientCertificate
) -> None:
    """CertificateCredential signs its own assertion; a removed certificate is refused."""
    app = tenant.register_app()
    registered = app.add_certificate(client_certificate.public)
    options = identity_options | {"certificate_data": client_certificate.private + client_certificate.public}
    with CertificateCredential(tenant.tenant_id, app.client_id, **options) as credential:
        assert credential.get_token(SCOPE).token
    app.remove_certificate(registered)
    with (
        CertificateCredential(tenant.tenant_id, app.client_id, **options) as credential,
        pytest.raises(ClientAuthenticationError, match="AADSTS700027"),
    ):
        credential.get_token(SCOPE)
    assert [request.outcome for request in tenant.requests if request.kind == "token"] == ["issued", "AADSTS700027"]


def test_instance_discovery_finds_the_tenant_itself(tenant: LocalTenant, http: urllib3.PoolManager) -> None:
    """The instance page points to the tenant's own discovery document."""
    page = http.request("GET", f"{tenant.authority}/common/discovery/instance?api-version=1.1").json()
    assert page["tenant_discovery_endpoint"].startswith(f"{tenant.authority}/{tenant.tenant_id}/")
    assert page["metadata"][0]["aliases"] == [tenant.authority.removeprefix("https://")]
    assert http.request("GET", page["tenant_discovery_endpoint"]).json()["token_endpoint"] == tenant.token_url
    assert [request.kind for request in tenant.requests] == ["instance", "discovery"]


def test_a_secret_may_come_in_the_authorization_header(tenant: LocalTenant, post: Post) -> None:
    """HTTP Basic works, with both parts form-encoded as RFC 6749 has it."""
    app = tenant.register_app()
    pair = f"{quote_plus(app.client_id)}:{quote_plus(app.add_secret().reveal())}"
    reply = post(headers={"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"})
    assert reply.status == 200
    assert tenant.requests[-1].grant == "basic"
    assert tenant.requests[-1].client == app.client_id


def test_the_answer_has_entras_shape(tenant: LocalTenant, post: Post) -> None:
    """Fields and headers of a success; `refresh_in` only when it is set."""
    tenant.token_life_s = 7
    app = tenant.register_app()
    secret = app.add_secret().reveal()
    reply = post(client_id=app.client_id, client_secret=secret)
    assert set(reply.json) == {"token_type", "expires_in", "ext_expires_in", "access_token"}
    assert (reply.json["token_type"], reply.json["expires_in"], reply.json["ext_expires_in"]) == ("Bearer", 7, 7)
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.headers["x-ms-request-id"]
    assert reply.headers["Date"]
    tenant.refresh_in_s = 3
    assert post(client_id=app.client_id, client_secret=secret).json["refresh_in"] == 3


def test_tokens_live_by_the_tenants_clock(certificates: RunCertificates, http: urllib3.PoolManager) -> None:
    """A token expires its life after the clock's now, and is backdated by five minutes as Entra's are."""
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    with LocalTenant(certificates, tenant_id="a-tenant", token_life_s=60, clock=clock) as tenant:
        app = tenant.register_app("an-app")
        form = {"grant_type": "client_credentials", "scope": SCOPE, "client_id": "an-app"}
        form["client_secret"] = app.add_secret().reveal()
        http.request("POST", tenant.token_url, fields=form, encode_multipart=False)
        issued = tenant.issued[-1]
    assert issued.expires == clock() + timedelta(seconds=60)
    assert issued.claims["exp"] - issued.claims["iat"] == 360
    assert issued.claims["tid"] == "a-tenant"


def test_no_two_tokens_are_the_same(tenant: LocalTenant, post: Post) -> None:
    """`uti` is new in each, so that an audit can tell two tokens of one second apart."""
    app = tenant.register_app()
    secret = app.add_secret().reveal()
    for _ in range(3):
        post(client_id=app.client_id, client_secret=secret)
    assert len({issued.claims["uti"] for issued in tenant.issued}) == 3


def test_other_audiences_have_their_own_tokens(tenant: LocalTenant, post: Post) -> None:
    """Graph is known from the start; the list of resources can be changed while it serves."""
    app = tenant.register_app()
    secret = app.add_secret().reveal()
    assert post(client_id=app.client_id, client_secret=secret, scope=f"{GRAPH}/.default").status == 200
    assert tenant.issued[-1].audience == GRAPH
    tenant.resources.append("api://orders")
    assert post(client_id=app.client_id, client_secret=secret, scope="api://orders/.default").status == 200
    tenant.resources.remove(GRAPH)
    assert post(client_id=app.client_id, client_secret=secret, scope=f"{GRAPH}/.default").code == 500011


def test_a_domain_names_the_tenant_too(certificates: RunCertificates, http: urllib3.PoolManager) -> None:
    """A manifest may name the tenant by its domain; the tokens carry the id."""
    with LocalTenant(certificates, domains=["contoso.onmicrosoft.com"]) as tenant:
        app = tenant.register_app()
        form = {"grant_type": "client_credentials", "scope": SCOPE, "client_id": app.client_id}
        form["client_secret"] = app.add_secret().reveal()
        url = f"{tenant.authority}/Contoso.onmicrosoft.com/oauth2/v2.0/token"
        assert http.request("POST", url, fields=form, encode_multipart=False).status == 200
        assert tenant.issued[-1].claims["tid"] == tenant.tenant_id


@pytest.mark.parametrize("keep_old", [True, False], ids=["old key kept", "old key withdrawn"])
def test_signing_keys_rotate(tenant: LocalTenant, http: urllib3.PoolManager, post: Post, keep_old: bool) -> None:
    """New tokens carry a new `kid`; an old token verifies for as long as its key is published."""
    app = tenant.register_app()
    secret = app.add_secret().reveal()
    post(client_id=app.client_id, client_secret=secret)
    tenant.rotate_keys(keep_old=keep_old)
    post(client_id=app.client_id, client_secret=secret)
    old, new = (issued.token.reveal() for issued in tenant.issued)
    assert verified(tenant, http, new)
    if keep_old:
        assert verified(tenant, http, old)
    else:
        with pytest.raises(KeyError):
            verified(tenant, http, old)


def test_requests_are_recorded_and_can_be_waited_for(tenant: LocalTenant, post: Post) -> None:
    """A record says what was asked, by whom, how and with what outcome; `clear` forgets."""
    app = tenant.register_app()
    post(client_id=app.client_id, client_secret=app.add_secret().reveal())
    (record,) = tenant.wait_for(lambda requests: any(request.outcome == "issued" for request in requests))
    assert (record.kind, record.client, record.grant, record.scope) == ("token", app.client_id, "secret", SCOPE)
    assert tenant.token_requests == 1
    tenant.clear()
    assert (tenant.token_requests, len(tenant.issued)) == (0, 0)


def test_secrets_are_kept_for_a_search(tenant: LocalTenant, post: Post) -> None:
    """Every token and client secret is known, also those of an app that was deleted; none shows in a repr."""
    app = tenant.register_app()
    secret = app.add_secret()
    token = post(client_id=app.client_id, client_secret=secret.reveal()).json["access_token"]
    tenant.revoke(app, delete=True)
    assert {known.reveal() for known in tenant.secrets} == {secret.reveal(), token}
    assert token not in repr(tenant.issued[-1])


def test_pages_that_are_not_there_are_404(tenant: LocalTenant, http: urllib3.PoolManager) -> None:
    """What Entra has and we have not is a plain 404, and recorded."""
    assert http.request("GET", f"{tenant.authority}/{tenant.tenant_id}/oauth2/v2.0/authorize").status == 404
    assert tenant.requests[-1].outcome == "404"
