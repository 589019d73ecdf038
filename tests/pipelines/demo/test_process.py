"""Commands end with the demo, whatever ends it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pipelines.demo.process import run

SAYS_WHEN_INTERRUPTED = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
try:
    (place / "ready").touch()
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    (place / "sealed").touch()
"""


def test_a_command_runs_to_its_end() -> None:
    """Status and both outputs."""
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    finished = run([sys.executable, "-c", script], env=os.environ)
    assert (finished.status, finished.out, finished.err) == (3, "out\n", "err\n")


def test_an_interrupt_reaches_the_command_once_and_is_waited_for(tmp_path: Path) -> None:
    """It has time to write its end; then the interrupt goes on."""

    def tick() -> None:
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", SAYS_WHEN_INTERRUPTED, str(tmp_path)], env=os.environ, tick=tick)
    assert (tmp_path / "sealed").exists()
