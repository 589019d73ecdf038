"""The token broker: one live token for each audience, asked for once, refreshed ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from beam_entra.clock import Clock
from beam_entra.errors import BeamEntraError, Diagnosis, IdentityUnavailable
from beam_entra.identity.sources import CredentialSource
from beam_entra.identity.token import AccessToken

__all__ = ["RetryPolicy", "TokenBroker"]

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_REFRESH_SHARE = 0.2
_JITTER_SHARE = 0.05
_UNUSABLE_SHARE = 0.05
_UNUSABLE_AT_MOST = timedelta(seconds=30)
_REST_AFTER_FAILURE = timedelta(seconds=30)
_LONGEST_REST_S = 24 * 3600  # whatever a Retry-After asks for
_REST_AFTER_CHALLENGE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often to ask a token endpoint that does not answer.

    Attributes:
        attempts: Requests in one flight, at most.
        first_delay_s: Pause after the first failure; doubles each time, with full jitter.
        longest_delay_s: Cap of such a pause. A pause that the service asks for with Retry-After is kept to the second.
        patience_s: All pauses of one flight together. A longer Retry-After ends the flight at once; nobody asks again
            until it is over.
    """

    attempts: int = 5
    first_delay_s: float = 0.5
    longest_delay_s: float = 15.0
    patience_s: float = 120.0


@dataclass(slots=True)
class _Slot:
    """One audience: its token, and the one flight that may be under way.

    Attributes:
        usable_until: When the token is given out no more.
        refresh_at: When to begin to refresh the token.
        failure: Of the last flight.
        claims: What a service wants to see in the next token, as JSON; "" for nothing, or when it is in the token.
        answered: The token came for such claims.
        unchallenged_until: Of a token that did: no other is asked for in its place until then.
        last: The newest token that was good, also when it is not any more.
        attempts: Requests since then.
        failing_since: When the first of them was made.
        heard: What the last of them that was answered was told.
        not_before: No refresh ahead until then.
        asked_until: No request at all until then: the Retry-After of the last flight's last answer.
    """

    changed: threading.Condition = field(default_factory=threading.Condition)
    token: AccessToken | None = None
    usable_until: datetime = _LONG_AGO
    refresh_at: datetime | None = None
    flying: bool = False
    flights: int = 0
    failure: BeamEntraError | None = None
    claims: str = ""
    answered: bool = False
    unchallenged_until: datetime = _LONG_AGO
    last: AccessToken | None = None
    attempts: int = 0
    failing_since: datetime | None = None
    heard: Diagnosis | None = None
    not_before: datetime | None = None
    asked_until: datetime | None = None


