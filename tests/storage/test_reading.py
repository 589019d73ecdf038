"""Ranged reads: byte-identical whatever breaks on the way, and never of two versions."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from beam_entra.errors import AccessDenied, BlobChanged, BlobNotFound, StorageError, Throttled
from beam_entra.paths import BlobPath
from beam_entra.storage.transport import ConnectionPool
from beam_entra.storage.wire import Pace
from beam_entra.testing.proxy import StorageFault, StorageProxy
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import ACCOUNT, Desk

GET = matching("GetBlob")
MIB = 1 << 20
CONTENT = os.urandom(3 * MIB)


def ranges(desk: Desk) -> list[str]:
    """The ranges that were asked for."""
    return [each.request.headers["x-ms-range"] for each in desk.cloud.proxy.requests if each.operation == "GetBlob"]


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (10, 11), (0, 3 * MIB), (MIB, 2 * MIB), (3 * MIB - 1, 3 * MIB)])
def test_a_range_is_these_bytes(desk, start, stop):
    """Bytes [start, stop), in one request."""
    blob = desk.upload(CONTENT)
    assert desk.read(blob, start, stop) == CONTENT[start:stop]
    assert ranges(desk) == [f"bytes={start}-{stop - 1}"]


def test_nothing_is_asked_for_an_empty_range(desk):
    """An empty blob costs no request."""
    blob = desk.upload(b"")
    assert (blob.size_bytes, desk.read(blob)) == (0, b"")
    assert ranges(desk) == []


@dataclass(frozen=True)
class Break:
    """How one answer breaks, and where the read goes on."""

    fault: Callable[[StorageProxy], StorageFault]
    resumes_at: int


BREAKS = {
    "the body is cut": Break(lambda proxy: proxy.truncate(1_234_567, where=GET, times=1), 1_234_567),
    "the body is cut at its first byte": Break(lambda proxy: proxy.truncate(0, where=GET, times=1), 0),
    "the connection is reset": Break(lambda proxy: proxy.reset(where=GET, times=1), 0),
    "the answer is lost": Break(lambda proxy: proxy.lose_answer(where=GET, times=1), 0),
    "the server is busy": Break(lambda proxy: proxy.respond(503, "ServerBusy", where=GET, times=1), 0),
    "the server fails": Break(lambda proxy: proxy.respond(500, "InternalError", where=GET, times=1), 0),
    "the operation times out": Break(lambda proxy: proxy.respond(500, "OperationTimedOut", where=GET, times=1), 0),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_read_goes_on_at_the_byte(desk, name):
    """After one break the rest is asked for, from the byte where it broke, and the bytes are the blob's."""
    blob = desk.upload(CONTENT)
    BREAKS[name].fault(desk.cloud.proxy)
    assert desk.read(blob) == CONTENT
    end = len(CONTENT) - 1
    assert ranges(desk) == [f"bytes=0-{end}", f"bytes={BREAKS[name].resumes_at}-{end}"]
    assert len(desk.paused) == 1


def test_a_read_outlives_many_breaks_as_long_as_it_gets_on(desk):
    """Each answer brings some bytes: then it does not matter how many it takes. Each answer is told of."""
    blob = desk.upload(CONTENT)
    desk.cloud.proxy.truncate(300_000, where=GET, times=10)
    told: list[tuple[int, int]] = []
    content = desk.service.read_range(
        blob, 0, len(CONTENT), desk.may("a.jsonl", "r"), desk.next_id, lambda answer, *span: told.append(span)
    )
    assert hashlib.sha256(content).digest() == hashlib.sha256(CONTENT).digest()
    assert told == [(at, len(CONTENT)) for at in range(0, 3_300_000, 300_000)][:11]


def test_a_read_that_gets_nowhere_ends(desk):
    """Bodies that break before their first byte, again and again, are an error that says what was tried."""
    blob = desk.upload(CONTENT)
    fault = desk.cloud.proxy.truncate(0, where=GET)
    with pytest.raises(StorageError, match="Storage did not answer") as caught:
        desk.read(blob)
    assert fault.hits == 6
    assert str(blob.path) in caught.value.diagnosis.tried
    assert "certificate" not in str(caught.value)


@pytest.fixture
def slow(desk):
    """The same service, which waits a quarter of a second for 100 KB and not half a minute."""
    pool = ConnectionPool(
        ssl.create_default_context(cafile=str(desk.cloud.ca_file)), pace=Pace(least_bytes=100_000, within_s=0.25)
    )
    yield desk.service_at(pool=lambda ca_file: pool)
    pool.clear()


