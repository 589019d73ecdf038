"""HTTP on the wire: what a server says is understood as http.client does, or is an error; nothing is smuggled in."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import HTTPError, IncompleteRead, ProtocolError, ReadTimeoutError, SSLError
from urllib3.util.wait import wait_for_read

from beam_entra.access.manifest import AccountSettings
from beam_entra.errors import StorageError
from beam_entra.paths import BlobPath
from beam_entra.storage import Authorization, BlobProperties
from beam_entra.storage.exchange import Exchange
from beam_entra.storage.service import BlobService
from beam_entra.storage.transport import ConnectionPool
from beam_entra.storage.wire import Connection, Pace, Response, TooSlow, _Meter
from beam_entra.testing.certificates import RunCertificates

END = b"\r\n\r\n"
PACE = Pace()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2" + END + b"ok"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> RunCertificates:
    """For 127.0.0.1."""
    return RunCertificates.issue(tmp_path_factory.mktemp("ca"))


class Server:
    """Answers each request over TLS with the next of the given bytes, or pieces; what it was sent is kept."""

    def __init__(
        self,
        certificates: RunCertificates,
        answers: list[bytes | Iterable[bytes]],
        *,
        close: bool,
        address: str,
        pool: ConnectionPool,
    ) -> None:
        self._context = certificates.server_context()
        self._answers, self._close, self.pool = iter(answers), close, pool
        self.listener = socket.create_server((address, 0))
        self.received: list[bytes] = []
        self.connections = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with suppress(OSError), self._context.wrap_socket(raw, server_side=True) as connection:
                self._answer(connection)  # the client may hang up on what it does not like

    def _answer(self, connection: ssl.SSLSocket) -> None:
        while True:
            request = b""
            while END not in request or len(request.partition(END)[2]) < _length(request):
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.received.append(request)
            answer = next(self._answers, None)
            if answer is None:
                return
            for piece in [answer] if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
            if self._close:
                return


def _length(request: bytes) -> int:
    found = re.search(rb"\r\nContent-Length: (\d+)", request)
    return int(found.group(1)) if found else 0


@contextmanager
def served(
    certificates: RunCertificates,
    *answers: bytes | Iterable[bytes],
    close: bool = False,
    address: str = "127.0.0.1",
    trusted: Path | None = None,
    pace: Pace = PACE,
) -> Iterator[tuple[Callable[..., Response], Server]]:
    """A way to ask a server that answers so."""
    pool = ConnectionPool(ssl.create_default_context(cafile=str(trusted or certificates.ca_file)), pace=pace)
    server = Server(certificates, list(answers), close=close, address=address, pool=pool)
    url = f"https://{address}:{server.listener.getsockname()[1]}/a?sig=b"

    def ask(method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
        return pool.open(method, url, headers=headers or {}, body=body)

    try:
        yield ask, server
    finally:
        pool.clear()
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        server.thread.join(5)


BODIES = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5" + END + b"12345",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"2;x=y\r\n12\r\n3\r\n345\r\n0\r\nT: 1" + END,
    "behind a 100": b"HTTP/1.1 100 Continue" + END + b"HTTP/1.1 200 OK\r\nContent-Length: 5" + END + b"12345",
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_read_and_its_connection_used_again(certificates: RunCertificates, name: str) -> None:
    """Whole, in whatever way its length is told; the next request finds the connection open."""
    with served(certificates, BODIES[name], OK) as (ask, server):
        assert ask().read() == b"12345"
        assert ask().read() == b"ok"
        assert server.connections == 1


def test_a_body_without_a_length_ends_with_the_connection(certificates: RunCertificates) -> None:
    """And so does one of HTTP/1.0, or of a server that says it will close."""
    for head in (b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK\r\nContent-Length: 5", b"HTTP/1.1 200 OK\r\nConnection: close"):
        with served(certificates, head + END + b"12345", OK, close=True) as (ask, server):
            assert ask().read() == b"12345"
            assert ask().read() == b"ok"
            assert server.connections == 2


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5" + END),
        ("GET", b"HTTP/1.1 204 No Content" + END),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5" + END),
        ("GET", b"HTTP/1.1 201 Created\r\nContent-Length: 0" + END),
    ],
)
def test_what_has_no_body_ends_with_its_head(certificates: RunCertificates, method: str, answer: bytes) -> None:
    """Whatever length it names; the connection is free at once."""
    with served(certificates, answer, OK) as (ask, server):
        assert ask(method).read() == b""
        assert ask().read() == b"ok"
        assert server.connections == 1


def test_a_body_that_is_not_wanted_costs_its_connection(certificates: RunCertificates) -> None:
    """What is left of it must not be taken for the next answer."""
    with served(certificates, BODIES["a length"], OK) as (ask, _):
        response = ask()
        assert response.read(2) == b"12"
        response.close()
        assert response.read() == b""
    with served(certificates, BODIES["a length"], close=True) as (ask, server):
        ask().close()
        with pytest.raises(HTTPError):
            ask()
        assert server.connections == 2


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_body_that_breaks_off(certificates: RunCertificates, length: int) -> None:
    """What came is given, then it is an error."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5" + END + b"12345"[:length]
    with served(certificates, answer, close=True) as (ask, _):
        response, buffer = ask(), bytearray(5)
        with memoryview(buffer) as view:
            assert length == 0 or response.readinto(view) == length
            with pytest.raises(IncompleteRead):
                response.readinto(view)
        assert buffer[:length] == b"12345"[:length]


