"""Each side in a process of its own: a task a line on its input, an outcome a line on its output.

The server imports what all sides need once and forks a child for each task, which saves the seconds that importing
takes. It has no other thread and opens nothing, so a child begins as a fresh process does.

A side is a function that gets the task, imports what it needs, and returns the work to be timed; that returns how many
units it did and an answer, which all sides of a row must agree on.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NoReturn

from benchmarks import sides
from benchmarks.task import Done, Task
from benchmarks.usage import Usage

__all__ = ["run", "serve"]

Work = Callable[[], Done]

# What one side or another imports when it is at work.
_LATE = (
    "apache_beam.runners.portability.fn_api_runner.fn_runner",
    "apache_beam.typehints.intrinsic_one_ops",
    "azure.core.rest._requests_basic",
    "encodings.ascii",
    "encodings.utf_8_sig",
    "multiprocessing.dummy",
    "multiprocessing.queues",
    "netrc",
    "pyarrow.acero",
)


def run(task: Task) -> dict[str, Any]:
    """Do the task and say how it went."""
    module, _, function = task.side.rpartition(".")
    work: Work = getattr(import_module(f"benchmarks.sides.{module}"), function)(task)
    with Usage() as usage:
        done = work()
    return {
        "wall_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        "idle_bytes": usage.idle_bytes,
        "peak_bytes": usage.peak_bytes,
        "stolen_s": usage.stolen_s,
        "busy_s": usage.busy_s,
        "units": done.units,
        "answer": done.answer,
        "samples_s": done.samples_s,
    }


def serve(lines: Iterable[str]) -> None:
    """Do a task a line, each in a child that is forked from here: Beam is imported, and nothing has been used yet."""
    for line in lines:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _run_and_leave(line)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            print(json.dumps({"failed": status}), flush=True)


def _run_and_leave(line: str) -> NoReturn:
    status = 1
    try:
        print(json.dumps(run(Task(**json.loads(line)))), flush=True)
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent hears of it, and this process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    for side in iter_modules(sides.__path__, "benchmarks.sides."):
        import_module(side.name)  # and with them Beam, ours and azfs
    for module in _LATE:
        import_module(module)
    gc.collect()
    gc.freeze()  # what one side alone needs must not weigh on the other's collections
    serve(sys.stdin)
