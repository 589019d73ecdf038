"""What Entra's errors mean and how to mend them.

See: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.identity import CredentialUnavailableError

from beam_entra.clock import Clock, utc_now
from beam_entra.errors import (
    BeamEntraError,
    ConfigError,
    Diagnosis,
    IdentityError,
    IdentityRejected,
    IdentityUnavailable,
)
from beam_entra.identity.http import retry_after_s
from beam_entra.identity.redaction import redacted

__all__ = ["LastAnswer", "NotHere", "missing_extra", "translate"]

# What a code means, in our words, and how to mend it.
_KNOWN = {
    50027: (
        "the assertion is no valid JSON Web Token",
        "see what gives it, or writes the assertion file",
    ),
    50105: ("the application is not assigned to this resource", "ask the tenant's administrator to assign it"),
    50166: (
        "Entra cannot reach the assertion's issuer",
        "its discovery document and keys must be open to the internet",
    ),
    53003: (
        "a Conditional Access policy blocks this sign-in",
        "ask the tenant's administrator; the sign-in log names the policy by the trace id",
    ),
    70021: (
        "no federated credential of the application fits the assertion; it may have been removed",
        "add a federated credential to the application for this assertion's issuer, subject and audience",
    ),
    90002: (
        "there is no such tenant at this authority",
        "check [identity] tenant and authority",
    ),
    500011: (
        "the resource that the token is for does not exist in this tenant",
        "check [grants] token, and that the resource's application is installed in the tenant",
    ),
    700016: (
        "the application is not in this tenant; it may have been deleted",
        "check [identity] client and tenant; a deleted application can be restored for 30 days",
    ),
    700023: (
        "the certificate's assertion is for another tenant or authority",
        "check [identity] tenant and authority",
    ),
    700024: (
        "the assertion is outside its time of validity",
        "see that whatever gives it, or writes the assertion file, renews it, and that the worker's clock is right",
    ),
    700027: (
        "the assertion's signature does not verify",
        "see that its issuer publishes the key that signs it; a certificate must be registered with the application",
    ),
    700211: (
        "the application has no federated credential for the assertion's issuer; it may have been removed",
        "add a federated credential to the application for this assertion's issuer",
    ),
    700212: (
        "the assertion is for another audience than the application's federated credential",
        "both must have the same audience: api://AzureADTokenExchange, unless assertion_audience says otherwise",
    ),
    700213: (
        "the application has no federated credential for the assertion's subject; it may have been removed",
        "compare the assertion with the federated credential: issuer, subject and audience must be equal to the letter",
    ),
    7000112: (
        "an administrator has disabled the application",
        "ask the tenant's administrator, or use another client",
    ),
    7000215: (
        "the client secret is none of the application's; it may have been removed",
        "check the client secret that [identity] refers to: use the secret's value, not its id",
    ),
    7000222: (
        "the client secret has expired",
        "make a new one and update what [identity] refers to; a federated credential needs none",
    ),
    7000229: (
        "the application has no service principal in this tenant; it may have been deleted",
        "ask the tenant's administrator to restore or consent to it, and check [identity] client and tenant",
    ),
}
_UNKNOWN = ("", "look up the code in Entra's sign-in log by the trace id")
_CODELESS = "check [identity] tenant and authority, and whether a proxy answers in Entra's place: Entra gives a code"

_CODE = re.compile(r"AADSTS(\d+)")
_OAUTH_ERROR = re.compile(r"[a-z_]{1,40}", re.ASCII)
_TRACE = re.compile(r"Trace ID: ([0-9a-fA-F-]{36})")
_CORRELATION = re.compile(r"Correlation ID: ([0-9a-fA-F-]{36})")
_NO_ANSWER = (ServiceRequestError, ServiceResponseError)
_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_TOO_MANY_REQUESTS = 429
_PASSING = {408, _TOO_MANY_REQUESTS}  # of the client's errors, those that may be better in a moment


class NotHere(Exception):
    """A source is not to be had where this process runs: a chain goes on to the next one.

    It never leaves `identity/`; alone, or at the end of a chain, `error` is raised.
    """

    def __init__(self, error: BeamEntraError) -> None:
        super().__init__(error.message)
        self.error = error


def missing_extra(extra: str, what: str) -> ConfigError:
    """The error for a library that is not installed."""
    return ConfigError(
        f"{what} needs a library that is not installed here",
        Diagnosis(hint=f"pip install 'beam-entra[{extra}]' where the job is launched and in the workers' image"),
    )


class LastAnswer:
    """The last HTTP answer of one attempt. azure-identity and MSAL word errors differently and drop the status.

    Give its `ask` and `hear` to a credential as `raw_request_hook` and `raw_response_hook`.

    Args:
        clock: The worker's.
        heard: Told what time each answer says it is, and when its request went out.
    """

    def __init__(
        self, *, clock: Clock = utc_now, heard: Callable[[str, datetime], None] = lambda date, sent: None
    ) -> None:
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self.error = ""
        self.error_text = ""
        self._clock = clock
        self._heard = heard
        self._sent = clock()

    def ask(self, _request: PipelineRequest[Any]) -> None:
        """Note when the request goes out."""
        self._sent = self._clock()

    def hear(self, response: PipelineResponse[Any, Any]) -> None:
        """Note the answer; of the body only an error's, which holds no secret."""
        self.status = response.http_response.status_code
        self.headers = response.http_response.headers
        self._heard(self.headers.get("Date", ""), self._sent)
        self.error = self.error_text = ""
        if self.status is not None and self.status >= _CLIENT_ERROR:
            with contextlib.suppress(ValueError, AttributeError):
                said = json.loads(response.http_response.text())
                self.error_text = str(said.get("error_description", ""))
                error = _OAUTH_ERROR.fullmatch(str(said.get("error", "")))
                self.error = error.group() if error else ""


