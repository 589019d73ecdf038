"""An access token: the secret, how long it lives, and what the audit may know of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from beam_entra.secret import Secret

__all__ = ["STORAGE_AUDIENCE", "AccessToken", "TokenClaims"]

STORAGE_AUDIENCE = "https://storage.azure.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """The claims that join a token to Entra's sign-in log. A claim that the token does not carry is None.

    Attributes:
        uti: Unique token identifier: `uniqueTokenIdentifier` in the sign-in log.
        oid: Object id of the principal.
        appid: Application (client) id; `azp` in v2.0 tokens.
        tenant: Tenant id, from `tid`.
        audience: For whom the token is, from `aud`.
    """

    uti: str | None = None
    oid: str | None = None
    appid: str | None = None
    tenant: str | None = None
    audience: str | None = None

    @classmethod
    def of(cls, token: Secret) -> TokenClaims:
        """Read the claims. Nothing is trusted on their account: Storage checks the token, we only write it down.

        An opaque token (Entra promises clients no format) has no claims that we could read.
        """
        try:
            payload: dict[str, Any] = jwt.decode(token.reveal(), options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return cls()

        def text(*names: str) -> str | None:
            return next((str(payload[name]) for name in names if payload.get(name)), None)

        return cls(
            uti=text("uti"), oid=text("oid"), appid=text("appid", "azp"), tenant=text("tid"), audience=text("aud")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """An Entra token for one audience.

    Attributes:
        token_id: Our own name for it in the audit trail; the token itself stays out.
        acquired: When it was acquired.
        expires: When it ends.
        refresh_on: When Entra would like it refreshed, if it said so.
        source: The credential source that gave it: `federated:gcp`; "" where nobody said.
    """

    token_id: str
    audience: str
    secret: Secret
    acquired: datetime
    expires: datetime
    refresh_on: datetime | None
    claims: TokenClaims
    source: str = ""

    @classmethod
    def issued(
        cls, text: str, *, token_id: str, audience: str, acquired: datetime, expires_on: int, refresh_on: int | None
    ) -> AccessToken:
        """From what azure-identity returns: times in seconds since the epoch."""
        secret = Secret(text, what="access token")
        return cls(
            token_id=token_id,
            audience=audience,
            secret=secret,
            acquired=acquired,
            expires=datetime.fromtimestamp(expires_on, UTC),
            refresh_on=datetime.fromtimestamp(refresh_on, UTC) if refresh_on else None,
            claims=TokenClaims.of(secret),
        )
