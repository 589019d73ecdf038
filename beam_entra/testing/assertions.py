"""What the local tenant checks about a client assertion before it believes it."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.types import Options

from beam_entra.testing.apps import App
from beam_entra.testing.refusals import Refused

__all__ = ["Assertion", "OutsideIssuers", "check_certificate_assertion", "check_federated_assertion"]

_ALGORITHMS = ["RS256", "PS256"]  # azure-identity signs with PS256 since 1.20, MSAL with RS256 before 1.29
_FETCH_S = 5.0
# Claims are checked by us, against the tenant's clock and with Entra's codes.
_SIGNATURE_ONLY: Options = {
    "verify_aud": False,
    "verify_exp": False,
    "verify_iat": False,
    "verify_iss": False,
    "verify_jti": False,
    "verify_nbf": False,
    "verify_sub": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """A JWT as it came in: nothing of it is believed yet."""

    text: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Assertion:
        """Take the JWT apart.

        Raises:
            Refused: 50027 when it is none.
        """
        try:
            header = jwt.get_unverified_header(text)
            claims = jwt.decode(text, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise Refused(50027) from error
        return cls(text=text, header=header, claims=claims)

    @property
    def issuer(self) -> str:
        """`iss`, or nothing."""
        return str(self.claims.get("iss", ""))

    @property
    def subject(self) -> str:
        """`sub`, or nothing."""
        return str(self.claims.get("sub", ""))

    @property
    def audiences(self) -> frozenset[str]:
        """`aud`, which is one string or a list of them."""
        audience = self.claims.get("aud", "")
        return frozenset(map(str, audience)) if isinstance(audience, list) else frozenset({str(audience)})

    def check_signature(self, key: rsa.RSAPublicKey) -> None:
        """Check the signature, which is never skipped.

        Raises:
            Refused: 700027.
        """
        try:
            jwt.decode(self.text, key, algorithms=_ALGORITHMS, options=_SIGNATURE_ONLY)
        except jwt.InvalidTokenError as error:
            raise Refused(700027, reason="[Reason - The signature does not match the key.]") from error

    def check_time(self, now: datetime) -> None:
        """Check `nbf` and `exp`; an assertion without `exp` never becomes valid.

        Raises:
            Refused: 700024.
        """
        start = self._instant("nbf", self._instant("iat", 0))
        end = self._instant("exp", 0)
        if not start <= now.timestamp() < end:
            raise Refused(700024, now=_iso(now.timestamp()), start=_iso(start), end=_iso(end))

    def _instant(self, claim: str, missing: float) -> float:
        value = self.claims.get(claim, missing)
        if not isinstance(value, int | float):
            raise Refused(50027)
        return float(value)


class OutsideIssuers:
    """The keys of outside issuers: found by discovery over HTTPS, kept for each `kid`, fetched again for a new one."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=trust), urllib.request.ProxyHandler({})
        )
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, str], rsa.RSAPublicKey] = {}

    def find_key(self, issuer: str, kid: str) -> rsa.RSAPublicKey:
        """The key that `issuer` publishes under `kid`.

        Raises:
            Refused: 50166 when the issuer cannot be asked, 700027 when it publishes no such key.
        """
        with self._lock:
            if (issuer, kid) not in self._keys:
                self._keys.update(self._fetch(issuer))
            found = self._keys.get((issuer, kid))
        if found is None:
            raise Refused(700027, reason="[Reason - The key was not found.]")
        return found

    def forget(self) -> None:
        """Drop the kept keys."""
        with self._lock:
            self._keys.clear()

    def _fetch(self, issuer: str) -> dict[tuple[str, str], rsa.RSAPublicKey]:
        try:
            document = self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if document["issuer"] != issuer:
                raise Refused(50166)
            published = jwt.PyJWKSet.from_dict(self._get(document["jwks_uri"])).keys
        except (OSError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            raise Refused(50166) from error
        return {(issuer, key.key_id or ""): key.key for key in published if isinstance(key.key, rsa.RSAPublicKey)}

    def _get(self, url: str) -> dict[str, Any]:
        if not url.startswith("https://"):
            raise Refused(50166)
        with self._opener.open(url, timeout=_FETCH_S) as response:
            document: dict[str, Any] = json.load(response)
        return document


def check_certificate_assertion(app: App, assertion: Assertion, *, audiences: frozenset[str], now: datetime) -> None:
    """Believe an assertion that the app signed itself: key, signature, audience, time.

    Raises:
        Refused: With the code of the first check that fails.
    """
    names = (assertion.header.get(name) for name in ("x5t#S256", "x5t", "kid"))
    registered = next((found for name in names if name and (found := app.find_certificate(str(name)))), None)
    if registered is None:
        raise Refused(700027, reason="[Reason - The key was not found.]")
    assertion.check_signature(registered.key)
    if not assertion.audiences & audiences:
        raise Refused(700023)
    assertion.check_time(now)


def check_federated_assertion(app: App, assertion: Assertion, *, issuers: OutsideIssuers, now: datetime) -> None:
    """Believe an outside issuer's assertion: federated record, signature, time.

    Raises:
        Refused: With the code of the first check that fails.
    """
    app.match_federated(issuer=assertion.issuer, subject=assertion.subject, audiences=assertion.audiences)
    assertion.check_signature(issuers.find_key(assertion.issuer, str(assertion.header.get("kid", ""))))
    assertion.check_time(now)


def _iso(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
