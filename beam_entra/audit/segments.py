"""Checking segments by rules 1 to 13, and 17, of `beam_entra.audit.verify`, sealed or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from beam_entra.audit.fields import SEGMENT_NAME
from beam_entra.audit.lineage import Lineage, RuleBroken
from beam_entra.audit.record import (
    SEAL_NAME,
    ZEROS,
    AnyRecord,
    Sealed,
    SealedSegment,
    SegmentOpened,
    SegmentRolled,
    TokenAcquired,
    digest_of,
    parse_line,
    segment_name,
)
from beam_entra.audit.store import TrailReader
from beam_entra.errors import Diagnosis, TrailBroken

__all__ = ["SegmentSummary", "Segments", "broken", "check_segments"]

_SAME_IN_ALL = (
    "job",
    "pipeline",
    "environment",
    "tenant",
    "client",
    "credential",
    "scoping",
    "deadline",
    "rolling_s",
    "manifest_digest",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSummary:
    """What one segment held.

    Attributes:
        opened: Its first record; None for an empty file.
        sealed: Its name, length, head and numbers, as the seal lists them.
        open_bundles: Bundles opened in it that ended without closing, here or in a segment that continues it.
    """

    opened: SegmentOpened | None
    sealed: SealedSegment
    open_bundles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segments:
    """All segments of a job, verified by rules 1 to 13.

    Attributes:
        segments: Sorted by name.
        counts: Kind of record to how many, sorted by kind.
        sources: Credential source to how many tokens it gave, sorted by name.
    """

    segments: tuple[SegmentSummary, ...]
    counts: Mapping[str, int]
    sources: Mapping[str, int]

    @property
    def opened(self) -> SegmentOpened | None:
        """Who and what the job was, as every segment says; None when there is no record at all."""
        return next((segment.opened for segment in self.segments if segment.opened), None)


def check_segments(reader: TrailReader, *, job: str | None = None) -> Segments:
    """Check segments by rules 1 to 13, sealed or not.

    Args:
        job: The job they must be of; None takes the first segment's word.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
    """
    names = sorted(reader.names())
    for name in names:
        if name != SEAL_NAME and not SEGMENT_NAME.fullmatch(name):
            raise broken(ascii(name), 1, 1, "neither a segment nor the seal")
    checker = _Checker(job)
    for name in names:
        if name != SEAL_NAME:
            checker.check(name, reader.read(name))
    checker.finish()
    return Segments(
        segments=checker.summaries(),
        counts=MappingProxyType(dict(sorted(checker.counts.items()))),
        sources=MappingProxyType(dict(sorted(checker.sources.items()))),
    )


class _Checker:
    """Goes through the segments in order of name, which is by process and then by number."""

    def __init__(self, job: str | None) -> None:
        self.counts: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self._job = job
        self._first: SegmentOpened | None = None  # of the whole trail
        self._done: list[tuple[SegmentOpened | None, SealedSegment, Lineage]] = []
        self._awaited = ""  # the segment that the one before says continues it
        self._lineage = Lineage()
        self._before: SealedSegment | None = None  # what the segment at hand continues
        self._opened: SegmentOpened | None = None

    def check(self, name: str, data: bytes) -> None:
        """Check one segment.

        1. It is the one that the segment before announced, if that announced one (rule 6).
        2. Every line: canonical, counted, chained (rules 2 to 4).
        3. The first opens it (5), and continues what it says it does (6).
        4. Every record, in what the process has done so far (7 to 13).
        5. The last, if it rolls the segment, names the next one (6).
        """
        self._before = self._continued_by(name)
        if self._before is None:
            self._lineage = Lineage()
        self._opened = None
        last: AnyRecord | None = None
        head = self._before.head if self._before else ZEROS
        kinds: Counter[str] = Counter()
        *lines, rest = data.split(b"\n")
        for index, line in enumerate(lines):
            try:
                last = self._check_line(name, line, (index, head), last)
            except RuleBroken as found:
                raise broken(name, index + 1, found.rule, found.what) from None
            head = digest_of(line)
            kinds[last.kind] += 1
            if isinstance(last, TokenAcquired) and last.source:
                self.sources[last.source] += 1
        if rest:
            raise broken(name, len(lines) + 1, 2, "the file ends in the middle of a line")
        self._awaited = last.next if isinstance(last, SegmentRolled) else ""
        if self._awaited and self._awaited != _next_to(name):
            raise broken(name, len(lines), 6, "it does not name the process's next segment")
        sealed = SealedSegment(
            segment=name,
            records=len(lines),
            bytes=len(data),
            head=head if lines else ZEROS,
            opened_bundles=kinds["bundle_opened"],
            closed_bundles=kinds["bundle_closed"],
        )
        self.counts += kinds
        self._done.append((self._opened, sealed, self._lineage))

    def finish(self) -> None:
        """After the last segment nothing is awaited any more."""
        if self._awaited:
            before = self._done[-1][1]
            raise broken(before.segment, before.records, 6, f"{self._awaited}, which continues it, is missing")

    def summaries(self) -> tuple[SegmentSummary, ...]:
        """What was found, once all of it has been read: a bundle may be closed in a later segment."""
        return tuple(
            SegmentSummary(opened=opened, sealed=sealed, open_bundles=lineage.left_open_in(sealed.segment))
            for opened, sealed, lineage in self._done
        )

    def _continued_by(self, name: str) -> SealedSegment | None:
        """The segment that this one continues by its name; None for a process's first."""
        if self._awaited and name != self._awaited:
            self.finish()
        if name.endswith("-00000.jsonl"):
            return None
        before = self._done[-1][1] if self._done else None
        if before is None or _next_to(before.segment) != name:
            raise broken(name, 1, 6, "the segment that it continues is missing")
        return before

    def _check_line(self, name: str, line: bytes, place: tuple[int, str], last: AnyRecord | None) -> AnyRecord:
        if isinstance(last, SegmentRolled):
            raise RuleBroken(6, "a line follows segment_rolled")
        record = _parse(line)
        _check_place(record, *place)
        if self._opened is None:
            self._opened = self._check_opening(record, name)
        elif isinstance(record, SegmentOpened | Sealed):
            raise RuleBroken(5, f"{record.kind} in the middle of a segment")
        self._lineage.check(record, self._opened)
        return record

    def _check_opening(self, record: AnyRecord, name: str) -> SegmentOpened:
        if not isinstance(record, SegmentOpened):
            raise RuleBroken(5, "a segment begins with segment_opened")
        if record.segment != name:
            raise RuleBroken(5, f"it was written as {record.segment}")
        if self._job is not None and record.job != self._job:
            raise RuleBroken(5, f"it is of job {record.job}, not {self._job}")
        self._first = self._first or record
        for field in _SAME_IN_ALL:
            if getattr(record, field) != getattr(self._first, field):
                raise RuleBroken(5, f"its {field} is not the one that {self._first.segment} has")
        found = (self._before.segment, self._before.head) if self._before else None
        named = (record.previous.segment, record.previous.head) if record.previous else None
        if named != found:
            raise RuleBroken(6, "the segment that it continues, or its head, is not the one found before it")
        if self._before and not self._awaited:
            raise RuleBroken(6, "the segment before it does not end by naming it")
        return record


def _next_to(name: str) -> str:
    """The name of the segment that continues this one."""
    process, number = name[8:44], name[45:50]
    return segment_name(process, int(number) + 1)


def _parse(line: bytes) -> AnyRecord:
    try:
        return parse_line(line)
    except ValueError as error:
        raise RuleBroken(2, str(error)) from None


def _check_place(record: AnyRecord, index: int, prev: str) -> None:
    if record.seq != index:
        raise RuleBroken(3, f"seq is {record.seq}, not {index}")
    if record.prev != prev:
        where = "the line before" if index else "the segment before" if prev != ZEROS else "64 zeros"
        raise RuleBroken(4, f"prev is not the digest of {where}: one of the two was changed")


def broken(segment: str, line: int, rule: int, what: str, hint: str = "") -> TrailBroken:
    """The error that names the first bad segment and line, and the rule."""
    hint = hint or "keep the folder as it is and compare it with the container's versions, snapshots and resource log"
    return TrailBroken(f"{segment} line {line}: rule {rule}: {what}", Diagnosis(hint=hint))
