"""The small HTTPS server below all the kit's servers."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import urllib3

from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, DropConnection, HttpsServer, Request, ServiceHandler


class Echo:
    """Says what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Request] = []

    def answer(self, request: Request) -> Answer:
        """Echo, or hang up on `/drop`."""
        self.seen.append(request)
        if request.path == "/drop":
            raise DropConnection
        return Answer(status=201, headers={"X-Echo": request.path}, body=request.body)


@pytest.fixture
def echo(certificates: RunCertificates) -> Iterator[HttpsServer]:
    """A server that echoes."""
    with HttpsServer(certificates.server_context(), ServiceHandler, Echo(), name="echo") as server:
        yield server


def test_it_answers_over_tls(echo: HttpsServer, http: urllib3.PoolManager) -> None:
    """Status, headers and body come over; Date and Content-Length are added."""
    reply = http.request("POST", f"{echo.url}/a%20b?x=1", body=b"hello")
    assert (reply.status, reply.data, reply.headers["X-Echo"]) == (201, b"hello", "/a b")
    assert reply.headers["Content-Length"] == "5"
    assert reply.headers["Date"].endswith("GMT")


def test_it_keeps_a_connection(echo: HttpsServer, certificates: RunCertificates) -> None:
    """Two requests on one connection meet one thread."""
    connection = http.client.HTTPSConnection("127.0.0.1", echo.port, context=certificates.client_context())
    for path in ("/1", "/2"):
        connection.request("GET", path)
        assert connection.getresponse().read() == b""
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("echo-")]
    assert len(names) == 2  # the acceptor and this connection's
    connection.close()


def test_a_head_request_has_no_body(echo: HttpsServer, http: urllib3.PoolManager) -> None:
    """HEAD gives the head of what GET would give."""
    assert http.request("HEAD", f"{echo.url}/x").headers["X-Echo"] == "/x"


def test_dropping_resets_the_connection(echo: HttpsServer, certificates: RunCertificates) -> None:
    """A dropped connection is a reset: the client gets an error, never half an answer."""
    connection = http.client.HTTPSConnection("127.0.0.1", echo.port, context=certificates.client_context())
    connection.request("GET", "/drop")
    with pytest.raises((ConnectionError, ssl.SSLError)):
        connection.getresponse()
    connection.close()


def test_a_client_that_speaks_no_tls_harms_nobody(echo: HttpsServer, http: urllib3.PoolManager) -> None:
    """A failed handshake ends that connection only."""
    with socket.create_connection(("127.0.0.1", echo.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(100).startswith(b"HTTP")
    assert http.request("GET", f"{echo.url}/after").status == 201


def test_a_body_that_is_too_big_is_refused(echo: HttpsServer, certificates: RunCertificates) -> None:
    """A service's requests are small; a length beyond a mebibyte is refused unread."""
    connection = http.client.HTTPSConnection("127.0.0.1", echo.port, context=certificates.client_context())
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", str(2 << 20))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_closing_ends_every_thread(certificates: RunCertificates) -> None:
    """Idle keep-alive connections are cut; no thread is left, and closing twice is fine."""
    server = HttpsServer(certificates.server_context(), ServiceHandler, Echo(), name="closing").start()
    connections = [
        http.client.HTTPSConnection("127.0.0.1", server.port, context=certificates.client_context()) for _ in range(3)
    ]
    for connection in connections:
        connection.request("GET", "/")
        connection.getresponse().read()
    server.close()
    server.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("closing-")]
    for connection in connections:
        connection.close()


def test_a_closed_server_is_not_there(certificates: RunCertificates) -> None:
    """Its port refuses connections."""
    with HttpsServer(certificates.server_context(), ServiceHandler, Echo(), name="gone") as server:
        port = server.port
    assert server.closing
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_that_never_started_closes(certificates: RunCertificates) -> None:
    """A server that was only made lets go of its port."""
    HttpsServer(certificates.server_context(), ServiceHandler, Echo(), name="unused").close()


def test_a_requests_repr_keeps_its_body_to_itself() -> None:
    """A form may hold a client secret: it does not show in a failing assertion."""
    request = Request(method="POST", path="/", query={}, headers={}, body=b"client_secret=hush&empty=")
    assert "hush" not in repr(request)
    assert request.form() == {"client_secret": "hush"}
