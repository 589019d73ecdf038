"""Segments that several processes check: what is found is the same as one after the other, and so is what is wrong."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beam_entra.audit import Segments, checking
from beam_entra.audit.checking import check_segments
from beam_entra.audit.record import Denied
from beam_entra.audit.segments import Mark
from beam_entra.audit.trail import SegmentWriter
from beam_entra.cpus import cpus
from beam_entra.errors import AuditUnavailable, TrailBroken

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(trails: ModuleType) -> Files:
    """Five processes: one that died at once, two that did things and of which one rolled, and two that were refused."""
    store, _ = trails.sample()
    for number in (4, 5):
        process = f"{number}0000000-0000-4000-8000-00000000000{number}"
        writer = SegmentWriter(store, trails.facts(), trails.Clock(), process=process)
        writer.append(Denied, **trails.valid_facts()[Denied])
        writer.close()
    store.files["segment-00000000-0000-4000-8000-000000000000-00000.jsonl"] = b""
    return {name: data for name, data in sorted(store.files.items()) if name.startswith("segment-")}


def outcome(trails: ModuleType, files: Files, **how: Any) -> Segments | str:
    """What is found, or what is wrong."""
    try:
        return check_segments(trails.MemoryTrail(files), **how)
    except TrailBroken as broken:
        return str(broken)


def segment(files: Files, at: int) -> str:
    """The name of one of the segments."""
    return list(files)[at]


def edited(*places: int) -> Callable[[Files], Files]:
    """The last line of these segments is of another time."""

    def change(files: Files) -> Files:
        names = [segment(files, place) for place in places]
        return files | {name: files[name][::-1].replace(b'"emit"', b'"emix"', 1)[::-1] for name in names}

    return change


def gone(place: int) -> Callable[[Files], Files]:
    """A segment is missing."""
    return lambda files: {name: data for name, data in files.items() if name != segment(files, place)}


def of_another_job(place: int) -> Callable[[Files], Files]:
    """A process whose segment says that it is of another job, and hangs together."""
    return lambda files: (
        files | {segment(files, place): files[segment(files, place)].replace(b"orders-2030", b"other-1999")}
    )


CHANGES: dict[str, Callable[[Files], Files]] = {
    "whole": lambda files: files,
    "of two the first": edited(-1, -2),
    "one that continues another": gone(2),
    "another job": of_another_job(-1),
    "another job first": of_another_job(1),
    "no record at all": lambda files: {segment(files, 0): b"", segment(files, -1): b""},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_found_as_one_after_the_other(trails: ModuleType, files: Files, change: Callable[[Files], Files]) -> None:
    """Segments, counts, sources, in the same order; or the same first error, by segment, line and rule."""
    changed = change(files)
    alone = outcome(trails, changed, processes=1)
    apart = outcome(trails, changed, processes=2)
    assert apart == alone
    assert isinstance(alone, str) is (change not in {CHANGES["whole"], CHANGES["no record at all"]})


def test_what_interim_seals_say_is_held_against_them(trails: ModuleType, files: Files) -> None:
    """By whichever process has the segment; and one that they name and that is gone is missed in the end."""
    found = check_segments(trails.MemoryTrail(files), processes=2)
    stood = [each.sealed for each in found.segments if each.sealed.records]
    marks = {
        each.segment: [
            Mark("seal-000000.jsonl", each.records, each.bytes, each.head, each.opened_bundles, each.closed_bundles)
        ]
        for each in stood
    }
    assert outcome(trails, files, marks=marks, processes=2) == found
    for wrong in (
        marks | {segment(files, -1): [Mark("seal-000000.jsonl", 1, 5, "0" * 64, 0, 0)]},
        marks | {segment(files, -1).replace("5", "6"): marks[segment(files, -1)]},
    ):
        alone = outcome(trails, files, marks=wrong, processes=1)
        assert "rule 19" in str(alone)
        assert outcome(trails, files, marks=wrong, processes=2) == alone


def test_a_segment_that_cannot_be_read(trails: ModuleType, files: Files) -> None:
    """The error of the first, as it is, though others fail before; no process is left."""

    class Trail(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def read(self, name: str) -> bytes:
            if name >= segment(files, 4):
                raise AuditUnavailable(name)
            return self.files[name]  # type: ignore[no-any-return]

    with pytest.raises(AuditUnavailable, match=segment(files, 4)):
        check_segments(Trail(files), processes=2)
    assert children() == []


def test_what_a_process_was_to_do_that_is_killed_is_done(
    trails: ModuleType, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the kernel, for want of memory, say: a trail goes unsealed for no such reason. It has no secrets."""
    monkeypatch.setenv("CLIENT_SECRET", secret := str(uuid.uuid4()))
    killed: set[int] = set()

    class Trail(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def read(self, name: str) -> bytes:
            if name == segment(files, 3):
                for child in set(children()) - killed:
                    assert secret.encode() not in Path(f"/proc/{child}/environ").read_bytes()
                    killed.add(child)
                    os.kill(child, signal.SIGKILL)
            return self.files[name]  # type: ignore[no-any-return]

    assert check_segments(Trail(files), processes=2) == check_segments(trails.MemoryTrail(files), processes=1)
    assert len(killed) == 2
    assert "has ended" in caplog.text
    assert children() == []


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat", "/bin/echo", "/nowhere/python", ""])
def test_where_python_is_not_to_be_had_this_process_checks(
    trails: ModuleType, files: Files, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """Embedded in another program, that is what `sys.executable` names; or it is gone, or no process may be begun."""
    monkeypatch.setattr(sys, "executable", program)
    for change in CHANGES.values():
        changed = change(files)
        assert outcome(trails, changed, processes=2) == outcome(trails, changed, processes=1)


def test_a_program_made_of_python_is_not_run_once_more(
    trails: ModuleType, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It would do its work again, and not check."""
    program, ran = tmp_path / "program", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\n: > {ran}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    check_segments(trails.MemoryTrail(files), processes=2)
    assert not ran.exists()


@pytest.mark.parametrize("first_bytes", [None, 10], ids=["a line as it is", "a very long one"])
def test_of_the_first_segment_the_first_line_is_read_before(
    trails: ModuleType, files: Files, monkeypatch: pytest.MonkeyPatch, first_bytes: int | None
) -> None:
    """By its length at most, where that may be had; each segment is read once. One with a longer line is read whole."""
    asked: list[str | tuple[str, int, int]] = []

    class Trail(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def read(self, name: str) -> bytes:
            asked.append(name)
            return self.files[name]  # type: ignore[no-any-return]

        def read_range(self, name: str, start: int, stop: int) -> bytes:
            asked.append((name, start, stop))
            return self.files[name][start:stop]  # type: ignore[no-any-return]

    if first_bytes is not None:
        monkeypatch.setattr(checking, "_FIRST_BYTES", first_bytes)
    assert check_segments(Trail(files), processes=2) == check_segments(trails.MemoryTrail(files), processes=1)
    first = segment(files, 1)
    assert asked[0] == (first, 0, first_bytes or len(files[first]))
    assert sorted(map(str, asked[1:])) == sorted([*files] if first_bytes is None else [*files, first])


def test_no_more_processes_than_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container on a large machine sees all its CPUs, and has a share of a few."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cpus(checking._MOST_CPUS) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cpus(checking._MOST_CPUS) == 2


def test_a_small_trail_is_checked_at_once(trails: ModuleType, files: Files) -> None:
    """To begin a process takes longer than to check some thousand records."""

    class Trail(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def read(self, name: str) -> bytes:
            assert children() == []
            return self.files[name]  # type: ignore[no-any-return]

    check_segments(Trail(files))


def test_a_large_one_by_as_many_as_there_are_cpus(trails: ModuleType, files: Files) -> None:
    """Where a machine has but one, by this process."""
    seen: set[int] = set()

    class Trail(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def read(self, name: str) -> bytes:
            seen.update(children())
            return self.files[name]  # type: ignore[no-any-return]

        def sizes(self) -> dict[str, int]:
            return {name: len(data) << 14 for name, data in self.files.items()}

    assert check_segments(Trail(files)) == check_segments(trails.MemoryTrail(files), processes=1)
    many = cpus(checking._MOST_CPUS)
    assert len(seen) == (0 if many == 1 else min(many, 5))


def children() -> list[int]:
    """The processes that check for this one."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            found += [int(child) for child in (thread / "children").read_text().split()]
    return [child for child in found if b"serve()" in command_of(child)]


def command_of(process: int) -> bytes:
    """Its command line; none when it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""
