"""A launcher that ends before its job: what becomes of the job, and of a job server that Beam has started for it.

Beam stops a job server of its own, such as Prism, in the handler of Ctrl-C, hence between any two steps of the main
thread. That closes the connection to it, which waits for a thread of gRPC; and where the main thread was interrupted
with a lock of gRPC's in hand, that thread waits for the lock, and nothing ends: of a hundred launchers that waited for
Prism, two hung. So the handler is made to do what Ctrl-C does without such a server; and the job is cancelled, and the
server stopped, when the main thread has left what it was at.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
)
from apache_beam.runners.portability.job_server import StopOnExitJobServer

__all__ = ["leaves_job", "quiet_reader", "stop_job", "stop_servers_later"]

_HANDLER = "_sigint_handler"
_READS_MESSAGES = "wait_until_finish_read"  # the name of Beam's thread for what a job server says of a job
_READS_OUTPUT = "(log_stdout)"  # what the name of Beam's thread for a server's output ends with
_LONGEST_STOP_S = 20.0  # Beam asks a server to end for 5 s, and then kills it
_LONGEST_END_S = 30.0  # of worker processes that have lost their runner


def stop_servers_later() -> None:
    """Have Ctrl-C stop no job server that Beam starts in this process from now on: `stop_job` does it.

    Beam has no option for it; this changes one method, and nothing where there is no such method.
    """
    if hasattr(StopOnExitJobServer, _HANDLER):
        setattr(StopOnExitJobServer, _HANDLER, _interrupt)


def _interrupt(server: Any, number: int, frame: FrameType | None) -> None:
    """What a signal did before the server was started."""
    before = server._original_sigint_handler
    if callable(before):
        before(number, frame)
    elif before != signal.SIG_IGN:
        raise KeyboardInterrupt


def leaves_job(failure: BaseException) -> bool:
    """Whether this ends a launcher and not its job: it was interrupted, or the job server has fallen silent."""
    return isinstance(failure, (KeyboardInterrupt, SystemExit, grpc.RpcError))


def stop_job(result: Any, options: PipelineOptions) -> str:
    """Cancel a job whose launcher ends before it, and stop the job server if Beam has started it.

    Args:
        result: What the runner gave for it; None where it runs in the launcher itself, or was not handed over yet.
        options: The pipeline's.

    Returns:
        Where workers of the job may still be at work, what the runner says of it; else empty.
    """
    left = "" if result is None else _cancel(result)
    own = [server for server in _started_servers() if result is None or server._endpoint is _service(result)]
    ended = _stop(own)
    workers = (options.view_as(PortableOptions).environment_type or "").upper()
    if workers == "LOOPBACK":  # in this process
        return ""
    if own and not ended:
        return left or "the job server was stopped, and something that it has started goes on"
    started_by_own = workers == "PROCESS" and not _has_cluster(options)
    return "" if own and started_by_own else left


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


def _cancel(result: Any) -> str:
    try:
        result.cancel()
        return f"the runner was told to cancel the job, and reports it as {result.state}"
    except (NotImplementedError, ValueError):  # ValueError is a closed channel: the job server was stopped
        return ""
    except grpc.RpcError as unknown:
        return f"the job was not cancelled: its job server does not answer ({unknown.code().name})"
    except Exception as refused:  # noqa: BLE001 - Dataflow's and others' own; why the launcher stops is the error to raise
        return f"the runner could not cancel the job ({type(refused).__name__})"


def _stop(servers: Sequence[Any]) -> bool:
    """Stop job servers that Beam has started.

    Returns:
        Whether they have ended, and so have the worker processes that they have started. Those write to the same pipe,
        which a thread of Beam's reads until nobody can write to it.
    """
    outputs = [thread for thread in threading.enumerate() if servers and thread.name.endswith(_READS_OUTPUT)]
    stopped = True
    for server in servers:
        stopping = threading.Thread(target=server.stop, name="beam-entra-job-server", daemon=True)
        stopping.start()
        stopping.join(_LONGEST_STOP_S)
        if stopping.is_alive():  # the interrupt has left gRPC a lock that nobody opens
            atexit.unregister(server.stop)
            stopped = False
    until = time.monotonic() + _LONGEST_END_S
    for output in outputs:
        output.join(max(until - time.monotonic(), 0))
    return (stopped or bool(outputs)) and not any(output.is_alive() for output in outputs)


def _service(result: Any) -> Any:
    """Beam's way to the job server, which it has of the server itself."""
    return getattr(result, "_job_service", result)


def _started_servers() -> Iterator[Any]:
    """The latest first: each has put itself before the handler that it found."""
    handler: Any = signal.getsignal(signal.SIGINT)
    while isinstance(server := getattr(handler, "__self__", None), StopOnExitJobServer):
        if server._started:
            yield server
        handler = server._original_sigint_handler


def _has_cluster(options: PipelineOptions) -> bool:
    """Whether a job server of Beam's own was told of a cluster, where the job may go on without it."""
    flink = options.view_as(FlinkRunnerOptions).flink_master
    spark = options.view_as(SparkRunnerOptions).spark_master_url
    return not (flink.startswith("[") and spark.startswith("local"))
