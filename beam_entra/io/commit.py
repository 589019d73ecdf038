"""Committing: the one step that makes what was staged visible, each blob once, whatever is repeated.

`write` says what it promises, and in which steps.
"""

from __future__ import annotations

import json
import logging
import uuid
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any

from beam_entra.errors import (
    AccessDenied,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    Diagnosis,
    FormatError,
    StorageError,
)
from beam_entra.io.formats import BlockFormat
from beam_entra.io.sink import COMMITTING, SUCCESS, Dealt, Staged, WriteSettings, check_blocks, marker
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession, CommittedBlob, read_marker, versions_there

__all__ = ["MOST_PLANNED", "check_dealt", "commit"]

MOST_PLANNED = 200_000  # blocks that a marker names, at some 80 bytes each

_LOGGER = logging.getLogger(__name__)
_THREADS = 16
_TRIES = 3  # to replace what another attempt at this commit has written meanwhile


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is committed.

    Attributes:
        parts: What each blob is made of, by its path.
        replaces: With `overwrite`: the versions that were there, "" for none, of what no block of this attempt's own
            protects: blobs without rows, and `_SUCCESS`.
    """

    parts: dict[str, list[Staged]]
    replaces: dict[str, str] = field(default_factory=dict)

    def name(self) -> str:
        """Names exactly these blocks in these blobs."""
        blocks = {path: [block for part in of_blob for block in part.blocks] for path, of_blob in self.parts.items()}
        return sha256(json.dumps(blocks, sort_keys=True).encode("ascii")).hexdigest()


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
    most_planned: int = MOST_PLANNED,
) -> list[CommittedBlob]:
    """Commit all blobs of a sink, or of one window of it; see this module's docstring for the steps.

    Doing it again changes nothing.

    An attempt that comes after one that died, and has other blocks since all was computed anew, finishes what that one
    has begun: its marker says what. What was staged since stays invisible. Where the marker does not name the blocks,
    it is refused; with `overwrite`, it begins anew.

    Args:
        staged: What the bundles that succeeded have staged, in any order.
        commit_id: The same in every attempt.
        pane: Which of the panes of a window, where there may be several.
        again: Of a window: what to do when a commit of other blocks has begun. It is not finished then: where a runner
            goes back to a checkpoint, it may have had other records.
        most_planned: Of how many blocks at most the marker says what they are.

    Raises:
        AccessDenied: With `overwrite`: a blob is to be replaced by one without rows, and the job's identity may not
            read there. Nothing was made visible.
        BlobChanged: With `overwrite`: another attempt or job has written a blob meanwhile. It was left as it is.
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
    plan = _Plan(parts)
    try:
        if settings.overwrite:
            plan = _begin_over(bundle, settings, committing, facts, plan, commit_id, most_planned)
        else:
            told = _told(facts, plan, most_planned)
            _put_json(bundle, settings, committing, told, commit_id, overwrite=False, what=plan.name())
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
        plan = begun
    if settings.overwrite:
        _unmark(bundle, settings, facts, commit_id, plan)
    done = _commit_blobs(bundle, settings, header, commit_id, plan)
    if _put_json(bundle, settings, success, _summary(facts, done), commit_id, settings.overwrite).confirmed:
        # Another attempt was here before, perhaps at the same time: each has changed ETags that the other had seen.
        # That one is through, since it wrote this blob last; so what this one finds now stays as it is.
        done = _commit_blobs(bundle, settings, header, commit_id, plan)
        _put_json(bundle, settings, success, _summary(facts, done), commit_id, overwrite=True)
    bundle.settle()
    return done


def _told(facts: dict[str, str], plan: _Plan, most_planned: int) -> dict[str, Any]:
    """What the marker says."""
    return {
        **facts,
        "blobs": _planned(plan.parts, most_planned),
        "replaces": plan.replaces,
        "blocks_sha256": plan.name(),
    }


