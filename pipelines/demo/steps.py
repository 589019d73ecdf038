"""The demo's steps: sample orders, the job, its totals held against others, its trail verified, one refusal."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_entra.access import AccessManifest
from beam_entra.paths import BlobPath
from beam_entra.testing.local import BlobAdmin
from pipelines.demo.cloud import Cloud
from pipelines.demo.data import write_sample_data
from pipelines.demo.follow import TrailFollower
from pipelines.demo.process import Finished, run
from pipelines.demo.screen import Screen
from pipelines.demo.totals import Expected, Outcome, compute, differences, read_outputs

__all__ = ["ACCOUNT", "CLI", "MANIFEST", "Demo", "Job", "shown"]

MANIFEST = Path("pipelines", "orders.access.toml")
ACCOUNT = "contosolake"
CLI = Path(sys.executable).with_name("beam-entra")
_RAW = BlobPath(account=ACCOUNT, container="raw", name="")
_CURATED = BlobPath(account=ACCOUNT, container="curated", name="")
_FORBIDDEN = "salaries/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run of the orders pipeline.

    Attributes:
        report: What it wrote with `--job_report`; empty when it wrote none.
        trail: The local copy of its audit trail.
    """

    finished: Finished
    report: dict[str, Any]
    trail: Path


class Demo:
    """The steps, in order. Each adds to `problems` what does not hold."""

    def __init__(self, screen: Screen, cloud: Cloud, manifest: AccessManifest, folder: Path, runner: str) -> None:
        self.screen, self.cloud, self.manifest, self.folder, self.runner = screen, cloud, manifest, folder, runner
        self.problems: list[str] = []
        self.output = _CURATED.child(f"orders/run-{datetime.now(UTC):%Y%m%dT%H%M%SZ}/")

    def upload_orders(self, count: int) -> Expected:
        """Make sample data, upload it, and compute what must come of it."""
        self.screen.step("Sample orders")
        source = self.folder / "input"
        write_sample_data(source, orders=count)
        admin = self.cloud.admin
        for container in ("raw", "curated", "audit"):
            admin.create_container(ACCOUNT, container)
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            admin.upload(ACCOUNT, _RAW.container, path.relative_to(source).as_posix(), path.read_bytes())
        admin.upload(ACCOUNT, _RAW.container, f"{_FORBIDDEN}2026-03.jsonl", b'{"name":"Ada","salary":"9000.00"}\n')
        expected = compute(source, url=str(_RAW))
        size = f"{expected.files} blobs, {expected.lines:,} lines, {expected.size_bytes / 1e6:.1f} MB"
        self.screen.say(f"{size} in {_RAW}orders/")
        self.screen.say("0.5 % of the lines are no orders, 1 % come twice, one blob is compressed", "dim")
        return expected

    def run_the_job(self, expected: Expected) -> Job:
        """The job itself, with live progress from its own audit trail."""
        self.screen.step("The job")
        identity = self.manifest.identity
        self.screen.say(f"as client {identity.client} of {identity.tenant}", "dim")
        self.screen.say(f"by {identity.credential}: a federated credential, there is no secret anywhere", "dim")
        command = self._command(f"{_RAW}orders/*", self.output)
        follower = TrailFollower(self.cloud.admin, self.manifest.audit)
        with self.screen.progress(expected.size_bytes, follower.look) as tick:
            job = self._launch(command, tick)
        self.screen.say(job.finished.out.strip())
        if job.finished.status or not job.report:
            self.screen.error(job.finished.err)
            self.problems.append(f"the job ended with status {job.finished.status}")
        return job

    def check_totals(self, expected: Expected, job: Job) -> None:
        """Hold what was written against what was computed without Beam."""
        self.screen.step("Held against totals that were computed without Beam")
        copy = self.folder / "output"
        download(self.cloud.admin, self.output, copy)
        names = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]
        try:
            found = read_outputs(names, lambda name: (copy / name).read_bytes())
        except ValueError as error:
            self.problems.append(str(error))
            return
        told = differences(expected.outcome, found)
        counters = Counter(job.report["metrics"])
        lines = counters["records_read"] - expected.products + counters["records_bad"]
        if lines != expected.lines:
            told.append(f"lines: the job counted {lines:,}, not {expected.lines:,}")
        self.screen.table(_totals_rows(expected, found, lines), head=("", "the job", "computed", ""))
        self.problems += told
        if not told:
            self.screen.good("equal: every order, each day's revenue to the cent, every dead letter by blob and byte")

    def verify(self, job: Job) -> None:
        """The real `beam-entra audit verify`, on the copy of the trail."""
        self.screen.step("The audit trail")
        records, metrics = job.report["records"], job.report["metrics"]
        audited = [
            ("tokens", "token_acquired", "from Entra, one a process"),
            ("delegation keys", "key_acquired", "from Storage, for that token"),
            ("SAS", "sas_issued", "each for one blob and one permission"),
            ("reads", "read", f"{metrics.get('bytes_read', 0) / 1e6:.1f} MB"),
            ("staged blocks", "staged", f"{metrics.get('bytes_staged', 0) / 1e6:.1f} MB, invisible until the commit"),
            ("commits", "committed", "each blob once"),
        ]
        rows = [(what, f"{records.get(kind, 0):,}", remark) for what, kind, remark in audited]
        rows.append(("refreshes", f"{metrics.get('sas_refreshed', 0):,}", "SAS renewed within a bundle"))
        rows.append(("denials", f"{records.get('denied', 0):,}", ""))
        rows.append(("records", f"{sum(records.values()):,}", "chained, and durable before the data moved on"))
        self.screen.table(rows)
        words = ["beam-entra", "audit", "verify", shown(job.trail), "--seal-digest", job.report["seal_digest"]]
        self.screen.command(words)
        verified = run([str(CLI), *words[1:]], env=self.cloud.environment)
        self.screen.say((verified.out + verified.err).strip(), "dim")
        if verified.status:
            self.problems.append("the audit trail does not verify")
        else:
            self.screen.good("audit: sealed and verified")

    def show_refusal(self) -> None:
        """The same pipeline, pointed at data that is there and that its manifest does not grant."""
        self.screen.step("The same pipeline, pointed at what its manifest does not grant")
        job = self._launch(self._command(f"{_RAW}{_FORBIDDEN}*", _CURATED.child("orders/never/")))
        self.screen.error(job.finished.err)
        denials = [record for record in records_of(job.trail) if record["kind"] == "denied"]
        if job.finished.status == 0 or not denials:
            self.problems.append("the job was not refused, or the refusal does not stand in its trail")
            return
        self.screen.say("\nand so it stands in the trail:")
        self.screen.say(json.dumps(denials[0], indent=2), "yellow")
        self.screen.say("")
        if self.cloud.admin.list_blobs(ACCOUNT, _CURATED.container, "orders/never/"):
            self.problems.append("the refused job has written something")
        self.screen.good("refused before anything was sent, recorded, and sealed")

    def _command(self, orders: str, output: BlobPath) -> list[str]:
        """Show, and return, how a person launches the pipeline."""
        words = [
            "python",
            "-m",
            "pipelines.orders",
            f"--access_manifest={MANIFEST.as_posix()}",
            f"--input={orders}",
            f"--products={_RAW}products.csv",
            f"--output={output}",
            f"--runner={self.runner}",
        ]
        self.screen.command(words)
        return words

    def _launch(self, command: list[str], tick: Callable[[], object] = lambda: None) -> Job:
        """Run the pipeline, and fetch its trail."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        words = [sys.executable, *command[1:], f"--job_report={report}"]
        if self.runner == "DirectRunner":
            words.append("--prism_location=none")  # or Beam would first download a runner into the home folder
        finished = run(words, env=self.cloud.environment, tick=tick)
        written = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        trail = self.folder / "audit" / str(written.get("job", "unknown"))
        if written:
            download(self.cloud.admin, BlobPath.parse(written["audit"]), trail)
        return Job(finished=finished, report=written, trail=trail)


def download(admin: BlobAdmin, prefix: BlobPath, folder: Path) -> None:
    """Copy the blobs below a prefix."""
    for name in admin.list_blobs(prefix.account, prefix.container, prefix.name):
        path = folder / name.removeprefix(prefix.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(admin.download(prefix.account, prefix.container, name))


def records_of(trail: Path) -> list[dict[str, Any]]:
    """The records of a trail's copy."""
    return [json.loads(line) for path in sorted(trail.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _totals_rows(expected: Expected, found: Outcome, lines: int) -> list[tuple[str, ...]]:
    outcome, dead = expected.outcome, found.dead.total()
    duplicates = lines - dead - len(found.rows)
    return [
        ("lines in", f"{lines:,}", f"{expected.lines:,}", f"of {expected.files} blobs"),
        ("dead letters", f"{dead:,}", f"{outcome.dead.total():,}", "each with its blob, byte offset and reason"),
        ("duplicates", f"{duplicates:,}", f"{expected.duplicates:,}", "the newest of each order counts"),
        ("orders out", f"{len(found.rows):,}", f"{len(outcome.rows):,}", ""),
        ("revenue", f"{found.total:,}", f"{outcome.total:,}", f"over {len(found.revenue)} days and categories"),
    ]
