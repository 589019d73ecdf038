"""A worker's clock that is wrong: put right by up to ten minutes, refused beyond; and the warning of a job's end."""

from __future__ import annotations

import logging
import re
from datetime import datetime, timedelta

import pytest

from beam_entra.clock import Clock, utc_now
from beam_entra.errors import AuditUnavailable, IdentityExpired, IdentityUnavailable
from beam_entra.identity import EntraSource
from beam_entra.session import Session
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.storage_requests import matching
from tests.session.conftest import DATA, Job, read_blob, write_blob

MINUTE = timedelta(minutes=1)
LOG = "beam_entra.session.session"
KEY = matching("GetUserDelegationKey")


def off_by(skew: timedelta) -> Clock:
    """The clock of a worker that is so far ahead."""
    return lambda: utc_now() + skew


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the session warned of."""
    records = [record for record in caplog.records if record.name == LOG and record.levelno == logging.WARNING]
    return [record.getMessage() for record in records]


def instant(text: str) -> datetime:
    """A time of the trail."""
    return datetime.fromisoformat(text)


SKEWS = {"ten minutes ahead": 10 * MINUTE, "ten minutes behind": -10 * MINUTE}


@pytest.mark.parametrize("tells", [True, False], ids=["", "its token's source tells no time"])
@pytest.mark.parametrize("skew", SKEWS.values(), ids=SKEWS)
def test_a_worker_whose_clock_is_off(make_job, caplog, skew, tells):
    """It reads and writes; its SAS live as long as they should by Storage's time, which the trail has as well."""
    job = make_job(sas_life="1m")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = off_by(skew)
    session = job.session(clock=clock) if tells else told_nothing(job, clock)
    began = utc_now()
    assert read_blob(session, job) == DATA
    write_blob(session, job)
    ended = utc_now()
    for record in job.records():
        assert began - 6 * timedelta(seconds=1) < instant(record["time"]) < ended + 6 * timedelta(seconds=1), record
    for record in job.records("sas_issued"):
        assert 50 < (instant(record["expires"]) - began).total_seconds() < 75
    [token] = job.records("token_acquired")
    assert abs(instant(token["expires"]) - began - timedelta(hours=1)) < 10 * timedelta(seconds=1)
    assert [each.status for each in job.requests() if each.status in {401, 403} and each.operation != "Other"] == []
    [said] = [text for text in warnings(caplog) if "clock" in text]
    assert re.match(r"this worker's clock is (9 min 5\d s|10 min \d s) ", said)
    assert ("ahead of" if skew > timedelta(0) else "behind") in said
    assert job.seal_and_verify(session).counts["committed"] == 1


def told_nothing(job: Job, clock: Clock) -> Session:
    """A session whose source of tokens does not tell the time, as a managed identity's or the Azure CLI does not."""
    session = Session(job.scope, clock=clock, source=EntraSource(job.manifest.identity, clock=clock))
    job.sessions.append(session)
    return session


def test_a_clock_that_is_right_is_left_alone(job, caplog):
    """Nothing is said, nothing is asked, and what is decided goes by it."""
    session = job.session()
    read_blob(session, job)
    assert session.clock.correction == timedelta(0)
    assert warnings(caplog) == []
    assert {each.operation for each in job.requests()} <= {
        "GetBlob",
        "GetBlobProperties",
        "GetUserDelegationKey",
        "PutBlob",
        "AppendBlock",
    }


def test_the_key_of_a_worker_whose_clock_is_ahead_has_begun(job):
    """Its start lies in the past by Storage's time whatever was known when it was asked for."""
    session = told_nothing(job, off_by(10 * MINUTE))
    session.clock.hear("", utc_now())
    key = session.key("contosolake")
    assert instant(key.signed_start.replace("Z", "+00:00")) <= utc_now() - 4 * MINUTE


def test_the_deadline_is_the_services(make_job):
    """A clock that is ahead does not end a job early, one that is behind does not let it go on."""
    job = make_job(lasts=8 * MINUTE)
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session(clock=off_by(5 * MINUTE))
    session.service.ask_the_time("contosolake")
    assert read_blob(session, job) == DATA
    over = make_job(lasts=-MINUTE)
    session = over.session(clock=off_by(-5 * MINUTE))
    session.service.ask_the_time("contosolake")
    with pytest.raises(IdentityExpired):
        session.bundle("late")


