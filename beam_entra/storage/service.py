"""The Blob service's operations that a job needs, each authorised from outside.

Nothing here decides what may be done: a caller hands in how to authorise, and gets the answer's head back for the
audit.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from urllib3.exceptions import HTTPError

from beam_entra.access.manifest import AccountSettings
from beam_entra.clock import MOST_SKEW, Clock, utc_now
from beam_entra.errors import (
    AccessDenied,
    BeamEntraError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    Diagnosis,
    StorageError,
)
from beam_entra.identity.token import AccessToken
from beam_entra.paths import BlobPath
from beam_entra.secret import Secret
from beam_entra.storage.answers import COMMIT_METADATA, Answer
from beam_entra.storage.blobs import BlobProperties, ListPage, block_list_xml, parse_list_page, parse_size
from beam_entra.storage.exchange import Authorise, Authorization, Call, Exchange, unreachable
from beam_entra.storage.sas import DelegationKey
from beam_entra.storage.transport import connection_pool
from beam_entra.storage.wire import Response, TooSlow

__all__ = ["BlobService", "Commit", "bearer"]

_KEY_START_TOLERANCE = MOST_SKEW + timedelta(minutes=5)  # the first answer of a job may be this one's
_READ_BYTES = 256 << 10  # what is lost, at most, when a connection breaks
_NO_SUCH_RANGE = 416
_RESUMES_WITHOUT_PROGRESS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A blob that is committed.

    Attributes:
        confirmed: An earlier attempt had committed these very blocks; this one found them.
    """

    answer: Answer
    confirmed: bool


