"""HTTP/1.1 over TLS, as much of it as Storage speaks: requests with a length, answers with one or in chunks.

It exists for its price: a GET of 10 KB costs a third of what it costs through http.client and urllib3, whose parsers of
URLs and e-mail headers go over every character, and a body is received into the caller's own memory. Errors are
urllib3's, of which the callers know what to do with each.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader, RawIOBase

from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util.wait import wait_for_read

__all__ = ["Connection", "Pace", "Response", "TooSlow"]

_BUFFER_BYTES = 32 * 1024  # two TLS records: a small answer is here at once
_LINE_BYTES = 64 * 1024
_LINES = 200
_INTERIM_ANSWERS = 8
_WHOLE_BYTES = 64 << 20  # many times what 5,000 blobs of a list take
_TOGETHER_BYTES = 64 * 1024  # a longer body is sent on its own rather than copied behind the head
_BODILESS = (204, 304)
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
_DECIMAL = re.compile(r"[0-9]{1,18}")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{1,15}")
_TOO_MANY_LINES = "the answer has too many headers"
_CONTROL_IN_LINE = "a line of the answer does not end as lines do, or holds a control character"
_CONTROLS = bytes({*range(32), 127} - {ord("\t")})


class TooSlow(HTTPError):
    """Bytes came, and fewer than the pace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How slow an answer may come. A limit on each read alone would let a drip go on for ever.

    Attributes:
        least_bytes: So many have to come
        within_s: in so many seconds of waiting for them; the first byte of an answer may take longer.
    """

    least_bytes: int = 64 << 10
    within_s: float = 30.0

    def __str__(self) -> str:
        return f"{self.least_bytes / 1024:g} KiB in {self.within_s:g} s"


class _Meter:
    """Holds an answer to a pace. What the caller does between two waits takes none of the time."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.begin()

    def begin(self) -> None:
        """Another answer."""
        self._bytes, self._waited_s = 0, 0.0

    def add(self, count: int, waited_s: float) -> None:
        """So many bytes after such a wait."""
        self._bytes += count
        self._waited_s += waited_s
        if self._bytes >= self._pace.least_bytes:
            self.begin()

    @property
    def late(self) -> bool:
        """Whether it was too slow."""
        return self._waited_s >= self._pace.within_s

    def check(self) -> None:
        """Raise TooSlow if it was."""
        if self.late:
            raise TooSlow(f"less than {self._pace} came over the connection")


class _Received(RawIOBase):
    """What comes in.

    Attributes:
        quiet: The reader that buffers this shows what it holds and asks for no more.
        first: The next byte is the first of an answer, and may take as long as the socket's timeout lets it.
        spare: When it is too slow there is no error but nothing more, so that the reader gives what it has gathered.
    """

    def __init__(self, source: socket.socket, meter: _Meter) -> None:
        self._source, self._meter = source, meter
        self.quiet = self.first = self.spare = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # it is one
        if self.quiet or (self.spare and self._meter.late):
            return None
        self._meter.check()
        began = time.monotonic()
        count = self._source.recv_into(buffer)
        waited_s = 0.0 if self.first else time.monotonic() - began
        self.first = False
        self._meter.add(count, waited_s)
        return count


