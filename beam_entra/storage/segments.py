"""Audit segments as append blobs, written with permission to create and append and nothing else."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from contextlib import suppress

from beam_entra.errors import AccessDenied, AuditUnavailable, BeamEntraError, BlobChanged, BlobExists
from beam_entra.paths import BlobPath
from beam_entra.storage.exchange import Authorization
from beam_entra.storage.service import BlobService

__all__ = ["AppendBlobSegments"]

_POSITION_TAKEN = "AppendPositionConditionNotMet"
_NEVER = 1 << 50  # longer than an append blob gets
_OF_WHAT_IS_THERE = (409, 412)  # no append blob, or a shorter one


class AppendBlobSegments:
    """A `SegmentStore` in one folder of one container.

    Args:
        folder: The job's folder below the audit path.
        authorise: A live authorization to create and append one blob.
        read: Bytes [start, stop) of one blob, for who may be one of several to append to it: where it cannot be told
            whose bytes are there, they are looked at. Without it, nobody else appends.
    """

    def __init__(
        self,
        service: BlobService,
        folder: BlobPath,
        authorise: Callable[[BlobPath], Authorization],
        *,
        read: Callable[[BlobPath, int, int], bytes] | None = None,
    ) -> None:
        self._service = service
        self._folder = folder
        self._authorise = authorise
        self._read = read
        self._name, self._numbers = str(uuid.uuid4()), itertools.count()  # of requests
        self._paths: dict[str, BlobPath] = {}  # of the segment at hand

    def create(self, name: str) -> None:
        """Create the segment.

        That it exists is taken for our own earlier attempt, whose answer was lost: the name is new and random. Were it
        somebody else's blob after all, the first append would find it not empty and fail. To a SAS that may create and
        not write, Storage says it in several ways. One, Azurite's, is the refusal of who lacks the role; so it is asked
        whether the segment is there. A trail that went on in one that is not could never be sealed.
        """
        path = self._folder.child(name)
        try:
            self._service.create_append_blob(path, lambda: self._authorise(path), self._next_request_id())
        except (BlobExists, BlobChanged):
            return
        except BeamEntraError as error:
            if isinstance(error, AccessDenied) and self._is_there(path):
                return
            raise _unavailable(error) from None

    def append(self, name: str, offset: int, data: bytes) -> None:
        """Append at `offset`.

        If the position is taken after an attempt without an answer, that attempt had done it, unless other bytes are
        there. On a first attempt it means that somebody else appends, and that is an error.
        """
        path = self._paths.get(name)
        if path is None:
            path = self._folder.child(name)
            self._paths = {name: path}
        try:
            self._service.append_block(path, offset, data, lambda: self._authorise(path), self._next_request_id())
        except BeamEntraError as error:
            known = error.diagnosis
            taken = known.code == _POSITION_TAKEN and known.attempts > 1
            if taken and self._holds(path, offset, data):
                return
            raise _unavailable(error) from None

    def _next_request_id(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _is_there(self, path: BlobPath) -> bool:
        """Asked by an append that no blob is long enough for."""
        try:
            self._service.append_block(path, _NEVER, b"\n", lambda: self._authorise(path), self._next_request_id())
        except BeamEntraError as error:
            return error.diagnosis.status in _OF_WHAT_IS_THERE
        return False

    def _holds(self, path: BlobPath, offset: int, data: bytes) -> bool:
        if self._read is None:
            return True
        with suppress(BeamEntraError):
            return self._read(path, offset, offset + len(data)) == data
        return False


def _unavailable(error: BeamEntraError) -> AuditUnavailable:
    return AuditUnavailable(f"the audit trail cannot be written: {error.message}", error.diagnosis)
