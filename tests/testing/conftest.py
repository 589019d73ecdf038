"""Fixtures for the kit's own tests: certificates once, a tenant and an issuer for each test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.keys import base64url
from beam_entra.testing.tenant import STORAGE, LocalTenant

Post = Callable[..., "Reply"]


class Reply:
    """A response of the token endpoint, with Entra's JSON taken apart."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.data.decode("utf-8")
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        self.json: dict[str, Any] = json.loads(self.text) if is_json else {}

    @property
    def code(self) -> int:
        """The AADSTS code; 0 when there is none."""
        return int(self.json.get("error_codes", [0])[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A self-signed RSA certificate that an app proves itself with."""

    key: rsa.RSAPrivateKey
    private: bytes
    public: bytes
    x5t: str


@pytest.fixture(scope="session")
def client_certificate() -> ClientCertificate:
    """One client certificate for all tests here."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return ClientCertificate(
        key=key,
        private=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        public=made.public_bytes(serialization.Encoding.PEM),
        x5t=base64url(made.fingerprint(hashes.SHA1())),  # noqa: S303  # x5t is defined as SHA-1
    )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> RunCertificates:
    """One CA for all tests here."""
    return RunCertificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def http(certificates: RunCertificates) -> Iterator[urllib3.PoolManager]:
    """A client that trusts the CA, follows nothing and retries nothing."""
    with urllib3.PoolManager(ca_certs=str(certificates.ca_file), retries=False, timeout=10) as pool:
        yield pool


@pytest.fixture
def tenant(certificates: RunCertificates) -> Iterator[LocalTenant]:
    """A tenant of the test's own."""
    with LocalTenant(certificates) as made:
        yield made


@pytest.fixture
def issuer(certificates: RunCertificates) -> Iterator[WorkloadIssuer]:
    """A workload issuer of the test's own."""
    with WorkloadIssuer(certificates) as made:
        yield made


@pytest.fixture
def identity_options(certificates: RunCertificates, tenant: LocalTenant) -> dict[str, Any]:
    """What makes a credential of azure-identity talk to the tenant, once and without retries."""
    return {
        "authority": tenant.authority,
        "disable_instance_discovery": True,
        "connection_verify": str(certificates.ca_file),
        "retry_total": 0,
    }


@pytest.fixture
def post(http: urllib3.PoolManager, tenant: LocalTenant) -> Post:
    """A function that posts a client credentials form to the tenant's token endpoint."""

    def send(*, url: str = "", headers: dict[str, str] | None = None, **form: str) -> Reply:
        fields = {"grant_type": "client_credentials", "scope": f"{STORAGE}/.default"} | form
        body = urlencode({name: value for name, value in fields.items() if value != "-"})
        typed = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
        return Reply(http.request("POST", url or tenant.token_url, body=body, headers=typed))

    return send


@pytest.fixture(scope="session")
def process_is_gone() -> Callable[[int], bool]:
    """Whether a process id stands for no process of ours any more."""

    def gone(pid: int) -> bool:
        if Path("/proc/self").exists():
            return not Path(f"/proc/{pid}").exists()
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    return gone
