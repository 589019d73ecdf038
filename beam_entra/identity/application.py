"""What an application owns: a certificate, or a client secret. Each stands by reference in the manifest."""

from __future__ import annotations

import base64
import binascii
import os
from datetime import datetime

from azure.core.credentials import SupportsTokenInfo
from azure.identity import CertificateCredential, ClientSecretCredential
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from beam_entra.access.manifest import IdentitySettings
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.identity.registry import Connection, register

__all__ = ["certificate", "client_secret"]

_REGIONS = ("AZURE_REGIONAL_AUTHORITY_NAME", "MSAL_FORCE_REGION")
_PEM = b"-----BEGIN"


@register("client_secret", required=("client_secret",), references=("client_secret",))
def client_secret(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """A secret that the worker reads where the reference says. Prefer a credential without any."""
    _check_region()
    secret = connection.secret("client_secret")
    return ClientSecretCredential(identity.tenant, identity.client, secret.reveal(), **connection)


@register(
    "certificate",
    required=("certificate",),
    optional=("certificate_password",),
    references=("certificate", "certificate_password"),
)
def certificate(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """A certificate with its private key, PEM or PFX. The key signs an assertion; it goes nowhere."""
    _check_region()
    data = _decoded(connection.content("certificate"))
    password = connection.secret("certificate_password").reveal() if "certificate_password" in identity.settings else ""
    try:
        ends = _ends(data, password)
        credential = CertificateCredential(
            identity.tenant,
            identity.client,
            certificate_data=data,
            password=password or None,
            **connection,
        )
    except (ValueError, TypeError):
        raise ConfigError(
            "[identity] certificate refers to something that cannot be opened as a certificate with an RSA private key",
            Diagnosis(
                hint="give it both, certificate and key, as PEM or PFX; a key that is encrypted needs "
                "certificate_password, one that is not must have none"
            ),
        ) from None
    connection.rotation.check("certificate", ends=ends)
    return credential


def _check_region() -> None:
    """Nothing ambient decides where a secret goes. azure-identity and MSAL let these two, with no way to say no."""
    for name in _REGIONS:
        if not os.environ.get(name):
            os.environ.pop(name, None)  # MSAL takes an empty one for the name of a region, and fails
        else:
            raise ConfigError(
                f"the worker's environment has {name}, which moves token requests to another host than [identity] "
                "authority",
                Diagnosis(hint=f"unset {name} where the workers run; name the host as authority if it is wanted"),
            )


def _decoded(data: bytes) -> bytes:
    """PEM and PFX as they are; a PFX in base64, as Key Vault and environment variables hold it, decoded."""
    if _PEM in data:
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return data


def _ends(data: bytes, password: str) -> datetime:
    if _PEM in data:
        return x509.load_pem_x509_certificate(data).not_valid_after_utc
    _, certificate, _ = pkcs12.load_key_and_certificates(data, password.encode() or None)
    if certificate is None:
        raise ValueError("there is no certificate in it")
    return certificate.not_valid_after_utc