class TokenBroker:
    """Gives out live tokens. Thread-safe; at most one request for an audience is under way at any time.

    A token is refreshed ahead of its end: at `refresh_on` if Entra gave one, else when a fifth of its life is left,
    with jitter so that a fleet of workers does not ask at once. The refresh runs in the background while callers go on
    with the token that is still good; only when none is left do callers wait, all for the same request.

    A token that a service has refused with a claims challenge (continuous access evaluation) is given out no more: the
    next request carries the claims, whoever makes it, until a token has come for them. If the service refuses that one
    as well, a third will not help: for a minute none is asked for, however often it says so.

    Args:
        source: Where tokens come from.
        clock: For every decision about time.
        acquired: Told of each token before anybody gets it, with the number of attempts it took: the audit.
        pause: Waits for so many seconds between attempts; returns True when the broker was closed meanwhile.
        policy: How often to ask.
    """

    def __init__(
        self,
        source: CredentialSource,
        *,
        clock: Clock,
        acquired: Callable[[AccessToken, int], None] = lambda token, attempts: None,
        pause: Callable[[float], bool] | None = None,
        policy: RetryPolicy = RetryPolicy(),
    ) -> None:
        self._source = source
        self._clock = clock
        self._acquired = acquired
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self._policy = policy
        self._slots: dict[str, _Slot] = {}
        self._slots_lock = threading.Lock()

    def get(self, audience: str) -> AccessToken:
        """A token for `audience` that is good now.

        Raises:
            IdentityRejected: Entra says no.
            IdentityUnavailable: No answer, after all attempts, and no token is left. It tells the whole story.
        """
        return self._live(audience, self._slot(audience))

    def renew(self, refused: AccessToken, claims: str) -> AccessToken | None:
        """A token with these claims in place of one that a service has refused for the want of them.

        Of many that were refused the same token, one asks and all get the new one.

        Args:
            claims: What the service said in its challenge, decoded: JSON.

        Returns:
            None when the one that was refused had itself been got for a challenge, less than a minute ago. It is kept:
            another request may be let in with it.

        Raises:
            IdentityError: As `get`. The refused token is gone.
        """
        slot = self._slot(refused.audience)
        with slot.changed:
            token = slot.token
            if token is not None and (token.token_id == refused.token_id or not slot.answered):
                if slot.answered and self._clock() < slot.unchallenged_until:
                    return None
                slot.token = None
                slot.claims = claims
        return self._live(refused.audience, slot)

    def _live(self, audience: str, slot: _Slot) -> AccessToken:
        with slot.changed:
            while True:
                now = self._clock()
                token = slot.token
                if token is not None and now < slot.usable_until:
                    if self._due(slot, now):
                        self._start_refresh(audience, slot)
                    return token
                if not slot.flying:
                    if slot.failure is not None and slot.asked_until is not None and now < slot.asked_until:
                        raise _copy(slot.failure)
                    slot.flying = True
                    break
                flight = slot.flights
                slot.changed.wait_for(lambda: slot.flights != flight)  # noqa: B023 - waits right here
                if slot.failure is not None:
                    raise _copy(slot.failure)
        return self._fly(audience, slot)

    def close(self) -> None:
        """Forget every token and end pauses. Requests under way end by themselves; their tokens are dropped."""
        self._closed.set()
        with self._slots_lock:
            self._slots.clear()

    def _slot(self, audience: str) -> _Slot:
        with self._slots_lock:
            self._check_open()
            slot = self._slots.get(audience)
            if slot is None:
                slot = self._slots[audience] = _Slot()
            return slot

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise IdentityUnavailable(
                "the session is closed: its tokens are gone",
                Diagnosis(hint="open another session, or wait for what is under way before closing this one"),
            )

    def _due(self, slot: _Slot, now: datetime) -> bool:
        rested = slot.not_before is None or now >= slot.not_before
        return not slot.flying and rested and slot.refresh_at is not None and now >= slot.refresh_at

    def _start_refresh(self, audience: str, slot: _Slot) -> None:
        refresh = threading.Thread(target=self._refresh, args=(audience, slot), daemon=True)
        refresh.name = "beam-entra-token-refresh"
        slot.flying = True
        try:
            refresh.start()
        except RuntimeError:  # no more threads: the token at hand is good still, and whoever has none asks itself
            slot.flying = False

    def _refresh(self, audience: str, slot: _Slot) -> None:
        """The background flight. Its failure is kept for those who will be left without a token."""
        with contextlib.suppress(BeamEntraError):
            self._fly(audience, slot)

    def _fly(self, audience: str, slot: _Slot) -> AccessToken:
        """Acquire, publish, wake the waiters."""
        token: AccessToken | None = None
        failure: BeamEntraError | None = None
        claims = slot.claims
        try:
            fresh, attempts = self._acquire(audience, slot, claims)
            self._check_open()
            self._acquired(fresh, attempts)
            token = fresh
            return fresh
        except BeamEntraError as error:
            failure = error
            raise
        finally:
            with slot.changed:
                slot.flying = False
                slot.flights += 1
                slot.failure = failure
                slot.asked_until = None
                if token is not None:
                    slot.last, slot.attempts, slot.failing_since, slot.heard = token, 0, None, None
                    if claims == slot.claims:  # else a challenge came meanwhile, which this token does not answer
                        slot.token, slot.answered, slot.claims = token, bool(claims), ""
                        slot.usable_until = _usable_until(token)
                        slot.unchallenged_until = self._clock() + _REST_AFTER_CHALLENGE
                    slot.refresh_at, slot.not_before = _refresh_at(token), None
                else:
                    slot.not_before = self._clock() + _REST_AFTER_FAILURE
                    asked_s = failure.diagnosis.retry_after_s if failure is not None else None
                    if asked_s:
                        slot.asked_until = self._clock() + timedelta(seconds=min(asked_s, _LONGEST_REST_S))
                        slot.not_before = max(slot.not_before, slot.asked_until)
                slot.changed.notify_all()

    def _acquire(self, audience: str, slot: _Slot, claims: str) -> tuple[AccessToken, int]:
        policy, waited_s = self._policy, 0.0
        for attempt in itertools.count(1):
            slot.attempts += 1  # of a slot there is one flight at a time
            slot.failing_since = slot.failing_since or self._clock()
            try:
                if claims:
                    return self._source.acquire(audience, claims=claims), attempt
                return self._source.acquire(audience), attempt
            except IdentityUnavailable as error:
                failure = error
            if failure.diagnosis.status is not None:
                slot.heard = failure.diagnosis
            backoff_s = min(policy.first_delay_s * 2 ** (attempt - 1), policy.longest_delay_s)
            asked_s = failure.diagnosis.retry_after_s
            wait_s = random.uniform(0, backoff_s) + (asked_s or 0)  # noqa: S311 - jitter, not a secret
            waited_s += wait_s
            if attempt == policy.attempts or waited_s > policy.patience_s or self._pause(wait_s):
                raise self._story(failure, slot)
        raise AssertionError("unreachable")

    def _story(self, failure: IdentityUnavailable, slot: _Slot) -> IdentityUnavailable:
        """What there is to say when no token is left: how often and how long it was tried, what there was before."""
        now = self._clock()
        since = slot.failing_since or now
        tries = "once" if slot.attempts == 1 else f"{slot.attempts} times in {(now - since).total_seconds():.0f} s"
        if slot.last is None:
            before = "there has been no token before"
        elif now < slot.last.expires:
            ends = f"{slot.last.expires:%Y-%m-%d %H:%M:%SZ}"
            before = f"the token at hand ends at {ends}" if slot.token else "a service has refused the token at hand"
        else:
            before = f"the last good token ended at {slot.last.expires:%Y-%m-%d %H:%M:%SZ}"
        known, heard = failure.diagnosis, ""
        if known.status is None and slot.heard is not None:
            heard = f"; its last answer was HTTP {slot.heard.status}"
            told = {name: getattr(slot.heard, name) for name in ("status", "code", "request_id", "correlation_id")}
            known = dataclasses.replace(known, **told)
        return IdentityUnavailable(
            f"{failure.message}; it was asked {tries}, since {since:%Y-%m-%d %H:%M:%SZ}{heard}; {before}",
            dataclasses.replace(known, attempts=slot.attempts),
        )


def _copy(failure: BeamEntraError) -> BeamEntraError:
    """The same error for one more thread: a traceback is not shared."""
    return type(failure)(*failure.args)


def _usable_until(token: AccessToken) -> datetime:
    """A little before its end, so that it does not end on the way."""
    life = token.expires - token.acquired
    return token.expires - min(life * _UNUSABLE_SHARE, _UNUSABLE_AT_MOST)


def _refresh_at(token: AccessToken) -> datetime:
    life = token.expires - token.acquired
    planned = token.refresh_on or token.expires - life * _REFRESH_SHARE
    return planned - life * random.uniform(0, _JITTER_SHARE)  # noqa: S311 - jitter, not a secret
