"""Workload identity federation over the wire: each place an assertion can come from, and each way it can fail."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import pickle
import secrets
import socket
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

import pytest

from beam_entra.clock import utc_now
from beam_entra.errors import BeamEntraError, ConfigError, IdentityRejected, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource, check_credential
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE
from beam_entra.testing.local import DEFAULT_SUBJECT, LocalCloud
from tests.identity.hosts import GitHub, GoogleMetadata, Provider, Sts, identity_of, known_to, plain, said, secure
from tests.identity.leaks import everything_in
from tests.identity.test_sources import in_a_worker

AKS_FILE = "AZURE_FEDERATED_TOKEN_FILE"


def acquire(cloud: LocalCloud, credential: str = "federated", **settings: str) -> AccessToken:
    """One attempt."""
    return EntraSource(identity_of(cloud, credential, **settings), clock=utc_now, read_timeout_s=5).acquire(
        STORAGE_AUDIENCE
    )


def fails(
    cloud: LocalCloud, kind: type[BeamEntraError], credential: str = "federated", **settings: str
) -> BeamEntraError:
    """One attempt that fails; the error says who tried what and what to do, survives pickling, and holds no secret."""
    with pytest.raises(kind) as caught:
        acquire(cloud, credential, **settings)
    error = caught.value
    assert type(error) is kind
    assert error.hint
    assert error.diagnosis.tried.startswith(f"acquire a token for {STORAGE_AUDIENCE} at {cloud.authority}/")
    assert cloud.client_id in error.diagnosis.identity
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own
    assert cloud.find_leaks(everything_in(error)) == []
    return error


@pytest.fixture
def known(beam_entra_cloud: LocalCloud) -> Iterator[Callable[..., None]]:
    """A function that lets the cloud's app be a subject, for one test."""
    undo: list[Callable[[], None]] = []
    yield lambda subject, **facts: undo.append(known_to(beam_entra_cloud, subject, **facts))
    for each in undo:
        each()


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class FromFile:
    """A way to say where the file is."""

    credential: str
    settings: dict[str, str]
    source: str


FROM_FILE = {
    "federated": FromFile("federated", {"assertion_from": "file", "assertion_file": "{path}"}, "federated:file"),
    "federated_file": FromFile("federated_file", {"assertion_file": "{path}"}, "federated_file"),
    "workload_identity": FromFile("workload_identity", {}, "workload_identity"),
    "workload_identity, path given": FromFile("workload_identity", {"assertion_file": "{path}"}, "workload_identity"),
}


@pytest.mark.parametrize("case", FROM_FILE.values(), ids=FROM_FILE)
def test_a_file_that_the_platform_renews(beam_entra_cloud, tmp_path, monkeypatch, case):
    """It is read for each token: an assertion that has expired is forgotten when the platform has written the next."""
    path = tmp_path / "token"
    monkeypatch.setenv(AKS_FILE, str(path) if not case.settings else "/nonexistent")
    settings = {name: value.format(path=path) for name, value in case.settings.items()}
    source = EntraSource(identity_of(beam_entra_cloud, case.credential, **settings), clock=utc_now)
    for life_s in (600, -60, 600):
        beam_entra_cloud.issuer.write_assertion_file(path, DEFAULT_SUBJECT, life_s=life_s)
        if life_s < 0:
            with pytest.raises(IdentityRejected) as caught:
                source.acquire(STORAGE_AUDIENCE)
            assert caught.value.diagnosis.code == "AADSTS700024"
        else:
            assert source.acquire(STORAGE_AUDIENCE).source == case.source


def test_not_on_aks(beam_entra_cloud, monkeypatch):
    """Without AKS's variable the error names it."""
    monkeypatch.delenv(AKS_FILE, raising=False)
    error = fails(beam_entra_cloud, ConfigError, "workload_identity")
    assert f"variable {AKS_FILE}, which is not set" in error.message


