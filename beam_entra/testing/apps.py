"""An app registration of the local tenant, and the credentials that prove it."""

from __future__ import annotations

import hmac
import secrets
import threading
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from beam_entra.clock import Clock
from beam_entra.errors import ConfigError
from beam_entra.secret import Secret
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE
from beam_entra.testing.keys import base64url
from beam_entra.testing.refusals import Refused

__all__ = ["App", "AppCertificate", "ClientSecret", "FederatedCredential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSecret:
    """A client secret, known by its id once it has been handed out."""

    id: str
    expires: datetime
    secret: Secret = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppCertificate:
    """The public half of a certificate that an app signs its assertions with.

    Attributes:
        thumbprints: As an assertion's header names it: `x5t`, `x5t#S256`.
    """

    id: str
    key: rsa.RSAPublicKey
    thumbprints: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederatedCredential:
    """Which outside issuer's assertions, for which subject and audience, stand for the app."""

    id: str
    issuer: str
    subject: str
    audience: str


class App:
    """One app registration. Safe to change while the tenant serves."""

    def __init__(self, *, client_id: str, display_name: str, roles: tuple[str, ...], clock: Clock) -> None:
        self.client_id = client_id
        self.display_name = display_name
        self.object_id = str(uuid.uuid4())
        self.roles = roles
        self._clock = clock
        self._lock = threading.Lock()
        self._enabled = True
        self._secrets: dict[str, ClientSecret] = {}
        self._certificates: dict[str, AppCertificate] = {}
        self._federated: dict[str, FederatedCredential] = {}
        self._handed_out: list[Secret] = []

    @property
    def enabled(self) -> bool:
        """Whether it may get tokens."""
        with self._lock:
            return self._enabled

    @property
    def handed_out(self) -> list[Secret]:
        """Every client secret it ever had, for a test that searches for leaks."""
        with self._lock:
            return list(self._handed_out)

    def disable(self) -> None:
        """Refuse its requests with AADSTS7000112 from now on."""
        with self._lock:
            self._enabled = False

    def enable(self) -> None:
        """Take `disable` back."""
        with self._lock:
            self._enabled = True

    def add_secret(self, *, life: timedelta = timedelta(days=180)) -> Secret:
        """Make a client secret. This is the only time that it is handed out.

        Args:
            life: From now until it expires; negative for one that has expired already.
        """
        text = Secret(f"{secrets.token_urlsafe(3)}8Q~{secrets.token_urlsafe(26)}", what="client secret")
        made = ClientSecret(id=str(uuid.uuid4()), expires=self._clock() + life, secret=text)
        with self._lock:
            self._secrets[made.id] = made
            self._handed_out.append(text)
        return text

    def remove_secrets(self) -> None:
        """Remove every client secret."""
        with self._lock:
            self._secrets.clear()

    def add_certificate(self, certificate: bytes) -> str:
        """Register the public half of a certificate (PEM or DER, RSA), and return its id."""
        pem = certificate.lstrip().startswith(b"-----")
        parsed = x509.load_pem_x509_certificate(certificate) if pem else x509.load_der_x509_certificate(certificate)
        key = parsed.public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise ConfigError("an app's certificate must hold an RSA key")
        sha1 = parsed.fingerprint(hashes.SHA1())  # noqa: S303  # x5t is defined as SHA-1 (RFC 7515, 4.1.7)
        thumbprints = frozenset({base64url(sha1), base64url(parsed.fingerprint(hashes.SHA256())), sha1.hex().upper()})
        made = AppCertificate(id=str(uuid.uuid4()), key=key, thumbprints=thumbprints)
        with self._lock:
            self._certificates[made.id] = made
        return made.id

    def remove_certificate(self, certificate_id: str) -> None:
        """Remove a certificate by the id that `add_certificate` returned."""
        with self._lock:
            del self._certificates[certificate_id]

    def add_federated_credential(self, issuer: str, subject: str, audience: str = TOKEN_EXCHANGE_AUDIENCE) -> str:
        """Let an issuer's assertions for one subject stand for this app, and return the credential's id."""
        made = FederatedCredential(id=str(uuid.uuid4()), issuer=issuer, subject=subject, audience=audience)
        with self._lock:
            self._federated[made.id] = made
        return made.id

    def remove_federated_credential(self, credential_id: str) -> None:
        """Remove a federated credential by the id that `add_federated_credential` returned."""
        with self._lock:
            del self._federated[credential_id]

    def check_secret(self, presented: str) -> None:
        """Accept one of the app's living secrets.

        Raises:
            Refused: 7000215 when there is no such secret, 7000222 when it has expired.
        """
        with self._lock:
            known = list(self._secrets.values())
        for candidate in known:
            if hmac.compare_digest(candidate.secret.reveal().encode(), presented.encode()):
                if candidate.expires <= self._clock():
                    raise Refused(7000222, client=self.client_id)
                return
        raise Refused(7000215, client=self.client_id)

    def find_certificate(self, thumbprint: str) -> AppCertificate | None:
        """The certificate that an assertion's header names."""
        named = thumbprint.rstrip("=")  # MSAL pads, RFC 7515 does not
        with self._lock:
            return next((known for known in self._certificates.values() if named in known.thumbprints), None)

    def match_federated(self, *, issuer: str, subject: str, audiences: frozenset[str]) -> FederatedCredential:
        """The federated credential that fits an assertion's claims exactly.

        Raises:
            Refused: 700211 (issuer), 700213 (subject) or 700212 (audience), whichever fails first.
        """
        with self._lock:
            fitting = [known for known in self._federated.values() if known.issuer == issuer]
        if not fitting:
            raise Refused(700211, issuer=issuer)
        fitting = [known for known in fitting if known.subject == subject]
        if not fitting:
            raise Refused(700213, subject=subject)
        fitting = [known for known in fitting if known.audience in audiences]
        if not fitting:
            raise Refused(700212, audience=", ".join(sorted(audiences)))
        return fitting[0]
