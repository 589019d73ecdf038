"""Verifying a trail: does it hang together, and is it all there? Reads files, sends nothing, trusts nothing.

The rules, in the order in which a segment is looked at. `TrailBroken` cites them by number.

    1  The folder holds segments, interim seals, the seal, and nothing else.
    2  Each line is a record in canonical form, and the file ends with a newline.
    3  `seq` counts 0, 1, 2, ...
    4  `prev` is the digest of the line before.
    5  The first line, and no other, is `segment_opened`; it names its own file, and the same job, pipeline, identity,
       scoping, deadline and manifest as every other segment. No seal is part of a segment.
    6  A segment that continues another names it and its head, and the other's last line, and no other, names this one.
    7  Times do not run backwards within the segments of one process. Where they stand still, the clock may have been
       put right by ten minutes: by so much rules 10 to 12 bear with such a record's time.
    8  Ids of tokens, keys and SAS are given once per process, as long as what they stand for could be presented.
    9  A bundle is opened once per process before anything is done for it, and closed at most once; after its closing
       nothing is done for it but what was under way. Not being closed is no error: the process may have been killed.
   10  A key was got with a token that had been acquired, before it expired; never where the scoping is bearer.
   11  A SAS was signed by a key of its account that had been acquired with the token it names; it was issued before it
       expires, expires no later than the key and the job's deadline, and carries its bundle's id or none.
   12  An access presented a SAS issued for this path, permission and bundle, before it expired; a copy presented two,
       one to write the one blob and one to read the other; a probe presented one, a look none. Where the scoping is
       bearer, and nowhere else, it presented a token for Storage that had been acquired, before that expired and before
       the deadline.
   13  A commit was intended before, in the same bundle, for the same path, size and rows (size and rows are not
       compared when an earlier attempt's commit was found); so was a deletion, for the same path and version.
   14  There is a seal, one canonical line, of the job that the segments are of; it continues the interim seals. Those
       that were on their way when it was made may stand behind it: they say nothing that it does not.
   15  The seal lists exactly the segments that are there, with their lengths, heads and counts.
   16  The seal, or an interim seal, is the one whose digest was kept elsewhere. Only with `seal_digest`.
   17  A deadline was extended only where the job's life is a rolling one, by a token for Storage that ends later than
       those before it, and to no later than the job may go on after that token was acquired.
   18  Interim seals are numbered without a gap, are of one job, and each names the digest of the one before it and
       segments that are new or have grown since.
   19  Each segment begins with what every interim seal says that it held: so many records and bytes, with that head.

All rules but 16 find every change by someone who does not rewrite the seal. Someone who can rewrite every file can make
a trail that obeys them: rule 16 is what finds that.

A trail without a seal obeys rules 1 to 13 and 17 to 19 (`verify_running`). What came after its last interim seal is
held by nothing yet: that its end was cut off cannot be seen.

An empty segment is no error: the process died between making the file and its first record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from beam_entra.audit.ahead import sizes_of
from beam_entra.audit.checking import check_segments
from beam_entra.audit.interim import Interims, Said, read_interims
from beam_entra.audit.record import SEAL_NAME, ZEROS, Sealed, SealedSegment, digest_of, interim_name, parse_line
from beam_entra.audit.segments import Segments, SegmentSummary, broken
from beam_entra.audit.store import TrailReader

__all__ = ["RunningSummary", "TrailSummary", "verify", "verify_running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailSummary:
    """A trail that verifies.

    Attributes:
        seal: The seal's record: job, outcome, error.
        seal_digest: SHA-256 of the seal's line, in hex.
        segments: Sorted by name.
        counts: Kind of record to how many, sorted by kind.
        interim_seals: How many there are.
        held_by: File name of the seal whose digest was given; what came after an interim one it does not hold. Empty
            when none was given.
    """

    seal: Sealed
    seal_digest: str
    segments: tuple[SegmentSummary, ...]
    counts: Mapping[str, int]
    interim_seals: int = 0
    held_by: str = ""

    @property
    def job(self) -> str:
        """The job's id."""
        return self.seal.job

    @property
    def scoping(self) -> str:
        """What opened the blobs: `sas`, or `bearer`; `sas` too where nothing was recorded."""
        opened = next((segment.opened for segment in self.segments if segment.opened), None)
        return (opened.scoping if opened else None) or "sas"

    @property
    def records(self) -> int:
        """Records in all segments."""
        return sum(self.counts.values())

    @property
    def bundles(self) -> int:
        """Bundles opened in all segments."""
        return self.counts.get("bundle_opened", 0)

    @property
    def open_bundles(self) -> int:
        """Bundles that ended without closing."""
        return sum(len(segment.open_bundles) for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningSummary:
    """A trail without a seal that verifies as far as it goes.

    Attributes:
        job: The job's id; empty where nothing was recorded yet.
        segments: Sorted by name.
        interim_seals: How many there are.
        interim_digest: SHA-256 of the last one's line, in hex; empty when there is none.
        interim_time: When it was made; None when there is none.
        sealed_records: Records that it and those before it hold.
        records: Records in all segments.
        held_by: As for `TrailSummary`.
    """

    job: str
    segments: tuple[SegmentSummary, ...]
    interim_seals: int
    interim_digest: str
    interim_time: datetime | None
    sealed_records: int
    records: int
    held_by: str = ""


def verify(reader: TrailReader, *, seal_digest: str | None = None) -> TrailSummary:
    """Check a sealed trail by all rules of this module.

    Args:
        reader: Reads the job's folder.
        seal_digest: `Seal.digest`, or that of an interim seal, as it was kept elsewhere, in hex.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
        AuditUnavailable: A file could not be read.
    """
    said, interims, found, data = _check(reader)
    if not data:
        what = f"not sealed; {_standing(_running(found, interims))}"
        hint = "the job runs still: verify --running; or was killed: then, beam-entra audit seal"
        raise broken(SEAL_NAME, 1, 14, what, hint)
    seal, line = _parse_seal(data)  # rule 14
    if (seal.seq, seal.prev) not in enumerate([ZEROS, *said.digests]):  # one may have been on its way at the end
        raise broken(SEAL_NAME, 1, 14, "it does not continue the interim seals that are there")
    if {seal.job, interims.job or seal.job, found.opened.job if found.opened else seal.job} != {seal.job}:
        raise broken(SEAL_NAME, 1, 14, "it seals another job than the segments are of")
    _check_listing(seal, found)  # rule 15
    digest = digest_of(line)
    return TrailSummary(
        seal=seal,
        seal_digest=digest,
        segments=found.segments,
        counts=found.counts,
        interim_seals=interims.count,
        held_by=_held_by(seal_digest, [*said.digests, digest], SEAL_NAME),
    )


def verify_running(reader: TrailReader, *, seal_digest: str | None = None) -> RunningSummary:
    """Check a trail that is not sealed yet, up to where it goes and by what its interim seals hold.

    Args:
        reader: Reads the job's folder.
        seal_digest: The digest of an interim seal, as it was kept elsewhere, in hex.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule; or it is sealed.
        AuditUnavailable: A file could not be read.
    """
    said, interims, found, data = _check(reader)
    if data:
        raise broken(SEAL_NAME, 1, 14, "the job is sealed, so it does not run", "verify it without --running")
    return _running(found, interims, _held_by(seal_digest, said.digests, interims.last_name))


def _check(reader: TrailReader) -> tuple[Said, Interims, Segments, bytes]:
    """Rules 1 to 13 and 17 to 19; and the seal's file."""
    sizes, said = sizes_of(reader), Said()
    interims = read_interims(reader, sizes, said=said)
    found = check_segments(reader, marks=said.marks)
    if interims.job and found.opened and found.opened.job != interims.job:
        raise broken(interims.last_name, 1, 18, "it is of another job than the segments are")
    return said, interims, found, reader.read(SEAL_NAME) if SEAL_NAME in sizes else b""


def _running(found: Segments, interims: Interims, held_by: str = "") -> RunningSummary:
    return RunningSummary(
        job=interims.job or (found.opened.job if found.opened else ""),
        segments=found.segments,
        interim_seals=interims.count,
        interim_digest=interims.last if interims.count else "",
        interim_time=interims.time,
        sealed_records=sum(each.records for each in interims.stands.values()),
        records=sum(found.counts.values()),
        held_by=held_by,
    )


def _standing(running: RunningSummary) -> str:
    if running.interim_time is None:
        return "no interim seal either"
    last, time = interim_name(running.interim_seals - 1), f"{running.interim_time:%Y-%m-%d %H:%M:%S} UTC"
    return f"{last} of {time} holds, and {running.records - running.sealed_records:,} records came after it"


def _held_by(seal_digest: str | None, digests: list[str], last: str) -> str:
    """Rule 16: the file name of the seal whose digest this is."""
    if seal_digest is None:
        return ""
    wanted = seal_digest.strip().lower()
    if wanted not in digests:
        found = f"its digest is {digests[-1]}" if digests else "there is none"
        raise broken(last, 1, 16, f"{found}, not the one that was kept elsewhere")
    number = digests.index(wanted)
    return last if number == len(digests) - 1 else interim_name(number)


def _parse_seal(data: bytes) -> tuple[Sealed, bytes]:
    line, newline, rest = data.partition(b"\n")
    if not newline:
        what = "its line does not end: who wrote it did not live to end it, or it was cut"
        raise broken(SEAL_NAME, 1, 14, what, "beam-entra audit seal ends it, if nothing else was changed")
    if rest:
        raise broken(SEAL_NAME, 2, 14, "a seal is exactly one line")
    try:
        record = parse_line(line)
    except ValueError as error:
        raise broken(SEAL_NAME, 1, 14, str(error)) from None
    if not isinstance(record, Sealed) or record.bundle is not None:
        raise broken(SEAL_NAME, 1, 14, "this line does not seal a trail")
    return record, line


def _check_listing(seal: Sealed, found: Segments) -> None:
    listed = {entry.segment: entry for entry in seal.segments}
    there = {segment.sealed.segment: segment.sealed for segment in found.segments}
    if len(listed) != len(seal.segments) or list(listed) != sorted(listed):
        raise broken(SEAL_NAME, 1, 15, "it does not list each segment once, in order")
    for name in sorted(listed.keys() | there.keys()):
        if name not in there:
            raise broken(name, 1, 15, "sealed, and missing")
        if name not in listed:
            raise broken(name, 1, 15, "not in the seal: added, or written after the job had been sealed")
        _check_entry(listed[name], there[name])
    if seal.counts != found.counts or list(seal.counts) != sorted(seal.counts):
        raise broken(SEAL_NAME, 1, 15, "its counts of records are not what the segments hold")


def _check_entry(listed: SealedSegment, there: SealedSegment) -> None:
    if there.records < listed.records:
        what = f"it ends after {there.records} of {listed.records} records"
        raise broken(there.segment, there.records + 1, 15, what)
    if there.records > listed.records:
        what = f"it was sealed with {listed.records} records and has {there.records}"
        raise broken(there.segment, listed.records + 1, 15, what)
    if there != listed:
        raise broken(there.segment, max(there.records, 1), 15, "its length, head or bundles are not what was sealed")
