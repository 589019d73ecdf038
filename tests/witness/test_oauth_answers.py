"""The same client against oidc-provider and emulate, which know OAuth and OpenID Connect and little of Entra's own.

They give no AADSTS codes, so an answer is its status and OAuth error here. `ANSWERS` says what they are, and
docs/witnesses.md why some are others than the local tenant's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jwt
import pytest
import urllib3

from beam_entra.errors import IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.testing.local import LocalCloud
from tests.identity.leaks import everything_in
from tests.identity.test_application import Made
from tests.witness.npm_servers import EmulateFront, OidcProvider, Registered, Seeded
from tests.witness.test_same_answers import CASES, DOCS, SOURCES, TOKEN, Client, Said

# one group with the jobs: the servers start once, and among the first tests
pytestmark = [pytest.mark.witness, pytest.mark.long, pytest.mark.xdist_group("npm witnesses")]

NO_CLIENT = Said(401, "invalid_client")
BAD_REQUEST = Said(400, "invalid_request")


@dataclass(frozen=True, kw_only=True)
class Differing:
    """What the two answer to a case of `CASES`; None where it says nothing of them."""

    provider: Said | None = None
    emulate: Said | None = None


ANSWERS: Mapping[str, Differing] = {
    "client secret": Differing(provider=TOKEN, emulate=TOKEN),
    "client secret of no app": Differing(provider=NO_CLIENT, emulate=NO_CLIENT),
    "no credential at all": Differing(provider=NO_CLIENT, emulate=NO_CLIENT),
    "unknown app": Differing(provider=NO_CLIENT, emulate=NO_CLIENT),
    "unknown resource": Differing(provider=Said(400, "invalid_target"), emulate=TOKEN),
    "no scope": Differing(emulate=TOKEN),
    "no client id": Differing(provider=BAD_REQUEST, emulate=NO_CLIENT),
    "no grant type": Differing(provider=BAD_REQUEST, emulate=Said(400, "unsupported_grant_type")),
    "another grant type": Differing(
        provider=Said(400, "unsupported_grant_type"), emulate=Said(400, "unsupported_grant_type")
    ),
    "federated: no assertion type": Differing(provider=BAD_REQUEST),
    "no JSON Web Token": Differing(provider=BAD_REQUEST),
    "certificate": Differing(provider=TOKEN),
    "certificate of no app": Differing(provider=NO_CLIENT),
    "certificate: another audience": Differing(provider=NO_CLIENT),
    "certificate: assertion expired": Differing(provider=NO_CLIENT),
    "certificate: assertion expired for 30 s": Differing(provider=NO_CLIENT),
}
ASKED = [
    (witness, name)
    for name, answers in ANSWERS.items()
    for witness in ("provider", "emulate")
    if getattr(answers, witness)
]


@pytest.fixture(scope="module")
def made() -> Made:
    """One certificate for the module."""
    return Made.new()


@pytest.fixture
def at_provider(beam_entra_cloud: LocalCloud, provider: OidcProvider, made: Made) -> Iterator[Client]:
    """A client of oidc-provider with a secret; `by_certificate` makes it one with a certificate."""
    app = provider.register_app()
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False, timeout=10) as http:
        yield Client(
            directory=provider,
            app=app,
            secret=app.add_secret().reveal(),
            made=made,
            issuer=beam_entra_cloud.issuer,
            ca_file=beam_entra_cloud.ca_file,
            http=http,
        )


@pytest.fixture
def at_emulate(beam_entra_cloud: LocalCloud, emulate_front: EmulateFront, made: Made) -> Iterator[Client]:
    """The client of emulate."""
    emulate = emulate_front.emulate
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False, timeout=10) as http:
        yield Client(
            directory=emulate,
            app=emulate.app,
            secret=emulate.app.secret.reveal(),
            made=made,
            issuer=beam_entra_cloud.issuer,
            ca_file=beam_entra_cloud.ca_file,
            http=http,
        )


@pytest.fixture(params=["provider", "emulate"])
def client(request: pytest.FixtureRequest) -> Client:
    """A client of each."""
    found: Client = request.getfixturevalue(f"at_{request.param}")
    return found


def by_certificate(client: Client) -> Client:
    """Another client there, which proves itself by its certificate."""
    assert isinstance(client.directory, OidcProvider)
    return replace(client, app=client.directory.register_app(certificate=client.made.public))


@pytest.mark.parametrize(("witness", "name"), ASKED)
def test_an_answer(request: pytest.FixtureRequest, witness: str, name: str) -> None:
    """Status and error."""
    client: Client = request.getfixturevalue(f"at_{witness}")
    if name.startswith("certificate"):
        client = by_certificate(client)
    answer = CASES[name].ask(client)
    assert Said.of(answer) == getattr(ANSWERS[name], witness)
    document = answer.json()
    if answer.status == 200:
        assert (document["token_type"], document["expires_in"]) == ("Bearer", 3600)
    else:
        assert document.keys() == {"error", "error_description"}
    # RFC 6749, 5.1 wants it
    assert answer.headers.get("Cache-Control") == ("no-store" if witness == "provider" else None)


def test_an_assertion_that_is_presented_twice(at_provider: Client) -> None:
    """oidc-provider remembers its id; Entra, and so the local tenant, does not, and MSAL counts on that."""
    client = by_certificate(at_provider)
    assertion = client.own()
    assert [Said.of(client.ask(**assertion)) for _ in range(2)] == [TOKEN, NO_CLIENT]


def test_an_assertion_that_ended_a_moment_ago(at_provider: Client) -> None:
    """oidc-provider forgives 15 s, for clocks that differ."""
    client = by_certificate(at_provider)
    assert Said.of(client.ask(**client.own(life_s=-1))) == TOKEN


def test_every_tenant_has_a_discovery_document(at_emulate: Client) -> None:
    """At emulate, and one token endpoint for all."""
    other = at_emulate.base.replace(at_emulate.directory.tenant_id, "11111111-1111-4111-8111-111111111111")
    for base in (at_emulate.base, other):
        document = at_emulate.http.request("GET", f"{base}/v2.0/.well-known/openid-configuration").json()
        assert document["issuer"] == f"{base}/v2.0"
        assert document["token_endpoint"] == f"{at_emulate.directory.authority}/oauth2/v2.0/token"


def test_the_discovery_document_leads_to_the_keys(at_provider: Client) -> None:
    """A published key verifies the token's signature, and its claims are those of an access token."""
    document = at_provider.http.request("GET", f"{at_provider.base}/v2.0/.well-known/openid-configuration").json()
    assert document["token_endpoint"] == at_provider.token_url
    published = at_provider.http.request("GET", document["jwks_uri"]).json()["keys"]
    token = at_provider.ask(client_secret=at_provider.secret).json()["access_token"]
    key = jwt.PyJWKSet.from_dict({"keys": published})[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(token, key, algorithms=["RS256"], audience=STORAGE_AUDIENCE, issuer=document["issuer"])
    assert claims["sub"] == at_provider.app.client_id
    assert claims["iat"] <= time.time() < claims["exp"] <= time.time() + 3600


@pytest.mark.parametrize("source", ["client_secret", "certificate"])
def test_a_job_gets_its_token(at_provider: Client, tmp_path: Path, source: str) -> None:
    """By azure-identity and MSAL, which find the token endpoint where discovery says that it is."""
    client = by_certificate(at_provider) if source == "certificate" else at_provider
    token = client.acquire(source, **SOURCES[source](client, tmp_path))
    claims = token.claims
    assert (token.source, claims.appid, claims.oid, claims.tenant, claims.audience) == (
        source,
        client.app.client_id,
        client.app.client_id,
        client.directory.tenant_id,
        STORAGE_AUDIENCE,
    )
    assert claims.uti
    assert abs((token.expires - token.acquired).total_seconds() - 3600) <= 2


def test_a_job_gets_a_token_that_says_nothing(at_emulate: Client, tmp_path: Path) -> None:
    """The tokens of emulate are opaque: nobody has claims then, and the rest goes on."""
    token = at_emulate.acquire("client_secret", **SOURCES["client_secret"](at_emulate, tmp_path))
    assert (token.claims.appid, token.claims.oid, token.claims.uti) == (None, None, None)
    assert abs((token.expires - token.acquired).total_seconds() - 3600) <= 2


@pytest.mark.parametrize("what", ["a wrong secret", "an unknown client"])
def test_a_job_is_refused(client: Client, tmp_path: Path, what: str) -> None:
    """Without a code of Entra's: the OAuth error and its words, where to look, and the secret nowhere."""
    if what == "a wrong secret":
        client = replace(client, secret="a-guess-that-is-wrong")
    else:
        assert isinstance(client.app, Registered | Seeded)
        client = replace(client, app=replace(client.app, client_id="00000000-0000-4000-8000-000000000000"))
    with pytest.raises(IdentityRejected) as refused:
        client.acquire("client_secret", **SOURCES["client_secret"](client, tmp_path))
    assert (refused.value.diagnosis.status, refused.value.diagnosis.code) == (401, "invalid_client")
    assert "invalid_client" in str(refused.value)
    assert "Entra gives a code" in refused.value.hint
    assert client.secret not in everything_in(refused.value)


def test_every_difference_is_listed() -> None:
    """The table of docs/witnesses.md has these rows, and no others."""
    rows = re.findall(r"^\| ([^|]+) \| (\d[^|]*) \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", DOCS.read_text("utf-8"), re.M)
    differing = []
    for name, answers in ANSWERS.items():
        local = replace(CASES[name].answer, code=0)
        others = [answers.provider, answers.emulate]
        if any(other not in (None, local) for other in others):
            differing.append((name, str(local), *(str(other or "not asked") for other in others)))
    assert rows == differing
