"""Workers and launches that die at any moment: in the end each record is there once, and nothing of the dead is seen.

The runner here is a stand-in that does what a runner promises: it keeps the outputs of a bundle that has finished,
runs a bundle that has not again in a new process, and gives the commit step the outputs of those that have. The
processes run the real DoFns and die by SIGKILL: at the moment when the n-th request of the whole write reaches the
proxy, before Storage sees it or when Storage has done it, for every n in turn.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from beam_entra import JsonLines, Parquet
from beam_entra.clock import utc_now
from beam_entra.io.formats import BlobFormat
from beam_entra.io.sink import WriteSettings
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session, seal_job

SERVER = Path(__file__).with_name("fork_server.py")
BUNDLES = [[{"id": at} for at in range(20)], [{"id": at} for at in range(20, 33)]]


class Attempts:
    """The other end of `fork_server.py`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, str(SERVER), str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment
            )
        self._lines = self._ours.makefile("rw")
        self._folder = folder

    def start(self, **request: Any) -> tuple[int, Path]:
        """Start an attempt; its process id, and where its outputs will be."""
        outputs = self._folder / uuid.uuid4().hex
        print(json.dumps({**request, "outputs": str(outputs)}), file=self._lines, flush=True)
        return self._answer()["pid"], outputs

    def bundle(self, step: str, scope: JobScope, settings: WriteSettings, elements: list[Any]) -> tuple[int, Path]:
        """Start an attempt of a bundle."""
        inputs = self._folder / uuid.uuid4().hex
        inputs.write_bytes(pickle.dumps((scope, settings, elements)))
        return self.start(step=step, inputs=str(inputs))

    def status(self) -> int:
        """How the attempt ended: its exit status, or the negative number of the signal that killed it."""
        return self._answer()["status"]

    def close(self) -> None:
        """End the server."""
        self._lines.close()
        self._ours.close()
        self._server.wait(10)

    def _answer(self) -> dict[str, int]:
        answer: dict[str, int] = json.loads(self._lines.readline())
        return answer


@pytest.fixture(scope="module")
def environment(beam_entra_cloud: Any) -> dict[str, str]:
    """What the processes need to import the package."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Attempts]:
    """A fork server for this file."""
    made = Attempts(tmp_path_factory.mktemp("attempts"), environment)
    yield made
    made.close()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is written, and how it is read back."""

    name: str
    format: BlobFormat
    shards: int | None
    read: Callable[[bytes], list[Any]]


KINDS = {
    "records of all bundles": Kind(
        name="records of all bundles",
        format=JsonLines(),
        shards=2,
        read=lambda content: [json.loads(line) for line in content.splitlines()],
    ),
    "a file a bundle": Kind(
        name="a file a bundle",
        format=Parquet(schema=pa.schema([("id", pa.int64())])),
        shards=None,
        read=lambda content: parquet.read_table(io.BytesIO(content)).to_pylist(),
    ),
}


class Runner:
    """The stand-in for a runner, with one kill: at the request that the proxy holds."""

    def __init__(self, lake: Any, attempts: Attempts, number: int, kind: Kind) -> None:
        self.lake, self.attempts, self.kind = lake, attempts, kind
        self.prefix = f"out/{number}/"
        self.scope = JobScope.launch(lake.manifest(), now=utc_now())
        self.settings = WriteSettings(
            prefix=BlobPath.parse(lake.curated.url(self.prefix)),
            format=kind.format,
            shards=kind.shards,
            compression="none",
            overwrite=False,
            block_bytes=80,
            sink=uuid.uuid4().hex,
        )
        self.held: Any = None
        self.killed_in = ""

    def write(self) -> None:
        """Stage each bundle and commit, each step again if its process died."""
        staged = [output for bundle in BUNDLES for output in self.step("stage", bundle)]
        if self.killed_in != "commit":
            assert self.visible() == []
        assert len(self.step("commit", staged)) == 2

    def step(self, name: str, elements: list[Any]) -> list[Any]:
        """The outputs of one bundle; a second attempt if the first one is killed."""
        for _ in range(2):
            pid, outputs = self.attempts.bundle(name, self.scope, self.settings, elements)
            status = self.kill_or_wait(pid)
            if status == 0:
                return pickle.loads(outputs.read_bytes())  # type: ignore[no-any-return]  # noqa: S301  # the test's own
            assert status == -signal.SIGKILL, Path(f"{outputs}.log").read_text(encoding="utf-8")
            assert not outputs.exists(), "a runner keeps the outputs of finished bundles alone"
            self.killed_in = name
            if name == "stage":
                assert self.visible() == []
        raise AssertionError("the second attempt was killed, too")

    def kill_or_wait(self, pid: int) -> int:
        """Kill the process if its requests reach the one that is held; how it ended."""
        if self.held is not None and not self.killed_in:
            watcher = KillOnArrival(pid, self.held)
            status = self.attempts.status()
            watcher.stop()
            assert status != 0 or not self.held.hits, "it ended although a request of it was held"
            return status
        return self.attempts.status()

    def visible(self) -> list[str]:
        """What can be seen below the prefix."""
        return [name.removeprefix(self.prefix) for name in self.lake.curated.list(self.prefix)]

    def check(self) -> None:
        """Each record once, `_SUCCESS` true, nothing else below the prefix."""
        success = self.lake.success(self.prefix)
        marks, parts = self.visible()[:2], self.visible()[2:]
        assert marks == ["_COMMITTING", "_SUCCESS"]
        assert len(parts) == 2
        if self.kind.shards:
            assert parts == [f"part-{at:05d}-of-00002.jsonl" for at in range(2)]
        contents = [self.lake.curated.download(self.prefix + name) for name in parts]
        assert sorted(value["id"] for content in contents for value in self.kind.read(content)) == list(range(33))
        assert success["rows"] == 33
        etags = {BlobPath.parse(blob["path"]).name: blob["etag"] for blob in success["blobs"]}
        assert etags == {self.prefix + name: self.lake.etag(self.lake.curated, self.prefix + name) for name in parts}

    def seal(self) -> None:
        """As the launcher does in the end; segments of dead processes are part of a sound trail."""
        session = Session(self.scope)
        try:
            seal_job(session, outcome="ok", error=None)
        finally:
            session.close()
        self.lake.trail(self.scope.job).verify()


