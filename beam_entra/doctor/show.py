"""The findings on paper: lines for people, as they come; JSON for machines, at the end."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text

from beam_entra.doctor.checks import Examination
from beam_entra.doctor.finding import Finding, Mark
from beam_entra.errors import printable

__all__ = ["Printer", "as_json"]

_SHAPE = 1
_LABELS = {Mark.OK: "ok", Mark.WARN: "warn", Mark.FAIL: "FAIL", Mark.SKIPPED: "skip"}
_STYLES = {Mark.OK: "green", Mark.WARN: "yellow", Mark.FAIL: "bold red", Mark.SKIPPED: "dim"}
_CHECK_WIDTH = len("delegation key")
_INDENT = " " * (2 + 4 + 2 + _CHECK_WIDTH + 2)
_WIDEST, _NARROWEST = 120, 72


class Printer:
    """Prints findings as they come; those that were not looked at for the same reason, in one line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = max(_NARROWEST, min(console.width, _WIDEST)) if console.is_terminal else _WIDEST
        self._blocked: list[Finding] = []

    def show(self, finding: Finding) -> None:
        """Print the next one."""
        if self._blocked and finding.because != self._blocked[-1].because:
            self._flush()
        if finding.because:
            self._blocked.append(finding)
        else:
            self._line(finding.mark, finding.check, finding.about, finding.found, finding.fix)

    def end(self, examination: Examination) -> None:
        """Print how it went, and where its record is."""
        self._flush()
        counts = Counter(finding.mark for finding in examination.findings)
        tally = ", ".join(f"{counts[mark]} {_LABELS[mark].lower()}" for mark in Mark if counts[mark])
        verdict, style = ("This job can run", "bold green") if not examination.failures else (
            f"This job cannot run: see {', '.join(examination.failures)}",
            "bold red",
        )
        self._console.print()
        self._console.print(Text.assemble((verdict, style), f" ({tally})"), soft_wrap=True)
        if examination.seal_digest:
            self._console.print(Text(f"seal digest {examination.seal_digest}", "dim"), soft_wrap=True)

    def _flush(self) -> None:
        blocked, self._blocked = self._blocked, []
        checks = list(dict.fromkeys(each.check for each in blocked))
        if len(checks) > 1:
            self._line(Mark.SKIPPED, f"{len(checks)} checks", "", f"{blocked[0].found}: {', '.join(checks)}")
        elif checks:
            self._line(Mark.SKIPPED, checks[0], "", blocked[0].found)

    def _line(self, mark: Mark, check: str, about: str, found: str, fix: str = "") -> None:
        text = f"{about}: {found}" if about else found
        lines = [line for part in text.splitlines() for line in self._wrapped(part)]
        style = "dim" if mark is Mark.SKIPPED else ""
        head = Text.assemble("  ", (f"{_LABELS[mark]:<4}", _STYLES[mark]), f"  {check:<{_CHECK_WIDTH}}  ")
        self._console.print(head + Text(lines[0], style), soft_wrap=True)
        for line in lines[1:]:
            self._console.print(Text(_INDENT + line, style), soft_wrap=True)
        for at, line in enumerate(self._wrapped(fix, less=len("fix: "))):
            self._console.print(Text(f"{_INDENT}{'fix:' if not at else '    '} {line}", "bold"), soft_wrap=True)

    def _wrapped(self, text: str, *, less: int = 0) -> list[str]:
        width = self._width - len(_INDENT) - less
        return textwrap.wrap(printable(text), width, break_long_words=False, break_on_hyphens=False)


def as_json(examination: Examination) -> dict[str, Any]:
    """The whole examination in a shape that stays as it is while `doctor` is 1; see docs/doctor.md."""
    return {
        "doctor": _SHAPE,
        "ok": not examination.failures,
        "failed": list(examination.failures),
        "job": examination.job,
        "trail": examination.trail,
        "seal_digest": examination.seal_digest,
        "checks": [
            {
                "check": finding.check,
                "about": finding.about,
                "mark": finding.mark.value,
                "found": finding.found,
                "fix": finding.fix,
                "facts": dict(finding.facts),
            }
            for finding in examination.findings
        ],
    }
