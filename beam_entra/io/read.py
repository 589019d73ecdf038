"""Reading: pattern -> match (size, ETag) -> grant check -> bundle SAS -> ranged GET, ahead -> blocks -> records."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder, registry
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker, UnsplittableRestrictionTracker
from apache_beam.metrics.metric import Lineage
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.util import ReshufflePerKey
from apache_beam.transforms.window import TimestampedValue

from beam_entra.access import Permission, downscope
from beam_entra.access.downscope import require_grant
from beam_entra.errors import (
    BeamEntraError,
    BlobChanged,
    BlobNotFound,
    ConfigError,
    Diagnosis,
    FormatError,
    NotGranted,
)
from beam_entra.io import batches as _batches  # noqa: F401 - registers the coder of record batches
from beam_entra.io.ahead import LookAhead, Piece, ReadOrder
from beam_entra.io.blocks import BadRecord, Block, Range
from beam_entra.io.compression import Codec, Compression, check_readable, codec_for
from beam_entra.io.dofn import Scoped, ScopedDoFn, count, scope_of
from beam_entra.io.formats import BlobFormat, Lines
from beam_entra.io.match import match
from beam_entra.io.packs import KeyedPack, Pack, fetch_unordered, keyed, packed
from beam_entra.io.settle import flush_before_checkpoints
from beam_entra.io.source import BlobSource
from beam_entra.io.threads import fetch_threads
from beam_entra.io.watch import Watch, WatchBlobs, event_time
from beam_entra.paths import BlobPath, BlobPattern
from beam_entra.session import open_session
from beam_entra.storage import BlobProperties

__all__ = ["BadRecord", "Compression", "ReadAllFromBlob", "ReadFromBlob"]

_BLOCK_BYTES = 1 << 20  # what is made of one stays in the processor's cache, and in memory that is used again
_PREFETCH_BYTES = 32 << 20
_BLOCKS_A_SPLIT = 64
_SMALL = 2  # blobs up to so many to a block are small
_PACK_BLOBS = 256
_PACK_BYTES = 32 << 20
_PACK_TOGETHER = 16  # blobs whose records go to the trail in one append, at least where there are so many
_PACK_AHEAD = 64  # twice the threads: what waits for its audit record keeps no thread from fetching
GOOD, BAD = "good", "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How to read; see `ReadFromBlob`."""

    format: BlobFormat
    compression: Compression
    block_bytes: int
    prefetch_bytes: int
    max_record_bytes: int
    allow_empty: bool

    def codec(self, path: BlobPath) -> Codec | None:
        return codec_for(self.compression, path.name)

    def splittable(self, path: BlobPath) -> bool:
        return self.format.splittable and self.codec(path) is None

    @property
    def small_bytes(self) -> int:
        return self.block_bytes // _SMALL


