"""Audit segments in Storage: each append is there once, in its place, or the audit is unavailable."""

from __future__ import annotations

import pytest

from beam_entra.errors import AuditUnavailable, StorageError
from beam_entra.paths import BlobPath
from beam_entra.storage import AppendBlobSegments
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import Desk

APPEND, CREATE = matching("AppendBlock"), matching("PutBlob")


@pytest.fixture
def store(desk: Desk) -> AppendBlobSegments:
    """A store below `job/`, with the SAS that a worker has: create and append on this one blob."""
    folder = BlobPath(account="contosolake", container=desk.container.name, name="job/")
    return AppendBlobSegments(desk.service, folder, lambda path: desk.may(path.name, "ac")())


def content(desk: Desk) -> bytes:
    """What the segment holds."""
    return desk.container.download("job/s.jsonl")


def test_appends_follow_one_another(desk, store):
    """A segment is an append blob that grows by what is appended."""
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    store.append("s.jsonl", 4, b"two\n")
    assert content(desk) == b"one\ntwo\n"


@pytest.mark.parametrize("fault", ["lose_answer", "reset", "busy"])
def test_an_append_is_there_once(desk, store, fault):
    """Whether or not the attempt before had done it, the bytes are there once."""
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    if fault == "busy":
        desk.cloud.proxy.respond(503, "ServerBusy", where=APPEND, times=2)
    else:
        getattr(desk.cloud.proxy, fault)(where=APPEND, times=2)
    store.append("s.jsonl", 4, b"two\n")
    store.append("s.jsonl", 8, b"three\n")
    assert content(desk) == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("fault", ["lose_answer", "reset", "busy"])
def test_a_segment_is_created_once(desk, store, fault):
    """A retried creation does not empty a segment, and is no error."""
    if fault == "busy":
        desk.cloud.proxy.respond(503, "ServerBusy", where=CREATE, times=2)
    else:
        getattr(desk.cloud.proxy, fault)(where=CREATE, times=2)
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    assert content(desk) == b"one\n"


@pytest.mark.parametrize(
    "refusal", ["409 BlobAlreadyExists", "412 ConditionNotMet", "403 UnauthorizedBlobOverwrite", "as Azurite does"]
)
def test_a_segment_that_exists_is_an_earlier_attempts(desk, store, refusal):
    """However Storage says that it is there already: as a conflict, a condition, or that this SAS may not overwrite."""
    store.create("s.jsonl")
    status, _, code = refusal.partition(" ")
    if status.isdigit():
        desk.cloud.proxy.respond(int(status), code, where=CREATE)
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    assert content(desk) == b"one\n"


@pytest.mark.parametrize("may", ["nothing", "append"])
def test_who_may_not_create_a_segment_is_told(desk, store, may):
    """A role that is missing is not taken for a segment that is there, though Azurite says both in the same words."""
    desk.cloud.proxy.without_role(where=CREATE if may == "append" else matching(container=desk.container.name))
    with pytest.raises(AuditUnavailable, match="the audit trail cannot be written") as caught:
        store.create("s.jsonl")
    assert caught.value.diagnosis.code == "AuthorizationPermissionMismatch"
    assert "role" in caught.value.hint
    assert caught.value.diagnosis.tried.startswith("create ")
    desk.cloud.proxy.clear_faults()
    assert desk.container.list() == []


def test_a_segment_that_is_looked_for_stays_as_it_is(desk, store):
    """To ask whether it is there adds nothing to it, be it empty or not."""
    store.create("s.jsonl")
    store.create("s.jsonl")
    assert content(desk) == b""
    store.append("s.jsonl", 0, b"one\n")
    store.create("s.jsonl")
    assert content(desk) == b"one\n"


def test_somebody_elses_append_is_found(desk, store):
    """At the first attempt a position that is taken means that somebody else writes to the segment."""
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    blob = desk.container.admin.client("contosolake").get_blob_client(desk.container.name, "job/s.jsonl")
    blob.append_block(b"forged\n")
    with pytest.raises(AuditUnavailable) as caught:
        store.append("s.jsonl", 4, b"two\n")
    assert caught.value.diagnosis.code == "AppendPositionConditionNotMet"
    assert content(desk) == b"one\nforged\n"


@pytest.mark.parametrize("others", [b"two!\n", b"2\n", b"somebody\n"], ids=["as long", "shorter", "longer"])
def test_of_several_who_append_one_is_told(desk, others):
    """An attempt failed, and before the next one somebody else appended: whose bytes are there is looked at."""
    folder = BlobPath(account="contosolake", container=desk.container.name, name="job/")
    other = AppendBlobSegments(desk.service, folder, lambda path: desk.may(path.name, "ac")())
    slow = desk.service_at(pause=lambda seconds: other.append("s.jsonl", 4, others))
    store = AppendBlobSegments(
        slow,
        folder,
        lambda path: desk.may(path.name, "ac")(),
        read=lambda path, start, stop: content(desk)[start:stop],
    )
    store.create("s.jsonl")
    store.append("s.jsonl", 0, b"one\n")
    desk.cloud.proxy.respond(503, "ServerBusy", where=APPEND, times=1)
    with pytest.raises(AuditUnavailable) as caught:
        store.append("s.jsonl", 4, b"two\n")
    assert caught.value.diagnosis.code == "AppendPositionConditionNotMet"
    assert content(desk) == b"one\n" + others


def test_of_several_who_append_one_knows_its_own(desk):
    """Its attempt whose answer was lost had done it; where that cannot be looked at, it is not taken for granted."""
    folder = BlobPath(account="contosolake", container=desk.container.name, name="job/")
    away = False

    def read(path: BlobPath, start: int, stop: int) -> bytes:
        if away:
            raise StorageError("Storage does not answer")
        return content(desk)[start:stop]

    store = AppendBlobSegments(desk.service, folder, lambda path: desk.may(path.name, "ac")(), read=read)
    store.create("s.jsonl")
    desk.cloud.proxy.lose_answer(where=APPEND, times=1)
    store.append("s.jsonl", 0, b"one\n")
    away = True
    desk.cloud.proxy.lose_answer(where=APPEND, times=1)
    with pytest.raises(AuditUnavailable):
        store.append("s.jsonl", 4, b"two\n")


def test_a_segment_that_holds_something_is_not_ours(desk, store):
    """A foreign blob under the segment's name is found at the first append."""
    desk.container.upload("job/s.jsonl", b"something\n")
    store.create("s.jsonl")  # it may be an earlier attempt's
    with pytest.raises(AuditUnavailable):
        store.append("s.jsonl", 0, b"one\n")
    assert content(desk) == b"something\n"


def begin(store: AppendBlobSegments, name: str) -> None:
    """What the trail does with a new segment."""
    if name != "s.jsonl":
        store.create(name)
    store.append(name, 0, b"one\n")


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AuthorizationPermissionMismatch"), (404, "ContainerNotFound"), (503, "ServerBusy"), (404, "BlobNotFound")],
)
def test_what_cannot_be_written_is_audit_unavailable(desk, store, status, code):
    """Every reason arrives as AuditUnavailable, with Storage's code and the next step."""
    store.create("s.jsonl")
    desk.cloud.proxy.respond(status, code)
    for name in ("s.jsonl", "t.jsonl"):
        with pytest.raises(AuditUnavailable, match="the audit trail cannot be written") as caught:
            begin(store, name)
        assert caught.value.diagnosis.code == code
        assert caught.value.hint
        assert "job/" in caught.value.diagnosis.tried
    desk.cloud.proxy.clear_faults()
    assert content(desk) == b""
