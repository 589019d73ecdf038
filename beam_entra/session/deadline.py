"""When the rights of a job end in one process: at a fixed time, or later with each proof that its identity is alive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.secret import Secret
from beam_entra.session.scope import JobScope, whole_seconds

__all__ = ["Deadline"]


class Deadline:
    """The deadline of one session.

    A fixed one is the job scope's. A rolling one is the manifest's `job` after the last fresh token was acquired; a
    process has as long to get its first. It never goes back.

    Args:
        now: When the session is opened.
    """

    def __init__(self, scope: JobScope, now: datetime) -> None:
        life = scope.manifest.lifetime
        self._life = life.job
        self.rolling = life.rolling
        self._at = whole_seconds(now + life.job) if life.rolling else scope.deadline
        self._freshest: datetime | None = None  # end of the token that has moved it
        self._digest = b""  # of that token

    @property
    def at(self) -> datetime:
        """Where it stands, in whole seconds."""
        return self._at

    def extend(
        self, token: Secret, *, acquired: datetime, expires: datetime, told: Callable[[datetime], object]
    ) -> None:
        """Move it on, if it is a rolling one and the token is fresh: who gets one is alive.

        A token from somebody's cache proves nothing. It is the one before, whose end may seem to be another now, where
        it is counted from when it came; or it ends earlier.

        Args:
            token: The token itself. It is not kept.
            told: Called with where it will stand, before it does: the audit.

        Raises:
            ConfigError: The token lives longer than the job may go on without a fresh one.
        """
        if not self.rolling or (self._freshest is not None and expires <= self._freshest):
            return
        digest = hashlib.sha256(token.reveal().encode()).digest()
        if digest == self._digest:
            return
        at = whole_seconds(acquired + self._life)
        if expires > at:
            raise ConfigError(
                f"a rolling life of {self._life} is shorter than that of this identity's tokens, {expires - acquired}",
                Diagnosis(hint="make [lifetime] job in the access manifest longer than a token lives"),
            )
        if self._freshest is None or at > self._at:
            told(at)
            self._at = at
        self._freshest, self._digest = expires, digest
