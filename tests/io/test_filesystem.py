"""`abfss://` as a Beam FileSystem: the contract, and what is ours: grants, audit, whole copies, pinned versions."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import apache_beam as beam
import fastavro
import pyarrow as pa
import pytest
from apache_beam.io import fileio
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
from apache_beam.testing.util import assert_that, equal_to
from pyarrow import parquet

from beam_entra import EntraOptions
from beam_entra.audit import check_segments
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditError,
    BlobChanged,
    BlobNotFound,
    ConfigError,
    NotGranted,
    StorageError,
    find_rendered_error,
)
from beam_entra.io.filesystem import BlobFileSystem
from beam_entra.session import JobScope, Session, adopt_session, close_session, live_scopes, open_session
from beam_entra.testing.filesystem_contract import FileSystemContract
from beam_entra.testing.local import LocalContainer
from beam_entra.testing.storage_requests import matching


class Files:
    """A job that may read, write and delete below `files/` of `curated`, and read `in/` of `raw`."""

    def __init__(self, lake: Any, **grants: Any) -> None:
        self.lake = lake
        here = lake.curated.url("files/")
        granted = {"read": [lake.raw.url("in/"), here], "write": [here], "delete": [here]} | grants
        self.scope = JobScope.launch(lake.manifest(**granted), now=utc_now())
        self.system = BlobFileSystem({"entra_job_scope": self.scope.to_json()})

    def path(self, name: str = "") -> str:
        """A path below what is granted."""
        return str(self.lake.curated.url(f"files/{name}"))

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """What is in the trail by now."""
        open_session(self.scope).settle()
        found = self.lake.trail(self.scope.job).records()
        return [record for record in found if not kinds or record["kind"] in kinds]

    def check_trail(self) -> None:
        """The trail, closed, verifies by every rule that holds before sealing."""
        close_session(self.scope.job)
        check_segments(self.lake.trail(self.scope.job), job=self.scope.job)


@pytest.fixture(autouse=True)
def _no_other_job() -> None:
    """Whatever a test elsewhere left behind in this process is over."""
    for scope in live_scopes():
        with contextlib.suppress(AuditError):
            close_session(scope.job)


@pytest.fixture
def make_files(lake: Any) -> Iterator[Callable[..., Files]]:
    """Makes jobs; each leaves a trail that verifies."""
    made: list[Files] = []

    def make(**grants: Any) -> Files:
        made.append(Files(lake, **grants))
        return made[-1]

    yield make
    lake.cloud.proxy.clear_faults()
    gc.collect()
    for files in made:
        files.check_trail()


@pytest.fixture
def files(make_files: Callable[..., Files]) -> Files:
    """One of them."""
    return make_files()


class TestContract(FileSystemContract):
    """Ours keeps the whole contract, with nothing taken back."""

    @pytest.fixture
    def filesystem(self, files: Files) -> BlobFileSystem:
        return files.system

    @pytest.fixture
    def folder(self, files: Files) -> str:
        return files.path(uuid.uuid4().hex)


# Grants


@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        (lambda system, path: system.open(path), "read"),
        (lambda system, path: system.exists(path), "read"),
        (lambda system, path: system.metadata(path), "read"),
        (lambda system, path: system.match([path]), "read"),
        (lambda system, path: system.match([f"{path}*"]), "list"),
        (lambda system, path: system.exists(f"{path}/"), "list"),
        (lambda system, path: system.create(path), "write"),
        (lambda system, path: system.delete([path]), "delete"),
        (lambda system, path: system.delete([f"{path}*"]), "list"),
        (lambda system, path: system.copy([path], [path + "2"]), "read"),
        (lambda system, path: system.rename([path], [path + "2"]), "read"),
    ],
    ids=["open", "exists", "facts", "match", "match *", "exists /", "create", "delete", "delete *", "copy", "rename"],
)
@pytest.mark.parametrize("name", ["files-secret/a.txt", "a.txt"])
def test_what_no_grant_covers_is_refused_before_anything_is_sent(
    files: Files, operation: Callable[[BlobFileSystem, str], object], permission: str, name: str
) -> None:
    """Denied by our side, recorded, and Storage has not heard of it."""
    lake = files.lake
    lake.curated.upload(name, b"not for this job")
    with pytest.raises(BeamIOError) as caught:
        operation(files.system, lake.curated.url(name))
    assert isinstance(caught.value.__cause__, NotGranted)
    assert [type(error) for error in caught.value.exception_details.values()] == [NotGranted]
    asked = [exchange.request.container for exchange in lake.cloud.proxy.requests]
    assert lake.curated.name not in asked
    (denied,) = files.records("denied")
    assert (denied["permission"], denied["by"]) == (permission, "manifest")


def test_a_reader_cannot_write_or_delete(make_files: Callable[..., Files]) -> None:
    """Each right is granted by itself."""
    files = make_files(write=[], delete=[])
    path = files.lake.raw.url("in/a.txt")
    files.lake.raw.upload("in/a.txt", b"here")
    assert files.system.open(path).read() == b"here"
    for operation in (files.system.create, lambda path: files.system.delete([path])):
        with pytest.raises(BeamIOError):
            operation(path)
    assert files.lake.raw.download("in/a.txt") == b"here"


def test_a_rename_that_may_not_delete_copies_nothing(make_files: Callable[..., Files]) -> None:
    """It would leave two files: it is refused before there is a second."""
    files = make_files(delete=[])
    with files.system.create(files.path("a.txt")) as file:
        file.write(b"x")
    with pytest.raises(BeamIOError) as caught:
        files.system.rename([files.path("a.txt")], [files.path("b.txt")])
    assert isinstance(caught.value.__cause__, NotGranted)
    assert files.lake.curated.list() == ["files/a.txt"]


def test_what_cannot_be_listed_is_not_deleted_with_its_folder(make_files: Callable[..., Files]) -> None:
    """Deleting a folder needs to see it; a job that may not see it deletes the blob of that name and no more."""
    files = make_files(read=[])
    files.lake.curated.upload("files/sub/a.txt", b"x")
    files.system.delete([files.path("sub")])
    assert files.lake.curated.list() == ["files/sub/a.txt"]


def test_every_sas_is_for_one_blob_and_one_thing(files: Files) -> None:
    """What goes over the wire holds a letter a blob; only listings are wider."""
    with files.system.create(files.path("a.txt")) as file:
        file.write(b"x")
    files.system.open(files.path("a.txt")).close()
    files.system.rename([files.path("a.txt")], [files.path("b.txt")])
    files.system.match([files.path("*")])
    files.system.delete([files.path("b.txt")])
    seen = {
        (exchange.operation, exchange.request.parameters["sr"], exchange.request.parameters["sp"])
        for exchange in files.lake.cloud.proxy.requests
        if exchange.request.container == files.lake.curated.name
    }
    assert seen == {
        ("PutBlob", "b", "w"),
        ("GetBlob", "b", "r"),
        ("GetBlobProperties", "b", "r"),
        ("PutBlock", "b", "w"),
        ("PutBlockList", "b", "w"),
        ("DeleteBlob", "b", "d"),
        ("ListBlobs", "c", "l"),
    }


def test_the_account_in_the_path_is_the_one_that_is_used(
    lake: Any, beam_entra_containers: Callable[..., LocalContainer]
) -> None:
    """Two accounts hold a blob of one name; each path gives its own, and files are copied across."""
    other = beam_entra_containers("other", account="fabrikamlake")
    files = Files(lake, read=[lake.curated.url("files/"), other.url("files/")])
    lake.curated.upload("files/a.txt", b"contoso's")
    other.upload("files/a.txt", b"fabrikam's")
    assert files.system.open(files.path("a.txt")).read() == b"contoso's"
    assert files.system.open(other.url("files/a.txt")).read() == b"fabrikam's"
    files.system.copy([other.url("files/a.txt")], [files.path("b.txt")])
    assert lake.curated.download("files/b.txt") == b"fabrikam's"
    gc.collect()
    files.check_trail()


# Audit


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_file_that_nobody_closed_may_be_collected_in_the_middle_of_a_record(files: Files, kind: str) -> None:
    """Its bundle's end is a record as well, and is made when the next bundle is opened."""
    files.lake.curated.upload("files/a.txt", b"hello")
    session = open_session(files.scope)
    if kind == "read":
        file = files.system.open(files.path("a.txt"))
        assert file.read(2) == b"he"
    else:
        file = files.system.create(files.path("b.txt"))
        file.write(b"hello")
    circle: list[Any] = [file]
    circle.append(circle)
    del file, circle
    with session._record_lock, session._trail._lock, session._counts_lock:
        gc.collect()
    assert files.system.exists(files.path("b.txt")) is False
    ends = [record.get("outcome") for record in files.records("bundle_opened", "bundle_closed")]
    assert ends == [None, "abandoned", None, "ok"]


