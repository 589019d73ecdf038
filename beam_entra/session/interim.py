"""Sealing the trail of a job that is still running: now and then, by its launcher, or from outside."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from os import PathLike

from beam_entra.audit.interim import Interims, seal_interim
from beam_entra.audit.record import SEAL_NAME
from beam_entra.audit.store import APPEND_BYTES, is_trail_file
from beam_entra.clock import Clock, utc_now
from beam_entra.errors import (
    AuditError,
    BeamEntraError,
    ConfigError,
    Diagnosis,
    StorageError,
    TrailBroken,
)
from beam_entra.session.scope import JobScope
from beam_entra.session.sealing import StorageTrail, _SealingBundle, _trail_of, _UnrecordedSession
from beam_entra.session.session import Session
from beam_entra.storage import AppendBlobSegments

__all__ = ["PeriodicSeals", "seal_job_interim", "seal_running"]

_LOG = logging.getLogger(__name__)


def seal_job_interim(session: Session, known: Interims | None = None) -> Interims:
    """Seal what there is of the session's job; this is recorded in the session's own segment.

    Args:
        known: What an earlier call gave.

    Raises:
        TrailBroken: What is there does not continue what was sealed.
        AuditError: The job is sealed already, or the trail cannot be read or written.
    """
    scope = session.scope
    with _SealingBundle(session, "seal the audit trail so far") as bundle:
        trail = StorageTrail(bundle, scope.folder)
        store = AppendBlobSegments(session.service, scope.folder, session._authorise_append)
        return seal_interim(trail, store, job=scope.job, clock=session.clock, known=known)


class PeriodicSeals:
    """Has a job's trail sealed again and again in the background, until it is stopped.

    That it fails, however that may be, ends nothing: nothing was handed on or committed without its record, and the
    next one, or the final seal, makes up for it. It is logged; a trail that was tampered with as an error, and so is
    what nobody foresaw, by its type and place alone.

    Args:
        session: Gives the job's session as it is then.
        every: Time from one to the next.
        wait: Waits so many seconds, and says True when it is to end.
    """

    def __init__(
        self, session: Callable[[], Session], *, every: timedelta, wait: Callable[[float], bool] | None = None
    ) -> None:
        self._session, self._every_s = session, every.total_seconds()
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._known: Interims | None = None
        self._thread = threading.Thread(target=self._run, name="beam-entra-interim-seals", daemon=True)
        self._thread.start()

    def stop(self) -> Interims | None:
        """Make no more; returns when one that is being made is there, or has failed: what is known of them."""
        self._stopped.set()
        self._thread.join()
        return self._known

    def _run(self) -> None:
        while not self._wait(self._every_s) and not self._stopped.is_set():
            session: Session | None = None
            try:
                session = self._session()
                self._known = seal_job_interim(session, self._known)
            except TrailBroken as broken:
                _LOG.error("the audit trail was changed while the job is running: %s", broken)
            except BeamEntraError as error:
                if session is not None and session.over:
                    _LOG.warning("the job's time is over: only the final seal is made now")
                    return
                _LOG.warning("the audit trail was not sealed so far, the next time will do: %s", error.message)
            except Exception as error:  # noqa: BLE001  without it no other would be made, and nobody be told
                where = traceback.extract_tb(error.__traceback__)[-1]
                _LOG.error(  # what it says may hold a secret
                    "the audit trail was not sealed so far, the next time it is tried again: %s at %s line %s",
                    type(error).__name__,
                    where.filename,
                    where.lineno,
                )


def seal_running(
    path: str, access_manifest: str | PathLike[str], endpoints: str | PathLike[str] | None, *, clock: Clock = utc_now
) -> dict[str, Interims | BeamEntraError]:
    """Seal what there is of running jobs, as the manifest's identity; this leaves no record but the seals.

    For jobs whose launcher is not there: from cron, say. A trail that has a seal is left as it is, and so is one to
    which nothing was added. One that holds a file which is neither a segment nor a seal is not sealed, now or in the
    end (rule 1 of `beam_entra.audit.verify`), and keeps no other from its seal. Nor does one whose final seal was begun
    and not ended, which `seal_late` ends.

    Args:
        path: A job's folder, or one above it, at or below the manifest's audit path.
        access_manifest, endpoints: As for `open_trail`.

    Returns:
        For each job without a seal its interim seals, or why it could not be sealed; the latter also for one whose
        final seal was not ended, and for what lies among the folders of jobs and is none.

    Raises:
        ConfigError: The path is no job's folder nor above one, or holds no trail.
        IdentityError: No token.
    """
    manifest, folder = _trail_of(path, access_manifest, endpoints)
    scope = JobScope.launch(manifest, now=clock())
    below = folder.name.removeprefix(manifest.audit.name)
    with closing(_UnrecordedSession(scope, clock=clock)) as session:
        sizes = StorageTrail(_SealingBundle(session, "look for trails"), folder).sizes()
    files: dict[str, dict[str, int]] = {}
    for name, size_bytes in sizes.items():
        job, _, file = f"{below}{name}".partition("/")
        files.setdefault(job, {})[file] = size_bytes
    jobs = {job for job, found in files.items() if any(map(is_trail_file, found))}
    if not jobs or below.count("/") > 1:
        raise ConfigError(f"no trail of a job at {folder}", Diagnosis(hint=f"name {manifest.audit}, or a folder in it"))
    sealed: dict[str, Interims | BeamEntraError] = {}
    for job in sorted(files):
        if job not in jobs:
            sealed[job] = AuditError(
                f"{manifest.audit}{job} is not the folder of a job's trail, and nothing else belongs there",
                Diagnosis(hint="see who wrote it; a pipeline of another audit path has its own access manifest"),
            )
        elif not files[job].get(SEAL_NAME):
            sealed[job] = _seal_one(replace(scope, job=job), clock)
        elif unended := _find_unended(replace(scope, job=job), files[job][SEAL_NAME], clock):
            sealed[job] = unended
    return sealed


def _seal_one(scope: JobScope, clock: Clock) -> Interims | BeamEntraError:
    with closing(_UnrecordedSession(scope, clock=clock)) as session:
        try:
            return seal_job_interim(session)
        except (AuditError, StorageError) as error:  # of this trail; who gets no token gets none for the others
            return error


def _find_unended(scope: JobScope, seal_bytes: int, clock: Clock) -> BeamEntraError | None:
    """That a final seal of this length was begun and not ended, or cannot be read; None when all is well with it."""
    if seal_bytes < APPEND_BYTES:
        return None  # it went in one append: it is there, or it is not
    with closing(_UnrecordedSession(scope, clock=clock)) as session:
        trail = StorageTrail(_SealingBundle(session, "see whether a seal was ended"), scope.folder)
        try:
            if trail.read_range(SEAL_NAME, seal_bytes - 1, seal_bytes) == b"\n":
                return None
        except (AuditError, StorageError) as error:
            return error
    return AuditError(
        f"the seal of job {scope.job} was begun and not ended",
        Diagnosis(tried=f"seal {scope.folder}", hint=f"if nobody is at it now: beam-entra audit seal {scope.folder}"),
    )
