"""A clock that moves only when told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from beam_entra.testing.clock import FakeClock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_it_stands_still() -> None:
    """Asking twice gives the same time."""
    clock = FakeClock(NOON)
    assert clock() == clock() == NOON


def test_it_advances_by_what_it_is_told() -> None:
    """Steps add up, and the new time is returned."""
    clock = FakeClock(NOON)
    assert clock.advance(timedelta(minutes=5)) == NOON + timedelta(minutes=5)
    clock.advance(timedelta(seconds=1))
    assert clock() == NOON + timedelta(minutes=5, seconds=1)


def test_it_can_be_set_in_both_directions() -> None:
    """`set` jumps, and gives UTC whatever zone it was told."""
    clock = FakeClock(NOON)
    clock.set(datetime(2026, 3, 1, 10, tzinfo=timezone(timedelta(hours=2))))
    assert clock() == NOON - timedelta(hours=4)
    assert clock().tzinfo is UTC


def test_it_starts_at_the_systems_time() -> None:
    """Without a start it takes the real time, once."""
    before = datetime.now(UTC)
    clock = FakeClock()
    assert before <= clock() <= datetime.now(UTC)


def test_it_refuses_to_go_back() -> None:
    """A negative step is a mistake in a test."""
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock(NOON).advance(timedelta(seconds=-1))


def test_it_refuses_a_time_without_a_zone() -> None:
    """A naive time would be somebody's local time."""
    with pytest.raises(ValueError, match="no time zone"):
        FakeClock(NOON.replace(tzinfo=None))
    with pytest.raises(ValueError, match="no time zone"):
        FakeClock(NOON).set(NOON.replace(tzinfo=None))
