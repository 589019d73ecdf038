"""Checking the trail of a process that ran for months takes the memory of its last hours, and finds what it must."""

from __future__ import annotations

import gc
import random
import tracemalloc
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

from beam_entra.audit.checking import check_segments
from beam_entra.audit.interim import seal_interim
from beam_entra.audit.lineage import Lineage, RuleBroken
from beam_entra.audit.record import (
    ZEROS,
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    KeyAcquired,
    Read,
    SasIssued,
    SegmentOpened,
    Staged,
    TokenAcquired,
    parse_line,
)
from beam_entra.audit.verify import verify_running

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Streaming:
    """A process that goes on for days: a bundle each minute, a key each hour, SAS of fifteen minutes."""

    def __init__(self, trails: Any) -> None:
        self.trails, self.clock, self.store = trails, trails.Clock(), trails.MemoryTrail()
        rng = random.Random(0)  # noqa: S311  no secret is made from it
        facts = {"max_bytes": 100_000, "deadline": trails.START + 99 * DAY}
        self.worker = trails.Worker(rng, self.store, trails.PROCESSES[0], self.clock, **facts)
        self.minutes = 0

    def work(self, minutes: int) -> None:
        """So many minutes of it."""
        for _ in range(minutes):
            self.clock.now += MINUTE
            if self.minutes % 60 == 0:
                self.begin_hour()
            self.minutes += 1
            last = self.one_bundle(f"{self.minutes:08x}-0000-4000-8000-000000000000")
        last.wait(30)

    def begin_hour(self) -> None:
        """Another token and key."""
        self.key, self.token = self.worker.id("k"), self.worker.id("t")
        ends = self.clock.now + HOUR + 20 * MINUTE
        self.worker.add(TokenAcquired, token=self.token, expires=ends)
        self.worker.add(KeyAcquired, key=self.key, token=self.token, expires=ends)

    def one_bundle(self, bundle: str) -> Any:
        """It reads a blob and writes one."""
        add, number, lake = self.worker.add, self.minutes, self.trails.LAKE
        add(BundleOpened, bundle, token=self.token)
        about = {"key": self.key, "token": self.token, "expires": self.clock.now + 15 * MINUTE, "correlation": bundle}
        for sas, permission in ((f"r{number}", "read"), (f"w{number}", "write")):
            add(SasIssued, bundle, **about, sas=sas, path=f"{lake}{permission}/{number}", permission=permission)
        add(Read, bundle, sas=f"r{number}", path=f"{lake}read/{number}")
        for model in (Staged, CommitIntended, Committed):
            add(model, bundle, sas=f"w{number}", path=f"{lake}write/{number}")
        return add(BundleClosed, bundle)


@pytest.fixture
def streaming(trails: ModuleType) -> Any:
    """It has not begun yet."""
    made = Streaming(trails)
    yield made
    made.worker.writer.close()


def test_it_knows_what_a_record_to_come_may_name(streaming: Any) -> None:
    """After a day it has no more in mind than after some hours; with what it forgot nothing may be done any more."""
    streaming.work(24 * 60)
    lineage, known = Lineage(), []
    records = [parse_line(line) for line in streaming.store.lines()]
    opened = next(record for record in records if isinstance(record, SegmentOpened))
    for record in records:
        lineage.check(record, opened)
        known.append(lineage.known)
    assert max(known) == max(known[: len(known) // 3]) <= 1000
    now = streaming.clock.now

    def add(model: Any, bundle: str | None = None, **changed: Any) -> int:
        """The rule that this record would break; 0 for none."""
        facts = streaming.trails.valid_facts()[model] | changed
        try:
            lineage.check(model(seq=0, prev=ZEROS, time=now, bundle=bundle, **facts), opened)
        except RuleBroken as found:
            return found.rule
        return 0

    lineage._forget(now)
    first, last = "00000001-0000-4000-8000-000000000000", f"{24 * 60:08x}-0000-4000-8000-000000000000"
    lake = streaming.trails.LAKE
    fresh = {"key": streaming.key, "token": streaming.token, "expires": now + MINUTE, "correlation": None}
    assert add(Read, first, sas="r1", path=f"{lake}read/1") == 9, "a bundle that ended yesterday"
    assert add(Read, last, sas="r1", path=f"{lake}read/1") == 12, "a SAS that did"
    assert add(BundleClosed, last) == 9, "one that has been closed"
    assert add(BundleOpened, last, token=None) == 9
    assert add(SasIssued, last, **fresh, sas=f"r{24 * 60}", path=f"{lake}a") == 8, "an id that is in use"
    assert add(TokenAcquired, token="t2", expires=now + HOUR) == 8
    assert add(KeyAcquired, key="k2", token="t2", expires=now) in {8, 10}
    assert add(Committed, last, sas=f"w{24 * 60}", path=f"{lake}write/{24 * 60}") == 0, "what was under way"
    ended = 24 * 60 - 16
    bundle = f"{ended:08x}-0000-4000-8000-000000000000"
    assert add(Read, bundle, sas=f"r{ended}", path=f"{lake}read/{ended}") == 0, "and what ended a minute ago"
    assert add(BundleOpened, bundle, token="t23") == 9


def test_what_is_open_is_not_forgotten(streaming: Any) -> None:
    """A bundle that goes on for days, and commits in the end what it intended at its beginning."""
    streaming.work(1)
    bundle, lake, add = "f0000000-0000-4000-8000-00000000000f", streaming.trails.LAKE, streaming.worker.add
    add(BundleOpened, bundle, token=streaming.token)
    about = {"path": f"{lake}long", "permission": "write", "correlation": bundle, "key": streaming.key}
    soon = {"token": streaming.token, "expires": streaming.clock.now + MINUTE}
    add(SasIssued, bundle, **about, **soon, sas="long-1")
    add(CommitIntended, bundle, sas="long-1", path=f"{lake}long")
    streaming.work(12 * 60)
    soon = {"token": streaming.token, "expires": streaming.clock.now + MINUTE}
    add(SasIssued, bundle, **(about | {"key": streaming.key}), **soon, sas="long-2")
    add(Committed, bundle, sas="long-2", path=f"{lake}long").wait(30)
    assert [each for segment in check_segments(streaming.store).segments for each in segment.open_bundles] == [bundle]


def test_a_long_trail_takes_no_more_memory_than_a_shorter_one(streaming: Any) -> None:
    """Three times the segments: verifying takes what it took before, and gives some lines for each of them."""

    def segments_and_bytes() -> tuple[int, int, int]:
        tracemalloc.start()
        try:
            found = verify_running(streaming.store)
            gc.collect()
            kept, peak = tracemalloc.get_traced_memory()
            return len(found.segments), kept, peak - kept
        finally:
            tracemalloc.stop()

    streaming.work(6 * 60)
    seal_interim(streaming.store, streaming.store, job=streaming.trails.JOB, clock=streaming.clock)
    few, kept_of_few, passing_of_few = segments_and_bytes()
    streaming.work(12 * 60)
    seal_interim(streaming.store, streaming.store, job=streaming.trails.JOB, clock=streaming.clock)
    many, kept_of_many, passing_of_many = segments_and_bytes()
    assert many > 2 * few
    assert passing_of_many < 1.5 * passing_of_few
    assert kept_of_many - kept_of_few < (many - few) * 12_000
