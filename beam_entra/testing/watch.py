"""What the kit's servers share: a journal to wait on, a gate to stop a request at, and faults that run out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

__all__ = ["Fault", "Faults", "Gate", "Journal"]

Record = TypeVar("Record")
Subject = TypeVar("Subject")
Action = TypeVar("Action")


class Journal(Sequence[Record]):
    """A list of records that only the kit appends to, and that a test can wait on without polling."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[Record] = []

    def append(self, record: Record) -> None:
        """Add a record and wake whoever waits."""
        with self._changed:
            self._records.append(record)
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        with self._changed:
            return iter(list(self._records))

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        with self._changed:
            return self._records[index]

    def clear(self) -> None:
        """Forget the records so far."""
        with self._changed:
            self._records.clear()

    def wait_for(self, predicate: Callable[[list[Record]], bool], *, timeout_s: float = 10.0) -> list[Record]:
        """Wait until `predicate` holds for the records so far, and return them.

        Raises:
            TimeoutError: It did not hold within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(list(self._records)), timeout_s):
                raise TimeoutError(f"not within {timeout_s} s; there are {len(self._records)} records")
            return list(self._records)


class Gate:
    """Where a request stops until a test opens the gate, its time is up, or the server closes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived = 0
        self._open = False

    @property
    def arrived(self) -> int:
        """How many requests have reached the gate so far."""
        with self._changed:
            return self._arrived

    def arrive(self, timeout_s: float | None = None) -> None:
        """Stand before the gate: returns when it opens, or after `timeout_s`. For the server's side."""
        with self._changed:
            self._arrived += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open, timeout_s)

    def wait_for_arrivals(self, count: int = 1, *, timeout_s: float = 10.0) -> None:
        """Wait until `count` requests have reached the gate.

        Raises:
            TimeoutError: They did not within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived >= count, timeout_s):
                raise TimeoutError(f"{self._arrived} of {count} requests reached the gate within {timeout_s} s")

    def open(self) -> None:
        """Let everybody through, now and later."""
        with self._changed:
            self._open = True
            self._changed.notify_all()


class Fault(Generic[Subject, Action]):
    """One fault that is switched on: what it does, to which requests, and for how many more of them."""

    def __init__(
        self,
        action: Action,
        *,
        where: Callable[[Subject], bool] = lambda _subject: True,
        times: int | None = None,
        skip: int = 0,
        gate: Gate | None = None,
    ) -> None:
        if (times is not None and times < 1) or skip < 0:
            raise ValueError("a fault happens at least once, after zero or more requests")
        self.action = action
        self.where = where
        self.gate = gate
        self._changed = threading.Condition()
        self._skip = skip
        self._left = times
        self._hits = 0

    @property
    def hits(self) -> int:
        """How many requests it has met."""
        with self._changed:
            return self._hits

    def clear(self) -> None:
        """Switch it off, and let through the requests that it holds."""
        with self._changed:
            self._left = 0
        if self.gate is not None:
            self.gate.open()

    def wait_for_hits(self, count: int = 1, *, timeout_s: float = 10.0) -> None:
        """Wait until it has met `count` requests.

        Raises:
            TimeoutError: It did not within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._hits >= count, timeout_s):
                raise TimeoutError(f"{self._hits} of {count} requests met the fault within {timeout_s} s")

    def take(self, subject: Subject) -> bool:
        """Whether it happens to this request; counts it if so. For the server's side."""
        if not self.where(subject):
            return False
        with self._changed:
            if self._left == 0:
                return False
            if self._skip:
                self._skip -= 1
                return False
            if self._left is not None:
                self._left -= 1
            self._hits += 1
            self._changed.notify_all()
            return True


class Faults(Generic[Subject, Action]):
    """The faults that are switched on, oldest first; the first that takes a request decides what happens to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault[Subject, Action]] = []

    def add(self, fault: Fault[Subject, Action]) -> Fault[Subject, Action]:
        """Switch a fault on."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def take(self, subject: Subject) -> Fault[Subject, Action] | None:
        """The fault that happens to this request, if one does."""
        with self._lock:
            faults = list(self._faults)
        return next((fault for fault in faults if fault.take(subject)), None)

    def clear(self) -> None:
        """Switch all of them off, and let through whatever they hold."""
        with self._lock:
            faults, self._faults = self._faults, []
        for fault in faults:
            fault.clear()
