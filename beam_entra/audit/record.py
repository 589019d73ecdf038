"""The audit records: what each line of a trail says. This is the reviewer's reference.

A trail is a folder with one file per worker process and one that closes it:

    segment-<uuid of the process>-00000.jsonl     what one worker process did, oldest first
    segment-<uuid of the process>-00001.jsonl     ... continued, when the first had grown long
    seal-000000.jsonl                             one line, an interim seal: what stood while the job was running
    seal-000001.jsonl                             ... the next one
    seal.jsonl                                    one line, written by the launcher at the end of the job

Each line is one JSON object: ASCII, no spaces, keys in the order of the model, ended by a newline. The five fields of
`Record` come first in every line; `kind` says which model the others follow. Unknown fields are refused, when a line
is written and when it is verified.

    token_acquired <- key_acquired <- sas_issued <- listed | read | staged | copied | probed
                                                  | commit_intended <- committed
                                                  | delete_intended <- deleted

A job that is not scoped by SAS (`scoping` of `segment_opened` is `bearer`) has neither keys nor SAS: there the line of
an access names the `token` that was presented, in place of `sas`.

    token_acquired <- listed | read | staged | ...
                   <- deadline_extended               where the job's life is a rolling one

The arrows are ids. `token`, `key` and `sas` are short names that the process made up, unique within the segments of one
process: they stand for credentials, and no credential can be made from them. No field holds a secret
(`beam_entra.audit.guard` refuses what looks like one).

Units: sizes and offsets are bytes; times are UTC with microseconds, `2030-01-31T09:30:00.000000Z`; digests are
SHA-256 in lower-case hex; paths are canonical `abfss://container@account.dfs.core.windows.net/name`.
"""

from __future__ import annotations

import hashlib
import json
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from beam_entra.audit.fields import (
    Count,
    Digest,
    Id,
    Model,
    Name,
    Named,
    Path,
    Permission,
    SegmentName,
    Step,
    Text,
    Time,
    Uuid,
    written,
)

__all__ = [
    "SEAL_NAME",
    "ZEROS",
    "AnyRecord",
    "BundleClosed",
    "BundleOpened",
    "CommitIntended",
    "Committed",
    "Copied",
    "DeadlineExtended",
    "DeleteIntended",
    "Deleted",
    "Denied",
    "InterimSealed",
    "KeyAcquired",
    "Listed",
    "Previous",
    "Probed",
    "Read",
    "Record",
    "SasIssued",
    "Sealed",
    "SealedSegment",
    "SegmentOpened",
    "SegmentRolled",
    "Staged",
    "TokenAcquired",
    "digest_of",
    "explain",
    "interim_name",
    "parse_line",
    "segment_name",
]

SEAL_NAME = "seal.jsonl"
_json = json.JSONEncoder(separators=(",", ":"), default=written).encode
ZEROS = "0" * 64  # what the first line of a first segment names as its predecessor


def segment_name(process: str, number: int) -> str:
    """The file name of a worker process's segment, its first being number 0."""
    return f"segment-{process}-{number:05d}.jsonl"


def interim_name(number: int) -> str:
    """The file name of an interim seal, a job's first being number 0."""
    return f"seal-{number:06d}.jsonl"


def digest_of(line: bytes) -> str:
    """SHA-256 of a line without its newline, in hex: the `prev` of the line after it, or a segment's head."""
    return hashlib.sha256(line).hexdigest()


class Record(Model):
    """What every line begins with: its place in the chain, when, what, and on whose behalf.

    Attributes:
        seq: Position in the segment: 0, 1, 2, ... Of a seal, how many seals of the job there were before.
        prev: Digest of the line before, without its newline. 64 zeros in the first line of a process's first segment
            and in a job's first seal; the head of the segment before in the first line of a continued one, and the
            digest of the seal before in a later seal.
        time: When the record was made, by the worker's clock. Never earlier than the line before: a clock that was set
            back repeats the last time instead.
        kind: Which of the models below the other fields follow.
        bundle: The bundle (Beam's unit of work) on whose behalf; null for what belongs to none.
    """

    seq: Count
    prev: Digest
    time: Time
    kind: str
    bundle: Uuid | None

    _left_out: ClassVar[tuple[str, ...]] = ()  # fields that are not written when they are null

    def line(self) -> bytes:
        """The one way to write this record, without the newline."""
        told = vars(self)  # in the order of the fields
        if self._left_out:
            told = {name: value for name, value in told.items() if value is not None or name not in self._left_out}
        return _json(told).encode("ascii")


