"""Many token lives: each costs one request, keys and SAS are renewed, no access fails, and the trail verifies."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest

from beam_entra.clock import utc_now
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.local import LocalCloud
from tests.session.conftest import DATA, Job, read_blob, write_blob

THREADS = 4
LIFE_S = 3


@pytest.fixture(autouse=True)
def short_tokens(beam_entra_cloud: LocalCloud) -> Iterator[None]:
    """Tokens of a few seconds."""
    beam_entra_cloud.tenant.token_life_s = LIFE_S
    yield
    beam_entra_cloud.tenant.token_life_s = 3600


def in_threads(work: Callable[[int], object]) -> None:
    """Do it in several threads at once; the first error is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(THREADS)]:
            done.result(60)


def check_nobody_was_refused(job: Job) -> None:
    """Neither Storage nor Entra said no."""
    assert [each.status for each in job.requests() if each.status in {401, 403}] == []
    assert {request.outcome for request in job.cloud.tenant.requests} <= {"issued"}


@pytest.mark.parametrize("scoping", ["sas", "bearer"])
def test_a_life_costs_one_request(make_job: Callable[..., Job], scoping: str) -> None:
    """Of 20 lives, each with four threads that begin in its first moment, in bundles old and new."""
    lives = 20
    job = make_job(scoping=scoping, trail="segment_records = 100")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    long = session.bundle("long")
    blob = long.properties(job.source())
    asked = job.cloud.tenant.token_requests
    begins = threading.Barrier(THREADS, action=lambda: clock.advance(timedelta(seconds=LIFE_S)))

    def work(number: int) -> None:
        with aborting(begins):
            for life in range(lives):
                begins.wait(30)
                assert bytes(long.read(blob, life, life + 10)) == DATA[life : life + 10]
                with session.bundle("short") as bundle:
                    assert bytes(bundle.read(blob, 0, 10)) == DATA[:10]

    in_threads(work)
    assert job.cloud.tenant.token_requests - asked == lives
    long.close()
    check_nobody_was_refused(job)
    summary = job.seal_and_verify(session)
    issued = [token.claims["uti"] for token in job.cloud.tenant.issued[-lives - 1 :]]
    assert [record["uti"] for record in job.records("token_acquired")] == issued
    assert summary.counts["segment_rolled"] >= 2, "and the segments went on meanwhile"


@contextmanager
def aborting(barrier: threading.Barrier) -> Iterator[None]:
    """Who fails leaves nobody waiting."""
    try:
        yield
    except BaseException:
        barrier.abort()
        raise


@pytest.mark.parametrize(
    ("sas_life", "renewed"), [("5s", "sas_refreshed"), ("57s", "delegation_keys")], ids=["SAS", "keys"]
)
def test_credentials_are_renewed_again_and_again(make_job: Callable[..., Job], sas_life: str, renewed: str) -> None:
    """Eight seconds of a rolling life by everybody's own clock, in bundles old and new: at each border, all goes on.

    A SAS of 5 s is renewed within its bundle. A key ends with the deadline, a minute after the token that it was got
    with: SAS of 57 s want a new one after 3.
    """
    job = make_job(rolling="1m", sas_life=sas_life, trail="segment_records = 100")
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    ends = time.monotonic() + 8
    begun = job.cloud.tenant.token_requests

    def work(number: int) -> None:
        with session.bundle("long") as long:
            blob = long.properties(job.source())
            for turn in itertools.count():
                assert bytes(long.read(blob, turn, turn + 10)) == DATA[turn : turn + 10]
                read_blob(session, job)
                write_blob(session, job, f"orders/{number}-{turn}.jsonl")
                if time.monotonic() > ends:
                    break

    in_threads(work)
    check_nobody_was_refused(job)
    asked = job.cloud.tenant.token_requests - begun
    assert session.take_counts()[renewed] >= 2
    summary = job.seal_and_verify(session)
    assert asked <= summary.counts["token_acquired"] <= asked + 1
    assert asked <= 8 / (LIFE_S * 0.7) + 2, "no more than one a life, refreshed ahead"
    assert summary.counts["deadline_extended"] == summary.counts["token_acquired"]
