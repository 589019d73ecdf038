"""JSON Lines."""

from __future__ import annotations

import json
import json.scanner
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_entra.errors import ConfigError, Diagnosis, FormatError
from beam_entra.io.blocks import BadRecord, Block, strip_line_end
from beam_entra.io.formats.base import Decoded, Format, as_mapping, in_order, join_rows, joined, not_writable, reason_of
from beam_entra.io.formats.json_batches import check_schema, parse_lines, parse_value, parse_values
from beam_entra.io.formats.json_text import json_lines_of

__all__ = ["JsonLines"]

_JSON_SPACE = " \t\r\n"
_LINE_ENDS = ("\n", "\r\n", "")


ParseBatch = Callable[[pa.RecordBatch], tuple[pa.RecordBatch, pa.BooleanArray]]


class JsonLines(Format):
    """JSON Lines: one JSON value a line, a dict as a rule. Blank lines are none.

    As record batches the rows are the objects. With a `schema`, they are its columns: other fields are left out, a
    field that is missing is null, and an object with a value of another type is a bad record. Without one, the columns
    are those that a block happens to have; objects with values of other types come in batches of their own.

    Args:
        parse: Makes an element of each decoded value. What it raises sends the record to the dead letters, with its
            blob and offset, like a record that is no JSON.
        schema: The columns of record batches; where `parse` makes elements other than the JSON, those of its elements
            unless there is a `parse_batch`.
        parse_batch: What `parse` does, for a whole batch at a time: gets rows with the columns of `schema`, gives the
            batch of the elements, in the same order and number, and which of them are sound. The others, whatever
            stands in their rows, are decoded one by one with `parse`, which says what is wrong with them. `schema` and
            `parse` are needed with it.

    Raises:
        ConfigError: The arguments do not go together.
    """

    suffix = ".jsonl"
    content_type = "application/jsonl"

    def __init__(
        self,
        parse: Callable[[Any], Any] | None = None,
        *,
        schema: pa.Schema | None = None,
        parse_batch: ParseBatch | None = None,
    ) -> None:
        if parse_batch is not None and (schema is None or parse is None):
            raise ConfigError(
                "parse_batch alone cannot say what it gets, or what is wrong with a record",
                Diagnosis(hint="give all three: JsonLines(parse, schema=pa.schema(...), parse_batch=...)"),
            )
        if schema is not None and (parse is None or parse_batch is not None):
            check_schema(schema)
        self.parse = parse
        self.schema = schema
        self.parse_batch = parse_batch
        self._inferred: pa.Schema | None = None  # of an earlier block, as a first guess at the next one's

    def decode(self, record: bytes, header: bytes) -> Any:
        text = record.decode("utf-8").strip(_JSON_SPACE)
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise ValueError(f"there is more behind the JSON value, from character {end} on")
        return value if self.parse is None else self.parse(value)

    def decode_each(self, block: Block, bad: list[BadRecord]) -> Generator[Any, None, int]:
        if not self._is_plain():
            return (yield from super().decode_each(block, bad))
        good, offset, parse = 0, block.offset, self.parse
        for line in self.records(block.data):
            try:
                text = line.decode("utf-8")
                value, end = _scan(text, 0)
                alone = text[end:] in _LINE_ENDS
            except (ValueError, StopIteration, RecursionError):
                alone = False
            if not alone:  # `decode` says what it is
                good += yield from super().decode_each(replace(block, offset=offset, data=line), bad)
            elif parse is None:
                good += 1
                yield value
            else:
                try:
                    element = parse(value)
                except Exception as error:  # noqa: BLE001 - whatever it raises, the record is a bad one
                    record = strip_line_end(line)
                    bad.append(BadRecord(path=block.path, offset=offset, reason=reason_of(error), record=record))
                else:
                    good += 1
                    yield element
            offset += len(line)
        return good

    def _is_plain(self) -> bool:
        """Whether nobody has made a format of their own of this one."""
        return all(getattr(type(self), name) is getattr(JsonLines, name) for name in ("decode", "skips", "records"))

    def decode_batches(self, block: Block, bad: list[BadRecord]) -> Iterator[pa.RecordBatch]:
        if not self._is_plain() or (self.parse is not None and self.parse_batch is None):
            yield from super().decode_batches(block, bad)
            return
        before = len(bad)
        guess = self._inferred if self.schema is None else self.schema
        lines = parse_lines(block.data, guess, infer=self.schema is None)
        batch, rest = lines.batch, lines.rest
        if batch is not None and self.schema is None:
            self._inferred = pa.schema([field for field in batch.schema if not pa.types.is_null(field.type)])
        if batch is not None and self.parse_batch is not None:
            batch, sound = _checked(*self.parse_batch(batch), batch.num_rows)
            if not pc.all(sound, skip_nulls=False).as_py():
                sound = pc.fill_null(sound, False)
                unsound = lines.rows[~sound.to_numpy(zero_copy_only=False)]
                rest = np.sort(np.concatenate([rest, unsound]))
                batch = batch.filter(sound)
        if batch is not None and batch.num_rows:
            yield batch
        if rest.size:
            doubtful = ((begin, block.data[begin:end]) for begin, end in lines.spans(rest))
            yield from self._join(list(self.decode_lines(block, doubtful, bad)), batch, block.path, bad)
            in_order(bad, before)

    def _join(
        self, decoded: list[Decoded], batch: pa.RecordBatch | None, path: str, bad: list[BadRecord]
    ) -> Iterator[pa.RecordBatch]:
        """What was decoded line by line as batches like those of the other lines."""
        if self.parse_batch is not None and self.schema is not None:
            elements = batch if batch is not None else self.parse_batch(pa.RecordBatch.from_pylist([], self.schema))[0]
            yield from join_rows(decoded, elements.schema, path, bad)
            return
        rows: list[Decoded] = []
        for row in decoded:
            if isinstance(row.element, dict):
                rows.append(row)
            else:
                bad.append(_bad(row, path, f"a JSON {type(row.element).__name__} is no row"))
        if self.schema is None:
            yield from join_rows(rows, None, path, bad)
        elif rows:
            names = self.schema.names
            values = [_object({name: row.element[name] for name in names if name in row.element}) for row in rows]
            parsed = parse_values(values, self.schema)
            batches = [parsed.batch] if parsed.batch is not None else []
            for line in parsed.rest.tolist():
                found = parse_value(values[line], self.schema)
                if isinstance(found, str):
                    bad.append(_bad(rows[line], path, f"does not fit the schema: {found}"))
                else:
                    batches.append(found)
            yield from joined(batches)

    def encode(self, element: Any) -> bytes:
        value = as_mapping(element)
        try:
            try:
                return "".join(_encode(value, 0)).encode("utf-8") + b"\n"
            except (UnicodeEncodeError, RecursionError):  # half a surrogate pair, which JSON can escape; a circle
                return _ASCII_ENCODER.encode(value).encode("ascii") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise not_writable(element, f"is no JSON: {error}", "map it to plain values before WriteToBlob") from None

    def encode_batch(self, batch: pa.RecordBatch) -> bytes:
        names = batch.schema.names
        if type(self).encode is JsonLines.encode and names and len(set(names)) == len(names):
            try:
                return json_lines_of(batch, _ENCODER.encode)
            except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError):
                pass  # of some row, which is for `encode` to say
        return super().encode_batch(batch)

    def skips(self, record: bytes) -> bool:
        return not record or record.isspace()


