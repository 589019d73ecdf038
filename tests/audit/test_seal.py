"""Sealing: verified first, written once, found again."""

from __future__ import annotations

import hashlib
import json
from types import ModuleType
from typing import Any

import pytest

from beam_entra.audit.interim import seal_interim
from beam_entra.audit.record import SEAL_NAME, Denied
from beam_entra.audit.seal import seal
from beam_entra.audit.store import APPEND_BYTES
from beam_entra.audit.trail import SegmentWriter
from beam_entra.audit.verify import verify
from beam_entra.errors import AuditError, AuditUnavailable, TrailBroken


@pytest.fixture
def unsealed(trails: ModuleType) -> Any:
    """One closed segment."""
    store = trails.MemoryTrail()
    writer = SegmentWriter(store, trails.facts(), trails.Clock())
    writer.append(Denied, **trails.valid_facts()[Denied])
    writer.close()
    return store


def _seal(trails: ModuleType, store: Any, **changed: Any) -> Any:
    arguments = {"job": trails.JOB, "outcome": "failed", "error": "a worker was refused", "clock": trails.Clock()}
    return seal(store, store, **(arguments | changed))


def test_seals(trails: ModuleType, unsealed: Any) -> None:
    """One line that names the job, its outcome, each segment; the digest is the line's SHA-256."""
    made = _seal(trails, unsealed)
    data = unsealed.files[SEAL_NAME]
    line = json.loads(data)
    assert data.count(b"\n") == 1
    assert (line["job"], line["outcome"], line["error"]) == (trails.JOB, "failed", "a worker was refused")
    assert line["counts"] == {"denied": 1, "segment_opened": 1}
    assert made.digest == hashlib.sha256(data[:-1]).hexdigest()
    assert verify(unsealed, seal_digest=made.digest).seal == made.record


def test_a_job_that_did_nothing(trails: ModuleType) -> None:
    """No segment at all is a sound trail: nothing was accessed."""
    store = trails.MemoryTrail()
    _seal(trails, store, outcome="ok", error=None)
    assert verify(store).records == 0


def test_does_not_seal_a_broken_trail(trails: ModuleType, unsealed: Any) -> None:
    """A seal must not bless what does not verify."""
    name = unsealed.names()[0]
    unsealed.files[name] = unsealed.files[name].replace(b"no grant", b"a grant")[:-1]
    with pytest.raises(TrailBroken, match="rule 2"):
        _seal(trails, unsealed)
    assert SEAL_NAME not in unsealed.files


def test_does_not_seal_another_job(trails: ModuleType, unsealed: Any) -> None:
    """Every segment must be of the job that is sealed."""
    with pytest.raises(TrailBroken, match="rule 5"):
        _seal(trails, unsealed, job="invoices")


def test_seals_once(trails: ModuleType, unsealed: Any) -> None:
    """A second seal is refused; a sealing that was interrupted before it wrote may be repeated."""
    unsealed.create(SEAL_NAME)
    _seal(trails, unsealed)
    before = dict(unsealed.files)
    with pytest.raises(AuditError, match="sealed already"):
        _seal(trails, unsealed)
    assert unsealed.files == before


@pytest.mark.parametrize(
    "wrong", [{"outcome": "great"}, {"error": "got sv=1&sig=c2lnbmF0dXJl"}], ids=["an unknown outcome", "a secret"]
)
def test_refuses_wrong_arguments(trails: ModuleType, unsealed: Any, wrong: dict[str, str]) -> None:
    """The seal is a record like any other; nothing is written, and the value is not quoted."""
    with pytest.raises(AuditError, match="not a valid seal") as caught:
        _seal(trails, unsealed, **wrong)
    assert "c2lnbmF0dXJl" not in str(caught.value)
    assert SEAL_NAME not in unsealed.files


def test_store_that_fails(trails: ModuleType, unsealed: Any) -> None:
    """A seal that cannot be written is the caller's to know."""
    unsealed.failure = AuditUnavailable("no room")
    with pytest.raises(AuditUnavailable, match="no room"):
        _seal(trails, unsealed)


class Killed(BaseException):
    """What a sealer dies of."""


