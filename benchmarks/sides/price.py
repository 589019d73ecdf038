"""What identity costs by itself: token requests, a token at hand, a SAS, and the time until there is a first byte."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Barrier

from beam_entra.access import Permission
from beam_entra.io.dofn import ScopedDoFn
from beam_entra.paths import BlobPath
from beam_entra.session import Session, close_session
from beam_entra.storage import mint
from beam_entra.testing.tenant import GRAPH
from benchmarks.sides.jobs import ours_in, scope_of
from benchmarks.task import Done, Task

__all__ = ["first_byte", "minted", "our_requests", "warm_token"]

Work = Callable[[], Done]
_BLOB = "small/00000.jsonl"
_DIGITS = 9  # nanoseconds, which is as far as the clock goes


class _Connector(ScopedDoFn):
    """Needs Graph's token for what it asks, and Storage's for what it reads."""

    audience = GRAPH


def our_requests(task: Task) -> Work:
    """Bundles of both audiences in threads that begin at once; the tenant counts."""
    scope, path = scope_of(task), BlobPath.parse(ours_in(_BLOB))
    threads, processes, bundles = task.given["threads"], task.given["processes"], task.given["bundles"]

    def process() -> None:
        together = Barrier(threads)

        def thread(number: int) -> None:
            fn = _Connector().scoped(scope, "bench")
            together.wait()
            for _ in range(number, bundles, threads):
                with _bundle(fn):
                    fn.token()
                    fn.bundle().sas(path, Permission.READ)

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(thread, range(threads)):
                pass
        close_session(scope.job)

    def work() -> Done:
        others = [multiprocessing.get_context("fork").Process(target=process) for _ in range(processes - 1)]
        for other in others:
            other.start()
        process()
        for other in others:
            other.join()
            if other.exitcode:
                raise RuntimeError(f"a process ended with {other.exitcode}")
        return Done(units=processes * bundles)

    return work


def warm_token(task: Task) -> Work:
    """A connector's `token()`, each call timed, when there is one."""
    fn = _Connector().scoped(scope_of(task), "bench")

    def work() -> Done:
        with _bundle(fn):
            done = _timed(fn.token, task.given["calls"])
        fn.session().close()
        return done

    return work


def minted(task: Task) -> Work:
    """A SAS for one blob to read, minted again and again, as for Storage: the correlation is signed."""
    with closing(Session(scope_of(task))) as session, session.bundle("bench") as bundle:
        spec = bundle.sas(BlobPath.parse(ours_in(_BLOB)), Permission.READ).spec
        key = session.key(spec.account)
        correlation = bundle.id
    return lambda: _timed(lambda: mint(spec, key, correlation=correlation), task.given["calls"])


def first_byte(task: Task) -> Work:
    """A fresh process of the job by one credential source, timed from its start until it has let out a byte."""
    manifest = Path(task.manifest).with_name(f"{task.given['source']}.access.toml")
    command = [sys.executable, "-m", "benchmarks.first_byte", str(manifest), task.endpoints, ours_in(_BLOB)]

    def work() -> Done:
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - our own
            assert process.stdout is not None  # noqa: S101 - it was made with a pipe
            first = process.stdout.read(1)
            took_s = time.perf_counter() - began
        if process.returncode or not first:
            raise RuntimeError(f"the process ended with {process.returncode}")
        return Done(units=1, answer=first.decode("ascii"), samples_s=(took_s,))

    return work


@contextmanager
def _bundle(fn: ScopedDoFn) -> Iterator[None]:
    """What a runner does around a bundle."""
    fn.start_bundle()
    yield
    fn.finish_bundle()


def _timed(call: Callable[[], object], calls: int) -> Done:
    for _ in range(calls):  # until it is warm
        call()
    samples = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        samples.append(round(time.perf_counter() - began, _DIGITS))
    return Done(units=calls, samples_s=tuple(samples))
