"""Checking all segments of a trail: the next ones are read meanwhile, and where there are many, each CPU checks some.

A segment is checked line by line, by one CPU; those of one worker process together, and apart from those of any other.
So where there is much to check, several processes do it, and each has the segments of another worker. What is found,
and which error is the first, is the same as one after the other.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, cast

from beam_entra.audit.ahead import read_ahead, sizes_of
from beam_entra.audit.record import SegmentOpened, parse_line
from beam_entra.audit.segments import Mark, SegmentCheck, Segments, segments_of
from beam_entra.audit.store import GrowingTrail, TrailReader
from beam_entra.errors import AuditUnavailable, Diagnosis, TrailBroken

__all__ = ["check_all", "check_segments"]

_AT_ONCE_BYTES = 1 << 30  # of segments that several processes check; each has another one on its way
_MUCH_BYTES = 32 << 20  # some seconds of work; to begin a process takes less than half a one
_OF_PYTHON = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_SERVE = "from beam_entra.audit.checking import serve; serve()"


def check_segments(
    reader: TrailReader,
    *,
    job: str | None = None,
    marks: Mapping[str, Sequence[Mark]] | None = None,
    processes: int | None = None,
) -> Segments:
    """Check segments, sealed or not.

    Args:
        job: The job they must be of; None takes the first segment's word.
        marks: What interim seals say of them, by name, in order.
        processes: As for `check_all`.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
    """
    check, sizes = SegmentCheck(job, marks or {}), sizes_of(reader)
    if not isinstance(reader, GrowingTrail):
        processes = processes or 1  # how much there is is not known
    check_all(check, reader.read, {name: sizes[name] for name in segments_of(sizes)}, processes=processes)
    return check.finish()


def check_all(
    check: SegmentCheck, read: Callable[[str], bytes], sizes: Mapping[str, int], *, processes: int | None = None
) -> None:
    """Have these segments checked.

    Args:
        check: Takes them.
        read: Reads one, in whatever thread.
        sizes: The segments in order of name, and how many bytes each has.
        processes: How many processes check; 1 is this one alone. By default one for each CPU where there is much to do.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
        AuditUnavailable: A process that checked ended before it was through.
    """
    groups = [list(names) for _, names in groupby(sizes, key=lambda name: name.rpartition("-")[0])]
    if processes is None:
        much = sum(sizes.values()) >= _MUCH_BYTES
        processes = min(_cpus(), _AT_ONCE_BYTES // max(sizes.values())) if much else 1
    if min(processes, len(groups)) < 2 or not sys.executable:
        for name, data in read_ahead(read, sizes.items()):
            check.add(name, data)
        return
    check.first = check.first or _first_record(read, sizes)
    for found in _checked_apart(check, read, groups, processes):
        check.take(found)


def _first_record(read: Callable[[str], bytes], sizes: Mapping[str, int]) -> SegmentOpened | None:
    """What all segments are compared with; None where the first one with a record is broken, which will be found."""
    for name in (name for name, size_bytes in sizes.items() if size_bytes):
        try:
            record = parse_line(read(name).partition(b"\n")[0])
        except ValueError:
            return None
        return record if isinstance(record, SegmentOpened) else None
    return None


def _checked_apart(
    check: SegmentCheck, read: Callable[[str], bytes], groups: Sequence[Sequence[str]], processes: int
) -> Iterator[Segments]:
    """What is found in each of these groups, in their order."""
    checkers = [_Checker() for _ in range(min(processes, len(groups)))]
    idle = deque(checkers)
    failed = threading.Event()

    def check_one(names: Sequence[str]) -> Segments:
        if failed.is_set():
            raise CancelledError  # all that come before the group that failed have begun
        checker = idle.popleft()
        try:
            found = checker.check(check.of_these(names), ((name, read(name)) for name in names))
        except BaseException:
            failed.set()
            raise
        idle.append(checker)
        return found

    pool = ThreadPoolExecutor(len(checkers), thread_name_prefix="beam-entra-check")
    try:
        yield from pool.map(check_one, groups)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for checker in checkers:
            checker.kill()
        pool.shutdown()
        for checker in checkers:
            checker.close()


class _Checker:
    """A process that checks. It reads segments from its input and writes what it found; it has no other way out."""

    def __init__(self) -> None:
        known = {name: os.environ[name] for name in _OF_PYTHON if name in os.environ}  # a secret may be in the others
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        self._process = subprocess.Popen(  # noqa: S603  the command line is ours
            [sys.executable, "-P", "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=known | {"PYTHONPATH": path},
        )

    def check(self, check: SegmentCheck, segments: Iterable[tuple[str, bytes]]) -> Segments:
        """Have the segments of one worker process checked.

        Args:
            check: As it is before the first of them.
        """
        output, answer = cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)
        try:
            pickle.dump(check, output)
            for segment in segments:
                pickle.dump(segment, output)
            pickle.dump(None, output)
            output.flush()
            found = pickle.load(answer)  # noqa: S301  of a process of ours, that was given it by nobody else
        except (EOFError, BrokenPipeError) as error:
            raise AuditUnavailable(
                f"a process that checked segments of the trail ended with {self._process.wait()}",
                Diagnosis(tried="check the segments of a trail", hint="see whether this machine has memory enough"),
            ) from error
        if isinstance(found, TrailBroken):
            raise found
        return cast("Segments", found)

    def kill(self) -> None:
        """End it, whatever it does; who waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """Leave nothing of it, when it was killed and nobody waits for it."""
        with suppress(BrokenPipeError):
            cast("BinaryIO", self._process.stdin).close()
        cast("BinaryIO", self._process.stdout).close()
        self._process.wait()


def serve() -> None:
    """What such a process does: until there is no more, take the segments of a worker process and say what is found."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who has started it ends it
    given, told = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError):
        while True:
            check: SegmentCheck = pickle.load(given)  # noqa: S301  of the process that has started this one
            pickle.dump(_found(check, iter(lambda: pickle.load(given), None)), told)  # noqa: S301  likewise
            told.flush()


def _found(check: SegmentCheck, segments: Iterator[tuple[str, bytes]]) -> Segments | TrailBroken:
    try:
        for name, data in segments:
            check.add(name, data)
        return check.finish()
    except TrailBroken as broken:
        for _ in segments:
            pass  # who sends them waits for that
        return broken


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
