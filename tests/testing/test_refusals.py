"""What the local tenant refuses, with which code, in Entra's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import urllib3
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import ClientSecretCredential
from cryptography.hazmat.primitives.asymmetric import rsa

from beam_entra.errors import ConfigError
from beam_entra.testing.apps import App
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.tenant import STORAGE, LocalTenant

if TYPE_CHECKING:
    from tests.testing.conftest import ClientCertificate

SUBJECT = "system:serviceaccount:beam:orders"
SCOPE = f"{STORAGE}/.default"
JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
Post = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request that is refused. `-` leaves a field out; `form` is laid over a good request with a client secret."""

    name: str
    form: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""
    life: timedelta = timedelta(days=1)
    prepare: Callable[[LocalTenant, App], None] = lambda _tenant, _app: None
    code: int
    status: int
    error: str


CASES = [
    Case(name="unknown tenant", tenant="nobody.example", code=90002, status=400, error="invalid_request"),
    Case(name="unknown client", form={"client_id": "nobody"}, code=700016, status=400, error="unauthorized_client"),
    Case(name="wrong secret", form={"client_secret": "guess"}, code=7000215, status=401, error="invalid_client"),
    Case(name="expired secret", life=timedelta(seconds=-1), code=7000222, status=401, error="invalid_client"),
    Case(
        name="removed secret",
        prepare=lambda _, app: app.remove_secrets(),
        code=7000215,
        status=401,
        error="invalid_client",
    ),
    Case(
        name="disabled app",
        prepare=lambda tenant, app: tenant.revoke(app),
        code=7000112,
        status=400,
        error="unauthorized_client",
    ),
    Case(
        name="deleted app",
        prepare=lambda tenant, app: tenant.revoke(app, delete=True),
        code=700016,
        status=400,
        error="unauthorized_client",
    ),
    Case(name="no credential", form={"client_secret": "-"}, code=7000216, status=401, error="invalid_client"),
    Case(name="no grant type", form={"grant_type": "-"}, code=900144, status=400, error="invalid_request"),
    Case(name="no scope", form={"scope": "-"}, code=900144, status=400, error="invalid_request"),
    Case(name="no client", form={"client_id": "-"}, code=900144, status=400, error="invalid_request"),
    Case(name="other grant", form={"grant_type": "password"}, code=70003, status=400, error="unsupported_grant_type"),
    Case(
        name="unknown resource",
        form={"scope": "https://nobody.example/.default"},
        code=500011,
        status=400,
        error="invalid_resource",
    ),
    Case(
        name="scope without .default",
        form={"scope": f"{STORAGE}/user_impersonation"},
        code=1002012,
        status=400,
        error="invalid_scope",
    ),
    Case(
        name="assertion of no type",
        form={"client_secret": "-", "client_assertion": "a.b.c"},
        code=900144,
        status=400,
        error="invalid_request",
    ),
    Case(
        name="assertion that is no JWT",
        form={"client_secret": "-", "client_assertion": "a.b.c", "client_assertion_type": JWT_BEARER},
        code=50027,
        status=400,
        error="invalid_request",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_request_is_refused_as_entra_refuses_it(tenant: LocalTenant, post: Post, case: Case) -> None:
    """Status, OAuth error and code are Entra's; the record has the code, and no token is issued."""
    app = tenant.register_app()
    form = {"client_id": app.client_id, "client_secret": app.add_secret(life=case.life).reveal(), **case.form}
    case.prepare(tenant, app)
    url = tenant.token_url.replace(tenant.tenant_id, case.tenant) if case.tenant else ""
    reply = post(url=url, **form)
    assert (reply.code, reply.status, reply.json["error"]) == (case.code, case.status, case.error)
    assert tenant.requests[-1].outcome == f"AADSTS{case.code}"
    assert not tenant.issued


def test_a_refusal_has_entras_form(tenant: LocalTenant, post: Post) -> None:
    """Every field, the ids, the time, and the correlation id that the client sent."""
    app = tenant.register_app()
    sent = {"client-request-id": "11111111-2222-4333-8444-555555555555"}
    reply = post(client_id=app.client_id, client_secret="guess", headers=sent)
    assert set(reply.json) == {
        "error",
        "error_description",
        "error_codes",
        "timestamp",
        "trace_id",
        "correlation_id",
        "error_uri",
    }
    assert reply.json["correlation_id"] == sent["client-request-id"]
    assert reply.json["error_uri"] == f"{tenant.authority}/error?code=7000215"
    assert reply.headers["x-ms-request-id"] == reply.json["trace_id"]
    assert re.fullmatch(
        r"AADSTS7000215: Invalid client secret provided\. .* Trace ID: [0-9a-f-]{36} Correlation ID: [0-9a-f-]{36} "
        r"Timestamp: \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ",
        reply.json["error_description"],
    )


def test_a_refusal_never_repeats_the_secret(tenant: LocalTenant, post: Post) -> None:
    """What was presented does not come back."""
    app = tenant.register_app()
    assert "guess-123" not in post(client_id=app.client_id, client_secret="guess-123").text


def test_only_post_is_taken(tenant: LocalTenant, http: urllib3.PoolManager) -> None:
    """A GET on the token endpoint gets AADSTS900561."""
    assert http.request("GET", tenant.token_url).json()["error_codes"] == [900561]


def test_discovery_of_an_unknown_tenant_is_refused(tenant: LocalTenant, http: urllib3.PoolManager) -> None:
    """Discovery and keys exist for this tenant alone."""
    for page in ("v2.0/.well-known/openid-configuration", "discovery/v2.0/keys"):
        reply = http.request("GET", f"{tenant.authority}/nobody/{page}")
        assert reply.status == 400
        assert reply.json()["error"] == "invalid_tenant"
        assert "Tenant 'nobody' not found" in reply.json()["error_description"]


def test_an_unreadable_basic_header_is_no_credential(tenant: LocalTenant, post: Post) -> None:
    """Something that is not base64 proves nothing."""
    app = tenant.register_app()
    assert post(client_id=app.client_id, headers={"Authorization": "Basic ???"}).code == 7000216
    assert post(client_id=app.client_id, headers={"Authorization": "Basic bm9jb2xvbg=="}).code == 7000216


def test_a_disabled_app_can_be_enabled_again(tenant: LocalTenant, post: Post) -> None:
    """Disabling is not deleting."""
    app = tenant.register_app()
    secret = app.add_secret().reveal()
    app.disable()
    assert post(client_id=app.client_id, client_secret=secret).code == 7000112
    app.enable()
    assert post(client_id=app.client_id, client_secret=secret).status == 200


def test_azure_identity_shows_the_refusal(tenant: LocalTenant, identity_options: dict[str, Any]) -> None:
    """The SDK finds Entra's description where it expects it."""
    app = tenant.register_app()
    with (
        ClientSecretCredential(tenant.tenant_id, app.client_id, "guess", **identity_options) as credential,
        pytest.raises(ClientAuthenticationError, match="AADSTS7000215: Invalid client secret provided"),
    ):
        credential.get_token(SCOPE)


# ---- assertions


def assert_refused(post: Post, client_id: str, assertion: str, code: int) -> Any:
    """Present an assertion that is refused with `code`."""
    reply = post(client_id=client_id, client_assertion=assertion, client_assertion_type=JWT_BEARER)
    assert reply.code == code, reply.text
    return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Federated:
    """An assertion that does not fit the federated credential for SUBJECT at the default audience."""

    name: str
    subject: str = SUBJECT
    sign: Mapping[str, Any] = field(default_factory=dict)
    code: int


FEDERATED = [
    Federated(name="other subject", subject="system:serviceaccount:beam:other", code=700213),
    Federated(name="subject in other case", subject=SUBJECT.upper(), code=700213),
    Federated(name="longer subject", subject=f"{SUBJECT}2", code=700213),
    Federated(name="other audience", sign={"audience": "api://other"}, code=700212),
    Federated(name="expired", sign={"life_s": -1}, code=700024),
    Federated(name="not valid yet", sign={"not_before_s": 60}, code=700024),
]


@pytest.mark.parametrize("case", FEDERATED, ids=lambda case: case.name)
def test_an_assertion_must_fit_the_federated_credential(
    tenant: LocalTenant, issuer: WorkloadIssuer, post: Post, case: Federated
) -> None:
    """Subject, audience and time of a rightly signed assertion are checked."""
    app = tenant.register_app()
    app.add_federated_credential(issuer.url, SUBJECT)
    assert_refused(post, app.client_id, issuer.assertion(case.subject, **case.sign).reveal(), case.code)


def test_an_issuer_must_be_registered(tenant: LocalTenant, issuer: WorkloadIssuer, post: Post) -> None:
    """An issuer that no credential names is refused, and never asked for its keys."""
    app = tenant.register_app()
    credential = app.add_federated_credential("https://other.example", SUBJECT)
    assert_refused(post, app.client_id, issuer.assertion(SUBJECT).reveal(), 700211)
    app.remove_federated_credential(credential)
    assert_refused(post, app.client_id, issuer.assertion(SUBJECT).reveal(), 700211)
    assert not issuer.fetches


def test_a_forged_signature_is_refused(tenant: LocalTenant, issuer: WorkloadIssuer, post: Post) -> None:
    """Right claims and the right `kid` do not help a wrong key."""
    app = tenant.register_app()
    app.add_federated_credential(issuer.url, SUBJECT)
    good = issuer.assertion(SUBJECT).reveal()
    forger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = jwt.decode(good, options={"verify_signature": False})
    forged = jwt.encode(claims, forger, algorithm="RS256", headers={"kid": jwt.get_unverified_header(good)["kid"]})
    assert_refused(post, app.client_id, forged, 700027)
    assert_refused(post, app.client_id, jwt.encode(claims, "", algorithm="none"), 700027)


def test_an_issuers_keys_are_kept_and_fetched_again_for_a_new_one(
    tenant: LocalTenant, issuer: WorkloadIssuer, post: Post
) -> None:
    """Two assertions cost one fetch; a rotated key costs one more, and works at once."""
    app = tenant.register_app()
    app.add_federated_credential(issuer.url, SUBJECT)

    def present() -> int:
        text = issuer.assertion(SUBJECT).reveal()
        status: int = post(client_id=app.client_id, client_assertion=text, client_assertion_type=JWT_BEARER).status
        return status

    assert (present(), present()) == (200, 200)
    assert list(issuer.fetches).count("/keys") == 1
    issuer.rotate_keys()
    assert present() == 200
    assert list(issuer.fetches).count("/keys") == 2


def test_an_issuer_that_cannot_be_asked_is_refused(
    tenant: LocalTenant, certificates: RunCertificates, post: Post
) -> None:
    """When the issuer is down Entra cannot check, and says so."""
    app = tenant.register_app()
    with WorkloadIssuer(certificates) as gone:
        app.add_federated_credential(gone.url, SUBJECT)
        assertion = gone.assertion(SUBJECT).reveal()
    assert_refused(post, app.client_id, assertion, 50166)


def test_an_issuer_of_an_unknown_authority_is_not_believed(tenant: LocalTenant, post: Post, tmp_path: Path) -> None:
    """An issuer whose certificate the tenant does not trust cannot be asked."""
    app = tenant.register_app()
    with WorkloadIssuer(RunCertificates.issue(tmp_path)) as stranger:
        app.add_federated_credential(stranger.url, SUBJECT)
        assert_refused(post, app.client_id, stranger.assertion(SUBJECT).reveal(), 50166)


def test_an_issuer_must_say_its_own_name(tenant: LocalTenant, issuer: WorkloadIssuer, post: Post) -> None:
    """A discovery document for another issuer, if only by a slash, is not that issuer's."""
    app = tenant.register_app()
    nearly = f"{issuer.url}/"
    app.add_federated_credential(nearly, SUBJECT)
    claims = jwt.decode(issuer.assertion(SUBJECT).reveal(), options={"verify_signature": False}) | {"iss": nearly}
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert_refused(post, app.client_id, jwt.encode(claims, key, algorithm="RS256"), 50166)


def test_an_issuer_must_be_reached_over_https(tenant: LocalTenant, post: Post) -> None:
    """A plain http issuer is not even asked."""
    app = tenant.register_app()
    app.add_federated_credential("http://127.0.0.1:9", SUBJECT)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"iss": "http://127.0.0.1:9", "sub": SUBJECT, "aud": "api://AzureADTokenExchange", "exp": 1 << 40}
    assert_refused(post, app.client_id, jwt.encode(claims, key, algorithm="RS256"), 50166)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSigned:
    """An assertion that the app signs with its own, registered key."""

    name: str
    claims: Mapping[str, Any] = field(default_factory=dict)
    thumbprint: str = ""
    code: int


SELF_SIGNED = [
    SelfSigned(name="for another service", claims={"aud": "https://other.example/token"}, code=700023),
    SelfSigned(name="expired", claims={"exp": 1_000_000_000}, code=700024),
    SelfSigned(name="without an end", claims={"exp": None}, code=700024),
    SelfSigned(name="with an end that is no number", claims={"exp": "tomorrow"}, code=50027),
    SelfSigned(name="by an unknown certificate", thumbprint="AAAA", code=700027),
]


@pytest.mark.parametrize("case", SELF_SIGNED, ids=lambda case: case.name)
def test_an_assertion_of_the_apps_own_is_checked(
    tenant: LocalTenant, post: Post, client_certificate: ClientCertificate, case: SelfSigned
) -> None:
    """Key, audience and time of a self-signed assertion are checked."""
    app = tenant.register_app()
    app.add_certificate(client_certificate.public)
    claims = {"iss": app.client_id, "sub": app.client_id, "aud": tenant.token_url, "exp": 1 << 40} | case.claims
    claims = {name: value for name, value in claims.items() if value is not None}
    header = {"x5t": case.thumbprint or client_certificate.x5t}
    signed = jwt.encode(claims, client_certificate.key, algorithm="RS256", headers=header)
    assert_refused(post, app.client_id, signed, case.code)


def test_a_self_signed_assertion_for_several_audiences_is_taken(
    tenant: LocalTenant, post: Post, client_certificate: ClientCertificate
) -> None:
    """`aud` may be a list, as long as this tenant is in it."""
    app = tenant.register_app()
    app.add_certificate(client_certificate.public)
    claims = {"iss": app.client_id, "sub": app.client_id, "aud": ["x", tenant.token_url], "exp": 1 << 40}
    signed = jwt.encode(claims, client_certificate.key, algorithm="RS256", headers={"x5t": client_certificate.x5t})
    assert post(client_id=app.client_id, client_assertion=signed, client_assertion_type=JWT_BEARER).status == 200


def test_a_certificate_must_hold_an_rsa_key(tenant: LocalTenant, certificates: RunCertificates) -> None:
    """An elliptic key cannot sign RS256: it is refused where it is registered."""
    with pytest.raises(ConfigError, match="RSA"):
        tenant.register_app().add_certificate(certificates.server_file.read_bytes())
