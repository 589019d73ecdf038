"""A bundle session: the unit in which tokens are refreshed, SAS issued and accesses audited.

Each access takes the same steps:

1. The deadline has not passed and a grant covers the path; else the refusal is recorded and nothing is sent.
2. A SAS for exactly this path and permission: the bundle's own while it lives, else a new one, recorded. Each attempt
   at the request asks for it again. (A job whose scoping is `bearer` presents its token instead, decided likewise.)
3. The request. When its answer's head is here, the access is recorded, and the record becomes durable while the body is
   still on its way.
4. Only when the record is durable does the caller get anything; or, where an operation says so, when it has called
   `settle`.
"""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from beam_entra.access.downscope import Permission, SasSpec, downscope, granted
from beam_entra.audit import Receipt
from beam_entra.audit.record import (
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    Copied,
    Deleted,
    DeleteIntended,
    Denied,
    Listed,
    Read,
    Staged,
)
from beam_entra.errors import (
    AccessDenied,
    AuditError,
    AuditUnavailable,
    BeamEntraError,
    BlobChanged,
    BlobNotFound,
    Diagnosis,
    IdentityExpired,
    IdentityRejected,
    NotGranted,
)
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken
from beam_entra.paths import BlobPath
from beam_entra.storage import Authorization, BlobProperties, Sas
from beam_entra.storage.answers import Answer, are_claims
from beam_entra.storage.blobs import ListPage
from beam_entra.storage.exchange import STILL_CHALLENGED

if TYPE_CHECKING:
    from beam_entra.session.session import Session

__all__ = ["BundleSession", "CommittedBlob", "Fetched"]

