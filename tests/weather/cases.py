"""The weather: each fault, the moment at which it begins, and how the job has to end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from beam_entra.errors import (
    AccessDenied,
    AuditUnavailable,
    BeamEntraError,
    IdentityRejected,
    IdentityUnavailable,
    StorageError,
)
from beam_entra.testing.storage_requests import StorageRequest, matching
from tests.io.conftest import Lake
from tests.weather.sky import Sky

__all__ = ["LONG", "STORAGE", "TOKEN", "Case", "data"]

_OUTAGE_S = 60
Where = Callable[[StorageRequest], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault.

    Attributes:
        name: The fault, as the page has it.
        strike: Begins it. Called in the middle of the job: when the fourth blob is asked for, which then goes on.
        happened: What it comes to, as the page has it, behind "recovered" or the error's name.
        error, says: How the job ends; without an error, with the right output.
        trail: What is left of the audit: `sealed`, `unsealed` but whole, or `gone`.
        token_life_s, refresh_in_s: Of the tokens.
        old_token: The token at hand has ended when the job goes on.
        least_hits: So many requests have met the fault, or it proves nothing.
        stalls: Token requests are held; the tenant's journal does not say which.
        pace_s: Of the transform, for each order.
        sas: Life of a SAS.
        scoping: Of the manifest.
        padding: Bytes that make each order longer.
    """

    name: str
    strike: Callable[[Sky, Lake], object]
    happened: str
    error: type[BeamEntraError] | None = None
    says: str = ""
    trail: Literal["sealed", "unsealed", "gone"] = "sealed"
    token_life_s: int = 3600
    refresh_in_s: int | None = None
    old_token: bool = False
    least_hits: int = 1
    stalls: bool = False
    pace_s: float = 0
    sas: str = "5m"
    scoping: str = "sas"
    padding: int = 0


def data(operation: str, lake: Lake) -> Where:
    """Requests of this kind for the job's data, not its trail."""
    containers = {lake.raw.name, lake.curated.name}
    return lambda request: request.operation == operation and request.container in containers


def _rotate(sky: Sky, lake: Lake) -> None:
    sky.issuer.rotate_keys()
    sky.rewrite_assertion()
    sky.tenant.rotate_keys(keep_old=False)


def _burst(sky: Sky, lake: Lake) -> None:
    for operation in ("GetBlob", "PutBlock", "PutBlockList", "AppendBlock"):
        sky.proxy.respond(503, "ServerBusy", where=matching(operation), times=3)


def _lose_answers(sky: Sky, lake: Lake) -> None:
    for operation in ("PutBlock", "PutBlockList", "AppendBlock"):
        sky.proxy.lose_answer(where=matching(operation), times=1)


def _reset_bodies(sky: Sky, lake: Lake) -> None:
    sky.proxy.truncate(100, reset=True, where=data("GetBlob", lake), times=4)
    sky.proxy.reset(where=data("PutBlock", lake), times=2)


def _end_key(sky: Sky, lake: Lake) -> None:
    used = {each.request.parameters.get("skt", "") for each in sky.proxy.requests} - {""}
    threading.Event().wait(1.1)  # a key that starts in another second is another key

    def under_the_old_key(request: StorageRequest) -> bool:
        return request.parameters.get("skt") in used

    sky.proxy.respond(403, "AuthenticationFailed", where=under_the_old_key)


def _drop_audit(sky: Sky, lake: Lake) -> None:
    sky.admin.client(lake.audit.account).delete_container(lake.audit.name)


def _outage(sky: Sky, lake: Lake) -> None:
    fault = sky.tenant.drop()
    end = threading.Timer(_OUTAGE_S, fault.clear)
    end.daemon = True
    end.start()


