"""How long it will still take, told from what the groups took so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.rows import Group

__all__ = ["TimeLeft"]

_START_S = 5  # a cloud and a process for each group, whatever the size of its data


class TimeLeft:
    """An estimate: each group's own figure, times how much longer than theirs the groups before it took.

    Args:
        share: How much of five rounds at full size is run.
        now: A clock, in seconds.
    """

    def __init__(
        self, groups: Sequence[Group], *, share: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._expected_s = {group.name: _START_S + group.takes_s * share for group in groups}
        self._left = [group.name for group in groups]
        self._done_s = 0.0
        self._now = now
        self._began = now()

    def done(self, group: Group) -> None:
        """A group has ended."""
        self._left.remove(group.name)
        self._done_s += self._expected_s[group.name]

    def seconds(self) -> float:
        """From now until all groups have ended, when asked between two of them."""
        pace = (self._now() - self._began) / self._done_s if self._done_s else 1.0
        return pace * sum(self._expected_s[name] for name in self._left)

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds()), 60)
        return f"about {minutes}:{seconds:02d} left, {len(self._left)} of {len(self._expected_s)} to go"
