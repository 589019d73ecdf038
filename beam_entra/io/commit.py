"""Committing: the one step that makes what was staged visible, each blob once, whatever is repeated.

`write` says what it promises, and in which steps.
"""

from __future__ import annotations

import json
import logging
import uuid
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from beam_entra.errors import AccessDenied, BlobExists, BlobNotFound, Diagnosis, FormatError, StorageError
from beam_entra.io.formats import BlockFormat
from beam_entra.io.sink import COMMITTING, SUCCESS, Dealt, Staged, WriteSettings, check_blocks, marker
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession, CommittedBlob, read_marker

__all__ = ["check_dealt", "commit"]

_LOGGER = logging.getLogger(__name__)
_MOST_PLANNED = 200_000  # blocks that a marker names, at some 80 bytes each
_THREADS = 16


def check_dealt(prefix: BlobPath, dealt: Iterable[Dealt]) -> None:
    """Refuse shards that were made of different attempts to deal the same elements.

    Raises:
        StorageError: They were. Nothing was made visible.
    """
    if sum(each.sum for each in dealt):
        raise StorageError(
            f"elements for {prefix} were dealt to shards twice, and not all shards are of the same time; "
            "nothing was made visible",
            Diagnosis(hint="the runner lost workers and computed again what they had done: run the job again"),
        )


def commit(
    bundle: BundleSession,
    settings: WriteSettings,
    staged: list[Staged],
    commit_id: str,
    *,
    pane: int | None = None,
    again: str = "",
) -> list[CommittedBlob]:
    """Commit all blobs of a sink, or of one window of it; see this module's docstring for the steps.

    Doing it again changes nothing.

    An attempt that comes after one that died, and has other blocks since all was computed anew, finishes what that one
    has begun: its marker says what. What was staged since stays invisible.

    Args:
        staged: What the bundles that succeeded have staged, in any order.
        commit_id: The same in every attempt.
        pane: Which of the panes of a window, where there may be several.
        again: Of a window: what to do when a commit of other blocks has begun. It is not finished then: where a runner
            goes back to a checkpoint, it may have had other records.

    Raises:
        BlobExists: Another commit has begun under the prefix, or a blob of the same name is there.
        FormatError: Two elements have the same name. Nothing was made visible.
        StorageError: A blob would have too many blocks. Nothing was made visible.
    """
    parts: dict[str, list[Staged]] = defaultdict(list)
    for part in sorted(staged, key=lambda part: (part.path, part.blocks)):
        parts[part.path].append(part)
    header = settings.header
    if settings.overwrite:
        parts = {str(path): parts[str(path)] for path in map(settings.shard, range(settings.shards or 0))}
    elif header and not parts:
        parts[str(settings.shard(0) if settings.shards else settings.prefix.child(f"part-00000{settings.suffix}"))] = []
    for path, of_blob in parts.items():
        check_blocks(settings, path, bool(header) + sum(len(part.blocks) for part in of_blob), doing="commit")
        if not isinstance(settings.format, BlockFormat) and len(of_blob) > 1:
            raise FormatError(
                f"{len(of_blob)} elements are named {path}; nothing was made visible",
                Diagnosis(hint="give each a name of its own, or bring together what belongs in one blob: GroupByKey()"),
            )
    committing, success = marker(COMMITTING, pane), marker(SUCCESS, pane)
    job = bundle.session.scope
    facts = {"job": job.job, "pipeline": job.manifest.pipeline, "environment": job.manifest.environment}
    facts["commit"] = commit_id
    blocks = _digest(parts)
    plan = {**facts, "blobs": _planned(parts), "blocks_sha256": blocks}
    try:
        _put_json(bundle, settings, committing, plan, commit_id, settings.overwrite, what=blocks)
    except BlobExists as error:
        begun = None if again else _begun(bundle, settings.prefix, committing, commit_id)
        if begun is None:
            raise BlobExists(
                f"a commit under {settings.prefix} has begun before: this one made nothing visible there",
                Diagnosis(
                    tried=error.diagnosis.tried,
                    request_id=error.diagnosis.request_id,
                    hint=f"see {settings.prefix}{committing} for job and blobs; "
                    + (again or "write to a new prefix, or remove them"),
                ),
            ) from None
        parts = begun
    if settings.overwrite:
        _unmark(bundle, settings, facts, commit_id)
    done = _commit_blobs(bundle, settings, header, commit_id, parts)
    if _put_json(bundle, settings, success, _summary(facts, done), commit_id, settings.overwrite).confirmed:
        # Another attempt was here before, perhaps at the same time: each has changed ETags that the other had seen.
        # That one is through, since it wrote this blob last; so what this one finds now stays as it is.
        done = _commit_blobs(bundle, settings, header, commit_id, parts)
        _put_json(bundle, settings, success, _summary(facts, done), commit_id, overwrite=True)
    return done


