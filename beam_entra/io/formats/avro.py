"""Avro's object container files: a header, then container blocks of records, each with a sync marker behind it.

See: https://avro.apache.org/docs/1.12.0/specification/#object-container-files
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fastavro
import pyarrow as pa

from beam_entra.errors import ConfigError, Diagnosis, FormatError
from beam_entra.io.blocks import BadRecord, Block, Claims, Source
from beam_entra.io.formats.avro_codecs import Codec, codec_of
from beam_entra.io.formats.avro_schemas import (
    arrow_schema,
    has_uuids,
    invalid,
    is_record,
    parsed,
    uuids_as_text,
    what_is_wrong,
)
from beam_entra.io.formats.base import BlockFormat, as_mapping, not_writable, reason_of
from beam_entra.io.formats.rows import plain

__all__ = ["Avro"]

_MAGIC = b"Obj\x01"
_SYNC_BYTES = 16
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "org.apache.avro.file.Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "magic", "size": len(_MAGIC)}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "sync", "size": _SYNC_BYTES}},
        ],
    }
)
_LONG_BYTES = 10
_HEADER_BYTES = 16 << 10  # fetched first; four times as much each time that it does not do
_TAIL_BYTES = 64 << 10  # fetched first beyond the end of a range, to complete its last container block; then doubled


class Avro(BlockFormat):
    """Avro object container files: an element is what fastavro makes of a record, a dict as a rule.

    A container block that is corrupt is one bad record, the bytes of which are the block's.

    Args:
        schema: Of what is written: a dict, or JSON. What is read has its schema with it.
        codec: How container blocks are compressed: `deflate`, `null`, `snappy`, `zstandard`, `bzip2` or `xz`. What is
            read says so itself.
        reader_schema: What the records read are to be turned into, by Avro's rules of schema resolution.

    Raises:
        ConfigError: A schema is none, there is no such codec, or its library is missing.
    """

    suffix = ".avro"
    content_type = "application/avro"

    def __init__(self, schema: Any = None, *, codec: str = "deflate", reader_schema: Any = None) -> None:
        codec_of(codec)
        self.codec = codec
        self.avro_schema = None if schema is None else parsed(schema)
        self.reader_schema = None if reader_schema is None else parsed(reader_schema)
        self.sync = os.urandom(_SYNC_BYTES)  # here, so that all who write with it, after pickling too, write one file
        self._text = schema if schema is None or isinstance(schema, str) else json.dumps(_published(schema))

    # Reading

    def split(self, source: Source, start: int, stop: int, claims: Claims) -> Iterator[Block]:
        header = _header_of(source)
        length = len(header.data)
        if stop > length:  # a marker is before each container block; before the first, it is the header's
            at = max(start, length) - _SYNC_BYTES
            limit = source.max_record_bytes
            yield from _cut(source.path, header, at, _with_tail(source, at, stop), claims, max_record_bytes=limit)

    def stream(self, path: str, pieces: Iterator[bytes | bytearray], *, max_record_bytes: int) -> Iterator[Block]:
        beginning, header = b"", None
        while header is None:
            piece = next(pieces, None)
            if piece is None and not beginning:
                return
            beginning += piece or b""
            header = _find_header(path, beginning, ended=piece is None)
            if header is None:
                _check_length(path, 0, len(beginning), max_record_bytes)
        at = len(header.data) - _SYNC_BYTES
        rest = _to_the_end(beginning[at:], pieces)
        yield from _cut(path, header, at, rest, _Everything(), max_record_bytes=max_record_bytes)

    def decode_all(self, block: Block) -> Sequence[Any] | None:
        try:
            return self._elements(_header(block.header), block.data)
        except Exception:  # noqa: BLE001 - whatever is wrong, `decode_each` finds where
            return None

    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        header, good, offset = _header(block.header), 0, block.offset
        for container in _cut_at_markers(header, block.data):
            try:
                elements = self._elements(header, container)
            except Exception as error:  # noqa: BLE001 - whatever a decoder raises, the container block is corrupt
                bad.append(BadRecord(path=block.path, offset=offset, reason=reason_of(error), record=container))
            else:
                good += len(elements)
                yield from elements
            offset += len(container)
        return good

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        schema = _header(block.header).schema if self.reader_schema is None else self.reader_schema
        columns = arrow_schema(schema)
        elements = self.decode_all(block)
        if elements is None:
            elements = list(self.decode_each(block, bad))
        if not elements:
            return
        if has_uuids(schema):
            elements = uuids_as_text(elements)
        values = [[row[name] for row in elements] for name in columns.names] if is_record(schema) else [elements]
        arrays = [pa.array(column, field.type) for column, field in zip(values, columns, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)

    def _elements(self, header: _Header, containers: bytes) -> list[Any]:
        """The records of container blocks."""
        parts = [header.plain]
        for count, records in _containers(header, containers):
            parts += (_long(count), _long(len(records)), records, header.sync)
        elements: list[Any] = []
        container: Any
        for container in fastavro.block_reader(io.BytesIO(b"".join(parts)), self.reader_schema):
            elements += container
            if container.bytes_.read(1):
                raise ValueError("a container block has more data than records")
        return elements

    # Writing

    def header(self) -> bytes:
        return _header_bytes(
            {"avro.schema": self._text_to_write().encode(), "avro.codec": self.codec.encode()}, self.sync
        )

    def encode(self, element: Any) -> bytes:
        text, value = self._text_to_write(), as_mapping(element)
        wrong = what_is_wrong(text, self.avro_schema, value)
        if not wrong:
            try:
                return _encoded(self.avro_schema, value)
            except Exception:  # noqa: BLE001 - fastavro raises whatever it stumbles over
                wrong = ""
        rows = plain(value)  # to look for rows in each row would cost as much as to write it
        wrong = what_is_wrong(text, self.avro_schema, rows)
        if not wrong:
            try:
                return _encoded(self.avro_schema, rows)
            except Exception as error:  # noqa: BLE001 - as above
                wrong = invalid(self.avro_schema, rows) or reason_of(error)
        raise not_writable(
            element, f"does not fit the Avro schema: {wrong}", "map it to what the schema says before WriteToBlob"
        )

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        return b"".join(map(self.encode, batch.to_pylist(maps_as_pydicts="strict")))

    def frame(self, records: bytes, rows: int) -> bytes:
        if not rows:
            return b""
        data = codec_of(self.codec).compress(records)
        return b"".join((_long(rows), _long(len(data)), data, self.sync))

    def _text_to_write(self) -> str:
        if self._text is None:
            raise ConfigError("Avro cannot write without a schema", Diagnosis(hint="give it: Avro({...})"))
        return self._text


# Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    """What the beginning of a file says.

    Attributes:
        schema: Of its records.
        codec: How its container blocks are compressed.
        sync: What stands behind each of them.
        data: The header itself.
        plain: The header that the file would have if it were not compressed.
    """

    schema: Any
    codec: Codec
    sync: bytes
    data: bytes
    plain: bytes


def _header_of(source: Source) -> _Header:
    """The header of a blob, from as many of its bytes as that takes."""
    data = bytearray()
    wanted = _HEADER_BYTES
    while True:
        stop = min(wanted, source.size_bytes)
        for piece in source.ranges([(len(data), stop)]):
            data += piece
        if header := _find_header(source.path, bytes(data), ended=stop == source.size_bytes):
            return header
        _check_length(source.path, 0, len(data), source.max_record_bytes)
        wanted *= 4


def _find_header(path: str, data: bytes, *, ended: bool) -> _Header | None:
    """The header at the beginning of `data`; None if more is needed.

    Raises:
        FormatError: There is none, or not one that we can read.
    """
    if not _MAGIC.startswith(data[: len(_MAGIC)]):
        raise _no_avro(path, "it does not begin as one")
    file = io.BytesIO(data)
    try:
        fastavro.schemaless_reader(file, _HEADER, None)
    except (EOFError, IndexError):  # the latter in the middle of a number
        if ended:
            raise _no_avro(path, "it ends in the middle of the header") from None
        return None
    except Exception as error:  # noqa: BLE001 - whatever it is, this is no header
        raise _no_avro(path, f"its header is broken: {reason_of(error)}") from None
    try:
        return _header(data[: file.tell()])
    except FormatError as error:
        raise FormatError(f"{path} cannot be read: {error.message}", error.diagnosis) from None
    except Exception as error:  # noqa: BLE001 - as above
        raise _no_avro(path, f"its schema is broken: {reason_of(error)}") from None


@lru_cache(maxsize=64)
def _header(data: bytes) -> _Header:
    values: Any = fastavro.schemaless_reader(io.BytesIO(data), _HEADER, None)
    meta, sync = values["meta"], values["sync"]
    return _Header(
        schema=fastavro.parse_schema(json.loads(meta["avro.schema"])),
        codec=codec_of(meta.get("avro.codec", b"null").decode(), FormatError),
        sync=sync,
        data=data,
        plain=_header_bytes({**meta, "avro.codec": b"null"}, sync),
    )


def _header_bytes(meta: Mapping[str, bytes], sync: bytes) -> bytes:
    return _encoded(_HEADER, {"magic": _MAGIC, "meta": dict(meta), "sync": sync})


def _no_avro(path: str, problem: str) -> FormatError:
    return FormatError(
        f"{path} is no Avro file: {problem}", Diagnosis(hint="check the pattern, and that the blobs have this format")
    )


# Container blocks


class _Everything:
    """The claims on what is read as a whole."""

    def try_claim(self, position: int) -> bool:
        return True

    def stop(self) -> int:
        return sys.maxsize


def _cut(
    path: str,
    header: _Header,
    at: int,
    pieces: Iterator[tuple[bytes | bytearray, bool]],
    claims: Claims,
    *,
    max_record_bytes: int,
) -> Iterator[Block]:
    """Blocks of whole container blocks, from the one behind the first marker on; as `split_blocks` does with lines.

    Args:
        at: Where the pieces begin.
        pieces: With each, whether the blob ends with it.
    """
    sync, buffer, aligned = header.sync, bytearray(), False
    for piece, last in pieces:
        searched = max(len(buffer) - _SYNC_BYTES + 1, 0)
        buffer += piece
        if not aligned:
            marker = buffer.find(sync, searched)
            found = marker + _SYNC_BYTES if marker >= 0 else max(len(buffer) - _SYNC_BYTES + 1, 0)
            del buffer[:found]
            at, aligned, searched = at + found, marker >= 0, 0
        if not aligned:
            if at + len(buffer) >= claims.stop():
                return
            continue
        marker = buffer.rfind(sync, searched)
        end = len(buffer) if last else marker + _SYNC_BYTES if marker >= 0 else 0
        if not end:
            _check_length(path, at, len(buffer), max_record_bytes)
            continue
        final = buffer.rfind(sync, 0, end - 1)  # the marker before the last container block
        if not claims.try_claim(at + final + _SYNC_BYTES if final >= 0 else at):
            end = _end_before(buffer, sync, claims.stop() - at, end)
            if end:
                yield Block(path=path, offset=at, data=bytes(buffer[:end]), header=header.data)
            return
        yield Block(path=path, offset=at, data=bytes(buffer[:end]), header=header.data)
        del buffer[:end]
        at += end
        if not buffer and at >= claims.stop():
            return


def _end_before(buffer: bytearray, sync: bytes, stop: int, end: int) -> int:
    """Where in the buffer the container blocks end that begin before `stop`, a position in it."""
    if stop <= 0:
        return 0
    marker = buffer.find(sync, max(stop - _SYNC_BYTES, 0), end)
    return marker + _SYNC_BYTES if marker >= 0 else end


def _cut_at_markers(header: _Header, data: bytes) -> Iterator[bytes]:
    """Container blocks by their markers, whatever they themselves say about their lengths."""
    at = 0
    while at < len(data):
        marker = data.find(header.sync, at)
        end = marker + _SYNC_BYTES if marker >= 0 else len(data)
        yield data[at:end]
        at = end


def _containers(header: _Header, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The number of records and the uncompressed data of each container block.

    Raises:
        ValueError: One of them is not sound.
    """
    at = 0
    while at < len(data):
        rows, at = _read_long(data, at)
        length, at = _read_long(data, at)
        end = at + length
        if rows < 0 or length < 0 or data[end : end + _SYNC_BYTES] != header.sync:
            raise ValueError("a container block does not end where it says")
        yield rows, header.codec.decompress(data[at:end])
        at = end + _SYNC_BYTES