@pytest.mark.parametrize("skew", [30 * MINUTE, -30 * MINUTE], ids=["ahead", "behind"])
def test_a_clock_that_is_too_wrong(make_job, caplog, skew):
    """Beyond ten minutes nothing is put right: the job is refused, with what is wrong and what to do."""
    job = make_job(sas_life="5m")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now() + skew)
    session = job.session(clock=clock)
    with pytest.raises((IdentityUnavailable, AuditUnavailable), match=r"clock is (29|30) min \d+ s") as caught:
        read_blob(session, job)
    assert "set the machine's clock" in caught.value.hint
    assert ("ahead of" if skew > timedelta(0) else "behind") in caught.value.message
    assert job.requests("GetBlob", "GetBlobProperties") == []
    assert any(text.startswith("this worker's clock is ") for text in warnings(caplog))


def test_a_clock_that_is_set_right_in_mid_job(job):
    """The next answer tells; a bundle after it goes by the clock as it is."""
    clock = FakeClock(utc_now() + 9 * MINUTE)
    session = job.session(clock=clock)
    read_blob(session, job)
    assert abs(session.clock.correction + 9 * MINUTE) < timedelta(seconds=6)
    clock.set(utc_now())
    read_blob(session, job)
    assert session.clock.correction == timedelta(0)
    write_blob(session, job)
    assert job.seal_and_verify(session).counts["committed"] == 1


def test_a_clock_that_is_wrong_no_more(job):
    """A session that has refused asks what time it is before it refuses again."""
    clock = FakeClock(utc_now() + 30 * MINUTE)
    session = job.session(clock=clock)
    session.service.ask_the_time("contosolake")
    with pytest.raises(IdentityUnavailable, match="this worker's clock is"):
        session.bundle("work")
    assert job.cloud.tenant.token_requests == 0
    clock.set(utc_now())
    assert read_blob(session, job) == DATA


@pytest.mark.parametrize("life", ["5s", "15m"])
def test_a_clock_that_jumps_ahead_in_mid_job(make_job, life):
    """What was recorded before an answer told so has its time; the trail verifies, whatever a SAS's life."""
    job = make_job(sas_life=life)
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    read_blob(session, job)
    clock.set(utc_now() + 9 * MINUTE)
    with session.bundle("before any answer"):
        pass
    assert read_blob(session, job) == DATA
    assert abs(session.clock.correction + 9 * MINUTE) < timedelta(seconds=6)
    clock.advance(timedelta(seconds=6))
    write_blob(session, job)
    assert job.seal_and_verify(session).counts["committed"] == 1


# ---------------------------------------------------------------- the end is near


def test_the_end_is_said_once_when_a_tenth_is_left(make_job, caplog):
    """A job that has used nine tenths of its life warns, once a process, with the time and the way to more."""
    job = make_job(lasts=5 * MINUTE)  # of an hour
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    for _ in range(3):
        read_blob(session, job)
    [said] = warnings(caplog)
    assert said.startswith(f"job {job.scope.job} has 2")
    assert "less than a tenth of its life" in said
    assert f"{job.scope.deadline:%Y-%m-%d %H:%M:%SZ}" in said
    assert "[lifetime] job" in said


def test_the_end_is_not_said_early(make_job, caplog):
    """With more than a tenth left nothing is said, nor when a trail is sealed, which has a little time of its own."""
    job = make_job(lasts=7 * MINUTE)
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    read_blob(session, job)
    job.seal_and_verify(session)
    assert warnings(caplog) == []


def test_a_rolling_life_has_no_end_to_be_near(make_job, caplog):
    """A process that opens its session long after the launch has the whole of it before it."""
    job = make_job(rolling="2h", lasts=5 * MINUTE)
    job.raw.upload("orders/a.jsonl", DATA)
    assert read_blob(job.session(), job) == DATA
    assert warnings(caplog) == []
