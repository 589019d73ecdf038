"""The orders pipeline on record batches: the same outcome as `pipelines.orders`, in a fraction of its time.

An element is no order here, but a `pyarrow.RecordBatch` of thousands. Every step works on whole columns:

1. A block of lines becomes a batch. Arrow parses it, and `orders_of` says which rows are sound beyond doubt; the others
   go through `parse_order` of `pipelines.orders` one by one, which alone says what an order is.
2. Each batch is split by a hash of the order id, so that all versions of an order come into one partition. A worker
   holds a partition in memory, at some 300 bytes an order: `--partitions` says how many there are.
3. Of each partition the newest orders are kept, get their category, and become rows of `clean/` and sums of revenue.

It takes the flags of `pipelines.orders` and runs under its manifest, since it reads and writes the same paths:

    python -m pipelines.orders_batched --access_manifest=pipelines/orders.access.toml \\
        --input='abfss://raw@contosolake.dfs.core.windows.net/orders/*' \\
        --products=abfss://raw@contosolake.dfs.core.windows.net/products.csv \\
        --output=abfss://curated@contosolake.dfs.core.windows.net/orders/2026-03-08/ \\
        --runner=DirectRunner
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import reduce
from typing import Any
from zlib import crc32

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsDict

from beam_entra import BadRecord, Csv, JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob, command_line
from beam_entra.errors import ConfigError
from pipelines.orders import OrdersOptions, check_flags, parse_order, product_category, revenue_row

__all__ = ["LINE", "ORDERS", "OrdersBatchedOptions", "main", "newest_of", "order_as_row", "orders_of", "partitioned"]

_TEXT, _WHOLE = pa.string(), pa.int64()

# What Arrow reads of a line; other fields it leaves out.
LINE = pa.schema(
    {
        "order_id": _TEXT,
        "ordered_at": _TEXT,
        "updated_at": _TEXT,
        "customer": _TEXT,
        "product": _TEXT,
        "quantity": _WHOLE,
        "unit_price": _TEXT,
    }
)

# Id and `pipelines.orders.Order` as columns. What comes behind the id decides which of several versions counts.
ORDERS = pa.schema(
    {
        "order_id": _TEXT,
        "updated_at": _TEXT,
        "ordered_at": _TEXT,
        "customer": _TEXT,
        "product": _TEXT,
        "quantity": _WHOLE,
        "unit_price_cents": _WHOLE,
    }
)
_BY_ID_AND_PRECEDENCE = [(name, "ascending") for name in ORDERS.names]  # texts by their bytes: in UTF-8, by code point

# Instants that exist. Those of the years before 1000, and February 29 of 2000, are left to `parse_order`.
_YEAR = r"[1-9]\d{3}"
_INSTANT = (
    rf"^(?:{_YEAR}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])"
    rf"|{_YEAR}-(?:0[13-9]|1[0-2])-(?:29|30)"
    rf"|{_YEAR}-(?:0[13578]|1[02])-31"
    r"|[1-9]\d(?:0[48]|[2468][048]|[13579][26])-02-29)"
    r"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\dZ$"
)
_PRICE = r"^\d{1,7}\.\d\d$"
_CENT = pa.scalar(Decimal("0.01"))
_Part = tuple[int, pa.RecordBatch]  # said to Beam, so that it uses the coder of batches; a pickled slice is a whole one
_ROWS_AT_ONCE = 16_384  # leave a partition in one batch, so that no more are text at a time


class OrdersBatchedOptions(OrdersOptions, PipelineOptions):
    """The flags of this pipeline: those of `pipelines.orders`, and one."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument_group("size").add_argument(
            "--partitions",
            metavar="N",
            type=int,
            default=32,
            help="orders are grouped in so many parts; a worker holds one in memory, at some 300 bytes an order "
            "(default: 32, for some 100 million orders)",
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these flags, or with the command line's, and print how it went."""
    options = OrdersBatchedOptions(argv)
    check_flags(options)
    if options.partitions < 1:
        raise ConfigError(f"--partitions={options.partitions} is not at least 1")
    lines = JsonLines(order_as_row, schema=LINE, parse_batch=orders_of)
    with ScopedPipeline(options=options) as p:
        orders, bad = p | "Orders" >> ReadFromBlob(options.input, lines, batched=True).with_exception_handling()
        products = p | "Products" >> ReadFromBlob(options.products, Csv(parse=product_category))

        sold = (
            orders
            | "By hash of id" >> beam.FlatMap(partitioned, options.partitions).with_output_types(_Part)
            | "Same hash" >> beam.GroupByKey()
            | "Newest" >> beam.FlatMapTuple(lambda partition, batches: newest_of(batches))
            | "Category" >> beam.Map(with_category, AsDict(products))
        )
        revenue = (
            sold
            | "Amount" >> beam.FlatMap(sales)
            | "Sum" >> beam.CombinePerKey(sum)
        )

        sold | "Row" >> beam.Map(order_rows) | "Clean" >> WriteToBlob(options.output + "clean/", JsonLines())
        revenue | "Line" >> beam.MapTuple(revenue_row) | "Revenue" >> WriteToBlob(
            options.output + "revenue/", Csv(["day", "category", "revenue"]), shards=1
        )
        bad | "Letter" >> beam.Map(BadRecord.as_dict) | "Dead" >> WriteToBlob(options.output + "dead/", JsonLines())
    print(p.report)


