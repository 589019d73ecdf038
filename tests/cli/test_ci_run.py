"""`.ci/run`: its last line counts the tests, whatever went wrong before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "run"


def test_the_closing_line_is_there_without_an_environment(tmp_path: Path) -> None:
    """Where no environment can be made, no test ran, and that is said; the exit code says it, too."""
    copy, tools = tmp_path / ".ci" / "run", tmp_path / "tools"
    copy.parent.mkdir()
    tools.mkdir()
    shutil.copy(SCRIPT, copy)
    (tools / "make").write_text("#!/bin/sh\nexit 2\n")
    (tools / "make").chmod(0o755)
    done = subprocess.run(
        ["bash", str(copy)],
        env={**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "0 passed, 0 failed"
    assert "not well: lint test demo" in done.stderr
