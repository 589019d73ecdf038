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
is written, the ones without rows empty (or with a header alone), so that no blob of the earlier run stays.

Any number of bundles may stage to one blob, so automatic sharding gives one blob a worker process, not one a bundle.
"""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.metrics.metric import Lineage
from apache_beam.transforms.window import GlobalWindows

from beam_entra.access import Permission
from beam_entra.errors import BlobExists, BlobNotFound, ConfigError, Diagnosis, StorageError
from beam_entra.io.compression import Codec, Compression, codec_to_write
from beam_entra.io.dofn import METRICS_NAMESPACE, Scoped, ScopedDoFn, scope_of
from beam_entra.io.formats import BlockFormat, Lines
from beam_entra.io.read import check_at_launch
from beam_entra.io.threads import stage_threads
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession, CommittedBlob, open_session
from beam_entra.storage import new_block_id

__all__ = ["COMMITTING", "SUCCESS", "WriteToBlob"]

COMMITTING, SUCCESS = "_COMMITTING", "_SUCCESS"

_BLOCK_BYTES = 4 << 20
_BUFFERED_BYTES = 32 << 20
_BLOB_BYTES = 512 << 20
_BLOCKS_A_BLOB = 10_000
_MOST_BLOCKS = 50_000
_IN_FLIGHT = 4
_THREADS = 16
_MOST_SHARDS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What one bundle has staged of one blob.

    Attributes:
        path: The blob, canonical.
        blocks: Ids, in the order of their content.
        size_bytes: Of all of them.
        rows: Records in them.
    """

    path: str
    blocks: tuple[str, ...]
    size_bytes: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """How to write; see `WriteToBlob`. `sink` tells two sinks of one job apart."""

    prefix: BlobPath
    format: BlockFormat
    shards: int | None
    compression: Compression
    overwrite: bool
    block_bytes: int
    sink: str

    @property
    def suffix(self) -> str:
        return self.format.suffix + (self.codec.suffixes[0] if self.codec is not None else "")

    @property
    def codec(self) -> Codec | None:
        return codec_to_write(self.compression)

    @property
    def content_type(self) -> str:
        return self.format.content_type if self.codec is None else self.codec.content_type

    def shard(self, number: int) -> BlobPath:
        return self.prefix.child(f"part-{number:05d}-of-{self.shards:05d}{self.suffix}")

    def encoded(self, block: bytes) -> bytes:
        """A block as it is staged; if compressed, a member of its own, and members may stand in any order."""
        codec = self.codec
        return block if codec is None or codec.compress is None else codec.compress(block)


