"""docs/reliability.md tells of every weather test."""

from __future__ import annotations

import pytest

from tests.weather.cases import Case
from tests.weather.page import PAGE, render, rows

CASES = [case for _, case in rows()]
AS_RENDERED = render({case.name: 0.0 for case in CASES})


def without_figures(text: str) -> list[str]:
    """The lines; of a row all but its last cell."""
    return [line.rpartition(" | ")[0] if line.startswith("| ") else line for line in text.splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_weather_test_has_its_row(case: Case) -> None:
    """With the outcome that the test wants; the figures are those of a run."""
    (wanted,) = [row for row in without_figures(AS_RENDERED) if f" | {case.name} | " in row]
    assert without_figures(PAGE.read_text(encoding="utf-8")).count(wanted) == 1


def test_the_page_is_made_and_not_edited() -> None:
    """It has no other rows, and the words of `tests.weather.page`."""
    assert without_figures(PAGE.read_text(encoding="utf-8")) == without_figures(AS_RENDERED)


def test_no_two_cases_have_one_name() -> None:
    """Or one would hide the other's figures."""
    assert len({case.name for case in CASES}) == len(CASES)
