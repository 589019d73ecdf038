"""Compressed blobs, streamed: at most a piece is held of what comes out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from beam_entra.errors import Diagnosis, FormatError

__all__ = ["gunzip"]

_GUNZIP_BYTES = 64 * 1024  # fed at a time: zlib copies what it leaves, once for each member and piece
_GZIP = 31  # zlib's name for "gzip header and trailer"


def gunzip(path: str, pieces: Iterator[bytes | bytearray], *, piece_bytes: int) -> Iterator[bytes]:
    """Decompress a gzip stream, member after member, at most `piece_bytes` at a time.

    Raises:
        FormatError: It is no gzip stream, or it breaks off.
    """
    member = zlib.decompressobj(_GZIP)
    fresh = True  # between members: nothing of the next one has been seen
    begun = False
    out = bytearray()
    try:
        for data in _small(pieces):
            while data:
                if fresh and begun:
                    data = data.lstrip(b"\0")  # padding after the last member
                    if not data:
                        break
                out += member.decompress(data, piece_bytes - len(out))
                fresh, begun = False, True
                if len(out) >= piece_bytes:
                    yield bytes(out)
                    out.clear()
                if member.eof:
                    data = member.unused_data
                    member, fresh = zlib.decompressobj(_GZIP), True
                else:
                    data = member.unconsumed_tail
    except zlib.error as error:
        raise _bad_gzip(path, str(error)) from None
    if not fresh:
        raise _bad_gzip(path, "it breaks off before its end")
    if out:
        yield bytes(out)


def _small(pieces: Iterator[bytes | bytearray]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), _GUNZIP_BYTES):
            yield bytes(piece[at : at + _GUNZIP_BYTES])


def _bad_gzip(path: str, problem: str) -> FormatError:
    return FormatError(
        f"{path} is no sound gzip stream: {problem}",
        Diagnosis(hint="upload the blob again; if it is not compressed, read it with compression='none'"),
    )
