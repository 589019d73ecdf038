"""Asking Storage whether it would do something, by requests that it cannot carry out.

Storage decides who may do what before it looks at a request's conditions. So each of these carries one that never
holds: who may not do it hears 403, who may hears of the condition, and nothing is read, written or deleted. Of a commit
it is asked without one as well: of blocks that were never staged, which comes to nothing whatever Storage looks at
first.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from beam_entra.errors import BeamEntraError, Diagnosis, StorageError
from beam_entra.paths import BlobPath
from beam_entra.storage.answers import Answer
from beam_entra.storage.blobs import block_list_xml, new_block_id
from beam_entra.storage.exchange import Authorise, Authorization
from beam_entra.storage.service import BlobService

__all__ = [
    "Probe",
    "Refusal",
    "anonymous_probe",
    "commit_probe",
    "delete_probe",
    "metadata_probe",
    "overwrite_probe",
    "write_probe",
    "wrong_key_probe",
]

_NEVER = '"0x0"'  # no blob's ETag
_REFUSED = 300  # the first status that says that it was not done


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why Storage did not do it; or an error that says that it did, with a good status."""

    status: int
    code: str
    request_id: str
    error: BeamEntraError

    @property
    def carried_out(self) -> bool:
        """Whether it was done after all."""
        return self.status < _REFUSED

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


Probe = Callable[[BlobService, BlobPath, Authorise, str], Refusal]


def write_probe(service: BlobService, path: BlobPath, authorise: Authorise, client_request_id: str) -> Refusal:
    """Put Block List of a block that was never staged, over a version that never was."""
    return _refused(service, "PUT", path, "write", authorise, client_request_id, **_never_staged())


def commit_probe(service: BlobService, path: BlobPath, authorise: Authorise, client_request_id: str) -> Refusal:
    """The same without a condition: who may write hears that there is no such block."""
    call = _never_staged()
    return _refused(service, "PUT", path, "write", authorise, client_request_id, never=False, **call)


def _never_staged() -> dict[str, Any]:
    return {"query": {"comp": "blocklist"}, "body": block_list_xml("Uncommitted", [new_block_id()])}


def delete_probe(service: BlobService, path: BlobPath, authorise: Authorise, client_request_id: str) -> Refusal:
    """Delete Blob, of a version that never was."""
    return _refused(service, "DELETE", path, "delete", authorise, client_request_id)


def overwrite_probe(service: BlobService, path: BlobPath, authorise: Authorise, client_request_id: str) -> Refusal:
    """Put Blob over a version that never was."""
    headers = {"x-ms-blob-type": "AppendBlob"}
    return _refused(service, "PUT", path, "overwrite", authorise, client_request_id, headers=headers)


def metadata_probe(service: BlobService, path: BlobPath, authorise: Authorise, client_request_id: str) -> Refusal:
    """Set Blob Metadata of a version that never was: needs the right to write, which the right to create is not."""
    query = {"comp": "metadata"}
    return _refused(service, "PUT", path, "change", authorise, client_request_id, query=query)


def anonymous_probe(service: BlobService, path: BlobPath, client_request_id: str) -> Refusal | Answer:
    """HEAD without any credential: of one blob, or of the container where the path has no name.

    Returns:
        An `Answer` if Storage answers to anybody.
    """
    return _look(service, path, client_request_id, {})


def wrong_key_probe(service: BlobService, container: BlobPath, client_request_id: str) -> Refusal | Answer:
    """HEAD of a container under a shared key's signature that is wrong for certain: 32 bytes of zero.

    An account that takes no shared key says so.

    Returns:
        An `Answer` if the container is open to anybody.
    """
    signature = base64.b64encode(bytes(32)).decode()
    headers = {"Authorization": f"SharedKey {container.account}:{signature}", "x-ms-date": formatdate(usegmt=True)}
    return _look(service, container, client_request_id, headers)


def _look(
    service: BlobService, path: BlobPath, client_request_id: str, headers: dict[str, str]
) -> Refusal | Answer:
    query = {} if path.name else {"restype": "container"}
    try:
        return _send(service, "HEAD", path, "look at", Authorization, client_request_id, query=query, headers=headers)
    except BeamEntraError as error:
        return _refusal(error)


def _refused(
    service: BlobService,
    method: str,
    path: BlobPath,
    verb: str,
    authorise: Authorise,
    client_request_id: str,
    *,
    headers: dict[str, str] | None = None,
    never: bool = True,
    **parts: Any,
) -> Refusal:
    sent = {"If-Match": _NEVER} if never else {}
    try:
        answer = _send(
            service, method, path, verb, authorise, client_request_id, headers=sent | (headers or {}), **parts
        )
    except BeamEntraError as error:
        return _refusal(error)
    done = StorageError(
        "Storage carried out a request that cannot be carried out",
        Diagnosis(
            tried=f"see whether one may {verb} {path}",
            status=answer.status,
            request_id=answer.request_id,
            hint="whatever answers at this endpoint is not Storage: check the account's endpoint",
        ),
    )
    return _refusal(done)  # whoever asked records it first


def _send(
    service: BlobService,
    method: str,
    path: BlobPath,
    verb: str,
    authorise: Authorise,
    client_request_id: str,
    **parts: Any,
) -> Answer:
    return service._receive(
        service._call(method, path, f"see whether one may {verb}", authorise, client_request_id, **parts), path
    )


def _refusal(error: BeamEntraError) -> Refusal:
    known = error.diagnosis
    if known.status is None:  # no answer, no token, no time left: nothing was said about the right
        raise error
    return Refusal(status=known.status, code=known.code, request_id=known.request_id, error=error)