class BlobService:
    """Blob storage as the job sees it: several accounts, one shared transport.

    Args:
        account: Settings of an account by its name.
        exchange: Sends the requests; by default over the process's pool.
        clock: For the start of delegation keys.
    """

    def __init__(
        self, account: Callable[[str], AccountSettings], *, exchange: Exchange | None = None, clock: Clock = utc_now
    ) -> None:
        self._account = account
        self._exchange = exchange or Exchange(connection_pool)
        self._clock = clock

    # Reading

    def properties(self, path: BlobPath, authorise: Authorise, client_request_id: str) -> tuple[BlobProperties, Answer]:
        """HEAD: size and ETag of one blob."""
        call = self._call("HEAD", path, "read the properties of", authorise, client_request_id)
        answer = self._receive(call, path)
        found = _described(path, answer, answer.headers.get("content-length", ""), call)
        if answer.headers.get("x-ms-meta-hdi_isfolder", "").lower() == "true":
            raise BlobNotFound(
                "the blob does not exist; it is a directory",
                Diagnosis(tried=call.tried, request_id=answer.request_id, hint="name a blob in it"),
            )
        return found, answer

    def list_pages(
        self,
        prefix: BlobPath,
        name_prefix: str,
        authorise: Authorise,
        next_request_id: Callable[[], str],
        *,
        page_size: int | None = None,
        wanted: Callable[[str], bool] = lambda name: True,
    ) -> Iterator[tuple[ListPage, Answer]]:
        """List Blobs below `prefix` whose names begin with `name_prefix`, page by page.

        Args:
            page_size: Blobs a page; by default, and at most, 5,000.
            wanted: Which names to give; see `parse_list_page`.
        """
        container = BlobPath(account=prefix.account, container=prefix.container, name="")
        marker = ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": name_prefix}
            if page_size is not None:
                query["maxresults"] = str(page_size)
            if marker:
                query["marker"] = marker
            call = self._call("GET", container, "list", authorise, next_request_id(), query=query, shown=prefix)
            answer = self._receive(call, container)
            page = parse_list_page(answer.body, container=container, wanted=wanted)
            yield page, answer
            marker = page.next_marker
            if not marker:
                return

    def read_range(
        self,
        blob: BlobProperties,
        start: int,
        stop: int,
        authorise: Authorise,
        next_request_id: Callable[[], str],
        answered: Callable[[Answer, int, int], None],
        *,
        grows: bool = False,
    ) -> bytearray:
        """Bytes [start, stop) of this version of the blob; as for `receive_range`."""
        room = bytearray(stop - start)
        self.receive_range(blob, start, stop, authorise, next_request_id, answered, room, grows=grows)
        return room

    def receive_range(
        self,
        blob: BlobProperties,
        start: int,
        stop: int,
        authorise: Authorise,
        next_request_id: Callable[[], str],
        answered: Callable[[Answer, int, int], None],
        room: bytearray | memoryview,
        *,
        grows: bool = False,
    ) -> None:
        """Receive bytes [start, stop) of this version of the blob. A body that breaks off is resumed at the byte.

        Args:
            answered: Told of each answer and its range as soon as its head is here, while the body is on the way.
            room: Where to receive them, of their length.
            grows: It is an append blob that others append to: a later version will do, if it is no shorter.

        Raises:
            BlobChanged: The blob is no longer this version.
        """
        filled = fruitless = 0
        while filled < len(room):
            begin, before = start + filled, filled
            call = self._call(
                "GET",
                blob.path,
                "read",
                authorise,
                next_request_id(),
                headers={"x-ms-range": f"bytes={begin}-{stop - 1}"} | ({} if grows else {"If-Match": blob.etag}),
            )
            answer, response, attempts = self._exchange.send(call, ca_file=self._account(blob.path.account).ca_file)
            failure: BeamEntraError | None = None
            too_slow = False
            try:
                with closing(response):
                    _check_range(answer, _grown(blob, answer) if grows else blob, begin, stop, call)
                    answered(answer, begin, stop)
                    for count in _received(response, room, filled, call):
                        filled += count
            except HTTPError as error:
                failure, too_slow = unreachable(call, error, attempts), isinstance(error, TooSlow)
            fruitless = 0 if filled > before and not too_slow else fruitless + 1
            if fruitless > _RESUMES_WITHOUT_PROGRESS:
                raise failure or StorageError("Storage sends no bytes of this range", Diagnosis(tried=call.tried))
            if failure is not None and self._exchange.rest(1 + fruitless, None):
                raise failure

    def read_beginning(
        self,
        path: BlobPath,
        length: int,
        authorise: Authorise,
        next_request_id: Callable[[], str],
        answered: Callable[[BlobProperties, Answer, int, int], None],
    ) -> tuple[BlobProperties, bytearray]:
        """Size and ETag of a blob, and its first bytes: one request where `properties` and `read_range` are two.

        Args:
            answered: As for `read_range`.
        """
        headers = {"x-ms-range": f"bytes=0-{length - 1}"}
        call = self._call("GET", path, "read", authorise, next_request_id(), headers=headers)
        try:
            answer, response, _ = self._exchange.send(call, ca_file=self._account(path.account).ca_file)
        except StorageError as error:
            if error.diagnosis.status != _NO_SUCH_RANGE:
                raise
            blob, answer = self.properties(path, authorise, next_request_id())  # it is empty
            answered(blob, answer, 0, 0)
            return blob, bytearray()
        with closing(response):
            blob = _described(path, answer, answer.headers.get("content-range", "").rpartition("/")[2], call)
            stop = min(length, blob.size_bytes)
            _check_range(answer, blob, 0, stop, call)
            answered(blob, answer, 0, stop)
            content, filled = bytearray(stop), 0
            with suppress(HTTPError):  # what is missing is fetched below
                for count in _received(response, content, 0, call):
                    filled += count
        if filled < stop:
            tell = partial(answered, blob)
            content[filled:] = self.read_range(blob, filled, stop, authorise, next_request_id, tell)
        return blob, content

    # Writing

    def put_block(
        self, path: BlobPath, block_id: str, data: bytes, authorise: Authorise, client_request_id: str
    ) -> Answer:
        """Stage one block. Nobody sees it before a commit names it; sending it twice does no harm.

        Storage compares it with its MD5, so that what was damaged on the way is not stored.
        """
        query, headers = {"comp": "block", "blockid": block_id}, {"Content-MD5": _md5(data)}
        call = self._call(
            "PUT", path, "stage a block of", authorise, client_request_id, query=query, headers=headers, body=data
        )
        return self._receive(call, path)

    def put_block_from_blob(
        self,
        path: BlobPath,
        block_id: str,
        source: BlobProperties,
        start: int,
        stop: int,
        authorise: Authorise,
        authorise_source: Authorise,
        client_request_id: str,
    ) -> Answer:
        """Have Storage itself stage bytes [start, stop) of this version of another blob as a block.

        Args:
            authorise_source: Gives the SAS, or the access token, that Storage reads the other blob with.

        Raises:
            BlobChanged: The other blob is no longer this version.
        """
        location = self._url(source.path)

        def both() -> Authorization:
            reading = authorise_source()
            if (reading.sas is None) is (reading.bearer is None):
                raise ValueError("Storage reads the source of a copy with a SAS or a token")
            url = f"{location}?{reading.sas.reveal()}" if reading.sas is not None else location
            source_url = Secret(url, what="URL with a SAS")
            return replace(authorise(), copy_source=source_url, copy_source_bearer=reading.bearer)

        query = {"comp": "block", "blockid": block_id}
        headers = {"x-ms-source-range": f"bytes={start}-{stop - 1}", "x-ms-source-if-match": source.etag}
        verb = f"copy from {source.path} to"
        return self._receive(self._call("PUT", path, verb, both, client_request_id, query=query, headers=headers), path)

    def put_blob(
        self,
        path: BlobPath,
        data: bytes,
        authorise: Authorise,
        client_request_id: str,
        *,
        commit_id: str,
        content_type: str,
    ) -> Answer:
        """Write a whole blob in one request, over one that is there. Sending it twice does no harm."""
        headers = {
            "x-ms-blob-type": "BlockBlob",
            "x-ms-blob-content-type": content_type,
            "Content-MD5": _md5(data),
            COMMIT_METADATA: commit_id,
        }
        return self._receive(
            self._call("PUT", path, "write", authorise, client_request_id, headers=headers, body=data), path
        )

    def delete(
        self, path: BlobPath, authorise: Authorise, client_request_id: str, *, etag: str | None
    ) -> tuple[Answer | None, BlobNotFound | None]:
        """Delete a blob; that there is none is no error, since an earlier attempt may have done it.

        Args:
            etag: Delete this version only.

        Returns:
            The answer; or what Storage said when there was no such blob.

        Raises:
            BlobChanged: It is no longer the version to be deleted. It was not touched.
        """
        headers = {"If-Match": etag} if etag else {}
        try:
            call = self._call("DELETE", path, "delete", authorise, client_request_id, headers=headers)
            return self._receive(call, path), None
        except BlobNotFound as missing:
            if missing.diagnosis.code == "ContainerNotFound":
                raise
            return None, missing

    def commit(
        self,
        path: BlobPath,
        block_ids: list[str],
        authorise: Authorise,
        client_request_id: str,
        *,
        commit_id: str,
        content_type: str,
        overwrite: bool,
        replaces: str = "",
    ) -> Commit:
        """Make the blob of these blocks, once.

        1. Put Block List of the staged blocks; without `overwrite` only if no blob is there.
        2. If a blob is there, or the blocks are no longer staged, an earlier attempt may have done it and its answer
           been lost. Put Block List of the same ids as *committed* blocks succeeds only if the blob is made of them;
           ids are unique, so then it is ours, and nothing changes but its ETag. It needs no permission to read.

        No blocks make an empty blob. Such a commit cannot be confirmed, since an empty list would match any blob. With
        `overwrite` it need not be, since it may be sent again; without, or where one version is to be replaced, a retry
        may take its own blob for another's.

        Args:
            replaces: With `overwrite`: the ETag of the only version to be replaced, or "*" for whatever is there; then,
                if no blob is there, none is made.

        Raises:
            BlobChanged: The blob is no longer the version to be replaced. It was not touched.
            BlobExists: The blob is somebody else's. It was not touched.
            BlobNotFound: There is no blob, and it was only to be replaced.
        """
        if replaces and not overwrite:
            raise ValueError("what is only to be replaced is to be overwritten")
        headers = {COMMIT_METADATA: commit_id, "x-ms-blob-content-type": content_type}
        condition = {"If-Match": replaces} if replaces else {} if overwrite else {"If-None-Match": "*"}

        def put(kind: str, condition: Mapping[str, str], verb: str) -> Answer:
            call = self._call(
                "PUT",
                path,
                verb,
                authorise,
                client_request_id,
                query={"comp": "blocklist"},
                headers={**headers, **condition},
                body=block_list_xml(kind, block_ids),
            )
            return self._receive(call, path)

        try:
            return Commit(answer=put("Uncommitted", condition, "commit"), confirmed=False)
        except StorageError as error:
            if replaces == "*" and isinstance(error, BlobChanged):
                raise BlobNotFound("there is no blob to replace", error.diagnosis) from None
            if not _may_be_done(error) or (overwrite and not block_ids):
                raise
            refused = error
        try:
            if block_ids:
                return Commit(answer=put("Committed", {"If-Match": "*"}, "confirm the commit of"), confirmed=True)
        except (AccessDenied, BlobExists):
            found = isinstance(refused, (BlobChanged, BlobExists))
            if not (found and self._account(path.account).create_only):
                raise
            hint = f"with create_only nobody can confirm that it is this job's: see whether its commit is {commit_id}"
            raise BlobExists("the blob exists already", replace(refused.diagnosis, hint=hint)) from None
        except StorageError as error:
            if error.diagnosis.code != "InvalidBlockList" and not isinstance(error, (BlobChanged, BlobNotFound)):
                raise
        known = refused.diagnosis
        if isinstance(refused, (BlobChanged, BlobExists)):
            hint = "somebody else wrote it, and it was left as it is: write to another prefix, or remove it first"
            raise BlobExists("the blob exists already", replace(known, hint=hint))
        hint = "another commit of this blob, or a week, has dropped them: run the job again"
        raise StorageError("the staged blocks are not there any more", replace(known, hint=hint))

    def create_append_blob(self, path: BlobPath, authorise: Authorise, client_request_id: str) -> Answer:
        """Create an empty append blob; never empties one that exists."""
        headers = {"x-ms-blob-type": "AppendBlob", "If-None-Match": "*", "x-ms-blob-content-type": "application/jsonl"}
        return self._receive(
            self._call("PUT", path, "create", authorise, client_request_id, headers=headers), path
        )

    def append_block(
        self, path: BlobPath, offset: int, data: bytes, authorise: Authorise, client_request_id: str
    ) -> Answer:
        """Append at exactly this offset, or not at all."""
        headers = {"x-ms-blob-condition-appendpos": str(offset)}
        query = {"comp": "appendblock"}
        return self._receive(
            self._call("PUT", path, "append to", authorise, client_request_id, query=query, headers=headers, body=data),
            path,
        )

    def ask_the_time(self, account: str) -> None:
        """Have the exchange's clock hear what time it is there."""
        settings = self._account(account)
        self._exchange.ask_the_time(f"{settings.endpoint}/", ca_file=settings.ca_file)

    # Delegation

    def delegation_key(
        self,
        account: str,
        token: Callable[[], AccessToken],
        *,
        expires: datetime,
        client_request_id: str,
        renew: Callable[[AccessToken, str], object] | None = None,
    ) -> tuple[DelegationKey, Answer]:
        """Ask for a user delegation key under an access token.

        Args:
            token: Called for each attempt, since a token may end during a pause. The key names the one that got it.
            renew: Called with a token that Storage wants other claims in, and these: the next one has them.

        Raises:
            AccessDenied: The identity lacks generateUserDelegationKey (role Storage Blob Delegator).
        """
        settings = self._account(account)
        start = self._clock() - _KEY_START_TOLERANCE
        body = (
            '<?xml version="1.0" encoding="utf-8"?><KeyInfo>'
            f"<Start>{_instant(start)}</Start><Expiry>{_instant(expires)}</Expiry></KeyInfo>"
        ).encode("ascii")
        shown: list[AccessToken] = []

        def authorise() -> Authorization:
            shown.append(token())
            return bearer(shown[-1], renew)

        call = Call(
            method="POST",
            url=f"{settings.endpoint}/?restype=service&comp=userdelegationkey",
            tried=f"get a user delegation key of account {account}",
            authorise=authorise,
            client_request_id=client_request_id,
            headers={"Content-Type": "application/xml"},
            body=body,
        )
        answer = self._exchange.receive(call, ca_file=settings.ca_file)
        return _parse_key(answer, account, shown[-1]), answer

    def _call(
        self,
        method: str,
        path: BlobPath,
        verb: str,
        authorise: Authorise,
        client_request_id: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        shown: BlobPath | None = None,
    ) -> Call:
        return Call(
            method=method,
            url=self._url(path) + (f"?{urlencode(query, quote_via=quote)}" if query else ""),
            tried=f"{verb} {shown or path}",
            authorise=authorise,
            client_request_id=client_request_id,
            headers=headers or {},
            body=body,
        )

    def _url(self, path: BlobPath) -> str:
        endpoint = self._account(path.account).endpoint
        name = f"/{quote(path.name, safe='/~')}" if path.name else ""
        return f"{endpoint}/{path.container}{name}"

    def _receive(self, call: Call, path: BlobPath) -> Answer:
        return self._exchange.receive(call, ca_file=self._account(path.account).ca_file)


