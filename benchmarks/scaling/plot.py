"""Curves as SVG: panels side by side, both scales logarithmic, to be read on light and on dark ground."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from xml.sax.saxutils import escape

__all__ = ["Curve", "Panel", "draw"]

_WIDTH, _HEIGHT = 440, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 118, 40, 46
_ROUNDING = 1 + 1e-9
_LABEL_PX = 15  # between two labels
_DECADES = 2.5  # from so many on only powers of ten are marked
_LIGHT = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#cf222e")
_DARK = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#ff7b72")


def _colours(curves: Sequence[str], *, text: str, grid: str, ideal: str) -> str:
    rules = [f"text {{ fill: {text} }} .grid {{ stroke: {grid} }} .ideal {{ stroke: {ideal} }}"]
    for number, colour in enumerate(curves):
        kind = f".c{number}"
        rules.append(f".curve{kind} {{ stroke: {colour} }} .dot{kind}, .name{kind} {{ fill: {colour} }}")
    return "\n".join(rules)


_STYLE = f"""\
text {{ font: 12px system-ui, sans-serif }}
.title {{ font-weight: 600; font-size: 13px }}
.curve {{ stroke-width: 2; fill: none }}
.ideal {{ stroke-dasharray: 4 4; fill: none }}
{_colours(_LIGHT, text="#24292f", grid="#d0d7de", ideal="#6e7781")}
@media (prefers-color-scheme: dark) {{
{_colours(_DARK, text="#d1d7e0", grid="#3d444d", ideal="#9198a1")}
}}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points, joined by lines.

    Attributes:
        name: At its end.
        points: Across and up; above 0.
        ideal: It was not measured: dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    ideal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Attributes:
        across: What is on the horizontal scale, with its unit.
        up: What is on the vertical one.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel], *, describe: str) -> str:
    """The SVG.

    Args:
        describe: For who cannot see it.
    """
    width = _WIDTH * len(panels)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}"'
            f' height="{_HEIGHT}" role="img">'
        ),
        f"<title>{escape(describe)}</title>",
        f"<style>{_STYLE}</style>",
    ]
    for number, panel in enumerate(panels):
        lines += [f'<g transform="translate({number * _WIDTH} 0)">', *_Frame(panel).lines(), "</g>"]
    return "\n".join([*lines, "</svg>"]) + "\n"


class _Scale:
    """From values to pixels: from a mark below all of them to one above."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float) -> None:
        self.marks = _marks(min(values), max(values))
        self._start_px, self._length_px = start_px, end_px - start_px

    def px(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return self._start_px + self._length_px * math.log(value / low) / math.log(high / low)


def _marks(low: float, high: float) -> list[float]:
    """Powers of ten, or 1, 2, 5, 10, ... where those are too few: from the last not above `low` to one above `high`."""
    steps = (1,) if math.log10(high / low) >= _DECADES else (1, 2, 5)
    marks: list[float] = []
    for power in count(math.floor(math.log10(low)) - 1):
        for step in steps:
            mark = step * 10.0**power
            if mark <= low * _ROUNDING:
                marks = [mark]
            else:
                marks.append(mark)
            if mark >= high / _ROUNDING and len(marks) > 1:
                return marks
    raise AssertionError("there is always a higher mark")


class _Frame:
    """A panel, where it stands."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        points = [point for curve in panel.curves for point in curve.points]
        self._bottom = _HEIGHT - _BOTTOM
        self._end = _WIDTH - _RIGHT
        self._x = _Scale([across for across, _ in points], _LEFT, self._end)
        self._y = _Scale([up for _, up in points], self._bottom, _TOP)

    def lines(self) -> Iterator[str]:
        """The elements."""
        panel = self._panel
        yield f'<text class="title" x="{_LEFT}" y="20">{escape(panel.title)}</text>'
        for mark in self._x.marks:
            x = self._x.px(mark)
            yield f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{self._bottom}"/>'
            yield f'<text text-anchor="middle" x="{x:.1f}" y="{self._bottom + 16}">{_short(mark)}</text>'
        for mark in self._y.marks:
            y = self._y.px(mark)
            yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{self._end}" y2="{y:.1f}"/>'
            yield f'<text text-anchor="end" x="{_LEFT - 6}" y="{y + 4:.1f}">{_short(mark)}</text>'
        middle = (_LEFT + self._end) / 2
        yield f'<text text-anchor="middle" x="{middle:.1f}" y="{_HEIGHT - 10}">{escape(panel.across)}</text>'
        height = (_TOP + self._bottom) / 2
        yield f'<text text-anchor="middle" transform="translate(14 {height:.1f}) rotate(-90)">{escape(panel.up)}</text>'
        for number, curve in enumerate(panel.curves):
            yield from self._curve(number, curve)
        yield from self._names()

    def _curve(self, number: int, curve: Curve) -> Iterator[str]:
        at = [(self._x.px(across), self._y.px(up)) for across, up in curve.points]
        kind = "ideal" if curve.ideal else f"curve c{number % len(_LIGHT)}"
        yield f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>'
        if not curve.ideal:
            yield from (f'<circle class="dot c{number % len(_LIGHT)}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at)

    def _names(self) -> Iterator[str]:
        """Each at the end of its curve, or as near as the others leave room."""
        ends = sorted(
            ((self._y.px(curve.points[-1][1]), number, curve) for number, curve in enumerate(self._panel.curves)),
            key=lambda end: end[:2],
        )
        heights = [y for y, *_ in ends]
        for at in range(1, len(heights)):
            heights[at] = max(heights[at], heights[at - 1] + _LABEL_PX)
        if heights[-1] > self._bottom:
            heights[-1] = self._bottom
            for at in range(len(heights) - 2, -1, -1):
                heights[at] = min(heights[at], heights[at + 1] - _LABEL_PX)
        for y, (_, number, curve) in zip(heights, ends, strict=True):
            kind = "" if curve.ideal else f' class="name c{number % len(_LIGHT)}"'
            yield f'<text{kind} x="{self._end + 10}" y="{y + 4:.1f}">{escape(curve.name)}</text>'


def _short(value: float) -> str:
    for factor, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"
