"""From runs to verdicts, and from those to a table and a page."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest

from benchmarks.page import FIGURES, PAGE, render
from benchmarks.results import Spread, findings, judge, spread, sure_of_median
from benchmarks.rows import GROUPS, Row, groups_of
from benchmarks.table import HEADINGS, cells, quantity, range_of


def ran(
    *walls: float,
    units: float = 100,
    peak: int = 0,
    samples: tuple[float, ...] = (),
    requests: int = 0,
    told: bool = True,
) -> list[dict[str, Any]]:
    """Runs of one side."""
    return [
        {
            "wall_s": wall,
            "cpu_s": wall / 2,
            "idle_bytes": 1000,
            "peak_bytes": 1000 + peak,
            "stolen_s": wall / 50,
            "busy_s": wall - wall / 50 if told else 0,
            "units": units,
            "answer": None,
            "samples_s": samples,
            "token_requests": requests,
        }
        for wall in walls
    ]


def row(**settings: Any) -> Row:
    """A row of two sides."""
    return Row(**{"name": "x", "shown": "X", "reading": "", "ours": "ours", "theirs": "azfs", "unit": "s", **settings})


WALL = {"ours": ran(1, 2, 3), "azfs": ran(4, 4, 30)}
CASES = {
    "wall, reached": (row(least=4.0), WALL, "reached", 4.0),
    "wall, missed": (row(least=4.1), WALL, "missed", 4.0),
    "wall, a limit as a ratio": (row(most=1.03), {"ours": ran(1.02), "azfs": ran(1.0)}, "reached", 1.02),
    "wall, beyond it": (row(most=1.03), {"ours": ran(1.04), "azfs": ran(1.0)}, "missed", 1.04),
    "rate, of different sizes": (
        row(least=5.0, measure="rate"),
        {"ours": ran(2, units=1000), "azfs": ran(2, units=200)},
        "reached",
        5.0,
    ),
    "peak, ours alone counts": (
        row(most=64, measure="peak"),
        {"ours": ran(1, peak=64), "azfs": ran(1, peak=640)},
        "reached",
        10.0,
    ),
    "nothing to reach": (row(), WALL, "shown", 4.0),
    "samples": (row(theirs="", most=0.002, measure="sample"), {"ours": ran(9, samples=(1, 0.002, 0))}, "reached", None),
    "samples that take long": (
        row(theirs="", most=0.002, measure="sample"),
        {"ours": ran(9, samples=(1, 0.003, 0))},
        "missed",
        None,
    ),
    "as many requests as there must be": (
        row(theirs="", exactly=4, measure="requests"),
        {"ours": ran(1, 1, requests=4)},
        "reached",
        None,
    ),
    "one too many, once": (
        row(theirs="", exactly=4, measure="requests"),
        {"ours": [*ran(1, 1, requests=4), *ran(1, requests=5)]},
        "missed",
        None,
    ),
    "one too few": (row(theirs="", exactly=4, measure="requests"), {"ours": ran(1, requests=3)}, "missed", None),
    "none where some must be": (row(theirs="", exactly=4, measure="requests"), {"ours": ran(1)}, "missed", None),
    "a time with nothing to reach": (
        row(theirs="", measure="sample"),
        {"ours": ran(9, samples=(1,))},
        "shown",
        None,
    ),
    "ours ran more often, for another row": (
        row(least=1.0),
        {"ours": ran(1, 1, 9, 9, 9), "azfs": ran(2, 2)},
        "reached",
        2.0,
    ),
}


@pytest.mark.parametrize(("of", "runs", "verdict", "ratio"), CASES.values(), ids=CASES)
def test_a_row_is_judged_by_the_median_of_its_pairs(of: Row, runs: Any, verdict: str, ratio: float | None) -> None:
    """What must be reached is reached or not."""
    found = judge(of, runs)
    assert found.verdict == verdict
    assert (found.ratio.median if found.ratio else None) == (pytest.approx(ratio) if ratio else None)
    assert len(cells(found)) == len(HEADINGS)


def test_a_spread_is_median_and_range() -> None:
    """Of any number of values."""
    assert spread([3, 1, 2]) == Spread(median=2, low=1, high=3)
    assert range_of(spread([3, 1, 2]), "s") == "2 s (1 to 3)"
    assert range_of(spread([3e-6, 2e-6, 0.1]), "s") == "3 µs (2 to 100000)"
    assert range_of(spread([0.9e6, 1.2e6, 2e7]), "records/s") == "1.2 million records/s (0.9 to 20)"


def test_the_true_median_lies_between_two_values_with_93_percent() -> None:
    """Those of the ends, of five; of nine one may be left out at each end; four say too little."""
    assert sure_of_median([5, 1, 3, 2, 4]) == (1, 5)
    assert sure_of_median([9, 1, 8, 2, 7, 3, 6, 4, 5]) == (2, 8)
    assert sure_of_median([4, 2, 3, 1]) is None
    assert sure_of_median([1]) is None


def test_a_floor_says_what_nobody_gets_above() -> None:
    """Against the other side's median, whatever the measure."""
    runs = {"ours": ran(2), "azfs": ran(6), "floor": ran(1, 1.5, 2)}
    assert judge(row(floor="floor"), runs).ceiling == pytest.approx(4)
    runs = {"ours": ran(2, units=1000), "azfs": ran(2, units=100), "floor": ran(1, units=7)}
    assert judge(row(floor="floor", measure="rate"), runs).ceiling == pytest.approx(20)
    assert judge(row(), runs).ceiling is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0019, "s", "1.9 ms"),
        (0.001, "s", "1 ms"),
        (0.000_999, "s", "999 µs"),
        (4.4e-6, "s", "4.4 µs"),
        (0, "s", "0 µs"),
        (2, "requests", "2 requests"),
        (12.345, "s", "12.3 s"),
        (64e6, "B", "64 MB"),
        (1_234_567, "records/s", "1.23 million records/s"),
        (345_678, "rows/s", "346 thousand rows/s"),
        (9, "blobs/s", "9 blobs/s"),
    ],
)
def test_numbers_are_written_for_people(value: float, unit: str, text: str) -> None:
    """Three digits and a prefix."""
    assert quantity(value, unit) == text


