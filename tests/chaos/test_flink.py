"""Kills at random on a Flink cluster: it starts the job over, and in the end each order is there once.

Every run has other kills. The seed is printed: CHAOS_SEED=... repeats them, as far as a cluster repeats anything;
CHAOS_KILLS says how many.
"""

from __future__ import annotations

import os
import random
import secrets
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.job import Job, check_output, check_trail
from tests.chaos.strikes import Storm, at_random, end, parent_of
from tests.engines.clusters import Flink
from tests.engines.plugin import Boot
from tests.io.conftest import Lake

KILLS = int(os.environ.get("CHAOS_KILLS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", secrets.randbelow(1_000_000)))
KILLS_A_JOB = 4
# What a job fails with when Beam's Flink runner has kept a dead worker for it, which no restart mends: docs/runners.md.
KEPT_DEAD = "CANCELLED"
TIME_S = 900  # a busy machine takes half a minute for each kill
pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(KILLS * 90 + 600),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),  # threads of Beam's
]

# The kernel kills what was started by a thread that ends, which those of a proxy do: see clusters.py on `setpriv`.
STARTER = ThreadPoolExecutor(1)
WHAT = ["worker"] * 5 + ["other worker"] * 2 + ["task manager", "machine", "storage"]


class Blows:
    """What can be done to the cluster, each known by the process that sent a request."""

    def __init__(self, lake: Lake, flink: Flink, boot: Boot) -> None:
        self._lake, self._flink, self._boot = lake, flink, boot

    def by_name(self) -> dict[str, Callable[[int], set[int]]]:
        """All of them."""
        return {
            "worker": end,
            "other worker": self._other_worker,
            "task manager": self._task_manager,
            "machine": self._machine,
            "storage": self._storage,
        }

    def _other_worker(self, sender: int) -> set[int]:
        """Of a worker that did not send the request, if there is one."""
        alive = sorted(pid for pid in self._boot.pids() - {sender} if Path(f"/proc/{pid}").exists())
        return end(alive[-1] if alive else sender)

    def _task_manager(self, sender: int) -> set[int]:
        """Java alone: its worker goes on for as long as it does not notice."""
        number = self._flink.task_manager_number(parent_of(sender))
        if number is None:
            return end(sender)
        ended = end(parent_of(sender))
        STARTER.submit(self._flink.start_task_manager, number).result()
        return ended

    def _machine(self, sender: int) -> set[int]:
        """A TaskManager with all that it has started."""
        number = self._flink.task_manager_number(parent_of(sender))
        if number is None:
            return end(sender)
        ended = {sender, parent_of(sender)}
        self._flink.kill_task_manager(number)
        STARTER.submit(self._flink.start_task_manager, number).result()
        return ended

    def _storage(self, _sender: int) -> set[int]:
        """Azurite restarts."""
        self._lake.cloud.azurite.restart()
        return set()


def test_kills_at_random(lakes: Callable[[], Lake], flink: Flink, boot: Boot) -> None:
    """Workers, TaskManagers and Storage, in mid-read, mid-stage, before and in mid-commit, and in mid-record."""
    print(f"CHAOS_SEED={SEED} CHAOS_KILLS={KILLS}")
    chance = random.Random(SEED)  # noqa: S311 - no secret
    struck: Counter[str] = Counter()
    given_up = 0
    flags = (
        "--runner=FlinkRunner",
        f"--job_endpoint={flink.endpoint}",
        "--parallelism=4",
        "--environment_type=PROCESS",
        f"--environment_config={boot.config}",
    )
    while struck.total() < KILLS:
        lake = lakes()
        strikes = [at_random(chance, WHAT) for _ in range(min(KILLS_A_JOB, KILLS - struck.total()))]
        storm = Storm(lake, strikes, Blows(lake, flink, boot).by_name())
        job = Job(lake, "a/", flags, shards=chance.choice([None, 3]))
        storm.arm()
        job.run(TIME_S)
        struck.update(f"{strike.what} at {strike.moment.name}" for strike in storm.struck)
        print(f"{job.id}: " + ", ".join(f"{each.what} at {each.moment.name}" for each in storm.struck), flush=True)
        if job.error is None:
            check_output(lake, "out/a/")
            check_trail(lake, job, storm, "ok")
            continue
        assert KEPT_DEAD in str(job.error), job.error
        assert storm.killed
        check_trail(lake, job, storm, "failed")
        given_up += 1
        print(f"{job.id}: given up by Flink")
        again = Job(lake, "b/", flags)
        again.run(TIME_S)
        assert again.error is None
        check_output(lake, "out/b/")
    assert given_up <= KILLS / KILLS_A_JOB / 2, "that is the exception"
    print("\n".join(f"{times:4} {what}" for what, times in sorted(struck.items())))
