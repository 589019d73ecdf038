"""The token broker: one request for everybody, refreshed ahead, honest when there is no token."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditUnavailable,
    BeamEntraError,
    Diagnosis,
    IdentityError,
    IdentityRejected,
    IdentityUnavailable,
)
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource, TokenBroker
from beam_entra.identity.broker import RetryPolicy
from beam_entra.testing.clock import FakeClock
from tests.identity.test_sources import federated

GRAPH = "https://graph.microsoft.com"
LIFE = timedelta(hours=1)
WAIT_S = 10
REJECTED = IdentityRejected("Entra refused the job's identity", Diagnosis(code="AADSTS7000112"))
SILENT = IdentityUnavailable("the token endpoint gave no token", Diagnosis(status=503))


def throttled(seconds: float) -> IdentityUnavailable:
    """429 with Retry-After."""
    return IdentityUnavailable("the token endpoint gave no token", Diagnosis(status=429, retry_after_s=seconds))


class ScriptedSource:
    """A credential source whose answers a test writes down; when the script is empty every request gets a token."""

    def __init__(self, clock: FakeClock, *script: BeamEntraError, life: timedelta = LIFE) -> None:
        self._clock = clock
        self.script = list(script)
        self.life = life
        self.asked: list[str] = []
        self.claims: list[str] = []
        self.refresh_after: timedelta | None = None
        self.requested: queue.Queue[str] = queue.Queue()
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Requests get no answer within this block."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        """The next answer of the script, or a token."""
        with self._lock:
            self.asked.append(audience)
            self.claims.append(claims)
            number = len(self.asked)
        self.requested.put(audience)
        assert self._open.wait(WAIT_S)
        if self.script:
            raise self.script.pop(0)
        now = self._clock()
        refresh = now + self.refresh_after if self.refresh_after else None
        return AccessToken.issued(
            f"text-{number}",
            token_id=f"token-{number}",
            audience=audience,
            acquired=now,
            expires_on=int((now + self.life).timestamp()),
            refresh_on=int(refresh.timestamp()) if refresh else None,
        )


@pytest.fixture
def clock() -> FakeClock:
    """A clock at noon."""
    return FakeClock(datetime(2026, 3, 1, 12, tzinfo=UTC))


class Recorded:
    """What the broker told the audit, and when somebody is told."""

    def __init__(self) -> None:
        self.tokens: queue.Queue[tuple[str, int]] = queue.Queue()

    def __call__(self, token: AccessToken, attempts: int) -> None:
        self.tokens.put((token.token_id, attempts))


def broker_of(
    source: ScriptedSource, clock: FakeClock, *, paused: list[float] | None = None, **more: object
) -> TokenBroker:
    """A broker that pauses in no time."""
    pauses = paused if paused is not None else []
    return TokenBroker(source, clock=clock, pause=lambda seconds: bool(pauses.append(seconds)), **more)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a background flight to land."""
    deadline = datetime.now(UTC) + timedelta(seconds=WAIT_S)
    tick = threading.Event()
    while not condition():
        assert datetime.now(UTC) < deadline
        tick.wait(0.005)


# ---------------------------------------------------------------- one request


def test_one_request_over_the_wire_for_all(beam_entra_cloud):
    """16 threads that ask 200 times each cost one token request, and one record of it."""
    recorded = Recorded()
    source = EntraSource(federated(beam_entra_cloud), clock=utc_now)
    broker = TokenBroker(source, clock=utc_now, acquired=recorded)
    barrier = threading.Barrier(16)

    def ask() -> set[str]:
        barrier.wait(WAIT_S)
        return {broker.get(STORAGE_AUDIENCE).token_id for _ in range(200)}

    with ThreadPoolExecutor(16) as pool:
        seen = set().union(*(future.result() for future in [pool.submit(ask) for _ in range(16)]))
    assert len(seen) == 1
    assert beam_entra_cloud.tenant.token_requests == 1
    assert recorded.tokens.qsize() == 1


