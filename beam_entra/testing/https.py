"""A small threaded HTTPS server: one thread for each connection, all of them gone after `close`."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Protocol, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Answer", "DropConnection", "HttpsServer", "Request", "RequestHandler", "Service", "ServiceHandler"]

_HANDSHAKE_S = 10.0
_JOIN_S = 5.0
_MAX_BODY_BYTES = 1 << 20


class DropConnection(Exception):
    """Raised by a handler to reset the connection instead of answering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request whose body has been read.

    Attributes:
        path: Decoded, without the query.
        query: Each parameter's first value.
        headers: Names in lower case.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def form(self) -> dict[str, str]:
        """The body's first value of each form field; empty values are left out, as in Entra."""
        return {name: values[0] for name, values in parse_qs(self.body.decode("utf-8", "replace")).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to answer. `Content-Length` and `Date` are added."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


class Service(Protocol):
    """What a `ServiceHandler` serves."""

    def answer(self, request: Request) -> Answer:
        """Answer, or raise `DropConnection`."""


class RequestHandler(BaseHTTPRequestHandler):
    """HTTP/1.1 with keep-alive and nothing on standard error. A subclass defines `serve`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpsServer  # type: ignore[assignment]  # our server is no socketserver; only its attributes are used

    def setup(self) -> None:
        tls = cast(ssl.SSLSocket, self.request)
        tls.settimeout(_HANDSHAKE_S)
        tls.do_handshake()
        super().setup()
        tls.settimeout(None)

    def serve(self) -> None:
        """Handle one request."""
        raise NotImplementedError

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or len(self.raw_requestline) > 65536:
            self.close_connection = True
            return
        if self.parse_request():
            self.serve()

    def send_answer(self, answer: Answer) -> None:
        """Send head and body in one piece."""
        lines = [f"HTTP/1.1 {answer.status} {responses.get(answer.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        names = {name.lower() for name in answer.headers}
        if "date" not in names:
            lines.append(f"Date: {self.date_time_string()}")
        if "content-length" not in names:
            lines.append(f"Content-Length: {len(answer.body)}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self.wfile.write(head if self.command == "HEAD" else head + answer.body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the journals record each request."""


class ServiceHandler(RequestHandler):
    """Reads a request whole and lets the server's `Service` answer it."""

    def serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MAX_BODY_BYTES:
            self.close_connection = True
            self.send_answer(Answer(status=413))
            return
        target = urlsplit(self.path)
        request = Request(
            method=self.command,
            path=unquote(target.path),
            query={name: values[0] for name, values in parse_qs(target.query).items()},
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(length) if length else b"",
        )
        self.send_answer(cast(Service, self.server.service).answer(request))


class HttpsServer:
    """Listens on a free port of 127.0.0.1 from the moment it is made, and serves from `start` to `close`."""

    def __init__(self, context: ssl.SSLContext, handler: type[RequestHandler], service: object, *, name: str) -> None:
        self.service = service
        self._context = context
        self._handler = handler
        self._name = name
        self._lock = threading.Lock()
        self._closing = False
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._wake_end, self._waker = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, name=f"{name}-accept", daemon=True)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """`https://127.0.0.1:port`, without a trailing slash."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def closing(self) -> bool:
        """Whether `close` has been called."""
        return self._closing

    def start(self) -> Self:
        """Start to serve."""
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Stop listening, cut every connection, and wait for the threads. Safe to call twice."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            open_now = dict(self._connections)
        self._waker.send(b"x")
        if self._acceptor.ident is not None:
            self._acceptor.join(_JOIN_S)
        for connection, thread in open_now.items():
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            thread.join(_JOIN_S)
        for end in (self._listener, self._waker, self._wake_end):
            end.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_end, selectors.EVENT_READ)
            while True:
                selector.select()
                if self._closing:
                    return
                with contextlib.suppress(OSError):  # the client went away between select and accept
                    self._begin(self._listener.accept()[0])

    def _begin(self, accepted: socket.socket) -> None:
        tls = self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=self._serve, args=(tls,), name=f"{self._name}-{tls.fileno()}", daemon=True)
        with self._lock:
            if self._closing:
                tls.close()
                return
            self._connections[tls] = thread
            thread.start()

    def _serve(self, connection: ssl.SSLSocket) -> None:
        try:
            self._handler(connection, ("127.0.0.1", 0), self)  # type: ignore[arg-type]  # see RequestHandler.server
        except DropConnection:
            # A reset, not an orderly end: what a client sees when a machine behind a load balancer dies.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # the client hung up, failed the handshake, or `close` cut the connection
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)
