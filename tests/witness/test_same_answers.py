"""The same client against the local tenant and entra-emulator: who deceives us, our stand-in or our memory of Entra?

Where the two differ, `Case.emulator` says how, and docs/witnesses.md why; there is no other difference.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
import urllib3
from cryptography.hazmat.primitives import hashes

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource
from beam_entra.testing.apps import App
from beam_entra.testing.certificates import write_private
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.keys import base64url
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.tenant import LocalTenant
from tests.identity.test_application import Made
from tests.witness.emulators import EmulatedApp, EntraEmulator
from tests.witness.npm_servers import Emulate, OidcProvider, Registered, Seeded

DOCS = Path(__file__).parents[2] / "docs" / "witnesses.md"
SUBJECT = "system:serviceaccount:beam:worker"
SCOPE = f"{STORAGE_AUDIENCE}/.default"
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_CODE = re.compile(r"AADSTS(\d+)")


@dataclass(frozen=True, kw_only=True)
class Client:
    """An app with a secret, a certificate and a federated credential, and where it asks for tokens."""

    directory: LocalTenant | EntraEmulator | OidcProvider | Emulate
    app: App | EmulatedApp | Registered | Seeded
    secret: str
    made: Made
    issuer: WorkloadIssuer
    ca_file: Path
    http: urllib3.PoolManager

    @property
    def base(self) -> str:
        return f"{self.directory.authority}/{self.directory.tenant_id}"

    @property
    def token_url(self) -> str:
        return self.directory.token_url

    def ask(self, *, tenant: str = "", method: str = "POST", **changed: str) -> urllib3.BaseHTTPResponse:
        """A client credentials request; a field that is empty is left out."""
        form = {"grant_type": "client_credentials", "client_id": self.app.client_id, "scope": SCOPE, **changed}
        url = self.token_url.replace(self.directory.tenant_id, tenant) if tenant else self.token_url
        return self.http.request(
            method,
            url,
            body=urlencode({name: value for name, value in form.items() if value}),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )

    def outside(self, subject: str = SUBJECT, **claims: Any) -> dict[str, str]:
        """The outside issuer's assertion."""
        return _asserted(self.issuer.assertion(subject, **claims).reveal())

    def forged(self) -> dict[str, str]:
        """An assertion with the outside issuer's name and key id, signed by somebody else."""
        genuine = self.issuer.assertion(SUBJECT).reveal()
        claims = jwt.decode(genuine, options={"verify_signature": False})
        return _asserted(jwt.encode(claims, self.made.key, "RS256", headers={"kid": _header(genuine)["kid"]}))

    def own(self, by: Made | None = None, *, audience: str = "", life_s: int = 300) -> dict[str, str]:
        """An assertion that the app signs with its certificate's key."""
        by, now, client = by or self.made, int(time.time()), self.app.client_id
        claims = {"iss": client, "sub": client, "aud": audience or self.token_url, "jti": str(uuid.uuid4())}
        times = {"nbf": min(now, now + life_s) - 10, "exp": now + life_s}
        thumbprint = base64url(by.certificate.fingerprint(hashes.SHA256()))
        return _asserted(jwt.encode({**claims, **times}, by.key, "PS256", headers={"x5t#S256": thumbprint}))

    def acquire(self, credential: str, **settings: str) -> AccessToken:
        """What a job does."""
        identity = IdentitySettings(
            tenant=self.directory.tenant_id,
            client=self.app.client_id,
            authority=self.directory.authority,
            ca_file=str(self.ca_file),
            credential=credential,
            settings=settings,
        )
        return EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)


def _asserted(text: str) -> dict[str, str]:
    return {"client_assertion": text, "client_assertion_type": _ASSERTION_TYPE}


def _header(token: str) -> dict[str, Any]:
    return jwt.get_unverified_header(token)


@pytest.fixture(scope="module")
def made() -> Made:
    """One certificate for the module: a key takes a while."""
    return Made.new()


@pytest.fixture(params=["local tenant", pytest.param("entra-emulator", marks=pytest.mark.witness)])
def client(request: pytest.FixtureRequest, beam_entra_cloud: LocalCloud, made: Made) -> Iterator[Client]:
    """An app of its own in each of the two."""
    local = request.param == "local tenant"
    directory: LocalTenant | EntraEmulator
    directory = beam_entra_cloud.tenant if local else request.getfixturevalue("emulator")
    app = directory.register_app()
    app.add_certificate(made.public)
    app.add_federated_credential(beam_entra_cloud.issuer.url, SUBJECT)
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False, timeout=10) as http:
        yield Client(
            directory=directory,
            app=app,
            secret=app.add_secret().reveal(),
            made=made,
            issuer=beam_entra_cloud.issuer,
            ca_file=beam_entra_cloud.ca_file,
            http=http,
        )


