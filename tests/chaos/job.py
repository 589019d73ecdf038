"""The job that is struck: orders in small blobs, a transform, and two sinks, whose blobs bundles share or do not."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pyarrow as pa
from pyarrow import parquet

from beam_entra import EntraOptions, JsonLines, Parquet, ReadFromBlob, ScopedPipeline, WriteToBlob
from beam_entra.paths import BlobPath
from tests.chaos.strikes import Storm
from tests.io.conftest import Lake

__all__ = ["SINKS", "Job", "check_output", "check_trail", "expected", "put_orders", "total"]

BLOBS, ROWS = 8, 30
SCHEMA = pa.schema([("id", pa.int64()), ("total", pa.int64())])
SINKS: dict[str, Callable[[bytes], list[dict[str, int]]]] = {
    "lines": lambda content: [json.loads(line) for line in content.splitlines()],
    "files": lambda content: parquet.read_table(io.BytesIO(content)).to_pylist(),
}


def put_orders(lake: Lake) -> None:
    """The input."""
    for blob in range(BLOBS):
        rows = range(blob * ROWS, (blob + 1) * ROWS)
        lake.upload_json(f"in/{blob:02d}.jsonl", [{"id": row, "quantity": row % 7, "price": blob + 1} for row in rows])


def expected() -> Counter[tuple[int, int]]:
    """Ids and totals of every order, worked out without the pipeline."""
    return Counter((row, (row % 7) * (row // ROWS + 1)) for row in range(BLOBS * ROWS))


def total(order: dict[str, int]) -> dict[str, int]:
    """The transform."""
    return {"id": order["id"], "total": order["quantity"] * order["price"]}


class Job:
    """One launch of it, in a thread.

    Args:
        prefix: Below `out/`; where both sinks have folders of theirs.
        flags: The runner's.
        shards: Of both sinks.
        overwrite: Of both sinks.
    """

    def __init__(
        self, lake: Lake, prefix: str, flags: tuple[str, ...], *, shards: int | None = None, overwrite: bool = False
    ) -> None:
        self._lake, self._settings = lake, {"shards": shards, "overwrite": overwrite}
        self.output = f"out/{prefix}"
        self.pipeline = ScopedPipeline(options=EntraOptions([*flags]), access_manifest=lake.manifest())
        self.id = self.pipeline.scope.job
        self.error: BaseException | None = None

    @contextmanager
    def running(self, most_s: float) -> Iterator[None]:
        """Launched before the block and ended after it, with whatever `error`.

        Raises:
            TimeoutError: It hangs.
        """
        thread = threading.Thread(target=self._run, name=self.id, daemon=True)
        thread.start()
        yield
        thread.join(most_s)
        if thread.is_alive():
            raise TimeoutError(f"job {self.id} has not ended after {most_s} s")

    def run(self, most_s: float) -> None:
        """Launch it, and wait for its end."""
        with self.running(most_s):
            pass

    def _run(self) -> None:
        lake = self._lake
        try:
            with self.pipeline as p:
                orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
                totals = orders | beam.Map(total) | beam.Reshuffle()
                lines, files = (lake.curated.url(f"{self.output}{sink}/") for sink in SINKS)
                totals | "Lines" >> WriteToBlob(lines, JsonLines(), block_bytes=200, **self._settings)
                totals | "Files" >> WriteToBlob(files, Parquet(schema=SCHEMA), **self._settings)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error


def check_output(lake: Lake, output: str) -> None:
    """What can be seen below each sink's prefix is what its `_SUCCESS` lists, and that is each order once."""
    for sink, read in SINKS.items():
        prefix = f"{output}{sink}/"
        success: dict[str, Any] = lake.success(prefix)
        assert success["state"] == "complete"
        listed = {BlobPath.parse(blob["path"]).name: blob["etag"] for blob in success["blobs"]}
        assert {name: lake.etag(lake.curated, name) for name in lake.parts(prefix)} == listed
        rows = [row for name in listed for row in read(lake.curated.download(name))]
        assert Counter((row["id"], row["total"]) for row in rows) == expected()
        assert success["rows"] == len(rows)


def check_trail(lake: Lake, job: Job, storm: Storm, outcome: str) -> set[str]:
    """It is sealed and verifies, and the bundles that were killed are there for what they are: never closed.

    Returns:
        The ids of these.
    """
    if storm.errors:
        raise ExceptionGroup("a strike failed", storm.errors)
    trail = lake.trail(job.id)
    summary = trail.verify()
    assert summary.seal.outcome == outcome
    unclosed = {bundle for segment in summary.segments for bundle in segment.open_bundles}
    dead = storm.bundles & {record["bundle"] for record in trail.records("bundle_opened")}
    assert dead <= unclosed
    assert storm.recorded <= dead
    alive = {record["pid"] for record in trail.records("segment_opened")} - storm.killed
    assert alive, "the launcher's at least"
    return dead
