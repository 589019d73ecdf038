"""The manifest's identity, asked for tokens.

azure-identity, MSAL and the clouds' own libraries speak the protocols. Nothing is ambient: the manifest's name decides,
a chain names its members in order, and which source gave a token goes into the audit with it.
"""

from __future__ import annotations

import dataclasses
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, Protocol

from azure.core.credentials import TokenRequestOptions
from azure.core.exceptions import AzureError

from beam_entra.access.manifest import IdentitySettings
from beam_entra.clock import Clock
from beam_entra.errors import (
    BeamEntraError,
    ConfigError,
    Diagnosis,
    IdentityError,
    IdentityRejected,
    IdentityUnavailable,
)

# The sources register themselves.
from beam_entra.identity import application, developer, federation, managed  # noqa: F401
from beam_entra.identity.references import VaultReference
from beam_entra.identity.registry import (
    Connection,
    Planned,
    check_credential,
    credential_names,
    plan,
    register,
    vault_plan,
)
from beam_entra.identity.rejection import LastAnswer, NotHere, translate
from beam_entra.identity.rotation import Rotation, Secured
from beam_entra.identity.token import AccessToken
from beam_entra.identity.vault import read_secret, vault_client

__all__ = ["Connection", "CredentialSource", "EntraSource", "check_credential", "credential_names", "register"]


class CredentialSource(Protocol):
    """Where the broker gets a token: one attempt a call, no cache, no retry; those are the broker's."""

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        """Ask once for a token.

        Args:
            claims: What a service wants to see in it, as JSON; given only when one has said so.

        Raises:
            IdentityRejected: Asking again will not help.
            IdentityUnavailable: It may.
        """
        ...  # pragma: no cover


_ONE_ATTEMPT = {"retry_total": 0, "retry_connect": 0, "retry_read": 0, "retry_status": 0}


