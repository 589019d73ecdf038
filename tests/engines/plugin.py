"""The engines, each started when the first test asks for it, and the orders to run on them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from beam_entra.testing.local import LocalCloud, LocalContainer
from tests.engines import clusters
from tests.engines.fetch import PRISM
from tests.pipelines.conftest import ROOT, Shop

__all__ = ["Boot"]


@dataclass(frozen=True, kw_only=True)
class Boot:
    """The worker command of one test: notes its process id, then becomes the worker that the package ships.

    Attributes:
        command: For the environment's configuration.
        notes: One line for each worker that was started.
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
        return {int(line) for line in self.notes.read_text("utf-8").splitlines()}


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    """A boot command that keeps a list."""
    notes, command = tmp_path / "workers", tmp_path / "boot"
    notes.touch()
    worker = Path(sys.executable).with_name("beam-entra-worker")
    command.write_text(f'#!/bin/sh\necho $$ >> "{notes}"\nexec "{worker}" "$@"\n', "utf-8")
    command.chmod(0o755)
    return Boot(command=command, notes=notes)


@pytest.fixture(scope="session")
def worker_environment(beam_entra_cloud: LocalCloud) -> dict[str, str]:
    """What a machine of the cluster gives its processes: the workload identity, and where the sample's modules are."""
    settings = {"AZURE_FEDERATED_TOKEN_FILE": str(beam_entra_cloud.assertion_file), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **settings}


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory, worker_environment: dict[str, str]) -> Iterator[clusters.JobServer]:
    """A Flink cluster with two TaskManagers."""
    with clusters.flink(tmp_path_factory.mktemp("flink"), worker_environment) as server:
        yield server


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory, worker_environment: dict[str, str]) -> Iterator[clusters.JobServer]:
    """A Spark cluster with two workers."""
    with clusters.spark(tmp_path_factory.mktemp("spark"), worker_environment) as server:
        yield server


@pytest.fixture(scope="session")
def prism() -> Path:
    """Prism's binary."""
    assert PRISM.exists(), "make engines"
    return PRISM


@pytest.fixture
def shop(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[[str], LocalContainer], tmp_path: Path
) -> Shop:
    """Fresh containers."""
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))
    return Shop(cloud=beam_entra_cloud, raw=raw, curated=curated, audit=audit, folder=tmp_path)
