"""Reading many files of a trail: the next ones come while one of them is looked at, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from beam_entra.audit.store import GrowingTrail, TrailReader

__all__ = ["read_ahead", "sizes_of"]

_READERS = 16
_AHEAD = 256  # that are not taken yet, at most
_AHEAD_BYTES = 64 << 20  # of them all; one that is longer comes alone

T = TypeVar("T")


def read_ahead(read: Callable[[T], bytes], wanted: Iterable[tuple[T, int]]) -> Generator[tuple[T, bytes], None, None]:
    """These, one after the other in their order, as if each were read in its turn.

    So is an error: those before it are given first, and those behind it count for nothing.

    Args:
        read: Reads one; called in threads of its own.
        wanted: Each of them, and how many bytes it has.
    """
    waiting = iter(wanted)
    following = next(waiting, None)
    under_way: deque[tuple[T, int, Future[bytes]]] = deque()
    ahead_bytes = 0
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="beam-entra-trail")

    def fill() -> None:
        nonlocal following, ahead_bytes
        while following is not None and (
            not under_way or (len(under_way) < _AHEAD and ahead_bytes + following[1] <= _AHEAD_BYTES)
        ):
            under_way.append((*following, pool.submit(read, following[0])))
            ahead_bytes += following[1]
            following = next(waiting, None)

    try:
        fill()
        while under_way:
            one, size_bytes, content = under_way.popleft()
            data = content.result()
            del content
            ahead_bytes -= size_bytes
            fill()  # what comes next is on its way while this one is looked at
            yield one, data
    except BaseException:  # nobody wants the others any more, and Ctrl-C waits for none
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def sizes_of(reader: TrailReader) -> Mapping[str, int]:
    """The files of a folder and their lengths; where the reader does not tell them, such that they are read singly."""
    return reader.sizes() if isinstance(reader, GrowingTrail) else dict.fromkeys(reader.names(), _AHEAD_BYTES)
