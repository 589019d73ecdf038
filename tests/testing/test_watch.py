"""Journals, gates and faults: what the kit's servers are watched and steered with."""

from __future__ import annotations

import threading
import time

import pytest

from beam_entra.testing.watch import Fault, Faults, Gate, Journal


def test_a_journal_is_a_list_of_what_was_appended() -> None:
    """Length, order, index and slice are those of a list."""
    journal: Journal[str] = Journal()
    for word in "abc":
        journal.append(word)
    assert list(journal) == ["a", "b", "c"]
    assert (len(journal), journal[-1], journal[:2], "b" in journal) == (3, "c", ["a", "b"], True)
    journal.clear()
    assert not journal


def test_iterating_is_not_disturbed_by_appending() -> None:
    """A loop sees the records that were there when it began."""
    journal: Journal[int] = Journal()
    journal.append(1)
    for _ in journal:
        journal.append(2)
    assert len(journal) == 2


def test_waiting_ends_with_the_record_that_was_waited_for() -> None:
    """A waiter wakes as soon as the predicate holds, and gets the records."""
    journal: Journal[int] = Journal()
    writer = threading.Timer(0.05, journal.append, args=(7,))
    writer.start()
    assert journal.wait_for(lambda records: 7 in records) == [7]
    writer.join()


def test_waiting_in_vain_times_out() -> None:
    """Nobody waits for ever."""
    with pytest.raises(TimeoutError, match="0 records"):
        Journal[int]().wait_for(bool, timeout_s=0.01)


def test_a_gate_holds_until_it_is_opened() -> None:
    """Whoever arrives stands there, is counted, and goes on when it opens; later ones walk through."""
    gate = Gate()
    visitor = threading.Thread(target=gate.arrive)
    visitor.start()
    gate.wait_for_arrivals()
    assert visitor.is_alive()
    gate.open()
    visitor.join(5)
    assert not visitor.is_alive()
    gate.arrive()
    assert gate.arrived == 2


def test_a_gate_lets_go_after_its_time() -> None:
    """A limit ends the wait without anybody opening."""
    began = time.monotonic()
    Gate().arrive(0.05)
    assert 0.05 <= time.monotonic() - began < 2


def test_waiting_for_nobody_times_out() -> None:
    """A gate that nobody reaches says so."""
    with pytest.raises(TimeoutError, match="0 of 1"):
        Gate().wait_for_arrivals(timeout_s=0.01)


def test_a_fault_runs_out() -> None:
    """It skips the first requests, meets as many as it was told to, then no more."""
    fault = Fault[int, str]("boom", times=2, skip=1)
    assert [fault.take(n) for n in range(5)] == [False, True, True, False, False]
    assert fault.hits == 2
    fault.wait_for_hits(2)


def test_a_fault_without_a_count_lasts_until_it_is_cleared() -> None:
    """Clearing switches it off."""
    fault = Fault[int, str]("boom")
    assert all(fault.take(n) for n in range(5))
    fault.clear()
    assert not fault.take(6)


def test_a_fault_meets_only_what_it_is_for() -> None:
    """Requests that its predicate refuses neither count nor are skipped."""
    fault = Fault[int, str]("odd", where=lambda number: number % 2 == 1, skip=1, times=1)
    assert [number for number in range(6) if fault.take(number)] == [3]


@pytest.mark.parametrize(("times", "skip"), [(0, 0), (-1, 0), (1, -1)])
def test_a_fault_that_cannot_happen_is_a_mistake(times: int, skip: int) -> None:
    """Counts that make no sense are refused where they are written."""
    with pytest.raises(ValueError, match="at least once"):
        Fault[int, str]("boom", times=times, skip=skip)


def test_waiting_for_a_fault_that_is_not_met_times_out() -> None:
    """A fault that no request meets says so."""
    with pytest.raises(TimeoutError, match="0 of 1"):
        Fault[int, str]("boom").wait_for_hits(timeout_s=0.01)


def test_the_oldest_fault_that_fits_decides() -> None:
    """Faults are asked in the order in which they were switched on; the next one when the first has run out."""
    faults: Faults[int, str] = Faults()
    faults.add(Fault("first", times=1))
    faults.add(Fault("second"))
    taken = [faults.take(1), faults.take(2)]
    assert [fault.action for fault in taken if fault] == ["first", "second"]


def test_clearing_all_faults_opens_their_gates() -> None:
    """What a fault holds goes on when the faults are cleared: nobody is left hanging."""
    faults: Faults[int, str] = Faults()
    gate = Gate()
    faults.add(Fault("hold", gate=gate))
    visitor = threading.Thread(target=gate.arrive)
    visitor.start()
    gate.wait_for_arrivals()
    faults.clear()
    visitor.join(5)
    assert not visitor.is_alive()
    assert faults.take(1) is None