Outcome = Literal["ok", "failed", "abandoned"]
_SAS_KEPT = 4096  # of a bundle: one that touches more blobs gets another SAS for those it comes back to
_REFUSED_BY = {NotGranted: "manifest", IdentityExpired: "deadline", AccessDenied: "storage", IdentityRejected: "entra"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedBlob:
    """A blob that this job wrote.

    Attributes:
        path: Canonical path.
        etag: Names the version that was committed.
        size_bytes: Length.
        rows: Records in it; 0 where nobody counted.
        confirmed: An earlier attempt had committed it, and this one found it.
    """

    path: str
    etag: str
    size_bytes: int
    rows: int
    confirmed: bool = False


class Fetched:
    """Bytes that are here, and may be had when what is recorded of their access is durable."""

    __slots__ = ("_content", "_receipts")

    def __init__(self, content: bytearray, receipts: list[Receipt]) -> None:
        self._content, self._receipts = content, receipts

    def take(self) -> bytearray:
        """The bytes, once their records are durable.

        Raises:
            AuditUnavailable: Some record is not durable.
        """
        for receipt in self._receipts:
            receipt.wait()
        return self._content

    def plan(self) -> bytearray:
        """The bytes at once, to plan by what to read next. Nothing of them is let out before `take` has returned."""
        return self._content


class BundleSession:
    """Made by `Session.bundle`. Thread-safe, so that a bundle can fetch ahead. Close it, or use it with `with`."""

    _rule: ClassVar[Callable[..., SasSpec]] = staticmethod(downscope)  # which decides what it may do

    def __init__(self, session: Session, step: str, *, audience: str) -> None:
        self.session = session
        self.id = str(uuid.uuid4())
        self._sas: dict[tuple[BlobPath, Permission], Sas] = {}
        self._lock = threading.RLock()
        self._sas_locks: dict[str, threading.RLock] = {}  # one an account: none waits for another's key
        self._request_numbers = itertools.count()
        self._last: Receipt | None = None
        self._record_lock = threading.Lock()
        self._opened = self._closed = False
        tried = f"open a bundle of {step}"
        with self._noting_refusals(audience, "token"):
            session.check_deadline(tried)
            token = self._checked_token(audience, tried)
        self._record(BundleOpened, step=step, token=token.token_id)
        self._opened = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("ok" if kind is None else "failed")

    # What connectors use

    def access_token(self, audience: str, *, refused: AccessToken | None = None, claims: str = "") -> AccessToken:
        """A live token for another service that the manifest names under `[grants] token`.

        Args:
            refused: A token that the service has answered with a claims challenge: see `TokenBroker.renew`.
            claims: What the challenge said, decoded: a JSON object.

        Raises:
            ValueError: They are none, or the refused token is for another audience.
            NotGranted: It does not name it, or it is Storage's. Nothing was sent.
            IdentityError: No token; or the one that was refused is new, and was got for a challenge itself.
            AuditUnavailable: The bundle is closed.
        """
        tried = f"acquire a token for {audience}"
        self._check_open(tried)
        if claims and not are_claims(claims):
            raise ValueError("the claims of a challenge, decoded, are a JSON object")
        with self._noting_refusals(audience, "token"):
            self.session.check_deadline(tried)
            if audience == STORAGE_AUDIENCE:
                raise NotGranted(
                    "a token for Storage is handed to nobody: it reaches past every grant on a path",
                    Diagnosis(tried=tried, hint="use the bundle's read, list_blobs, stage and commit"),
                )
            token = self._checked_token(audience, tried)
            if refused is not None:
                if refused.audience != audience:
                    raise ValueError("a token is renewed for its own audience")
                renewed = self.session.broker.renew(refused, claims)
                if renewed is None:
                    raise IdentityRejected(
                        f"{audience} wants other claims in the job's token, and refuses the new token that was got "
                        "with them as well",
                        Diagnosis(tried=tried, hint=STILL_CHALLENGED),
                    )
                token = renewed
        self.session.settle()  # the record of the token is durable before anybody has it
        return token

    # Storage

    def may(self, path: BlobPath, permission: Permission) -> bool:
        """Whether a grant covers the access; nothing is recorded."""
        return granted(self.session.scope.manifest, path, permission) is not None

    def require(self, path: BlobPath, permission: Permission) -> None:
        """Have the SAS for an access that comes later.

        Raises:
            NotGranted: No grant covers it. Nothing was sent.
        """
        with self._noting_refusals(str(path), permission.value):
            self._authorise(path, permission)

    def _authorise(self, path: BlobPath, permission: Permission) -> Authorization:
        """What to present for an access, for requests that the bundle does not send itself.

        Raises:
            NotGranted: No grant covers it. Nothing was sent.
        """
        return _Access(self, path, permission)()

    def properties(self, path: BlobPath) -> BlobProperties:
        """Size and ETag of one blob that the job may read."""
        return self._properties(path)[0]

    def _properties(self, path: BlobPath) -> tuple[BlobProperties, Answer]:
        access = _Access(self, path, Permission.READ)
        with self._noting_refusals(str(path), "read"):
            access()
            found, answer = self.session.service.properties(path, access, self._next_request_id())
        self._record_read(access, found, answer, 0, 0).wait()
        return found, answer

    def list_blobs(
        self,
        prefix: BlobPath,
        name_prefix: str,
        *,
        page_size: int | None = None,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[BlobProperties]:
        """The blobs below a prefix that the job may read, whose names begin with `name_prefix`.

        Args:
            page_size: How many to ask for at a time; by default as many as Storage gives.
            wanted: Which names to give. The trail counts all that Storage told.

        Raises:
            ConfigError: The name of a wanted blob is one that no path can have.
        """
        if not name_prefix.startswith(prefix.name):
            raise ValueError("a listing stays below the prefix that it is granted for")
        access = _Access(self, prefix, Permission.LIST)
        with self._noting_refusals(str(prefix), "list"):
            access()  # a denial comes before the first request
            pages = self.session.service.list_pages(
                prefix,
                name_prefix,
                access,
                self._next_request_id,
                page_size=page_size,
                wanted=lambda name: wanted(name) or not name.startswith(prefix.name),  # the latter are refused below
            )

        def next_page() -> tuple[ListPage, Receipt] | None:
            with self._noting_refusals(str(prefix), "list"):
                page, answer = next(pages, (None, None))
                if page is None or answer is None:
                    return None
                for blob in page.blobs:
                    if not prefix.covers(blob.path):
                        raise AccessDenied(
                            f"Storage listed {blob.path}, which is not below {prefix}",
                            Diagnosis(request_id=answer.request_id, hint="check the account's endpoint"),
                        )
            told: dict[str, Any] = {**access.presented, "path": str(prefix), "blobs": page.listed}
            return page, self._record(Listed, **told, **answer.ids())

        page_and_receipt = next_page()
        with ThreadPoolExecutor(1, thread_name_prefix="beam-entra-list") as threads:  # its end waits for the record
            while page_and_receipt is not None:
                page, receipt = page_and_receipt
                following = threads.submit(next_page) if page.next_marker else None
                receipt.wait()
                yield from page.blobs
                page_and_receipt = following.result() if following is not None else None

    def read_beginning(self, path: BlobPath, length: int) -> tuple[BlobProperties, bytearray]:
        """Size and ETag of one blob that the job may read, and its first bytes, at most `length`; in one request."""
        access = _Access(self, path, Permission.READ)
        receipts: list[Receipt] = []

        def answered(blob: BlobProperties, answer: Answer, begin: int, end: int) -> None:
            receipts.append(self._record_read(access, blob, answer, begin, end))

        with self._noting_refusals(str(path), "read"):
            access()
            found, content = self.session.service.read_beginning(path, length, access, self._next_request_id, answered)
        for receipt in receipts:
            receipt.wait()
        self.session.count("bytes_read", len(content))
        return found, content

    def fetch(
        self, blob: BlobProperties, start: int, stop: int, *, prompt: bool = True, into: memoryview | None = None
    ) -> Fetched:
        """Bytes [start, stop) of this version of a blob that the job may read, in hand when their records are durable.

        Args:
            prompt: Have the records written at once; else when somebody takes the bytes, with all that are pending.
            into: Where to receive them, of their length. What is taken is empty then.

        Returns:
            The bytes; who has no more use for them may give them to the session's `buffers`.

        Raises:
            BlobChanged: The blob is no longer this version.
        """
        access = _Access(self, blob.path, Permission.READ)
        receipts: list[Receipt] = []

        def answered(answer: Answer, begin: int, end: int) -> None:
            receipts.append(self._record_read(access, blob, answer, begin, end, prompt=prompt))

        with self._noting_refusals(str(blob.path), "read"):
            access()
            content = self.session.buffers.take(stop - start) if into is None else bytearray()
            room = content if into is None else into
            self.session.service.receive_range(blob, start, stop, access, self._next_request_id, answered, room)
        self.session.count("bytes_read", stop - start)
        return Fetched(content, receipts)

    def read(self, blob: BlobProperties, start: int, stop: int) -> bytearray:
        """As `fetch`, waited for."""
        return self.fetch(blob, start, stop).take()

    def stage(self, path: BlobPath, block_id: str, data: bytes) -> None:
        """Stage a block of a blob that the job may write. Call `settle` before telling anybody that it is staged."""
        access = _Access(self, path, Permission.WRITE)
        with self._noting_refusals(str(path), "write"):
            access()
            answer = self.session.service.put_block(path, block_id, data, access, self._next_request_id())
        self._record(
            Staged,
            **access.presented,
            path=str(path),
            block=block_id,
            size=len(data),
            **answer.ids(),
        )
        self.session.count("bytes_staged", len(data))
        self.session.count("blocks_staged")

    def copy_block(
        self, source: BlobProperties, start: int, stop: int, path: BlobPath, block_id: str
    ) -> None:
        """Have Storage itself stage bytes [start, stop) of a blob that the job may read in one that it may write.

        Call `settle` before telling anybody that they are staged.

        Raises:
            BlobChanged: The source is no longer this version.
        """
        reading = _Access(self, source.path, Permission.READ)
        writing = _Access(self, path, Permission.WRITE)
        with self._noting_refusals(str(source.path), "read"):
            reading()
        with self._noting_refusals(str(path), "write"):
            answer = self.session.service.put_block_from_blob(
                path, block_id, source, start, stop, writing, reading, self._next_request_id()
            )
        self._record(
            Copied,
            **writing.presented,
            path=str(path),
            block=block_id,
            **{f"source_{what}": identifier for what, identifier in reading.presented.items()},
            source=str(source.path),
            source_etag=source.etag,
            start=start,
            end=stop,
            **answer.ids(),
        )
        self.session.count("bytes_copied", stop - start)

    def write(self, path: BlobPath, data: bytes, *, commit_id: str, content_type: str) -> CommittedBlob:
        """Write a whole blob that the job may write, in one request, over one that is there."""
        access = _Access(self, path, Permission.WRITE)
        with self._noting_refusals(str(path), "write"):
            access()
            intent: dict[str, Any] = {"path": str(path), "commit": commit_id, "size": len(data), "rows": None}
            self._record(CommitIntended, **access.presented, blocks=0, **intent).wait()
            answer = self.session.service.put_blob(
                path, data, access, self._next_request_id(), commit_id=commit_id, content_type=content_type
            )
        self._record(
            Committed, **access.presented, etag=answer.etag, confirmed=False, **answer.ids(), **intent
        ).wait()
        self.session.count("bytes_staged", len(data))
        self.session.count("blobs_committed")
        return CommittedBlob(path=str(path), etag=answer.etag, size_bytes=len(data), rows=0)

    def delete(self, path: BlobPath, *, etag: str | None = None) -> bool:
        """Delete a blob that the job may delete.

        Args:
            etag: Delete this version only.

        Returns:
            Whether there was one.

        Raises:
            BlobChanged: It is no longer this version. It was not touched.
        """
        access = _Access(self, path, Permission.DELETE)
        with self._noting_refusals(str(path), "delete"):
            access()
            self._record(DeleteIntended, **access.presented, path=str(path), etag=etag).wait()
            answer, missing = self._delete(path, access, etag)
        ids = answer.ids() if answer is not None else _ids(missing)
        self._record(
            Deleted, **access.presented, path=str(path), etag=etag, missing=missing is not None, **ids
        ).wait()
        self.session.count("blobs_deleted")
        return missing is None

    def _delete(
        self, path: BlobPath, access: _Access, etag: str | None
    ) -> tuple[Answer | None, BlobNotFound | None]:
        """Delete; after an answer that was lost, the next attempt meets no blob, or hears that it has changed."""
        try:
            return self.session.service.delete(path, access, self._next_request_id(), etag=etag)
        except BlobChanged as changed:
            if changed.diagnosis.attempts < 2 or not self.may(path, Permission.READ):
                raise
            try:
                self.properties(path)
            except BlobNotFound as missing:
                return None, missing
            raise

    def commit(
        self,
        path: BlobPath,
        block_ids: list[str],
        *,
        commit_id: str,
        size_bytes: int,
        rows: int | None,
        content_type: str,
        overwrite: bool = False,
        replaces: str = "",
        settle: bool = True,
    ) -> CommittedBlob:
        """Make a blob of staged blocks, once; a retry with the same blocks finds it done.

        Args:
            block_ids: None make an empty blob.
            overwrite: Replace a blob that is there.
            replaces: With `overwrite`: the ETag of the only version to be replaced, or "*" for whatever is there; then,
                if no blob is there, none is made.
            settle: False for who calls `settle` before telling anybody that it is there. The next commit's intention
                is durable only behind this one's end.

        Raises:
            BlobChanged: The blob is no longer the version to be replaced. It was not touched.
            BlobExists: A blob of other blocks is there. It was not touched.
            BlobNotFound: There is no blob, and it was only to be replaced.
        """
        access = _Access(self, path, Permission.WRITE)
        with self._noting_refusals(str(path), "write"):
            access()
            intent: dict[str, Any] = {"path": str(path), "commit": commit_id, "size": size_bytes, "rows": rows}
            self._record(CommitIntended, **access.presented, blocks=len(block_ids), **intent).wait()
            done = self.session.service.commit(
                path,
                block_ids,
                access,
                self._next_request_id(),
                commit_id=commit_id,
                content_type=content_type,
                overwrite=overwrite,
                replaces=replaces,
            )
        answer = done.answer
        committed = self._record(
            Committed,
            **access.presented,
            etag=answer.etag,
            confirmed=done.confirmed,
            **answer.ids(),
            **intent,
        )
        if settle:
            committed.wait()
        self.session.count("blobs_committed")
        return CommittedBlob(
            path=str(path), etag=answer.etag, size_bytes=size_bytes, rows=rows or 0, confirmed=done.confirmed
        )

    def settle(self) -> None:
        """Return when every record of this bundle so far is durable."""
        last = self._last
        if last is not None:
            last.wait()

    def close(self, outcome: Outcome = "ok", *, settle: bool = True) -> None:
        """Record the end and make everything durable; forget the SAS. Closing again does nothing.

        The end itself becomes durable in its own time where that is before the seal in any case: see
        `Session.ends_before_seal`.

        Nothing can be begun in it any more. Wait for what is under way first; what ends later is recorded after the
        bundle's end, since an access that took place belongs into the trail.

        Args:
            settle: False for one whose accesses have all been waited for: its end becomes durable in its own time.

        Raises:
            AuditUnavailable: Some record is not durable, so the bundle must fail.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._sas.clear()
        with self._record_lock:
            before = self.session.latest
            end = self._last = self.session.record(BundleClosed, bundle=self.id, outcome=outcome)
        last = before if self.session.ends_before_seal else end
        if settle and last is not None:
            last.wait()

    # The steps

    def deny(self, error: BeamEntraError, path: str, permission: str, by: str) -> None:
        """Record a refusal. That it cannot be recorded does not undo it: it is added to the error instead."""
        known = error.diagnosis
        try:
            self.session.record(
                Denied,
                bundle=self.id if self._opened else None,  # nothing is of a bundle that was never opened
                path=path,
                permission=permission,
                reason=error.message,
                by=by,
                request_id=known.request_id or None,
                client_request_id=known.client_request_id or None,
            ).wait()
        except AuditError as unrecorded:
            error.add_note(f"and the refusal could not be recorded: {unrecorded.message}")
        self.session.count("denials")

    def sas(self, path: BlobPath, permission: Permission) -> Sas:
        """The bundle's SAS for this access: the one at hand while it lives, else a new one.

        Raises:
            AuditUnavailable: The bundle is closed.
        """
        tried = f"{permission.value} {path}"
        with self._sas_locks.setdefault(path.account, threading.RLock()):
            self._check_open(tried)
            sas = self._sas.get((path, permission))
            if sas is not None and self.session.live(sas):
                return sas
            renewed = sas is not None
            sas = self.session.issue(
                lambda key_expires: self._downscope(path, permission, key_expires),
                path=path,
                permission=permission,
                bundle=self.id,
            )
            with self._lock:
                self._check_open(tried)  # it may have been closed meanwhile
                self._sas.pop((path, permission), None)
                self._sas[path, permission] = sas
                if len(self._sas) > _SAS_KEPT:
                    del self._sas[next(iter(self._sas))]  # the oldest
            if renewed:
                self.session.count("sas_refreshed")
            return sas

    def _present_token(self, path: BlobPath, permission: Permission) -> tuple[str, Authorization]:
        """The job's own token for this access, where its scoping is `bearer`; see `Session.present_token`.

        Raises:
            AuditUnavailable: The bundle is closed.
        """
        self._check_open(f"{permission.value} {path}")
        return self.session.present_token(lambda key_expires: self._downscope(path, permission, key_expires))

    def _check_open(self, tried: str) -> None:
        if self._closed:
            raise AuditUnavailable(
                "the bundle is closed: no access can be recorded in it any more",
                Diagnosis(tried=tried, hint="open another bundle, or wait for what is under way before closing it"),
            )

    def _downscope(self, path: BlobPath, permission: Permission, key_expires: datetime | None) -> SasSpec:
        scope = self.session.scope
        return self._rule(
            scope.manifest,
            path,
            permission,
            now=self.session.check_deadline(f"{permission.value} {path}"),
            deadline=self.session.deadline,
            key_expires=key_expires,
        )

    def _checked_token(self, audience: str, tried: str) -> AccessToken:
        manifest = self.session.scope.manifest
        if audience != STORAGE_AUDIENCE and audience not in manifest.audiences:
            raise NotGranted(
                f"no grant lets {manifest.pipeline} have a token for {audience}",
                Diagnosis(
                    tried=tried,
                    identity=self.session.scope.identity,
                    hint=f'add "{audience}" to token in [grants] of the access manifest, if the job is to have it',
                ),
            )
        return self.session.broker.get(audience)

    def _noting_refusals(self, path: str, permission: str) -> _NotingRefusals:
        return _NotingRefusals(self, path, permission)

    def _record_read(
        self, access: _Access, blob: BlobProperties, answer: Answer, start: int, end: int, *, prompt: bool = True
    ) -> Receipt:
        return self._record(
            Read,
            prompt=prompt,
            **access.presented,
            path=str(blob.path),
            etag=blob.etag,
            start=start,
            end=end,
            **answer.ids(),
        )

    def _record(self, model: Any, *, prompt: bool = True, **facts: Any) -> Receipt:
        with self._record_lock:  # so that the last receipt is the last record's
            receipt = self._last = self.session.record(model, bundle=self.id, prompt=prompt, **facts)
        return receipt

    def _next_request_id(self) -> str:
        return f"{self.id}-{next(self._request_numbers)}"


def _ids(missing: BlobNotFound | None) -> dict[str, str]:
    known = missing.diagnosis if missing is not None else Diagnosis()
    return {"request_id": known.request_id or "absent", "client_request_id": known.client_request_id}


class _NotingRefusals:
    """Records a refusal within it, and raises it with the identity that was refused. A class, which is quickly made."""

    __slots__ = ("_bundle", "_path", "_permission")

    def __init__(self, bundle: BundleSession, path: str, permission: str) -> None:
        self._bundle, self._path, self._permission = bundle, path, permission

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (NotGranted, IdentityExpired, AccessDenied, IdentityRejected)):
            told = error.explained(identity=self._bundle.session.scope.identity)
            self._bundle.deny(told, self._path, self._permission, _REFUSED_BY[type(error)])
            raise told from None


class _Access:
    """One path and permission of one bundle; called for each attempt to authorise it.

    Attributes:
        presented: What the last attempt presented, as an audit record names it.
    """

    def __init__(self, bundle: BundleSession, path: BlobPath, permission: Permission) -> None:
        self._bundle, self._path, self._permission = bundle, path, permission
        self.presented: dict[str, Any] = {}

    def __call__(self) -> Authorization:
        if self._bundle.session.bearer:
            token_id, authorization = self._bundle._present_token(self._path, self._permission)
            self.presented = {"token": token_id}
            return authorization
        sas = self._bundle.sas(self._path, self._permission)
        self.presented = {"sas": sas.sas_id}
        return Authorization(sas=sas.query, resign=partial(self._bundle.session.retire_key, sas))
