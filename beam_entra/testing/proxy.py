"""An HTTPS reverse proxy in front of Azurite: records each request, and breaks those that a test wants broken."""

from __future__ import annotations

import base64
import http.client
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import responses
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from beam_entra.clock import utc_now
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, DropConnection, HttpsServer, RequestHandler
from beam_entra.testing.storage_requests import StorageExchange, StorageRequest
from beam_entra.testing.watch import Fault, Faults, Gate, Journal

__all__ = ["StorageFault", "StorageProxy"]

_PIECE_BYTES = 256 << 10
_DROP_S = 0.1
_IDLE_S = 3.0  # Azurite hangs up after 5 s; a connection older than this is not used again
_UPSTREAM_S = 120.0
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "proxy-connection", "te"})
_BODYLESS = frozenset({204, 304})

Where = Callable[[StorageRequest], bool]


def _anything(_request: StorageRequest) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Action:
    """What a fault does. The fields that are set say what; the rest of the way is as usual."""

    name: str
    answer: Callable[[StorageRequest], Answer] | None = None
    reset: bool = False
    before: Callable[[StorageRequest], object] | None = None
    after: Callable[[StorageRequest], object] | None = None
    lose_answer: bool = False
    corrupt: bool = False
    keep_bytes: int | None = None
    drip: Callable[[Iterator[bytes]], Iterator[bytes]] | None = None


StorageFault = Fault[StorageRequest, _Action]