def bearer(token: AccessToken, renew: Callable[[AccessToken, str], object] | None = None) -> Authorization:
    """Let a request in with an access token.

    Args:
        renew: Called with it and the claims that Storage wants in the next one: `TokenBroker.renew`.
    """
    return Authorization(bearer=token.secret, renew=partial(renew, token) if renew is not None else None)


def _described(path: BlobPath, answer: Answer, size: str, call: Call) -> BlobProperties:
    try:
        return BlobProperties(
            path=path,
            size_bytes=parse_size(size),
            etag=answer.headers["etag"],
            last_modified=parsedate_to_datetime(answer.headers["last-modified"]),
            content_type=answer.headers.get("content-type", ""),
        )
    except (KeyError, ValueError) as error:
        raise StorageError(
            f"Storage's description of {path} cannot be read: {error}",
            Diagnosis(tried=call.tried, request_id=answer.request_id, hint="check the account's endpoint"),
        ) from None


def _received(response: Response, content: bytearray | memoryview, filled: int, call: Call) -> Iterator[int]:
    """Fill the content from there on with the body; says how many bytes came each time.

    Raises:
        StorageError: There is more of it than was asked for.
    """
    with memoryview(content) as view:
        while filled < len(content) and (count := response.readinto(view[filled : filled + _READ_BYTES])):
            filled += count
            yield count
    if response.goes_on:
        raise StorageError("Storage sent more than was asked for", Diagnosis(tried=call.tried))


