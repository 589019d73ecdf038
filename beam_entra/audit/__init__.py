"""The audit trail: what each credential was, and what each access did, in a record nobody can quietly change.

* what a line says: record.py, of fields.py, guarded by guard.py
* writing: trail.py (with chain.py) a worker's segments, seal.py the launcher's last line, interim.py what is sealed on
  the way there, store.py where files live
* reading: verify.py lists the rules of a trail (checked in segments.py, lineage.py, many segments at a time by
  checking.py, which ahead.py reads for), show.py prints it for people

The functions `seal` and `verify` are imported from their modules, which have the same names.
"""

from __future__ import annotations

from beam_entra.audit.checking import check_segments
from beam_entra.audit.guard import SecretInRecord
from beam_entra.audit.record import (
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    Copied,
    Deleted,
    DeleteIntended,
    Denied,
    InterimSealed,
    KeyAcquired,
    Listed,
    Probed,
    Read,
    Record,
    SasIssued,
    Sealed,
    SealedSegment,
    SegmentOpened,
    SegmentRolled,
    Staged,
    TokenAcquired,
)
from beam_entra.audit.seal import Seal
from beam_entra.audit.segments import Segments, SegmentSummary
from beam_entra.audit.store import FolderTrail, GrowingTrail, SegmentStore, TrailReader, find_trails
from beam_entra.audit.trail import Receipt, SegmentFacts, SegmentWriter
from beam_entra.audit.verify import RunningSummary, TrailSummary

__all__ = [
    "BundleClosed",
    "BundleOpened",
    "CommitIntended",
    "Committed",
    "Copied",
    "DeleteIntended",
    "Deleted",
    "Denied",
    "FolderTrail",
    "GrowingTrail",
    "InterimSealed",
    "KeyAcquired",
    "Listed",
    "Probed",
    "Read",
    "Receipt",
    "Record",
    "RunningSummary",
    "SasIssued",
    "Seal",
    "Sealed",
    "SealedSegment",
    "SecretInRecord",
    "SegmentFacts",
    "SegmentOpened",
    "SegmentRolled",
    "SegmentStore",
    "SegmentSummary",
    "SegmentWriter",
    "Segments",
    "Staged",
    "TokenAcquired",
    "TrailReader",
    "TrailSummary",
    "check_segments",
    "find_trails",
]
