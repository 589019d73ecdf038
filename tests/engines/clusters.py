"""A Flink cluster, a Spark cluster and their job servers, as processes of the tests' own, and a listener in front.

Each process leads a group of its own, which is killed as a whole: a TaskManager's workers go with it. Where there is
`setpriv`, they also die with the test run itself, however that ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.engines.fetch import FLINK, SPARK

__all__ = ["JobServer", "Listener", "flink", "spark"]

_TIME_TO_START_S = 60
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
# Two TaskManagers, a JobManager and a job server take about 4 GiB.
_FLINK_CONF = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc}
jobmanager.memory.process.size: 1g
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {rest}
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
        endpoint: HOST:PORT, of the listener.
        listener: Keeps what jobs were submitted.
        logs: What the processes wrote, workers too.
    """

    endpoint: str
    listener: Listener
    logs: Path

    def said(self) -> str:
        """Everything that is in the logs."""
        found = [*self.logs.glob("*.log"), *self.logs.glob("work-*/*/*/std*")]  # Spark's executors have theirs there
        return "\n".join(path.read_text("utf-8", "replace") for path in found)


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


@dataclass(kw_only=True)
class _Processes:
    """What a cluster is made of.

    Attributes:
        folder: For logs and everything temporary.
        environment: For all of them: workers get their identity from it.
    """

    folder: Path
    environment: Mapping[str, str]
    stack: ExitStack
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str]) -> Path:
        """Start one; where its log is."""
        log = self.folder / f"{name}.log"
        setpriv = shutil.which("setpriv")
        die_together = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*die_together, *command],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started[name] = process
        self.stack.callback(_kill_group, process)
        return log

    def wait(self, name: str, ready: Callable[[], Any]) -> Any:
        """What `ready` gives once it is something; fails with a log when a process ends or time is up."""
        end = time.monotonic() + _TIME_TO_START_S
        while time.monotonic() < end and all(process.poll() is None for process in self.started.values()):
            found = ready()
            if found:
                return found
            time.sleep(0.1)
        name = next((each for each, process in self.started.items() if process.poll() is not None), name)
        log = (self.folder / f"{name}.log").read_text("utf-8", "replace")
        raise RuntimeError(f"{name} did not come up\n{log[-4000:]}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def flink(folder: Path, environment: Mapping[str, str]) -> Iterator[JobServer]:
    """A JobManager, two TaskManagers of two slots each, and a job server."""
    with _processes(folder, environment) as processes:
        rest, rpc = _free_ports(2)
        (folder / "tmp").mkdir()
        (folder / "flink-conf.yaml").write_text(_FLINK_CONF.format(rest=rest, rpc=rpc, folder=folder), "utf-8")
        (folder / "log4j.properties").write_text(_LOG4J, "utf-8")
        java = [*_JAVA, f"-Djava.io.tmpdir={folder / 'tmp'}", f"-Dlog4j.configurationFile={folder}/log4j.properties"]
        server = [*java, "-cp", ":".join(map(str, [FLINK.job_server, *FLINK.home.glob("lib/log4j-*.jar")]))]
        java += ["-Xmx640m", "-cp", f"{FLINK.home}/lib/*"]
        runtime, conf = "org.apache.flink.runtime", ["--configDir", str(folder)]
        processes.start("jobmanager", [*java, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", *conf])
        for number in (1, 2):
            processes.start(f"taskmanager-{number}", [*java, f"{runtime}.taskexecutor.TaskManagerRunner", *conf])
        processes.wait("jobmanager", lambda: _slots(rest) == 4)
        yield _job_server(processes, [*server, FLINK.driver, f"--flink-master=127.0.0.1:{rest}"])


@contextmanager
def spark(folder: Path, environment: Mapping[str, str]) -> Iterator[JobServer]:
    """A standalone master, two workers, and a job server, which is the driver."""
    settings = {"SPARK_HOME": str(SPARK.home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_SCALA_VERSION": "2.12"}
    with _processes(folder, {**environment, **settings}) as processes:
        (port,) = _free_ports(1)
        (folder / "tmp").mkdir()
        (folder / "log4j.properties").write_text(_LOG4J, "utf-8")
        master = f"spark://127.0.0.1:{port}"
        java = [*_JAVA, f"-Djava.io.tmpdir={folder / 'tmp'}", f"-Dlog4j2.configurationFile={folder}/log4j.properties"]
        deploy, ui = [*java, "-cp", f"{SPARK.home}/jars/*"], ["--host", "127.0.0.1", "--webui-port", "0"]
        log = processes.start("master", [*deploy, "org.apache.spark.deploy.master.Master", *ui, "--port", str(port)])
        processes.wait("master", lambda: "I have been elected leader" in log.read_text("utf-8"))
        for number in (1, 2):
            size = ["--cores", "2", "--memory", "2g", "--work-dir", str(folder / f"work-{number}")]
            processes.start(f"worker-{number}", [*deploy, "org.apache.spark.deploy.worker.Worker", *ui, *size, master])
        processes.wait("master", lambda: log.read_text("utf-8").count("Registering worker") == 2)
        jars = SPARK.home / "jars"
        (slf4j,) = jars.glob("slf4j-api-*.jar")  # Spark's own, which fits its log4j
        first = f"{slf4j}:{SPARK.job_server}"  # before Spark's Guava, which is too old for Beam, in executors, too
        tuned = {
            "executor.memory": "1g",
            "executor.extraClassPath": first,
            "executor.extraJavaOptions": " ".join(_OPENING),
            "driver.host": "127.0.0.1",
        }
        driver = [*java, *(f"-Dspark.{name}={value}" for name, value in tuned.items())]
        driver += ["-cp", f"{first}:{jars}/*", SPARK.driver, f"--spark-master-url={master}"]
        yield _job_server(processes, driver)


def _job_server(processes: _Processes, command: list[str]) -> JobServer:
    folder = processes.folder
    ports = ["--job-port=0", "--artifact-port=0", "--expansion-port=0", f"--artifacts-dir={folder / 'artifacts'}"]
    log = processes.start("job-server", [*command, *ports])
    found = processes.wait(
        "job-server", lambda: re.search(r"JobService started on (\S+:\d+)", log.read_text("utf-8", "replace"))
    )
    listener = Listener(found[1])
    processes.stack.callback(listener.close)
    return JobServer(endpoint=listener.endpoint, listener=listener, logs=folder)


@contextmanager
def _processes(folder: Path, environment: Mapping[str, str]) -> Iterator[_Processes]:
    with ExitStack() as stack:
        yield _Processes(folder=folder, environment=environment, stack=stack)


def _slots(rest: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{rest}/overview", timeout=5) as answer:
            return int(json.load(answer)["slots-available"])
    except (OSError, KeyError, ValueError):
        return 0


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