def _planned(parts: dict[str, list[Staged]], most: int) -> list[Any]:
    """What the marker says of the blobs: enough to commit them, or their names alone where that would be too much."""
    if sum(len(part.blocks) for of_blob in parts.values() for part in of_blob) > most:
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


def _begin_over(
    bundle: BundleSession,
    settings: WriteSettings,
    name: str,
    facts: dict[str, str],
    plan: _Plan,
    commit_id: str,
    most_planned: int,
) -> _Plan:
    """Replace an earlier run's marker; or take up this commit, if it has begun.

    1. The marker that is there. If an attempt at this commit wrote it, its plan stands.
    2. The versions of what no block of ours protects when it is replaced. They come after 1, so that 3 fails if
       anybody has begun to commit since.
    3. Our marker, in place of the very one that was seen.

    Whoever commits after that changes these versions, or drops our blocks: then we can replace nothing any more.

    Raises:
        BlobExists: Somebody else has begun since.
    """
    path = settings.prefix.child(name)
    unprotected = [blob for blob, of_blob in plan.parts.items() if not any(each.blocks for each in of_blob)]
    unread = False
    try:
        found, content = read_marker(bundle.session, path)
    except BlobNotFound:
        seen = ""
    except AccessDenied as denied:
        if unprotected:
            raise AccessDenied(
                f"the job's identity cannot read below {settings.prefix}, so that no blob can be replaced there by one "
                "without rows: it might be another job's; nothing was made visible",
                denied.diagnosis,
            ) from None
        _LOGGER.warning("%s is overwritten, whoever wrote it: it cannot be read: %s", path, denied.message)
        seen, unread = "", True
    else:
        begun = _begun_in(content, settings.prefix, commit_id)
        if begun is not None:
            return begun
        seen = found.etag
    if not unread:
        unprotected.append(str(settings.prefix.child(SUCCESS)))
        replaced = versions_there(bundle.session, map(BlobPath.parse, unprotected))
        versions = {str(blob): version.etag for blob, version in replaced.items()}
        plan = _Plan(plan.parts, {blob: versions.get(blob, "") for blob in unprotected})
    told = _told(facts, plan, most_planned)
    _put_json(bundle, settings, name, told, commit_id, bool(seen) or unread, what=plan.name(), replaces=seen)
    return plan


def _begun(bundle: BundleSession, prefix: BlobPath, name: str, commit_id: str) -> _Plan | None:
    """What an earlier attempt at this commit was about to commit; None if the marker is another's, or tells us nothing.

    An attempt commits only when all has been staged, so it is whole. Its blocks are kept by Storage for a week.
    """
    path = prefix.child(name)
    try:
        _, content = read_marker(bundle.session, path)
    except AccessDenied as denied:
        _LOGGER.warning("an attempt that died is not finished: %s cannot be read: %s", path, denied.message)
        return None
    except BlobNotFound:
        return None
    return _begun_in(content, prefix, commit_id)


def _begun_in(content: bytes, prefix: BlobPath, commit_id: str) -> _Plan | None:
    """The same, of what the marker says."""
    try:
        told = json.loads(content)
        if told["commit"] != commit_id:
            return None
        begun = [Staged(**{**blob, "blocks": tuple(blob["blocks"])}) for blob in told["blobs"]]
        ours = all(prefix.covers(BlobPath.parse(part.path)) for part in begun)
        replaces = dict(told.get("replaces", {}))
    except (ValueError, TypeError, KeyError):
        return None
    return _Plan({part.path: [part] for part in begun}, replaces) if ours else None


def _unmark(
    bundle: BundleSession, settings: WriteSettings, facts: dict[str, str], commit_id: str, plan: _Plan
) -> None:
    """Have an earlier run's `_SUCCESS` vouch for nothing. Where there is none, none is made: readers look for it."""
    state = "in progress"
    path = settings.prefix.child(SUCCESS)

    def put(seen: str) -> CommittedBlob:
        told = {"state": state, **facts}
        return _put_json(bundle, settings, SUCCESS, told, commit_id, True, what=state, replaces=seen)

    seen = plan.replaces.get(str(path), "*")
    try:
        if seen:
            _replace(bundle, path, seen, commit_id, put)
    except BlobNotFound as error:
        if error.diagnosis.code == "ContainerNotFound":
            raise


