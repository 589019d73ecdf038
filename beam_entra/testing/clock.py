"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

__all__ = ["FakeClock"]


class FakeClock:
    """A `beam_entra.clock.Clock` that a test sets and advances. Safe to share between threads.

    >>> clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    >>> clock.advance(timedelta(minutes=5))
    datetime.datetime(2026, 1, 1, 0, 5, tzinfo=datetime.timezone.utc)
    """

    def __init__(self, start: datetime | None = None) -> None:
        """Stand at `start`, an aware instant; the system's time when it is left out."""
        self._lock = threading.Lock()
        self._now = _aware(datetime.now(UTC) if start is None else start)

    def __call__(self) -> datetime:
        with self._lock:
            return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move forward and return the new time. A clock does not run backwards: use `set` to cheat."""
        if by < timedelta(0):
            raise ValueError(f"a clock advances, it does not go back by {-by}")
        with self._lock:
            self._now += by
            return self._now

    def set(self, now: datetime) -> None:
        """Jump to an aware instant, in either direction."""
        with self._lock:
            self._now = _aware(now)


def _aware(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError(f"{instant.isoformat()} has no time zone; give an aware datetime")
    return instant.astimezone(UTC)
