"""Minting a user delegation SAS: a local HMAC under a key that Storage gave this identity. No network.

What may be asked for is decided by `access.downscope` alone. The string to sign is that of one version of the protocol;
another version has other fields.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from urllib.parse import quote, urlencode

from beam_entra.access.downscope import SasSpec
from beam_entra.secret import Secret

__all__ = ["DelegationKey", "Sas", "mint"]

_VERSION = "2025-07-05"
_RESOURCES = {"blob": "b", "directory": "d", "container": "c"}
_PROTOCOL = "https"
_NONE = ""


@dataclass(frozen=True, kw_only=True)
class DelegationKey:
    """A user delegation key: what Storage gives for an access token, good for at most 7 days.

    Attributes:
        key_id: Our name for it in the audit trail.
        token_id: The access token that it was given for.
        value: The key itself, in base64.
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

    @cached_property
    def signed_query(self) -> str:
        """What every SAS under this key says of it."""
        said = {
            "skoid": self.signed_oid,
            "sktid": self.signed_tid,
            "skt": self.signed_start,
            "ske": self.signed_expiry,
            "sks": self.signed_service,
            "skv": self.signed_version,
        }
        return urlencode(said, quote_via=quote, safe=":")  # times as they are: a query may hold colons


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
    expiry = spec.expires.isoformat()[:19] + "Z"
    resource = _RESOURCES[spec.resource]
    signed = (
        spec.permissions,
        _NONE,  # a start: a worker whose clock is ahead would be locked out
        expiry,
        f"/blob/{spec.account}/{spec.container}" + (f"/{spec.name}" if spec.name else ""),
        key.signed_oid,
        key.signed_tid,
        key.signed_start,
        key.signed_expiry,
        key.signed_service,
        key.signed_version,
        _NONE,  # a user for whom the key's owner vouches,
        _NONE,  # or whose POSIX ACLs Storage is to check
        correlation if sign_correlation else _NONE,
        _NONE,  # the tenant of a user to whom the key is delegated,
        _NONE,  # and the only user who may use the SAS
        _NONE,  # addresses that it is good for
        _PROTOCOL,
        _VERSION,
        resource,
        _NONE,  # a snapshot
        _NONE,  # an encryption scope
        *(_NONE,) * 5,  # what the answer's headers are to say
    )
    signature = hmac.digest(base64.b64decode(key.value.reveal()), "\n".join(signed).encode(), "sha256")
    escaped = base64.b64encode(signature).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    depth = f"&sdd={spec.name.count('/') + 1}" if resource == "d" else ""
    query = (
        f"sv={_VERSION}&spr={_PROTOCOL}&se={expiry}&sp={spec.permissions}&sr={resource}{depth}"
        f"&{key.signed_query}&scid={quote(correlation)}&sig={escaped}"
    )
    return Secret(query, what="SAS")
