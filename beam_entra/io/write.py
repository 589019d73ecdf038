"""Writing: encode -> staged blocks -> group -> commit -> `_SUCCESS`.

Workers stage blocks straight to the final blobs, where nobody can see them. What a bundle has staged leaves it as a few
small `Staged` values. One step behind a GroupByKey commits, each blob once:

1. `_COMMITTING`: what is about to be committed, by which job. If another commit has begun under this prefix, it is
   there already, and nothing of this one becomes visible. Another commit is another job's, or one of other blocks: a
   runner that has lost a bundle's outputs computes them again, and both must not be committed.
2. Each blob: Put Block List of the blocks that the bundles which succeeded have staged; blocks of dead attempts are in
   no list. A retry of the step finds its own blobs by their blocks.
3. `_SUCCESS`: the blobs of the job, their ETags, sizes and rows.

With `overwrite`, blobs of an earlier run are replaced one by one. Its `_SUCCESS`, if there is one, is replaced before
the first of them by one whose `state` is "in progress", and at the end by one whose `state` is "complete". Every shard
is written, the ones without rows empty (or with a header alone), so that no blob of the earlier run stays. Whoever is
overtaken by another attempt or job stops: a commit drops what others have staged to the blob, and what has no rows, and
the markers, replace only the version that was there when the commit began.

Any number of bundles may stage to one blob, so automatic sharding gives one blob a worker process, not one a bundle.
Where a format's blobs are written by one hand, it is one a bundle; fixed shards are brought together by a GroupByKey. A
runner that computes again what was dealt before it must not mix the two, which the commit step checks: see `Dealt`.

Of input without end each window is committed for itself, in a folder that is named after it, with markers of its own.
Where a window may fire more than once, each pane is: no bundle stages to a blob of another then, since nobody knows in
which pane its elements will be, and the markers carry the pane's number. Before a commit on a runner with checkpoints,
what is to be committed is in one: see `settle`.
"""

from __future__ import annotations

import copy
import io
import random
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics.metric import Lineage
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.trigger import AccumulationMode, AfterWatermark, DefaultTrigger
from apache_beam.transforms.window import FixedWindows, GlobalWindows, SlidingWindows
from apache_beam.utils.windowed_value import WindowedValue

from beam_entra.access import Permission
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.batches import RecordBatchCoder
from beam_entra.io.commit import check_dealt, commit
from beam_entra.io.compression import Compression, codec_to_write
from beam_entra.io.dofn import Scoped, ScopedDoFn, count, scope_of
from beam_entra.io.formats import BlobFormat, BlockFormat, FileFormat, Lines
from beam_entra.io.formats.rows import weight_bytes
from beam_entra.io.read import check_at_launch
from beam_entra.io.settle import flush_before_checkpoints, settled
from beam_entra.io.sink import Dealt, Staged, WindowShards, WriteSettings, shards_of
from beam_entra.io.staging import FileStager, Stager, stager_for
from beam_entra.paths import BlobPath
from beam_entra.session import CommittedBlob, open_session

__all__ = ["WriteToBlob"]

_BLOCK_BYTES = 4 << 20
_MOST_SHARDS = 10_000
_CHUNK = 64  # elements that are grouped together
_HELD = 1024  # elements that a bundle holds in chunks
_HELD_BYTES = 16 << 20  # of them
_CHUNK_BYTES = 4 << 20  # of a record batch
_LONGEST_WINDOW_S = 6 * 86400  # of the week that Storage keeps blocks, a day is left to settle and commit
_MOST_STAGERS = 16  # windows that a bundle stages at once
_NOBODYS = -1  # no shard: where the counterpart of a bundle's chunks goes
_NUMBER_BITS = 40
_AGAIN = (
    "the runner went back to a checkpoint from before that commit, and what it computed again lies in other blocks. "
    "Nothing is lost or doubled so far: see docs/streaming.md for how to go on"
)
_BATCHES = RecordBatchCoder()


