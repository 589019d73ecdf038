"""Storage requests as the proxy sees them: which account, container and blob, and which operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from urllib.parse import parse_qsl, unquote

__all__ = ["StorageExchange", "StorageRequest", "matching"]

_SERVICE = {
    ("POST", "userdelegationkey"): "GetUserDelegationKey",
    ("GET", "list"): "ListContainers",
    ("GET", "properties"): "GetServiceProperties",
}
_CONTAINER = {
    ("PUT", ""): "CreateContainer",
    ("DELETE", ""): "DeleteContainer",
    ("GET", ""): "GetContainerProperties",
    ("HEAD", ""): "GetContainerProperties",
    ("GET", "list"): "ListBlobs",
}
_BLOB = {
    ("GET", ""): "GetBlob",
    ("HEAD", ""): "GetBlobProperties",
    ("PUT", ""): "PutBlob",
    ("DELETE", ""): "DeleteBlob",
    ("PUT", "block"): "PutBlock",
    ("PUT", "blocklist"): "PutBlockList",
    ("GET", "blocklist"): "GetBlockList",
    ("PUT", "appendblock"): "AppendBlock",
    ("PUT", "seal"): "SealBlob",
    ("PUT", "metadata"): "SetBlobMetadata",
    ("PUT", "lease"): "LeaseBlob",
}


@dataclass(frozen=True, kw_only=True)
class StorageRequest:
    """The head of a request, before anything is done with it.

    Attributes:
        path: As on the wire: `/account/container/name`, percent-encoded, without the query.
        query: As on the wire; a SAS is in here, so it is not shown by `repr`.
        headers: Names in lower case; a bearer token is in here, so they are not shown by `repr`.
        client_port: Of the connection that it came by; 0 when it came by none.
        server_port: The other port of it. The two together tell which process sent it.
    """

    method: str
    path: str
    query: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    client_port: int = 0
    server_port: int = 0

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """The query's parameters, decoded."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        account, _, rest = self.path.removeprefix("/").partition("/")
        container, _, name = rest.partition("/")
        return account, unquote(container), unquote(name)

    @property
    def account(self) -> str:
        """The account."""
        return self._parts[0]

    @property
    def container(self) -> str:
        """The container; empty for a request to the account."""
        return self._parts[1]

    @property
    def blob(self) -> str:
        """The blob's name, decoded; empty for a request to the container or the account."""
        return self._parts[2]

    @property
    def operation(self) -> str:
        """The operation by its name in the REST reference, such as `PutBlockList`."""
        comp = self.parameters.get("comp", "")
        table = _BLOB if self.blob else _CONTAINER if self.container else _SERVICE
        return table.get((self.method, comp), f"{self.method} {comp}".strip())

    @property
    def credential(self) -> str:
        """How it is authorised: `sas`, `bearer`, `key` or `none`."""
        scheme = self.headers.get("authorization", "").partition(" ")[0].lower()
        if scheme:
            return "bearer" if scheme == "bearer" else "key"
        return "sas" if "sig" in self.parameters else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageExchange:
    """A request and what became of it.

    Attributes:
        status: HTTP status that Azurite or a fault answered; 0 when there was no answer to be had.
        sent_bytes: Length of the request's body.
        received_bytes: Length of the answer's body that went to the client.
        duration_s: From the request's head until the end of the answer.
        fault: The fault that met it; empty when none did.
        request_id: The answer's `x-ms-request-id`.
    """

    time: datetime
    request: StorageRequest
    status: int
    sent_bytes: int
    received_bytes: int
    duration_s: float
    fault: str
    request_id: str

    @property
    def operation(self) -> str:
        """The request's operation."""
        return self.request.operation


def matching(
    operation: str = "", *, account: str = "", container: str = "", blob: str = ""
) -> Callable[[StorageRequest], bool]:
    """A predicate for faults: requests of this operation, account, container and blob; what is empty matches all."""

    def fits(request: StorageRequest) -> bool:
        wanted = ((operation, request.operation), (account, request.account), (container, request.container))
        return all(want in {"", have} for want, have in (*wanted, (blob, request.blob)))

    return fits
