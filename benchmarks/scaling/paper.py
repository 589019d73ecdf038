"""What the petabyte on paper comes to, in words and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from beam_entra.io.commit import MOST_PLANNED
from benchmarks.scaling.limits import LIMITS, Limit
from benchmarks.scaling.petabyte import SMALL_BYTES, Demand, Job, Load, Units, demands, first_to_break, hours_at_limits
from benchmarks.table import markdown, quantity

__all__ = ["on_paper"]

_SIZES = (1e4, 1e6, 1e8, 1e9, 1e10)  # bytes of a blob
_PAGE_BLOBS = 5_000  # of a listing


def on_paper(figures: Mapping[str, Any]) -> Iterator[str]:
    """The petabyte's part of the page."""
    units, job = Units.of(figures), Job()
    load, asked = Load.of(job, units), demands(job, units)
    first = first_to_break(asked)
    yield "## A petabyte with a thousand workers, on paper"
    yield (
        "Nobody ran this. It is what the unit costs above come to for a job that reads"
        f" {quantity(job.read_bytes, 'B')} in blobs of {quantity(job.blob_bytes, 'B')} and writes as much, with one"
        f" account for the input, one for the output and one for the audit, by {job.workers:,} worker processes,"
        " each with a core of its own and the CPU time that one took here, waiting for nothing:"
        f" {quantity(load.hours, 'h')} at full speed, the most that they could ask for. Limits are those published"
        " for the larger regions; what the smaller ones have is in brackets."
    )
    yield markdown(
        ("what is asked of the services", "at full speed", "published limit", "share", "what moves it"),
        map(_asked_cells, sorted(asked, key=lambda demand: -demand.share)),
    )
    yield _breaks(job, units, first)
    yield _alone(job, load)
    yield "### The size of the blobs decides"
    yield "The same petabyte in blobs of other sizes, all settings as they are:"
    yield markdown(
        ("a blob", "at full speed", "requests", "audit records", "audit", "the first limit", "share", "within limits"),
        (_sized(Job(blob_bytes=size), units) for size in _SIZES),
    )
    audit = [demand for size in _SIZES for demand in demands(Job(blob_bytes=size), units) if "audit" in demand.of]
    busiest = first_to_break(audit)
    yield (
        "The last column is how long the job takes with one account of each kind, however many workers there are."
        f" Blobs of up to {SMALL_BYTES >> 10} KiB cost a request and two audit records each, so what small blobs"
        " hold is best brought together before it becomes a petabyte. One job's trail is in one account, and no"
        f" setting spreads it: of what that account takes, the jobs of this table ask for {_share(busiest)} at most."
    )
    yield "### The limits"
    yield markdown(
        ("limit", "larger regions", "elsewhere", "published in", ""),
        (
            (limit.shown, _limited(limit.value, limit), _limited(limit.elsewhere, limit), limit.source, limit.remark)
            for limit in LIMITS
        ),
    )
    yield (
        "No limit is published for delegation keys besides the account's: they are requests to it. Where a managed"
        " identity gives the token, the machine's own metadata service is asked, which limits each machine by itself."
    )


def _asked_cells(demand: Demand) -> tuple[str, ...]:
    limit = demand.limit
    most = _limited(limit.value, limit)
    if limit.elsewhere != limit.value:
        most += f" ({_limited(limit.elsewhere, limit)})"
    share = f"**{_share(demand)}**" if demand.share > 1 else _share(demand)
    return demand.of, _limited(demand.rate, limit), most, share, demand.setting


def _share(demand: Demand) -> str:
    return f"{demand.share:.1f} x" if demand.share > 1 else f"{100 * demand.share:.2g}%"


def _limited(value: float, limit: Limit) -> str:
    value, unit = (value * 8 / 1e9, "Gbit/s") if limit.unit == "B/s" else (value, limit.unit)
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _breaks(job: Job, units: Units, first: Demand) -> str:
    hours = hours_at_limits(job, units)
    if first.share <= 1:
        return f"Nothing breaks. Nearest to its limit is what is {first.of}: {first.share:.0%} of it."
    return (
        f"**What breaks first:** {first.of}, {first.share:.1f} times what one account gives. Storage answers 503"
        f" then, the workers wait and try again, and the job takes {quantity(hours, 'h')} in place of"
        f" {quantity(Load.of(job, units).hours, 'h')}, as long as {first.limit.value / first.rate * job.workers:,.0f}"
        f" workers would take. What moves it: {first.setting}."
    )


def _alone(job: Job, load: Load) -> str:
    """What one process does for all."""
    matching = (
        f"Matching lists {quantity(job.blobs, 'blobs')} in {quantity(job.blobs / _PAGE_BLOBS, 'requests')}, one"
        " after the other, in one worker. What spreads it: several patterns, as the input of `ReadAllFromBlob`."
    )
    longer = ", **longer than the job**" if load.verify_hours > load.hours else ""
    sealing = (
        f"Sealing verifies {quantity(load.records, 'records')}, {quantity(load.audit_bytes, 'B')}, in the launcher:"
        f" {quantity(load.verify_hours, 'h')} of one CPU at the pace of this machine{longer}. Each CPU that the"
        f" launcher has takes the segments of other workers, 8 at most, which would need"
        f" {quantity(load.verify_hours / 8, 'h')}."
        " What makes it less: longer requests, by `block_bytes` on both sides, since each has one record; larger blobs."
    )
    committing = (
        f"The commit step holds the names of all blocks, {quantity(load.puts, 'blocks')} in"
        f" {quantity(load.commit_bytes, 'B')}, in the one worker that it runs on. What makes it less: `block_bytes` of"
        f" `WriteToBlob`, or several sinks. Beyond {MOST_PLANNED:,} blocks the marker"
        " `_COMMITTING` does not name them any more, so that a commit that dies is not finished by the next attempt,"
        " which ends with `BlobExists`: the job is launched again, to another prefix."
    )
    return (
        "Three steps are one process's, however many workers there are, and grow with the job:\n\n"
        f"* {matching}\n* {sealing}\n* {committing}\n\n"
        f"A worker's segment is continued in another after {quantity(load.segment_hours, 'h')}, at 45,000 of its 50,000"
        " blocks, if it has not become long or old before."
    )


def _sized(job: Job, units: Units) -> tuple[str, ...]:
    load, first = Load.of(job, units), first_to_break(demands(job, units))
    return (
        quantity(job.blob_bytes, "B"),
        _long(load.hours),
        quantity(load.gets + load.puts + load.appends, "").strip(),
        quantity(load.records, "").strip(),
        quantity(load.audit_bytes, "B"),
        first.of,
        _share(first),
        _long(hours_at_limits(job, units)),
    )


def _long(hours: float) -> str:
    return quantity(hours, "h") if hours < 100 else quantity(hours / 24, "days")