@dataclass(frozen=True)
class Said:
    """An answer, as far as a client acts on it; a code of 0 is none."""

    status: int
    error: str = ""
    code: int = 0

    @classmethod
    def of(cls, answer: urllib3.BaseHTTPResponse) -> Said:
        document = answer.json()
        error = document.get("error", "")
        code = _CODE.search(str(document.get("error_description", "")))
        return cls(answer.status, error if isinstance(error, str) else error["code"], int(code[1]) if code else 0)

    def __str__(self) -> str:
        return " ".join(filter(None, (str(self.status), self.error, f"AADSTS{self.code}" if self.code else "")))


TOKEN = Said(200)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request and its answer.

    Attributes:
        answer: Entra's, and so the local tenant's.
        emulator: entra-emulator's, where it is another.
    """

    ask: Callable[[Client], urllib3.BaseHTTPResponse]
    answer: Said
    emulator: Said | None = None


def _no_record(code: int) -> Said:
    return Said(401, "invalid_client", code)


CASES: Mapping[str, Case] = {
    "client secret": Case(ask=lambda c: c.ask(client_secret=c.secret), answer=TOKEN),
    "client secret of no app": Case(
        ask=lambda c: c.ask(client_secret="guessed"), answer=Said(401, "invalid_client", 7000215)
    ),
    "no credential at all": Case(
        ask=lambda c: c.ask(),
        answer=Said(401, "invalid_client", 7000216),
        emulator=Said(401, "invalid_client", 7000215),
    ),
    "unknown app": Case(
        ask=lambda c: c.ask(client_secret=c.secret, client_id=str(uuid.uuid4())),
        answer=Said(400, "unauthorized_client", 700016),
        emulator=Said(400, "unauthorized_client", 700038),
    ),
    "unknown tenant": Case(
        ask=lambda c: c.ask(client_secret=c.secret, tenant=str(uuid.uuid4())),
        answer=Said(400, "invalid_request", 90002),
    ),
    "unknown resource": Case(
        ask=lambda c: c.ask(client_secret=c.secret, scope="https://nobody.example/.default"),
        answer=Said(400, "invalid_resource", 500011),
    ),
    "a scope that is no /.default": Case(
        ask=lambda c: c.ask(client_secret=c.secret, scope=f"{STORAGE_AUDIENCE}/user_impersonation"),
        answer=Said(400, "invalid_scope", 1002012),
    ),
    "no scope": Case(
        ask=lambda c: c.ask(client_secret=c.secret, scope=""), answer=Said(400, "invalid_request", 900144)
    ),
    "no client id": Case(
        ask=lambda c: c.ask(client_secret=c.secret, client_id=""), answer=Said(400, "invalid_request", 900144)
    ),
    "no grant type": Case(
        ask=lambda c: c.ask(client_secret=c.secret, grant_type=""),
        answer=Said(400, "invalid_request", 900144),
        emulator=Said(400, "unsupported_grant_type", 70003),
    ),
    "another grant type": Case(
        ask=lambda c: c.ask(client_secret=c.secret, grant_type="magic"),
        answer=Said(400, "unsupported_grant_type", 70003),
    ),
    "GET": Case(
        ask=lambda c: c.ask(method="GET"),
        answer=Said(400, "invalid_request", 900561),
        emulator=Said(404, "not_found"),
    ),
    "federated assertion": Case(ask=lambda c: c.ask(**c.outside()), answer=TOKEN),
    "federated: no assertion type": Case(
        ask=lambda c: c.ask(**{**c.outside(), "client_assertion_type": ""}),
        answer=Said(400, "invalid_request", 900144),
    ),
    "federated: another subject": Case(
        ask=lambda c: c.ask(**c.outside("somebody else")), answer=Said(401, "invalid_client", 700213)
    ),
    "federated: another audience": Case(
        ask=lambda c: c.ask(**c.outside(audience="api://another")),
        answer=Said(401, "invalid_client", 700212),
        emulator=_no_record(700213),
    ),
    "federated: expired": Case(
        ask=lambda c: c.ask(**c.outside(life_s=-10)),
        answer=Said(401, "invalid_client", 700024),
        emulator=_no_record(700213),
    ),
    "federated: not valid yet": Case(
        ask=lambda c: c.ask(**c.outside(not_before_s=400)),
        answer=Said(401, "invalid_client", 700024),
        emulator=_no_record(700213),
    ),
    "federated: signed by another": Case(
        ask=lambda c: c.ask(**c.forged()),
        answer=Said(401, "invalid_client", 700027),
        emulator=_no_record(700213),
    ),
    "no JSON Web Token": Case(
        ask=lambda c: c.ask(**_asserted("a.b.c")),
        answer=Said(400, "invalid_request", 50027),
        emulator=Said(401, "invalid_client", 700027),
    ),
    "certificate": Case(ask=lambda c: c.ask(**c.own()), answer=TOKEN),
    "certificate of no app": Case(
        ask=lambda c: c.ask(**c.own(Made.new())), answer=Said(401, "invalid_client", 700027)
    ),
    "certificate: another audience": Case(
        ask=lambda c: c.ask(**c.own(audience="https://another.example/")),
        answer=Said(401, "invalid_client", 700023),
        emulator=Said(401, "invalid_client", 700027),
    ),
    "certificate: assertion expired": Case(
        ask=lambda c: c.ask(**c.own(life_s=-1000)),
        answer=Said(401, "invalid_client", 700024),
        emulator=Said(401, "invalid_client", 700027),
    ),
    "certificate: assertion expired for 30 s": Case(
        ask=lambda c: c.ask(**c.own(life_s=-30)),
        answer=Said(401, "invalid_client", 700024),
        emulator=TOKEN,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_answer(client: Client, name: str) -> None:
    """Status, error and AADSTS code; a refusal carries what a person needs to find it in Entra's log."""
    case = CASES[name]
    wanted = case.answer if isinstance(client.directory, LocalTenant) else case.emulator or case.answer
    answer = case.ask(client)
    assert Said.of(answer) == wanted
    document = answer.json()
    if wanted.code:
        assert document.keys() - {"error_uri"} == {
            "error",
            "error_codes",
            "error_description",
            "timestamp",
            "trace_id",
            "correlation_id",
        }
        for name_of in ("trace_id", "correlation_id", "timestamp"):
            assert document[name_of] in document["error_description"]
    elif wanted == TOKEN:
        assert document.keys() == {"access_token", "expires_in", "ext_expires_in", "token_type"}
        assert (document["token_type"], document["expires_in"], document["ext_expires_in"]) == ("Bearer", 3600, 3600)
    if answer.status != 404:
        assert "no-store" in answer.headers["Cache-Control"]
        assert answer.headers["Pragma"] == "no-cache"


