"""The samples of docs/doctor.md are what is printed, but for ids, times and ports."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.doctor import Examination, Finding, Mark, Printer
from beam_entra.testing.local import LocalCloud
from tests.doctor.conftest import LAKE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
MASKS = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "<guid>",
    r"[0-9a-f]{64}": "<digest>",
    r"\d{8}T\d{6}Z-[0-9a-f]{6}": "<time>",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC": "<instant>",
    r"port \d+": "port <n>",
    r"\d+ records": "<n> records",
    r"this token [\w ]+ more": "this token <span> more",
    r"\s+": " ",  # where a line is wrapped depends on what is masked
}


def masked(text: str) -> list[str]:
    """The findings, each in one line, without what is another in each run."""
    lines = re.split(r"\n(?=  \w|\S|\n)", text.strip("\n"))
    for pattern, what in MASKS.items():
        lines = [re.sub(pattern, what, line).strip() for line in lines]
    return [line for line in lines if line]


@pytest.fixture
def manifest(beam_entra_cloud: LocalCloud) -> AccessManifest:
    """The README's, for the local cloud, with its containers and one blob there."""
    for name in ("raw", "curated", "audit"):
        beam_entra_cloud.create_container(LAKE, name)
    beam_entra_cloud.upload(LAKE, "raw", "orders/a.jsonl", b"{}\n")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```toml\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    text = re.sub(r'"contoso\.onmicrosoft\.com"', f'"{beam_entra_cloud.tenant_id}"', text)
    text = re.sub(r'(client +=) "[^"]+"', rf'\1 "{beam_entra_cloud.client_id}"', text)
    text = text.replace("env:AZURE_FEDERATED_TOKEN_FILE", str(beam_entra_cloud.assertion_file))
    return AccessManifest.parse(text, file="orders.access.toml").at(Endpoints.load(beam_entra_cloud.endpoints_file))


def printed(manifest: AccessManifest) -> tuple[str, list[Finding]]:
    """What the command prints."""
    out = io.StringIO()
    printer, examination = Printer(Console(file=out)), Examination(lambda: manifest)
    for finding in examination.run():
        printer.show(finding)
    printer.end(examination)
    return out.getvalue(), examination.findings


def sample(number: int) -> str:
    """A sample of the page."""
    return re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[number]


def test_the_sample_of_a_job_that_can_run(manifest: AccessManifest) -> None:
    """Line by line."""
    text, _ = printed(manifest)
    assert masked(text) == masked(sample(0))


def test_the_sample_of_a_job_that_cannot(beam_entra_cloud: LocalCloud, manifest: AccessManifest) -> None:
    """The lines that fail, and the end; the page leaves the others out."""
    operations = {"PutBlockList", "ListBlobs"}
    beam_entra_cloud.proxy.without_role(
        where=lambda each: each.operation in operations and each.container in {"raw", "curated"}
    )
    text, findings = printed(manifest)
    assert {finding.check for finding in findings if finding.mark is Mark.FAIL} == {"read", "write"}
    assert set(masked(sample(1))) <= set(masked(text))


def test_the_page_names_every_check(manifest: AccessManifest) -> None:
    """And every fact that it gives when it is ok."""
    _, findings = printed(manifest)
    rows = {name: row for row in PAGE.splitlines() if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row)}
    for finding in findings:
        assert finding.check in rows
        assert finding.facts.keys() <= set(re.findall(r"\w+", "".join(_rows_of(finding.check)))), finding.check


def _rows_of(check: str) -> list[str]:
    return [row for row in PAGE.splitlines() if row.startswith("| `") and f"`{check}`" in row.split("|")[1]]