def test_a_file_that_is_gone(beam_entra_cloud, tmp_path, monkeypatch):
    """The error names the path."""
    monkeypatch.setenv(AKS_FILE, str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in fails(beam_entra_cloud, IdentityRejected, "workload_identity").message


@pytest.mark.parametrize("content", ["root:x:0:0", "-----BEGIN " + "PRIVATE KEY-----", "a.b.c", "e30." + "x" * 70_000])
def test_a_file_of_something_else(beam_entra_cloud, tmp_path, content):
    """A path that is wrong sends no other file of the worker's to Entra."""
    path = tmp_path / "token"
    path.write_text(content)
    error = fails(beam_entra_cloud, IdentityRejected, "federated_file", assertion_file=str(path))
    assert f"the assertion file {path} gave something that is no assertion" in error.message
    assert beam_entra_cloud.tenant.token_requests == 0


# ---------------------------------------------------------------- Google Cloud


@pytest.fixture
def google(beam_entra_cloud: LocalCloud) -> Iterator[tuple[GoogleMetadata, dict[str, str]]]:
    """A worker on Google Cloud, and its environment; google-auth reads it once in a process."""
    host = GoogleMetadata(beam_entra_cloud)
    with plain(host) as url:
        address = url.removeprefix("http://")
        yield host, {"GCE_METADATA_HOST": address, "GCE_METADATA_IP": address, "HTTP_PROXY": "http://127.0.0.1:9"}


def on_google(cloud: LocalCloud, *settings: str, **environ: str) -> str:
    """What a worker prints about its token."""
    return in_a_worker(cloud, "federated", "assertion_from", "gcp", *settings, **environ)


def test_a_google_identity(beam_entra_cloud, google, known, tmp_path):
    """A Dataflow worker becomes the application; no key file that lies about is looked at."""
    host, environ = google
    known(GoogleMetadata.ACCOUNT)
    stray = str(tmp_path / "key.json")
    shown = on_google(beam_entra_cloud, **environ, GOOGLE_APPLICATION_CREDENTIALS=stray)
    assert shown == f"{beam_entra_cloud.client_id} True"
    assert [request.query["audience"] for request in host.requests] == [TOKEN_EXCHANGE_AUDIENCE]
    assert host.last.query["format"] == "full"


def test_a_google_identity_for_another_audience(beam_entra_cloud, google, known):
    """The audience can be set; Entra refuses one that the federated credential does not have."""
    host, environ = google
    known(GoogleMetadata.ACCOUNT)
    shown = on_google(beam_entra_cloud, "assertion_audience", "api://other", **environ)
    assert "AADSTS700212" in shown
    assert "by federated:gcp" in shown
    assert "audience" in shown
    assert host.last.query["audience"] == "api://other"


def test_a_google_identity_that_entra_does_not_know(beam_entra_cloud, google):
    """Entra's code, and what to compare."""
    shown = on_google(beam_entra_cloud, **google[1])
    assert shown.startswith("IdentityRejected ")
    assert "AADSTS700213" in shown
    assert "issuer, subject and audience" in shown
    assert beam_entra_cloud.find_leaks(shown) == []


@dataclass(frozen=True)
class Trouble:
    """What somebody else's token service answers, and what becomes of it."""

    answer: Answer
    kind: type[BeamEntraError]
    says: str


GOOGLE_TROUBLE = {
    "no service account": Trouble(Answer(status=404), IdentityUnavailable, "HTTP 404"),
    "throttled": Trouble(Answer(status=429), IdentityUnavailable, "HTTP 429"),
    "down": Trouble(Answer(status=503), IdentityUnavailable, "HTTP 503"),
    "not for us": Trouble(Answer(status=403), IdentityRejected, "HTTP 403"),
    "no token": Trouble(
        Answer(headers={"Content-Type": "text/html"}, body=b"<html>"), IdentityUnavailable, "no identity token"
    ),
}


@pytest.mark.parametrize("case", GOOGLE_TROUBLE.values(), ids=GOOGLE_TROUBLE)
def test_no_identity_from_google(beam_entra_cloud, google, case):
    """Asked once, without google-auth's own retries; Entra is not asked at all."""
    host, environ = google
    host.instead = case.answer
    shown = on_google(beam_entra_cloud, **environ)
    assert shown.startswith(f"{case.kind.__name__} Google's metadata server")
    assert case.says in shown
    assert "fix:" in shown
    assert "Traceback" not in shown
    assert len(host.requests) == 1
    assert beam_entra_cloud.tenant.token_requests == 0


def test_not_on_google_cloud(beam_entra_cloud):
    """Where nobody answers, the error says so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"127.0.0.1:{listener.getsockname()[1]}"
    shown = on_google(beam_entra_cloud, GCE_METADATA_HOST=nobody)
    assert shown.startswith("IdentityUnavailable Google's metadata server does not answer")
    assert "workers on Google Cloud" in shown


# ---------------------------------------------------------------- AWS


@pytest.fixture
def sts(beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    """A worker in AWS with a role's credentials."""
    host = Sts(beam_entra_cloud)
    with secure(host) as url:
        for name, value in host.environ(url).items():
            monkeypatch.setenv(name, value)
        yield host


AWS = {"assertion_from": "aws", "aws_region": "eu-central-1"}


def test_an_aws_role(beam_entra_cloud, sts, known, caplog):
    """STS is asked with a signed request; neither it nor its answer is in any log."""
    known(Sts.ROLE)
    with caplog.at_level(logging.DEBUG):
        token = acquire(beam_entra_cloud, **AWS)
    assert (token.source, token.claims.appid) == ("federated:aws", beam_entra_cloud.client_id)
    assert [request.form()["Audience.member.1"] for request in sts.requests] == [TOKEN_EXCHANGE_AUDIENCE]
    assert beam_entra_cloud.find_leaks(caplog.text) == []
    assert not [text for text in (sts.secret_key, sts.session) if text in caplog.text]


def test_botocores_own_debugging_is_left_alone(beam_entra_cloud, sts, known, caplog):
    """What is hushed is our requests, not somebody else's use of boto3 in the same process."""
    known(Sts.ROLE)
    acquire(beam_entra_cloud, **AWS)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore.parsers").debug("somebody else's answer")
    assert "somebody else's answer" in caplog.text


@dataclass(frozen=True)
class Refusal:
    """An error of STS."""

    status: int
    code: str
    kind: type[BeamEntraError]
    fix: str


STS_REFUSALS = [
    Refusal(403, "AccessDenied", IdentityRejected, "sts:GetWebIdentityToken"),
    Refusal(403, "OutboundWebIdentityFederationDisabledException", IdentityRejected, "enable outbound"),
    Refusal(403, "ExpiredToken", IdentityRejected, "renew the worker's AWS credentials"),
    Refusal(400, "Throttling", IdentityUnavailable, "CloudTrail"),
    Refusal(503, "ServiceUnavailable", IdentityUnavailable, "CloudTrail"),
]


@pytest.mark.parametrize("case", STS_REFUSALS, ids=lambda case: case.code)
def test_sts_refuses(beam_entra_cloud, sts, case):
    """Its code, its request id and the fix; asked once."""
    sts.instead = Sts.error(case.status, case.code, f"User {Sts.ROLE} may not, token={sts.session}")
    error = fails(beam_entra_cloud, case.kind, **AWS)
    known = error.diagnosis
    assert (known.code, known.status, known.request_id) == (case.code, case.status, "req-2")
    assert case.fix in error.hint
    assert sts.session not in everything_in(error)
    assert len(sts.requests) == 1


def test_a_worker_without_aws_credentials(beam_entra_cloud, sts, monkeypatch):
    """The error says what is missing."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    assert "no AWS credentials" in fails(beam_entra_cloud, IdentityRejected, **AWS).message
    assert len(sts.requests) == 0


def test_a_role_whose_credentials_do_not_come(beam_entra_cloud, sts, monkeypatch):
    """The platform's credential service is there, and fails: that may pass, and no chain goes on to somebody else."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    sts.instead = said(404, {"message": "not now"})
    with plain(sts) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/v1/credentials")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        more = {"chain": "federated:aws, federated:file", "assertion_file": str(beam_entra_cloud.assertion_file)}
        error = fails(beam_entra_cloud, IdentityUnavailable, "chain", aws_region="eu-central-1", **more)
    assert "the worker's AWS credentials cannot be had" in error.message
    assert beam_entra_cloud.tenant.token_requests == 0


def test_sts_does_not_answer(beam_entra_cloud, sts, monkeypatch):
    """A closed port is unavailable."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "https://127.0.0.1:9")
    assert "AWS STS does not answer" in fails(beam_entra_cloud, IdentityUnavailable, **AWS).message


# ---------------------------------------------------------------- GitHub Actions


@pytest.fixture
def github(beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[GitHub, dict[str, str]]]:
    """A workflow's run, and the settings of a job in it."""
    host = GitHub(beam_entra_cloud)
    with secure(host) as url:
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{url}/token?api-version=2.0")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", host.token)
        settings = {
            "assertion_from": "github",
            "github_url": "env:ACTIONS_ID_TOKEN_REQUEST_URL",
            "github_token": "env:ACTIONS_ID_TOKEN_REQUEST_TOKEN",
            "assertion_ca_file": str(beam_entra_cloud.ca_file),
        }
        yield host, settings