NO_ANSWERS = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "no HTTP": b"220 ftp.example.com ready" + END,
    "no status": b"HTTP/1.1 OK" + END,
    "a line that is no header": b"HTTP/1.1 200 OK\r\nnothing" + END,
    "a header with a space before its colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5" + END,
    "no number for a length": b"HTTP/1.1 200 OK\r\nContent-Length: -5" + END,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6" + END,
    "one length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2" + END + b"ok",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +2" + END + b"ok",
    "a length of other digits": b"HTTP/1.1 200 OK\r\nContent-Length: \xb2" + END + b"ok",
    "a length without end": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000 + END,
    "a length that goes on in the next line": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n 0" + END + b"ok",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked" + END + b"0" + END,
    "lines that end in \\n alone": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "a line that ends in \\n alone": b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2" + END + b"ok",
    "a \\r in a line": b"HTTP/1.1 200 OK\r\nETag: b\rc\r\nContent-Length: 2" + END + b"ok",
    "a \\r in a line that ends in \\n": b"HTTP/1.1 200 OK\r\nETag: b\rc\nContent-Length: 2" + END + b"ok",
    "a control character": b"HTTP/1.1 200 OK\r\nx-ms-request-id: \x1b[2J\r\nContent-Length: 2" + END + b"ok",
    "a status of other digits": b"HTTP/1.1 \xb2\xb2\xb2 OK\r\nContent-Length: 2" + END + b"ok",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2" + END + b"ok",
    "another version": b"HTTP/1.12 200 OK\r\nContent-Length: 2" + END + b"ok",
    "words before it without end": (b"HTTP/1.1 103 Early Hints" + END) * 50 + OK,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x" + END + OK,
    "trailers without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"0\r\n" + b"A: b\r\n" * 300 + END,
    "a chunk that begins in another way": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"2\nok\r\n0" + END,
    "an encoding that was not asked for": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked" + END,
    "no number for a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"xyz\r\n",
    "a chunk of less than nothing": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"-5\r\n",
    "a line without end": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000,
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300_000,
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"Content-Length: 2" + END + b"ok",
}


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_what_is_no_answer_is_an_error(certificates: RunCertificates, name: str) -> None:
    """Said as one of the wire, so that the request is sent again; the connection is not."""
    with served(certificates, NO_ANSWERS[name], OK, close=True) as (ask, server):
        with pytest.raises(ProtocolError):
            ask()
        assert ask().read() == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("name", [name for name in NO_ANSWERS if name not in ("nothing", "half a head")])
def test_it_is_one_too_when_it_comes_byte_by_byte(name: str) -> None:
    """What an answer means does not depend on how much of it is here."""
    with pytest.raises(ProtocolError):
        answered_by(_Canned(NO_ANSWERS[name], buffer_bytes=1))