def test_what_the_secret_is_refused_with(client: Client) -> None:
    """Both word it as Entra does, to the letter."""
    text = client.ask(client_secret="guessed").json()["error_description"]
    assert text.split(" Trace ID: ")[0] == (
        "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client "
        f"secret value, not the client secret ID, for a secret added to app '{client.app.client_id}'."
    )


def test_what_the_resource_is_refused_with(client: Client) -> None:
    """Likewise."""
    text = client.ask(client_secret=client.secret, scope="https://nobody.example/.default").json()["error_description"]
    assert text.split(" Trace ID: ")[0] == (
        "AADSTS500011: The resource principal named https://nobody.example was not found in the tenant named "
        f"{client.directory.tenant_id}. This can happen if the application has not been installed by the administrator "
        "of the tenant or consented to by any user in the tenant. You might have sent your authentication request to "
        "the wrong tenant."
    )


def test_the_discovery_document_leads_to_the_keys(client: Client) -> None:
    """What MSAL reads of it is there; a published key verifies the token's signature, and no other does."""
    document = client.http.request("GET", f"{client.base}/v2.0/.well-known/openid-configuration").json()
    assert document["token_endpoint"] == client.token_url
    assert document["authorization_endpoint"] == f"{client.base}/oauth2/v2.0/authorize"
    assert document["issuer"].startswith("https://")
    assert client.directory.tenant_id in document["issuer"]
    assert {"client_secret_post", "private_key_jwt"} <= {*document["token_endpoint_auth_methods_supported"]}
    published = client.http.request("GET", document["jwks_uri"]).json()["keys"]
    assert all(each["kty"] == "RSA" and each["use"] == "sig" and each["kid"] for each in published)
    token = client.ask(client_secret=client.secret).json()["access_token"]
    key = jwt.PyJWKSet.from_dict({"keys": published})[_header(token)["kid"]]
    assert _header(token)["alg"] == "RS256"
    jwt.decode(token, key, algorithms=["RS256"], audience=STORAGE_AUDIENCE)
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token, client.made.key.public_key(), algorithms=["RS256"], audience=STORAGE_AUDIENCE)


