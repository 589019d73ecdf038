"""What a sink is: its settings, the blobs it may write to, and what bundles say that they have staged."""

from __future__ import annotations

import itertools
import random
import threading
import uuid
from dataclasses import dataclass

from beam_entra.io.compression import Codec, Compression, codec_to_write
from beam_entra.io.formats import BlobFormat, BlockFormat
from beam_entra.paths import BlobPath

__all__ = [
    "BLOB_BYTES",
    "COMMITTING",
    "MARKERS",
    "SUCCESS",
    "AutoShards",
    "FixedShards",
    "Staged",
    "WriteSettings",
    "new_name",
    "shards_of",
]

MARKERS = COMMITTING, SUCCESS = "_COMMITTING", "_SUCCESS"

BLOB_BYTES = 512 << 20
_BLOCKS_A_BLOB = 10_000
_SPREAD_BUNDLES = 16  # of a process, that stage to every shard however little they have


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What one bundle has staged of one blob.

    Attributes:
        path: The blob, canonical.
        blocks: Ids, in the order of their content.
        size_bytes: Of all of them.
        rows: Records in them.
        unique: Nobody else has a blob of this name.
    """

    path: str
    blocks: tuple[str, ...]
    size_bytes: int
    rows: int
    unique: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteSettings:
    """How to write; see `WriteToBlob`. `sink` tells two sinks of one job apart."""

    prefix: BlobPath
    format: BlobFormat
    shards: int | None
    compression: Compression
    overwrite: bool
    block_bytes: int
    sink: str

    @property
    def codec(self) -> Codec | None:
        return codec_to_write(self.compression)

    @property
    def suffix(self) -> str:
        return self.format.suffix + self.codec_suffix

    @property
    def codec_suffix(self) -> str:
        return self.codec.suffixes[0] if self.codec is not None else ""

    @property
    def content_type(self) -> str:
        return self.format.content_type if self.codec is None else self.codec.content_type

    @property
    def header(self) -> bytes:
        """What each blob begins with."""
        return self.format.header() if isinstance(self.format, BlockFormat) else b""

    def shard(self, number: int) -> BlobPath:
        return self.prefix.child(f"part-{number:05d}-of-{self.shards:05d}{self.suffix}")

    def unique(self, process: str, number: int) -> BlobPath:
        """Where nobody else writes."""
        return self.prefix.child(f"part-{process}-{number:05d}{self.suffix}")

    def encoded(self, block: bytes) -> bytes:
        """A block as it is staged; if compressed, a member of its own, and members may stand in any order."""
        codec = self.codec
        return block if codec is None or codec.compress is None else codec.compress(block)


class AutoShards:
    """The blobs of one sink in one worker process: the same one until it has grown long, then the next."""

    count = 1

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process = new_name()
        self._numbers = itertools.count()
        self._next()

    def begin(self) -> tuple[int, bool]:
        return 0, True

    def path_for(self, _number: int, size_bytes: int) -> BlobPath:
        """Where a block of this size goes."""
        with self._lock:
            if self._blocks >= _BLOCKS_A_BLOB or self._bytes >= BLOB_BYTES:
                self._next()
            self._blocks += 1
            self._bytes += size_bytes
            return self._path

    def _next(self) -> None:
        self._path, self._blocks, self._bytes = self._settings.unique(self._process, next(self._numbers)), 0, 0


class FixedShards:
    """As many blobs as asked for. The bundles of a process begin at one after the other, so that they fill alike."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self.count = settings.shards or 1
        self._lock = threading.Lock()
        self._first = random.randrange(self.count)  # noqa: S311 - no secret
        self._begun = 0

    def begin(self) -> tuple[int, bool]:
        """Where a bundle's round begins, and whether it has to stage to all shards even what would fit into a block.

        The first bundles have; who writes little wants it spread. Were that so for all, a blob would have as many
        blocks as there are bundles, and a blob has an end.
        """
        with self._lock:
            self._begun += 1
            return (self._first + self._begun) % self.count, self._begun <= _SPREAD_BUNDLES

    def path_for(self, number: int, _size_bytes: int) -> BlobPath:
        return self._settings.shard(number)


def new_name() -> str:
    """For blobs that nobody else writes to."""
    return uuid.uuid4().hex[:12]


def shards_of(settings: WriteSettings) -> AutoShards | FixedShards:
    """What the bundles of one process share."""
    return FixedShards(settings) if settings.shards else AutoShards(settings)
