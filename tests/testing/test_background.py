"""A local cloud in a process of its own, and the commands around it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.cli.local import local
from beam_entra.clock import utc_now
from beam_entra.errors import BlobNotFound, ConfigError
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.identity.sources import EntraSource
from beam_entra.testing.background import CloudPlan, find_running, launch, serve
from beam_entra.testing.local import past_proxies

TENANT = "8d2b1c7e-3a44-4f0e-9a53-3b8f4c1f2a10"
CLIENTS = ("5f0c2f7a-6e0b-4a6e-8a58-0d6f0c1b9e21", "9a1de54c-0b7e-4f39-8f3c-6f1e2d3c4b5a")
ROOT = "abfss://raw@contosolake.dfs.core.windows.net/"
Run = Callable[..., Result]

MANIFEST = """
pipeline = "{pipeline}"
environment = "test"
[identity]
tenant = "{tenant}"
client = "{client}"
credential = "federated_file"
assertion_file = "env:AZURE_FEDERATED_TOKEN_FILE"
[lifetime]
job = "1h"
[grants]
read = ["abfss://raw@contosolake.dfs.core.windows.net/{pipeline}/"]
write = ["abfss://curated@fabrikamlake.dfs.core.windows.net/{pipeline}/"]
[audit]
path = "abfss://audit@contosolake.dfs.core.windows.net/{pipeline}/"
"""


def write_manifest(folder: Path, *, pipeline: str, tenant: str = TENANT, client: str = CLIENTS[0]) -> str:
    """An access manifest in a file."""
    path = folder / f"{pipeline}.access.toml"
    path.write_text(MANIFEST.format(pipeline=pipeline, tenant=tenant, client=client))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a command of the group in a folder of the test's own; whatever is up at the end is stopped."""
    folder = tmp_path / "cloud"

    def command(*arguments: str, ok: bool = True) -> Result:
        result = CliRunner().invoke(local, ["--folder", str(folder), *arguments])
        if ok and result.exception is not None:
            raise result.exception
        return result

    yield command
    left = find_running(folder)
    if left is not None:
        left.stop()


def test_up_env_put_ls_cat_down(run: Run, tmp_path: Path, process_is_gone: Callable[[int], bool]) -> None:
    """The whole walk, with two manifests: what they name is there, and all is gone afterwards."""
    manifests = [
        write_manifest(tmp_path, pipeline="orders"),
        write_manifest(tmp_path, pipeline="returns", client=CLIENTS[1]),
    ]
    up = run("up", *(part for path in manifests for part in ("--access_manifest", path)))
    assert "The local cloud is up (process" in up.output
    running = find_running(tmp_path / "cloud")
    assert running is not None
    assert (running.tenant_id, running.clients) == (TENANT, CLIENTS)
    assert set(running.endpoints) == {"contosolake", "fabrikamlake"}
    assert stat.S_IMODE((tmp_path / "cloud" / "state.json").stat().st_mode) == 0o600

    assert run("env").output.splitlines() == [
        f"export BEAM_ENTRA_ENDPOINTS={tmp_path}/cloud/endpoints.toml",
        f"export AZURE_FEDERATED_TOKEN_FILE={tmp_path}/cloud/assertion.jwt",
        *(f"export {name}={value}" for name, value in past_proxies(os.environ).items()),
    ]
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1}\n')
    assert run("put", str(tmp_path / "a.jsonl"), f"{ROOT}orders/").output == f"{ROOT}orders/a.jsonl\n"
    assert run("put", str(tmp_path / "a.jsonl"), f"{ROOT}b").output == f"{ROOT}b\n"
    assert run("ls", ROOT).output.splitlines() == [f"{ROOT}b", f"{ROOT}orders/a.jsonl"]
    assert run("ls", f"{ROOT}orders/").output.splitlines() == [f"{ROOT}orders/a.jsonl"]
    assert run("cat", f"{ROOT}b").stdout_bytes == b'{"id": 1}\n'
    assert run("ls").output.splitlines() == [
        "abfss://audit@contosolake.dfs.core.windows.net/",
        ROOT,
        "abfss://curated@fabrikamlake.dfs.core.windows.net/",
    ]
    with pytest.raises(BlobNotFound):
        run("cat", f"{ROOT}missing")

    again = run("up", "--access_manifest", manifests[0], "--container", "contosolake/more")
    assert f"up already (process {running.pid})" in again.output
    assert "abfss://more@contosolake.dfs.core.windows.net/" in run("ls").output
    for lacking in (("--accounts", "otherlake"), ("--client-id", "other"), ("--tenant-id", CLIENTS[0])):
        with pytest.raises(ConfigError, match="is up already, without"):
            run("up", *lacking)

    assert run("down").output == "The local cloud is down.\n"
    assert sorted(entry.name for entry in (tmp_path / "cloud").iterdir()) == ["lock", "server.log"]
    assert (tmp_path / "cloud" / "server.log").read_text() == ""
    assert run("down").output == "The local cloud is not up.\n"
    with pytest.raises(ConfigError, match="is not up"):
        run("env")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.control))