class WriteToBlob(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Writes each element once to blobs below a prefix, as the job.

    Gives a `CommittedBlob` for each blob, after all are committed. Order is not kept.

    Input without end has to be in windows, or have a trigger. Each window's blobs, `_COMMITTING` and `_SUCCESS` are in
    a folder of its own below the prefix, named after its beginning and end: `20261121T080000Z_20261121T081500Z/`. If a
    window may fire more than once, each pane has markers of its own, `_SUCCESS-00000` and so on.

    Args:
        prefix: `abfss://container@account.dfs.core.windows.net/orders/`: where the blobs go.
        format: How elements become records.
        shards: Write exactly this many blobs, filled alike (without `overwrite` fewer if there are fewer elements).
            None: about one a worker process, more where they grow long. In windows it is as many for each; not for
            windows that may fire more than once, where it is about one a bundle.
        compression: `gzip`, `bzip2`, `zstd` or `none`.
        overwrite: Replace an earlier run's blobs, all of them: shards without elements become empty blobs. Needs
            `shards`, the same format and compression in each run: blobs of other names stay beside the new ones, and
            `_SUCCESS` does not list them. While it goes on, the `state` in an earlier run's `_SUCCESS` is
            "in progress"; only the content says so, since a job that can only write cannot remove it.
        block_bytes: Size of a staged block.
        per_window: Commit the windows of bounded input one by one, too. Those of input without end always are.

    Raises:
        ConfigError: The arguments do not go together, or not with the windows of the input.
        NotGranted: No grant covers the prefix. Raised when the transform is applied; nothing was sent to it.
    """

    def __init__(
        self,
        prefix: str,
        format: BlobFormat | None = None,
        *,
        shards: int | None = None,
        compression: Compression = "none",
        overwrite: bool = False,
        block_bytes: int = _BLOCK_BYTES,
        per_window: bool = False,
    ) -> None:
        super().__init__()
        path = BlobPath.parse(prefix)
        if not path.is_prefix:
            raise ConfigError(f"{path} is one blob, not a prefix", Diagnosis(hint=f"end it with a slash: {path}/"))
        chosen = format or Lines()
        if isinstance(chosen, FileFormat) and chosen.one_element and (shards is not None or overwrite):
            raise ConfigError(
                f"with {type(chosen).__name__} each element is a blob of its own: there are no shards, nor their names",
                Diagnosis(hint="leave shards and overwrite out; write to a new prefix"),
            )
        if shards is not None and not 1 <= shards <= _MOST_SHARDS:
            raise ConfigError(f"shards={shards} is not between 1 and {_MOST_SHARDS}")
        if overwrite and shards is None:
            raise ConfigError(
                "overwrite without a fixed number of shards would leave an earlier run's blobs beside the new ones",
                Diagnosis(hint="say how many: WriteToBlob(..., shards=8, overwrite=True), or write to a new prefix"),
            )
        codec_to_write(compression)
        if block_bytes < 1:
            raise ConfigError("block_bytes is at least 1")
        _check_writable(chosen, empty=overwrite)
        self._settings = WriteSettings(
            prefix=path,
            format=chosen,
            shards=shards,
            compression=compression,
            overwrite=overwrite,
            block_bytes=block_bytes,
            sink=uuid.uuid4().hex,
        )
        self._per_window = per_window

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[CommittedBlob]:
        pipeline = elements.pipeline
        per_window = self._per_window or not elements.is_bounded
        if per_window:
            _check_windows(self._settings, elements.windowing, bounded=elements.is_bounded)
        check_at_launch(pipeline, self._settings.prefix, Permission.WRITE)
        _claim_prefix(pipeline, self._settings.prefix)
        if per_window:
            return self._in_windows(elements)
        if not elements.windowing.is_default():  # where it is, the step would do nothing, and cost as much as encoding
            elements |= "One window" >> beam.WindowInto(GlobalWindows())
        begin = pipeline | "Once" >> beam.Impulse() | "Begin" >> beam.Map(_begun).with_output_types(Keyed)
        return (
            (self._staged(elements), begin)
            | "With begin" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Commit" >> Scoped(_Commit(self._settings))
        )

    def _in_windows(self, elements: beam.PCollection[Any]) -> beam.PCollection[CommittedBlob]:
        settings, panes = self._settings, _may_fire_again(elements.windowing)
        if isinstance(settings.format, BlockFormat) or settings.shards is None:
            staged = elements | "Stage" >> Scoped(_StageWindows(settings, panes=panes))
        else:
            chunks = elements | "Deal" >> beam.ParDo(_DealWindows(settings.shards)).with_output_types(tuple[int, Any])
            staged = chunks | "Shard" >> beam.GroupByKey() | "Stage" >> Scoped(_StageShard(settings))
        groups = staged | "Group" >> beam.GroupByKey()
        flush_before_checkpoints(elements.pipeline)
        # Of bounded input an attempt that comes after one that died has the same records.
        again = "" if elements.is_bounded and not panes else _AGAIN
        return (
            settled(groups | "Staged" >> beam.Map(_listed))
            | "Commit" >> Scoped(_Commit(settings, panes=panes, again=again))
        )

    def _staged(self, elements: beam.PCollection[Any]) -> beam.PCollection[Keyed]:
        settings = self._settings
        if isinstance(settings.format, BlockFormat) or settings.shards is None:
            return elements | "Stage" >> Scoped(_Stage(settings))
        chunks = elements | "Deal" >> beam.ParDo(_Deal(settings.shards)).with_output_types(tuple[int, Any])
        if settings.overwrite:  # every shard is written
            nothing: list[tuple[int, Any]] = [(number, (0, [])) for number in range(settings.shards)]
            empty = elements.pipeline | "Shards" >> beam.Create(nothing)
            chunks = (chunks, empty) | "With shards" >> beam.Flatten()
        return chunks | "Shard" >> beam.GroupByKey() | "Stage" >> Scoped(_StageShard(settings))

    def display_data(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "prefix": str(settings.prefix),
            "format": type(settings.format).__name__,
            "shards": settings.shards or "automatic",
            "overwrite": settings.overwrite,
        }


def _check_writable(format: BlobFormat, *, empty: bool) -> None:
    """A format that was made for reading alone says so when it begins a blob; or when it ends one that is empty."""
    if isinstance(format, BlockFormat):
        format.header()
    elif isinstance(format, FileFormat):
        writer = format.open(io.BytesIO())
        if empty:
            writer.close()
    else:
        raise ConfigError(
            f"{type(format).__name__} reads and does not write",
            Diagnosis(hint="derive it from BlockFormat or FileFormat"),
        )


def _may_fire_again(windowing: Windowing) -> bool:
    trigger = windowing.triggerfn
    at_the_end = isinstance(trigger, AfterWatermark) and not (trigger.early or trigger.late)
    once = (at_the_end or isinstance(trigger, DefaultTrigger)) and windowing.allowed_lateness == 0
    return not once


def _open_s(windowing: Windowing) -> float:
    """How long what is in a window waits at most until it fires, as far as can be told."""
    windows, trigger = windowing.windowfn, windowing.triggerfn
    early = not isinstance(trigger, DefaultTrigger | AfterWatermark) or bool(getattr(trigger, "early", None))
    return 0.0 if early or not isinstance(windows, FixedWindows | SlidingWindows) else float(windows.size)


def _check_windows(settings: WriteSettings, windowing: Windowing, *, bounded: bool) -> None:
    panes = _may_fire_again(windowing)
    if isinstance(windowing.windowfn, GlobalWindows) and not panes:
        if bounded:
            raise ConfigError(
                "per_window commits one window at a time, and this input is in none",
                Diagnosis(hint="leave per_window out, or window it: beam.WindowInto(FixedWindows(300))"),
            )
        raise ConfigError(
            "WriteToBlob commits when its input ends, and this input never does",
            Diagnosis(hint="put it into windows first: beam.WindowInto(FixedWindows(300)); or set a trigger"),
        )
    if windowing.windowfn.is_merging():
        raise ConfigError(
            f"{type(windowing.windowfn).__name__} grow together, so that no blob can be named after one of them",
            Diagnosis(hint="group by session first, then write in beam.WindowInto(FixedWindows(300))"),
        )
    if settings.overwrite:
        raise ConfigError("windows are not overwritten", Diagnosis(hint="leave overwrite out; write to a new prefix"))
    if not bounded and _open_s(windowing) > _LONGEST_WINDOW_S:
        raise ConfigError(
            "Storage drops after a week what was staged and not committed, and these windows are open for longer than "
            f"{_LONGEST_WINDOW_S // 86400} days",
            Diagnosis(
                hint="beam.WindowInto(FixedWindows(86400)); or commit early, too: "
                "trigger=AfterWatermark(early=AfterProcessingTime(3600))"
            ),
        )
    if panes and windowing.accumulation_mode != AccumulationMode.DISCARDING:
        raise ConfigError(
            "a window that fires again with what it has given before would be written twice",
            Diagnosis(hint="beam.WindowInto(..., accumulation_mode=AccumulationMode.DISCARDING)"),
        )
    if panes and settings.shards is not None:
        raise ConfigError(
            "a window that may fire more than once has no fixed number of blobs",
            Diagnosis(hint="leave shards out, or have it fire once: no trigger, allowed_lateness=0"),
        )


def _claim_prefix(pipeline: beam.Pipeline, prefix: BlobPath) -> None:
    taken: set[BlobPath] = open_session(scope_of(pipeline)).resource("prefixes written to", set)
    if prefix in taken:
        raise ConfigError(
            f"two sinks of this pipeline write to {prefix}",
            Diagnosis(hint="give each WriteToBlob a prefix of its own, or flatten what they write first"),
        )
    taken.add(prefix)


Part = Staged | Dealt | None  # None is what has a sink commit that nothing was written to
Keyed = tuple[str, Part]  # all under one key: they are committed in one step


def _keyed(part: Part) -> Keyed:
    return "", part


def _begun(_once: bytes) -> Keyed:
    return _keyed(None)


def _listed(group: tuple[str, Iterable[Part]]) -> tuple[str, list[Part]]:
    key, parts = group
    return key, list(parts)


# Staging


@beam.typehints.with_output_types(Keyed)
class _Stage(ScopedDoFn):
    """Elements to staged blocks, a bundle at a time."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._stager: Stager | None = None

    def start_bundle(self) -> None:
        self._drop()
        super().start_bundle()

    def process(self, element: Any) -> None:
        stager = self._stager
        if stager is None:
            stager = self._stager = stager_for(self.bundle(), self._settings)
        if isinstance(element, pa.RecordBatch):
            stager.add_batch(element)
        else:
            stager.add(element)

    def finish_bundle(self) -> Iterator[Any]:
        stager = self._stager
        staged = stager.finish() if stager is not None else []
        self._stager = None  # only now: one that failed is abandoned, which waits for what is under way
        if stager is not None:
            count(self.session().scope.job, "records_written", stager.rows)
        super().finish_bundle()
        for part in staged:
            yield GlobalWindows.windowed_value(_keyed(part))

    def teardown(self) -> None:
        self._drop()
        super().teardown()

    def _drop(self) -> None:
        stager, self._stager = self._stager, None
        if stager is not None:
            stager.abandon()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stager": None}


@beam.typehints.with_output_types(Keyed)
class _StageWindows(ScopedDoFn):
    """Elements to staged blocks, a bundle at a time, those of each window for themselves.

    Args:
        panes: A window may fire more than once.
    """

    def __init__(self, settings: WriteSettings, *, panes: bool) -> None:
        self._settings = settings
        self._panes = panes
        self._stagers: dict[Any, Stager] = {}
        self._staged: list[WindowedValue] = []

    def start_bundle(self) -> None:
        self._drop()
        super().start_bundle()

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> None:
        stager = self._stagers.pop(window, None)
        if stager is None:
            if len(self._stagers) >= _MOST_STAGERS:
                self._finish(next(iter(self._stagers)))
            stager = self._open(window)
        self._stagers[window] = stager  # behind all others: the one that was used longest ago is finished first
        if isinstance(element, pa.RecordBatch):
            stager.add_batch(element)
        else:
            stager.add(element)

    def _open(self, window: Any) -> Stager:
        settings = self._settings.within(window)
        if self._panes:  # nobody else's blobs: the next bundle's elements may be in another pane
            return stager_for(self.bundle(), settings, shards_of(settings))
        shards: WindowShards = self.session().resource(f"windows of {settings.sink}", WindowShards)
        return stager_for(self.bundle(), settings, shards.of(settings))

    def _finish(self, window: Any) -> None:
        stager = self._stagers[window]
        at = window.max_timestamp()
        self._staged += [WindowedValue(_keyed(part), at, (window,)) for part in stager.finish()]
        del self._stagers[window]  # only now: one that failed is abandoned, which waits for what is under way
        count(self.session().scope.job, "records_written", stager.rows)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window in list(self._stagers):
            self._finish(window)
        staged, self._staged = self._staged, []
        super().finish_bundle()
        yield from staged

    def teardown(self) -> None:
        self._drop()
        super().teardown()

    def _drop(self) -> None:
        stagers, self._stagers, self._staged = self._stagers, {}, []
        for stager in stagers.values():
            stager.abandon()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stagers": {}, "_staged": []}


class _Deal(beam.DoFn):  # type: ignore[misc]  # Beam's DoFn is untyped
    """Elements to chunks of shards that are written by one hand each, in turn: lists, or encoded record batches.

    With each chunk goes a number; see `Dealt`.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._chunk = max(min(_CHUNK, _HELD // shards), 1)

    def start_bundle(self) -> None:
        self._held: dict[int, list[Any]] = {}
        self._held_bytes = self._sum = 0
        self._at = random.randrange(self._shards)  # noqa: S311 - no secret

    def process(self, element: Any) -> Iterator[tuple[int, tuple[int, Any]]]:
        if isinstance(element, pa.RecordBatch):
            yield from self._cut(element)
            return
        shard = self._next()
        chunk = self._held.setdefault(shard, [])
        chunk.append(element)
        self._held_bytes += weight_bytes(element)
        if self._held_bytes >= _HELD_BYTES:
            yield from self._all_held()
        elif len(chunk) >= self._chunk:
            yield self._numbered(shard, self._held.pop(shard))

    def finish_bundle(self) -> Iterator[Any]:
        for chunk in self._all_held():
            yield GlobalWindows.windowed_value(chunk)
        if self._sum:
            yield GlobalWindows.windowed_value((_NOBODYS, (-self._sum, [])))

    def _all_held(self) -> list[tuple[int, tuple[int, Any]]]:
        held, self._held, self._held_bytes = self._held, {}, 0
        return [self._numbered(shard, chunk) for shard, chunk in held.items()]

    def _numbered(self, shard: int, chunk: Any) -> tuple[int, tuple[int, Any]]:
        number = 1 + (uuid.uuid4().int >> (128 - _NUMBER_BITS))  # whatever a pipeline does to seeds
        self._sum += number
        return shard, (number, chunk)

    def _cut(self, batch: pa.RecordBatch) -> Iterator[tuple[int, tuple[int, bytes]]]:
        rows = batch.num_rows
        pieces = min(max(self._shards, -(-batch.nbytes // _CHUNK_BYTES)), rows)
        for number in range(pieces):
            start, stop = rows * number // pieces, rows * (number + 1) // pieces
            yield self._numbered(self._next(), _BATCHES.encode(batch.slice(start, stop - start)))

    def _next(self) -> int:
        self._at = (self._at + 1) % self._shards
        return self._at


class _DealWindows(beam.DoFn):  # type: ignore[misc]  # Beam's DoFn is untyped
    """The same for each window."""

    def __init__(self, shards: int) -> None:
        self._deal = _Deal(shards)

    def start_bundle(self) -> None:
        self._dealing: dict[Any, _Deal] = {}

    def process(self, element: Any, window: Any = beam.DoFn.WindowParam) -> Iterator[tuple[int, tuple[int, Any]]]:
        deal = self._dealing.get(window)
        if deal is None:
            deal = self._dealing[window] = copy.copy(self._deal)
            deal.start_bundle()
        yield from deal.process(element)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for window, deal in self._dealing.items():
            for chunk in deal.finish_bundle():
                yield WindowedValue(chunk.value, window.max_timestamp(), (window,))


@beam.typehints.with_output_types(Keyed)
class _StageShard(ScopedDoFn):
    """All chunks of a shard to its blob."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings

    def process(
        self, shard: tuple[int, Iterable[tuple[int, Any]]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Keyed]:
        number, chunks = shard
        if number == _NOBODYS:
            yield _keyed(Dealt(sum(counterpart for counterpart, _ in chunks)))
            return
        dealt = 0
        settings = self._settings.within(window)
        stager = FileStager(self.bundle(), settings, settings.shard(number))
        try:
            for chunk_number, chunk in chunks:
                dealt += chunk_number
                if isinstance(chunk, bytes):
                    stager.add_batch(_BATCHES.decode(chunk))
                else:
                    for element in chunk:
                        stager.add(element)
            staged = stager.finish()
        except BaseException:
            stager.abandon()
            raise
        count(self.session().scope.job, "records_written", stager.rows)
        for part in staged:
            yield _keyed(part)
        yield _keyed(Dealt(dealt))


# Committing


class _Commit(ScopedDoFn):
    """The one step that makes blobs visible.

    Args:
        panes: A window may fire more than once.
        again: For `commit`.
    """

    def __init__(self, settings: WriteSettings, *, panes: bool = False, again: str = "") -> None:
        self._settings = settings
        self._panes, self._again = panes, again

    def process(
        self,
        group: tuple[str, Iterable[Part]],
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[CommittedBlob]:
        assert self.scope is not None  # noqa: S101 - narrows the type; `bundle` raises without a scope
        settings, number = self._settings.within(window), pane.index if self._panes else None
        below = str(settings.prefix).removeprefix(str(self._settings.prefix))
        what = "/".join([self.scope.job, self._settings.sink, *filter(None, [below]), *([str(number)] * self._panes)])
        commit_id = str(uuid.uuid5(uuid.NAMESPACE_URL, what))
        parts = list(group[1])
        check_dealt(settings.prefix, (part for part in parts if isinstance(part, Dealt)))
        staged = [part for part in parts if isinstance(part, Staged)]
        for blob in commit(self.bundle(), settings, staged, commit_id, pane=number, again=self._again):
            Lineage.sinks().add("abs", *_lineage(BlobPath.parse(blob.path)))
            yield blob


def _lineage(path: BlobPath) -> tuple[str, str, str]:
    return path.account, path.container, path.name
