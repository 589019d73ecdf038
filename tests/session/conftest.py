"""A job against the local cloud: its manifest, its containers, its sessions, and its trail as an auditor sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.audit import TrailSummary, check_segments
from beam_entra.audit.verify import verify
from beam_entra.clock import Clock, utc_now
from beam_entra.errors import AuditError
from beam_entra.identity import CredentialSource
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session, seal_job
from beam_entra.storage import new_block_id
from beam_entra.testing.local import LocalCloud, LocalContainer
from beam_entra.testing.storage_requests import StorageExchange

LAKE = "contosolake"
DATA = b"".join(b'{"id": %d}\n' % number for number in range(20_000))


class AdminTrail:
    """A job's folder, read with the account key, past the session that is tested."""

    def __init__(self, container: LocalContainer, folder: str) -> None:
        self.container, self.folder = container, folder

    def names(self) -> list[str]:
        """Every file of the folder."""
        return [name.removeprefix(self.folder) for name in self.container.list(self.folder)]

    def read(self, name: str) -> bytes:
        """All of one."""
        return self.container.download(self.folder + name)


class Job:
    """One job of the local cloud, with containers of its own."""

    def __init__(
        self,
        cloud: LocalCloud,
        make: Callable[..., LocalContainer],
        *,
        sas_life: str = "15m",
        client: str = "",
        audiences: tuple[str, ...] = (),
        lasts: timedelta | None = None,
        scoping: str = "sas",
        rolling: str = "",
        delete: tuple[str, ...] = (),
        trail: str = "",
    ) -> None:
        self.cloud = cloud
        self.raw, self.curated, self.audit = make("raw"), make("curated"), make("audit")
        self.text = f"""
            pipeline = "orders"
            environment = "test"
            scoping = "{scoping}"
            [identity]
            tenant = "{cloud.tenant_id}"
            client = "{client or cloud.client_id}"
            credential = "federated_file"
            assertion_file = "{cloud.assertion_file}"
            [lifetime]
            job = "{rolling or "1h"}"
            rolling = {str(bool(rolling)).lower()}
            token = "{sas_life}"
            [grants]
            read = ["{self.raw.url("orders/")}", "{self.raw.url("products.csv")}"]
            write = ["{self.curated.url("orders/")}"]
            delete = {json.dumps([self.curated.url(path) for path in delete])}
            token = {json.dumps(list(audiences))}
            [audit]
            path = "{self.audit.url("trails/")}"
            {trail}
        """
        self.manifest = AccessManifest.parse(self.text, file="orders.access.toml").at(
            Endpoints.load(cloud.endpoints_file)
        )
        self.scope = JobScope.launch(self.manifest, now=utc_now())
        if lasts is not None:
            ends = (datetime.now(UTC) + lasts).replace(microsecond=0)
            self.scope = replace(self.scope, deadline=ends, launched=ends - self.manifest.lifetime.job)
        self.sessions: list[Session] = []

    def session(
        self,
        *,
        clock: Clock = utc_now,
        pause: Callable[[float], object] | None = None,
        source: CredentialSource | None = None,
    ) -> Session:
        """A worker process's session."""
        session = Session(self.scope, clock=clock, pause=pause, source=source)
        self.sessions.append(session)
        return session

    def close(self) -> None:
        """Leave no thread behind."""
        for session in self.sessions:
            with suppress(AuditError):
                session.close()

    # paths

    def source(self, name: str = "orders/a.jsonl") -> BlobPath:
        """A blob that the job may read."""
        return BlobPath.parse(self.raw.url(name))

    def target(self, name: str = "orders/out.jsonl") -> BlobPath:
        """A blob that the job may write."""
        return BlobPath.parse(self.curated.url(name))

    # what is on the wire and in the trail

    def requests(self, *operations: str) -> list[StorageExchange]:
        """What the proxy saw of these operations, or of all."""
        return [each for each in self.cloud.proxy.requests if not operations or each.operation in operations]

    def data_requests(self) -> list[StorageExchange]:
        """What the proxy saw of requests that are not for the audit, nor for keys."""
        return [each for each in self.requests() if each.request.container not in {"", self.audit.name}]

    @property
    def trail(self) -> AdminTrail:
        """The job's folder."""
        return AdminTrail(self.audit, self.scope.folder.name)

    def records(self, kind: str = "") -> list[dict[str, Any]]:
        """The records of all segments, or those of a kind."""
        lines = [line for name in self.trail.names() for line in self.trail.read(name).splitlines()]
        records = [json.loads(line) for line in lines]
        return [record for record in records if kind in {"", record["kind"]}]

    def check_unsealed(self) -> None:
        """The segments hang together, by every rule that holds before sealing."""
        check_segments(self.trail, job=self.scope.job)

    def seal_and_verify(self, session: Session, outcome: str = "ok") -> TrailSummary:
        """Seal with this session, and verify as an auditor does."""
        sealed = seal_job(session, outcome=outcome, error=None)
        return verify(self.trail, seal_digest=sealed.digest)


def write_blob(session: Session, job: Job, name: str = "orders/out.jsonl", data: bytes = b'{"id": 1}\n') -> None:
    """Stage and commit one blob in a bundle of its own."""
    with session.bundle("write") as bundle:
        block = new_block_id()
        bundle.stage(job.target(name), block, data)
        bundle.settle()
        bundle.commit(
            job.target(name), [block], commit_id="c-1", size_bytes=len(data), rows=1, content_type="application/jsonl"
        )


def read_blob(session: Session, job: Job, name: str = "orders/a.jsonl") -> bytes:
    """Read one blob in a bundle of its own."""
    with session.bundle("read") as bundle:
        blob = bundle.properties(job.source(name))
        return bytes(bundle.read(blob, 0, blob.size_bytes))


@pytest.fixture
def make_job(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer]
) -> Iterator[Callable[..., Job]]:
    """Makes jobs, each with containers of its own."""
    jobs: list[Job] = []

    def make(**facts: Any) -> Job:
        jobs.append(Job(beam_entra_cloud, beam_entra_containers, **facts))
        return jobs[-1]

    yield make
    beam_entra_cloud.proxy.clear_faults()
    for job in jobs:
        job.close()


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    """One job whose input is there."""
    made = make_job()
    made.raw.upload("orders/a.jsonl", DATA)
    return made