def with_credential(path: str, credential: str, *settings: str) -> str:
    """Another credential for a manifest."""
    manifest = Path(path)
    lines = manifest.read_text().splitlines()
    at = lines.index('credential = "federated_file"')
    manifest.write_text("\n".join([*lines[:at], f'credential = "{credential}"', *settings, *lines[at + 2 :]]))
    return path


def test_a_manifest_with_a_client_secret_works_behind_a_proxy_that_is_not_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret is registered, `env` exports it under the manifest's own name, and loopback goes past HTTPS_PROXY."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intranet.contoso.com")
    monkeypatch.delenv("no_proxy", raising=False)
    path = with_credential(
        write_manifest(tmp_path, pipeline="orders"), "client_secret", 'client_secret = "env:ORDERS_SECRET"'
    )
    run("up", "--access_manifest", path)
    (tmp_path / "a").write_bytes(b"x")
    run("put", str(tmp_path / "a"), ROOT)
    running = find_running(tmp_path / "cloud")
    assert running is not None
    assert running.secrets["ORDERS_SECRET"].reveal() not in repr(running)
    for line in run("env").output.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, shlex.split(value)[0])
    assert os.environ["NO_PROXY"] == "intranet.contoso.com,127.0.0.1,localhost"
    manifest = AccessManifest.load(path).at(Endpoints.load(running.endpoints_file))
    token = EntraSource(manifest.identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.audience == STORAGE_AUDIENCE
    other = with_credential(
        write_manifest(tmp_path, pipeline="others"), "client_secret", 'client_secret = "env:OTHERS_SECRET"'
    )
    with pytest.raises(ConfigError, match="without secret OTHERS_SECRET"):
        run("up", "--access_manifest", other)


@pytest.mark.parametrize(
    ("credential", "settings", "says"),
    [
        ("developer", (), "knows no local tenant"),
        ("managed_identity", (), "is for managed_identity, which no local cloud"),
        ("federated", ('assertion_from = "gcp"',), "is for federated, which no local cloud"),
        ("client_secret", ('client_secret = "file:/run/secret"',), "cannot put into place"),
    ],
)
def test_a_credential_that_the_local_cloud_cannot_serve_is_refused(
    run: Run, tmp_path: Path, credential: str, settings: tuple[str, ...], says: str
) -> None:
    """Before anything is started."""
    path = with_credential(write_manifest(tmp_path, pipeline="orders"), credential, *settings)
    with pytest.raises(ConfigError, match=says):
        run("up", "--access_manifest", path)
    assert not (tmp_path / "cloud").exists()


def test_one_variable_holds_one_secret(run: Run, tmp_path: Path) -> None:
    """Two clients cannot have theirs under the same name."""
    manifests = [
        with_credential(
            write_manifest(tmp_path, pipeline=name, client=client), "client_secret", 'client_secret = "env:SECRET"'
        )
        for name, client in zip(("orders", "returns"), CLIENTS, strict=True)
    ]
    with pytest.raises(ConfigError, match="several clients in SECRET"):
        run("up", *(part for path in manifests for part in ("--access_manifest", path)))


def test_up_takes_its_options(run: Run, tmp_path: Path) -> None:
    """Accounts, containers and ids from the command line; the container's account need not be named twice."""
    run("up", "--accounts", "alake,blake", "--container", "clake/raw", "--tenant-id", TENANT, "--client-id", CLIENTS[1])
    running = find_running(tmp_path / "cloud")
    assert running is not None
    assert (running.tenant_id, running.clients) == (TENANT, CLIENTS[1:])
    assert list(running.endpoints) == ["alake", "blake", "clake"]
    assert run("ls").output == "abfss://raw@clake.dfs.core.windows.net/\n"
    assert running.marker.reveal() not in repr(running)


def test_manifests_of_several_tenants_do_not_fit_one_cloud(run: Run, tmp_path: Path) -> None:
    """There is one tenant in a local cloud; nothing is started."""
    paths = [
        write_manifest(tmp_path, pipeline="orders"),
        write_manifest(tmp_path, pipeline="returns", tenant=CLIENTS[0]),
    ]
    with pytest.raises(ConfigError, match="several tenants"):
        run("up", *(part for path in paths for part in ("--access_manifest", path)))
    assert not (tmp_path / "cloud").exists()


@pytest.mark.parametrize("name", ["contosolake", "contosolake/RAW", "Contoso/raw", "a/b/c"])
def test_a_container_must_be_named_rightly(run: Run, name: str) -> None:
    """The rules are those of paths; nothing is started."""
    with pytest.raises(ConfigError):
        run("up", "--container", name)


def test_a_cloud_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    """The error of the background process is the command's error."""
    with pytest.raises(ConfigError, match="did not come up: account 'A:b' must be"):
        launch(tmp_path / "cloud", CloudPlan(accounts=("A:b",)))
    assert find_running(tmp_path / "cloud") is None


def _hang_up_on_one(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.close()


def test_that_azurite_is_fetched_is_said(tmp_path: Path) -> None:
    """It takes a while, the first time; what npm says when it fails comes after."""
    for name, says in {"node": "echo v24.1.0", "npm": "echo no network today; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{says}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"BEAM_ENTRA_CACHE": str(tmp_path / "cache"), "PATH": str(tmp_path)}
    done = CliRunner().invoke(local, ["--folder", str(tmp_path / "cloud"), "up"], env=environment)
    assert done.output == f"Fetching Azurite into {tmp_path / 'cache'}, once; that takes npm a while.\n"
    assert isinstance(done.exception, ConfigError)
    assert "no network today" in str(done.exception)


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """The kit's own libraries are no worker's, so the package alone does not bring them."""
    code = "import sys; sys.modules['trustme'] = None; from beam_entra.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "local", "--folder", str(tmp_path / "cloud"), "up"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a local cloud needs trustme, which is not installed here" in done.stderr
    assert "pip install 'beam-entra[local]'" in done.stderr


def test_a_stale_state_is_nobody(tmp_path: Path) -> None:
    """A state file whose process is gone, or whose port is somebody else's now, is not a running cloud."""
    state = {
        "pid": os.getpid(),
        "marker": "m",
        "authority": "a",
        "tenant_id": "t",
        "clients": [],
        "endpoints": {},
        "keys": {},
        "secrets": {},
    }
    with socket.create_server(("127.0.0.1", 0)) as other:
        answering = threading.Thread(target=_hang_up_on_one, args=(other,), daemon=True)
        answering.start()
        (tmp_path / "state.json").write_text(json.dumps(state | {"control": other.getsockname()[1]}))
        assert find_running(tmp_path) is None
        answering.join(5)
        assert not answering.is_alive(), "it was asked"
    assert find_running(tmp_path) is None
    for text in ("", "{}", "[]", "not json"):
        (tmp_path / "state.json").write_text(text)
        assert find_running(tmp_path) is None


def test_a_stranger_without_the_marker_is_not_obeyed(tmp_path: Path) -> None:
    """`stop` needs the marker of the state file; and a folder takes one cloud at a time."""
    ready, stopping = threading.Event(), threading.Event()
    before = set(threading.enumerate())
    server = threading.Thread(target=serve, args=(tmp_path, CloudPlan(), ready, stopping))
    server.start()
    assert ready.wait(20)
    running = find_running(tmp_path)
    assert running is not None
    for said in (b"wrong stop\n", b"\xff\xfe\n", b"\n", b""):
        with socket.create_connection(("127.0.0.1", running.control), timeout=5) as stranger:
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(100) == b""
    assert not stopping.is_set()
    with pytest.raises(ConfigError, match="another local cloud is up"):
        serve(tmp_path, CloudPlan(), threading.Event(), threading.Event())
    assert running.answers()
    running.stop()
    server.join(10)
    assert not set(threading.enumerate()) - before
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def test_in_the_foreground_it_stays_until_it_is_interrupted(tmp_path: Path) -> None:
    """It says when it is up, and leaves in good order on SIGINT."""
    program = "from beam_entra.cli.local import local; local()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "--folder", str(tmp_path / "cloud"), "up", "--foreground"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Stop it:"):
                break
        assert find_running(tmp_path / "cloud") is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith("The local cloud is down.\n")
        assert process.wait(10) == 0
    assert find_running(tmp_path / "cloud") is None


def test_help_starts_without_the_kit(tmp_path: Path) -> None:
    """`--help` is quick: neither Azure nor cryptography nor Beam is imported for it."""
    program = (
        "import sys; from beam_entra.cli.local import local\n"
        "try: local(['up', '--help'])\n"
        "finally: print([n for n in ('azure', 'cryptography', 'apache_beam', 'jwt') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert re.search(r"--access_manifest", done.stdout)
