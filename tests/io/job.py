"""A small job for tests that need a process of their own: read JSON Lines, count, write.

python job.py --input PATTERN --output PREFIX [--shards N] [flags of Beam and of the access manifest]
"""

from __future__ import annotations

import argparse
import json

import apache_beam as beam

from beam_entra import EntraOptions, JsonLines, ReadAllFromBlob, ReadFromBlob, ScopedPipeline, WriteToBlob, command_line


class JobOptions(EntraOptions):
    """Where from and where to."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", required=True)
        parser.add_argument("--output", required=True)
        parser.add_argument("--shards", type=int)
        parser.add_argument("--block_bytes", type=int, default=4 << 20)
        parser.add_argument("--fail_at", type=int, help="the id of a record at which a worker fails")
        parser.add_argument("--look_at", help="a pattern that a worker reads although the launch did not know it")


def main() -> None:
    """Run the job, and print its report as JSON."""
    options = JobOptions()
    fail_at = options.fail_at
    pipeline = ScopedPipeline(options=options)

    def check(order: dict[str, int]) -> dict[str, int]:
        if order["id"] == fail_at:
            raise RuntimeError("the user's own error")
        return order

    with pipeline as p:
        orders = p | ReadFromBlob(options.input, JsonLines(), block_bytes=options.block_bytes) | beam.Map(check)
        if options.look_at:
            p | "Look at" >> beam.Create([options.look_at]) | "Look" >> ReadAllFromBlob()
        orders | beam.Reshuffle() | WriteToBlob(
            options.output, JsonLines(), shards=options.shards, block_bytes=options.block_bytes
        )
    report = pipeline.report
    assert report is not None
    print(json.dumps({"job": report.job, "outcome": report.outcome, "metrics": dict(report.metrics)}))


if __name__ == "__main__":
    with command_line():
        main()