def test_each_access_is_in_the_trail(files: Files) -> None:
    """Written, read, copied, deleted: with path, version and request ids, in bundles that are closed."""
    with files.system.create(files.path("a.txt")) as file:
        file.write(b"hello")
    with files.system.open(files.path("a.txt")) as file:
        file.read()
    files.system.rename([files.path("a.txt")], [files.path("b.txt")])
    files.system.delete([files.path("b.txt"), files.path("missing.txt")])
    records = files.records()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    assert [(r["path"], r["size"], r["rows"]) for r in by_kind["committed"]] == [
        (files.path("a.txt"), 5, None),
        (files.path("b.txt"), 5, None),
    ]
    (copied,) = by_kind["copied"]
    etag = by_kind["committed"][0]["etag"]
    assert (copied["source"], copied["path"], copied["source_etag"]) == (files.path("a.txt"), files.path("b.txt"), etag)
    gone = [(r["path"], r["etag"], r["missing"]) for r in by_kind["deleted"]]
    assert sorted(gone, key=lambda entry: entry[0]) == [
        (files.path("a.txt"), etag, False),
        (files.path("b.txt"), None, False),
        (files.path("missing.txt"), None, True),
    ]
    assert len(by_kind["bundle_opened"]) == len(by_kind["bundle_closed"])
    steps = {record["step"] for record in by_kind["bundle_opened"]}
    assert steps == {f"files ({operation})" for operation in ("write", "read", "rename", "delete")}
    assert files.lake.cloud.find_leaks(json.dumps(records)) == []


