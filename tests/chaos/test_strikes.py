"""Whoever is struck is who sent the request."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

from beam_entra.testing.storage_requests import StorageRequest
from tests.chaos.strikes import sender_of

CONNECT = """
import socket, sys
ours, theirs = map(int, sys.argv[1:])
with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("127.0.0.1", ours))
    connection.connect(("127.0.0.1", theirs))
    sys.stdin.read()
"""


def test_a_port_that_two_processes_connect_from_tells_them_apart() -> None:
    """Linux gives a port to several connections at a time, each to another port."""
    with ExitStack() as stack:
        free = stack.enter_context(socket.socket())
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        senders = {}
        for _ in range(2):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server.settimeout(60)
            command = [sys.executable, "-c", CONNECT, str(port), str(server.getsockname()[1])]
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
            stack.enter_context(server.accept()[0])
            senders[server.getsockname()[1]] = process.pid
        for server_port, pid in senders.items():
            request = StorageRequest(
                method="PUT", path="/", query="", headers={}, client_port=port, server_port=server_port
            )
            assert sender_of(request) == pid