def test_waiters_share_the_flight(clock):
    """Who comes while the first request is under way waits for it and asks nothing."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    with ThreadPoolExecutor(8) as pool:
        with source.held():
            futures = [pool.submit(broker.get, STORAGE_AUDIENCE) for _ in range(8)]
            source.requested.get(timeout=WAIT_S)
        assert {future.result(WAIT_S).token_id for future in futures} == {"token-1"}
    assert len(source.asked) == 1


def test_the_audit_is_told_before_anybody_has_the_token(clock):
    """A token whose record cannot be written is given to nobody, and is asked for again later."""
    broken = [True]

    def record(token: AccessToken, attempts: int) -> None:
        if broken:
            broken.clear()
            raise AuditUnavailable("the trail is gone")

    source = ScriptedSource(clock)
    broker = broker_of(source, clock, acquired=record)
    with pytest.raises(AuditUnavailable):
        broker.get(STORAGE_AUDIENCE)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


def test_two_audiences_are_independent(clock):
    """One audience's request, failure and token are nothing to the other."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    with ThreadPoolExecutor(1) as pool:
        with source.held():
            slow = pool.submit(broker.get, GRAPH)
            assert source.requested.get(timeout=WAIT_S) == GRAPH
            other = threading.Thread(target=lambda: broker.get(STORAGE_AUDIENCE), daemon=True)
            other.start()
            assert source.requested.get(timeout=WAIT_S) == STORAGE_AUDIENCE  # it does not wait for the first
        assert slow.result(WAIT_S).audience == GRAPH
        other.join(WAIT_S)
    source.script = [REJECTED]
    clock.advance(LIFE)
    with pytest.raises(IdentityRejected):
        broker.get(GRAPH)
    assert broker.get(STORAGE_AUDIENCE).audience == STORAGE_AUDIENCE


# ---------------------------------------------------------------- refreshed ahead


def test_no_refresh_while_the_token_is_young(clock):
    """Until three quarters of its life nobody asks again."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    for _ in range(3):
        assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
        clock.advance(LIFE / 4 - timedelta(seconds=1))
    assert len(source.asked) == 1


def test_the_old_token_is_served_while_the_next_is_fetched(clock):
    """Ahead of the end the next token is asked for once, in the background; nobody waits for it."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    broker.get(STORAGE_AUDIENCE)
    source.requested.get(timeout=WAIT_S)
    clock.advance(LIFE * 0.9)
    with source.held():
        for _ in range(20):
            assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
        source.requested.get(timeout=WAIT_S)
        assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
    until(lambda: broker.get(STORAGE_AUDIENCE).token_id == "token-2")
    assert len(source.asked) == 2


def test_entras_own_wish_for_a_refresh_counts(clock):
    """A token with `refresh_on` is refreshed from then on, however long it lives."""
    source = ScriptedSource(clock)
    source.refresh_after = LIFE / 2
    broker = broker_of(source, clock)
    broker.get(STORAGE_AUDIENCE)
    clock.advance(LIFE * 0.51)
    broker.get(STORAGE_AUDIENCE)
    until(lambda: broker.get(STORAGE_AUDIENCE).token_id == "token-2")


def test_refreshes_are_spread(clock):
    """A fleet that got its tokens at one moment does not refresh them at one moment."""
    moments = set()
    for _ in range(8):
        source = ScriptedSource(clock)
        broker = broker_of(source, clock)
        broker.get(STORAGE_AUDIENCE)
        moments.add(broker._slots[STORAGE_AUDIENCE].refresh_at)
    assert len(moments) == 8
    assert max(moments) - min(moments) < LIFE / 10


def test_a_failed_refresh_keeps_serving_and_rests(clock):
    """A refresh ahead that fails costs nobody anything; the next one is 30 seconds later."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock, policy=RetryPolicy(attempts=1))
    broker.get(STORAGE_AUDIENCE)
    source.script = [SILENT]
    clock.advance(LIFE * 0.9)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
    until(lambda: not broker._slots[STORAGE_AUDIENCE].flying)
    for _ in range(10):
        assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
    assert len(source.asked) == 2
    clock.advance(timedelta(seconds=31))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
    until(lambda: broker.get(STORAGE_AUDIENCE).token_id == "token-3")


def test_an_ended_token_is_never_served(clock):
    """Within the last moments of a token everybody waits for the next one instead."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    first = broker.get(STORAGE_AUDIENCE)
    clock.set(first.expires - timedelta(seconds=29))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


def test_short_tokens_are_used_for_most_of_their_life(clock):
    """Of a token of 5 seconds all but the last quarter second is used."""
    source = ScriptedSource(clock, life=timedelta(seconds=5))
    source.refresh_after = timedelta(seconds=60)  # no refresh ahead
    broker = broker_of(source, clock)
    broker.get(STORAGE_AUDIENCE)
    clock.advance(timedelta(seconds=4.7))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-1"
    clock.advance(timedelta(seconds=0.1))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


