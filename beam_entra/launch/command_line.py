"""Launching from a command line: one clear error on failure, no traceback that the reader has to search."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from apache_beam.io.filesystem import BeamIOError

from beam_entra.errors import BeamEntraError, find_rendered_error, printable
from beam_entra.launch.job_server import quiet_reader
from beam_entra.session.registry import end_pauses

__all__ = [
    "TRACEBACK_VARIABLE",
    "Terminated",
    "command_line",
    "find_interrupt",
    "find_ours",
    "print_error",
]

TRACEBACK_VARIABLE = "BEAM_ENTRA_TRACEBACK"
_INTERRUPTED = 130
_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which Kubernetes, Airflow and the like send, taken as what it means: Ctrl-C by a machine."""


@contextmanager
def command_line() -> Iterator[None]:
    """Run what a person launched: `with command_line(): main()`.

    An error of ours is printed once, with its fix, and the exit code is 1; Ctrl-C gives 130. What a runner logs of the
    same error on its way to the launcher is held back; worker processes that share the terminal print what they print.
    SIGTERM ends the job as Ctrl-C does, so that its trail is sealed, and gives 143; in the main thread only, and not
    where somebody handles that signal already. Neither waits for a pause that Storage or Entra has asked for.
    With the environment variable `BEAM_ENTRA_TRACEBACK=1` nothing is held back and every traceback is shown.
    """
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        try:
            with _signals_interrupt():
                yield
        except Terminated:
            traceback.print_exc()
            sys.exit(_TERMINATED)
        return
    held_back = _HoldBack()
    logging.basicConfig()
    for handler in logging.getLogger().handlers:
        handler.addFilter(held_back)
    try:
        with quiet_reader(), _signals_interrupt():
            yield
    except BeamEntraError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        print("terminated" if terminated else "interrupted", file=sys.stderr)
        _print_notes(interrupt)
        sys.exit(_TERMINATED if terminated else _INTERRUPTED)
    finally:
        for handler in logging.getLogger().handlers:
            handler.removeFilter(held_back)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    ours: dict[signal.Signals, tuple[Any, Any]] = {
        signal.SIGTERM: (signal.SIG_DFL, _terminate),
        signal.SIGINT: (signal.default_int_handler, _interrupt),
    }
    in_main = threading.current_thread() is threading.main_thread()
    mine = {name: pair for name, pair in ours.items() if in_main and signal.getsignal(name) == pair[0]}
    for name, (_, handler) in mine.items():
        signal.signal(name, handler)
    try:
        yield
    finally:
        for name, (before, _) in mine.items():
            signal.signal(name, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    _end_pauses()
    raise Terminated


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _end_pauses()
    raise KeyboardInterrupt


def _end_pauses() -> None:
    """In a thread: the one that is interrupted may hold the lock of what it waits for."""
    with suppress(RuntimeError):  # no more threads
        threading.Thread(target=end_pauses, name="beam-entra-interrupt", daemon=True).start()


def print_error(error: BeamEntraError) -> None:
    """Print an error as people read it, with what was noted on its way."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    _print_notes(error)
    print(f"    (set {TRACEBACK_VARIABLE}=1 for the traceback)", file=sys.stderr)


def find_interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The Ctrl-C behind an error: Beam makes a RuntimeError of one that falls into a DoFn."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def find_ours(error: BaseException | None) -> BeamEntraError | None:
    """Our error behind one that Beam's file I/O made of it, also where a runner has added the step's name to that."""
    while error is not None and not isinstance(error, BeamEntraError):
        error = error.__cause__ or (error.__context__ if isinstance(error, BeamIOError) else None)
    return error


def _print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        print(f"    {printable(note)}", file=sys.stderr)


class _HoldBack(logging.Filter):
    """Drops log records that carry one of our errors, or a Ctrl-C, as a traceback: it is printed in the end, once."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if record.name.startswith("azure.identity."):
            return False  # it warns of each failure that it raises; the error tells it
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, BeamEntraError) or isinstance(record.msg, BeamEntraError):
            return False
        text = record.getMessage() + (f"\n{type(error).__module__}.{type(error).__name__}: {error}" if error else "")
        text = text.replace("\\n", "\n")  # the job service logs a worker's message as one escaped line
        return find_rendered_error(text) is None and not _ours_is_cause(error) and find_interrupt(error) is None


def _ours_is_cause(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, BeamEntraError) or find_rendered_error(str(error)) is not None:
            return True
        error = error.__cause__ or error.__context__
    return False
