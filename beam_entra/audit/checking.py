"""Checking all segments of a trail: the next ones are read meanwhile, and where there are many, each CPU checks some.

A segment is checked line by line, by one CPU; those of one worker process together, and apart from those of any other.
So where there is much to check, several processes do it, and each has the segments of another worker. What is found,
and which error is the first, is the same as one after the other; so it is where such a process cannot be begun, or does
not live: what it was to do is done by this one.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, cast

from beam_entra.audit.ahead import read_ahead, sizes_of
from beam_entra.audit.record import SegmentOpened, parse_line
from beam_entra.audit.segments import Mark, SegmentCheck, Segments, segments_of
from beam_entra.audit.store import GrowingTrail, TrailReader
from beam_entra.cpus import cpus
from beam_entra.errors import TrailBroken

__all__ = ["check_all", "check_segments"]

_LOG = logging.getLogger(__name__)

_AT_ONCE_BYTES = 1 << 30  # of segments that several processes check
_MOST_CPUS = 8
_FIRST_BYTES = 64 << 10  # that hold a segment's first line; with very many accounts it is longer
_COPIES = 4  # at most, of a segment: as it was received, as it is sent, as it is checked, and the one before it
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
    check_all(
        check,
        reader.read,
        {name: sizes[name] for name in segments_of(sizes)},
        read_range=reader.read_range if isinstance(reader, GrowingTrail) else None,
        processes=processes,
    )
    return check.finish()


def check_all(
    check: SegmentCheck,
    read: Callable[[str], bytes],
    sizes: Mapping[str, int],
    *,
    read_range: Callable[[str, int, int], bytes] | None = None,
    processes: int | None = None,
) -> None:
    """Have these segments checked.

    Args:
        check: Takes them.
        read: Reads one, in whatever thread.
        sizes: The segments in order of name, and how many bytes each has.
        read_range: Reads some bytes of one; without it, the first is read twice where several processes check.
        processes: How many processes check; 1 is this one alone. By default, where there is much to do, one for each
            CPU, and 8 at most.
    Raises:
        TrailBroken: Naming the first bad segment, line and rule.
    """
    groups = [list(names) for _, names in itertools.groupby(sizes, key=lambda name: name.rpartition("-")[0])]
    if processes is None:
        much = sum(sizes.values()) >= _MUCH_BYTES
        processes = min(cpus(_MOST_CPUS), _AT_ONCE_BYTES // (_COPIES * max(sizes.values()))) if much else 1
    is_python = bool(sys.executable) and not getattr(sys, "frozen", False)  # else it would run the program once more
    if min(processes, len(groups)) < 2 or not is_python:
        for name, data in read_ahead(read, sizes.items()):
            check.add(name, data)
        return
    check.first = check.first or _first_record(read, read_range, sizes)
    for found in _checked_apart(check, read, groups, processes):
        check.take(found)


def _first_record(
    read: Callable[[str], bytes], read_range: Callable[[str, int, int], bytes] | None, sizes: Mapping[str, int]
) -> SegmentOpened | None:
    """What all segments are compared with; None where the first one with a record is broken, which will be found."""
    for name, size_bytes in sizes.items():
        if not size_bytes:
            continue
        begun = b"" if read_range is None else read_range(name, 0, min(size_bytes, _FIRST_BYTES))
        try:
            record = parse_line((begun if b"\n" in begun else read(name)).partition(b"\n")[0])
        except ValueError:
            return None
        return record if isinstance(record, SegmentOpened) else None
    return None


def _checked_apart(
    check: SegmentCheck, read: Callable[[str], bytes], groups: Sequence[Sequence[str]], processes: int
) -> Iterator[Segments]:
    """What is found in each of these groups, in their order."""
    checkers: list[_Checker] = []
    idle: deque[_Checker | None] = deque()
    failed: list[int] = []

    def is_wanted(number: int) -> bool:
        return not failed or number < min(failed)

    def check_one(number: int, names: Sequence[str]) -> Segments:
        if not is_wanted(number):
            raise CancelledError
        checker = idle.popleft()
        try:
            if checker is not None:
                with suppress(_Ended):
                    return checker.check(check.of_these(names), ((name, read(name)) for name in names))
                if not is_wanted(number):
                    raise CancelledError
                checker = None
                _LOG.warning("a process that checked the trail has ended, for want of memory perhaps")
            return _found(check.of_these(names), ((name, read(name)) for name in names))
        except BaseException:
            failed.append(number)
            raise
        finally:
            idle.append(checker)

    try:
        try:
            while len(checkers) < min(processes, len(groups)):
                checkers.append(_Checker())
        except OSError as error:
            _LOG.warning("a process that checks the trail cannot be begun: %s", error.strerror)
        idle.extend(checkers or [None])
        pool = ThreadPoolExecutor(len(idle), thread_name_prefix="beam-entra-check")
        try:
            yield from pool.map(check_one, itertools.count(), groups)
        finally:
            failed.append(-1)
            pool.shutdown(wait=False, cancel_futures=True)
            for checker in checkers:
                checker.kill()
            pool.shutdown()
    finally:
        for checker in checkers:
            checker.close()


class _Ended(Exception):
    """A process that checked did not live, or was no such process."""


class _Checker:
    """A process that checks. It reads segments from its input and writes what it found; it has no other way out."""

    def __init__(self) -> None:
        known = {name: os.environ[name] for name in _OF_PYTHON if name in os.environ}  # a secret may be in the others
        path = os.pathsep.join(each or os.curdir for each in sys.path)
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
        Raises:
            TrailBroken: One of them is bad.
            _Ended: The process did not live to say so.
        """
        output, answer = cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)
        try:
            pickle.dump(check, output)
            for segment in segments:
                pickle.dump(segment, output)
            pickle.dump(None, output)
            output.flush()
            found = pickle.load(answer)  # noqa: S301  of a process of ours, that was given it by nobody else
        except (EOFError, OSError, pickle.UnpicklingError):
            raise _Ended from None
        if isinstance(found, TrailBroken):
            raise found
        return cast("Segments", found)

    def kill(self) -> None:
        """End it, whatever it does; who waits for it fails."""
        self._process.kill()

    def close(self) -> None:
        """End it, if it lives, and leave nothing of it. Nobody waits for it any more."""
        self.kill()
        with suppress(OSError):
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
            segments: Iterator[tuple[str, bytes]] = iter(lambda: pickle.load(given), None)  # noqa: S301  likewise
            found: Segments | TrailBroken
            try:
                found = _found(check, segments)
            except TrailBroken as broken:
                found = broken
                for _ in segments:
                    pass  # who sends them waits for that
            pickle.dump(found, told)
            told.flush()


def _found(check: SegmentCheck, segments: Iterable[tuple[str, bytes]]) -> Segments:
    for name, data in segments:
        check.add(name, data)
    return check.finish()
