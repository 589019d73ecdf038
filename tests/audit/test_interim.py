"""Interim seals: what stood while the job was running cannot be changed unnoticed, and making one costs what is new."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from beam_entra.audit import interim
from beam_entra.audit.interim import Interims, read_interims, seal_interim
from beam_entra.audit.record import SEAL_NAME, ZEROS, Denied, interim_name
from beam_entra.audit.seal import seal
from beam_entra.audit.store import FolderTrail, find_trails
from beam_entra.audit.verify import verify, verify_running
from beam_entra.errors import AuditError, AuditUnavailable, TrailBroken

Files = dict[str, bytes]
Change = Callable[[Any, Files], Files]


class Running:
    """A job that is running: two processes, of which the first has rolled its segment."""

    def __init__(self, trails: Any) -> None:
        self.trails, self.clock, self.store = trails, trails.Clock(), trails.MemoryTrail()
        rng = random.Random(0)  # noqa: S311  no secret is made from it
        self.first, self.second = (
            trails.Worker(rng, self.store, process, self.clock, max_bytes=3000) for process in trails.PROCESSES[:2]
        )

    def work(self, worker: Any, records: int = 3) -> None:
        """Some records that are durable."""
        for _ in range(records):
            worker.add(Denied).wait(10)

    def seal_interim(self, known: Interims | None = None) -> Interims:
        """An interim seal of what there is."""
        return seal_interim(self.store, self.store, job=self.trails.JOB, clock=self.clock, known=known)

    def end(self) -> Any:
        """The workers end, and the job is sealed."""
        self.first.writer.close()
        self.second.writer.close()
        return seal(self.store, self.store, job=self.trails.JOB, outcome="ok", error=None, clock=self.clock)


@pytest.fixture
def running(trails: ModuleType) -> Any:
    """It has three interim seals, and something that came after."""
    job = Running(trails)
    job.work(job.first, 15)
    job.seal_interim()
    job.work(job.second)
    job.seal_interim()
    job.work(job.first)
    job.seal_interim()
    job.work(job.second)
    yield job
    job.first.writer.close()
    job.second.writer.close()


def _line(files: Files, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[interim_name(number)])
    return found


def _segments(files: Files) -> list[str]:
    return sorted(name for name in files if name.startswith("segment-"))


def test_names_what_is_new_and_the_seal_before(running: Any) -> None:
    """The first names every segment, a later one those that began or grew; each has the digest of the one before."""
    files = running.store.files
    lines = [_line(files, number) for number in range(3)]
    names = _segments(files)
    listed = [[entry["segment"] for entry in line["segments"]] for line in lines]
    assert len(names) > 3, "it has rolled"
    assert listed[0] == [name for name in names if running.first.process in name][: len(listed[0])]
    assert listed[1] == [name for name in names if running.second.process in name]
    assert set(listed[2]) < {name for name in names if running.first.process in name}
    digests = [hashlib.sha256(files[interim_name(number)][:-1]).hexdigest() for number in range(3)]
    assert [(line["seq"], line["prev"]) for line in lines] == [(0, ZEROS), (1, digests[0]), (2, digests[1])]
    sealed = running.end()
    assert (sealed.record.seq, sealed.record.prev) == (3, digests[2])


def test_nothing_new_nothing_sealed(running: Any) -> None:
    """An idle job gets no more seals."""
    before = running.seal_interim()
    assert running.seal_interim().count == before.count == 4
    assert interim_name(4) not in running.store.files


def test_it_reads_what_is_new_alone(running: Any) -> None:
    """However long the job has run: the bytes since the last one, and no seal again that is known."""
    read: list[tuple[str, int]] = []

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(running.store, name)

        def read(self, name: str) -> bytes:
            read.append((name, -1))
            return running.store.read(name)  # type: ignore[no-any-return]  # the store is a fixture's

        def read_range(self, name: str, start: int, stop: int) -> bytes:
            read.append((name, stop - start))
            return running.store.read_range(name, start, stop)  # type: ignore[no-any-return]  # likewise

    trail: Any = Counting()
    stood = read_interims(running.store, running.store.sizes()).stands
    known = seal_interim(trail, running.store, job=running.trails.JOB, clock=running.clock)
    grown = next(name for name in _segments(running.store.files)[::-1] if name in stood)
    new_bytes = len(running.store.files[grown]) - stood[grown].bytes
    assert read[:3] == [(interim_name(number), -1) for number in range(3)]
    assert read[3:] == [(grown, new_bytes), (interim_name(3), len(running.store.files[interim_name(3)]))]
    del read[:]
    running.work(running.second)
    seal_interim(trail, running.store, job=running.trails.JOB, clock=running.clock, known=known)
    assert not [name for name, size in read if size < 0]


def test_a_running_trail_verifies_as_far_as_it_goes(running: Any) -> None:
    """What the last interim seal holds, and what lies after it; `verify` itself insists on a seal, and says so too."""
    summary = verify_running(running.store)
    assert (summary.interim_seals, summary.records - summary.sealed_records) == (3, 3)
    assert summary.interim_digest == read_interims(running.store, running.store.sizes()).last
    assert sum(segment.sealed.records for segment in summary.segments) == summary.records
    with pytest.raises(TrailBroken, match=r"rule 14: not sealed; seal-000002\.jsonl of .* holds, and 3 records came"):
        verify(running.store)
    running.end()
    with pytest.raises(TrailBroken, match="rule 14: the job is sealed, so it does not run"):
        verify_running(running.store)


def test_before_the_first_interim_seal(trails: ModuleType) -> None:
    """Of a job that has just begun nothing is held, and nothing is wrong."""
    job = Running(trails)
    assert verify_running(job.store).job == ""
    job.work(job.first)
    summary = verify_running(job.store)
    assert (summary.interim_seals, summary.interim_time, summary.sealed_records) == (0, None, 0)
    assert summary.records == 4
    with pytest.raises(TrailBroken, match="rule 14: not sealed; no interim seal either"):
        verify(job.store)
    with pytest.raises(TrailBroken, match="rule 16: there is none"):
        verify_running(job.store, seal_digest="ab" * 32)
    job.end()


def test_the_digest_of_any_seal_holds_what_stood_then(running: Any) -> None:
    """Kept elsewhere, it finds rewriting up to there; which seal it is of, the summary says."""
    digests = [hashlib.sha256(running.store.files[interim_name(number)][:-1]).hexdigest() for number in range(3)]
    assert verify_running(running.store, seal_digest=digests[2]).held_by == interim_name(2)
    assert verify_running(running.store, seal_digest=digests[0].upper()).held_by == interim_name(0)
    sealed = running.end()
    assert verify(running.store, seal_digest=sealed.digest).held_by == SEAL_NAME
    assert verify(running.store, seal_digest=digests[1]).held_by == interim_name(1)
    assert verify(running.store).held_by == ""

    def change(records: Any) -> None:
        found, at = running.trails.find(records, "denied")
        found[at]["reason"] = "made up"

    forged = running.trails.MemoryTrail(running.trails.rewritten(running.store.files, change))
    assert verify(forged).interim_seals == 0, "nothing in the folder tells"
    for digest in digests:
        with pytest.raises(TrailBroken, match="rule 16"):
            verify(forged, seal_digest=digest)


# ---------------------------------------------------------------- what is found


def _without(name: str) -> Change:
    return lambda trails, files: {other: data for other, data in files.items() if other != name}


def _edited(number: int, **changed: Any) -> Change:
    return lambda trails, files: files | {interim_name(number): trails.dump(_line(files, number) | changed) + b"\n"}


def _with_entries(number: int, change: Callable[[list[Any]], list[Any]]) -> Change:
    return lambda trails, files: _edited(number, segments=change(_line(files, number)["segments"]))(trails, files)


def _swapped(trails: Any, files: Files) -> Files:
    one, two = interim_name(0), interim_name(1)
    return files | {one: files[two], two: files[one]}


def _last_line_gone(trails: Any, files: Files) -> Files:
    """Of what the last interim seal holds; what came after is gone, too."""
    name = _line(files, 2)["segments"][-1]["segment"]
    kept = _line(files, 2)["segments"][-1]["records"] - 1
    return files | {name: b"".join(files[name].splitlines(keepends=True)[:kept])}


def _chained_again(trails: Any, files: Files) -> Files:
    """A sealed record says something else, and every line after it is chained anew."""
    records = trails.parsed(files)
    found, at = trails.find(records, "denied")
    found[at]["reason"] = "made up"
    return files | trails.rechained(records)  # type: ignore[no-any-return]  # trails is a fixture


def _whole_segment_gone(trails: Any, files: Files) -> Files:
    """The second process was never there."""
    gone = [name for name in _segments(files) if trails.PROCESSES[1] in name]
    return {name: data for name, data in files.items() if name not in gone}


def _middle_segment_gone(trails: Any, files: Files) -> Files:
    return _without(_segments(files)[1])(trails, files)


def _tail_of_a_middle_segment_gone(trails: Any, files: Files) -> Files:
    name = _segments(files)[1]
    return files | {name: b"".join(files[name].splitlines(keepends=True)[:-1])}


def _segments_swapped(trails: Any, files: Files) -> Files:
    one, two = _segments(files)[:2]
    return files | {one: files[two], two: files[one]}


def _emptied(trails: Any, files: Files) -> Files:
    return files | {next(name for name in _segments(files) if trails.PROCESSES[1] in name): b""}


CHANGES: dict[str, tuple[str, Change]] = {
    "an interim seal in the middle is missing": ("18", _without(interim_name(1))),
    "the first is missing": ("18", _without(interim_name(0))),
    "the last has another name": (
        "18",
        lambda trails, files: _without(interim_name(2))(trails, files) | {interim_name(5): files[interim_name(2)]},
    ),
    "one is empty": ("18", lambda trails, files: files | {interim_name(1): b""}),
    "two are swapped": ("18", _swapped),
    "one has two lines": ("18", lambda trails, files: files | {interim_name(1): files[interim_name(1)] * 2}),
    "one is cut short": ("18", lambda trails, files: files | {interim_name(1): files[interim_name(1)][:-1]}),
    "one is no JSON": ("18", lambda trails, files: files | {interim_name(1): b"sealed\n"}),
    "one is another record": (
        "18",
        lambda trails, files: files | {interim_name(0): files[min(_segments(files))].splitlines(keepends=True)[0]},
    ),
    "one is of another time": ("18", _edited(1, time="2031-01-31T09:30:00.000000Z")),
    "the last is of another job": ("18", _edited(2, job="invoices")),
    "the last is of a bundle": ("18", _edited(2, bundle="f0000000-0000-4000-8000-00000000000f")),
    "the last has another place": ("18", _edited(2, seq=1)),
    "the last continues another": ("18", _edited(2, prev="ab" * 32)),
    "the last lists a segment twice": ("18", _with_entries(2, lambda entries: [*entries, entries[-1]])),
    "the last lists what has not grown": ("18", lambda trails, files: _with_entries(
        2, lambda entries: sorted([*entries, _line(files, 1)["segments"][0]], key=lambda entry: entry["segment"])
    )(trails, files)),
    "the last has another length": ("19", _with_entries(2, lambda e: [*e[:-1], e[-1] | {"bytes": e[-1]["bytes"] + 1}])),
    "the last has another head": ("19", _with_entries(2, lambda e: [*e[:-1], e[-1] | {"head": "ab" * 32}])),
    "the last has another count": (
        "19",
        _with_entries(2, lambda e: [*e[:-1], e[-1] | {"records": e[-1]["records"] + 1}]),
    ),
    "the last has other bundles": ("19", _with_entries(2, lambda e: [*e[:-1], e[-1] | {"opened_bundles": 9}])),
    "a sealed line is gone from an end": ("19", _last_line_gone),
    "sealed lines were changed and chained again": ("19", _chained_again),
    "a process is gone": ("19", _whole_segment_gone),
    "a segment was emptied": ("19", _emptied),
    "a segment in the middle is gone": ("6", _middle_segment_gone),
    "the end of a segment in the middle is gone": ("6|19", _tail_of_a_middle_segment_gone),
    "two segments are swapped": ("4|5|6", _segments_swapped),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_found_while_the_job_runs(running: Any, name: str) -> None:
    """No seal is there yet; `verify` names the change, not that the seal is missing; nothing can be sealed over it."""
    rules, change = CHANGES[name]
    changed = running.trails.MemoryTrail(change(running.trails, running.store.files))
    says = rf"^\S+ line \d+: rule ({rules}): "
    for check in (verify_running, verify):
        with pytest.raises(TrailBroken, match=says):
            check(changed)
    with pytest.raises(TrailBroken, match=says):
        seal(changed, changed, job=running.trails.JOB, outcome="ok", error=None, clock=running.clock)
    assert SEAL_NAME not in changed.files


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_found_after_the_job(running: Any, name: str) -> None:
    """And when it has ended, and is sealed."""
    running.end()
    changed = running.trails.MemoryTrail(CHANGES[name][1](running.trails, running.store.files))
    with pytest.raises(TrailBroken, match=r"^\S+ line \d+: rule \d+: "):
        verify(changed)


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_interim_seals_that_are_gone_are_missed_by_the_seal(running: Any, gone: int) -> None:
    """Whoever removes the last ones, or all of them, leaves a seal that continues what is not there."""
    running.end()
    lost = {interim_name(number) for number in range(3)[-gone:]}
    files = {name: data for name, data in running.store.files.items() if name not in lost}
    with pytest.raises(TrailBroken, match="rule 14: it does not continue the interim seals"):
        verify(running.trails.MemoryTrail(files))


def test_what_no_seal_holds_can_be_cut_off(running: Any) -> None:
    """Honest limit: the end of a running trail after its last interim seal is held by nothing."""
    name = max(_segments(running.store.files))
    lines = running.store.files[name].splitlines(keepends=True)
    files = running.store.files | {name: b"".join(lines[:-3])}
    assert verify_running(running.trails.MemoryTrail(files)).records == verify_running(running.store).records - 3
    running.seal_interim()
    with pytest.raises(TrailBroken, match="rule 19"):
        verify_running(running.trails.MemoryTrail(running.store.files | {name: b"".join(lines[:-3])}))


# ---------------------------------------------------------------- what is not sealed


def _replaced(old: bytes, new: bytes) -> Change:
    def change(trails: Any, files: Files) -> Files:
        name = max(_segments(files))
        begin, _, end = files[name].rpartition(b'{"seq"')
        assert old in b'{"seq"' + end
        return files | {name: begin + (b'{"seq"' + end).replace(old, new, 1)}

    return change


UNSEALABLE: dict[str, tuple[int, Change]] = {
    "a new line that is no JSON": (2, _replaced(b'{"seq"', b'"seq"')),
    "a new line that is no object": (
        2,
        lambda trails, files: files | {max(_segments(files)): files[max(files)] + b"[]\n"},
    ),
    "a new line that is not complete": (2, _replaced(b"\n", b"")),
    "a new line that is nested too deep": (
        2,
        lambda trails, files: files | {max(_segments(files)): files[max(files)] + b"[" * 100_000 + b"\n"},
    ),
    "a new line out of turn": (3, _replaced(b'{"seq":', b'{"seq":1')),
    "a line before it that was changed": (4, _replaced(b'"prev":"', b'"prev":"00')),
    "a segment of another job": (
        5,
        lambda trails, files: files
        | trails.rechained(
            {"segment-f0000000-0000-4000-8000-00000000000f-00000.jsonl": [{"kind": "segment_opened", "job": "x"}]}
        ),
    ),
    "a segment that begins with something else": (
        5,
        lambda trails, files: files
        | trails.rechained(
            {"segment-f0000000-0000-4000-8000-00000000000f-00000.jsonl": [{"kind": "x", "job": trails.JOB}]}
        ),
    ),
    "a segment that continues nothing": (
        6,
        lambda trails, files: files | {"segment-f0000000-0000-4000-8000-00000000000f-00001.jsonl": b"{}\n"},
    ),
    "a segment that is shorter than it was": (19, _emptied),
    "a segment that is gone": (19, _whole_segment_gone),
    "a file that is no segment": (1, lambda trails, files: files | {"notes.txt": b"x"}),
}


@pytest.mark.parametrize("name", UNSEALABLE)
def test_what_does_not_continue_is_not_sealed(running: Any, name: str) -> None:
    """A sealer that finds the trail changed says where, and seals nothing."""
    rule, change = UNSEALABLE[name]
    running.store.files = change(running.trails, running.store.files)
    with pytest.raises(TrailBroken, match=rf"^\S+ line \d+: rule {rule}: "):
        running.seal_interim()
    assert interim_name(3) not in running.store.files


def test_after_the_end_there_is_no_interim_seal(running: Any) -> None:
    """The seal is the last word."""
    running.end()
    with pytest.raises(AuditError, match="sealed already"):
        running.seal_interim()
    verify(running.store)


def test_an_interim_seal_of_another_job(running: Any) -> None:
    """Neither the job's own trail nor its interim seals are taken for another's."""
    with pytest.raises(TrailBroken, match="rule 18: it is of job"):
        seal(running.store, running.store, job="invoices", outcome="ok", error=None, clock=running.clock)
    with pytest.raises(TrailBroken, match="rule 18: it is of job"):
        seal_interim(running.store, running.store, job="invoices", clock=running.clock)


def test_a_job_of_no_name(trails: ModuleType) -> None:
    """An interim seal is a record like any other: what it may not say is not written."""
    store = trails.MemoryTrail({f"segment-{trails.PROCESSES[0]}-00000.jsonl": b""})
    with pytest.raises(AuditError, match="not a valid interim seal"):
        seal_interim(store, store, job="in voices", clock=trails.Clock())
    assert len(store.files) == 1


def test_a_sealer_that_died_is_followed_by_the_next(running: Any) -> None:
    """It had made the file and not written it: the next seal has its name."""
    running.store.create(interim_name(3))
    assert verify_running(running.store).interim_seals == 3
    assert running.seal_interim().count == 4
    running.store.create(interim_name(4))
    running.end()
    assert verify(running.store).interim_seals == 4


@pytest.mark.parametrize("told", [True, False], ids=["the store says so", "the store takes it for its own attempt"])
def test_two_sealers_at_once(running: Any, told: bool) -> None:
    """One wins, the other is told, and goes on from there the next time."""
    store, other = running.store, running.trails.Clock()

    class Slow:
        def create(self, name: str) -> None:
            seal_interim(store, store, job=running.trails.JOB, clock=other)  # the other one was faster
            store.create(name)

        def append(self, name: str, offset: int, data: bytes) -> None:
            if told:
                store.append(name, offset, data)

    known = read_interims(store, store.sizes())
    with pytest.raises(AuditUnavailable):
        seal_interim(store, Slow(), job=running.trails.JOB, clock=running.clock, known=known)
    assert verify_running(store).interim_seals == 4
    running.work(running.first)
    assert running.seal_interim(known).count == 5
    running.end()
    assert verify(store).interim_seals == 5


def test_one_that_is_made_while_the_job_is_sealed(running: Any) -> None:
    """From cron, say, beside the launcher: it had looked before the seal was there. It says what the seal holds."""
    store = running.store

    class Overtaken:
        append = staticmethod(store.append)

        def create(self, name: str) -> None:
            running.seal_interim()
            store.create(name)

    running.first.writer.close()
    running.second.writer.close()
    sealed = seal(store, Overtaken(), job=running.trails.JOB, outcome="ok", error=None, clock=running.clock)
    summary = verify(store, seal_digest=sealed.digest)
    assert (summary.seal.seq, summary.interim_seals, summary.held_by) == (3, 4, SEAL_NAME)
    for name in (interim_name(0), interim_name(2)):
        with pytest.raises(TrailBroken):
            verify(running.trails.MemoryTrail(_without(name)(running.trails, store.files)))
    for number in (2, 3):
        with pytest.raises(TrailBroken, match=r"rule (14|18)"):
            verify(running.trails.MemoryTrail(_edited(number, prev="ab" * 32)(running.trails, store.files)))
    longer = _with_entries(3, lambda e: [*e[:-1], e[-1] | {"records": e[-1]["records"] + 1}])
    with pytest.raises(TrailBroken, match="rule 19"):
        verify(running.trails.MemoryTrail(longer(running.trails, store.files)))


def _last_seal_gone(running: Any) -> Files:
    """As if what came after the third interim seal, and the fourth itself, had never been."""
    files = running.store.files
    seals = [interim_name(number) for number in range(3)]
    stands = read_interims(running.store, {name: running.store.sizes()[name] for name in seals}).stands
    return {name: files[name] for name in seals} | {name: files[name][: stands[name].bytes] for name in stands}


def _last_seal_other(running: Any) -> Files:
    """The fourth interim seal is another one, after which a fifth came."""
    running.store.files = _last_seal_gone(running)
    for number in (7, 8):
        running.store.files[f"segment-{number}0000000-0000-4000-8000-000000000000-00000.jsonl"] = b""
        running.seal_interim()
    files: Files = running.store.files
    return files


@pytest.mark.parametrize("change", [_last_seal_gone, _last_seal_other], ids=["gone", "replaced"])
def test_who_has_made_a_seal_misses_it(running: Any, change: Callable[[Any], Files]) -> None:
    """Nothing in the folder tells any more that there was one; but its sealer knows, and seals nothing else."""
    running.first.writer.close()
    running.second.writer.close()
    known = running.seal_interim()
    running.store.files = before = change(running)
    verify_running(running.trails.MemoryTrail(before))
    with pytest.raises(TrailBroken, match=r"seal-000003\.jsonl line 1: rule 18"):
        running.seal_interim(known)
    facts = {"job": running.trails.JOB, "outcome": "ok", "error": None, "clock": running.clock}
    with pytest.raises(TrailBroken, match=r"seal-000003\.jsonl line 1: rule 18"):
        seal(running.store, running.store, known=known, **facts)
    assert running.store.files == before


def test_there_is_a_last_one(running: Any) -> None:
    """After a million of them the trail stays as it is: a file with a longer name would be none of its."""
    known = read_interims(running.store, running.store.sizes())
    assert running.seal_interim(known).count == 4
    running.work(running.first)
    files = dict(running.store.files)
    known.count = 1_000_000
    with pytest.raises(AuditError, match="no name for another"):
        interim._write(running.store, running.store, known, (), job=running.trails.JOB, time=running.clock())
    assert running.store.files == files


def test_very_many_segments_are_sealed_in_several(trails: ModuleType) -> None:
    """Each goes in one append, so that none can be there in part."""
    store = trails.MemoryTrail()
    for number in range(interim._SEGMENTS_A_SEAL + 1):
        store.files[f"segment-{number:08x}-0000-4000-8000-000000000000-00000.jsonl"] = b""
    made = seal_interim(store, store, job=trails.JOB, clock=trails.Clock())
    assert made.count == 2
    assert [len(_line(store.files, number)["segments"]) for number in range(2)] == [interim._SEGMENTS_A_SEAL, 1]
    assert verify_running(store).interim_seals == 2


def test_who_cannot_write_one_reads_no_more(running: Any) -> None:
    """What was read ahead for the next seal is given up, though somebody keeps the error."""

    class Full:
        create = staticmethod(running.store.create)

        def append(self, name: str, offset: int, data: bytes) -> None:
            raise AuditUnavailable("no more room")

    before = set(threading.enumerate())
    with pytest.raises(AuditUnavailable, match="no more room") as kept:
        seal_interim(running.store, Full(), job=running.trails.JOB, clock=running.clock, segments_a_seal=1)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert set(threading.enumerate()) <= before, kept


def test_in_a_folder(tmp_path: Path, trails: ModuleType) -> None:
    """On the disk as in Storage; a folder of nothing but interim seals is a trail that lost its segments."""
    store, _ = trails.sample()
    folder = FolderTrail(tmp_path)
    for name in _segments(store.files):
        folder.create(name)
        folder.append(name, 0, store.files[name])
    seal_interim(folder, folder, job=trails.JOB, clock=trails.Clock())
    assert verify_running(folder).sealed_records == len(store.lines()) - 1
    for name in _segments(store.files):
        (tmp_path / name).unlink()
    assert list(find_trails(folder)) == [""]
    with pytest.raises(TrailBroken, match=r"rule 19: seal-000000\.jsonl names it, and it is missing"):
        verify_running(folder)
    with pytest.raises(AuditUnavailable, match="cannot read"):
        folder.read_range("segment-x", 0, 1)
