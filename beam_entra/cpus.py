"""How many CPUs this process may use."""

from __future__ import annotations

import os

__all__ = ["cpus"]


def cpus(at_most: int) -> int:
    """Those that the system lets it run on, up to a number: a container may have less of them than it sees."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, at_most)
