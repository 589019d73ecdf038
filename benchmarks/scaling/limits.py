"""What the services publish of their limits: each with the page that says so. As read in 2026; look before you rely."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ACCOUNT_EGRESS",
    "ACCOUNT_INGRESS",
    "ACCOUNT_REQUESTS",
    "APPEND_BLOB_REQUESTS",
    "LIMITS",
    "SEGMENT_BLOCKS",
    "TOKEN_REQUESTS",
    "Limit",
]

_GBIT = 1e9 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A published limit.

    Attributes:
        shown: What is limited.
        value: In the unit; what the larger regions have, where regions differ.
        elsewhere: What the others have; the same where they do not differ.
        unit: `requests/s`, `B/s`, `blocks`.
        source: Title of the page.
        remark: What else it says, or does not.
    """

    shown: str
    value: float
    elsewhere: float
    unit: str
    source: str
    remark: str = ""


_ACCOUNT = "Scalability and performance targets for standard storage accounts (Microsoft Learn)"
_BLOB = "Scalability and performance targets for Blob storage (Microsoft Learn)"

ACCOUNT_REQUESTS = Limit(
    shown="requests to one account",
    value=40_000,
    elsewhere=20_000,
    unit="requests/s",
    source=_ACCOUNT,
    remark="Azure Support raises it for an account on request.",
)
ACCOUNT_INGRESS = Limit(
    shown="bytes sent to one account",
    value=60 * _GBIT,
    elsewhere=25 * _GBIT,
    unit="B/s",
    source=_ACCOUNT,
    remark="Raised on request, too.",
)
ACCOUNT_EGRESS = Limit(
    shown="bytes received from one account",
    value=200 * _GBIT,
    elsewhere=50 * _GBIT,
    unit="B/s",
    source=_ACCOUNT,
    remark="Raised on request, too.",
)
APPEND_BLOB_REQUESTS = Limit(
    shown="requests to one append blob",
    value=500,
    elsewhere=500,
    unit="requests/s",
    source=_BLOB,
    remark="The page once gave this for any blob. Now it gives 3,000 for a block blob and nothing for an append blob.",
)
SEGMENT_BLOCKS = Limit(
    shown="blocks of one blob",
    value=50_000,
    elsewhere=50_000,
    unit="blocks",
    source=_BLOB,
    remark="For block blobs and append blobs alike.",
)
TOKEN_REQUESTS = Limit(
    shown="token requests to one tenant",
    value=200,
    elsewhere=200,
    unit="requests/s",
    source="Service limits and restrictions of Microsoft Entra External ID (Microsoft Learn)",
    remark="That is for external tenants; from one IP address 20. For other tenants nothing is published: too many are"
    " answered with 429 and Retry-After, says the page on throttling of the MSAL library's documentation.",
)

LIMITS = (ACCOUNT_REQUESTS, ACCOUNT_INGRESS, ACCOUNT_EGRESS, APPEND_BLOB_REQUESTS, SEGMENT_BLOCKS, TOKEN_REQUESTS)
