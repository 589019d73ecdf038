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
_STEAL = 7  # of its first line: time in which a CPU had work, and the host was doing something else with it


@dataclass(slots=True)
class Usage:
    """Measures what happens in its `with`.

    Attributes:
        wall_s, cpu_s: Wall-clock seconds; seconds of user and system time of the whole process, and of those that it
            has started and that have ended.
        idle_bytes: Resident memory before.
        peak_bytes: Highest resident memory meanwhile.
        stolen: Which part of the machine's CPU time the host of a virtual machine kept for others, 0 to 1.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    idle_bytes: int = 0
    peak_bytes: int = 0
    stolen: float = 0.0
    _cpus: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        gc.collect()
        if _FORGET_PEAK.exists():
            _FORGET_PEAK.write_text("5", encoding="ascii")
        self.idle_bytes = peak_bytes()
        self._cpus = _cpus()
        self.cpu_s, self.wall_s = _cpu_s(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self.wall_s
        self.cpu_s = _cpu_s() - self.cpu_s
        self.peak_bytes = peak_bytes()
        spent = [after - before for before, after in zip(self._cpus, _cpus(), strict=True)]
        self.stolen = spent[_STEAL] / sum(spent) if any(spent) else 0.0


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


def _cpus() -> tuple[int, ...]:
    """What the machine's CPUs did so far, by kind, in ticks; nothing where the system does not tell."""
    if not _CPUS.exists():
        return (0,) * (_STEAL + 1)
    told = _CPUS.read_text(encoding="ascii").partition("\n")[0].split()[1:]
    return tuple(map(int, told[: _STEAL + 1]))  # what comes behind is in these
