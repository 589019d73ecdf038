"""Minting a user delegation SAS: a local HMAC under a key that Storage gave this identity. No network.

azure-storage-blob writes the string to sign, for every version of the protocol; what may be asked of it is decided by
`access.downscope` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from azure.storage.blob import UserDelegationKey, generate_blob_sas, generate_container_sas

from beam_entra.access.downscope import SasSpec
from beam_entra.secret import Secret

__all__ = ["DelegationKey", "Sas", "mint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegationKey:
    """A user delegation key: what Storage gives for an access token, good for at most 7 days.

    Attributes:
        key_id: Our name for it in the audit trail.
        token_id: The access token that it was given for.
    """

    key_id: str
    token_id: str
    account: str
    expires: datetime
    value: Secret
    signed_oid: str
    signed_tid: str
    signed_start: str
    signed_expiry: str
    signed_service: str
    signed_version: str

    def for_sdk(self) -> UserDelegationKey:
        """The same key as azure-storage-blob wants it."""
        key = UserDelegationKey()  # type: ignore[no-untyped-call]  # the SDK's class is untyped
        key.signed_oid, key.signed_tid = self.signed_oid, self.signed_tid
        key.signed_start, key.signed_expiry = self.signed_start, self.signed_expiry
        key.signed_service, key.signed_version = self.signed_service, self.signed_version
        key.value = self.value.reveal()
        return key


@dataclass(frozen=True, slots=True, kw_only=True)
class Sas:
    """A minted SAS.

    Attributes:
        sas_id: Our name for it in the audit trail.
        key_id: That of the delegation key that signed it.
        query: The SAS itself, as URL query parameters.
        renew_at: When to mint the next one: some time before `expires`.
    """

    sas_id: str
    key_id: str
    spec: SasSpec
    query: Secret
    expires: datetime
    renew_at: datetime


def mint(spec: SasSpec, key: DelegationKey, *, correlation: str, sign_correlation: bool = True) -> Secret:
    """Sign exactly what `spec` says, for https only.

    Args:
        spec: What `downscope` allowed.
        key: A live delegation key of the same account.
        correlation: UUID that Storage's log will show for each use (`scid`): the bundle's.
        sign_correlation: False for Azurite, which leaves `scid` out of its string to sign; it is then carried unsigned.

    See: https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas
    """
    if key.account != spec.account:
        raise ValueError("a delegation key signs for its own account only")
    common: dict[str, Any] = {
        "user_delegation_key": key.for_sdk(),
        "permission": spec.permissions,
        "expiry": spec.expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "protocol": "https",
        "correlation_id": correlation if sign_correlation else None,
    }
    if spec.resource == "container":
        query = generate_container_sas(spec.account, spec.container, **common)
    elif spec.resource == "directory":
        directory = spec.name.strip("/")
        query = generate_blob_sas(spec.account, spec.container, directory, is_directory=True, **common)
    else:
        query = generate_blob_sas(spec.account, spec.container, spec.name, **common)
    return Secret(query if sign_correlation else f"{query}&scid={correlation}", what="SAS")