class StorageProxy:
    """Stands in front of a blob service. Serves from the moment it is made until `close`.

    Answers pass unchanged but for hop-by-hop headers. A fault meets requests for which `where` is true, after the
    first `skip` of them, `times` of them or until it is cleared; of several the oldest wins.

    Attributes:
        requests: Every exchange, oldest first; one is in here before the client has the end of its answer.
    """

    def __init__(self, certificates: RunCertificates, upstream: str) -> None:
        """Start to serve.

        Args:
            upstream: URL of the blob service without an account: `https://127.0.0.1:port`.
        """
        self.requests: Journal[StorageExchange] = Journal()
        self._faults: Faults[StorageRequest, _Action] = Faults()
        self._upstream = urlsplit(upstream)
        self._client_context = certificates.client_context()
        self._server = HttpsServer(certificates.server_context(), _ProxyHandler, self, name="proxy").start()

    @property
    def url(self) -> str:
        """`https://127.0.0.1:port`, without an account."""
        return self._server.url

    def endpoint(self, account: str) -> str:
        """The account's URL through the proxy."""
        return f"{self.url}/{account}"

    # ---- what it saw

    def count(self, where: Where) -> int:
        """How many requests so far are of this kind; see `matching`."""
        return sum(where(exchange.request) for exchange in self.requests)

    def wait_for(
        self, predicate: Callable[[list[StorageExchange]], bool], *, timeout_s: float = 10.0
    ) -> list[StorageExchange]:
        """Wait until `predicate` holds for the exchanges so far, and return them; TimeoutError when it does not."""
        return self.requests.wait_for(predicate, timeout_s=timeout_s)

    def clear(self) -> None:
        """Forget the exchanges so far, and switch every fault off."""
        self.clear_faults()
        self.requests.clear()

    # ---- faults

    def respond(
        self,
        status: int,
        code: str,
        *,
        headers: Mapping[str, str] | None = None,
        message: str = "",
        where: Where = _anything,
        times: int | None = None,
        skip: int = 0,
    ) -> StorageFault:
        """Answer in Azurite's stead, with Storage's error body.

        A busy server: `respond(503, "ServerBusy", headers={"Retry-After": "1"}, times=2)`.
        """
        extra = dict(headers or {})
        action = _Action(name=code, answer=lambda request: _error(request, status, code, message, extra))
        return self._fault(action, where, times, skip)

    def stand_in(
        self,
        answer: Callable[[StorageRequest], Answer],
        *,
        where: Where = _anything,
        times: int | None = None,
        skip: int = 0,
    ) -> StorageFault:
        """Answer in Azurite's stead with what it cannot do, or could not hold. Who is let in is then not checked."""
        return self._fault(_Action(name="stand_in", answer=answer), where, times, skip)

    def without_role(
        self, *, where: Where = lambda request: request.operation == "GetUserDelegationKey", times: int | None = None
    ) -> StorageFault:
        """Answer as Storage does when the role is missing: 403, for user delegation keys unless told otherwise."""
        message = "This request is not authorized to perform this operation using this permission."
        return self.respond(403, "AuthorizationPermissionMismatch", message=message, where=where, times=times)

    def challenge(
        self,
        claims: Mapping[str, object] | None = None,
        *,
        where: Where = lambda request: request.credential == "bearer",
        times: int | None = None,
        skip: int = 0,
    ) -> StorageFault:
        """Answer with a claims challenge, as a service that evaluates access continuously does; requests under a token.

        Args:
            claims: What the next token is to be asked for with; by default that it is issued from now on.
        """
        issued = {"essential": True, "value": str(int(utc_now().timestamp()))}
        wanted = json.dumps(claims or {"access_token": {"nbf": issued}}).encode("utf-8")
        header = (
            'Bearer realm="", authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize", '
            f'error="insufficient_claims", claims="{base64.b64encode(wanted).decode("ascii")}"'
        )
        headers = {"WWW-Authenticate": header}
        return self.respond(
            401, "InvalidAuthenticationInfo", headers=headers, where=where, times=times, skip=skip
        )

    def reset(self, *, where: Where = _anything, times: int | None = None, skip: int = 0) -> StorageFault:
        """Reset the connection before anything is forwarded."""
        return self._fault(_Action(name="reset", reset=True), where, times, skip)

    def lose_answer(self, *, where: Where = _anything, times: int | None = None, skip: int = 0) -> StorageFault:
        """Forward, wait for the answer, and reset the connection instead of passing it on: the ambiguous outcome."""
        return self._fault(_Action(name="lose_answer", lose_answer=True), where, times, skip)

    def corrupt(self, *, where: Where = _anything, times: int | None = None, skip: int = 0) -> StorageFault:
        """Forward the request with the first byte of its body changed."""
        return self._fault(_Action(name="corrupt", corrupt=True), where, times, skip)

    def truncate(
        self,
        after_bytes: int,
        *,
        reset: bool = False,
        where: Where = _anything,
        times: int | None = None,
        skip: int = 0,
    ) -> StorageFault:
        """Pass the head and the first bytes of the answer's body, then hang up.

        Args:
            reset: Hang up with a reset, which may overtake the last of the bytes.
        """
        return self._fault(_Action(name="truncate", keep_bytes=after_bytes, reset=reset), where, times, skip)

    def drip(
        self, bytes_per_s: float, *, where: Where = _anything, times: int | None = None, skip: int = 0
    ) -> StorageFault:
        """Pass the answer's body at this rate, ten times a second some; the rest at once when the fault is cleared."""
        gate = Gate()
        size = max(1, round(bytes_per_s * _DROP_S))

        def drops(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                for begin in range(0, len(piece), size):
                    gate.arrive(_DROP_S)
                    yield piece[begin : begin + size]

        return self._fault(_Action(name="drip", drip=drops), where, times, skip, gate)

    def run(
        self, does: Callable[[], object], *, where: Where = _anything, times: int | None = 1, skip: int = 0
    ) -> StorageFault:
        """Do something when a request arrives, by default one; then it goes on as usual: the weather changes there."""
        return self._fault(_Action(name="run", before=lambda _request: does()), where, times, skip)

    def strike(
        self,
        does: Callable[[StorageRequest], object],
        *,
        answer: bool = False,
        where: Where = _anything,
        times: int | None = 1,
        skip: int = 0,
    ) -> StorageFault:
        """Do something to whoever sent a request, by default one; then it goes on as usual, even if that is dead.

        Args:
            answer: When Azurite has done the work, instead of before it has heard of it.
        """
        action = _Action(name="strike", after=does) if answer else _Action(name="strike", before=does)
        return self._fault(action, where, times, skip)

    def hold(
        self,
        seconds: float | None = None,
        *,
        answer: bool = False,
        where: Where = _anything,
        times: int | None = None,
        skip: int = 0,
    ) -> StorageFault:
        """Hold requests for some seconds, or until the fault's `gate.open()`; then go on as usual.

        Args:
            answer: Hold the answer, when Azurite has done the work, instead of the request.
        """
        gate = Gate()

        def stand(_request: StorageRequest) -> None:
            gate.arrive(seconds)

        action = _Action(name="hold", after=stand) if answer else _Action(name="hold", before=stand)
        return self._fault(action, where, times, skip, gate)

    def clear_faults(self) -> None:
        """Switch every fault off, and let through what is held."""
        self._faults.clear()

    def close(self) -> None:
        """Let go of what is held, and stop to serve. Safe to call twice."""
        self._faults.clear()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- for the handler

    def take_fault(self, request: StorageRequest) -> _Action | None:
        """What to do to this request. For the handler."""
        fault = self._faults.take(request)
        return fault.action if fault else None

    def connect(self) -> http.client.HTTPSConnection:
        """A connection to the service behind. For the handler."""
        return http.client.HTTPSConnection(
            self._upstream.hostname or "", self._upstream.port, context=self._client_context, timeout=_UPSTREAM_S
        )

    def _fault(
        self, action: _Action, where: Where, times: int | None, skip: int, gate: Gate | None = None
    ) -> StorageFault:
        return self._faults.add(Fault(action, where=where, times=times, skip=skip, gate=gate))


@dataclass(slots=True, kw_only=True)
class _Running:
    """An exchange that is under way."""

    request: StorageRequest
    began: float
    fault: str
    sent_bytes: int = 0
    received_bytes: int = 0
    status: int = 0
    request_id: str = ""


@dataclass(slots=True)
class _Upstream:
    """One connection's own connection to the service behind."""

    connection: http.client.HTTPSConnection | None = None
    used: float = field(default=0.0)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class _ProxyHandler(RequestHandler):
    def setup(self) -> None:
        self._upstream = _Upstream()
        super().setup()

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    @property
    def _proxy(self) -> StorageProxy:
        return cast(StorageProxy, self.server.service)

    def serve(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        theirs, ours = self.connection.getpeername()[1], self.connection.getsockname()[1]
        request = StorageRequest(
            method=self.command, path=path, query=query, headers=headers, client_port=theirs, server_port=ours
        )
        action = self._proxy.take_fault(request) or _Action(name="")
        running = _Running(request=request, began=time.monotonic(), fault=action.name)
        if action.reset and action.keep_bytes is None:
            self._record(running)
            raise DropConnection
        if action.before is not None:
            action.before(request)
        if action.answer is not None:
            self._stand_in(running, action.answer(request))
        else:
            self._pass_on(running, action)

    def _stand_in(self, running: _Running, answer: Answer) -> None:
        running.sent_bytes = sum(len(piece) for piece in self._body())
        running.status, running.received_bytes = answer.status, len(answer.body)
        running.request_id = answer.headers.get("x-ms-request-id", "")
        self._record(running)
        self.send_answer(answer)

    def _pass_on(self, running: _Running, action: _Action) -> None:
        try:
            response = self._forward(running, action)
            running.status = response.status
            running.request_id = response.headers.get("x-ms-request-id", "")
            if action.after is not None:
                action.after(running.request)
        except (OSError, http.client.HTTPException) as error:
            running.fault = running.fault or "unreachable"
            self._record(running)
            self._upstream.close()
            raise DropConnection from error
        if action.lose_answer:
            self._record(running)
            raise DropConnection
        self._return(running, response, action)
        if action.reset:
            raise DropConnection
        self._upstream.used = time.monotonic()

    def _forward(self, running: _Running, action: _Action) -> http.client.HTTPResponse:
        upstream = self._upstream
        if time.monotonic() - upstream.used > _IDLE_S:
            upstream.close()
        if upstream.connection is None:
            upstream.connection = self._proxy.connect()
        connection = upstream.connection
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                connection.putheader(name, value)
        chunked = _is_chunked(self.headers.get("Transfer-Encoding"))
        if chunked:
            connection.putheader("Transfer-Encoding", "chunked")
        pieces = self._body()
        # The first piece goes out with the head; a body of a few bytes costs one write.
        first = next(pieces, b"")
        if action.corrupt and first:
            first = bytes([first[0] ^ 1]) + first[1:]
        running.sent_bytes = len(first)
        connection.endheaders(_chunk(first) if chunked and first else first)
        for piece in pieces:
            running.sent_bytes += len(piece)
            connection.send(_chunk(piece) if chunked else piece)
        if chunked:
            connection.send(b"0\r\n\r\n")
        return connection.getresponse()

    def _return(self, running: _Running, response: http.client.HTTPResponse, action: _Action) -> None:
        keep_bytes = action.keep_bytes
        chunked = response.chunked
        lines = [f"HTTP/1.1 {response.status} {response.reason}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items() if name.lower() not in _HOP_BY_HOP]
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        waiting = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        bodyless = self.command == "HEAD" or response.status in _BODYLESS
        if action.drip is not None:
            self._record(running)  # the client may not live to see the end
        pieces = _cut(_pieces(response), keep_bytes)  # none for HEAD, but reading frees the connection
        for piece in pieces if action.drip is None else action.drip(pieces):
            running.received_bytes += len(piece)
            framed = _chunk(piece) if chunked else piece
            if action.drip is None and len(waiting) + len(framed) <= _PIECE_BYTES:
                waiting += framed
            else:
                self.wfile.write(waiting)
                waiting = framed
        if keep_bytes is not None:
            self.close_connection = True
            self._upstream.close()
        elif chunked and not bodyless:
            waiting += b"0\r\n\r\n"
        if action.drip is None:
            self._record(running)  # before the last write: who has the answer finds its record
        self.wfile.write(waiting)

    def _body(self) -> Iterator[bytes]:
        """The request's body in pieces, without the framing."""
        if _is_chunked(self.headers.get("Transfer-Encoding")):
            while size := int(self.rfile.readline(1024).partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline(16)
            while self.rfile.readline(65536).strip():
                pass
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            piece = self.rfile.read(min(left, _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the client hung up within its request")
            left -= len(piece)
            yield piece

    def _record(self, running: _Running) -> None:
        self._proxy.requests.append(
            StorageExchange(
                time=utc_now(),
                request=running.request,
                status=running.status,
                sent_bytes=running.sent_bytes,
                received_bytes=running.received_bytes,
                duration_s=time.monotonic() - running.began,
                fault=running.fault,
                request_id=running.request_id,
            )
        )


def _is_chunked(encoding: str | None) -> bool:
    return (encoding or "").strip().lower() == "chunked"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read(_PIECE_BYTES):
        yield piece


def _cut(pieces: Iterable[bytes], keep_bytes: int | None) -> Iterator[bytes]:
    left = keep_bytes
    for piece in pieces:
        if left is None:
            yield piece
        elif left > 0:
            yield piece[:left]
            left -= len(piece)


def _error(request: StorageRequest, status: int, code: str, message: str, extra: Mapping[str, str]) -> Answer:
    """An error as Storage words it. See: https://learn.microsoft.com/rest/api/storageservices/status-and-error-codes2"""
    request_id = str(uuid.uuid4())
    text = f"{message or responses.get(status, code)}\nRequestId:{request_id}\nTime:{utc_now().isoformat()}"
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{escape(code)}</Code><Message>{escape(text)}</Message></Error>"
    )
    headers = {"x-ms-error-code": code, "x-ms-request-id": request_id, "x-ms-version": "2025-07-05"}
    headers |= {"Content-Type": "application/xml", "Server": "beam-entra storage proxy"}
    sent_id = request.headers.get("x-ms-client-request-id")
    if sent_id:
        headers["x-ms-client-request-id"] = sent_id
    return Answer(status=status, headers=headers | dict(extra), body=body.encode("utf-8"))
