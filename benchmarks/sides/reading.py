"""Reading: lines, batches, sums per key, small blobs, large blobs, Parquet, and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.io import fileio

from beam_entra import JsonLines, Lines, ReadFromBlob
from benchmarks.sides.jobs import (
    azfs_pipeline,
    batched_read,
    collected,
    counted,
    done,
    key_and_amount,
    missing,
    ours_in,
    scoped_pipeline,
    summed,
    theirs_in,
    timed,
)
from benchmarks.task import Done, Task

__all__ = [
    "azfs_bytes",
    "azfs_list",
    "azfs_parquet",
    "azfs_sums",
    "azfs_text",
    "our_batches",
    "our_blocks",
    "our_bytes",
    "our_list",
    "our_parquet",
    "our_sums",
    "our_sums_of_batches",
    "our_text",
]

Work = Callable[[], Done]


# Lines, one element each, counted


def azfs_text(task: Task) -> Work:
    """`ReadFromText` over azfs."""

    def build(p: beam.Pipeline) -> None:
        counted(p | beam.io.ReadFromText(theirs_in(task.given["pattern"])))

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_text(task: Task) -> Work:
    """`ReadFromBlob(Lines())`."""

    def build(p: beam.Pipeline) -> None:
        counted(p | ReadFromBlob(ours_in(task.given["pattern"]), Lines()))

    return _of_count(timed(task, scoped_pipeline, build), task)


def our_batches(task: Task) -> Work:
    """`ReadFromBlob(Lines(), batched=True)`, rows counted."""
    pattern = ours_in(task.given["pattern"])
    batched_read(pattern, Lines())

    def build(p: beam.Pipeline) -> None:
        _rows_counted(p | batched_read(pattern, Lines()))

    return _of_count(timed(task, scoped_pipeline, build), task)


# JSON to key and number, summed per key


def azfs_sums(task: Task) -> Work:
    """`ReadFromText` over azfs, `json.loads` in a Map."""

    def build(p: beam.Pipeline) -> None:
        summed(p | beam.io.ReadFromText(theirs_in(task.given["pattern"])) | "Parse" >> beam.Map(key_and_amount))

    return _of_sums(timed(task, azfs_pipeline, build))


def our_sums(task: Task) -> Work:
    """`ReadFromBlob(JsonLines())`, element by element."""

    def build(p: beam.Pipeline) -> None:
        rows = p | ReadFromBlob(ours_in(task.given["pattern"]), JsonLines())
        summed(rows | "Pair" >> beam.Map(_pair))

    return _of_sums(timed(task, scoped_pipeline, build))


def our_sums_of_batches(task: Task) -> Work:
    """`ReadFromBlob(JsonLines(), batched=True)`: each batch is summed by Arrow, and the sums by Beam."""
    pattern = ours_in(task.given["pattern"])
    batched_read(pattern, JsonLines())

    def build(p: beam.Pipeline) -> None:
        summed(p | batched_read(pattern, JsonLines()) | "Sum batch" >> beam.FlatMap(_batch_sums))

    return _of_sums(timed(task, scoped_pipeline, build))


def _pair(row: dict[str, Any]) -> tuple[str, int]:
    return row["key"], row["amount"]


def _batch_sums(batch: Any) -> Iterator[tuple[str, int]]:
    import pyarrow as pa  # noqa: PLC0415 - in the worker, where it is needed

    sums = pa.Table.from_batches([batch]).group_by("key").aggregate([("amount", "sum")])
    yield from zip(sums["key"].to_pylist(), sums["amount_sum"].to_pylist(), strict=True)


# Whole blobs


def azfs_bytes(task: Task) -> Work:
    """`fileio` over azfs, each blob read as a whole, which is what `ReadableFile.read` does."""

    def build(p: beam.Pipeline) -> None:
        blobs = p | fileio.MatchFiles(theirs_in(task.given["pattern"])) | fileio.ReadMatches()
        _bytes_summed(blobs | "Read" >> beam.Map(lambda blob: len(blob.read())))

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_bytes(task: Task) -> Work:
    """`ReadFromBlob(Bytes())`."""
    bytes_format = missing("Bytes")

    def build(p: beam.Pipeline) -> None:
        _bytes_summed(p | ReadFromBlob(ours_in(task.given["pattern"]), bytes_format()) | "Length" >> beam.Map(len))

    return _of_count(timed(task, scoped_pipeline, build), task)


def our_blocks(task: Task) -> Work:
    """The blocks that `ReadFromBlob` decodes, not decoded: what reading alone costs."""
    from beam_entra.io.dofn import Scoped  # noqa: PLC0415 - not public, and only here
    from beam_entra.io.read import _Match, _ReadBlocks  # noqa: PLC0415 - likewise

    read = ReadFromBlob(ours_in(task.given["pattern"]), Lines())
    settings = read._settings

    def build(p: beam.Pipeline) -> None:
        blobs = p | beam.Create([ours_in(task.given["pattern"])]) | "Match" >> Scoped(_Match(settings))
        blocks = blobs | beam.Reshuffle() | "Read" >> Scoped(_ReadBlocks(settings))
        _bytes_summed(blocks | "Length" >> beam.Map(lambda block: len(block.data)))

    return _of_count(timed(task, scoped_pipeline, build), task)


# Parquet


def azfs_parquet(task: Task) -> Work:
    """`ReadFromParquetBatched` over azfs, two columns."""

    def build(p: beam.Pipeline) -> None:
        tables = p | beam.io.ReadFromParquetBatched(theirs_in(task.given["pattern"]), columns=["key", "amount"])
        _rows_counted(tables)

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_parquet(task: Task) -> Work:
    """`ReadFromBlob(Parquet(columns=...), batched=True)`."""
    pattern = ours_in(task.given["pattern"])
    parquet = missing("Parquet")
    batched_read(pattern, parquet(columns=["key", "amount"]))

    def build(p: beam.Pipeline) -> None:
        _rows_counted(p | batched_read(pattern, parquet(columns=["key", "amount"])))

    return _of_count(timed(task, scoped_pipeline, build), task)


# Lists


def azfs_list(task: Task) -> Work:
    """`fileio.MatchFiles` over azfs."""

    def build(p: beam.Pipeline) -> None:
        counted(p | fileio.MatchFiles(theirs_in(task.given["pattern"])))

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_list(task: Task) -> Work:
    """The match step of `ReadFromBlob`."""
    from beam_entra.io.dofn import Scoped  # noqa: PLC0415 - not public, and only here
    from beam_entra.io.read import _Match  # noqa: PLC0415 - likewise

    pattern = ours_in(task.given["pattern"])
    settings = ReadFromBlob(pattern)._settings

    def build(p: beam.Pipeline) -> None:
        counted(p | beam.Create([pattern]) | Scoped(_Match(settings)))

    return _of_count(timed(task, scoped_pipeline, build), task)


def _rows_counted(batches: Any) -> None:
    batches | "Rows" >> beam.Map(lambda batch: batch.num_rows) | beam.CombineGlobally(sum) | beam.Map(collected)


def _bytes_summed(lengths: Any) -> None:
    lengths | "Bytes" >> beam.CombineGlobally(sum) | beam.Map(collected)


def _of_count(work: Callable[[], list[Any]], task: Task) -> Work:
    return lambda: done(work(), units=task.given.get("units"))


def _of_sums(work: Callable[[], list[Any]]) -> Work:
    return lambda: done(work(), units=1)


