"""Rows, run for real at a tiny size: both sides do the same, and the results are judged and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.defects import find_defects
from benchmarks.rows import groups_of
from benchmarks.run import SideFailed, _check_answers

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`make bench`."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_every_kind_of_row_runs(tmp_path: Path) -> None:
    """Reading, writing, the job scoped and unscoped, a delay, a floor, bundles."""
    results = tmp_path / "results.json"
    rows = [f"--row={row}" for row in ("small-20ms", "orders", "bundle")]
    ran = bench("--scale=0.001", "--pairs=1", f"--results={results}", *rows)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "per bundle: open, SAS, audit, close" in ran.stdout
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert set(kept["groups"]) == {"small-20ms", "orders", "bundle"}
    sides = kept["groups"]["orders"]["sides"]
    clean, dead, revenue = sides["ours"][0]["answer"]
    assert (clean[0], dead[0], revenue[0]) == ("clean", "dead", "revenue")
    assert clean[1] + dead[1] > 1900
    assert sides["azfs"][0]["answer"] == sides["unscoped"][0]["answer"] == sides["ours"][0]["answer"]
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
    assert "AccountKey" not in results.read_text(encoding="utf-8")


def test_azfs_still_does_what_the_docs_say_of_it() -> None:
    """Each defect, seen; one that is not seen any more has to leave the docs."""
    assert {defect.what: defect.reproduced for defect in find_defects() if not defect.reproduced} == {}


def test_rows_are_listed_and_an_unknown_one_is_refused() -> None:
    """Before anything is started."""
    listed = bench("--list")
    assert "orders-batched" in listed.stdout
    refused = bench("--row=nothing")
    assert refused.returncode == 2
    assert "no row nothing" in refused.stderr


def test_sides_that_did_different_things_are_no_result() -> None:
    """A ratio of two different jobs means nothing."""
    (group,) = groups_of(("text",))
    with pytest.raises(SideFailed, match="do not agree: 1, 2"):
        _check_answers(group, [{"units": 1, "answer": 1}, {"units": 1, "answer": 2}])
    _check_answers(group, [{"units": 1, "answer": 1}, {"units": 1, "answer": 1}, {"not_yet": "x"}])
