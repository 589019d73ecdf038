"""Who the job is: credential sources, and the broker that keeps one live token for each audience."""

from __future__ import annotations

from beam_entra.identity.broker import TokenBroker
from beam_entra.identity.sources import (
    Connection,
    CredentialSource,
    EntraSource,
    check_credential,
    credential_names,
    register,
)
from beam_entra.identity.token import STORAGE_AUDIENCE, AccessToken, TokenClaims

__all__ = [
    "STORAGE_AUDIENCE",
    "AccessToken",
    "Connection",
    "CredentialSource",
    "EntraSource",
    "TokenBroker",
    "TokenClaims",
    "check_credential",
    "credential_names",
    "register",
]
