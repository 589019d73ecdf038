"""`make bench-scaling`: run the jobs, print how costs grow, write the figures."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.run import SideFailed
from benchmarks.scaling.growth import AXES, COSTS, growth_of
from benchmarks.scaling.measure import FULL, QUICK, measure
from benchmarks.scaling.page import HEADINGS, cells

_WIDE = 200


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Jobs of a hundredth of the size: no result, but all of it has run.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".local", "bench", "scaling.json"),
    show_default=True,
    help="Where the figures go.",
)
def main(quick: bool, results: Path) -> None:
    """Run jobs of growing size, and see how what they cost grows."""
    began = time.monotonic()
    console = Console(stderr=True, highlight=False)
    try:
        figures = measure(QUICK if quick else FULL, lambda line: console.print(line, style="dim", markup=False))
    except SideFailed as failure:
        console.print(str(failure), style="red", markup=False)
        sys.exit(1)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table = Table("", *HEADINGS, box=box.SIMPLE)
    for axis in AXES:
        for cost in COSTS:
            growth = growth_of(axis, cost, figures["axes"][axis.name])
            style = "red" if growth.verdict == "worse" else ""
            table.add_row(axis.name, *(cell.replace("**", "") for cell in cells(growth)), style=style)
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)
    click.echo(f"{time.monotonic() - began:.0f} s; {results}")


if __name__ == "__main__":
    main()
