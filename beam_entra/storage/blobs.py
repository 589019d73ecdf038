"""What a blob is to the rest of the package, and how Storage's XML says it."""

from __future__ import annotations

import base64
import functools
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from beam_entra.errors import ConfigError, Diagnosis, StorageError
from beam_entra.paths import BlobPath

__all__ = [
    "MOST_BLOCKS",
    "BlobProperties",
    "ListPage",
    "block_list_xml",
    "new_block_id",
    "parse_list_page",
    "parse_size",
]

MOST_BLOCKS = 50_000  # of a committed blob

_SIZE = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobProperties:
    """One version of one blob, as Storage described it.

    Attributes:
        size_bytes: Length of the content.
        etag: Names this version, quotes included; a read pins it with `If-Match`.
        last_modified: Aware instant, to the second.
        content_type: Media type; empty where it came with a listing.
    """

    path: BlobPath
    size_bytes: int
    etag: str
    last_modified: datetime
    content_type: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """One answer of List Blobs: at most 5,000 blobs, and the marker of the next page.

    Attributes:
        blobs: Those that were wanted.
        next_marker: Empty on the last page.
        listed: How many blobs there were in the answer, wanted or not.
    """

    blobs: tuple[BlobProperties, ...]
    next_marker: str
    listed: int


def parse_list_page(
    document: bytes, *, container: BlobPath, wanted: Callable[[str], bool] = lambda name: True
) -> ListPage:
    """Read the answer of List Blobs. Directories are left out: of a hierarchical account, and names that end in `/`.

    Args:
        wanted: Whether to give a blob of this name, as Storage says it; others are counted, and may have any name.

    Raises:
        StorageError: The answer is no such document.
        ConfigError: A wanted blob's name is one that `BlobPath` refuses.
    """
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - from Storage over TLS; expat refuses entity bombs
        entries = [
            (name, facts)
            for entry in root.iterfind("Blobs/Blob")
            if (facts := _facts(entry)).get("ResourceType") != "directory" and not (name := _name(entry)).endswith("/")
        ]
        blobs = [_properties(name, facts, container) for name, facts in entries if wanted(name)]
    except ConfigError:
        raise
    except (ElementTree.ParseError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"Storage's list of {container} cannot be read: {error}") from None
    return ListPage(blobs=tuple(blobs), next_marker=root.findtext("NextMarker") or "", listed=len(entries))


def parse_size(text: str) -> int:
    """The length of a blob as Storage says it.

    Raises:
        ValueError: It is none.
    """
    if not _SIZE.fullmatch(text):
        raise ValueError("a length that is none")
    return int(text)


def _name(entry: ElementTree.Element) -> str:
    name = entry.find("Name")
    if name is None or name.text is None:
        raise KeyError("a blob without a name")
    return unquote(name.text) if name.get("Encoded") == "true" else name.text


def _facts(entry: ElementTree.Element) -> dict[str, str]:
    return {field.tag: field.text or "" for field in entry.find("Properties") or ()}


def _properties(name: str, facts: Mapping[str, str], container: BlobPath) -> BlobProperties:
    etag = facts["Etag"]
    if not etag.isascii() or not etag.isprintable():  # it is sent back, in a header
        raise ValueError("an ETag that is none")
    try:
        path = BlobPath(account=container.account, container=container.container, name=name)
    except ConfigError as error:
        raise ConfigError(
            f"{container} holds a blob whose name cannot be addressed safely: {error.message}",
            Diagnosis(tried=f"list {container}", hint="rename the blob, or narrow the pattern so that it is left out"),
        ) from None
    return BlobProperties(
        path=path,
        size_bytes=parse_size(facts["Content-Length"]),
        etag=etag if etag.startswith('"') else f'"{etag}"',
        last_modified=_instant(facts["Last-Modified"]),
    )


@functools.lru_cache(maxsize=1024)  # blobs that were written together share their second
def _instant(text: str) -> datetime:
    return parsedate_to_datetime(text)


def new_block_id() -> str:
    """A block id that nobody else has. All ids of a blob must have one length; these have 24 characters."""
    return base64.b64encode(uuid.uuid4().bytes).decode("ascii")


def block_list_xml(kind: str, block_ids: Iterable[str]) -> bytes:
    """The body of Put Block List.

    Args:
        kind: `Uncommitted`, or `Committed` to name blocks that the blob has already.
    """
    entries = "".join(f"<{kind}>{escape(block)}</{kind}>" for block in block_ids)
    return f'<?xml version="1.0" encoding="utf-8"?><BlockList>{entries}</BlockList>'.encode("ascii")
