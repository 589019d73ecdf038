"""What an attempt at a commit left for the next one: the one thing that a job may read because it may write it."""

from __future__ import annotations

from beam_entra.access import downscope_marker
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession
from beam_entra.session.session import Session

__all__ = ["read_marker"]


class _MarkerBundle(BundleSession):
    """It may read markers of commits, and nothing else. No session gives one."""

    _rule = staticmethod(downscope_marker)


def read_marker(session: Session, path: BlobPath) -> bytes:
    """All bytes of the marker of a commit, where the job may write.

    Raises:
        NotGranted: It may not, or this is no marker. Nothing was sent.
        AccessDenied: Storage does not let the job's identity read there.
        BlobNotFound: There is none.
    """
    with _MarkerBundle(session, "take up a commit", audience=STORAGE_AUDIENCE) as bundle:
        found = bundle.properties(path)
        return bytes(bundle.read(found, 0, found.size_bytes))
