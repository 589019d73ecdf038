"""What one worker process has done so far, record by record: rules 7 to 13 and 17 of `beam_entra.audit.verify`.

What no record to come may name any more is forgotten: a process that runs for months is checked in the memory that the
last hours of it take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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

_SAS_KEPT = IN_FLIGHT + _PUT_BACK  # after its end: then no access that presents it obeys rule 12
_BUNDLE_KEPT = timedelta(hours=1) + _SAS_KEPT  # after its closing: no SAS of it lives longer than an hour
_CREDENTIAL_KEPT = timedelta(days=1)  # a token or key, after its end
_FORGETS_FROM = 1000  # things known; below that it is not worth looking

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


@dataclass(slots=True)
class _Bundle:
    """What is known of a bundle, or of what belongs to none.

    Attributes:
        segment: In which it was opened.
        closed: When it was closed.
        intended: Size and rows by commit and path.
        deleting: Paths and versions that it said it would delete.
    """

    segment: str
    closed: datetime | None = None
    intended: dict[tuple[str, str], tuple[int, int | None]] = field(default_factory=dict)
    deleting: set[tuple[str, str | None]] = field(default_factory=set)


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
        self._bundles: dict[str, _Bundle] = {}
        self._no_bundle = _Bundle("")
        self._forgets_from = _FORGETS_FROM

    def left_open(self) -> dict[str, list[str]]:
        """Segments to the bundles that were opened in them, and closed nowhere."""
        found: dict[str, list[str]] = {}
        for bundle, known in self._bundles.items():
            if known.closed is None:
                found.setdefault(known.segment, []).append(bundle)
        return found

    @property
    def known(self) -> int:
        """How many bundles and credentials it has in mind."""
        return len(self._bundles) + len(self._sas) + len(self._keys) + len(self._tokens)

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
        if self.known >= self._forgets_from:
            self._forget(record.time)
        bundle = self._check_bundle(record, opened)
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
            bundle.intended[record.commit, record.path] = (record.size, record.rows)
        if isinstance(record, Committed):
            _check_commit(record, bundle)
        if isinstance(record, DeleteIntended):
            bundle.deleting.add((record.path, record.etag))
        if isinstance(record, Deleted) and (record.path, record.etag) not in bundle.deleting:
            raise RuleBroken(13, "the deletion of this blob was not intended before")

    def _forget(self, now: datetime) -> None:
        """Drop what no record from now on may name: times do not run backwards."""
        self._sas = {name: sas for name, sas in self._sas.items() if now - sas.expires <= _SAS_KEPT}
        self._keys = {name: key for name, key in self._keys.items() if now - key.expires <= _CREDENTIAL_KEPT}
        self._tokens = {name: token for name, token in self._tokens.items() if now - token.expires <= _CREDENTIAL_KEPT}
        self._bundles = {
            name: bundle
            for name, bundle in self._bundles.items()
            if bundle.closed is None or now - bundle.closed <= _BUNDLE_KEPT
        }
        self._forgets_from = max(_FORGETS_FROM, 2 * self.known)

    def _check_bundle(self, record: AnyRecord, opened: SegmentOpened) -> _Bundle:
        """Rule 9."""
        name = record.bundle
        bundle = self._no_bundle if name is None else self._bundles.get(name)
        if isinstance(record, BundleOpened):
            if name is None or bundle is not None:
                raise RuleBroken(9, "a bundle is opened twice, or has no id")
            if record.token is not None and record.token not in self._tokens:
                raise RuleBroken(9, f"token {record.token} had not been acquired")
            bundle = self._bundles[name] = _Bundle(opened.segment)
        elif bundle is None:
            raise RuleBroken(9, f"bundle {name} had not been opened")
        if isinstance(record, BundleClosed):
            if name is None or bundle.closed is not None:
                raise RuleBroken(9, "a bundle is closed twice, or has no id")
            bundle.closed = record.time
        return bundle

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


def _check_commit(record: Committed, bundle: _Bundle) -> None:
    """Rule 13."""
    intended = bundle.intended.get((record.commit, record.path))
    if intended is None:
        raise RuleBroken(13, f"commit {record.commit} of this path was not intended before")
    if not record.confirmed and intended != (record.size, record.rows):
        raise RuleBroken(13, f"commit {record.commit} was intended with another size or number of rows")


def _once(identifier: str, known: dict[str, _Key] | dict[str, _Sas] | dict[str, _Token]) -> None:
    """Rule 8."""
    if identifier in known:
        raise RuleBroken(8, f"id {identifier} was given before")