def test_a_delete_is_intended_before_it_is_sent(files: Files) -> None:
    """The intention is durable before the request leaves, so no blob disappears unrecorded."""
    files.lake.curated.upload("files/a.txt", b"x")
    proxy = files.lake.cloud.proxy
    held = proxy.hold(where=matching("DeleteBlob"))
    deleting = threading.Thread(target=files.system.delete, args=([files.path("a.txt")],))
    deleting.start()
    held.gate.wait_for_arrivals()
    kinds = [record["kind"] for record in files.lake.trail(files.scope.job).records()]
    held.gate.open()
    deleting.join()
    assert "delete_intended" in kinds
    assert "deleted" not in kinds


def test_the_step_that_is_run_is_named(files: Files) -> None:
    """A transform of Beam's own has its name in the trail."""
    files.lake.raw.upload("in/a.txt", b"1\n2\n")
    with files.lake.pipeline(manifest=files.scope.manifest) as p:
        lines = p | "Numbers" >> beam.io.ReadFromText(files.lake.raw.url("in/*.txt"))
        lines | "Out" >> beam.io.WriteToText(files.path("out"), num_shards=1)
    steps = {record["step"] for record in files.lake.trail(p.report.job).records("bundle_opened")}
    assert any(step.startswith("Numbers/") and step.endswith("(read)") for step in steps), steps
    assert any(step.startswith("Out/") and step.endswith("(write)") for step in steps), steps


# Copies


def upload(files: Files, name: str, data: bytes) -> str:
    """Put a blob there past the FileSystem, and get its path."""
    files.lake.curated.upload(f"files/{name}", data)
    return files.path(name)


LARGE = bytes(range(256)) * 40_000  # three blocks


def test_files_of_a_job_whose_token_opens_the_blobs(make_files: Callable[..., Files]) -> None:
    """Scoped by bearer, it writes, reads, copies, renames, lists and deletes, and what is not granted sends nothing."""
    files = make_files(scoping="bearer")
    files.lake.cloud.proxy.without_role()
    system, one, two, three = files.system, *(files.path(name) for name in ("one", "two", "deep/three"))
    with system.create(one) as stream:
        stream.write(b"content")
    system.copy([one], [two])
    system.rename([two], [three])
    with system.open(three) as stream:
        assert stream.read() == b"content"
    found = [each.path for each in system.match([files.path("**")])[0].metadata_list]
    assert sorted(found) == [three, one]
    system.delete([one, three])
    files.lake.curated.upload("a.txt", b"not for this job")
    before = len(files.lake.cloud.proxy.requests)
    with pytest.raises(BeamIOError) as caught:
        system.delete([files.lake.curated.url("a.txt")])
    assert isinstance(caught.value.__cause__, NotGranted)
    requests = [exchange.request for exchange in files.lake.cloud.proxy.requests]
    assert {request.container for request in requests[before:]} <= {files.lake.audit.name}
    assert {request.credential for request in requests} == {"bearer"}
    assert len({record["token"] for record in files.records("read", "staged", "committed", "deleted")}) == 1


