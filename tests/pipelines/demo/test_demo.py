"""The demo as a whole, on few orders: it checks what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beam_entra.audit.store import FolderTrail, find_trails
from beam_entra.audit.verify import verify
from pipelines.demo.totals import compute, differences, read_outputs

ROOT = Path(__file__).parents[3]
INTERRUPTED = 130
SIGNALS = {"Ctrl-C": signal.SIGINT, "kill": signal.SIGTERM}


@contextmanager
def demo(folder: Path, *, orders: int) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process group of its own, as a terminal would have it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.demo", f"--orders={orders}", f"--folder={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ports(text: str) -> list[int]:
    """Where the tenant and Azurite listened."""
    return [int(port) for port in re.findall(r"https://127\.0\.0\.1:(\d+)", text)]


def is_closed(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


def read_until(process: subprocess.Popen[str], enough: Callable[[str], bool]) -> str:
    """What it prints up to there."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if enough(text):
            break
    return text


def test_it_checks_what_it_says(tmp_path: Path) -> None:
    """Totals, trail and refusal hold; results and trails are left where it says; nobody listens any more."""
    with demo(tmp_path, orders=2000) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    for told in ("duplicates", "equal: every order", "audit: sealed and verified", "NotGranted: ", '"denied"'):
        assert told in out, out
    assert "✘" not in out
    assert "\x1b" not in out, "no colours where there is no terminal"
    assert len(ports(out)) == 2
    assert all(map(is_closed, ports(out)))
    expected = compute(tmp_path / "input", url="abfss://raw@contosolake.dfs.core.windows.net/")
    names = [path.relative_to(tmp_path / "output").as_posix() for path in (tmp_path / "output").rglob("part-*")]
    found = read_outputs(names, lambda name: (tmp_path / "output" / name).read_bytes())
    assert differences(expected.outcome, found) == []
    trails = find_trails(FolderTrail(tmp_path / "audit"))
    assert sorted(verify(trail).seal.outcome for trail in trails.values()) == ["failed", "ok"]


@pytest.mark.parametrize("name", SIGNALS)
def test_it_stops_everything_when_it_is_stopped(tmp_path: Path, name: str) -> None:
    """In the middle of its job: the exit code says so, and nobody listens any more."""
    with demo(tmp_path, orders=20_000) as process:
        out = read_until(process, lambda text: "--runner=" in text)
        time.sleep(1.5)  # into the job, wherever that is
        os.kill(process.pid, SIGNALS[name]) if name == "kill" else os.killpg(process.pid, SIGNALS[name])
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, out + rest
    assert "everything is stopped" in rest
    assert "Traceback" not in rest
    assert len(ports(out)) == 2
    assert all(map(is_closed, ports(out)))
