"""How a job stands, on one line of the terminal, while it runs.

Three tell it, and each is behind what there is and never ahead, so of each figure the greatest counts:

1. What this process has counted: all that there is to tell where the workers are threads of the launcher.
2. The runner's counters, where it has them before the end: Prism and Dataflow do; the job servers of Flink and Spark,
   and Beam's own runner, do not.
3. Where the workers are elsewhere, what they have added to the audit trail. It holds no number of records, not how many
   blobs there are, and of a blob that it was begun, not that it was read.

What was tried twice is counted twice. The report that follows is of what was committed, and right.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TextIO, cast

from apache_beam.metrics import MetricsFilter
from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.portable_runner import PipelineResult as PortableResult
from apache_beam.runners.portability.portable_runner import PortableMetrics

from beam_entra.errors import BeamEntraError, StorageError
from beam_entra.io.dofn import METRICS_NAMESPACE
from beam_entra.session import JobScope, TrailWatch, open_session, tallied

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Figures", "JobFigures", "drawn", "shown_progress"]

_DRAWN_EVERY_S = 0.5
_TRAIL_EVERY = 5
_COUNTERS_WITHIN_S = 5.0
_COLUMNS = 80  # where the terminal does not say
_UNITS = ("kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How a job stands. Printed, it is a line for people.

    Attributes:
        counts: By the names of the counters; one that is not there is not known, or 0.
        left: Until the job's deadline; None where its life is a rolling one.
    """

    counts: Mapping[str, int]
    left: timedelta | None = None

    def __str__(self) -> str:
        count = Counter(self.counts)
        read = [
            *([_blobs(count)] if any(count[f"blobs_{each}"] for each in ("begun", "matched", "read")) else []),
            *([f"{count['records_read']:,} records"] if count["records_read"] else []),
            *([_size(count["bytes_read"])] if count["bytes_read"] else []),
        ]
        written = [
            *([f"{count['records_written']:,} records"] if count["records_written"] else []),
            *([_size(count["bytes_staged"])] if count["bytes_staged"] else []),
        ]
        parts = [
            *([f"{timedelta(seconds=max(self.left, timedelta(0)) // timedelta(seconds=1))} left"] if self.left else []),
            *([f"{', '.join(read)} read"] if read else ["starting"] if not written else []),
            *([f"{', '.join(written)} written"] if written else []),
            f"{count['tokens_acquired']:,} token{'' if count['tokens_acquired'] == 1 else 's'}",
        ]
        return "; ".join(parts)


def _blobs(count: Mapping[str, int]) -> str:
    if not count["blobs_matched"]:
        return f"{max(count['blobs_read'], count['blobs_begun']):,} blobs"
    return f"{count['blobs_read']:,}/{max(count['blobs_matched'], count['blobs_read']):,} blobs"


def _size(size_bytes: float) -> str:
    for unit in _UNITS:
        size_bytes /= 1000
        if size_bytes < 999.95 or unit == _UNITS[-1]:
            break
    return f"{size_bytes:,.1f} {unit}"


class JobFigures:
    """The figures of a job that this process has launched. Call it for those of this moment: nothing is waited for.

    Use it with `with`: meanwhile a thread asks those who are not in this process.

    Args:
        result: What the runner gave; None as long as it gives nothing.
        every_s: From one question for the runner's counters to the next; the trail is looked at every fifth time.
    """

    def __init__(self, scope: JobScope, result: Callable[[], Any], *, every_s: float = 2.0) -> None:
        self._scope, self._result, self._every_s = scope, result, every_s
        self._clock = open_session(scope).clock
        self._of_runner: Counter[str] = Counter()
        self._of_others: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="beam-entra-progress-sources", daemon=True)

    def __enter__(self) -> JobFigures:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()  # nothing is recorded behind the seal

    def __call__(self) -> Figures:
        counts = (tallied(self._scope.job) + self._of_others) | self._of_runner
        if self._scope.manifest.lifetime.rolling:
            return Figures(counts=counts)
        return Figures(counts=counts, left=self._scope.deadline - self._clock())

    def _ask(self) -> None:
        watch: TrailWatch | None = None
        turns, trail_told = 0, True
        while not self._over.wait(self._every_s):
            turns += 1
            with suppress(Exception):  # it has none, or not yet, or is busy: the next time perhaps
                self._of_runner = running_counters(self._result())
            if turns % _TRAIL_EVERY or not trail_told or self._works_here():
                continue
            try:
                watch = watch or TrailWatch(open_session(self._scope))
                self._of_others = watch.look()
            except StorageError:
                pass  # Storage has its troubles; the next time perhaps
            except Exception:  # noqa: BLE001 - the identity may not, or the job's time is over: that is told elsewhere
                trail_told = False
        if watch is not None:
            with suppress(BeamEntraError):
                watch.close()

    def _works_here(self) -> bool:
        counted = tallied(self._scope.job)
        return bool(counted["bytes_read"] or counted["bytes_staged"])