class Previous(Model):
    """The segment that a continued segment continues.

    Attributes:
        segment: Its file name.
        head: Digest of its last line.
    """

    segment: SegmentName
    head: Digest


class SegmentOpened(Record):
    """First line of each segment: which worker process, of which job, as whom, until when.

    Attributes:
        job: The job's id.
        segment: The name of the file that this line opens; a renamed file contradicts itself.
        pipeline: The pipeline's name in the access manifest.
        environment: Its environment: `prod`, `test`.
        tenant: Entra tenant, as the manifest names it: GUID or domain.
        client: Client (application) id that the job runs as.
        credential: Kind of credential source: `federated_file`. Never the credential.
        scoping: What opens the blobs: `sas`, one SAS for each; or `bearer`, wider, the job's own access token. Left out
            in lines from before it could be chosen, when it was `sas`.
        host: Name of the machine, or pod.
        pid: Process id on it.
        deadline: When the job's right to access anything ends. Of a rolling life, when it would have ended; see there.
        rolling_s: For so long at most each process goes on without a fresh token; left out where the deadline is fixed.
        manifest_digest: Digest of the access manifest's bytes: which version of it was in force.
        accounts: Storage account to the endpoint that was used for it.
        previous: The segment that this one continues; null in a process's first.
    """

    kind: Literal["segment_opened"] = "segment_opened"
    job: Id
    segment: SegmentName
    pipeline: Name
    environment: Name
    tenant: Name
    client: Name
    credential: Name
    scoping: Literal["sas", "bearer"] | None = None
    host: Name
    pid: Count
    deadline: Time
    rolling_s: Annotated[int, Field(ge=1, le=7 * 24 * 3600)] | None = None
    manifest_digest: Digest
    accounts: dict[str, str]
    previous: Previous | None

    _left_out: ClassVar[tuple[str, ...]] = ("scoping", "rolling_s")


class TokenAcquired(Record):
    """Entra gave an access token. Its claims join it to Entra's sign-in log.

    Attributes:
        token: Local id of the token.
        audience: What the token is for: `https://storage.azure.com`.
        uti: Its unique token identifier, as in the sign-in log; null when the issuer puts none in.
        oid: Object id of the service principal; null when absent.
        appid: Client id in the token; null when absent.
        tenant: Tenant id in the token (`tid`); null when absent.
        expires: When Entra ends it.
        attempts: How often it was asked for, at least 1.
        source: The credential source that gave it: `federated:gcp`; of a chain, the member. Left out when nobody said:
            lines from before it was there verify as they are.
    """

    kind: Literal["token_acquired"] = "token_acquired"
    token: Id
    audience: Name
    uti: Name | None
    oid: Name | None
    appid: Name | None
    tenant: Name | None
    expires: Time
    attempts: Annotated[int, Field(ge=1)]
    source: Name | None = None

    _left_out: ClassVar[tuple[str, ...]] = ("source",)


class DeadlineExtended(Record):
    """A fresh token has moved the process's deadline on: the identity is alive. Only of a rolling life.

    Attributes:
        token: The token; it ends later than every one before it.
        deadline: When this process's right to access anything ends now.
    """

    kind: Literal["deadline_extended"] = "deadline_extended"
    token: Id
    deadline: Time


class _Answered(Record):
    """A request to Storage that was answered; the two ids join it to the account's resource log.

    Attributes:
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    request_id: Name
    client_request_id: Name


class KeyAcquired(_Answered):
    """Storage gave a user delegation key for a token. It signs SAS locally.

    Attributes:
        key: Local id of the key.
        account: Storage account that it is for.
        token: The token that it was asked for with.
        expires: When Storage ends it.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["key_acquired"] = "key_acquired"
    key: Id
    account: Annotated[str, StringConstraints(pattern="^[a-z0-9]{3,24}$")]
    token: Id
    expires: Time


