"""Long buffers that are used again.

One that is given up stays with the allocator of the thread that asked for it, and there are many such threads; and one
that is new is made of pages that have to be cleared first.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Buffers"]

_LONG_BYTES = 1 << 20  # shorter ones are soon used for something else


class Buffers:
    """Of one job in one process, for all its threads.

    Args:
        keep_bytes: How much is kept for later, at most.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._kept: deque[bytearray] = deque()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def take(self, length: int) -> bytearray:
        """One of this length; whatever is in it."""
        if length >= _LONG_BYTES:
            with self._lock:
                for index, buffer in enumerate(self._kept):
                    if len(buffer) == length:
                        del self._kept[index]
                        self._kept_bytes -= length
                        return buffer
        return bytearray(length)

    def give(self, buffer: bytearray) -> None:
        """Give one back that nobody else has; the longest unused ones go for it."""
        if len(buffer) < _LONG_BYTES:
            return
        with self._lock:
            self._kept.append(buffer)
            self._kept_bytes += len(buffer)
            while self._kept_bytes > self._keep_bytes:
                self._kept_bytes -= len(self._kept.popleft())
