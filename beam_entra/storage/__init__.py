"""Blob storage: the only room that speaks its protocol."""

from __future__ import annotations

from beam_entra.storage.blobs import MOST_BLOCKS, BlobProperties, new_block_id
from beam_entra.storage.exchange import Authorization, Exchange, RetryPolicy
from beam_entra.storage.sas import DelegationKey, Sas, mint
from beam_entra.storage.segments import AppendBlobSegments
from beam_entra.storage.service import BlobService, Commit
from beam_entra.storage.transport import connection_pool, redact

__all__ = [
    "MOST_BLOCKS",
    "AppendBlobSegments",
    "Authorization",
    "BlobProperties",
    "BlobService",
    "Commit",
    "DelegationKey",
    "Exchange",
    "RetryPolicy",
    "Sas",
    "connection_pool",
    "mint",
    "new_block_id",
    "redact",
]
