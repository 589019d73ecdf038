"""Worker processes of DirectRunner: what becomes of a job, and of the others, when one of them goes."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_provision_api_pb2, beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandlerManager

import beam_entra.launch.direct
from beam_entra.errors import WorkerLost
from beam_entra.launch.direct import workers_at_work
from tests.launch.test_runners import RUNNERS

TIME_S = 90
HARNESS = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"


def leave(value: int) -> int:
    """What a library does that ends its process, as if all were well."""
    os._exit(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # threads of Beam's
def test_a_worker_process_that_leaves_ends_its_job(lake: Any) -> None:
    """It says nothing and fails nothing; who waits for its answer would wait for ever."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with lake.pipeline(*RUNNERS["several processes"]) as p:
                p | beam.Create([1]) | beam.Map(leave)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    running.join(TIME_S)
    assert [type(error) for error in errors] == [WorkerLost]
    assert "return code 0" in str(errors[0])
    assert lake.only_trail().verify().seal.outcome == "failed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_that_ends_while_a_worker_starts_has_an_end() -> None:
    """As when another worker is lost at once: who connects afterwards is told to go, and waited for no longer."""
    assert beam_entra.launch.direct.__name__ in sys.modules, "it is registered in place of Beam's"
    environment = beam_runner_api_pb2.Environment(urn=python_urns.SUBPROCESS_SDK, payload=HARNESS.encode())
    workers = WorkerHandlerManager(
        {"here": environment}, job_provision_info=ExtendedProvisionInfo(beam_provision_api_pb2.ProvisionInfo())
    )
    (worker,) = workers.get_worker_handlers("here", 1)
    ending = threading.Thread(target=workers.close_all, daemon=True)
    ending.start()  # a moment after the process, which has to import Beam before it can connect
    ending.join(TIME_S)
    assert not ending.is_alive()
    assert not worker.worker_thread.is_alive(), "the process has ended"


def test_worker_processes_are_known_until_they_have_ended(lake: Any) -> None:
    """Each to its job: what one still records would come behind the seal."""
    scope = lake.pipeline().scope
    info = beam_provision_api_pb2.ProvisionInfo()
    info.pipeline_options.update({"beam:option:entra_job_scope:v1": scope.to_json()})
    environment = beam_runner_api_pb2.Environment(urn=python_urns.SUBPROCESS_SDK, payload=HARNESS.encode())
    workers = WorkerHandlerManager({"here": environment}, job_provision_info=ExtendedProvisionInfo(info))
    workers.get_worker_handlers("here", 1)
    try:
        assert workers_at_work(scope.job) == 1
        assert workers_at_work("another") == 0
    finally:
        workers.close_all()
    assert workers_at_work(scope.job) == 0