class SasIssued(Record):
    """A user delegation SAS was minted, in the process, without a request.

    Attributes:
        sas: Local id of the SAS.
        key: The delegation key that signed it.
        token: The token behind that key.
        path: What it opens: one blob; for listing, the prefix (ends in `/`) that the session holds it to.
        resource: How wide Storage takes it: `blob`, `directory`, or `container`, which only listing needs.
        permission: The one thing it allows.
        expires: When Storage ends it; never after the job's deadline or the key's end.
        correlation: The bundle's UUID, signed into the SAS so that Storage logs it with each use (an emulator's SAS
            carries it unsigned); null when it carries none.
    """

    kind: Literal["sas_issued"] = "sas_issued"
    sas: Id
    key: Id
    token: Id
    path: Path
    resource: Literal["blob", "container", "directory"]
    permission: Permission
    expires: Time
    correlation: Uuid | None


class _Presented(Record):
    """An access: what it presented to Storage.

    Attributes:
        sas: The SAS; left out when it was the token.
        token: The access token itself, where the job's scoping is `bearer`; left out when it was a SAS.
    """

    sas: Id | None = None
    token: Id | None = None

    _left_out: ClassVar[tuple[str, ...]] = ("sas", "token")

    @property
    def credential(self) -> str:
        """The id of what was presented."""
        return self.sas or self.token or ""

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if (self.sas is None) is (self.token is None):
            raise ValueError("an access presents a SAS or a token")
        return self


class BundleOpened(Record):
    """A bundle began; `bundle` is its id from here on.

    Attributes:
        step: Name of the transform, as Beam shows it; cut at 500 characters.
        token: The token that was in force; null when none had been needed yet.
    """

    kind: Literal["bundle_opened"] = "bundle_opened"
    step: Step
    token: Id | None


class BundleClosed(Record):
    """A bundle ended. A bundle without this line ended with its process: a kill leaves no time to write.

    Attributes:
        outcome: `ok`; `failed`, an error went to the runner; `abandoned`, torn down before it was finished.
    """

    kind: Literal["bundle_closed"] = "bundle_closed"
    outcome: Literal["ok", "failed", "abandoned"]


class Listed(_Presented, _Answered):
    """Storage listed the blobs of a prefix; one record a page.

    Attributes:
        sas: The SAS that was presented; left out when it was the token.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The prefix; the SAS's own, or below it.
        blobs: How many names the page held.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["listed"] = "listed"
    path: Path
    blobs: Count


class Read(_Presented, _Answered):
    """Storage sent bytes [`start`, `end`) of a blob.

    Attributes:
        sas: The SAS that was presented; left out when it was the token.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The blob.
        etag: The version that was read.
        start: First byte.
        end: The byte after the last; equal to `start` for an empty blob.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["read"] = "read"
    path: Path
    etag: Name
    start: Count
    end: Count

    @model_validator(mode="after")
    def _end_not_before_start(self) -> Self:
        if self.end < self.start:
            raise ValueError("end is before start")
        return self


class Staged(_Presented, _Answered):
    """Storage took a block of a blob that is not committed yet: nobody can see it.

    Attributes:
        sas: The SAS that was presented; left out when it was the token.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The blob.
        block: The block's id, before base64.
        size: Bytes of the block.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["staged"] = "staged"
    path: Path
    block: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    size: Count


class Copied(_Presented, _Answered):
    """Storage itself copied bytes [`start`, `end`) of one blob into a block of another: nobody can see it yet.

    Attributes:
        sas: The SAS that was presented for the blob that is written; left out when it was the token.
        token: The token that was presented for it, by a job whose scoping is `bearer`; else left out.
        path: The blob that is written.
        block: The block's id.
        source_sas: The SAS that Storage read the other blob with; left out when it was the token.
        source_token: The token that Storage read the other blob with; else left out.
        source: The blob that was read.
        source_etag: The version that was read.
        start: First byte.
        end: The byte after the last.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["copied"] = "copied"
    path: Path
    block: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    source_sas: Id | None = None
    source_token: Id | None = None
    source: Path
    source_etag: Name
    start: Count
    end: Count

    _left_out: ClassVar[tuple[str, ...]] = (*_Presented._left_out, "source_sas", "source_token")

    @model_validator(mode="after")
    def _end_behind_start(self) -> Self:
        if self.end <= self.start:
            raise ValueError("end is not behind start")
        return self

    @model_validator(mode="after")
    def _source_as_target(self) -> Self:
        one, other = (self.sas, self.token), (self.source_sas, self.source_token)
        if [each is None for each in one] != [each is None for each in other]:
            raise ValueError("a copy presents two SAS or two tokens")
        return self


