"""Wall time, CPU time and peak memory of a stretch of work in this process, and what the host kept from it."""

from __future__ import annotations

import gc
import os
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Usage", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_FORGET_PEAK = Path("/proc/self/clear_refs")
_CPUS = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")  # of its first line, in this order


@dataclass(slots=True)
class Usage:
    """Measures what happens in its `with`.

    Attributes:
        wall_s, cpu_s: Wall-clock seconds; seconds of user and system time of the whole process, and of those that it
            has started and that have ended.
        idle_bytes: Resident memory before.
        peak_bytes: Highest resident memory meanwhile.
        busy_s: Seconds in which a CPU of the machine was at work, whoever's. 0 where the system does not tell.
        stolen_s: Seconds in which one had work, and the host of the virtual machine was doing something else with it.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    idle_bytes: int = 0
    peak_bytes: int = 0
    busy_s: float = 0.0
    stolen_s: float = 0.0

    def __enter__(self) -> Self:
        gc.collect()
        busy_s, stolen_s = _cpus_s()
        self.busy_s, self.stolen_s = -busy_s, -stolen_s
        if _FORGET_PEAK.exists():
            _FORGET_PEAK.write_text("5", encoding="ascii")
        self.idle_bytes = peak_bytes()
        self.cpu_s, self.wall_s = _cpu_s(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self.wall_s
        self.cpu_s = _cpu_s() - self.cpu_s
        self.peak_bytes = peak_bytes()
        busy_s, stolen_s = _cpus_s()
        self.busy_s, self.stolen_s = self.busy_s + busy_s, self.stolen_s + stolen_s


def peak_bytes() -> int:
    """The highest resident memory of this process so far; since the last reset, where the system has one."""
    if _STATUS.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
        if found:
            return int(found.group(1)) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak << 10


def _cpu_s() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _cpus_s() -> tuple[float, float]:
    """Seconds that all CPUs were at work, and that were stolen from them, since the system started."""
    if not _CPUS.exists():
        return 0.0, 0.0
    told = _CPUS.read_text(encoding="ascii").partition("\n")[0].split()[1:]
    ticks = dict(zip(_KINDS, map(int, told), strict=False))  # what comes behind is in these
    stolen = ticks.pop("steal", 0)
    busy = sum(ticks.values()) - ticks.get("idle", 0) - ticks.get("iowait", 0)
    return busy / _TICKS, stolen / _TICKS
