"""The delay relay: it adds time, and changes and limits nothing."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from benchmarks.delay import DelayProxy

PIECE = 1 << 16


@contextmanager
def through_relay(rtt_ms: float, serve: Callable[[socket.socket], object]) -> Iterator[socket.socket]:
    """A connection through the relay to a server that treats each connection so."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        block_on_close = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with (
                DelayProxy(server.server_address[1], rtt_ms=rtt_ms) as relay,
                socket.create_connection(("127.0.0.1", relay.port), timeout=30) as connection,
            ):
                yield connection
        finally:
            server.shutdown()
            thread.join()


def echo(connection: socket.socket) -> None:
    """Send back what comes, until the end."""
    while data := connection.recv(PIECE):
        connection.sendall(data)


def until_end(connection: socket.socket) -> bytes:
    """Everything that comes."""
    return b"".join(iter(lambda: connection.recv(PIECE), b""))


def test_a_round_trip_takes_its_time_and_a_new_connection_one_more() -> None:
    """Ten round trips and the handshake; never less, and not much more."""
    with through_relay(20, echo) as connection:
        began = time.perf_counter()
        for _ in range(10):
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        took = time.perf_counter() - began
    assert 0.205 <= took < 1, "a quarter of a second, or a little more on a busy machine"


def test_bytes_come_out_as_they_went_in() -> None:
    """Many of them, in order, at once under way, and the end after the last."""
    data = b"".join(number.to_bytes(4) for number in range(1 << 20))
    with through_relay(10, echo) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        got = until_end(connection)
        sending.join()
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


def test_many_bytes_take_no_longer_for_the_round_trip_time() -> None:
    """Sixteen megabytes over 100 ms: a window of 64 KB would take half a minute."""
    size = 16 << 20
    with through_relay(100, lambda connection: connection.sendall(bytes(size))) as connection:
        began = time.perf_counter()
        assert len(until_end(connection)) == size
        assert time.perf_counter() - began < 10


def test_nobody_behind_it_is_a_connection_that_ends() -> None:
    """And none that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with DelayProxy(port, rtt_ms=1) as relay, socket.create_connection(("127.0.0.1", relay.port), timeout=30) as gone:
        gone.sendall(b"x")
        with suppress(ConnectionResetError):
            assert until_end(gone) == b""


def test_an_end_for_a_side_that_is_gone_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """One side hangs up and resets what still comes; then the other's end has nowhere to go, which is no news."""
    with through_relay(0, lambda connection: None) as connection:
        assert until_end(connection) == b""
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("rtt_ms", [0, 5])
def test_the_process_leaves_when_it_is_told(rtt_ms: float) -> None:
    """Nothing listens behind it."""
    with DelayProxy(1, rtt_ms=rtt_ms) as relay:
        port = relay.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
