"""Certificates and client secrets: as PEM or PFX, from a variable, a file or Key Vault."""

from __future__ import annotations

import base64
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError, IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import identity_of
from tests.identity.leaks import everything_in


@dataclass(frozen=True)
class Made:
    """A self-signed certificate and its key."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, *, life: timedelta = timedelta(days=90), curve: bool = False) -> Made:
        key = ec.generate_private_key(ec.SECP256R1()) if curve else rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders")])
        start = utc_now() - timedelta(days=365)
        built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number()).not_valid_before(start)
        return cls(key, built.not_valid_after(utc_now() + life).sign(key, hashes.SHA256()))

    @property
    def public(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def pem(self, password: str = "") -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _how(password)) + self.public

    def pfx(self, password: str = "") -> bytes:
        return pkcs12.serialize_key_and_certificates(b"orders", self.key, self.certificate, None, _how(password))


def _how(password: str) -> KeySerializationEncryption:
    return BestAvailableEncryption(password.encode()) if password else NoEncryption()


@pytest.fixture(scope="module")
def made() -> Made:
    """One certificate for the module: a key takes a while."""
    return Made.new()


def acquire(cloud: LocalCloud, folder: Path, data: bytes, **settings: str) -> AccessToken:
    """One attempt with this file."""
    write_private(folder / "certificate", data)
    settings = {"certificate": f"file:{folder / 'certificate'}", **settings}
    return EntraSource(identity_of(cloud, "certificate", **settings), clock=utc_now).acquire(STORAGE_AUDIENCE)


FORMS: dict[str, Callable[[Made, str], bytes]] = {
    "PEM": lambda made, password: made.pem(),
    "PEM, encrypted": lambda made, password: made.pem(password),
    "PFX": lambda made, password: made.pfx(),
    "PFX, encrypted": lambda made, password: made.pfx(password),
    "PFX in base64": lambda made, password: base64.encodebytes(made.pfx(password)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_certificate(beam_entra_cloud, tmp_path, monkeypatch, caplog, made, form):
    """The tenant checks thumbprint and signature of the assertion; nothing of key and password is logged."""
    password = secrets.token_hex(12)
    monkeypatch.setenv("CERTIFICATE_PASSWORD", password)
    settings = {"certificate_password": "env:CERTIFICATE_PASSWORD"} if "encrypted" in form or "base64" in form else {}
    registered = beam_entra_cloud.app.add_certificate(made.public)
    try:
        with caplog.at_level(logging.DEBUG):
            token = acquire(beam_entra_cloud, tmp_path, FORMS[form](made, password), **settings)
    finally:
        beam_entra_cloud.app.remove_certificate(registered)
    assert (token.source, token.claims.appid) == ("certificate", beam_entra_cloud.client_id)
    assert [request.grant for request in beam_entra_cloud.tenant.requests if request.kind == "token"] == ["certificate"]
    assert beam_entra_cloud.find_leaks(caplog.text) == []
    assert password not in caplog.text
    assert "PRIVATE KEY" not in caplog.text


def test_a_certificate_in_a_variable(beam_entra_cloud, monkeypatch, made):
    """PEM stands in one as it is."""
    monkeypatch.setenv("CERTIFICATE", made.pem().decode())
    registered = beam_entra_cloud.app.add_certificate(made.public)
    try:
        identity = identity_of(beam_entra_cloud, "certificate", certificate="env:CERTIFICATE")
        assert EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE).source == "certificate"
    finally:
        beam_entra_cloud.app.remove_certificate(registered)


def test_a_certificate_that_is_replaced_is_read_again(beam_entra_cloud, tmp_path, made):
    """After a rotation the next token uses the new one."""
    first, second = made, Made.new()
    write_private(tmp_path / "certificate", first.pem())
    identity = identity_of(beam_entra_cloud, "certificate", certificate=f"file:{tmp_path / 'certificate'}")
    source = EntraSource(identity, clock=utc_now)
    registered = beam_entra_cloud.app.add_certificate(second.public)
    try:
        with pytest.raises(IdentityRejected):
            source.acquire(STORAGE_AUDIENCE)
        write_private(tmp_path / "certificate", second.pem())
        assert source.acquire(STORAGE_AUDIENCE).claims.appid == beam_entra_cloud.client_id
    finally:
        beam_entra_cloud.app.remove_certificate(registered)


def test_a_certificate_that_is_not_registered(beam_entra_cloud, tmp_path, made):
    """Entra's code, and that the certificate has to be the application's."""
    with pytest.raises(IdentityRejected) as caught:
        acquire(beam_entra_cloud, tmp_path, made.pem())
    assert caught.value.diagnosis.code == "AADSTS700027"
    assert "registered with the application" in caught.value.hint
    assert "PRIVATE KEY" not in everything_in(caught.value)


def test_a_certificate_that_somebody_else_signs_for(beam_entra_cloud, tmp_path, made):
    """The tenant's own check: the thumbprint of one certificate and the key of another do not make an assertion."""
    registered = beam_entra_cloud.app.add_certificate(made.public)
    forged = Made(Made.new().key, made.certificate)
    try:
        with pytest.raises(IdentityRejected) as caught:
            acquire(beam_entra_cloud, tmp_path, forged.pem())
    finally:
        beam_entra_cloud.app.remove_certificate(registered)
    assert caught.value.diagnosis.code == "AADSTS700027"