def order_as_row(value: Any) -> dict[str, Any]:
    """What `parse_order` makes of a line, as a row of `ORDERS`.

    Raises:
        ValueError: It is no order; the message says why.
    """
    order_id, order = parse_order(value)
    return dict(zip(ORDERS.names, (order_id, *order), strict=True))


def orders_of(lines: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.BooleanArray]:
    """The orders of a block of lines, and which of them are sound beyond doubt.

    Args:
        lines: Rows of JSON; a field that a line does not have is null.
    """
    price, quantity = lines["unit_price"], lines["quantity"]
    checks = [
        *(pc.match_substring_regex(lines[name], _INSTANT) for name in ("ordered_at", "updated_at")),
        *(pc.not_equal(lines[name], "") for name in ("order_id", "customer", "product")),
        pc.greater_equal(quantity, 1),
        pc.less_equal(quantity, 10_000),
        pc.match_substring_regex(price, _PRICE),
    ]
    sound = reduce(pc.and_, checks).fill_null(False)
    cents = pc.replace_substring(pc.if_else(sound, price, "0.00"), ".", "").cast(_WHOLE)
    orders = lines.drop_columns("unit_price").append_column("unit_price_cents", cents).select(ORDERS.names)
    return orders, sound


def partitioned(orders: pa.RecordBatch, partitions: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A batch in parts by the hash of the order id: the same id goes to the same part, on any worker."""
    ids = orders["order_id"].cast(pa.binary()).to_pylist()
    parts = np.array([crc32(id_) % partitions for id_ in ids])
    sorted_ = orders.take(pa.array(np.argsort(parts, kind="stable")))
    sizes = np.bincount(parts, minlength=partitions)
    ends = np.cumsum(sizes)
    for part in np.flatnonzero(sizes):
        yield int(part), sorted_.slice(ends[part] - sizes[part], sizes[part])


def newest_of(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The orders that count of those in a partition: of each id the last one by precedence."""
    versions = pa.Table.from_batches(batches).sort_by(_BY_ID_AND_PRECEDENCE)
    ids = versions["order_id"].combine_chunks()
    last = pc.not_equal(ids[:-1], ids[1:])
    last = pa.concat_arrays([last, pa.array([True])])
    yield from versions.filter(last).to_batches(max_chunksize=_ROWS_AT_ONCE)


def with_category(orders: pa.RecordBatch, categories: Mapping[str, str]) -> pa.RecordBatch:
    """Orders and their products' categories."""
    known = pa.array(categories.keys(), _TEXT)
    category = pa.array(categories.values(), _TEXT).take(pc.index_in(orders["product"], known))
    return orders.append_column("category", category.fill_null("unknown"))


def sales(orders: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], int]]:
    """Day and category of these orders, and what they add to their revenue."""
    days = pc.utf8_slice_codeunits(orders["ordered_at"], 0, 10)
    table = pa.table({"day": days, "category": orders["category"], "cents": _amount_cents(orders)})
    for row in table.group_by(["day", "category"], use_threads=False).aggregate([("cents", "sum")]).to_pylist():
        yield (row["day"], row["category"]), row["cents_sum"]


def order_rows(orders: pa.RecordBatch) -> pa.RecordBatch:
    """Rows of `clean/`. Money becomes decimal; JSON has it as text."""
    names = ["order_id", "ordered_at", "updated_at", "customer", "product", "category", "quantity"]
    columns = {name: orders[name] for name in names}
    columns["unit_price"] = pc.multiply(orders["unit_price_cents"], _CENT)
    columns["amount"] = pc.multiply(_amount_cents(orders), _CENT)
    return pa.RecordBatch.from_pydict(columns)


def _amount_cents(orders: pa.RecordBatch) -> pa.Int64Array:
    return pc.multiply(orders["quantity"], orders["unit_price_cents"])


if __name__ == "__main__":
    with command_line():
        main()
