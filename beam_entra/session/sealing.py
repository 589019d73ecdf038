"""The launcher's last act: read the job's segments, verify them, write the seal. And reading a trail afterwards."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from os import PathLike
from typing import Any, cast

from beam_entra.access import AccessManifest, Endpoints, Permission, downscope_audit
from beam_entra.audit import Receipt
from beam_entra.audit.record import SEAL_NAME, Record
from beam_entra.audit.seal import Seal, seal
from beam_entra.clock import Clock, utc_now
from beam_entra.errors import AuditError, AuditUnavailable, BlobNotFound, ConfigError, Diagnosis
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession
from beam_entra.session.scope import JobScope
from beam_entra.session.session import Session
from beam_entra.storage import AppendBlobSegments, Authorization, BlobProperties
from beam_entra.storage.exchange import Authorise

__all__ = ["StorageTrail", "open_trail", "seal_job", "seal_late"]

_READERS = 8
_TIME_TO_RECORD = timedelta(seconds=30)


class StorageTrail:
    """A `TrailReader` over a folder below the audit path, through a bundle session."""

    def __init__(self, bundle: BundleSession, folder: BlobPath) -> None:
        self._bundle = bundle
        self._folder = folder
        self._found: dict[str, BlobProperties] = {}

    def names(self) -> list[str]:
        """Every file below the folder, relative to it, sorted; none when there is no such container or folder."""
        try:
            blobs = list(self._bundle.list_blobs(self._folder, self._folder.name))
        except BlobNotFound:
            blobs = []
        self._found = {blob.path.name.removeprefix(self._folder.name): blob for blob in blobs}
        return sorted(self._found)

    def read(self, name: str) -> bytes:
        """All bytes of one of them, in the version that `names` saw."""
        if name not in self._found:
            self.names()
        blob = self._found.get(name)
        if blob is None:
            raise BlobNotFound(f"{self._folder} holds no {name}", Diagnosis(tried=f"read {self._folder}{name}"))
        return bytes(self._bundle.read(blob, 0, blob.size_bytes))


class _SealingBundle(BundleSession):
    """For the launcher and auditors: it may list and read the audit trail, and nothing else. No session gives one."""

    _rule = staticmethod(downscope_audit)

    def __init__(self, session: Session, step: str) -> None:
        super().__init__(session, step, audience=STORAGE_AUDIENCE)


class _Closing:
    """The job's folder while it is being sealed: what was read in time, and the own segment, read after its end."""

    def __init__(self, session: Session, bundle: BundleSession, folder: BlobPath) -> None:
        self._service = session.service
        self._folder = folder
        self._found: dict[str, BlobProperties] | None = None
        trail = StorageTrail(bundle, folder)
        names = trail.names()
        own = [name for name in names if session.process in name]
        others = [name for name in names if session.process not in name]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="beam-entra-seal") as pool:
            self._contents = dict(zip(others, pool.map(trail.read, others), strict=True))
        self._own = {name: bundle._authorise(folder.child(name), Permission.READ) for name in own}
        self._listing = bundle._authorise(folder, Permission.LIST)

    def names(self) -> list[str]:
        """Every file below the folder when this was asked first, and that was read, relative to it, sorted."""
        return sorted(self._blobs().keys() | self._contents.keys())

    def read(self, name: str) -> bytes:
        """All bytes of one of them."""
        blob = self._blobs().get(name)
        content = self._contents.get(name)
        if content is not None and (blob is None or blob.size_bytes == len(content)):
            return content
        if blob is None or name not in self._own:
            raise AuditError(
                f"{name} was written while the trail was being sealed: a worker of the job is still at work",
                Diagnosis(tried=f"seal {self._folder}", hint="seal the trail when the job has ended"),
            )
        own = self._service.read_range(
            blob, 0, blob.size_bytes, _with(self._own[name]), _request_id, lambda answer, start, stop: None
        )
        return bytes(own)

    def _blobs(self) -> dict[str, BlobProperties]:
        if self._found is None:
            pages = self._service.list_pages(self._folder, self._folder.name, _with(self._listing), _request_id)
            self._found = {
                blob.path.name.removeprefix(self._folder.name): blob for page, _ in pages for blob in page.blobs
            }
        return self._found