def test_a_github_run(beam_entra_cloud, github, known):
    """The runner's token service is asked, for Entra's audience, with the runner's own token."""
    host, settings = github
    known(GitHub.SUBJECT)
    token = acquire(beam_entra_cloud, **settings)
    assert (token.source, token.claims.appid) == ("federated:github", beam_entra_cloud.client_id)
    assert host.last.query == {"api-version": "2.0", "audience": TOKEN_EXCHANGE_AUDIENCE}


def test_a_job_without_the_right_to_an_id_token(beam_entra_cloud, github, monkeypatch):
    """GitHub leaves the variables out; the error names the first."""
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL")
    error = fails(beam_entra_cloud, ConfigError, **github[1])
    assert "ACTIONS_ID_TOKEN_REQUEST_URL, which is not set" in error.message


def test_github_refuses(beam_entra_cloud, github, monkeypatch):
    """Its status, and the permission that a workflow needs; the runner's token stays out."""
    host, settings = github
    wrong = secrets.token_hex(30)
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", wrong)
    error = fails(beam_entra_cloud, IdentityRejected, **settings)
    assert "HTTP 401: Unauthorized" in error.message
    assert "id-token: write" in error.hint
    assert wrong not in everything_in(error)
    assert len(host.requests) == 1


def test_a_token_that_no_header_can_hold(beam_entra_cloud, github, monkeypatch, caplog):
    """It goes nowhere, into no log either: the libraries on the way log what ends an attempt."""
    host, settings = github
    wrong = "correct-horse\nbattery-staple"
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", wrong)
    with caplog.at_level(logging.DEBUG):
        error = fails(beam_entra_cloud, IdentityUnavailable, **settings)
    assert "GitHub's token service does not answer" in error.message
    assert not [part for part in wrong.split() if part in caplog.text + everything_in(error)]
    assert len(host.requests) == 0