def test_cpu_is_compared_for_the_same_work() -> None:
    """A side that was given a tenth of the blobs takes no tenth of the CPU time for that."""
    found = judge(row(measure="rate"), {"ours": ran(2, units=1000), "azfs": ran(2, units=100)})
    assert found.cpu_ratio is not None
    assert found.cpu_ratio.median == pytest.approx(0.1)


def test_every_side_is_there() -> None:
    """Those that the quick run in `test_run` leaves out, too."""
    for side in (side for group in GROUPS for side in group.sides):
        module, _, function = side.does.rpartition(".")
        assert callable(getattr(import_module(f"benchmarks.sides.{module}"), function)), side


def test_every_row_names_sides_that_its_group_has() -> None:
    """And no name is given twice."""
    for group in GROUPS:
        sides = {side.name for side in group.sides}
        assert len(sides) == len(group.sides)
        for each in group.rows:
            assert {each.ours, each.theirs or each.ours, each.floor or each.ours} <= sides
    names = [each.name for group in GROUPS for each in group.rows]
    assert len(set(names)) == len(names)


def test_rows_are_chosen_by_their_name_or_their_group_s() -> None:
    """None means all; an unknown one is an error that names the others."""
    assert groups_of(()) == GROUPS
    assert [group.name for group in groups_of(("identity", "write-memory"))] == ["orders", "write"]
    with pytest.raises(ValueError, match="no row nothing; there are bundle"):
        groups_of(("nothing",))


def results(**groups: Any) -> dict[str, Any]:
    """Results of some groups."""
    return {
        "taken": "2030-01-01",
        "scale": 1.0,
        "machine": {"cores": "2", "system": "Linux"},
        "groups": {name: {"pairs": 5, "sides": sides} for name, sides in groups.items()},
        "defects": [{"what": "It forgets.", "seen": "twice | thrice", "reproduced": True}],
    }


def test_the_page_says_what_was_found() -> None:
    """Each row with its verdict, each side, the machine, and the defects."""
    appends = ran(1, samples=(0.0005,)) + ran(1, samples=(0.0007,)) + ran(1, samples=(0.0009,))
    page = render(results(bundle={"ours": ran(1, 1, 1, samples=(0.001,)), "appends": appends}))
    assert "of 1 rows that have something to reach, 1 do." in page
    assert "| per bundle: open, issue a SAS, audit, close | 1 ms (1 to 1) |" in page
    assert "That is 1 ms; at most 2 ms is wanted. The floor took 700 µs (500 to 900)." in page
    assert "| open, issue a SAS, audit, close | 1 s (1 to 1) | 0.5 s (0.5 to 0.5) | 0 B (0 to 0) | 2.0% |" in page
    assert "Of the time in which they had work, the host kept 2.0%" in page
    assert r"| It forgets. | twice \| thrice |" in page
    assert "| system | Linux |" in page


