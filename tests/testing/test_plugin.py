"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from beam_entra.testing.local import LocalCloud, LocalContainer
from beam_entra.testing.node import default_cache

ROOT = Path(__file__).parents[2]


def run_pytest(folder: Path, source: str, *, ini: str = "") -> subprocess.CompletedProcess[str]:
    """Run a test file with the plugin, in a process of its own."""
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}")
    (folder / "test_it.py").write_text(source)
    installed = any(entry.value == "beam_entra.testing.plugin" for entry in entry_points(group="pytest11"))
    load = [] if installed else ["-p", "beam_entra.testing.plugin"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *load, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BEAM_ENTRA_CACHE": str(default_cache())},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_containers_are_fresh_and_faults_do_not_stay(tmp_path: Path) -> None:
    """One cloud for the run; each test gets containers of its own, without faults or records of another."""
    done = run_pytest(
        tmp_path,
        """
seen = []

def test_one(beam_entra_cloud, beam_entra_container):
    seen.append((beam_entra_cloud, beam_entra_container.name))
    beam_entra_container.upload("a", b"x")
    beam_entra_cloud.tenant.fail()
    beam_entra_cloud.proxy.reset()

def test_two(beam_entra_cloud, beam_entra_containers):
    raw, curated = beam_entra_containers("raw"), beam_entra_containers("curated", account="second")
    assert seen[0][0] is beam_entra_cloud
    assert len({raw.name, curated.name, seen[0][1]}) == 3
    assert (raw.account, curated.account) == ("first", "second")
    assert raw.name.startswith("raw-")
    assert raw.list() == curated.list() == []
    assert beam_entra_cloud.tenant._faults.take(None) is None
    assert beam_entra_cloud.proxy._faults.take(None) is None

def test_clock(beam_entra_clock):
    assert beam_entra_clock() == beam_entra_clock()
""",
        ini="beam_entra_accounts = first second\n",
    )
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_a_run_without_the_cloud_pays_nothing(tmp_path: Path) -> None:
    """Loading the plugin imports neither Beam nor Azure, makes no thread and starts no process."""
    done = run_pytest(
        tmp_path,
        """
import sys, threading

def test_nothing():
    heavy = ("apache_beam", "azure", "cryptography", "trustme", "jwt", "beam_entra.testing.local")
    assert not [name for name in heavy if name in sys.modules]
    assert threading.active_count() == 1
""",
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_faults_are_left_behind_on_purpose(beam_entra_cloud: LocalCloud) -> None:
    """First half of the next test: switches everything to broken, and lets the plugin clean up."""
    beam_entra_cloud.tenant.fail()
    beam_entra_cloud.proxy.reset()


def test_faults_left_behind_are_gone(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Second half: nothing is switched on."""
    assert not beam_entra_cloud.tenant.requests
    assert not beam_entra_cloud.proxy.requests
    beam_entra_container.upload("a", b"x")
    assert beam_entra_container.list() == ["a"]


@pytest.mark.parametrize("purpose", ["raw", "audit"])
def test_a_containers_name_says_its_purpose(beam_entra_containers: object, purpose: str) -> None:
    """So that a failing test's paths can be read."""
    assert callable(beam_entra_containers)
    assert beam_entra_containers(purpose).name.startswith(f"{purpose}-")
