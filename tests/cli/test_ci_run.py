"""`.ci/run`: its last line counts the tests, whatever went wrong before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"
JUNIT = '<testsuites><testsuite tests="{tests}" failures="{bad}" errors="0" skipped="{skipped}"/></testsuites>'


def run(folder: Path, *, make: str) -> subprocess.CompletedProcess[str]:
    """Run it in a folder where `make` is this shell script."""
    copy, tools = folder / ".ci" / "run", folder / "tools"
    copy.parent.mkdir()
    tools.mkdir()
    shutil.copy(SCRIPT, copy)
    (tools / "make").write_text(f"#!/bin/sh\n{make}\n")
    (tools / "make").chmod(0o755)
    return subprocess.run(
        ["bash", str(copy)],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_closing_line_is_there_without_an_environment(tmp_path: Path) -> None:
    """Where no environment can be made, no test ran, and that is said; the exit code says it, too."""
    done = run(tmp_path, make="exit 2")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed"
    assert "not well: lint test test-engines demo" in done.stderr


@pytest.mark.parametrize(
    ("engines", "closing", "status"),
    [
        pytest.param(JUNIT.format(tests=5, bad=0, skipped=3), "11 passed, 0 failed", 0, id="all is well"),
        pytest.param(JUNIT.format(tests=5, bad=1, skipped=3), "10 passed, 1 failed", 1, id="one failed"),
        pytest.param("<", "9 passed, 0 failed", 1, id="nothing came of the engines' tests"),
    ],
)
def test_the_closing_line_counts_the_tests_of_both_runs(
    tmp_path: Path, engines: str, closing: str, status: int
) -> None:
    """Those on engines are some of the tests; a run without results is not well."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "test").write_text(JUNIT.format(tests=10, bad=0, skipped=1))
    (tmp_path / "test-engines").write_text(engines)
    done = run(tmp_path, make='[ -z "$2" ] || cp "$1" "${2#TESTS=--junitxml=}"')
    assert done.stdout.splitlines()[-1] == closing, done.stderr
    assert done.returncode == status