class ReadAllFromBlob(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Reads the records of every blob that the input's patterns match.

    A glob leaves out blobs whose last segment begins with "_", as the markers of `WriteToBlob` and of other writers
    do, unless its own last segment begins with "_" too.

    Args:
        format: How records lie in the blobs.
        compression: `gzip`, `bzip2`, `zstd`, `deflate` or `none`; `auto` goes by what a name ends in: `.gz`, `.bz2`,
            `.zst`, `.zstd`, `.deflate`, `.zz`. What is compressed is read by one worker, in bounded memory.
        block_bytes: How much is handed on at once; it is fetched in requests of up to eight blocks. A blob that can be
            read in pieces is read in pieces of 64 blocks, by as many workers as there are. Blobs of up to half a block
            are read in packs, up to 32 at a time, in no order.
        prefetch_bytes: How much is fetched ahead of what is handed on, in requests that are under way together: what a
            reader holds in memory, and the most that comes in one round trip.
        max_record_bytes: When this much of a record has been fetched and its end is not in sight, the read fails rather
            than fill the memory. By default what the format says, 64 MiB for most.
        allow_empty: A pattern that matches nothing is no error. A container that is not there still is one.
        batched: Give `pyarrow.RecordBatch` of many records each in place of elements.
    """

    def __init__(
        self,
        format: BlobFormat | None = None,
        *,
        compression: Compression = "auto",
        block_bytes: int = _BLOCK_BYTES,
        prefetch_bytes: int = _PREFETCH_BYTES,
        max_record_bytes: int | None = None,
        allow_empty: bool = False,
        batched: bool = False,
    ) -> None:
        super().__init__()
        check_readable(compression)
        if min(block_bytes, prefetch_bytes) < 1 or (max_record_bytes is not None and max_record_bytes < 1):
            raise ConfigError("block_bytes, prefetch_bytes and max_record_bytes are at least 1")
        chosen = format or Lines()
        self._settings = ReadSettings(
            format=chosen,
            compression=compression,
            block_bytes=block_bytes,
            prefetch_bytes=prefetch_bytes,
            max_record_bytes=max_record_bytes or chosen.max_record_bytes,
            allow_empty=allow_empty,
        )
        self._batched = batched
        self._keep_bad = False

    def with_exception_handling(self) -> ReadAllFromBlob:
        """Give two outputs, the good elements and a `BadRecord` for each one that could not be decoded."""
        self._keep_bad = True
        return self

    def expand(self, patterns: beam.PCollection[str]) -> Any:
        return self._read(patterns | "Match" >> Scoped(_Match(self._settings)))

    def _read(self, packs: beam.PCollection[KeyedPack]) -> Any:
        blocks = packs | "Spread" >> _Spread() | "Read" >> Scoped(_ReadBlocks(self._settings))
        return self._decoded(blocks, _DecodeBatches if self._batched else _Decode)

    def _decoded(self, blocks: beam.PCollection[Block], decoder: type[_Decode]) -> Any:
        job = scope_of(blocks.pipeline).job
        decode = beam.ParDo(decoder(self._settings.format, keep_bad=self._keep_bad, job=job))
        if self._batched:
            decode = decode.with_output_types(pa.RecordBatch)
        if not self._keep_bad:
            return blocks | "Decode" >> decode
        outputs = blocks | "Decode" >> decode.with_outputs(BAD, main=GOOD)
        return outputs[GOOD], outputs[BAD]

    def display_data(self) -> dict[str, Any]:
        return {"format": type(self._settings.format).__name__, "batched": self._batched}


class ReadFromBlob(ReadAllFromBlob):
    """Reads the records of every blob that `pattern` matches, as the job.

        orders, bad = p | ReadFromBlob(options.input, JsonLines()).with_exception_handling()

    Whether the job may is checked when the pipeline is built, and again, for each blob, when it runs.

    Args:
        pattern: `abfss://container@account.dfs.core.windows.net/orders/*.jsonl`, or another spelling of it.
        format: How records lie in the blobs; the other arguments are those of `ReadAllFromBlob`.
        watch: Keep looking for blobs, at this interval in seconds or as a `Watch` says, and read each version of each
            blob once. The elements' event time is when Storage wrote their blob. Each blob is read by one worker; one
            that is replaced or deleted before that has begun is an error, or a `BadRecord` without bytes.

    Raises:
        ConfigError: The pattern is none, or the watch.
        NotGranted: No grant covers it. Raised when the transform is applied; nothing was sent to the path.
    """

    def __init__(
        self,
        pattern: str,
        format: BlobFormat | None = None,
        *,
        watch: Watch | timedelta | float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(format, **settings)
        self._pattern = BlobPattern.parse(pattern)
        self._watch = watch if watch is None or isinstance(watch, Watch) else Watch(watch)

    def expand(self, pbegin: beam.pvalue.PBegin) -> Any:
        check_at_launch(pbegin.pipeline, *_access_of(self._pattern))
        if self._watch is not None:
            return self._watched(pbegin | "Pattern" >> beam.Create([str(self._pattern)]), self._watch)
        once = pbegin | "Once" >> beam.Impulse()
        return self._read(once | "Match" >> Scoped(_Match(self._settings, only=str(self._pattern))))

    def _watched(self, pattern: beam.PCollection[str], watch: Watch) -> Any:
        scope = scope_of(pattern.pipeline)
        pattern.pipeline.options.view_as(StandardOptions).streaming = True  # else Flink's bundles take ten seconds
        flush_before_checkpoints(pattern.pipeline)
        if watch.stop is not None:
            check_at_launch(pattern.pipeline, BlobPath.parse(watch.stop), Permission.READ)
        look = WatchBlobs(
            watch,
            ends=watch.ends(scope),
            small_bytes=self._settings.small_bytes,
            pack_blobs=_PACK_BLOBS,
            pack_bytes=_PACK_BYTES,
        )
        blocks = (
            pattern
            | "Watch" >> Scoped(look)
            | "Spread" >> _Spread()
            | "Read" >> Scoped(_ReadWatched(self._settings, keep_gone=self._keep_bad))
        )
        return self._decoded(blocks, _DecodeWatchedBatches if self._batched else _DecodeWatched)

    def display_data(self) -> dict[str, Any]:
        watch = {} if self._watch is None else {"watch_s": self._watch.interval_s}
        return {**super().display_data(), "pattern": str(self._pattern), **watch}


def check_at_launch(pipeline: beam.Pipeline, path: BlobPath, permission: Permission) -> None:
    """Refuse, and record the refusal, before a job starts that would be refused on its workers.

    Args:
        path: For WRITE also a prefix; then a grant has to cover all below it.

    Raises:
        NotGranted: No grant covers the path.
    """
    scope = scope_of(pipeline)
    session = open_session(scope)
    try:
        if path.is_prefix and permission is Permission.WRITE:  # each of its SAS will be for one blob
            require_grant(scope.manifest, path, permission)
        else:
            downscope(scope.manifest, path, permission, now=session.clock(), deadline=session.deadline)
    except NotGranted as error:
        try:
            with session.bundle("launch") as bundle:
                bundle.deny(error, str(path), permission.value, "manifest")
        except BeamEntraError as unrecorded:
            error.add_note(f"and the refusal could not be recorded: {unrecorded.message}")
        raise


def _access_of(pattern: BlobPattern) -> tuple[BlobPath, Permission]:
    return pattern.prefix, Permission.READ if pattern.glob is None else Permission.LIST


class _Spread(beam.Reshuffle):  # type: ignore[misc]  # Beam's class is untyped
    """A shuffle of what has a random key already: two steps less than with one that gives it, and takes it away."""

    def expand(self, packs: beam.PCollection[KeyedPack]) -> beam.PCollection[KeyedPack]:
        return packs | "By key" >> ReshufflePerKey().with_output_types(KeyedPack)


@beam.typehints.with_output_types(KeyedPack)
class _Match(ScopedDoFn):
    """Pattern to packs of blobs. One that matches nothing is an error unless allowed.

    Args:
        only: The pattern, if there is only one; then whatever comes stands for it.
    """

    def __init__(self, settings: ReadSettings, only: str | None = None) -> None:
        self._settings, self._only = settings, only

    def process(self, element: Any) -> Iterator[KeyedPack]:
        found, pattern = 0, element if self._only is None else self._only
        allow_empty = self._settings.allow_empty
        blobs = match(self.bundle(), BlobPattern.parse(pattern), allow_empty=allow_empty, markers=False)
        small_bytes = self._settings.small_bytes
        for pack in packed(blobs, small_bytes=small_bytes, pack_blobs=_PACK_BLOBS, pack_bytes=_PACK_BYTES):
            found += len(pack)
            for blob in pack:
                Lineage.sources().add("abs", blob.path.account, blob.path.container, blob.path.name)
            yield keyed(pack)
        count(self.session().scope.job, "blobs_matched", found)
        if not found and not self._settings.allow_empty:
            raise BlobNotFound(
                f"no blob matches {pattern}",
                Diagnosis(tried=f"match {pattern}", hint="check the pattern; if that may be so, say allow_empty=True"),
            )


class _Whole(OffsetRange):  # type: ignore[misc]  # Beam's class is untyped
    """The restriction of what is read as a whole, a blob or a pack: one claim, no split."""

    def __init__(self) -> None:
        super().__init__(0, 1)


class _Claims:
    """A restriction tracker as `split_blocks` sees it."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker
        self._refused = False

    def try_claim(self, position: int) -> bool:
        claimed: bool = self._tracker.try_claim(position)
        self._refused = not claimed
        return claimed

    def finish(self) -> None:
        """Claim the end of the range: what lies behind the last claimed record is done, as no record begins there."""
        if not self._refused:
            self._tracker.try_claim(self.stop())

    def stop(self) -> int:
        stop: int = self._tracker.current_restriction().stop
        return stop


class _BlockCoder(Coder):  # type: ignore[misc]  # Beam's class is untyped
    """Blocks as pickles. When Beam asks how long an element is, as it does now and then, it is told without one."""

    def encode(self, value: Block) -> bytes:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> Block:
        block: Block = pickle.loads(encoded)  # noqa: S301 - what `encode` gave, as with Beam's own coder of objects
        return block

    def estimate_size(self, value: Block) -> int:
        data = value.data
        size: int = data.nbytes if isinstance(data, pa.RecordBatch) else len(data)
        return size

    def is_deterministic(self) -> bool:
        """No: nothing is grouped by a block."""
        return False

    def to_type_hint(self) -> type:
        return Block


registry.register_coder(Block, _BlockCoder)


@beam.typehints.with_output_types(Block)
class _ReadBlocks(ScopedDoFn, RestrictionProvider):  # type: ignore[misc]  # Beam's class is untyped
    """Packs of blobs to blocks of whole records; a large blob in byte ranges where the format can be split."""

    _ahead: LookAhead | None = None

    def __init__(self, settings: ReadSettings) -> None:
        self._settings = settings

    def initial_restriction(self, keyed_pack: KeyedPack) -> OffsetRange:
        settings, (_, pack) = self._settings, keyed_pack
        first, alone = pack[0], len(pack) == 1
        splits = alone and first.size_bytes > settings.small_bytes and settings.splittable(first.path)
        return OffsetRange(0, first.size_bytes) if splits else _Whole()

    def create_tracker(self, restriction: OffsetRange) -> Any:
        tracker = OffsetRestrictionTracker(restriction)
        return UnsplittableRestrictionTracker(tracker) if isinstance(restriction, _Whole) else tracker

    def split(self, keyed_pack: KeyedPack, restriction: OffsetRange) -> Iterator[OffsetRange]:
        _, pack = keyed_pack
        if isinstance(restriction, _Whole):
            pieces = [restriction]
        else:
            split_bytes = _BLOCKS_A_SPLIT * self._settings.block_bytes
            pieces = list(restriction.split(split_bytes, split_bytes // 2))
        for piece in pieces:
            self._order().add(_piece(pack, piece) if len(pack) == 1 else None)
        yield from pieces

    def restriction_size(self, keyed_pack: KeyedPack, restriction: OffsetRange) -> int:
        _, pack = keyed_pack
        whole = isinstance(restriction, _Whole)
        size: int = sum(blob.size_bytes for blob in pack) if whole else restriction.size()
        return size

    def process(self, keyed_pack: KeyedPack, tracker: Any = beam.DoFn.RestrictionParam()) -> Iterator[Block]:
        _, pack = keyed_pack
        restriction = tracker.current_restriction()
        if isinstance(restriction, _Whole):
            if not tracker.try_claim(0):
                return
            if len(pack) > 1:
                yield from self._each(pack)
            else:
                yield from self._whole(pack)
                self._count_read(1)
            return
        claims = _Claims(tracker)
        source = self._look_ahead().source(_piece(pack, restriction))
        for block in self._settings.format.split(source, restriction.start, restriction.stop, claims):
            source.recorded()
            yield block
        source.recorded()
        claims.finish()
        if claims.stop() == pack[0].size_bytes:  # one piece has the end, however they were split
            self._count_read(1)

    def _count_read(self, blobs: int) -> None:
        count(self.session().scope.job, "blobs_read", blobs)

    def _each(self, pack: Pack) -> Iterator[Block]:
        """The blobs of a pack, in whatever order they come."""
        for blob in pack:
            if not blob.size_bytes:  # there is nothing to fetch; whether it is something, its format says
                yield from self._blocks(blob, iter(()))
                self._count_read(1)
        with closing(
            fetch_unordered(
                self._fetch,
                (blob for blob in pack if blob.size_bytes),
                executor=fetch_threads(self.bundle().session),
                depth=_PACK_AHEAD,
                together=_PACK_TOGETHER,
            )
        ) as arriving:
            for some in arriving:
                for blob, fetched in some:  # the first one waits, for the records of all
                    yield from self._of_pack(blob, fetched)
                self._count_read(len(some))

    def _fetch(self, blob: BlobProperties) -> Any:
        return self.bundle().fetch(blob, 0, blob.size_bytes, prompt=False)

    def _of_pack(self, blob: BlobProperties, fetched: Any) -> Iterator[Block]:
        return self._blocks(blob, iter((fetched.take(),)))

    def _whole(self, pack: Pack) -> Iterator[Block]:
        (blob,) = pack
        source = self._look_ahead().source(_piece(pack, _Whole()))
        if self._settings.codec(blob.path):
            return self._blocks(blob, source.stream(0, blob.size_bytes))
        return self._settings.format.read(source)

    def _blocks(self, blob: BlobProperties, pieces: Iterator[bytes | bytearray]) -> Iterator[Block]:
        path, settings = str(blob.path), self._settings
        if codec := settings.codec(blob.path):
            pieces = codec.decompress(path, pieces, piece_bytes=settings.block_bytes)
        return settings.format.stream(path, pieces, max_record_bytes=settings.max_record_bytes)

    # What comes next

    def _look_ahead(self) -> LookAhead:
        if self._ahead is None:
            self._ahead = LookAhead(
                self._order(), open_source=self._source, wanted=self._wanted, executor=fetch_threads(self.session())
            )
        return self._ahead

    def _order(self) -> ReadOrder:
        return self.session().resource(f"read order of {self.step}", ReadOrder)

    def _source(self, piece: Piece) -> BlobSource:
        settings = self._settings
        return BlobSource(
            self.bundle(),
            piece.blob,
            block_bytes=settings.block_bytes,
            prefetch_bytes=settings.prefetch_bytes,
            max_record_bytes=settings.max_record_bytes,
        )

    def _wanted(self, piece: Piece, source: BlobSource) -> Iterator[Range]:
        settings = self._settings
        streamed = settings.format.splittable and piece.blob.size_bytes <= settings.small_bytes
        if streamed or settings.codec(piece.blob.path):
            return source.requests(0, piece.stop)
        return settings.format.wanted(source, piece.start, piece.stop)

    def _close(self, outcome: Any) -> None:
        ahead, self._ahead = self._ahead, None
        try:
            if ahead is not None:
                ahead.close()
        finally:
            super()._close(outcome)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_ahead"}


def _piece(pack: Pack, restriction: OffsetRange) -> Piece:
    (blob,) = pack
    return Piece(blob, 0, blob.size_bytes) if isinstance(restriction, _Whole) else Piece(
        blob, restriction.start, restriction.stop
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gone(Block):
    """In place of a blob that was found, and is no longer what it was."""

    reason: str


class _ReadWatched(_ReadBlocks):
    """Packs of blobs to blocks, each blob by one worker in one go: all of a version is read, or nothing of it.

    Args:
        keep_gone: Give a `_Gone` for a version that is not there any more; else that is an error.
    """

    def __init__(self, settings: ReadSettings, *, keep_gone: bool) -> None:
        super().__init__(settings)
        self._keep_gone = keep_gone

    def initial_restriction(self, keyed_pack: KeyedPack) -> OffsetRange:
        return _Whole()

    def process(  # type: ignore[override]  # Beam passes what the defaults name, and wants the tracker last
        self,
        keyed_pack: KeyedPack,
        timestamp: Any = beam.DoFn.TimestampParam,
        tracker: Any = beam.DoFn.RestrictionParam(),
    ) -> Iterator[Any]:
        _, pack = keyed_pack
        times = {str(blob.path): event_time(blob, timestamp) for blob in pack}
        for block in super().process(keyed_pack, tracker):
            yield TimestampedValue(block, times[block.path])

    def _whole(self, pack: Pack) -> Iterator[Block]:
        (blob,) = pack
        blocks = super()._whole(pack)
        try:
            first = next(blocks, None)
        except (BlobChanged, BlobNotFound) as error:
            yield self._gone(blob, error)
            return
        if first is not None:
            yield first
            yield from blocks

    def _fetch(self, blob: BlobProperties) -> Any:
        try:
            return super()._fetch(blob)
        except (BlobChanged, BlobNotFound) as error:
            return self._gone(blob, error)

    def _of_pack(self, blob: BlobProperties, fetched: Any) -> Iterator[Block]:
        return iter((fetched,)) if isinstance(fetched, _Gone) else super()._of_pack(blob, fetched)

    def _gone(self, blob: BlobProperties, error: BlobChanged | BlobNotFound) -> _Gone:
        reason = f"replaced or deleted before the version of {blob.last_modified:%Y-%m-%d %H:%M:%SZ} was read"
        if not self._keep_gone or error.diagnosis.code == "ContainerNotFound":
            hint = "have each blob written once, or keep these apart: ReadFromBlob(...).with_exception_handling()"
            raise type(error)(f"{blob.path} was {reason}", replace(error.diagnosis, hint=hint))
        return _Gone(path=str(blob.path), offset=0, data=b"", reason=reason)


class _Decode(beam.DoFn):  # type: ignore[misc]  # Beam's DoFn is untyped
    """Blocks to elements; fused behind the read."""

    def __init__(self, format: BlobFormat, *, keep_bad: bool, job: str) -> None:
        self._format = format
        self._keep_bad = keep_bad
        self._job = job

    def process(self, block: Block) -> Iterable[Any]:
        elements = self._format.decode_all(block)
        if elements is None:
            return self._one_by_one(block)
        count(self._job, "records_read", len(elements))
        return elements

    def _one_by_one(self, block: Block) -> Iterator[Any]:
        bad: list[BadRecord] = []
        good = yield from self._format.decode_each(block, bad)
        count(self._job, "records_read", good)
        yield from self._bad_ones(bad)

    def _bad_ones(self, bad: list[BadRecord]) -> Iterator[Any]:
        if not bad:
            return
        count(self._job, "records_bad", len(bad))
        if not self._keep_bad:
            first = bad[0]
            raise FormatError(
                f"the record at byte {first.offset} of {first.path} cannot be decoded: {first.reason}",
                Diagnosis(hint="mend the blob, or keep such records apart: ReadFromBlob().with_exception_handling()"),
            )
        for record in bad:
            yield beam.pvalue.TaggedOutput(BAD, record)


class _DecodeBatches(_Decode):
    """Blocks to record batches."""

    def process(self, block: Block) -> Iterator[Any]:
        bad: list[BadRecord] = []
        for batch in self._format.decode_batches(block, bad):
            count(self._job, "records_read", batch.num_rows)
            yield batch
        yield from self._bad_ones(bad)


class _DecodeWatched(_Decode):
    """Blocks to elements, and what is gone to the bad ones."""

    def process(self, block: Block) -> Iterable[Any]:
        return self._bad_ones([_unread(block)]) if isinstance(block, _Gone) else super().process(block)


class _DecodeWatchedBatches(_DecodeBatches):
    """Blocks to record batches, and what is gone to the bad ones."""

    def process(self, block: Block) -> Iterator[Any]:
        return self._bad_ones([_unread(block)]) if isinstance(block, _Gone) else super().process(block)


def _unread(gone: _Gone) -> BadRecord:
    return BadRecord(path=gone.path, offset=0, reason=gone.reason, record=b"")
