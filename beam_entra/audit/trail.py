"""Writing a segment: append is cheap, durability comes in groups, and a record that cannot be written stops everything.

Like a database's log. `append` chains a record and returns a receipt; the caller waits on it before it lets anything
out. All that is pending goes to the store in one request, and there is one at a time. It is made by the flusher, a
thread of the process, while the access that the record is about is still under way; or by a thread that waits as long
as it takes, if nobody has begun: that spares it two changes of threads. A record that nobody waits for yet, such as
that of a SAS whose access comes next, does not start a request: it goes with the next one that does, or alone after a
moment. When the store gives up, the writer is poisoned: whoever waits, and whoever appends later, gets
`AuditUnavailable`.

A segment that has become long or old is continued in another, with the next record. The last line of the one and the
first of the other name each other, so that they are one chain.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from beam_entra.audit.chain import LINE_BYTES, Chain, Draft, Group
from beam_entra.audit.record import (
    InterimSealed,
    Previous,
    Record,
    Sealed,
    SegmentOpened,
    SegmentRolled,
    segment_name,
)
from beam_entra.audit.store import APPEND_BYTES, SegmentStore
from beam_entra.clock import Clock
from beam_entra.errors import AuditError, AuditUnavailable, Diagnosis

__all__ = ["Receipt", "SegmentFacts", "SegmentWriter"]

_OWN = (SegmentOpened, SegmentRolled, InterimSealed, Sealed)
_LAST_NUMBER = 99_999  # a segment's name has five digits
_MOMENT_S = 0.05  # between two looks of the flusher: a record that it finds a second time has waited long enough
_GROUP_BYTES = APPEND_BYTES - 3 * LINE_BYTES  # room for the record that fills it and the two that roll a segment


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFacts:
    """What `segment_opened` says about a worker process; see there for each field."""

    job: str
    pipeline: str
    environment: str
    tenant: str
    client: str
    credential: str
    host: str
    pid: int
    deadline: datetime
    manifest_digest: str
    accounts: Mapping[str, str]
    scoping: str | None = None
    rolling_s: int | None = None


class Receipt:
    """Stands for one appended record until it is durable."""

    __slots__ = ("_group", "_writer")

    def __init__(self, writer: SegmentWriter, group: Group) -> None:
        self._writer, self._group = writer, group

    @property
    def durable(self) -> bool:
        """Whether the record is known to be durable. Does not wait."""
        return self._group.durable

    def wait(self, timeout: float | None = None) -> None:
        """Return when the record is durable. The caller may find himself writing it, and what came before.

        Args:
            timeout: Seconds; None waits as long as the store tries.
        Raises:
            AuditUnavailable: It is not durable: the store gave up, on this group or an earlier one, or time ran out.
        """
        if not self._group.durable:
            self._writer._wait(self._group, timeout)


class SegmentWriter:
    """The audit segment of one worker process. Thread-safe; nothing is created before the first record.

    A process that forked must not go on with its parent's writer: two writers would fork the chain. There every method
    but `close` raises.

    Args:
        store: Where the segment goes.
        opened: What is known about the process and its job.
        clock: Stamps each record.
        process: UUID that names the process's segments; made up when None.
        max_blocks: Appends to one segment before it is continued in another; an append blob takes 50,000.
        max_bytes: Size after which a segment is continued in another.
        max_records: Records after which it is.
        max_age: Time since its first record after which it is, with the next record.
    """

    def __init__(
        self,
        store: SegmentStore,
        opened: SegmentFacts,
        clock: Clock,
        *,
        process: str | None = None,
        max_blocks: int = 45_000,
        max_bytes: int = 64 * 1024 * 1024,
        max_records: int = 1_000_000,
        max_age: timedelta = timedelta(days=1),
    ) -> None:
        if max_blocks < 2 or max_bytes < 1 or max_records < 2 or max_age <= timedelta(0):
            raise ValueError("a segment has at least two blocks, two records, one byte and some time")
        self._store, self._opened, self._clock = store, opened, clock
        self._process = process or str(uuid.uuid4())
        self._max_blocks, self._max_bytes = max_blocks, max_bytes
        self._max_records, self._max_age = max_records, max_age
        self._pid = os.getpid()
        self._lock = (
            threading.Lock()
        )  # guards all below. Taken as itself: an interrupt can hit a Condition's `__exit__`
        self._changed = threading.Condition(self._lock)  # wakes the flusher
        self._chain: Chain | None = None
        self._opened_at: datetime | None = None  # the current segment
        self._groups: deque[Group] = deque()  # oldest first; the last may still grow
        self._due = False  # something of what is pending is to be written now
        self._blocks = 0  # appends to the current segment, those under way included
        self._thread: threading.Thread | None = None
        self._asleep = False  # the flusher, until somebody wakes it; else it looks again in a moment
        self._writing: threading.Thread | None = None  # who is with the store,
        self._in_hand: Group | None = None  # and with what
        self._closed = False
        self._poison: BaseException | None = None

    def append(
        self, model: type[Record], *, bundle: str | None = None, prompt: bool = True, **facts: Any
    ) -> Receipt:
        """Add a record to the chain. Does not wait: call `wait` on the receipt before anything is let out.

        Args:
            model: `Read`, `SasIssued`, ...
            bundle: UUID of the bundle on whose behalf.
            prompt: Somebody is about to wait for it. Otherwise it is written with the next that is, or when somebody
                waits after all, or after a moment.
            facts: The model's own fields; `seq`, `prev`, `time` and `kind` are filled in here.
        Raises:
            AuditError: The record is not valid, or seems to hold a secret. Nothing was added.
            AuditUnavailable: Poisoned, closed, or in a forked process. Nothing was added.
        """
        if model in _OWN:
            raise AuditError(f"{model.__name__} records are written by the trail itself")
        self._check_process()
        with self._lock:
            self._check_usable()
            now = self._clock()
            draft = self._begin(now)
            draft.add(model, now, bundle, facts)
            try:
                self._start()
                group = self._take(draft)
            except BaseException as error:  # an interrupt between two steps may have torn the chain
                self._fail(error)
                raise
            self._due = self._due or prompt or len(self._groups) > 1
            if self._asleep or (self._due and self._writing is None):
                self._changed.notify()
            return Receipt(self, group)

    @property
    def segments(self) -> tuple[str, ...]:
        """The names of the segments that have been begun, in order."""
        chain = self._chain
        return tuple(segment_name(self._process, number) for number in range(chain.number + 1)) if chain else ()

    @property
    def broken(self) -> bool:
        """Whether the store gave up: nothing can be recorded here any more, and what waited has failed."""
        return self._poison is not None

    def close(self, timeout: float | None = None) -> None:
        """Make everything durable and end the thread. Closing again does nothing more.

        Args:
            timeout: Seconds to wait; None waits as long as the store tries.
        Raises:
            AuditUnavailable: Some record is not durable.
        """
        if os.getpid() != self._pid:
            return  # the parent's records are the parent's to write
        self._check_elsewhere()
        with self._lock:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread.ident is not None:
            thread.join(timeout)
            if thread.is_alive():
                raise AuditUnavailable(f"the audit segment was not written within {timeout} s")
        self._check_poison()

    # The chain: under the lock, in the caller's thread.

    def _begin(self, now: datetime) -> Draft:
        """A draft that goes on where the chain ends; it begins with the lines that open or roll a segment, if due."""
        chain = self._chain
        if chain is None:
            draft = Draft(Chain(number=0, segment=segment_name(self._process, 0)))
            self._open(draft, now, previous=None)
        elif self._is_full(chain, now):
            if chain.number == _LAST_NUMBER:
                self._fail(AuditUnavailable(f"the audit segment {chain.segment} cannot be continued: it is the last"))
                self._check_poison()
            draft = Draft(chain)
            following = segment_name(self._process, chain.number + 1)
            draft.add(SegmentRolled, now, None, {"next": following})
            head = draft.chain.prev
            draft.chain = draft.chain._replace(number=chain.number + 1, segment=following, seq=0, size=0)
            self._open(draft, now, previous=Previous(segment=chain.segment, head=head))
        else:
            draft = Draft(chain)
        return draft

    def _is_full(self, chain: Chain, now: datetime) -> bool:
        return (
            chain.size >= self._max_bytes
            or chain.seq >= self._max_records - 1  # and the line that names the next
            or (self._opened_at is not None and now - self._opened_at >= self._max_age)
            or (self._blocks >= self._max_blocks - 1 and not self._growing())
        )

    def _open(self, draft: Draft, now: datetime, previous: Previous | None) -> None:
        facts = {name: getattr(self._opened, name) for name in SegmentFacts.__slots__}
        facts |= {"segment": draft.chain.segment, "accounts": dict(self._opened.accounts), "previous": previous}
        draft.add(SegmentOpened, now, None, facts)

    def _take(self, draft: Draft) -> Group:
        """Have the draft's lines written; returns the group of the last."""
        group = self._growing()
        for at, line in draft.lines:
            if at.seq == 0:
                self._blocks, self._opened_at = 0, draft.chain.time
                first = self._group(at)
                (group or first).creates.append(at.segment)  # before `segment_rolled` is written: what it names exists
                group = first
            elif group is None:
                group = self._group(at)
            group.chunks.append(line)
            group.size += len(line)
        self._chain = draft.chain
        return self._groups[-1]

    def _group(self, at: Chain) -> Group:
        group = Group(at.segment, at.size)
        self._groups.append(group)
        self._blocks += 1
        return group

    def _growing(self) -> Group | None:
        """The group that still takes records, if any."""
        group = self._groups[-1] if self._groups else None
        return group if group is not None and group.size <= _GROUP_BYTES else None

    # Writing: one thread at a time, which holds the lock only to take a group and to let go of it.

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush, name="beam-entra-audit", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter is shutting down
                raise AuditUnavailable(f"the audit flusher cannot start: {error}") from error

    def _flush(self) -> None:
        try:
            while (group := self._next()) is not None:
                self._write(group)
        except BaseException as error:  # noqa: BLE001  it ends here: nobody may wait for ever
            self._give_up(error)

    def _next(self) -> Group | None:
        """What the flusher is to write, when there is something; None at the end."""
        quiet = False
        with self._lock:
            while self._writing is not None or not (self._groups and (self._due or self._closed)):
                if self._writing is None and (self._closed or self._poison is not None):
                    return None
                oldest, chain = self._groups[0] if self._groups else None, self._chain
                self._asleep = quiet
                woken = self._changed.wait(None if quiet else _MOMENT_S)
                self._asleep = False
                quiet = not woken and oldest is None and chain is self._chain  # a moment without a record
                self._due = self._due or (not woken and oldest in self._groups)
            return self._begin_writing()

    def _turn(self, group: Group, *, able: bool) -> Group | None:
        """What somebody who waits for this group is to write himself, if he is able to; None if it is for others."""
        with self._lock:
            if group.settled.is_set():
                return None
            if able and self._writing is None:
                return self._begin_writing()
            self._due = self._due or bool(self._groups)
            if self._writing is None:
                self._changed.notify()
            return None

    def _begin_writing(self) -> Group:
        """The oldest group, for the caller to write; there is one. Under the lock."""
        group = self._in_hand = self._groups.popleft()
        self._writing = threading.current_thread()
        self._due = self._due and bool(self._groups)
        return group

    def _write(self, group: Group) -> None:
        failure: BaseException | None = None
        try:
            for name in group.creates:
                self._store.create(name)
            self._store.append(group.segment, group.offset, b"".join(group.chunks))
        except BaseException as error:  # noqa: BLE001  told to all who wait
            failure = error
        with self._lock:
            if failure is None:
                group.chunks.clear()  # whoever has a receipt keeps the group
                group.durable = True
            else:
                self._fail(failure)
            group.settled.set()
            self._writing = self._in_hand = None
            if self._due or self._closed or self._poison is not None:
                self._changed.notify()

    # Failure.

    def _fail(self, error: BaseException) -> None:
        """Poison the writer, under the lock. The first reason stays."""
        if self._poison is None:
            self._poison = error
            if isinstance(error, AuditUnavailable):  # without a traceback, which would keep what its frames hold
                self._poison = AuditUnavailable(error.message, error.diagnosis)
        while self._groups:
            self._groups.popleft().settled.set()
        self._changed.notify()

    def _give_up(self, error: BaseException) -> None:
        """Poison the writer if it is the caller who was with the store, or was to be."""
        caller = threading.current_thread()
        with self._lock:
            if caller not in (self._writing, self._thread):
                return
            self._fail(error)
            if caller is self._writing:
                if self._in_hand is not None:
                    self._in_hand.settled.set()
                self._writing = self._in_hand = None
                self._changed.notify()

    def _wait(self, group: Group, timeout: float | None) -> None:
        self._check_process()
        self._check_elsewhere()
        # An interrupt reaches the main thread alone, and might leave what that writes half done.
        able = timeout is None and threading.current_thread() is not threading.main_thread()
        try:
            while (mine := self._turn(group, able=able)) is not None:
                self._write(mine)
        except BaseException as error:
            self._give_up(error)
            raise
        if not group.settled.wait(timeout):
            raise AuditUnavailable(
                f"an audit record was not durable after {timeout} s",
                Diagnosis(tried=f"append to {group.segment}", hint="the audit container is slow or out of reach"),
            )
        if not group.durable:
            self._check_poison()
            raise AuditUnavailable("an audit record was not written")

    def _check_elsewhere(self) -> None:
        if threading.current_thread() is self._writing:
            raise AuditUnavailable("the audit store waits for a record that only it can write")

    def _check_usable(self) -> None:
        self._check_poison()
        if self._closed and threading.current_thread() is not self._writing:  # the store may need a new SAS to end with
            raise AuditUnavailable("the audit segment is closed; no access can be recorded any more")

    def _check_poison(self) -> None:
        poison = self._poison
        if isinstance(poison, AuditUnavailable):
            raise AuditUnavailable(poison.message, poison.diagnosis) from poison
        if poison is not None:
            raise AuditUnavailable(f"the writing of the audit ended with {type(poison).__name__}") from poison

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise AuditUnavailable("an audit segment does not survive a fork: open one in this process")
