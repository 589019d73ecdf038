"""On paper: a petabyte read and written by a thousand workers, from unit costs that were measured here.

What one more file, one more byte and one more process cost is taken from the largest jobs of each axis; all else below
is arithmetic. Nothing here was run at that size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.limits import (
    ACCOUNT_EGRESS,
    ACCOUNT_INGRESS,
    ACCOUNT_REQUESTS,
    APPEND_BLOB_REQUESTS,
    TOKEN_REQUESTS,
    Limit,
)

__all__ = ["SMALL_BYTES", "Demand", "Job", "Load", "Units", "demands", "first_to_break", "hours_at_limits"]

SMALL_BYTES = 512 << 10  # a blob of up to this is one request, in a pack
_ROLLED_AT = 45_000  # blocks
_PUTS = ("PutBlock", "PutBlockList")
_GETS = ("GetBlob", "GetBlobProperties")

Point = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The job.

    Attributes:
        workers: Worker processes.
        read_bytes: In all; as much is written.
        blob_bytes: Of each blob that is read.
        start_s: Within this all workers start.
        token_life_s: Of an access token; a new one is asked for when a fifth of it is left.
    """

    workers: int = 1_000
    read_bytes: float = 1e15
    blob_bytes: float = 1e9
    start_s: float = 60
    token_life_s: float = 3_600

    @property
    def blobs(self) -> float:
        """How many are read."""
        return self.read_bytes / self.blob_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """What one more of something costs a worker.

    Attributes:
        seconds: Of its CPU time, here, its share of the sealing included.
        gets, puts, appends: Requests.
        records: In the trail.
        audit_bytes: Of them.
    """

    seconds: float
    gets: float
    puts: float
    appends: float
    records: float
    audit_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Unit costs, from the figures.

    Attributes:
        blob: One more small blob that is read.
        byte: One more byte that is read and written, of large blobs.
        tokens: Requests of a process, of one token life.
        keys: Delegation keys of a process.
        verify_s: To verify one record when sealing.
        staged_bytes: That the commit step holds for a block.
    """

    blob: Each
    byte: Each
    tokens: float
    keys: float
    verify_s: float
    staged_bytes: float

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Units:
        """From docs/scaling.json, or what looks like it."""
        axes = figures["axes"]
        last = axes["files"][-1]
        records = sum(last["records"].values())
        return cls(
            blob=_marginal(axes["files"]),
            byte=_marginal(axes["bytes"]),
            tokens=float(last["token_requests"]),
            keys=float(last["requests"].get("GetUserDelegationKey", 0)),
            verify_s=last["seal_s"] / records,
            staged_bytes=figures["staged"]["bytes"] / figures["staged"]["blocks"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the job asks of one thing.

    Attributes:
        of: Of what, for people.
        rate: A second, while all workers are at full speed; in the limit's unit.
        total: In the whole job; 0 where only the rate counts.
        limit: What is published.
        setting: What of ours, or of the job's, moves it.
    """

    of: str
    rate: float
    total: float
    limit: Limit
    setting: str

    @property
    def share(self) -> float:
        """Of the limit; above 1 it breaks."""
        return self.rate / self.limit.value

    @property
    def hours(self) -> float:
        """That the job takes at least, if it keeps within the limit."""
        return self.total / self.limit.value / 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The job as a whole.

    Attributes:
        hours: At full speed: each worker has a core, and waits for nothing; no service has a limit.
        gets, puts, appends, records, audit_bytes: In all.
        verify_hours: That sealing takes to verify the trail, in one process.
        commit_bytes: That the commit step holds.
        segment_hours: Until a worker's segment is continued in another, for its blocks.
    """

    hours: float
    gets: float
    puts: float
    appends: float
    records: float
    audit_bytes: float
    verify_hours: float
    commit_bytes: float
    segment_hours: float

    @classmethod
    def of(cls, job: Job, units: Units) -> Load:
        """What it comes to."""

        def total(per_blob: float, per_byte: float) -> float:
            return job.blobs * per_blob + job.read_bytes * per_byte

        blob, byte = units.blob, units.byte
        # A small blob is read by one request, whatever its length; its bytes cost time, and puts when written.
        small = job.blob_bytes <= SMALL_BYTES
        get_bytes = 0.0 if small else byte.gets
        share = byte.puts / (byte.puts + byte.gets) if small else 1.0  # of what a byte costs, that is for writing it
        seconds = total(blob.seconds, byte.seconds)
        appends = total(blob.appends, byte.appends * share)
        records = total(blob.records, byte.records * share)
        puts = total(0, byte.puts)
        hours = seconds / job.workers / 3_600
        return cls(
            hours=hours,
            gets=total(blob.gets, get_bytes),
            puts=puts,
            appends=appends,
            records=records,
            audit_bytes=total(blob.audit_bytes, byte.audit_bytes * share),
            verify_hours=records * units.verify_s / 3_600,
            commit_bytes=puts * units.staged_bytes,
            segment_hours=_ROLLED_AT / (appends / job.workers / hours),
        )


def demands(job: Job, units: Units) -> list[Demand]:
    """What the job asks of everything that has a published limit, each account used for one thing."""
    load = Load.of(job, units)
    seconds = load.hours * 3_600

    def demand(of: str, total: float, limit: Limit, setting: str) -> Demand:
        return Demand(of=of, rate=total / seconds, total=total, limit=limit, setting=setting)

    elsewhere = "more accounts, each with its own path and `ReadFromBlob`"
    outward = "more accounts, each with its own prefix and `WriteToBlob`; a format that compresses"
    return [
        demand("read from the account of the input", job.read_bytes, ACCOUNT_EGRESS, elsewhere),
        demand("written to the account of the output", job.read_bytes, ACCOUNT_INGRESS, outward),
        demand(
            "requests to the account of the input",
            load.gets,
            ACCOUNT_REQUESTS,
            "larger blobs; `block_bytes` and `prefetch_bytes` of `ReadFromBlob`: a request has eight blocks, and a"
            f" quarter of what is fetched ahead at most; {elsewhere}",
        ),
        demand(
            "requests to the account of the output",
            load.puts,
            ACCOUNT_REQUESTS,
            f"`block_bytes` of `WriteToBlob`; {outward}",
        ),
        demand(
            "appends to the account of the audit",
            load.appends,
            ACCOUNT_REQUESTS,
            "`[audit] path` in an account of its own; longer requests, by `block_bytes` on both sides; larger blobs."
            " Where appends take longer, more records go in each",
        ),
        demand(
            "bytes to the account of the audit",
            load.audit_bytes,
            ACCOUNT_INGRESS,
            "longer requests, by `block_bytes` on both sides; larger blobs",
        ),
        Demand(
            of="appends to the segment of one worker",
            rate=load.appends / seconds / job.workers,
            total=0,
            limit=APPEND_BLOB_REQUESTS,
            setting="none is needed: a process has one append under way at a time",
        ),
        Demand(
            of="token requests, while the workers start",
            rate=job.workers * units.tokens / job.start_s,
            total=0,
            limit=TOKEN_REQUESTS,
            setting="fewer and larger worker processes, started over a longer time; a token's life is the tenant's,"
            " by a token lifetime policy",
        ),
        Demand(
            of="token requests, later on",
            rate=job.workers * units.tokens / (0.8 * job.token_life_s),
            total=0,
            limit=TOKEN_REQUESTS,
            setting="none is needed: each process asks at a time of its own",
        ),
        Demand(
            of="delegation keys, while the workers start",
            rate=job.workers * units.keys / job.start_s,
            total=0,
            limit=ACCOUNT_REQUESTS,
            setting="fewer and larger worker processes; a key lives as long as the job, up to 7 days",
        ),
    ]


def first_to_break(asked: Sequence[Demand]) -> Demand:
    """The one that asks for the most of its limit; it breaks if that is more than all."""
    return max(asked, key=lambda demand: demand.share)


def hours_at_limits(job: Job, units: Units) -> float:
    """How long the job takes at least, with one account for the input, one for the output and one for the audit."""
    return max([Load.of(job, units).hours, *(demand.hours for demand in demands(job, units))])


def _marginal(points: Sequence[Point]) -> Each:
    before, last = points[-2:]
    more = last["at"] - before["at"]

    def each(of: float, so_far: float) -> float:
        return (of - so_far) / float(more)

    def requests(*operations: str) -> float:
        counts = [float(sum(point["requests"].get(name, 0) for name in operations)) for point in (last, before)]
        return each(counts[0], counts[1])

    return Each(
        seconds=each(last["cpu_s"], before["cpu_s"]),
        gets=requests(*_GETS),
        puts=requests(*_PUTS),
        appends=requests("AppendBlock"),
        records=each(*(sum(point["records"].values()) for point in (last, before))),
        audit_bytes=each(last["audit_bytes"], before["audit_bytes"]),
    )
