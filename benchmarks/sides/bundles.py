"""What a bundle costs that touches no data: open its session, issue a SAS, record all of it, close."""

from __future__ import annotations

import time
from collections.abc import Callable

from beam_entra.access import AccessManifest, Endpoints, Permission
from beam_entra.clock import utc_now
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session
from benchmarks.sides.jobs import ours_in
from benchmarks.task import Done, Task

__all__ = ["our_bundles"]


def our_bundles(task: Task) -> Callable[[], Done]:
    """Bundle after bundle, each timed; the last waits until its records are durable, as every one does."""
    manifest = AccessManifest.load(task.manifest).at(Endpoints.load(task.endpoints))
    session = Session(JobScope.launch(manifest, now=utc_now()))
    path = BlobPath.parse(ours_in("nothing.jsonl"))

    def one() -> float:
        began = time.perf_counter()
        with session.bundle("bench") as bundle:
            bundle.sas(path, Permission.READ)
        return time.perf_counter() - began

    for _ in range(20):
        one()

    def work() -> Done:
        samples = tuple(one() for _ in range(task.given["bundles"]))
        session.close()
        return Done(units=len(samples), samples_s=samples)

    return work