def _planned(parts: dict[str, list[Staged]]) -> list[Any]:
    """What the marker says of the blobs: enough to commit them, or their names alone where that would be too much."""
    if sum(len(part.blocks) for of_blob in parts.values() for part in of_blob) > _MOST_PLANNED:
        return list(parts)
    return [
        {
            "path": path,
            "size_bytes": sum(part.size_bytes for part in of_blob),
            "rows": sum(part.rows for part in of_blob),
            "unique": all(part.unique for part in of_blob),
            "blocks": [block for part in of_blob for block in part.blocks],
        }
        for path, of_blob in parts.items()
    ]


def _begun(bundle: BundleSession, prefix: BlobPath, name: str, commit_id: str) -> dict[str, list[Staged]] | None:
    """What an earlier attempt at this commit was about to commit; None if the marker is another's, or tells us nothing.

    An attempt commits only when all has been staged, so it is whole. Its blocks are kept by Storage for a week.
    """
    path = prefix.child(name)
    try:
        plan = json.loads(read_marker(bundle.session, path))
        if plan["commit"] != commit_id:
            return None
        begun = [Staged(**{**blob, "blocks": tuple(blob["blocks"])}) for blob in plan["blobs"]]
        ours = all(prefix.covers(BlobPath.parse(part.path)) for part in begun)
    except AccessDenied as denied:
        _LOGGER.warning("an attempt that died is not finished: %s cannot be read: %s", path, denied.message)
        return None
    except (BlobNotFound, ValueError, TypeError, KeyError):
        return None
    return {part.path: [part] for part in begun} if ours else None


def _unmark(bundle: BundleSession, settings: WriteSettings, facts: dict[str, str], commit_id: str) -> None:
    """Have an earlier run's `_SUCCESS` vouch for nothing. Where there is none, none is made: readers look for it."""
    state = "in progress"
    try:
        _put_json(bundle, settings, SUCCESS, {"state": state, **facts}, commit_id, True, what=state, only_replace=True)
    except BlobNotFound as error:
        if error.diagnosis.code == "ContainerNotFound":
            raise


def _commit_blobs(
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, parts: dict[str, list[Staged]]
) -> list[CommittedBlob]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="beam-entra-commit") as pool:
        return list(pool.map(lambda item: _commit_blob(bundle, settings, header, commit_id, *item), parts.items()))


def _summary(facts: dict[str, str], done: list[CommittedBlob]) -> dict[str, Any]:
    """What `_SUCCESS` says."""
    return {
        "state": "complete",
        **facts,
        "rows": sum(blob.rows for blob in done),
        "size_bytes": sum(blob.size_bytes for blob in done),
        "blobs": [
            {"path": blob.path, "etag": blob.etag, "size_bytes": blob.size_bytes, "rows": blob.rows} for blob in done
        ],
    }


def _commit_blob(
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, path: str, parts: list[Staged]
) -> CommittedBlob:
    blob = BlobPath.parse(path)
    blocks = [block for part in parts for block in part.blocks]
    size_bytes = sum(part.size_bytes for part in parts)
    if header:
        first = settings.encoded(header)
        blocks.insert(0, _block_id(commit_id, path))
        bundle.stage(blob, blocks[0], first)
        size_bytes += len(first)
    return bundle.commit(
        blob,
        blocks,
        commit_id=commit_id,
        size_bytes=size_bytes,
        rows=sum(part.rows for part in parts),
        content_type=settings.content_type,
        # An empty commit cannot be told from another's; where the name is nobody else's, it may as well be repeated.
        overwrite=settings.overwrite or (not blocks and all(part.unique for part in parts)),
    )


def _digest(parts: dict[str, list[Staged]]) -> str:
    """Names exactly these blocks in these blobs."""
    blocks = {path: [part.blocks for part in of_blob] for path, of_blob in sorted(parts.items())}
    return sha256(json.dumps(blocks).encode("ascii")).hexdigest()


def _put_json(
    bundle: BundleSession,
    settings: WriteSettings,
    name: str,
    value: object,
    commit_id: str,
    overwrite: bool,
    *,
    what: str = "",
    only_replace: bool = False,
) -> CommittedBlob:
    """Write a marker, once: an attempt with the same `commit_id` and `what` finds it done."""
    path = settings.prefix.child(name)
    data = json.dumps(value, indent=2).encode("ascii") + b"\n"
    block = _block_id(commit_id, name + what)
    bundle.stage(path, block, data)
    return bundle.commit(
        path,
        [block],
        commit_id=commit_id,
        size_bytes=len(data),
        rows=0,
        content_type="application/json",
        overwrite=overwrite,
        only_replace=only_replace,
    )


def _block_id(commit_id: str, name: str) -> str:
    """The id of a block that the commit step itself stages: the same in every attempt, and nobody else's."""
    return b64encode(uuid.uuid5(uuid.UUID(commit_id), name).bytes).decode("ascii")
