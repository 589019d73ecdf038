"""Time as an argument: a clock is a callable that returns an aware UTC instant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["MOST_SKEW", "Clock", "NeverBack", "ServiceClock", "utc_now"]

MOST_SKEW = timedelta(minutes=10)
_TOLERANCE = timedelta(seconds=5)  # what a Date in whole seconds and a busy worker may be wrong by
_HEARD_EVERY = timedelta(seconds=10)
_A_SECOND = timedelta(seconds=1)

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


class ServiceClock:
    """The worker's clock, put right by what the services say in their answers. Thread-safe.

    An answer that was asked for at `sent`, came at `received` (both by the worker's clock) and was made at `date` shows
    that the services are ahead of the worker by `date - received` at least and `date + 1 s - sent` at most: a slow
    answer makes the bounds wide, never wrong. While what is known fits into the bounds it stays; else their middle is
    the new `skew`. Up to `MOST_SKEW` the time told is the services'. A clock that is further off is not put right:
    whoever answers could then prolong everything. `wrong` says so.

    The time told goes back only where an answer has shown that it was ahead; when the worker's clock is set back, it
    stands still until that has caught up, or until the next answer.

    Args:
        clock: The worker's.
        noticed: Told of a skew when it is found, and of none when it has gone.
    """

    __slots__ = ("_clock", "_correction", "_heard", "_latest", "_lock", "_noticed", "_skew", "_wrong")

    def __init__(self, clock: Clock, *, noticed: Callable[[timedelta], object] = lambda skew: None) -> None:
        self._clock = clock
        self._noticed = noticed
        self._skew = self._correction = timedelta(0)
        self._wrong = False
        self._heard: datetime | None = None
        self._latest: datetime | None = None
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        worker = self._clock()  # outside the lock: a clock may be slow
        with self._lock:
            now = worker + self._correction
            if self._latest is None or now > self._latest:
                self._latest = now
            return self._latest

    @property
    def worker(self) -> Clock:
        """The worker's own clock, as it is."""
        return self._clock

    @property
    def skew(self) -> timedelta:
        """By how much the services are ahead of the worker; negative when they are behind."""
        return self._skew

    @property
    def correction(self) -> timedelta:
        """What is added to the worker's time."""
        return self._correction

    @property
    def told(self) -> bool:
        """Whether any answer has said what time it is."""
        return self._heard is not None

    @property
    def wrong(self) -> bool:
        """Whether the worker's clock is further off than is put right."""
        return self._wrong

    def hear(self, date: str, sent: datetime) -> None:
        """Take note of an answer; of several within ten seconds, of the first.

        Args:
            date: Its `Date` header; "" and what is none change nothing.
            sent: When it was asked for, by the worker's clock.
        """
        received = self._clock()
        heard = self._heard
        if not date or (heard is not None and not self.wrong and heard <= received < heard + _HEARD_EVERY):
            return
        try:
            made = parsedate_to_datetime(date)
            least, most = made - received, made + _A_SECOND - sent
        except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
            return
        with self._lock:
            self._heard = received
            if least - _TOLERANCE <= self._skew <= most + _TOLERANCE:
                return
            fits = least - _TOLERANCE <= timedelta(0) <= most + _TOLERANCE
            self._skew = skew = timedelta(0) if fits else (least + most) / 2
            self._wrong = abs(skew) > MOST_SKEW + _TOLERANCE
            self._correction = timedelta(0) if self._wrong else skew
            self._latest = None
        self._noticed(skew)
