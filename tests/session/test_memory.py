"""A session that runs for months holds what it holds after a minute."""

from __future__ import annotations

import functools
import gc
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from beam_entra.access import Permission
from beam_entra.clock import utc_now
from beam_entra.session import bundle as bundles
from beam_entra.session.interim import seal_job_interim
from beam_entra.storage import Sas
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.local import LocalCloud
from tests.session.conftest import DATA, Job, read_blob, write_blob

CONTAINERS = dict, list, set, frozenset, tuple, deque


@pytest.fixture
def short_tokens(beam_entra_cloud: LocalCloud) -> Iterator[None]:
    """Tokens of three seconds."""
    beam_entra_cloud.tenant.token_life_s = 3
    yield
    beam_entra_cloud.tenant.token_life_s = 3600


def held(root: object) -> Counter[str]:
    """How much is in all containers that are reached from an object of ours, by the type that holds them."""
    seen: set[int] = set()
    found: Counter[str] = Counter()
    waiting: list[tuple[object, str]] = [(root, "")]
    while waiting:
        thing, of = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        kind = type(thing)
        if isinstance(thing, CONTAINERS):
            found[of] += len(thing)
        elif kind.__module__.startswith("beam_entra") or isinstance(thing, functools.partial):
            of = kind.__name__
        else:
            continue
        waiting += ((each, of) for each in gc.get_referents(thing) if not isinstance(each, type))
    return found


def test_it_does_not_grow_with_what_it_has_done(make_job: Callable[..., Job], short_tokens: None) -> None:
    """Bundles, blobs, tokens, keys, segments, interim seals: after ten times as many it holds no more."""
    job = make_job(rolling="1m", sas_life="5s", trail="segment_records = 100")
    job.raw.upload("orders/a.jsonl", DATA)
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    blobs = iter(range(1000))
    known = None

    def work(rounds: int) -> None:
        nonlocal known
        for _ in range(rounds):
            clock.advance(timedelta(seconds=4))
            read_blob(session, job)
            write_blob(session, job, f"orders/{next(blobs)}.jsonl")
            sas = session._authorise_append(job.scope.folder.child(f"segment-{next(blobs)}.jsonl"))
            assert sas.resign is not None
            sas.resign()
            session.take_counts()
            known = seal_job_interim(session, known)
        session.settle()

    work(4)
    before = held(session)
    work(40)
    after = held(session)
    assert len(session.segments) > 10
    assert known.count == 44
    grown = {kind: (before[kind], many) for kind, many in after.items() if many > before[kind] + 12}
    assert grown == {}
    job.seal_and_verify(session)


def test_a_bundle_that_touches_very_many_blobs(job: Job) -> None:
    """It keeps the SAS of the last ones; who comes back to an older blob gets another one."""
    kept = bundles._SAS_KEPT
    session = job.session()
    with session.bundle("many") as bundle:
        first = bundle.sas(job.source("orders/0"), Permission.READ)
        for number in range(1, kept):
            last = bundle.sas(job.source(f"orders/{number}"), Permission.READ)
        assert bundle.sas(job.source("orders/0"), Permission.READ) is first
        bundle.sas(job.source(f"orders/{kept}"), Permission.READ)
        assert len(bundle._sas) == kept
        assert bundle.sas(job.source(f"orders/{kept - 1}"), Permission.READ) is last
        assert bundle.sas(job.source("orders/0"), Permission.READ) is not first
        assert len(bundle._sas) == kept
    assert "sas_refreshed" not in session.take_counts()
    job.seal_and_verify(session)


def test_keys_that_were_given_up_are_forgotten_when_no_sas_of_theirs_can_live(job: Job) -> None:
    """One a minute for ten hours; those of the last hour are known."""
    clock = FakeClock(utc_now())
    session = job.session(clock=clock)
    bundle = session.bundle("one")
    sas = bundle.sas(job.source(), Permission.READ)
    bundle.settle()
    keys: list[Sas] = [replace(sas, key_id=f"key-{minute}") for minute in range(600)]
    for key in keys:
        clock.advance(timedelta(seconds=61))
        assert session.retire_key(key)
    assert len(session._retired) == 60
    assert not session.live(replace(keys[-1], renew_at=clock() + timedelta(hours=1)))
