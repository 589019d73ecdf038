"""A worker process that a runner starts: what Beam's SDK container does at boot, without a container."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any

import grpc
from apache_beam.options import pipeline_options
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from apache_beam.runners.portability import artifact_service
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.launch.sampling import sample_often
from beam_entra.session.registry import end_pauses

__all__ = ["WorkerPool", "print_to_stderr", "run_worker"]

_COMMAND = "from beam_entra.cli.worker import main; main()"
_TIME_TO_CONNECT_S = 60.0
_TIME_TO_END_S = 10.0
_STAGED = "staged"  # sdk_worker_main looks for the pickled main session there
_PIP_REQUIREMENTS = "beam:artifact:role:pip_requirements_file:v1"
_OPTIONS_SAID = ("Pipeline_options:", "Discarding ")
_TO_INSTALL = ("requirements.txt", "extra_packages.txt", "workflow.tar.gz")


def run_worker(
    worker_id: str,
    *,
    provision_endpoint: str,
    logging_endpoint: str = "",
    artifact_endpoint: str = "",
    control_endpoint: str = "",
    semi_persist_dir: Path | None = None,
) -> None:
    """Serve one worker of a job until its runner ends it.

    1. Ask the provision service for the pipeline options, the artifacts and the endpoints; its endpoints come before
       those of the command line.
    2. Fetch the artifacts into a folder of this process alone, which goes with it.
    3. Run Beam's own harness in this process, under the job's options: they are in no file, no environment variable
       and no command line, and are not logged.

    What the pipeline imports has to be installed here already. A worker that cannot start answers every instruction
    with the error, until the runner hangs up, and raises it then: for one that just ends a runner may wait for ever.

    Args:
        worker_id: What the runner calls this worker.
        semi_persist_dir: Below it the folder is made; by default where temporary files go.

    Raises:
        ConfigError: The runner cannot be reached or gives no endpoint, or the job wants packages installed at start, or
            several workers in one container.
    """
    worker_id = worker_id.strip("'")  # Prism quotes it, as if for a shell
    sample_often()
    info = _provision(worker_id, provision_endpoint)
    control = info.control_endpoint.url or control_endpoint
    if not control:
        raise ConfigError(
            "the runner gave no control endpoint",
            Diagnosis(tried=f"start worker {worker_id}", hint="pass --control_endpoint HOST:PORT"),
        )
    with tempfile.TemporaryDirectory(prefix="beam-entra-worker-", dir=semi_persist_dir) as folder, ExitStack() as stack:
        environment = {
            "WORKER_ID": worker_id,
            "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
            "SEMI_PERSISTENT_DIRECTORY": folder,
            "CONTROL_API_SERVICE_DESCRIPTOR": _descriptor(control),
            "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        }
        if info.logging_endpoint.url or logging_endpoint:
            environment["LOGGING_API_SERVICE_DESCRIPTOR"] = _descriptor(info.logging_endpoint.url or logging_endpoint)
        if info.status_endpoint.url:
            environment["STATUS_API_SERVICE_DESCRIPTOR"] = _descriptor(info.status_endpoint.url)
        try:
            if info.sibling_worker_ids:
                raise ConfigError(
                    "the runner wants several workers in one container",
                    Diagnosis(tried=f"start worker {worker_id}", hint="--sdk_worker_parallelism=1, and more slots"),
                )
            if info.dependencies:
                _fetch(worker_id, info, info.artifact_endpoint.url or artifact_endpoint, Path(folder))
            harness = _make_harness(environment, stack)
        except Exception as error:
            _refuse(worker_id, control, error)
            raise
        try:
            harness.run()
        except BaseException:  # the runner is lost, or a signal has come: what is under way is for nobody
            end_pauses()
            raise


def _make_harness(environment: dict[str, str], stack: ExitStack) -> Any:
    hold_back = _OptionsHeldBack()
    for module in (sdk_worker_main, pipeline_options):
        logger = logging.getLogger(module.__name__)
        logger.addFilter(hold_back)
        stack.callback(logger.removeFilter, hold_back)
    log_handler, harness, _ = sdk_worker_main.create_harness(environment)
    if log_handler:
        stack.callback(log_handler.close)
    if harness._deferred_exception is not None:  # with which it would end at the first bundle, without an answer
        raise harness._deferred_exception
    return harness


def _refuse(worker_id: str, control: str, error: Exception) -> None:
    """Answer every instruction with the error, until the runner hangs up."""
    said = "".join(traceback.format_exception(error))
    answers: SimpleQueue[Any] = SimpleQueue()
    with grpc.insecure_channel(control) as channel, suppress(grpc.RpcError):
        stub = beam_fn_api_pb2_grpc.BeamFnControlStub(channel)
        try:
            for instruction in stub.Control(iter(answers.get, None), metadata=(("worker_id", worker_id),)):
                answers.put(
                    beam_fn_api_pb2.InstructionResponse(instruction_id=instruction.instruction_id, error=said)
                )
        finally:
            answers.put(None)


class _OptionsHeldBack(logging.Filter):
    """Drops the lines in which Beam logs pipeline options, all or those unknown: nobody knows what a user's hold."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_OPTIONS_SAID)


