"""Copying a blob: Storage does it where it can, and who asked for the copy knows when it is whole."""

from __future__ import annotations

import uuid

from beam_entra.access import Permission
from beam_entra.errors import BeamEntraError, BlobChanged, Diagnosis, StorageError
from beam_entra.paths import BlobPath
from beam_entra.session.bundle import BundleSession, CommittedBlob
from beam_entra.storage import MOST_BLOCKS, BlobProperties, new_block_id

__all__ = ["copy_blob"]

_COPIED_BYTES = 64 << 20  # by Storage in one request, which it answers when it is done
_CARRIED_BYTES = 4 << 20
_CANNOT_REACH_SOURCE = frozenset({"CannotVerifyCopySource", "CopyAcrossAccountsNotSupported"})
_NOT_IMPLEMENTED = 501


def copy_blob(bundle: BundleSession, source: BlobProperties, target: BlobPath) -> CommittedBlob:
    """Make `target` a copy of this version of `source`, over what is there. When this returns, the copy is whole.

    1. Each range of the source becomes a staged block: Put Block From URL, the source pinned by its ETag and opened by
       a SAS of its own. Where Storage cannot reach the source (it is behind a firewall), the range is read and staged.
    2. Put Block List. It fails unless every block is there, so its answer says that all of the source has arrived.
    3. If the job may read the target, it looks: size and ETag are those of the copy.

    Content and media type are copied; other metadata is not.

    Raises:
        NotGranted: The job may not read the one or not write the other.
        BlobChanged: The source is no longer this version, or somebody else has written the target meanwhile.
    """
    step = _copied_bytes(source.size_bytes)
    content_type = source.content_type or "application/octet-stream"
    commit_id = str(uuid.uuid4())
    if not source.size_bytes:
        done = bundle.write(target, b"", commit_id=commit_id, content_type=content_type)
    else:
        blocks: list[str] = []
        for start in range(0, source.size_bytes, step):
            blocks += _copy_range(bundle, source, start, min(start + step, source.size_bytes), target)
        bundle.settle()
        done = bundle.commit(
            target,
            blocks,
            commit_id=commit_id,
            size_bytes=source.size_bytes,
            rows=None,
            content_type=content_type,
            overwrite=True,
        )
    _verify(bundle, source, target, done)
    return done


def _copy_range(
    bundle: BundleSession, source: BlobProperties, start: int, stop: int, target: BlobPath
) -> list[str]:
    unreachable: set[tuple[str, str]] = bundle.session.resource("accounts that cannot copy from one another", set)
    pair = (source.path.account, target.account)
    if pair not in unreachable:
        block = new_block_id()
        try:
            bundle.copy_block(source, start, stop, target, block)
        except BeamEntraError as error:
            known = error.diagnosis
            if known.code not in _CANNOT_REACH_SOURCE and known.status != _NOT_IMPLEMENTED:
                raise
            unreachable.add(pair)
        else:
            return [block]
    blocks = []
    carried = _carried_bytes(source.size_bytes)
    for begin in range(start, stop, carried):
        blocks.append(new_block_id())
        bundle.stage(target, blocks[-1], bytes(bundle.read(source, begin, min(begin + carried, stop))))
    return blocks


def _copied_bytes(size_bytes: int) -> int:
    """How much Storage is asked to copy at a time: a blob holds so many blocks and no more."""
    return max(_COPIED_BYTES, -(-size_bytes // MOST_BLOCKS))


def _carried_bytes(size_bytes: int) -> int:
    """How much is read and staged at a time; the last piece of what Storage would copy at a time may be a short one."""
    return max(_CARRIED_BYTES, 2 * -(-size_bytes // MOST_BLOCKS))


def _verify(bundle: BundleSession, source: BlobProperties, target: BlobPath, done: CommittedBlob) -> None:
    if not bundle.may(target, Permission.READ):
        return
    found = bundle.properties(target)
    tried = Diagnosis(tried=f"copy {source.path} to {target}", hint="write to a path that nobody else writes to")
    if found.etag != done.etag:
        raise BlobChanged(f"{target} was written by somebody else while it was being copied to", tried)
    if found.size_bytes != source.size_bytes:
        raise StorageError(f"the copy has {found.size_bytes} bytes, and {source.path} {source.size_bytes}", tried)
