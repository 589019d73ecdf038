"""Makes docs/benchmarks.md from the results: `python -m benchmarks.page`. The figures stay beside it, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_entra.launch.sampling import LONGEST_MS
from benchmarks.results import Finding, findings, spread, stolen
from benchmarks.rows import GROUPS, Group, Side
from benchmarks.table import HEADINGS, cells, limit, markdown, quantity, range_of, ratio_of, times

__all__ = ["FIGURES", "PAGE", "render"]

_DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES = _DOCS / "benchmarks.md", _DOCS / "benchmarks.json"

_HOW = """\
## How it was measured

`make bench` runs it again, `make bench ROW=text` one row, and `make bench SCALE=0.1 PAIRS=1` takes a quick look.

* **Pairs.** The sides of a row run in turn, A B A B, at least {pairs} times each, and each time in a process of its
  own, forked from one that has imported what the sides need and done nothing else. A trivial pipeline runs in it first,
  unmeasured, so that nobody pays for Beam's first run. Ratios are taken pair by pair; the median counts, and brackets
  hold the least and the most. With five pairs the true median lies within the brackets in 15 of 16 cases. What varies
  little runs less often: most floors in the first round, counts in two, starts of processes in three. What is small
  beside its noise runs more often: the two sides of the price of identity, after the others have had their rounds.
* **Wall time** is from building the pipeline until its end: for ours that includes the token, the delegation key, every
  SAS and record, and sealing the trail. **CPU time** is user and system time of that process and those it started.
  **Memory** is the highest resident memory above what the process had before, when it had run one pipeline and idled.
* **The same on both sides:** Azurite, data, runner (FnApiRunner, which DirectRunner falls back to where there is no
  Prism) and downstream transforms. Answers must agree: counts, sums, or what was written, line by line in the first
  round and by size in the others.
* **azfs** is Beam's own, unchanged, with the account key in a connection string, so that it is never slowed by sign-in.
  It speaks to Azurite over the same TLS as ours: the connection string names the endpoint, and `REQUESTS_CA_BUNDLE` the
  run's CA, which the requests library below azure-core reads. One thing is mended for it, since no write would end
  otherwise: it builds the URL of a copy's source for blob.core.windows.net whatever the connection string says; it is
  given the endpoint there.
* **Round-trip time** is added by a TCP relay in a process of its own (`benchmarks/delay.py`): 20 ms means 10 ms each
  way, and a round trip for each new connection, as TCP's handshake takes. It does not limit bandwidth, and knows
  neither slow start nor loss, which is kind to whoever opens many connections. The token endpoint is not delayed.
* **One machine.** Client, Azurite and relay share {cores} cores, so a side that gives Azurite less to do is faster for
  it, and a floor of plain GETs is what this machine can do, not what Storage can. Azurite computes the MD5 of each
  range of up to 4 MiB that it gives, and a CRC-64, slowly, of a block that comes without an MD5; ours asks for longer
  ranges, as the floor does, and sends the MD5 of each block. Storage itself would gain from neither.
