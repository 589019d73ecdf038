"""Memory of a reader does not grow with what it reads."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import pytest
import zstandard

from tests.pressure.conftest import MB, Lake, Measure, put_pattern

LINE = b"x" * (64 * 1024 - 1) + b"\n"  # few and long: the bytes count here, not the elements
LINES = 128
BLOCK = LINE * LINES
AT_MOST_MB = 160
GROWTH_MB = 64  # what the allocator makes of it: what one thread gives back, another does not take

Put: TypeAlias = Callable[[Lake, str, int], None]


def put_plain(lake: Lake, name: str, blocks: int) -> None:
    """Lines."""
    put_pattern(lake, lake.raw, name, BLOCK, blocks)


def put_gzip(lake: Lake, name: str, blocks: int) -> None:
    """Lines in gzip members that are as long as what is in them: the blob cannot be split, and is read in one go."""
    put_pattern(lake, lake.raw, name, gzip.compress(BLOCK, 0), blocks)


def put_bomb(lake: Lake, name: str, blocks: int) -> None:
    """Lines in one gzip member of a thousandth of their length."""
    lake.raw.upload(name, b"".join(one_member(blocks)))


def one_member(blocks: int) -> Iterator[bytes]:
    """The block many times in one gzip member, compressed once: a full flush forgets what came before."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(BLOCK) + packer.flush(zlib.Z_FULL_FLUSH)
    yield b"\x1f\x8b\x08" + bytes(7)
    checksum = 0
    for _ in range(blocks):
        checksum = zlib.crc32(BLOCK, checksum)
        yield packed
    yield packer.flush() + checksum.to_bytes(4, "little") + (blocks * len(BLOCK) % (1 << 32)).to_bytes(4, "little")


def put_zstd_bomb(lake: Lake, name: str, blocks: int) -> None:
    """Lines in one zstd frame of a thousandth of their length, or less."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    lake.raw.upload(name, b"".join(map(packer.compress, repeat(BLOCK, blocks))) + packer.flush())


KINDS: dict[str, tuple[Put, str, int, int]] = {
    "2 GB of lines": (put_plain, "txt", 256, 2048),
    "1 GB of gzip": (put_gzip, "gz", 256, 1024),
    "2 GB in 2 MB of gzip": (put_bomb, "gz", 256, 2048),
    "1 GB in little zstd": (put_zstd_bomb, "zst", 256, 1024),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_reader_does_not_grow_with_the_blob(lake: Lake, far: Path, measure: Measure, kind: str) -> None:
    """A large blob takes the memory that a small one takes: ranges are fetched ahead, but not far, and let go."""
    put, suffix, *sizes_mb = KINDS[kind]
    put_plain(lake, "in/little.txt", 1)
    peaks_mb = []
    for size_mb in sizes_mb:
        blocks, name = size_mb * MB // len(BLOCK), f"in/{size_mb}.{suffix}"
        put(lake, name, blocks)
        read = measure("lines", lake.raw.url(name), warm_up=lake.raw.url("in/little.txt"), endpoints=far)
        assert read.answer == [blocks * LINES, blocks * LINES * (len(LINE) - 1)]
        peaks_mb.append(read.peak_mb)
    assert max(peaks_mb) < AT_MOST_MB
    assert peaks_mb[1] < peaks_mb[0] + GROWTH_MB
