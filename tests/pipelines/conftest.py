"""Small orders in fresh containers, and the pipeline's own manifest made to fit them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beam_entra.audit.store import FolderTrail
from beam_entra.paths import BlobPath
from beam_entra.testing.local import LocalCloud, LocalContainer
from pipelines.demo.data import write_sample_data
from pipelines.demo.steps import download

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pipelines" / "orders.access.toml"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run of the pipeline that has ended."""

    status: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Everything that it printed, for the message of an assertion."""
        return f"exit code {self.status}\n{self.out}\n{self.err}"


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for the end of a launch; one that does not end is killed."""
    with process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return Ended(status=process.returncode, out=out, err=err)


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Containers for one test, and the pipeline over them."""

    cloud: LocalCloud
    raw: LocalContainer
    curated: LocalContainer
    audit: LocalContainer
    folder: Path

    @property
    def output(self) -> str:
        """Where the pipeline writes to."""
        return self.curated.url("orders/run/")

    @property
    def report_file(self) -> Path:
        """Where it writes its report."""
        return self.folder / "report.json"

    def manifest(self, *changes: tuple[str, str]) -> Path:
        """The shipped manifest, for this test's cloud and containers, with pieces of its text changed."""
        text = SHIPPED.read_text(encoding="utf-8")
        fitting = [
            ("contoso.onmicrosoft.com", self.cloud.tenant_id),
            ("3b0c8a52-6f1e-4d5a-9a7b-2c4d6e8f1a30", self.cloud.client_id),
            ("raw@", f"{self.raw.name}@"),
            ("curated@", f"{self.curated.name}@"),
            ("audit@", f"{self.audit.name}@"),
        ]
        for old, new in [*fitting, *changes]:
            assert old in text, f"the manifest has no {old}"
            text = text.replace(old, new)
        path = self.folder / "orders.access.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def upload_sample(self, orders: int) -> Path:
        """Sample data, and where it is here."""
        source = self.folder / "input"
        write_sample_data(source, orders=orders)
        for path in source.rglob("*"):
            if path.is_file():
                self.raw.upload(path.relative_to(source).as_posix(), path.read_bytes())
        return source

    def launch(
        self,
        *flags: str,
        module: str = "pipelines.orders",
        manifest: Path | None = None,
        stderr: int = subprocess.PIPE,
        own_session: bool = False,
        **changed: str | None,
    ) -> subprocess.Popen[str]:
        """Start `python -m` this module with its usual flags; those in `changed` are others, or left out.

        With a session of its own it has a process group, whose signals reach what it starts, and nobody else.
        """
        usual = {
            "access_manifest": str(manifest or self.manifest()),
            "access_endpoints": str(self.cloud.endpoints_file),
            "input": self.raw.url("orders/*"),
            "products": self.raw.url("products.csv"),
            "output": self.output,
            "job_report": str(self.report_file),
            "runner": "DirectRunner",
            "prism_location": "none",  # or Beam would download a runner
        }
        given = [f"--{name}={value}" for name, value in {**usual, **changed}.items() if value is not None]
        settings = {**os.environ, "AZURE_FEDERATED_TOKEN_FILE": str(self.cloud.assertion_file)}
        settings.pop("BEAM_ENTRA_ENDPOINTS", None)
        return subprocess.Popen(
            [sys.executable, "-m", module, *given, *flags],
            cwd=ROOT,
            env=settings,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=own_session,
        )

    def run(
        self, *flags: str, module: str = "pipelines.orders", manifest: Path | None = None, **changed: str | None
    ) -> Ended:
        """Launch it, and wait for its end."""
        return ended(self.launch(*flags, module=module, manifest=manifest, **changed))

    def report(self) -> dict[str, Any]:
        """What the last run reported."""
        written: dict[str, Any] = json.loads(self.report_file.read_text(encoding="utf-8"))
        return written

    def trail(self) -> FolderTrail:
        """A copy of the last run's trail."""
        report = self.report()
        folder = self.folder / "trails" / report["job"]
        download(self.cloud.admin, BlobPath.parse(report["audit"]), folder)
        return FolderTrail(folder)


@pytest.fixture
def shop(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[[str], LocalContainer], tmp_path: Path
) -> Shop:
    """Fresh containers."""
    raw, curated, audit = (beam_entra_containers(purpose) for purpose in ("raw", "curated", "audit"))
    return Shop(cloud=beam_entra_cloud, raw=raw, curated=curated, audit=audit, folder=tmp_path)
