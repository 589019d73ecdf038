"""Clocks: aware, and one that never goes back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.clock import MOST_SKEW, NeverBack, ServiceClock, utc_now
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


# ---------------------------------------------------------------- the services' time

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


class World:
    """The true time, a worker's clock that is off, and answers that take their time."""

    def __init__(self, skew: timedelta) -> None:
        self.now, self.skew = START, skew
        self.noticed: list[timedelta] = []
        self.clock = ServiceClock(lambda: self.now - self.skew, noticed=self.noticed.append)

    def answer(self, there: timedelta = timedelta(0), back: timedelta = timedelta(0)) -> None:
        """A request that takes so long to arrive, and its answer so long to come back."""
        sent = self.clock.worker()
        self.now += there
        date = format_datetime(self.now.replace(microsecond=0), usegmt=True)
        self.now += back
        self.clock.hear(date, sent)


LATENCIES = st.timedeltas(timedelta(0), timedelta(seconds=30))


@given(st.timedeltas(-MOST_SKEW, MOST_SKEW), st.timedeltas(timedelta(0), 59 * SECOND), LATENCIES, LATENCIES)
def test_it_is_right_to_a_few_seconds(skew: timedelta, past: timedelta, there: timedelta, back: timedelta) -> None:
    """After one answer it is off by half of what that took at most, and a few seconds; the worker's skew is gone."""
    world = World(skew)
    world.now += past
    world.answer(there, back)
    assert not world.clock.wrong
    assert abs(world.clock() - world.now) <= (there + back) / 2 + 6.5 * SECOND or world.clock.correction == timedelta(0)
    if abs(skew) > there + back + 7 * SECOND:
        assert world.noticed == [world.clock.skew]
    if world.clock.correction == timedelta(0):
        assert abs(skew) <= there + back + 7 * SECOND


@given(st.timedeltas(-10 * SECOND, 10 * SECOND), st.lists(st.tuples(LATENCIES, LATENCIES), min_size=1, max_size=5))
def test_slow_answers_upset_no_clock_that_is_right(skew: timedelta, answers: list[tuple[timedelta, timedelta]]) -> None:
    """However long they take, a clock that is right to the second stays as it is."""
    world = World(skew / 10)
    for there, back in answers:
        world.answer(there, back)
        world.now += MINUTE
    assert (world.clock.correction, world.noticed) == (timedelta(0), [])


@pytest.mark.parametrize("skew", [10 * MINUTE + 6 * SECOND, -10 * MINUTE - 8 * SECOND, timedelta(days=400)], ids=str)
def test_more_than_ten_minutes_are_not_put_right(skew):
    """Whoever answers could prolong everything: it is told as wrong, and the worker's time is left as it is."""
    world = World(skew)
    world.answer()
    assert world.clock.wrong
    assert world.clock() == world.now - skew
    assert len(world.noticed) == 1


def test_it_goes_back_only_when_it_is_told():
    """It stands still when the worker's clock is set back, and follows an answer back at once."""
    world = World(-9 * MINUTE)
    before = world.clock()
    assert before == START + 9 * MINUTE
    world.answer()
    assert abs(world.clock() - START) < 2 * SECOND
    latest = world.clock()
    world.skew = timedelta(minutes=-4)  # the worker's clock is set back by five minutes
    assert world.clock() == latest
    world.answer()
    assert abs(world.clock() - START) < 2 * SECOND
    assert abs(world.clock.skew + 4 * MINUTE) < 2 * SECOND


def test_answers_in_quick_succession_are_heard_once():
    """Of those within ten seconds the first counts, so that an answer costs next to nothing."""
    world = World(timedelta(0))
    world.answer()
    world.clock.hear("Sun, 01 Mar 2026 12:05:00 GMT", world.clock.worker())
    assert world.clock.skew == timedelta(0)
    world.now += 11 * SECOND
    world.clock.hear("Sun, 01 Mar 2026 12:05:00 GMT", world.clock.worker())
    assert 4 * MINUTE < world.clock.skew < 5 * MINUTE


NO_TIME = ["", "soon", "Sun, 01 Mar", "Sun, 01 Mar 2026 12:05:00 -0000", "Sun, 99 Mar 2026 12:00 GMT"]


@pytest.mark.parametrize("date", NO_TIME)
def test_what_is_no_time_is_not_heard(date):
    """Nor does it count as having been told."""
    world = World(timedelta(0))
    world.clock.hear(date, START)
    assert (world.clock.told, world.clock.skew) == (False, timedelta(0))
