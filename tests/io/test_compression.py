"""Compressed blobs: what the libraries' own functions decompress at once, in pieces; anything else is an error."""

from __future__ import annotations

import bz2
import gzip
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import zstandard
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from beam_entra import Lines, ReadFromBlob
from beam_entra.errors import AccessDenied, BlobNotFound, ConfigError, FormatError
from beam_entra.io.blocks import stream_blocks
from beam_entra.io.compression import Codec, check_readable, codec_for, codec_to_write

PATH = "abfss://raw@lake.dfs.core.windows.net/a.txt"


def raw_deflate(data: bytes) -> bytes:
    """As Beam writes it."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes) -> bytes:
    """One frame, with its checksum, as the tool writes it."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of compression, and the library that tells what is right."""

    name: str
    compression: str
    suffix: str
    compress: Callable[[bytes], bytes]
    padding: bytes = b""

    @property
    def codec(self) -> Codec:
        """Ours."""
        codec = codec_for(self.compression, "")  # type: ignore[arg-type]  # a name
        assert codec is not None
        return codec


KINDS = [
    Kind(name="gzip", compression="gzip", suffix=".gz", compress=gzip.compress, padding=b"\0" * 7),
    Kind(name="bzip2", compression="bzip2", suffix=".bz2", compress=bz2.compress),
    Kind(name="zstd", compression="zstd", suffix=".zst", compress=zstd),
    Kind(name="deflate with zlib's header", compression="deflate", suffix=".zz", compress=zlib.compress),
    Kind(name="deflate without a header", compression="deflate", suffix=".deflate", compress=raw_deflate),
]
_kinds = st.sampled_from(KINDS)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def pieces_of(data: bytes, size: int) -> Iterator[bytes]:
    """The bytes, at most `size` at a time."""
    return (data[at : at + size] for at in range(0, len(data), size))


def decompressed(kind: Kind, data: bytes, *, piece: int = 1000, out: int = 1000) -> list[bytes]:
    """The pieces that a compressed blob gives."""
    return [bytes(part) for part in kind.codec.decompress(PATH, pieces_of(data, piece), piece_bytes=out)]


# Long runs, whose last bytes come out of nothing but what the library holds, and bytes that do not compress.
_contents = st.one_of(st.binary(max_size=300), st.builds(bytes.__mul__, st.binary(max_size=3), st.integers(0, 3000)))


@given(
    kind=_kinds,
    members=st.lists(_contents, max_size=4),
    piece=st.integers(1, 100),
    out=st.one_of(st.integers(1, 100), st.integers(250, 600)),
    padded=st.booleans(),
)
def test_members_follow_one_another_whatever_the_pieces(
    kind: Kind, members: list[bytes], piece: int, out: int, padded: bool
) -> None:
    """Any number of members, cut anywhere, decompress to their content, no piece longer than asked for."""
    data = b"".join(map(kind.compress, members)) + (kind.padding if members and padded else b"")
    pieces = decompressed(kind, data, piece=piece, out=out)
    assert b"".join(pieces) == b"".join(members)
    assert all(0 < len(part) <= out for part in pieces)


@each_kind
def test_what_a_library_still_holds_when_all_is_fed_comes_out(kind: Kind) -> None:
    """The last run may be longer than a piece, and the input of all of it consumed with its first byte."""
    for content in (b"a" * 1000, b"abc" * 700):
        data = kind.compress(content)
        for out in (1, 2, 7, 100, 255, 257):
            assert b"".join(decompressed(kind, data, out=out)) == content


@given(kind=_kinds, content=_contents, at=st.floats(0, 1, exclude_max=True), piece=st.integers(1, 70))
def test_a_stream_that_breaks_off_is_an_error_wherever_it_does(
    kind: Kind, content: bytes, at: float, piece: int
) -> None:
    """A truncated upload is never taken for a short blob, nor behind a member that is whole."""
    data = kind.compress(content)
    cut = 1 + int(at * (len(data) - 1))
    if cut == len(data):
        return
    for before in (b"", kind.compress(b"whole")):
        with pytest.raises(FormatError, match=f"no sound {kind.compression} stream: it breaks off before its end"):
            decompressed(kind, before + data[:cut], piece=piece)


@each_kind
def test_an_empty_blob_is_an_empty_stream(kind: Kind) -> None:
    """As the tools have it."""
    assert decompressed(kind, b"") == []


