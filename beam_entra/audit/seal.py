"""Sealing: the launcher's last line, which fixes every segment's length and head.

What was sealed while the job was running is in interim.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from beam_entra.audit.interim import Interims, Said, read_interims
from beam_entra.audit.record import SEAL_NAME, Sealed, digest_of, explain
from beam_entra.audit.segments import Segments, broken, check_segments
from beam_entra.audit.store import APPEND_BYTES, SegmentStore, TrailReader
from beam_entra.clock import Clock
from beam_entra.errors import AuditError

__all__ = ["Seal", "check_unsealed", "seal", "write_seal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A written seal.

    Attributes:
        record: What it says.
        digest: SHA-256 of its line, in hex. Whoever can rewrite the whole trail can seal it again: keep this elsewhere
            (a ticket, another tenant, a signed log) and give it to `verify`.
        sources: Credential source to how many of the job's tokens it gave.
    """

    record: Sealed
    digest: str
    sources: Mapping[str, int]


def seal(
    reader: TrailReader,
    store: SegmentStore,
    *,
    job: str,
    outcome: str,
    error: str | None,
    clock: Clock,
    known: Interims | None = None,
) -> Seal:
    """Verify a job's segments and write the seal.

    Call it when no worker of the job can write any more: a segment that grows after its sealing does not verify.

    Args:
        job: The job's id; every segment must be of this job.
        outcome: `ok`, `failed`, `interrupted` or `late`.
        error: What the job failed with, or None.
        known: As for `read_interims`.
    Raises:
        TrailBroken: The segments do not verify. Nothing was written.
        AuditError: The job is sealed already, or the arguments are not valid. Nothing was written.
        AuditUnavailable: The seal may or may not be there.
    """
    said = Said()
    interims = check_unsealed(reader, reader.names(), job=job, said=said, known=known)
    found = check_segments(reader, job=job, marks=said.marks)
    return write_seal(store, found, interims, job=job, outcome=outcome, error=error, clock=clock)


def check_unsealed(
    reader: TrailReader, names: Collection[str], *, job: str, said: Said, known: Interims | None = None
) -> Interims:
    """The job's interim seals, read and checked.

    Args:
        names: The files of the folder.
        said: Is told what they say.
        known: As for `read_interims`.
    Raises:
        TrailBroken: They do not verify.
        AuditError: The job is sealed already.
    """
    if SEAL_NAME in names and reader.read(SEAL_NAME):  # an empty one is a sealing that was interrupted
        raise AuditError(f"job {job} is sealed already")
    interims = read_interims(reader, names, said=said, known=known)
    if interims.job not in (None, job):
        raise broken(interims.last_name, 1, 18, f"it is of job {interims.job}, not {job}")
    return interims


def write_seal(
    store: SegmentStore,
    found: Segments,
    interims: Interims,
    *,
    job: str,
    outcome: str,
    error: str | None,
    clock: Clock,
) -> Seal:
    """Write the seal of segments that have been checked; `seal` does both.

    Args:
        found: All segments of the job.
        interims: Its interim seals, to which they were held.
    Raises:
        AuditError: The arguments are not valid. Nothing was written.
        AuditUnavailable: The seal may or may not be there.
    """
    try:
        record = Sealed.model_validate(
            {
                "seq": interims.count,
                "prev": interims.last,
                "time": clock(),
                "bundle": None,
                "job": job,
                "outcome": outcome,
                "error": error,
                "segments": tuple(segment.sealed for segment in found.segments),
                "counts": dict(found.counts),
            }
        )
    except ValidationError as problem:
        raise AuditError(f"not a valid seal: {explain(problem)}") from None
    line = record.line()
    store.create(SEAL_NAME)
    data = line + b"\n"
    for offset in range(0, len(data), APPEND_BYTES):
        store.append(SEAL_NAME, offset, data[offset : offset + APPEND_BYTES])
    return Seal(record=record, digest=digest_of(line), sources=found.sources)
