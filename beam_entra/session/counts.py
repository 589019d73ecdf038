"""What this process has counted for each job so far: for who watches one while it runs.

Beam's own counters are there when a bundle, or the job, has ended. These lie beside them, and nothing is made of them
but a line on a terminal: what was tried twice is counted twice.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict

__all__ = ["forget", "tallied", "tally"]

_SUMS: defaultdict[str, Counter[str]] = defaultdict(Counter)
_LOCK = threading.Lock()


def tally(job: str, name: str, by: int) -> None:
    """Add to one of a job's sums."""
    with _LOCK:
        _SUMS[job][name] += by


def tallied(job: str) -> Counter[str]:
    """A job's sums by now, named like the counters of the namespace `beam_entra`."""
    with _LOCK:
        return Counter(_SUMS.get(job))


def forget(job: str) -> None:
    """The job is over here."""
    with _LOCK:
        _SUMS.pop(job, None)


def _start_over() -> None:
    """In a forked child: the sums are the parent's, and the lock may be held by a thread that is not here."""
    global _LOCK  # noqa: PLW0603 - there is one a process
    _LOCK = threading.Lock()
    _SUMS.clear()


os.register_at_fork(after_in_child=_start_over)
