"""Writing shards of generated lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import apache_beam as beam

from beam_entra import Lines, WriteToBlob
from benchmarks.data import record
from benchmarks.sides.azfs import copy_within
from benchmarks.sides.jobs import azfs_pipeline, ours_out, scoped_pipeline, theirs_out, timed
from benchmarks.task import Done, Task

__all__ = ["azfs_write", "our_write"]

Work = Callable[[], Done]
_PIECES = 64
_PADDING = 1924  # lines of 2,000 bytes: with short ones the row would be about Beam's cost of an element


def azfs_write(task: Task) -> Work:
    """`WriteToText` over azfs."""
    copy_within(task.endpoint)
    shards = task.given["shards"]

    def build(p: beam.Pipeline) -> None:
        sink = beam.io.WriteToText(theirs_out(task.output + "part"), file_name_suffix=".txt", num_shards=shards)
        _lines(p, task.given["lines"]) | sink

    return _of_lines(timed(task, azfs_pipeline, build), task)


def our_write(task: Task) -> Work:
    """`WriteToBlob(Lines())`."""

    def build(p: beam.Pipeline) -> None:
        sink = WriteToBlob(ours_out(task.output), Lines(), shards=task.given["shards"])
        _lines(p, task.given["lines"]) | sink

    return _of_lines(timed(task, scoped_pipeline, build), task)


def _lines(p: beam.Pipeline, lines: int) -> beam.PCollection[str]:
    pieces = [(lines * number // _PIECES, lines * (number + 1) // _PIECES) for number in range(_PIECES)]
    return p | beam.Create(pieces, reshuffle=True) | "Make" >> beam.FlatMapTuple(_made)


def _made(start: int, stop: int) -> Iterator[str]:
    return (record(number, _PADDING) for number in range(start, stop))


def _of_lines(work: Callable[[], object], task: Task) -> Work:
    def done() -> Done:
        work()
        return Done(units=task.given["lines"])

    return done
