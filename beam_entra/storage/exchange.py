"""One request to Storage and its answer: authorised anew on each attempt, retried as Storage asks."""

from __future__ import annotations

import itertools
import random
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from urllib3.exceptions import HTTPError, SSLError

from beam_entra.clock import ServiceClock, utc_now
from beam_entra.errors import AccessDenied, BeamEntraError, Diagnosis, StorageError
from beam_entra.secret import Secret
from beam_entra.storage.answers import (
    RETRIED_CODES,
    RETRIED_STATUSES,
    Answer,
    claims_challenge,
    refusal,
    retry_after_s,
)
from beam_entra.storage.transport import ConnectionPool
from beam_entra.storage.wire import Response, TooSlow

__all__ = ["STILL_CHALLENGED", "Authorise", "Authorization", "Call", "Exchange", "RetryPolicy"]

SERVICE_VERSION = "2025-07-05"
STILL_CHALLENGED = (
    "see in Entra's sign-in log whether the principal was disabled or its sessions revoked, and whether a Conditional "
    "Access policy lets it in from this worker's network"
)
_BAD_SIGNATURE = "AuthenticationFailed"  # a key that has ended, or that the account's owner has revoked
_GOOD = range(200, 300)  # a redirect is none: Storage sends none, and whoever sent it has not done what was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What lets one request in: a SAS in its query, or an access token in its header.

    Attributes:
        copy_source: For a copy: URL of the blob that Storage is to read, with the SAS to read it, if there is one.
        copy_source_bearer: The access token that Storage is to read it with, if there is none.
        renew: Called with the claims of a challenge: has `authorise` give a token with them from then on;
            None if it does not.
        resign: Called when Storage takes the signature for none: says whether `authorise` gives one of a new key now.
    """

    sas: Secret | None = None
    bearer: Secret | None = None
    copy_source: Secret | None = None
    renew: Callable[[str], object] | None = None
    resign: Callable[[], bool] | None = None
    copy_source_bearer: Secret | None = None


Authorise = Callable[[], Authorization]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request.

    Attributes:
        tried: For errors: the operation as a phrase after "tried to".
        url: Without any credential.
        authorise: Called for each attempt, so that a retry after a pause does not carry an old SAS.
        client_request_id: Sent as `x-ms-client-request-id` with each attempt.
    """

    method: str
    url: str
    tried: str
    authorise: Authorise
    client_request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often to try a request that Storage did not answer or asked to send later.

    Attributes:
        attempts: At most, the first one included.
        first_delay_s: Pause after the first failure; doubles each time. A pause is between half of that and all of
            it, so that who tries again and again does not give up within an outage of six seconds.
        longest_delay_s: Cap of a pause. A longer one that Storage asks for is kept.
        patience_s: If Storage asks for a longer pause than this, the request fails at once.
    """

    attempts: int = 7
    first_delay_s: float = 0.2
    longest_delay_s: float = 10.0
    patience_s: float = 120.0


class Exchange:
    """Sends calls over one connection pool.

    A claims challenge (continuous access evaluation) to a request that went out under a token is answered once: the
    `Authorization` renews its token, and the request is sent again. A second one is a refusal, and so is the first
    one to a token that was itself got for a challenge a moment ago.

    Args:
        pause: Waits so many seconds between attempts; true if there is to be no other.
        clock: Hears from each answer what time it is.
    """

    def __init__(
        self,
        pool: Callable[[str], ConnectionPool],
        *,
        pause: Callable[[float], object] = time.sleep,
        policy: RetryPolicy = RetryPolicy(),
        clock: ServiceClock | None = None,
    ) -> None:
        self._pool = pool
        self._pause = pause
        self.policy = policy
        self._clock = clock or ServiceClock(utc_now)

    def send(self, call: Call, *, ca_file: str, made: int = 0) -> tuple[Answer, Response, int]:
        """Send until there is an answer that is no error. Its body is still to be read.

        Args:
            made: Attempts that were made at this call before.

        Returns:
            The answer's head, the response to read the body from, and the number of attempts.

        Raises:
            BeamEntraError: As `answers.refusal` says, or `StorageError` when nothing answered.
        """
        challenged = False
        pool = self._pool(ca_file)  # that there can be none is told before anything is authorised
        for attempt in itertools.count(made + 1):
            asked_s: float | None = None
            try:
                authorization = call.authorise()
                response = self._once(call, authorization, pool)
                answer = _head(call, response)
                if answer.status in _GOOD:
                    return answer, response, attempt
                answer = Answer(
                    status=answer.status,
                    headers=answer.headers,
                    client_request_id=call.client_request_id,
                    body=response.read(),
                )
                claims = claims_challenge(answer) if authorization.renew is not None else ""
                if claims and authorization.renew is not None and not challenged:
                    challenged = True
                    if authorization.renew(claims) is not None:
                        continue
                dead = answer.code == _BAD_SIGNATURE and authorization.resign is not None and not challenged
                if dead and authorization.resign is not None and authorization.resign():
                    challenged = True
                    continue
                failure = refusal(answer, tried=call.tried, attempts=attempt)
                if claims:
                    failure = _still_challenged(failure)
                again = answer.status in RETRIED_STATUSES or answer.code in RETRIED_CODES
                asked_s = retry_after_s(answer.headers)
            except HTTPError as error:
                failure = unreachable(call, error, attempt)
                again = not _untrusted(error)
            if not again or attempt >= self.policy.attempts or (asked_s or 0) > self.policy.patience_s:
                break
            if self.rest(attempt, asked_s):
                break
        raise failure  # outside the except block: urllib3's error names the URL, and with it the SAS

    def receive(self, call: Call, *, ca_file: str) -> Answer:
        """Send, and read the whole body; for requests that may be sent twice."""
        made = 0
        while True:
            answer, response, made = self.send(call, ca_file=ca_file, made=made)
            try:
                body = response.read()
            except HTTPError as error:
                failure = unreachable(call, error, made)
            else:
                return Answer(
                    status=answer.status, headers=answer.headers, client_request_id=call.client_request_id, body=body
                )
            if made >= self.policy.attempts or self.rest(made, None):
                break
        raise failure

    def ask_the_time(self, url: str, *, ca_file: str) -> None:
        """Have the clock hear what time it is, from the answer to anybody, if there is one."""
        sent = self._clock.worker()
        with suppress(HTTPError):
            headers = {"x-ms-version": SERVICE_VERSION, "Content-Length": "0"}
            response = self._pool(ca_file).open("HEAD", url, headers=headers, body=b"")
            self._clock.hear(response.headers.get("date", ""), sent)
            response.read()

    def rest(self, attempt: int, asked_s: float | None) -> bool:
        """Pause after the failed attempt of this number; says whether there is to be no other."""
        policy = self.policy
        backoff_s = min(policy.first_delay_s * 2 ** (attempt - 1), policy.longest_delay_s)
        return self._pause((asked_s or 0) + random.uniform(backoff_s / 2, backoff_s)) is True  # noqa: S311 - jitter, not a secret

    def _once(self, call: Call, authorization: Authorization, pool: ConnectionPool) -> Response:
        headers = {
            "x-ms-version": SERVICE_VERSION,
            "x-ms-client-request-id": call.client_request_id,
            "Content-Length": str(len(call.body)),
            **call.headers,
        }
        url = call.url
        if authorization.sas is not None:
            url += ("&" if "?" in url else "?") + authorization.sas.reveal()
        if authorization.bearer is not None:
            headers["Authorization"] = f"Bearer {authorization.bearer.reveal()}"
        if authorization.copy_source is not None:
            headers["x-ms-copy-source"] = authorization.copy_source.reveal()
        if authorization.copy_source_bearer is not None:
            headers["x-ms-copy-source-authorization"] = f"Bearer {authorization.copy_source_bearer.reveal()}"
        sent = self._clock.worker()
        response = pool.open(call.method, url, headers=headers, body=call.body)
        self._clock.hear(response.headers.get("date", ""), sent)
        return response


def _still_challenged(failure: BeamEntraError) -> AccessDenied:
    """The refusal of a token that has the claims which the first challenge wanted."""
    return AccessDenied(
        "Storage wants other claims in the job's token, and refuses the new token that was got with them as well",
        replace(failure.diagnosis, hint=STILL_CHALLENGED),
    )


def _head(call: Call, response: Response) -> Answer:
    return Answer(status=response.status, headers=response.headers, client_request_id=call.client_request_id)


def _untrusted(error: HTTPError) -> bool:
    """A certificate that does not verify will not in a moment either; any other end of TLS may be an accident."""
    return isinstance(error, SSLError) and isinstance(error.args[0], ssl.CertificateError)


def unreachable(call: Call, error: HTTPError, attempts: int) -> BeamEntraError:
    """The error for a request without an answer; says nothing of the URL."""
    if _untrusted(error):
        problem, hint = "its certificate is not trusted", "name the CA's file as ca_file of the account"
    elif isinstance(error, TooSlow):
        problem, hint = str(error), "see what is slow between this worker and the account: proxy, network, throttling"
    else:
        problem, hint = type(error).__name__, "see that the account's endpoint can be reached from this worker"
    return StorageError(
        f"Storage did not answer: {problem}",
        Diagnosis(tried=call.tried, client_request_id=call.client_request_id, attempts=attempts, hint=hint),
    )
