"""Beam's own I/O suites, from the installed wheel, on abfss:// paths in the local cloud.

They run in two processes at a time, each one job under a manifest that grants a prefix; both trails are sealed and
verify. What cannot apply to blobs is listed in docs/filesystem.md, and has to fail: this list and the failures are held
against one another.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import apache_beam
import pytest

from beam_entra.audit.verify import TrailSummary, verify
from beam_entra.testing.local import LocalCloud, LocalContainer, endpoints_toml

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("beam_suites")]  # all of them look at the same runs

ROOT = Path(__file__).parents[2]
INSTALLED = Path(apache_beam.__file__).parents[1]
DOCUMENT = ROOT / "docs" / "filesystem.md"
TIMEOUT_S = 900
PROCESSES = (
    ("textio", "filebasedsource", "avroio", "filesystems"),
    ("parquetio", "fileio", "tfrecordio", "filebasedsink"),
)
LEAST = {
    "textio": 117,
    "filebasedsource": 43,
    "filebasedsink": 14,
    "fileio": 39,
    "tfrecordio": 33,
    "parquetio": 32,
    "avroio": 38,
    "filesystems": 15,
}


def cannot_apply() -> dict[str, set[str]]:
    """The cases that docs/filesystem.md lists, by suite."""
    listed: dict[str, set[str]] = {suite: set() for suite in LEAST}
    rows = re.findall(r"^\| `(\w+)_test` \| `(\w+\.\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    for suite, case in rows:
        listed[suite].add(case)
    return listed


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What became of the cases of one suite."""

    passed: frozenset[str]
    failed: frozenset[str]


class AdminTrail:
    """A trail, read with the account key."""

    def __init__(self, container: LocalContainer, folder: str) -> None:
        self._container, self._folder = container, folder

    def names(self) -> list[str]:
        """Its files."""
        return [name.removeprefix(self._folder) for name in self._container.list(self._folder)]

    def read(self, name: str) -> bytes:
        """One of them."""
        return self._container.download(self._folder + name)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All that came out."""

    suites: dict[str, Cases]
    trails: list[TrailSummary]
    printed: str
    left: list[str]


def manifest(cloud: LocalCloud, lake: LocalContainer, audit: LocalContainer, folder: Path) -> Path:
    """A manifest that grants everything below one prefix, and nothing beside it."""
    grant = json.dumps([lake.url("suites/")])
    file = folder / "suites.access.toml"
    file.write_text(
        f"""
        pipeline = "suites"
        environment = "test"
        [identity]
        tenant = "{cloud.tenant_id}"
        client = "{cloud.client_id}"
        credential = "federated_file"
        assertion_file = "file:replaced-by-the-endpoints"
        [lifetime]
        job = "1h"
        [grants]
        read = {grant}
        write = {grant}
        delete = {grant}
        [audit]
        path = "{audit.url("suites/")}"
        """,
        encoding="utf-8",
    )
    return file


def straight(cloud: LocalCloud, folder: Path) -> Path:
    """Endpoints that leave the proxy out, which nobody asks and which would be a third of the work."""
    file = folder / "endpoints.toml"
    text = endpoints_toml(
        authority=cloud.authority,
        ca_file=cloud.ca_file,
        assertion_file=cloud.assertion_file,
        accounts={account: cloud.azurite.endpoint(account) for account in cloud.accounts},
    )
    file.write_text(text, encoding="utf-8")
    return file


def run(names: tuple[str, ...], flags: list[str], folder: Path) -> tuple[str, Path]:
    """Run suites in one process; gives what it printed, and its results."""
    results = folder / f"{names[0]}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={INSTALLED}"]
    command += ["-p", "no:cacheprovider", "-p", "beam_suites_redirect"]
    command += [*flags, f"--junitxml={results}", "--timeout=600"]
    command += ["--pyargs", *(f"apache_beam.io.{name}_test" for name in names)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.stdout, results


def read_results(results: Path) -> dict[str, Cases]:
    """Cases by suite, from a junit file; skipped ones left out."""
    passed: dict[str, set[str]] = {}
    failed: dict[str, set[str]] = {}
    root = ElementTree.parse(results).getroot()  # noqa: S314 - pytest wrote it
    for case in root.iter("testcase"):
        name = re.fullmatch(r"(?:.*\.)?(\w+)_test\.(\w+)", case.get("classname", ""))
        assert name, case.attrib
        if case.find("skipped") is not None:
            continue
        bad = case.find("failure") is not None or case.find("error") is not None
        (failed if bad else passed).setdefault(name[1], set()).add(f"{name[2]}.{case.get('name')}")
    found = {}
    for suite in passed.keys() | failed.keys():
        bad_ones = frozenset(failed.get(suite, ()))
        found[suite] = Cases(passed=frozenset(passed.get(suite, ())) - bad_ones, failed=bad_ones)
    return found


@pytest.fixture(scope="module")
def runs(beam_entra_cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each suite, run once."""
    cloud, folder = beam_entra_cloud, tmp_path_factory.mktemp("suites")
    lake, audit = (cloud.create_container(cloud.accounts[0], name) for name in ("suites-lake", "suites-audit"))
    flags = [
        f"--temporary-files={lake.url('suites/')}",
        f"--access_manifest={manifest(cloud, lake, audit, folder)}",
        f"--access_endpoints={straight(cloud, folder)}",
    ]
    with ThreadPoolExecutor(len(PROCESSES)) as pool:
        done = list(pool.map(lambda names: run(names, flags, folder), PROCESSES))
    printed = "\n".join(output for output, _ in done)
    assert all(results.exists() for _, results in done), printed[-5_000:]
    jobs = sorted({name.rpartition("/")[0] for name in audit.list()})
    return Runs(
        suites={suite: cases for _, results in done for suite, cases in read_results(results).items()},
        trails=[verify(AdminTrail(audit, f"{job}/")) for job in jobs],
        printed=printed,
        left=[name for name in lake.list() if not name.startswith("suites/")],
    )


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one process")
def test_tests_of_a_group_stay_together(request: pytest.FixtureRequest) -> None:
    """A pytest that is too new for xdist would have each process run all suites."""
    assert request.node.nodeid.endswith("@beam_suites")


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("suite", LEAST)
def test_a_suite_of_beams(runs: Runs, suite: str) -> None:
    """All of its cases pass, but for exactly those that the docs list."""
    found = runs.suites[suite]
    assert found.failed == cannot_apply()[suite], runs.printed[-20_000:]
    assert len(found.passed) >= LEAST[suite]


@pytest.mark.timeout(TIMEOUT_S)
def test_all_that_the_suites_did_is_audited(runs: Runs) -> None:
    """One sealed trail a process; files were matched, read, written, copied and deleted, and nothing was denied."""
    assert len(runs.trails) == len(PROCESSES)
    for trail in runs.trails:
        assert all(trail.counts[kind] > 0 for kind in ("listed", "read", "committed", "copied", "deleted"))
        assert "denied" not in trail.counts
        assert trail.counts["deleted"] == trail.counts["delete_intended"]


@pytest.mark.timeout(TIMEOUT_S)
def test_nothing_is_written_beside_the_prefix(runs: Runs) -> None:
    """The suites' files lie where they were redirected to."""
    assert runs.left == []


def test_the_docs_name_each_case_once() -> None:
    """And with a reason."""
    pattern = r"^\| `(\w+)_test` \| `(\w+\.\w+)` \| (.*) \|$"
    rows = re.findall(pattern, DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows
    assert len({(suite, case) for suite, case, _ in rows}) == len(rows)
    assert all(reason.strip() for _, _, reason in rows)
