"""A restriction that is done in one claim, or put off: of what comes after it, all is left to whoever resumes."""

from __future__ import annotations

from typing import Any

from apache_beam.io.iobase import RestrictionProgress, RestrictionTracker

__all__ = ["OneClaim"]


class OneClaim(RestrictionTracker):  # type: ignore[misc]  # Beam's class is untyped
    """One claim: of the restriction that will be left after it. What is split off is that, as a whole.

    Args:
        restriction: A tuple that says by `over` whether there is nothing to do any more.
        done: The restriction of its kind that is over.
        unfinished: What to say when a bundle ends before it was claimed.
    """

    def __init__(self, restriction: Any, done: Any, *, unfinished: str) -> None:
        self._restriction, self._done, self._unfinished = restriction, done, unfinished
        self._after: Any = None
        self._stopped: bool = restriction.over

    def current_restriction(self) -> Any:
        return self._restriction

    def try_claim(self, position: Any) -> bool:
        if self._stopped or self._after is not None:
            return False
        self._after = position
        return True

    def try_split(self, fraction_of_remainder: float) -> tuple[Any, Any] | None:
        """Whatever the fraction: it is done as a whole, or not at all."""
        rest = self._restriction if self._after is None else self._after
        if self._stopped or rest.over:
            return None
        self._stopped = True
        self._restriction = self._done
        return self._done, rest

    def check_done(self) -> None:
        if not self._stopped and not (self._after is not None and self._after.over):
            raise ValueError(self._unfinished)

    def current_progress(self) -> RestrictionProgress:
        done = self._stopped or self._after is not None
        return RestrictionProgress(completed=float(done), remaining=float(not done))

    def is_bounded(self) -> bool:
        return True
