"""One side in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.data import json_lines, many, orders, parquet, record, small
from benchmarks.task import Task
from benchmarks.usage import Usage

ROOT = Path(__file__).parents[2]


def serve(*tasks: Task) -> list[dict[str, object]]:
    """What the server says to these tasks."""
    lines = "".join(json.dumps(asdict(task)) + "\n" for task in tasks)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.child"], input=lines, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_server_does_each_task_in_a_child_and_outlives_those_that_fail() -> None:
    """The floor from memory needs no cloud; a side that does not exist is a failure, and the next task is done."""
    floor = Task(side="floors.lines_in_memory", given={"blobs": 2, "size_bytes": 1000})
    first, failed, second = serve(floor, Task(side="floors.nothing"), floor)
    assert failed == {"failed": 1}
    lines = 2 * next(data for _, data in json_lines(1, 1000)).count(b"\n")
    for done in (first, second):
        assert (done["units"], done["answer"]) == (lines, lines)
        assert done["wall_s"] > 0
        assert done["peak_bytes"] >= done["idle_bytes"] > 0


def test_usage_sees_time_and_memory() -> None:
    """Of what happens within."""
    with Usage() as idle:
        pass
    with Usage() as busy:
        held = b"x" * 50_000_000
        sum(range(1_000_000))
    assert busy.peak_bytes - busy.idle_bytes >= len(held) * 0.9
    assert idle.peak_bytes - idle.idle_bytes < len(held) * 0.5
    assert busy.cpu_s > idle.cpu_s
    assert busy.wall_s > idle.wall_s > 0


def test_usage_sees_the_time_of_processes_that_have_ended() -> None:
    """A side that starts one has used what that did."""
    busy = "import time; sum(range(1_000_000)); print(time.process_time())"
    with Usage() as usage:
        ran = subprocess.run([sys.executable, "-c", busy], capture_output=True, text=True, check=True)
    assert usage.cpu_s >= float(ran.stdout) > 0


def test_usage_sees_what_the_host_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how long the CPUs were at work; what they idled is neither. Nothing where the system does not tell."""
    monkeypatch.setattr("benchmarks.usage._CPUS", told := tmp_path / "stat")
    with Usage() as untold:
        pass
    ticks = os.sysconf("SC_CLK_TCK")
    told.write_text(f"cpu  {2 * ticks} 0 {ticks} 80 9 0 0 {ticks} 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", "ascii")
    with Usage() as usage:
        told.write_text(f"cpu  {5 * ticks} 0 {ticks} 99 8 0 0 {3 * ticks} 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", "ascii")
    assert (untold.busy_s, untold.stolen_s) == (0, 0)
    assert (usage.busy_s, usage.stolen_s) == (3, 2)
    told.write_text("cpu 1 2 3 4\n", "ascii")
    with Usage() as old:
        pass
    assert (old.busy_s, old.stolen_s) == (0, 0)


def test_a_process_that_gets_no_byte_is_no_start(tmp_path: Path) -> None:
    """What it took to fail is not the time to a first byte."""
    nothing = Task(side="price.first_byte", given={"source": "nothing"}, manifest=str(tmp_path / "bench.access.toml"))
    assert serve(nothing) == [{"failed": 1}]


def test_data_is_the_same_each_time_and_of_the_size_that_was_asked_for() -> None:
    """So that runs can be compared."""
    assert list(json_lines(2, 5000)) == list(json_lines(2, 5000))
    for _, data in json_lines(2, 5000):
        assert 5000 <= len(data) < 5200
        assert [json.loads(line)["id"] for line in data.splitlines()] == list(range(data.count(b"\n")))
    assert 140 < len(record(123_456)) < 170
    assert [name for name, _ in small(2, 100, some=1)] == [
        "in/small/00000.jsonl",
        "in/small/00001.jsonl",
        "in/some/00000.jsonl",
    ]
    assert len({name for name, _ in many(1000)}) == 1000
    assert {name for name, _ in orders(80)} >= {"in/products.csv", "in/orders/2026-03-01.jsonl"}


def test_parquet_data_has_twenty_columns_and_five_row_groups() -> None:
    """Two of which are read."""
    ((_, data),) = parquet(1, 100)
    file = pq.ParquetFile(io.BytesIO(data))
    assert (file.metadata.num_columns, file.metadata.num_row_groups, file.metadata.num_rows) == (20, 5, 100)
    assert {"key", "amount"} <= set(file.schema_arrow.names)
