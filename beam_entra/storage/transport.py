"""HTTPS to Storage: one connection pool a process and CA, shared by every job, account and thread in it.

A pool carries no identity: what authorises a request is in the request.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
import weakref
from collections.abc import Mapping
from functools import partial

import urllib3

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.storage.wire import Connection, Pace, Response

__all__ = ["ConnectionPool", "connection_pool", "redact"]

_LOG = logging.getLogger(__name__)
_POOLS: dict[str, ConnectionPool] = {}
_LOCK = threading.Lock()
_CONNECTIONS_PER_HOST = 64
_HOSTS = 32
_CONNECT_S, _READ_S = 5.0, 60.0
_PACE = Pace()

_SIGNATURE = re.compile(r"((?:^|[?&])sig=)[^&\s\"']+")


def redact(text: str) -> str:
    """The same text with the signature of every SAS in it taken out."""
    return _SIGNATURE.sub(r"\1redacted", text)


class _RedactSignatures(logging.Filter):
    """urllib3 logs each URL at DEBUG, and a SAS is part of the URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        return True


_FILTER = _RedactSignatures()
for _name in ("connection", "connectionpool", "poolmanager", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_FILTER)


class ConnectionPool(urllib3.PoolManager):
    """Kept connections by host. `open` is the way of the data plane; all else is urllib3's."""

    def __init__(self, context: ssl.SSLContext, *, pace: Pace = _PACE) -> None:
        super().__init__(num_pools=_HOSTS, maxsize=_CONNECTIONS_PER_HOST, ssl_context=context, retries=False)
        self._context, self._pace = context, pace
        self._idle: dict[str, list[Connection]] = {}
        weakref.finalize(self, _close, self._idle)

    def open(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        """Send a request; nothing is followed and nothing is tried again.

        Args:
            url: Well-formed and percent-encoded.

        Returns:
            The answer, whatever its status; its body is still to be read.

        Raises:
            HTTPError: There was no answer.
        """
        scheme, _, rest = url.partition("://")
        host, slash, target = rest.partition("/")
        if scheme != "https":
            raise ValueError("without TLS nothing is sent")
        idle = self._idle.setdefault(host, [])
        response = self._connection(host, idle).request(
            method, slash + target, headers, body, done=partial(self._keep, idle)
        )
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug("%s %s: %s", method, redact(url), response.status)
        return response

    def _connection(self, host: str, idle: list[Connection]) -> Connection:
        while idle:
            try:
                connection = idle.pop()  # the latest: it is the likeliest to be still there
            except IndexError:
                break  # another thread was faster
            if not connection.dropped:
                return connection
            connection.close()
        name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "443")
        return Connection(
            name.strip("[]"), int(port), self._context, connect_s=_CONNECT_S, read_s=_READ_S, pace=self._pace
        )

    def _keep(self, idle: list[Connection], connection: Connection) -> None:
        if len(idle) < _CONNECTIONS_PER_HOST:
            idle.append(connection)
        else:
            connection.close()

    def clear(self) -> None:
        """Close what is idle."""
        super().clear()
        _close(self._idle)


def _close(connections: dict[str, list[Connection]]) -> None:
    for idle in connections.values():
        while idle:
            idle.pop().close()


def connection_pool(ca_file: str = "") -> ConnectionPool:
    """The process's pool for servers that this CA vouches for.

    Args:
        ca_file: PEM bundle of a private CA; empty for the system's CAs.

    Raises:
        ConfigError: The file is not there, or holds no CA.
    """
    with _LOCK:
        pool = _POOLS.get(ca_file)
        if pool is None:
            pool = _POOLS[ca_file] = ConnectionPool(_trusting(ca_file))
        return pool


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(
            f"the CA file {ca_file} of a storage account cannot be used: {error.strerror}",
            Diagnosis(hint="give ca_file in [accounts.<name>] the PEM file of a CA"),
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _start_over() -> None:
    """In a forked child: connections are the parent's, and the lock may be held by a thread that is not here."""
    global _LOCK  # noqa: PLW0603 - there is one a process
    _LOCK = threading.Lock()
    _POOLS.clear()


os.register_at_fork(after_in_child=_start_over)
