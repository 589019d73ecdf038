"""Runs attempts of bundles and launches of jobs, each in a process of its own that a test may kill.

It imports once what they need and starts no thread, so that a fork is sound and costs milliseconds. Started with the
number of a socket's descriptor as its argument, it reads one JSON object a line, and answers with one a line:

    {"step": "stage" or "commit", "inputs": PATH, "outputs": PATH}   or   {"launch": [ARGUMENT, ...], "outputs": PATH}
    -> {"pid": N}, and when the process has ended {"status": N}

`outputs` is where the process leaves what its bundle gave, and beside it (`.log`) what it printed. It is written when
the bundle has finished, and not before: as a runner persists a bundle's outputs.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pickle
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from apache_beam.runners.direct import direct_runner  # noqa: F401  # imported once, here
from apache_beam.runners.portability import fn_api_runner  # noqa: F401  # likewise
from apache_beam.transforms.window import GlobalWindow

from beam_entra.io.sink import WriteSettings
from beam_entra.io.write import _Commit, _Stage
from beam_entra.session import JobScope


def run_bundle(fn: Any, elements: list[Any], **parameters: Any) -> list[Any]:
    """One bundle through the life of a DoFn; its outputs. What `process` asks Beam for is given with each element."""
    outputs: list[Any] = []
    fn = pickle.loads(pickle.dumps(fn))  # noqa: S301  # as a runner does to it
    fn.setup()
    fn.start_bundle()
    for element in elements:
        outputs += fn.process(element, **parameters) or ()
    outputs += [windowed.value for windowed in fn.finish_bundle() or ()]
    fn.teardown()
    return outputs


def stage(scope: JobScope, settings: WriteSettings, elements: list[Any]) -> list[Any]:
    """A bundle of the step that stages."""
    return [part for _, part in run_bundle(_Stage(settings).scoped(scope, "Write/Stage"), elements)]


def commit(scope: JobScope, settings: WriteSettings, staged: list[Any]) -> list[Any]:
    """The bundle of the step that commits."""
    return run_bundle(_Commit(settings).scoped(scope, "Write/Commit"), [("", staged)], window=GlobalWindow())


def launch(arguments: list[str]) -> None:
    """`python job.py ARGUMENT...`"""
    path = Path(__file__).with_name("job.py")
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.argv = [str(path), *arguments]
    sys.modules["__main__"] = module
    spec.loader.exec_module(module)


def child(request: dict[str, Any]) -> None:
    """What the forked process does."""
    outputs = Path(request["outputs"])
    log = os.open(f"{outputs}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig()
    if "launch" in request:
        launch(request["launch"])
        return
    scope, settings, elements = pickle.loads(Path(request["inputs"]).read_bytes())  # noqa: S301  # the test's own
    work = stage if request["step"] == "stage" else commit
    fresh = outputs.with_suffix(".new")
    fresh.write_bytes(pickle.dumps(work(scope, settings, elements)))
    fresh.replace(outputs)


def serve(channel: socket.socket) -> None:
    """Fork for each request until the other end closes."""
    lines = channel.makefile("rw")
    for line in lines:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                lines.close()
                channel.close()
                child(json.loads(line))
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:  # noqa: BLE001  # the log shows it, the status says so
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps({"pid": pid}), file=lines, flush=True)
        print(json.dumps({"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), file=lines, flush=True)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