class EntraSource:
    """The manifest's identity.

    Each token comes from a credential made for it: azure-identity and MSAL keep caches, and remember throttling, for
    the length of a credential's life; here the broker alone decides when to ask.

    Of a chain, the first source that is to be had where this process runs gives the token, and every later one: a
    source that is down for a moment does not make the job somebody else. A refusal ends the attempt, whatever comes
    after it in the chain.

    Args:
        on_the_way: Told of each token that it takes to get the one asked for, such as that for the Key Vault which
            holds the secret, before it is used: the audit.
        heard: Told what time each of Entra's answers says it is, and when it was asked for, by `clock`.
    """

    def __init__(
        self,
        identity: IdentitySettings,
        *,
        clock: Clock,
        connect_timeout_s: float = 5,
        read_timeout_s: float = 20,
        on_the_way: Callable[[AccessToken], None] = lambda token: None,
        heard: Callable[[str, datetime], None] = lambda date, sent: None,
    ) -> None:
        self._planned = plan(identity)
        self._identity = identity
        self._clock = clock
        self._on_the_way = on_the_way
        self._heard = heard
        self._rotation = Rotation(after=identity.rotate_after, strict=identity.strict, clock=clock)
        self._settling = threading.Lock()
        self._options = {
            "authority": identity.authority,
            "disable_instance_discovery": True,
            "connection_verify": identity.ca_file or True,
            "connection_timeout": connect_timeout_s,
            "read_timeout": read_timeout_s,
            **_ONE_ATTEMPT,
        }

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        """Ask once; see `CredentialSource.acquire`."""
        if len(self._planned) == 1:
            token, failure = self._first(self._planned, audience, claims)
        else:
            with self._settling:
                token, failure = self._first(self._planned, audience, claims)
        if token is None:
            raise failure  # outside every except block, so that no request object hangs on it as context
        return token

    def __reduce__(self) -> NoReturn:
        raise TypeError("a credential source is not pickled: pickle its IdentitySettings")

    def _first(
        self, planned: tuple[Planned, ...], audience: str, claims: str
    ) -> tuple[AccessToken | None, BeamEntraError]:
        """A token of the first source that is here, or the error that says why there is none."""
        absent: list[tuple[Planned, BeamEntraError]] = []
        for each in planned:
            try:
                token = self._ask(each, audience, claims)
            except NotHere as missing:
                absent.append((each, missing.error))
            except BeamEntraError as error:
                return None, error.with_traceback(None)
            else:
                self._planned = (each,)
                return token, _NOTHING
        return None, self._explain_absence(absent, audience)

    def _explain_absence(self, absent: list[tuple[Planned, BeamEntraError]], audience: str) -> BeamEntraError:
        if len(absent) == 1:
            return absent[0][1]
        kind = IdentityUnavailable if any(error.retryable for _, error in absent) else IdentityRejected
        said = "; ".join(f"{each.name}: {error.message}" for each, error in absent)
        first, error = absent[0]
        facts = self._facts(first, audience)
        tried = str(facts["tried"]).removesuffix(first.name) + ", then ".join(each.name for each, _ in absent)
        return kind(
            f"no source of the chain is to be had here: {said}",
            Diagnosis(tried=tried, identity=str(facts["identity"]), hint=f"for {first.name}: {error.hint}"),
        )

    def _facts(self, planned: Planned, audience: str) -> dict[str, str]:
        identity = planned.identity
        return {
            "tried": f"acquire a token for {audience} at {identity.authority}/{identity.tenant} by {planned.name}",
            "identity": f"client {identity.client}",
        }

    def _ask(self, planned: Planned, audience: str, claims: str = "") -> AccessToken:
        """One source, asked once."""
        identity = planned.identity
        facts = self._facts(planned, audience)
        answer = LastAnswer(clock=self._clock, heard=self._heard)
        options = {**self._options, "raw_request_hook": answer.ask, "raw_response_hook": answer.hear}
        connection = Connection(
            options,
            settings=identity.settings,
            clock=self._clock,
            read_vault=lambda setting: self._read_vault(setting, identity.settings[setting], options),
            rotation=self._rotation,
        )
        failure: BeamEntraError
        try:
            _check_ca_file(identity.ca_file)
            with planned.build(identity, connection) as credential:
                acquired = self._clock()
                info = credential.get_token_info(f"{audience}/.default", options=_wanted(claims))
            ahead_s = round(self._clock().timestamp() - time.time())  # the libraries count from the machine's clock
            token = AccessToken.issued(
                info.token,
                token_id=f"token-{uuid.uuid4().hex[:12]}",
                audience=audience,
                acquired=acquired,
                expires_on=info.expires_on + ahead_s,
                refresh_on=info.refresh_on + ahead_s if info.refresh_on else None,
            )
            return dataclasses.replace(token, source=planned.name)
        except NotHere as missing:
            raise NotHere(missing.error.explained(**facts)) from None
        except (IdentityError, ConfigError) as error:
            failure = error.explained(**facts)
        except (AzureError, ValueError) as error:  # ValueError: MSAL's word for an authority that makes no sense
            failure = translate(error, answer, **facts, fix=planned.fix)
        raise failure

    def _read_vault(self, setting: str, reference: str, options: dict[str, Any]) -> Secured:
        """The secret of a `keyvault:` reference, asked for as `keyvault_credential`."""
        settings = self._identity.settings
        parsed = VaultReference.parse(reference, setting=setting, vault_host=settings.get("keyvault_host", ""))
        vault_client(setting)  # before anything is sent
        try:
            token = self._ask(vault_plan(self._identity), parsed.audience)
        except IdentityError as error:
            told = f"there is no token to ask Key Vault for {setting} with: {error.message}"
            raise type(error)(told, error.diagnosis) from None
        self._on_the_way(token)
        plain = {name: value for name, value in options.items() if not name.startswith("raw_")}
        connection = Connection(
            plain, settings=settings, clock=self._clock, read_vault=_no_vault, rotation=self._rotation
        )
        return read_secret(parsed, setting=setting, token=token, connection=connection)


_NOTHING = BeamEntraError("nothing is wrong")


def _wanted(claims: str) -> TokenRequestOptions:
    """That we understand claims challenges (client capability `cp1`), and the claims of one."""
    return {"enable_cae": True, "claims": claims} if claims else {"enable_cae": True}


def _no_vault(setting: str) -> Secured:
    raise AssertionError(setting)


def _check_ca_file(ca_file: str) -> None:
    """See that the file holds a CA: azure-identity and MSAL each have a way of their own to be unclear about it."""
    if not ca_file:
        return
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(
            f"the CA file {ca_file} of the token endpoint cannot be used: {error.strerror}",
            Diagnosis(hint="give ca_file in [identity], or in [entra] of the endpoints file, the PEM file of a CA"),
        ) from None