def test_a_chunk_that_is_longer_than_it_says(certificates: RunCertificates) -> None:
    """Its end is not where it should be."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END + b"2\r\n12345\r\n0" + END
    with served(certificates, answer) as (ask, _):
        response = ask()
        with pytest.raises(ProtocolError, match="longer than it says"):
            response.read()


@pytest.mark.parametrize("value", ["a\r\nx-ms-date: now", "a\nb", "a\rb", "a\0b", "a\x1bb", "a\u20acb"])
def test_a_header_brings_no_other(certificates: RunCertificates, value: str) -> None:
    """A value with a line end in it, such as an ETag that a server made up, is not sent; nor said."""
    with served(certificates, OK) as (ask, server):
        with pytest.raises(ValueError, match="a line end") as caught:
            ask(headers={"If-Match": value})
        assert value not in str(caught.value)
        assert caught.value.__cause__ is None
        assert server.received == []


def test_what_is_sent(certificates: RunCertificates) -> None:
    """Target, host and headers as they are; a long body behind the head as well as a short one."""
    for size in (3, 100_000):
        with served(certificates, OK, close=True) as (ask, server):
            ask("PUT", {"Content-Length": str(size), "x-ms-version": "v"}, b"x" * size).close()
            sent, _, body = server.received[0].partition(END)
            assert body == b"x" * size
            head = sent.split(b"\r\n")
            assert head[0] == b"PUT /a?sig=b HTTP/1.1"
            assert f"Host: 127.0.0.1:{server.listener.getsockname()[1]}".encode() in head
            assert b"x-ms-version: v" in head


def test_a_server_that_says_nothing(certificates: RunCertificates) -> None:
    """After the time to wait, it is an error."""
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    with served(certificates, b"") as (_, server):
        port = server.listener.getsockname()[1]
        connection = Connection("127.0.0.1", port, context, connect_s=5, read_s=0.05)
        with pytest.raises(ReadTimeoutError):
            connection.request("GET", "/", {}, b"", done=lambda _: None)


def drops(data: bytes) -> Iterator[bytes]:
    """A byte each hundredth of a second."""
    for at in range(len(data)):
        threading.Event().wait(0.01)
        yield data[at : at + 1]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 200 OK\r\nContent-Length: 9000" + END, drops(b"x" * 9000)],
        [b"HTTP/1.1 200 OK\r\nServer: ", drops(b"x" * 9000)],
        [b"HTTP/1.1 200 OK\r\nConnection: close" + END, drops(b"x" * 9000)],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END, drops(b"2328\r\n" + b"x" * 9000)],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked" + END, drops(b"1;" + b"x" * 9000)],
    ],
    ids=["body", "head", "body to the end of the connection", "chunk", "size of a chunk"],
)
def test_an_answer_that_drips_is_given_up(certificates: RunCertificates, answer: list[Any]) -> None:
    """Though a byte comes long before a read would time out."""

    def pieces() -> Iterator[bytes]:
        yield answer[0]
        yield from answer[1]

    with (
        served(certificates, pieces(), pace=Pace(least_bytes=5120, within_s=0.2)) as (ask, _),
        pytest.raises(TooSlow, match=r"less than 5 KiB in 0\.2 s"),
    ):
        ask().read()


@pytest.mark.timeout(30)
def test_a_request_that_the_server_takes_in_drops_is_given_up(certificates: RunCertificates) -> None:
    """What it does not read fills the buffers between; all of the request has the time that one read has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ended = threading.Event()

        def sip() -> None:
            raw, _ = listener.accept()
            with suppress(OSError), certificates.server_context().wrap_socket(raw, server_side=True) as connection:
                while not ended.wait(0.01) and connection.recv(16384):
                    pass

        thread = threading.Thread(target=sip)
        thread.start()
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        connection = Connection("127.0.0.1", listener.getsockname()[1], context, connect_s=5, read_s=0.5)
        try:
            with pytest.raises(ReadTimeoutError):
                connection.request("PUT", "/", {}, bytes(64 << 20), done=lambda _: None)
        finally:
            ended.set()
            thread.join()


def test_the_first_byte_may_take_longer_than_the_pace(certificates: RunCertificates) -> None:
    """A server may think for as long as a read may take; only what comes then has to come at a pace."""
    body = bytes(100_000)

    def thoughtful() -> Iterator[bytes]:
        threading.Event().wait(1.2)
        yield b"HTTP/1.1 200 OK\r\nContent-Length: %d" % len(body) + END + body

    with served(certificates, thoughtful(), pace=Pace(least_bytes=1 << 20, within_s=1)) as (ask, _):
        assert ask().read() == body


