"""The wire: TLS that is checked, connections that are shared within a process and not beyond it, logs without SAS."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from beam_entra.errors import BeamEntraError, ConfigError, StorageError
from beam_entra.secret import Secret
from beam_entra.storage import Authorization, connection_pool, redact
from beam_entra.storage.answers import Answer, refusal
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.storage_requests import matching
from tests.identity.leaks import everything_in

GET = matching("GetBlob")


def test_an_untrusted_endpoint(desk, tmp_path):
    """A certificate of another CA: nothing is sent, nothing is retried, and the hint names the setting."""
    other = RunCertificates.issue(tmp_path)
    service = desk.service_at(ca_file=str(other.ca_file))
    with pytest.raises(StorageError, match="its certificate is not trusted") as caught:
        service.properties(desk.path(), desk.may("a.jsonl", "r"), "id")
    assert "ca_file of the account" in caught.value.hint
    assert (caught.value.diagnosis.attempts, desk.paused) == (1, [])
    assert len(desk.cloud.proxy.requests) == 0


@pytest.mark.parametrize("content", [None, b"no certificate\n"], ids=["missing", "garbage"])
def test_a_ca_file_that_is_none(desk, tmp_path, content):
    """A CA file that is not there, or holds no CA, is named; no SAS is made for the attempt."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    authorised = []
    with pytest.raises(ConfigError) as caught:
        desk.service_at(ca_file=str(path)).properties(desk.path(), lambda: authorised.append(1), "id")
    assert str(path) in caught.value.message
    assert "ca_file in [accounts" in caught.value.hint
    assert authorised == []


def test_without_tls_nothing_is_sent(desk):
    """Whatever the settings of an account came to say: neither a SAS nor a token leaves in the clear."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        service = desk.service_at(f"http://127.0.0.1:{listener.getsockname()[1]}/contosolake")
        for credential in ({"sas": Secret("sv=1", what="SAS")}, {"bearer": Secret("t", what="access token")}):
            with pytest.raises(ValueError, match="without TLS nothing is sent"):
                service.properties(desk.path(), partial(Authorization, **credential), "id")
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody has come


@contextmanager
def hangs_up(*, after_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """A server that reads a little and closes the connection: what a proxy or firewall does to TLS it dislikes."""
    visits: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                visits.append(1)
                with connection:
                    if after_bytes:
                        connection.recv(after_bytes)

        threading.Thread(target=serve, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/contosolake", visits
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("after_bytes", [0, 4096], ids=["before the handshake", "in the handshake"])
def test_a_handshake_that_breaks_off_is_tried_again(desk, after_bytes):
    """A connection that ends within TLS is no matter of trust: it is retried, and said for what it is."""
    unanswered = pytest.raises(StorageError, match="Storage did not answer")
    with hangs_up(after_bytes=after_bytes) as (endpoint, visits), unanswered as caught:
        desk.service_at(endpoint).properties(desk.path(), desk.may("a.jsonl", "r"), "id")
    assert "certificate" not in str(caught.value)
    assert len(visits) == caught.value.diagnosis.attempts == 7


def test_nobody_listens(desk):
    """A connection that is refused is retried, and then an error that says where to look."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StorageError, match="Storage did not answer: NewConnectionError") as caught:
        desk.service_at(f"https://127.0.0.1:{port}/contosolake").properties(desk.path(), desk.may("a", "r"), "id")
    assert caught.value.diagnosis.attempts == 7
    assert "can be reached from this worker" in caught.value.hint


def test_connections_are_shared(desk):
    """One pool for each CA, whatever the number of services: the next request finds a connection open."""
    assert connection_pool(str(desk.cloud.ca_file)) is connection_pool(str(desk.cloud.ca_file))
    assert connection_pool(str(desk.cloud.ca_file)) is not connection_pool("")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_connections(desk):
    """Two processes on one TLS connection would break it for both: a child begins without its parent's."""
    blob = desk.upload(b"content")
    assert desk.read(blob) == b"content"
    parent = connection_pool(str(desk.cloud.ca_file))
    child = os.fork()
    if child == 0:  # pragma: no cover - not measured in the child
        try:
            fresh = connection_pool(str(desk.cloud.ca_file)) is not parent
            os._exit(0 if fresh and desk.read(blob) == b"content" else 1)
        except BaseException:  # noqa: BLE001 - the child ends here, whatever it is
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert connection_pool(str(desk.cloud.ca_file)) is parent
    assert desk.read(blob) == b"content"


