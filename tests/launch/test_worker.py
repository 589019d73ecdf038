"""The worker that runners start: what it asks for, what it refuses, and what it never says."""

from __future__ import annotations

import ipaddress
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from apache_beam.options import pipeline_options
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.statesampler import DEFAULT_SAMPLING_PERIOD_MS, StateSampler
from google.protobuf import struct_pb2

from beam_entra.cli.worker import worker
from beam_entra.errors import ConfigError, find_rendered_error
from beam_entra.launch.sampling import LONGEST_MS
from beam_entra.launch.worker import WorkerPool, run_worker
from beam_entra.session import close_session

MARK = "what-nobody-may-log"
ROOT = Path(__file__).parents[2]


class Runner(
    beam_provision_api_pb2_grpc.ProvisionServiceServicer,
    beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceServicer,
    beam_fn_api_pb2_grpc.BeamFnControlServicer,
    beam_fn_api_pb2_grpc.BeamFnLoggingServicer,
):
    """As much of a runner as a worker meets at its start: it gives the instructions that it has, and hangs up."""

    def __init__(
        self, *, look: Callable[[], object] = lambda: None, instructions: tuple[str, ...] = (), **info: Any
    ) -> None:
        self._look = look
        self._instructions = instructions
        self.answered: dict[str, str] = {}
        self.asked: list[str] = []
        self.connected: list[str] = []
        self.logged: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(self, self._server)
        beam_artifact_api_pb2_grpc.add_ArtifactRetrievalServiceServicer_to_server(self, self._server)
        beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(self, self._server)
        beam_fn_api_pb2_grpc.add_BeamFnLoggingServicer_to_server(self, self._server)
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.info = beam_provision_api_pb2.ProvisionInfo(**info)
        self._server.start()

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:  # noqa: N802  # Beam's name
        self.asked.append(dict(context.invocation_metadata())["worker_id"])
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.info)

    def Control(self, responses: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # likewise
        self.connected.append(dict(context.invocation_metadata())["worker_id"])
        self._look()
        for each in self._instructions:
            yield beam_fn_api_pb2.InstructionRequest(
                instruction_id=each, process_bundle=beam_fn_api_pb2.ProcessBundleRequest()
            )
            answer = next(responses)
            self.answered[answer.instruction_id] = answer.error

    def ResolveArtifacts(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        return beam_artifact_api_pb2.ResolveArtifactsResponse(replacements=request.artifacts)

    def GetArtifact(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # likewise
        yield beam_artifact_api_pb2.GetArtifactResponse(data=b"content")

    def Logging(self, batches: Any, context: Any) -> Iterator[Any]:  # noqa: N802  # likewise
        for batch in batches:
            self.logged += [entry.message for entry in batch.log_entries]
        yield from ()

    def close(self) -> None:
        """Hang up."""
        self._server.stop(None).wait()


@pytest.fixture
def runner() -> Iterator[Callable[..., Runner]]:
    """Makes runners."""
    made: list[Runner] = []

    def make(**info: Any) -> Runner:
        made.append(Runner(**info))
        return made[-1]

    yield make
    for each in made:
        each.close()


def options(**values: Any) -> struct_pb2.Struct:
    """Pipeline options as runners send them."""
    struct = struct_pb2.Struct()
    struct.update({f"beam:option:{name}:v1": value for name, value in values.items()})
    return struct


def artifact(name: str) -> Any:
    """An artifact that is staged under a name."""
    role = beam_runner_api_pb2.ArtifactStagingToRolePayload(staged_name=name)
    return beam_runner_api_pb2.ArtifactInformation(
        role_urn="beam:artifact:role:staging_to:v1", role_payload=role.SerializeToString()
    )


def start(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a runner does, until it ends."""
    command = [sys.executable, "-c", "from beam_entra.cli.worker import main; main()", *flags]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60, check=False)


def test_a_worker_serves_its_runner_and_logs_no_options(runner: Callable[..., Runner]) -> None:
    """It asks under its id, connects where it is told to, imports the plugins, and neither prints nor sends options."""
    made = runner(
        pipeline_options=options(beam_plugins=["beam_entra.io.filesystem", "this"], job_name=MARK, of_the_users=MARK)
    )
    flags = [f"--{name}_endpoint={made.endpoint}" for name in ("provision", "control", "logging", "artifact")]
    ended = start("--id='worker-1'", *flags, "--of_a_later_version=1")
    assert made.asked == ["worker-1"], "Prism quotes the id"
    assert made.connected == ["worker-1"]
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout, "Namespaces are" in ended.stderr) == ("", True), "a runner may never read what it prints"
    assert made.logged, "its log goes to the runner"
    assert not [line for line in [*made.logged, *ended.stderr.splitlines()] if MARK in line]


def test_the_provision_services_endpoints_come_first(runner: Callable[..., Runner]) -> None:
    """As in Beam's own containers."""
    made = runner()
    made.info.control_endpoint.CopyFrom(endpoints_pb2.ApiServiceDescriptor(url=made.endpoint))
    ended = start("--id=1", f"--provision_endpoint={made.endpoint}", "--control_endpoint=127.0.0.1:1")
    assert ended.returncode == 0, ended.stderr
    assert made.connected == ["1"]


def test_artifacts_stay_in_a_folder_that_goes_with_the_worker(runner: Callable[..., Runner], tmp_path: Path) -> None:
    """Whatever the sender would like them to be called."""
    seen: list[Path] = []
    made = runner(
        dependencies=[artifact("orders.txt"), artifact("../../above.txt"), artifact(str(tmp_path / "elsewhere.txt"))],
        look=lambda: seen.extend(path.relative_to(tmp_path) for path in tmp_path.rglob("*.txt")),
    )
    flags = [f"--{name}_endpoint={made.endpoint}" for name in ("provision", "control", "artifact")]
    ended = start("--id=1", *flags, f"--semi_persist_dir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in seen} == {"orders.txt", "above.txt", "elsewhere.txt"}
    (folder,) = {path.parent for path in seen}
    assert (folder.name, len(folder.parts)) == ("staged", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["requirements.txt", "workflow.tar.gz", "extra_packages.txt"])
def test_nothing_is_installed_when_a_worker_starts(runner: Callable[..., Runner], name: str) -> None:
    """Code that nobody pinned would run as the job. The runner is told why it gets no work done."""
    made = runner(dependencies=[artifact(name)], instructions=("a", "b"))
    with pytest.raises(ConfigError, match="wants packages installed") as caught:
        run_worker(
            "1", provision_endpoint=made.endpoint, artifact_endpoint=made.endpoint, control_endpoint=made.endpoint
        )
    assert name in str(caught.value)
    assert made.connected == ["1"]
    assert list(made.answered) == ["a", "b"]
    for answer in made.answered.values():
        assert str(find_rendered_error(answer)) == str(caught.value)


def test_a_main_session_that_cannot_be_loaded_is_told(runner: Callable[..., Runner]) -> None:
    """`--save_main_session` where the worker lacks a module: the answer says so, and what to look at."""
    made = runner(dependencies=[artifact("pickled_main_session")], instructions=("a",))
    flags = [f"--{name}_endpoint={made.endpoint}" for name in ("provision", "control", "artifact")]
    ended = start("--id=1", *flags)
    assert ended.returncode == 1
    assert "Could not load main session" in made.answered["a"]


def test_a_runner_that_is_gone_is_not_told(runner: Callable[..., Runner]) -> None:
    """The worker ends with the error that it would have told."""
    made = runner(sibling_worker_ids=["2"])
    with pytest.raises(ConfigError, match="several workers"):
        run_worker("1", provision_endpoint=made.endpoint, control_endpoint="127.0.0.1:1")


def test_a_worker_without_a_runner_says_so() -> None:
    """One line, with what it tried; and no traceback."""
    something_else = WorkerPool()
    try:
        ended = start("--id=1", f"--provision_endpoint={something_else.address}")
    finally:
        something_else.close()
    assert ended.returncode == 1
    assert ended.stderr.count("ConfigError: ") == 1
    assert "Traceback" not in ended.stderr


def test_several_workers_in_one_container_are_refused(runner: Callable[..., Runner]) -> None:
    """One process is one worker; the error names the flag that asks for more."""
    made = runner(sibling_worker_ids=["2"], instructions=("a",))
    with pytest.raises(ConfigError, match="several workers") as caught:
        run_worker("1", provision_endpoint=made.endpoint, control_endpoint=made.endpoint)
    assert "--sdk_worker_parallelism=1" in caught.value.hint
    assert "--sdk_worker_parallelism=1" in made.answered["a"]


def test_its_bundles_do_not_wait_long_for_beams_sampling_thread(
    runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so before there is a bundle; here there is none."""
    monkeypatch.setattr(StateSampler.__init__, "__defaults__", (DEFAULT_SAMPLING_PERIOD_MS,))
    made = runner(sibling_worker_ids=["2"])
    with pytest.raises(ConfigError, match="several workers"):
        run_worker("1", provision_endpoint=made.endpoint, control_endpoint=made.endpoint)
    assert StateSampler.__init__.__defaults__ == (LONGEST_MS,)


def test_a_runner_that_is_lost_has_no_bundle_wait_for_storage(runner: Callable[..., Runner], lake: Any) -> None:
    """What it does is for nobody any more: it ends instead of pausing, so that the trail can be sealed soon."""

    def hang_up() -> None:
        raise ConnectionAbortedError

    made = runner(pipeline_options=options(), look=hang_up)
    session = lake.pipeline().session
    try:
        with pytest.raises(grpc.RpcError):
            run_worker("worker-1", provision_endpoint=made.endpoint, control_endpoint=made.endpoint)
        started = time.monotonic()
        assert session._rest(60)
        assert time.monotonic() - started < 30
    finally:
        close_session(session.scope.job)


def test_a_worker_needs_an_id() -> None:
    """Who starts it by hand is told what a runner would pass."""
    ended = start()
    assert ended.returncode == 2
    assert "--provision_endpoint" in ended.stderr


def test_beam_still_logs_its_options_where_they_are_held_back() -> None:
    """The lines that are dropped are those that Beam has: where it has others, this test says so."""
    source = Path(sdk_worker_main.__file__).read_text(encoding="utf-8")
    assert source.count("get_all_options(") == 1
    assert "'Pipeline_options: %s'" in source
    parsing = Path(pipeline_options.__file__).read_text(encoding="utf-8")
    for said in ("Discarding unparseable args: %s", "Discarding invalid overrides: %s"):
        assert f'"{said}"' in parsing
    assert logging.getLogger(sdk_worker_main.__name__).filters == []
    assert logging.getLogger(pipeline_options.__name__).filters == []


def test_a_pool_starts_and_ends_workers(runner: Callable[..., Runner]) -> None:
    """Each as a process of its own; the pool listens on the loopback interface."""
    made = runner()
    pool = WorkerPool()
    try:
        assert pool.address.startswith("127.0.0.1:")
        with grpc.insecure_channel(pool.address) as channel:
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            endpoint = endpoints_pb2.ApiServiceDescriptor(url=made.endpoint)
            request = beam_fn_api_pb2.StartWorkerRequest(
                worker_id="a", control_endpoint=endpoint, provision_endpoint=endpoint
            )
            assert stub.StartWorker(request).error == ""
            assert "before" in stub.StartWorker(request).error
            stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="a"))
            assert stub.StartWorker(request).error == "", "it has ended, so it may be started again"
    finally:
        pool.close()


def test_a_pool_is_on_the_loopback_interface_unless_told() -> None:
    """Of the command, too: the protocol has no authentication."""
    (host,) = [each.default for each in worker.params if each.name == "host"]
    assert ipaddress.ip_address(host).is_loopback