def test_each_answer_has_the_time_of_its_own(certificates: RunCertificates) -> None:
    """What the last one on the connection took is forgotten."""
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    with served(certificates, OK) as (_, server):
        port = server.listener.getsockname()[1]
        connection = Connection("127.0.0.1", port, context, connect_s=5, read_s=5, pace=PACE)
        connection._meter.add(1, PACE.within_s)
        with pytest.raises(TooSlow):
            connection.check_pace()
        response = connection.request("GET", "/", {}, b"", done=lambda kept: kept.close())
        assert response.read() == b"ok"


def test_the_time_of_the_caller_is_not_the_server_s(certificates: RunCertificates) -> None:
    """Who reads slowly what is there to be read is not told that it came slowly."""
    size = 300_000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d" % size + END + bytes(size)
    with served(certificates, answer, pace=Pace(least_bytes=size + 1000, within_s=0.2)) as (ask, _):
        response, content = ask(), b""
        while piece := response.read(100_000):
            content += piece
            threading.Event().wait(0.15)
        assert content == bytes(size)


def test_a_pace_is_kept_anew_for_each_so_many_bytes() -> None:
    """A long body may take long, and an idle end of it no longer than the pace."""
    meter = _Meter(Pace(least_bytes=10, within_s=1))
    for _ in range(100):
        meter.add(1, 0.9)
        meter.check()
        meter.add(9, 0.09)
    meter.add(9, 0.9)
    meter.begin()
    meter.add(9, 0.9)
    meter.check()
    meter.add(0, 0.2)
    with pytest.raises(TooSlow):
        meter.check()


class _Canned(Connection):
    """A connection over bytes, without a wire."""

    holds = False
    _meter = _Meter(PACE)

    def __init__(self, answer: bytes, buffer_bytes: int = 64) -> None:
        raw = io.BytesIO(answer)
        self._reader = io.BufferedReader(raw, buffer_bytes)

    def close(self) -> None:
        """Nothing to close."""


def answered_by(connection: _Canned, done: Callable[[Connection], object] = lambda _: None) -> Response:
    """The answer that is on its wire."""
    status, headers = connection._answer()
    return Response(connection, connection._reader, status, headers, bodiless=False, done=done)


class _Socket:
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, mode: str) -> Any:
        return io.BytesIO(self._answer)


_names = st.text("abcXYZ-", min_size=1, max_size=6)
_values = st.text("abc 123;=\"é\t", max_size=10)


@given(
    headers=st.lists(st.tuples(_names, _values), max_size=6),
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=4),
    chunked=st.booleans(),
    piece=st.integers(1, 30),
)
def test_answers_mean_what_they_mean_to_http_client(
    headers: list[tuple[str, str]], chunks: list[bytes], chunked: bool, piece: int
) -> None:
    """Any headers, any body, read in any pieces."""
    body = b"".join(chunks)
    lines = [f"x-{name}: {value}" for name, value in headers]
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    sent = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n" if chunked else body
    answer = "\r\n".join(["HTTP/1.1 206 Partial", *lines]).encode("latin-1") + END + sent
    theirs = http.client.HTTPResponse(_Socket(answer))  # type: ignore[arg-type]  # all that it needs of a socket
    theirs.begin()
    connection = _Canned(answer)
    kept: list[Connection] = []
    ours = answered_by(connection, kept.append)
    assert (ours.status, ours.read(piece)) == (206, body[:piece])
    assert body[:piece] + ours.read() == theirs.read() == body
    assert kept == [connection]
    for name, _ in headers:
        together = ", ".join(value.strip() for value in theirs.headers.get_all(f"x-{name}", []))
        assert ours.headers[f"x-{name}".lower()] == together


def test_a_connection_is_not_used_again_once_either_side_ends_it(certificates: RunCertificates) -> None:
    """Neither where the server says that it will, nor where it does so without a word."""
    says = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2" + END + b"ok"
    with served(certificates, says, OK) as (ask, server):
        assert ask().read() + ask().read() == b"okok"
        assert server.connections == 2
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    with served(certificates, OK, close=True) as (_, server):
        kept: list[Connection] = []
        connection = Connection("127.0.0.1", server.listener.getsockname()[1], context, connect_s=5, read_s=5)
        assert connection.request("GET", "/", {}, b"", done=kept.append).read() == b"ok"
        assert wait_for_read(connection._socket, timeout=5)
        assert kept == [connection]
        assert connection.dropped
        connection.close()


