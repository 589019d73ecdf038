"""What a sink is: its settings, the blobs it may write to, and what bundles say that they have staged."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import uuid
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any

from apache_beam.transforms.window import GlobalWindow, IntervalWindow
from apache_beam.utils.timestamp import Timestamp

from beam_entra.errors import ConfigError, Diagnosis, StorageError
from beam_entra.io.compression import Codec, Compression, codec_to_write
from beam_entra.io.formats import BlobFormat, BlockFormat
from beam_entra.paths import BlobPath
from beam_entra.storage import MOST_BLOCKS

__all__ = [
    "BLOB_BLOCKS",
    "BLOB_BYTES",
    "COMMITTING",
    "MARKERS",
    "SUCCESS",
    "AutoShards",
    "Dealt",
    "FixedShards",
    "Staged",
    "WindowShards",
    "WriteSettings",
    "check_blocks",
    "marker",
    "new_name",
    "shards_of",
]

MARKERS = COMMITTING, SUCCESS = "_COMMITTING", "_SUCCESS"

BLOB_BYTES, BLOB_BLOCKS = 512 << 20, 10_000  # then another blob is begun, where it may be
_WARNED_AT = 5  # of what a blob holds: a fifth
_WINDOWS_KEPT = 1000
_SPREAD_BUNDLES = 16  # of a process, that stage to every shard however little they have
_LARGER_BLOCKS = "have larger blocks: WriteToBlob(..., block_bytes=...)"
_FEWER_BLOCKS = (
    "leave shards out, so that a blob that grows long is followed by another; or have more shards, larger blocks, "
    "larger bundles or shorter windows: WriteToBlob(..., shards=..., block_bytes=...)"
)

_LOG = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Dealt:
    """Chunks of elements that came together, or their counterpart: the sum of all in a sink is zero.

    A bundle that deals gives each chunk a random number, and the negative of their sum to nobody's shard. A runner that
    has lost a bundle's outputs deals its elements anew, to other shards; were some shards made of the first chunks and
    some of the second, elements would be lost or doubled. Then the sum is not zero.
    """

    sum: int


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

    def within(self, window: Any) -> WriteSettings:
        """The same for the blobs of one window, in a folder of its own; the global window has none.

        Raises:
            ConfigError: The window has no beginning and end.
        """
        if isinstance(window, GlobalWindow):
            return self
        return replace(self, prefix=self.prefix.child(f"{window_name(window)}/"))

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
            if self._blocks >= BLOB_BLOCKS or self._bytes >= BLOB_BYTES:
                self._next()
            self._blocks += 1
            self._bytes += size_bytes
            return self._path

    def _next(self) -> None:
        self._path, self._blocks, self._bytes = self._settings.unique(self._process, next(self._numbers)), 0, 0


class FixedShards:
    """As many blobs as asked for. The bundles of a process begin at one after the other, so that they fill alike.

    Blocks that were staged can go to no other blob. So that the commit is not the first to say that there are too many,
    a process counts its own, and warns when it alone has made a good part of them. It does not stop: those of bundles
    that failed are among them, and are never committed.

    Args:
        most_blocks: How many a blob holds.
    """

    def __init__(self, settings: WriteSettings, *, most_blocks: int = MOST_BLOCKS) -> None:
        self._settings, self._most_blocks = settings, most_blocks
        self._blocks: Counter[int] = Counter()
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
        """Where a block of this shard goes."""
        path = self._settings.shard(number)
        with self._lock:
            self._blocks[number] += 1
            blocks = self._blocks[number]
        if blocks == self._most_blocks // _WARNED_AT:
            _LOG.warning(
                "this process alone has staged %s blocks of %s; a blob holds %s of all processes together, and if "
                "more than that are to be committed, none of them can be: %s",
                f"{blocks:,}",
                path,
                f"{self._most_blocks:,}",
                _FEWER_BLOCKS,
            )
        return path


class WindowShards:
    """What the bundles of one process share for each window of a sink; the windows used last are remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: OrderedDict[BlobPath, AutoShards | FixedShards] = OrderedDict()

    def of(self, settings: WriteSettings) -> AutoShards | FixedShards:
        """For the window that these settings are within."""
        with self._lock:
            shards = self._shards.pop(settings.prefix, None) or shards_of(settings)
            self._shards[settings.prefix] = shards
            while len(self._shards) > _WINDOWS_KEPT:
                self._shards.popitem(last=False)
        return shards


def check_blocks(
    settings: WriteSettings, path: BlobPath | str, blocks: int, *, doing: str, most: int = MOST_BLOCKS
) -> None:
    """See that a blob can have so many blocks.

    Args:
        blocks: All of them, the header's with them.
        doing: To the blob, meanwhile.
        most: How many a blob holds.
    Raises:
        StorageError: It cannot.
    """
    if blocks > most:
        raise StorageError(
            f"{path} would have {blocks:,} blocks; a blob holds no more than {most:,}",
            Diagnosis(tried=f"{doing} {path}", hint=_FEWER_BLOCKS if settings.shards else _LARGER_BLOCKS),
        )


def window_name(window: Any) -> str:
    """Beginning and end in UTC, as `20261121T080000Z_20261121T081500Z`: by name is by time.

    Raises:
        ConfigError: It has none, or they are in no year that a calendar has.
    """
    if not isinstance(window, IntervalWindow):
        raise ConfigError(
            f"a {type(window).__name__} has no beginning and end that blobs could be named after",
            Diagnosis(hint="write in FixedWindows, SlidingWindows, or windows of a class derived from IntervalWindow"),
        )
    try:
        return f"{_instant(window.start)}_{_instant(window.end)}"
    except OverflowError:
        raise ConfigError(
            "elements that are to be written in windows have no time",
            Diagnosis(hint="give them one: beam.Map(lambda row: TimestampedValue(row, row['at'])), then WindowInto"),
        ) from None


def _instant(timestamp: Timestamp) -> str:
    micros = timestamp.micros % 1_000_000
    fraction = f".{micros:06d}" if micros else ""  # behind the Z: then it sorts behind the whole second
    return f"{timestamp.to_utc_datetime().replace(tzinfo=UTC):%Y%m%dT%H%M%SZ}{fraction}"


def marker(name: str, pane: int | None) -> str:
    """The name of a marker; of one pane of several, `_SUCCESS-00003`."""
    return name if pane is None else f"{name}-{pane:05d}"


def new_name() -> str:
    """For blobs that nobody else writes to."""
    return uuid.uuid4().hex[:12]


def shards_of(settings: WriteSettings) -> AutoShards | FixedShards:
    """What the bundles of one process share."""
    return FixedShards(settings) if settings.shards else AutoShards(settings)
