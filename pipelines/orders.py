"""Orders: clean rows, revenue per day and category, and what was no order.

An order is a line of JSON:

    {"order_id": "O-1", "ordered_at": "2026-03-01T09:30:00Z", "updated_at": "2026-03-01T09:31:07Z",
     "customer": "Zoë", "product": "P-017", "quantity": 3, "unit_price": "12.50"}

* A line that is none goes to `dead/`, with the reason, its blob and its byte offset.
* An order that comes more than once counts once: the one updated last, and of several updated in one second the one
  whose fields, in the order of above, compare greatest. The outcome depends neither on the runner nor on which blob
  is read first.
* A product that `--products` does not know has the category `unknown`: the order is sound, the list is behind.
* Money is counted in cents.

Below `--output` it writes `clean/` and `dead/` as JSON Lines and `revenue/` as CSV.

    python -m pipelines.orders --access_manifest=pipelines/orders.access.toml \\
        --input='abfss://raw@contosolake.dfs.core.windows.net/orders/*' \\
        --products=abfss://raw@contosolake.dfs.core.windows.net/products.csv \\
        --output=abfss://curated@contosolake.dfs.core.windows.net/orders/2026-03-08/ \\
        --runner=DirectRunner
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict

from beam_entra import BadRecord, Csv, EntraOptions, JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob, command_line
from beam_entra.errors import ConfigError, Diagnosis

__all__ = ["Order", "OrdersOptions", "main", "newest", "parse_order"]

# What counts of an order: updated_at, ordered_at, customer, product, quantity, unit price in cents. Of several versions
# the greatest is the newest. Plain tuples go through any runner, from `__main__` too, and are coded faster than dicts.
Order = tuple[str, str, str, str, int, int]

_TEXTS = ("order_id", "updated_at", "ordered_at", "customer", "product", "unit_price")
_texts_of = itemgetter(*_TEXTS)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_PRICE = re.compile(r"\d{1,7}\.\d\d", re.ASCII)
_MOST = 10_000


class OrdersOptions(EntraOptions, PipelineOptions):
    """The flags of this pipeline."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.prog = f"python -m pipelines.{Path(parser.prog).stem}"  # there are two
        parser.description = "Orders in, clean rows, revenue per day and category, and dead letters out."
        parser.epilog = "Any flag of Beam and of the runner goes, too: --runner=DirectRunner, --runner=FlinkRunner, ..."
        group = parser.add_argument_group("data")
        group.add_argument("--input", metavar="PATTERN", help="orders as JSON Lines; .gz is decompressed")
        group.add_argument("--products", metavar="PATH", help="CSV that has the columns product and category")
        group.add_argument("--output", metavar="PREFIX", help="clean/, revenue/ and dead/ go below it; ends in a slash")


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these flags, or with the command line's, and print how it went."""
    options = OrdersOptions(argv)
    check_flags(options)
    with ScopedPipeline(options=options) as p:
        orders, bad = p | "Orders" >> ReadFromBlob(options.input, JsonLines(parse_order)).with_exception_handling()
        products = p | "Products" >> ReadFromBlob(options.products, Csv(parse=product_category))

        sold = (
            orders
            | "Same id" >> beam.GroupByKey()
            | "Newest" >> beam.Map(newest, AsDict(products))
        )
        revenue = (
            sold
            | "Amount" >> beam.MapTuple(sale)
            | "Sum" >> beam.CombinePerKey(sum)
        )

        sold | "Row" >> beam.MapTuple(order_row) | "Clean" >> WriteToBlob(options.output + "clean/", JsonLines())
        revenue | "Line" >> beam.MapTuple(revenue_row) | "Revenue" >> WriteToBlob(
            options.output + "revenue/", Csv(["day", "category", "revenue"]), shards=1
        )
        bad | "Letter" >> beam.Map(BadRecord.as_dict) | "Dead" >> WriteToBlob(options.output + "dead/", JsonLines())
    print(p.report)


def check_flags(options: OrdersOptions) -> None:
    """Refuse a launch whose flags do not say where everything is.

    Raises:
        ConfigError: One of them is missing, or --output is no prefix.
    """
    missing = [flag for flag in ("input", "products", "output") if not getattr(options, flag)]
    if missing:
        flags = " and ".join(f"--{flag}" for flag in missing)
        raise ConfigError(f"{flags} not given", Diagnosis(hint="--help says what they mean"))
    if not options.output.endswith("/"):
        raise ConfigError("--output is no prefix", Diagnosis(hint=f"end it with a slash: {options.output}/"))


def parse_order(value: Any) -> tuple[str, Order]:
    """An order, by its id, from its JSON.

    Raises:
        ValueError: It is none; the message says why.
    """
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    quantity = value.get("quantity")
    if type(quantity) is not int or not 1 <= quantity <= _MOST:
        raise ValueError(f"quantity is not a whole number from 1 to {_MOST:,}")
    order_id, updated_at, ordered_at, customer, product, price = _texts(value)
    _check_instant("updated_at", updated_at)
    _check_instant("ordered_at", ordered_at)
    if not _PRICE.fullmatch(price):
        raise ValueError("unit_price is not like 12.50")
    return order_id, (updated_at, ordered_at, customer, product, quantity, int(price.replace(".", "")))


def product_category(row: Mapping[str, str]) -> tuple[str, str]:
    """Product and category, from a row of the products."""
    return row["product"], row["category"]


def newest(same_id: tuple[str, Iterable[Order]], categories: Mapping[str, str]) -> tuple[str, Order, str]:
    """Of the versions of an order the one that counts, with its id and its product's category."""
    order_id, versions = same_id
    order = max(versions)
    return order_id, order, categories.get(order[3], "unknown")


def order_row(order_id: str, order: Order, category: str) -> dict[str, Any]:
    """A row of `clean/`."""
    updated_at, ordered_at, customer, product, quantity, cents = order
    return {
        "order_id": order_id,
        "ordered_at": ordered_at,
        "updated_at": updated_at,
        "customer": customer,
        "product": product,
        "category": category,
        "quantity": quantity,
        "unit_price": _amount(cents),
        "amount": _amount(quantity * cents),
    }


def sale(order_id: str, order: Order, category: str) -> tuple[tuple[str, str], int]:
    """Day and category of an order, and what it adds to their revenue."""
    _, ordered_at, _, _, quantity, cents = order
    return (ordered_at[:10], category), quantity * cents


def revenue_row(day_and_category: tuple[str, str], cents: int) -> dict[str, str]:
    """A row of `revenue/`."""
    day, category = day_and_category
    return {"day": day, "category": category, "revenue": _amount(cents)}


def _texts(value: Mapping[str, Any]) -> tuple[str, ...]:
    """All texts of an order, in the order of `_TEXTS`."""
    try:
        texts: tuple[str, ...] = _texts_of(value)
        "".join(texts).encode("utf-8")
        if all(texts):
            return texts
    except (KeyError, TypeError, UnicodeEncodeError):  # missing; no text; half a character, which JSON allows
        pass
    raise ValueError(next(filter(None, (_problem(value, key) for key in _TEXTS))))


def _problem(value: Mapping[str, Any], key: str) -> str | None:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        return f"{key} is missing" if key not in value else f"{key} is not a text, or empty"
    return f"{key} holds half a character" if any("\ud800" <= character <= "\udfff" for character in text) else None


def _check_instant(key: str, text: str) -> None:
    if not _INSTANT.fullmatch(text):
        raise ValueError(f"{key} is not like 2026-03-01T09:30:00Z")
    try:
        datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{key} is a date or time that does not exist") from None


def _amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


if __name__ == "__main__":
    with command_line():
        main()
