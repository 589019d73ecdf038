"""The deadline of a session: a fixed one stays, a rolling one moves on with each fresh token, and never without."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.clock import utc_now
from beam_entra.errors import AuditUnavailable, ConfigError, IdentityError, IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource
from beam_entra.secret import Secret
from beam_entra.session import JobScope, adopt_session, close_session, live_scopes
from beam_entra.session.deadline import Deadline
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.tenant import GRAPH
from tests.session.conftest import DATA, Job, read_blob, write_blob
from tests.session.test_scope import SCOPE

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIFE = timedelta(hours=2)  # of SCOPE
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
ROLLING = replace(
    SCOPE, manifest=replace(SCOPE.manifest, lifetime=replace(SCOPE.manifest.lifetime, rolling=True)), launched=START
)


def fresh() -> Secret:
    """Another token each time."""
    return Secret(uuid.uuid4().hex, what="access token")


class Told:
    """What an audit is told of a deadline."""

    def __init__(self, scope: JobScope = ROLLING, now: datetime = START) -> None:
        self.deadline = Deadline(scope, now)
        self.told: list[datetime] = []

    def token(self, acquired: datetime, *, life: timedelta = HOUR) -> None:
        """A token comes."""
        self.deadline.extend(fresh(), acquired=acquired, expires=acquired + life, told=self.told.append)


def test_a_fixed_deadline_stays() -> None:
    """Whatever tokens come."""
    fixed = Told(SCOPE)
    fixed.token(START, life=24 * HOUR)
    fixed.token(START + HOUR, life=24 * HOUR)
    assert fixed.deadline.at == SCOPE.deadline
    assert fixed.told == []


def test_a_rolling_one_moves_on_for_weeks() -> None:
    """It is always as far ahead of the last fresh token as the manifest says, wherever the launch was."""
    clock = FakeClock(START + timedelta(days=20))
    rolling = Told(now=clock())
    assert rolling.deadline.at == clock() + LIFE, "a process has as long to get its first token"
    for _ in range(1000):
        rolling.token(clock())
        assert rolling.deadline.at == clock() + LIFE
        clock.advance(48 * MINUTE)
    assert len(rolling.told) == 1000


def test_a_token_from_a_cache_proves_nothing() -> None:
    """It ends when the one before did, or seems to end a little later, since its end is counted from now: the same."""
    rolling, same = Told(), fresh()
    for minutes in (0, 10, 30, 50):
        told, acquired = rolling.told.append, START + minutes * MINUTE
        rolling.deadline.extend(fresh() if minutes else same, acquired=acquired, expires=START + HOUR, told=told)
        rolling.deadline.extend(same, acquired=acquired, expires=START + HOUR + minutes * SECOND, told=told)
    assert rolling.deadline.at == START + LIFE
    assert rolling.told == [START + LIFE]


def test_the_audit_is_told_before_it_moves() -> None:
    """What cannot be recorded does not happen."""
    rolling = Told()

    def fail(at: datetime) -> None:
        raise AuditUnavailable("no trail")

    with pytest.raises(AuditUnavailable):
        rolling.deadline.extend(fresh(), acquired=START + HOUR, expires=START + 2 * HOUR, told=fail)
    assert rolling.deadline.at == START + LIFE
    rolling.token(START + HOUR)
    assert rolling.told == [START + HOUR + LIFE]


def test_a_life_that_is_shorter_than_a_tokens() -> None:
    """A job that is well would end before its token is renewed; that is told at once, and nothing moves."""
    rolling = Told()
    with pytest.raises(ConfigError, match=r"rolling life of 2:00:00 is shorter than that .* tokens, 1 day") as caught:
        rolling.token(START, life=24 * HOUR)
    assert "[lifetime] job" in caught.value.hint
    assert rolling.told == []


@given(st.lists(st.tuples(st.integers(-600, 7200), st.integers(1, 7000)), max_size=20))
def test_it_never_goes_back_nor_too_far(tokens: list[tuple[int, int]]) -> None:
    """Whatever tokens come, in whatever order: at most `job` after the latest was acquired, and never back."""
    rolling, now, latest, stood = Told(), START, START, START
    for after_s, life_s in tokens:
        now += timedelta(seconds=after_s)
        rolling.token(now, life=timedelta(seconds=life_s))
        latest = max(latest, now)
        assert stood <= rolling.deadline.at <= latest + LIFE
        stood = rolling.deadline.at
    assert rolling.told == sorted(set(rolling.told))


# ---------------------------------------------------------------- over the wire


@pytest.fixture
def token_life(beam_entra_cloud: LocalCloud) -> Iterator[Callable[[int], None]]:
    """Sets how long the next tokens live, in seconds; 3 at first."""

    def live(seconds: int) -> None:
        beam_entra_cloud.tenant.token_life_s = seconds

    live(3)
    yield live
    live(3600)


@pytest.fixture
def rolling(make_job: Callable[..., Job], token_life: Callable[[int], None]) -> Callable[..., Job]:
    """Makes jobs with a rolling life of a minute, launched long ago, whose input is there."""

    def make(**facts: Any) -> Job:
        job = make_job(rolling="1m", sas_life="5s", **facts)
        launched = utc_now() - timedelta(days=20)
        job.scope = replace(JobScope.launch(job.manifest, now=launched), job=job.scope.job)
        job.raw.upload("orders/a.jsonl", DATA)
        return job

    return make


@pytest.mark.parametrize("scoping", ["sas", "bearer"])
def test_a_job_that_goes_on_long_after_its_first_deadline(
    rolling: Callable[..., Job], token_life: Callable[[int], None], scoping: str
) -> None:
    """A worker that joins on the twentieth day reads, writes and goes on with each fresh token; the trail verifies."""
    job, clock = rolling(scoping=scoping), FakeClock(utc_now())
    session = job.session(clock=clock)
    assert read_blob(session, job) == DATA
    first = session.deadline
    for life_s in (6, 9):
        clock.advance(timedelta(seconds=3))
        token_life(life_s)
        assert read_blob(session, job) == DATA
    assert session.deadline > first
    write_blob(session, job)
    summary = job.seal_and_verify(session)
    assert job.records("bundle_opened")[-1]["step"] == "seal the audit trail", "it had time to record that"
    assert 2 <= summary.counts["deadline_extended"] <= summary.counts["token_acquired"]
    (opened,) = job.records("segment_opened")
    assert (opened["rolling_s"], opened["deadline"][:10]) == (60, f"{job.scope.deadline:%Y-%m-%d}")
    for issued in job.records("key_acquired") + job.records("sas_issued"):
        assert issued["expires"] <= max(record["deadline"] for record in job.records("deadline_extended"))


class CachedSource:
    """Gives the token that it has, of which only what is left of its life is known, as a managed identity's does."""

    def __init__(self, source: EntraSource, clock: FakeClock) -> None:
        self._source, self._clock, self._had = source, clock, list[AccessToken]()

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        """The first, said to end a second later each time."""
        if not self._had:
            self._had.append(self._source.acquire(audience, claims=claims))
            return self._had[0]
        last = self._had[-1]
        again = f"{last.token_id}-again"
        self._had.append(replace(last, token_id=again, acquired=self._clock(), expires=last.expires + SECOND))
        return self._had[-1]


