"""What a side is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Done", "Task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a side is told.

    Attributes:
        side: `module.function` below `benchmarks.sides`.
        given: The side's own arguments.
        endpoint: The account's URL.
        ca_file: The CA of the run.
        manifest, endpoints: Files for a scoped job.
        output: Prefix for what it writes, this run's own: `out/3/`.
    """

    side: str
    given: Mapping[str, Any] = field(default_factory=dict)
    endpoint: str = ""
    ca_file: str = ""
    manifest: str = ""
    endpoints: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a side did.

    Attributes:
        units: How many: records, bytes, blobs, as its row counts.
        answer: What must be the same for all sides of the row; None if it has none.
        samples_s: Seconds of each repetition, for a side that times them itself.
    """

    units: float
    answer: object = None
    samples_s: tuple[float, ...] = ()
