"""The writer: cheap appends, group commit, rolling, and clean ends in every kind of trouble."""

from __future__ import annotations

import itertools
import json
import linecache
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from types import FrameType, ModuleType
from typing import Any

import pytest

from beam_entra.audit.checking import check_segments
from beam_entra.audit.record import BundleOpened, Denied, Read, Sealed, SegmentOpened, SegmentRolled, TokenAcquired
from beam_entra.audit.store import APPEND_BYTES
from beam_entra.audit.trail import Receipt, SegmentWriter
from beam_entra.errors import AuditError, AuditUnavailable, Diagnosis


def _until(holds: Callable[[], object]) -> None:
    """Return when it does; what it looks at tells nobody."""
    for _ in range(3000):
        if holds():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never did")


@pytest.fixture
def store(trails: ModuleType) -> Any:
    """An empty trail in memory."""
    return trails.MemoryTrail()


@pytest.fixture
def writer(trails: ModuleType, store: Any) -> Any:
    """A writer on it."""
    return SegmentWriter(store, trails.facts(), trails.Clock(), process=trails.PROCESSES[0])


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flusher does nothing that it is not woken for."""
    monkeypatch.setattr("beam_entra.audit.trail._MOMENT_S", 600)


@pytest.fixture
def deny(trails: ModuleType) -> Callable[..., Receipt]:
    """Appends a denial."""
    return lambda writer, **changed: writer.append(Denied, **(trails.valid_facts()[Denied] | changed))


def _flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "beam-entra-audit"]


def test_nothing_before_the_first_record(writer: SegmentWriter, store: Any) -> None:
    """A writer that records nothing makes no file and no thread."""
    before = len(_flushers())
    writer.close()
    assert store.calls == []
    assert len(_flushers()) == before


def test_receipt_waits_until_durable(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """A record is durable when wait returns, and not before the store has taken it."""
    store.open.clear()
    receipt = deny(writer)
    assert store.entered.wait(10)
    early = receipt.durable
    with pytest.raises(AuditUnavailable, match=r"not durable after 0\.01 s"):
        receipt.wait(0.01)
    store.open.set()
    receipt.wait(10)
    assert (early, receipt.durable) == (False, True)
    assert [json.loads(line)["kind"] for line in store.lines()] == ["segment_opened", "denied"]
    writer.close()


def test_groups_what_is_pending(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """What comes in while an append is under way goes out together in the next one."""
    store.open.clear()
    first = deny(writer)
    assert store.entered.wait(10)
    later = [deny(writer) for _ in range(500)]
    store.open.set()
    for receipt in [first, *later]:
        receipt.wait(10)
    assert [verb for verb, _, _ in store.calls] == ["create", "append", "append"]
    writer.close()


def test_what_nobody_waits_for_goes_with_the_next(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """It starts no append of its own, and its order is kept."""
    early = [deny(writer, prompt=False, reason=f"early {number}") for number in range(3)]
    deny(writer, reason="prompt").wait(10)
    assert all(receipt.durable for receipt in early)
    assert [verb for verb, _, _ in store.calls] == ["create", "append"]
    reasons = [json.loads(line).get("reason") for line in store.lines()]
    assert reasons == [None, "early 0", "early 1", "early 2", "prompt"]
    writer.close()


def test_what_is_waited_for_after_all_is_written(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """Whoever waits is served, with all that came before."""
    first, last = (deny(writer, prompt=False) for _ in range(2))
    last.wait(10)
    assert first.durable
    writer.close()


def test_what_nobody_waits_for_ever_is_written_too(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """After a moment, without any call: a killed process leaves a trail up to shortly before. Each time anew."""
    for _ in range(3):
        receipt = deny(writer, prompt=False)
        assert receipt._group.settled.wait(10)
        assert receipt.durable
    writer.close()


def test_what_comes_after_a_pause_is_written_too(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """A flusher that has had nothing to do for a while sleeps until there is a record, and writes it after a moment."""
    deny(writer, prompt=False)
    _until(lambda: writer._asleep)
    receipt = deny(writer, prompt=False)
    assert receipt._group.settled.wait(10)
    assert receipt.durable
    writer.close()


@pytest.mark.usefixtures("undisturbed")
def test_who_waits_writes_unless_he_can_be_interrupted(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """A thread that waits as long as it takes is with the store itself; the main one is not, nor who has a timeout."""

    def work(timeout: float | None) -> threading.Thread:
        deny(writer, prompt=False).wait(timeout)
        return threading.current_thread()

    with ThreadPoolExecutor(1) as threads:
        patient, hurried = threads.submit(work, None).result(30), threads.submit(work, 30).result(30)
    work(None)
    flusher = writer._thread
    writer.close()
    assert patient is hurried
    assert store.threads == [patient, flusher, flusher]


@pytest.mark.usefixtures("undisturbed")
def test_who_waits_while_another_writes_is_served(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """What came while somebody was with the store is written when he is back, whoever waits for it or nobody."""
    store.open.clear()

    def work() -> Receipt:
        receipt = deny(writer, prompt=False)
        receipt.wait()
        return receipt

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(work)
        assert store.entered.wait(10)
        others = [threads.submit(work) for _ in range(2)]
        _until(lambda: writer._due)
        prompt = deny(writer)
        store.open.set()
        assert all(waiting.result(30).durable for waiting in (first, *others))
    prompt.wait(30)
    flusher = writer._thread
    writer.close()
    assert check_segments(store).counts["denied"] == 4
    assert flusher not in store.threads[:1]


@pytest.mark.usefixtures("undisturbed")
def test_close_waits_for_who_is_with_the_store(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """It ends when he is back, and what he began is durable."""
    store.open.clear()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        assert store.entered.wait(10)
        closing = threads.submit(writer.close)
        _until(lambda: writer._closed)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        store.open.set()
        waiting.result(30)
        closing.result(30)
    assert check_segments(store).counts["denied"] == 1
    assert writer._thread not in store.threads


@pytest.mark.usefixtures("undisturbed")
def test_a_failure_of_who_waits_stops_the_writer(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]
) -> None:
    """That he was with the store himself changes nothing: he is told, and so is everybody after him."""
    store.failure = ZeroDivisionError("sig=hidden")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        with pytest.raises(AuditUnavailable, match="ended with ZeroDivisionError") as caught:
            waiting.result(30)
    assert "hidden" not in str(caught.value)
    assert writer._thread not in store.threads
    for attempt in (lambda: deny(writer), writer.close):
        with pytest.raises(AuditUnavailable, match="ended with ZeroDivisionError"):
            attempt()
    assert not any(thread.is_alive() for thread in _flushers())


@pytest.mark.usefixtures("undisturbed")
def test_nobody_waits_for_a_thread_that_was_ended(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework may raise an exception in any thread at any time. What that thread had in hand is not durable."""
    begin_writing = writer._begin_writing

    def begin_and_end() -> None:
        begin_writing()
        raise SystemExit(3)

    monkeypatch.setattr(writer, "_begin_writing", begin_and_end)
    early = deny(writer, prompt=False)
    with ThreadPoolExecutor(1) as threads, pytest.raises(SystemExit):
        threads.submit(lambda: deny(writer, prompt=False).wait()).result(30)
    for attempt in (early.wait, lambda: deny(writer), writer.close):
        with pytest.raises(AuditUnavailable, match="ended with SystemExit"):
            attempt()
    assert not any(thread.is_alive() for thread in _flushers())