def test_a_certificate_that_has_expired(beam_entra_cloud, tmp_path):
    """It says since when, and is not presented."""
    with pytest.raises(IdentityRejected, match="expired: it was good until") as caught:
        acquire(beam_entra_cloud, tmp_path, Made.new(life=timedelta(days=-2)).pem())
    assert "make a new one" in caught.value.hint
    assert beam_entra_cloud.tenant.token_requests == 0


CANNOT_BE_OPENED: dict[str, tuple[Callable[[Made], bytes], str]] = {
    "no key": (lambda made: made.public, ""),
    "no certificate": (lambda made: made.pem().partition(b"-----BEGIN CERT")[0], ""),
    "a wrong password": (lambda made: made.pem("another"), "wrong-one"),
    "a wrong password, PFX": (lambda made: made.pfx("another"), "wrong-one"),
    "no password": (lambda made: made.pem("another"), ""),
    "a password too many": (lambda made: made.pem(), "wrong-one"),
    "an elliptic curve": (lambda made: Made.new(curve=True).pem(), ""),
    "anything": (lambda made: b"anything", ""),
}


@pytest.mark.parametrize("case", CANNOT_BE_OPENED)
def test_a_certificate_that_cannot_be_opened(beam_entra_cloud, tmp_path, monkeypatch, made, case):
    """One message for all of them, with what to look at; neither key nor password is in it."""
    make, password = CANNOT_BE_OPENED[case]
    monkeypatch.setenv("CERTIFICATE_PASSWORD", password)
    settings = {"certificate_password": "env:CERTIFICATE_PASSWORD"} if password else {}
    with pytest.raises(ConfigError, match="cannot be opened as a certificate") as caught:
        acquire(beam_entra_cloud, tmp_path, make(made), **settings)
    assert "certificate_password" in caught.value.hint
    shown = everything_in(caught.value)
    assert "PRIVATE KEY" not in shown
    assert "wrong-one" not in shown


@pytest.mark.parametrize("setting", ["certificate", "certificate_password"])
def test_a_file_that_others_can_read(beam_entra_cloud, tmp_path, made, setting):
    """It is refused where it is read, whichever of the two it is."""
    for name in ("certificate", "password"):
        write_private(tmp_path / name, made.pem() if name == "certificate" else b"x")
    (tmp_path / setting.removeprefix("certificate_")).chmod(0o640)
    settings = {
        "certificate": f"file:{tmp_path / 'certificate'}",
        "certificate_password": f"file:{tmp_path / 'password'}",
    }
    with pytest.raises(ConfigError, match="others on the machine can read") as caught:
        EntraSource(identity_of(beam_entra_cloud, "certificate", **settings), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert f"[identity] {setting} refers" in caught.value.message
    assert "chmod 600" in caught.value.hint


def test_a_path_is_no_reference(beam_entra_cloud):
    """Nothing stands in the manifest but a reference."""
    with pytest.raises(ConfigError, match="certificate is no reference"):
        EntraSource(identity_of(beam_entra_cloud, "certificate", certificate="/etc/job.pem"), clock=utc_now)
