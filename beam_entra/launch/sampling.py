"""Beam's sampling thread, which each bundle's end waits for.

While a bundle is at work, a thread of Beam's notes every so often at which step, for the metrics. It sleeps ever longer
in between, up to 0.2 s, and the bundle ends when it wakes: one of a second is on average 0.1 s longer for it. It takes
no lock of the interpreter's, so that looking more often costs next to nothing.
"""

from __future__ import annotations

import inspect

from apache_beam.runners.worker.statesampler import StateSampler

__all__ = ["LONGEST_MS", "sample_often"]

LONGEST_MS = 10
_PERIOD = "sampling_period_ms"


def sample_often() -> None:
    """Have it sleep for 10 ms at most, in this process, in bundles that begin later.

    Beam has no option for it; this changes the default of one parameter, and nothing where there is no such parameter.
    """
    by_default = inspect.signature(StateSampler.__init__).parameters
    if list(by_default)[-1] == _PERIOD and StateSampler.__init__.__defaults__ is not None:
        StateSampler.__init__.__defaults__ = (*StateSampler.__init__.__defaults__[:-1], LONGEST_MS)
