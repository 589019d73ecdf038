"""The launcher's last act: read the job's segments, verify them, write the seal. And reading a trail afterwards."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from os import PathLike
from typing import Any, TypeVar, cast

from beam_entra.access import AccessManifest, Endpoints, Permission, downscope_audit
from beam_entra.audit import Receipt
from beam_entra.audit.checking import check_all
from beam_entra.audit.fields import SEGMENT_NAME
from beam_entra.audit.interim import Interims, Said
from beam_entra.audit.record import SEAL_NAME, Record, segment_name
from beam_entra.audit.seal import Seal, check_interims, check_unsealed, seal, write_seal
from beam_entra.audit.segments import SegmentCheck, Segments, segments_of
from beam_entra.audit.store import INTERIM_NAME
from beam_entra.clock import Clock, utc_now
from beam_entra.errors import (
    AccessDenied,
    AuditError,
    AuditUnavailable,
    BeamEntraError,
    BlobNotFound,
    ConfigError,
    Diagnosis,
    TrailBroken,
)
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession, _Access
from beam_entra.session.scope import JobScope, whole_seconds
from beam_entra.session.session import Session
from beam_entra.storage import AppendBlobSegments, Authorization, BlobProperties
from beam_entra.storage.answers import Answer

__all__ = ["StorageTrail", "open_trail", "seal_job", "seal_late"]

_FIRST = "00000.jsonl"
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_A_MOMENT = timedelta(seconds=2)  # so much before its end the job's time may be over for Storage
_GRANTED = timedelta(minutes=5)  # for so long at most what was recorded is presented after the trail's end
_MOST_OF_IT = 0.75

T = TypeVar("T")


class StorageTrail:
    """A `GrowingTrail` over a folder below the audit path, through a bundle session.

    Args:
        overtime: Goes on when the job's time is over; without it, that ends the reading as well.
    """

    def __init__(self, bundle: _SealingBundle, folder: BlobPath, overtime: _Overtime | None = None) -> None:
        self._bundle = bundle
        self._folder = folder
        self._overtime = overtime
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
            blobs = self._ask(lambda bundle: list(bundle.list_blobs(self._folder, self._folder.name)))
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
        return self._ask(lambda bundle: bundle.read_grown(blob, 0, blob.size_bytes))

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of one of them."""
        blob = _unknown(self._folder.child(name), stop)
        return self._ask(lambda bundle: bundle.read_grown(blob, start, stop))

    def _ask(self, request: Callable[[_SealingBundle], T]) -> T:
        if self._overtime is None:
            return request(self._bundle)
        try:
            return request(self._bundle)
        except BeamEntraError as error:
            self._overtime.forgive(error)
        return request(self._overtime.bundle)


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


class _Overtime:
    """What seals a job whose time is over: a session of its own, that leaves no record. Made when it is asked for.

    It reads the trail and writes the seal, and nobody is given it for anything else.
    """

    def __init__(self, session: Session) -> None:
        self._of = session
        self._lock = threading.Lock()
        self._session: _UnrecordedSession | None = None
        self._bundle: _SealingBundle | None = None

    @property
    def begun(self) -> bool:
        """Whether the job's time is over, or will be in a moment. A rolling life has no such end."""
        scope = self._of.scope
        return not scope.manifest.lifetime.rolling and self._of.clock() >= scope.deadline - _A_MOMENT

    def forgive(self, error: BeamEntraError) -> None:
        """Raise it, unless the job's time is over: that something fails then is no error."""
        if isinstance(error, TrailBroken) or not self.begun:
            raise error

    def end(self, end: Callable[[], object]) -> None:
        """End something of the job's own."""
        try:
            end()
        except BeamEntraError as error:
            self.forgive(error)

    @property
    def session(self) -> _UnrecordedSession:
        """The session."""
        with self._lock:
            if self._session is None:
                source = self._of.source
                self._session = _UnrecordedSession(
                    self._of.scope,
                    clock=self._of.clock,
                    source=None if isinstance(source, EntraSource) else source,  # that one records in the job's trail
                    pause=self._of.pause,
                )
            return self._session

    @property
    def bundle(self) -> _SealingBundle:
        """A bundle of it."""
        session = self.session
        with self._lock:
            if self._bundle is None:
                self._bundle = _SealingBundle(session, "seal the audit trail")
            return self._bundle

    def authorise(self, path: BlobPath, permission: Permission) -> Authorization:
        """To read or list what is in the job's folder, or to append to it."""
        if permission is Permission.APPEND:
            return self.session._authorise_append(path)
        return self.bundle._authorise(path, permission)

    def close(self) -> None:
        """Forget all of it."""
        if self._session is not None:
            self._session.close()