def test_github_is_asked_over_https_only(beam_entra_cloud, github, monkeypatch):
    """A token is not sent in the clear, whatever the variable says."""
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "http://127.0.0.1:9/token?api-version=2.0")
    assert "no https URL" in fails(beam_entra_cloud, ConfigError, **github[1]).message


# ---------------------------------------------------------------- another provider


@pytest.fixture
def provider(
    beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Provider, dict[str, str]]]:
    """A provider, and the settings of a job that is a client there."""
    host = Provider(beam_entra_cloud)
    with secure(host) as url:
        monkeypatch.setenv("PROVIDER_SECRET", host.secret)
        settings = {
            "assertion_from": "oidc",
            "oidc_endpoint": f"{url}/oauth2/default/v1/token",
            "oidc_client": host.client,
            "oidc_client_secret": "env:PROVIDER_SECRET",
            "assertion_ca_file": str(beam_entra_cloud.ca_file),
        }
        yield host, settings


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ({}, {}),
        (
            {"oidc_scope": "entra", "assertion_audience": TOKEN_EXCHANGE_AUDIENCE},
            {"scope": "entra", "audience": TOKEN_EXCHANGE_AUDIENCE},
        ),
    ],
    ids=["no scope", "scope and audience"],
)
def test_a_client_of_another_provider(beam_entra_cloud, provider, known, more, form):
    """Client credentials there, with a secret that needs encoding, make an assertion here."""
    host, settings = provider
    known(host.client)
    token = acquire(beam_entra_cloud, **settings, **more)
    assert (token.source, token.claims.appid) == ("federated:oidc", beam_entra_cloud.client_id)
    assert host.last.form() == {"grant_type": "client_credentials", **form}


