"""Prism, a Flink cluster, a Spark cluster, their job servers and a worker pool, as processes of the tests' own.

Each process leads a group of its own, which is killed as a whole: a TaskManager's workers go with it. Where there is
`setpriv`, they also die with the test run itself, however that ends.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import urllib3

from tests.engines.fetch import FLINK, PRISM, SPARK

__all__ = ["Flink", "JobServer", "Listener", "WorkerPool", "flink", "prism", "spark", "worker_pool"]

_PATIENCE_S = 90
_TASK_MANAGERS = (1, 2)
_REGISTERED = "Registering TaskManager with ResourceID"
_CONNECTED = r"Fn Control client connected with id (\S+)"
_OPENED = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.text",
    "java.base/java.time",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.util.concurrent.locks",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
)
_OPENING = tuple(f"--add-opens={name}=ALL-UNNAMED" for name in _OPENED)
_JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_OPENING)
# Two TaskManagers, a JobManager and a job server take about 4 GiB. That a TaskManager has died is known before a job is
# started over. Else that is deployed to it and fails, with what follows from it: docs/runners.md, "When workers die".
_FLINK_CONF = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.memory.process.size: 1g
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest}
heartbeat.interval: 300
heartbeat.rpc-failure-threshold: 1
heartbeat.timeout: 20000
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 12
restart-strategy.fixed-delay.delay: 1 s
taskmanager.host: 127.0.0.1
taskmanager.numberOfTaskSlots: 2
taskmanager.cpu.cores: 1
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 128m
taskmanager.memory.jvm-overhead.max: 128m
taskmanager.memory.task.heap.size: 512m
taskmanager.memory.task.off-heap.size: 64m
taskmanager.memory.managed.size: 128m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
web.upload.dir: {folder}/upload
io.tmp.dirs: {folder}/tmp
"""
_LOG4J = """\
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
appender.out.name = out
appender.out.type = CONSOLE
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %-5p %c{1} %m%n
"""


@dataclass(kw_only=True)
class JobServer:
    """Where to submit jobs.

    Attributes:
        endpoint: HOST:PORT, of the listener: the value of --job_endpoint.
        listener: Keeps what jobs were submitted.
        logs: What the processes wrote, workers too: a folder.
    """

    endpoint: str
    listener: Listener
    logs: Path

    def said(self) -> str:
        """Everything that is in the logs."""
        found = [*self.logs.glob("*.log"), *self.logs.glob("work-*/*/*/std*")]  # Spark's executors have theirs there
        return "\n".join(path.read_text("utf-8", "replace") for path in found)


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """Where a runner has workers started: `--environment_type=EXTERNAL`.

    Attributes:
        endpoint: HOST:PORT, the value of --environment_config.
        log: What it and its workers wrote.
    """

    endpoint: str
    log: Path

    def said(self) -> str:
        """Everything so far."""
        return self.log.read_text("utf-8", "replace")


