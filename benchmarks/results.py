"""From runs to figures: medians, ranges, ratios of the pairs, and whether a row reaches what it must."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import GROUPS, Group, Row

__all__ = ["Figure", "Finding", "Spread", "findings", "judge", "spread", "stolen", "sure_of_median"]

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
_DOUBT = 0.07


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
        verdict: `reached`, `missed`, or `shown` where nothing is to be reached.
        ratio: How many times better ours is, pair by pair; for a limit as a ratio, ours divided by theirs.
        sure: Between what the true median of the ratio lies; see `sure_of_median`.
        cpu_ratio: CPU seconds of ours divided by theirs, for as many units, pair by pair.
        ceiling: The ratio if ours were the floor: nobody gets above it.
        floor: What the floor of a row without another side measured.
        pairs: How many there are.
        alike: Both sides do as many units.
    """

    row: Row
    verdict: str
    ours: Figure
    theirs: Figure | None = None
    ratio: Spread | None = None
    sure: tuple[float, float] | None = None
    cpu_ratio: Spread | None = None
    ceiling: float | None = None
    floor: Spread | None = None
    pairs: int = 0
    alike: bool = True


def spread(values: Sequence[float]) -> Spread:
    """Median and range."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def stolen(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Which part of the CPU time that there was work for the host kept, over these runs; None where nobody knows."""
    kept, used = (sum(run[name] for run in runs) for name in ("stolen_s", "busy_s"))
    return kept / (kept + used) if used else None


def sure_of_median(values: Sequence[float]) -> tuple[float, float] | None:
    """Between which two of the values the true median lies with at least 93 %, whatever their distribution.

    Of five values that is the whole range; of nine the second and the last but one; of fewer than five there are none.
    """
    ranked, cut, doubt = sorted(values), -1, 0.0
    while (doubt := doubt + 2 * math.comb(len(ranked), cut + 1) / 2 ** len(ranked)) <= _DOUBT:
        cut += 1
    return (ranked[cut], ranked[-1 - cut]) if cut >= 0 else None


def findings(groups: Mapping[str, Runs]) -> list[Finding]:
    """Every row of the groups that were run, in the order of the table."""
    return [judge(row, groups[group.name]) for group in GROUPS if group.name in groups for row in group.rows]


def judge(row: Row, runs: Runs) -> Finding:
    """A row, from the runs of its group."""
    sides = [runs[row.ours], *([runs[row.theirs]] if row.theirs else [])]
    pairs = min(map(len, sides))  # a side may run more often for the sake of another row
    ours = _figure(row, runs[row.ours][:pairs])
    if not row.theirs:
        floor = spread([_value(row, run) for run in runs[row.floor]]) if runs.get(row.floor) else None
        return Finding(row=row, verdict=_alone(row, ours.value), ours=ours, floor=floor, pairs=pairs)
    theirs = _figure(row, runs[row.theirs][:pairs])
    both = list(zip(runs[row.ours][:pairs], runs[row.theirs][:pairs], strict=True))
    ratios = [_ratio(row, _value(row, mine), _value(row, other)) for mine, other in both]
    ratio = spread(ratios)
    cpu_ratio = spread([_cpu_a_unit(mine) / _cpu_a_unit(other) for mine, other in both])
    if row.least is not None:
        verdict = "reached" if ratio.median >= row.least else "missed"
    elif row.measure == "peak":
        verdict = _within(ours.value.median, row.most)
    else:
        verdict = _within(ratio.median, row.most)
    return Finding(
        row=row,
        verdict=verdict,
        ours=ours,
        theirs=theirs,
        ratio=ratio,
        sure=sure_of_median(ratios),
        cpu_ratio=cpu_ratio,
        ceiling=_ceiling(row, runs, theirs.value.median),
        pairs=pairs,
        alike=runs[row.ours][0]["units"] == runs[row.theirs][0]["units"],
    )


def group_of(name: str) -> Group:
    """A group by its name."""
    return next(group for group in GROUPS if group.name == name)


def _alone(row: Row, value: Spread) -> str:
    if row.exactly is not None:  # in every run
        return "reached" if value.low == value.high == row.exactly else "missed"
    return _within(value.median, row.most)


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
        case "requests":
            return float(run["token_requests"])
        case _:
            return float(run["wall_s"])


def _cpu_a_unit(run: Mapping[str, Any]) -> float:
    return float(run["cpu_s"]) / float(run["units"])


def _ceiling(row: Row, runs: Runs, theirs: float) -> float | None:
    if not row.floor or not runs.get(row.floor):
        return None
    floor = statistics.median(run["wall_s"] for run in runs[row.floor])
    if row.measure != "rate":
        return float(theirs / floor)
    units = float(runs[row.ours][0]["units"])  # the floor does as many, however it counts them
    return units / float(floor) / theirs


def _memory(run: Mapping[str, Any]) -> float:
    return float(run["peak_bytes"] - run["idle_bytes"])


def _ratio(row: Row, ours: float, theirs: float) -> float:
    """How many times better ours is; a limit is on ours divided by theirs."""
    bigger_is_better = row.measure == "rate"
    return ours / theirs if bigger_is_better or (row.most is not None and row.measure == "wall") else theirs / ours
