"""A trail in a local folder, and finding the trails of many jobs."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from beam_entra.audit.record import SEAL_NAME, Denied
from beam_entra.audit.seal import seal
from beam_entra.audit.store import FolderTrail, SegmentStore, TrailReader, find_trails
from beam_entra.audit.trail import SegmentWriter
from beam_entra.audit.verify import verify
from beam_entra.errors import AuditUnavailable

SEGMENT = "segment-10000000-0000-4000-8000-000000000001-00000.jsonl"


def test_is_both_protocols(tmp_path: Path) -> None:
    """The folder reads and stores, as the type checker sees it."""
    reader: TrailReader = FolderTrail(tmp_path)
    store: SegmentStore = FolderTrail(tmp_path)
    assert reader.names() == []
    store.create(SEGMENT)
    assert reader.names() == [SEGMENT]


def test_writes_seals_and_verifies(tmp_path: Path, trails: ModuleType) -> None:
    """A whole trail on the disk."""
    folder = FolderTrail(tmp_path / "jobs" / "1")
    writer = SegmentWriter(folder, trails.facts(), trails.Clock(), max_bytes=3000)
    for _ in range(20):
        writer.append(Denied, **trails.valid_facts()[Denied])
    writer.close()
    made = seal(folder, folder, job=trails.JOB, outcome="ok", error=None, clock=trails.Clock())
    summary = verify(FolderTrail(str(tmp_path / "jobs" / "1")), seal_digest=made.digest)
    assert summary.counts["denied"] == 20
    assert len(summary.segments) > 1


def test_append_is_idempotent_by_offset(tmp_path: Path) -> None:
    """The same bytes at the same offset again are a success; other bytes, or another offset, are somebody else's."""
    folder = FolderTrail(tmp_path)
    folder.create(SEGMENT)
    folder.append(SEGMENT, 0, b"one\n")
    folder.append(SEGMENT, 4, b"two\n")
    folder.append(SEGMENT, 4, b"two\n")
    assert folder.read(SEGMENT) == b"one\ntwo\n"
    for offset, data in ((4, b"2wo\n"), (0, b"one\n"), (9, b"x\n"), (4, b"two\nthree\n")):
        with pytest.raises(AuditUnavailable, match="ends at byte 8"):
            folder.append(SEGMENT, offset, data)
    assert folder.read(SEGMENT) == b"one\ntwo\n"


def test_create(tmp_path: Path) -> None:
    """An empty file that exists will do; one with content is not taken over."""
    folder = FolderTrail(tmp_path / "new" / "folder")
    folder.create(SEGMENT)
    folder.create(SEGMENT)
    folder.append(SEGMENT, 0, b"x\n")
    with pytest.raises(AuditUnavailable, match="not empty"):
        folder.create(SEGMENT)


def test_errors_of_the_disk_are_audit_errors(tmp_path: Path) -> None:
    """What goes wrong below is said in our words, with the path."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(AuditUnavailable, match="cannot create"):
        FolderTrail(tmp_path / "file").create(SEGMENT)
    with pytest.raises(AuditUnavailable, match="cannot append to"):
        FolderTrail(tmp_path).append(SEGMENT, 0, b"x")
    with pytest.raises(AuditUnavailable, match="cannot read") as caught:
        FolderTrail(tmp_path).read(SEGMENT)
    assert SEGMENT in caught.value.diagnosis.tried


def test_find_trails(tmp_path: Path) -> None:
    """A folder with a trail's files is a trail; otherwise the folders below it, at any depth, that have some."""
    for name in (f"b/{SEGMENT}", f"a/{SEAL_NAME}", f"team/c/{SEGMENT}", "notes/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = find_trails(FolderTrail(tmp_path))
    assert list(found) == ["a", "b", "team/c"]
    assert found["team/c"].names() == [SEGMENT]
    assert found["team/c"].read(SEGMENT) == b"team/c/" + SEGMENT.encode()
    assert list(find_trails(FolderTrail(tmp_path / "b"))) == [""]
    assert not find_trails(FolderTrail(tmp_path / "notes"))
    assert not find_trails(FolderTrail(tmp_path / "nowhere"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_names_are_files_only(tmp_path: Path) -> None:
    """Folders and pipes are not files of a trail."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert FolderTrail(tmp_path).names() == []