def translate(error: Exception, answer: LastAnswer, *, tried: str, identity: str, fix: str) -> IdentityError:
    """Say in our words why no token came, with Entra's code, trace id and the likely fix.

    An answer that says no is `IdentityRejected`; everything that may be better in a moment (no connection, 408, 429,
    5xx, an answer that is not Entra's) is `IdentityUnavailable`.

    Args:
        fix: What to do when the credential itself was not to be had.

    Raises:
        NotHere: It was not, in a way that lets a chain go on.
    """
    if isinstance(error, _NO_ANSWER) or isinstance(error.__cause__, _NO_ANSWER):
        answer = LastAnswer()  # the one at hand is to an earlier request: MSAL looks the endpoint up first
    elif answer.status is None and isinstance(error, ClientAuthenticationError):
        rejected = _no_credential(error, tried=tried, identity=identity, fix=fix)
        if isinstance(error, CredentialUnavailableError):
            raise NotHere(rejected)
        return rejected
    code, trace, correlation = (each.search(answer.error_text) for each in (_CODE, _TRACE, _CORRELATION))
    facts: dict[str, Any] = {
        "tried": tried,
        "identity": identity,
        "status": answer.status,
        "code": code.group(0) if code else "",
        "request_id": trace.group(1) if trace else answer.headers.get("x-ms-request-id", ""),
        "correlation_id": correlation.group(1) if correlation else "",
        "attempts": 1,
    }
    status = answer.status or 0
    if _CLIENT_ERROR <= status < _SERVER_ERROR and status not in _PASSING:
        reason = redacted(_without_ids(answer.error_text), prose=True)
        if not code:
            told = reason or f"it answered HTTP {status}"
            facts["code"] = answer.error
            return IdentityRejected(f"the token endpoint gave no token: {told}", Diagnosis(hint=_CODELESS, **facts))
        meaning, hint = _KNOWN.get(int(code.group(1)), _UNKNOWN)
        told = f"{meaning} ({reason})" if meaning else reason
        return IdentityRejected(f"Entra refused the job's identity: {told}", Diagnosis(hint=hint, **facts))
    problem = "it did not answer" if not status else f"it answered HTTP {status}"
    if _CLIENT_ERROR > status > 0:
        problem += " with something that is no token"
    asked_s = retry_after_s(answer.headers)
    return IdentityUnavailable(
        f"the token endpoint gave no token: {problem}",
        Diagnosis(hint=_once_more(status, asked_s), retry_after_s=asked_s, **facts),
    )


def _once_more(status: int, asked_s: float | None) -> str:
    """What to do about an answer that may be better in a moment."""
    if not status:
        return "see that the worker reaches the authority and trusts its certificate"
    if status < _CLIENT_ERROR:
        return "check [identity] authority, and whether a proxy or a sign-in page answers in Entra's place"
    again = f"try again in {asked_s:.0f} s, as it asks" if asked_s else "try again in a moment"
    if status == _TOO_MANY_REQUESTS:
        return f"{again}; see in the sign-in log what else asks for tokens as this client"
    return f"{again}; if it stays so, see the authority's health"


def _no_credential(error: ClientAuthenticationError, *, tried: str, identity: str, fix: str) -> IdentityRejected:
    return IdentityRejected(
        f"the credential is not available here: {redacted(_first_line(str(error.message))) or 'it does not say why'}",
        Diagnosis(tried=tried, identity=identity, hint=fix),
    )


def _without_ids(text: str) -> str:
    return _first_line(text.split(" Trace ID:", maxsplit=1)[0])


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "").strip()

