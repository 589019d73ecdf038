"""A TCP relay that adds round-trip time and nothing else: `python -m benchmarks.delay --upstream 10000 --rtt_ms 20`.

It prints its port and ends when its standard input does. TLS passes through it untouched.

* Each byte is handed on half a round trip after it came, in order, each way.
* A new connection costs a round trip before its first byte, as a TCP handshake does; over loopback it would be free.
* It does not limit bandwidth: up to 64 MB a direction may be under way, and there is neither slow start nor loss. That
  is kinder than a real network to whoever opens many connections. Its own floor is a row of the benchmark.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from argparse import ArgumentParser
from collections import deque
from types import TracebackType
from typing import Self

__all__ = ["DelayProxy", "relay"]

_UNDER_WAY_BYTES = 64 << 20
_BUFFER_BYTES = 16 << 20
_NO_MORE, _LOST = "no more", "lost"  # one way ended; both did
_EARLY_S = 0.0005  # epoll counts in milliseconds and rounds up


class DelayProxy:
    """The relay in a process of its own, so that it takes no time from whoever measures."""

    def __init__(self, upstream: int, *, rtt_ms: float) -> None:
        self._command = [sys.executable, "-m", "benchmarks.delay", f"--upstream={upstream}", f"--rtt_ms={rtt_ms}"]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - the command line is ours
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None  # noqa: S101 - it was made with a pipe
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # closes its input, its sign to leave


class _Way:
    """One direction of one connection: what came in, and when it is due."""

    def __init__(self, delay_s: float, not_before: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay_s, self._not_before = delay_s, not_before
        self._due: deque[tuple[float, bytes | str]] = deque()
        self._armed = False
        self._size = 0
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.sink_full = False

    def feed(self, data: bytes | str) -> None:
        """Bytes came, or the end did."""
        self._due.append((max(self._loop.time() + self._delay_s, self._not_before), data))
        self._size += len(data)
        self.hold_back()
        self.arm()

    def arm(self) -> None:
        if self._due and not self._armed and self.sink is not None:
            self._armed = True
            self._loop.call_at(self._due[0][0], self._deliver)

    def hold_back(self) -> None:
        """Let the source wait while too much is under way."""
        if self.source is None or self.source.is_closing():
            return
        full = self.sink_full or self._size > _UNDER_WAY_BYTES
        if full and self.source.is_reading():
            self.source.pause_reading()
        elif not full and not self.source.is_reading():
            self.source.resume_reading()

    def _deliver(self) -> None:
        self._armed = False
        sink = self.sink
        if sink is None or sink.is_closing():
            return
        now = self._loop.time() + _EARLY_S
        while self._due and self._due[0][0] <= now:
            data = self._due.popleft()[1]
            self._size -= len(data)
            if isinstance(data, bytes):
                sink.write(data)
            elif data == _LOST or not _ended(sink):
                sink.close()
                return
        self.hold_back()
        self.arm()


def _ended(sink: asyncio.Transport) -> bool:
    """Whether the other side could be told that no more comes; it may be gone."""
    try:
        sink.write_eof()
    except OSError:
        return False
    return True


class _End(asyncio.Protocol):
    """One end of a connection: what it receives goes into `out`, what comes for it is in `into`."""

    def __init__(self, out: _Way, into: _Way) -> None:
        self._out, self._into = out, into

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - tells the type checker
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self._out.source = self._into.sink = transport
        self._into.arm()

    def data_received(self, data: bytes) -> None:
        self._out.feed(data)

    def eof_received(self) -> bool:
        self._out.feed(_NO_MORE)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.feed(_LOST)

    def pause_writing(self) -> None:
        self._into.sink_full = True
        self._into.hold_back()

    def resume_writing(self) -> None:
        self._into.sink_full = False
        self._into.hold_back()


async def relay(upstream: int, rtt_s: float) -> asyncio.Server:
    """Serve on a free port of 127.0.0.1, in front of a port there."""
    loop = asyncio.get_running_loop()
    opening: set[asyncio.Task[object]] = set()

    def accept() -> asyncio.Protocol:
        there, back = _Way(rtt_s / 2, loop.time() + rtt_s * 1.5), _Way(rtt_s / 2, 0)
        opened = loop.create_task(_connect(there, back))
        opening.add(opened)
        opened.add_done_callback(opening.discard)
        return _End(there, back)

    async def _connect(there: _Way, back: _Way) -> None:
        try:
            await loop.create_connection(lambda: _End(back, there), "127.0.0.1", upstream)
        except OSError:
            back.feed(_LOST)

    return await loop.create_server(accept, "127.0.0.1", 0, backlog=512)


async def _serve(upstream: int, rtt_s: float) -> None:
    server = await relay(upstream, rtt_s)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def _main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.delay")
    parser.add_argument("--upstream", type=int, required=True)
    parser.add_argument("--rtt_ms", type=float, required=True)
    flags = parser.parse_args()
    asyncio.run(_serve(flags.upstream, flags.rtt_ms / 1000))


if __name__ == "__main__":
    _main()
