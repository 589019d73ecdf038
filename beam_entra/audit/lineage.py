"""What one worker process has done so far, record by record: rules 7 to 13 and 17 of `beam_entra.audit.verify`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from beam_entra.audit.fields import Permission
from beam_entra.audit.record import (
    AnyRecord,
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    Copied,
    DeadlineExtended,
    Deleted,
    DeleteIntended,
    KeyAcquired,
    Listed,
    Probed,
    Read,
    SasIssued,
    SegmentOpened,
    Staged,
    TokenAcquired,
)
from beam_entra.clock import MOST_SKEW

__all__ = ["IN_FLIGHT", "Lineage", "RuleBroken"]

IN_FLIGHT = timedelta(minutes=2)
"""How long after a credential's end an answer to a request that carried it may still be recorded.

Storage checks the end when a request arrives; the record is made when the answer does.
"""

_PUT_BACK = MOST_SKEW + timedelta(minutes=1)
"""How far records may be ahead of the services while their time stands still: their clock was put right by so much."""

_STORAGE = "https://storage.azure.com"
_Access = Listed | Read | Staged | Copied | CommitIntended | Committed | DeleteIntended | Deleted | Probed
_NEEDS: dict[type[AnyRecord], Permission] = {
    Listed: "list",
    Read: "read",
    Staged: "write",
    Copied: "write",
    CommitIntended: "write",
    Committed: "write",
    DeleteIntended: "delete",
    Deleted: "delete",
}


class RuleBroken(Exception):
    """A rule is broken by the record at hand; whoever knows the segment and the line says so in `TrailBroken`."""

    def __init__(self, rule: int, what: str) -> None:
        super().__init__(rule, what)
        self.rule, self.what = rule, what


class _Token(NamedTuple):
    audience: str
    acquired: datetime
    expires: datetime


class _Key(NamedTuple):
    account: str
    token: str
    expires: datetime


class _Sas(NamedTuple):
    path: str
    permission: Permission
    bundle: str | None
    expires: datetime


class Lineage:
    """The segments of one process, as one story."""

    def __init__(self) -> None:
        self._time: datetime | None = None
        self._ahead = timedelta(0)  # by how much the record at hand may be
        self._tokens: dict[str, _Token] = {}
        self._extended_to: datetime | None = None
        self._freshest: datetime | None = None  # end of the token that has moved the deadline
        self._keys: dict[str, _Key] = {}
        self._sas: dict[str, _Sas] = {}
        self._intended: dict[tuple[str, str, str | None], tuple[int, int | None]] = {}
        self._deleting: set[tuple[str, str | None, str | None]] = set()
        self._opened: dict[str, str] = {}  # bundle to the segment it was opened in
        self._closed: set[str] = set()

    def left_open_in(self, segment: str) -> tuple[str, ...]:
        """Bundles that were opened in this segment, and closed nowhere."""
        return tuple(
            bundle for bundle, where in self._opened.items() if where == segment and bundle not in self._closed
        )

    def check(self, record: AnyRecord, opened: SegmentOpened) -> None:
        """Hold the next record against rules 7 to 13, and 17.

        Args:
            opened: The first record of the segment that it stands in.
        Raises:
            RuleBroken: With the rule's number.
        """
        if self._time is not None and record.time < self._time:
            raise RuleBroken(7, "it is earlier than the line before")
        self._ahead = _PUT_BACK if record.time == self._time else timedelta(0)
        self._time = record.time
        self._check_bundle(record, opened)
        match record:
            case TokenAcquired():
                _once(record.token, self._tokens)
                self._tokens[record.token] = _Token(record.audience, record.time, record.expires)
            case DeadlineExtended():
                self._check_extension(record, opened)
            case KeyAcquired():
                self._check_key(record, opened)
            case SasIssued():
                self._check_sas(record, opened)
            case (
                Listed() | Read() | Staged() | Copied() | CommitIntended() | Committed() | DeleteIntended() | Deleted()
            ):
                self._check_access(record, _NEEDS[type(record)], opened)
            case Probed():
                self._check_access(record, record.permission, opened)
        if isinstance(record, CommitIntended):
            self._intended[record.commit, record.path, record.bundle] = (record.size, record.rows)
        if isinstance(record, Committed):
            self._check_commit(record)
        if isinstance(record, DeleteIntended):
            self._deleting.add((record.path, record.etag, record.bundle))
        if isinstance(record, Deleted) and (record.path, record.etag, record.bundle) not in self._deleting:
            raise RuleBroken(13, "the deletion of this blob was not intended before")

    def _check_bundle(self, record: AnyRecord, opened: SegmentOpened) -> None:
        """Rule 9."""
        bundle = record.bundle
        if isinstance(record, BundleOpened):
            if bundle is None or bundle in self._opened:
                raise RuleBroken(9, "a bundle is opened twice, or has no id")
            if record.token is not None and record.token not in self._tokens:
                raise RuleBroken(9, f"token {record.token} had not been acquired")
            self._opened[bundle] = opened.segment
        elif bundle is not None and bundle not in self._opened:
            raise RuleBroken(9, f"bundle {bundle} had not been opened")
        if isinstance(record, BundleClosed):
            if bundle is None or bundle in self._closed:
                raise RuleBroken(9, "a bundle is closed twice, or has no id")
            self._closed.add(bundle)

    def _deadline(self, opened: SegmentOpened) -> datetime:
        """As it stands. A rolling life begins with its first token."""
        return self._extended_to or opened.deadline

    def _check_extension(self, record: DeadlineExtended, opened: SegmentOpened) -> None:
        """Rule 17."""
        token = self._tokens.get(record.token)
        if opened.rolling_s is None:
            raise RuleBroken(17, "the deadline of this job is fixed")
        if token is None or token.audience != _STORAGE:
            raise RuleBroken(17, f"token {record.token} had not been acquired, or not for Storage")
        if self._freshest is not None and token.expires <= self._freshest:
            raise RuleBroken(17, f"token {record.token} is not fresher than the one before")
        if (record.deadline - token.acquired - IN_FLIGHT).total_seconds() > opened.rolling_s:
            raise RuleBroken(17, f"the deadline is more than {opened.rolling_s} s after the token was acquired")
        self._freshest, self._extended_to = token.expires, record.deadline

    def _is_after(self, end: datetime, record: AnyRecord) -> bool:
        """Whether the request whose answer is recorded came after this end for certain."""
        return record.time - end > IN_FLIGHT + self._ahead

    def _check_key(self, record: KeyAcquired, opened: SegmentOpened) -> None:
        """Rule 10."""
        _once(record.key, self._keys)
        if opened.scoping == "bearer":
            raise RuleBroken(10, "a job whose scoping is bearer has no keys")
        self._check_live(10, record.token, record)
        self._keys[record.key] = _Key(record.account, record.token, record.expires)

    def _check_live(self, rule: int, identifier: str, record: AnyRecord) -> _Token:
        token = self._tokens.get(identifier)
        if token is None:
            raise RuleBroken(rule, f"token {identifier} had not been acquired")
        if self._is_after(token.expires, record):
            raise RuleBroken(rule, f"token {identifier} had expired")
        return token

    def _check_sas(self, record: SasIssued, opened: SegmentOpened) -> None:
        """Rule 11."""
        _once(record.sas, self._sas)
        key = self._keys.get(record.key)
        if key is None:
            raise RuleBroken(11, f"key {record.key} had not been acquired")
        if record.token != key.token:
            raise RuleBroken(11, f"key {record.key} was acquired with token {key.token}, not {record.token}")
        if f"@{key.account}.dfs.core.windows.net/" not in record.path:
            raise RuleBroken(11, f"key {record.key} is of account {key.account}")
        was_never_valid = record.time - record.expires >= self._ahead
        if was_never_valid or record.expires > min(key.expires, self._deadline(opened)):
            raise RuleBroken(11, "it outlives its key or the job's deadline, or was never valid")
        if record.correlation is not None and record.bundle is not None and record.correlation != record.bundle:
            raise RuleBroken(11, "it carries another bundle's id")
        self._sas[record.sas] = _Sas(record.path, record.permission, record.bundle, record.expires)

    def _check_access(self, record: _Access, needs: Permission, opened: SegmentOpened) -> None:
        """Rule 12."""
        if record.sas is not None:
            self._check_sas_presented(record.sas, needs, record.path, record)
        if isinstance(record, Copied) and record.source_sas is not None:
            self._check_sas_presented(record.source_sas, "read", record.source, record)
        if record.token is not None:
            self._check_token_presented(record.token, record, opened)
        if isinstance(record, Copied) and record.source_token is not None:
            self._check_token_presented(record.source_token, record, opened)

    def _check_token_presented(self, identifier: str, record: _Access, opened: SegmentOpened) -> None:
        if opened.scoping != "bearer":
            raise RuleBroken(12, "the job's scoping is SAS, and this access presented a token")
        token = self._check_live(12, identifier, record)
        if token.audience != _STORAGE:
            raise RuleBroken(12, f"token {identifier} is not for Storage")
        if record.bundle is None:
            raise RuleBroken(12, "an access is of a bundle")
        if self._is_after(self._deadline(opened), record):
            raise RuleBroken(12, "the job's time was over")

    def _check_sas_presented(self, identifier: str, permission: Permission, path: str, record: _Access) -> None:
        sas = self._sas.get(identifier)
        if sas is None:
            raise RuleBroken(12, f"SAS {identifier} had not been issued")
        if sas.permission != permission:
            raise RuleBroken(12, f"SAS {identifier} allows {sas.permission}, not {permission}")
        below = isinstance(record, Listed) and sas.path.endswith("/") and path.startswith(sas.path)
        if sas.path != path and not below:
            raise RuleBroken(12, f"SAS {identifier} was issued for another path")
        if sas.bundle != record.bundle:
            raise RuleBroken(12, f"SAS {identifier} was issued for another bundle")
        if self._is_after(sas.expires, record):
            raise RuleBroken(12, f"SAS {identifier} had expired")

    def _check_commit(self, record: Committed) -> None:
        """Rule 13."""
        intended = self._intended.get((record.commit, record.path, record.bundle))
        if intended is None:
            raise RuleBroken(13, f"commit {record.commit} of this path was not intended before")
        if not record.confirmed and intended != (record.size, record.rows):
            raise RuleBroken(13, f"commit {record.commit} was intended with another size or number of rows")


def _once(identifier: str, known: dict[str, _Key] | dict[str, _Sas] | dict[str, _Token]) -> None:
    """Rule 8."""
    if identifier in known:
        raise RuleBroken(8, f"id {identifier} was given before")
