"""A scoped job that reads or matches, and prints what it counted and its peak memory above the idle process.

Idle is a process that has done the same with little data: what Beam imports and makes at a first run is not measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from beam_entra import EntraOptions, Lines, ReadFromBlob, ScopedPipeline
from beam_entra.io.dofn import Scoped
from beam_entra.io.packs import Pack
from beam_entra.io.read import _Match
from benchmarks.usage import Usage

__all__ = ["main"]

_ANSWERS: list[list[int]] = []  # the runner works in this process
_MOST_BLOBS = 200_000


class ReaderOptions(EntraOptions):
    """What to do."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--what", choices=["lines", "blobs"], required=True)
        parser.add_argument("--input", required=True)
        parser.add_argument("--warm_up", required=True)


class _Characters(beam.CombineFn):
    """How many lines there are, and how many characters in them."""

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


class _Numbers(beam.CombineFn):
    """How many blobs there are, and how many different ones; the name of each ends in a number."""

    def create_accumulator(self) -> bytearray:
        return bytearray(_MOST_BLOBS)

    def add_input(self, seen: bytearray, pack: Pack) -> bytearray:
        for blob in pack:
            seen[int(blob.path.name.rpartition("/")[2])] += 1
        return seen

    def merge_accumulators(self, several: Iterable[bytearray]) -> bytearray:
        return bytearray(map(sum, zip(*several, strict=True)))

    def extract_output(self, seen: bytearray) -> list[int]:
        return [sum(seen), sum(map(bool, seen))]


def _keep(answer: list[int]) -> None:
    _ANSWERS.append(answer)


def _lines(p: beam.Pipeline, pattern: str) -> Any:
    return p | ReadFromBlob(pattern, Lines()) | beam.CombineGlobally(_Characters())


def _blobs(p: beam.Pipeline, pattern: str) -> Any:
    """The match step of `ReadFromBlob` alone: what stands behind it is the runner's shuffle."""
    match = Scoped(_Match(ReadFromBlob(pattern)._settings))
    return p | beam.Create([pattern]) | match | beam.CombineGlobally(_Numbers())


def _run(options: ReaderOptions, pattern: str) -> str:
    with ScopedPipeline(options=options) as p:
        counted = _lines(p, pattern) if options.what == "lines" else _blobs(p, pattern)
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
