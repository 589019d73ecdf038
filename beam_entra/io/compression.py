"""Compressed blobs: read as streams, of which at most a piece is held; written as members that stand in any order.

One table says what there is. A compressed blob is read member after member (gzip), stream after stream (bzip2), frame
after frame (zstd), as the tools of each do; one that breaks off, or goes on with something else, is an error.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, Protocol

import pyarrow as pa

from beam_entra.errors import BeamEntraError, ConfigError, Diagnosis, FormatError

__all__ = ["Codec", "Compression", "check_readable", "codec_for", "codec_to_write"]

Compression = Literal["auto", "gzip", "bzip2", "zstd", "deflate", "none"]
Pieces = Iterator[bytes | bytearray]

_FED_BYTES = 64 * 1024  # at a time: zlib copies what it leaves, once for each member and piece
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for what is around a deflate stream
_ZLIB_HEADER_BYTES = 2
_ZSTD_LEVEL = 3  # of the tool
_BROKEN_OFF, _ARROWS_BROKEN_OFF = "it breaks off before its end", "Truncated compressed stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One kind of compression.

    Attributes:
        name: As `compression` of reading and writing has it.
        suffixes: What names of such blobs end in; the first one is that of blobs that are written.
        content_type: Media type of blobs that are written.
        streams: Decompresses pieces to pieces of a length.
        compress: A block to a member of its own, which may stand before and behind any other; None if there are none.
    """

    name: str
    suffixes: tuple[str, ...]
    content_type: str
    streams: Callable[[Pieces, int], Pieces]
    compress: Callable[[bytes], bytes] | None

    def decompress(self, path: str, pieces: Pieces, *, piece_bytes: int) -> Pieces:
        """The content of a blob that comes in pieces, at most `piece_bytes` at a time.

        Raises:
            FormatError: It is no such stream, or it breaks off.
        """
        try:
            yield from self.streams(pieces, piece_bytes)
        except BeamEntraError:  # of the pieces; some are an OSError, too
            raise
        except (zlib.error, OSError, EOFError, pa.ArrowException) as error:
            problem = _BROKEN_OFF if _ARROWS_BROKEN_OFF in str(error) else str(error)
        else:
            return
        raise FormatError(f"{path} is no sound {self.name} stream: {problem}", Diagnosis(hint=_hint(problem)))


class _Member(Protocol):
    """One member of a compressed stream, as `bz2` and `lzma` have it."""

    @property
    def eof(self) -> bool: ...  # pragma: no cover

    @property
    def needs_input(self) -> bool: ...  # pragma: no cover

    @property
    def unused_data(self) -> bytes: ...  # pragma: no cover

    def decompress(self, data: bytes, max_length: int) -> bytes: ...  # pragma: no cover