class WriteToBlob(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Writes each element once to blobs below a prefix, as the job.

    Gives a `CommittedBlob` for each blob, after all are committed. Order is not kept.

    Args:
        prefix: `abfss://container@account.dfs.core.windows.net/orders/`: where the blobs go.
        format: How elements become records.
        shards: Write exactly this many blobs, filled alike (without `overwrite` fewer if there are fewer elements).
            None: about one a worker process, more where they grow long.
        compression: `gzip`, `bzip2`, `zstd` or `none`.
        overwrite: Replace an earlier run's blobs, all of them: shards without elements become empty blobs. Needs
            `shards`, the same format and compression in each run: blobs of other names stay beside the new ones, and
            `_SUCCESS` does not list them. While it goes on, the `state` in an earlier run's `_SUCCESS` is
            "in progress"; only the content says so, since a job that can only write cannot remove it.
        block_bytes: Size of a staged block.

    Raises:
        ConfigError: The arguments do not go together.
        NotGranted: No grant covers the prefix. Raised when the transform is applied; nothing was sent to it.
    """

    def __init__(
        self,
        prefix: str,
        format: BlockFormat | None = None,
        *,
        shards: int | None = None,
        compression: Compression = "none",
        overwrite: bool = False,
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        super().__init__()
        path = BlobPath.parse(prefix)
        if not path.is_prefix:
            raise ConfigError(f"{path} is one blob, not a prefix", Diagnosis(hint=f"end it with a slash: {path}/"))
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
        chosen = format or Lines()
        chosen.header()  # a format that cannot write says so here
        self._settings = WriteSettings(
            prefix=path,
            format=chosen,
            shards=shards,
            compression=compression,
            overwrite=overwrite,
            block_bytes=block_bytes,
            sink=uuid.uuid4().hex,
        )

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[CommittedBlob]:
        pipeline = elements.pipeline
        if not elements.is_bounded:
            raise ConfigError(
                "WriteToBlob commits when its input ends, and this input never does",
                Diagnosis(hint="read a bounded source; results without end need a sink for streams"),
            )
        check_at_launch(pipeline, self._settings.prefix, Permission.WRITE)
        _claim_prefix(pipeline, self._settings.prefix)
        if not elements.windowing.is_default():  # where it is, the step would do nothing, and cost as much as encoding
            elements |= "One window" >> beam.WindowInto(GlobalWindows())
        staged = (
            elements
            | "Stage" >> Scoped(_Stage(self._settings))
            | "To one key" >> beam.Map(_keyed)
        )
        begin = pipeline | "Begin" >> beam.Create([_keyed(None)])
        return (
            (staged, begin)
            | "With begin" >> beam.Flatten()
            | "Group" >> beam.GroupByKey()
            | "Staged" >> beam.Map(_only_staged)
            | "Commit" >> Scoped(_Commit(self._settings))
        )

    def display_data(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "prefix": str(settings.prefix),
            "format": type(settings.format).__name__,
            "shards": settings.shards or "automatic",
            "overwrite": settings.overwrite,
        }


def _claim_prefix(pipeline: beam.Pipeline, prefix: BlobPath) -> None:
    taken: set[BlobPath] = open_session(scope_of(pipeline)).resource("prefixes written to", set)
    if prefix in taken:
        raise ConfigError(
            f"two sinks of this pipeline write to {prefix}",
            Diagnosis(hint="give each WriteToBlob a prefix of its own, or flatten what they write first"),
        )
    taken.add(prefix)


def _keyed(staged: Staged | None) -> tuple[str, Staged | None]:
    return "", staged


def _only_staged(group: tuple[str, Iterable[Staged | None]]) -> list[Staged]:
    return [staged for staged in group[1] if staged is not None]


# Staging


class _AutoShards:
    """Names the blobs of one sink in one worker process: the same one until it has grown long, then the next."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._next()

    def path_for(self, size_bytes: int) -> BlobPath:
        """Where a block of this size goes."""
        with self._lock:
            if self._blocks >= _BLOCKS_A_BLOB or self._bytes >= _BLOB_BYTES:
                self._next()
            self._blocks += 1
            self._bytes += size_bytes
            return self._path

    def _next(self) -> None:
        name = f"part-{self._process}-{next(self._numbers):05d}{self._settings.suffix}"
        self._path, self._blocks, self._bytes = self._settings.prefix.child(name), 0, 0


@dataclass(slots=True)
class _Buffer:
    """Encoded records on their way to a block."""

    data: bytearray = field(default_factory=bytearray)
    rows: int = 0


class Stager:
    """Stages the elements of one bundle.

    Args:
        shard: With fixed shards, where the round begins: bundles begin at different ones, so that shards fill alike.
    """

    def __init__(self, bundle: BundleSession, settings: WriteSettings, auto: _AutoShards, shard: int) -> None:
        self._bundle, self._settings, self._auto = bundle, settings, auto
        self._buffers = [_Buffer() for _ in range(settings.shards or 1)]
        self._flush_at = min(settings.block_bytes, max(_BUFFERED_BYTES // len(self._buffers), 1))
        self._turn = itertools.cycle(itertools.chain(range(shard, len(self._buffers)), range(shard)))
        self._threads = stage_threads(bundle.session)
        self._under_way: list[Future[None]] = []
        self._staged: dict[BlobPath, list[tuple[str, int, int]]] = defaultdict(list)
        self.rows = 0

    def add(self, element: Any) -> None:
        """Encode one element; stages a block when there is enough for one."""
        number = next(self._turn)
        buffer = self._buffers[number]
        buffer.data += self._settings.format.encode(element)
        buffer.rows += 1
        self.rows += 1
        if len(buffer.data) >= self._flush_at:
            self._flush(number)

    def finish(self) -> list[Staged]:
        """Stage the rest. When this returns, all is staged and recorded.

        Raises:
            AuditUnavailable: Some record is not durable.
        """
        for number in range(len(self._buffers)):
            self._flush(number)
        self._wait(leave=0)
        self._bundle.settle()
        return [
            Staged(
                path=str(path),
                blocks=tuple(block for block, _, _ in blocks),
                size_bytes=sum(size for _, size, _ in blocks),
                rows=sum(rows for _, _, rows in blocks),
            )
            for path, blocks in self._staged.items()
        ]

    def abandon(self) -> None:
        """Wait for what is under way and forget it; its blocks stay invisible, and Storage drops them after a week."""
        for future in self._under_way:
            future.cancel()
            if not future.cancelled():
                future.exception()

    def _flush(self, number: int) -> None:
        buffer = self._buffers[number]
        if not buffer.rows:
            return
        self._buffers[number] = _Buffer()
        data = self._settings.encoded(bytes(buffer.data))
        if not data:
            return
        path = self._settings.shard(number) if self._settings.shards else self._auto.path_for(len(data))
        block = new_block_id()
        self._staged[path].append((block, len(data), buffer.rows))
        self._wait(leave=_IN_FLIGHT - 1)
        self._under_way.append(self._threads.submit(self._bundle.stage, path, block, data))

    def _wait(self, *, leave: int) -> None:
        while len(self._under_way) > leave:
            self._under_way.pop(0).result()


class _Stage(ScopedDoFn):
    """Elements to staged blocks, a bundle at a time."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._stager: Stager | None = None
        self._rows = Metrics.counter(METRICS_NAMESPACE, "records_written")

    def start_bundle(self) -> None:
        self._drop()
        super().start_bundle()

    def process(self, element: Any) -> None:
        if self._stager is None:
            settings = self._settings
            auto = self.session().resource(f"shards of {settings.sink}", lambda: _AutoShards(settings))
            self._stager = Stager(self.bundle(), settings, auto, uuid.uuid4().int % (settings.shards or 1))
        self._stager.add(element)

    def finish_bundle(self) -> Iterator[Any]:
        stager = self._stager
        staged = stager.finish() if stager is not None else []
        self._stager = None  # only now: one that failed is abandoned, which waits for what is under way
        self._rows.inc(stager.rows if stager is not None else 0)
        super().finish_bundle()
        for part in staged:
            yield GlobalWindows.windowed_value(part)

    def teardown(self) -> None:
        self._drop()
        super().teardown()

    def _drop(self) -> None:
        stager, self._stager = self._stager, None
        if stager is not None:
            stager.abandon()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stager": None}


# Committing


class _Commit(ScopedDoFn):
    """The one step that makes blobs visible."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings

    def process(self, staged: list[Staged]) -> Iterator[CommittedBlob]:
        assert self.scope is not None  # noqa: S101 - narrows the type; `bundle` raises without a scope
        commit_id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.scope.job}/{self._settings.sink}"))
        for blob in commit(self.bundle(), self._settings, staged, commit_id):
            Lineage.sinks().add("abs", *_lineage(BlobPath.parse(blob.path)))
            yield blob


def _lineage(path: BlobPath) -> tuple[str, str, str]:
    return path.account, path.container, path.name


def commit(
    bundle: BundleSession, settings: WriteSettings, staged: list[Staged], commit_id: str
) -> list[CommittedBlob]:
    """Commit all blobs of a sink; see this module's docstring for the steps. Doing it again changes nothing.

    Args:
        staged: What the bundles that succeeded have staged, in any order.
        commit_id: The same in every attempt.

    Raises:
        BlobExists: Another commit has begun under the prefix, or a blob of the same name is there.
    """
    parts: dict[str, list[Staged]] = defaultdict(list)
    for part in sorted(staged, key=lambda part: (part.path, part.blocks)):
        parts[part.path].append(part)
    header = settings.format.header()
    if settings.overwrite:
        parts = {str(path): parts[str(path)] for path in map(settings.shard, range(settings.shards or 0))}
    elif header and not parts:
        parts[str(settings.shard(0) if settings.shards else settings.prefix.child(f"part-00000{settings.suffix}"))] = []
    for path, of_blob in parts.items():
        _check_blocks(path, sum(len(part.blocks) for part in of_blob))
    job = bundle.session.scope
    facts = {"job": job.job, "pipeline": job.manifest.pipeline, "environment": job.manifest.environment}
    facts["commit"] = commit_id
    blocks = _digest(parts)
    plan = {**facts, "blobs": list(parts), "blocks_sha256": blocks}
    try:
        _put_json(bundle, settings, COMMITTING, plan, commit_id, settings.overwrite, what=blocks)
    except BlobExists as error:
        raise BlobExists(
            f"a commit under {settings.prefix} has begun before: this one made nothing visible there",
            Diagnosis(
                tried=error.diagnosis.tried,
                request_id=error.diagnosis.request_id,
                hint=f"see {settings.prefix}{COMMITTING} for job and blobs; write to a new prefix, or remove them",
            ),
        ) from None
    if settings.overwrite:
        _unmark(bundle, settings, facts, commit_id)
    done = _commit_blobs(bundle, settings, header, commit_id, parts)
    if _put_json(bundle, settings, SUCCESS, _summary(facts, done), commit_id, settings.overwrite).confirmed:
        # Another attempt was here before, perhaps at the same time: each has changed ETags that the other had seen.
        # That one is through, since it wrote this blob last; so what this one finds now stays as it is.
        done = _commit_blobs(bundle, settings, header, commit_id, parts)
        _put_json(bundle, settings, SUCCESS, _summary(facts, done), commit_id, overwrite=True)
    return done


def _unmark(bundle: BundleSession, settings: WriteSettings, facts: dict[str, str], commit_id: str) -> None:
    """Have an earlier run's `_SUCCESS` vouch for nothing. Where there is none, none is made: readers look for it."""
    state = "in progress"
    try:
        _put_json(bundle, settings, SUCCESS, {"state": state, **facts}, commit_id, True, what=state, only_replace=True)
    except BlobNotFound as error:
        if error.diagnosis.code == "ContainerNotFound":
            raise


def _commit_blobs(
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, parts: dict[str, list[Staged]]
) -> list[CommittedBlob]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="beam-entra-commit") as pool:
        return list(pool.map(lambda item: _commit_blob(bundle, settings, header, commit_id, *item), parts.items()))


def _summary(facts: dict[str, str], done: list[CommittedBlob]) -> dict[str, Any]:
    """What `_SUCCESS` says."""
    return {
        "state": "complete",
        **facts,
        "rows": sum(blob.rows for blob in done),
        "size_bytes": sum(blob.size_bytes for blob in done),
        "blobs": [
            {"path": blob.path, "etag": blob.etag, "size_bytes": blob.size_bytes, "rows": blob.rows} for blob in done
        ],
    }


def _commit_blob(
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, path: str, parts: list[Staged]
) -> CommittedBlob:
    blob = BlobPath.parse(path)
    blocks = [block for part in parts for block in part.blocks]
    size_bytes = sum(part.size_bytes for part in parts)
    if header:
        first = settings.encoded(header)
        blocks.insert(0, _block_id(commit_id, path))
        bundle.stage(blob, blocks[0], first)
        size_bytes += len(first)
    return bundle.commit(
        blob,
        blocks,
        commit_id=commit_id,
        size_bytes=size_bytes,
        rows=sum(part.rows for part in parts),
        content_type=settings.content_type,
        overwrite=settings.overwrite,
    )


def _digest(parts: dict[str, list[Staged]]) -> str:
    """Names exactly these blocks in these blobs."""
    blocks = {path: [part.blocks for part in of_blob] for path, of_blob in sorted(parts.items())}
    return sha256(json.dumps(blocks).encode("ascii")).hexdigest()


def _put_json(
    bundle: BundleSession,
    settings: WriteSettings,
    name: str,
    value: object,
    commit_id: str,
    overwrite: bool,
    *,
    what: str = "",
    only_replace: bool = False,
) -> CommittedBlob:
    """Write a marker, once: an attempt with the same `commit_id` and `what` finds it done."""
    path = settings.prefix.child(name)
    data = json.dumps(value, indent=2).encode("ascii") + b"\n"
    block = _block_id(commit_id, name + what)
    bundle.stage(path, block, data)
    return bundle.commit(
        path,
        [block],
        commit_id=commit_id,
        size_bytes=len(data),
        rows=0,
        content_type="application/json",
        overwrite=overwrite,
        only_replace=only_replace,
    )


def _block_id(commit_id: str, name: str) -> str:
    """The id of a block that the commit step itself stages: the same in every attempt, and nobody else's."""
    return b64encode(uuid.uuid5(uuid.UUID(commit_id), name).bytes).decode("ascii")


def _check_blocks(path: str, blocks: int) -> None:
    if blocks >= _MOST_BLOCKS:
        raise StorageError(
            f"{path} would have {blocks} blocks; a blob holds {_MOST_BLOCKS}",
            Diagnosis(hint="write more shards, or larger blocks: WriteToBlob(..., shards=..., block_bytes=...)"),
        )