class Listener(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Passes every call on to a job server, bytes as they are, and keeps the requests."""

    def __init__(self, target: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers((self,))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, details: Any) -> Any:
        """Handle a call of whatever method."""
        method = details.method

        def stream(request: bytes, context: Any) -> Iterator[bytes]:
            self.heard.append((method.rpartition("/")[2], request))
            call = self._channel.unary_stream(method)(request)
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_stream_rpc_method_handler(stream)

    def close(self) -> None:
        """Hang up."""
        self._server.stop(None)
        self._channel.close()


class _Processes:
    """What a cluster is made of: processes, and what each has said so far.

    Args:
        folder: For logs and everything temporary.
        environment: For all of them: workers get their identity from it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._lines: dict[str, list[str]] = {}
        self._found: dict[tuple[str, str], tuple[int, list[re.Match[str]]]] = {}
        self._news = threading.Condition()

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one; its log is NAME.log, which goes on where an earlier one of the name has ended.

        What that one has said is forgotten here.
        """
        setpriv = shutil.which("setpriv")
        die_together = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        process = subprocess.Popen(
            [*die_together, *command],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._running[name] = process
        lines: list[str] = []
        with self._news:
            self._lines[name] = lines
            self._found = {key: found for key, found in self._found.items() if key[0] != name}
        listen = partial(self._listen, name, process, lines)
        threading.Thread(target=listen, name=f"log of {name}", daemon=True).start()

    def _listen(self, name: str, process: subprocess.Popen[bytes], lines: list[str]) -> None:
        assert process.stdout is not None
        with (self.folder / f"{name}.log").open("ab", buffering=0) as log, process.stdout:
            for line in process.stdout:
                log.write(line)
                with self._news:
                    lines.append(line.decode("utf-8", "replace").rstrip())
                    self._news.notify_all()
        process.wait()
        with self._news:
            self._news.notify_all()

    def said(self, name: str, pattern: str) -> list[re.Match[str]]:
        """Where the pattern is in what it has said so far, one match a line; only what is new is looked at."""
        with self._news:
            lines = self._lines[name]
            seen, found = self._found.get((name, pattern), (0, []))
            found = [*found, *(match for line in lines[seen:] if (match := re.search(pattern, line)))]
            self._found[name, pattern] = len(lines), found
            return found

    def wait_until(self, holds: Callable[[], bool], most_s: float) -> bool:
        """Look again whenever one of them says something, until it holds; whether it does in the end."""
        with self._news:
            return self._news.wait_for(holds, most_s)

    def wait(self, name: str, pattern: str, times: int = 1) -> re.Match[str]:
        """Return when it has said so many lines with the pattern: the last of them.

        Raises:
            RuntimeError: A process has ended, or time is up; with the end of its log.
        """
        found: list[re.Match[str]] = []

        def heard() -> bool:
            found[:] = self.said(name, pattern)
            return len(found) >= times or bool(self._ended())

        self.wait_until(heard, _PATIENCE_S)
        if len(found) >= times:
            return found[times - 1]
        culprit = next(iter(self._ended()), name)
        raise RuntimeError(f"{culprit} did not do its part\n" + "\n".join(self._lines[culprit][-40:]))

    def _ended(self) -> list[str]:
        return [name for name, process in self._running.items() if process.poll() is not None]

    def runs(self, name: str) -> bool:
        """Whether it was started, and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def is_running(self, name: str, pid: int) -> bool:
        """Whether it runs, as this process."""
        return self.runs(name) and self._running[name].pid == pid

    def kill(self, name: str) -> None:
        """SIGKILL for it and all that it has started; nobody misses it."""
        process = self._running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """The end of all."""
        for name in list(self._running):
            self.kill(name)


@dataclass(kw_only=True)
class Flink(JobServer):
    """A JobManager, two TaskManagers of two slots each, and a job server.

    One cluster serves every test of a run, one after the other; the fixture `flink` mends it before each.

    Attributes:
        rest: URL of the JobManager's REST interface.
    """

    rest: str
    processes: _Processes
    task_manager: Sequence[str]

    def kill_task_manager(self, number: int) -> None:
        """SIGKILL for TaskManager 1 or 2 and the workers that it has started, as when a machine goes."""
        self.processes.kill(f"taskmanager-{number}")

    def start_task_manager(self, number: int) -> None:
        """Start the one that was killed again; returns when the JobManager knows of it."""
        known = len(self.processes.said("jobmanager", _REGISTERED))
        self.processes.start(f"taskmanager-{number}", self.task_manager)
        self.processes.wait("jobmanager", _REGISTERED, known + 1)

    def task_manager_number(self, pid: int) -> int | None:
        """Which of the TaskManagers a process is; None if it is none."""
        found = (number for number in _TASK_MANAGERS if self.processes.is_running(f"taskmanager-{number}", pid))
        return next(found, None)

    def connected(self, number: int) -> set[str]:
        """The ids of the workers that have connected to a TaskManager since that was started: they can be used."""
        return {found[1] for found in self.processes.said(f"taskmanager-{number}", _CONNECTED)}

    def jobs(self) -> dict[str, str]:
        """Flink's ids of the jobs so far, and in what state each is: RUNNING, FINISHED, CANCELED, FAILED, ..."""
        return {job["jid"]: job["state"] for job in self._ask("GET", "/jobs/overview")["jobs"]}

    def mend(self) -> None:
        """Cancel what runs, and start what was killed."""
        for job, state in self.jobs().items():
            if state not in {"FINISHED", "CANCELED", "FAILED"}:
                self._ask("PATCH", f"/jobs/{job}?mode=cancel")
                self.processes.wait("jobmanager", rf"Job {job} reached terminal state")
        for number in _TASK_MANAGERS:
            if not self.processes.runs(f"taskmanager-{number}"):
                self.start_task_manager(number)

    def _ask(self, method: str, path: str) -> Any:
        answer = urllib3.request(method, f"{self.rest}{path}", timeout=30)
        assert answer.status < 300, answer.data
        return answer.json()


@contextmanager
def prism(folder: Path, environment: Mapping[str, str]) -> Iterator[JobServer]:
    """Prism as a job server, and not as the launcher starts it."""
    with closing(_Processes(folder, environment)) as processes:
        (port,) = _free_ports(1)
        processes.start("prism", [str(PRISM), f"--job_port={port}", "--serve_http=false"])
        processes.wait("prism", "Serving JobManagement")
        with closing(Listener(f"127.0.0.1:{port}")) as listener:
            yield JobServer(endpoint=listener.endpoint, listener=listener, logs=folder)


@contextmanager
def worker_pool(folder: Path, environment: Mapping[str, str]) -> Iterator[WorkerPool]:
    """The command that the package ships for one."""
    with closing(_Processes(folder, environment)) as processes:
        command = Path(sys.executable).with_name("beam-entra-worker")
        processes.start("pool", [str(command), "--worker_pool", "--port=0"])
        endpoint = processes.wait("pool", r"The worker pool is at (\S+);")[1]
        yield WorkerPool(endpoint=endpoint, log=folder / "pool.log")


@contextmanager
def flink(folder: Path, environment: Mapping[str, str]) -> Iterator[Flink]:
    """A cluster, for as long as the block."""
    with _cluster(folder, environment) as processes:
        rest, rpc = _free_ports(2)
        (folder / "flink-conf.yaml").write_text(_FLINK_CONF.format(rest=rest, rpc=rpc, folder=folder), "utf-8")
        java = [*_JAVA, f"-Djava.io.tmpdir={folder / 'tmp'}", f"-Dlog4j.configurationFile={folder}/log4j.properties"]
        server = [*java, "-cp", ":".join(map(str, [FLINK.job_server, *FLINK.home.glob("lib/log4j-*.jar")]))]
        java += ["-Xmx640m", "-cp", f"{FLINK.home}/lib/*"]
        runtime, conf = "org.apache.flink.runtime", ["--configDir", str(folder)]
        task_manager = [*java, f"{runtime}.taskexecutor.TaskManagerRunner", *conf]
        processes.start("jobmanager", [*java, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", *conf])
        for number in _TASK_MANAGERS:
            processes.start(f"taskmanager-{number}", task_manager)
        master = f"127.0.0.1:{rest}"
        with _job_server(processes, [*server, FLINK.driver, f"--flink-master={master}"]) as listener:
            processes.wait("jobmanager", _REGISTERED, len(_TASK_MANAGERS))
            yield Flink(
                endpoint=listener.endpoint,
                listener=listener,
                logs=folder,
                rest=f"http://{master}",
                processes=processes,
                task_manager=task_manager,
            )


@contextmanager
def spark(folder: Path, environment: Mapping[str, str]) -> Iterator[JobServer]:
    """A standalone master, two workers, and a job server, which is the driver."""
    settings = {"SPARK_HOME": str(SPARK.home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_SCALA_VERSION": "2.12"}
    with _cluster(folder, {**environment, **settings}) as processes:
        (port,) = _free_ports(1)
        master = f"spark://127.0.0.1:{port}"
        java = [*_JAVA, f"-Djava.io.tmpdir={folder / 'tmp'}", f"-Dlog4j2.configurationFile={folder}/log4j.properties"]
        deploy, ui = [*java, "-cp", f"{SPARK.home}/jars/*"], ["--host", "127.0.0.1", "--webui-port", "0"]
        processes.start("master", [*deploy, "org.apache.spark.deploy.master.Master", *ui, "--port", str(port)])
        for number in (1, 2):  # they try again until the master is there
            size = ["--cores", "2", "--memory", "2g", "--work-dir", str(folder / f"work-{number}")]
            processes.start(f"worker-{number}", [*deploy, "org.apache.spark.deploy.worker.Worker", *ui, *size, master])
        jars = SPARK.home / "jars"
        (slf4j,) = jars.glob("slf4j-api-*.jar")  # Spark's own, which fits its log4j
        first = f"{slf4j}:{SPARK.job_server}"  # before Spark's Guava, which is too old for Beam, in executors, too
        tuned = {
            "executor.memory": "1g",
            "executor.extraClassPath": first,
            "executor.extraJavaOptions": " ".join(_JAVA[1:]),
            "driver.host": "127.0.0.1",
        }
        driver = [*java, *(f"-Dspark.{name}={value}" for name, value in tuned.items())]
        driver += ["-cp", f"{first}:{jars}/*", SPARK.driver, f"--spark-master-url={master}"]
        with _job_server(processes, driver) as listener:
            processes.wait("master", "Registering worker", 2)
            yield JobServer(endpoint=listener.endpoint, listener=listener, logs=folder)


@contextmanager
def _job_server(processes: _Processes, command: list[str]) -> Iterator[Listener]:
    ports = ["--job-port=0", "--artifact-port=0", "--expansion-port=0"]
    processes.start("job-server", [*command, *ports, f"--artifacts-dir={processes.folder / 'artifacts'}"])
    with closing(Listener(processes.wait("job-server", r"JobService started on (\S+:\d+)")[1])) as listener:
        yield listener


@contextmanager
def _cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[_Processes]:
    (folder / "tmp").mkdir()
    (folder / "log4j.properties").write_text(_LOG4J, "utf-8")
    with closing(_Processes(folder, environment)) as processes:
        yield processes


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
