"""Findings as text: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results import Finding, Spread

__all__ = ["HEADINGS", "cells", "limit", "markdown", "quantity", "range_of", "ratio_of", "times"]

HEADINGS = ("", "ours", "against", "ratio", "to reach", "")
_PARTS_OF_S = ((1e-3, 1e-6, "µs"), (0.1, 1e-3, "ms"))
_WORDS = (
    (1e15, "P", "quadrillion "),
    (1e12, "T", "trillion "),
    (1e9, "G", "billion "),
    (1e6, "M", "million "),
    (1e3, "k", "thousand "),
)


def quantity(value: float, unit: str) -> str:
    """A number with its unit, three digits."""
    factor, shown = _scale(value, unit)
    return f"{_number(value / factor)} {shown}"


def range_of(spread: Spread, unit: str) -> str:
    """Median, and from where to where in the same unit."""
    factor, shown = _scale(spread.median, unit)
    low, median, high = (_number(value / factor) for value in (spread.low, spread.median, spread.high))
    return f"{median} {shown} ({low} to {high})"


def times(value: float) -> str:
    """How many times."""
    return f"{value:.1f} x" if value >= 10 else f"{value:.2f} x"


def limit(finding: Finding) -> str:
    """What a row must reach."""
    row = finding.row
    if row.least is not None:
        return f"{row.least:g} x"
    if row.exactly is not None:
        return f"exactly {row.exactly}"
    if row.most is None:
        return ""
    return f"at most {row.most - 1:.0%} more" if row.measure == "wall" else f"at most {quantity(row.most, row.unit)}"


def cells(finding: Finding) -> tuple[str, ...]:
    """One line of the table, under `HEADINGS`."""
    row, ours, theirs = finding.row, finding.ours, finding.theirs
    return (
        row.shown,
        range_of(ours.value, row.unit),
        range_of(theirs.value, row.unit) if theirs else "",
        ratio_of(finding),
        limit(finding),
        finding.verdict,
    )


def ratio_of(finding: Finding) -> str:
    """The ratio and its range; what ours takes more, where that is limited."""
    ratio, row = finding.ratio, finding.row
    if ratio is None:
        return ""
    if row.measure == "wall" and row.most is not None:
        return f"{ratio.median - 1:+.1%} ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"
    return f"{times(ratio.median)} ({times(ratio.low)} to {times(ratio.high)})"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a page."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _scale(value: float, unit: str) -> tuple[float, str]:
    """What to divide by, and the unit then."""
    if unit == "s":
        return next(((factor, part) for below, factor, part in _PARTS_OF_S if value < below), (1, "s"))
    for factor, prefix, word in _WORDS:
        if value >= factor:
            return factor, (prefix if unit.startswith("B") else word) + unit
    return 1, unit


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
