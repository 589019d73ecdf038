"""A pytest plugin: the engines for all tests that are marked `engine`, one of each for a whole run.

| fixture | scope | what |
|---|---|---|
| `flink` | function | the run's `Flink` cluster, whole: two TaskManagers, and no job runs |
| `spark` | session | a `JobServer` before a Spark cluster with two workers |
| `prism` | session | a `JobServer` that is Prism |
| `boot` | function | a `Boot`: the command of worker processes, `--environment_type=PROCESS` |
| `pool` | function | a `WorkerPool`: worker processes, `--environment_type=EXTERNAL` |

Each is started when the first test asks for it. A job gets there by `--job_endpoint`, its workers by
`--environment_config`:

    shop.run(runner="FlinkRunner", prism_location=None, job_endpoint=flink.endpoint, parallelism="4",
             environment_type="PROCESS", environment_config=boot.config)

Where an engine cannot be made, for want of Go, Java or Maven, its tests are skipped and say so.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from beam_entra.testing.local import LocalCloud
from tests.engines import clusters
from tests.engines.fetch import FLINK, PRISM, SPARK, find_tool

__all__ = ["Boot"]

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Boot:
    """The worker command of one test: notes its process id, then becomes the worker that the package ships.

    Attributes:
        command: For the environment's configuration.
        notes: One line for each worker that was started: its process id and what it was started with.
        environment: Variables for the workers.
    """

    command: Path
    notes: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The value of --environment_config."""
        return json.dumps({"command": str(self.command), "env": self.environment})

    def pids(self) -> set[int]:
        """The process ids of the workers so far."""
        return set(self.workers())

    def workers(self) -> dict[int, str]:
        """The same, and what the runner calls each."""
        return {int(pid): name for pid, name in re.findall(r"^(\d+) .*--id=(\S+)", self.notes.read_text("utf-8"), re.M)}


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    """A boot command that keeps a list."""
    notes, command = tmp_path / "workers", tmp_path / "boot"
    notes.touch()
    worker = Path(sys.executable).with_name("beam-entra-worker")
    command.write_text(f'#!/bin/sh\necho $$ "$@" >> "{notes}"\nexec "{worker}" "$@"\n', "utf-8")
    command.chmod(0o755)
    return Boot(command=command, notes=notes)


@pytest.fixture
def pool(tmp_path: Path, worker_environment: dict[str, str]) -> Iterator[clusters.WorkerPool]:
    """A worker pool."""
    folder = tmp_path / "pool"
    folder.mkdir()
    with clusters.worker_pool(folder, worker_environment) as made:
        yield made


@pytest.fixture(scope="session")
def worker_environment(beam_entra_cloud: LocalCloud) -> dict[str, str]:
    """What a machine of the cluster gives its processes: the workload identity, and where the sample's modules are."""
    settings = {"AZURE_FEDERATED_TOKEN_FILE": str(beam_entra_cloud.assertion_file), "PYTHONPATH": str(_ROOT)}
    return {**os.environ, **settings}


@pytest.fixture(scope="session")
def prism(tmp_path_factory: pytest.TempPathFactory, worker_environment: dict[str, str]) -> Iterator[clusters.JobServer]:
    """Prism as a job server."""
    _need(PRISM, made_with=["go"])
    with clusters.prism(tmp_path_factory.mktemp("prism"), worker_environment) as server:
        yield server


@pytest.fixture(scope="session")
def flink_cluster(
    tmp_path_factory: pytest.TempPathFactory, worker_environment: dict[str, str]
) -> Iterator[clusters.Flink]:
    """The run's Flink cluster, in whatever state."""
    _need(FLINK.home, FLINK.job_server, made_with=["java", "mvn"], runs_on=["java"])
    with clusters.flink(tmp_path_factory.mktemp("flink"), worker_environment) as cluster:
        yield cluster


@pytest.fixture
def flink(flink_cluster: clusters.Flink) -> clusters.Flink:
    """The run's Flink cluster, mended if the test before has killed a part of it, or left a job."""
    flink_cluster.mend()
    return flink_cluster


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory, worker_environment: dict[str, str]) -> Iterator[clusters.JobServer]:
    """A Spark cluster with two workers."""
    _need(SPARK.home, SPARK.job_server, made_with=["java", "mvn"], runs_on=["java"])
    with clusters.spark(tmp_path_factory.mktemp("spark"), worker_environment) as server:
        yield server


def _need(*parts: Path, made_with: list[str], runs_on: list[str] | None = None) -> None:
    missing = [part.name for part in parts if not part.exists()]
    lacking = [tool for tool in (made_with if missing else runs_on or []) if find_tool(tool) is None]
    if lacking:
        pytest.skip(f"there is no {' and no '.join(lacking)} on the PATH, which {parts[0].name} needs")
    assert not missing, f"{', '.join(missing)}: make engines"


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests are spread over processes, those of one cluster stay together."""
    for item in items:
        for cluster in ("flink_cluster", "spark", "prism"):
            if cluster in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(cluster))
