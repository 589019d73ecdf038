"""Following a job by its audit trail while it runs: what stands there has happened, whichever process did it."""

from __future__ import annotations

import json
from collections import Counter
from heapq import heappush, heapreplace
from typing import Any

from beam_entra.session.sealing import StorageTrail, _SealingBundle
from beam_entra.session.session import Session

__all__ = ["TrailWatch"]

_SEGMENTS_A_LOOK = 32
_BYTES_A_SEGMENT = 1 << 20
_LEAST = 1 << 16
_HASHES = 1 << 64


class TrailWatch:
    """What the other processes of a job have done so far, by their segments.

    A look asks Storage for one list, and for what is new of a few segments: those that it has not read for longest.
    It has the right that the seal needs, and stands in the launcher's own segment like any access. With hundreds of
    processes, or segments that grow by more than 100 KB/s, it is behind: it never tells of more than there was.
    But for blobs: up to 65,536 it knows how many, of more it tells about how many, to within 2 %.

    Close it before the trail is sealed.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bundle: _SealingBundle | None = None
        self._begun: dict[str, bytes] = {}  # the last line of a segment, which may go on
        self._read_bytes: dict[str, int] = {}  # of each segment; those read last are last
        self._blobs = _Distinct()
        self._sums: Counter[str] = Counter()

    def look(self) -> Counter[str]:
        """The sums by now, named like Beam's counters of the namespace `beam_entra`; no records, which no trail holds.

        Nor does it say how long a blob is: `blobs_begun` are those of which something has been read.

        Raises:
            BeamEntraError: The trail cannot be listed or read now.
        """
        if self._bundle is None:
            self._bundle = _SealingBundle(self._session, "watch the audit trail")
        trail = StorageTrail(self._bundle, self._session.scope.folder)
        sizes = trail.sizes()
        others = [name for name in sizes if name.startswith("segment-") and self._session.process not in name]
        grown = [name for name in others if sizes[name] > self._read_bytes.get(name, 0)]
        turn = {name: number for number, name in enumerate(self._read_bytes)}
        for name in sorted(grown, key=lambda name: turn.get(name, -1))[:_SEGMENTS_A_LOOK]:
            start = self._read_bytes.get(name, 0)
            self._take(name, start, trail.read_range(name, start, min(sizes[name], start + _BYTES_A_SEGMENT)))
        return Counter(self._sums)

    def close(self) -> None:
        """Record the end of it.

        Raises:
            AuditUnavailable: It cannot be recorded.
        """
        if self._bundle is not None:
            self._bundle.close()

    def _take(self, name: str, start: int, new: bytes) -> None:
        self._read_bytes.pop(name, None)
        self._read_bytes[name] = start + len(new)
        *lines, self._begun[name] = (self._begun.get(name, b"") + new).split(b"\n")
        for line in lines:
            self._add(json.loads(line))

    def _add(self, record: dict[str, Any]) -> None:
        sums = self._sums
        match record["kind"]:
            case "token_acquired":
                sums["tokens_acquired"] += 1
            case "read" if record["end"] > record["start"]:
                sums["bytes_read"] += record["end"] - record["start"]
                sums["blobs_begun"] = self._blobs.add(record["path"])
            case "staged":
                sums["bytes_staged"] += record["size"]
            case "committed":
                sums["blobs_committed"] += 1


class _Distinct:
    """How many different names there were, in the memory of 65,536.

    It keeps the least of their hashes. These are spread evenly, so that how densely they lie tells how many there are:
    the k-th of n is about k/n of the way up, right to one part in the root of k.
    """

    def __init__(self) -> None:
        self._least: list[int] = []  # negative, so that the greatest of them is first
        self._known: set[int] = set()
        self._more = False  # than it can keep

    def add(self, name: str) -> int:
        """Count a name; how many there were by now."""
        value = hash(name) % _HASHES
        if value not in self._known:
            if len(self._least) < _LEAST:
                heappush(self._least, -value)
                self._known.add(value)
            else:
                self._more = True
                if value < -self._least[0]:
                    self._known.add(value)
                    self._known.discard(-heapreplace(self._least, -value))
        if not self._more:
            return len(self._least)
        return max(_LEAST, _LEAST * _HASHES // -self._least[0])
