"""Follow a job by its audit trail, as an auditor would: what stands there has happened."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from beam_entra.errors import BlobNotFound
from beam_entra.paths import BlobPath
from beam_entra.testing.local import BlobAdmin

__all__ = ["Seen", "TrailFollower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a job has done so far.

    Attributes:
        kinds: Audit records by kind.
        read_bytes, staged_bytes: Bytes fetched, and bytes staged.
        blobs: That are committed.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    staged_bytes: int = 0
    blobs: int = 0

    @property
    def phase(self) -> str:
        """What it is about to do, in a word."""
        if self.blobs:
            return "committing"
        if self.staged_bytes:
            return "writing"
        return "reading" if self.read_bytes else "starting"


class TrailFollower:
    """Looks at the trails below a prefix that were not there when it was made."""

    def __init__(self, admin: BlobAdmin, audit: BlobPath) -> None:
        self._admin, self._audit = admin, audit
        self._old = set(self._names())

    def look(self) -> Seen:
        """What the new trails say by now."""
        kinds: Counter[str] = Counter()
        sums: Counter[str] = Counter()
        for name in self._names():
            if name in self._old:
                continue
            for record in self._records(name):
                kinds[record["kind"]] += 1
                if record["kind"] == "read":
                    sums["read"] += record["end"] - record["start"]
                elif record["kind"] == "staged":
                    sums["staged"] += record["size"]
        return Seen(kinds=kinds, read_bytes=sums["read"], staged_bytes=sums["staged"], blobs=kinds["committed"])

    def _names(self) -> list[str]:
        return self._admin.list_blobs(self._audit.account, self._audit.container, self._audit.name)

    def _records(self, name: str) -> list[dict[str, Any]]:
        try:
            content = self._admin.download(self._audit.account, self._audit.container, name)
        except BlobNotFound:
            return []
        whole, _, _ = content.rpartition(b"\n")  # the last line may still be on its way
        return [json.loads(line) for line in whole.splitlines()]