class CommitIntended(_Presented):
    """About to make a blob visible. It is durable before the request is sent, so no blob appears unaudited.

    Attributes:
        sas: The SAS that will be presented; left out when it will be the token.
        token: The token that will be presented, by a job whose scoping is `bearer`; else left out.
        path: The blob.
        commit: The commit's id, also in the blob's metadata; a retry has the same one.
        blocks: How many blocks it is made of; 0 when the content goes with the request itself.
        size: Its bytes.
        rows: Its records; null where bytes were written that nobody counted as records.
    """

    kind: Literal["commit_intended"] = "commit_intended"
    path: Path
    commit: Id
    blocks: Count
    size: Count
    rows: Count | None


class Committed(_Presented, _Answered):
    """A blob became visible, or was found to be visible already by this same commit.

    Attributes:
        sas: The SAS that was presented; left out when it was the token.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The blob.
        commit: The commit's id; a `commit_intended` of this bundle came before.
        etag: The version that is now visible.
        size: Its bytes.
        rows: Its records; null where nobody counted.
        confirmed: True when an earlier attempt had committed it and this one only found out.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["committed"] = "committed"
    path: Path
    commit: Id
    etag: Name
    size: Count
    rows: Count | None
    confirmed: bool


class DeleteIntended(_Presented):
    """About to delete a blob. It is durable before the request is sent, so no blob disappears unaudited.

    Attributes:
        sas: The SAS that will be presented; left out when it will be the token.
        token: The token that will be presented, by a job whose scoping is `bearer`; else left out.
        path: The blob.
        etag: The one version that may be deleted; null when whatever is there may be.
    """

    kind: Literal["delete_intended"] = "delete_intended"
    path: Path
    etag: Name | None


class Deleted(_Presented, _Answered):
    """A blob is gone.

    Attributes:
        sas: The SAS that was presented; left out when it was the token.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The blob; a `delete_intended` of this bundle came before.
        etag: The one version that was to be deleted; null when whatever was there was.
        missing: True when there was none (any more).
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["deleted"] = "deleted"
    path: Path
    etag: Name | None
    missing: bool


_ASKED_WITH: dict[str, tuple[Permission, ...]] = {
    "write": ("write",),
    "delete": ("delete", "append"),
    "overwrite": ("append",),
    "change": ("append",),
    "look": ("read",),
}


class Probed(_Answered):
    """Storage was asked whether it would do something, by a request that cannot succeed: nothing was read or written.

    Attributes:
        sas: The SAS that was presented; left out when it was the token, or nothing, as for a look alone.
        token: The token that was presented, by a job whose scoping is `bearer`; else left out.
        path: The blob that was asked about, or its container.
        permission: What the SAS or token is for; `read` when nothing was presented.
        asked: What it would have done: `write`, `delete`; `overwrite`, `change`, which the right to append is not;
            `look`, without a credential that is good for it.
        answer: Storage's status and code: `412 ConditionNotMet`.
        request_id: Storage's `x-ms-request-id`.
        client_request_id: The `x-ms-client-request-id` that was sent.
    """

    kind: Literal["probed"] = "probed"
    sas: Id | None = None
    token: Id | None = None
    path: Path
    permission: Permission
    asked: Literal["write", "delete", "overwrite", "change", "look"]
    answer: Name

    _left_out: ClassVar[tuple[str, ...]] = ("sas", "token")

    @property
    def credential(self) -> str:
        """The id of what was presented; empty when nothing was."""
        return self.sas or self.token or ""

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.sas is not None and self.token is not None:
            raise ValueError("a probe presents a SAS, or a token, or nothing")
        if (self.asked == "look") is not (self.credential == ""):
            raise ValueError("who only looks presents nothing, and nobody else does")
        if self.permission not in _ASKED_WITH[self.asked]:
            raise ValueError(f"{self.asked} is not asked with the right to {self.permission}")
        return self


