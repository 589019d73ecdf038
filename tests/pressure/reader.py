"""A scoped job that reads or matches, and prints what it counted and its peak memory above the idle process.

Idle is a process that has done the same with little data: what Beam imports and makes at a first run is not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from beam_entra import EntraOptions, ReadFromBlob, ScopedPipeline
from beam_entra.io.dofn import Scoped
from beam_entra.io.formats import BlobFormat, Bytes, JsonLines, Lines, Parquet
from beam_entra.io.packs import KeyedPack
from beam_entra.io.read import _Match
from benchmarks.usage import Usage

__all__ = ["main"]

_ANSWERS: list[list[int]] = []  # the runner works in this process
_MOST_BLOBS = 200_000
_SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])


class ReaderOptions(EntraOptions):
    """What to do."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--what", choices=[*_READS, "match"], required=True)
        parser.add_argument("--input", required=True)
        parser.add_argument("--warm_up", required=True)


class _Characters(beam.CombineFn):
    """How many texts there are, and how many characters in them."""

    def create_accumulator(self) -> list[int]:
        return [0, 0]

    def add_input(self, totals: list[int], line: str) -> list[int]:
        totals[0] += 1
        totals[1] += len(line)
        return totals

    def merge_accumulators(self, several: Iterable[list[int]]) -> list[int]:
        return [sum(each) for each in zip(*several, strict=True)]

    def extract_output(self, totals: list[int]) -> list[int]:
        return totals


class _BatchCharacters(_Characters):
    """The same of the column `text` of record batches."""

    def add_input(self, totals: list[int], batch: pa.RecordBatch) -> list[int]:
        totals[0] += batch.num_rows
        totals[1] += pc.sum(pc.utf8_length(batch.column("text"))).as_py()
        return totals


class _Numbers(beam.CombineFn):
    """How many blobs there are, and how many different ones; the name of each ends in a number."""

    def create_accumulator(self) -> bytearray:
        return bytearray(_MOST_BLOBS)

    def add_input(self, seen: bytearray, blob: tuple[str, bytes]) -> bytearray:
        seen[int(blob[0].rpartition("/")[2])] += 1
        return seen

    def merge_accumulators(self, several: Iterable[bytearray]) -> bytearray:
        return bytearray(map(sum, zip(*several, strict=True)))

    def extract_output(self, seen: bytearray) -> list[int]:
        return [sum(seen), sum(map(bool, seen))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """How to read, and what to count."""

    format: BlobFormat
    counted: beam.CombineFn
    batched: bool = False


_READS = {
    "lines": _Read(format=Lines(), counted=_Characters()),
    "json": _Read(format=JsonLines(schema=_SCHEMA), counted=_BatchCharacters(), batched=True),
    "parquet": _Read(format=Parquet(), counted=_BatchCharacters(), batched=True),
    "blobs": _Read(format=Bytes(with_path=True), counted=_Numbers()),
}


class _Matched(beam.PTransform):
    """The match step of `ReadFromBlob` alone, to numbers of blobs.

    Behind it in `ReadFromBlob` comes a shuffle, for which FnApiRunner holds every pack: with 100,000 blobs as much as a
    match that held them all would take, so that the memory of the whole read does not tell the one from the other.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def expand(self, pbegin: beam.pvalue.PBegin) -> beam.PCollection[tuple[str, bytes]]:
        packs = pbegin | beam.Create([self._pattern]) | Scoped(_Match(ReadFromBlob(self._pattern)._settings))
        return packs | beam.FlatMap(_named)


def _named(keyed_pack: KeyedPack) -> list[tuple[str, bytes]]:
    _, pack = keyed_pack
    return [(blob.path.name, b"") for blob in pack]


def _keep(answer: list[int]) -> None:
    _ANSWERS.append(answer)


def _run(options: ReaderOptions, pattern: str) -> str:
    read = _READS.get(options.what)
    with ScopedPipeline(options=options) as p:
        if read is None:
            counted = p | _Matched(pattern) | beam.CombineGlobally(_Numbers())
        else:
            elements = p | ReadFromBlob(pattern, read.format, batched=read.batched)
            counted = elements | beam.CombineGlobally(read.counted)
        counted | beam.Map(_keep)
    report = p.report
    assert report is not None
    return report.job


def main() -> None:
    """Warm up, do it, and say how it went."""
    _run(ReaderOptions(), ReaderOptions().warm_up)
    _ANSWERS.clear()
    with Usage() as usage:
        job = _run(ReaderOptions(), ReaderOptions().input)
    (answer,) = _ANSWERS
    peak_bytes = usage.peak_bytes - usage.idle_bytes
    print(json.dumps({"job": job, "answer": answer, "peak_bytes": peak_bytes, "wall_s": usage.wall_s}))