def test_the_page_says_how_many_requests_there_are_and_how_long_a_start_takes() -> None:
    """A count is exactly so or missed; a time that has nothing to reach is shown, and is no row that counts."""
    (group,) = groups_of(("price",))
    walls = {side.name: ran(1, samples=(4e-6,), requests=2) for side in group.sides}
    page = render(results(price=walls))
    assert "of 6 rows that have something to reach, 5 do." in page
    assert "Missed: token requests of a job: 2 processes of 8 threads, 2 audiences." in page
    assert "That is 2 requests; exactly 2 is wanted." in page
    assert "That is 4 µs; at most 40 µs is wanted." in page
    assert "| process start to first byte, client secret | 4 µs (4 to 4) |  |  |  | shown |" in page
    assert page.count("That is 4 µs.") == 6


def test_the_page_says_what_a_row_misses_and_what_nobody_reaches() -> None:
    """In words, beside the figures."""
    names = ("azfs", "ours", "unscoped", "batched", "memory")
    page = render(results(orders=dict(zip(names, map(ran, (12, 10, 9.9, 4, 9)), strict=True))))
    assert "Missed: the job `pipelines.orders`, element by element; the same job on record batches." in page
    assert "**It misses what it must reach**, 1.5 x: it has 1.20 x (1.20 x to 1.20 x). Nobody reaches that" in page
    assert "It comes to +1.0% of wall time, the median of 1 pairs; too few to say how sure that is." in page
    assert "For the same work ours takes 83% of the CPU time of azfs" in page
    nine = results(orders={name: ran(*[10] * 9) for name in names})
    assert "the true median lies between +0.0% and +0.0% with at least 93 %" in render(nine)


def test_a_limit_that_lies_within_the_noise_is_not_settled() -> None:
    """Reached or missed, the median may be so by chance. Other rows go by their own rounds."""
    walls = {"azfs": [30] * 5, "ours": [9] * 4 + [11] * 4, "unscoped": [10] * 8, "batched": [4], "memory": [8]}
    found = {each.row.name: each for each in findings({"orders": {side: ran(*each) for side, each in walls.items()}})}
    assert {name: each.pairs for name, each in found.items()} == {"orders": 5, "orders-batched": 1, "identity": 8}
    assert found["orders"].ours.value.median == 9
    assert found["identity"].verdict == "reached"
    page = render(results(orders={side: ran(*each) for side, each in walls.items()}))
    assert "The limit lies in between: these pairs do not settle it." in page
    walls["ours"] = [10] * 8
    assert "do not settle it" not in render(results(orders={side: ran(*each) for side, each in walls.items()}))


def test_what_was_run_again_is_said() -> None:
    """Whoever reads a figure knows whether it is the first that was taken."""
    once = results(bundle={"ours": ran(1, samples=(0.001,)), "appends": ran(1, samples=(0.0005,))})
    assert "run again" not in render(once).lower()
    once["groups"]["bundle"]["again"] = 2
    assert "Run again after it, of which the last run counts: a bundle without data (2 x)." in render(once)


def test_what_is_of_unequal_work_is_not_compared() -> None:
    """CPU time is, for as much work; memory is not."""
    page = render(results(**{"small-20ms": {"azfs": ran(4, units=400), "ours": ran(2, units=1000), "gets": ran(1)}}))
    assert "For the same work ours takes 20% of the CPU time of azfs. The floor" in page
    assert "| azfs, `ReadFromText`, 50 of them | 4 s" in page


def test_where_nobody_knows_what_the_host_kept_nothing_is_said() -> None:
    """No system but Linux tells."""
    page = render(results(bundle={side: ran(1, samples=(1,), told=False) for side in ("ours", "appends")}))
    assert "the host kept" not in page.split("## Every side")[0]
    assert "| 0 B (0 to 0) |  | 1 |" in page


def test_a_quick_look_says_that_it_is_none() -> None:
    """Figures at a smaller size are no result."""
    page = render({**results(bundle={side: ran(1, samples=(1,)) for side in ("ours", "appends")}), "scale": 0.1})
    assert "a quick look, no result" in page


def test_findings_are_of_the_groups_that_ran() -> None:
    """In the order of the table."""
    found = findings({"bundle": {"ours": ran(1, samples=(1,))}})
    assert [each.row.name for each in found] == ["bundle"]


def test_the_page_in_the_docs_is_made_from_the_figures_beside_it() -> None:
    """Nobody writes it by hand, and it names no folder of a machine; without figures there is no page."""
    assert PAGE.exists() == FIGURES.exists()
    text = FIGURES.read_text(encoding="utf-8") if FIGURES.exists() else "null"
    assert not PAGE.exists() or PAGE.read_text(encoding="utf-8") == render(json.loads(text))
    for folder in ("home", "root", "tmp", "Users"):
        assert f"/{folder}/" not in text
