"""Sealing: verified first, written once, found again."""

from __future__ import annotations

import hashlib
import json
from types import ModuleType
from typing import Any

import pytest

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


def test_long_seal_is_written_in_parts(trails: ModuleType) -> None:
    """A job of very many workers has a seal longer than one append takes."""
    store = trails.MemoryTrail()
    count = APPEND_BYTES // 150
    for number in range(count):
        store.files[f"segment-{number:08x}-0000-4000-8000-000000000000-00000.jsonl"] = b""
    made = _seal(trails, store)
    sizes = [len(data) for verb, _, data in store.calls if verb == "append"]
    assert len(sizes) == 2
    assert max(sizes) == APPEND_BYTES
    assert verify(store, seal_digest=made.digest).records == 0
