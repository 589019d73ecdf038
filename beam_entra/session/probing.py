"""What may this job do? Asked of Storage through a bundle, under the job's own credentials, and audited.

Nothing is read but names, properties and headers; nothing is written or deleted. Each question leaves a record:
`listed` or `read` where Storage gave something, `denied` where it refused, `probed` for what it could not carry out.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from beam_entra.access.downscope import Permission
from beam_entra.audit.record import Listed, Probed, segment_name
from beam_entra.errors import AccessDenied, BlobNotFound
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession, _Access
from beam_entra.session.scope import JobScope
from beam_entra.storage.answers import Answer
from beam_entra.storage.probes import (
    Probe,
    Refusal,
    anonymous_probe,
    commit_probe,
    delete_probe,
    metadata_probe,
    overwrite_probe,
    write_probe,
    wrong_key_probe,
)

__all__ = ["NOT_TO_BE_DONE", "Deed", "Prober", "a_blob_of", "probing_scope"]

Deed = Literal["overwrite", "change", "delete"]

NOT_TO_BE_DONE: Mapping[Deed, Probe] = {
    "overwrite": overwrite_probe,
    "change": metadata_probe,
    "delete": delete_probe,
}
"""What the right to append to a segment must not be good for, and how to ask."""

_MAY = {"ConditionNotMet", "TargetConditionNotMet", "InvalidBlockList", "BlobNotFound", "UnauthorizedBlobOverwrite"}


def probing_scope(scope: JobScope) -> JobScope:
    """The same scope under a job id that says that no job ran: `<pipeline>-doctor-<time>-<digits>`."""
    pipeline = scope.manifest.pipeline
    return replace(scope, job=f"{pipeline}-doctor{scope.job.removeprefix(pipeline)}")


class Prober:
    """Asks, in one bundle of a session.

    Where Storage says that the job may not, that is `AccessDenied`; that there is no such container, `BlobNotFound`;
    what leaves the question open is the error that it is.
    """

    def __init__(self, bundle: BundleSession) -> None:
        self._bundle = bundle

    def first_below(self, prefix: BlobPath) -> BlobPath | None:
        """List one name below a prefix that the job may read; None if there is none."""
        access = _Access(self._bundle, prefix, Permission.LIST)
        service, next_id = self._bundle.session.service, self._bundle._next_request_id
        with self._bundle._noting_refusals(str(prefix), "list"):
            access()
            page, answer = next(service.list_pages(prefix, prefix.name, access, next_id, page_size=1))
        told: dict[str, Any] = {**access.presented, "path": str(prefix), "blobs": page.listed}
        self._bundle._record(Listed, **told, **answer.ids()).wait()
        return page.blobs[0].path if page.blobs else None

    def is_there(self, path: BlobPath) -> bool:
        """Look at the properties of one blob that the job may read."""
        try:
            self._bundle.properties(path)
        except BlobNotFound as missing:
            if missing.diagnosis.code == "ContainerNotFound":
                raise
            return False
        return True

    def ask_to_write(self, path: BlobPath) -> None:
        """Ask for a commit that cannot succeed, of a blob that the job may write: with a condition, and without.

        The second question does not depend on what Storage looks at first, conditions or rights.
        """
        for probe in (write_probe, commit_probe):
            self._ask(probe, path, Permission.WRITE, "write")

    def ask_to_delete(self, path: BlobPath) -> None:
        """Ask for a deletion that cannot succeed, of a blob that the job may delete."""
        self._ask(delete_probe, path, Permission.DELETE, "delete")

    def try_on_own_segment(self, deed: Deed) -> Refusal:
        """Present the right to append to the session's own segment, for a deed that it must not be good for."""
        session = self._bundle.session
        path = session.scope.folder.child(segment_name(session.process, 0))
        request_id = self._bundle._next_request_id()
        found = NOT_TO_BE_DONE[deed](session.service, path, lambda: session._authorise_append(path), request_id)
        sas = session._audit_sas[path].sas_id
        session.record(Probed, sas=sas, **_told(path, Permission.APPEND, deed, found, request_id)).wait()
        if found.carried_out:
            raise found.error
        return found

    def look_as_nobody(self, path: BlobPath) -> Refusal | Answer:
        """Look at a blob, or at a container, without any credential."""
        request_id = self._bundle._next_request_id()
        found = anonymous_probe(self._bundle.session.service, path, request_id)
        self._bundle._record(Probed, **_told(path, Permission.READ, "look", found, request_id)).wait()
        return found

    def look_under_a_wrong_key(self, container: BlobPath) -> Refusal | Answer:
        """Look at a container under a shared key's signature that is none."""
        request_id = self._bundle._next_request_id()
        found = wrong_key_probe(self._bundle.session.service, container, request_id)
        self._bundle._record(Probed, **_told(container, Permission.READ, "look", found, request_id)).wait()
        return found

    def _ask(
        self, probe: Probe, path: BlobPath, permission: Permission, asked: Literal["write", "delete"]
    ) -> None:
        access = _Access(self._bundle, path, permission)
        request_id = self._bundle._next_request_id()
        with self._bundle._noting_refusals(str(path), permission.value):
            access()
            found = probe(self._bundle.session.service, path, access, request_id)
            if isinstance(found.error, AccessDenied):
                raise found.error
        told = _told(path, permission, asked, found, request_id)
        self._bundle._record(Probed, **access.presented, **told).wait()
        if found.code not in _MAY:
            raise found.error


def a_blob_of(path: BlobPath) -> BlobPath:
    """The blob itself; below a prefix, one of a name that nobody has."""
    return path.child(f"beam-entra-doctor-{secrets.token_hex(8)}") if path.is_prefix else path


def _told(
    path: BlobPath, permission: Permission, asked: str, found: Refusal | Answer, client_request_id: str
) -> dict[str, Any]:
    return {
        "path": str(path),
        "permission": permission.value,
        "asked": asked,
        "answer": f"{found.status} {found.code}".strip(),
        "request_id": found.request_id or "absent",
        "client_request_id": client_request_id,
    }
