"""Sealing: the launcher's last line, which fixes every segment's length and head.

What was sealed while the job was running is in interim.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from beam_entra.audit.ahead import sizes_of
from beam_entra.audit.checking import check_segments
from beam_entra.audit.interim import Interims, Said, read_interims
from beam_entra.audit.record import SEAL_NAME, ZEROS, Sealed, digest_of, explain
from beam_entra.audit.segments import Segments, broken
from beam_entra.audit.store import APPEND_BYTES, SegmentStore, TrailReader
from beam_entra.clock import Clock
from beam_entra.errors import AuditError

__all__ = ["Seal", "check_interims", "check_unsealed", "seal", "write_seal"]


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

    A seal that was begun, and whose writer did not live to end it, is ended: it says already when the job ended and
    how, and what is added must be what it was to become.

    Args:
        job: The job's id; every segment must be of this job.
        outcome: `ok`, `failed`, `interrupted` or `late`.
        error: What the job failed with, or None.
        known: As for `read_interims`.
    Raises:
        TrailBroken: The segments do not verify, or are not those that a seal was begun with. Nothing was written.
        AuditError: The job is sealed already, or the arguments are not valid. Nothing was written.
        AuditUnavailable: The seal may or may not be there.
    """
    said, sizes = Said(), sizes_of(reader)
    begun = check_unsealed(reader, sizes, job=job)
    interims = check_interims(reader, sizes, job=job, said=said, known=known)
    found = check_segments(reader, job=job, marks=said.marks)
    if begun:
        return _end(store, begun, found, said, job=job)
    return write_seal(store, found, interims, job=job, outcome=outcome, error=error, clock=clock)


def check_unsealed(reader: TrailReader, sizes: Mapping[str, int], *, job: str) -> bytes:
    """What there is of the job's seal: nothing, or the beginning of one whose writer did not live to end it.

    Args:
        sizes: The files of the folder, and how many bytes each has.
    Raises:
        AuditError: The job is sealed already.
    """
    begun = reader.read(SEAL_NAME) if SEAL_NAME in sizes else b""
    if b"\n" in begun:
        raise AuditError(f"job {job} is sealed already")
    return begun


def check_interims(
    reader: TrailReader, sizes: Mapping[str, int], *, job: str, said: Said, known: Interims | None = None
) -> Interims:
    """The job's interim seals, read and checked.

    Args:
        sizes: The files of the folder, and how many bytes each has.
        said: Is told what they say.
        known: As for `read_interims`.
    Raises:
        TrailBroken: They do not verify.
    """
    interims = read_interims(reader, sizes, said=said, known=known)
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
    head = {"seq": interims.count, "prev": interims.last, "time": clock(), "outcome": outcome, "error": error}
    try:
        record = _sealed(head, found, job)
    except ValidationError as problem:
        raise AuditError(f"not a valid seal: {explain(problem)}") from None
    store.create(SEAL_NAME)
    return _write(store, record, found, offset_bytes=0)


def _end(store: SegmentStore, begun: bytes, found: Segments, said: Said, *, job: str) -> Seal:
    """Write what is missing of a seal."""
    head, listed, _ = begun.partition(b',"segments":[')  # no text holds this: a quote in one is escaped
    try:
        told = json.loads(head + b"}") if listed else {}
        told["time"] = datetime.fromisoformat(told["time"])
        record = _sealed(told, found, job)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise broken(SEAL_NAME, 1, 14, "this is not how a seal begins") from None
    if (record.seq, record.prev) not in enumerate([ZEROS, *said.digests]):
        raise broken(SEAL_NAME, 1, 14, "it does not continue the interim seals that are there")
    if not record.line().startswith(begun):
        raise broken(SEAL_NAME, 1, 15, "it was begun, and not for the segments that are there now")
    return _write(store, record, found, offset_bytes=len(begun))


def _sealed(head: Mapping[str, Any], found: Segments, job: str) -> Sealed:
    told = {name: head[name] for name in ("seq", "prev", "time", "outcome", "error")}
    segments = tuple(segment.sealed for segment in found.segments)
    held = {"bundle": None, "job": job, "segments": segments, "counts": dict(found.counts)}
    return Sealed.model_validate(told | held)


def _write(store: SegmentStore, record: Sealed, found: Segments, *, offset_bytes: int) -> Seal:
    """Write the seal from this byte on."""
    line = record.line()
    data = line + b"\n"
    for offset in range(offset_bytes, len(data), APPEND_BYTES):
        store.append(SEAL_NAME, offset, data[offset : offset + APPEND_BYTES])
    return Seal(record=record, digest=digest_of(line), sources=found.sources)
