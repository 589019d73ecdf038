"""Makes docs/benchmarks.md from the results: `python -m benchmarks.page`. The figures stay beside it, as JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Finding, findings, spread
from benchmarks.rows import GROUPS, Group, Side
from benchmarks.table import cells, quantity, range_of

__all__ = ["FIGURES", "PAGE", "render"]

_DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES = _DOCS / "benchmarks.md", _DOCS / "benchmarks.json"

_HOW = """\
## How it was measured

`make bench` runs it again; `make bench ROW=text` runs one row, `make bench SCALE=0.1` takes a quick look.

* Each side of a row runs {pairs} times, A B A B, each time in a process of its own, forked from one that has imported
  Beam and done nothing else. A trivial pipeline runs in it first, unmeasured, so that nobody pays for Beam's first
  run.
* Wall time is from building the pipeline until its end: for us that includes the token, the delegation key, every SAS
  and record, and sealing and verifying the trail. CPU time is user and system time of that process. Memory is its
  peak above what it had before. Ratios are taken pair by pair; the median counts, and the range is in brackets.
* Both sides have the same Azurite, data, runner (FnApiRunner, which DirectRunner falls back to where there is no
  Prism) and downstream transforms, and their answers must agree: counts, sums, or what was written, line by line.
* azfs is Beam's own, unchanged, with the account key in a connection string, so that it is never slowed by sign-in.
  It speaks to Azurite over the same TLS as we do: the connection string names the endpoint, and `REQUESTS_CA_BUNDLE`
  the run's CA, which the requests library below azure-core reads. One thing is mended for it, since no write would
  end otherwise: it builds the URL of a copy's source for blob.core.windows.net whatever the connection string says;
  it is given the endpoint there.
* Round-trip time is added by a TCP relay in a process of its own (`benchmarks/delay.py`): 20 ms means 10 ms each way,
  and a round trip for each new connection, as TCP's handshake takes. It does not limit bandwidth, and knows neither
  slow start nor loss, which is kind to whoever opens many connections. The token endpoint is not delayed.
* Client, Azurite and relay share the machine's {cores} cores, so a side that gives Azurite less to do is faster for
  it, and a floor of plain GETs is what this machine can do, not what Storage can."""

_UNSCOPED = """\
The price of identity and audit is that of the same job with a session whose SAS are two static ones for whole
containers, and whose records go nowhere (`benchmarks/unscoped.py`; the package itself has no such switch)."""


def render(results: Mapping[str, Any]) -> str:
    """The page."""
    sides = {name: group["sides"] for name, group in results["groups"].items()}
    found = findings(sides)
    machine = results["machine"]
    pairs = sorted({group["pairs"] for group in results["groups"].values()})
    parts = [
        "# Benchmarks",
        "<!-- Made by `python -m benchmarks.page` from benchmarks.json. -->",
        _summary(results, found),
        _table(("", "ours", "azfs", "ratio", "must", "CPU s", "memory", ""), (_row(finding) for finding in found)),
        *_notes(found),
        _UNSCOPED,
        _HOW.format(pairs=" or ".join(map(str, pairs)), cores=machine["cores"]),
        "## The machine",
        _table(("what", "which"), machine.items()),
        "## Every side",
        "Medians, with the range in brackets. Floors are what nobody gets under.",
        _table(
            ("data", "side", "wall", "CPU s", "memory above idle"),
            (
                _side_row(group, side, sides[group.name][side.name])
                for group in GROUPS
                if group.name in sides
                for side in group.sides
            ),
        ),
    ]
    if results.get("defects"):
        parts += [
            "## What azfs gets wrong",
            "Each was reproduced in this run, by `benchmarks/defects.py`, with the versions above.",
            _table(("what", "seen"), ((defect["what"], defect["seen"]) for defect in results["defects"])),
        ]
    return "\n\n".join(parts) + "\n"


def _summary(results: Mapping[str, Any], found: Sequence[Finding]) -> str:
    verdicts = [finding.verdict for finding in found]
    counted = ", ".join(
        f"{verdicts.count(verdict)} {verdict}" for verdict in ("reached", "missed", "not yet") if verdict in verdicts
    )
    whole = results["scale"] == 1
    size = "" if whole else f" The data had {results['scale']:g} of its full size: a quick look, no result."
    taken = f"Ours against Beam's own azfs, side by side, taken on {results['taken']}."
    return f"{taken} Of what must be reached: {counted}.{size}"


def _row(finding: Finding) -> tuple[str, ...]:
    return cells(finding)


def _notes(found: Iterable[Finding]) -> list[str]:
    return [f"* {finding.row.shown}: {finding.row.note}." for finding in found if finding.row.note]


def _side_row(group: Group, side: Side, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    if "not_yet" in runs[0]:
        return group.shown, side.shown, f"not yet: {runs[0]['not_yet']}", "", ""
    wall = spread([run["wall_s"] for run in runs])
    cpu = statistics.median(run["cpu_s"] for run in runs)
    memory = statistics.median(run["peak_bytes"] - run["idle_bytes"] for run in runs)
    return group.shown, side.shown, range_of(wall, "s"), f"{cpu:.1f}", quantity(max(memory, 0), "B")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else ".local/bench/results.json")
    text = results.read_text(encoding="utf-8")
    FIGURES.write_text(text, encoding="utf-8")
    PAGE.write_text(render(json.loads(text)), encoding="utf-8")
    print(f"wrote {PAGE.name} and {FIGURES.name} below docs/")


if __name__ == "__main__":
    _main()
