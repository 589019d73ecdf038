"""A lake for each test: fresh containers in the local cloud, a manifest over them, and jobs to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from beam_entra import EntraOptions, ScopedPipeline
from beam_entra.access import AccessManifest, Endpoints
from beam_entra.audit.verify import TrailSummary, verify
from beam_entra.clock import utc_now
from beam_entra.session import BundleSession, JobScope, Session
from beam_entra.testing.local import LocalCloud, LocalContainer

REPOSITORY = Path(__file__).parents[2]
JOB = Path(__file__).with_name("job.py")


class Trail:
    """A job's audit trail, read with the account key."""

    def __init__(self, container: LocalContainer, job: str) -> None:
        self._container, self._folder = container, f"audit/{job}/"

    def names(self) -> list[str]:
        """Its files."""
        return [name.removeprefix(self._folder) for name in self._container.list(self._folder)]

    def read(self, name: str) -> bytes:
        """One of them."""
        return self._container.download(self._folder + name)

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """The records of a kind in all segments, in order within each."""
        lines = [line for name in self.names() for line in self.read(name).splitlines()]
        return [record for record in map(json.loads, lines) if kind in {"", record["kind"]}]

    def verify(self) -> TrailSummary:
        """Raises unless the trail is whole and sealed."""
        return verify(self)


@dataclass(frozen=True, kw_only=True)
class Lake:
    """The containers of one test."""

    cloud: LocalCloud
    raw: LocalContainer
    curated: LocalContainer
    audit: LocalContainer
    folder: Path

    def manifest_text(
        self,
        *,
        read: Iterable[str] | None = None,
        write: Iterable[str] | None = None,
        delete: Iterable[str] = (),
        token: Iterable[str] = (),
        job: str = "1h",
        sas: str = "5m",
        audit: str = "",
        client: str = "",
        scoping: str = "sas",
        rolling: bool = False,
    ) -> str:
        """An access manifest: by default over `raw/in/` and `curated/out/`."""
        grants = {
            "read": [self.raw.url("in/")] if read is None else list(read),
            "write": [self.curated.url("out/")] if write is None else list(write),
            "delete": list(delete),
            "token": list(token),
        }
        return "\n".join(
            [
                'pipeline = "orders"',
                'environment = "test"',
                f'scoping = "{scoping}"',
                "[identity]",
                f'tenant = "{self.cloud.tenant_id}"',
                f'client = "{client or self.cloud.client_id}"',
                'credential = "federated_file"',
                'assertion_file = "env:AZURE_FEDERATED_TOKEN_FILE"',
                "[lifetime]",
                f'job = "{job}"',
                f'token = "{sas}"',
                f"rolling = {str(rolling).lower()}",
                "[grants]",
                *(f"{kind} = {json.dumps(paths)}" for kind, paths in grants.items() if paths),
                "[audit]",
                f'path = "{audit or self.audit.url("audit/")}"',
            ]
        )

    def manifest(self, **changes: Any) -> AccessManifest:
        """The same, read, with the local cloud's endpoints."""
        parsed = AccessManifest.parse(self.manifest_text(**changes), file="test.toml")
        return parsed.at(Endpoints.load(self.cloud.endpoints_file))

    def pipeline(self, *flags: str, manifest: AccessManifest | None = None) -> ScopedPipeline:
        """A pipeline of a job under the manifest, on DirectRunner unless a flag says another."""
        default = () if any(flag.startswith("--runner") for flag in flags) else ("--runner=DirectRunner",)
        return ScopedPipeline(options=EntraOptions([*default, *flags]), access_manifest=manifest or self.manifest())

    def trail(self, job: str) -> Trail:
        """The audit trail of a job."""
        return Trail(self.audit, job)

    def jobs(self) -> list[str]:
        """The ids of the jobs that left a trail, oldest first."""
        return sorted({name.split("/")[1] for name in self.audit.list("audit/")})

    def only_trail(self) -> Trail:
        """The trail of the only job."""
        (job,) = self.jobs()
        return self.trail(job)

    def upload_json(self, name: str, values: Iterable[Any]) -> None:
        """Put JSON Lines into `raw`."""
        self.raw.upload(name, b"".join(json.dumps(value).encode() + b"\n" for value in values))

    def written(self, prefix: str = "out/") -> list[Any]:
        """Every JSON value in the visible parts below a prefix of `curated`, in no order."""
        values = []
        for name in self.parts(prefix):
            values += [json.loads(line) for line in self.curated.download(name).splitlines()]
        return values

    def parts(self, prefix: str = "out/") -> list[str]:
        """The visible blobs below a prefix of `curated`, markers left out."""
        return [name for name in self.curated.list(prefix) if not name.rpartition("/")[2].startswith("_")]

    def success(self, prefix: str = "out/") -> dict[str, Any]:
        """What `_SUCCESS` says."""
        found: dict[str, Any] = json.loads(self.curated.download(f"{prefix}_SUCCESS"))
        return found

    def etag(self, container: LocalContainer, name: str) -> str:
        """A blob's ETag."""
        client = self.cloud.admin.client(container.account)
        return str(client.get_blob_client(container.name, name).get_blob_properties().etag)

    def launch(
        self, *arguments: str, flags: Sequence[str] = (), stderr: int = subprocess.PIPE, **changes: Any
    ) -> subprocess.Popen[str]:
        """Start `job.py` in a process of its own, as a person does."""
        return subprocess.Popen(
            [
                sys.executable,
                str(JOB),
                *arguments,
                f"--access_manifest={self.write_manifest(**changes)}",
                f"--access_endpoints={self.cloud.endpoints_file}",
                *(flags or ["--runner=DirectRunner"]),
            ],
            env=self.environment(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def write_manifest(self, **changes: Any) -> Path:
        """The manifest as a file."""
        path = self.folder / "test.access.toml"
        path.write_text(self.manifest_text(**changes), encoding="utf-8")
        return path

    @staticmethod
    def environment(**more: str) -> dict[str, str]:
        """The environment of a process that imports the package from where it is."""
        return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


@pytest.fixture
def lake(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer], tmp_path: Path
) -> Lake:
    """Fresh containers, all of them empty."""
    make = beam_entra_containers
    return Lake(
        cloud=beam_entra_cloud, raw=make("raw"), curated=make("curated"), audit=make("audit"), folder=tmp_path
    )


@pytest.fixture
def bundle(lake: Lake) -> Iterable[BundleSession]:
    """A bundle session of a job under the lake's manifest."""
    session = Session(JobScope.launch(lake.manifest(), now=utc_now()))
    try:
        yield session.bundle("test")
    finally:
        session.close()


