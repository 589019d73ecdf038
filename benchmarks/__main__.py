"""`make bench`: run the rows, print the table, write the results."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.defects import find_defects
from benchmarks.machine import facts
from benchmarks.results import findings
from benchmarks.rows import FEWEST_PAIRS, GROUPS, groups_of
from benchmarks.run import SideFailed, run_group
from benchmarks.table import HEADINGS, cells
from benchmarks.timing import TimeLeft

_WIDE = 300


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--row", "rows", multiple=True, metavar="NAME", help="Only this row and those that share its data.")
@click.option("--pairs", default=FEWEST_PAIRS, show_default=True, help="Rounds; fewer than five are no result.")
@click.option("--scale", default=1.0, show_default=True, help="Size of the data; below 1 for a quick look.")
@click.option("--list", "only_list", is_flag=True, help="Say which rows there are.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".local", "bench", "results.json"),
    show_default=True,
    help="Where the figures go; rows that were not run keep theirs, if taken at the same scale.",
)
def main(rows: tuple[str, ...], pairs: int, scale: float, only_list: bool, results: Path) -> None:
    """Run ours and Beam's azfs side by side, each time in a process of its own, A B A B."""
    if only_list:
        for group in GROUPS:
            for row in group.rows:
                click.echo(f"{row.name:16} {row.shown}")
        return
    try:
        chosen = groups_of(rows)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else Azurite and the sides would run on
    began = time.monotonic()
    console = Console(stderr=True, highlight=False)
    known = _load(results, scale)
    left = TimeLeft(chosen, share=scale * pairs / FEWEST_PAIRS)
    for group in chosen:
        console.print(f"[bold]{group.shown}[/bold] ({left})")
        try:
            runs = run_group(group, pairs=pairs, scale=scale, say=lambda line: console.print(line, style="dim"))
        except SideFailed as failure:
            console.print(str(failure), style="red", markup=False)
            sys.exit(1)
        left.done(group)
        before = known["groups"].get(group.name) if rows else None
        again = before.get("again", 0) + 1 if before else 0  # a figure that was taken until it pleased is none
        known["groups"][group.name] = {"pairs": pairs, "again": again, "sides": runs}
        _save(results, known)
    if not rows:
        console.print("[bold]what azfs gets wrong[/bold]")
        known["defects"] = [asdict(defect) for defect in find_defects()]
        _save(results, known)
    Console(width=None if sys.stdout.isatty() else _WIDE).print(_table(known, {group.name for group in chosen}))
    click.echo(f"{time.monotonic() - began:.0f} s; {results}" + ("" if scale == 1 else f"; at {scale:g} of the size"))


def _load(results: Path, scale: float) -> dict[str, Any]:
    fresh = {"taken": "", "scale": scale, "machine": facts(), "groups": {}, "defects": []}
    if not results.exists():
        return fresh
    kept: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
    return kept if kept["scale"] == scale and kept["machine"] == fresh["machine"] else fresh


def _save(results: Path, known: dict[str, Any]) -> None:
    known["taken"] = datetime.now(UTC).strftime("%Y-%m-%d")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _table(known: dict[str, Any], names: set[str]) -> Table:
    table = Table(*HEADINGS, box=box.SIMPLE)
    style = {"reached": "green", "missed": "red"}
    sides = {name: group["sides"] for name, group in known["groups"].items() if name in names}
    for finding in findings(sides):
        table.add_row(*cells(finding), style=style.get(finding.verdict, ""))
    return table


if __name__ == "__main__":
    main()
