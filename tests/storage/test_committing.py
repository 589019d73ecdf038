"""Committing: a blob of exactly the staged blocks, once, and nothing of anybody else's."""

from __future__ import annotations

import pytest

from beam_entra.access import AccountSettings
from beam_entra.errors import AccessDenied, BlobChanged, BlobExists, BlobNotFound, StorageError
from beam_entra.storage import BlobService, Commit, new_block_id
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import Desk

PUT_LIST = matching("PutBlockList")
PUT_BLOCK = matching("PutBlock")


def commit(
    desk: Desk, blocks: list[str], *, overwrite: bool = False, replaces: str = "", commit_id: str = "commit-1"
) -> Commit:
    """Commit `a.jsonl` with a writer's SAS."""
    return desk.service.commit(
        desk.path(),
        blocks,
        desk.may("a.jsonl", "w"),
        desk.next_id(),
        commit_id=commit_id,
        content_type="application/jsonl",
        overwrite=overwrite or bool(replaces),
        replaces=replaces,
    )


def staged(desk: Desk, *parts: bytes) -> list[str]:
    """Stage these parts and return their blocks."""
    blocks = [new_block_id() for _ in parts]
    for part, block in zip(parts, blocks, strict=True):
        desk.stage(part, block)
    return blocks


def properties(desk: Desk):
    """The blob as somebody else sees it."""
    client = desk.container.admin.client("contosolake")
    return client.get_blob_client(desk.container.name, "a.jsonl").get_blob_properties()


def test_block_ids_are_unique_and_of_one_length():
    """Storage wants one length for all ids of a blob; the confirmation of a commit wants ids that nobody else has."""
    blocks = [new_block_id() for _ in range(1000)]
    assert len(set(blocks)) == 1000
    assert {len(block) for block in blocks} == {24}


def test_nothing_is_visible_before_the_commit(desk):
    """Staged blocks are no blob; committed ones are, in the order that was given."""
    blocks = staged(desk, b"one\n", b"two\n", b"three\n")
    assert desk.container.list() == []
    done = commit(desk, blocks[::-1])
    assert not done.confirmed
    assert desk.container.download("a.jsonl") == b"three\ntwo\none\n"
    assert done.answer.etag.strip('"') == properties(desk).etag.strip('"')
    assert properties(desk).metadata == {"beam_entra_commit": "commit-1"}
    assert properties(desk).content_settings.content_type == "application/jsonl"


