"""The storage proxy: what it passes, what it records, and each of its faults."""

from __future__ import annotations

import http.client
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas

from beam_entra.testing.https import Answer
from beam_entra.testing.local import LocalCloud, LocalContainer
from beam_entra.testing.proxy import StorageProxy
from beam_entra.testing.storage_requests import matching

VERSION = {"x-ms-version": "2025-07-05"}
Send = Callable[..., Any]


@pytest.fixture
def proxy(beam_entra_cloud: LocalCloud) -> StorageProxy:
    """The cloud's proxy."""
    return beam_entra_cloud.proxy


@pytest.fixture
def pool(beam_entra_cloud: LocalCloud) -> Iterator[urllib3.PoolManager]:
    """A client that trusts the cloud and retries nothing."""
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False, timeout=10) as made:
        yield made


@pytest.fixture
def sas(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> str:
    """A SAS for everything in the test's container."""
    account = beam_entra_container.account
    return generate_container_sas(
        account,
        beam_entra_container.name,
        account_key=beam_entra_cloud.azurite.keys[account].reveal(),
        permission=ContainerSasPermissions(read=True, write=True, create=True, delete=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.fixture
def send(
    beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer, pool: urllib3.PoolManager, sas: str
) -> Send:
    """Send a request for a blob of the test's container, through the proxy or `straight`."""

    def request(method: str, blob: str, *, query: str = "", straight: bool = False, **rest: Any) -> Any:
        account, container = beam_entra_container.account, beam_entra_container.name
        base = beam_entra_cloud.azurite.endpoint(account) if straight else beam_entra_cloud.endpoint(account)
        headers = VERSION | rest.pop("headers", {})
        return pool.request(method, f"{base}/{container}/{blob}?{query}&{sas}", headers=headers, **rest)

    return request


@pytest.fixture
def service(beam_entra_cloud: LocalCloud) -> Iterator[BlobServiceClient]:
    """azure-storage-blob through the proxy, without retries."""
    account = beam_entra_cloud.accounts[0]
    with BlobServiceClient(
        beam_entra_cloud.endpoint(account),
        credential={"account_name": account, "account_key": beam_entra_cloud.azurite.keys[account].reveal()},
        connection_verify=str(beam_entra_cloud.ca_file),
        retry_total=0,
    ) as made:
        yield made


# ---- what passes


def test_the_sdk_works_through_it(
    service: BlobServiceClient, beam_entra_container: LocalContainer, proxy: StorageProxy
) -> None:
    """Upload in blocks, list, read a range, delete: all as without it."""
    blob = service.get_blob_client(beam_entra_container.name, "a b/ü%25.bin")
    data = os.urandom(300_000)
    for number in (b"1", b"2"):
        blob.stage_block(number.hex(), data)
    blob.commit_block_list([b"1".hex(), b"2".hex()])
    assert beam_entra_container.list() == ["a b/ü%25.bin"]
    assert blob.download_blob(offset=299_999, length=2).readall() == data[-1:] + data[:1]
    blob.delete_blob()
    assert [exchange.operation for exchange in proxy.requests] == [
        "PutBlock",
        "PutBlock",
        "PutBlockList",
        "GetBlob",
        "DeleteBlob",
    ]


def test_answers_pass_unchanged(beam_entra_container: LocalContainer, send: Send) -> None:
    """Status, body and all end-to-end headers are those that Azurite gives without the proxy."""
    beam_entra_container.upload("a", b"0123456789")
    replies = [send("GET", "a", headers={"Range": "bytes=2-5"}, straight=straight) for straight in (True, False)]
    direct, through = (dict(reply.headers) for reply in replies)
    varying = {"x-ms-request-id", "Date", "Connection", "Keep-Alive"}
    assert {k: v for k, v in direct.items() if k not in varying} == {
        k: v for k, v in through.items() if k not in varying
    }
    assert [(reply.status, reply.data) for reply in replies] == [(206, b"2345")] * 2
    assert {"etag", "content-range", "x-ms-version"} <= set(through)


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
def test_bodies_of_any_size_pass_both_ways(send: Send, size: int) -> None:
    """What goes up comes down, byte for byte."""
    data = os.urandom(size)
    assert send("PUT", "big", body=data, headers={"x-ms-blob-type": "BlockBlob"}).status == 201
    reply = send("GET", "big")
    assert reply.data == data


def test_a_chunked_upload_passes(beam_entra_cloud: LocalCloud, pool: urllib3.PoolManager, proxy: StorageProxy) -> None:
    """A body without a length is forwarded chunk by chunk. Azurite takes none, so a second proxy stands behind."""
    proxy.respond(201, "Fine")
    pieces = [b"one,", b"", b"two,", b"three" * 100_000]
    with StorageProxy(beam_entra_cloud.certificates, proxy.url) as front:
        for _ in range(2):  # the second one shows that the first was read to its end
            assert pool.request("PUT", front.endpoint("lake/raw/a"), body=iter(pieces)).status == 201
    assert [exchange.sent_bytes for exchange in (*front.requests, *proxy.requests)] == [500_008] * 4


def test_a_head_has_no_body(beam_entra_container: LocalContainer, send: Send) -> None:
    """HEAD gives the length of the blob, and the connection can be used again."""
    beam_entra_container.upload("a", b"0123456789")
    for _ in range(2):
        reply = send("HEAD", "a")
        assert (reply.status, reply.headers["Content-Length"], reply.data) == (200, "10", b"")


def test_a_client_may_wait_for_100_continue(beam_entra_cloud: LocalCloud, send: Send, sas: str) -> None:
    """`Expect: 100-continue` is answered here and not forwarded."""
    reply = send("PUT", "a", body=b"data", headers={"x-ms-blob-type": "BlockBlob", "Expect": "100-continue"})
    assert reply.status == 201


def test_connections_are_kept(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer, sas: str) -> None:
    """Many requests on one connection are served by one thread."""
    beam_entra_container.upload("a", b"x")
    address = urlsplit(beam_entra_cloud.proxy.url)
    context = ssl.create_default_context(cafile=str(beam_entra_cloud.ca_file))
    with closing(http.client.HTTPSConnection("127.0.0.1", address.port, context=context)) as connection:
        before = {thread.name for thread in threading.enumerate()}
        for _ in range(5):
            path = f"/{beam_entra_container.account}/{beam_entra_container.name}/a?{sas}"
            connection.request("GET", path, headers=VERSION)
            assert connection.getresponse().read() == b"x"
        fresh = {thread.name for thread in threading.enumerate()} - before
        assert len([name for name in fresh if name.startswith("proxy-")]) == 1


def test_many_clients_at_once(beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy) -> None:
    """Concurrent requests do not mix."""
    for number in range(8):
        beam_entra_container.upload(str(number), str(number).encode() * 50_000)
    with ThreadPoolExecutor(8) as workers:
        bodies = list(workers.map(lambda n: send("GET", str(n % 8)).data, range(64)))
    assert all(body == str(n % 8).encode() * 50_000 for n, body in enumerate(bodies))
    assert proxy.count(matching("GetBlob")) == 64


# ---- what is recorded


def test_an_exchange_is_recorded_before_the_client_has_its_answer(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy
) -> None:
    """Whoever has an answer finds its record, with all facts; secrets are kept but do not show."""
    beam_entra_container.upload("a", b"0123456789")
    before = datetime.now(UTC)
    reply = send("GET", "a", headers={"x-ms-client-request-id": "mine"})
    (exchange,) = proxy.requests
    assert (exchange.operation, exchange.status, exchange.fault) == ("GetBlob", 200, "")
    assert (exchange.sent_bytes, exchange.received_bytes) == (0, 10)
    assert exchange.request_id == reply.headers["x-ms-request-id"]
    assert exchange.request.headers["x-ms-client-request-id"] == "mine"
    assert exchange.request.credential == "sas"
    assert exchange.request.parameters["sig"] not in repr(exchange)
    assert before <= exchange.time <= datetime.now(UTC)
    assert 0 < exchange.duration_s < 5


def test_exchanges_can_be_waited_for_and_forgotten(send: Send, proxy: StorageProxy) -> None:
    """`wait_for` sees a request of another thread; `clear` empties the journal and the faults."""
    with ThreadPoolExecutor(1) as worker:
        worker.submit(send, "GET", "missing")
        (exchange,) = proxy.wait_for(lambda exchanges: any(seen.status == 404 for seen in exchanges))
    assert exchange.request.blob == "missing"
    proxy.reset()
    proxy.clear()
    assert not proxy.requests
    assert send("GET", "missing").status == 404


# ---- faults


def test_it_can_answer_in_storages_place(send: Send, proxy: StorageProxy) -> None:
    """Status, code, headers and XML body are Storage's; the request's body is read, the connection lives on."""
    proxy.respond(503, "ServerBusy", headers={"Retry-After": "2"}, times=1)
    headers = {"x-ms-blob-type": "BlockBlob", "x-ms-client-request-id": "mine"}
    reply = send("PUT", "a", body=b"x" * 1_000_000, headers=headers)
    assert reply.status == 503
    assert (reply.headers["Retry-After"], reply.headers["x-ms-error-code"]) == ("2", "ServerBusy")
    assert reply.headers["x-ms-client-request-id"] == "mine"
    assert b"<Code>ServerBusy</Code>" in reply.data
    (exchange,) = proxy.requests
    assert (exchange.fault, exchange.status, exchange.sent_bytes) == ("ServerBusy", 503, 1_000_000)
    assert exchange.request_id == reply.headers["x-ms-request-id"]
    assert send("PUT", "a", body=b"x", headers={"x-ms-blob-type": "BlockBlob"}).status == 201


def test_a_test_can_stand_in_for_storage(send: Send, proxy: StorageProxy) -> None:
    """What it makes of a request is the answer, and nothing is forwarded; other requests pass."""
    fault = proxy.stand_in(
        lambda request: Answer(status=200, body=request.blob.upper().encode()), where=matching("GetBlob", blob="a b")
    )
    assert send("GET", "a%20b").data == b"A B"
    assert send("GET", "b").status == 404
    seen = proxy.requests[0]
    assert (fault.hits, seen.status, seen.received_bytes, seen.fault, seen.request_id) == (1, 200, 3, "stand_in", "")


def test_the_sdk_reads_a_made_up_error(
    service: BlobServiceClient, beam_entra_container: LocalContainer, proxy: StorageProxy
) -> None:
    """azure-storage-blob finds the code in our error body and headers."""
    proxy.respond(409, "BlobImmutableDueToPolicy", where=matching("PutBlob"))
    with pytest.raises(HttpResponseError) as caught:
        service.get_blob_client(beam_entra_container.name, "a").upload_blob(b"x")
    assert caught.value.error_code == "BlobImmutableDueToPolicy"  # type: ignore[attr-defined]  # set by the SDK


def test_a_missing_role_shows_as_storage_shows_it(
    service: BlobServiceClient, beam_entra_container: LocalContainer, proxy: StorageProxy
) -> None:
    """403 AuthorizationPermissionMismatch for user delegation keys; all else goes on."""
    proxy.without_role()
    now = datetime.now(UTC)
    with pytest.raises(HttpResponseError, match="AuthorizationPermissionMismatch") as caught:
        service.get_user_delegation_key(now, now + timedelta(hours=1))
    assert caught.value.status_code == 403
    service.get_blob_client(beam_entra_container.name, "a").upload_blob(b"x")


def test_a_reset_before_sending_reaches_nobody(
    service: BlobServiceClient, beam_entra_container: LocalContainer, proxy: StorageProxy
) -> None:
    """The client gets a transport error; the blob is not there."""
    proxy.reset(where=matching("PutBlob"), times=1)
    blob = service.get_blob_client(beam_entra_container.name, "a")
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        blob.upload_blob(b"x")
    assert beam_entra_container.list() == []
    assert (proxy.requests[-1].fault, proxy.requests[-1].status) == ("reset", 0)
    blob.upload_blob(b"x")


def test_a_lost_answer_leaves_the_work_done(
    service: BlobServiceClient, beam_entra_container: LocalContainer, proxy: StorageProxy
) -> None:
    """The ambiguous outcome: the client sees an error, the blob is there."""
    proxy.lose_answer(where=matching("PutBlob"), times=1)
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        service.get_blob_client(beam_entra_container.name, "a").upload_blob(b"x")
    assert beam_entra_container.list() == ["a"]
    assert (proxy.requests[-1].fault, proxy.requests[-1].status) == ("lose_answer", 201)


@pytest.mark.parametrize("keep", [0, 10, 700_000])
def test_a_truncated_body_ends_early(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy, keep: int
) -> None:
    """The head promises all, the first bytes come, then the connection ends; the next read is whole."""
    beam_entra_container.upload("a", b"x" * 1_000_000)
    proxy.truncate(keep, times=1)
    reply = send("GET", "a", preload_content=False)
    assert (reply.status, reply.headers["Content-Length"]) == (200, "1000000")
    with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
        reply.read()
    reply.close()
    assert (proxy.requests[-1].received_bytes, proxy.requests[-1].fault) == (keep, "truncate")
    assert len(send("GET", "a").data) == 1_000_000


def test_a_body_is_cut_by_a_reset(beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy) -> None:
    """The head promises all, and the connection ends as when a machine dies."""
    beam_entra_container.upload("a", b"x" * 1_000_000)
    proxy.truncate(1000, reset=True, times=1)
    reply = send("GET", "a", preload_content=False)
    with pytest.raises((urllib3.exceptions.ProtocolError, urllib3.exceptions.SSLError)):
        reply.read()
    reply.close()
    assert len(send("GET", "a").data) == 1_000_000


def test_a_body_drips_until_the_fault_is_cleared(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy
) -> None:
    """Some of it comes, and all of it at once when the weather is fine again."""
    beam_entra_container.upload("a", b"x" * 1_000_000)
    fault = proxy.drip(1000)
    reply = send("GET", "a", preload_content=False)
    assert len(reply.read(150)) == 150
    assert fault.hits == 1
    fault.clear()
    assert len(reply.read()) == 1_000_000 - 150


def test_something_is_done_when_a_request_arrives(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy
) -> None:
    """Before the request goes on: it finds what was done."""
    beam_entra_container.upload("a", b"old")
    proxy.run(lambda: beam_entra_container.upload("a", b"new"), where=matching("GetBlob"), skip=1)
    assert [send("GET", "a").data for _ in range(3)] == [b"old", b"new", b"new"]


@pytest.mark.parametrize("answer", [False, True], ids=["the request", "the answer"])
def test_a_request_is_held_until_it_is_released(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy, answer: bool
) -> None:
    """Held as a request nothing has happened yet; held as an answer the work is done."""
    fault = proxy.hold(answer=answer, where=matching("PutBlob"))
    assert fault.gate is not None
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(send, "PUT", "a", body=b"x", headers={"x-ms-blob-type": "BlockBlob"})
        fault.gate.wait_for_arrivals()
        assert not pending.done()
        assert beam_entra_container.list() == (["a"] if answer else [])
        fault.gate.open()
        assert pending.result(5).status == 201


def test_a_delay_ends_by_itself(beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy) -> None:
    """Held for seconds, a request takes that long and is fine."""
    beam_entra_container.upload("a", b"x")
    proxy.hold(0.05, times=1)
    assert send("GET", "a").data == b"x"
    assert proxy.requests[-1].duration_s >= 0.05
    assert proxy.requests[-1].fault == "hold"


def test_faults_skip_count_and_choose(beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy) -> None:
    """The second and third GET fail; a HEAD in between is not counted."""
    beam_entra_container.upload("a", b"x")
    fault = proxy.respond(500, "InternalError", where=matching("GetBlob"), skip=1, times=2)
    statuses = [send(method, "a").status for method in ("GET", "HEAD", "GET", "HEAD", "GET", "GET")]
    assert statuses == [200, 200, 500, 200, 500, 200]
    assert fault.hits == 2


def test_clearing_faults_releases_what_is_held(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy
) -> None:
    """`clear_faults` switches off and lets go; the journal stays."""
    beam_entra_container.upload("a", b"x")
    fault = proxy.hold()
    with ThreadPoolExecutor(1) as worker:
        pending = worker.submit(send, "GET", "a")
        fault.wait_for_hits()
        proxy.clear_faults()
        assert pending.result(5).data == b"x"
    assert len(proxy.requests) == 1


# ---- its own life


def test_closing_releases_what_is_held_and_leaves_no_thread(beam_entra_cloud: LocalCloud) -> None:
    """A proxy that holds a request closes all the same."""
    before = set(threading.enumerate())
    own = StorageProxy(beam_entra_cloud.certificates, beam_entra_cloud.azurite.url)
    fault = own.hold()
    with (
        urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False) as pool,
        ThreadPoolExecutor(1) as worker,
    ):
        pending = worker.submit(pool.request, "GET", own.endpoint("contosolake"))
        fault.wait_for_hits()
        own.close()
        own.close()
        pending.exception(5)
    assert not set(threading.enumerate()) - before


def test_a_service_that_is_down_is_a_reset(beam_entra_cloud: LocalCloud) -> None:
    """Nothing behind the proxy: the client gets a transport error, the record says why."""
    with (
        StorageProxy(beam_entra_cloud.certificates, "https://127.0.0.1:9") as own,
        urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False) as pool,
        pytest.raises(urllib3.exceptions.HTTPError),
    ):
        pool.request("GET", own.endpoint("contosolake"))
    assert (own.requests[-1].fault, own.requests[-1].status) == ("unreachable", 0)


def test_a_body_is_corrupted_on_its_way(
    beam_entra_container: LocalContainer, send: Send, proxy: StorageProxy
) -> None:
    """One bit of what was sent arrives changed, as often as was said."""
    proxy.corrupt(times=1)
    for name in ("damaged", "whole"):
        headers = {"x-ms-blob-type": "BlockBlob"}
        assert send("PUT", name, body=b"abc", headers=headers).status == 201
    assert beam_entra_container.download("damaged") == b"`bc"
    assert beam_entra_container.download("whole") == b"abc"
