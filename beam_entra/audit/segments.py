"""Checking segments by rules 1 to 13, 17 and 19, of `beam_entra.audit.verify`, sealed or not.

One segment after the other is taken and forgotten; what is kept of each are its numbers. See checking.py for who reads.
"""

from __future__ import annotations

import io
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from beam_entra.audit.fields import SEGMENT_NAME
from beam_entra.audit.lineage import Lineage, RuleBroken
from beam_entra.audit.record import (
    SEAL_NAME,
    ZEROS,
    AnyRecord,
    InterimSealed,
    Sealed,
    SealedSegment,
    SegmentOpened,
    SegmentRolled,
    TokenAcquired,
    digest_of,
    parse_line,
    segment_name,
)
from beam_entra.audit.store import INTERIM_NAME
from beam_entra.errors import Diagnosis, TrailBroken

__all__ = [
    "Mark",
    "SegmentCheck",
    "SegmentSummary",
    "Segments",
    "broken",
    "next_to",
    "segments_of",
]

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


@dataclass(frozen=True, slots=True)
class Mark:
    """Where an interim seal says that a segment stood.

    Attributes:
        seal: The interim seal's file name.
        records: Number of lines.
        bytes: Their length.
        head: Digest of the last; 64 zeros when there was none.
        opened_bundles: Bundles opened so far.
        closed_bundles: Bundles closed so far.
    """

    seal: str
    records: int
    bytes: int
    head: str
    opened_bundles: int
    closed_bundles: int


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
    """All segments of a job, verified.

    Attributes:
        segments: Sorted by name.
        counts: Kind of record to how many, sorted by kind.
        sources: Credential source to how many tokens it gave, sorted by name.
    """

    segments: tuple[SegmentSummary, ...]
    counts: Mapping[str, int]
    sources: Mapping[str, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return _segments, (self.segments, dict(self.counts), dict(self.sources))  # a mapping proxy cannot be pickled

    @property
    def opened(self) -> SegmentOpened | None:
        """Who and what the job was, as every segment says; None when there is no record at all."""
        return next((segment.opened for segment in self.segments if segment.opened), None)


def segments_of(names: Iterable[str]) -> list[str]:
    """Of the files of a folder the segments, sorted; all others are seals (rule 1).

    Raises:
        TrailBroken: One is something else.
    """
    segments = [name for name in sorted(names) if name != SEAL_NAME and not INTERIM_NAME.fullmatch(name)]
    for name in segments:
        if not SEGMENT_NAME.fullmatch(name):
            raise broken(ascii(name), 1, 1, "neither a segment nor a seal")
    return segments


def _segments(segments: Iterable[SegmentSummary], counts: dict[str, int], sources: dict[str, int]) -> Segments:
    return Segments(segments=tuple(segments), counts=MappingProxyType(counts), sources=MappingProxyType(sources))


class SegmentCheck:
    """Takes the segments of a job, one after the other: those of a process together, in order of number.

    Args:
        job: The job they must be of; None takes the first segment's word.
        marks: What interim seals say of them, by name, in order.
        first: The first record of the whole trail, for who is not given its first segment.
    """

    def __init__(
        self, job: str | None, marks: Mapping[str, Sequence[Mark]], *, first: SegmentOpened | None = None
    ) -> None:
        self._job = job
        self._marks = dict(marks)
        self._counts: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self.first = first
        self._done: list[SegmentSummary] = []  # of the processes that are through
        self._segments: list[tuple[SegmentOpened | None, SealedSegment]] = []  # of the one at hand
        self._lineage = Lineage()
        self._awaited = ""  # the segment that the one before says continues it
        self._before: SealedSegment | None = None  # what the segment at hand continues
        self._opened: SegmentOpened | None = None

    def add(self, name: str, data: bytes) -> None:
        """Check one segment.

        1. It is the one that the segment before announced, if that announced one (rule 6).
        2. Every line: canonical, counted, chained (rules 2 to 4).
        3. The first opens it (5), and continues what it says it does (6).
        4. Every record, in what the process has done so far (7 to 13, 17).
        5. Where an interim seal says that it stood, it stood so (19).
        6. The last, if it rolls the segment, names the next one (6).

        Raises:
            TrailBroken: Naming segment, line and rule.
        """
        self._before = self._continued_by(name)
        if self._before is None:
            self._end_process()
        self._opened = None
        last: AnyRecord | None = None
        kinds: Counter[str] = Counter()
        stands = _Stand(name, self._before.head if self._before else ZEROS, self._marks.pop(name, ()))
        for line in io.BytesIO(data):
            try:
                last = self._check_line(name, line, stands, last)
            except RuleBroken as found:
                raise broken(name, stands.records + 1, found.rule, found.what) from None
            kinds[last.kind] += 1
            if isinstance(last, TokenAcquired) and last.source:
                self._sources[last.source] += 1
            stands.take(line, last.kind)
        stands.end()
        self._awaited = last.next if isinstance(last, SegmentRolled) else ""
        if self._awaited and self._awaited != next_to(name):
            raise broken(name, stands.records, 6, "it does not name the process's next segment")
        self._counts += kinds
        self._segments.append((self._opened, stands.sealed()))

    def of_these(self, names: Iterable[str]) -> SegmentCheck:
        """A check like this one for the segments of one process, whose result `take` takes."""
        marks = {name: self._marks[name] for name in names if name in self._marks}
        return SegmentCheck(self._job, marks, first=self.first)

    def take(self, found: Segments) -> None:
        """What another check has found in the segments of a process."""
        self._end_process()
        self._done += found.segments
        self._counts += Counter(found.counts)
        self._sources += Counter(found.sources)
        for segment in found.segments:
            self._marks.pop(segment.sealed.segment, None)

    def finish(self) -> Segments:
        """What was found, once all segments were taken.

        Raises:
            TrailBroken: One that was announced, or sealed, is missing.
        """
        self._end_process()
        if self._marks:
            missing = min(self._marks)
            raise broken(missing, 1, 19, f"{self._marks[missing][0].seal} names it, and it is missing")
        return _segments(
            sorted(self._done, key=lambda segment: segment.sealed.segment),
            dict(sorted(self._counts.items())),
            dict(sorted(self._sources.items())),
        )

    def _end_process(self) -> None:
        """No segment continues the last one any more; a bundle that is not closed by now is not closed."""
        self._check_nothing_awaited()
        left_open = self._lineage.left_open()
        self._done += (
            SegmentSummary(opened=opened, sealed=sealed, open_bundles=tuple(left_open.get(sealed.segment, ())))
            for opened, sealed in self._segments
        )
        self._segments, self._lineage = [], Lineage()

    def _check_nothing_awaited(self) -> None:
        if self._awaited:
            before = self._segments[-1][1]
            raise broken(before.segment, before.records, 6, f"{self._awaited}, which continues it, is missing")

    def _continued_by(self, name: str) -> SealedSegment | None:
        """The segment that this one continues by its name; None for a process's first."""
        if name != self._awaited:
            self._check_nothing_awaited()
        if name.endswith("-00000.jsonl"):
            return None
        before = self._segments[-1][1] if self._segments else None
        if before is None or next_to(before.segment) != name:
            raise broken(name, 1, 6, "the segment that it continues is missing")
        return before

    def _check_line(self, name: str, line: bytes, stands: _Stand, last: AnyRecord | None) -> AnyRecord:
        if not line.endswith(b"\n"):
            raise RuleBroken(2, "the file ends in the middle of a line")
        if isinstance(last, SegmentRolled):
            raise RuleBroken(6, "a line follows segment_rolled")
        record = _parse(line[:-1])
        _check_place(record, stands.records, stands.prev)
        if self._opened is None:
            self._opened = self._check_opening(record, name)
        elif isinstance(record, SegmentOpened | InterimSealed | Sealed):
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
        self.first = self.first or record
        for field in _SAME_IN_ALL:
            if getattr(record, field) != getattr(self.first, field):
                raise RuleBroken(5, f"its {field} is not the one that {self.first.segment} has")
        found = (self._before.segment, self._before.head) if self._before else None
        named = (record.previous.segment, record.previous.head) if record.previous else None
        if named != found:
            raise RuleBroken(6, "the segment that it continues, or its head, is not the one found before it")
        if self._before and not self._awaited:
            raise RuleBroken(6, "the segment before it does not end by naming it")
        return record


class _Stand:
    """How far a segment has been read, held against what interim seals say of it (rule 19).

    Args:
        prev: What its first line names as the one before.
        marks: What they say, in their order.
    """

    __slots__ = ("_marks", "bytes", "closed", "name", "opened", "prev", "records")

    def __init__(self, name: str, prev: str, marks: Sequence[Mark]) -> None:
        self.name, self.prev = name, prev
        self.records = self.bytes = self.opened = self.closed = 0
        self._marks = deque(marks)
        self._compare()

    def take(self, line: bytes, kind: str) -> None:
        """One more line, its newline included."""
        self.prev = digest_of(line[:-1])
        self.records += 1
        self.bytes += len(line)
        self.opened += kind == "bundle_opened"
        self.closed += kind == "bundle_closed"
        if self._marks:
            self._compare()

    def end(self) -> None:
        """No line follows."""
        if self._marks:
            mark = self._marks[0]
            what = f"it ends after {self.records} of the {mark.records} records that {mark.seal} names"
            raise broken(self.name, self.records + 1, 19, what)

    def sealed(self) -> SealedSegment:
        """Where it stands, as a seal lists it."""
        return SealedSegment(
            segment=self.name,
            records=self.records,
            bytes=self.bytes,
            head=self.prev if self.records else ZEROS,
            opened_bundles=self.opened,
            closed_bundles=self.closed,
        )

    def _compare(self) -> None:
        while self._marks and self._marks[0].records <= self.records:
            mark = self._marks.popleft()
            head = self.prev if self.records else ZEROS
            stands = (self.records, self.bytes, head, self.opened, self.closed)
            if stands != (mark.records, mark.bytes, mark.head, mark.opened_bundles, mark.closed_bundles):
                what = f"up to here it is not what {mark.seal} names: it was changed since"
                raise broken(self.name, max(self.records, 1), 19, what)


def next_to(name: str) -> str:
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
