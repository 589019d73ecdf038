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
            pool = _POOLS[ca_file] = urllib3.PoolManager(
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
