"""What a commit may read where its job may only write: the marker that an attempt left, and what it is to replace."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from beam_entra.access import downscope_marker, downscope_version
from beam_entra.errors import BlobNotFound
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession
from beam_entra.session.session import Session
from beam_entra.storage import BlobProperties

__all__ = ["Version", "read_marker", "versions_there"]

_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What there is to be replaced.

    Attributes:
        etag: Names this version.
        size_bytes: Length of the content.
        commit_id: Of the commit that made it; empty where somebody else made it.
    """

    etag: str
    size_bytes: int
    commit_id: str


class _MarkerBundle(BundleSession):
    """It may read markers of commits, and nothing else. No session gives one."""

    _rule = staticmethod(downscope_marker)


class _VersionBundle(BundleSession):
    """For `versions_there` alone. No session gives one."""

    _rule = staticmethod(downscope_version)

    def version(self, path: BlobPath) -> Version | None:
        try:
            found, answer = self._properties(path)
        except BlobNotFound as missing:
            if missing.diagnosis.code == "ContainerNotFound":
                raise
            return None
        return Version(etag=found.etag, size_bytes=found.size_bytes, commit_id=answer.commit_id)


def read_marker(session: Session, path: BlobPath) -> tuple[BlobProperties, bytes]:
    """The marker of a commit, where the job may write: the version, and all its bytes.

    Raises:
        NotGranted: It may not, or this is no marker. Nothing was sent.
        AccessDenied: Storage does not let the job's identity read there.
        BlobNotFound: There is none.
    """
    with _MarkerBundle(session, "take up a commit", audience=STORAGE_AUDIENCE) as bundle:
        found = bundle.properties(path)
        return found, bytes(bundle.read(found, 0, found.size_bytes))


def versions_there(session: Session, paths: Iterable[BlobPath]) -> dict[BlobPath, Version]:
    """Which versions of blobs are there to be replaced, where the job may write; nothing of their content is read.

    Raises:
        NotGranted: It may not. Nothing was sent.
        AccessDenied: Storage does not let the job's identity read there.
    """
    with (
        _VersionBundle(session, "see what is replaced", audience=STORAGE_AUDIENCE) as bundle,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="beam-entra-versions") as pool,
    ):
        asked = list(paths)
        found = zip(asked, pool.map(bundle.version, asked), strict=True)
        return {path: version for path, version in found if version is not None}