class _Inflated:
    """A `_Member` of zlib's."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        # One that is full may have more of what it has consumed.
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length
        return out


class _Deflated:
    """A `_Member` with zlib's header, as Hadoop writes it, or without any, as Beam does.

    What begins like the header would without it be a stored block with padding that no known writer sets.
    """

    def __init__(self) -> None:
        self._head = b""
        self._inner: _Inflated | None = None

    @property
    def eof(self) -> bool:
        return self._inner is not None and self._inner.eof

    @property
    def needs_input(self) -> bool:
        return self._inner is None or self._inner.needs_input

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data if self._inner is not None else b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._inner is None:
            self._head += data
            if len(self._head) < _ZLIB_HEADER_BYTES:
                return b""
            self._inner, data = _Inflated(_ZLIB if _has_zlib_header(self._head) else _RAW), self._head
        return self._inner.decompress(data, max_length)


def _has_zlib_header(data: bytes) -> bool:
    """RFC 1950, section 2.2: method 8, and a multiple of 31."""
    return data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0


def _members(new: Callable[[], _Member], padding: bytes, pieces: Pieces, piece_bytes: int) -> Pieces:
    """Member after member.

    Args:
        padding: Bytes that may follow a member and mean nothing.
    """
    member: _Member | None = None
    begun = False
    out = bytearray()
    for data in _small(pieces):
        more = True
        while more:
            if member is None:
                data = data.lstrip(padding) if begun else data
                if not data:
                    break
                member, begun = new(), True
            out += member.decompress(data, piece_bytes - len(out))
            if len(out) >= piece_bytes:
                yield out
                out = bytearray()
            if member.eof:
                data, member = member.unused_data, None
            else:
                data, more = b"", not member.needs_input
    if member is not None:
        raise EOFError(_BROKEN_OFF)
    if out:
        yield out


def _small(pieces: Pieces) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), _FED_BYTES):
            yield bytes(piece[at : at + _FED_BYTES])


def _zstd_frames(pieces: Pieces, piece_bytes: int) -> Pieces:
    """Frame after frame, also such as are skipped. Arrow takes windows of up to 128 MiB, as the tool does."""
    with pa.CompressedInputStream(pa.PythonFile(_Pulled(pieces), mode="r"), "zstd") as stream:
        while piece := stream.read(piece_bytes):
            yield piece


class _Pulled:
    """Pieces as Arrow reads a file."""

    closed = False

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = _small(pieces)
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._pieces, b"")
        self._rest = data[size:]
        return data[:size]

    def close(self) -> None:
        self._rest = b""


def _zstd_compress(block: bytes) -> bytes:
    compressed: bytes = pa.Codec("zstd", compression_level=_ZSTD_LEVEL).compress(block, asbytes=True)
    return compressed


_CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec(
                name="gzip",
                suffixes=(".gz",),
                content_type="application/gzip",
                streams=partial(_members, partial(_Inflated, _GZIP), b"\0"),
                compress=partial(gzip.compress, compresslevel=6, mtime=0),
            ),
            Codec(
                name="bzip2",
                suffixes=(".bz2",),
                content_type="application/x-bzip2",
                streams=partial(_members, bz2.BZ2Decompressor, b""),
                compress=bz2.compress,
            ),
            Codec(
                name="zstd",
                suffixes=(".zst", ".zstd"),
                content_type="application/zstd",
                streams=_zstd_frames,
                compress=_zstd_compress,
            ),
            Codec(
                name="deflate",
                suffixes=(".deflate", ".zz"),
                content_type="application/zlib",
                streams=partial(_members, _Deflated, b""),
                compress=None,
            ),
        )
    }
)


def check_readable(compression: str) -> None:
    """Raises `ConfigError` for what reading knows nothing of."""
    if compression not in {"auto", "none", *_CODECS}:
        raise ConfigError(
            f"there is no compression {compression!r}", Diagnosis(hint=f"use {_listed('auto', *_CODECS, 'none')}")
        )


def codec_for(compression: Compression, name: str) -> Codec | None:
    """How a blob of this name is compressed; None for one that is not."""
    if compression == "auto":
        return next((codec for codec in _CODECS.values() if name.endswith(codec.suffixes)), None)
    return _CODECS.get(compression)


def codec_to_write(compression: str) -> Codec | None:
    """How to compress the blocks of blobs; None for "none".

    Raises:
        ConfigError: Nothing can be written so.
    """
    codec = _CODECS.get(compression)
    if compression == "none" or (codec is not None and codec.compress is not None):
        return codec
    writable = _listed(*(known.name for known in _CODECS.values() if known.compress is not None), "none")
    why = "" if codec is None else ": its streams do not concatenate, and many bundles write to one blob"
    raise ConfigError(f"cannot write compression {compression!r}{why}", Diagnosis(hint=f"use {writable}"))


def _listed(*names: str) -> str:
    *some, last = map(repr, names)
    return f"{', '.join(some)} or {last}"


def _hint(problem: str) -> str:
    if "too much memory" in problem:
        return "its window is longer than 128 MiB: compress it again without --long or --ultra"
    return "upload the blob again; if it is not compressed so, read it with compression='none'"
