"""A job server that Beam has started for a job, when Ctrl-C ends the launcher: real gRPC, in the middle of its locks.

`tests/engines/test_orders.py` has Prism in its place, with workers.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, DirectRunner
from apache_beam.runners.portability.flink_runner import FlinkJarJobServer, FlinkRunner
from apache_beam.runners.portability.job_server import StopOnExitJobServer
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.portability.prism_runner import PrismJobServer, PrismRunner
from apache_beam.utils import subprocess_server
from apache_beam.utils.subprocess_server import SubprocessServer

from beam_entra.launch import job_server
from beam_entra.launch.job_server import LaunchedJob, leaves_job, quiet_reader

TOLD = "the runner was told to cancel the job, and reports it as CANCELLED"
ON_ITS_WAY = "the job was on its way to its runner"
CTRL_C = KeyboardInterrupt()


class Jobs(beam_job_api_pb2_grpc.JobServiceServicer):  # type: ignore[misc]  # generated, untyped
    """Its one job runs until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.takes_effect = threading.Event()
        self.takes_effect.set()
        self.answers = threading.Event()
        self.answers.set()

    def GetStateStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # Beam's name
        yield beam_job_api_pb2.JobStateEvent(state=beam_job_api_pb2.JobState.RUNNING)
        context.add_callback(self.cancelled.set)
        self.cancelled.wait()

    def GetState(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        cancelled = self.cancelled.is_set() and self.takes_effect.wait(0.3)
        self.takes_effect.set()
        state = beam_job_api_pb2.JobState.CANCELLED if cancelled else beam_job_api_pb2.JobState.RUNNING
        return beam_job_api_pb2.JobStateEvent(state=state)

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        self.answers.wait()
        self.cancelled.set()
        return beam_job_api_pb2.CancelJobResponse(state=beam_job_api_pb2.JobState.CANCELLED)

    def GetJobMetrics(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        return beam_job_api_pb2.GetJobMetricsResponse()


class Served:
    """A job server in this process that is stopped as Beam stops its own: it ends, and the connection is closed."""

    def __init__(self) -> None:
        self.jobs = Jobs()
        self.stops = 0
        self.may_end = threading.Event()
        self.may_end.set()

    def start(self) -> Any:
        """The way to it; like Beam's it has a pipe, which ends when nobody can print any more."""
        self._server = SubprocessServer(None, [str(id(self))])
        self._printed, self._prints = os.pipe()
        process = SimpleNamespace(stdout=os.fdopen(self._printed, "rb"))
        self._entry = (tuple(self._server._cmd), None, self._server._logger)
        SubprocessServer._cache._cache[self._entry] = SimpleNamespace(obj=(process, ""), owners=set())
        self._process = process
        self._grpc = grpc.server(ThreadPoolExecutor())
        beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(self.jobs, self._grpc)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}")
        self._grpc.start()
        return beam_job_api_pb2_grpc.JobServiceStub(self._channel)

    def stop(self) -> None:
        """End it."""
        self.stops += 1
        self.may_end.wait()
        self.end()

    def end(self) -> None:
        """Once."""
        if SubprocessServer._cache._cache.pop(self._entry, None) is not None:
            self._grpc.stop(None).wait()
            self._channel.close()
            os.close(self._prints)


class Prism(Served, PrismJobServer):  # type: ignore[misc]  # Beam's is untyped
    """What it has started holds its pipe."""


class Flink(Served, FlinkJarJobServer):  # type: ignore[misc]  # likewise
    """Java's job servers throw away what a worker process prints."""


@pytest.fixture(autouse=True)
def no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave Beam's class and the handler of Ctrl-C as they were."""
    monkeypatch.setattr(StopOnExitJobServer, "start", job_server._BEAMS_START)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def made() -> Iterator[list[Served]]:
    """The job servers of a test, which end with it."""
    made: list[Served] = []
    yield made
    for each in made:
        each.may_end.set()
        each.end()
        each._process.stdout.close()


@pytest.fixture
def launch(made: list[Served]) -> Callable[..., tuple[LaunchedJob, PipelineResult, Any]]:
    """Hands a job to a job server that Beam starts for it: gives the job, the runner's result and the server."""

    def launch(served: Served | None = None, runner: Any = None, **options: str) -> Any:
        made.append(served or Prism())
        job = LaunchedJob(runner or PrismRunner(), PipelineOptions(**options))
        with job.handing_over():
            stub = StopOnExitJobServer(made[-1]).start()
        states = stub.GetStateStream(beam_job_api_pb2.GetJobStateRequest(job_id="job"))
        next(states)
        return job, PipelineResult(stub, "job", iter(()), states), made[-1]

    return launch


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a moment only for what does not end."""
    monkeypatch.setattr(job_server, "_LONGEST_S", 0.3)


@pytest.mark.timeout(60)
def test_an_interrupt_within_a_lock_of_grpc_ends_the_launch(launch: Callable[..., Any]) -> None:
    """As Beam has it, the handler waits for a thread of gRPC, which waits for this lock."""
    job, result, served = launch()
    with pytest.raises(KeyboardInterrupt), result._state_stream._state.condition:
        signal.raise_signal(signal.SIGINT)
    assert served.stops == 0
    assert not served.jobs.cancelled.is_set()
    assert job.stop(result, CTRL_C) == ""
    assert served.jobs.cancelled.is_set()
    assert served.stops == 1


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("briefly")
def test_a_lock_of_grpc_that_nobody_opens_keeps_no_launch_from_its_end(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt may hit between the taking of a lock and the step that would open it: the stop does not end then."""
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", lambda deed: at_exit.remove(deed) if deed in at_exit else None)
    job, result, served = launch(environment_type="PROCESS")
    served.may_end.clear()
    assert len(at_exit) == 1
    assert job.stop(result, CTRL_C) == TOLD
    assert served.stops == 1
    assert at_exit == [], "at exit it would be waited for"
    with pytest.raises(RuntimeError, match="still being stopped"), job.handing_over():
        job._servers[0].start()


@pytest.mark.timeout(60)
def test_another_interrupt_does_not_leave_the_stop_to_the_exit(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses Ctrl-C twice wants it to end."""
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", lambda deed: at_exit.remove(deed) if deed in at_exit else None)
    job, result, served = launch()
    served.may_end.clear()
    stop = served.stop

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop()

    monkeypatch.setattr(served, "stop", press)
    with pytest.raises(KeyboardInterrupt):
        job.stop(result, CTRL_C)
    assert at_exit == []


STARTS_A_WORKER = """
import subprocess, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
server = grpc.server(ThreadPoolExecutor())
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
subprocess.Popen(["sh", "-c", "cat $0", sys.argv[2]])
print(sys.argv[3], flush=True)
server.start()
server.wait_for_termination()
"""


class Started(PrismJobServer):  # type: ignore[misc]  # Beam's is untyped
    """A process in the place of Prism; its worker, which a shell has started, works until the FIFO is written to."""

    def __init__(self, fifo: Path, prints: str) -> None:
        super().__init__(PipelineOptions())
        self._arguments = [str(fifo), prints]

    def subprocess_cmd_and_endpoint(self) -> tuple[list[str], str]:
        """The command, and where it listens."""
        (port,) = subprocess_server.pick_port(None)
        return [sys.executable, "-c", STARTS_A_WORKER, str(port), *self._arguments], f"localhost:{port}"


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes that Beam starts, whose pipes it leaves open."""
    spawned: list[subprocess.Popen[bytes]] = []

    def spawn(*args: Any, **named: Any) -> subprocess.Popen[bytes]:
        spawned.append(subprocess.Popen(*args, **named, start_new_session=True))
        return spawned[-1]

    monkeypatch.setattr(subprocess_server, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": spawn}))
    yield spawned
    for each in spawned:
        with suppress(ProcessLookupError):
            os.killpg(each.pid, signal.SIGKILL)
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("ends", "prints"),
    [(True, "hello"), (False, "hello"), (False, '{"level": "info", "msg": "", "time": "2026-01-01"}')],
    ids=["a worker ends", "a worker goes on", "Beam cannot log what is printed"],
)
def test_the_worker_processes_of_prism_end_before_the_seal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spawned: list[subprocess.Popen[bytes]],
    ends: bool,
    prints: str,
) -> None:
    """They have the other end of the pipe that Beam reads: while one goes on, it may still record."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = LaunchedJob(PrismRunner(), PipelineOptions(environment_type="PROCESS"))
    with job.handing_over():
        StopOnExitJobServer(Started(fifo, prints)).start()
    (reader,) = (job_server._readers[server] for server in job._servers)
    if prints != "hello" and reader is not None:
        reader.join(20)
    assert (reader is not None and reader.is_alive()) is (prints == "hello")
    with fifo.open("w", encoding="utf-8") as work:
        if ends:
            threading.Timer(3, work.close).start()
            assert job.stop(None, CTRL_C) == ""
            assert work.closed
        else:
            monkeypatch.setattr(job_server, "_LONGEST_S", 4.0)
            assert job.stop(None, CTRL_C) == ON_ITS_WAY
    assert spawned[0].wait(60) is not None
    if reader is not None:
        reader.join(60)


@pytest.mark.parametrize(
    ("options", "kind", "runner", "left"),
    [
        ({}, Prism, PrismRunner, ""),
        ({}, Prism, DirectRunner, ""),
        ({"environment_type": "LOOPBACK"}, Prism, PrismRunner, ""),
        ({"environment_type": "LOOPBACK"}, Flink, FlinkRunner, ""),
        ({"environment_type": "PROCESS"}, Prism, PrismRunner, ""),
        ({"environment_type": "PROCESS"}, Flink, FlinkRunner, TOLD),
        ({"environment_type": "EXTERNAL"}, Prism, PrismRunner, TOLD),
        ({"environment_type": "DOCKER"}, Prism, PrismRunner, TOLD),
        ({}, Flink, FlinkRunner, TOLD),
        (
            {"environment_type": "LOOPBACK", "experiments": ["use_loopback_process_worker"]},
            Prism,
            PrismRunner,
            TOLD,
        ),
    ],
    ids=str,
)
def test_where_workers_may_go_on(
    launch: Callable[..., Any], options: dict[str, Any], kind: type[Served], runner: type[Any], left: str
) -> None:
    """In this process none does, nor behind a pipe that has ended; what others have started cannot be looked into."""
    job, result, served = launch(kind(), runner(), **options)
    assert job.stop(result, CTRL_C) == left
    job, _, _ = launch(kind(), runner(), **options)
    assert job.stop(None, CTRL_C) == (left and ON_ITS_WAY)
    assert served.stops == 1


def test_a_job_server_of_another_job_is_left_alone(launch: Callable[..., Any]) -> None:
    """That it has ended would say nothing of this job, which is elsewhere, or in this process."""
    _, result, served = launch()
    job = LaunchedJob(PrismRunner(), PipelineOptions(environment_type="PROCESS"))
    with job.handing_over():
        pass
    assert job.stop(None, CTRL_C) == ON_ITS_WAY
    assert job.stop(result, CTRL_C) == TOLD
    assert served.stops == 0


def test_a_job_server_that_serves_a_second_job_is_stopped_for_that(made: list[Served]) -> None:
    """Beam has one Prism for all pipelines of a process."""
    made.append(Prism())
    shared = StopOnExitJobServer(made[0])
    with LaunchedJob(PrismRunner(), PipelineOptions()).handing_over():
        shared.start()
    job = LaunchedJob(PrismRunner(), PipelineOptions(environment_type="PROCESS"))
    with job.handing_over():
        shared.start()
        shared.start()
    assert job.stop(None, CTRL_C) == ""
    assert made[0].stops == 1


@pytest.mark.parametrize("runner", [DirectRunner, BundleBasedDirectRunner])
def test_a_job_in_this_process_is_not_waited_for(runner: type[Any]) -> None:
    """Its threads can record nothing behind the seal."""
    assert LaunchedJob(runner(), PipelineOptions()).stop(None, CTRL_C) == ""


class Failed(grpc.RpcError):  # type: ignore[misc]  # grpc is untyped
    """What a call ended with."""

    def __init__(self, name: str) -> None:
        self._name = name

    def code(self) -> grpc.StatusCode:
        """As of the answer, or for want of one."""
        return grpc.StatusCode[self._name]


@pytest.mark.parametrize(
    ("failure", "left"),
    [
        (Failed("INVALID_ARGUMENT"), ""),
        (Failed("UNIMPLEMENTED"), ""),
        (Failed("UNAVAILABLE"), ON_ITS_WAY),
        (Failed("UNKNOWN"), ON_ITS_WAY),
        (grpc.RpcError(), ON_ITS_WAY),
        (SystemExit(), ON_ITS_WAY),
    ],
    ids=lambda value: getattr(value, "_name", None),
)
def test_a_job_that_was_refused_runs_nowhere(launch: Callable[..., Any], failure: BaseException, left: str) -> None:
    """Where the connection is lost instead, the request may have arrived. The server may have other jobs."""
    job, _, served = launch(environment_type="PROCESS")
    assert job.stop(None, failure) == (left if not isinstance(failure, SystemExit) else "")
    assert served.stops == isinstance(failure, SystemExit)
    assert LaunchedJob(PrismRunner(), PipelineOptions()).stop(None, failure) == left


def test_a_job_server_that_does_not_answer_is_stopped(
    launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it without an end."""
    monkeypatch.setattr(job_server, "_LONGEST_CANCEL_S", 0.2)
    job, result, served = launch(environment_type="EXTERNAL")
    served.jobs.answers.clear()
    try:
        assert "its runner does not answer" in job.stop(result, CTRL_C)
    finally:
        served.jobs.answers.set()
    assert served.stops == 1


def test_a_job_that_is_not_cancelled_at_once_is_asked_again(launch: Callable[..., Any]) -> None:
    """Flink's job server says RUNNING for a moment."""
    job, result, served = launch(environment_type="EXTERNAL")
    served.jobs.takes_effect.clear()
    assert job.stop(result, CTRL_C) == TOLD


def test_what_a_job_has_counted_is_asked_before_its_server_is_stopped(launch: Callable[..., Any]) -> None:
    """The report has it."""
    job, result, _ = launch()
    job.stop(result, CTRL_C)
    assert result.metrics().query()["counters"] == []


def test_a_server_that_a_plain_pipeline_has_started_stops_no_more_in_the_handler(made: list[Served]) -> None:
    """It has Beam's handler, which is taken away with the first job of ours on it."""
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    made.append(Prism())
    shared = StopOnExitJobServer(made[0])
    with LaunchedJob(PrismRunner(), PipelineOptions()).handing_over():
        pass
    shared.start()
    assert signal.getsignal(signal.SIGINT) == shared._sigint_handler, "for plain pipelines all is as Beam has it"
    job = LaunchedJob(PrismRunner(), PipelineOptions(environment_type="PROCESS"))
    with job.handing_over():
        shared.start()
    signal.raise_signal(signal.SIGINT)
    assert heard == [signal.SIGINT]
    assert made[0].stops == 0
    assert job.stop(None, CTRL_C) == ""
    assert made[0].stops == 1


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
