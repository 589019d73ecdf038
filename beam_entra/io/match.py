"""Matching: a pattern to the blobs there are, with the ETags that a read will insist on."""

from __future__ import annotations

from collections.abc import Iterator

from beam_entra.errors import BlobNotFound
from beam_entra.paths import BlobPattern
from beam_entra.session import BundleSession
from beam_entra.storage import BlobProperties

__all__ = ["match"]


def match(
    bundle: BundleSession,
    pattern: BlobPattern,
    *,
    allow_empty: bool = False,
    page_size: int | None = None,
    markers: bool = True,
) -> Iterator[BlobProperties]:
    """The blobs that a pattern matches, as they are now: their ETags are what a read will insist on.

    Args:
        page_size: How many names to ask for at a time; by default as many as Storage gives.
        markers: Whether a glob matches blobs such as `_SUCCESS`: those whose last segment begins with "_". Where the
            pattern's own last segment begins with "_", it does in any case.

    Raises:
        BlobNotFound: There is no such container; or no such blob, if the pattern is a name and not `allow_empty`.
        ConfigError: A blob that matches has a name that no path can have.
    """
    if pattern.glob is None:
        try:
            found = bundle.properties(pattern.prefix)
        except BlobNotFound as error:
            if not allow_empty or error.diagnosis.code == "ContainerNotFound":
                raise
        else:
            yield found
        return
    markers = markers or _is_marker(pattern.glob)

    def wanted(name: str) -> bool:
        return pattern.matches(name) and (markers or not _is_marker(name))

    yield from bundle.list_blobs(pattern.prefix, pattern.list_prefix, page_size=page_size, wanted=wanted)


def _is_marker(name: str) -> bool:
    return name.rpartition("/")[2].startswith("_")
