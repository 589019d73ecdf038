"""From runs to figures: medians, ranges, ratios of the pairs, and whether a row reaches what it must."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import GROUPS, Group, Row

__all__ = ["Figure", "Finding", "Spread", "findings", "judge", "spread"]

Runs = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, least and most of some numbers."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one side of a row measured: the row's own measure, CPU seconds, and memory above idle in bytes."""

    value: Spread
    cpu_s: Spread
    memory: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row, judged.

    Attributes:
        verdict: `reached`, `missed`, `not yet`, or `shown` where nothing is to be reached.
        ratio: How many times better ours is, pair by pair; for a limit as a ratio, ours divided by theirs.
    """

    row: Row
    verdict: str
    ours: Figure | None = None
    theirs: Figure | None = None
    ratio: Spread | None = None
    missing: str = ""


def spread(values: Sequence[float]) -> Spread:
    """Median and range."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def findings(groups: Mapping[str, Runs]) -> list[Finding]:
    """Every row of the groups that were run, in the order of the table."""
    return [judge(row, groups[group.name]) for group in GROUPS if group.name in groups for row in group.rows]


def judge(row: Row, runs: Runs) -> Finding:
    """A row, from the runs of its group."""
    sides = [runs[row.ours], *([runs[row.theirs]] if row.theirs else [])]
    lacking = next((side[0]["not_yet"] for side in sides if "not_yet" in side[0]), "")
    if lacking:
        return Finding(row=row, verdict="not yet", missing=lacking)
    ours = _figure(row, runs[row.ours])
    if not row.theirs:
        return Finding(row=row, verdict=_within(ours.value.median, row.most), ours=ours)
    theirs = _figure(row, runs[row.theirs])
    ratio = spread(
        [
            _ratio(row, _value(row, mine), _value(row, other))
            for mine, other in zip(runs[row.ours], runs[row.theirs], strict=True)
        ]
    )
    if row.least is not None:
        verdict = "reached" if ratio.median >= row.least else "missed"
    elif row.measure == "peak":
        verdict = _within(ours.value.median, row.most)
    else:
        verdict = _within(ratio.median, row.most)
    return Finding(row=row, verdict=verdict, ours=ours, theirs=theirs, ratio=ratio)


def group_of(name: str) -> Group:
    """A group by its name."""
    return next(group for group in GROUPS if group.name == name)


def _within(value: float, most: float | None) -> str:
    if most is None:
        return "shown"
    return "reached" if value <= most else "missed"


def _figure(row: Row, runs: Sequence[Mapping[str, Any]]) -> Figure:
    return Figure(
        value=spread([_value(row, run) for run in runs]),
        cpu_s=spread([run["cpu_s"] for run in runs]),
        memory=spread([_memory(run) for run in runs]),
    )


def _value(row: Row, run: Mapping[str, Any]) -> float:
    match row.measure:
        case "rate":
            return float(run["units"]) / float(run["wall_s"])
        case "peak":
            return _memory(run)
        case "sample":
            return float(statistics.median(run["samples_s"]))
        case _:
            return float(run["wall_s"])


def _memory(run: Mapping[str, Any]) -> float:
    return float(run["peak_bytes"] - run["idle_bytes"])


def _ratio(row: Row, ours: float, theirs: float) -> float:
    """How many times better ours is; a limit is on ours divided by theirs."""
    bigger_is_better = row.measure == "rate"
    return ours / theirs if bigger_is_better or (row.most is not None and row.measure == "wall") else theirs / ours
