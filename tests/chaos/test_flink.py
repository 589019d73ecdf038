"""Kills on a Flink cluster: it starts the job over, and in the end each order is there once.

The first kills are those that every run has, one at each moment. All others are at random. The seed is printed:
CHAOS_SEED=... repeats them, as far as a cluster repeats anything; CHAOS_KILLS says how many. Those count that were
struck in jobs that recovered; the others come again in the next job. Restarts of Storage come besides.

Beam's Flink runner does not recover from everything: a task that is cancelled while its worker starts leaves its
TaskManager such that the next worker there that dies is kept for the job (docs/runners.md). So only the last strike at
a job comes while workers start; the others wait until none does. A job that is given up all the same is launched again.
"""

from __future__ import annotations

import itertools
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from beam_entra.testing.proxy import StorageFault
from tests.chaos.job import Job, check_output, check_trail
from tests.chaos.strikes import Storm, Strike, at_random, end, parent_of
from tests.engines.clusters import Flink
from tests.engines.plugin import Boot
from tests.io.conftest import Lake

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", secrets.randbelow(1_000_000)))
KILLS_A_JOB = 4
GIVEN_UP_AT_MOST = 1 + KILLS // 50
KEPT_DEAD = "CANCELLED"  # what a job is given up with when a dead worker is kept for it
CALM_S = 60
TIME_S = 900  # a busy machine takes half a minute for each kill
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(KILLS * 90 + 600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # threads of Beam's
]

# The kernel kills what was started by a thread that ends, which those of a proxy do: see clusters.py on `setpriv`.
STARTER = ThreadPoolExecutor(1)
FIRST = [
    ("worker", "read"),
    ("worker", "stage"),
    ("worker", "staged"),
    ("worker", "commit"),
    ("task manager", "stage"),
    ("machine", "commit"),
]
THEN = ["worker"] * 5 + ["other worker"] * 2 + ["task manager", "machine"]


def flink_flags(flink: Flink, boot: Boot) -> tuple[str, ...]:
    """The runner's flags."""
    return (
        "--runner=FlinkRunner",
        f"--job_endpoint={flink.endpoint}",
        "--parallelism=4",
        "--environment_type=PROCESS",
        f"--environment_config={boot.config}",
    )


class Blows:
    """What can be done to the cluster under a job, each known by the process that sent a request."""

    def __init__(self, flink: Flink, boot: Boot) -> None:
        self._flink, self._boot = flink, boot

    def calm(self) -> None:
        """Wait until no TaskManager has a worker that is only starting, but not for ever."""
        self._flink.processes.wait_until(lambda: not any(self._starting()), CALM_S)

    def _starting(self) -> Iterator[int]:
        names = self._boot.workers()
        return (pid for pid, number in self._workers() if names[pid] not in self._flink.connected(number))

    def _workers(self) -> Iterator[tuple[int, int]]:
        """Those at work, and whose each is. Others may have the process ids of those that were."""
        for pid in self._boot.workers():
            with suppress(ProcessLookupError):
                number = self._flink.task_manager_number(parent_of(pid))
                if number is not None:
                    yield pid, number

    def by_name(self) -> dict[str, Callable[[int], set[int]]]:
        """All of them."""
        return {
            "worker": end,
            "other worker": self._other_worker,
            "task manager": self._task_manager,
            "machine": self._machine,
        }

    def _other_worker(self, sender: int) -> set[int]:
        """Of a worker that did not send the request, if there is one."""
        return end(next((pid for pid, _ in self._workers() if pid != sender), sender))

    def _task_manager(self, sender: int) -> set[int]:
        """Java alone: its worker goes on for as long as it does not notice."""
        number, java = self._starter_of(sender)
        ended = end(java)
        STARTER.submit(self._flink.start_task_manager, number).result()
        return ended

    def _machine(self, sender: int) -> set[int]:
        """A TaskManager with all that it has started."""
        number, java = self._starter_of(sender)
        self._flink.kill_task_manager(number)
        STARTER.submit(self._flink.start_task_manager, number).result()
        return {sender, java}

    def _starter_of(self, worker: int) -> tuple[int, int]:
        """The number and the process of its TaskManager; ProcessLookupError when that was killed before."""
        java = parent_of(worker)
        number = self._flink.task_manager_number(java)
        if number is None:
            raise ProcessLookupError(java)
        return number, java


def restart_storage(lake: Lake, strike: Strike) -> StorageFault:
    """Azurite restarts at that moment, whoever is at work and whoever is killed meanwhile."""
    return lake.cloud.proxy.strike(
        lambda _request: lake.cloud.azurite.restart(),
        answer=strike.done,
        where=lambda request: strike.moment.sent_here().meets(lake, request),
        skip=strike.skip,
    )


def test_kills_at_random(lakes: Callable[[], Lake], flink: Flink, boot: Boot) -> None:
    """Workers and TaskManagers, in mid-read, mid-stage, before and in mid-commit, and in mid-record."""
    print(f"CHAOS_SEED={SEED} CHAOS_KILLS={KILLS}")
    chance = random.Random(SEED)  # noqa: S311 - no secret
    to_come = [at_random(chance, [what], [moment]) for what, moment in FIRST]
    to_come = [*to_come, *(at_random(chance, THEN) for _ in range(KILLS - len(to_come)))][:KILLS]
    struck: Counter[str] = Counter()
    dead: set[str] = set()
    restarts = 0
    given_up: list[str] = []
    flags = flink_flags(flink, boot)
    numbers = itertools.count()
    while to_come:
        lake = lakes()
        job = Job(lake, "a/", flags, shards=chance.choice([None, 3]))
        blows = Blows(flink, boot)
        storm = Storm(lake, to_come[:KILLS_A_JOB], blows.by_name(), blows.calm)
        storm.arm()
        restart = restart_storage(lake, at_random(chance, ["storage"])) if next(numbers) % 2 == 0 else None
        job.run(TIME_S)
        names = [f"{strike.what} at {strike.moment.name}" for strike in storm.struck]
        besides = ["storage restarted"] if restart and restart.hits else []
        print(f"{job.id}: {', '.join([*names, *besides])}", flush=True)
        restarts += len(besides)
        if job.error is None:
            check_output(lake, "out/a/")
            dead |= check_trail(lake, job, storm, "ok")
            struck.update(names)
            del to_come[: len(names)]
            continue
        assert KEPT_DEAD in str(job.error), job.error
        assert storm.killed
        dead |= check_trail(lake, job, storm, "failed")
        given_up.append(job.id)
        print(f"{job.id}: given up by Flink", flush=True)
        assert len(given_up) <= GIVEN_UP_AT_MOST, "that is the exception"
        lake.cloud.proxy.clear_faults()
        again = Job(lake, "b/", flags)
        again.run(TIME_S)
        assert again.error is None
        check_output(lake, "out/b/")
    print("\n".join(f"{times:4} {what}" for what, times in sorted(struck.items())))
    print(f"{restarts:4} restarts of Storage\n{len(dead):4} bundles ended without closing")
    assert restarts
    assert dead