# ---------------------------------------------------------------- no token


def test_a_failure_reaches_every_waiter(clock):
    """When no token is left and Entra refuses, everybody who waits gets the same refusal, each a copy of their own."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    broker.get(STORAGE_AUDIENCE)
    source.requested.get(timeout=WAIT_S)
    clock.advance(LIFE)
    source.script = [REJECTED]

    def ask() -> BaseException | None:
        try:
            broker.get(STORAGE_AUDIENCE)
        except IdentityError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        with source.held():
            futures = [pool.submit(ask) for _ in range(8)]
            source.requested.get(timeout=WAIT_S)
            slot = broker._slots[STORAGE_AUDIENCE]
            until(lambda: len(slot.changed._waiters) == 7)
        errors = [future.result(WAIT_S) for future in futures]
    assert {str(error) for error in errors} == {str(REJECTED)}
    assert len({id(error) for error in errors}) == 8
    assert len(source.asked) == 2


def test_after_a_failure_the_next_caller_asks_again(clock):
    """A failure is not remembered for ever."""
    source = ScriptedSource(clock, REJECTED)
    broker = broker_of(source, clock)
    with pytest.raises(IdentityRejected):
        broker.get(STORAGE_AUDIENCE)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


def test_retries_back_off_with_jitter(clock):
    """Pauses double at most, are never equal for all, and end with the last attempt."""
    paused: list[float] = []
    broker = broker_of(ScriptedSource(clock, *[SILENT] * 5), clock, paused=paused)
    with pytest.raises(IdentityUnavailable) as caught:
        broker.get(STORAGE_AUDIENCE)
    assert caught.value.diagnosis.attempts == 5
    assert len(paused) == 4
    assert all(0 <= pause <= 0.5 * 2**number for number, pause in enumerate(paused))


def test_retry_after_is_waited_for(clock):
    """The pause that Entra asks for is kept, and a little more."""
    paused: list[float] = []
    broker = broker_of(ScriptedSource(clock, throttled(17)), clock, paused=paused)
    broker.get(STORAGE_AUDIENCE)
    assert len(paused) == 1
    assert 17 < paused[0] <= 17.5


def test_a_long_retry_after_is_not_waited_for_and_not_broken(clock):
    """When Entra asks for more than our patience, callers are told at once; nobody asks again before the time."""
    source = ScriptedSource(clock, throttled(600))
    paused: list[float] = []
    broker = broker_of(source, clock, paused=paused)
    for _ in range(3):
        with pytest.raises(IdentityUnavailable) as caught:
            broker.get(STORAGE_AUDIENCE)
        assert caught.value.diagnosis.retry_after_s == 600
        clock.advance(timedelta(seconds=199))
    assert (len(source.asked), paused) == (1, [])
    clock.advance(timedelta(seconds=4))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


@pytest.mark.parametrize("asked_s", [1e13, float("9" * 400)])
def test_a_retry_after_without_sense(clock, asked_s):
    """More than any calendar holds is a day: nobody hangs, nobody asks."""
    source = ScriptedSource(clock, throttled(asked_s))
    broker = broker_of(source, clock)
    for _ in range(2):
        with pytest.raises(IdentityUnavailable):
            broker.get(STORAGE_AUDIENCE)
    assert len(source.asked) == 1
    clock.advance(timedelta(days=1, seconds=1))
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"


def test_a_throttled_refresh_waits_as_long_as_asked(clock):
    """Ahead of the end, too, nobody asks before Entra's time is over."""
    source = ScriptedSource(clock, life=timedelta(hours=10))
    broker = broker_of(source, clock)
    broker.get(STORAGE_AUDIENCE)
    source.script = [throttled(600)]
    clock.advance(timedelta(hours=9))
    broker.get(STORAGE_AUDIENCE)
    until(lambda: len(source.asked) == 2 and not broker._slots[STORAGE_AUDIENCE].flying)
    clock.advance(timedelta(seconds=599))
    broker.get(STORAGE_AUDIENCE)
    assert len(source.asked) == 2
    clock.advance(timedelta(seconds=2))
    broker.get(STORAGE_AUDIENCE)
    until(lambda: broker.get(STORAGE_AUDIENCE).token_id == "token-3")