TOKEN = [
    Case(
        name="429 with Retry-After",
        strike=lambda sky, lake: sky.tenant.throttle(retry_after_s=1, times=2),
        happened="asked again after the time it gave",
        token_life_s=2,
        old_token=True,
        least_hits=2,
    ),
    Case(
        name="429 with a Retry-After of an hour",
        strike=lambda sky, lake: sky.tenant.throttle(retry_after_s=3600),
        happened="it is not asked again before that, and the job does not wait for so long",
        error=IdentityUnavailable,
        says="429",
        trail="unsealed",
        token_life_s=2,
        old_token=True,
    ),
    Case(
        name="a burst of 500 and 503",
        strike=lambda sky, lake: (sky.tenant.fail(500, times=2), sky.tenant.fail(503, times=1)),
        happened="asked again after pauses that grow",
        token_life_s=2,
        old_token=True,
        least_hits=3,
    ),
    Case(
        name="connections reset",
        strike=lambda sky, lake: sky.tenant.drop(times=2),
        happened="asked again",
        token_life_s=2,
        old_token=True,
        least_hits=2,
    ),
    Case(
        name="garbage where JSON should be",
        strike=lambda sky, lake: sky.tenant.garbage(times=2),
        happened="taken for an answer that is not Entra's, and asked again",
        token_life_s=2,
        old_token=True,
        least_hits=2,
    ),
    Case(
        name="garbage that stays",
        strike=lambda sky, lake: sky.tenant.garbage(),
        happened="once no token is left, after five attempts",
        error=IdentityUnavailable,
        says="with something that is no token",
        trail="unsealed",
        token_life_s=2,
        old_token=True,
        least_hits=5,
    ),
    Case(
        name="the issuer of the assertion, and Entra itself, sign with new keys",
        strike=_rotate,
        happened="the assertion is read anew for each token; nobody waits",
        token_life_s=2,
        old_token=True,
        least_hits=0,
    ),
    Case(
        name="the application is revoked",
        strike=lambda sky, lake: sky.app.disable(),
        happened="at the next token, with Entra's code; not asked again",
        error=IdentityRejected,
        says="AADSTS7000112",
        trail="unsealed",
        token_life_s=2,
        old_token=True,
        least_hits=0,
    ),
    Case(
        name="a claims challenge (continuous access evaluation), with bearer scoping",
        strike=lambda sky, lake: sky.proxy.challenge(where=data("GetBlob", lake), times=1),
        happened="one new token with these claims",
        scoping="bearer",
    ),
    Case(
        name="claims challenges that stay, with bearer scoping",
        strike=lambda sky, lake: sky.proxy.challenge(where=data("GetBlob", lake)),
        happened="when the token with the claims is refused as well",
        error=AccessDenied,
        says="refuses the new token",
        least_hits=2,
        scoping="bearer",
    ),
]

STORAGE = [
    Case(
        name="a burst of 503 for each kind of request",
        strike=_burst,
        happened="asked again after pauses that grow",
        least_hits=12,
    ),
    Case(
        name="answers lost when the work is done",
        strike=_lose_answers,
        happened="sent again, and known by block id, position and commit id to be done",
        least_hits=3,
    ),
    Case(
        name="connections reset in mid-body",
        strike=_reset_bodies,
        happened="reads go on at the byte they have come to, blocks are sent again",
        least_hits=6,
    ),
    Case(
        name="the role to read is removed",
        strike=lambda sky, lake: sky.proxy.without_role(where=data("GetBlob", lake)),
        happened="at the next request, with the role that is missing; not asked again",
        error=AccessDenied,
        says="Storage Blob Data Reader",
    ),
    Case(
        name="the role to write is removed",
        strike=lambda sky, lake: sky.proxy.without_role(where=data("PutBlock", lake)),
        happened="at the next request, with the role that is missing; not asked again",
        error=AccessDenied,
        says="Contributor",
    ),
    Case(
        name="the user delegation key has ended, or is revoked",
        strike=_end_key,
        happened="one new key, and SAS of that from then on",
        least_hits=1,
    ),
    Case(
        name="signatures are refused, whatever the key",
        strike=lambda sky, lake: sky.proxy.respond(403, "AuthenticationFailed", where=data("GetBlob", lake)),
        happened="when that of a new key is refused as well",
        error=AccessDenied,
        says="clock is right",
        least_hits=2,
    ),
    Case(
        name="a 503 that stays",
        strike=lambda sky, lake: sky.proxy.respond(503, "ServerBusy", where=data("PutBlock", lake)),
        happened="after seven attempts",
        error=StorageError,
        says="throttling this account",
        least_hits=6,
    ),
    Case(
        name="the audit container is gone",
        strike=_drop_audit,
        happened="nothing is handed on or committed without its record",
        error=AuditUnavailable,
        says="container does not exist",
        trail="gone",
        least_hits=0,
    ),
]

LONG = [
    Case(
        name="an outage of 60 s, with tokens of 20 s",
        strike=_outage,
        happened="once no token is left, after five attempts; the error tells since when",
        error=IdentityUnavailable,
        says="the last good token ended at",
        trail="unsealed",
        token_life_s=20,
        least_hits=5,
        pace_s=0.23,
        sas="5s",
    ),
    Case(
        name="an outage of 60 s, with tokens of 120 s",
        strike=_outage,
        happened="it goes on with the token at hand, asks ahead, rests and asks again; nobody waits",
        token_life_s=120,
        refresh_in_s=5,
        least_hits=6,
        pace_s=0.23,
        sas="5s",
    ),
    Case(
        name="a stall of 30 s",
        strike=lambda sky, lake: sky.tenant.stall(30, times=1),
        happened="given up after 20 s, and asked again",
        token_life_s=2,
        old_token=True,
        least_hits=0,
        stalls=True,
    ),
    Case(
        name="a body at 1 KB/s",
        strike=lambda sky, lake: sky.proxy.drip(1000, where=data("GetBlob", lake), times=1),
        happened="given up when 64 KiB have not come in 30 s, and asked for from the byte it has come to",
        padding=4000,
    ),
]
