"""Rotation: a secret that is old, or a certificate that is near its end, is said in time; with `strict` it is refused.

What is known of the age of a secret, by where it is:

    keyvault:   when this version of it was made, and when it ends if it has been given an end
    file:       that it is at least as old as the last writing of the file; a platform may have written it a moment ago
    env:        nothing
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from beam_entra.clock import Clock
from beam_entra.errors import Diagnosis, IdentityRejected

__all__ = ["Rotation", "Secured"]

_LOG = logging.getLogger(__name__)
_NEAR = timedelta(days=30)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """What a reference refers to, byte for byte, and what is known of its age.

    Attributes:
        made: It is as old as this, or older; None where nobody knows.
        ends: When it ends; None where nobody knows, or it does not.
    """

    content: bytes = field(repr=False)
    made: datetime | None = None
    ends: datetime | None = None


class Rotation:
    """Looks at the age of what a job proves itself with. Warns once for each setting; thread-safe.

    Args:
        after: The age from which a secret should have been replaced.
        strict: Refuse it then, instead of warning.
        clock: The worker's.
    """

    def __init__(self, *, after: timedelta, strict: bool, clock: Clock) -> None:
        self._after = after
        self._strict = strict
        self._clock = clock
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def check(self, setting: str, *, made: datetime | None = None, ends: datetime | None = None) -> None:
        """See whether what this setting refers to should have been replaced.

        Raises:
            IdentityRejected: It has ended; or it should have been replaced, and the manifest is strict.
        """
        now = self._clock()
        kind = setting.replace("_", " ")
        if ends is not None and ends <= now:
            raise IdentityRejected(
                f"the {kind} has expired: it was good until {ends:%Y-%m-%d %H:%M} UTC",
                Diagnosis(hint="make a new one, have the other side know it, and update what [identity] refers to"),
            )
        if ends is not None and ends - now < _NEAR:
            self._say(setting, f"the {kind} ends in {(ends - now) // _DAY} days, on {ends:%Y-%m-%d}", "replace it")
        elif made is not None and now - made > self._after:
            old, limit = (now - made) // _DAY, f"{self._after / _DAY:g}"
            self._say(
                setting,
                f"the {kind} is {old} days old or more, and should be replaced after {limit} ([identity] rotate_after)",
                "replace it, or choose a credential without a secret",
            )

    def _say(self, setting: str, finding: str, fix: str) -> None:
        if self._strict:
            raise IdentityRejected(f"{finding}; the manifest is strict", Diagnosis(hint=fix))
        with self._lock:
            if setting in self._warned:
                return
            self._warned.add(setting)
        _LOG.warning("%s. %s", finding, fix[0].upper() + fix[1:])
