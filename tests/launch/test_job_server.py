"""A job server that Beam has started for a job, when Ctrl-C ends the launcher: real gRPC, in the middle of its locks.

`tests/engines/test_orders.py` has Prism in its place, with workers.
"""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.job_server import JobServer, StopOnExitJobServer
from apache_beam.runners.portability.portable_runner import PipelineResult

from beam_entra.launch import job_server
from beam_entra.launch.job_server import leaves_job, quiet_reader, stop_job, stop_servers_later

LOOPBACK = PipelineOptions(environment_type="LOOPBACK")
PROCESS = PipelineOptions(environment_type="PROCESS")
TOLD = "the runner was told to cancel the job, and reports it as CANCELLED"


class Jobs(beam_job_api_pb2_grpc.JobServiceServicer):  # type: ignore[misc]  # generated, untyped
    """Its one job runs until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def GetStateStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # Beam's name
        yield beam_job_api_pb2.JobStateEvent(state=beam_job_api_pb2.JobState.RUNNING)
        context.add_callback(self.cancelled.set)
        self.cancelled.wait()

    def GetState(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        cancelled = self.cancelled.is_set()
        state = beam_job_api_pb2.JobState.CANCELLED if cancelled else beam_job_api_pb2.JobState.RUNNING
        return beam_job_api_pb2.JobStateEvent(state=state)

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        self.cancelled.set()
        return beam_job_api_pb2.CancelJobResponse(state=beam_job_api_pb2.JobState.CANCELLED)


class Served(JobServer):  # type: ignore[misc]  # Beam's is untyped
    """A job server that is stopped as Beam stops its own: it ends, and the connection to it is closed."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.stops = 0
        self.may_end = threading.Event()
        self.may_end.set()
        self.ends: Callable[[], None] = lambda: None  # called when it does

    def start(self) -> Any:
        """The way to it."""
        self._server = grpc.server(ThreadPoolExecutor())
        beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(self.jobs, self._server)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}")
        self._server.start()
        return beam_job_api_pb2_grpc.JobServiceStub(self._channel)

    def stop(self) -> None:
        """End it."""
        self.stops += 1
        self.ends()
        self.may_end.wait()
        self._server.stop(None).wait()
        self._channel.close()


@pytest.fixture(autouse=True)
def no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave Beam's class and the handler of Ctrl-C as they were."""
    monkeypatch.setattr(StopOnExitJobServer, "_sigint_handler", StopOnExitJobServer._sigint_handler)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def served() -> Served:
    """A job server that is not started yet."""
    return Served()


@pytest.fixture
def server(served: Served) -> Iterator[StopOnExitJobServer]:
    """The same, started by Beam in a process that stops it later."""
    stop_servers_later()
    owner = StopOnExitJobServer(served)
    owner.start()
    yield owner
    served.may_end.set()
    owner.stop()


def result_of(server: StopOnExitJobServer) -> PipelineResult:
    """What a runner gives for a job there."""
    stub = server.start()
    states = stub.GetStateStream(beam_job_api_pb2.GetJobStateRequest(job_id="job"))
    next(states)
    return PipelineResult(stub, "job", iter(()), states)


@pytest.mark.timeout(60)
def test_an_interrupt_within_a_lock_of_grpc_ends_the_launch(served: Served, server: StopOnExitJobServer) -> None:
    """As Beam has it, the handler waits for a thread of gRPC, which waits for this lock."""
    result = result_of(server)
    with pytest.raises(KeyboardInterrupt), result._state_stream._state.condition:
        signal.raise_signal(signal.SIGINT)
    assert served.stops == 0
    assert not served.jobs.cancelled.is_set()
    assert stop_job(result, LOOPBACK) == ""
    assert served.jobs.cancelled.is_set()
    assert served.stops == 1