class Connection:
    """One connection, used by one request at a time and kept while both sides want it.

    Args:
        host, port: Where to; the certificate must be for the host.
        connect_s: Seconds for TCP and TLS together to be there, each.
        read_s: Seconds without a byte after which a request has failed; also, all the time that its body may take.
        pace: Of the answer.

    Raises:
        HTTPError: It could not be opened.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext,
        *,
        connect_s: float,
        read_s: float,
        pace: Pace = Pace(),
    ) -> None:
        self._host = f"[{host}]" if ":" in host else host
        self._host += f":{port}" if port != 443 else ""
        try:
            raw = socket.create_connection((host, port), timeout=connect_s)
        except TimeoutError:
            raise ConnectTimeoutError(f"no connection within {connect_s} s") from None
        except OSError as error:
            raise NewConnectionError(None, f"no connection: {error}") from None  # type: ignore[arg-type]  # only shown
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(raw, server_hostname=host)
        except TimeoutError:
            raw.close()
            raise ConnectTimeoutError(f"no TLS within {connect_s} s") from None
        except ssl.SSLError as error:
            raw.close()
            raise SSLError(error) from None
        except OSError as error:
            raw.close()
            raise ProtocolError("the connection ended within the TLS handshake", error) from None
        self._socket.settimeout(read_s)
        self._meter = _Meter(pace)
        self._received = _Received(self._socket, self._meter)
        self._reader: BufferedReader = BufferedReader(self._received, _BUFFER_BYTES)

    @property
    def holds(self) -> bool:
        """Whether something has been received that nobody has read: behind an answer it is nobody's."""
        self._received.quiet = True
        try:
            return bool(self._reader.peek()) or self._socket.pending() > 0
        finally:
            self._received.quiet = False

    @property
    def dropped(self) -> bool:
        """Whether the other side has ended it, or said something that nobody asked for."""
        return self.holds or wait_for_read(self._socket, timeout=0)

    def check_pace(self) -> None:
        """See whether the answer has been fast enough.

        Raises:
            TooSlow: It was not.
        """
        self._meter.check()

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._reader.close()
            self._socket.close()

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        done: Callable[[Connection], object],
    ) -> Response:
        """Send, and read the head of the answer.

        Args:
            done: Gets the connection when the body has been read and another request may follow.

        Raises:
            HTTPError: There was no answer. The connection is closed.
            ValueError: A header, or the target, would not be one.
        """
        try:
            head = _head(method, target, self._host, headers)
            with suppress(BrokenPipeError):  # the answer may have been sent before all was received
                if len(body) > _TOGETHER_BYTES:
                    self._socket.sendall(head)
                    self._socket.sendall(body)
                else:
                    self._socket.sendall(head + body)
            self._meter.begin()
            self._received.first, self._received.spare = True, False
            status, answered = self._answer()
            self._received.spare = "transfer-encoding" not in answered
            return Response(self, self._reader, status, answered, bodiless=method == "HEAD", done=done)
        except OSError as error:
            self.close()
            raise _translated(error) from None
        except BaseException:
            self.close()
            raise

    def _answer(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer, behind any that say that it will come."""
        for _ in range(_INTERIM_ANSWERS):
            status, headers = self._one_answer()
            if status >= 200:
                return status, headers
            if status == 101:
                break
        raise ProtocolError("the answer does not come, only words before it")

    def _one_answer(self) -> tuple[int, dict[str, str]]:
        """Status and headers, the names of these in lower case; one that is repeated has its values joined."""
        lines = iter(self._lines())
        status = _STATUS.fullmatch(next(lines))
        if status is None:
            raise ProtocolError("the answer is no HTTP/1")
        headers: dict[str, str] = {} if status[1] == "1" else {"connection": "close"}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or " " in name or "\t" in name:
                raise ProtocolError("the answer has a header that is none")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return int(status[2]), headers

    def _lines(self) -> list[str]:
        """The lines of the answer's head, at once if it is here at once."""
        end = self._reader.peek().find(b"\r\n\r\n")
        if end <= 0:
            return [_line(self._reader), *_block(self._reader)]
        lines = (head := self._reader.read(end + 4)).decode("latin-1").split("\r\n")
        if len(head.translate(None, _CONTROLS)) + 2 * (len(lines) - 1) != len(head):
            raise ProtocolError(_CONTROL_IN_LINE)
        if len(lines) > _LINES:
            raise ProtocolError(_TOO_MANY_LINES)
        return lines[:-2]


class Response:
    """An answer whose head is here. Read its body to the end, or close it.

    Attributes:
        headers: By their names in lower case.
        chunked: Whether its body comes in chunks.
    """

    def __init__(
        self,
        connection: Connection,
        reader: BufferedReader,
        status: int,
        headers: Mapping[str, str],
        *,
        bodiless: bool,
        done: Callable[[Connection], object],
    ) -> None:
        self.status, self.headers = status, headers
        self._connection: Connection | None = connection
        self._reader, self._done = reader, done
        self._keep = "close" not in headers.get("connection", "").lower()
        self.chunked = False
        self._left = 0  # of the body, or of its chunk
        self._ends_with_connection = False
        length = headers.get("content-length")
        if bodiless or status in _BODILESS:
            self._end()
        elif "transfer-encoding" in headers:
            if length is not None:
                raise ProtocolError("the answer has a length, and chunks that have their own")
            if headers["transfer-encoding"].lower() != "chunked":
                raise ProtocolError("the answer has a transfer encoding that was not asked for")
            self.chunked = True
            self._next_chunk(first=True)
        elif length is None:
            self._ends_with_connection = True
        elif _DECIMAL.fullmatch(length):
            self._left = int(length)
            if not self._left:
                self._end()
        else:
            raise ProtocolError("the answer has a length that is none")

    @property
    def goes_on(self) -> bool:
        """Whether more of the body is known to come."""
        return self._connection is not None and self._left > 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer as far as the body goes; 0 at its end.

        Raises:
            HTTPError: The body breaks off. What came before has been given.
        """
        if self._connection is None:
            return 0
        try:
            return self._readinto(self._connection, buffer)
        except OSError as error:
            self.close()
            raise _translated(error) from None
        except BaseException:
            self.close()
            raise

    def read(self, amount: int | None = None) -> bytes:
        """So many bytes, or all; fewer only at the end.

        Raises:
            HTTPError: The body breaks off, or all of it is more than an answer is that has to be read whole.
        """
        if self._connection is None:
            return b""
        content = bytearray()
        most = _WHOLE_BYTES if amount is None else amount
        while len(content) < most:
            buffer = bytearray(min(most - len(content), max(self._left, _LINE_BYTES)))
            with memoryview(buffer) as view:
                count = self.readinto(view)
                content += view[:count]
            if not count:
                return bytes(content)
        if amount is None:
            self.close()
            raise ProtocolError("the answer is too long")
        return bytes(content)

    def close(self) -> None:
        """Give up what has not been read, and the connection with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _readinto(self, connection: Connection, buffer: memoryview) -> int:
        if self._ends_with_connection:
            count = self._reader.readinto(buffer)
            if not count:
                connection.check_pace()
                self.close()
            return count
        count = self._reader.readinto(buffer[: self._left])
        if not count and len(buffer):
            connection.check_pace()
            raise IncompleteRead(0, self._left)
        self._left -= count
        if not self._left:
            if self.chunked:
                self._next_chunk(first=False)
            else:
                self._end()
        return count

    def _next_chunk(self, *, first: bool) -> None:
        if not first and _line(self._reader):
            raise ProtocolError("a chunk of the answer is longer than it says")
        size = _line(self._reader).partition(";")[0].strip()
        if not _HEXADECIMAL.fullmatch(size):
            raise ProtocolError("a chunk of the answer has no length")
        self._left = int(size, 16)
        if not self._left:
            _block(self._reader)  # of trailers
            self._end()

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._keep and not connection.holds:
            self._done(connection)
        else:
            connection.close()


def _translated(error: OSError) -> HTTPError:
    """The same as an error of urllib3."""
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(None, "", "the answer takes too long")  # type: ignore[arg-type]  # only shown
    if isinstance(error, ssl.SSLError):
        return SSLError(error)
    return ProtocolError("the connection was lost", error)


def _head(method: str, target: str, host: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity", "User-Agent: beam_entra"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        head = "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:  # which holds the text
        head = b"\0"
    if " " in target or "\t" in target or len(head.translate(None, _CONTROLS)) + 2 * (len(lines) - 1) != len(head):
        raise ValueError("a request with a line end, a space or another character where it may not be")
    return head + b"\r\n\r\n"


def _block(reader: BufferedReader) -> list[str]:
    """The lines up to an empty one."""
    lines: list[str] = []
    while line := _line(reader):
        lines.append(line)
        if len(lines) > _LINES:
            raise ProtocolError(_TOO_MANY_LINES)
    return lines


def _line(reader: BufferedReader) -> str:
    line = reader.readline(_LINE_BYTES)
    if not line.endswith(b"\n"):
        if len(line) >= _LINE_BYTES:
            raise ProtocolError("a line of the answer is too long")
        raise ProtocolError("the connection ended before the answer", ConnectionResetError())
    if not line.endswith(b"\r\n") or len(line.translate(None, _CONTROLS)) + 2 != len(line):
        raise ProtocolError(_CONTROL_IN_LINE)
    return line[:-2].decode("latin-1")
