"""The main job: as it is, without identity and audit, on batches, and as one writes it on azfs and Beam's own I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, TaggedOutput

import pipelines.orders as job
import pipelines.orders_batched as batched_job
from benchmarks.sides.azfs import copy_within
from benchmarks.sides.jobs import RUNNER, azfs_pipeline, ours_in, ours_out, theirs_in, theirs_out, timed, warm_up
from benchmarks.task import Done, Task

__all__ = ["azfs_orders", "our_batched_orders", "our_orders", "transforms", "unscoped_orders"]

Work = Callable[[], Done]
_DEAD = "dead"


def our_orders(task: Task) -> Work:
    """`pipelines.orders`, scoped and audited."""
    return _of_main(task, job.main)


def our_batched_orders(task: Task) -> Work:
    """`pipelines.orders_batched`, scoped and audited."""
    return _of_main(task, batched_job.main)


def unscoped_orders(task: Task) -> Work:
    """`pipelines.orders` with a static SAS for whole containers and no audit: what identity and audit cost."""
    from benchmarks.unscoped import UnscopedPipeline  # noqa: PLC0415 - only this side must know it

    setattr(job, "ScopedPipeline", UnscopedPipeline)  # noqa: B010 - the one name in it that makes it scoped
    return _of_main(task, job.main)


def _of_main(task: Task, main: Callable[[list[str]], None]) -> Work:
    flags = [
        RUNNER,
        f"--access_manifest={task.manifest}",
        f"--access_endpoints={task.endpoints}",
        f"--input={ours_in('orders/*')}",
        f"--products={ours_in('products.csv')}",
        f"--output={ours_out(task.output)}",
    ]
    warm_up()

    def work() -> Done:
        main(flags)
        return Done(units=1)

    return work


def azfs_orders(task: Task) -> Work:
    """The same transforms between Beam's own `ReadFromText` and `WriteToText`; dead letters have no offset here."""
    copy_within(task.endpoint)
    out = theirs_out(task.output)

    def build(p: beam.Pipeline) -> None:
        lines = p | "Orders" >> beam.io.ReadFromText(theirs_in("orders/*"), coder=beam.coders.BytesCoder())
        products = p | "Products" >> beam.io.ReadFromText(theirs_in("products.csv"), skip_header_lines=1)
        rows, revenue, dead = transforms(lines, products)
        _write_json(rows, "Clean", out + "clean/part")
        revenue | "Csv" >> beam.Map(lambda row: ",".join(row.values())) | "Revenue" >> beam.io.WriteToText(
            out + "revenue/part", file_name_suffix=".csv", num_shards=1, header="day,category,revenue"
        )
        _write_json(dead, "Dead", out + "dead/part")

    work = timed(task, azfs_pipeline, build)

    def run() -> Done:
        work()
        return Done(units=1)

    return run


def transforms(lines: Any, products: Any) -> tuple[Any, Any, Any]:
    """What lies between reading and writing: from lines to rows of `clean/`, `revenue/` and `dead/`."""
    parsed = lines | "Parse" >> beam.FlatMap(_parse).with_outputs(_DEAD, main="orders")
    categories = AsDict(products | "Product" >> beam.Map(_product))
    sold = (
        parsed["orders"]
        | "Same id" >> beam.GroupByKey()
        | "Newest" >> beam.Map(job.newest, categories)
    )
    revenue = (
        sold
        | "Amount" >> beam.MapTuple(job.sale)
        | "Sum" >> beam.CombinePerKey(sum)
        | "Line" >> beam.MapTuple(job.revenue_row)
    )
    return sold | "Row" >> beam.MapTuple(job.order_row), revenue, parsed[_DEAD]


def _write_json(rows: Any, label: str, prefix: str) -> None:
    text = rows | f"{label} JSON" >> beam.Map(_to_json)
    text | label >> beam.io.WriteToText(prefix, file_name_suffix=".jsonl")


def _to_json(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _parse(line: bytes) -> Iterator[Any]:
    if not line or line.isspace():
        return
    try:
        yield job.parse_order(json.loads(line.decode("utf-8")))
    except ValueError as error:
        yield TaggedOutput(_DEAD, {"reason": str(error), "record": line.decode("utf-8", "backslashreplace")})


def _product(line: str) -> tuple[str, str]:
    product, _, category = line.split(",")
    return product, category


