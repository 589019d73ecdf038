"""The sessions of this process: one for each job."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from beam_entra.clock import Clock, utc_now
from beam_entra.errors import AuditUnavailable
from beam_entra.session.scope import JobScope
from beam_entra.session.session import Session

__all__ = ["adopt_session", "close_session", "end_pauses", "has_ended", "live_scopes", "open_session"]

_SESSIONS: dict[str, Session] = {}
_ENDED: deque[str] = deque(maxlen=1000)
_LOCK = threading.Lock()


def open_session(scope: JobScope, *, clock: Clock = utc_now) -> Session:
    """This process's session of a job; made at the first call.

    A forked child makes its own. One whose trail could not be written is replaced: a bundle that is tried again gets a
    new segment, and a store that is back.
    """
    ended: list[Session] = []
    with _LOCK:
        session = _SESSIONS.get(scope.job)
        if session is None or session.broken or session.pid != os.getpid():
            ended = _take_ended()
            session = _SESSIONS[scope.job] = Session(scope, clock=clock)
    for other in ended:  # not under the lock: it may take as long as their store does
        with contextlib.suppress(AuditUnavailable):
            other.close()
    return session


def live_scopes(*, started: bool = False) -> list[JobScope]:
    """The jobs that have a session in this process, those whose time is over left out.

    Args:
        started: Leave out those of which nothing has been recorded, too: nothing has been done for them.
    """
    with _LOCK:
        sessions = list(_SESSIONS.values())
    return [each.scope for each in sessions if not each.over and (each.started or not started)]


def has_ended(job: str) -> bool:
    """Whether the job's session was closed in this process: its trail may be sealed, and takes no more records."""
    with _LOCK:
        return job in _ENDED and job not in _SESSIONS


def _start_over() -> None:
    """In a forked child: sessions are the parent's, and the lock may be held by a thread that is not here."""
    global _LOCK  # noqa: PLW0603 - there is one a process
    _LOCK = threading.Lock()
    _SESSIONS.clear()


os.register_at_fork(after_in_child=_start_over)


def adopt_session(session: Session) -> None:
    """Make `session` the one that this process's DoFns use for its job; for tests with a clock or source of theirs."""
    with _LOCK:
        _SESSIONS[session.scope.job] = session


def close_session(job: str) -> None:
    """Close this process's session of a job, if there is one.

    Raises:
        AuditUnavailable: Some record is not durable.
    """
    with _LOCK:
        session = _SESSIONS.pop(job, None)
        _ENDED.append(job)
    if session is not None and session.pid == os.getpid():
        session.close()


def end_pauses() -> None:
    """Have nobody in this process wait for Entra or Storage to be better: somebody wants it to end."""
    for session in list(_SESSIONS.values()):  # without the lock, which the interrupted thread may hold
        session.interrupt()


def _take_ended() -> list[Session]:
    """A worker process that serves many jobs drops those whose time is over. Their records are durable long since."""
    ended = [job for job, session in _SESSIONS.items() if session.over]
    return [_SESSIONS.pop(job) for job in ended]