# ---------------------------------------------------------------- no SAS in logs and errors


def test_logs_hold_no_signature(desk, caplog):
    """Each request is logged at DEBUG; the SAS in it is redacted, in success, retry and refusal."""
    with caplog.at_level(logging.DEBUG):
        blob = desk.upload(b"content")
        desk.cloud.proxy.reset(where=GET, times=2)
        desk.read(blob)
        desk.cloud.proxy.respond(403, "AuthorizationFailure", where=GET)
        with pytest.raises(BeamEntraError):
            desk.read(blob)
    assert "sig=redacted" in caplog.text
    assert not re.search(r"sig=(?!redacted)", caplog.text)
    assert desk.cloud.find_leaks(caplog.text) == []


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("?sig=abc%2B&se=1", "?sig=redacted&se=1"),
        ("sig=abc", "sig=redacted"),
        ('"GET /a?se=1&sig=abc HTTP/1.1"', '"GET /a?se=1&sig=redacted HTTP/1.1"'),
        ("no signature, design=new", "no signature, design=new"),
    ],
)
def test_redaction(text, redacted):
    """Signatures go, the rest stays."""
    assert redact(text) == redacted


FAULTS = {
    "refused": lambda proxy: proxy.respond(403, "AuthorizationFailure"),
    "busy": lambda proxy: proxy.respond(503, "ServerBusy"),
    "missing": lambda proxy: proxy.respond(404, "BlobNotFound"),
    "changed": lambda proxy: proxy.respond(412, "ConditionNotMet"),
    "reset": lambda proxy: proxy.reset(),
    "cut": lambda proxy: proxy.truncate(0, where=GET),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_hold_no_signature(desk, name):
    """Neither message, diagnosis, cause, context nor a local variable on the way shows the SAS."""
    blob = desk.upload(b"content")
    FAULTS[name](desk.cloud.proxy)
    with pytest.raises(BeamEntraError) as caught:
        desk.read(blob)
    shown = everything_in(caught.value)
    assert "sig=" not in shown
    assert desk.cloud.find_leaks(shown) == []


def test_an_unexpected_error_holds_no_signature(desk, tmp_path):
    """Also what is not translated passes no frame that has the SAS as text."""
    blob = desk.upload(b"content")

    def broken(ca_file):
        raise RuntimeError("a defect")

    service = desk.service_at(pool=broken)
    with pytest.raises(RuntimeError) as caught:
        service.read_range(blob, 0, 7, desk.may("a.jsonl", "r"), desk.next_id, lambda *_: None)
    assert "sig=" not in everything_in(caught.value)


# ---------------------------------------------------------------- what each status means


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [
        (400, "InvalidHeaderValue", "StorageError"),
        (401, "NoAuthenticationInformation", "AccessDenied"),
        (403, "UnauthorizedBlobOverwrite", "BlobExists"),
        (404, "", "BlobNotFound"),
        (409, "BlobAlreadyExists", "BlobExists"),
        (409, "LeaseIdMissing", "StorageError"),
        (412, "ConditionNotMet", "BlobChanged"),
        (416, "InvalidRange", "StorageError"),
        (429, "TooManyRequests", "Throttled"),
        (500, "InternalError", "StorageError"),
        (503, "ServerBusy", "Throttled"),
    ],
)
def test_every_refusal_has_a_next_step(status, code, name):
    """Each answer is one kind of error, and says what to do."""
    answer = Answer(status=status, headers={"x-ms-error-code": code, "x-ms-request-id": "r"}, client_request_id="c")
    error = refusal(answer, tried="read a", attempts=2)
    assert type(error).__name__ == name
    assert error.hint
    assert error.diagnosis.request_id == "r"


def test_ids_for_the_audit():
    """Where the service gives no request id, the record says so instead of holding nothing."""
    assert Answer(status=200, headers={}, client_request_id="c").ids() == {
        "request_id": "absent",
        "client_request_id": "c",
    }