def _provision(worker_id: str, endpoint: str) -> Any:
    """What the runner has to say to this worker."""
    metadata = (("worker_id", worker_id),)
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        try:
            answer = stub.GetProvisionInfo(
                request, metadata=metadata, timeout=_TIME_TO_CONNECT_S, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise ConfigError(
                f"the runner's provision service did not answer: {error.code().name}",
                Diagnosis(tried=f"ask {endpoint} what worker {worker_id} is for", hint="see whether the job has ended"),
            ) from None
    return answer.info


def _fetch(worker_id: str, info: Any, endpoint: str, folder: Path) -> None:
    """Put the job's artifacts under their names into the folder."""
    if not endpoint:
        raise ConfigError(
            "the job has artifacts and the runner gave no endpoint to fetch them from",
            Diagnosis(tried=f"start worker {worker_id}", hint="pass --artifact_endpoint HOST:PORT"),
        )
    staged = folder / _STAGED
    staged.mkdir()
    to_install = sorted(
        _name(artifact) or artifact.role_urn
        for artifact in info.dependencies
        if artifact.role_urn == _PIP_REQUIREMENTS or _name(artifact) in _TO_INSTALL
    )
    if to_install:
        raise ConfigError(
            f"the job wants packages installed when a worker starts ({', '.join(to_install)}), which this worker"
            " does not do: it would run code that nobody pinned under the job's identity",
            Diagnosis(
                tried=f"start worker {worker_id}",
                hint="install them where the workers are, and launch without --requirements_file, --extra_package and"
                " --setup_file",
            ),
        )
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(
            grpc.intercept_channel(channel, _AsWorker(worker_id))
        )
        for fetched in artifact_service.resolve_artifacts(info.dependencies, service, str(staged)):
            payload = beam_runner_api_pb2.ArtifactFilePayload.FromString(fetched.type_payload)
            Path(payload.path).rename(staged / _name(fetched))


def _name(artifact: Any) -> str:
    """The name that an artifact is staged to; the last part alone, wherever the sender would like it to be."""
    role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
    return PurePosixPath(role.staged_name).name


class _AsWorker(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    """Says which worker asks; a runner that serves several jobs on one port tells them apart by it."""

    def __init__(self, worker_id: str) -> None:
        self._metadata = (("worker_id", worker_id),)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=self._metadata), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=self._metadata), request)


def _descriptor(url: str) -> str:
    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url)))


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]  # generated, untyped
    """Starts a worker process for each that a runner asks for: `--environment_type=EXTERNAL`.

    Who can reach its port can have code run under this machine's identity: the protocol has no authentication. So it
    listens on the loopback interface unless told otherwise.

    Args:
        host, port: Where to listen; port 0 takes a free one.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(thread_name_prefix="beam-entra-pool"))
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"{host}:{port}")
        self.address = f"{host}:{bound}"
        self._server.start()

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802  # Beam's name
        endpoints = {
            name: getattr(request, name).url
            for name in ("provision_endpoint", "logging_endpoint", "artifact_endpoint", "control_endpoint")
        }
        flags = [f"--{name}={url}" for name, url in endpoints.items() if url]
        command = [sys.executable, "-c", _COMMAND, f"--id={request.worker_id}", *flags]
        with self._lock:
            if request.worker_id in self._workers:
                return beam_fn_api_pb2.StartWorkerResponse(error=f"worker {request.worker_id} was started before")
            self._workers[request.worker_id] = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802  # likewise
        with self._lock:
            worker = self._workers.pop(request.worker_id, None)
        if worker is not None:
            _end(worker)
        return beam_fn_api_pb2.StopWorkerResponse()

    def wait(self) -> None:
        """Return when the pool is closed."""
        self._server.wait_for_termination()

    def close(self) -> None:
        """End the workers, and the pool."""
        self._server.stop(None)
        with self._lock:
            workers, self._workers = list(self._workers.values()), {}
        for worker in workers:
            _end(worker)


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    try:
        worker.wait(_TIME_TO_END_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def print_to_stderr() -> None:
    """Send what is printed to standard error: a runner may read standard output, or may never empty its pipe."""
    sys.stdout.flush()
    os.dup2(2, 1)