def test_without_a_token_the_whole_story_is_told(clock):
    """How often, since when and for how long it was asked, what was answered last, and when the last token ended."""

    def pause(seconds: float) -> bool:
        clock.advance(timedelta(seconds=10))
        return False

    last = IdentityUnavailable(
        "the token endpoint gave no token: it answered HTTP 503",
        Diagnosis(status=503, code="AADSTS90033", request_id="trace-9", attempts=1),
    )
    source = ScriptedSource(clock, life=timedelta(minutes=10))
    broker = TokenBroker(source, clock=clock, pause=pause, policy=RetryPolicy(attempts=3))
    broker.get(STORAGE_AUDIENCE)
    source.script = [SILENT, SILENT, last, SILENT, SILENT, last]
    clock.advance(timedelta(minutes=9))
    broker.get(STORAGE_AUDIENCE)  # is refreshed in the background, in vain
    until(lambda: len(source.asked) == 4 and not broker._slots[STORAGE_AUDIENCE].flying)
    clock.set(datetime(2026, 3, 1, 12, 10, tzinfo=UTC))
    with pytest.raises(IdentityUnavailable) as caught:
        broker.get(STORAGE_AUDIENCE)
    assert caught.value.message == (
        "the token endpoint gave no token: it answered HTTP 503; it was asked 6 times in 80 s, since "
        "2026-03-01 12:09:00Z; the last good token ended at 2026-03-01 12:10:00Z"
    )
    known = caught.value.diagnosis
    assert (known.attempts, known.status, known.code, known.request_id) == (6, 503, "AADSTS90033", "trace-9")
    broker.get(STORAGE_AUDIENCE)
    source.script = [SILENT] * 3
    clock.advance(timedelta(hours=1))
    with pytest.raises(IdentityUnavailable, match="asked 3 times in 20 s, since 2026-03-01 13"):
        broker.get(STORAGE_AUDIENCE)  # the story begins anew with each token


def test_the_story_keeps_the_last_answer(clock):
    """Attempts that nobody answered hide neither Entra's last status nor its code and ids."""
    known = Diagnosis(status=503, code="AADSTS90033", request_id="trace-9", correlation_id="correlation-9")
    busy = IdentityUnavailable("the token endpoint gave no token: it answered HTTP 503", known)
    silent = IdentityUnavailable("the token endpoint gave no token: it did not answer", Diagnosis(hint="look"))
    source = ScriptedSource(clock, busy, silent, silent)
    broker = broker_of(source, clock, policy=RetryPolicy(attempts=3))
    with pytest.raises(IdentityUnavailable, match="Z; its last answer was HTTP 503; there has been no") as caught:
        broker.get(STORAGE_AUDIENCE)
    told = caught.value.diagnosis
    assert (told.status, told.code, told.request_id) == (503, "AADSTS90033", "trace-9")
    assert (told.correlation_id, told.hint, told.attempts) == ("correlation-9", "look", 3)
    broker.get(STORAGE_AUDIENCE)
    source.script = [silent] * 3
    clock.advance(LIFE)
    with pytest.raises(IdentityUnavailable) as caught:
        broker.get(STORAGE_AUDIENCE)  # nobody answered since that token
    assert caught.value.diagnosis.status is None
    assert "last answer" not in caught.value.message


def test_the_story_of_a_first_request(clock):
    """It says that there has been no token."""
    broker = broker_of(ScriptedSource(clock, SILENT), clock, policy=RetryPolicy(attempts=1))
    with pytest.raises(IdentityUnavailable, match=r"it was asked once, since .*; there has been no token before"):
        broker.get(STORAGE_AUDIENCE)


# ---------------------------------------------------------------- challenged


CLAIMS = '{"access_token":{"nbf":{"essential":true,"value":"1772366400"}}}'


def test_a_challenge_leads_to_one_new_token_for_everybody(clock):
    """Sixteen threads that were refused the same token cost one request, with the claims; all get the new token."""
    source, recorded = ScriptedSource(clock), Recorded()
    broker = broker_of(source, clock, acquired=recorded)
    refused = broker.get(STORAGE_AUDIENCE)
    barrier = threading.Barrier(16)

    def renew() -> str:
        barrier.wait(WAIT_S)
        return broker.renew(refused, CLAIMS).token_id

    with ThreadPoolExecutor(16) as pool:
        got = {future.result(WAIT_S) for future in [pool.submit(renew) for _ in range(16)]}
    assert got == {"token-2"}
    assert source.claims == ["", CLAIMS]
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"
    assert broker.renew(refused, CLAIMS).token_id == "token-2"  # who is late
    assert recorded.tokens.qsize() == 2
    second = broker.get(STORAGE_AUDIENCE)
    clock.advance(timedelta(seconds=60))
    assert broker.renew(second, CLAIMS).token_id == "token-3"  # another challenge, to the new one


