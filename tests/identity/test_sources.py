"""Credential sources over the wire: a real token endpoint, real assertions, and every refusal it knows."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import BeamEntraError, ConfigError, IdentityRejected, IdentityUnavailable
from beam_entra.identity import (
    STORAGE_AUDIENCE,
    AccessToken,
    EntraSource,
    TokenBroker,
    check_credential,
    credential_names,
    register,
)
from beam_entra.identity.rejection import _KNOWN
from beam_entra.testing.certificates import RunCertificates, write_private
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.local import DEFAULT_SUBJECT, LocalCloud
from beam_entra.testing.refusals import refusal_answer
from beam_entra.testing.tenant import LocalTenant, TenantFault
from tests.identity.leaks import everything_in

GRAPH = "https://graph.microsoft.com"
ROOT = Path(__file__).resolve().parents[2]


def federated(cloud: LocalCloud, **changes: str) -> IdentitySettings:
    """The cloud's job, by its assertion file; `changes` go to the settings that have that name."""
    settings = {"assertion_file": changes.pop("assertion_file", str(cloud.assertion_file))}
    facts = {"tenant": cloud.tenant_id, "client": cloud.client_id, "authority": cloud.authority}
    return IdentitySettings(
        **(facts | {"ca_file": str(cloud.ca_file)} | changes), credential="federated_file", settings=settings
    )


def by_secret(cloud: LocalCloud, reference: str, **changes: str) -> IdentitySettings:
    """The same job, by a client secret."""
    facts = {"tenant": cloud.tenant_id, "client": cloud.client_id, "authority": cloud.authority}
    return IdentitySettings(
        **(facts | {"ca_file": str(cloud.ca_file)} | changes),
        credential="client_secret",
        settings={"client_secret": reference},
    )


@pytest.fixture
def secret_file(beam_entra_cloud: LocalCloud, tmp_path: Path) -> str:
    """A reference to a file that holds a client secret of the cloud's app."""
    path = tmp_path / "secret"
    write_private(path, beam_entra_cloud.app.add_secret().reveal().encode())
    return f"file:{path}"


@pytest.fixture(params=["federated_file", "client_secret"])
def identity(request: pytest.FixtureRequest, beam_entra_cloud: LocalCloud, secret_file: str) -> IdentitySettings:
    """A good identity by each of azure-identity's two ways: AadClient (assertion) and MSAL (secret)."""
    if request.param == "federated_file":
        return federated(beam_entra_cloud)
    return by_secret(beam_entra_cloud, secret_file)


def acquire(identity: IdentitySettings, audience: str = STORAGE_AUDIENCE, **timeouts: float) -> AccessToken:
    """One attempt."""
    return EntraSource(identity, clock=utc_now, **timeouts).acquire(audience)


def refused(identity: IdentitySettings, **timeouts: float) -> IdentityRejected:
    """One attempt that Entra refuses, or that cannot be made; the error holds nothing it should not."""
    with pytest.raises(IdentityRejected) as caught:
        acquire(identity, **timeouts)
    return caught.value


def ids_of_the_last(cloud: LocalCloud) -> tuple[str, str]:
    """Trace id and correlation id of the last error, as the tenant's own log has them."""
    last = [request for request in cloud.tenant.requests if request.outcome not in {"ok", "issued"}][-1]
    assert len(last.trace_id) == len(last.correlation_id) == 36
    return last.trace_id, last.correlation_id


def unavailable(identity: IdentitySettings, **timeouts: float) -> IdentityUnavailable:
    """One attempt that gets no useful answer."""
    with pytest.raises(IdentityUnavailable) as caught:
        acquire(identity, **timeouts)
    return caught.value


# ---------------------------------------------------------------- tokens


def test_a_token_says_what_the_audit_needs(beam_entra_cloud, identity):
    """The claims that join it to Entra's log are read off it, and its times are aware and in the future."""
    before = datetime.now(UTC)
    token = acquire(identity)
    issued = beam_entra_cloud.tenant.issued[-1]
    assert token.secret.reveal() == issued.token.reveal()
    assert (token.audience, token.claims.audience) == (STORAGE_AUDIENCE, STORAGE_AUDIENCE)
    assert token.claims.uti == issued.claims["uti"]
    assert token.claims.oid == beam_entra_cloud.app.object_id
    assert token.claims.appid == beam_entra_cloud.client_id
    assert token.claims.tenant == beam_entra_cloud.tenant_id
    assert before <= token.acquired < token.expires <= before + timedelta(seconds=3605)
    assert issued.token.reveal() not in repr(token)


