"""Credential sources: how a job proves who it is, by the name that the manifest gives.

azure-identity speaks the protocol. A source here chooses and configures one of its credentials; the registry makes the
next one a function of a few lines. Nothing is ambient: the manifest's name decides, and no other credential is tried.
"""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from azure.core.credentials import SupportsTokenInfo
from azure.core.exceptions import AzureError
from azure.identity import AzureCliCredential, ClientAssertionCredential, ClientSecretCredential

from beam_entra.access.manifest import IdentitySettings
from beam_entra.clock import Clock
from beam_entra.errors import ConfigError, Diagnosis, IdentityRejected
from beam_entra.identity.references import resolve_path, resolve_secret
from beam_entra.identity.rejection import LastAnswer, translate
from beam_entra.identity.token import AccessToken

__all__ = ["CredentialSource", "EntraSource", "check_credential", "credential_names", "register"]


class CredentialSource(Protocol):
    """Where the broker gets a token: one attempt a call, no cache, no retry; those are the broker's."""

    def acquire(self, audience: str) -> AccessToken:
        """Ask once for a token.

        Raises:
            IdentityRejected: Asking again will not help.
            IdentityUnavailable: It may.
        """
        ...  # pragma: no cover


Build = Callable[[IdentitySettings, Mapping[str, Any]], SupportsTokenInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registered:
    build: Build
    required: frozenset[str]


_REGISTRY: dict[str, _Registered] = {}


def register(name: str, *, required: tuple[str, ...] = ()) -> Callable[[Build], Build]:
    """Make a credential source known to manifests as `credential = "<name>"`.

    The decorated function gets the identity's settings and the connection's keyword arguments (authority, CA, timeouts)
    and returns an azure-identity credential. It is called anew for each token, so that files are read again.

    Args:
        name: What the manifest calls it.
        required: Settings without which it cannot work.
    """

    def add(build: Build) -> Build:
        _REGISTRY[name] = _Registered(build=build, required=frozenset(required))
        return build

    return add


def credential_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_REGISTRY))


def check_credential(identity: IdentitySettings) -> None:
    """See, without any network, that the named source exists and has the settings it needs and no others.

    Raises:
        ConfigError: It does not.
    """
    registered = _REGISTRY.get(identity.credential)
    if registered is None:
        raise ConfigError(
            f"[identity] credential: there is no credential source {identity.credential!r}",
            Diagnosis(hint="use one of " + ", ".join(credential_names())),
        )
    given = set(identity.settings)
    if missing := registered.required - given:
        raise ConfigError(
            f"[identity] the credential {identity.credential!r} needs {', '.join(sorted(missing))}",
            Diagnosis(hint="add it to [identity] in the access manifest"),
        )
    if unknown := given - registered.required:
        raise ConfigError(
            f"[identity] the credential {identity.credential!r} knows no setting {', '.join(sorted(unknown))}",
            Diagnosis(hint="remove it from [identity], or choose the credential that it belongs to"),
        )


@register("federated_file", required=("assertion_file",))
def _federated_file(identity: IdentitySettings, connection: Mapping[str, Any]) -> SupportsTokenInfo:
    """Workload identity: the platform writes an assertion to a file and renews it there."""

    def assertion() -> str:
        path = resolve_path(identity.settings["assertion_file"], setting="assertion_file")
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "it is not text"
            raise IdentityRejected(
                f"the assertion file {path} cannot be read: {problem}",
                Diagnosis(hint="see that the platform projects the file into the worker and the path is right"),
            ) from None
        if not text:
            raise IdentityRejected(
                f"the assertion file {path} is empty",
                Diagnosis(hint="see that whatever writes the assertion file renews it"),
            )
        return text

    return ClientAssertionCredential(identity.tenant, identity.client, assertion, **connection)


@register("client_secret", required=("client_secret",))
def _client_secret(identity: IdentitySettings, connection: Mapping[str, Any]) -> SupportsTokenInfo:
    """A secret that the worker reads where the reference says. Prefer a credential without any."""
    secret = resolve_secret(identity.settings["client_secret"], setting="client_secret")
    return ClientSecretCredential(identity.tenant, identity.client, secret.reveal(), **connection)


@register("developer")
def _developer(identity: IdentitySettings, connection: Mapping[str, Any]) -> SupportsTokenInfo:
    """The person who is signed in to the Azure CLI. For a developer's machine."""
    return AzureCliCredential(tenant_id=identity.tenant, process_timeout=20)


_ONE_ATTEMPT = {"retry_total": 0, "retry_connect": 0, "retry_read": 0, "retry_status": 0}


class EntraSource:
    """The manifest's identity, asked through azure-identity.

    Each token comes from a credential made for it: azure-identity and MSAL keep caches, and remember throttling, for
    the length of a credential's life; here the broker alone decides when to ask.
    """

    def __init__(
        self, identity: IdentitySettings, *, clock: Clock, connect_timeout_s: float = 5, read_timeout_s: float = 20
    ) -> None:
        check_credential(identity)
        self._identity = identity
        self._clock = clock
        self._connection = {
            "authority": identity.authority,
            "disable_instance_discovery": True,
            "connection_verify": identity.ca_file or True,
            "connection_timeout": connect_timeout_s,
            "read_timeout": read_timeout_s,
            **_ONE_ATTEMPT,
        }

    def acquire(self, audience: str) -> AccessToken:
        """Ask once; see `CredentialSource.acquire`."""
        identity = self._identity
        tried = f"acquire a token for {audience} at {identity.authority}/{identity.tenant} by {identity.credential}"
        whom = f"client {identity.client}"
        answer = LastAnswer()
        failure: Exception
        try:
            _check_ca_file(identity.ca_file)
            build = _REGISTRY[identity.credential].build
            with build(identity, {**self._connection, "raw_response_hook": answer.hear}) as credential:
                acquired = self._clock()
                info = credential.get_token_info(f"{audience}/.default")
            return AccessToken.issued(
                info.token,
                token_id=f"token-{uuid.uuid4().hex[:12]}",
                audience=audience,
                acquired=acquired,
                expires_on=info.expires_on,
                refresh_on=info.refresh_on,
            )
        except (IdentityRejected, ConfigError) as error:
            failure = error.explained(tried=tried, identity=whom)
        except (AzureError, ValueError) as error:  # ValueError: MSAL's word for an authority that makes no sense
            failure = translate(error, answer, tried=tried, identity=whom)
        raise failure  # outside the except blocks, so that no request object hangs on it as context


def _check_ca_file(ca_file: str) -> None:
    """See that the file holds a CA: azure-identity and MSAL each have a way of their own to be unclear about it."""
    try:
        ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(
            f"the CA file {ca_file} of the token endpoint cannot be used: {error.strerror}",
            Diagnosis(hint="give ca_file in [identity], or in [entra] of the endpoints file, the PEM file of a CA"),
        ) from None
