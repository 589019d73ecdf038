"""Makes docs/scaling.md and its pictures from the figures: `python -m benchmarks.scaling.page`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling.growth import AXES, COSTS, MOST_SLOPE, Axis, Growth, growth_of
from benchmarks.scaling.paper import on_paper
from benchmarks.scaling.plot import Curve, Panel, draw
from benchmarks.table import markdown, quantity

__all__ = ["FIGURES", "HEADINGS", "PAGE", "cells", "pictures", "render"]

_DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, FIGURES = _DOCS / "scaling.md", _DOCS / "scaling.json"
HEADINGS = ("cost", "smallest job", "largest job", "for one more", "slope", "steepest step", "")
_MB = 1e6

Figures = Mapping[str, Any]


def render(figures: Figures) -> str:
    """The page."""
    grown = {axis.name: [growth_of(axis, cost, figures["axes"][axis.name]) for cost in COSTS] for axis in AXES}
    parts = [
        "# Growth",
        "<!-- Made by `make scaling-page` from scaling.json. -->",
        _summary(figures, [growth for of_axis in grown.values() for growth in of_axis]),
        *(_workers(figures) if _has_workers(figures) else ()),
    ]
    for axis in AXES:
        parts += [
            f"## {axis.shown}",
            axis.reading,
            f"![How costs grow with {axis.shown.lower()}](scaling-{axis.name}.svg)",
            markdown(HEADINGS, map(cells, grown[axis.name])),
        ]
    parts += [*on_paper(figures), *_how(figures)]
    return "\n\n".join(parts) + "\n"


def pictures(figures: Figures) -> dict[str, str]:
    """File name to SVG."""
    drawn = {f"scaling-{axis.name}.svg": _picture(axis, figures["axes"][axis.name]) for axis in AXES}
    return drawn | ({"scaling-workers.svg": _worker_picture(figures)} if _has_workers(figures) else {})


# What grows


def cells(growth: Growth) -> tuple[str, ...]:
    """One line of a table, under `HEADINGS`."""
    cost = growth.cost
    unit = growth.axis.unit
    each, per = (growth.marginal * _MB, "MB") if unit == "B" else (growth.marginal, unit.removesuffix("s"))
    return (
        cost.shown,
        _amount(growth.values[0], cost.unit),
        _amount(growth.values[-1], cost.unit),
        "" if cost.constant else f"{_amount(each, cost.unit)} a {per}",
        f"{growth.slope:.2f}",
        f"{growth.steepest:.2f}",
        f"**{growth.verdict}**" if growth.verdict == "worse" else growth.verdict,
    )


def _amount(value: float, unit: str) -> str:
    if unit:
        return quantity(value, unit)
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _summary(figures: Figures, grown: Sequence[Growth]) -> str:
    worse = [growth for growth in grown if growth.verdict == "worse"]
    held = [growth for growth in grown if not growth.cost.constant]
    text = (
        f"What identity and audit cost as jobs grow, measured on one machine on {figures['taken']}. A slope is that"
        " of the straight line through the points, both scales logarithmic: 1 is linear, 0 constant. "
    )
    if worse:
        named = "; ".join(f"{growth.cost.shown} with {growth.axis.shown.lower()}" for growth in worse)
        text += f"**Worse than linear, or not constant where it must be: {named}.**"
    else:
        steepest = max(held, key=_bound)
        text += (
            f"Of {len(grown)} costs along {len(AXES)} axes all are linear or better, none above {_bound(steepest):.2f}"
            f" ({MOST_SLOPE:g} is the limit that a test holds them to), and a process asks for a token once, whatever"
            " it does."
        )
    if not figures["full"]:
        text += " **The jobs had a hundredth of their full size: a quick look, no result.**"
    return text


def _bound(growth: Growth) -> float:
    return growth.steepest if growth.cost.counted else growth.slope


def _picture(axis: Axis, points: Sequence[Mapping[str, Any]]) -> str:
    costs = {cost.name: cost for cost in COSTS}
    factor = _MB if axis.unit == "B" else 1
    across = "MB" if axis.unit == "B" else axis.unit
    at = [point["at"] / factor for point in points]

    def curve(name: str, shown: str, divisor: float = 1) -> Curve:
        values = [costs[name].of(point) / divisor for point in points]
        return Curve(name=shown, points=list(zip(at, values, strict=True)))

    def panel(title: str, up: str, *curves: Curve) -> Panel:
        end = curves[0].points[-1][1]
        ideal = Curve(name="linear", points=[(x, end * x / at[-1]) for x in (at[0], at[-1])], ideal=True)
        return Panel(title=title, across=across, up=up, curves=[*curves, ideal])

    counts = panel(
        "How many",
        "number",
        curve("records", "audit records"),
        curve("requests", "storage requests"),
        curve("sas", "SAS"),
        curve("appends", "trail appends"),
        curve("tokens", "token requests"),
    )
    sizes = panel("How much", "MB", curve("audit", "audit", _MB), curve("memory", "memory", _MB))
    return draw([counts, sizes], describe=f"Costs of a job against {axis.shown.lower()}, both scales logarithmic")


# Worker processes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workers:
    """So many worker processes.

    Attributes:
        boot_s: A job of one line, from launch to end.
        full_s: The job.
        records: That it has.
        rate: Records a second, of what the job takes longer than one line.
        tokens: Token requests.
    """

    boot_s: float
    full_s: float
    records: float
    rate: float
    tokens: float


def _has_workers(figures: Figures) -> bool:
    """Whether all numbers of them were run; in a quick look they are not."""
    return set(figures["workers"]) >= {"0", "1", "2"}


def _of_workers(figures: Figures) -> dict[int, _Workers]:
    found = {}
    for processes, runs in figures["workers"].items():
        boot_s, full_s = (statistics.median(run["job_s"] for run in runs[job]) for job in ("boot", "full"))
        records = runs["full"][0]["units"]
        found[int(processes)] = _Workers(
            boot_s=boot_s,
            full_s=full_s,
            records=records,
            rate=records / (full_s - boot_s),
            tokens=statistics.median(run["token_requests"] for run in runs["full"]),
        )
    return found


def _workers(figures: Figures) -> Iterable[str]:
    found = _of_workers(figures)
    one, two, cores = found[1], found[2], figures["machine"]["cores"]
    yield "## Worker processes"
    yield (
        f"{one.records:,.0f} records of JSON are parsed one by one and summed per key, by DirectRunner with worker"
        " processes of its own (`--direct_running_mode=multi_processing`), and with none, in the launcher's process."
    )
    yield "![Records a second with one and two worker processes](scaling-workers.svg)"
    rows = [
        (
            str(processes) if processes else "none: the launcher's",
            quantity(each.boot_s, "s"),
            quantity(each.full_s, "s"),
            quantity(each.rate, "records/s"),
            f"{each.tokens:g}",
        )
        for processes, each in sorted(found.items())
    ]
    yield markdown(("worker processes", "a job of one line", "the job", "records a second", "token requests"), rows)
    yield (
        f"Two workers do {two.rate / one.rate:.2f} times what one does. Launcher, workers and Azurite share {cores}"
        f" cores here. Booting costs {quantity(one.boot_s - found[0].boot_s, 's')} with one worker and"
        f" {quantity(two.boot_s - found[0].boot_s, 's')} with two, which is Python importing Beam; records a second"
        " are of the time that the job takes longer than a job of one line. The launcher has a session of its own,"
        " so that a job with two workers asks for three tokens."
    )


def _worker_picture(figures: Figures) -> str:
    found = _of_workers(figures)
    rates = [(float(processes), found[processes].rate / 1e3) for processes in (1, 2)]
    ideal = [(1.0, rates[0][1]), (2.0, 2 * rates[0][1])]
    panel = Panel(
        title="Records a second",
        across="worker processes",
        up="thousand records/s",
        curves=[Curve(name="measured", points=rates), Curve(name="twice as many", points=ideal, ideal=True)],
    )
    return draw([panel], describe="Records a second with one and two worker processes")


def _how(figures: Figures) -> Iterable[str]:
    machine = figures["machine"]
    yield "## How it was measured"
    yield (
        "`make bench-scaling` runs it again, in less than a quarter of an hour, and `make scaling-page` makes this"
        " page of its figures. Each job runs once, in a process of its own that has run a trivial pipeline before,"
        " over Azurite and the local tenant; with worker processes it runs some times, and the median counts.\n\n"
        "* Token requests are counted by the tenant; requests to Storage where they leave the process, each attempt;"
        " SAS, records and bytes in the trail that was sealed. They are the same in each run, but for appends to the"
        " trail and what these bring with them: how many records go in one append depends on how long an append"
        " takes. Here it takes a millisecond or two. Over a network it takes longer, and there are fewer.\n"
        "* Memory is the process's whole resident memory at its highest, the sealing included, CPU time its own,"
        " without Azurite's.\n"
        "* The steepest step must keep within the limit where a cost is counted; where it is timed or sampled, the"
        f" line.\n* The machine: {machine['processor']}, {machine['cores']} cores, {machine['memory']},"
        f" {machine['system']}, Python {machine['python']}, Apache Beam {machine['apache-beam']}, Azurite"
        f" {machine['azurite']}."
    )


def _main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else ".local/bench/scaling.json")
    text = results.read_text(encoding="utf-8")
    figures = json.loads(text)
    FIGURES.write_text(text, encoding="utf-8")
    PAGE.write_text(render(figures), encoding="utf-8")
    for name, drawn in pictures(figures).items():
        (_DOCS / name).write_text(drawn, encoding="utf-8")
    print(f"wrote {PAGE.name}, {FIGURES.name} and the pictures below docs/")


if __name__ == "__main__":
    _main()