PROBLEMS: dict[str, tuple[int, bytes]] = {
    "no gzip at all": (0, b'{"id":1}\n{"id":2}\n'),
    "zlib without the gzip header": (0, zlib.compress(b"abc")),
    "garbage behind the last gzip member": (0, gzip.compress(b"abc") + b"garbage"),
    "a broken gzip checksum": (0, gzip.compress(b"abc")[:-8] + b"\1" * 8),
    "zeros alone": (0, b"\0" * 30),
    "no bzip2 at all": (1, gzip.compress(b"abc")),
    "garbage behind the last bzip2 stream": (1, bz2.compress(b"abc") + b"garbage"),
    "a broken bzip2 checksum": (1, bz2.compress(b"abc")[:10] + b"\1\2\3\4" + bz2.compress(b"abc")[14:]),
    "no zstd at all": (2, b'{"id":1}\n{"id":2}\n'),
    "garbage behind the last zstd frame": (2, zstd(b"abc") + b"garbage"),
    "a broken zstd checksum": (2, zstd(b"abc")[:-4] + b"\1\2\3\4"),
    "no deflate at all": (3, b"\xff" * 20),
    "a broken zlib checksum": (3, zlib.compress(b"abc")[:-4] + b"\1\2\3\4"),
}


@pytest.mark.parametrize(("kind", "data"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_no_sound_stream_is_an_error_that_says_so(kind: int, data: bytes) -> None:
    """The error names the blob and both ways out."""
    with pytest.raises(FormatError, match=f"no sound {KINDS[kind].compression} stream") as caught:
        decompressed(KINDS[kind], data)
    assert PATH in caught.value.message
    assert "compression='none'" in caught.value.hint
    assert caught.value.__cause__ is None


def test_zstd_frames_that_are_to_be_skipped_are() -> None:
    """The format's frames for other people's data, such as indexes, between, before and behind the others."""
    skipped = struct.pack("<II", 0x184D2A53, 5) + b"index"
    data = skipped + zstd(b"abc") + skipped + skipped + zstd(b"def") + skipped
    for piece in (1, 3, 1000):
        assert b"".join(decompressed(KINDS[2], data, piece=piece)) == b"abcdef"
    with pytest.raises(FormatError, match="breaks off"):
        decompressed(KINDS[2], data[:-1])


@pytest.mark.parametrize(("window_log", "taken"), [(27, True), (28, False)])
def test_zstd_windows_are_bounded(window_log: int, taken: bool) -> None:
    """128 MiB is what the tool takes without being told; more would be memory that a stranger's file decides on."""
    packer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=window_log)
    ).compressobj()  # a stream, which knows no length: the window is then what the frame asks for
    data = packer.compress(b"abc") + packer.flush()
    if taken:
        assert decompressed(KINDS[2], data) == [b"abc"]
        return
    with pytest.raises(FormatError, match="too much memory") as caught:
        decompressed(KINDS[2], data)
    assert "128 MiB" in caught.value.hint


@each_kind
def test_what_goes_wrong_with_the_pieces_is_told_as_it_is(kind: Kind) -> None:
    """An error of Storage, whatever its base, is not one of the stream."""
    for failure in (BlobNotFound("gone"), AccessDenied("no more"), KeyError("a defect")):

        def failing(failure: Exception = failure) -> Iterator[bytes]:
            yield kind.compress(b"abc")[:5]
            raise failure

        with pytest.raises(type(failure)) as caught:
            list(kind.codec.decompress(PATH, failing(), piece_bytes=10))
        assert caught.value is failure