def test_the_audience_is_the_one_asked_for(beam_entra_cloud, identity):
    """A connector's audience gets a token of its own."""
    token = acquire(identity, GRAPH)
    assert token.claims.audience == GRAPH
    assert beam_entra_cloud.tenant.requests[-1].scope == f"{GRAPH}/.default"


def test_each_attempt_asks_anew(beam_entra_cloud, identity):
    """No cache of azure-identity or MSAL stands between the broker and Entra."""
    source = EntraSource(identity, clock=utc_now)
    tokens = {source.acquire(STORAGE_AUDIENCE).secret.reveal() for _ in range(3)}
    assert len(tokens) == beam_entra_cloud.tenant.token_requests == 3


def test_entras_wish_for_a_refresh_is_kept(beam_entra_cloud, identity):
    """`refresh_in` of the answer becomes the token's `refresh_on`."""
    beam_entra_cloud.tenant.refresh_in_s = 1800
    try:
        token = acquire(identity)
    finally:
        beam_entra_cloud.tenant.refresh_in_s = None
    assert token.refresh_on is not None
    assert timedelta(seconds=1795) < token.refresh_on - token.acquired < timedelta(seconds=1805)


def test_the_assertion_file_is_read_each_time(beam_entra_cloud, tmp_path):
    """The platform renews the assertion in its file; the next token uses the new one."""
    cloud, path = beam_entra_cloud, tmp_path / "assertion"
    cloud.issuer.write_assertion_file(path, DEFAULT_SUBJECT, life_s=-60)
    source = EntraSource(federated(cloud, assertion_file=str(path)), clock=utc_now)
    with pytest.raises(IdentityRejected, match="not within its valid time range"):
        source.acquire(STORAGE_AUDIENCE)
    cloud.issuer.write_assertion_file(path, DEFAULT_SUBJECT)
    assert source.acquire(STORAGE_AUDIENCE).claims.appid == cloud.client_id


def test_a_rotated_secret_is_read_each_time(beam_entra_cloud, tmp_path):
    """A secret that is replaced in its file is used from then on."""
    app = beam_entra_cloud.add_client()
    path = tmp_path / "secret"
    write_private(path, app.add_secret().reveal().encode() + b"\n")  # a trailing newline does no harm
    source = EntraSource(by_secret(beam_entra_cloud, f"file:{path}", client=app.client_id), clock=utc_now)
    source.acquire(STORAGE_AUDIENCE)
    app.remove_secrets()
    with pytest.raises(IdentityRejected):
        source.acquire(STORAGE_AUDIENCE)
    write_private(path, app.add_secret().reveal().encode())
    assert source.acquire(STORAGE_AUDIENCE).claims.appid == app.client_id


PROGRAM = """
import sys
from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import BeamEntraError
from beam_entra.identity import EntraSource
tenant, client, authority, ca_file, credential, *settings = sys.argv[1:]
identity = IdentitySettings(tenant=tenant, client=client, authority=authority, ca_file=ca_file, credential=credential,
                            settings=dict(zip(settings[::2], settings[1::2], strict=True)))
try:
    token = EntraSource(identity, clock=utc_now).acquire("https://storage.azure.com")
    print(token.claims.appid, token.expires.year > 2025)
except BeamEntraError as error:
    print(type(error).__name__, error)
"""


def in_a_worker(cloud: LocalCloud, credential: str, *settings: str, **environ: str) -> str:
    """What a worker process of this environment prints about its token."""
    facts = [cloud.tenant_id, cloud.client_id, cloud.authority, str(cloud.ca_file), credential]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *facts, *settings],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ran.stdout.strip() + ran.stderr


