"""What a FileSystem needs beside reading and committing: copies by Storage, whole blobs in one request, deletions."""

from __future__ import annotations

import pytest

from beam_entra.errors import AccessDenied, BlobChanged, BlobNotFound
from beam_entra.storage import Authorization, BlobProperties, new_block_id
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import Desk

DATA = bytes(range(256)) * 1000


def copy(desk: Desk, source: BlobProperties, *, reader: str = "r", writer: str = "w", start: int = 0) -> list[str]:
    """Have Storage stage all of a blob from `start` on as one block of `b.bin`."""
    block = new_block_id()
    desk.service.put_block_from_blob(
        desk.path("b.bin"),
        block,
        source,
        start,
        source.size_bytes,
        desk.may("b.bin", writer),
        desk.may(source.path.name, reader),
        desk.next_id(),
    )
    return [block]


def test_storage_copies_the_range_that_is_asked_for(desk):
    """With a reader's SAS for the one blob and a writer's for the other."""
    source = desk.upload(DATA)
    blocks = copy(desk, source, start=1000)
    desk.service.commit(
        desk.path("b.bin"),
        blocks,
        desk.may("b.bin", "w"),
        desk.next_id(),
        commit_id="c",
        content_type="text/plain",
        overwrite=False,
    )
    assert desk.container.download("b.bin") == DATA[1000:]


def test_a_source_that_has_changed_is_not_copied(desk):
    """The version is pinned on Storage's side."""
    source = desk.upload(DATA)
    desk.upload(b"another")
    with pytest.raises(BlobChanged):
        copy(desk, source)


@pytest.mark.parametrize(("reader", "writer"), [("w", "w"), ("r", "r")])
def test_a_copy_needs_both_rights(desk, reader, writer):
    """Neither SAS does for the other's side."""
    with pytest.raises(AccessDenied):
        copy(desk, desk.upload(DATA), reader=reader, writer=writer)


def test_the_sas_of_a_source_is_asked_for_at_each_attempt(desk):
    """A retry after a pause does not carry an old one, and no error repeats it."""
    source = desk.upload(DATA)
    desk.cloud.proxy.respond(503, "ServerBusy", where=matching("PutBlock"), times=1)
    asked: list[Authorization] = []

    def reading() -> Authorization:
        asked.append(desk.may("a.jsonl", "r")())
        return asked[-1]

    desk.service.put_block_from_blob(
        desk.path("b.bin"), new_block_id(), source, 0, 10, desk.may("b.bin", "w"), reading, desk.next_id()
    )
    assert len(asked) == 2
    assert all(sas.sas is not None and sas.sas.reveal() not in repr(sas) for sas in asked)


def test_a_source_is_not_read_with_nothing(desk):
    """A copy from a public blob would leave no trace of whose right it was."""
    source = desk.upload(DATA)
    with pytest.raises(ValueError, match="with a SAS or a token"):
        desk.service.put_block_from_blob(
            desk.path("b.bin"), new_block_id(), source, 0, 10, desk.may("b.bin", "w"), Authorization, desk.next_id()
        )


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "more"])
def test_a_whole_blob_in_one_request(desk, data):
    """Over an old one; an answer that is lost does no harm."""
    desk.upload(b"old", "c.bin")
    desk.cloud.proxy.lose_answer(where=matching("PutBlob"), times=1)
    answer = desk.service.put_blob(
        desk.path("c.bin"), data, desk.may("c.bin", "w"), desk.next_id(), commit_id="c", content_type="text/plain"
    )
    assert desk.container.download("c.bin") == data
    found, _ = desk.service.properties(desk.path("c.bin"), desk.may("c.bin", "r"), desk.next_id())
    assert (found.etag, found.content_type) == (answer.etag, "text/plain")


def test_a_blob_is_deleted_once(desk):
    """A second time it is missing, and that is no error."""
    desk.upload(DATA)
    for there in (True, False):
        answer, missing = desk.service.delete(desk.path(), desk.may("a.jsonl", "d"), desk.next_id(), etag=None)
        assert (answer is not None) is there
        assert isinstance(missing, BlobNotFound) is not there
    assert desk.container.list() == []


def test_only_the_version_that_is_named_is_deleted(desk):
    """Another one stays."""
    blob = desk.upload(DATA)
    desk.upload(b"newer")
    with pytest.raises(BlobChanged):
        desk.service.delete(desk.path(), desk.may("a.jsonl", "d"), desk.next_id(), etag=blob.etag)
    assert desk.container.download("a.jsonl") == b"newer"


@pytest.mark.parametrize("permissions", ["r", "w"])
def test_neither_reader_nor_writer_deletes(desk, permissions):
    """It takes `d`, and `d` takes nothing else."""
    blob = desk.upload(DATA)
    with pytest.raises(AccessDenied):
        desk.service.delete(desk.path(), desk.may("a.jsonl", permissions), desk.next_id(), etag=None)
    with pytest.raises(AccessDenied):
        desk.service.properties(blob.path, desk.may("a.jsonl", "d"), desk.next_id())
    assert desk.container.download("a.jsonl") == DATA


def test_a_container_that_is_not_there_is_no_deleted_blob(desk):
    """It is a wrong name, not a second try."""
    desk.cloud.proxy.respond(404, "ContainerNotFound", where=matching("DeleteBlob"))
    with pytest.raises(BlobNotFound):
        desk.service.delete(desk.path(), desk.may("a.jsonl", "d"), desk.next_id(), etag=None)


def begin(desk: Desk, length: int = 1000) -> tuple[BlobProperties, bytes, list[tuple[int, int]]]:
    """Read the beginning of `a.jsonl`, and note what was told of the answers."""
    told: list[tuple[int, int]] = []
    blob, content = desk.service.read_beginning(
        desk.path(),
        length,
        desk.may("a.jsonl", "r"),
        desk.next_id,
        lambda blob, answer, start, stop: told.append((start, stop)),
    )
    return blob, bytes(content), told


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_the_beginning_brings_what_the_blob_is(desk, size):
    """Size, version and first bytes, for blobs of every length."""
    expected = desk.upload(DATA[:size])
    blob, content, told = begin(desk)
    assert (blob.size_bytes, blob.etag) == (size, expected.etag)
    assert content == DATA[: min(size, 1000)]
    assert told == [(0, min(size, 1000))]


def test_a_beginning_that_breaks_off_is_resumed(desk):
    """At the byte, in the same version."""
    desk.upload(DATA)
    desk.cloud.proxy.truncate(400, where=matching("GetBlob"), times=1)
    _, content, told = begin(desk)
    assert content == DATA[:1000]
    assert told == [(0, 1000), (400, 1000)]


def test_a_missing_blob_has_no_beginning(desk):
    """The error is the same as for its properties."""
    with pytest.raises(BlobNotFound):
        begin(desk)


def test_a_directory_is_no_blob(desk):
    """Accounts with a hierarchical namespace mark directories; they are empty blobs to a reader."""
    client = desk.cloud.admin.client("contosolake").get_blob_client(desk.container.name, "a.jsonl")
    client.upload_blob(b"", metadata={"hdi_isfolder": "true"})
    with pytest.raises(BlobNotFound, match="directory"):
        begin(desk)
    with pytest.raises(BlobNotFound, match="directory"):
        desk.service.properties(desk.path(), desk.may("a.jsonl", "r"), desk.next_id())
