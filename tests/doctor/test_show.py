"""How findings look: aligned, wrapped, and calm where much was not looked at."""

from __future__ import annotations

import io

from rich.console import Console

from beam_entra.doctor import Examination, Finding, Mark, Printer
from beam_entra.doctor.finding import blocked, failed, failed_with, good, skipped
from beam_entra.errors import AccessDenied, ConfigError, Diagnosis
from tests.doctor.conftest import Patient


def shown(*findings: Finding, width: int = 80, terminal: bool = False) -> str:
    """What is printed of findings."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, markup=False, _environ={"TERM": "xterm-256color"})
    printer = Printer(console)
    for finding in findings:
        printer.show(finding)
    examination = Examination(_no_manifest)
    examination.findings = list(findings)
    printer.end(examination)
    return out.getvalue()


def _no_manifest() -> object:
    raise ConfigError("there is none")


def test_lines_are_aligned() -> None:
    """Mark, check, what was found; the fix below it."""
    text = shown(good("token", "", "client a"), failed("write", "abfss://x/", "refused", "give it a role"))
    assert text.splitlines()[:3] == [
        "  ok    token           client a",
        "  FAIL  write           abfss://x/: refused",
        "                        fix: give it a role",
    ]


def test_long_lines_are_wrapped_under_themselves_on_a_terminal() -> None:
    """At the terminal's width; a path is never broken."""
    path = "abfss://raw@contosolake.dfs.core.windows.net/" + "a" * 80
    lines = shown(failed("read", "", "word " * 30 + path, "mend " * 30), terminal=True, width=80).splitlines()
    plain = [line for line in lines if path not in line and "\x1b" not in line]
    assert all(len(line) <= 80 for line in plain)
    assert any(path in line for line in lines)
    assert len([line for line in lines if "fix:" in line]) == 1


def test_colour_is_for_terminals_alone() -> None:
    """A file or a pipe gets text."""
    assert "\x1b[" in shown(good("token", "", "x"), terminal=True)
    assert "\x1b[" not in shown(good("token", "", "x"))


def test_what_was_not_looked_at_for_one_reason_is_one_line() -> None:
    """Several checks in one; another reason begins another."""
    text = shown(
        blocked("audit", "", "there is no token"),
        blocked("read", "abfss://a/", "there is no token"),
        blocked("read", "abfss://b/", "there is no token"),
        blocked("seal", "", "nothing can be recorded"),
        skipped("shared key", "lake", "not known"),
    )
    assert text.splitlines()[:3] == [
        "  skip  2 checks        not looked at, since there is no token: audit, read",
        "  skip  seal            not looked at, since nothing can be recorded",
        "  skip  shared key      lake: not known",
    ]


def test_the_end_counts() -> None:
    """How many of each, in words."""
    last = shown(good("a", "", "x"), good("b", "", "x"), skipped("c", "", "x")).strip().splitlines()[-1]
    assert last == "This job can run (2 ok, 1 skip)"


def test_what_others_said_does_nothing_to_a_terminal() -> None:
    """Control characters are shown, not sent; nor is anything read as markup."""
    text = shown(good("token", "", "a\x1b[2J\x07 [bold]b"))
    assert "\x1b" not in text
    assert r"a\x1b[2J\x07 [bold]b" in text


def test_an_error_with_its_answer() -> None:
    """Status, code and request id stand with the sentence, and apart for machines."""
    error = AccessDenied("refused", Diagnosis(status=403, code="C", request_id="r-1", attempts=2, hint="ask"))
    finding = failed_with("read", "x", error)
    assert (finding.found, finding.fix) == ("refused (HTTP 403, C, request id r-1, 2 attempts)", "ask")
    assert finding.facts == {"error": "AccessDenied", "status": 403, "code": "C", "request_id": "r-1", "attempts": 2}
    said = ConfigError("it answered HTTP 403", Diagnosis(status=403, code="C"))
    assert failed_with("read", "x", said).found == "it answered HTTP 403 (C)"
    assert failed_with("read", "x", error, "better").fix == "better"
    assert failed_with("read", "x", ConfigError("bad")).found == "bad"


def test_the_end_of_a_job_that_cannot_run(patient: Patient) -> None:
    """It names the checks to look at, and the seal's digest."""
    patient.cloud.proxy.without_role(where=lambda request: request.operation == "PutBlockList")
    examination = Examination(patient.manifest)
    out = io.StringIO()
    printer = Printer(Console(file=out))
    for finding in examination.run():
        printer.show(finding)
    printer.end(examination)
    *_, verdict, digest = out.getvalue().splitlines()
    assert verdict.startswith("This job cannot run: see write (")
    assert digest == f"seal digest {examination.seal_digest}"
    assert Mark.FAIL in {finding.mark for finding in examination.findings}
