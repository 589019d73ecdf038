"""Killing whoever sends a request, at that moment: the request waits, the process dies, the request goes on.

Which process a request came from is known by its connection, so that nothing has to be guessed, and nothing slept for.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from beam_entra.testing.storage_requests import StorageRequest
from tests.io.conftest import Lake

__all__ = ["MOMENTS", "Moment", "Storm", "Strike", "at_random", "end", "parent_of", "sender_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A kind of request.

    Attributes:
        container: Where.
        marker: Of the marker of a commit; of any other blob; None for both.
        at_least: How many of that kind each attempt at the job sends.
        recorded: The audit trail has its bundle by then, whatever happens.
        here: Sent by this very process, or by any but this one, which is the launcher.
    """

    name: str
    operation: str
    container: Callable[[Lake], str]
    marker: bool | None = None
    at_least: int
    recorded: bool = False
    here: bool = False

    def meets(self, lake: Lake, request: StorageRequest) -> bool:
        """Whether it is such a request."""
        marked = request.blob.rpartition("/")[2] == "_COMMITTING"
        return (
            request.operation == self.operation
            and request.container == self.container(lake)
            and self.marker in {None, marked}
            and (self.here or sender_of(request) not in {0, os.getpid()})
        )

    def sent_here(self) -> Moment:
        """The same, for a job that runs in this process."""
        return replace(self, here=True)



def _output(lake: Lake) -> str:
    return lake.curated.name


MOMENTS = {
    moment.name: moment
    for moment in (
        Moment(name="read", operation="GetBlob", container=lambda lake: lake.raw.name, at_least=4),
        Moment(name="stage", operation="PutBlock", container=_output, marker=False, at_least=10),
        Moment(name="staged", operation="PutBlock", container=_output, marker=True, at_least=2),
        Moment(name="commit", operation="PutBlockList", container=_output, at_least=6, recorded=True),
        Moment(name="record", operation="AppendBlock", container=lambda lake: lake.audit.name, at_least=10),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What happens when.

    Attributes:
        moment: At which kind of request.
        skip: How many of the kind pass before.
        done: When Storage has done what was asked; else before it has heard of it, which it does later.
        what: What is done, by its name.
    """

    moment: Moment
    skip: int
    done: bool
    what: str


def at_random(chance: random.Random, what: Sequence[str], moments: Sequence[str] = tuple(MOMENTS)) -> Strike:
    """A strike at one of the moments."""
    moment = MOMENTS[chance.choice(moments)]
    return Strike(
        moment=moment, skip=chance.randrange(moment.at_least), done=chance.random() < 0.5, what=chance.choice(what)
    )


@dataclass
class Storm:
    """Strikes at one job, each when the one before has struck.

    Attributes:
        does: What a strike does, by name, to whom: called with the process that sent the request.
        calm: Returns when every strike but the last may come.
        struck: Those that have.
        killed: The processes.
        bundles: The ids of the bundles whose requests these were, where they died of it.
        recorded: Those of them that are in the audit trail for certain.
        errors: What strikes failed with, which are none of the above.
        over: Set when all have struck.
    """

    lake: Lake
    strikes: Sequence[Strike]
    does: dict[str, Callable[[int], set[int]]]
    calm: Callable[[], object] = lambda: None
    struck: list[Strike] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    bundles: set[str] = field(default_factory=set)
    recorded: set[str] = field(default_factory=set)
    errors: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def arm(self) -> None:
        """Have the next strike wait for its moment."""
        if len(self.struck) == len(self.strikes):
            self.over.set()
            return
        strike = self.strikes[len(self.struck)]
        self.lake.cloud.proxy.strike(
            lambda request: self._strike(strike, request),
            answer=strike.done,
            where=lambda request: strike.moment.meets(self.lake, request),
            skip=strike.skip,
        )

    def _strike(self, strike: Strike, request: StorageRequest) -> None:
        try:
            if len(self.struck) + 1 < len(self.strikes):
                self.calm()
            sender = sender_of(request)  # now: another process may have the id of one that ended meanwhile
            killed = self.does[strike.what](sender)
            self.killed |= killed
            if sender in killed and strike.moment.name != "record":
                bundle = request.headers["x-ms-client-request-id"].rpartition("-")[0]
                self.bundles.add(bundle)
                if strike.moment.recorded:
                    self.recorded.add(bundle)
            self.struck.append(strike)
        except ProcessLookupError:
            pass  # its runner was faster; the next such request is met
        except Exception as error:
            self.errors.append(error)
            raise
        self.arm()


def sender_of(request: StorageRequest) -> int:
    """The process at the other end of the request's connection; 0 if that has gone.

    One port alone does not tell: connections to other ports may have the same at their beginning.
    """
    ports = (request.client_port, request.server_port)
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text("ascii").splitlines()[1:]:
            columns = line.split()
            if tuple(int(end.rpartition(":")[2], 16) for end in columns[1:3]) == ports and columns[9] != "0":
                found = _process_with(f"socket:[{columns[9]}]")
                if found:
                    return found
    return 0


def _process_with(file: str) -> int:
    for pid in _processes():
        with suppress(OSError):
            if any(link.readlink() == Path(file) for link in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
    return 0


def _processes() -> Iterator[int]:
    own = os.getuid()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid == own:
                yield int(folder.name)


def parent_of(pid: int) -> int:
    """The process that started it; ProcessLookupError when it has ended, though a thread of another may have its id."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    ids = {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}
    if int(ids["Tgid"]) != pid:
        raise ProcessLookupError(pid)
    return int(ids["PPid"])


def end(*pids: int) -> set[int]:
    """SIGKILL, and wait until they have ended; those that were there. ProcessLookupError when none was."""
    ended = set()
    for pid in filter(None, pids):
        with suppress(ProcessLookupError, FileNotFoundError):  # the id of nobody, or of a thread by now
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                select.select([handle], [], [], 10)
            finally:
                os.close(handle)
            ended.add(pid)
    if not ended:
        raise ProcessLookupError(*pids)
    return ended
