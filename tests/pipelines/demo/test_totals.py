"""The totals that the pipeline is held against: computed by hand here, and sensitive to every difference."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.demo.totals import Outcome, compute, differences, read_outputs

URL = "abfss://raw@contosolake.dfs.core.windows.net/"
ORDER = {
    "order_id": "O-1",
    "ordered_at": "2026-03-01T09:30:00Z",
    "updated_at": "2026-03-01T09:31:07Z",
    "customer": "Zoë",
    "product": "P-1",
    "quantity": 3,
    "unit_price": "12.50",
}


def line(**changed: Any) -> bytes:
    """An order as a line."""
    return json.dumps({**ORDER, **changed}, ensure_ascii=False).encode() + b"\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files: one order twice, one of the next day with a product that nobody knows, two lines that are none."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "products.csv").write_text("product,name,category\nP-1,a spade,garden\n", encoding="utf-8")
    first = line() + b"\n" + line(updated_at="2026-03-01T10:00:00Z", quantity=1) + b"nonsense\n"
    (tmp_path / "orders" / "1.jsonl").write_bytes(first)
    second = line(order_id="O-2", ordered_at="2026-03-02T00:00:00Z", product="P-2") + line(order_id="O-3", quantity=0)
    (tmp_path / "orders" / "2.jsonl.gz").write_bytes(gzip.compress(second))
    return tmp_path


def test_they_are_what_a_person_computes(source: Path) -> None:
    """The newest version counts; offsets are bytes, of the decompressed stream where there is one."""
    found = compute(source, url=URL)
    assert (found.lines, found.duplicates, found.products, found.files) == (5, 1, 1, 2)
    assert found.outcome.revenue == {
        ("2026-03-01", "garden"): Decimal("12.50"),
        ("2026-03-02", "unknown"): Decimal("37.50"),
    }
    assert found.outcome.total == Decimal(50)
    later = line(updated_at="2026-03-01T10:00:00Z", quantity=1)
    assert found.outcome.dead == {
        (f"{URL}orders/1.jsonl", len(line()) + 1 + len(later)): 1,
        (f"{URL}orders/2.jsonl.gz", len(line(ordered_at="2026-03-02T00:00:00Z"))): 1,
    }
    assert found.outcome.rows["O-1"] == {
        **ORDER,
        "updated_at": "2026-03-01T10:00:00Z",
        "quantity": 1,
        "category": "garden",
        "amount": "12.50",
    }


def outcome() -> Outcome:
    """One order, its revenue, one dead letter."""
    return Outcome(
        rows={"O-1": {**ORDER, "category": "garden", "amount": "37.50"}},
        revenue={("2026-03-01", "garden"): Decimal("37.50")},
        dead=Counter({(f"{URL}orders/1.jsonl", 7): 1}),
    )


DIFFERENCES: dict[str, Callable[[Outcome], object]] = {
    "an order is missing": lambda found: found.rows.clear(),
    "an order too many": lambda found: found.rows.update({"O-2": {}}),
    "an older version": lambda found: found.rows["O-1"].update(quantity=2),
    "a cent too much": lambda found: found.revenue.update({("2026-03-01", "garden"): Decimal("37.51")}),
    "another day": lambda found: found.revenue.update({("2026-03-02", "garden"): Decimal(0)}),
    "a dead letter is missing": lambda found: found.dead.clear(),
    "a dead letter of another offset": lambda found: found.dead.update([(f"{URL}orders/1.jsonl", 8)]),
    "a dead letter twice": lambda found: found.dead.update([(f"{URL}orders/1.jsonl", 7)]),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_is_told(name: str) -> None:
    """A sentence for each."""
    found = outcome()
    DIFFERENCES[name](found)
    assert len(differences(outcome(), found)) == 1


def test_equal_outcomes_have_no_difference() -> None:
    """Nothing is told."""
    assert differences(outcome(), outcome()) == []


def test_many_differences_are_cut_short() -> None:
    """Five are shown, the rest is counted."""
    many = Outcome(rows={f"O-{number}": {} for number in range(100)}, revenue={}, dead=Counter())
    none = Outcome(rows={}, revenue={}, dead=Counter())
    told = differences(many, none)
    assert len(told) == 6
    assert told[-1] == "and 95 more differences of this kind"


def test_outputs_are_read_back() -> None:
    """Markers are left out, and all parts of a sink count."""
    blobs = {
        "clean/_SUCCESS": b"{}",
        "clean/part-1.jsonl": b'{"order_id":"O-1"}\n',
        "clean/part-2.jsonl": b'{"order_id":"O-2"}\n',
        "revenue/part-1.csv": b"day,category,revenue\r\n2026-03-01,garden,37.50\r\n",
        "dead/part-1.jsonl": b'{"source":"abfss://raw@lake/1","offset":7,"reason":"","record":""}\n',
    }
    found = read_outputs(blobs, blobs.__getitem__)
    assert set(found.rows) == {"O-1", "O-2"}
    assert found.revenue == {("2026-03-01", "garden"): Decimal("37.50")}
    assert found.dead == {("abfss://raw@lake/1", 7): 1}


def test_an_order_that_was_written_twice_is_an_error() -> None:
    """Exactly once is what was promised."""
    with pytest.raises(ValueError, match="O-1 was written twice"):
        read_outputs(["clean/part-1.jsonl"], lambda name: b'{"order_id":"O-1"}\n' * 2)
