"""Entra's refusals: HTTP status, OAuth error and wording for each AADSTS code that the local tenant knows.

See: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from beam_entra.testing.https import Answer

__all__ = ["REFUSALS", "Refusal", "Refused", "refusal_answer"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What Entra answers with one AADSTS code.

    Attributes:
        text: The description, with the facts to fill in.
    """

    status: int
    error: str
    text: str


class Refused(Exception):
    """The tenant refuses a request with an AADSTS code."""

    def __init__(self, code: int, **facts: str) -> None:
        super().__init__(code, facts)
        self.code = code
        self.text = REFUSALS[code].text.format(**facts)


def refusal_answer(
    code: int,
    text: str,
    *,
    now: datetime,
    authority: str,
    correlation_id: str = "",
    status: int | None = None,
    error: str = "",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """The answer as Entra words it, with trace id, correlation id and time."""
    trace_id, correlation_id = str(uuid.uuid4()), correlation_id or str(uuid.uuid4())
    timestamp = now.strftime("%Y-%m-%d %H:%M:%SZ")
    body = {
        "error": error or REFUSALS[code].error,
        "error_description": f"AADSTS{code}: {text} Trace ID: {trace_id} Correlation ID: {correlation_id} "
        f"Timestamp: {timestamp}",
        "error_codes": [code],
        "timestamp": timestamp,
        "trace_id": trace_id,
        "correlation_id": correlation_id,
        "error_uri": f"{authority}/error?code={code}",
    }
    return Answer(
        status=status or REFUSALS[code].status,
        headers={
            "Cache-Control": "no-store, no-cache",
            "Content-Type": "application/json; charset=utf-8",
            "Pragma": "no-cache",
            "x-ms-request-id": trace_id,
            **(headers or {}),
        },
        body=json.dumps(body).encode("utf-8"),
    )


_NO_RECORD = "No matching federated identity record found for presented assertion"
_CHECK_RECORD = (
    "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. "
    "https://learn.microsoft.com/entra/workload-id/workload-identity-federation"
)

REFUSALS: Mapping[int, Refusal] = {
    50000: Refusal(500, "server_error", "There was an error issuing a token."),
    50027: Refusal(400, "invalid_request", "JWT token is invalid or malformed."),
    50166: Refusal(400, "invalid_request", "Request to External OIDC endpoint failed."),
    70003: Refusal(400, "unsupported_grant_type", "The app requested an unsupported grant type '{grant}'."),
    90002: Refusal(
        400,
        "invalid_request",
        "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the "
        "correct cloud. Check with your subscription administrator, this may happen if there are no active "
        "subscriptions for the tenant.",
    ),
    90023: Refusal(400, "invalid_request", "The request is not properly formatted: the parameter '{parameter}'."),
    90033: Refusal(503, "temporarily_unavailable", "A transient error has occurred. Please try again."),
    90055: Refusal(429, "temporarily_unavailable", "The tenant is throttled: there are too many incoming requests."),
    500011: Refusal(
        400,
        "invalid_resource",
        "The resource principal named {resource} was not found in the tenant named {tenant}. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by any user in the "
        "tenant. You might have sent your authentication request to the wrong tenant.",
    ),
    700016: Refusal(
        400,
        "unauthorized_client",
        "Application with identifier '{client}' was not found in the directory '{tenant}'. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by any user in the "
        "tenant. You may have sent your authentication request to the wrong tenant.",
    ),
    700023: Refusal(401, "invalid_client", "Client assertion audience claim does not match Realm issuer."),
    700024: Refusal(
        401,
        "invalid_client",
        "Client assertion is not within its valid time range. Current time: {now}, assertion valid from {start}, "
        "expiry time of assertion {end}.",
    ),
    700027: Refusal(401, "invalid_client", "Client assertion failed signature validation. {reason}"),
    700211: Refusal(
        401,
        "invalid_client",
        f"{_NO_RECORD} issuer '{{issuer}}'. {_CHECK_RECORD}",
    ),
    700212: Refusal(
        401,
        "invalid_client",
        f"{_NO_RECORD} audience '{{audience}}'. {_CHECK_RECORD}",
    ),
    700213: Refusal(
        401,
        "invalid_client",
        f"{_NO_RECORD} subject '{{subject}}'. {_CHECK_RECORD}",
    ),
    900144: Refusal(400, "invalid_request", "The request body must contain the following parameter: '{parameter}'."),
    900561: Refusal(400, "invalid_request", "The endpoint only accepts POST requests. Received a {method} request."),
    1002012: Refusal(
        400,
        "invalid_scope",
        "The provided value for scope {scope} is not valid. Client credential flows must have a scope value with "
        "/.default suffixed to the resource identifier (application ID URI).",
    ),
    7000112: Refusal(400, "unauthorized_client", "Application '{client}'({name}) is disabled."),
    7000215: Refusal(
        401,
        "invalid_client",
        "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, not "
        "the client secret ID, for a secret added to app '{client}'.",
    ),
    7000216: Refusal(
        401,
        "invalid_client",
        "'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.",
    ),
    7000222: Refusal(401, "invalid_client", "The provided client secret keys for app '{client}' are expired."),
}
