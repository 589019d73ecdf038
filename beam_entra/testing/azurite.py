"""Azurite as a child process: several accounts over HTTPS with bearer tokens, gone when we are."""

from __future__ import annotations

import atexit
import base64
import collections
import contextlib
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.secret import Secret
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.node import Node, default_cache, find_node, install_azurite

__all__ = ["Azurite"]

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_START_S = 30.0
_STOP_S = 5.0
_LISTENS = "successfully listens on "
_CLOSED = "successfully closed"
# Azurite's standard input is a pipe that nobody writes to. The kernel closes it when this process ends, however it
# ends, and then Azurite leaves too. Unlike PR_SET_PDEATHSIG it works on every system and from every thread.
_LEAVE_WITH_PARENT = (
    "data:text/javascript,process.stdin.on('end',()=>process.exit(0)).on('error',()=>process.exit(0)).resume();"
)
# For Put Block From URL Azurite asks itself over TLS, and trusts exactly its own certificate; where a CA has signed
# that, as here, Node.js needs to be told that this will do.
_TRUST_ITSELF = (
    "data:text/javascript,import tls from 'node:tls';const make=tls.createSecureContext;"
    "tls.createSecureContext=(options)=>make({...options,allowPartialTrustChain:true});"
)
# Every ten minutes Azurite looks for blocks that nothing refers to, and answers nobody until it is through, which takes
# minutes when there are tens of thousands. Here it looks once a day. (`%3F` is the question mark of a data URL.)
_SWEEP_SELDOM = (
    "data:text/javascript,const wait=globalThis.setTimeout;"
    "const seldom=(act,ms,...rest)=>wait(act,ms===600000%3F86400000:ms,...rest);"
    "globalThis.setTimeout=Object.defineProperties(seldom,Object.getOwnPropertyDescriptors(wait));"
)
_PRELUDES = (_LEAVE_WITH_PARENT, _TRUST_ITSELF, _SWEEP_SELDOM)


class Azurite:
    """Azurite's blob service on a free port of 127.0.0.1, with account keys made for this run; by default in memory.

    `start` returns at once; `wait_until_ready` waits for it. As a context manager it does both, and `stop`s.
    """

    def __init__(
        self,
        certificates: RunCertificates,
        *,
        accounts: Sequence[str] = ("contosolake",),
        cache: Path | None = None,
        folder: Path | None = None,
        node: Node | None = None,
        keep: Path | None = None,
    ) -> None:
        """Name the accounts; nothing is started.

        Args:
            cache: Where Azurite is installed, once; `default_cache()` when it is left out.
            folder: Where it runs; the certificates' folder when it is left out.
            node: What runs it; `find_node()` when it is left out.
            keep: A folder for its blobs, so that they are still there after `restart`. It is slower than memory, and
                only a `stop` writes all of it: what is killed loses seconds, as Storage does not.
        """
        if not accounts:
            raise ConfigError("Azurite needs an account", Diagnosis(hint="name at least one"))
        for account in accounts:
            # Azurite would fall back to its well-known account, and its key, without a word.
            if not _ACCOUNT.fullmatch(account):
                raise ConfigError(f"account {account!r} must be 3 to 24 lower-case letters and digits")
        self._certificates = certificates
        self._cache = cache
        self._node = node
        self._keep = keep
        self._folder = folder or certificates.ca_file.parent
        self._keys = {
            account: Secret(base64.b64encode(secrets.token_bytes(64)).decode("ascii"), what="account key")
            for account in accounts
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._heard = threading.Condition()
        self._last_words: collections.deque[str] = collections.deque(maxlen=20)
        self._ended = False
        self._port = 0

    @property
    def port(self) -> int:
        """Its port; 0 before it was ready for the first time."""
        return self._port

    @property
    def url(self) -> str:
        """`https://127.0.0.1:port`, without an account."""
        return f"https://127.0.0.1:{self._port}"

    @property
    def keys(self) -> Mapping[str, Secret]:
        """Account names and keys. Only the kit has them."""
        return dict(self._keys)

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process else None

    def endpoint(self, account: str) -> str:
        """The account's URL: `https://127.0.0.1:port/account`."""
        return f"{self.url}/{account}"

    def start(self) -> Self:
        """Start the process, installing Azurite first if need be, and return without waiting for it.

        Raises:
            ConfigError: It cannot be installed, or its process cannot be made.
        """
        if self._process is not None:
            raise RuntimeError("Azurite runs already")
        node = self._node or find_node()
        main = install_azurite(self._cache or default_cache(), node)
        settings = {
            "--cert": str(self._certificates.server_file),
            "--key": str(self._certificates.key_file),
            "--oauth": "basic",
            "--blobHost": "127.0.0.1",
            "--blobPort": str(self._port),  # 0 the first time: the kernel picks one, so there is nothing to clash with
        }
        flags = ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        flags += ["--inMemoryPersistence"] if self._keep is None else ["--location", str(self._keep)]
        command = [str(node.node), *(word for prelude in _PRELUDES for word in ("--import", prelude)), str(main)]
        command += [part for pair in settings.items() for part in pair] + flags
        accounts = ";".join(f"{account}:{key.reveal()}" for account, key in self._keys.items())
        self._ended = False
        self._last_words.clear()
        try:
            self._process = subprocess.Popen(  # noqa: S603  # the command line is ours
                command,
                cwd=self._folder,
                env={**os.environ, "AZURITE_ACCOUNTS": accounts},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,  # Ctrl-C at a terminal is for us; who uses it may have an end to write
            )
        except OSError as error:
            raise ConfigError(f"Azurite's process could not be made: {error}") from error
        self._reader = threading.Thread(target=self._listen, args=(self._process,), name="azurite-output", daemon=True)
        self._reader.start()
        atexit.register(self.stop)
        return self

    def wait_until_ready(self, *, timeout_s: float = _START_S) -> Self:
        """Wait until it says that it listens.

        Raises:
            ConfigError: It ended instead, or said nothing in time; the message carries its last words.
        """
        listens = False
        with self._heard:
            self._heard.wait_for(lambda: self._ended or self._listening() is not None, timeout_s)
            address = self._listening()
            if address is not None and not self._ended:
                self._port, listens = int(address.rpartition(":")[2]), True
            words = " | ".join(self._last_words)
        if not listens:
            self.stop()
            raise ConfigError(
                f"Azurite did not start: {words or 'it said nothing'}",
                Diagnosis(
                    tried="start Azurite", hint="see what it says; remove its folder in the cache to reinstall it"
                ),
            )
        return self

    def stop(self) -> None:
        """End the process and reap it. Safe to call twice, and when it has not been started."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        if self._keep is not None:
            process.terminate()  # it writes what it keeps, says so, and does not leave by itself
            with self._heard:
                self._heard.wait_for(lambda: self._ended or any(_CLOSED in line for line in self._last_words), _STOP_S)
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()  # its sign to leave
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join(_STOP_S)
        if process.stdout is not None:
            process.stdout.close()

    def restart(self) -> Self:
        """Stop it, and start it again on the same port with the same accounts; blobs are gone that it does not keep."""
        self.stop()
        return self.start().wait_until_ready()

    def __enter__(self) -> Self:
        return self.start().wait_until_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listening(self) -> str | None:
        return next((line.partition(_LISTENS)[2] for line in self._last_words if _LISTENS in line), None)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101  # it was made with a pipe; tells the type checker
        for line in process.stdout:
            with self._heard:
                self._last_words.append(line.strip())
                self._heard.notify_all()
        with self._heard:
            self._ended = True
            self._heard.notify_all()
