"""Sample data, the same each time: orders as upstream leaves them, with everything that goes wrong."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["write_sample_data"]

Order = dict[str, Any]

_SEED = 20260301
_DAYS = 8
_CATEGORIES = {"garden": 9, "kitchen": 8, "books": 12, "toys": 6, "tools": 5}
_CUSTOMERS = ("Ada", "Grace", "Zoë", "Jürgen", "Łukasz", "Νίκη", "美咲", "Amélie", "Mary", "O'Hara & Sons")
_UNKNOWN_PRODUCT = "P-999"  # in the orders, not in products.csv
_BAD_IN_1000, _DUPLICATES_IN_1000 = 5, 10


def write_sample_data(folder: Path, *, orders: int) -> None:
    """Write `products.csv` and a file of orders a day below `folder`.

    Of the lines 0.5 % are bad in some way, and 1 % repeat an order of this day or of another: unchanged, changed later,
    or changed within the same second. One file is compressed, one has CRLF line ends, and one has blank lines.

    Args:
        orders: Lines over all files, bad ones and repeated ones included.
    """
    random_ = random.Random(_SEED)  # noqa: S311 - sample data, the same each time
    products = _products()
    (folder / "orders").mkdir(parents=True, exist_ok=True)
    rows = [f"{product},{name},{category}" for product, (name, category) in products.items()]
    (folder / "products.csv").write_text("\n".join(["product,name,category", *rows]) + "\n", encoding="utf-8")
    names = itertools.count(1)
    known: list[Order] = []
    bad_kinds = itertools.cycle(_BAD)
    changes = itertools.cycle(_CHANGES)
    for day in range(_DAYS):
        size = orders * (day + 1) // _DAYS - orders * day // _DAYS
        lines = []
        for _ in range(size):
            chance = random_.randrange(1000)
            if chance < _DUPLICATES_IN_1000 and known:
                lines.append(_line(next(changes)(random_.choice(known))))
                continue
            order = _order(random_, f"O-{next(names):07d}", day, list(products))
            if chance >= 1000 - _BAD_IN_1000:
                lines.append(next(bad_kinds)(order))
                continue
            if random_.randrange(10) == 0:
                known.append(order)
            lines.append(_line(order))
        _write(folder / "orders" / f"2026-03-{day + 1:02d}.jsonl", lines, day)


def _products() -> dict[str, tuple[str, str]]:
    numbers = itertools.count(1)
    return {
        f"P-{next(numbers):03d}": (f"{category} article {number}", category)
        for category, count in _CATEGORIES.items()
        for number in range(1, count + 1)
    }


def _order(random_: random.Random, name: str, day: int, products: list[str]) -> Order:
    second = random_.randrange(86_400)
    ordered_at = f"2026-03-{day + 1:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
    return {
        "order_id": name,
        "ordered_at": ordered_at,
        "updated_at": ordered_at,
        "customer": random_.choice(_CUSTOMERS),
        "product": random_.choice(products) if random_.randrange(500) else _UNKNOWN_PRODUCT,
        "quantity": random_.randrange(1, 12),
        "unit_price": f"{random_.randrange(1, 250)}.{random_.randrange(100):02d}",
    }


def _line(order: Order) -> bytes:
    return json.dumps(order, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


# Each one a way in which an order comes twice.
_CHANGES: tuple[Callable[[Order], Order], ...] = (
    dict,
    lambda order: {**order, "updated_at": f"{order['updated_at'][:10]}T23:59:59Z", "quantity": order["quantity"] + 1},
    lambda order: {**order, "quantity": order["quantity"] % 7 + 1},
    lambda order: {**order, "unit_price": "0.99"},
)

# Each one a way to be no order.
_BAD: tuple[Callable[[Order], bytes], ...] = (
    lambda order: _line(order)[: -20 - order["quantity"]],
    lambda order: _line(order).replace(b'"customer":"', b'"customer":"\xff\xfe', 1),
    lambda order: json.dumps(list(order.values())).encode("utf-8"),
    lambda order: _line({key: value for key, value in order.items() if key != "unit_price"}),
    lambda order: _line({**order, "unit_price": float(order["unit_price"])}),
    lambda order: _line({**order, "quantity": -order["quantity"]}),
    lambda order: _line({**order, "quantity": str(order["quantity"])}),
    lambda order: _line({**order, "ordered_at": "2026-02-30T12:00:00Z"}),
    lambda order: _line({**order, "updated_at": order["updated_at"][:10]}),
    lambda order: _line({**order, "order_id": ""}),
    lambda order: b"<order>" + order["order_id"].encode("utf-8") + b"</order>",
)


def _write(path: Path, lines: list[bytes], day: int) -> None:
    if day == 2:
        path.write_bytes(b"".join(line + b"\r\n" for line in lines))
    elif day == 4:
        path.write_bytes(b"".join(_with_blanks(lines)))
    elif day == 6:
        whole = b"\n".join(lines)  # and no line end at the end
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole, compresslevel=6, mtime=0))
    else:
        path.write_bytes(b"".join(line + b"\n" for line in lines))


def _with_blanks(lines: list[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line + (b"\n\n" if number % 1000 == 7 else b"\n")