def test_storage_itself_copies(files: Files) -> None:
    """The bytes do not come here: Storage reads the source with a SAS of its own, the version pinned."""
    source = upload(files, "a.bin", LARGE)
    files.system.copy([source], [files.path("b.bin")])
    assert files.lake.curated.download("files/b.bin") == LARGE
    proxy = files.lake.cloud.proxy
    assert proxy.count(matching("GetBlob", container=files.lake.curated.name)) == 0
    (exchange,) = [e for e in proxy.requests if e.operation == "PutBlock"]
    headers = exchange.request.headers
    assert "sp=r&" in headers["x-ms-copy-source"]
    assert headers["x-ms-source-range"] == f"bytes=0-{len(LARGE) - 1}"
    assert headers["x-ms-source-if-match"].startswith('"')
    assert exchange.sent_bytes == 0


def test_where_storage_cannot_reach_the_source_the_bytes_are_carried(files: Files) -> None:
    """A source behind a firewall: read with one SAS, staged with another; asked once, not for each file."""
    sources = [upload(files, "a.bin", LARGE), upload(files, "b.bin", b"small")]
    proxy = files.lake.cloud.proxy
    by_storage = lambda request: request.operation == "PutBlock" and "x-ms-copy-source" in request.headers  # noqa: E731 - a predicate
    proxy.respond(403, "CannotVerifyCopySource", where=by_storage)
    for source in sources:
        files.system.copy([source], [source + ".copy"])
    assert files.lake.curated.download("files/a.bin.copy") == LARGE
    assert files.lake.curated.download("files/b.bin.copy") == b"small"
    assert proxy.count(by_storage) == 1
    assert files.records("copied") == []
    assert sum(record["size"] for record in files.records("staged")) == len(LARGE) + len(b"small")


