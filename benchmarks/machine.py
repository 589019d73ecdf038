"""What a reader has to know of the machine; nothing that names it or its folders."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

__all__ = ["facts"]

_PACKAGES = ("apache-beam", "azure-storage-blob", "azure-core", "urllib3", "pyarrow", "pydantic")


def facts() -> dict[str, str]:
    """Processor, cores, memory, system, and the versions that count."""
    return {
        "processor": _first(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "azurite": "3.37.0",
    }


def _first(file: Path, pattern: str) -> str:
    found = re.search(pattern, file.read_text(encoding="utf-8")) if file.exists() else None
    return found.group(1).strip() if found else ""
