"""HTTPS to Storage: one connection pool a process and CA, shared by every job, account and thread in it.

A pool carries no identity: what authorises a request is in the request. urllib3 is used below the Azure SDK because a
data-plane GET costs it a third of the CPU time.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
from typing import Any

import urllib3

from beam_entra.errors import ConfigError, Diagnosis

__all__ = ["connection_pool", "redact"]

_POOLS: dict[str, urllib3.PoolManager] = {}
_LOCK = threading.Lock()
_CONNECTIONS_PER_HOST = 64
_HOSTS = 32

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


class _Pool(urllib3.PoolManager):
    """A PoolManager that goes to the host's connections at once.

    urllib3's own takes each URL apart and looks at every character of it; a URL with a SAS has hundreds. That is a
    quarter of the CPU time of a small GET. Ours are well-formed, and never redirected.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._hosts: dict[str, urllib3.HTTPConnectionPool] = {}

    def urlopen(  # type: ignore[override]  # as PoolManager does, whose own parent has other arguments
        self, method: str, url: str, redirect: bool = True, **request: Any
    ) -> urllib3.BaseHTTPResponse:
        scheme, _, rest = url.partition("://")
        host, slash, target = rest.partition("/")
        origin = f"{scheme}://{host}"
        connections = self._hosts.get(origin)
        if connections is None or connections.pool is None:  # new, or pushed out by many others and closed
            connections = self._hosts[origin] = self.connection_from_url(origin)
        return connections.urlopen(method, slash + target, redirect=False, **request)

    def clear(self) -> None:
        self._hosts.clear()
        super().clear()


def connection_pool(ca_file: str = "") -> urllib3.PoolManager:
    """The process's pool for servers that this CA vouches for.

    Args:
        ca_file: PEM bundle of a private CA; empty for the system's CAs.

    Raises:
        ConfigError: The file is not there, or holds no CA.
    """
    with _LOCK:
        pool = _POOLS.get(ca_file)
        if pool is None:
            pool = _POOLS[ca_file] = _Pool(
                num_pools=_HOSTS, maxsize=_CONNECTIONS_PER_HOST, ssl_context=_trusting(ca_file), retries=False
            )
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