@pytest.mark.parametrize("operation", ["PutBlock", "PutBlockList"])
def test_a_rename_whose_copy_fails_deletes_nothing(
    files: Files, operation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The source is there, the target is not, and nobody was asked to delete. Beam may say nothing of it; we do."""
    source = upload(files, "a.bin", LARGE)
    proxy = files.lake.cloud.proxy
    proxy.respond(409, "OperationTimedOut", where=matching(operation))
    with pytest.raises(BeamIOError):
        files.system.rename([source], [files.path("b.bin")])
    assert files.lake.curated.list() == ["files/a.bin"]
    assert proxy.count(matching("DeleteBlob")) == 0
    assert files.records("delete_intended") == []
    assert "not renamed" in caplog.text
    assert "OperationTimedOut" in caplog.text


def test_a_copy_that_is_not_what_was_copied_is_found(files: Files) -> None:
    """Somebody writes the target at the same time: that is an error, and the source stays."""
    source, target = upload(files, "a.bin", LARGE), files.path("b.bin")
    proxy = files.lake.cloud.proxy
    looking = proxy.hold(where=matching("GetBlobProperties", blob="files/b.bin"))
    failure: list[BaseException] = []

    def rename() -> None:
        try:
            files.system.rename([source], [target])
        except BeamIOError as error:
            failure.append(error)

    renaming = threading.Thread(target=rename)
    renaming.start()
    looking.gate.wait_for_arrivals()
    upload(files, "b.bin", b"somebody else's")
    looking.gate.open()
    renaming.join()
    assert isinstance(failure[0].__cause__, BlobChanged)
    assert files.lake.curated.download("files/a.bin") == LARGE


def test_a_source_that_changes_while_it_is_copied_is_not_deleted(files: Files) -> None:
    """Only the version that was copied may go."""
    source = upload(files, "a.bin", LARGE)
    deleting = files.lake.cloud.proxy.hold(where=matching("DeleteBlob"))
    failure: list[BaseException] = []

    def rename() -> None:
        try:
            files.system.rename([source], [files.path("b.bin")])
        except BeamIOError as error:
            failure.append(error)

    renaming = threading.Thread(target=rename)
    renaming.start()
    deleting.gate.wait_for_arrivals()
    upload(files, "a.bin", b"a newer one")
    deleting.gate.open()
    renaming.join()
    assert isinstance(failure[0].__cause__, BlobChanged)
    assert files.lake.curated.download("files/a.bin") == b"a newer one"
    assert files.lake.curated.download("files/b.bin") == LARGE


@pytest.mark.parametrize("operation", ["PutBlock", "PutBlockList", "DeleteBlob"])
def test_a_rename_survives_a_lost_answer(files: Files, operation: str) -> None:
    """Each step may be sent twice."""
    source = upload(files, "a.bin", LARGE)
    files.lake.cloud.proxy.lose_answer(where=matching(operation), times=1)
    files.system.rename([source], [files.path("b.bin")])
    assert files.lake.curated.list() == ["files/b.bin"]
    assert files.lake.curated.download("files/b.bin") == LARGE


def test_a_copy_keeps_the_media_type(files: Files) -> None:
    """As it was given to `create`."""
    with files.system.create(files.path("a.txt"), mime_type="text/x-orders") as file:
        file.write(b"x")
    files.system.copy([files.path("a.txt")], [files.path("b.txt")])
    client = files.lake.cloud.admin.client(files.lake.curated.account)
    blob = client.get_blob_client(files.lake.curated.name, "files/b.txt").get_blob_properties()
    assert blob.content_settings.content_type == "text/x-orders"


def test_folders_are_copied_with_all_below_them(files: Files) -> None:
    """With a slash or without; never into themselves."""
    for name in ("from/a.txt", "from/sub/b.txt", "from-not/c.txt"):
        upload(files, name, name.encode())
    files.system.copy([files.path("from/")], [files.path("to/")])
    files.system.rename([files.path("to")], [files.path("moved")])
    names = [name.removeprefix("files/") for name in files.lake.curated.list()]
    assert names == ["from-not/c.txt", "from/a.txt", "from/sub/b.txt", "moved/a.txt", "moved/sub/b.txt"]
    with pytest.raises(BeamIOError) as caught:
        files.system.rename([files.path("from/")], [files.path("from/sub/")])
    assert isinstance(caught.value.__cause__, ConfigError)


# Open files


def test_a_file_that_changes_under_its_reader_is_an_error(files: Files) -> None:
    """Never mixed data: every range insists on the version that was opened."""
    path = upload(files, "a.bin", LARGE)
    with files.system.open(path) as file:
        assert file.read(10) == LARGE[:10]
        upload(files, "a.bin", LARGE[::-1])
        with pytest.raises(BeamIOError) as caught:
            file.read()
    assert isinstance(caught.value.__cause__, BlobChanged)


def test_small_files_are_one_request_each_way(files: Files) -> None:
    """Put Blob, and one ranged GET that brings size, version and content."""
    with files.system.create(files.path("a.txt")) as file:
        file.write(b"hello")
    with files.system.open(files.path("a.txt")) as file:
        assert file.read() == b"hello"
    seen = [e.operation for e in files.lake.cloud.proxy.requests if e.request.container == files.lake.curated.name]
    assert seen == ["PutBlob", "GetBlob"]


def test_who_reads_on_is_fetched_ahead_for_and_who_jumps_is_not(files: Files) -> None:
    """The end of a large file costs its end; all of it costs it once."""
    data = bytes(20 << 20)
    path = upload(files, "a.bin", data)
    proxy = files.lake.cloud.proxy
    with files.system.open(path) as file:
        file.seek(-8, io.SEEK_END)
        assert file.read() == data[-8:]
    fetched = [e.received_bytes for e in proxy.requests if e.operation == "GetBlob"]
    assert sum(fetched) < 1 << 20
    proxy.clear()
    with files.system.open(path) as file:
        assert len(file.read()) == len(data)
    fetched = [e.received_bytes for e in proxy.requests if e.operation == "GetBlob"]
    assert sum(fetched) == len(data)
    assert len(fetched) < 14


@pytest.mark.parametrize("after_bytes", [0, 100, 70_000])
def test_a_body_that_breaks_off_is_resumed(files: Files, after_bytes: int) -> None:
    """In the beginning of a file as anywhere."""
    path = upload(files, "a.bin", LARGE)
    files.lake.cloud.proxy.truncate(after_bytes, where=matching("GetBlob"), times=3)
    with files.system.open(path) as file:
        assert file.read() == LARGE


def test_a_large_write_holds_few_blocks(files: Files) -> None:
    """While Storage is slow, the writer waits instead of piling up: at most 5 blocks of 4 MiB are under way."""
    slow = files.lake.cloud.proxy.hold(where=matching("PutBlock"))
    written = threading.Semaphore(0)

    def write() -> None:
        with files.system.create(files.path("a.bin")) as file:
            for _ in range(12):
                file.write(bytes(4 << 20))
                written.release()

    writing = threading.Thread(target=write)
    writing.start()
    slow.gate.wait_for_arrivals(4)
    accepted = 0
    while written.acquire(timeout=1):
        accepted += 1
    assert 4 <= accepted <= 6
    slow.gate.open()
    writing.join()
    assert files.system.size(files.path("a.bin")) == 12 * (4 << 20)


def test_a_write_that_fails_says_so_at_its_close(files: Files) -> None:
    """And nothing is visible."""
    where = matching("PutBlob", container=files.lake.curated.name)
    files.lake.cloud.proxy.respond(409, "OperationTimedOut", where=where)
    file = files.system.create(files.path("a.txt"))
    file.write(b"x")
    with pytest.raises(BeamIOError) as caught:
        file.close()
    assert isinstance(caught.value.__cause__, StorageError)
    assert file.closed
    assert files.lake.curated.list() == []


def test_a_staged_block_that_fails_fails_the_write(files: Files) -> None:
    """The error of a block that was staged in the background is not lost."""
    files.lake.cloud.proxy.respond(409, "OperationTimedOut", where=matching("PutBlock"))
    file = files.system.create(files.path("a.bin"))
    with pytest.raises(BeamIOError):  # noqa: PT012 - in the write or at the close, as it comes
        for _ in range(8):
            file.write(bytes(4 << 20))
        file.close()
    del file
    assert files.lake.curated.list() == []


def test_a_file_outlives_no_session(files: Files) -> None:
    """After the job's end an open file gives and takes nothing: it could not be recorded."""
    path = upload(files, "a.bin", LARGE)
    reader, writer = files.system.open(path), files.system.create(files.path("b.bin"))
    writer.write(b"x")
    close_session(files.scope.job)
    reader.seek(5_000_000)
    with pytest.raises(BeamIOError):
        reader.read(1)
    with pytest.raises(BeamIOError):
        writer.close()
    assert files.lake.curated.list() == ["files/a.bin"]


def test_a_file_that_is_read_longer_than_its_sas_lives(make_files: Callable[..., Files]) -> None:
    """A new SAS is issued in the middle."""
    files = make_files(sas="5s")
    later = [timedelta(0)]
    adopt_session(Session(files.scope, clock=lambda: utc_now() + later[0]))
    path = upload(files, "a.bin", LARGE)
    with files.system.open(path) as file:
        file.read(10)
        later[0] = timedelta(seconds=4)
        file.seek(5_000_000)
        assert file.read(10) == LARGE[5_000_000:5_000_010]
    issued = [record for record in files.records("sas_issued") if record["path"] == path]
    assert len(issued) == 2


# Matching


def test_a_limit_ends_the_listing(files: Files) -> None:
    """With a limit of 1 a hundred names are asked for, not five thousand, and one page is enough."""
    for number in range(3):
        upload(files, f"{number}.txt", b"x")
    (found,) = files.system.match([files.path("*.txt")], [1])
    assert [file.path for file in found.metadata_list] == [files.path("0.txt")]
    (listing,) = [e for e in files.lake.cloud.proxy.requests if e.operation == "ListBlobs"]
    assert listing.request.parameters["maxresults"] == "100"


def test_a_container_that_is_not_there(files: Files, make_files: Callable[..., Files]) -> None:
    """It holds nothing, and to match in it is an error: it is a wrong name rather than an empty one."""
    nowhere = "abfss://nowhere-at-all@contosolake.dfs.core.windows.net/files/"
    other = make_files(read=[nowhere])
    assert other.system.exists(nowhere + "a.txt") is False
    assert other.system.exists(nowhere) is False
    with pytest.raises(BeamIOError) as caught:
        other.system.match([nowhere + "*"])
    assert isinstance(caught.value.__cause__, BlobNotFound)


def test_versions_of_one_second_have_times_of_their_own(files: Files) -> None:
    """Beam takes a file for updated when its time differs, and Storage's times have no fractions."""
    times = set()
    for number in range(5):
        path = upload(files, "a.txt", b"%d" % number)
        (found,) = files.system.match([files.path("*")])
        times.add(files.system.last_updated(path))
        assert found.metadata_list[0].last_updated_in_seconds == files.system.last_updated(path)
    assert len(times) == 5


def test_errors_name_what_can_be_done(files: Files) -> None:
    """One error of Beam's, ours behind it; a runner's text gives ours back."""
    with pytest.raises(BeamIOError) as caught:
        files.system.match([files.lake.curated.url("other/*"), files.path("*")])
    assert list(caught.value.exception_details) == [files.lake.curated.url("other/*")]
    assert "Match operation failed" in str(caught.value)
    import traceback  # noqa: PLC0415 - only here

    told = find_rendered_error("".join(traceback.format_exception(caught.value)))
    assert isinstance(told, NotGranted)
    assert "add to read = [...]" in str(told)


@pytest.mark.parametrize("path", ["abfss://lake@contosolake.dfs.core.windows.net/a/../b", "abfss://UPPER@x/y", "abfss://x"])
@pytest.mark.parametrize("operation", ["open", "create", "exists", "size", "mkdirs"])
def test_a_path_that_is_none(files: Files, path: str, operation: str) -> None:
    """Nothing slips by: the error is ours, and nothing is sent."""
    with pytest.raises(BeamIOError) as caught:
        getattr(files.system, operation)(path)
    assert isinstance(caught.value.__cause__, (ConfigError, BlobNotFound))
    assert len(files.lake.cloud.proxy.requests) == 0


# Whose identity


def test_without_a_job_paths_work_and_access_is_refused() -> None:
    """Beam makes FileSystems without options; the error comes when something would be sent, and says what to do."""
    system = BlobFileSystem(None)
    path = system.join("abfss://lake@contosolake.dfs.core.windows.net", "b", "c.txt")
    assert system.split(path) == ("abfss://lake@contosolake.dfs.core.windows.net/b", "c.txt")
    container = "abfss://lake@contosolake.dfs.core.windows.net"
    assert system.split(container) == (container, "")
    assert system.split(container + "/b") == (container, "b")
    assert system.has_dirs() is False
    system.mkdirs(path)
    with pytest.raises(BeamIOError) as caught:
        system.open(path)
    assert isinstance(caught.value.__cause__, ConfigError)
    assert "ScopedPipeline" in str(caught.value.__cause__)


def test_the_only_job_of_the_process_is_taken(files: Files) -> None:
    """Where Beam hands no options over, as in some workers."""
    upload(files, "a.txt", b"x")
    open_session(files.scope)
    assert BlobFileSystem(None).open(files.path("a.txt")).read() == b"x"
    assert BlobFileSystem({}).exists(files.path("a.txt"))


@pytest.mark.parametrize("told", [True, False], ids=["with options", "without"])
def test_two_jobs_at_a_time_are_not_confused(make_files: Callable[..., Files], told: bool) -> None:
    """Beam hands over the options of the pipeline that was made last, whoever asks: neither job's rights are used."""
    one, other = make_files(), make_files()
    for files in (one, other):
        open_session(files.scope).bundle("at work").close()
    system = one.system if told else BlobFileSystem(None)
    with pytest.raises(BeamIOError) as caught:
        system.exists(one.path("a.txt"))
    assert isinstance(caught.value.__cause__, ConfigError)
    assert one.scope.job in str(caught.value.__cause__)
    close_session(other.scope.job)
    assert system.exists(one.path("a.txt")) is False


def test_a_job_that_has_ended_is_not_begun_again(make_files: Callable[..., Files]) -> None:
    """Beam keeps the options of the last pipeline; its trail is sealed, and gets no more records."""
    ended, live = make_files(), make_files()
    assert ended.system.exists(ended.path("a.txt")) is False
    close_session(ended.scope.job)
    with pytest.raises(BeamIOError):
        ended.system.exists(ended.path("a.txt"))
    open_session(live.scope)
    assert ended.system.exists(live.path("a.txt")) is False, "the live job's, since it is the only one"
    assert [record["step"] for record in live.records("bundle_opened")] == ["files (exists)"]


def test_options_that_are_no_job_scope(lake: Any) -> None:
    """A scope of another version is an error, not a reason to look further."""
    with pytest.raises(BeamIOError) as caught:
        BlobFileSystem({"entra_job_scope": "{}"}).exists(lake.curated.url("a.txt"))
    assert isinstance(caught.value.__cause__, ConfigError)


# Pipelines


def test_workers_import_the_module(lake: Any) -> None:
    """A launch adds it to --beam_plugins, beside those that are there."""
    options = EntraOptions(["--beam_plugins=some.other"])
    with lake.pipeline() as p:
        assert p.options.view_as(SetupOptions).beam_plugins == ["beam_entra.io.filesystem"]
    from beam_entra import ScopedPipeline  # noqa: PLC0415 - beside the test it is for

    made = ScopedPipeline(options=options, access_manifest=lake.manifest())
    assert made.options.view_as(SetupOptions).beam_plugins == ["some.other", "beam_entra.io.filesystem"]


def test_it_is_the_filesystem_of_the_scheme() -> None:
    """Found by Beam as soon as the package's names are used; the only one of its scheme."""
    found = FileSystems.get_filesystem("abfss://a@contosolake.dfs.core.windows.net/b")
    assert type(found) is BlobFileSystem
    assert type(pickle.loads(pickle.dumps(found))) is BlobFileSystem  # noqa: S301 - our own bytes


RUNNERS = {
    "in one process": ["--runner=DirectRunner", "--prism_location=/nonexistent"],
    "in two worker processes": [
        "--runner=DirectRunner",
        "--prism_location=/nonexistent",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    ],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_beams_text_io_runs_as_the_job(lake: Any, runner: str) -> None:
    """ReadFromText and WriteToText, on whichever worker; the trail is sealed and verifies."""
    lake.raw.upload("in/a.txt", b"1\n2\n3\n")
    lake.raw.upload("in/b.txt", b"4\n5\n")
    here = lake.curated.url("files/")
    manifest = lake.manifest(read=[lake.raw.url("in/"), here], write=[here], delete=[here])
    with lake.pipeline(*RUNNERS[runner], manifest=manifest) as p:
        numbers = p | beam.io.ReadFromText(lake.raw.url("in/*.txt")) | beam.Map(int)
        numbers | beam.Map(lambda number: number * 2) | beam.io.WriteToText(lake.curated.url("files/out"), num_shards=2)
    written = [lake.curated.download(name).split() for name in lake.curated.list("files/")]
    assert sorted(int(number) for part in written for number in part) == [2, 4, 6, 8, 10]
    assert lake.curated.list("files/") == ["files/out-00000-of-00002", "files/out-00001-of-00002"]
    summary = lake.trail(p.report.job).verify()
    assert summary.counts["copied"] == 2
    assert summary.counts["deleted"] >= 2


def test_beams_other_file_io_runs_as_the_job(lake: Any) -> None:
    """Parquet, Avro and fileio in one pipeline: what is written is what was read, and a path not granted is refused."""
    lake.raw.upload("in/a.txt", b"1\n2\n")
    parquet.write_table(pa.table({"id": [3, 4]}), columns := io.BytesIO())
    lake.raw.upload("in/b.parquet", columns.getvalue())
    schema = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "long"}]}
    fastavro.writer(blocks := io.BytesIO(), schema, [{"id": 5}])
    lake.raw.upload("in/c.avro", blocks.getvalue())
    here = lake.curated.url("files/")
    manifest = lake.manifest(read=[lake.raw.url("in/"), here], write=[here], delete=[here])
    with lake.pipeline(*RUNNERS["in one process"], manifest=manifest) as p:
        found = p | fileio.MatchFiles(lake.raw.url("in/*.txt")) | fileio.ReadMatches()
        rows = [
            p | "Parquet" >> beam.io.ReadFromParquet(lake.raw.url("in/*.parquet")),
            p | "Avro" >> beam.io.ReadFromAvro(lake.raw.url("in/*.avro")),
        ]
        ids = rows | beam.Flatten() | beam.Map(lambda row: str(row["id"]))
        texts = found | beam.FlatMap(lambda file: file.read_utf8().split())
        every = (ids, texts) | "All" >> beam.Flatten()
        every | fileio.WriteToFiles(here, shards=1, sink=lambda _: fileio.TextSink())
        refused = p | beam.Create([lake.raw.url("secret/a.txt")]) | beam.Map(is_refused)
        assert_that(refused, equal_to([True]))
    written = [line for name in lake.curated.list("files/") for line in lake.curated.download(name).split()]
    assert sorted(written) == [b"1", b"2", b"3", b"4", b"5"]
    trail = lake.trail(p.report.job)
    trail.verify()
    granted = ("in/a.txt", "in/b.parquet", "in/c.avro")
    assert {each["path"] for each in trail.records("read")} >= {lake.raw.url(name) for name in granted}
    assert [each["path"] for each in trail.records("denied")] == [lake.raw.url("secret/a.txt")]


