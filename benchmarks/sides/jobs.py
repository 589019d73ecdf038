"""What the sides share: pipelines on one runner, the same downstream transforms, ways to name the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_entra import EntraOptions, ScopedPipeline
from beam_entra.access import AccessManifest, Endpoints
from beam_entra.clock import utc_now
from beam_entra.session import JobScope
from benchmarks.cloud import ACCOUNT, CURATED, RAW
from benchmarks.task import Done, Task

__all__ = [
    "azfs_pipeline",
    "collected",
    "counted",
    "ours_in",
    "ours_out",
    "scope_of",
    "scoped_pipeline",
    "summed",
    "theirs_in",
    "theirs_out",
    "timed",
    "totalled",
    "warm_up",
]

RUNNER = "--runner=FnApiRunner"  # what DirectRunner falls back to where no Prism is installed

_RESULTS: list[Any] = []  # the runner works in this process


def scope_of(task: Task) -> JobScope:
    """The job of the manifest that the sides are told of, launched now."""
    return JobScope.launch(AccessManifest.load(task.manifest).at(Endpoints.load(task.endpoints)), now=utc_now())


def ours_in(pattern: str) -> str:
    """A name in the input, for us."""
    return f"abfss://{RAW}@{ACCOUNT}.dfs.core.windows.net/in/{pattern}"


def ours_out(prefix: str) -> str:
    """A prefix in the output, for us."""
    return f"abfss://{CURATED}@{ACCOUNT}.dfs.core.windows.net/{prefix}"


def theirs_in(pattern: str) -> str:
    """A name in the input, for azfs."""
    return f"azfs://{ACCOUNT}/{RAW}/in/{pattern}"


def theirs_out(prefix: str) -> str:
    """A prefix in the output, for azfs."""
    return f"azfs://{ACCOUNT}/{CURATED}/{prefix}"


def warm_up() -> None:
    """Run something, so that what Beam imports and makes at a first run is not measured."""
    with beam.Pipeline(options=PipelineOptions([RUNNER])) as p:
        p | beam.Create([1]) | beam.Map(str)


def scoped_pipeline(task: Task) -> ScopedPipeline:
    """A job with scoping and audit."""
    flags = [RUNNER, f"--access_manifest={task.manifest}", f"--access_endpoints={task.endpoints}"]
    return ScopedPipeline(options=EntraOptions(flags))


def azfs_pipeline(task: Task) -> beam.Pipeline:
    """A job as Beam's users have it; its credential is in the environment."""
    return beam.Pipeline(options=PipelineOptions([RUNNER]))


def timed(
    task: Task, pipeline: Callable[[Task], beam.Pipeline], build: Callable[[beam.Pipeline], Any]
) -> Callable[[], Any]:
    """The work of building a pipeline, running it and getting its results."""
    warm_up()

    def work() -> list[Any]:
        _RESULTS.clear()
        with pipeline(task) as p:
            build(p)
        return list(_RESULTS)

    return work


def collected(result: Any) -> None:
    """Keep a result for the process that asked."""
    _RESULTS.append(result)


def counted(elements: beam.PCollection[Any]) -> Any:
    """Downstream of reading: count. A default for what is empty would be three more stages of Beam's in every row."""
    return elements | "Count" >> beam.combiners.Count.Globally().without_defaults() | "Collect" >> beam.Map(collected)


def totalled(numbers: beam.PCollection[int]) -> Any:
    """Downstream of reading what has a number: add them up."""
    return numbers | "Total" >> beam.CombineGlobally(sum).without_defaults() | "Collect" >> beam.Map(collected)


def summed(pairs: beam.PCollection[Any]) -> Any:
    """Downstream of reading keys and numbers: sum per key; the answer is the sum of all and the number of keys."""
    return (
        pairs
        | "Sum" >> beam.CombinePerKey(sum)
        | "All" >> beam.CombineGlobally(_Totals()).without_defaults()
        | "Collect" >> beam.Map(collected)
    )


class _Totals(beam.CombineFn):  # type: ignore[misc]  # Beam's class is untyped
    def create_accumulator(self) -> tuple[int, int]:
        return 0, 0

    def add_input(self, totals: tuple[int, int], pair: tuple[str, int]) -> tuple[int, int]:
        return totals[0] + 1, totals[1] + pair[1]

    def merge_accumulators(self, several: Iterable[tuple[int, int]]) -> tuple[int, int]:
        keys, total = zip(*several, strict=True)
        return sum(keys), sum(total)

    def extract_output(self, totals: tuple[int, int]) -> list[int]:
        return list(totals)


def key_and_amount(line: str) -> tuple[str, int]:
    """What a user's Map does with a line of JSON."""
    value = json.loads(line)
    return value["key"], value["amount"]


def done(results: list[Any], units: float | None = None) -> Done:
    """The only result, as units and answer."""
    (answer,) = results
    return Done(units=answer if units is None else units, answer=answer)