@pytest.mark.timeout(60)
def test_a_lock_of_grpc_that_nobody_opens_keeps_no_launch_from_its_end(
    served: Served, server: StopOnExitJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt may hit between the taking of a lock and the step that would open it: the stop does not end then."""
    monkeypatch.setattr(job_server, "_LONGEST_STOP_S", 0.1)
    served.may_end.clear()
    left_out: list[Any] = []
    monkeypatch.setattr(atexit, "unregister", left_out.append)
    assert stop_job(result_of(server), PROCESS) == TOLD
    assert served.stops == 1
    assert left_out == [server.stop], "at exit it would be waited for"


def test_a_pipe_that_nobody_can_write_to_shows_that_all_have_ended(
    served: Served, server: StopOnExitJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the stop does not end, as above: Beam kills the server first."""
    monkeypatch.setattr(job_server, "_LONGEST_STOP_S", 0.1)
    served.may_end.clear()
    closed = threading.Event()
    reader = threading.Thread(target=closed.wait, name="Thread-1 (log_stdout)")
    reader.start()
    served.ends = closed.set
    assert stop_job(result_of(server), PROCESS) == ""
    reader.join()


def test_workers_that_the_job_server_has_started_end_before_the_seal(
    served: Served, server: StopOnExitJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the pipe that a thread of Beam's reads; while one does, it may still record."""
    monkeypatch.setattr(job_server, "_LONGEST_END_S", 0.1)
    open_pipe = threading.Event()
    reader = threading.Thread(target=open_pipe.wait, name="Thread-1 (log_stdout)")
    reader.start()
    try:
        assert stop_job(result_of(server), PROCESS) == TOLD
    finally:
        open_pipe.set()
        reader.join()
    assert stop_job(result_of(server), PROCESS) == ""
    assert served.stops == 2


@pytest.mark.parametrize(
    "options",
    [
        {"environment_type": "EXTERNAL"},
        {"environment_type": "DOCKER"},
        {},
        {"environment_type": "PROCESS", "flink_master": "cluster:8081"},
        {"environment_type": "PROCESS", "spark_master_url": "spark://cluster:7077"},
    ],
    ids=str,
)
def test_workers_that_others_have_started_may_go_on(server: StopOnExitJobServer, options: dict[str, str]) -> None:
    """A pool, Docker or a cluster has them, which nobody here can look into."""
    assert stop_job(result_of(server), PipelineOptions(**options)) == TOLD


def test_a_job_server_of_another_job_is_left_alone(served: Served, server: StopOnExitJobServer) -> None:
    """That it has ended would say nothing of this job, which is elsewhere."""
    stop_servers_later()
    elsewhere = Served()
    stub = elsewhere.start()
    try:
        assert stop_job(PipelineResult(stub, "job", iter(()), iter(())), PROCESS) == TOLD
        assert served.stops == 0
    finally:
        elsewhere.stop()


def test_a_job_server_is_stopped_before_it_has_got_its_job(served: Served, server: StopOnExitJobServer) -> None:
    """It may have: whoever was interrupted while it was handed over does not know."""
    assert stop_job(None, PROCESS) == ""
    assert served.stops == 1
    assert stop_job(None, PROCESS) == ""
    assert served.stops == 1


def test_what_a_job_server_leaves_behind_is_said(
    served: Served, server: StopOnExitJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there is no job to cancel yet."""
    monkeypatch.setattr(job_server, "_LONGEST_STOP_S", 0.1)
    served.may_end.clear()
    assert "something that it has started goes on" in stop_job(None, PROCESS)


def test_ctrl_c_does_what_it_did_before_the_server(served: Served) -> None:
    """Each server has kept the handler that it found."""
    heard: list[int] = []
    stop_servers_later()
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    owners = [StopOnExitJobServer(served)]
    owners[0].start()
    owners.append(StopOnExitJobServer(Served()))
    owners[1].start()
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]
    assert served.stops == 0
    assert stop_job(None, LOOPBACK) == ""
    assert (served.stops, owners[1]._job_server.stops) == (1, 1)


@pytest.mark.parametrize(("before", "raises"), [(signal.SIG_IGN, False), (signal.SIG_DFL, True)], ids=str)
def test_ctrl_c_where_no_function_hears_it(served: Served, before: signal.Handlers, raises: bool) -> None:
    """Ignored it stays ignored, as for a job in a shell's background; it is never lost."""
    stop_servers_later()
    signal.signal(signal.SIGINT, before)
    owner = StopOnExitJobServer(served)
    owner.start()
    try:
        signal.raise_signal(signal.SIGINT)
        assert not raises
    except KeyboardInterrupt:
        assert raises
    finally:
        owner.stop()


def test_a_beam_that_is_made_otherwise_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a server does with signals is not known."""

    class Other: ...

    monkeypatch.setattr(job_server, "StopOnExitJobServer", Other)
    stop_servers_later()
    assert not hasattr(Other, "_sigint_handler")


def test_a_scoped_pipeline_stops_servers_later(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever its runner is: DirectRunner may find Prism."""
    monkeypatch.setattr(StopOnExitJobServer, "_sigint_handler", None)
    with lake.pipeline():
        pass
    assert StopOnExitJobServer._sigint_handler is job_server._interrupt


@pytest.mark.parametrize(
    ("name", "error", "printed"),
    [
        ("wait_until_finish_read", grpc.RpcError(), False),
        ("wait_until_finish_read", ValueError(), True),
        ("another", grpc.RpcError(), True),
    ],
    ids=["lost", "wrong", "another"],
)
def test_a_reader_that_has_lost_its_job_server_is_quiet(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, printed: bool
) -> None:
    """Whatever else goes wrong in a thread is shown as ever."""
    shown: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: shown.append(failed.exc_value))
    ours = threading.excepthook

    def fail() -> None:
        raise error

    with quiet_reader():
        thread = threading.Thread(target=fail, name=name)
        thread.start()
        thread.join()
    assert shown == [error] * printed
    assert threading.excepthook is ours


@pytest.mark.parametrize(
    ("error", "leaves"),
    [(KeyboardInterrupt(), True), (SystemExit(), True), (grpc.RpcError(), True), (RuntimeError(), False)],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_launcher_and_not_its_job(error: BaseException, leaves: bool) -> None:
    """A job that failed has ended by itself."""
    assert leaves_job(error) is leaves