@pytest.mark.usefixtures("undisturbed")
def test_a_writer_that_is_poisoned_while_somebody_writes_ends(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """What he has in hand becomes durable, and the flusher does not wait for what can not come."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), max_records=3)
    store.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        assert store.entered.wait(10)
        assert writer._chain is not None
        writer._chain = writer._chain._replace(number=99_999)
        with pytest.raises(AuditUnavailable, match="it is the last"):
            deny(writer)
        store.open.set()
        waiting.result(30)
    assert writer._thread is not None
    writer._thread.join(30)
    assert not writer._thread.is_alive()
    assert writer._thread not in store.threads
    assert check_segments(store).counts["denied"] == 1


def test_close_writes_what_nobody_waits_for(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """An end is no reason to lose it."""
    receipt = deny(writer, prompt=False)
    writer.close()
    assert receipt.durable


def test_group_stays_below_what_an_append_takes(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """However much is pending, no append is larger than an append blob takes, and nothing is lost."""
    store.open.clear()
    receipts = [deny(writer, reason="no " * 660) for _ in range(5000)]
    store.open.set()
    receipts[-1].wait(30)
    writer.close()
    sizes = [len(data) for verb, _, data in store.calls if verb == "append"]
    assert max(sizes) <= APPEND_BYTES
    assert sum(size > APPEND_BYTES * 0.9 for size in sizes) >= 2
    assert check_segments(store, job=trails.JOB).counts["denied"] == 5000


@pytest.mark.parametrize(
    "limit",
    [
        {"max_blocks": 2},
        {"max_blocks": 3},
        {"max_bytes": 1},
        {"max_bytes": 5000},
        {"max_records": 2},
        {"max_records": 7},
        {"max_age": timedelta(milliseconds=3)},
    ],
    ids=str,
)
def test_rolls_without_the_caller_knowing(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType, limit: dict[str, Any]
) -> None:
    """A full segment ends by naming the next, which begins by naming it; both verify, with no block too many."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), **limit)
    for _ in range(30):
        deny(writer).wait(10)
    writer.close()
    found = check_segments(store, job=trails.JOB)
    assert len(found.segments) > 1
    assert found.counts["denied"] == 30
    assert found.counts["segment_rolled"] == len(found.segments) - 1
    for name in store.files:
        blocks = sum(call[:2] == ("append", name) for call in store.calls)
        assert blocks <= limit.get("max_blocks", 45_000)
        assert len(store.files[name].splitlines()) <= max(limit.get("max_records", 1_000_000), 3)


def test_an_old_segment_is_continued_with_the_next_record(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """Its age counts from its first record, each segment's anew; while nothing is recorded, nothing is begun."""
    clock = trails.Clock()
    writer = SegmentWriter(store, trails.facts(), clock, max_age=timedelta(hours=1))
    for minutes in (0, 59, 61, 30, 31):  # since the one before
        clock.now += timedelta(minutes=minutes)
        deny(writer).wait(10)
    segments = writer.segments
    writer.close()
    assert segments == tuple(sorted(store.files))
    kinds = [[json.loads(line)["kind"] for line in store.files[name].splitlines()] for name in segments]
    assert [found.count("denied") for found in kinds] == [2, 2, 1]
    check_segments(store)


def test_a_segment_that_cannot_be_continued_stops_the_writer(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """Of a hundred thousand segments a process has no name for another: it is an error, and what there is verifies."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), max_records=3)
    deny(writer).wait(10)
    assert writer._chain is not None
    writer._chain = writer._chain._replace(number=99_999)
    with pytest.raises(AuditUnavailable, match="it is the last"):
        deny(writer)
    assert writer.broken
    check_segments(store)


@pytest.mark.parametrize("verb", ["create", "append"])
def test_a_segment_that_cannot_be_begun_stops_the_writer(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType, verb: str
) -> None:
    """The record that would begin the next segment is not durable, and nothing is recorded after it."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), max_records=3)
    deny(writer).wait(10)

    def refuse(*_: object) -> None:
        raise AuditUnavailable("no room for another file")

    setattr(store, verb, refuse)
    receipt = deny(writer)
    with pytest.raises(AuditUnavailable, match="no room"):
        receipt.wait(10)
    with pytest.raises(AuditUnavailable, match="no room"):
        deny(writer)
    check_segments(store)


def test_rolls_while_the_store_is_slow(store: Any, deny: Callable[..., Receipt], trails: ModuleType) -> None:
    """Several rolls can be pending at once; files are made before the record that names them is written."""
    store.open.clear()
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), max_bytes=1000)
    receipts = [deny(writer) for _ in range(50)]
    store.open.set()
    receipts[-1].wait(10)
    writer.close()
    assert len(check_segments(store).segments) > 5
    made: set[str] = set()
    for verb, name, data in store.calls:
        if verb == "create":
            assert name not in made
            made.add(name)
        for line in data.splitlines():
            assert {name, json.loads(line).get("next", name)} <= made


@pytest.mark.parametrize("limit", [{}, {"max_blocks": 3}, {"max_bytes": 5000}], ids=str)
@pytest.mark.parametrize("timeout", [30, None], ids=["the flusher writes", "who waits writes"])
def test_many_threads_one_chain(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType, timeout: float | None, limit: dict[str, int]
) -> None:
    """Records of concurrent threads are chained one after another, none lost."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock(), **limit)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for number in range(200):
            deny(writer, prompt=bool(number % 2)).wait(timeout)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert check_segments(store).counts["denied"] == 1600
    appends = [call for call in store.calls if call[0] == "append"]
    assert len(appends) <= 1600 + len(store.files)
    assert bool(set(store.threads) - {writer._thread}) is (timeout is None)


INVALID: dict[str, dict[str, Any]] = {
    "a wrong value": {"permission": "everything"},
    "an unknown field": {"colour": "red"},
    "a secret": {"reason": "got sv=1&sig=c2lnbmF0dXJl"},
    "a field of the envelope": {"seq": 3},
    "a bundle that is no UUID": {"bundle": "b"},
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_record_leaves_the_chain_intact(
    writer: SegmentWriter, store: Any, deny: Callable[..., Receipt], name: str
) -> None:
    """It raises at append, without quoting the value; what comes after is chained as if it had never been."""
    with pytest.raises(AuditError, match="not a valid Denied record") as caught:
        deny(writer, **INVALID[name])
    assert not isinstance(caught.value, AuditUnavailable)
    assert "c2lnbmF0dXJl" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert store.calls == []
    deny(writer).wait(10)
    with pytest.raises(AuditError):
        deny(writer, **INVALID[name])
    deny(writer).wait(10)
    writer.close()
    assert check_segments(store).counts == {"denied": 2, "segment_opened": 1}


def test_too_long_record_is_refused(writer: SegmentWriter, trails: ModuleType, store: Any) -> None:
    """No single record can outgrow a group."""
    big = SegmentWriter(store, trails.facts(accounts={f"a{n}": "x" * 90 for n in range(1000)}), trails.Clock())
    with pytest.raises(AuditError, match="longer than"):
        big.append(Denied, **trails.valid_facts()[Denied])
    big.close()
    assert store.calls == []


@pytest.mark.parametrize("model", [SegmentOpened, SegmentRolled, Sealed])
def test_callers_do_not_write_the_trails_own_records(writer: SegmentWriter, model: Any) -> None:
    """What opens, rolls and seals is not for callers to append."""
    with pytest.raises(AuditError, match="by the trail itself"):
        writer.append(model)


def test_a_clock_set_back_repeats_the_last_time(store: Any, deny: Callable[..., Receipt], trails: ModuleType) -> None:
    """Times in a segment never run backwards, whatever the machine's clock does."""
    clock = trails.Clock()
    writer = SegmentWriter(store, trails.facts(), clock)
    deny(writer)
    clock.now = trails.START.replace(year=2029)
    deny(writer)
    writer.close()
    times = [json.loads(line)["time"] for line in store.lines()]
    assert times == ["2030-01-31T09:30:00.001000Z"] * 3


FAILURES: dict[str, tuple[BaseException, str]] = {
    "the store gives up": (
        AuditUnavailable("no room", Diagnosis(tried="append to segment", request_id="req-1", attempts=5)),
        "no room",
    ),
    "the store has a bug": (ZeroDivisionError("sig=hidden"), "ended with ZeroDivisionError"),
    "the thread is told to exit": (SystemExit(3), "ended with SystemExit"),
    "an interrupt": (KeyboardInterrupt(), "ended with KeyboardInterrupt"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_poison(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt], name: str) -> None:
    """After a failed append everybody who waits, appends or closes is told so, with the original diagnosis."""
    failure, message = FAILURES[name]
    deny(writer).wait(10)
    broken_before = writer.broken
    store.open.clear()
    store.entered.clear()
    under_way = deny(writer)
    assert store.entered.wait(10)
    pending = [deny(writer) for _ in range(3)]
    failed: list[BaseException] = []

    def wait(receipt: Receipt) -> None:
        try:
            receipt.wait(30)
        except AuditUnavailable as error:
            failed.append(error)

    waiters = [threading.Thread(target=wait, args=[receipt]) for receipt in [under_way, *pending]]
    for thread in waiters:
        thread.start()
    store.failure = failure
    store.open.set()
    for thread in waiters:
        thread.join(30)
    for attempt in (lambda: deny(writer), lambda: under_way.wait(0), writer.close, writer.close):
        with pytest.raises(AuditUnavailable, match=message) as caught:
            attempt()
        failed.append(caught.value)
    assert (broken_before, writer.broken) == (False, True)
    assert len(failed) == 8
    for error in failed:
        assert isinstance(error, AuditUnavailable)
        assert message in error.message
        assert "hidden" not in str(error)
        if isinstance(failure, AuditUnavailable):
            assert error.diagnosis == failure.diagnosis
    assert not any(thread.is_alive() for thread in _flushers())
    assert len([call for call in store.calls if call[0] == "append"]) == 2, "nothing is tried again"


def test_what_was_durable_stays_durable(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """Poison is about what comes later: a receipt that was good stays good."""
    receipt = deny(writer)
    receipt.wait(10)
    store.failure = AuditUnavailable("no room")
    with pytest.raises(AuditUnavailable):
        deny(writer).wait(10)
    receipt.wait(0)


def test_close_flushes_and_ends_the_thread(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """Close returns when everything is durable and no thread is left; it may be called again, append may not."""
    before = len(_flushers())
    receipts = [deny(writer) for _ in range(50)]
    writer.close()
    assert all(receipt.durable for receipt in receipts)
    assert len(store.lines()) == 51
    assert len(_flushers()) == before
    writer.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        deny(writer)


def test_close_does_not_wait_for_ever(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """A store that hangs cannot hang a close that has a timeout."""
    store.open.clear()
    deny(writer)
    with pytest.raises(AuditUnavailable, match=r"within 0\.01 s"):
        writer.close(timeout=0.01)
    store.open.set()
    writer.close()


def test_thread_is_a_daemon(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """A process that ends without closing is not kept alive by its audit."""
    store.open.clear()
    deny(writer)
    assert any(_flushers())
    assert all(thread.daemon for thread in _flushers())
    store.open.set()
    writer.close()


class _RecordingStore:
    """A store that records what it does, as one that needs a new SAS does, in the very segment that it writes."""

    def __init__(self, inner: Any, facts: dict[str, Any], *, wait: bool) -> None:
        self.inner, self.facts, self.wait = inner, facts, wait
        self.writer: SegmentWriter | None = None
        self.left = 2

    def create(self, name: str) -> None:
        self.inner.create(name)

    def append(self, name: str, offset: int, data: bytes) -> None:
        if self.left and self.writer is not None:
            self.left -= 1
            receipt = self.writer.append(TokenAcquired, **(self.facts | {"token": f"t{self.left}"}))
            if self.wait:
                receipt.wait(5)
        self.inner.append(name, offset, data)


def test_store_may_append_while_it_writes(store: Any, deny: Callable[..., Receipt], trails: ModuleType) -> None:
    """The store's own tokens are recorded too, also those that it needs to write the very last group."""
    recording = _RecordingStore(store, trails.valid_facts()[TokenAcquired], wait=False)
    writer = recording.writer = SegmentWriter(recording, trails.facts(), trails.Clock())
    store.open.clear()
    deny(writer)
    closer = threading.Thread(target=writer.close)
    closer.start()
    store.open.set()
    closer.join(10)
    assert not closer.is_alive()
    assert check_segments(store).counts["token_acquired"] == 2


@pytest.mark.usefixtures("undisturbed")
def test_store_may_append_while_a_waiter_writes(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """As in the flusher: what it needed to write the last group is written as well."""
    recording = _RecordingStore(store, trails.valid_facts()[TokenAcquired], wait=False)
    writer = recording.writer = SegmentWriter(recording, trails.facts(), trails.Clock())
    store.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        assert store.entered.wait(10)
        closer = threading.Thread(target=writer.close)
        closer.start()
        store.open.set()
        waiting.result(30)
    closer.join(10)
    assert not closer.is_alive()
    assert check_segments(store).counts["token_acquired"] == 2


@pytest.mark.usefixtures("undisturbed")
def test_store_that_waits_for_itself_fails_a_waiter(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType
) -> None:
    """Who is with the store cannot wait for what only he can write."""
    recording = _RecordingStore(store, trails.valid_facts()[TokenAcquired], wait=True)
    writer = recording.writer = SegmentWriter(recording, trails.facts(), trails.Clock())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        with pytest.raises(AuditUnavailable, match="only it can write"):
            waiting.result(30)
    assert recording.left == 1, "nobody else has tried"


def test_store_that_closes_its_own_writer_fails(
    store: Any, deny: Callable[..., Receipt], trails: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end would wait for who has come to it."""
    writer = SegmentWriter(store, trails.facts(), trails.Clock())
    monkeypatch.setattr(store, "append", lambda *_: writer.close())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: deny(writer, prompt=False).wait())
        with pytest.raises(AuditUnavailable, match="only it can write"):
            waiting.result(30)


def test_store_that_waits_for_itself_fails(store: Any, deny: Callable[..., Receipt], trails: ModuleType) -> None:
    """A store that waits in the flusher for what only the flusher can write is an error, not a deadlock."""
    recording = _RecordingStore(store, trails.valid_facts()[TokenAcquired], wait=True)
    writer = recording.writer = SegmentWriter(recording, trails.facts(), trails.Clock())
    with pytest.raises(AuditUnavailable, match="only it can write"):
        deny(writer).wait(10)


def _in_child(attempts: list[Callable[[], object]]) -> int:
    """Fork; how many of the attempts the child is refused because it is one. Negative: it hung, and was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) - 100
    refused = -1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        refused = sum(map(_is_refused_after_fork, attempts))
    finally:
        os._exit(100 + refused)


def _is_refused_after_fork(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except AuditUnavailable as error:
        return "fork" in error.message
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_does_not_fork_the_chain(writer: SegmentWriter, store: Any, deny: Callable[..., Receipt]) -> None:
    """In a forked child, append and wait raise, close does nothing; the parent goes on."""
    store.open.clear()
    receipt = deny(writer)
    assert store.entered.wait(10)
    assert _in_child([lambda: deny(writer), lambda: receipt.wait(5), writer.close]) == 2
    store.open.set()
    receipt.wait(10)
    deny(writer).wait(10)
    writer.close()
    assert check_segments(store).counts["denied"] == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_in_the_middle_of_an_append(store: Any, deny: Callable[..., Receipt], trails: ModuleType) -> None:
    """A child that was forked while another thread held the lock does not wait for it for ever."""
    answers: list[int] = []
    ticking = trails.Clock()

    def clock() -> datetime:  # is read under the lock
        answers.append(_in_child([lambda: deny(forking), forking.close]))
        return ticking()  # type: ignore[no-any-return]  # trails is a fixture

    forking = SegmentWriter(store, trails.facts(), clock)
    deny(forking).wait(10)
    forking.close()
    assert answers == [1]


def _interrupt_at(line: int) -> Callable[..., Any]:
    """A trace function that raises KeyboardInterrupt when the `line`-th line of trail.py is about to run."""
    left = line

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        nonlocal left
        if not frame.f_code.co_filename.endswith("beam_entra/audit/trail.py"):
            return None
        source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and source not in (
            "with self._lock:",
            "try:",
        ):  # no signal is handled there, only traces are
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_anywhere_in_append_does_not_break_the_chain(
    trails: ModuleType, deny: Callable[..., Receipt]
) -> None:
    """Wherever Ctrl-C hits an append: what is written verifies; later appends work or say that they cannot."""
    poisoned = 0
    for line in itertools.count(1):
        store = trails.MemoryTrail()
        writer = SegmentWriter(store, trails.facts(), trails.Clock(), max_bytes=1200)
        interrupted = False
        for _ in range(2):  # the third append rolls
            deny(writer)
        before = sys.gettrace()
        sys.settrace(_interrupt_at(line))
        try:
            deny(writer)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        try:
            deny(writer).wait(10)
            writer.close()
        except AuditUnavailable:
            poisoned += 1
            with pytest.raises(AuditUnavailable):
                writer.close()
        check_segments(store)
        assert not any(thread.is_alive() for thread in _flushers())
        if not interrupted:
            break
    assert line > 60, "the interrupt did hit many lines"
    assert poisoned > 5, "and some of them in the middle of chaining"


def test_stamps_bundle_and_fields(writer: SegmentWriter, store: Any, trails: ModuleType) -> None:
    """A record says what the caller said, in the order of the model."""
    bundle = "20000000-0000-4000-8000-000000000002"
    writer.append(BundleOpened, bundle=bundle, step="Read", token=None)
    writer.append(Read, bundle=bundle, **trails.valid_facts()[Read])
    writer.close()
    opened, began, read = (json.loads(line) for line in store.lines())
    assert opened["segment"] == f"segment-{trails.PROCESSES[0]}-00000.jsonl"
    assert opened["accounts"] == {"contosolake": "https://contosolake.blob.core.windows.net"}
    assert (began["kind"], began["bundle"], began["step"]) == ("bundle_opened", bundle, "Read")
    assert (read["seq"], read["start"], read["end"]) == (2, 0, 10)


@pytest.mark.parametrize(
    "limit", [{"max_blocks": 1}, {"max_bytes": 0}, {"max_records": 1}, {"max_age": timedelta(0)}], ids=str
)
def test_limits_make_sense(store: Any, trails: ModuleType, limit: dict[str, Any]) -> None:
    """A segment that could not hold its first and last line is refused."""
    with pytest.raises(ValueError, match="at least two blocks"):
        SegmentWriter(store, trails.facts(), trails.Clock(), **limit)
