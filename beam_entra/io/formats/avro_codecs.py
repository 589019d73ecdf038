"""How Avro's container blocks are compressed."""

from __future__ import annotations

import bz2
import importlib
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from beam_entra.errors import BeamEntraError, ConfigError, Diagnosis

__all__ = ["Codec", "codec_of"]

_RAW_DEFLATE = -15  # zlib's name for "no header, no checksum"
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Codec:
    """Both ways of one compression.

    Attributes:
        library: What has to be installed for it, beyond what this package asks for.
    """

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]
    library: str = ""


def codec_of(name: str, error: type[BeamEntraError] = ConfigError) -> Codec:
    """The codec that Avro calls so.

    Raises:
        error: There is none, or its library is not there.
    """
    codec = _CODECS.get(name)
    if codec is None:
        raise error(f"there is no Avro codec {name!r}", Diagnosis(hint=f"these are known: {', '.join(_CODECS)}"))
    if codec.library:
        try:
            importlib.import_module(codec.library)
        except ImportError:
            raise error(
                f"the Avro codec {name!r} needs a library that is not installed",
                Diagnosis(hint=f"install it, on the workers too: pip install {codec.library}"),
            ) from None
    return codec


def _same(data: bytes) -> bytes:
    return data


def _deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=_RAW_DEFLATE)


def _inflate(data: bytes) -> bytes:
    return zlib.decompress(data, wbits=_RAW_DEFLATE)


def _to_zstandard(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def _from_zstandard(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)  # frames need not say how long they are


def _to_snappy(data: bytes) -> bytes:
    from cramjam import snappy  # noqa: PLC0415 - an optional library

    return bytes(snappy.compress_raw(data)) + zlib.crc32(data).to_bytes(_CRC_BYTES, "big")


def _from_snappy(data: bytes) -> bytes:
    from cramjam import snappy  # noqa: PLC0415 - an optional library

    plain = bytes(snappy.decompress_raw(data[:-_CRC_BYTES]))
    if zlib.crc32(plain).to_bytes(_CRC_BYTES, "big") != data[-_CRC_BYTES:]:
        raise ValueError("the checksum of a container block is wrong")
    return plain


_CODECS = {
    "null": Codec(_same, _same),
    "deflate": Codec(_deflate, _inflate),
    "snappy": Codec(_to_snappy, _from_snappy, library="cramjam"),
    "zstandard": Codec(_to_zstandard, _from_zstandard),
    "bzip2": Codec(bz2.compress, bz2.decompress),
    "xz": Codec(lzma.compress, lzma.decompress),
}
