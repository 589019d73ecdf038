"""Runs jobs of growing size, each in a process of its own, and keeps what each took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from azure.storage.blob import BlobBlock

from benchmarks.cloud import ACCOUNT, RAW, BenchCloud, bring_up
from benchmarks.data import json_lines, record
from benchmarks.machine import facts
from benchmarks.run import Children
from benchmarks.task import Task

__all__ = ["FULL", "QUICK", "Sizes", "measure"]

_BLOCK_BYTES = 16 << 20
_ONE = "in/one.jsonl"

Point = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the jobs are.

    Attributes:
        files: How many small blobs are read, in each job.
        bundles: How many bundles there are, in each job.
        blocks: How many times 16 MiB are read and written again, in each job.
        processes: Numbers of worker processes; 0 is none but the launcher's.
        worker_blobs: How many blobs of 16 MiB the worker processes share; a job with one line says what booting takes.
        rounds: How often each number of worker processes is run.
        staged_blocks: How many blocks the commit step is given.
    """

    files: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    bundles: tuple[int, ...] = (10, 100, 1_000, 10_000)
    blocks: tuple[int, ...] = (1, 4, 16, 64)
    processes: tuple[int, ...] = (0, 1, 2)
    worker_blobs: int = 32
    rounds: int = 3
    staged_blocks: int = 1_000_000


FULL = Sizes()
QUICK = Sizes(
    files=(10, 100, 1_000),
    bundles=(1, 10, 100),
    blocks=(1, 2),
    processes=(2,),
    worker_blobs=2,
    rounds=1,
    staged_blocks=10_000,
)


def measure(sizes: Sizes, say: Callable[[str], object]) -> dict[str, Any]:
    """Run all of it.

    Returns:
        What docs/scaling.json holds.

    Raises:
        SideFailed: A job failed.
    """
    with bring_up(0, _data(sizes)) as cloud, Children(cloud) as children:
        _put_copied(cloud, sizes)
        run = _Runs(cloud, children, say)
        workers = {
            str(processes): {
                "boot": [run("workers", 0, pattern="one.jsonl", processes=processes) for _ in range(sizes.rounds)],
                "full": [run("workers", 0, pattern="shared/*", processes=processes) for _ in range(sizes.rounds)],
            }
            for processes in sizes.processes
        }
        staged = run("staged", sizes.staged_blocks, blocks=sizes.staged_blocks)
        axes = {
            "bytes": [
                run("copied", blocks * _BLOCK_BYTES, pattern=f"copied/{blocks}.jsonl") for blocks in sizes.blocks
            ],
            "bundles": [run("bundles", bundles, blob="one.jsonl", bundles=bundles) for bundles in sizes.bundles],
        }
        say(f"bringing {sum(sizes.files):,} blobs there")
        cloud.raw.put_all(_files(sizes))  # the last to come: so many make Azurite slower
        axes["files"] = [run("files", files, pattern=f"files/{files}/**") for files in sizes.files]
    return {
        "taken": datetime.now(UTC).strftime("%Y-%m-%d"),
        "full": sizes == FULL,
        "machine": facts(),
        "axes": axes,
        "workers": workers,
        "staged": {"blocks": staged["units"], "bytes": staged["bytes"]},
    }


class _Runs:
    """Runs a side, once, and gives what it took."""

    def __init__(self, cloud: BenchCloud, children: Children, say: Callable[[str], object]) -> None:
        self._cloud, self._children, self._say = cloud, children, say
        self._number = 0

    def __call__(self, side: str, at: int, **given: Any) -> Point:
        self._number += 1
        output = f"out/{side}-{self._number}/"
        before = self._cloud.cloud.tenant.token_requests
        task = Task(side=f"growth.{side}", given=given, output=output, **self._cloud.settings())
        outcome = self._children.do(task)
        outcome["token_requests"] = self._cloud.cloud.tenant.token_requests - before
        self._cloud.clear(output)
        told = {**{name: outcome[name] for name in _KEPT}, **outcome["answer"]}
        peak_mb = told["peak_bytes"] / 1e6
        self._say(f"{side:8} {given}: {told['wall_s']:.1f} s, {told['cpu_s']:.1f} CPU s, {peak_mb:.0f} MB")
        return {"at": at, **told}


_KEPT = ("units", "wall_s", "cpu_s", "idle_bytes", "peak_bytes", "token_requests")


def _data(sizes: Sizes) -> Iterator[tuple[str, bytes]]:
    yield _ONE, f"{record(0)}\n".encode("ascii")
    ((_, data),) = json_lines(1, _BLOCK_BYTES)
    for number in range(sizes.worker_blobs):
        yield f"in/shared/{number:03d}.jsonl", data


def _files(sizes: Sizes) -> Iterator[tuple[str, bytes]]:
    data = f"{record(0)}\n".encode("ascii")
    for files in sizes.files:
        for number in range(files):
            yield f"in/files/{files}/{number // 1000:03d}/{number:06d}.jsonl", data


def _put_copied(cloud: BenchCloud, sizes: Sizes) -> None:
    """Blobs of one block again and again: a block list may name a block many times, and Azurite holds it once."""
    ((_, data),) = json_lines(1, _BLOCK_BYTES)
    client = cloud.cloud.admin.client(ACCOUNT)
    for blocks in sizes.blocks:
        blob = client.get_blob_client(RAW, f"in/copied/{blocks}.jsonl")
        blob.stage_block("block", data, validate_content=True)
        blob.commit_block_list([BlobBlock("block")] * blocks)