def running_counters(result: Any) -> Counter[str]:
    """Beam's counters of the namespace `beam_entra` by now, by name; none where the runner tells of none yet."""
    sums: Counter[str] = Counter()
    if result is None:
        return sums
    if isinstance(result, PortableResult):  # its own `metrics()` keeps the first answer for ever
        request = beam_job_api_pb2.GetJobMetricsRequest(job_id=result._job_id)
        metrics = PortableMetrics(result._job_service.GetJobMetrics(request, timeout=_COUNTERS_WITHIN_S))
    else:
        metrics = result.metrics()
    for counter in metrics.query(MetricsFilter().with_namespace(METRICS_NAMESPACE))["counters"]:
        sums[counter.key.metric.name] += max(counter.attempted or 0, counter.committed or 0)
    return sums


@contextmanager
def shown_progress(scope: JobScope, result: Callable[[], Any]) -> Iterator[None]:
    """Show how a job stands while the block runs, if standard error is a terminal.

    Args:
        result: As for `JobFigures`.
    """
    stream = sys.stderr
    if not _is_terminal(stream):
        yield
        return
    with JobFigures(scope, result) as figures, drawn(figures, stream):
        yield


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # something in its place that is no file; a closed one
        return False


@contextmanager
def drawn(source: Callable[[], object], stream: TextIO) -> Iterator[None]:
    """Keep a line on a terminal up to date while the block runs, and take it away in the end.

    What is printed or logged meanwhile goes above it. Nothing happens where nothing can be drawn; an error in drawing,
    or of the source, ends the drawing and nothing else.

    Args:
        source: Gives what to print on the line, about twice a second.
        stream: A terminal.
    """
    line: _Line | None = None
    try:
        with suppress(Exception):
            line = _Line(source, stream)
            line.start()
        yield
    finally:
        if line is not None:
            line.stop()


class _Line:
    def __init__(self, source: Callable[[], object], stream: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415  # where there is no terminal, nobody loads it
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self._source, self._stream, self._text = source, stream, Text
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="beam-entra-progress", daemon=True)
        self._redirected = ExitStack()

    def start(self) -> None:
        if self._console.is_interactive:  # and no dumb terminal
            self._live.start()
            self._console.show_cursor()  # so that nobody misses it after a kill
            self._redirect()
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        with suppress(Exception):
            if self._live.is_started:
                self._draw()
        with suppress(Exception):
            self._live.stop()
        _let_go(self._stream)
        self._redirected.close()

    def _keep_up(self) -> None:
        with suppress(Exception):
            while not self._over.wait(_DRAWN_EVERY_S):
                self._draw()

    def _draw(self) -> None:
        columns = os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        self._console.width = columns  # else rich goes by the variable COLUMNS, which may be another terminal's
        self._live.update(self._text(str(self._source())[: columns - 1], no_wrap=True, overflow="crop"), refresh=True)

    def _redirect(self) -> None:
        """Have what else goes to the terminal go above the line."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not _is_terminal(stream):
                continue
            above = _Above(self._console, stream)
            handlers = [each for each in _handlers() if each.stream is stream]
            setattr(sys, name, above)
            for handler in handlers:
                handler.setStream(cast("TextIO", above))
            self._redirected.callback(_restore, name, above, stream, handlers)


def _let_go(stream: TextIO) -> None:
    """Of a terminal that has hung up, what was still to be written there goes nowhere: else it fails every flush.

    Python's own, when it ends, is one.
    """
    with suppress(Exception):
        try:
            os.get_terminal_size(stream.fileno())
        except OSError as error:
            if error.errno != errno.EIO:  # it is no terminal
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _handlers() -> list[logging.StreamHandler[TextIO]]:
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]


def _restore(name: str, above: _Above, stream: TextIO, handlers: list[logging.StreamHandler[TextIO]]) -> None:
    _let_go(stream)  # a handler whose stream is set flushes the one before
    if getattr(sys, name) is above:
        setattr(sys, name, stream)
    for handler in handlers:
        if cast("object", handler.stream) is above:
            handler.setStream(stream)
    above.finish()


class _Above:
    """A stream to a terminal whose lines go above the one that is kept up to date; in everything else the stream."""

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console, self._stream = console, stream
        self._begun = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, self._begun = (self._begun + text).rpartition("\n")
            if newline:
                try:
                    self._console.out(lines)
                except (Exception, SystemExit):  # noqa: BLE001 - rich's trouble is not that of who prints
                    self._stream.write(lines + newline)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def finish(self) -> None:
        """Print what was begun and has no end of line."""
        with self._lock, suppress(Exception):
            self._stream.write(self._begun)
            self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