* **Beam's sampling thread** looks every so often at which step is at work, and a bundle's end waits for its next look:
  by default for up to 0.2 s, at random. A `ScopedPipeline` has it look every {sampled} ms, which takes some 4 % off
  jobs of one to three seconds, and less off longer ones; azfs and the floors have it as Beam has it."""

_STOLEN = """\
* **A virtual machine** has its CPUs when its host gives them. Of the time in which they had work, the host kept {part}
  (`steal` in /proc/stat); each side's part is below. It slows both sides down, not always alike, and limits in seconds
  know nothing of it. Other work on the same machine is not in it: there should be none."""

_EVERY_SIDE = """\
Medians, with the least and the most in brackets. A floor is what nobody gets under. Stolen is what the host kept."""


def render(results: Mapping[str, Any]) -> str:
    """The page."""
    sides = {name: group["sides"] for name, group in results["groups"].items()}
    found = findings(sides)
    machine = results["machine"]
    pairs = min(group["pairs"] for group in results["groups"].values())
    how = _HOW.format(pairs=pairs, cores=machine["cores"], sampled=LONGEST_MS)
    kept = stolen([run for group in sides.values() for runs in group.values() for run in runs])
    if kept is not None:
        how += "\n" + _STOLEN.format(part=f"{kept:.1%}")
    parts = [
        "# Benchmarks",
        "<!-- Made by `make bench-page` from benchmarks.json. -->",
        _summary(results, found),
        markdown(HEADINGS, map(_cells, found)),
        "## Row by row",
        *map(_reading, found),
        how,
        "## The machine",
        markdown(("", ""), machine.items()),
        "## Every side",
        _EVERY_SIDE,
        *_sides(sides),
        *_defects(results.get("defects", ())),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(results: Mapping[str, Any], found: Sequence[Finding]) -> str:
    reached, missed = ([finding for finding in found if finding.verdict == word] for word in ("reached", "missed"))
    text = (
        f"Ours against `azfs` of Apache Beam {results['machine'].get('apache-beam', '')}, side by side on one machine,"
        f" taken on {results['taken']}: of {len(reached) + len(missed)} rows that have something to reach,"
        f" {len(reached)} do."
    )
    if missed:
        text += f" Missed: {'; '.join(finding.row.shown for finding in missed)}."
    taken = results["groups"]
    again = [(group.shown, count) for group in GROUPS if (count := taken.get(group.name, {}).get("again", 0))]
    if again:
        listed = "; ".join(f"{shown} ({count} x)" for shown, count in again)
        text += f" Not all is of one run. Run again after it, of which the last run counts: {listed}."
    if results["scale"] != 1:
        text += f" **The data had {results['scale']:g} of its full size: a quick look, no result.**"
    return text


def _cells(finding: Finding) -> tuple[str, ...]:
    what, ours, theirs, ratio, least, verdict = cells(finding)
    return what, ours, theirs, f"**{ratio}**" if ratio else "", least, "**missed**" if verdict == "missed" else verdict


def _reading(finding: Finding) -> str:
    row = finding.row
    return f"**{row.shown[0].upper()}{row.shown[1:]}.** {' '.join([row.reading, *_told(finding)])}"


def _told(finding: Finding) -> Iterable[str]:
    """What the figures say, in words."""
    row, ours, theirs = finding.row, finding.ours, finding.theirs
    if theirs is None:
        wanted = limit(finding)
        yield f"That is {quantity(ours.value.median, row.unit)}{f'; {wanted} is wanted' if wanted else ''}."
        if finding.floor is not None:
            yield f"The floor took {range_of(finding.floor, row.unit)}."
        return
    if row.most is not None and row.measure == "wall":
        yield _price(finding)
        return
    if row.measure != "peak":
        cpu = finding.cpu_ratio
        assert cpu is not None  # noqa: S101 - it has another side
        text = f"For the same work ours takes {cpu.median:.0%} of the CPU time of azfs"
        if finding.alike:
            text += (
                f", and {quantity(max(ours.memory.median, 0), 'B')} of memory above the idle worker"
                f" against {quantity(max(theirs.memory.median, 0), 'B')}"
            )
        yield f"{text}."
    if finding.ceiling is not None:
        yield f"The floor would be {times(finding.ceiling)} azfs."
    if finding.verdict == "missed":
        yield f"**It misses what it must reach**, {limit(finding)}: it has {ratio_of(finding)}."
        if finding.ceiling is not None and row.least is not None and finding.ceiling < row.least:
            yield "Nobody reaches that on this machine, since the floor does not."


def _price(finding: Finding) -> str:
    """What a limited ratio comes to, and how sure that is."""
    ratio, sure, cpu, row_limit = finding.ratio, finding.sure, finding.cpu_ratio, finding.row.most
    assert ratio is not None and cpu is not None  # noqa: S101, PT018 - it has another side
    how_sure = (
        f"the true median lies between {sure[0] - 1:+.1%} and {sure[1] - 1:+.1%} with at least 93 % (a sign test)"
        if sure
        else "too few to say how sure that is"
    )
    text = (
        f"It comes to {ratio.median - 1:+.1%} of wall time, the median of {finding.pairs} pairs; {how_sure}."
        f" In CPU seconds, which other work on the machine disturbs less, it is {cpu.median - 1:+.1%}"
        f" ({cpu.low - 1:+.1%} to {cpu.high - 1:+.1%})."
    )
    if sure and row_limit is not None and sure[0] < row_limit < sure[1]:
        text += " The limit lies in between: these pairs do not settle it."
    return text + (f" **It misses what it must keep within**, {limit(finding)}." if finding.verdict == "missed" else "")


def _sides(runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Iterable[str]:
    for group in GROUPS:
        if group.name in runs:
            rows = [_side(side, runs[group.name][side.name]) for side in group.sides]
            yield markdown((_title(group), "wall", "CPU", "memory above idle", "stolen", "runs"), rows)


def _title(group: Group) -> str:
    return f"{group.shown[0].upper()}{group.shown[1:]}"


def _side(side: Side, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    memory = spread([max(run["peak_bytes"] - run["idle_bytes"], 0) for run in runs])
    kept = stolen(runs)
    return (
        side.shown,
        range_of(spread([run["wall_s"] for run in runs]), "s"),
        range_of(spread([run["cpu_s"] for run in runs]), "s"),
        range_of(memory, "B"),
        "" if kept is None else f"{kept:.1%}",
        str(len(runs)),
    )


def _defects(found: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    if found:
        yield "## What azfs gets wrong"
        yield "Each was reproduced in this run, by `benchmarks/defects.py`, with the versions above."
        yield markdown(("what", "seen"), ((defect["what"], defect["seen"]) for defect in found))


def _main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else ".local/bench/results.json")
    text = results.read_text(encoding="utf-8")
    FIGURES.write_text(text, encoding="utf-8")
    PAGE.write_text(render(json.loads(text)), encoding="utf-8")
    print(f"wrote {PAGE.name} and {FIGURES.name} below docs/")


if __name__ == "__main__":
    _main()
