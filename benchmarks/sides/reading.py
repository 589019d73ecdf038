"""Reading: lines, batches, sums per key, small blobs, large blobs, Parquet, and lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io import fileio
from apache_beam.transforms.window import GlobalWindows

from beam_entra import Bytes, JsonLines, Lines, Parquet, ReadFromBlob
from benchmarks.sides.jobs import (
    azfs_pipeline,
    counted,
    done,
    key_and_amount,
    ours_in,
    scoped_pipeline,
    summed,
    theirs_in,
    timed,
    totalled,
)
from benchmarks.task import Done, Task

__all__ = [
    "azfs_bytes",
    "azfs_list",
    "azfs_parquet",
    "azfs_sums",
    "azfs_text",
    "our_batches",
    "our_bytes",
    "our_list",
    "our_parquet",
    "our_sums",
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

    def build(p: beam.Pipeline) -> None:
        _rows_counted(p | ReadFromBlob(ours_in(task.given["pattern"]), Lines(), batched=True))

    return _of_count(timed(task, scoped_pipeline, build), task)


# JSON to key and number, summed per key


def azfs_sums(task: Task) -> Work:
    """`ReadFromText` over azfs, `json.loads` in a Map."""

    def build(p: beam.Pipeline) -> None:
        summed(p | beam.io.ReadFromText(theirs_in(task.given["pattern"])) | "Parse" >> beam.Map(key_and_amount))

    return _of_sums(timed(task, azfs_pipeline, build))


def our_sums(task: Task) -> Work:
    """`ReadFromBlob(JsonLines(), batched=True)`: the batches of a bundle are summed by Arrow, their sums by Beam."""

    def build(p: beam.Pipeline) -> None:
        format_ = JsonLines(schema=pa.schema({"key": pa.string(), "amount": pa.int64()}))
        batches = p | ReadFromBlob(ours_in(task.given["pattern"]), format_, batched=True)
        summed(batches | "Sum batches" >> beam.ParDo(_SumBatches()))

    return _of_sums(timed(task, scoped_pipeline, build))


_SUMMED_TOGETHER = 32
_NO_SUMS = pa.schema({"key": pa.string(), "amount": pa.int64()}).empty_table()


class _SumBatches(beam.DoFn):  # type: ignore[misc]  # Beam's class is untyped
    """Batches, by Arrow; of a bundle one sum a key comes out, as Beam's own combiners do it with pairs."""

    def start_bundle(self) -> None:
        self._sums = _NO_SUMS
        self._batches: list[pa.RecordBatch] = []

    def process(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        if len(self._batches) >= _SUMMED_TOGETHER:
            self._add_up()

    def finish_bundle(self) -> Iterator[Any]:
        self._add_up()
        for pair in zip(self._sums["key"].to_pylist(), self._sums["amount"].to_pylist(), strict=True):
            yield GlobalWindows.windowed_value(pair)

    def _add_up(self) -> None:
        batches, self._batches = self._batches, []
        self._sums = _summed(pa.concat_tables([self._sums, pa.Table.from_batches(batches, _NO_SUMS.schema)]))


def _summed(table: pa.Table) -> pa.Table:
    sums = table.group_by("key", use_threads=False).aggregate([("amount", "sum")])
    return sums.rename_columns(["key", "amount"])


# Whole blobs


def azfs_bytes(task: Task) -> Work:
    """`fileio` over azfs, each blob read as a whole, which is what `ReadableFile.read` does."""

    def build(p: beam.Pipeline) -> None:
        blobs = p | fileio.MatchFiles(theirs_in(task.given["pattern"])) | fileio.ReadMatches()
        totalled(blobs | "Read" >> beam.Map(lambda blob: len(blob.read())))

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_bytes(task: Task) -> Work:
    """`ReadFromBlob(Bytes())`."""

    def build(p: beam.Pipeline) -> None:
        totalled(p | ReadFromBlob(ours_in(task.given["pattern"]), Bytes()) | "Length" >> beam.Map(len))

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

    def build(p: beam.Pipeline) -> None:
        format_ = Parquet(columns=["key", "amount"])
        _rows_counted(p | ReadFromBlob(ours_in(task.given["pattern"]), format_, batched=True))

    return _of_count(timed(task, scoped_pipeline, build), task)


# Lists


def azfs_list(task: Task) -> Work:
    """`fileio.MatchFiles` over azfs."""

    def build(p: beam.Pipeline) -> None:
        counted(p | fileio.MatchFiles(theirs_in(task.given["pattern"])))

    return _of_count(timed(task, azfs_pipeline, build), task)


def our_list(task: Task) -> Work:
    """The same `fileio.MatchFiles` over `abfss://`."""

    def build(p: beam.Pipeline) -> None:
        counted(p | fileio.MatchFiles(ours_in(task.given["pattern"])))

    return _of_count(timed(task, scoped_pipeline, build), task)


def _rows_counted(batches: Any) -> None:
    totalled(batches | "Rows" >> beam.Map(lambda batch: batch.num_rows))


def _of_count(work: Callable[[], list[Any]], task: Task) -> Work:
    return lambda: done(work(), units=task.given.get("units"))


def _of_sums(work: Callable[[], list[Any]]) -> Work:
    return lambda: done(work(), units=1)


