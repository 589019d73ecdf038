"""A lake that is 20 ms away, and jobs in processes of their own that say how much memory they took."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest
from azure.storage.blob import BlobBlock

from beam_entra.testing.local import LocalContainer, endpoints_toml
from benchmarks.delay import DelayProxy
from tests.io.conftest import Lake, Trail, bundle, lake

__all__ = ["MB", "Lake", "Measure", "Measured", "Trail", "bundle", "lake", "put_pattern"]

MB = 1 << 20
RTT_MS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a job in a process of its own said of itself.

    Attributes:
        answer: What it counted.
        peak_bytes: Its highest resident memory above what it had when it had done a small job before.
        wall_s: Seconds that it took.
    """

    job: str
    answer: list[int]
    peak_bytes: int
    wall_s: float

    @property
    def peak_mb(self) -> float:
        """The same in MB."""
        return self.peak_bytes / MB


Measure: TypeAlias = Callable[..., Measured]


@pytest.fixture
def far(lake: Lake) -> Iterator[Path]:
    """The endpoints overlay of the same lake, 20 ms away and straight to Azurite."""
    cloud = lake.cloud
    with DelayProxy(cloud.azurite.port, rtt_ms=RTT_MS) as relay:
        path = lake.folder / "far.endpoints.toml"
        path.write_text(
            endpoints_toml(
                authority=cloud.authority,
                ca_file=cloud.ca_file,
                assertion_file=cloud.assertion_file,
                accounts={account: f"https://127.0.0.1:{relay.port}/{account}" for account in cloud.accounts},
            ),
            encoding="utf-8",
        )
        yield path


@pytest.fixture
def measure(lake: Lake) -> Measure:
    """`measure(what, pattern, warm_up=pattern)` runs `reader.py`; see there. Its audit trail must verify."""

    def run(what: str, pattern: str, *, warm_up: str, endpoints: Path | None = None) -> Measured:
        command = [sys.executable, "-c", "from tests.pressure.reader import main; main()", f"--what={what}"]
        command += [f"--input={pattern}", f"--warm_up={warm_up}", f"--access_manifest={lake.write_manifest()}"]
        command += [f"--access_endpoints={endpoints or lake.cloud.endpoints_file}", "--runner=FnApiRunner"]
        ended = subprocess.run(
            command, env=lake.environment(), cwd=lake.folder, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        measured = Measured(**json.loads(ended.stdout.splitlines()[-1]))
        lake.trail(measured.job).verify()
        print(f"{what} {pattern}: {measured.peak_mb:.1f} MB above idle, {measured.wall_s:.1f} s")
        return measured

    return run


def put_pattern(
    lake: Lake, container: LocalContainer, name: str, block: bytes, times: int, *, begin: bytes = b"", end: bytes = b""
) -> None:
    """A blob of the same block again and again, which Azurite holds once: a block list may name a block many times."""
    client = lake.cloud.admin.client(container.account).get_blob_client(container.name, name)
    ids = []
    for block_id, data, count in (("begin", begin, 1), ("block", block, times), ("close", end, 1)):
        if data:
            client.stage_block(block_id, data)
            ids += [block_id] * count
    client.commit_block_list([BlobBlock(block_id) for block_id in ids])