EXCESS = {
    "a length": BODIES["a length"] + OK,
    "chunks": BODIES["chunks"] + OK,
    "no body": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5" + END + b"12345",
    "a length, and more than the buffer holds": BODIES["a length"] + OK + b"x" * 100_000,
    "a length, and half an answer": BODIES["a length"] + b"H",
}


@pytest.mark.parametrize("name", EXCESS)
def test_what_comes_behind_an_answer_is_nobodys(certificates: RunCertificates, name: str) -> None:
    """The connection on which it came is not used again: the next request gets its own answer, over another one."""
    own = b"HTTP/1.1 200 OK\r\nContent-Length: 3" + END + b"own"
    with served(certificates, EXCESS[name], own, own) as (ask, server):
        assert ask().read() in (b"12345", b"")
        assert not any(server.pool._idle.values())
        assert ask().read() == b"own"
        assert ask().read() == b"own"
        assert server.connections == 2


def test_what_comes_when_nobody_asked_is_nobodys(certificates: RunCertificates) -> None:
    """Words, or the end, that come while a connection is idle: before it is used again, they are seen."""
    idle = threading.Event()

    def then(more: bytes) -> Iterator[bytes]:
        yield OK
        assert idle.wait(5)
        yield more

    for more in (b"HTTP/1.1 200 OK\r\nContent-Length: 4" + END + b"else", b""):
        idle.clear()
        with served(certificates, then(more), OK, close=not more) as (ask, server):
            assert ask().read() == b"ok"
            ((connection,),) = server.pool._idle.values()
            assert not connection.holds
            idle.set()
            assert wait_for_read(connection._socket, timeout=5)
            assert ask().read() == b"ok"
            assert server.connections == 2


def test_a_server_for_another_host_or_of_another_ca_is_not_spoken_to(
    certificates: RunCertificates, tmp_path: Path
) -> None:
    """Neither sees a request."""
    others = RunCertificates.issue(tmp_path)
    for settings in ({"address": "127.0.0.2"}, {"trusted": others.ca_file}):
        with served(certificates, OK, **settings) as (ask, server):
            with pytest.raises(SSLError) as caught:
                ask()
            assert isinstance(caught.value.args[0], ssl.SSLCertVerificationError)
            assert server.received == []


def test_an_answer_that_is_read_whole_is_bounded() -> None:
    """Whatever length it names, memory is taken for what comes, and not for more than an answer has."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999999" + END
    with pytest.raises(IncompleteRead):
        answered_by(_Canned(head + b"12345")).read()
    with pytest.raises(ProtocolError, match="too long"):
        answered_by(_Canned(head + bytes((64 << 20) + 1))).read()


@pytest.mark.parametrize("framing", ["Content-Length: 3", "Transfer-Encoding: chunked"])
def test_more_than_was_asked_for_is_no_answer(certificates: RunCertificates, framing: str) -> None:
    """A range that is longer than it says is an error, and none of it is given."""
    body = b"2\r\nab\r\n1\r\nc\r\n0" + END if "chunked" in framing else b"abc"
    head = f"HTTP/1.1 206 Partial\r\nETag: e\r\nContent-Range: bytes 0-1/2\r\n{framing}".encode() + END
    path = BlobPath(account="contosolake", container="abc", name="n")
    blob = BlobProperties(path=path, size_bytes=2, etag="e", last_modified=datetime(2026, 1, 1, tzinfo=UTC))
    with served(certificates, head + body) as (_, server):
        endpoint = f"https://127.0.0.1:{server.listener.getsockname()[1]}/a"
        account = AccountSettings(endpoint=endpoint, emulator=True, ca_file="")
        service = BlobService({"contosolake": account}.__getitem__, exchange=Exchange(lambda _: server.pool))
        with pytest.raises(StorageError, match="more than was asked for"):
            service.read_range(blob, 0, 2, Authorization, lambda: "id", lambda *_: None)
        assert len(server.received) == 1