@pytest.mark.timeout(30)
def test_a_body_that_drips_is_asked_for_again_from_the_byte_it_has_come_to(desk, slow):
    """As with a break: what has come stays, the rest is another request, and the bytes are the blob's."""
    blob = desk.upload(CONTENT)
    desk.cloud.proxy.drip(20_000, where=GET, times=2)
    authorise = desk.may("a.jsonl", "r")
    assert bytes(slow.read_range(blob, 0, len(CONTENT), authorise, desk.next_id, lambda *_: None)) == CONTENT
    begins = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges(desk)]
    assert begins == sorted(set(begins))
    assert len(begins) == 3
    assert begins[1] > 0


@pytest.mark.timeout(30)
def test_a_body_that_never_comes_faster_is_an_error(desk, slow):
    """Each answer brings some bytes, but at this rate nobody would live to see the end."""
    blob = desk.upload(CONTENT)
    fault = desk.cloud.proxy.drip(20_000, where=GET)
    with pytest.raises(StorageError, match=r"less than .* came over the connection") as caught:
        slow.read_range(blob, 0, len(CONTENT), desk.may("a.jsonl", "r"), desk.next_id, lambda *_: None)
    assert fault.hits == 6
    assert "slow" in caught.value.hint


def test_each_attempt_is_authorised_anew(desk):
    """A retry does not carry the SAS of the attempt before: it may be old by then."""
    blob = desk.upload(CONTENT)
    desk.cloud.proxy.respond(503, "ServerBusy", where=GET, times=2)
    desk.cloud.proxy.truncate(100, where=GET, times=1)
    sent = []

    def authorise():
        sent.append(desk.may("a.jsonl", "r")())
        return sent[-1]

    desk.service.read_range(blob, 0, 1000, authorise, desk.next_id, lambda *_: None)
    signatures = [each.request.parameters["sig"] for each in desk.cloud.proxy.requests if each.operation == "GetBlob"]
    assert len(sent) == len(signatures) == 4


def test_a_blob_that_changed_is_an_error(desk):
    """A read pins the version that was matched: another one is BlobChanged, and no byte of it arrives."""
    blob = desk.upload(b"the first version")
    desk.container.upload("a.jsonl", b"another version.")
    with pytest.raises(BlobChanged) as caught:
        desk.read(blob)
    assert caught.value.diagnosis.status == 412
    assert caught.value.diagnosis.request_id
    assert "nobody writes to" in caught.value.hint


def test_a_blob_that_changes_within_a_read_is_an_error(desk):
    """Between the break and the resumption the blob is overwritten: never mixed data."""
    blob = desk.upload(CONTENT)
    desk.cloud.proxy.truncate(1_000_000, where=GET, times=1)
    service = desk.service_at(pause=lambda seconds: desk.container.upload("a.jsonl", CONTENT[::-1]))
    with pytest.raises(BlobChanged):
        service.read_range(blob, 0, len(CONTENT), desk.may("a.jsonl", "r"), desk.next_id, lambda *_: None)
    assert ranges(desk)[1] == f"bytes=1000000-{len(CONTENT) - 1}"


def careless(header: str) -> type[ConnectionPool]:
    """The wire with something on the way that drops a header, as a cache or proxy may."""

    class Careless(ConnectionPool):
        def __init__(self, ca_file: str) -> None:
            super().__init__(ssl.create_default_context(cafile=ca_file))

        def open(self, method, url, *, headers, body):
            kept = {name: value for name, value in headers.items() if name != header}
            return super().open(method, url, headers=kept, body=body)

    return Careless


@pytest.mark.parametrize("header", ["If-Match", "x-ms-range"])
def test_an_answer_of_another_version_or_range_is_not_believed(desk, header):
    """Where a condition is lost on the way, the answer's own ETag and range tell."""
    blob = desk.upload(CONTENT)
    desk.container.upload("a.jsonl", CONTENT if header == "x-ms-range" else CONTENT[::-1])
    if header == "x-ms-range":
        blob = desk.service.properties(blob.path, desk.may("a.jsonl", "r"), desk.next_id())[0]
    service = desk.service_at(pool=careless(header))
    with pytest.raises(BlobChanged, match="another version or range"):
        service.read_range(blob, 10, 20, desk.may("a.jsonl", "r"), desk.next_id, lambda *_: None)


