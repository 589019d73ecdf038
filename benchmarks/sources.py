"""The job's identity by each credential source that can run on one machine."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.identity import EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud

__all__ = ["every_source"]

_LIFE = timedelta(days=1)


@contextmanager
def every_source(cloud: LocalCloud) -> Iterator[tuple[dict[str, dict[str, str]], dict[str, str]]]:
    """Let the cloud's app be proven in every way.

    Returns:
        For each source what `[identity]` of a manifest says, and the variables that it finds in the environment. What
        is secret is in the latter, and in files of the cloud's folder that only their owner can read.
    """
    assertion = "env:AZURE_FEDERATED_TOKEN_FILE"
    certificate = cloud.folder / "certificate.pem"
    write_private(certificate, _certificate(cloud))
    printing = shlex.join([shutil.which("cat") or "/bin/cat", str(cloud.assertion_file)])
    identities = {
        "federated_file": {"credential": "federated_file", "assertion_file": assertion},
        "workload_identity": {"credential": "workload_identity"},
        "command": {"credential": "federated", "assertion_from": "command", "assertion_command": printing},
        "client_secret": {"credential": "client_secret", "client_secret": "env:BENCH_CLIENT_SECRET"},
        "certificate": {"credential": "certificate", "certificate": f"file:{certificate}"},
        "managed_identity": {"credential": "managed_identity"},
    }
    with _app_service(cloud) as found:
        yield identities, {"BENCH_CLIENT_SECRET": cloud.app.add_secret().reveal(), **found}


def _certificate(cloud: LocalCloud) -> bytes:
    """A certificate of the app, with its key, as PEM."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = utc_now()
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - _LIFE, now + _LIFE)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    cloud.app.add_certificate(made)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + made


@contextmanager
def _app_service(cloud: LocalCloud) -> Iterator[Mapping[str, str]]:
    """App Service's identity endpoint; gives what a worker finds of it in its environment."""
    header = secrets.token_hex(16)
    settings = {"assertion_file": str(cloud.assertion_file)}
    identity = IdentitySettings(
        tenant=cloud.tenant_id,
        client=cloud.client_id,
        authority=cloud.authority,
        ca_file=str(cloud.ca_file),
        credential="federated_file",
        settings=settings,
    )
    source = EntraSource(identity, clock=utc_now)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = 401, {"message": "Unauthorized"}
            if self.headers.get("X-IDENTITY-HEADER") == header:
                token = source.acquire(parse_qs(urlsplit(self.path).query)["resource"][0])
                expires = str(int(token.expires.timestamp()))
                status, document = 200, {"access_token": token.secret.reveal(), "expires_on": expires}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(document).encode("ascii"))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/msi/token"
        yield {"IDENTITY_ENDPOINT": url, "IDENTITY_HEADER": header}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
