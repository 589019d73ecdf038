"""What Storage's answers mean: its status and code become one of our errors, here and nowhere else.

See: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beam_entra.errors import (
    AccessDenied,
    BeamEntraError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    Diagnosis,
    StorageError,
    Throttled,
)

__all__ = [
    "COMMIT_METADATA",
    "RETRIED_CODES",
    "RETRIED_STATUSES",
    "Answer",
    "are_claims",
    "claims_challenge",
    "refusal",
    "retry_after_s",
]

COMMIT_METADATA = "x-ms-meta-beam_entra_commit"
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
RETRIED_CODES = frozenset({"Md5Mismatch"})  # damaged on the way
_TOO_MANY_BLOCKS = frozenset({"BlockCountExceedsLimit", "BlockListTooLong"})
_UNAUTHORISED, _FORBIDDEN, _NOT_FOUND, _PRECONDITION, _TOO_MANY, _BUSY = 401, 403, 404, 412, 429, 503
_NUMBER = re.compile(r"[0-9]{1,18}")
_BEARER = re.compile(r"\bBearer\b((?:\s*(?:,\s*)?[a-z_]+=(?:\"[^\"]*\"|[^\s,\"]+))+)", re.IGNORECASE)
_PARAMETER = re.compile(r"([a-z_]+)=(?:\"([^\"]*)\"|([^\s,\"]+))", re.IGNORECASE)
_MOST_CLAIMS = 8 * 1024
_CODE_IN_BODY = re.compile(rb"<Code>([A-Za-z0-9]{1,80})</Code>")

_URL_SAFE = str.maketrans("+/", "-_")  # challenges come in either alphabet

_DENIED_HINTS = {
    "AuthorizationPermissionMismatch": "give the identity the role that is missing: Storage Blob Delegator on the "
    "account to issue SAS, and Storage Blob Data Reader or Contributor on the container for the access itself",
    "AuthorizationFailure": "see that the account's firewall lets this worker in, and that this is the account meant",
    "AuthenticationFailed": "see that the worker's clock is right and the credential has not been revoked",
    "KeyBasedAuthenticationNotPermitted": "the account refuses SAS of this kind; ask its owner",
    "PublicAccessNotPermitted": "the request carried no credential that this account accepts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The head of one answer from Storage.

    Attributes:
        request_id: `x-ms-request-id`: the key to Storage's own log.
        client_request_id: The `x-ms-client-request-id` that was sent with it.
    """

    status: int
    headers: Mapping[str, str]
    client_request_id: str
    body: bytes = b""

    @property
    def request_id(self) -> str:
        return self.headers.get("x-ms-request-id", "")

    def ids(self) -> dict[str, Any]:
        """Both ids, for the audit. `absent` where the service gave none, as Azurite does with delegation keys."""
        return {"request_id": self.request_id or "absent", "client_request_id": self.client_request_id}

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "")

    @property
    def commit_id(self) -> str:
        """Of the commit that made the blob; empty where somebody else made it."""
        return self.headers.get(COMMIT_METADATA, "")

    @property
    def code(self) -> str:
        """Storage's error code, from the header, or from the body where a proxy dropped the header."""
        in_body = _CODE_IN_BODY.search(self.body)
        return self.headers.get("x-ms-error-code", "") or (in_body.group(1).decode() if in_body else "")


def claims_challenge(answer: Answer) -> str:
    """The claims, as JSON, that the next token must be asked for with; "" where the answer is no claims challenge.

    See: https://learn.microsoft.com/entra/identity-platform/claims-challenge
    """
    if answer.status != _UNAUTHORISED:
        return ""
    for challenge in _BEARER.findall(answer.headers.get("www-authenticate", "")):
        said = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(challenge)}
        encoded = said.get("claims", "")
        if said.get("error", "").lower() == "insufficient_claims" and 0 < len(encoded) <= _MOST_CLAIMS:
            try:
                padded = encoded.translate(_URL_SAFE) + "=" * (-len(encoded) % 4)
                text = base64.urlsafe_b64decode(padded).decode("utf-8")
            except ValueError:
                continue
            if are_claims(text):
                return text
    return ""


def are_claims(text: str) -> bool:
    """Whether a token can be asked for with these: a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):  # the latter: it is nested too deep
        return False


def refusal(answer: Answer, *, tried: str, attempts: int) -> BeamEntraError:
    """The error that this answer is."""
    code, status = answer.code, answer.status

    def made(kind: type[BeamEntraError], message: str, hint: str = "") -> BeamEntraError:
        return kind(
            message,
            Diagnosis(
                tried=tried,
                status=status,
                code=code,
                request_id=answer.request_id,
                client_request_id=answer.client_request_id,
                attempts=attempts,
                retry_after_s=retry_after_s(answer.headers),
                hint=hint,
            ),
        )

    if code in ("BlobAlreadyExists", "UnauthorizedBlobOverwrite"):
        return made(BlobExists, "the blob exists already", "write to another prefix, or remove the old blob first")
    if status in (_UNAUTHORISED, _FORBIDDEN):
        hint = _DENIED_HINTS.get(code, "look the request id up in the account's storage log")
        return made(AccessDenied, "Storage refused the access although the manifest allows it", hint)
    if code == "ContainerNotFound":
        return made(BlobNotFound, "the container does not exist", "check the container's name, or create it first")
    if status == _NOT_FOUND:
        return made(BlobNotFound, "the blob does not exist", "check the path")
    if status == _PRECONDITION:
        return made(
            BlobChanged, "the blob is no longer the one that was matched", "read a path that nobody writes to meanwhile"
        )
    if status in (_TOO_MANY, _BUSY):
        return made(Throttled, "Storage is throttling this account", "run fewer workers, or ask for a higher limit")
    if code in _TOO_MANY_BLOCKS:
        hint = "spread it over more blobs, or bring more of it together in each block"
        return made(StorageError, "the blob would have more blocks than Storage takes", hint)
    return made(StorageError, "Storage could not do it", "look the request id up in the account's storage log")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the service asks us to wait, in seconds."""
    milliseconds = headers.get("x-ms-retry-after-ms") or headers.get("retry-after-ms")
    if milliseconds and _NUMBER.fullmatch(milliseconds):
        return int(milliseconds) / 1000
    seconds = headers.get("retry-after")
    return float(seconds) if seconds and _NUMBER.fullmatch(seconds) else None
