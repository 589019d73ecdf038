"""Run a command as a person at a shell would, and end it as one would."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Finished", "run"]

_TICK_S = 0.25
_ENDS_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str


def run(command: Sequence[str], *, env: Mapping[str, str], tick: Callable[[], object] = lambda: None) -> Finished:
    """Run a command to its end, and call `tick` now and then meanwhile.

    The command has a process group of its own: Ctrl-C at the terminal reaches it once, through us, so that it can seal
    its audit trail. Whatever ends us, an exception of `tick` too, ends it first.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(  # noqa: S603 - the command lines are ours
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, process_group=0
        )
        try:
            while True:
                try:
                    status = process.wait(_TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            _end(process)
            raise
        out.seek(0)
        err.seek(0)
        return Finished(status=status, out=out.read(), err=err.read())


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        if process.poll() is None:  # a second Ctrl-C
            process.kill()
        process.wait()
