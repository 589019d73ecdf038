"""Staging: what the elements of a bundle become before anything of them is visible.

A `Stager` takes the elements of one bundle and stages blocks to the final blobs; what it has staged leaves the bundle
as a few small `Staged` values. Which kind it is depends on the format:

    BlockStager     records of many bundles in each blob, in any order
    FileStager      blobs written by one hand
    ElementStager   each element a blob of its own

Whatever the size of a bundle, what is held of it is bounded: buffers, and a few blocks under way. Blocks are framed and
compressed by the threads that stage them.
"""

from __future__ import annotations

import io
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa

from beam_entra.errors import Diagnosis, FormatError
from beam_entra.io.formats import BlockFormat, FileFormat, FileWriter
from beam_entra.io.sink import (
    BLOB_BLOCKS,
    BLOB_BYTES,
    MARKERS,
    AutoShards,
    FixedShards,
    Staged,
    WriteSettings,
    check_blocks,
    new_name,
    shards_of,
)
from beam_entra.io.threads import stage_threads
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession
from beam_entra.storage import MOST_BLOCKS, new_block_id

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["BlockStager", "ElementStager", "FileStager", "Stager", "stager_for"]

_BUFFERED_BYTES = 16 << 20  # by all shards of a bundle, if all were full at once
_PART_BYTES = 512 * 1024  # of a record batch encoded at a time, about
_FEW_ROWS = 128  # of a record batch that are not worth cutting
_BLOCKS_UNDER_WAY = 4
_REQUESTS_UNDER_WAY = 16


# Blocks under way


@dataclass(slots=True)
class _Part:
    """What is being staged of one blob."""

    path: BlobPath
    unique: bool = False
    rows: int = 0
    blocks: list[tuple[str, Future[int]]] = field(default_factory=list)

    def staged(self) -> Staged:
        blocks = [(block, size.result()) for block, size in self.blocks]
        return Staged(
            path=str(self.path),
            blocks=tuple(block for block, size in blocks if size),
            size_bytes=sum(size for _, size in blocks),
            rows=self.rows,
            unique=self.unique,
        )


class _Uploads:
    """Blocks of one bundle on their way to Storage, a few at a time."""

    def __init__(self, bundle: BundleSession, block_bytes: int) -> None:
        self._bundle = bundle
        self._threads = stage_threads(bundle.session)
        self._most_bytes = _BLOCKS_UNDER_WAY * block_bytes
        self._bytes = 0
        self._under_way: deque[tuple[Future[int], int]] = deque()

    def begin(self, part: _Part, data: bytes, prepare: Callable[[bytes], bytes]) -> None:
        """Stage what `prepare` makes of the data; nothing if that is nothing. Waits while too much is under way."""
        while self._bytes >= self._most_bytes or len(self._under_way) >= _REQUESTS_UNDER_WAY:
            self._wait_for_one()
        block = new_block_id()
        size = self._threads.submit(self._stage, part.path, block, data, prepare)
        part.blocks.append((block, size))
        self._under_way.append((size, len(data)))
        self._bytes += len(data)

    def settle(self) -> None:
        """Return when all is staged and recorded.

        Raises:
            AuditUnavailable: Some record is not durable.
        """
        while self._under_way:
            self._wait_for_one()
        self._bundle.settle()

    def abandon(self) -> None:
        """Wait for what is under way and forget it. A harness that shuts down does this while the bundle still runs."""
        for future, _ in list(self._under_way):
            future.cancel()
            if not future.cancelled():
                future.exception()

    def _wait_for_one(self) -> None:
        future, length = self._under_way[0]
        future.result()
        self._under_way.popleft()
        self._bytes -= length

    def _stage(self, path: BlobPath, block: str, data: bytes, prepare: Callable[[bytes], bytes]) -> int:
        data = prepare(data)
        if data:
            self._bundle.stage(path, block, data)
        return len(data)


# Stagers


