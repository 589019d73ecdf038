"""Worker processes of DirectRunner (`--direct_running_mode=multi_processing`) that die.

Beam starts them, and does not start one again. Nor does it tell: the job waits for an answer that never comes, or ends
with whatever a broken connection makes of it, as the moment will have it. Here somebody waits for each process, and has
the job end with `WorkerLost`.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    BeamFnControlServicer,
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker

from beam_entra.errors import Diagnosis, WorkerLost
from beam_entra.session import JobScope

__all__ = ["lost_worker", "workers_at_work"]

_SCOPE = "beam:option:entra_job_scope:v1"
_AGAIN_S = 0.2
_LOST: dict[str, WorkerLost] = {}
_AT_WORK: dict[object, str | None] = {}  # to the job of each


def lost_worker(job: str) -> WorkerLost | None:
    """What became of the job's workers, if one of them died while it ran here; told once."""
    return _LOST.pop(job, None)


def workers_at_work(job: str) -> int:
    """How many worker processes of the job have not ended. None has, once its launcher has left it without a hurry."""
    return list(_AT_WORK.values()).count(job)


@WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
class _WatchedWorkerHandler(SubprocessSdkWorkerHandler):  # type: ignore[misc]  # Beam's is untyped
    """Beam's own, whose process somebody waits for. Registered in its place, as Beam has runners do it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._closing = threading.Event()
        self._lost = False

    def start_worker(self) -> None:
        self.worker = SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(target=self._watch, name="run_worker")
        self.worker_thread.start()

    def _watch(self) -> None:
        ended = "Worker subprocess exited with return code 0"
        _AT_WORK[self] = self._job()
        try:
            self.worker.run()
        except Exception as failure:  # noqa: BLE001 - Beam's, with the exit code; or no process could be started
            ended = str(failure)
        finally:
            del _AT_WORK[self]
        if not self._closing.is_set():  # what it does when the job is over anyway is no cause of anything
            self._end_job(ended)

    def _end_job(self, ended: str) -> None:
        """Have whoever waits for the worker, or will, wait no longer."""
        self._lost = True
        lost = WorkerLost(
            f"a worker process of the job died: {ended}",
            Diagnosis(
                hint="see what killed it (137 and -9 are SIGKILL, as by a system without memory), and launch the job"
                " again: DirectRunner does not start a worker twice, and bundles that ended well are not kept"
            ),
        )
        job = self._job()
        if job:
            _LOST.setdefault(job, lost)
        self.data_conn._exception = lost
        while True:
            for answer in list(self.control_conn._futures_by_id.values()):
                answer.abort(lost)
            with suppress(queue.Empty):  # nobody takes it, and who sends waits when it is full
                while True:
                    self.data_conn._to_send.get_nowait()
            if self._closing.wait(_AGAIN_S):
                return

    def _job(self) -> str | None:
        scope = dict(self.provision_info.provision_info.pipeline_options).get(_SCOPE)
        return JobScope.from_json(scope).job if scope else None

    def close(self) -> None:
        self._closing.set()
        self.control_conn.push(BeamFnControlServicer._DONE_MARKER)  # Beam tells no worker that is yet to connect
        if not self._lost:
            super().close()
        else:
            self.control_conn.close()
            self.worker_thread.join()
