"""One HTTP exchange with a platform's own token service: bounded in time and size, never redirected, never retried."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3

from beam_entra.errors import Diagnosis, IdentityError, IdentityRejected, IdentityUnavailable
from beam_entra.identity.redaction import redacted

__all__ = ["NoAnswer", "Reply", "Timeouts", "exchange", "refusal", "retry_after_s"]

_MOST_BYTES = 256 * 1024
_BODY_SHARE = 2  # a body may take as long as this many read timeouts, however it trickles


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait, in seconds, for a connection and for each part of an answer."""

    connect_s: float
    read_s: float


class NoAnswer(Exception):
    """Nobody answered: no connection, no trust, no time left, or more bytes than a token has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came back.

    Attributes:
        headers: Names in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def document(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):  # the latter: it is nested too deep
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def retry_after_s(self) -> float | None:
        """Seconds to wait, as the service asked."""
        return retry_after_s(self.headers)


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    timeouts: Timeouts,
    fields: Mapping[str, str] | None = None,
    body: bytes | None = None,
    ca_file: str = "",
    direct: bool = False,
) -> Reply:
    """Send one request and read the answer.

    Args:
        fields: Sent as a form.
        ca_file: PEM file of the authorities to trust instead of the system's.
        direct: Past any proxy: for the metadata services of a machine.

    Raises:
        NoAnswer: With the reason.
    """
    timeout = urllib3.Timeout(connect=timeouts.connect_s, read=timeouts.read_s)
    options: dict[str, Any] = {"timeout": timeout, "retries": False, "ca_certs": ca_file or None}
    sent = {**headers, "Accept-Encoding": "identity"}
    if fields is not None:
        sent["Content-Type"], body = "application/x-www-form-urlencoded", urlencode(fields).encode("ascii")
    ends = time.monotonic() + timeouts.connect_s + _BODY_SHARE * timeouts.read_s
    try:
        with _pool("" if direct else _proxy(url), options) as pool:
            answer = pool.request(method, url, headers=sent, body=body, redirect=False, preload_content=False)
            try:
                return Reply(
                    status=answer.status,
                    headers={name.lower(): value for name, value in answer.headers.items()},
                    body=_read(answer, ends),
                )
            finally:
                answer.close()
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # ValueError: with the header in its text
        reason = type(error).__name__
    raise NoAnswer(reason)  # outside the except block: a request would hang on it as context


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as an answer's `Retry-After` asks, whether it gives their number or the time when to come again.

    The time is compared with the answer's own `Date`: the worker's clock need not be right.
    """
    named = {name.lower(): value for name, value in headers.items()}
    asked = named.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        wait = parsedate_to_datetime(asked) - parsedate_to_datetime(named.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return max(wait.total_seconds(), 0.0)


def refusal(reply: Reply, *, who: str, hint: str, sent: tuple[str, ...] = ()) -> IdentityError:
    """The error for an answer that is no token: a refusal, or something that may pass by itself.

    Args:
        sent: Secrets of the request, which the answer may repeat.
    """
    document = reply.document
    said = next((str(document[key]) for key in ("error_description", "message", "error") if document.get(key)), "")
    about = f"{who} answered HTTP {reply.status}" + (f": {redacted(said, *sent)}" if said else "")
    passing = reply.status in {404, 408, 410, 429} or reply.status >= 500
    if passing and not (reply.status == 404 and said):
        facts = Diagnosis(status=reply.status, hint=hint, retry_after_s=reply.retry_after_s, attempts=1)
        return IdentityUnavailable(about, facts)
    return IdentityRejected(about, Diagnosis(status=reply.status, hint=hint, attempts=1))


def _pool(proxy: str, options: dict[str, Any]) -> urllib3.PoolManager:
    if not proxy:
        return urllib3.PoolManager(num_pools=1, **options)
    credentials = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(credentials)) if credentials else None
    return urllib3.ProxyManager(proxy, num_pools=1, proxy_headers=headers, **options)


def _proxy(url: str) -> str:
    parts, proxies = urlsplit(url), getproxies()
    if proxy_bypass(parts.hostname or ""):
        return ""
    found = proxies.get(parts.scheme) or proxies.get("all", "")
    return found if "://" in found or not found else f"http://{found}"


def _read(answer: urllib3.BaseHTTPResponse, ends: float) -> bytes:
    parts: list[bytes] = []
    while part := answer.read1(16 * 1024):
        parts.append(part)
        if sum(map(len, parts)) > _MOST_BYTES:
            raise urllib3.exceptions.HTTPError("the answer is too long")
        if time.monotonic() > ends:
            raise urllib3.exceptions.HTTPError("the answer takes too long")
    return b"".join(parts)
