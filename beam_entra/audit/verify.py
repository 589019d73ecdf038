"""Verifying a trail: does it hang together, and is it all there? Reads files, sends nothing, trusts nothing.

The rules, in the order in which a segment is looked at. `TrailBroken` cites them by number.

    1  The folder holds segments, the seal, and nothing else.
    2  Each line is a record in canonical form, and the file ends with a newline.
    3  `seq` counts 0, 1, 2, ...
    4  `prev` is the digest of the line before.
    5  The first line, and no other, is `segment_opened`; it names its own file, and the same job, pipeline, identity,
       scoping, deadline and manifest as every other segment. A seal is no part of a segment.
    6  A segment that continues another names it and its head, and the other's last line, and no other, names this one.
    7  Times do not run backwards within the segments of one process. Where they stand still, the clock may have been
       put right by ten minutes: by so much rules 10 to 12 bear with such a record's time.
    8  Ids of tokens, keys and SAS are given once per process.
    9  A bundle is opened once per process before anything is done for it, and closed at most once. Not being closed is
       no error: the process may have been killed.
   10  A key was got with a token that had been acquired, before it expired; never where the scoping is bearer.
   11  A SAS was signed by a key of its account that had been acquired with the token it names; it was issued before it
       expires, expires no later than the key and the job's deadline, and carries its bundle's id or none.
   12  An access presented a SAS issued for this path, permission and bundle, before it expired; a copy presented two,
       one to write the one blob and one to read the other; a probe presented one, a look none. Where the scoping is
       bearer, and nowhere else, it presented a token for Storage that had been acquired, before that expired and before
       the deadline.
   13  A commit was intended before, in the same bundle, for the same path, size and rows (size and rows are not
       compared when an earlier attempt's commit was found); so was a deletion, for the same path and version.
   14  There is a seal, one canonical line, of the job that the segments are of.
   15  The seal lists exactly the segments that are there, with their lengths, heads and counts.
   16  The seal is the one whose digest was kept elsewhere. Only with `seal_digest`.
   17  A deadline was extended only where the job's life is a rolling one, by a token for Storage that ends later than
       those before it, and to no later than the job may go on after that token was acquired.

All rules but 16 find every change by someone who does not rewrite the seal. Someone who can rewrite every file can make
a trail that obeys them: rule 16 is what finds that.

An empty segment is no error: the process died between making the file and its first record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from beam_entra.audit.record import SEAL_NAME, ZEROS, Sealed, SealedSegment, digest_of, parse_line
from beam_entra.audit.segments import Segments, SegmentSummary, broken, check_segments
from beam_entra.audit.store import TrailReader

__all__ = ["TrailSummary", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailSummary:
    """A trail that verifies.

    Attributes:
        seal: The seal's record: job, outcome, error.
        seal_digest: SHA-256 of the seal's line, in hex.
        segments: Sorted by name.
        counts: Kind of record to how many, sorted by kind.
    """

    seal: Sealed
    seal_digest: str
    segments: tuple[SegmentSummary, ...]
    counts: Mapping[str, int]

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


def verify(reader: TrailReader, *, seal_digest: str | None = None) -> TrailSummary:
    """Check a sealed trail by all rules of this module.

    Args:
        reader: Reads the job's folder.
        seal_digest: `Seal.digest`, as it was kept elsewhere, in hex.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
        AuditUnavailable: A file could not be read.
    """
    found = check_segments(reader)
    seal, line = _read_seal(reader)  # rule 14
    if found.opened and found.opened.job != seal.job:
        raise broken(SEAL_NAME, 1, 14, "it seals another job than the segments are of")
    _check_listing(seal, found)  # rule 15
    digest = digest_of(line)
    if seal_digest is not None and digest != seal_digest.strip().lower():
        raise broken(SEAL_NAME, 1, 16, f"its digest is {digest}, not the one that was kept elsewhere")
    return TrailSummary(seal=seal, seal_digest=digest, segments=found.segments, counts=found.counts)


def _read_seal(reader: TrailReader) -> tuple[Sealed, bytes]:
    data = reader.read(SEAL_NAME) if SEAL_NAME in reader.names() else b""
    if not data:
        raise broken(SEAL_NAME, 1, 14, "not sealed", "the job runs still, or was killed: then, beam-entra audit seal")
    line, newline, rest = data.partition(b"\n")
    if not newline or rest:
        raise broken(SEAL_NAME, 2 if rest else 1, 14, "a seal is exactly one line")
    try:
        record = parse_line(line)
    except ValueError as error:
        raise broken(SEAL_NAME, 1, 14, str(error)) from None
    if not isinstance(record, Sealed) or (record.seq, record.prev, record.bundle) != (0, ZEROS, None):
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
