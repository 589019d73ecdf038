"""`beam-entra audit`: exit codes, what goes to which stream, several jobs at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from beam_entra.audit.record import SEAL_NAME
from beam_entra.cli.audit import audit


@pytest.fixture
def job(tmp_path: Path, trails: ModuleType) -> Path:
    """A sealed trail in a folder."""
    return _write(tmp_path / "jobs" / "one", trails.sample()[0].files)


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _run(*arguments: Any) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


def test_verify(job: Path, trails: ModuleType) -> None:
    """A sound trail exits 0 and says how much was checked, what did not close, and the digest to keep."""
    result = _run("verify", job)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    first, *segments, last = result.stdout.splitlines()
    assert first.startswith(f"verified  {trails.JOB}  ended ok; ")
    assert "3 bundles, 1 ended without closing" in first
    assert len(segments) == len(list(job.iterdir())) - 1
    assert re.search(r"10 records  worker-1 pid \d, 1 ended without closing$", segments[-1])
    assert last.strip() == f"seal digest {trails.sample()[1].digest}"


def test_verify_broken(job: Path) -> None:
    """A broken trail exits 1 and names segment and line on stderr; stdout stays empty."""
    segment = min(job.glob("segment-*"))
    segment.write_bytes(segment.read_bytes().replace(b'"step":"R', b'"step":"r', 1))
    result = _run("verify", job)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert f"BROKEN  {segment.name} line 5: rule 4: " in result.stderr
    assert "fix:" in result.stderr


def test_verify_digest(job: Path, trails: ModuleType) -> None:
    """The digest that was kept elsewhere is compared."""
    digest = trails.sample()[1].digest
    assert _run("verify", job, "--seal-digest", digest).exit_code == 0
    result = _run("verify", job, "--seal-digest", "00" + digest[2:])
    assert result.exit_code == 1
    assert "rule 16" in result.stderr


def test_verify_several(job: Path, trails: ModuleType) -> None:
    """A parent folder: one line for each job, and one broken one is enough for exit 1."""
    files = trails.sample()[0].files
    _write(job.parent / "two", files)
    result = _run("verify", job.parent)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    _write(job.parent / "three", {name: data for name, data in files.items() if name != SEAL_NAME})
    result = _run("verify", job.parent)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "BROKEN  three: seal.jsonl line 1: rule 14: not sealed" in result.stderr
    result = _run("verify", job.parent, "--seal-digest", "ab")
    assert result.exit_code == 2
    assert "for one trail" in result.stderr


@pytest.mark.parametrize("command", ["verify", "show"])
def test_names_cannot_forge_lines(job: Path, trails: ModuleType, command: str) -> None:
    """Folders and files of a trail that somebody else made may be called anything: no name is more than a name."""
    forged = "\x1b[2J\nverified  forged  ended ok\r\u202e"
    files = trails.sample()[0].files
    _write(job.parent / f"two{forged}", files | {f"segment-{forged}.jsonl": b"{}\n"})
    _write(job.parent / f"three{forged}", {name: data[:-3] for name, data in files.items()})
    result = _run(command, job.parent)
    assert result.exit_code == 1
    assert result.stderr.count("BROKEN") == 2
    for text in (result.stdout, result.stderr):
        assert not set("\x1b\r\u202e") & set(text)
        assert not [line for line in text.splitlines() if line.startswith("verified  forged")]
    assert r"two\x1b[2J\nverified" in result.stderr


@pytest.mark.parametrize("command", ["verify", "show"])
def test_no_trail(tmp_path: Path, command: str) -> None:
    """No trail is not a sound trail."""
    for path in (tmp_path, tmp_path / "nowhere"):
        result = _run(command, path)
        assert result.exit_code == 1
        assert f"no audit trail at {path}" in result.stderr


@pytest.mark.parametrize("command", ["verify", "show"])
def test_remote_needs_a_manifest(command: str) -> None:
    """Nobody's credentials are guessed."""
    result = _run(command, "abfss://audit@contosolake.dfs.core.windows.net/orders/")
    assert result.exit_code == 2
    assert "needs --access_manifest" in result.stderr


def test_show(job: Path) -> None:
    """The whole trail, in plain text when it is piped."""
    result = _run("show", job)
    assert result.exit_code == 0
    assert "pipeline   orders (test)" in result.stdout
    assert "\x1b" not in result.stdout


def test_show_broken(job: Path) -> None:
    """Shown as far as it can be read, with exit 1 and the reason on stderr."""
    segment = min(job.glob("segment-*"))
    segment.write_bytes(segment.read_bytes()[:-5])
    result = _run("show", job)
    assert result.exit_code == 1
    assert "token_acquired" in result.stdout
    assert "BROKEN" in result.stderr


def test_show_blob(job: Path, trails: ModuleType) -> None:
    """Which job read this blob: only jobs that did are named."""
    _write(job.parent / "two", trails.refused().files)
    result = _run("show", job.parent, "--blob", trails.LAKE + "orders/1.jsonl")
    assert result.exit_code == 0
    assert result.stdout.count("pipeline ") == 1
    assert "└ 2030-01-31 09:30:00 UTC  read" in result.stdout
    result = _run("show", job.parent, "--blob", trails.LAKE + "orders/none.jsonl")
    assert result.stdout == f"no record of {trails.LAKE}orders/none.jsonl\n"


def test_a_local_trail_needs_no_azure(job: Path) -> None:
    """Whoever reviews a downloaded trail needs neither Beam nor the Azure libraries."""
    code = (
        "import sys; from beam_entra.cli.audit import audit\n"
        f"audit(['verify', {str(job)!r}], standalone_mode=False)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'apache_beam', 'azure', 'msal'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
