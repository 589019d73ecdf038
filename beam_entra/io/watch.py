"""Watching a pattern: a splittable DoFn without end that gives each version of a blob once.

What has been given is the restriction itself, so it is in the runner's checkpoint, not in a process: a worker that
takes over begins where the last checkpoint was. Of each blob that is there it holds 16 bytes, a digest of path and
ETag; what is deleted is forgotten. A runner that resumes sooner than asked, as some do at once, is kept from asking
Storage sooner.

A version's event time is when Storage wrote it. The watermark follows the beginning of each look, which finds all that
was written before. A blob that turns up with an earlier time still, as one that was moved may, counts from the
watermark at that look: nothing that the watch finds is ever late.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import Coder, PickleCoder
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.metrics.metric import Lineage
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration, Timestamp

from beam_entra.errors import BlobNotFound, ConfigError, Diagnosis
from beam_entra.io.claim import OneClaim
from beam_entra.io.dofn import ScopedDoFn, count
from beam_entra.io.match import match
from beam_entra.io.packs import KeyedPack, keyed, packed
from beam_entra.paths import BlobPath, BlobPattern
from beam_entra.session import BundleSession, JobScope
from beam_entra.storage import BlobProperties

__all__ = ["Watch", "WatchBlobs", "WatchTracker", "Watched", "event_time", "stamped"]

_DIGEST_BYTES = 16
_TO_GO_S = 2.0  # so long what the last look found has before the watermark goes to the end of time
_NAP_S = 1.0  # so long at most a bundle waits that was begun too soon; then it gives way to others
_LONGEST_TO_SPARE = timedelta(minutes=10)
_WATERMARK = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider())


def _seconds(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
        raise ConfigError(f"watch={given!r} is no time", Diagnosis(hint="seconds, a timedelta, or Watch(...)"))
    return given


@dataclass(frozen=True, slots=True)
class Watch:
    """How often to look for new blobs, and until when.

    A job with a fixed deadline ends its watching before that, with a tenth of the job's life to spare, ten minutes at
    most: what was found is still read and written.

    Attributes:
        interval: From one look to the next; seconds, or a timedelta.
        until: The last look is the first one after this: an aware instant, or a time from the job's launch on.
        stop: A blob that the job may read. When it is there, the look that finds it is the last one: that ends the job
            in order, from outside.
    """

    interval: timedelta | float
    until: datetime | timedelta | None = None
    stop: str | None = None

    def __post_init__(self) -> None:
        interval = self.interval
        if not isinstance(interval, timedelta):
            interval = timedelta(seconds=_seconds(interval))
            object.__setattr__(self, "interval", interval)
        if interval <= timedelta():
            raise ConfigError(f"watch={interval} is no interval: it is longer than nothing")
        until: object = self.until
        if not isinstance(until, datetime | timedelta | None):
            raise ConfigError(
                f"until={until!r} is no time",
                Diagnosis(hint="an aware datetime, or a timedelta from the launch on: until=timedelta(hours=8)"),
            )
        if isinstance(self.until, datetime) and self.until.tzinfo is None:
            raise ConfigError("until has no time zone", Diagnosis(hint="say which: datetime(..., tzinfo=UTC)"))
        if self.stop is not None and BlobPath.parse(self.stop).is_prefix:
            raise ConfigError(f"stop={self.stop} is a prefix", Diagnosis(hint="name one blob"))

    @property
    def interval_s(self) -> float:
        """The interval in seconds."""
        assert isinstance(self.interval, timedelta)  # noqa: S101 - narrows the type
        return self.interval.total_seconds()

    def ends(self, scope: JobScope) -> datetime | None:
        """When a job stops to watch; None is never."""
        until = scope.launched + self.until if isinstance(self.until, timedelta) else self.until
        if scope.manifest.lifetime.rolling:
            return until
        in_time = scope.deadline - min(scope.manifest.lifetime.job / 10, _LONGEST_TO_SPARE)
        return in_time if until is None else min(until, in_time)


class Watched(NamedTuple):
    """A restriction: where a watch has come to.

    Attributes:
        given: Digests of the versions that were given and are still there, one after the other.
        due_s: When to look again, in seconds of the epoch.
        last: The last look is done. The watermark is held until what it found is on its way.
        over: Nothing is looked for any more.
    """

    given: bytes = b""
    due_s: float = 0.0
    last: bool = False
    over: bool = False


_OVER = Watched(over=True)


class WatchTracker(OneClaim):
    """One look is one claim: of what will have been given after it. What is split off is all that comes later."""

    def __init__(self, restriction: Watched) -> None:
        super().__init__(restriction, _OVER, unfinished="the watch has ended before its end")

    def is_bounded(self) -> bool:
        """Only what is over has an end: whoever drains a job drops the rest."""
        return bool(self.current_restriction().over)


@beam.typehints.with_output_types(KeyedPack)
class WatchBlobs(ScopedDoFn, RestrictionProvider):  # type: ignore[misc]  # Beam's class is untyped
    """A pattern to packs of blobs, without end.

    A pack's timestamp is that of its earliest blob; see `event_time`.

    Args:
        ends: When the last look is due.
        small_bytes, pack_blobs, pack_bytes: As for `packed`.
    """

    def __init__(
        self, watch: Watch, *, ends: datetime | None, small_bytes: int, pack_blobs: int, pack_bytes: int
    ) -> None:
        self._watch, self._ends = watch, ends
        self._packing = {"small_bytes": small_bytes, "pack_blobs": pack_blobs, "pack_bytes": pack_bytes}

    def initial_restriction(self, _pattern: str) -> Watched:
        return Watched()

    def create_tracker(self, restriction: Watched) -> WatchTracker:
        return WatchTracker(restriction)

    def restriction_size(self, _pattern: str, _restriction: Watched) -> int:
        return 1

    def restriction_coder(self) -> Coder:
        return PickleCoder()

    @beam.DoFn.unbounded_per_element()  # type: ignore[untyped-decorator]  # Beam's is untyped
    def process(
        self,
        pattern: str,
        tracker: Any = beam.DoFn.RestrictionParam(),
        watermark: Any = _WATERMARK,
    ) -> Iterator[TimestampedValue]:
        watched: Watched = tracker.current_restriction()
        if watched.over:
            return
        session = self.session()
        early_s = watched.due_s - session.clock().timestamp()
        if early_s > 0:
            nap_s = min(early_s, _NAP_S)
            session.pause(nap_s)
            if early_s > nap_s:
                tracker.defer_remainder(Duration(early_s - nap_s))
                return
        if watched.last:
            tracker.try_claim(_OVER)
            return
        began = session.clock()
        last = (self._ends is not None and began >= self._ends) or self._stopped(self.bundle())
        given, new = _new_ones(watched.given, self._match(pattern))
        due_s = began.timestamp() + self._watch.interval_s
        if self._ends is not None:
            due_s = min(due_s, self._ends.timestamp())
        if last:
            due_s = began.timestamp() + _TO_GO_S
        if not tracker.try_claim(Watched(given, due_s, last=last)):
            return
        promised = watermark.current_watermark()
        yield from stamped(new, promised, **self._packing)
        count(session.scope.job, "looks")
        count(session.scope.job, "blobs_matched", len(new))
        for blob in new:
            Lineage.sources().add("abs", blob.path.account, blob.path.container, blob.path.name)
        so_far = Timestamp(math.floor(began.timestamp()))  # in whole seconds, as Storage's times are
        if promised is None or so_far > promised:
            watermark.set_watermark(so_far)
        tracker.defer_remainder(Duration(max(due_s - session.clock().timestamp(), 0)))

    def _match(self, pattern: str) -> Iterator[BlobProperties]:
        return match(self.bundle(), BlobPattern.parse(pattern), allow_empty=True, markers=False)

    def _stopped(self, bundle: BundleSession) -> bool:
        if self._watch.stop is None:
            return False
        try:
            bundle.properties(BlobPath.parse(self._watch.stop))
        except BlobNotFound as missing:
            if missing.diagnosis.code == "ContainerNotFound":
                raise
            return False
        return True


def event_time(blob: BlobProperties, promised: Timestamp | None) -> Timestamp:
    """When Storage wrote a blob, or what the watermark had come to when it was found, whichever is later."""
    written = Timestamp(blob.last_modified.timestamp())
    return written if promised is None else max(written, promised)


def stamped(
    blobs: Iterable[BlobProperties], promised: Timestamp | None, *, small_bytes: int, pack_blobs: int, pack_bytes: int
) -> Iterator[TimestampedValue]:
    """Packs of blobs, each as early as its earliest one: none of its blobs is then stamped before it or made later."""
    by_time = sorted(blobs, key=lambda blob: blob.last_modified)
    for pack in packed(by_time, small_bytes=small_bytes, pack_blobs=pack_blobs, pack_bytes=pack_bytes):
        yield TimestampedValue(keyed(pack), event_time(pack[0], promised))


def _new_ones(given: bytes, blobs: Iterable[BlobProperties]) -> tuple[bytes, list[BlobProperties]]:
    """What has been given after these blobs, of those that are there; and the versions among them that were not yet."""
    before = {given[at : at + _DIGEST_BYTES] for at in range(0, len(given), _DIGEST_BYTES)}
    there: list[bytes] = []
    new: list[BlobProperties] = []
    for blob in blobs:
        digest = blake2b(f"{blob.path}\0{blob.etag}".encode(), digest_size=_DIGEST_BYTES).digest()
        there.append(digest)
        if digest not in before:
            new.append(blob)
    return b"".join(there), new