def test_references_to_the_environment(beam_entra_cloud):
    """`env:` names a variable of the worker: with the secret itself, or with the path of the assertion file."""
    secret = beam_entra_cloud.app.add_secret().reveal()
    by_env = in_a_worker(beam_entra_cloud, "client_secret", "client_secret", "env:JOB_SECRET", JOB_SECRET=secret)
    assert by_env == f"{beam_entra_cloud.client_id} True"
    file = str(beam_entra_cloud.assertion_file)
    by_file = in_a_worker(beam_entra_cloud, "federated_file", "assertion_file", "env:TOKEN_FILE", TOKEN_FILE=file)
    assert by_file == f"{beam_entra_cloud.client_id} True"


def stand_in_for_az(folder: Path, script: str) -> str:
    """An executable `az` in a folder of its own; returns a PATH on which it comes first."""
    az = folder / "az"
    az.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    az.chmod(az.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_developer_asks_the_azure_cli(beam_entra_cloud, tmp_path):
    """The developer credential takes the token of whoever is signed in to `az`, in the manifest's tenant."""
    token = acquire(federated(beam_entra_cloud)).secret.reveal()
    answer = f'{{"accessToken": "{token}", "expiresOn": "2099-01-01 00:00:00.000000", "expires_on": 4070908800}}'
    script = (
        "import sys\n"
        f"wanted = {beam_entra_cloud.tenant_id!r}\n"
        f"sys.exit('wrong tenant') if wanted not in ' '.join(sys.argv) else print({answer!r})\n"
    )
    shown = in_a_worker(beam_entra_cloud, "developer", PATH=stand_in_for_az(tmp_path, script))
    assert shown == f"{beam_entra_cloud.client_id} True"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('ERROR: Please run \\'az login\\' to setup account.')", "az login"),
        ("import sys; sys.exit(1)", "az login"),
        ("print('not what az prints')", "az login"),
    ],
    ids=["nobody is signed in", "az fails without a word", "az prints something else"],
)
def test_developer_without_a_sign_in(beam_entra_cloud, tmp_path, script, said):
    """Without a usable `az`, the error says how to sign in."""
    shown = in_a_worker(beam_entra_cloud, "developer", PATH=stand_in_for_az(tmp_path, script))
    assert shown.startswith("IdentityRejected the credential is not available here: ")
    assert said in shown
    assert "Traceback" not in shown


# ---------------------------------------------------------------- what Entra refuses


@dataclass(frozen=True)
class Refusal:
    """A way to be refused: what is wrong, Entra's code, and a word of the fix."""

    case: str
    make: Callable[[LocalCloud, Path], IdentitySettings]
    code: str
    fix: str


def _assertion(cloud: LocalCloud, folder: Path, text: str) -> IdentitySettings:
    path = folder / "assertion"
    path.write_text(text, encoding="utf-8")
    return federated(cloud, assertion_file=str(path))


def _signed(cloud: LocalCloud, folder: Path, subject: str = DEFAULT_SUBJECT, **facts: object) -> IdentitySettings:
    return _assertion(cloud, folder, cloud.issuer.assertion(subject, **facts).reveal())


def _secret(cloud: LocalCloud, folder: Path, text: str, **changes: str) -> IdentitySettings:
    write_private(folder / "secret", text.encode())
    return by_secret(cloud, f"file:{folder / 'secret'}", **changes)


def _disabled(cloud: LocalCloud) -> str:
    app = cloud.add_client()
    app.disable()
    return app.client_id


def _without_record(cloud: LocalCloud) -> str:
    return cloud.tenant.register_app().client_id


def _living(cloud: LocalCloud) -> str:
    return cloud.app.add_secret().reveal()