def test_challenges_without_an_end_cost_one_token_a_minute(clock):
    """Whoever refuses each new token gets no other for a minute, whatever the claims, and nobody waits."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    broker.renew(broker.get(STORAGE_AUDIENCE), CLAIMS)
    for minute in range(1, 4):
        for second in range(60):
            refused = broker.get(STORAGE_AUDIENCE)
            assert broker.renew(refused, CLAIMS.replace("1772366400", str(second))) is None
            assert len(source.asked) == minute + 1
            clock.advance(timedelta(seconds=1))
        assert broker.renew(broker.get(STORAGE_AUDIENCE), CLAIMS) is not None
    assert broker.renew(broker.get(GRAPH), CLAIMS) is not None  # another service's challenge is its own


def test_after_an_ordinary_refresh_a_challenge_is_answered_at_once(clock):
    """The minute is that of a token which was got for a challenge."""
    source = ScriptedSource(clock, life=timedelta(seconds=40))
    broker = broker_of(source, clock)
    broker.renew(broker.get(STORAGE_AUDIENCE), CLAIMS)
    clock.advance(timedelta(seconds=40))
    assert broker.renew(broker.get(STORAGE_AUDIENCE), CLAIMS).token_id == "token-4"
    assert source.claims == ["", CLAIMS, "", CLAIMS]


def test_a_refused_token_is_given_out_no_more(clock):
    """When there is no new one, there is none: who asks later asks with the claims, until a token has come for them."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock, policy=RetryPolicy(attempts=1))
    refused = broker.get(STORAGE_AUDIENCE)
    source.script = [REJECTED, SILENT]
    with pytest.raises(IdentityRejected):
        broker.renew(refused, CLAIMS)
    with pytest.raises(IdentityUnavailable, match="a service has refused the token at hand"):
        broker.get(STORAGE_AUDIENCE)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-4"
    clock.advance(LIFE)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-5"
    assert source.claims == ["", CLAIMS, CLAIMS, CLAIMS, ""]