def test_a_providers_old_secret_is_not_presented(beam_entra_cloud, provider, tmp_path):
    """A client secret at another provider ages like one at Entra."""
    host, settings = provider
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_text(host.secret)
    os.utime(file, (time.time() - 91 * 24 * 3600,) * 2)
    identity = identity_of(beam_entra_cloud, "federated", **settings | {"oidc_client_secret": f"file:{file}"})
    with pytest.raises(IdentityRejected, match="the oidc client secret is 91 days old or more"):
        EntraSource(replace(identity, strict=True), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert len(host.requests) == 0


def test_the_provider_refuses(beam_entra_cloud, provider, monkeypatch):
    """Its words are shown without the secret that they repeat."""
    monkeypatch.setenv("PROVIDER_SECRET", "short")
    error = fails(beam_entra_cloud, IdentityRejected, **provider[1])
    assert "HTTP 401: secret=[redacted] is wrong" in error.message
    assert "oidc_client_secret" in error.hint


@pytest.mark.parametrize("how", ["{secret}", "{pair}", "{form}"])
def test_the_provider_repeats_what_it_was_sent(beam_entra_cloud, provider, monkeypatch, caplog, how):
    """Whatever it calls it, and however it writes it: what was sent is known, and taken out."""
    host, settings = provider
    secret = "correct horse"
    monkeypatch.setenv("PROVIDER_SECRET", secret)
    basic = base64.b64encode(f"{quote_plus(host.client)}:{quote_plus(secret)}".encode()).decode()
    repeated = how.format(secret=secret, pair=basic, form=quote_plus(secret))
    host.instead = said(401, {"error_description": f"it was {repeated} that came"})
    with caplog.at_level(logging.DEBUG):
        error = fails(beam_entra_cloud, IdentityRejected, **settings)
    assert "it was [redacted] that came" in error.message
    assert repeated not in caplog.text + everything_in(error)


OIDC_TROUBLE = {
    "no token": Trouble(said(200, {"hello": "world"}), IdentityRejected, "something that is no assertion"),
    "an opaque token": Trouble(said(200, {"access_token": "0pAqUe"}), IdentityRejected, "that is no assertion"),
    "a page": Trouble(Answer(body=b"<html>Sign in"), IdentityRejected, "something that is no assertion"),
    "down": Trouble(Answer(status=502), IdentityUnavailable, "answered HTTP 502"),
    "throttled": Trouble(said(429, {"error": "slow"}, Retry_After="11"), IdentityUnavailable, "HTTP 429: slow"),
    "elsewhere": Trouble(Answer(status=307, headers={"Location": "/"}), IdentityRejected, "answered HTTP 307"),
    "endless": Trouble(Answer(body=b"x" * 300_000), IdentityUnavailable, "does not answer"),
}


@pytest.mark.parametrize("case", OIDC_TROUBLE.values(), ids=OIDC_TROUBLE)
def test_no_assertion_from_the_provider(beam_entra_cloud, provider, case):
    """Nothing that is no assertion is sent to Entra; what may pass is unavailable; a redirection is not followed."""
    host, settings = provider
    host.instead = case.answer
    error = fails(beam_entra_cloud, case.kind, **settings)
    assert case.says in error.message
    assert error.diagnosis.retry_after_s == (11 if "429" in case.says else None)
    assert "0pAqUe" not in str(error)
    assert len(host.requests) == 1
    assert beam_entra_cloud.tenant.token_requests == 0


def test_a_provider_that_cannot_be_trusted(beam_entra_cloud, provider, tmp_path):
    """A certificate of another CA: the secret is not sent."""
    host, settings = provider
    other = RunCertificates.issue(tmp_path / "other")
    error = fails(beam_entra_cloud, IdentityUnavailable, **settings | {"assertion_ca_file": str(other.ca_file)})
    assert "does not answer" in error.message
    assert len(host.requests) == 0


class Tunnel(socketserver.StreamRequestHandler):
    """A proxy that opens tunnels: CONNECT host:port."""

    def handle(self) -> None:
        lines = [self.rfile.readline().decode()]
        while lines[-1].strip():
            lines.append(self.rfile.readline().decode())
        self.server.asked.append("".join(lines))
        host, _, port = lines[0].split()[1].partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self._copy, args=(far, self.connection), daemon=True)
            back.start()
            self._copy(self.connection, far)
            back.join(10)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_the_world_outside_is_reached_through_the_proxy(beam_entra_cloud, provider, known, monkeypatch):
    """HTTPS_PROXY holds for providers as it does for Entra, its own password included; NO_PROXY takes hosts out."""
    host, settings = provider
    known(host.client)
    for name in ("https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as proxy:
        proxy.asked = []
        serving = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:w%40rd@127.0.0.1:{proxy.server_address[1]}")
            monkeypatch.setenv("NO_PROXY", "")
            acquire(beam_entra_cloud, **settings)
            endpoint = urlsplit(settings["oidc_endpoint"]).netloc
            basic = base64.b64encode(b"me:w@rd").decode()
            (asked,) = [each for each in proxy.asked if each.startswith(f"CONNECT {endpoint} ")]
            assert f"basic {basic}" in asked.replace("Basic", "basic")
            proxy.asked.clear()
            monkeypatch.delenv("HTTPS_PROXY")
            monkeypatch.setenv("ALL_PROXY", f"127.0.0.1:{proxy.server_address[1]}")
            acquire(beam_entra_cloud, **settings)
            assert [each for each in proxy.asked if each.startswith(f"CONNECT {endpoint} ")]
            proxy.asked.clear()
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            acquire(beam_entra_cloud, **settings)
            assert proxy.asked == []
        finally:
            proxy.shutdown()
            serving.join()


# ---------------------------------------------------------------- a command


def script(folder: Path, body: str) -> str:
    """An executable in Python; gives its path."""
    path = folder / "assert"
    path.write_text(f"#!{sys.executable}\n{body}", encoding="utf-8")
    path.chmod(stat.S_IRWXU)
    return str(path)


def test_a_command(beam_entra_cloud, tmp_path, monkeypatch):
    """It gets its words as they are quoted, no shell, the worker's environment and no input."""
    signed = beam_entra_cloud.issuer.assertion(DEFAULT_SUBJECT).reveal()
    monkeypatch.setenv("WHAT_TO_PRINT", signed)
    body = (
        "import os, sys\n"
        "assert sys.argv[1:] == ['--for', 'a job; $HOME', '*'], sys.argv\n"
        "assert sys.stdin.read() == ''\n"
        "print(os.environ['WHAT_TO_PRINT'])\n"
    )
    command = f"{script(tmp_path, body)} --for 'a job; $HOME' *"
    token = acquire(beam_entra_cloud, assertion_from="command", assertion_command=command)
    assert (token.source, token.claims.appid) == ("federated:command", beam_entra_cloud.client_id)


@dataclass(frozen=True)
class BadCommand:
    """What a command does, and what becomes of it."""

    body: str
    kind: type[BeamEntraError]
    says: str
    timeout: str = ""


BAD_COMMANDS = {
    "fails": BadCommand("import sys; sys.exit('the broker is down')", IdentityUnavailable, "said: the broker is down"),
    "fails without a word": BadCommand("import sys; sys.exit(3)", IdentityUnavailable, "ended with status 3"),
    "prints nothing": BadCommand("", IdentityRejected, "printed nothing"),
    "prints no assertion": BadCommand("print('Sign in, please')", IdentityRejected, "something that is no assertion"),
    "prints without end": BadCommand(
        "import sys\nwhile True: sys.stdout.write('x' * 4096)", IdentityRejected, "more than 64 KiB", "5m"
    ),
    "closes its output and stays": BadCommand(
        "import os, time; os.close(1); os.close(2); time.sleep(600)", IdentityUnavailable, "within 1 s", "1s"
    ),
    "is killed": BadCommand("import os; os.kill(os.getpid(), 9)", IdentityUnavailable, "ended with status -9"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_a_command_that_will_not_do(beam_entra_cloud, tmp_path, case):
    """Each has its own message; nothing is sent to Entra."""
    command = script(tmp_path, case.body)
    more = {"command_timeout": case.timeout} if case.timeout else {}
    error = fails(beam_entra_cloud, case.kind, assertion_from="command", assertion_command=command, **more)
    assert case.says in error.message
    assert f"run {command}" in error.hint or "see what it gives" in error.hint
    assert beam_entra_cloud.tenant.token_requests == 0


def test_a_command_that_hangs_is_killed_with_its_children(beam_entra_cloud, tmp_path):
    """At the timeout the whole group goes, so that nothing holds the pipe open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = f"import socket, time; s = socket.create_connection({listener.getsockname()!r}); time.sleep(600)"
        body = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)\n"
        error = fails(
            beam_entra_cloud,
            IdentityUnavailable,
            assertion_from="command",
            assertion_command=script(tmp_path, body),
            command_timeout="2s",
        )
        listener.settimeout(10)
        end, _ = listener.accept()
        with end:
            end.settimeout(10)
            assert end.recv(1) == b"", "the child is alive"
    assert "did not end within 2 s, and was killed" in error.message
    assert "command_timeout" in error.hint


def test_what_a_command_leaves_running_is_its_own(beam_entra_cloud, tmp_path):
    """One that has ended well is not killed after the fact: its process id may be somebody else's by then."""
    signed = beam_entra_cloud.issuer.assertion(DEFAULT_SUBJECT).reveal()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        child = (
            f"import socket; s = socket.create_connection({listener.getsockname()!r}); s.recv(1); s.sendall(b'alive')"
        )
        body = (
            "import subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
            f"\nprint({signed!r})\n"
        )
        acquire(beam_entra_cloud, assertion_from="command", assertion_command=script(tmp_path, body))
        end, _ = listener.accept()
        with end:
            end.settimeout(10)
            end.sendall(b"?")
            assert end.recv(5) == b"alive"


def test_a_command_that_leaves_its_pipe_to_a_child_does_not_hang(beam_entra_cloud, tmp_path):
    """It ends itself, and its child keeps standard output: the timeout counts until both are closed."""
    body = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    error = fails(
        beam_entra_cloud,
        IdentityUnavailable,
        assertion_from="command",
        assertion_command=script(tmp_path, body),
        command_timeout="1s",
    )
    assert "did not end" in error.message


def test_what_a_command_says_is_shown_without_secrets(beam_entra_cloud, tmp_path, monkeypatch):
    """Neither what it printed, nor what the environment holds, nor what looks like a secret; and not all of it."""
    assertion = beam_entra_cloud.issuer.assertion(DEFAULT_SUBJECT).reveal()
    monkeypatch.setenv("BROKER_PASSWORD", "correct-horse")
    monkeypatch.setenv("ASSERTION", assertion)
    key = secrets.token_urlsafe(24) + "a1"
    monkeypatch.setenv("SENT", key)
    body = (
        "import os, sys\n"
        "print(os.environ['ASSERTION'])\n"
        "sys.exit('asked with correct-horse and ' + os.environ['ASSERTION'] + ' and password: hunter2 key '\n"
        "         + os.environ['SENT'] + ' Bearer xyzzy\\n' + 'x ' * 5000)\n"
    )
    error = fails(
        beam_entra_cloud, IdentityUnavailable, assertion_from="command", assertion_command=script(tmp_path, body)
    )
    assert "said: asked with [redacted] and [redacted]" in error.message
    for secret in ("correct-horse", "hunter2", key, "xyzzy", assertion):
        assert secret not in everything_in(error)
    assert len(error.message) < 500


@pytest.mark.parametrize(
    ("mode", "says", "kind"),
    [(None, "No such file", IdentityRejected), (0o600, "Permission denied", IdentityRejected)],
    ids=["missing", "not executable"],
)
def test_a_command_that_cannot_be_run(beam_entra_cloud, tmp_path, mode, says, kind):
    """The reason is the system's."""
    path = tmp_path / "assert"
    if mode:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    assert says in fails(beam_entra_cloud, kind, assertion_from="command", assertion_command=str(path)).message


# ---------------------------------------------------------------- what a manifest may say

OIDC = {"assertion_from": "oidc", "oidc_endpoint": "https://idp.example/token", "oidc_client": "c"}
GITHUB = {"assertion_from": "github", "github_url": "env:U"}
WRONG = {
    "no place named": ({}, "needs assertion_from"),
    "an unknown place": ({"assertion_from": "azure"}, "knows no kind 'azure'"),
    "file without a path": ({"assertion_from": "file"}, "needs assertion_file"),
    "a file in a vault": (
        {
            "assertion_from": "file",
            "assertion_file": "keyvault:https://contoso.vault.azure.net/secrets/a",
            "keyvault_credential": "managed_identity",
        },
        "assertion_file: is no path",
    ),
    "a setting of another place": ({"assertion_from": "gcp", "aws_region": "eu-west-1"}, "knows no setting aws_region"),
    "aws without a region": ({"assertion_from": "aws"}, "needs aws_region"),
    "no region": ({"assertion_from": "aws", "aws_region": "global"}, "aws_region: is no region"),
    "oidc over http": (OIDC | {"oidc_endpoint": "http://x/", "oidc_client_secret": "env:S"}, "is no https URL"),
    "oidc with a user in the URL": (
        OIDC | {"oidc_endpoint": "https://me:pw@idp.example/", "oidc_client_secret": "env:S"},
        "is no https URL",
    ),
    "oidc with the secret itself": (OIDC | {"oidc_client_secret": "hunter2"}, "is no reference to a secret"),
    "oidc without a secret": (OIDC, "needs oidc_client_secret"),
    "a relative CA file": (
        OIDC | {"oidc_client_secret": "env:S", "assertion_ca_file": "ca.pem"},
        "assertion_ca_file: is not absolute",
    ),
    "github's token itself": (GITHUB | {"github_token": "hunter2"}, "github_token is no reference"),
    "github's URL itself": (GITHUB | {"github_url": "https://x", "github_token": "env:T"}, "names no environment"),
    "a command by its name": ({"assertion_from": "command", "assertion_command": "assert"}, "in full"),
    "a command without an end": ({"assertion_from": "command", "assertion_command": "/bin/x 'y"}, "in full"),
    "no time": (
        {"assertion_from": "command", "assertion_command": "/bin/x", "command_timeout": "soon"},
        "command_timeout: is not a duration",
    ),
    "too much time": (
        {"assertion_from": "command", "assertion_command": "/bin/x", "command_timeout": "1000m"},
        "command_timeout: is out of range",
    ),
}


@pytest.mark.parametrize(("settings", "says"), WRONG.values(), ids=WRONG)
def test_settings_that_will_not_do(beam_entra_cloud, settings, says):
    """Found at launch, without a network, and never with a secret in the error."""
    with pytest.raises(ConfigError, match=says) as caught:
        check_credential(identity_of(beam_entra_cloud, "federated", **settings))
    assert caught.value.hint
    assert "hunter2" not in str(caught.value)
