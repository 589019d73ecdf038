"""What grows: jobs over ever more files, bundles and bytes, and over worker processes, which say what they took.

A side's answer is for `benchmarks.scaling`: the job's time without sealing and the sealing's, how many requests of each
kind went to Storage, and how many records of each kind, and bytes, are in the trail that was sealed.
"""

from __future__ import annotations

import gc
import logging
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import apache_beam as beam

from beam_entra import EntraOptions, JsonLines, Lines, ReadFromBlob, ScopedPipeline, WriteToBlob
from beam_entra.access import AccessManifest, Endpoints
from beam_entra.audit.record import Sealed
from beam_entra.clock import utc_now
from beam_entra.io.sink import Staged
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session, seal_job
from beam_entra.storage import new_block_id
from beam_entra.testing.storage_requests import StorageRequest
from benchmarks.sides.jobs import RUNNER, ours_in, ours_out, warm_up
from benchmarks.task import Done, Task
from benchmarks.usage import peak_bytes

__all__ = ["Wire", "bundles", "copied", "files", "staged", "workers"]

Work = Callable[[], Done]

_LOG = logging.getLogger("beam_entra.storage.transport")
_BLOCKS_A_BLOB = 128  # of those that `WriteToBlob` names itself: 512 MiB


class Wire(logging.Handler):
    """Counts the requests that this process sends to Storage, by operation, each attempt, in its `with`.

    It listens to what the transport says at DEBUG, which nobody else gets to hear meanwhile.

    Attributes:
        requests: Operation to how many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        self._before = _LOG.level, _LOG.propagate
        _LOG.setLevel(logging.DEBUG)
        _LOG.propagate = False
        _LOG.addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _LOG.removeHandler(self)
        _LOG.level, _LOG.propagate = self._before

    def emit(self, record: logging.LogRecord) -> None:
        method, url, _status = record.args or ("", "", 0)
        parts = urlsplit(str(url))
        request = StorageRequest(method=str(method), path=parts.path, query=parts.query, headers={})
        with self._counting:
            self.requests[request.operation] += 1


def files(task: Task) -> Work:
    """Read many small blobs, in one process, and count their lines."""

    def build(p: beam.Pipeline) -> None:
        p | ReadFromBlob(ours_in(task.given["pattern"]), Lines()) | beam.combiners.Count.Globally()

    return _job(task, build, RUNNER)


def copied(task: Task) -> Work:
    """Read large blobs line by line and write the lines again, in one process."""

    def build(p: beam.Pipeline) -> None:
        p | ReadFromBlob(ours_in(task.given["pattern"]), Lines()) | WriteToBlob(ours_out(task.output), Lines())

    return _job(task, build, RUNNER)


def workers(task: Task) -> Work:
    """Parse JSON, record by record, and sum it per key: in so many worker processes, or in the launcher's for 0."""
    processes = task.given["processes"]
    flags = [RUNNER]
    if processes:
        flags = ["--runner=DirectRunner", "--prism_location=none", "--direct_running_mode=multi_processing"]
        flags.append(f"--direct_num_workers={processes}")

    def build(p: beam.Pipeline) -> None:
        records = p | ReadFromBlob(ours_in(task.given["pattern"]), JsonLines())
        records | beam.Map(_key_and_amount) | beam.CombinePerKey(sum)

    return _job(task, build, *flags)


def _key_and_amount(record: dict[str, Any]) -> tuple[str, int]:
    return record["key"], record["amount"]


def _job(task: Task, build: Callable[[beam.Pipeline], None], *flags: str) -> Work:
    warm_up()
    options = EntraOptions([*flags, f"--access_manifest={task.manifest}", f"--access_endpoints={task.endpoints}"])

    def work() -> Done:
        began = time.perf_counter()
        with Wire() as wire, ScopedPipeline(options=options) as p:
            build(p)
        report = p.report
        assert report is not None  # noqa: S101 - the job has ended
        seal_s = time.perf_counter() - began - report.wall_s
        told = {"job_s": report.wall_s, "seal_s": seal_s, "bytes_read": report.metrics.get("bytes_read", 0)}
        return Done(units=report.metrics["records_read"], answer=told | _trail(report.seal.record, wire))

    return work


def bundles(task: Task) -> Work:
    """Bundle after bundle in one session, as a runner with small bundles opens them; each reads one small blob."""
    manifest = AccessManifest.load(task.manifest).at(Endpoints.load(task.endpoints))
    path = BlobPath.parse(ours_in(task.given["blob"]))

    def work() -> Done:
        began = time.perf_counter()
        with Wire() as wire, closing(Session(JobScope.launch(manifest, now=utc_now()))) as session:
            with session.bundle("look") as bundle:
                blob = bundle.properties(path)
            for _ in range(task.given["bundles"]):
                with session.bundle("bench") as bundle:
                    bundle.read(blob, 0, blob.size_bytes)
            job_s = time.perf_counter() - began
            sealed = seal_job(session, outcome="ok", error=None)
        told = {"job_s": job_s, "seal_s": time.perf_counter() - began - job_s, "bytes_read": 0}
        return Done(units=task.given["bundles"], answer=told | _trail(sealed.record, wire))

    return work


def _trail(seal: Sealed, wire: Wire) -> dict[str, Any]:
    return {
        "requests": dict(sorted(wire.requests.items())),
        "records": dict(seal.counts),
        "segments": len(seal.segments),
        "audit_bytes": sum(segment.bytes for segment in seal.segments) + len(seal.line()) + 1,
    }


def staged(task: Task) -> Work:
    """Hold what the commit step of a sink holds: what was staged, as it comes out of Beam's shuffle."""
    parts = max(task.given["blocks"] // _BLOCKS_A_BLOB, 1)
    path = ours_out("out/part-0123456789ab-00000.jsonl")
    pickled = [
        pickle.dumps(
            Staged(path=path, blocks=tuple(new_block_id() for _ in range(_BLOCKS_A_BLOB)), size_bytes=1, rows=1)
        )
        for _ in range(parts)
    ]

    def work() -> Done:
        gc.collect()
        before = peak_bytes()
        held = [pickle.loads(part) for part in pickled]  # noqa: S301 - made above
        grown = peak_bytes() - before
        return Done(units=len(held) * _BLOCKS_A_BLOB, answer={"bytes": grown})

    return work
