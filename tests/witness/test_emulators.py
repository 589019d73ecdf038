"""What starts the emulators: their processes end with the tests, and a missing one is a reason to skip."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from beam_entra.testing.local import LocalCloud
from tests.witness.emulators import find_witness
from tests.witness.fetch import PINNED, installed_modules
from tests.witness.fetch import main as fetch
from tests.witness.npm_servers import OidcProvider

ROOT = Path(__file__).parents[2]
_PARENT = """
import sys, time
from pathlib import Path
from tests.witness.emulators import Process

folder = Path(sys.argv[1])
kept = Process(["/bin/sh", "-c", "echo $$ >&2; exec sleep 600"], folder=folder, environment={})
while not kept.said.strip():
    time.sleep(0.01)
print(kept.said.strip(), flush=True)
sys.stdin.read()
if sys.argv[2] == "closes":
    kept.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="waits on a pidfd")
@pytest.mark.parametrize("end", ["closes", "exits", "is killed"])
def test_a_process_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    """However the tests end, nothing of theirs goes on."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path), end],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            if end == "is killed":
                parent.send_signal(signal.SIGKILL)
            parent.stdin.close()
            parent.wait(30)
            ended, _, _ = select.select([child], [], [], 10)
            assert ended
        finally:
            os.close(child)


def test_a_missing_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason to skip names it; so does that for a file that cannot be executed."""
    monkeypatch.setenv("BEAM_ENTRA_CACHE", str(tmp_path))
    (tmp_path / "witnesses").mkdir()
    for content in (None, "no program"):
        if content:
            (tmp_path / "witnesses" / "entra-emulator").write_text(content)
        with pytest.raises(pytest.skip.Exception, match=r"^entra-emulator is not on this machine"):
            find_witness("entra-emulator")


def test_missing_npm_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beam_entra_cloud: LocalCloud) -> None:
    """The reason to skip says what brings them."""
    monkeypatch.setenv("BEAM_ENTRA_CACHE", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"^oidc-provider is not on this machine: `make npm-witnesses`"):
        OidcProvider(beam_entra_cloud.certificates).start()


def test_npm_packages_are_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there of this lock file is kept, without asking npm."""
    monkeypatch.setenv("BEAM_ENTRA_CACHE", str(tmp_path))
    package = installed_modules() / "oidc-provider" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text("{}")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")  # where nobody is
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    assert fetch() == 0
    assert [entry.name for entry in (tmp_path / "witnesses").iterdir()] == [installed_modules().parent.name]


def test_every_npm_package_is_pinned() -> None:
    """By its version and its digest, and from whatever registry npm is told to use."""
    wanted = json.loads((PINNED / "package.json").read_text("utf-8"))["dependencies"]
    locked = json.loads((PINNED / "package-lock.json").read_text("utf-8"))["packages"]
    assert locked.pop("")["dependencies"] == wanted
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in locked.values())