def test_a_missing_blob_and_a_missing_container_are_told_apart(desk):
    """Both are FileNotFoundError; the message says which."""
    blob = desk.upload(b"content")
    desk.cloud.proxy.respond(404, "BlobNotFound", where=GET, times=1)
    with pytest.raises(BlobNotFound, match="the blob does not exist"):
        desk.read(blob)
    gone = replace(blob, path=BlobPath(account=ACCOUNT, container="no-such-container", name="a"))
    desk.cloud.proxy.respond(404, "ContainerNotFound", where=matching("GetBlob", container="no-such-container"))
    with pytest.raises(FileNotFoundError, match="the container does not exist") as caught:
        desk.read(gone)
    assert "check the container's name" in caught.value.hint


def test_properties_of_what_is_not_there(desk):
    """A HEAD has no body, and still the code is known."""
    with pytest.raises(BlobNotFound, match="the blob does not exist") as caught:
        desk.service.properties(desk.path("nothing"), desk.may("nothing", "r"), "my-id")
    assert caught.value.diagnosis.client_request_id == "my-id"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        ("AuthorizationFailure", "firewall"),
        ("AuthenticationFailed", "clock is right"),
        ("NoSuchCodeYet", "storage log"),
    ],
)
def test_a_refusal_has_a_hint_and_a_request_id(desk, code, said):
    """403 is AccessDenied at once, with Storage's code, its request id, ours, and what to do."""
    blob = desk.upload(b"content")
    fault = desk.cloud.proxy.respond(403, code, where=GET)
    with pytest.raises(AccessDenied) as caught:
        desk.read(blob)
    known = caught.value.diagnosis
    assert (known.status, known.code, known.attempts, fault.hits) == (403, code, 1, 1)
    assert said in known.hint
    assert known.request_id == desk.cloud.proxy.requests[-1].request_id
    assert known.client_request_id.startswith("test-")


def test_the_code_is_found_in_the_body_too(desk):
    """Where something on the way drops the header, the body has the code."""
    blob = desk.upload(b"content")
    desk.cloud.proxy.respond(403, "AuthorizationFailure", headers={"x-ms-error-code": ""}, where=GET)
    with pytest.raises(AccessDenied) as caught:
        desk.read(blob)
    assert caught.value.diagnosis.code == "AuthorizationFailure"


@pytest.mark.parametrize(
    ("headers", "asked_s"),
    [({"Retry-After": "3"}, 3), ({"x-ms-retry-after-ms": "250"}, 0.25), ({"Retry-After": "\xb2"}, 0), ({}, 0)],
)
def test_retry_after_is_honoured(desk, headers, asked_s):
    """A busy server is asked again after the time it gives, or after a pause of our own that grows."""
    blob = desk.upload(b"content")
    desk.cloud.proxy.respond(503, "ServerBusy", headers=headers, where=GET, times=3)
    assert desk.read(blob) == b"content"
    assert len(desk.paused) == 3
    for number, pause in enumerate(desk.paused):
        assert asked_s <= pause <= asked_s + 0.2 * 2**number


def test_a_server_that_stays_busy(desk):
    """At the end it is Throttled: retryable, with the number of attempts and what the server asked for."""
    blob = desk.upload(b"content")
    fault = desk.cloud.proxy.respond(503, "ServerBusy", headers={"Retry-After": "2"}, where=GET)
    with pytest.raises(Throttled) as caught:
        desk.read(blob)
    assert (caught.value.diagnosis.attempts, fault.hits) == (7, 7)
    assert caught.value.diagnosis.retry_after_s == 2
    assert caught.value.retryable


def test_nobody_sleeps_for_an_hour(desk):
    """A Retry-After beyond our patience fails the request at once, and says so."""
    blob = desk.upload(b"content")
    desk.cloud.proxy.respond(503, "ServerBusy", headers={"Retry-After": "3600"}, where=GET)
    with pytest.raises(Throttled) as caught:
        desk.read(blob)
    assert caught.value.diagnosis.retry_after_s == 3600
    assert desk.paused == []


@pytest.mark.parametrize("status", [301, 302, 307, 304])
def test_a_redirect_is_no_answer(desk, status):
    """What is not 2xx has not been done."""
    blob = desk.upload(b"content")
    desk.cloud.proxy.respond(status, "Moved", headers={"Location": "https://example.com/"})
    with pytest.raises(StorageError):
        desk.read(blob)
    with pytest.raises(StorageError):
        desk.stage(b"data", "AAAA")
    with pytest.raises(StorageError):
        desk.service.properties(blob.path, desk.may("a.jsonl", "r"), "id")
