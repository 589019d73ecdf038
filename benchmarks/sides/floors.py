"""What nobody gets under: Beam with lines that are in memory already, and plain GETs whose bytes go nowhere."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam

from benchmarks.cloud import RAW, RawBlobs
from benchmarks.data import json_lines, orders
from benchmarks.sides.jobs import azfs_pipeline, counted, timed
from benchmarks.sides.orders import transforms
from benchmarks.task import Done, Task

__all__ = ["gets", "lines_in_memory", "orders_in_memory"]

Work = Callable[[], Done]

_BLOBS: list[bytes] = []
_PIECE_BYTES = 8 << 20


def lines_in_memory(task: Task) -> Work:
    """The lines of the same blobs, from memory, one element each, counted: what Beam itself costs."""
    _BLOBS.extend(data for _, data in json_lines(task.given["blobs"], task.given["size_bytes"]))

    def build(p: beam.Pipeline) -> None:
        pieces = p | beam.Create(range(len(_BLOBS)), reshuffle=True) | "Pieces" >> beam.FlatMap(_pieces)
        counted(pieces | "Lines" >> beam.FlatMap(lambda piece: piece.decode("utf-8").splitlines()))

    work = timed(task, azfs_pipeline, build)

    def done() -> Done:
        (count,) = work()
        return Done(units=count, answer=count)

    return done


def orders_in_memory(task: Task) -> Work:
    """The orders job's transforms, from lines in memory to nowhere: what the job costs without any I/O."""
    for name, data in orders(task.given["lines"]):
        if name.endswith(".csv"):
            products = data.decode("utf-8").splitlines()[1:]
        else:
            _BLOBS.append(gzip.decompress(data) if name.endswith(".gz") else data)

    def build(p: beam.Pipeline) -> None:
        pieces = p | beam.Create(range(len(_BLOBS)), reshuffle=True) | "Pieces" >> beam.FlatMap(_pieces)
        lines = pieces | "Lines" >> beam.FlatMap(lambda piece: piece.split(b"\n"))
        for number, rows in enumerate(transforms(lines, p | "Products" >> beam.Create(products))):
            rows | f"Nowhere {number}" >> beam.Map(lambda row: None)

    work = timed(task, azfs_pipeline, build)

    def done() -> Done:
        work()
        return Done(units=1)

    return done


def _pieces(number: int) -> Iterator[bytes]:
    data, begin = _BLOBS[number], 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + _PIECE_BYTES) + 1 or len(data)
        yield data[begin:end]
        begin = end


def gets(task: Task) -> Work:
    """Range GETs, 16 at a time, with one SAS in the URL: no runner, no lines, no identity, no audit."""
    blobs, size, piece = task.given["blobs"], task.given["size_bytes"], task.given.get("piece_bytes", _PIECE_BYTES)
    name = task.given["name"]
    raw = RawBlobs(endpoint=f"{task.endpoint}/{RAW}", sas=os.environ["BENCH_RAW_SAS"], ca_file=task.ca_file)
    starts = range(0, size, piece)
    ranges = [(name.format(number), start, min(start + piece, size)) for number in range(blobs) for start in starts]

    def work() -> Done:
        with ThreadPoolExecutor(16) as threads:
            length = sum(threads.map(lambda part: len(raw.get(*part)), ranges))
        return Done(units=length if task.given.get("count") != "blobs" else blobs)

    return work


