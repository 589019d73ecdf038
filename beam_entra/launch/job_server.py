"""A launcher that ends before its job: what becomes of the job, and of a job server that Beam has started for it.

Beam stops a job server of its own, such as Prism, in the handler of Ctrl-C, hence between any two steps of the main
thread. That closes the connection to it, which waits for a thread of gRPC; and where the main thread was interrupted
with a lock of gRPC's in hand, that thread waits for the lock, and nothing ends: of forty launchers that waited for
Prism, one hung. So Beam gets no such handler here. The job is cancelled, and the server stopped, when the main thread
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
from apache_beam.runners.runner import PipelineState
from apache_beam.utils.subprocess_server import SubprocessServer

__all__ = ["LaunchedJob", "leaves_job", "quiet_reader"]

_T = TypeVar("_T")
_LOGGER = logging.getLogger(__name__)
_READS_MESSAGES = "wait_until_finish_read"  # the name of Beam's thread for what a job server says of a job
_READS_OUTPUT = "(log_stdout)"  # what the name of its thread for a job server's output ends with
_LONGEST_CANCEL_S = 5.0  # until it is taken, and again until it is done
_LONGEST_ANSWER_S = 1.0
_AGAIN_S = 0.1
_LONGEST_S = 20.0  # for all; who sends SIGTERM may kill after half a minute, and the seal is still to be made
_REFUSALS = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"),
}
_BEAMS_START = StopOnExitJobServer.start

_here = threading.local()  # `servers`: those of the job that is being handed over in this thread
_readers: WeakKeyDictionary[Any, threading.Thread | None] = WeakKeyDictionary()  # of each server's output


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

        Beam has no option for the latter: one method of it is changed, for jobs that are handed over like this.
        """
        StopOnExitJobServer.start = _start
        outer = getattr(_here, "servers", None)
        _here.servers = self._servers
        try:
            yield
        finally:
            _here.servers = outer

    def stop(self, result: Any, failure: BaseException) -> str:
        """Cancel the job; and after an interrupt stop the job server if Beam has started it. Takes 20 s at most.

        Args:
            result: What the runner gave for the job; None if it has not done so yet.
            failure: Why the launcher ends: `leaves_job` is true of it.

        Returns:
            Where workers of the job may still be at work, what is known of it; else empty.
        """
        until = time.monotonic() + _LONGEST_S
        stops = bool(self._servers) and _is_interrupt(failure)  # others may use it, if only this job has lost it
        if stops:
            what = "the job, and the job server that Beam has started for it"
            _LOGGER.warning("stopping %s: %d s at most", what, _LONGEST_S)
        left = "" if _was_refused(failure) else "the job was on its way to its runner"
        if result is not None:
            left = _cancel(result)
        outputs = [_Output(server) for server in self._servers]
        if stops:
            for server in self._servers:
                _stop(server, until)
        if self._are_here():
            return ""
        if stops and self._are_of_prism() and all(output.has_ended(until) for output in outputs):
            return ""
        return left

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


class _Output:
    """What a job server and the processes that it has started print: one pipe, which ends when the last of them does.

    A thread of Beam's logs it. That the thread has ended is no proof, since it dies of a line that it cannot log.
    """

    def __init__(self, server: Any) -> None:
        self._pipe: Any = None
        self._reader = _readers.get(server)
        own = getattr(server._job_server, "_server", None)
        if isinstance(own, SubprocessServer):
            entry = own._cache._cache.get((tuple(own._cmd), own._port, own._logger))
            process = entry.obj[0] if entry is not None else None
            self._pipe = None if process is None else process.stdout

    def has_ended(self, until: float) -> bool:
        """Whether nobody can write to it any more; waits for that."""
        if self._pipe is None:
            return False
        if self._reader is not None:  # who logs what there is
            self._reader.join(max(until - time.monotonic(), 0))
        with suppress(Exception):  # closed by somebody, or time is up
            return _begin(self._read_on).result(max(until - time.monotonic(), 0))
        return False

    def _read_on(self) -> bool:
        while self._pipe.read1(1 << 16):
            pass
        return True


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
    """As Beam's; for a job of ours without the handler of Ctrl-C, and it notes that the server is the job's."""
    servers: list[Any] | None = getattr(_here, "servers", None)
    if servers is None:
        return _BEAMS_START(server)
    if not server._lock.acquire(timeout=_LONGEST_S):
        raise RuntimeError("the job server that Beam has started for an earlier job is still being stopped")
    try:
        if not server._started:
            others = threading.enumerate()
            server._endpoint = server._job_server.start()
            server._started = True
            atexit.register(server.stop)
            found = (each for each in threading.enumerate() if each not in others)
            _readers[server] = next((each for each in found if each.name.endswith(_READS_OUTPUT)), None)
        elif signal.getsignal(signal.SIGINT) == server._sigint_handler:  # a plain pipeline has started it
            with suppress(ValueError, TypeError):  # not in the main thread, or what was before is not Python's
                signal.signal(signal.SIGINT, server._original_sigint_handler)
    finally:
        server._lock.release()
    if server not in servers:
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
    """Have the runner cancel the job; what is known of it then."""
    try:
        _begin(result.cancel).result(_LONGEST_CANCEL_S)
    except TimeoutError:
        return "whether the job is cancelled is not known: its runner does not answer"
    except grpc.RpcError as unknown:
        return f"whether the job is cancelled is not known: its job server does not answer ({_code(unknown)})"
    except Exception as refused:  # noqa: BLE001 - Dataflow's and others' own; why the launcher stops is the error to raise
        return f"the runner could not cancel the job ({type(refused).__name__})"
    said = "the runner was told to cancel the job"
    with suppress(Exception):
        state = _begin(lambda: _last_state(result)).result(_LONGEST_CANCEL_S + _LONGEST_ANSWER_S)
        said += f", and reports it as {state}"
        _begin(result.metrics).result(_LONGEST_ANSWER_S)  # Beam keeps what it is told, for when the server is gone
    return said


def _last_state(result: Any) -> str:
    """What becomes of a job that was cancelled, which may take its runner a moment."""
    until = time.monotonic() + _LONGEST_CANCEL_S
    while not PipelineState.is_terminal(state := str(result.state)) and time.monotonic() < until:
        time.sleep(_AGAIN_S)
    return state


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


def _was_refused(failure: BaseException) -> bool:
    """Whether this is a job server's refusal to take a job, rather than silence or an interrupt."""
    return isinstance(failure, grpc.RpcError) and _code(failure) in _REFUSALS


def _code(error: grpc.RpcError) -> str:
    code = getattr(error, "code", None)
    return str(code().name) if callable(code) and code() is not None else "UNKNOWN"


def _is_interrupt(failure: BaseException) -> bool:
    return isinstance(failure, (KeyboardInterrupt, SystemExit))