def is_refused(path: str) -> bool:
    """Whether a worker may not read it."""
    with pytest.raises(BeamIOError) as caught:
        FileSystems.open(path)
    return isinstance(caught.value.__cause__, NotGranted)


def test_a_pattern_outside_the_grants_is_refused_when_the_pipeline_is_built(lake: Any) -> None:
    """ReadFromText looks at its files at once: what comes out of the `with` is our refusal."""
    with pytest.raises(NotGranted), lake.pipeline() as p:
        p | beam.io.ReadFromText(lake.raw.url("secret/*.txt"))
    (denied,) = lake.only_trail().records("denied")
    assert denied["path"] == lake.raw.url("secret/")


def test_a_path_outside_the_grants_is_refused_on_a_worker(lake: Any) -> None:
    """One that the launch could not know."""
    with pytest.raises(NotGranted), lake.pipeline("--prism_location=/nonexistent") as p:
        p | beam.Create([lake.raw.url("secret/a.txt")]) | beam.io.ReadAllFromText()


def test_options_of_a_pipeline_name_its_job(lake: Any) -> None:
    """PipelineOptions as Beam hands them over, not only the dict that workers have."""
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    options = PipelineOptions([], entra_job_scope=scope.to_json())
    assert BlobFileSystem(options).exists(lake.raw.url("in/a.txt")) is False
    close_session(scope.job)