def test_a_refresh_under_way_does_not_answer_a_challenge(clock):
    """Its token was asked for without the claims: it is given to nobody, and the next request has them."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    refused = broker.get(STORAGE_AUDIENCE)
    source.requested.get(timeout=WAIT_S)
    clock.advance(LIFE * 0.9)
    with ThreadPoolExecutor(1) as pool:
        with source.held():
            broker.get(STORAGE_AUDIENCE)
            source.requested.get(timeout=WAIT_S)
            renewed = pool.submit(broker.renew, refused, CLAIMS)
            slot = broker._slots[STORAGE_AUDIENCE]
            until(lambda: len(slot.changed._waiters) == 1)
        assert renewed.result(WAIT_S).token_id == "token-3"
    assert source.claims == ["", "", CLAIMS]


def test_a_token_that_came_without_the_claims_is_no_answer(clock):
    """A refresh that landed just before the challenge to the older token has not answered it."""
    source = ScriptedSource(clock)
    broker = broker_of(source, clock)
    refused = broker.get(STORAGE_AUDIENCE)
    clock.advance(LIFE)
    assert broker.get(STORAGE_AUDIENCE).token_id == "token-2"
    assert broker.renew(refused, CLAIMS).token_id == "token-3"
    assert source.claims == ["", "", CLAIMS]


def test_an_unexpected_error_wakes_the_waiters(clock):
    """A defect in a source fails its own caller; those who waited ask for themselves."""
    source = ScriptedSource(clock)
    source.script = [KeyError("a defect")]  # type: ignore[list-item]  # just not an error of ours
    broker = broker_of(source, clock)
    with ThreadPoolExecutor(2) as pool:
        with source.held():
            first = pool.submit(broker.get, STORAGE_AUDIENCE)
            source.requested.get(timeout=WAIT_S)
            second = pool.submit(broker.get, STORAGE_AUDIENCE)
        with pytest.raises(KeyError):
            first.result(WAIT_S)
        assert second.result(WAIT_S).token_id == "token-2"


# ---------------------------------------------------------------- closing


def test_closing_drops_every_token(clock):
    """Nothing is left to read out of a closed broker, and it gives out nothing more."""
    broker = broker_of(ScriptedSource(clock), clock)
    broker.get(STORAGE_AUDIENCE)
    broker.close()
    assert broker._slots == {}
    with pytest.raises(IdentityUnavailable, match="the session is closed") as caught:
        broker.get(STORAGE_AUDIENCE)
    assert "open another session" in caught.value.hint


def test_a_token_that_arrives_after_closing_is_given_to_nobody(clock):
    """A request that is under way when the broker closes ends without a token, and without a record of one."""
    source, recorded = ScriptedSource(clock), Recorded()
    broker = broker_of(source, clock, acquired=recorded)
    with ThreadPoolExecutor(1) as pool:
        with source.held():
            late = pool.submit(broker.get, STORAGE_AUDIENCE)
            source.requested.get(timeout=WAIT_S)
            broker.close()
        with pytest.raises(IdentityUnavailable, match="the session is closed"):
            late.result(WAIT_S)
    assert recorded.tokens.empty()


def test_closing_ends_a_pause(clock):
    """A broker that waits to ask again does not keep anybody from ending."""
    source = ScriptedSource(clock, throttled(100))
    broker = TokenBroker(source, clock=clock)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(broker.get, STORAGE_AUDIENCE)
        source.requested.get(timeout=WAIT_S)
        broker.close()
        with pytest.raises(IdentityUnavailable):
            waiting.result(WAIT_S)


# ---------------------------------------------------------------- whatever happens


class BrokerMachine(RuleBasedStateMachine):
    """Any course of time, answers and calls. The broker's promises hold after each step."""

    @initialize(life_s=st.integers(20, 7200))
    def begin(self, life_s):
        self.clock = FakeClock(datetime(2026, 3, 1, 12, tzinfo=UTC))
        self.source = ScriptedSource(self.clock, life=timedelta(seconds=life_s))
        self.recorded = Recorded()
        self.broker = broker_of(self.source, self.clock, acquired=self.recorded, policy=RetryPolicy(attempts=2))
        self.told: set[str] = set()
        self.forbidden_until: datetime | None = None
        self.answered_at: datetime | None = None

    def settle(self):
        slot = self.broker._slots.get(STORAGE_AUDIENCE)
        if slot is not None:
            until(lambda: not slot.flying)
        while not self.recorded.tokens.empty():
            self.told.add(self.recorded.tokens.get()[0])

    @rule(seconds=st.integers(0, 4000))
    def time_passes(self, seconds):
        self.clock.advance(timedelta(seconds=seconds))

    @rule(
        answers=st.lists(
            st.sampled_from([SILENT, REJECTED, throttled(5), throttled(500)]), min_size=1, max_size=3
        )
    )
    @precondition(lambda self: not self.source.script)
    def entra_will_say(self, answers):
        self.source.script = list(answers)

    @rule()
    def get(self):
        self.ask(lambda: self.broker.get(STORAGE_AUDIENCE))

    @rule()
    def challenged(self):
        refused = self.ask(lambda: self.broker.get(STORAGE_AUDIENCE))
        if refused is not None:
            renewed = self.ask(lambda: self.broker.renew(refused, CLAIMS))
            assert renewed is None or renewed.token_id != refused.token_id
            if renewed is not None:
                assert self.answered_at is None or self.answered_at != self.clock()
                self.answered_at = self.clock()

    def ask(self, call):
        asked = len(self.source.asked)
        token = None
        with contextlib.suppress(IdentityError):
            token = call()
        self.settle()
        if token is not None:
            assert token.expires > self.clock()
            assert token.token_id in self.told
        made = len(self.source.asked) - asked
        assert made <= 2
        if self.forbidden_until is not None and self.clock() < self.forbidden_until:
            assert made == 0
        slot = self.broker._slots[STORAGE_AUDIENCE]
        asked_s = slot.failure.diagnosis.retry_after_s if slot.failure is not None else None
        if made:
            self.forbidden_until = self.clock() + timedelta(seconds=asked_s) if asked_s else None
        return token

    @invariant()
    def nobody_flies_for_ever(self):
        if hasattr(self, "broker"):
            self.settle()


TestWhateverHappens = BrokerMachine.TestCase
TestWhateverHappens.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
