"""Rows, run for real at a tiny size: both sides do the same, and the results are judged and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.defects import find_defects
from benchmarks.page import render
from benchmarks.rows import groups_of
from benchmarks.run import SideFailed, _check_answers, _check_repetition, sides_of_round
from benchmarks.timing import TimeLeft

ROOT = Path(__file__).parents[2]
ROWS = ("orders", "large", "bundle", "price")


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
    """Reading, writing, the job scoped and unscoped, a delay, floors of both kinds, timings, counts, every source."""
    results = tmp_path / "results.json"
    rows = [f"--row={row}" for row in ROWS]
    ran = bench("--scale=0.001", "--pairs=1", f"--results={results}", *rows)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "per bundle: open, issue a SAS, audit, close" in ran.stdout
    kept = json.loads(results.read_text(encoding="utf-8"))
    assert set(kept["groups"]) == set(ROWS)
    assert "a quick look, no result" in render(kept)
    sides = kept["groups"]["orders"]["sides"]
    clean, dead, revenue = sides["ours"][0]["answer"]
    assert (clean[0], dead[0], revenue[0]) == ("clean", "dead", "revenue")
    assert clean[1] + dead[1] > 480
    assert [len(sides[name]) for name in ("azfs", "ours", "unscoped", "batched", "memory")] == [1] * 5
    for name in ("azfs", "unscoped", "batched"):
        assert sides[name][0]["answer"] == sides["ours"][0]["answer"]
    seen = {name: runs[0]["token_requests"] for name, runs in kept["groups"]["price"]["sides"].items()}
    assert (seen["1"], seen["8"], seen["64"], seen["forked"]) == (2, 2, 2, 4)
    sources = ("federated_file", "workload_identity", "command", "client_secret", "certificate", "managed_identity")
    assert {name: seen[name] for name in sources} == dict.fromkeys(sources, 1)
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
    """A ratio of two different jobs means nothing, and a side that lost something is no faster."""

    def check(name: str, **sides: tuple[float, object]) -> None:
        (group,) = groups_of((name,))
        runs = {side: [{"units": units, "answer": answer}] for side, (units, answer) in sides.items()}
        _check_answers(group, {side.name: [] for side in group.sides} | runs)

    check("text", azfs=(9, 9), ours=(9, 9), sums=(1, [9, 2]), memory=(9, None))
    with pytest.raises(SideFailed, match="text do not agree: ours 8, azfs 9"):
        check("text", azfs=(9, 9), ours=(8, 8))
    with pytest.raises(SideFailed, match=r"sums do not agree: sums \[9, 2\], azfs-sums \[9, 3\]"):
        check("text", **{"sums": (1, [9, 2]), "azfs-sums": (1, [9, 3])})
    with pytest.raises(SideFailed, match="text do not agree: azfs 9, memory 10"):
        check("text", azfs=(9, 9), ours=(9, 9), memory=(10, 10))
    check("small-20ms", azfs=(50, 500), ours=(1000, 10_000))
    with pytest.raises(SideFailed, match="small-20ms do not agree: ours 9999, azfs 500"):
        check("small-20ms", azfs=(50, 500), ours=(1000, 9_999))


def test_a_round_that_did_something_else_is_no_result() -> None:
    """It must have done as many units as in the first, and written as many bytes."""
    (group,) = groups_of(("text",))
    same = {"units": 1, "written": {"clean": 10}}
    _check_repetition(group, {"ours": [same, same], "floor": [same]})
    for other in ({"units": 2, "written": {"clean": 10}}, {"units": 1, "written": {"clean": 9}}):
        with pytest.raises(SideFailed, match="ours of text did something else"):
            _check_repetition(group, {"ours": [same, same, other]})


def test_rounds_go_back_and_forth_where_little_is_to_be_seen() -> None:
    """A B B A, for longer than elsewhere; floors run in the first round."""
    (orders,) = groups_of(("orders",))
    rounds = [[side.name for side in sides_of_round(orders, number, 5)] for number in range(10)]
    assert rounds[0] == ["azfs", "ours", "unscoped", "batched", "memory"]
    assert rounds[1] == rounds[3] == ["batched", "unscoped", "ours", "azfs"]
    assert rounds[2] == rounds[4] == rounds[1][::-1]
    assert rounds[5] == ["unscoped", "ours"]
    assert rounds[6] == []
    assert [len(sides_of_round(orders, number, 1)) for number in range(2)] == [5, 0]
    (text,) = groups_of(("text",))
    assert sides_of_round(text, 1, 5) == [side for side in text.sides if not side.floor]


def test_what_does_not_vary_runs_less_often() -> None:
    """Counts in two rounds, starts of a process in three, timings in each; all of them once in a quick look."""
    (price,) = groups_of(("price",))
    rounds = [{side.name for side in sides_of_round(price, number, 5)} for number in range(5)]
    often = {name: sum(name in names for names in rounds) for name in ("64", "client_secret", "token")}
    assert often == {"64": 2, "client_secret": 3, "token": 5}
    assert sides_of_round(price, 0, 1) == list(price.sides)


def test_the_time_left_follows_the_pace_of_what_is_done() -> None:
    """At first from the groups' own figures, then as much slower as the first ones were."""
    now = [0.0]
    left = TimeLeft(groups_of(("text", "bundle")), share=1, now=lambda: now[0])
    first, second = groups_of(("text", "bundle"))
    assert left.seconds() == pytest.approx(first.takes_s + second.takes_s + 10)
    now[0] = 2 * (first.takes_s + 5)
    left.done(first)
    assert left.seconds() == pytest.approx(2 * (second.takes_s + 5))
    assert str(left) == "about 0:30 left, 1 of 2 to go"
