"""Clocks: aware, and one that never goes back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from beam_entra.clock import NeverBack, utc_now
from beam_entra.testing.clock import FakeClock

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_systems_clock_is_aware():
    """It says UTC."""
    assert utc_now().utcoffset() == timedelta(0)


@given(st.lists(st.integers(-10_000, 10_000), min_size=1))
def test_it_tells_the_latest_time_so_far(steps: list[int]) -> None:
    """Whatever the clock behind it does, the time told is the latest that it has shown."""
    shown = [START + timedelta(seconds=step) for step in steps]
    times = iter(shown)
    clock = NeverBack(lambda: next(times))
    assert [clock() for _ in shown] == [max(shown[: count + 1]) for count in range(len(shown))]


def test_it_goes_on_when_the_other_has_caught_up():
    """Standing still ends when the clock behind it is later again."""
    behind = FakeClock(START)
    clock = NeverBack(behind)
    assert clock() == START
    behind.set(START - timedelta(hours=1))
    assert clock() == START
    behind.set(START + timedelta(seconds=1))
    assert clock() == START + timedelta(seconds=1)


def test_no_thread_sees_it_go_back():
    """With eight threads on a clock that jumps about, each sees times in order."""
    jumps = [START + timedelta(seconds=(number * 7919) % 1000) for number in range(4000)]
    times = iter(jumps)
    clock = NeverBack(lambda: next(times))

    def look(_: int) -> list[datetime]:
        return [clock() for _ in range(500)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(look, range(8)))
    assert all(each == sorted(each) for each in seen)
