"""`--preflight`: the doctor's checks before a launch."""

from __future__ import annotations

from rich.console import Console

from beam_entra.access import AccessManifest
from beam_entra.doctor import Examination, Mark, Printer
from beam_entra.errors import Diagnosis, PreflightFailed

__all__ = ["check_before_launch"]


def check_before_launch(manifest: AccessManifest) -> None:
    """Run the checks and print them on standard error.

    Raises:
        PreflightFailed: One of them failed; the message has each failing line.
    """
    printer = Printer(Console(stderr=True, highlight=False, markup=False, emoji=False))
    examination = Examination(lambda: manifest)
    for finding in examination.run():
        printer.show(finding)
    printer.end(examination)
    failing = [finding for finding in examination.findings if finding.mark is Mark.FAIL]
    if failing:
        lines = [f"{each.check}: {each.about + ': ' if each.about else ''}{each.found}" for each in failing]
        raise PreflightFailed(
            "the job was not launched, since it could not run: " + "; ".join(lines),
            Diagnosis(
                tried=f"launch {manifest.pipeline} in {manifest.environment}",
                hint="; ".join(dict.fromkeys(each.fix for each in failing if each.fix)),
            ),
        )