def _forged(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    signed, of_another = (cloud.issuer.assertion(DEFAULT_SUBJECT, life_s=life_s).reveal() for life_s in (600, 601))
    return _assertion(cloud, folder, signed.rpartition(".")[0] + "." + of_another.rpartition(".")[2])


NOBODY = "11111111-2222-4333-8444-555555555555"
REFUSALS = [
    Refusal("assertion, unknown tenant", lambda c, f: federated(c, tenant=NOBODY), "AADSTS90002", "[identity] tenant"),
    Refusal("secret, unknown tenant", lambda c, f: _secret(c, f, _living(c), tenant=NOBODY), "AADSTS90002", "tenant"),
    Refusal("assertion, unknown client", lambda c, f: federated(c, client=NOBODY), "AADSTS700016", "client"),
    Refusal("secret, unknown client", lambda c, f: _secret(c, f, "x", client=NOBODY), "AADSTS700016", "client"),
    Refusal("wrong secret", lambda c, f: _secret(c, f, "not-the-secret"), "AADSTS7000215", "not its id"),
    Refusal(
        "expired secret",
        lambda c, f: _secret(c, f, c.app.add_secret(life=timedelta(days=-1)).reveal()),
        "AADSTS7000222",
        "make a new one",
    ),
    Refusal("expired assertion", lambda c, f: _signed(c, f, life_s=-5), "AADSTS700024", "renews it"),
    Refusal("assertion too early", lambda c, f: _signed(c, f, not_before_s=300), "AADSTS700024", "clock is right"),
    Refusal("wrong subject", lambda c, f: _signed(c, f, "system:serviceaccount:x:y"), "AADSTS700213", "subject"),
    Refusal("wrong audience", lambda c, f: _signed(c, f, audience="api://other"), "AADSTS700212", "audience"),
    Refusal(
        "unknown issuer", lambda c, f: federated(c, client=_without_record(c)), "AADSTS700211", "federated credential"
    ),
    Refusal("no JWT", lambda c, f: _assertion(c, f, "not.a-real.jwt"), "AADSTS50027", "assertion file"),
    Refusal("forged signature", _forged, "AADSTS700027", "publishes the key"),
    Refusal("disabled app", lambda c, f: federated(c, client=_disabled(c)), "AADSTS7000112", "administrator"),
    Refusal(
        "disabled app, secret", lambda c, f: _secret(c, f, "x", client=_disabled(c)), "AADSTS7000112", "administrator"
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.case)
def test_a_refusal_says_why_and_what_to_do(beam_entra_cloud, tmp_path, refusal):
    """Each refusal is IdentityRejected, with Entra's code, its trace id, as whom, and the fix; asked once."""
    identity = refusal.make(beam_entra_cloud, tmp_path)
    error = refused(identity)
    known = error.diagnosis
    assert known.code == refusal.code
    assert refusal.fix in known.hint
    assert (known.request_id, known.correlation_id) == ids_of_the_last(beam_entra_cloud)
    assert identity.client in known.identity
    assert known.tried == (
        f"acquire a token for {STORAGE_AUDIENCE} at {identity.authority}/{identity.tenant} by {identity.credential}"
    )
    assert known.status in {400, 401}
    assert beam_entra_cloud.tenant.token_requests <= 1  # MSAL finds an unknown tenant before it asks for a token
    assert "Trace ID" not in error.message
    assert beam_entra_cloud.find_leaks(everything_in(error)) == []


def _deleted(cloud: LocalCloud) -> str:
    app = cloud.add_client()
    cloud.tenant.revoke(app, delete=True)
    return app.client_id


def _without_its_credential(cloud: LocalCloud) -> str:
    app = cloud.tenant.register_app()
    app.remove_federated_credential(app.add_federated_credential(cloud.issuer.url, DEFAULT_SUBJECT))
    return app.client_id


# What may befall an identity that worked yesterday, or never did.
FATES: dict[str, tuple[Callable[[LocalCloud, Path], IdentitySettings], str, str]] = {
    "revoked principal": (
        lambda c, f: federated(c, client=_disabled(c)),
        "an administrator has disabled the application (AADSTS7000112: ",
        "ask the tenant's administrator",
    ),
    "deleted application": (
        lambda c, f: federated(c, client=_deleted(c)),
        "the application is not in this tenant; it may have been deleted (AADSTS700016: ",
        "can be restored for 30 days",
    ),
    "removed federated credential": (
        lambda c, f: federated(c, client=_without_its_credential(c)),
        "the application has no federated credential for the assertion's issuer; it may have been removed (AADSTS",
        "add a federated credential",
    ),
    "expired secret": (
        lambda c, f: _secret(c, f, c.app.add_secret(life=timedelta(days=-1)).reveal()),
        "the client secret has expired (AADSTS7000222: ",
        "make a new one",
    ),
    "wrong audience": (
        lambda c, f: _signed(c, f, audience="api://other"),
        "the assertion is for another audience than the application's federated credential (AADSTS700212: ",
        "api://AzureADTokenExchange",
    ),
    "unknown tenant": (
        lambda c, f: federated(c, tenant=NOBODY),
        "there is no such tenant at this authority (AADSTS90002: ",
        "check [identity] tenant",
    ),
    "unknown tenant, by a secret": (
        lambda c, f: _secret(c, f, _living(c), tenant=NOBODY),
        "there is no such tenant at this authority (AADSTS90002: ",
        "check [identity] tenant",
    ),
}


@pytest.mark.parametrize(("make", "says", "fix"), FATES.values(), ids=FATES)
def test_each_fate_has_its_own_message(beam_entra_cloud, tmp_path, make, says, fix):
    """In our words first, then in Entra's with the code; the fix is the one for it."""
    error = refused(make(beam_entra_cloud, tmp_path))
    assert error.message.startswith(f"Entra refused the job's identity: {says}")
    assert fix in error.hint


def test_no_two_fates_sound_alike():
    """Who reads the first line knows which it is."""
    assert len({says for _, says, _ in FATES.values()}) == len(FATES) - 1  # the tenant is unknown twice


class Refusing:
    """An authority that refuses every request with one code, whatever the reason."""

    def __init__(self, code: int) -> None:
        self.code = code

    def answer(self, request: Request) -> Answer:
        text, now = "In Entra's own words.", datetime.now(UTC)
        return refusal_answer(self.code, text, now=now, authority="https://x", status=401, error="invalid_client")


@pytest.mark.parametrize("code", sorted(_KNOWN))
def test_every_code_that_is_known_has_its_message(beam_entra_cloud, code):
    """Also those that the local tenant has no case of."""
    context = beam_entra_cloud.certificates.server_context()
    with HttpsServer(context, ServiceHandler, Refusing(code), name="refusing") as server:
        error = refused(federated(beam_entra_cloud, authority=server.url))
    meaning, fix = _KNOWN[code]
    told = f"Entra refused the job's identity: {meaning} (AADSTS{code}: In Entra's own words.)"
    assert (error.message, error.hint, error.diagnosis.code) == (told, fix, f"AADSTS{code}")


def test_no_two_codes_sound_alike():
    """Each has a meaning of its own, and a fix."""
    assert len({meaning for meaning, _ in _KNOWN.values()}) == len(_KNOWN)
    assert all(fix for _, fix in _KNOWN.values())


def test_an_unknown_resource_is_refused(beam_entra_cloud, identity):
    """An audience that the tenant does not know is the manifest's mistake."""
    with pytest.raises(IdentityRejected) as caught:
        acquire(identity, "https://vault.example.com")
    assert caught.value.diagnosis.code == "AADSTS500011"
    assert "[grants] token" in caught.value.hint


def test_a_code_that_nobody_knows_yet_has_a_hint_too(beam_entra_cloud, identity):
    """For any other refusal the trace id leads on."""
    beam_entra_cloud.tenant.fail(400)
    error = refused(identity)
    assert error.diagnosis.code == "AADSTS50000"
    assert "sign-in log" in error.hint


@pytest.mark.parametrize("by", ["assertion", "secret"])
def test_a_refusal_without_a_code_is_not_said_to_be_entras(beam_entra_cloud, tmp_path, by):
    """Whoever it is that answers there knows no sign-in log."""
    identity = federated(beam_entra_cloud) if by == "assertion" else _secret(beam_entra_cloud, tmp_path, "s")
    error = refused(changed(identity, authority=beam_entra_cloud.azurite.url))
    assert error.message.startswith("the token endpoint gave no token: it answered HTTP 4")
    assert error.diagnosis.code == ""
    assert "[identity] tenant and authority" in error.hint
    assert "log" not in error.hint


# ---------------------------------------------------------------- what cannot even be asked


def test_a_missing_assertion_file(beam_entra_cloud, tmp_path):
    """The error names the file, and nothing is sent."""
    error = refused(federated(beam_entra_cloud, assertion_file=str(tmp_path / "nowhere")))
    assert f"{tmp_path / 'nowhere'} cannot be read: No such file" in error.message
    assert "projects the file" in error.hint
    assert error.diagnosis.tried
    assert beam_entra_cloud.tenant.token_requests == 0


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe\x00", "it is not text")]
)
def test_an_assertion_file_without_an_assertion(beam_entra_cloud, tmp_path, content, said):
    """Neither an empty file nor bytes are sent to Entra."""
    (tmp_path / "assertion").write_bytes(content)
    error = refused(federated(beam_entra_cloud, assertion_file=str(tmp_path / "assertion")))
    assert said in error.message
    assert error.hint
    assert beam_entra_cloud.tenant.token_requests == 0


def test_a_folder_in_place_of_an_assertion_file(beam_entra_cloud, tmp_path):
    """A path that cannot be read for another reason says that reason."""
    assert "Is a directory" in refused(federated(beam_entra_cloud, assertion_file=str(tmp_path))).message


@pytest.mark.parametrize(
    ("mode", "content", "said", "fix"),
    [
        (0o644, b"s", "others on the machine can read", "chmod 600"),
        (0o660, b"s", "others on the machine can read", "chmod 600"),
        (0o600, b"s" * ((1 << 20) + 1), "which is longer than 1 MiB", "holds the secret"),
        (0o600, b"\n", "which is empty", "write the secret"),
        (0o600, b"\xff", "is not text", "check what it refers to"),
        (None, b"", "No such file", "check the path"),
    ],
    ids=["world-readable", "group-readable", "too long", "empty", "no text", "missing"],
)
def test_a_secret_file_that_will_not_do(beam_entra_cloud, tmp_path, mode, content, said, fix):
    """A secret that others can read, or that is none, is refused where it is read."""
    path = tmp_path / "secret"
    if mode is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        acquire(by_secret(beam_entra_cloud, f"file:{path}"))
    assert said in caught.value.message
    assert fix in caught.value.hint
    assert caught.value.diagnosis.tried
    assert beam_entra_cloud.tenant.token_requests == 0


@pytest.mark.parametrize(
    ("credential", "reference", "said"),
    [
        ("client_secret", "env:BEAM_ENTRA_TEST_UNSET", "BEAM_ENTRA_TEST_UNSET, which is not set on this worker"),
        ("client_secret", "keyvault:https://v.vault.azure.net/s", "needs keyvault_credential"),
        ("client_secret", "s3cret-itself", "is no reference to a secret"),
        ("federated_file", "env:BEAM_ENTRA_TEST_UNSET", "BEAM_ENTRA_TEST_UNSET, which is not set on this worker"),
    ],
)
def test_a_reference_to_nothing(beam_entra_cloud, credential, reference, said):
    """The error names the reference's target, never a value."""
    setting = "assertion_file" if credential == "federated_file" else "client_secret"
    good = federated(beam_entra_cloud)
    identity = IdentitySettings(
        tenant=good.tenant,
        client=good.client,
        credential=credential,
        authority=good.authority,
        settings={setting: reference},
    )
    with pytest.raises(ConfigError) as caught:
        acquire(identity)
    assert said in caught.value.message
    assert caught.value.hint
    assert "s3cret-itself" not in str(caught.value)


# ---------------------------------------------------------------- no useful answer


def test_nobody_listens(beam_entra_cloud, identity):
    """An authority that refuses the connection is unavailable, not a refusal."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = unavailable(changed(identity, authority=f"https://127.0.0.1:{port}"))
    assert error.message == "the token endpoint gave no token: it did not answer"
    assert "reaches the authority" in error.hint
    assert error.retryable


def changed(identity: IdentitySettings, **changes: str) -> IdentitySettings:
    """The same identity, but for these facts."""
    facts = {name: getattr(identity, name) for name in ("tenant", "client", "credential", "authority", "ca_file")}
    return IdentitySettings(**(facts | changes), settings=identity.settings)


def test_an_authority_that_cannot_be_trusted(beam_entra_cloud, identity, tmp_path):
    """A certificate of another CA: nothing is sent, and the hint says what to look at."""
    other = RunCertificates.issue(tmp_path / "other")
    error = unavailable(changed(identity, ca_file=str(other.ca_file)))
    assert error.message == "the token endpoint gave no token: it did not answer"
    assert "trusts its certificate" in error.hint
    assert beam_entra_cloud.tenant.token_requests == 0


@pytest.mark.parametrize("content", [None, b"no certificate\n"], ids=["missing", "garbage"])
def test_a_ca_file_that_is_none(beam_entra_cloud, identity, tmp_path, content):
    """A CA file that is not there, or holds no CA, is named as what is wrong."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        acquire(changed(identity, ca_file=str(path)))
    assert str(path) in caught.value.message
    assert "ca_file" in caught.value.hint


@dataclass(frozen=True)
class NoAnswer:
    """A fault of the token endpoint, and what the error says of it."""

    fault: Callable[[LocalTenant, int], TenantFault]
    said: str
    status: int | None
    fix: str = "try again in a moment; if it stays so, see the authority's health"


REACH = "see that the worker reaches the authority and trusts its certificate"
NO_ANSWERS = {
    "throttled": NoAnswer(
        lambda tenant, times: tenant.throttle(7, times=times),
        "it answered HTTP 429",
        429,
        "try again in 7 s, as it asks; see in the sign-in log what else asks for tokens as this client",
    ),
    "timed out": NoAnswer(lambda tenant, times: tenant.fail(408, times=times), "it answered HTTP 408", 408),
    "busy": NoAnswer(lambda tenant, times: tenant.fail(503, times=times), "it answered HTTP 503", 503),
    "broken": NoAnswer(lambda tenant, times: tenant.fail(500, times=times), "it answered HTTP 500", 500),
    "dropped": NoAnswer(lambda tenant, times: tenant.drop(times=times), "it did not answer", None, REACH),
    "garbage": NoAnswer(
        lambda tenant, times: tenant.garbage(times=times),
        "it answered HTTP 200 with something that is no token",
        200,
        "check [identity] authority, and whether a proxy or a sign-in page",
    ),
    "stalled": NoAnswer(lambda tenant, times: tenant.stall(times=times), "it did not answer", None, REACH),
}


def let_go(tenant: LocalTenant, requests_in_all: int) -> None:
    """Let through what is held, and wait for it: it would be counted in the next test."""
    tenant.clear_faults()
    tenant.wait_for(lambda requests: sum(request.kind == "token" for request in requests) >= requests_in_all)


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_no_useful_answer(beam_entra_cloud, identity, name):
    """What may pass by itself is IdentityUnavailable, asked once: retrying is the broker's. Both ways say the same."""
    case = NO_ANSWERS[name]
    fault = case.fault(beam_entra_cloud.tenant, 2)
    error = unavailable(identity, read_timeout_s=0.5)
    assert error.message == f"the token endpoint gave no token: {case.said}"
    assert error.diagnosis.status == case.status
    assert error.diagnosis.retry_after_s == (7 if name == "throttled" else None)
    assert error.hint.startswith(case.fix)
    assert fault.hits == 1
    assert beam_entra_cloud.find_leaks(everything_in(error)) == []
    let_go(beam_entra_cloud.tenant, 1)


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_a_passing_fault_is_outlived(beam_entra_cloud, identity, name):
    """With the broker, a fault that passes costs attempts and no token; the count of attempts goes to the audit."""
    told: list[int] = []
    paused: list[float] = []
    broker = TokenBroker(
        EntraSource(identity, clock=utc_now, read_timeout_s=0.5),
        clock=utc_now,
        acquired=lambda token, attempts: told.append(attempts),
        pause=lambda seconds: bool(paused.append(seconds)),
    )
    NO_ANSWERS[name].fault(beam_entra_cloud.tenant, 2)
    assert broker.get(STORAGE_AUDIENCE).claims.appid == beam_entra_cloud.client_id
    assert told == [3]
    assert len(paused) == 2
    if name == "throttled":
        assert all(seconds >= 7 for seconds in paused)
    let_go(beam_entra_cloud.tenant, 3)


@pytest.mark.parametrize(
    ("status", "code"), [(408, "AADSTS50000"), (429, "AADSTS90055"), (500, "AADSTS50000"), (503, "AADSTS90033")]
)
def test_the_error_that_is_told_when_no_token_is_left(beam_entra_cloud, identity, status, code):
    """Entra's last status, code, trace id and correlation id, out of its own words, for who looks into its log."""
    tenant = beam_entra_cloud.tenant
    tenant.throttle(1) if status == 429 else tenant.fail(status)
    broker = TokenBroker(EntraSource(identity, clock=utc_now), clock=utc_now, pause=lambda seconds: False)
    with pytest.raises(IdentityUnavailable, match=f"it answered HTTP {status}; it was asked 5 times in ") as caught:
        broker.get(STORAGE_AUDIENCE)
    known, ids = caught.value.diagnosis, ids_of_the_last(beam_entra_cloud)
    assert (known.status, known.code, known.attempts) == (status, code, 5)
    assert (known.request_id, known.correlation_id) == ids
    answer = f"answer:   HTTP {status}, {code}, request id {ids[0]}, correlation id {ids[1]}, 5 attempts"
    assert answer in str(caught.value)
    assert beam_entra_cloud.find_leaks(everything_in(caught.value)) == []


def test_the_attempts_are_told(beam_entra_cloud, identity):
    """When every attempt fails, the error says how many there were."""
    beam_entra_cloud.tenant.fail(503)
    broker = TokenBroker(EntraSource(identity, clock=utc_now), clock=utc_now, pause=lambda seconds: False)
    with pytest.raises(IdentityUnavailable) as caught:
        broker.get(STORAGE_AUDIENCE)
    assert caught.value.diagnosis.attempts == beam_entra_cloud.tenant.token_requests == 5
    assert "5 attempts" in str(caught.value)


def test_a_refusal_is_not_repeated(beam_entra_cloud):
    """The broker asks once when Entra says no."""
    broker = TokenBroker(EntraSource(federated(beam_entra_cloud, client=NOBODY), clock=utc_now), clock=utc_now)
    with pytest.raises(IdentityRejected):
        broker.get(STORAGE_AUDIENCE)
    assert beam_entra_cloud.tenant.token_requests == 1


def test_logs_hold_no_secret(beam_entra_cloud, identity, caplog):
    """With every logger at DEBUG, neither token, assertion nor secret is logged, in success and in refusal."""
    with caplog.at_level(logging.DEBUG):
        acquire(identity)
        refused(changed(identity, client=_disabled(beam_entra_cloud)))
    assert caplog.records
    assert beam_entra_cloud.find_leaks(caplog.text) == []


# ---------------------------------------------------------------- the registry


def test_the_registered_names():
    """The credentials that a manifest can name."""
    assert {"client_secret", "developer", "federated_file"} <= set(credential_names())


@pytest.mark.parametrize(
    ("credential", "settings", "said", "fix"),
    [
        ("managed", {}, "no credential source 'managed'", "federated_file"),
        ("federated_file", {}, "needs assertion_file", "add it to [identity]"),
        ("developer", {"client_secret": "env:X"}, "knows no setting client_secret", "remove it"),
    ],
)
def test_a_credential_is_checked_without_a_network(credential, settings, said, fix):
    """A name or setting that will not do is found at launch."""
    identity = IdentitySettings(tenant="t", client=NOBODY, credential=credential, settings=settings)
    with pytest.raises(ConfigError) as caught:
        check_credential(identity)
    assert said in caught.value.message
    assert fix in caught.value.hint


def test_a_credential_of_ones_own(beam_entra_cloud):
    """A function registers a source; an error it raises in its own words arrives with who and what."""
    from azure.identity import CertificateCredential  # noqa: PLC0415  # as such a function would

    @register("test_certificate", required=("certificate_file",))
    def _certificate(identity, connection):
        path = Path(identity.settings["certificate_file"])
        if not path.exists():
            raise IdentityRejected(f"there is no certificate {path}")
        return CertificateCredential(identity.tenant, identity.client, str(path), **connection)

    good = federated(beam_entra_cloud)
    identity = IdentitySettings(
        tenant=good.tenant,
        client=good.client,
        credential="test_certificate",
        authority=good.authority,
        settings={"certificate_file": "/nowhere.pem"},
    )
    error = refused(identity)
    assert error.message == "there is no certificate /nowhere.pem"
    assert "by test_certificate" in error.diagnosis.tried
    assert beam_entra_cloud.client_id in error.diagnosis.identity


def test_threads_ask_independently(beam_entra_cloud, identity):
    """A source may be asked by several threads at once."""
    source = EntraSource(identity, clock=utc_now)
    got: list[AccessToken | BeamEntraError] = []
    threads = [threading.Thread(target=lambda: got.append(source.acquire(STORAGE_AUDIENCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({token.token_id for token in got}) == 4
