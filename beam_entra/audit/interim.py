"""Interim seals: what stood while the job was running can no longer be changed unnoticed, though the job goes on.

Each is a file of one line: `seal-000000.jsonl`, `seal-000001.jsonl`, ... They are a chain: each names the digest of the
one before, and the final seal that of the last. So the digest of one, kept elsewhere, holds all that stood before.

An interim seal costs what was written since the last one, however long the job has run: how far each segment had come,
and with which head, the seals themselves say.
"""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

from pydantic import ValidationError

from beam_entra.audit.ahead import read_ahead
from beam_entra.audit.record import (
    SEAL_NAME,
    ZEROS,
    InterimSealed,
    SealedSegment,
    digest_of,
    explain,
    interim_name,
    parse_line,
)
from beam_entra.audit.segments import Mark, broken, next_to, segments_of
from beam_entra.audit.store import INTERIM_NAME, GrowingTrail, SegmentStore, TrailReader
from beam_entra.clock import Clock
from beam_entra.errors import AuditError, AuditUnavailable, Diagnosis

__all__ = ["Interims", "Said", "read_interims", "seal_interim"]

_Piece = tuple[str, int, int]  # of a file: its name, and from which byte up to which

_LAST_NUMBER = 999_999  # a seal's name has six digits
_SEGMENTS_A_SEAL = 8000  # so that its line, 300 bytes for each, goes in one append: it is there, or it is not


@dataclass(slots=True)
class Interims:
    """How far a job's interim seals go.

    Attributes:
        count: How many there are.
        last: SHA-256 of the last one's line, in hex; 64 zeros when there is none.
        job: The job that they are of; None when there is none.
        time: When the last was made.
        stands: Each segment as the last of them that names it says.
    """

    count: int = 0
    last: str = ZEROS
    job: str | None = None
    time: datetime | None = None
    stands: dict[str, SealedSegment] = field(default_factory=dict)

    @property
    def last_name(self) -> str:
        """The file name of the last."""
        return interim_name(self.count - 1)

    def take(self, record: InterimSealed, line: bytes) -> None:
        """Count one more, that has been checked."""
        self.count, self.last = self.count + 1, digest_of(line)
        self.job, self.time = record.job, record.time
        self.stands.update((each.segment, each) for each in record.segments)


@dataclass(slots=True)
class Said:
    """All that the interim seals of a job say, for who verifies.

    Attributes:
        digests: SHA-256 of each one's line, in hex, in order.
        marks: Of each segment, in order.
    """

    digests: list[str] = field(default_factory=list)
    marks: dict[str, list[Mark]] = field(default_factory=dict)

    def take(self, name: str, record: InterimSealed, line: bytes) -> None:
        """Note what one more says."""
        self.digests.append(digest_of(line))
        for each in record.segments:
            mark = Mark(name, each.records, each.bytes, each.head, each.opened_bundles, each.closed_bundles)
            self.marks.setdefault(each.segment, []).append(mark)


def read_interims(
    reader: TrailReader, sizes: Mapping[str, int], *, said: Said | None = None, known: Interims | None = None
) -> Interims:
    """Read the interim seals of a trail, and check them (rule 18). The segments are not looked at.

    Args:
        sizes: The files of the folder, and how many bytes each has.
        said: Is told what they say.
        known: What an earlier call gave, or `seal_interim`: they must continue that.
    Raises:
        TrailBroken: Naming the first bad one.
    """
    found = Interims()
    continues_known = known is None or not known.count
    there = sorted(name for name in sizes if INTERIM_NAME.fullmatch(name))
    for name, data in read_ahead(reader.read, [(name, sizes[name]) for name in there]):
        if not data and name == there[-1]:
            break  # who made the file did not live to write it
        if name != interim_name(found.count):
            raise broken(interim_name(found.count), 1, 18, "this interim seal is missing")
        line, newline, rest = data.partition(b"\n")
        if not newline or rest:
            raise broken(name, 2 if rest else 1, 18, "an interim seal is exactly one line")
        record = _parse(name, line, found)
        found.take(record, line)
        if said is not None:
            said.take(name, record, line)
        if known is not None and found.count == known.count:
            continues_known = found.last == known.last
    if known is not None and not continues_known:
        raise broken(known.last_name, 1, 18, "it is not what this sealer knows it to be: changed, or removed")
    return found


def _parse(name: str, line: bytes, before: Interims) -> InterimSealed:
    try:
        record = parse_line(line)
    except ValueError as error:
        raise broken(name, 1, 18, str(error)) from None
    if not isinstance(record, InterimSealed) or record.bundle is not None:
        raise broken(name, 1, 18, "this line is no interim seal")
    if (record.seq, record.prev) != (before.count, before.last):
        raise broken(name, 1, 18, "it does not continue the interim seal before it: one of the two was changed")
    if before.job not in (None, record.job):
        raise broken(name, 1, 18, f"it is of job {record.job}, not {before.job}")
    listed = [each.segment for each in record.segments]
    if listed != sorted(set(listed)):
        raise broken(name, 1, 18, "it does not list each segment once, in order")
    for each in record.segments:
        known = before.stands.get(each.segment)
        if known is not None and each.records <= known.records:
            raise broken(name, 1, 18, f"{each.segment} has not grown since an interim seal before")
    return record


