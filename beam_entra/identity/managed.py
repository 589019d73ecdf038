"""Managed identity: Azure itself vouches for the machine, over IMDS (VM, AKS node, ...) or App Service's endpoint.

MSAL speaks the protocol. azure-identity's ManagedIdentityCredential is not used: it turns into workload identity by
itself where the environment looks like it.

See: https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import msal
from azure.core.credentials import AccessTokenInfo, SupportsTokenInfo, TokenRequestOptions

from beam_entra.access.manifest import IdentitySettings
from beam_entra.errors import ConfigError, Diagnosis, IdentityRejected, IdentityUnavailable
from beam_entra.identity.http import NoAnswer, Reply, exchange, refusal
from beam_entra.identity.registry import Connection, register
from beam_entra.identity.rejection import NotHere
from beam_entra.identity.token import TokenClaims
from beam_entra.secret import Secret

__all__ = ["managed_identity"]

_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RESOURCE = re.compile(
    r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[\w-]+",
    re.IGNORECASE,
)
_ASSIGN = (
    "assign the identity to the machine or app that the worker runs on; for a user-assigned one check client, "
    'object_id or resource_id, for the machine\'s own say assigned = "system"'
)


def _check(identity: IdentitySettings) -> None:
    settings = identity.settings
    if len(settings) > 1:
        raise ConfigError(
            f"[identity] managed_identity takes one of {', '.join(sorted(settings))}, not all of them",
            Diagnosis(hint="leave all out for the user-assigned identity whose client id is client"),
        )
    if settings.get("assigned", "system") != "system":
        raise ConfigError(
            "[identity] assigned: can only be system",
            Diagnosis(hint="leave it out for the user-assigned identity whose client id is client"),
        )
    if not _GUID.fullmatch(settings.get("object_id", identity.client).lower()):
        raise ConfigError("[identity] object_id: is not a GUID", Diagnosis(hint="copy the identity's principal id"))
    if "resource_id" in settings and not _RESOURCE.fullmatch(settings["resource_id"]):
        raise ConfigError(
            "[identity] resource_id: is not the id of a user-assigned identity",
            Diagnosis(hint="copy it: /subscriptions/.../Microsoft.ManagedIdentity/userAssignedIdentities/..."),
        )


@register("managed_identity", optional=("assigned", "object_id", "resource_id"), check=_check)
def managed_identity(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The machine, or an identity that is assigned to it."""
    return _ManagedIdentity(identity, connection)


def _meant(identity: IdentitySettings) -> msal.ManagedIdentity:
    settings = identity.settings
    if "assigned" in settings:
        return msal.SystemAssignedManagedIdentity()
    if "object_id" in settings:
        return msal.UserAssignedManagedIdentity(object_id=settings["object_id"])
    if "resource_id" in settings:
        return msal.UserAssignedManagedIdentity(resource_id=settings["resource_id"])
    return msal.UserAssignedManagedIdentity(client_id=identity.client)


def _where() -> str:
    if "IDENTITY_ENDPOINT" not in os.environ:
        return "the machine's metadata service (IMDS)"
    return "App Service" if "IDENTITY_HEADER" in os.environ else "Azure Arc's agent"


class _ManagedIdentity:
    """One managed identity, as a credential. A token of anybody but the manifest's client is not given out."""

    def __init__(self, identity: IdentitySettings, connection: Connection) -> None:
        self._identity = identity
        self._connection = connection
        self._metadata = _MetadataClient(connection)

    def get_token_info(self, *scopes: str, options: TokenRequestOptions | None = None) -> AccessTokenInfo:
        """One request to the machine's token service."""
        resource = scopes[0].removesuffix("/.default")
        where = _where()
        now = int(time.time())  # AccessTokenInfo, as MSAL, counts from the machine's clock
        claims = (options or {}).get("claims")
        try:
            client = msal.ManagedIdentityClient(
                _meant(self._identity), http_client=self._metadata, client_capabilities=["CP1"]
            )
            result = client.acquire_token_for_client(resource=resource, claims_challenge=claims)
        except NoAnswer as silent:
            raise NotHere(
                IdentityUnavailable(
                    f"{where} does not answer: {silent}",
                    Diagnosis(hint="managed identities are for workers in Azure; elsewhere choose another credential"),
                )
            ) from None
        except OSError as error:
            raise IdentityRejected(
                f"{where} names a key file, which cannot be read: {error.strerror}",
                Diagnosis(hint="let the worker's user read the agent's key files: add it to the group himds"),
            ) from None
        except (msal.ManagedIdentityError, ValueError, KeyError, TypeError):
            result = {}
        if "access_token" not in result or "expires_in" not in result:
            raise self._no_token(where)
        self._check_principal(Secret(result["access_token"], what="access token"), where)
        refresh_on = int(result["refresh_on"]) if "refresh_on" in result else None
        return AccessTokenInfo(result["access_token"], now + int(result["expires_in"]), refresh_on=refresh_on)

    def _no_token(self, where: str) -> Exception:
        reply = self._metadata.last
        if reply is None:
            return IdentityRejected(
                f"{where} cannot be asked: this kind of host is not supported",
                Diagnosis(hint="run on a host with IMDS or App Service's endpoint, or choose another credential"),
            )
        if reply.status == 200:
            hint = "see what answers there: a proxy, or another service at its address, is not the machine's own"
            return IdentityUnavailable(
                f"{where} answered HTTP 200 with something that is no token", Diagnosis(status=200, hint=hint)
            )
        return refusal(reply, who=where, hint=_ASSIGN, sent=(os.environ.get("IDENTITY_HEADER", ""),))

    def _check_principal(self, token: Secret, where: str) -> None:
        claims = TokenClaims.of(token)
        for what, wanted, got in (
            ("client", self._identity.client, claims.appid),
            ("tenant", self._identity.tenant, claims.tenant),
        ):
            if got and _GUID.fullmatch(wanted) and got.lower() != wanted:
                raise IdentityRejected(
                    f"{where} gave a token of {what} {got}, and the manifest says {wanted}",
                    Diagnosis(hint=f"correct {what} in [identity], or assign the identity that it names"),
                )

    def close(self) -> None:
        """Nothing stays open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Answer:
    """A reply as MSAL reads it."""

    def __init__(self, reply: Reply) -> None:
        self.status_code = reply.status
        self.headers = dict(reply.headers)
        self.text = reply.body.decode("utf-8", "replace") if reply.document else "{}"  # MSAL logs what is no JSON

    def raise_for_status(self) -> None:
        """MSAL's word; what is wrong is told from `last`."""


class _MetadataClient:
    """MSAL's way to the machine's token service: past every proxy, in one attempt."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.last: Reply | None = None

    def get(
        self, url: str, *, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, **_: Any
    ) -> _Answer:
        self.last = exchange(
            "GET",
            f"{url}?{urlencode(params or {})}",
            headers=headers or {},
            direct=True,
            timeouts=self._connection.timeouts,
        )
        return _Answer(self.last)

    def post(self, url: str, **_: Any) -> _Answer:
        """MSAL asks for it to be there, and never posts to a metadata service."""
        raise NotImplementedError(url)

    def close(self) -> None:
        """Nothing stays open."""