def _replace(
    bundle: BundleSession,
    path: BlobPath,
    seen: str,
    commit_id: str,
    put: Callable[[str], CommittedBlob],
    size_bytes: int | None = None,
) -> CommittedBlob:
    """Replace the version that was seen when the commit began, or what an attempt at this commit put in its place.

    Args:
        size_bytes: Of what such an attempt would have put there.

    Raises:
        BlobChanged: Somebody else has written it, or an attempt that had other rows. It was left as it is.
    """
    for left in reversed(range(_TRIES)):
        try:
            return put(seen)
        except (BlobChanged, BlobExists) as error:
            refused = error.diagnosis
            there = versions_there(bundle.session, [path]).get(path)
            ours = there is not None and there.commit_id == commit_id and size_bytes in {None, there.size_bytes}
            if there is None or not ours or not left:
                break
            seen = there.etag
    raise BlobChanged(
        f"{path} is no longer what it was when this commit began: another attempt or job has written it, and it was "
        "left as it is",
        Diagnosis(
            tried=refused.tried,
            status=refused.status,
            code=refused.code,
            request_id=refused.request_id,
            hint=f"see the {COMMITTING} and {SUCCESS} beside it for which job wrote last; if it should not have, run "
            "yours again",
        ),
    )


def _commit_blobs(
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, plan: _Plan
) -> list[CommittedBlob]:
    """All blobs; those without rows last: who has been overtaken fails at its blocks, and has emptied nothing."""
    one = partial(_commit_blob, bundle, settings, header, commit_id, plan, plan.name())
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="beam-entra-commit") as pool:
        done = {blob.path: blob for blob in pool.map(one, [path for path in plan.parts if path not in plan.replaces])}
        done |= {blob.path: blob for blob in pool.map(one, [path for path in plan.parts if path in plan.replaces])}
    return [done[path] for path in plan.parts]


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
    bundle: BundleSession, settings: WriteSettings, header: bytes, commit_id: str, plan: _Plan, name: str, path: str
) -> CommittedBlob:
    blob, parts = BlobPath.parse(path), plan.parts[path]
    blocks = [block for part in parts for block in part.blocks]
    size_bytes = sum(part.size_bytes for part in parts)
    # An empty commit cannot be told from another's; where the name is nobody else's, it may as well be repeated.
    nobody_elses = not header and not blocks and all(part.unique for part in parts)
    if header:
        first = settings.encoded(header)
        # Another plan's header is another block: it would confirm a commit of the header alone.
        blocks.insert(0, _block_id(commit_id, path + name))
        bundle.stage(blob, blocks[0], first)
        size_bytes += len(first)

    def put(seen: str, *, overwrite: bool = False) -> CommittedBlob:
        return bundle.commit(
            blob,
            blocks,
            commit_id=commit_id,
            size_bytes=size_bytes,
            rows=sum(part.rows for part in parts),
            content_type=settings.content_type,
            overwrite=overwrite or bool(seen),
            replaces=seen,
            settle=False,
        )

    if path in plan.replaces:
        return _replace(bundle, blob, plan.replaces[path], commit_id, put, size_bytes)
    return put("", overwrite=settings.overwrite or nobody_elses)


def _put_json(
    bundle: BundleSession,
    settings: WriteSettings,
    name: str,
    value: object,
    commit_id: str,
    overwrite: bool,
    *,
    what: str = "",
    replaces: str = "",
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
        replaces=replaces,
        settle=False,
    )


def _block_id(commit_id: str, name: str) -> str:
    """The id of a block that the commit step itself stages: the same in every attempt, and nobody else's."""
    return b64encode(uuid.uuid5(uuid.UUID(commit_id), name).bytes).decode("ascii")
