"""The launcher's last act: read the job's segments, verify them, write the seal. And reading a trail afterwards."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import PathLike
from typing import Any, cast

from beam_entra.access import AccessManifest, Endpoints, Permission, downscope_audit
from beam_entra.audit import Receipt
from beam_entra.audit.fields import SEGMENT_NAME
from beam_entra.audit.interim import Interims, Said
from beam_entra.audit.record import SEAL_NAME, Record, segment_name
from beam_entra.audit.seal import Seal, check_unsealed, seal, write_seal
from beam_entra.audit.segments import SegmentCheck, Segments, segments_of
from beam_entra.audit.store import INTERIM_NAME
from beam_entra.clock import Clock, utc_now
from beam_entra.errors import AuditError, AuditUnavailable, BlobNotFound, ConfigError, Diagnosis
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession, _Access
from beam_entra.session.scope import JobScope
from beam_entra.session.session import Session
from beam_entra.storage import AppendBlobSegments, Authorization, BlobProperties
from beam_entra.storage.answers import Answer
from beam_entra.storage.exchange import Authorise

__all__ = ["StorageTrail", "open_trail", "seal_job", "seal_late"]

_READERS = 8
_AHEAD_BYTES = 64 << 20  # of segments that are read before their turn
_FIRST = "00000.jsonl"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_TIME_TO_RECORD = timedelta(seconds=30)


class StorageTrail:
    """A `GrowingTrail` over a folder below the audit path, through a bundle session."""

    def __init__(self, bundle: _SealingBundle, folder: BlobPath) -> None:
        self._bundle = bundle
        self._folder = folder
        self._found: dict[str, BlobProperties] = {}

    def names(self) -> list[str]:
        """Every file below the folder, relative to it, sorted; none when there is no such container or folder."""
        return sorted(self.sizes())

    def sizes(self) -> Mapping[str, int]:
        """Every file and its length, at one moment.

        A listing takes its time: a segment may be seen while it still grows, or not at all, and a later one of its
        process when that has begun. What comes before such a one is listed again, now that it has ended.
        """
        found = self._list()
        latest = {_process(name): name for name in sorted(found)}
        again = self._list() if any(_continues(name) for name in latest.values()) else {}
        ended = {name: blob for name, blob in again.items() if name < latest.get(_process(name), "")}
        self._found = found | ended
        return {name: blob.size_bytes for name, blob in self._found.items()}

    def _list(self) -> dict[str, BlobProperties]:
        try:
            blobs = list(self._bundle.list_blobs(self._folder, self._folder.name))
        except BlobNotFound:
            blobs = []
        return {blob.path.name.removeprefix(self._folder.name): blob for blob in blobs}

    def read(self, name: str) -> bytes:
        """All bytes of one of them, as many as `names` saw."""
        if name not in self._found:
            self.names()
        blob = self._found.get(name)
        if blob is None:
            raise BlobNotFound(f"{self._folder} holds no {name}", Diagnosis(tried=f"read {self._folder}{name}"))
        return self._bundle.read_grown(blob, 0, blob.size_bytes)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of one of them."""
        return self._bundle.read_grown(_unknown(self._folder.child(name), stop), start, stop)

    def read_all(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """These files, one after the other; the next ones are fetched meanwhile, as far as there is room for them."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="beam-entra-trail") as pool:
            under_way: deque[tuple[str, Future[bytes]]] = deque()
            ahead_bytes = 0
            for name in names:
                size = self._found[name].size_bytes
                while under_way and ahead_bytes + size > _AHEAD_BYTES:
                    ready, content = under_way.popleft()
                    ahead_bytes -= self._found[ready].size_bytes
                    yield ready, content.result()
                under_way.append((name, pool.submit(self.read, name)))
                ahead_bytes += size
            for ready, content in under_way:
                yield ready, content.result()


class _SealingBundle(BundleSession):
    """For the launcher and auditors: it may list and read the audit trail, and nothing else. No session gives one."""

    _rule = staticmethod(downscope_audit)

    def __init__(self, session: Session, step: str) -> None:
        super().__init__(session, step, audience=STORAGE_AUDIENCE)

    def read_grown(self, blob: BlobProperties, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file of the trail, however much has been appended to it since."""
        if start == stop:
            return b""
        access = _Access(self, blob.path, Permission.READ)
        receipts: list[Receipt] = []

        def answered(answer: Answer, begin: int, end: int) -> None:
            receipts.append(self._record_read(access, replace(blob, etag=answer.etag), answer, begin, end))

        with self._noting_refusals(str(blob.path), "read"):
            access()
            content = self.session.service.read_range(
                blob, start, stop, access, self._next_request_id, answered, grows=True
            )
        for receipt in receipts:
            receipt.wait()
        return bytes(content)


class _Closing:
    """The job's folder while it is being sealed: the other processes' segments, and then the own, after its end."""

    def __init__(self, session: Session, bundle: _SealingBundle, known: Interims | None) -> None:
        """Check all that others wrote, and get what it takes to read the own segment when nothing can be recorded."""
        self._session, self._folder, job = session, session.scope.folder, session.scope.job
        trail, said = StorageTrail(bundle, self._folder), Said()
        sizes = trail.sizes()
        self.interims = check_unsealed(trail, sizes, job=job, said=said, known=known)
        self._check = SegmentCheck(job, said.marks)
        others = [name for name in segments_of(sizes) if session.process not in name]
        for name, content in trail.read_all(others):
            self._check.add(name, content)
        self._taken = {name: sizes[name] for name in others}
        self._listing = bundle._authorise(self._folder, Permission.LIST)
        self.seal_authorization = session._authorise_append(self._folder.child(SEAL_NAME))
        self._seal_reading = bundle._authorise(self._folder.child(SEAL_NAME), Permission.READ)
        self._own: dict[str, Authorization] = {}
        while ours := [name for name in self._own_and_next() if name not in self._own]:
            for name in ours:  # each SAS is a record, with which the segment may become full
                self._own[name] = bundle._authorise(self._folder.child(name), Permission.READ)

    def finish(self) -> Segments:
        """Check the own segment, which has ended; all that is there has been checked then.

        Raises:
            AuditError: A worker of the job is still at work.
        """
        found = {name: blob for name, blob in self._list().items() if not INTERIM_NAME.fullmatch(name)}
        found.pop(SEAL_NAME, None)
        own = [name for name in segments_of(found) if self._session.process in name]
        for name, blob in found.items():
            if name in own and name in self._own:
                continue
            if self._taken.get(name) != blob.size_bytes:
                raise AuditError(
                    f"{name} was written while the trail was being sealed: a worker of the job is still at work",
                    Diagnosis(tried=f"seal {self._folder}", hint="seal the trail when the job has ended"),
                )
        for name in own:
            self._check.add(name, self._read(found[name], self._own[name]))
        return self._check.finish()

    def _own_and_next(self) -> tuple[str, ...]:
        segments = self._session.segments
        return (*segments, segment_name(self._session.process, len(segments)))

    def _list(self) -> dict[str, BlobProperties]:
        pages = self._session.service.list_pages(self._folder, self._folder.name, _with(self._listing), _request_id)
        return {blob.path.name.removeprefix(self._folder.name): blob for page, _ in pages for blob in page.blobs}

    def _read(self, blob: BlobProperties, authorization: Authorization) -> bytes:
        service = self._session.service
        return bytes(service.read_range(blob, 0, blob.size_bytes, _with(authorization), _request_id, _unrecorded))

    def read_seal(self, path: BlobPath, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the seal that stands there, whoever wrote it."""
        service, there = self._session.service, _unknown(path, stop)
        reading = _with(self._seal_reading)
        return bytes(service.read_range(there, start, stop, reading, _request_id, _unrecorded, grows=True))


def seal_job(session: Session, *, outcome: str, error: str | None, known: Interims | None = None) -> Seal:
    """Verify the job's segments and seal them. Ends the session's own segment on the way.

    1. Read and verify the other processes' segments; this is recorded in the session's own.
    2. Issue, and record, the SAS for what comes after the own segment's end: reading it, listing, writing the seal.
       (Where the scoping is `bearer`, the token at hand does for that.)
    3. End the own segment. From here on nothing is recorded: the seal is the record.
    4. Read and verify the own segment, write the seal.

    Call it when no worker of the job can write any more. After the job's deadline, or so short before it that the
    sealing would not end in time, no SAS can be recorded, since none may outlive the deadline: then the sealing leaves
    no record.

    Args:
        known: What the last interim seal of this launcher gave: all that it held must still be there.
    Raises:
        TrailBroken: The segments do not verify. No seal was written.
        AuditUnavailable: The trail cannot be read or written.
    """
    folder = session.scope.folder
    rolling = session.scope.manifest.lifetime.rolling
    if not rolling and session.clock() > session.scope.ends - _TIME_TO_RECORD:
        with suppress(AuditUnavailable):
            session.end_trail()
        return _seal_unrecorded(session, folder, outcome=outcome, error=error, known=known)
    begun = session.started
    session.settle()
    with _SealingBundle(session, "seal the audit trail") as bundle:
        if not begun:
            bundle.settle()  # so that the own segment is there
        closing = _Closing(session, bundle, known)
    session.end_trail()
    store = AppendBlobSegments(
        session.service, folder, lambda path: closing.seal_authorization, read=closing.read_seal
    )
    return write_seal(
        store,
        closing.finish(),
        closing.interims,
        job=session.scope.job,
        outcome=outcome,
        error=error,
        clock=session.clock,
    )


def _seal_unrecorded(
    session: Session, folder: BlobPath, *, outcome: str, error: str | None, known: Interims | None = None
) -> Seal:
    sealer = _UnrecordedSession(
        session.scope.to_seal(session.clock()), clock=session.clock, source=session.source, pause=session.pause
    )
    try:
        bundle = _SealingBundle(sealer, "seal the audit trail")
        reader = StorageTrail(bundle, folder)
        store = AppendBlobSegments(
            sealer.service,
            folder,
            sealer._authorise_append,
            read=lambda path, start, stop: bundle.read_grown(_unknown(path, stop), start, stop),
        )
        job = session.scope.job
        return seal(reader, store, job=job, outcome=outcome, error=error, clock=session.clock, known=known)
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


def _process(name: str) -> str:
    """What the segments of one process have in common; of another file its name."""
    return name[: -len(_FIRST)] if SEGMENT_NAME.fullmatch(name.rpartition("/")[2]) else name


def _continues(name: str) -> bool:
    """Whether it is a segment that continues another."""
    return _process(name) != name and not name.endswith(_FIRST)


def _unknown(path: BlobPath, size_bytes: int) -> BlobProperties:
    """A blob that is at least so long, in whatever version."""
    return BlobProperties(path=path, size_bytes=size_bytes, etag="", last_modified=_LONG_AGO)


def _with(authorization: Authorization) -> Authorise:
    return lambda: authorization


def _unrecorded(answer: Answer, start: int, stop: int) -> None:
    """The trail has ended."""


def _request_id() -> str:
    return str(uuid.uuid4())
