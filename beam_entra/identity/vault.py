"""Azure Key Vault: the secret that a `keyvault:` reference names, read with a token of the job's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from azure.core.credentials import AccessTokenInfo, TokenRequestOptions
from azure.core.exceptions import AzureError, HttpResponseError

from beam_entra.errors import Diagnosis, IdentityError, IdentityRejected, IdentityUnavailable
from beam_entra.identity.http import retry_after_s
from beam_entra.identity.redaction import redacted
from beam_entra.identity.references import VaultReference
from beam_entra.identity.registry import Connection
from beam_entra.identity.rejection import missing_extra
from beam_entra.identity.rotation import Secured
from beam_entra.identity.token import AccessToken

__all__ = ["read_secret", "vault_client"]

_FIXES = {
    401: "see that the vault's tenant is the one of [identity], and the worker's clock right",
    403: "give the identity the role Key Vault Secrets User on the secret, see that the vault's firewall lets the "
    "worker in, and that the secret is enabled",
    404: "check the name and version of the secret in the reference",
}


class _Held:
    """A token that is there already, as a credential: whatever a vault's challenge asks for, it gets this one."""

    def __init__(self, token: AccessToken) -> None:
        self._token = token

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        return AccessTokenInfo(self._token.secret.reveal(), int(self._token.expires.timestamp()))

    def close(self) -> None:
        """Nothing is open."""


def vault_client(setting: str) -> Any:
    """The library's client.

    Raises:
        ConfigError: The library is not installed.
    """
    try:
        from azure.keyvault.secrets import SecretClient  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("keyvault", f"[identity] {setting}: a keyvault: reference") from None
    return SecretClient


def read_secret(reference: VaultReference, *, setting: str, token: AccessToken, connection: Connection) -> Secured:
    """Read a secret's value, and when this version of it was made and ends.

    Args:
        setting: The manifest's key, for the error.
        token: For the vault's audience.

    Raises:
        ConfigError: The library is not installed.
        IdentityRejected: The vault says no.
        IdentityUnavailable: It does not answer.
    """
    client_type = vault_client(setting)
    options: dict[str, Any] = {
        name: value for name, value in connection.items() if name.startswith(("connection_", "read_", "retry_"))
    }
    options["permit_redirects"] = False
    if reference.named:
        options["verify_challenge_resource"] = False  # its challenge names a vault's domain, which it is not in
    failure: IdentityError
    try:
        with client_type(reference.url, _Held(token), **options) as client:
            secret = client.get_secret(reference.name, reference.version or None)
        if secret.value and secret.value.strip():
            known = secret.properties
            return Secured(content=secret.value.encode(), made=known.created_on, ends=known.expires_on)
        failure = IdentityRejected("Key Vault gave an empty secret", Diagnosis(hint=_FIXES[404]))
    except HttpResponseError as error:
        failure = _refused(error)
    except (AzureError, ValueError) as error:
        failure = IdentityUnavailable(
            f"Key Vault does not answer: {redacted(str(error))}",
            Diagnosis(hint="see that the worker reaches the vault and trusts its certificate"),
        )
    facts = {"tried": f"read the secret {reference.url}/secrets/{reference.name} for [identity] {setting}"}
    raise failure.explained(**facts)


def _refused(error: HttpResponseError) -> IdentityError:
    status = error.status_code or 0
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    facts: dict[str, Any] = {
        "status": status,
        "request_id": headers.get("x-ms-request-id", ""),
        "code": str(getattr(error.error, "code", "") or ""),
        "attempts": 1,
    }
    about = f"Key Vault answered HTTP {status}: {redacted(str(error.message), prose=True)}"
    if status in {408, 429} or status >= 500 or status < 400:
        hint = "see that the vault is healthy, and that not too much is asked of it"
        return IdentityUnavailable(about, Diagnosis(hint=hint, retry_after_s=retry_after_s(headers), **facts))
    return IdentityRejected(about, Diagnosis(hint=_FIXES.get(status, "look the code up in Key Vault's log"), **facts))
