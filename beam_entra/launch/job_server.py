"""A launcher that ends before its job: what becomes of the job, and of a job server that Beam has started for it.

Beam stops a job server of its own, such as Prism, in the handler of Ctrl-C, hence between any two steps of the main
thread. That closes the connection to it, which waits for a thread of gRPC; and where the main thread was interrupted
with a lock of gRPC's in hand, that thread waits for the lock, and nothing ends: of a hundred launchers that waited for
Prism, two hung. So Beam gets no such handler here. The job is cancelled, and the server stopped, when the main thread
has left what it was at.
"""

from __future__ import annotations

import atexit
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import grpc
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, PortableOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, DirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.job_server import StopOnExitJobServer
from apache_beam.runners.portability.prism_runner import PrismJobServer

__all__ = ["LaunchedJob", "leaves_job", "quiet_reader"]

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)
_READS_MESSAGES = "wait_until_finish_read"  # the name of Beam's thread for what a job server says of a job
_READS_OUTPUT = "(log_stdout)"  # what the name of its thread for a job server's output ends with
_LONGEST_CANCEL_S = 8.0
_LONGEST_S = 25.0  # for all; who sends SIGTERM may kill after half a minute

_here = threading.local()  # `servers`: those of the job that is being handed over in this thread
_readers: WeakKeyDictionary[Any, list[threading.Thread]] = WeakKeyDictionary()  # of each server's output


def leaves_job(failure: BaseException) -> bool:
    """Whether this ends a launcher and not its job: it was interrupted, or the job server has fallen silent."""
    return _is_interrupt(failure) or isinstance(failure, grpc.RpcError)


class LaunchedJob:
    """A job that is with a runner, or on its way to it.

    Args:
        runner: The pipeline's.
        options: The pipeline's.
    """

    def __init__(self, runner: Any, options: PipelineOptions) -> None:
        self._runner, self._options = runner, options
        self._servers: list[Any] = []

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Have a job server that Beam starts in this thread be this job's, and Ctrl-C not stop it.

        Beam has no option for the latter; this changes one method of it, for all pipelines of the process.
        """
        StopOnExitJobServer.start = _start
        outer = getattr(_here, "servers", None)
        _here.servers = self._servers
        try:
            yield
        finally:
            _here.servers = outer

    def stop(self, result: Any, failure: BaseException) -> str:
        """Cancel the job, and stop the job server if Beam has started it. Takes half a minute at most.

        Args:
            result: What the runner gave for the job; None if it has not done so yet.
            failure: Why the launcher ends: `leaves_job` is true of it.

        Returns:
            Where workers of the job may still be at work, what is known of it; else empty.
        """
        until = time.monotonic() + _LONGEST_S
        if self._servers:
            _LOGGER.warning("stopping the job, and the job server that Beam has started for it: up to %d s", _LONGEST_S)
        left = "the job was on its way to its runner" if _is_interrupt(failure) else ""
        if result is not None:
            cancelling = _begin(lambda: _cancel(result))
            left = "the job was not cancelled: its runner does not answer"
            with suppress(TimeoutError):
                left = cancelling.result(_LONGEST_CANCEL_S)
        for server in self._servers:
            _stop(server, until)
        workers_have_ended = self._are_here() or (self._are_of_prism() and self._all_ended(until))
        return "" if workers_have_ended else left

    def _are_here(self) -> bool:
        """Whether the workers are threads of this process."""
        if not self._servers and isinstance(self._runner, (DirectRunner, BundleBasedDirectRunner, FnApiRunner)):
            return True
        if self._options.view_as(DebugOptions).lookup_experiment("use_loopback_process_worker"):
            return False
        return self._environment() == "LOOPBACK"

    def _are_of_prism(self) -> bool:
        """Whether the workers are processes that a Prism of this job's own has started; they hold its output's pipe."""
        return self._environment() == "PROCESS" and self._is_prism()

    def _environment(self) -> str | None:
        chosen: str | None = self._options.view_as(PortableOptions).environment_type
        return chosen or ("LOOPBACK" if self._is_prism() else None)

    def _is_prism(self) -> bool:
        return bool(self._servers) and all(isinstance(each._job_server, PrismJobServer) for each in self._servers)

    def _all_ended(self, until: float) -> bool:
        """Whether nobody can write to the servers' output any more, as their readers find."""
        readers = [_readers.get(server) for server in self._servers]
        for reader in (reader for each in readers for reader in each or ()):
            reader.join(max(until - time.monotonic(), 0))
        return all(each and not any(reader.is_alive() for reader in each) for each in readers)


@contextmanager
def quiet_reader() -> Iterator[None]:
    """Have no traceback printed of Beam's thread that reads a job's messages, if that loses the job server.

    What becomes of the job is asked in the main thread, which fails by itself.
    """
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        lost = isinstance(failed.exc_value, grpc.RpcError)
        if not (lost and failed.thread is not None and failed.thread.name == _READS_MESSAGES):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _start(server: Any) -> Any:
    """`StopOnExitJobServer.start`, but for the handler of Ctrl-C; and it notes whose the server is."""
    with server._lock:
        if not server._started:
            others = threading.enumerate()
            server._endpoint = server._job_server.start()
            server._started = True
            atexit.register(server.stop)
            found = [each for each in threading.enumerate() if each not in others]
            _readers[server] = [each for each in found if each.name.endswith(_READS_OUTPUT)]
        elif signal.getsignal(signal.SIGINT) == server._sigint_handler:  # a plain pipeline has started it
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, server._original_sigint_handler)
    servers = getattr(_here, "servers", None)
    if servers is not None and server not in servers:
        servers.append(server)
    return server._endpoint


def _stop(server: Any, until: float) -> None:
    stopping: Future[None] | None = None
    try:
        stopping = _begin(server.stop)
        with suppress(Exception):  # whether it has ended is seen by its output
            stopping.result(max(until - time.monotonic(), 0))
    finally:
        if stopping is None or not stopping.done():  # the interrupt has left gRPC a lock that nobody opens,
            atexit.unregister(server.stop)  # or there was another: at exit it would be waited for


def _cancel(result: Any) -> str:
    try:
        result.cancel()
        said = f"the runner was told to cancel the job, and reports it as {result.state}"
    except grpc.RpcError as unknown:
        return f"the job was not cancelled: its job server does not answer ({unknown.code().name})"
    except Exception as refused:  # noqa: BLE001 - Dataflow's and others' own; why the launcher stops is the error to raise
        return f"the runner could not cancel the job ({type(refused).__name__})"
    with suppress(Exception):  # Beam keeps what it is told, for when the server is gone
        result.metrics()
    return said


def _begin(deed: Callable[[], _T]) -> Future[_T]:
    """Do it in a thread that nobody has to wait for."""
    done: Future[_T] = Future()

    def work() -> None:
        try:
            done.set_result(deed())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=work, name="beam-entra-job-server", daemon=True).start()
    return done


def _is_interrupt(failure: BaseException) -> bool:
    return isinstance(failure, (KeyboardInterrupt, SystemExit))
