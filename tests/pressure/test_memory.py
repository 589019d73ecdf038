"""Memory of a reader does not grow with what it reads."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.pressure.conftest import MB, Lake, Measure, put_pattern

BLOCK_MB = 8
LINE = b"x" * (64 * 1024 - 1) + b"\n"  # few and long: the bytes count here, not the elements
BLOCK = LINE * (BLOCK_MB * MB // len(LINE))
TEXT = "x" * 200
ROW = f'{{"number": 7, "text": "{TEXT}"}}\n'.encode()
ROWS = BLOCK_MB * MB // len(ROW)
SMALL_LINES = 7

Put: TypeAlias = Callable[[Lake, str, int], list[int]]
"""Writes so many blocks of 8 MB, and gives how many texts are in them and how many characters in these."""


def counts(blocks: int) -> list[int]:
    """Those of blocks of lines."""
    return [blocks * BLOCK.count(LINE), blocks * BLOCK.count(LINE) * (len(LINE) - 1)]


def put_plain(lake: Lake, name: str, blocks: int) -> list[int]:
    """Lines."""
    put_pattern(lake, lake.raw, name, BLOCK, blocks)
    return counts(blocks)


def put_small(lake: Lake, name: str, blocks: int) -> list[int]:
    """Lines in blobs that are read in packs."""
    client = lake.cloud.admin.client(lake.raw.account).get_container_client(lake.raw.name)
    blobs = blocks * BLOCK.count(LINE) // SMALL_LINES
    lake.raw.upload("small", LINE * SMALL_LINES)
    small = client.get_blob_client("small").url
    for number in range(blobs):
        client.get_blob_client(name.replace("*", str(number))).start_copy_from_url(small)
    return [blobs * SMALL_LINES, blobs * SMALL_LINES * (len(LINE) - 1)]


def put_gzip(lake: Lake, name: str, blocks: int) -> list[int]:
    """Lines in gzip members that are as long as what is in them: the blob cannot be split, and is read in one go."""
    put_pattern(lake, lake.raw, name, gzip.compress(BLOCK, 0), blocks)
    return counts(blocks)


def put_bomb(lake: Lake, name: str, blocks: int) -> list[int]:
    """Lines in one gzip member of a thousandth of their length."""
    lake.raw.upload(name, b"".join(one_member(blocks)))
    return counts(blocks)


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


def put_zstd_bomb(lake: Lake, name: str, blocks: int) -> list[int]:
    """Lines in one zstd frame of a thousandth of their length, or less."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    lake.raw.upload(name, b"".join(map(packer.compress, repeat(BLOCK, blocks))) + packer.flush())
    return counts(blocks)


def put_json(lake: Lake, name: str, blocks: int) -> list[int]:
    """JSON objects, one a line."""
    put_pattern(lake, lake.raw, name, ROW * ROWS, blocks)
    return [blocks * ROWS, blocks * ROWS * len(TEXT)]


def put_parquet(lake: Lake, name: str, blocks: int) -> list[int]:
    """The same rows in Parquet, a block in each row group; not encoded, each has the same bytes."""
    rows = pa.table({"number": [7] * ROWS, "text": [TEXT] * ROWS})
    parts = Parts()
    file = pa.PythonFile(parts, mode="w")
    with pq.ParquetWriter(file, rows.schema, compression="none", use_dictionary=False) as writer:
        begin = parts.take()
        for _ in range(blocks):
            writer.write_table(rows)
            group = parts.take()
    put_pattern(lake, lake.raw, name, group, blocks, begin=begin, end=parts.take())
    return [blocks * ROWS, blocks * ROWS * len(TEXT)]


class Parts:
    """A file that lets go of what was written to it, part by part."""

    closed = False

    def __init__(self) -> None:
        self._part, self._at = io.BytesIO(), 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        return self._part.write(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing waits."""

    def take(self) -> bytes:
        """What was written since the last time."""
        part, self._part = self._part.getvalue(), io.BytesIO()
        return part


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is read.

    Attributes:
        put: Makes it.
        name: What the blob is called, or a pattern of blobs, with its size in the braces.
        sizes_mb: How much of it there is at first, and then.
        read: How it is read; see `reader.py`.
        at_most_mb: What a reader may take.
        growth_mb: How much more of it for the second size.
    """

    put: Put
    name: str
    sizes_mb: tuple[int, int]
    read: str = "lines"
    at_most_mb: int = 90
    growth_mb: int = 25


KINDS = {
    "2 GB of lines": Kind(put=put_plain, name="{}.txt", sizes_mb=(96, 2048)),
    "lines in small blobs": Kind(put=put_small, name="{}/*.txt", sizes_mb=(32, 160)),
    "512 MB of gzip": Kind(put=put_gzip, name="{}.gz", sizes_mb=(96, 512)),
    "1 GB in 1 MB of gzip": Kind(put=put_bomb, name="{}.gz", sizes_mb=(96, 1024)),
    "1 GB in little zstd": Kind(put=put_zstd_bomb, name="{}.zst", sizes_mb=(96, 1024)),
    "JSON batches": Kind(put=put_json, name="{}.jsonl", sizes_mb=(96, 512), read="json", at_most_mb=110, growth_mb=45),
    "Parquet batches": Kind(  # 143 MB of 512 MB as of 1 GB; Arrow has 17 of them
        put=put_parquet, name="{}.parquet", sizes_mb=(96, 512), read="parquet", at_most_mb=190, growth_mb=90
    ),
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_memory_of_a_reader_does_not_grow_with_what_it_reads(
    lake: Lake, far: Path, measure: Measure, kind: Kind
) -> None:
    """Much takes the memory that little takes: it is fetched ahead, but not far, and let go, and so are batches."""
    little = "in/" + kind.name.format("little")
    kind.put(lake, little, 1)
    peaks_mb = []
    for size_mb in kind.sizes_mb:
        name = "in/" + kind.name.format(size_mb)
        texts_and_characters = kind.put(lake, name, size_mb // BLOCK_MB)
        read = measure(kind.read, lake.raw.url(name), warm_up=lake.raw.url(little), endpoints=far)
        assert read.answer == texts_and_characters
        peaks_mb.append(read.peak_mb)
    assert max(peaks_mb) < kind.at_most_mb
    assert peaks_mb[1] < peaks_mb[0] + kind.growth_mb