class Denied(Record):
    """An access was refused.

    Attributes:
        path: What was asked for: a canonical path, or a token's audience.
        permission: What was asked for it.
        reason: Why, as a sentence; cut at 2,000 characters.
        by: Who refused: `manifest`, no grant covers it and nothing was sent; `deadline`, the job's time is over and
            nothing was sent; `storage`; `entra`. A trail in Storage holds no `deadline`: the right to append ends with
            the job too, so such a refusal is in the worker's error alone, and in the seal's `error` if it failed the
            job.
        request_id: The service's request id; null when nothing was sent.
        client_request_id: The client request id; null when nothing was sent.
    """

    kind: Literal["denied"] = "denied"
    path: Annotated[str, StringConstraints(min_length=1, max_length=1200), Named()]
    permission: Literal["read", "write", "delete", "list", "append", "token"]
    reason: Text
    by: Literal["manifest", "storage", "deadline", "entra"]
    request_id: Name | None
    client_request_id: Name | None


class SegmentRolled(Record):
    """Last line of a segment that is continued.

    Attributes:
        next: File name of the segment that continues it.
    """

    kind: Literal["segment_rolled"] = "segment_rolled"
    next: SegmentName


class SealedSegment(Model):
    """One segment, as it stood when it was sealed.

    Attributes:
        segment: File name.
        records: Number of lines.
        bytes: Length of the file.
        head: Digest of the last line; 64 zeros for an empty file (a process that died before its first record).
        opened_bundles: Bundles opened in it.
        closed_bundles: Bundles closed in it.
    """

    segment: SegmentName
    records: Count
    bytes: Count
    head: Digest
    opened_bundles: Count
    closed_bundles: Count


class InterimSealed(Record):
    """The one line of an interim seal: how far each segment had come while the job was running.

    It names the segments that were new or had grown since the seal before, whose digest is its `prev`; what the others
    were, that one says.

    Attributes:
        job: The job's id.
        segments: These segments, sorted by name.
    """

    kind: Literal["interim_sealed"] = "interim_sealed"
    job: Id
    segments: tuple[SealedSegment, ...]


class Sealed(Record):
    """The one line of `seal.jsonl`: every segment of the job, its length and its head.

    Attributes:
        job: The job's id.
        outcome: `ok`; `failed`; `interrupted`, the launcher was told to stop; `late`, sealed afterwards by somebody
            else.
        error: What the job failed with; null when it did not. Cut at 2,000 characters.
        segments: Every segment, sorted by name.
        counts: Kind of record to how many there are in all segments, sorted by kind.
    """

    kind: Literal["sealed"] = "sealed"
    job: Id
    outcome: Literal["ok", "failed", "interrupted", "late"]
    error: Text | None
    segments: tuple[SealedSegment, ...]
    counts: dict[str, Count]


AnyRecord = (
    SegmentOpened
    | TokenAcquired
    | DeadlineExtended
    | KeyAcquired
    | SasIssued
    | BundleOpened
    | BundleClosed
    | Listed
    | Read
    | Staged
    | Copied
    | CommitIntended
    | Committed
    | DeleteIntended
    | Deleted
    | Probed
    | Denied
    | SegmentRolled
    | InterimSealed
    | Sealed
)

_ANY: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="kind")])
_FIELDS = frozenset(
    chain.from_iterable(model.model_fields for model in (*get_args(AnyRecord), Previous, SealedSegment))
)


def parse_line(line: bytes) -> AnyRecord:
    """Read a line back, and insist that it is written in the one way that a record is written.

    Args:
        line: Without the newline.
    Raises:
        ValueError: Not JSON, not a record, or not canonical (spaces, repeated keys, another order). The message never
            quotes the line.
    """
    try:
        record = _ANY.validate_json(line)
    except ValidationError as error:
        raise ValueError(explain(error)) from None
    if record.line() != line:
        raise ValueError("not in canonical form")
    return record


def explain(error: ValidationError) -> str:
    """What pydantic found, field by field, without a word of the input."""
    found: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(dict.fromkeys(_explain(e["type"], e["loc"], e["msg"]) for e in found))


def _explain(kind: str, where: tuple[object, ...], message: str) -> str:
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return "unknown kind of record"
    if kind == "extra_forbidden":
        return "a field that this kind of record does not have"
    field = ".".join(str(part) for part in where if part in _FIELDS)  # a mapping's key is input: not repeated
    message = message.removeprefix("Value error, ")
    return f"{field}: {message}" if field else message