class Stager(ABC):
    """Stages the elements of one bundle.

    Attributes:
        rows: How many it has taken.
    """

    def __init__(self, bundle: BundleSession, settings: WriteSettings) -> None:
        self._settings = settings
        self._uploads = _Uploads(bundle, settings.block_bytes)
        self.rows = 0

    @abstractmethod
    def add(self, element: Any) -> None:
        """Take one element."""

    @abstractmethod
    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Take the rows of a record batch."""

    def finish(self) -> list[Staged]:
        """Stage the rest. When this returns, all is staged and recorded.

        Raises:
            AuditUnavailable: Some record is not durable.
        """
        parts = self._end()
        self._uploads.settle()
        return [part.staged() for part in parts]

    def abandon(self) -> None:
        """Wait for what is under way and forget it; its blocks stay invisible, and Storage drops them after a week."""
        self._uploads.abandon()

    @abstractmethod
    def _end(self) -> Iterable[_Part]:
        """Begin to stage what is left; all parts."""


@dataclass(slots=True)
class _Buffer:
    """Encoded records on their way to a block."""

    flush_at: int
    data: bytearray = field(default_factory=bytearray)
    rows: int = 0


class BlockStager(Stager):
    """Records of many bundles in each blob: elements take turns among the shards.

    Each shard has a buffer. The first time they are staged at different lengths, so that afterwards they are not all
    full at once: half the memory, and no burst of requests.
    """

    def __init__(self, bundle: BundleSession, settings: WriteSettings, shards: AutoShards | FixedShards) -> None:
        super().__init__(bundle, settings)
        assert isinstance(settings.format, BlockFormat)  # noqa: S101 - narrows the type
        self._format = settings.format
        self._encode = settings.format.encode
        self._shards = shards
        self._parts: dict[BlobPath, _Part] = {}
        self._flush_at = min(settings.block_bytes, max(_BUFFERED_BYTES // shards.count, 1))
        self._buffers = [
            _Buffer(max(self._flush_at * number // shards.count, 1)) for number in range(1, shards.count + 1)
        ]
        self._first, self._spread = shards.begin()
        self._turn = itertools.cycle([*range(self._first, shards.count), *range(self._first)])
        self._row_bytes = 0.0

    def add(self, element: Any) -> None:
        number = next(self._turn)
        buffer = self._buffers[number]
        buffer.data += self._encode(element)
        buffer.rows += 1
        self.rows += 1
        if len(buffer.data) >= buffer.flush_at:
            self._flush(number)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        most = max(-(-batch.num_rows // self._shards.count), _FEW_ROWS)
        part_bytes = min(self._flush_at, _PART_BYTES)
        # The first time nobody knows how long rows are in this format: few are tried.
        row_bytes = self._row_bytes or max(batch.nbytes / max(batch.num_rows, 1), part_bytes / _FEW_ROWS)
        at = 0
        while at < batch.num_rows:
            part = batch.slice(at, max(min(most, int(part_bytes / max(row_bytes, 1))), 1))
            encoded = self._format.encode_batch(part)
            number = next(self._turn)
            buffer = self._buffers[number]
            buffer.data += encoded
            buffer.rows += part.num_rows
            self.rows += part.num_rows
            at += part.num_rows
            row_bytes = self._row_bytes = len(encoded) / part.num_rows
            if len(buffer.data) >= buffer.flush_at:
                self._flush(number)

    def _end(self) -> Iterable[_Part]:
        if not (self._spread or self._parts) and sum(len(buffer.data) for buffer in self._buffers) <= self._flush_at:
            self._merge()
        for number in range(len(self._buffers)):
            self._flush(number)
        return self._parts.values()

    def _merge(self) -> None:
        """All of a small bundle to one shard."""
        first = self._buffers[self._first]
        for buffer in self._buffers:
            if buffer is not first:
                first.data += buffer.data
                first.rows += buffer.rows
                buffer.rows = 0

    def _flush(self, number: int) -> None:
        buffer = self._buffers[number]
        if not buffer.rows:
            return
        self._buffers[number] = _Buffer(self._flush_at)
        data, rows = bytes(buffer.data), buffer.rows
        del buffer
        path = self._shards.path_for(number, len(data))
        part = self._parts.get(path)
        if part is None:
            part = self._parts[path] = _Part(path, unique=self._settings.shards is None)
        part.rows += rows
        self._uploads.begin(part, data, partial(self._prepared, rows))

    def _prepared(self, rows: int, records: bytes) -> bytes:
        return self._settings.encoded(self._format.frame(records, rows))


class _BlobFile(io.RawIOBase):
    """What is written to it is staged, a block at a time."""

    def __init__(self, uploads: _Uploads, part: _Part, settings: WriteSettings, most_blocks: int) -> None:
        self._uploads, self._part, self._settings, self._most_blocks = uploads, part, settings, most_blocks
        self._buffer = bytearray()
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        with memoryview(data) as whole, whole.cast("B") as view:
            at = 0
            while at < len(view):
                end = at + self._settings.block_bytes - len(self._buffer)
                self._buffer += view[at:end]
                at = end
                if len(self._buffer) >= self._settings.block_bytes:
                    self.flush_block()
            self._length += len(view)
            return len(view)

    def tell(self) -> int:
        return self._length

    def flush_block(self) -> None:
        """Stage what is left."""
        data = bytes(self._buffer)
        self._buffer = bytearray()
        if data:
            blocks = len(self._part.blocks) + 1
            check_blocks(self._settings, self._part.path, blocks, doing="stage", most=self._most_blocks)
            self._uploads.begin(self._part, data, self._settings.encoded)


class FileStager(Stager):
    """Blobs written by one hand.

    Args:
        path: The blob that all is written to, be it nothing; by default one after the other, each of a name of its own.
        blob_bytes, blob_blocks: How long one grows, without a path, before the next is begun.
        most_blocks: How many a blob holds.
    """

    def __init__(
        self,
        bundle: BundleSession,
        settings: WriteSettings,
        path: BlobPath | None = None,
        *,
        blob_bytes: int = BLOB_BYTES,
        blob_blocks: int = BLOB_BLOCKS,
        most_blocks: int = MOST_BLOCKS,
    ) -> None:
        super().__init__(bundle, settings)
        assert isinstance(settings.format, FileFormat)  # noqa: S101 - narrows the type
        self._format = settings.format
        self._parts: list[_Part] = []
        self._grows_on = path is not None
        self._blob_bytes, self._blob_blocks, self._most_blocks = blob_bytes, blob_blocks, most_blocks
        self._name, self._numbers = new_name(), itertools.count()
        self._file: _BlobFile | None = None
        self._writer: FileWriter | None = None
        if path is not None:
            self._open(path)

    def add(self, element: Any) -> None:
        (self._writer or self._open(None)).write(element)
        self._added(1)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        (self._writer or self._open(None)).write_batch(batch)
        self._added(batch.num_rows)

    def _added(self, rows: int) -> None:
        self._parts[-1].rows += rows
        self.rows += rows
        if self._grows_on or self._file is None:
            return
        if self._file.tell() >= self._blob_bytes or len(self._parts[-1].blocks) >= self._blob_blocks:
            self._close()

    def _open(self, path: BlobPath | None) -> FileWriter:
        """Begin a blob; without a path, of a name that no other attempt has."""
        part = _Part(path or self._settings.unique(self._name, next(self._numbers)), unique=path is None)
        self._parts.append(part)
        self._file = _BlobFile(self._uploads, part, self._settings, self._most_blocks)
        self._writer = self._format.open(cast("IO[bytes]", self._file))
        return self._writer

    def _close(self) -> None:
        if self._writer is not None and self._file is not None:
            self._writer.close()
            self._file.flush_block()
        self._writer = self._file = None

    def _end(self) -> Iterable[_Part]:
        self._close()
        return self._parts


class ElementStager(FileStager):
    """Each element is a blob of its own, named by a pair `(name, element)` or, in batches, by a column `name`."""

    def add(self, element: Any) -> None:
        name = None
        if isinstance(element, tuple):
            name, element = _pair(element)
        self._open(self._child(name))
        super().add(element)
        self._close()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        named = "name" in batch.schema.names
        if named and not _is_text(batch.schema.field("name").type):
            raise FormatError(
                f"the names of elements are {batch.schema.field('name').type}",
                Diagnosis(hint="make the column name one of texts: pa.string()"),
            )
        for at in range(batch.num_rows):
            row = batch.slice(at, 1)
            self._open(self._child(row.column("name")[0].as_py() if named else None))
            super().add_batch(row)
            self._close()

    def _child(self, name: str | None) -> BlobPath | None:
        if name is None:
            return None
        path = self._settings.prefix.child(name.removesuffix(self._settings.codec_suffix) + self._settings.codec_suffix)
        if path.is_prefix or name.partition("-")[0] in MARKERS:
            raise FormatError(
                f"no element may be named {path}",
                Diagnosis(hint="a name is that of a blob, and not of the sink's own marks of its progress"),
            )
        return path


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null))


def _pair(element: tuple[Any, ...]) -> tuple[str, Any]:
    if len(element) == 2 and isinstance(element[0], str):
        return element[0], element[1]
    raise FormatError(
        "an element that is a tuple is no pair of a name and an element",
        Diagnosis(hint="give (name, element), the name relative to the prefix, or the element alone"),
    )


def stager_for(
    bundle: BundleSession, settings: WriteSettings, shards: AutoShards | FixedShards | None = None
) -> Stager:
    """For one bundle of the sink.

    Args:
        shards: Where records that share blobs go; by default where those of all the bundles of this process go.
    """
    if isinstance(settings.format, FileFormat):
        return (ElementStager if settings.format.one_element else FileStager)(bundle, settings)
    shards = shards or bundle.session.resource(f"shards of {settings.sink}", lambda: shards_of(settings))
    return BlockStager(bundle, settings, shards)