def seal_job(session: Session, *, outcome: str, error: str | None) -> Seal:
    """Verify the job's segments and seal them. Ends the session's own segment on the way.

    1. Read the other processes' segments; this is recorded in the session's own.
    2. Issue, and record, the SAS for what comes after the own segment's end: reading it, listing, writing the seal.
       (Where the scoping is `bearer`, the token at hand does for that.)
    3. End the own segment. From here on nothing is recorded: the seal is the record.
    4. Read the own segment, verify all, write the seal.

    Call it when no worker of the job can write any more. After the job's deadline, or so short before it that the
    sealing would not end in time, no SAS can be recorded, since none may outlive the deadline: then the sealing leaves
    no record.

    Raises:
        TrailBroken: The segments do not verify. No seal was written.
        AuditUnavailable: The trail cannot be read or written.
    """
    folder = session.scope.folder
    rolling = session.scope.manifest.lifetime.rolling
    if not rolling and session.clock() > session.scope.ends - _TIME_TO_RECORD:
        with suppress(AuditUnavailable):
            session.end_trail()
        return _seal_unrecorded(session, folder, outcome=outcome, error=error)
    begun = session.started
    session.settle()
    with _SealingBundle(session, "seal the audit trail") as bundle:
        if not begun:
            bundle.settle()  # so that the own segment is there
        reader = _Closing(session, bundle, folder)
        seal_authorization = session._authorise_append(folder.child(SEAL_NAME))
    session.end_trail()
    store = AppendBlobSegments(session.service, folder, lambda path: seal_authorization)
    return seal(reader, store, job=session.scope.job, outcome=outcome, error=error, clock=session.clock)


def _seal_unrecorded(session: Session, folder: BlobPath, *, outcome: str, error: str | None) -> Seal:
    sealer = _UnrecordedSession(
        session.scope.to_seal(session.clock()), clock=session.clock, source=session.source, pause=session.pause
    )
    try:
        reader = StorageTrail(_SealingBundle(sealer, "seal the audit trail"), folder)
        store = AppendBlobSegments(sealer.service, folder, sealer._authorise_append)
        return seal(reader, store, job=session.scope.job, outcome=outcome, error=error, clock=session.clock)
    finally:
        sealer.close()


class _UnrecordedSession(Session):
    """Reads a trail, or seals it late. It leaves no trail of its own; the account's log has its requests."""

    def record(
        self, model: type[Record], *, bundle: str | None = None, prompt: bool = True, **facts: Any
    ) -> Receipt:
        return _NOTHING_TO_WAIT_FOR


class _NoReceipt:
    durable = True

    def wait(self, timeout: float | None = None) -> None:
        """Nothing was recorded."""


_NOTHING_TO_WAIT_FOR = cast("Receipt", _NoReceipt())


def open_trail(
    path: str, access_manifest: str | PathLike[str], endpoints: str | PathLike[str] | None, *, clock: Clock = utc_now
) -> StorageTrail:
    """Open a trail in storage for reading, as the manifest's identity.

    Args:
        path: A job's folder, or one above it, at or below the manifest's audit path.
        access_manifest: The manifest's file.
        endpoints: File of the endpoints overlay, if the services are not at their public addresses.

    Raises:
        ConfigError: The path is not there.
        IdentityError: No token.
    """
    manifest, folder = _trail_of(path, access_manifest, endpoints)
    session = _UnrecordedSession(JobScope.launch(manifest, now=clock()), clock=clock)
    return StorageTrail(_SealingBundle(session, "read an audit trail"), folder)


def seal_late(
    path: str, access_manifest: str | PathLike[str], endpoints: str | PathLike[str] | None, *, clock: Clock = utc_now
) -> Seal:
    """Seal the trail of a job whose launcher did not live to do it, as the manifest's identity; the outcome is `late`.

    It must be certain that no worker of the job is at work any more.

    Args:
        path: The job's folder, right below the manifest's audit path.
        access_manifest, endpoints: As for `open_trail`.

    Raises:
        ConfigError: The path is no job's folder, or holds no trail.
        TrailBroken: The segments do not verify. No seal was written.
        AuditError: The trail is sealed already, or cannot be read or written.
        IdentityError: No token.
    """
    manifest, folder = _trail_of(path, access_manifest, endpoints)
    job = folder.name.removeprefix(manifest.audit.name).removesuffix("/")
    if not job or "/" in job:
        raise ConfigError(f"{folder} is not the folder of one job", Diagnosis(hint=f"name {manifest.audit}JOB/"))
    session = _UnrecordedSession(replace(JobScope.launch(manifest, now=clock()), job=job).to_seal(clock()), clock=clock)
    try:
        if not StorageTrail(_SealingBundle(session, "look at a trail"), folder).names():
            raise ConfigError(f"no audit trail at {folder}", Diagnosis(hint="see that the job's id is right"))
        return _seal_unrecorded(session, folder, outcome="late", error=None)
    finally:
        session.close()


def _trail_of(
    path: str, access_manifest: str | PathLike[str], endpoints: str | PathLike[str] | None
) -> tuple[AccessManifest, BlobPath]:
    manifest = AccessManifest.load(access_manifest)
    if endpoints:
        manifest = manifest.at(Endpoints.load(endpoints))
    folder = BlobPath.parse(path if path.endswith("/") else f"{path}/")
    if not manifest.audit.covers(folder):
        raise ConfigError(
            f"{folder} is not below the manifest's audit path {manifest.audit}",
            Diagnosis(hint="name a trail of this pipeline, or give the manifest of the pipeline that wrote it"),
        )
    return manifest, folder


def _with(authorization: Authorization) -> Authorise:
    return lambda: authorization


def _request_id() -> str:
    return str(uuid.uuid4())
