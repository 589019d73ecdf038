"""A job before its launch, against the local cloud: its manifest, and what the doctor says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.audit import TrailSummary
from beam_entra.audit.verify import verify
from beam_entra.clock import Clock, utc_now
from beam_entra.doctor import Examination, Finding, Mark
from beam_entra.testing.local import LocalCloud, LocalContainer
from tests.session.conftest import AdminTrail

LAKE, OTHER = "contosolake", "fabrikamlake"
Move = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """One job, with containers of its own; `raw` holds one blob below `in/`."""

    cloud: LocalCloud
    raw: LocalContainer
    curated: LocalContainer
    audit: LocalContainer

    def text(
        self,
        *,
        read: Iterable[str] | None = None,
        write: Iterable[str] | None = None,
        delete: Iterable[str] = (),
        token: Iterable[str] = (),
        audit: str = "",
        scoping: str = "",
        lifetime: str = 'job = "1h"\ntoken = "5m"',
        **identity: str,
    ) -> str:
        """The access manifest."""
        grants = {
            "read": [self.raw.url("in/")] if read is None else list(read),
            "write": [self.curated.url("out/")] if write is None else list(write),
            "delete": list(delete),
            "token": list(token),
        }
        who = {
            "tenant": self.cloud.tenant_id,
            "client": self.cloud.client_id,
            "credential": "federated_file",
            "assertion_file": str(self.cloud.assertion_file),
        } | identity
        lines = ['pipeline = "orders"', 'environment = "test"', f'scoping = "{scoping or "sas"}"', "[identity]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in who.items() if value]
        lines += ["[lifetime]", lifetime, "[grants]"]
        lines += [f"{kind} = {json.dumps(paths)}" for kind, paths in grants.items()]
        lines += ["[audit]", f'path = "{audit or self.audit.url("audit/")}"']
        return "\n".join(lines)

    def manifest(self, **changes: Any) -> AccessManifest:
        """The manifest, with the local cloud's endpoints."""
        parsed = AccessManifest.parse(self.text(**changes), file="orders.access.toml")
        return parsed.at(Endpoints.load(self.cloud.endpoints_file))

    def examine(self, *, clock: Clock = utc_now, at: Move | None = None, **changes: Any) -> Seen:
        """Run all checks.

        Args:
            at: Changes where the services are, in the manifest as data.
        """
        examination = Examination(lambda: self._placed(at, **changes), clock=clock, pause=lambda seconds: None)
        assert [*examination.run()] == examination.findings
        return Seen(examination)

    def trail(self, job: str) -> TrailSummary:
        """The examination's audit trail, as an auditor sees it; raises unless it is whole and sealed."""
        return verify(self.files(job))

    def files(self, job: str) -> AdminTrail:
        """Its files."""
        return AdminTrail(self.audit, f"audit/{job}/")

    def records(self, job: str, kind: str) -> list[dict[str, Any]]:
        """Its records of a kind."""
        trail = self.files(job)
        lines = [line for name in trail.names() for line in trail.read(name).splitlines()]
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def _placed(self, at: Move | None, **changes: Any) -> AccessManifest:
        manifest = self.manifest(**changes)
        if at is None:
            return manifest
        document = manifest.to_dict()
        at(document)
        return AccessManifest.from_dict(document)


class Seen:
    """What an examination found."""

    def __init__(self, examination: Examination) -> None:
        self.examination = examination
        self.job = examination.job
        self.failures = examination.failures
        for finding in examination.findings:
            assert finding.found
            assert finding.fix or finding.mark not in {Mark.FAIL, Mark.WARN}, f"{finding.check} says no fix"

    def marks(self) -> dict[str, str]:
        """By check, how it ended; where there are several findings, every different one."""
        found: dict[str, dict[str, None]] = {}
        for finding in self.examination.findings:
            found.setdefault(finding.check, {})[finding.mark.value] = None
        return {check: "/".join(marks) for check, marks in found.items()}

    def of(self, check: str, about: str = "") -> Finding:
        """The one finding of a check, or the one about something."""
        (finding,) = [each for each in self.examination.findings if each.check == check and about in each.about]
        return finding

    def everything(self) -> str:
        """All that was said."""
        return "\n".join(map(repr, self.examination.findings))


@pytest.fixture
def patient(beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer]) -> Patient:
    """A job that could run."""
    make = beam_entra_containers
    made = Patient(cloud=beam_entra_cloud, raw=make("raw"), curated=make("curated"), audit=make("audit"))
    made.raw.upload("in/a.jsonl", b'{"id": 1}\n')
    return made