def test_a_cache_that_counts_from_now_moves_nothing(
    rolling: Callable[..., Job], token_life: Callable[[int], None]
) -> None:
    """The token that it gives again is the one before, and no proof that the identity is alive."""
    job, clock = rolling(), FakeClock(utc_now())
    token_life(20)
    session = job.session(clock=clock, source=CachedSource(EntraSource(job.manifest.identity, clock=clock), clock))
    read_blob(session, job)
    first = session.deadline
    acquired = job.records("token_acquired")
    clock.advance(5 * SECOND)
    session.broker.renew(session.broker.get(STORAGE_AUDIENCE), "{}")
    read_blob(session, job)
    assert len(job.records("token_acquired")) > len(acquired)
    assert (session.deadline, len(job.records("deadline_extended"))) == (first, 1)


def test_a_token_for_another_service_moves_nothing(
    rolling: Callable[..., Job], token_life: Callable[[int], None]
) -> None:
    """What a connector is given says nothing about the right to the blobs."""
    job, clock = rolling(audiences=(GRAPH,)), FakeClock(utc_now())
    session = job.session(clock=clock)
    read_blob(session, job)
    token_life(30)
    clock.advance(timedelta(seconds=2))
    with session.bundle("look up", audience=GRAPH):
        pass
    assert len(job.records("deadline_extended")) == len(
        [record for record in job.records("token_acquired") if record["audience"] != GRAPH]
    )
    job.check_unsealed()


def test_an_idle_process_goes_on_while_its_identity_is_alive(
    rolling: Callable[..., Job], token_life: Callable[[int], None]
) -> None:
    """After a quiet night its deadline is over: it asks for a token, and that proves it."""
    job, clock = rolling(), FakeClock(utc_now())
    session = job.session(clock=clock)
    adopt_session(session)
    read_blob(session, job)
    clock.advance(timedelta(seconds=61))
    assert job.scope in live_scopes(), "its session is kept"
    token_life(30)
    assert read_blob(session, job) == DATA
    close_session(job.scope.job)
    job.check_unsealed()


def test_an_idle_process_whose_identity_was_revoked_is_refused(
    make_job: Callable[..., Job], rolling: Callable[..., Job]
) -> None:
    """No token, no further deadline: nothing is sent to a blob any more."""
    cloud = make_job().cloud
    app = cloud.add_client()
    job, clock = rolling(client=app.client_id), FakeClock(utc_now())
    session = job.session(clock=clock)
    with session.bundle("long") as bundle:
        blob = bundle.properties(job.source())
        cloud.tenant.revoke(app)
        clock.advance(timedelta(seconds=61))
        asked = len(job.data_requests())
        with pytest.raises(IdentityRejected) as caught:
            bundle.read(blob, 0, 10)
        assert caught.value.diagnosis.code == "AADSTS7000112"
        with pytest.raises(IdentityError):
            session.bundle("another")
        assert len(job.data_requests()) == asked
        with suppress(AuditUnavailable):
            bundle.close("failed")


def test_a_rolling_life_that_tokens_outlive_opens_no_bundle(
    rolling: Callable[..., Job], token_life: Callable[[int], None]
) -> None:
    """It is found where the first token is acquired: at the launch."""
    job = rolling()
    token_life(3600)
    with pytest.raises(ConfigError, match="rolling life of 0:01:00 is shorter"):
        job.session().bundle("launch")
    assert job.data_requests() == []