@each_kind
def test_a_bomb_stays_within_memory_bounds(kind: Kind) -> None:
    """100 MB out of 400 KB come in pieces, none longer than allowed; what is held is a few of them."""
    line = b"a" * 99 + b"\n"
    data = b"".join(kind.compress(line * 100_000) for _ in range(10))
    assert len(data) < 400_000
    piece_bytes = 1 << 20
    longest = 0

    def watched() -> Iterator[bytes | bytearray]:
        nonlocal longest
        for piece in kind.codec.decompress(PATH, iter([data]), piece_bytes=piece_bytes):
            longest = max(longest, len(piece))
            yield piece

    tracemalloc.start()
    try:
        total = sum(len(block.data) for block in stream_blocks(PATH, watched(), Lines(), max_record_bytes=1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 100_000_000
    assert longest == piece_bytes
    assert peak < 8 * piece_bytes


@each_kind
def test_one_piece_is_decompressed_when_it_is_asked_for(kind: Kind) -> None:
    """Nothing runs ahead: of a stream that goes on for ever, as much is taken as needed."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield kind.compress(b"x" * 1000)

    pieces = kind.codec.decompress(PATH, endless(), piece_bytes=500)
    assert len(next(pieces)) == 500
    assert taken <= 2_000


@each_kind
def test_many_small_members_take_linear_time(kind: Kind) -> None:
    """Work grows with the bytes, not with members times bytes: the libraries are fed little at a time."""
    member = kind.compress(b"abc\n")
    fed: list[int] = []

    class Counted(bytes):
        """Bytes that tell how many of them were taken at once."""

        def __getitem__(self, key: object) -> bytes:  # type: ignore[override]  # slices only
            part = super().__getitem__(key)  # type: ignore[call-overload]  # likewise
            fed.append(len(part))
            return bytes(part)

    data = Counted(member * 20_000)
    pieces = kind.codec.decompress(PATH, iter([data]), piece_bytes=1 << 20)
    assert b"".join(pieces) == b"abc\n" * 20_000
    assert max(fed) <= 64 * 1024


# Writing


@pytest.mark.parametrize("name", ["gzip", "bzip2", "zstd"])
@given(blocks=st.lists(st.binary(max_size=100), max_size=5))
def test_blocks_are_members_of_their_own(name: str, blocks: list[bytes]) -> None:
    """In whatever order they stand, the libraries read them as one stream."""
    codec = codec_to_write(name)
    assert codec is not None
    assert codec.compress is not None
    one_shot: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "bzip2": bz2.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(),
    }
    assert one_shot[name](b"".join(map(codec.compress, blocks))) == b"".join(blocks)
    assert all(codec.compress(block) == codec.compress(block) for block in blocks), "a retry stages the same bytes"


def test_what_cannot_be_written_is_refused_with_what_can() -> None:
    """Deflate streams do not concatenate, and no name is guessed."""
    assert codec_to_write("none") is None
    for name in ("deflate", "auto", "zip"):
        with pytest.raises(ConfigError, match="cannot write compression") as caught:
            codec_to_write(name)
        assert caught.value.hint == "use 'gzip', 'bzip2', 'zstd' or 'none'"
        assert ("concatenate" in caught.value.message) == (name == "deflate")


# Names


def test_auto_goes_by_the_end_of_the_name() -> None:
    """And a name that was given does not."""
    kinds = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".zstd": "zstd", ".deflate": "deflate", ".zz": "deflate"}
    for suffix, kind in kinds.items():
        codec = codec_for("auto", f"in/a{suffix}")
        assert codec is not None
        assert codec.name == kind
        assert codec_for("none", f"a{suffix}") is None
    for plain in ("a.jsonl", "gz", "a.gz/b"):
        assert codec_for("auto", plain) is None
    assert getattr(codec_for("zstd", "a.gz"), "name", "") == "zstd"


def test_a_compression_that_is_not_there_is_refused_with_those_that_are() -> None:
    """When the pipeline is built."""
    for name in ("auto", "gzip", "bzip2", "zstd", "deflate", "none"):
        check_readable(name)
    with pytest.raises(ConfigError, match="no compression 'lzma'") as caught:
        ReadFromBlob("abfss://raw@lake.dfs.core.windows.net/*", compression="lzma")
    assert caught.value.hint == "use 'auto', 'gzip', 'bzip2', 'zstd', 'deflate' or 'none'"


# Over the wire


def test_each_kind_is_read_by_its_suffix_and_by_setting(lake: Any) -> None:
    """Large ones, streamed in several requests, and small ones, which travel in packs, give the same lines."""
    lines = [f"{number} {number * 7919 % 10_007}" for number in range(3000)]
    content = "\n".join(lines).encode()
    for kind in KINDS:
        lake.raw.upload(f"in/large/a{kind.suffix}", kind.compress(content[:20_000]) + kind.compress(content[20_000:]))
        lake.raw.upload(f"in/small/b{kind.suffix}", kind.compress(b"one\ntwo"))
        lake.raw.upload(f"in/named/{kind.name.replace(' ', '-')}.data", kind.compress(b"one\ntwo"))
    with lake.pipeline() as p:
        for kind in KINDS:
            large = p | f"large {kind.name}" >> ReadFromBlob(lake.raw.url(f"in/large/*{kind.suffix}"), block_bytes=1000)
            assert_that(large, equal_to(lines), label=f"check large {kind.name}")
            named = p | f"named {kind.name}" >> ReadFromBlob(
                lake.raw.url(f"in/named/{kind.name.replace(' ', '-')}.data"), compression=kind.compression
            )
            assert_that(named, equal_to(["one", "two"]), label=f"check named {kind.name}")
        small = p | "small" >> ReadFromBlob(lake.raw.url("in/small/*"))
        assert_that(small, equal_to(["one", "two"] * len(KINDS)), label="check small")