class KillOnArrival:
    """A thread that kills a process when a request of it is held."""

    def __init__(self, pid: int, held: Any) -> None:
        self._pid, self._held = pid, held
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self._held.gate.wait_for_arrivals(timeout_s=0.02)
            except TimeoutError:
                continue
            with suppress(ProcessLookupError):  # the test sees that it ended by itself
                os.kill(self._pid, signal.SIGKILL)
            return

    def stop(self) -> None:
        """When the process has ended."""
        self._over.set()
        self._thread.join()


def let_land(lake: Any, held: Any) -> None:
    """Let the request of the dead process through, and wait until Storage has answered it."""
    held.gate.open()
    lake.cloud.proxy.wait_for(lambda seen: any(exchange.fault == "hold" for exchange in seen))
    lake.cloud.reset()


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a process dies."""

    name: str
    kind: str = "records of all bundles"
    done: bool
    everywhere: bool
    at_least: int


MOMENTS = [
    Moment(name="when Storage has done it, at every request", done=True, everywhere=True, at_least=25),
    Moment(name="before Storage sees it, at every write, which lands later", done=False, everywhere=False, at_least=10),
    Moment(
        name="a file a bundle, when Storage has done it, at every write",
        kind="a file a bundle",
        done=True,
        everywhere=False,
        at_least=10,
    ),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_a_write_survives_a_kill_at_any_of_its_requests(lake: Any, attempts: Attempts, moment: Moment) -> None:
    """For every request of staging, committing and auditing in turn; what was held lands after the retry."""
    killed: list[str] = []
    containers = {lake.curated.name, lake.audit.name, ""} if moment.everywhere else {lake.curated.name}
    for nth in range(200):
        runner = Runner(lake, attempts, nth, KINDS[moment.kind])
        runner.held = lake.cloud.proxy.hold(
            answer=moment.done,
            times=1,
            skip=nth,
            where=lambda request: request.container in containers,
        )
        runner.write()
        if not runner.killed_in:
            runner.check()
            break
        killed.append(runner.killed_in)
        let_land(lake, runner.held)
        runner.check()
        if nth % 8 == 0:
            runner.seal()
    assert len(killed) >= moment.at_least
    assert set(killed) == {"stage", "commit"}


def test_a_launch_that_died_can_be_repeated_until_its_commit_began(lake: Any, attempts: Attempts) -> None:
    """The same command again, a new job: it does the work, or is refused with a pointer to what has begun."""
    lake.upload_json("in/a.jsonl", [{"id": at} for at in range(40)])
    manifest = lake.write_manifest(write=[lake.curated.url("out/")])
    ends: list[str] = []
    for nth in range(50):
        prefix = f"out/{nth}/"
        command = [
            f"--input={lake.raw.url('in/*.jsonl')}",
            f"--output={lake.curated.url(prefix)}",
            "--shards=2",
            "--block_bytes=1000",
            "--runner=FnApiRunner",
            f"--access_manifest={manifest}",
            f"--access_endpoints={lake.cloud.endpoints_file}",
        ]
        held = lake.cloud.proxy.hold(
            answer=True, times=1, skip=nth, where=lambda request: request.container == lake.curated.name
        )
        pid, _ = attempts.start(launch=command)
        watcher = KillOnArrival(pid, held)
        status = attempts.status()
        watcher.stop()
        if not held.hits:
            assert status == 0
            break
        assert status == -signal.SIGKILL
        let_land(lake, held)
        begun = f"{prefix}_COMMITTING" in lake.curated.list(prefix)
        assert begun or lake.curated.list(prefix) == []
        before = {name: lake.etag(lake.curated, name) for name in lake.curated.list(prefix)}
        _, outputs = attempts.start(launch=command)
        status = attempts.status()
        log = Path(f"{outputs}.log").read_text(encoding="utf-8")
        ids = sorted(value["id"] for value in lake.written(prefix))
        if begun:
            ends.append("refused")
            assert status == 1, log
            assert "BlobExists: a commit under" in log
            assert lake.curated.url(f"{prefix}_COMMITTING") in log
            assert {name: lake.etag(lake.curated, name) for name in lake.curated.list(prefix)} == before
            assert len(set(ids)) == len(ids), "no record is doubled"
        else:
            ends.append("done again")
            assert status == 0, log
            assert ids == list(range(40))
            assert lake.success(prefix)["rows"] == 40
    assert ends == sorted(ends), "before the commit began it is done again, and never after"
    assert ends.count("refused") == 5, "the marker, two parts, and what _SUCCESS takes"
    assert ends.count("done again") >= 2