def test_blocks_that_are_not_named_are_not_in_it(desk):
    """What a failed bundle staged does not become part of the blob."""
    first, _, third = staged(desk, b"1", b"2", b"3")
    commit(desk, [first, third])
    assert desk.container.download("a.jsonl") == b"13"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_lost_answer_is_found_to_be_done(desk, overwrite):
    """The commit happened and its answer was lost: the retry finds it done, and says that it did not do it itself."""
    blocks = staged(desk, b"one\n", b"two\n")
    desk.cloud.proxy.lose_answer(where=PUT_LIST, times=1)
    done = commit(desk, blocks, overwrite=overwrite)
    assert done.confirmed
    assert desk.container.download("a.jsonl") == b"one\ntwo\n"
    assert done.answer.etag.strip('"') == properties(desk).etag.strip('"')
    assert properties(desk).metadata == {"beam_entra_commit": "commit-1"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_committing_again_is_a_no_op(desk, overwrite):
    """A bundle that is run again, with the blocks that it is given again, changes nothing of the content."""
    blocks = staged(desk, b"one\n", b"two\n")
    commit(desk, blocks, overwrite=overwrite)
    again = commit(desk, blocks, overwrite=overwrite)
    assert again.confirmed
    assert desk.container.download("a.jsonl") == b"one\ntwo\n"


@pytest.mark.parametrize("status", [500, 503])
def test_a_busy_server_does_not_confuse_a_commit(desk, status):
    """A commit that was not done at first is done at the next attempt, as one of its own."""
    blocks = staged(desk, b"one\n")
    desk.cloud.proxy.respond(status, "ServerBusy", where=PUT_LIST, times=2)
    assert not commit(desk, blocks).confirmed
    assert desk.container.download("a.jsonl") == b"one\n"


def test_a_foreign_blob_is_not_touched(desk):
    """A blob that somebody else put there is BlobExists; its content, metadata and ETag stay."""
    blocks = staged(desk, b"ours\n")
    desk.container.upload("a.jsonl", b"theirs\n")
    before = properties(desk)
    with pytest.raises(BlobExists) as caught:
        commit(desk, blocks)
    assert isinstance(caught.value, FileExistsError)
    assert "somebody else wrote it" in caught.value.hint
    assert caught.value.diagnosis.request_id
    after = properties(desk)
    assert desk.container.download("a.jsonl") == b"theirs\n"
    assert (after.etag, after.metadata, after.last_modified) == (before.etag, before.metadata, before.last_modified)


def test_another_jobs_commit_is_foreign(desk):
    """Also when it was made of blocks, in the same way: its blocks are others."""
    theirs = staged(desk, b"theirs\n")
    commit(desk, theirs, commit_id="commit-of-another-job")
    ours = staged(desk, b"ours\n")
    with pytest.raises(BlobExists):
        commit(desk, ours)
    assert desk.container.download("a.jsonl") == b"theirs\n"
    assert properties(desk).metadata == {"beam_entra_commit": "commit-of-another-job"}


def test_a_zombie_cannot_overwrite(desk):
    """Two attempts of one bundle staged blocks of their own; whoever commits second is refused."""
    winner, zombie = staged(desk, b"winner\n"), staged(desk, b"zombie\n")
    commit(desk, winner)
    with pytest.raises(BlobExists):
        commit(desk, zombie)
    assert desk.container.download("a.jsonl") == b"winner\n"


def test_some_of_our_blocks_do_not_confirm_a_foreign_blob(desk):
    """A block that is ours and one that is not: the confirmation must not match, nor change anything."""
    ours = staged(desk, b"one\n", b"two\n")
    commit(desk, ours[:1])
    with pytest.raises(BlobExists):
        commit(desk, ours)
    assert desk.container.download("a.jsonl") == b"one\n"


def test_overwriting_replaces(desk):
    """When asked to, a commit replaces what is there."""
    desk.container.upload("a.jsonl", b"old\n")
    assert not commit(desk, staged(desk, b"new\n"), overwrite=True).confirmed
    assert desk.container.download("a.jsonl") == b"new\n"


def test_blocks_that_are_gone(desk):
    """Blocks that were never staged, or dropped, are an error that says so, whether or not a blob is there."""
    with pytest.raises(StorageError, match="not there any more") as caught:
        commit(desk, [new_block_id()])
    assert "run the job again" in caught.value.hint
    desk.container.upload("a.jsonl", b"old\n")
    with pytest.raises(StorageError, match="not there any more"):
        commit(desk, [new_block_id()], overwrite=True)
    assert desk.container.download("a.jsonl") == b"old\n"


def test_an_empty_commit_confirms_nothing(desk):
    """It makes an empty blob where there is none. An empty list of blocks would match any blob, so it is sent once."""
    assert not commit(desk, []).confirmed
    assert desk.container.download("a.jsonl") == b""
    for content in (b"old\n", b""):
        desk.container.upload("a.jsonl", content)
        before = len(desk.cloud.proxy.requests)
        with pytest.raises(BlobExists, match="exists already"):
            commit(desk, [])
        assert len(desk.cloud.proxy.requests) == before + 1
        assert desk.container.download("a.jsonl") == content


@pytest.mark.parametrize("lost", [False, True])
def test_overwriting_with_no_blocks_leaves_an_empty_blob(desk, lost):
    """What is to be replaced by nothing is empty afterwards, and is never taken for done: one request, each time."""
    desk.container.upload("a.jsonl", b"old\n")
    if lost:
        desk.cloud.proxy.lose_answer(where=PUT_LIST, times=1)
    before = len(desk.cloud.proxy.requests)
    done = commit(desk, [], overwrite=True)
    assert not done.confirmed
    assert desk.container.download("a.jsonl") == b""
    assert done.answer.etag.strip('"') == properties(desk).etag.strip('"')
    sent = [each for each in desk.cloud.proxy.requests[before:] if PUT_LIST(each.request)]
    assert len(sent) == (2 if lost else 1)


@pytest.mark.parametrize("status", [409, 412])
def test_an_empty_commit_that_is_refused_is_not_confirmed(desk, status):
    """An empty list of committed blocks would match any blob: the refusal is told as it is."""
    desk.container.upload("a.jsonl", b"old\n")
    code = {409: "BlobAlreadyExists", 412: "ConditionNotMet"}[status]
    desk.cloud.proxy.respond(status, code, where=PUT_LIST, times=1)
    with pytest.raises(StorageError):
        commit(desk, [], overwrite=True)
    assert desk.container.download("a.jsonl") == b"old\n"


def test_replacing_needs_a_blob_that_is_there(desk):
    """A blob that is there is replaced, a lost answer found to be done; where there is none, none is made."""
    with pytest.raises(BlobNotFound, match="no blob to replace"):
        commit(desk, staged(desk, b"new\n"), replaces="*")
    assert desk.container.list() == []
    desk.container.upload("a.jsonl", b"old\n")
    assert not commit(desk, staged(desk, b"new\n"), replaces="*").confirmed
    desk.cloud.proxy.lose_answer(where=PUT_LIST, times=1)
    assert commit(desk, staged(desk, b"newer\n"), replaces="*").confirmed
    assert desk.container.download("a.jsonl") == b"newer\n"


def test_one_version_is_replaced_and_no_other(desk):
    """With blocks, where a lost answer is found to be done, and without; what somebody wrote meanwhile stays."""
    desk.container.upload("a.jsonl", b"old\n")
    seen = properties(desk).etag
    desk.cloud.proxy.lose_answer(where=PUT_LIST, times=1)
    blocks = staged(desk, b"new\n")
    done = commit(desk, blocks, replaces=seen)
    assert done.confirmed
    assert commit(desk, blocks, replaces=seen).confirmed
    with pytest.raises(BlobExists, match="exists already"):
        commit(desk, staged(desk, b"other\n"), replaces=seen)
    with pytest.raises(BlobChanged):
        commit(desk, [], replaces=seen)
    assert desk.container.download("a.jsonl") == b"new\n"
    assert not commit(desk, [], replaces=properties(desk).etag).confirmed
    assert desk.container.download("a.jsonl") == b""


def test_a_refusal_of_the_confirmation_is_told(desk):
    """When the second step is refused, nobody learns that the commit is done."""
    blocks = staged(desk, b"one\n")
    commit(desk, blocks)
    desk.cloud.proxy.respond(403, "AuthorizationFailure", where=PUT_LIST, skip=1)
    with pytest.raises(AccessDenied):
        commit(desk, blocks)


@pytest.mark.parametrize("fault", ["reset", "lose_answer", "busy"])
def test_staging_outlives_a_fault(desk, fault):
    """A block that is sent twice is there once."""
    proxy = desk.cloud.proxy
    if fault == "busy":
        proxy.respond(503, "ServerBusy", where=PUT_BLOCK, times=2)
    else:
        getattr(proxy, fault)(where=PUT_BLOCK, times=2)
    commit(desk, staged(desk, b"once\n"))
    assert desk.container.download("a.jsonl") == b"once\n"


def creating_only(desk: Desk, create_only: bool = True) -> BlobService:
    """A service of an account where a writer may only create."""
    settings = AccountSettings(
        endpoint=desk.cloud.endpoint("contosolake"), create_only=create_only, ca_file=str(desk.cloud.ca_file)
    )
    return BlobService({"contosolake": settings}.__getitem__)


@pytest.mark.parametrize(
    ("create_only", "code", "error"),
    [
        (True, "AuthorizationPermissionMismatch", BlobExists),
        (True, "UnauthorizedBlobOverwrite", BlobExists),
        (False, "AuthorizationPermissionMismatch", AccessDenied),
    ],
)
def test_where_a_writer_may_only_create_a_commit_is_not_confirmed(desk, create_only, code, error):
    """A retry after a lost answer hears that the blob is there, and how to tell whose it is; never a bare refusal."""
    desk.service = creating_only(desk, create_only)
    desk.cloud.proxy.lose_answer(where=PUT_LIST, times=1)
    desk.cloud.proxy.respond(403, code, where=PUT_LIST, times=1, skip=1)
    with pytest.raises(error) as caught:
        commit(desk, staged(desk, b"one\n"), commit_id="commit-7")
    assert ("commit-7" in caught.value.hint) == create_only
    assert desk.container.download("a.jsonl") == b"one\n"


def test_a_role_that_is_removed_within_a_commit_is_no_blob_that_exists(desk):
    """Where no blob was found, a refusal is a refusal, though the writer may only create: it names the role."""
    desk.service = creating_only(desk)
    desk.cloud.proxy.respond(403, "AuthorizationPermissionMismatch", where=PUT_LIST, times=1, skip=1)
    with pytest.raises(AccessDenied, match="role") as caught:
        commit(desk, [new_block_id()])
    assert caught.value.diagnosis.code == "AuthorizationPermissionMismatch"
    assert desk.container.list() == []


@pytest.mark.parametrize(
    ("where", "status", "code"), [(PUT_BLOCK, 409, "BlockCountExceedsLimit"), (PUT_LIST, 400, "BlockListTooLong")]
)
def test_more_blocks_than_storage_takes(desk, where, status, code):
    """Staged or committed: the error says what there is too much of, and what to do."""
    desk.cloud.proxy.respond(status, code, where=where)
    with pytest.raises(StorageError, match="more blocks than Storage takes") as caught:
        commit(desk, staged(desk, b"one\n"))
    assert "more blobs" in caught.value.hint
    assert desk.container.list() == []


def test_a_block_that_is_damaged_on_the_way_is_not_stored(desk):
    """Storage is told each block's MD5, and holds the block to it; what was damaged is sent again."""
    desk.cloud.proxy.corrupt(where=PUT_BLOCK, times=1)
    blocks = staged(desk, b"whole\n" * 100)
    assert desk.cloud.proxy.count(PUT_BLOCK) == 2
    commit(desk, blocks)
    assert desk.container.download("a.jsonl") == b"whole\n" * 100