def test_the_discovery_document_of_an_unknown_tenant(client: Client) -> None:
    """There is none."""
    base = client.base.replace(client.directory.tenant_id, str(uuid.uuid4()))
    answer = client.http.request("GET", f"{base}/v2.0/.well-known/openid-configuration")
    assert answer.status == (400 if isinstance(client.directory, LocalTenant) else 404)
    assert "invalid_tenant" in answer.data.decode()


def test_the_claims_of_a_token(client: Client) -> None:
    """The emulator's are of version 2.0, and it leaves out what the audit would like to have."""
    token = client.ask(client_secret=client.secret).json()["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["iss"] == f"https://sts.windows.net/{client.directory.tenant_id}/"
    assert (claims["aud"], claims["tid"]) == (STORAGE_AUDIENCE, client.directory.tenant_id)
    assert claims["appid"] == client.app.client_id
    assert claims["nbf"] == claims["iat"] <= time.time() < claims["exp"] <= time.time() + 3600
    both = {"aud", "iss", "iat", "nbf", "exp", "appid", "sub", "tid", "ver"}
    local = isinstance(client.directory, LocalTenant)
    assert claims.keys() - both == ({"appidacr", "idp", "idtyp", "oid", "uti"} if local else {"azp", "roles"})


SOURCES: Mapping[str, Callable[[Client, Path], dict[str, str]]] = {
    "client_secret": lambda client, folder: {"client_secret": _file(folder, client.secret.encode())},
    "certificate": lambda client, folder: {"certificate": _file(folder, client.made.pem())},
    "federated_file": lambda client, folder: {
        "assertion_file": _file(folder, client.issuer.assertion(SUBJECT).reveal().encode()).removeprefix("file:")
    },
}


def _file(folder: Path, content: bytes) -> str:
    write_private(folder / "credential", content)
    return f"file:{folder / 'credential'}"


@pytest.mark.parametrize("source", SOURCES)
def test_a_job_gets_its_token(client: Client, tmp_path: Path, source: str) -> None:
    """By azure-identity and MSAL, and reads of it what there is to read."""
    token = client.acquire(source, **SOURCES[source](client, tmp_path))
    claims = token.claims
    assert (token.source, claims.appid, claims.tenant, claims.audience) == (
        source,
        client.app.client_id,
        client.directory.tenant_id,
        STORAGE_AUDIENCE,
    )
    complete = isinstance(client.directory, LocalTenant)
    assert (claims.oid is not None, claims.uti is not None) == (complete, complete)
    assert abs((token.expires - token.acquired).total_seconds() - 3600) <= 2


@pytest.mark.parametrize("source", SOURCES)
def test_a_job_whose_credential_is_removed(client: Client, tmp_path: Path, source: str) -> None:
    """Is told so, with the code and what to do, whoever refuses it."""
    settings = SOURCES[source](client, tmp_path)
    assert isinstance(client.directory, LocalTenant | EntraEmulator)
    app = client.directory.register_app()
    if source == "certificate":
        app.add_certificate(Made.new().public)
    with pytest.raises(IdentityRejected) as refused:
        replace(client, app=app).acquire(source, **settings)
    code = {"client_secret": 7000215, "certificate": 700027, "federated_file": 700211}[source]
    if source == "federated_file" and not isinstance(client.directory, LocalTenant):
        code = 700213  # for the emulator issuer, subject and audience are one
    assert refused.value.diagnosis.code == f"AADSTS{code}"
    assert refused.value.diagnosis.status == 401
    assert "look up the code" not in refused.value.hint


def test_every_difference_is_listed() -> None:
    """The table of docs/witnesses.md has these rows, and no others."""
    rows = re.findall(r"^\| ([^|]+) \| (\d[^|]*) \| (\d[^|]*) \| [^|]+ \|$", DOCS.read_text(encoding="utf-8"), re.M)
    differing = [(name, str(case.answer), str(case.emulator)) for name, case in CASES.items() if case.emulator]
    assert rows == differing