def seal_interim(
    trail: GrowingTrail,
    store: SegmentStore,
    *,
    job: str,
    clock: Clock,
    known: Interims | None = None,
    segments_a_seal: int = _SEGMENTS_A_SEAL,
) -> Interims:
    """Seal what there is of a job that is still running.

    What is new must continue, line by line, what was sealed before. What the records say is for `verify` and for the
    final seal to check.

    Args:
        job: The job's id.
        known: What an earlier call gave: then the seals that it knows are not read again, unless others came.
        segments_a_seal: At most; what is new in more of them goes into several seals.

    Returns:
        The interim seals with the new one; where nothing is new, none is made.

    Raises:
        TrailBroken: What is there does not continue what was sealed. Nothing was written.
        AuditError: The job is sealed already. Nothing was written.
        AuditUnavailable: The seal may or may not be there, or somebody else made one meanwhile.
    """
    sizes = trail.sizes()
    if sizes.get(SEAL_NAME):
        raise AuditError(f"job {job} is sealed already")
    there = sum(1 for name, size in sizes.items() if size and INTERIM_NAME.fullmatch(name))
    interims = known if known is not None and known.count == there else read_interims(trail, sizes, known=known)
    if interims.job not in (None, job):
        raise broken(interims.last_name, 1, 18, f"it is of job {interims.job}, not {job}")
    with closing(_grown(trail, sizes, interims, job)) as grown:
        while news := tuple(islice(grown, segments_a_seal)):
            _write(trail, store, interims, news, job=job, time=clock())
    return interims


def _grown(
    trail: GrowingTrail, sizes: Mapping[str, int], interims: Interims, job: str
) -> Generator[SealedSegment, None, None]:
    """The segments that are new or have grown, as they stand now."""
    names = segments_of(sizes)
    if missing := sorted(interims.stands.keys() - set(names)):
        raise broken(missing[0], 1, 19, "an interim seal names it, and it is missing")
    stood_bytes = {name: interims.stands[name].bytes if name in interims.stands else 0 for name in names}
    new = [(name, stood_bytes[name], sizes[name]) for name in names if sizes[name] > stood_bytes[name]]
    read = read_ahead(lambda piece: trail.read_range(*piece), [(piece, piece[2] - piece[1]) for piece in new])
    with closing(read):
        yield from _advances(names, sizes, interims, read, job)


def _advances(
    names: list[str], sizes: Mapping[str, int], interims: Interims, read: Iterator[tuple[_Piece, bytes]], job: str
) -> Iterator[SealedSegment]:
    before: SealedSegment | None = None
    for name in names:
        known = interims.stands.get(name)
        stood = known or SealedSegment(segment=name, records=0, bytes=0, head=ZEROS, opened_bundles=0, closed_bundles=0)
        if sizes[name] < stood.bytes:
            what = f"it ends at byte {sizes[name]}, and an interim seal names {stood.bytes}"
            raise broken(name, max(stood.records, 1), 19, what)
        prev = stood.head
        if not stood.records and not name.endswith("-00000.jsonl"):
            if before is None or next_to(before.segment) != name:
                raise broken(name, 1, 6, "the segment that it continues is missing")
            prev = before.head
        before = stood
        if known is None or sizes[name] > stood.bytes:
            data = next(read)[1] if sizes[name] else b""
            before = _advanced(stood, prev, data, job)
            yield before


def _advanced(stood: SealedSegment, head: str, data: bytes, job: str) -> SealedSegment:
    """A segment after these lines more."""
    name, records = stood.segment, stood.records
    opened, closed = stood.opened_bundles, stood.closed_bundles
    for line in io.BytesIO(data):
        try:
            record = json.loads(line)
            seq, prev, kind = record["seq"], record["prev"], record["kind"]
            of_job = record["job"] if records == 0 else job
        except (ValueError, TypeError, KeyError, RecursionError):
            raise broken(name, records + 1, 2, "no record") from None
        if not line.endswith(b"\n"):
            raise broken(name, records + 1, 2, "the file ends in the middle of a line")
        if seq != records:
            raise broken(name, records + 1, 3, f"seq is not {records}")
        if prev != head:
            raise broken(name, records + 1, 4, "prev is not the digest of the line before: one of the two was changed")
        if records == 0 and (kind != "segment_opened" or of_job != job):
            raise broken(name, 1, 5, f"it does not begin as a segment of job {job}")
        head, records = digest_of(line[:-1]), records + 1
        opened += kind == "bundle_opened"
        closed += kind == "bundle_closed"
    return SealedSegment(
        segment=name,
        records=records,
        bytes=stood.bytes + len(data),
        head=head if records else ZEROS,
        opened_bundles=opened,
        closed_bundles=closed,
    )


def _write(
    trail: GrowingTrail,
    store: SegmentStore,
    interims: Interims,
    segments: tuple[SealedSegment, ...],
    *,
    job: str,
    time: datetime,
) -> None:
    """Write one more, and see that it is there: of two who do so at once, one is told."""
    if interims.count > _LAST_NUMBER:
        raise AuditError(f"job {job} has {interims.count:,} interim seals, and there is no name for another")
    name, link = interim_name(interims.count), {"seq": interims.count, "prev": interims.last, "bundle": None}
    try:
        record = InterimSealed.model_validate({**link, "time": time, "job": job, "segments": segments})
    except ValidationError as problem:
        raise AuditError(f"not a valid interim seal: {explain(problem)}") from None
    line = record.line()
    store.create(name)
    store.append(name, 0, line + b"\n")
    if trail.read_range(name, 0, len(line) + 1) != line + b"\n":
        raise AuditUnavailable(
            f"somebody else wrote {name} meanwhile",
            Diagnosis(tried=f"seal what there is of job {job}", hint="one sealer will do; the next goes on from there"),
        )
    interims.take(record, line)
