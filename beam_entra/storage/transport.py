"""HTTPS to Storage: one connection pool a process and CA, shared by every job, account and thread in it.

A pool carries no identity: what authorises a request is in the request. urllib3 is used below the Azure SDK because a
data-plane GET costs it a third of the CPU time.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading

import urllib3

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


def connection_pool(ca_file: str = "") -> urllib3.PoolManager:
    """The process's pool for servers that this CA vouches for.

    Args:
        ca_file: PEM bundle of a private CA; empty for the system's CAs.
    """
    with _LOCK:
        pool = _POOLS.get(ca_file)
        if pool is None:
            context = ssl.create_default_context(cafile=ca_file or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            pool = _POOLS[ca_file] = urllib3.PoolManager(
                num_pools=_HOSTS, maxsize=_CONNECTIONS_PER_HOST, ssl_context=context, retries=False
            )
        return pool