class _Closing:
    """The job's folder while it is being sealed: the other processes' segments, and then the own, after its end."""

    def __init__(self, session: Session, bundle: _SealingBundle, known: Interims | None, overtime: _Overtime) -> None:
        """Check all that others wrote, and get what it takes to read the own segment when nothing can be recorded."""
        self._session, self._folder, self._overtime = session, session.scope.folder, overtime
        trail, said, job = StorageTrail(bundle, self._folder, overtime), Said(), session.scope.job
        sizes = trail.sizes()
        _refuse_begun(trail, sizes, session.scope)
        self.interims = check_interims(trail, sizes, job=job, said=said, known=known)
        self._check = SegmentCheck(job, said.marks)
        self._taken = {name: sizes[name] for name in segments_of(sizes) if session.process not in name}
        check_all(self._check, trail.read, self._taken, read_range=trail.read_range)
        self._granted: dict[tuple[BlobPath, Permission], Authorization] = {}
        self._granted_until = session.clock() + min(_GRANTED, session.scope.manifest.lifetime.token * _MOST_OF_IT)
        try:
            self._grant(bundle)
        except BeamEntraError as error:
            overtime.forgive(error)

    def _grant(self, bundle: _SealingBundle) -> None:
        seal = self._folder.child(SEAL_NAME)
        self._granted[self._folder, Permission.LIST] = bundle._authorise(self._folder, Permission.LIST)
        self._granted[seal, Permission.APPEND] = self._session._authorise_append(seal)
        self._granted[seal, Permission.READ] = bundle._authorise(seal, Permission.READ)
        while ours := [path for path in self._own_and_next() if (path, Permission.READ) not in self._granted]:
            for path in ours:  # each SAS is a record, with which the segment may become full
                self._granted[path, Permission.READ] = bundle._authorise(path, Permission.READ)

    def _own_and_next(self) -> tuple[BlobPath, ...]:
        segments = self._session.segments
        return tuple(
            self._folder.child(name) for name in (*segments, segment_name(self._session.process, len(segments)))
        )

    def authorise(self, path: BlobPath, permission: Permission) -> Authorization:
        """For what comes after the own segment's end: what was recorded in it, as long as that will do."""
        granted = self._granted.get((path, permission))
        if granted is not None and self._lives:
            return granted
        return self._overtime.authorise(path, permission)

    @property
    def _lives(self) -> bool:
        """Whether that will do still."""
        return self._session.clock() < self._granted_until and not self._overtime.begun

    def _ask(self, request: Callable[[], T]) -> T:
        """Once more, if what was presented has ended on the way: one that the bundle had before may live less long."""
        lived = self._lives
        try:
            return request()
        except BeamEntraError as error:
            if not lived or (self._lives and not isinstance(error, AccessDenied)):
                raise
        self._granted.clear()
        return request()

    def finish(self) -> Segments:
        """Check the own segment, which has ended; all that is there has been checked then.

        Raises:
            AuditError: A worker of the job is still at work.
        """
        found = {name: blob for name, blob in self._list().items() if not INTERIM_NAME.fullmatch(name)}
        found.pop(SEAL_NAME, None)
        own = [name for name in segments_of(found) if self._session.process in name]
        for name, blob in found.items():
            if name not in own and self._taken.get(name) != blob.size_bytes:
                raise AuditError(
                    f"{name} was written while the trail was being sealed: a worker of the job is still at work",
                    Diagnosis(tried=f"seal {self._folder}", hint="seal the trail when the job has ended"),
                )
        check_all(
            self._check,
            lambda name: self.read(found[name].path, 0, found[name].size_bytes),
            {name: found[name].size_bytes for name in own},
        )
        return self._check.finish()

    def _list(self) -> dict[str, BlobProperties]:
        authorise = partial(self.authorise, self._folder, Permission.LIST)
        service, name = self._session.service, self._folder.name
        pages = self._ask(lambda: list(service.list_pages(self._folder, name, authorise, _request_id)))
        return {blob.path.name.removeprefix(name): blob for page, _ in pages for blob in page.blobs}

    def read(self, path: BlobPath, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of what stands there, whoever wrote it."""
        service, authorise = self._session.service, partial(self.authorise, path, Permission.READ)
        there = _unknown(path, stop)
        read = partial(service.read_range, there, start, stop, authorise, _request_id, _unrecorded, grows=True)
        return bytes(self._ask(read))


def seal_job(session: Session, *, outcome: str, error: str | None, known: Interims | None = None) -> Seal:
    """Verify the job's segments and seal them. Ends the session's own segment on the way.

    1. Read and verify the other processes' segments; this is recorded in the session's own.
    2. Issue, and record, the SAS for what comes after the own segment's end: reading it, listing, writing the seal.
       (Where the scoping is `bearer`, the token at hand does for that.)
    3. End the own segment. From here on nothing is recorded: the seal is the record.
    4. Read and verify the own segment, write the seal.

    Call it when no worker of the job can write any more. It takes as long as it takes: when the job's deadline comes
    meanwhile, or has come before, the rest is done without a record, since no SAS that is recorded may outlive the
    deadline. So is what of step 4 takes longer than a SAS lives.

    Args:
        known: What the last interim seal of this launcher gave: all that it held must still be there.
    Raises:
        TrailBroken: The segments do not verify. No seal was written.
        AuditUnavailable: The trail cannot be read or written.
        AuditError: The job is sealed already, or its seal was begun by somebody else. Nothing was written.
    """
    folder, job = session.scope.folder, session.scope.job
    with closing(_Overtime(session)) as overtime:
        bundle = _begin_to_seal(session, overtime)
        if bundle is None:
            with suppress(AuditUnavailable):
                session.end_trail()
            trail = StorageTrail(overtime.bundle, folder)
            _refuse_begun(trail, trail.sizes(), session.scope)
            return _seal_unrecorded(overtime.bundle, folder, job=job, outcome=outcome, error=error, known=known)
        try:
            at_end = _Closing(session, bundle, known, overtime)
        except BaseException:
            with suppress(BeamEntraError):  # what is wrong with the trail is what counts
                bundle.close("failed")
            raise
        overtime.end(bundle.close)
        overtime.end(session.end_trail)
        authorise = partial(at_end.authorise, permission=Permission.APPEND)
        store = AppendBlobSegments(session.service, folder, authorise, read=at_end.read)
        found, interims = at_end.finish(), at_end.interims
        return write_seal(store, found, interims, job=job, outcome=outcome, error=error, clock=session.clock)


def _refuse_begun(trail: StorageTrail, sizes: Mapping[str, int], scope: JobScope) -> None:
    """Raise an error where there is a seal, or the beginning of one: that tells another end of the job than this."""
    if check_unsealed(trail, sizes, job=scope.job):
        raise AuditError(
            f"the seal of job {scope.job} was begun by somebody else, who did not end it",
            Diagnosis(tried=f"seal {scope.folder}", hint=f"beam-entra audit seal {scope.folder}"),
        )


def _begin_to_seal(session: Session, overtime: _Overtime) -> _SealingBundle | None:
    """A bundle that records what is read; None when the job's time is over."""
    if overtime.begun:
        return None
    begun = session.started
    try:
        session.settle()
        bundle = _SealingBundle(session, "seal the audit trail")
        if not begun:
            bundle.settle()  # so that the own segment is there
    except BeamEntraError as error:
        overtime.forgive(error)
        return None
    return bundle


def _seal_unrecorded(
    bundle: _SealingBundle,
    folder: BlobPath,
    *,
    job: str,
    outcome: str,
    error: str | None,
    known: Interims | None = None,
) -> Seal:
    sealer = bundle.session
    store = AppendBlobSegments(
        sealer.service,
        folder,
        sealer._authorise_append,
        read=lambda path, start, stop: bundle.read_grown(_unknown(path, stop), start, stop),
    )
    reader = StorageTrail(bundle, folder)
    return seal(reader, store, job=job, outcome=outcome, error=error, clock=sealer.clock, known=known)


class _UnrecordedSession(Session):
    """Reads a trail, or seals it late. It leaves no trail of its own; the account's log has its requests.

    That takes as long as it takes, and so its deadline moves on while it is at work: the identity alone ends it. What
    it gets lives no longer than twice a SAS.
    """

    def __init__(self, scope: JobScope, **facts: Any) -> None:
        super().__init__(scope, **facts)
        self._last_tenth = None  # it does not end
        self._ends = self.clock()

    @property
    def deadline(self) -> datetime:
        """Always later than a SAS lives."""
        now, life = self.clock(), self.scope.manifest.lifetime.token
        if self._ends < now + life + _A_MOMENT:
            self._ends = whole_seconds(now + 2 * life + _A_MOMENT)
        return self._ends

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

    A seal that the launcher had begun is ended: it keeps its outcome.

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
    with closing(_UnrecordedSession(replace(JobScope.launch(manifest, now=clock()), job=job), clock=clock)) as session:
        bundle = _SealingBundle(session, "seal a trail late")
        if not StorageTrail(bundle, folder).names():
            raise ConfigError(f"no audit trail at {folder}", Diagnosis(hint="see that the job's id is right"))
        return _seal_unrecorded(bundle, folder, job=job, outcome="late", error=None)


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


def _unrecorded(answer: Answer, start: int, stop: int) -> None:
    """The trail has ended."""


def _request_id() -> str:
    return str(uuid.uuid4())