def test_a_long_seal_whose_writer_dies_is_ended_by_the_next(trails: ModuleType) -> None:
    """A job of very many workers has one that is longer than an append takes: whoever ends it writes the rest."""

    class Dying(trails.MemoryTrail):  # type: ignore[misc, name-defined]  # the fixture's module
        def append(self, name: str, offset_bytes: int, data: bytes) -> None:
            if self.files[name]:
                raise Killed
            super().append(name, offset_bytes, data)

    names = (f"segment-{number:08x}-0000-4000-8000-000000000000-00000.jsonl" for number in range(APPEND_BYTES // 200))
    store = Dying(dict.fromkeys(names, b""))
    with pytest.raises(Killed):
        _seal(trails, store, outcome="ok", error='the disk, ,"segments":[ said "no"')
    assert len(store.files[SEAL_NAME]) == APPEND_BYTES
    again = trails.MemoryTrail(store.files)
    made = _seal(trails, again, outcome="late", error=None)
    assert [(name, len(data)) for _, name, data in again.calls] == [
        (SEAL_NAME, len(again.files[SEAL_NAME]) - APPEND_BYTES)
    ]
    assert again.files[SEAL_NAME].startswith(store.files[SEAL_NAME])
    assert again.files[SEAL_NAME] == made.record.line() + b"\n"
    assert (made.record.outcome, made.record.error) == ("ok", 'the disk, ,"segments":[ said "no"')


def test_what_was_begun_is_no_seal(trails: ModuleType, unsealed: Any) -> None:
    """Who verifies is told what to do; nobody seals it on the way, or once more when it has been ended."""
    _seal(trails, unsealed)
    unsealed.files[SEAL_NAME] = unsealed.files[SEAL_NAME][:-30]
    with pytest.raises(TrailBroken, match="rule 14: its line does not end") as caught:
        verify(unsealed)
    assert "beam-entra audit seal" in caught.value.hint
    with pytest.raises(AuditError, match="sealed already"):
        seal_interim(unsealed, unsealed, job=trails.JOB, clock=trails.Clock())
    made = _seal(trails, unsealed, outcome="late", error=None)
    assert verify(unsealed, seal_digest=made.digest).seal == made.record
    with pytest.raises(AuditError, match="sealed already"):
        _seal(trails, unsealed, outcome="late", error=None)


def test_a_seal_that_was_not_begun_is_made(trails: ModuleType, unsealed: Any) -> None:
    """Killed between making the file and the first append: then nothing says how the job ended."""
    unsealed.create(SEAL_NAME)
    assert _seal(trails, unsealed, outcome="late", error=None).record.outcome == "late"


_BEGINNING = b'{"seq":0,"prev":"' + b"0" * 64 + b'","time":"2030-01-31T09:30:00.001000Z","kind":"sealed","bundle":null,'
_BEGINNING += b'"job":"orders-2030-01-31","outcome":"ok","error":null,"segments":['


@pytest.mark.parametrize(
    ("begun", "says"),
    [
        (b"{", "not how a seal begins"),
        (b"x" * 100, "not how a seal begins"),
        (_BEGINNING[:-1], "not how a seal begins"),
        (_BEGINNING.replace(b'"ok"', b'"great"'), "not how a seal begins"),
        (_BEGINNING.replace(b"2030-01-31T", b"2030-41-31T"), "not how a seal begins"),
        (_BEGINNING.replace(b'"seq":0', b'"seq":1'), "not continue the interim seals"),
        (_BEGINNING.replace(b"orders-", b"others-"), "not for the segments that are there now"),
        (_BEGINNING + b'{"segment":"segment-x', "not for the segments that are there now"),
    ],
)
def test_a_beginning_that_fits_nothing_is_not_ended(trails: ModuleType, unsealed: Any, begun: bytes, says: str) -> None:
    """Another job's, of other segments, or no seal at all: it is said, and nothing is added."""
    unsealed.files[SEAL_NAME] = begun
    before = dict(unsealed.files)
    with pytest.raises(TrailBroken, match=says):
        _seal(trails, unsealed)
    assert unsealed.files == before


@pytest.mark.parametrize("length", [len(_BEGINNING), len(_BEGINNING) + 40, -2, -1])
def test_wherever_it_ends_it_is_ended(trails: ModuleType, unsealed: Any, length: int) -> None:
    """In the list of segments, after the last brace, or where nothing but the newline is missing."""
    whole = trails.MemoryTrail(unsealed.files)
    made = _seal(trails, whole, outcome="ok", error=None)
    unsealed.files[SEAL_NAME] = whole.files[SEAL_NAME][:length]
    assert _seal(trails, unsealed, outcome="late", error=None) == made
    assert unsealed.files == whole.files


def test_an_interim_seal_that_came_after_it_was_begun(trails: ModuleType, unsealed: Any) -> None:
    """One that was on its way then stands behind it: the seal goes on as it began."""
    whole = trails.MemoryTrail(unsealed.files)
    _seal(trails, whole, outcome="ok", error=None)
    seal_interim(unsealed, unsealed, job=trails.JOB, clock=trails.Clock())
    unsealed.files[SEAL_NAME] = whole.files[SEAL_NAME][:-30]
    made = _seal(trails, unsealed, outcome="late", error=None)
    assert (made.record.seq, unsealed.files[SEAL_NAME]) == (0, whole.files[SEAL_NAME])
    assert verify(unsealed).interim_seals == 1
