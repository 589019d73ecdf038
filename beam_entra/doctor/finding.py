"""What a check says: one finding is one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from beam_entra.errors import BeamEntraError

__all__ = ["Fact", "Finding", "Mark", "blocked", "failed", "failed_with", "good", "skipped", "warned"]

Fact = str | int | float
_BLOCKED = "not looked at, since "


class Mark(StrEnum):
    """How a check ended. Only FAIL stops a launch."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the examination. Holds no secret.

    Attributes:
        check: What was looked at: `token`, `write`.
        about: Of what: a host, an account, a path; empty where there is one alone.
        found: A sentence.
        fix: What to do about it, as an instruction; empty where there is nothing to do.
        because: What was found before, if that is why this was not looked at.
        facts: The same for machines: ids, instants (ISO 8601), the service's status, code and request id.
    """

    check: str
    mark: Mark
    found: str
    about: str = ""
    fix: str = ""
    because: str = ""
    facts: Mapping[str, Fact] = field(default_factory=dict)


def good(check: str, about: str, found: str, **facts: Fact) -> Finding:
    """All is as it should be."""
    return Finding(check=check, about=about, mark=Mark.OK, found=found, facts=facts)


def warned(check: str, about: str, found: str, fix: str, **facts: Fact) -> Finding:
    """The job can run; somebody should look at it."""
    return Finding(check=check, about=about, mark=Mark.WARN, found=found, fix=fix, facts=facts)


def failed(check: str, about: str, found: str, fix: str, **facts: Fact) -> Finding:
    """The job could not run."""
    return Finding(check=check, about=about, mark=Mark.FAIL, found=found, fix=fix, facts=facts)


def failed_with(check: str, about: str, error: BeamEntraError, fix: str = "") -> Finding:
    """The same, for an error of ours.

    Args:
        fix: A better one than the error's own.
    """
    known = error.diagnosis
    answer = ", ".join(
        part
        for part in (
            f"HTTP {known.status}" if known.status and f"HTTP {known.status}" not in error.message else "",
            known.code,
            f"request id {known.request_id}" if known.request_id else "",
            f"correlation id {known.correlation_id}" if known.correlation_id else "",
            f"{known.attempts} attempts" if known.attempts > 1 else "",
        )
        if part
    )
    found = error.message + (f" ({answer})" if answer else "")
    return Finding(check=check, about=about, mark=Mark.FAIL, found=found, fix=fix or error.hint, facts=_facts(error))


def skipped(check: str, about: str, why: str) -> Finding:
    """There is nothing to look at, or it cannot be known."""
    return Finding(check=check, about=about, mark=Mark.SKIPPED, found=why)


def blocked(check: str, about: str, why: str) -> Finding:
    """It was not looked at because of something that was found before."""
    return Finding(check=check, about=about, mark=Mark.SKIPPED, found=f"{_BLOCKED}{why}", because=why)


def _facts(error: BeamEntraError) -> dict[str, Fact]:
    known = error.diagnostics()
    names = ("error", "status", "code", "request_id", "correlation_id", "attempts")
    return {name: known[name] for name in names if name in known}