def _may_be_done(error: StorageError) -> bool:
    return isinstance(error, (BlobExists, BlobChanged)) or error.diagnosis.code == "InvalidBlockList"


def _grown(blob: BlobProperties, answer: Answer) -> BlobProperties:
    """The version that answered, where it is no shorter."""
    total = answer.headers.get("content-range", "").rpartition("/")[2]
    grown = total.isascii() and total.isdigit() and int(total) >= blob.size_bytes
    return replace(blob, etag=answer.etag, size_bytes=int(total)) if grown else blob


def _check_range(answer: Answer, blob: BlobProperties, start: int, stop: int, call: Call) -> None:
    """The bytes are those of the version and range that were asked for; a cache or proxy may think otherwise."""
    wanted = f"bytes {start}-{stop - 1}/{blob.size_bytes}"
    whole = answer.status == 200 and start == 0 and stop == blob.size_bytes
    if answer.etag != blob.etag or not (whole or answer.headers.get("content-range") == wanted):
        raise BlobChanged(
            "Storage answered with another version or range of the blob",
            Diagnosis(tried=call.tried, status=answer.status, request_id=answer.request_id),
        )


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")


def _instant(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_key(answer: Answer, account: str, token: AccessToken) -> DelegationKey:
    try:
        root = ElementTree.fromstring(answer.body)  # noqa: S314 - from Storage over TLS; expat refuses entity bombs
        fields = {child.tag: child.text or "" for child in root}
        return DelegationKey(
            key_id=f"key-{uuid.uuid4().hex[:12]}",
            token_id=token.token_id,
            account=account,
            expires=datetime.fromisoformat(fields["SignedExpiry"]),
            value=_signing_key(fields["Value"]),
            signed_oid=fields["SignedOid"],
            signed_tid=fields["SignedTid"],
            signed_start=fields["SignedStart"],
            signed_expiry=fields["SignedExpiry"],
            signed_service=fields["SignedService"],
            signed_version=fields["SignedVersion"],
        )
    except (ElementTree.ParseError, KeyError, ValueError):
        problem = StorageError(
            f"account {account} answered with something that is no user delegation key",
            Diagnosis(request_id=answer.request_id, hint="check the account's endpoint"),
        )
    raise problem


def _signing_key(text: str) -> Secret:
    base64.b64decode(text, validate=True)
    return Secret(text, what="user delegation key")