def _object(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _bad(row: Decoded, path: str, reason: str) -> BadRecord:
    return BadRecord(path=path, offset=row.offset, reason=reason, record=row.record)


def _checked(elements: pa.RecordBatch, sound: pa.BooleanArray, rows: int) -> tuple[pa.RecordBatch, pa.BooleanArray]:
    if elements.num_rows != rows or len(sound) != rows:
        raise FormatError(
            f"parse_batch got {rows} rows, and gave {elements.num_rows} with {len(sound)} marks",
            Diagnosis(hint="give a row for each, and say which are sound; what is not sound is left out for you"),
        )
    return elements, sound


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_scan = json.scanner.make_scanner(cast("Any", _DECODER))  # what `_DECODER.raw_decode` calls, without the call around it


def _json_default(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    converted = as_mapping(value)
    if converted is value:
        raise TypeError(f"a {type(value).__name__} has no JSON form")
    return converted


_encoder = partial(json.JSONEncoder, separators=(",", ":"), allow_nan=False, default=_json_default)
_ENCODER, _ASCII_ENCODER = _encoder(ensure_ascii=False), _encoder(ensure_ascii=True)


def _made_once() -> Callable[[Any, int], Sequence[str]]:
    """What `_ENCODER.encode` makes anew for each value, where this Python has it."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, _: (_ENCODER.encode(value),)
    encode: Callable[[Any, int], Sequence[str]] = make(
        None, _json_default, json.encoder.encode_basestring, None, ":", ",", False, False, False
    )
    return encode


_encode = _made_once()
