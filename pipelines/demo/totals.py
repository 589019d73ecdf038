"""What the orders pipeline must come to, computed from the same files without Beam and without its code.

Whoever changes the rules in `pipelines.orders` changes them here, too, in other words: that is the point.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

__all__ = ["Expected", "Outcome", "compute", "differences", "read_outputs"]

Row = dict[str, Any]
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        rows: Clean rows by order id.
        revenue: By day and category.
        dead: How often each (blob, byte offset) is among the dead letters.
    """

    rows: dict[str, Row]
    revenue: dict[tuple[str, str], Decimal]
    dead: Counter[tuple[str, int]]

    @property
    def total(self) -> Decimal:
        """All revenue."""
        return sum(self.revenue.values(), Decimal(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a run must come to, and what it was computed from.

    Attributes:
        files, size_bytes: Of orders.
        products: How many there are.
        lines: That are not blank.
        duplicates: Orders that another one with the same id stands in for.
    """

    outcome: Outcome
    files: int
    size_bytes: int
    products: int
    lines: int
    duplicates: int


def compute(folder: Path, *, url: str) -> Expected:
    """Compute what `products.csv` and the files in `orders/` come to.

    Args:
        url: Where `folder` was uploaded to; ends in a slash.
    """
    with (folder / "products.csv").open(encoding="utf-8", newline="") as file:
        categories = {row["product"]: row["category"] for row in csv.DictReader(file)}
    versions: dict[str, list[Row]] = defaultdict(list)
    dead: Counter[tuple[str, int]] = Counter()
    files = sorted((folder / "orders").iterdir())
    lines = 0
    for path in files:
        for offset, line in _lines(path):
            lines += 1
            order = _order(line)
            if order is None:
                dead[f"{url}orders/{path.name}", offset] += 1
            else:
                versions[order["order_id"]].append(order)
    revenue: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    rows = {}
    for name, found in versions.items():
        newest = max(found, key=_precedence)
        category = categories.get(newest["product"], "unknown")
        amount = newest["quantity"] * Decimal(newest["unit_price"])
        revenue[newest["ordered_at"].partition("T")[0], category] += amount
        rows[name] = {**newest, "category": category, "amount": str(amount)}
    return Expected(
        outcome=Outcome(rows=rows, revenue=dict(revenue), dead=dead),
        files=len(files),
        size_bytes=sum(path.stat().st_size for path in files),
        products=len(categories),
        lines=lines,
        duplicates=sum(len(found) - 1 for found in versions.values()),
    )


def read_outputs(names: Iterable[str], read: Callable[[str], bytes]) -> Outcome:
    """What a run has written.

    Args:
        names: Of the blobs below its output, relative to it.
        read: Gives the bytes of one.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        sink, _, blob = name.partition("/")
        if not blob.startswith("_"):
            parts[sink].append(read(name).decode("utf-8"))
    rows: dict[str, Row] = {}
    for line in "".join(parts["clean"]).splitlines():
        row = json.loads(line)
        if row["order_id"] in rows:
            raise ValueError(f"{row['order_id']} was written twice")
        rows[row["order_id"]] = row
    tables = [csv.DictReader(io.StringIO(text, newline="")) for text in parts["revenue"]]
    letters = [json.loads(line) for line in "".join(parts["dead"]).splitlines()]
    return Outcome(
        rows=rows,
        revenue={(line["day"], line["category"]): Decimal(line["revenue"]) for table in tables for line in table},
        dead=Counter((letter["source"], letter["offset"]) for letter in letters),
    )


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """In what they differ, a sentence each; empty when they are equal to the byte and the cent."""
    told = _compared("order", expected.rows, found.rows)
    told += _compared("revenue", expected.revenue, found.revenue)
    return told + _compared("dead letter", expected.dead, found.dead)


def _compared(what: str, expected: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    keys = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    told = [f"{what} {key}: {found.get(key)}, not {expected.get(key)}" for key in sorted(keys)[:_SHOWN]]
    return [*told, f"and {len(keys) - _SHOWN:,} more differences of this kind"] if len(keys) > _SHOWN else told


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each line that is not blank."""
    content = path.read_bytes()
    offset = 0
    for line in (gzip.decompress(content) if path.suffix == ".gz" else content).split(b"\n"):
        if line.strip():
            yield offset, line
        offset += len(line) + 1


def _order(line: bytes) -> Row | None:
    try:
        order = json.loads(line)
        texts = [order[key] for key in ("order_id", "customer", "product")]
        instants = [datetime.fromisoformat(order[key]) for key in ("ordered_at", "updated_at")]
        price, quantity = Decimal(order["unit_price"]), order["quantity"]
    except (ValueError, TypeError, KeyError, InvalidOperation):
        return None
    sound = (
        all(text and isinstance(text, str) for text in texts)
        and [instant.isoformat() for instant in instants]
        == [order[key].replace("Z", "+00:00") for key in ("ordered_at", "updated_at")]
        and isinstance(order["unit_price"], str)
        and f"{price:.2f}" == order["unit_price"]
        and price >= 0
        and isinstance(quantity, int)
        and 0 < quantity <= 10_000
    )
    return order if sound else None


def _precedence(order: Row) -> tuple[Any, ...]:
    keys = ("updated_at", "ordered_at", "customer", "product", "quantity")
    return *(order[key] for key in keys), Decimal(order["unit_price"])
