"""Orders as they come: clean rows and dead letters, minute by minute.

The orders are those of `pipelines.orders`. Every `--every` seconds it looks for blobs that have come or changed, and
reads each version once. An order counts in the window in which Storage got its blob. Below `--output` it writes
`clean/` and `dead/`, and in each a folder for each window that had any: `20261121T080000Z_20261121T080100Z/`. Its blobs
are complete when its `_SUCCESS` is there.

    python -m pipelines.orders_stream --access_manifest=pipelines/orders_stream.access.toml \\
        --input='abfss://raw@contosolake.dfs.core.windows.net/orders/*' \\
        --stop=abfss://raw@contosolake.dfs.core.windows.net/orders/_STOP \\
        --output=abfss://curated@contosolake.dfs.core.windows.net/orders-stream/2026-11-21/ \\
        --runner=FlinkRunner --job_endpoint=... --checkpointing_interval=30000

A blob at `--stop` ends it in order. See docs/streaming.md.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows

from beam_entra import (
    BadRecord,
    JsonLines,
    ReadFromBlob,
    ScopedPipeline,
    Watch,
    WriteToBlob,
    command_line,
)
from beam_entra.errors import ConfigError, Diagnosis
from pipelines.orders import Order, OrdersOptions, parse_order

__all__ = ["StreamOptions", "main"]


class StreamOptions(OrdersOptions, PipelineOptions):
    """The flags of this pipeline: `--input` and `--output` of `pipelines.orders`, and when to look and to commit."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        group = parser.add_argument_group("stream")
        group.add_argument("--every", metavar="SECONDS", type=float, default=10.0, help="from one look to the next")
        group.add_argument("--window", metavar="SECONDS", type=float, default=60.0, help="length of a window")
        group.add_argument("--shards", metavar="N", type=int, help="blobs a window; else about one a worker process")
        group.add_argument("--stop", metavar="PATH", help="a blob that ends the job in order when it is there")
        group.add_argument("--until", metavar="SECONDS", type=float, help="end so many seconds after the launch")


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these flags, or with the command line's, and print how it went."""
    options = StreamOptions(argv)
    if not options.input or not (options.output or "").endswith("/"):
        raise ConfigError("--input and --output are needed, and --output ends in a slash", Diagnosis(hint="--help"))
    until = None if options.until is None else timedelta(seconds=options.until)
    watch = Watch(options.every, until=until, stop=options.stop)
    with ScopedPipeline(options=options) as p:
        read = ReadFromBlob(options.input, JsonLines(parse_order), watch=watch).with_exception_handling()
        orders, bad = p | "Orders" >> read
        for name, rows in {
            "Clean": orders | "Row" >> beam.MapTuple(order_row),
            "Dead": bad | "Letter" >> beam.Map(BadRecord.as_dict),
        }.items():
            windows = rows | f"{name} windows" >> beam.WindowInto(FixedWindows(options.window))
            windows | name >> WriteToBlob(f"{options.output}{name.lower()}/", JsonLines(), shards=options.shards)
    print(p.report)


def order_row(order_id: str, order: Order) -> dict[str, Any]:
    """A row of `clean/`."""
    updated_at, ordered_at, customer, product, quantity, cents = order
    return {
        "order_id": order_id,
        "ordered_at": ordered_at,
        "updated_at": updated_at,
        "customer": customer,
        "product": product,
        "quantity": quantity,
        "cents": quantity * cents,
    }


if __name__ == "__main__":
    with command_line():
        main()