def _long(value: int) -> bytes:
    """Avro's variable-length form of a number that is not negative."""
    zigzag, result = value << 1, bytearray()
    while zigzag > 0x7F:
        result.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    result.append(zigzag)
    return bytes(result)


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    zigzag = shift = 0
    for position in range(at, min(at + _LONG_BYTES, len(data))):
        zigzag |= (data[position] & 0x7F) << shift
        if data[position] < 0x80:
            return (zigzag >> 1) ^ -(zigzag & 1), position + 1
        shift += 7
    raise ValueError("a container block does not say how long it is")


def _published(schema: Any) -> Any:
    """A schema without what fastavro may have noted in it."""
    if isinstance(schema, dict):
        return {name: value for name, value in schema.items() if not name.startswith("__")}
    return [_published(branch) for branch in schema] if isinstance(schema, list) else schema


def _encoded(schema: Any, value: Any) -> bytes:
    file = io.BytesIO()
    fastavro.schemaless_writer(file, schema, value, strict_allow_default=True, disable_tuple_notation=True)
    return file.getvalue()


def _check_length(path: str, at: int, length: int, limit: int) -> None:
    if length > limit:
        raise FormatError(
            f"the header or container block at byte {at} of {path} is longer than {limit} bytes",
            Diagnosis(hint="check that the blob is whole, or raise max_record_bytes"),
        )


# Pieces


def _with_tail(source: Source, start: int, stop: int) -> Iterator[tuple[bytes | bytearray, bool]]:
    """The pieces up to `stop`, then more for as long as they are asked for; with each, whether the blob ends."""
    at, tail = start, _TAIL_BYTES
    while at < source.size_bytes:
        end = min(stop, source.size_bytes)
        for piece in source.stream(at, end):
            at += len(piece)
            yield piece, at >= source.size_bytes
        stop, tail = end + tail, 2 * tail


def _to_the_end(beginning: bytes, pieces: Iterator[bytes | bytearray]) -> Iterator[tuple[bytes | bytearray, bool]]:
    yield beginning, False
    for piece in pieces:
        yield piece, False
    yield b"", True
