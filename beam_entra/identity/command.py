"""An executable that prints an assertion: no shell, bounded in time and output."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from pathlib import Path

from beam_entra.errors import ConfigError, Diagnosis, IdentityRejected, IdentityUnavailable
from beam_entra.identity.redaction import redacted
from beam_entra.identity.rejection import NotHere

__all__ = ["check_command", "run_command"]

_MOST_BYTES = 64 * 1024
_SECRET_NAME = re.compile(r"(?i)secret|passw|token|key|credential|assertion|sas$")


def check_command(command: str, timeout_s: float) -> None:
    """See that it names an executable in full; whether that is there, the worker sees.

    Raises:
        ConfigError: It does not.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not words or not Path(words[0]).is_absolute():
        raise ConfigError(
            "[identity] assertion_command: does not name an executable in full",
            Diagnosis(hint='write it as assertion_command = "/usr/local/bin/assert --for job": there is no shell'),
        )


def run_command(command: str, *, timeout_s: float) -> str:
    """What the command prints on standard output.

    It gets the worker's environment and no input, and leads a process group of its own. At the timeout, or when it
    prints too much, the group is killed as a whole.

    Raises:
        NotHere: There is no such executable.
        IdentityRejected: It cannot be run, prints nothing or too much.
        IdentityUnavailable: It fails, or takes too long.
    """
    words = shlex.split(command)
    name = words[0]
    try:
        process = subprocess.Popen(  # noqa: S603 - the manifest's command, word for word
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        rejected = IdentityRejected(
            f"the assertion command {name} cannot be run: {error.strerror}",
            Diagnosis(hint="see that it is in the worker's image and that the worker's user may run it"),
        )
        raise (NotHere(rejected) if isinstance(error, FileNotFoundError) else rejected) from None
    ends = time.monotonic() + timeout_s
    status: int | None = None
    try:
        out, err, closed = _collect(process, ends)
        if closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(max(0.0, ends - time.monotonic()))
    finally:
        _kill(process)
    hint = f"run {name} where the workers run, as their user, and see what it says"
    if len(out) > _MOST_BYTES:
        raise IdentityRejected(
            f"the assertion command {name} printed more than {_MOST_BYTES // 1024} KiB", Diagnosis(hint=hint)
        )
    if status is None:
        raise IdentityUnavailable(
            f"the assertion command {name} did not end within {timeout_s:g} s, and was killed",
            Diagnosis(hint=f"{hint}; command_timeout in [identity] gives it more time"),
        )
    if status != 0:
        said = redacted(err.decode("utf-8", "replace"), out.decode("utf-8", "replace").strip(), *_environment_secrets())
        raise IdentityUnavailable(
            f"the assertion command {name} ended with status {status}" + (f" and said: {said}" if said else ""),
            Diagnosis(hint=hint),
        )
    if not out.strip():
        raise IdentityRejected(f"the assertion command {name} printed nothing", Diagnosis(hint=hint))
    return out.decode("utf-8", "replace").strip()


def _collect(process: subprocess.Popen[bytes], ends: float) -> tuple[bytes, bytes, bool]:
    """Both outputs, until both are closed, one is too long or the time is over; and whether they were closed."""
    found: dict[int, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                found[pipe.fileno()] = b""
                selector.register(pipe.fileno(), selectors.EVENT_READ)
        out, err = found
        while selector.get_map():
            left_s = ends - time.monotonic()
            ready = selector.select(left_s) if left_s > 0 else []
            if not ready:
                return found[out], found[err], False
            for key, _ in ready:
                part = os.read(key.fd, 16 * 1024)
                if not part:
                    selector.unregister(key.fd)
                elif len(found[key.fd]) <= _MOST_BYTES:
                    found[key.fd] += part
                if key.fd == out and len(found[out]) > _MOST_BYTES:
                    return found[out], found[err], False
    return found[out], found[err], True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group, unless its leader has ended and been waited for; then the pipes."""
    if process.returncode is None:  # else its id may be somebody else's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _environment_secrets() -> list[str]:
    return [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 6]
