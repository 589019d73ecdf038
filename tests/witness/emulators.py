"""Servers that others wrote, as processes of the tests: entra-emulator, azure-keyvault-emulator.

They are looked for as executables in `$BEAM_ENTRA_CACHE/witnesses`; docs/witnesses.md says more.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlencode

import pytest
import urllib3

from beam_entra.secret import Secret
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE
from beam_entra.testing.node import default_cache
from beam_entra.testing.watch import Journal

_START_S = 20.0
_POLL_S = 0.02
_PORTS_TO_TRY = 3
_DAY_S = 86_400
_NOT_PASSED_ON = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
# The emulators watch no standard input, so a shell does: when the tests end, however they end, the kernel closes its
# pipe, and it ends the emulator; when the emulator ends, it ends.
_LEAVE_WITH_TESTS = 'exec 3<&0; "$@" 3<&- & child=$!; { cat <&3 >&2; kill $child; } & wait $child'


def find_witness(name: str) -> Path:
    """The executable; skips the test where there is none."""
    found = default_cache() / "witnesses" / name
    if not os.access(found, os.X_OK):
        pytest.skip(f"{name} is not on this machine: docs/witnesses.md says where it has to be")
    return found


class Process:
    """A server's process, which ends with the tests."""

    def __init__(self, command: list[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "output"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _LEAVE_WITH_TESTS, "sh", *command],
                cwd=folder,
                env={"PATH": os.defpath, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for_answer(self, http: urllib3.PoolManager, url: str) -> bool:
        """Whether it answers; it may end instead."""
        until = time.monotonic() + _START_S
        while self._process.poll() is None:
            try:
                return http.request("GET", url).status == 200
            except urllib3.exceptions.HTTPError as error:
                if time.monotonic() > until:
                    raise TimeoutError(f"{url} does not answer: {self.said}") from error
                time.sleep(_POLL_S)
        return False

    def close(self) -> None:
        """End it, and wait for its end."""
        stdin: IO[bytes] | None = self._process.stdin
        if stdin is not None:
            stdin.close()
        self._process.wait(10)


class Server:
    """What all of them have: a folder, a port, a client that trusts the run's CA."""

    name: str
    scheme = "https"
    health = "/health"

    def __init__(self, certificates: RunCertificates) -> None:
        self.certificates = certificates
        self.http = urllib3.PoolManager(ca_certs=str(certificates.ca_file), retries=False, timeout=10)
        self.url = ""
        self._up = ExitStack()

    def find(self) -> Path:
        """What to run; skips the test where there is nothing."""
        return find_witness(self.name)

    def command(self, executable: Path, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        """Its command line and environment."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start it on a free port and wait until it answers."""
        executable = self.find()
        self._up.callback(self.http.clear)
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self._up.callback(shutil.rmtree, folder, ignore_errors=True)
        said = ""
        for _ in range(_PORTS_TO_TRY):  # somebody else may take the port that was free a moment ago
            port = _free_port()
            command, environment = self.command(executable, port, folder)
            process = Process(command, folder=folder, environment=environment)
            url = f"{self.scheme}://127.0.0.1:{port}"
            if process.wait_for_answer(self.http, url + self.health):
                self._up.callback(process.close)
                self.url = url
                return self
            said = process.said
            process.close()
        self.close()
        raise RuntimeError(f"{self.name} did not start: {said}")

    def close(self) -> None:
        """End it. Safe to call twice."""
        self._up.close()

    def ask(self, method: str, path: str, document: object = None, **headers: str) -> dict[str, Any]:
        """One request to its own interface; it has to succeed."""
        body = None if document is None else json.dumps(document)
        typed = {"Content-Type": "application/json", **headers}
        answer = self.http.request(method, self.url + path, body=body, headers=typed)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.data.decode()}"
        answered: dict[str, Any] = answer.json() if answer.data else {}
        return answered

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedApp:
    """An app of entra-emulator, with the methods of the local tenant's."""

    emulator: EntraEmulator = field(repr=False)
    client_id: str

    def add_secret(self) -> Secret:
        made = self._add("secrets", displayName="s")
        return Secret(made["secretText"], what="client secret")

    def remove_secrets(self) -> None:
        for secret in self.emulator.ask("GET", f"/admin/api/apps/{self.client_id}")["secrets"]:
            self._remove("secrets", secret["id"])

    def add_certificate(self, certificate: bytes) -> str:
        return str(self._add("keyCredentials", displayName="c", publicKey=certificate.decode())["id"])

    def remove_certificate(self, certificate_id: str) -> None:
        self._remove("keyCredentials", certificate_id)

    def add_federated_credential(self, issuer: str, subject: str, audience: str = TOKEN_EXCHANGE_AUDIENCE) -> str:
        made = self._add(
            "federated-credentials",
            name=f"f-{uuid.uuid4().hex[:8]}",
            issuer=issuer,
            subject=subject,
            audiences=[audience],
        )
        return str(made["id"])

    def remove_federated_credential(self, credential_id: str) -> None:
        self._remove("federated-credentials", credential_id)

    def _add(self, kind: str, **document: object) -> dict[str, Any]:
        return self.emulator.ask("POST", f"/admin/api/apps/{self.client_id}/{kind}", document)

    def _remove(self, kind: str, credential_id: str) -> None:
        self.emulator.ask("DELETE", f"/admin/api/apps/{self.client_id}/{kind}/{credential_id}")


class EntraEmulator(Server):
    """entra-emulator, in memory.

    Attributes:
        authority: Where clients find it: itself, unless something stands in front of it.
        identity_header: What its App Service endpoint wants to see.
    """

    name = "entra-emulator"

    def __init__(self, certificates: RunCertificates, *, authority: str = "", token_life_s: int = 3600) -> None:
        super().__init__(certificates)
        self.tenant_id = str(uuid.uuid4())
        self.identity_header = secrets.token_hex(16)
        self._authority, self._token_life_s = authority, token_life_s

    @property
    def authority(self) -> str:
        return self._authority or self.url

    @property
    def token_url(self) -> str:
        return f"{self.authority}/{self.tenant_id}/oauth2/v2.0/token"

    @contextlib.contextmanager
    def days_ago(self, days: int) -> Iterator[None]:
        """Its clock is so many days behind meanwhile."""
        self.ask("POST", "/admin/api/clock", {"offsetSeconds": -days * _DAY_S})
        try:
            yield
        finally:
            self.ask("DELETE", "/admin/api/clock")

    def command(self, executable: Path, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        return [str(executable)], {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "PUBLIC_ORIGIN": self._authority or f"https://127.0.0.1:{port}",
            "TENANT_ID": self.tenant_id,
            "ISSUER": f"https://sts.windows.net/{self.tenant_id}/",  # what Azurite wants to see
            "ENTRA_DATA_DIR": "",
            "TLS_CERT": str(self.certificates.server_file),
            "TLS_KEY": str(self.certificates.key_file),
            "SSL_CERT_FILE": str(self.certificates.ca_file),  # for the keys of outside issuers
            "MANAGED_IDENTITY_SECRET": self.identity_header,
            "TOKEN_LIFETIME_ACCESS_SECONDS": str(self._token_life_s),
        }

    def register_app(self) -> EmulatedApp:
        made = self.ask("POST", "/admin/api/apps", {"displayName": "job", "isConfidential": True})
        return EmulatedApp(emulator=self, client_id=made["id"])

    def revoke(self, app: EmulatedApp) -> None:
        """Delete the app."""
        self.ask("DELETE", f"/admin/api/apps/{app.client_id}")


class Front:
    """Stands in front of an emulator: passes all through, and puts `oid` and `uti` into its tokens.

    Entra's app-only tokens have both; Azurite gives no user delegation key without the first. The signature is then
    that of the token before, which Azurite does not check.

    Attributes:
        requests: Method and path of each request, and the answer's status; oldest first.
        issued: Every token that it gave out.
    """

    def __init__(self, certificates: RunCertificates) -> None:
        self.requests: Journal[tuple[str, str, int]] = Journal()
        self.issued: Journal[Secret] = Journal()
        self.emulator: Server | None = None
        self._server = HttpsServer(certificates.server_context(), ServiceHandler, self, name="front").start()

    @property
    def url(self) -> str:
        return self._server.url

    def answer(self, request: Request) -> Answer:
        """Pass it on. Serves plain HTTP as well, where a fixture asks for that."""
        assert self.emulator is not None
        query = f"?{urlencode(request.query)}" if request.query else ""
        answer = self.emulator.http.request(
            request.method,
            f"{self.emulator.url}{request.path}{query}",
            body=request.body,
            headers={name: value for name, value in request.headers.items() if name not in _NOT_PASSED_ON},
        )
        body = answer.data
        if answer.status == 200 and request.path.endswith("/token"):
            body = self._completed(answer.json(), request.form())
        self.requests.append((request.method, request.path, answer.status))
        headers = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
        return Answer(status=answer.status, headers=headers, body=body)

    def _completed(self, document: dict[str, Any], form: dict[str, str]) -> bytes:
        head, payload, signature = document["access_token"].split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        claims |= {"oid": claims["sub"], "uti": secrets.token_urlsafe(16)}
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        document["access_token"] = f"{head}.{payload}.{signature}"
        self.issued.append(Secret(document["access_token"], what="access token"))
        return json.dumps(document).encode()

    def close(self) -> None:
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VaultEmulator(Server):
    """azure-keyvault-emulator; takes the tokens of one entra-emulator for the vault's audience."""

    name = "azure-keyvault-emulator"

    def __init__(self, certificates: RunCertificates, entra: EntraEmulator) -> None:
        super().__init__(certificates)
        self._entra = entra

    def command(self, executable: Path, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        tls = folder / "tls"  # where it would put a certificate of its own
        tls.mkdir(exist_ok=True)
        shutil.copy(self.certificates.server_file, tls / "cert.pem")
        shutil.copy(self.certificates.key_file, tls / "key.pem")
        keys = f"{self._entra.url}/{self._entra.tenant_id}/discovery/v2.0/keys"
        return [str(executable)], {
            "KV_ADDR": f"127.0.0.1:{port}",
            "KV_DATA_DIR": str(folder),
            "KV_ENTRA_ISSUER": f"https://sts.windows.net/{self._entra.tenant_id}/",
            "KV_ENTRA_JWKS_URL": keys,
            "SSL_CERT_FILE": str(self.certificates.ca_file),
        }

    @property
    def host(self) -> str:
        return self.url.removeprefix("https://")

    @contextlib.contextmanager
    def days_ago(self, days: int) -> Iterator[None]:
        """Its clock is so many days behind meanwhile."""
        self.ask("POST", "/_emulator/clock", {"offset": -days * _DAY_S})
        try:
            yield
        finally:
            self.ask("POST", "/_emulator/clock", {"offset": 0})

    def set_secret(self, name: str, value: str, token: str) -> str:
        """Put a secret there, and return its version."""
        made = self.ask("PUT", f"/secrets/{name}?api-version=7.5", {"value": value}, Authorization=f"Bearer {token}")
        return re.sub(r".*/", "", made["id"])


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
