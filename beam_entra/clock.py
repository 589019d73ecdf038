"""Time as an argument: a clock is a callable that returns an aware UTC instant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["Clock", "NeverBack", "utc_now"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The system's clock."""
    return datetime.now(UTC)


class NeverBack:
    """A clock that stands still while the one behind it is earlier than it was before. Thread-safe.

    What is decided and what is recorded then agree on the time, also when an operator or NTP sets the machine back.
    """

    __slots__ = ("_clock", "_latest", "_lock")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: datetime | None = None
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        now = self._clock()  # outside the lock: a clock may be slow
        with self._lock:
            if self._latest is None or now > self._latest:
                self._latest = now
            return self._latest
