"""Findings as text: for the terminal and for the page."""

from __future__ import annotations

from benchmarks.results import Finding, Spread

__all__ = ["HEADINGS", "cells", "quantity", "range_of"]

HEADINGS = ("row", "ours", "against", "ratio", "must", "CPU s", "memory", "")
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float, unit: str) -> str:
    """A number with its unit, three digits."""
    if unit == "s":
        return f"{value * 1000:.2f} ms" if value < 0.1 else f"{value:.2f} s"
    for factor, prefix in _PREFIXES:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def range_of(spread: Spread, unit: str) -> str:
    """Median, and from where to where."""
    return f"{quantity(spread.median, unit)} ({quantity(spread.low, unit)} to {quantity(spread.high, unit)})"


def cells(finding: Finding) -> tuple[str, ...]:
    """One line of the table, under `HEADINGS`."""
    row, ours, theirs, ratio = finding.row, finding.ours, finding.theirs, finding.ratio
    if ours is None:
        return (row.shown, "", "", "", _must(finding), "", "", f"not yet: {finding.missing}")
    return (
        row.shown,
        range_of(ours.value, row.unit),
        range_of(theirs.value, row.unit) if theirs else "",
        f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "",
        _must(finding),
        f"{ours.cpu_s.median:.1f}" + (f" against {theirs.cpu_s.median:.1f}" if theirs else ""),
        f"{ours.memory.median / 1e6:.0f} MB" + (f" against {theirs.memory.median / 1e6:.0f} MB" if theirs else ""),
        finding.verdict,
    )


def _must(finding: Finding) -> str:
    row = finding.row
    if row.least is not None:
        return f"{row.least:g} x"
    if row.most is None:
        return ""
    return f"at most {row.most:g} x" if row.measure == "wall" else f"at most {quantity(row.most, row.unit)}"
