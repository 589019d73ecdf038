"""A local cloud in a process of its own, for a person at a shell: launch, find, stop.

The process is stopped by asking it, over a loopback socket and with a marker that only its state file holds. No
process is ever signalled by its number, which may be somebody else's by then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.secret import Secret
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import BlobAdmin, LocalCloud

if sys.platform != "win32":
    import fcntl

__all__ = ["CloudPlan", "RunningCloud", "find_running", "launch", "serve"]

_STATE = "state.json"
_LOG = "server.log"
_FILES = (_STATE, "ca.pem", "server.pem", "server.key", "assertion.jwt", "endpoints.toml")
_ANSWER_S = 5.0
_DOWN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudPlan:
    """What a local cloud shall be.

    Attributes:
        tenant_id: A GUID; made up when empty.
        domains: Other names for the tenant.
        clients: Client ids to register; one is made up when there are none.
        accounts: Storage accounts.
        containers: `account/container` to create.
        secrets: `client/NAME`: register a client secret, which `local env` exports as NAME.
    """

    tenant_id: str = ""
    domains: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    accounts: tuple[str, ...] = ("contosolake",)
    containers: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCloud:
    """A local cloud that answers.

    Attributes:
        folder: Its files.
        control: Port of its control socket.
        endpoints: Account names and URLs.
        keys: Account names and keys.
        secrets: Environment variables and the client secrets that belong there.
    """

    folder: Path
    pid: int
    control: int
    authority: str
    tenant_id: str
    clients: tuple[str, ...]
    endpoints: dict[str, str]
    marker: Secret = field(repr=False)
    keys: dict[str, Secret] = field(repr=False)
    secrets: dict[str, Secret] = field(repr=False)

    @property
    def endpoints_file(self) -> Path:
        """The endpoints overlay."""
        return self.folder / "endpoints.toml"

    @property
    def assertion_file(self) -> Path:
        """The job's assertion."""
        return self.folder / "assertion.jwt"

    def admin(self) -> BlobAdmin:
        """Access to its blobs with the account keys."""
        return BlobAdmin(endpoints=self.endpoints, keys=self.keys, ca_file=self.folder / "ca.pem")

    def stop(self) -> None:
        """Ask it to stop, and wait until its process has ended.

        Raises:
            ConfigError: It did not end in time.
        """
        with contextlib.ExitStack() as opened:
            try:
                line = opened.enter_context(_asked(self, "stop", timeout_s=_DOWN_S))
                line.read()  # until the process ends, and its end of the socket with it
            except TimeoutError as error:
                hint = f"see {self.folder / _LOG}, then end process {self.pid}"
                raise ConfigError("the local cloud does not stop", Diagnosis(hint=hint)) from error
            except ConnectionError:
                pass  # it ended before it could say so

    def answers(self) -> bool:
        """Whether it is there: the process that wrote the state file, not another on the same port."""
        try:
            with _asked(self, "status", timeout_s=_ANSWER_S) as line:
                return line.readline().strip() == str(self.pid).encode()
        except OSError:
            return False


def find_running(folder: Path) -> RunningCloud | None:
    """The local cloud whose files are in `folder`, if it answers."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        found = RunningCloud(
            folder=folder.absolute(),
            pid=state["pid"],
            control=state["control"],
            authority=state["authority"],
            tenant_id=state["tenant_id"],
            clients=tuple(state["clients"]),
            endpoints=state["endpoints"],
            marker=Secret(state["marker"], what="control marker"),
            keys={account: Secret(key, what="account key") for account, key in state["keys"].items()},
            secrets={name: Secret(text, what="client secret") for name, text in state["secrets"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.answers() else None


def launch(folder: Path, plan: CloudPlan) -> RunningCloud:
    """Start a local cloud in a process of its own that outlives this one, and wait until it is ready.

    Raises:
        ConfigError: It did not come up; the message is its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
            [sys.executable, "-m", "beam_entra.testing.background", str(folder.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101  # both were made with pipes; tells the type checker
        assert process.stdout is not None  # noqa: S101
        with process.stdin, process.stdout:
            process.stdin.write(json.dumps(dataclasses.asdict(plan)))
            process.stdin.close()
            said = process.stdout.read()  # it closes its output when it is ready, or ends
        process.wait()  # it has left its work to a child of its own
    outcome: dict[str, Any] = json.loads(said) if said.strip() else {}
    running = find_running(folder) if outcome.get("ready") else None
    if running is None:
        message = outcome.get("error") or "its process ended without a word"
        hint = outcome.get("hint") or f"see {folder / _LOG}"
        raise ConfigError(f"the local cloud did not come up: {message}", Diagnosis(hint=hint))
    return running


def serve(folder: Path, plan: CloudPlan, ready: threading.Event, stopping: threading.Event) -> None:
    """Keep a local cloud up in this process until `stopping` is set, or it is asked to stop.

    Sets `ready` when it is up.

    Raises:
        ConfigError: It does not come up, or one is up in this folder already.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as up:
        asking: list[socket.socket] = []  # who asked to stop, and is told by hanging up when all is down
        up.callback(_hang_up, asking)
        up.enter_context(_claimed(folder))
        up.callback(_remove_files, folder)
        cloud = up.enter_context(
            LocalCloud(
                folder=folder,
                accounts=plan.accounts,
                tenant_id=plan.tenant_id,
                domains=plan.domains,
                client_id=plan.clients[0] if plan.clients else "",
                proxy=False,
            )
        )
        for client in plan.clients[1:]:
            cloud.add_client(client)
        apps = {app.client_id: app for app in cloud.tenant.apps}
        wanted = (each.partition("/") for each in plan.secrets)
        made = {name: apps[client].add_secret() for client, _, name in wanted}
        for name in plan.containers:
            account, _, container = name.partition("/")
            cloud.create_container(account, container)
        control = up.enter_context(socket.create_server(("127.0.0.1", 0)))
        marker = Secret(secrets.token_hex(16), what="control marker")
        _write_state(folder, cloud, control.getsockname()[1], marker, made)
        listener = threading.Thread(
            target=_listen, args=(control, marker, stopping, asking), name="control", daemon=True
        )
        listener.start()
        up.callback(listener.join, _ANSWER_S)
        up.callback(_wake, control)
        ready.set()
        stopping.wait()


def _write_state(
    folder: Path, cloud: LocalCloud, control: int, marker: Secret, client_secrets: dict[str, Secret]
) -> None:
    state = {
        "pid": os.getpid(),
        "control": control,
        "marker": marker.reveal(),
        "authority": cloud.authority,
        "tenant_id": cloud.tenant_id,
        "clients": [app.client_id for app in cloud.tenant.apps],
        "endpoints": {account: cloud.endpoint(account) for account in cloud.accounts},
        "keys": {account: key.reveal() for account, key in cloud.azurite.keys.items()},
        "secrets": {name: secret.reveal() for name, secret in client_secrets.items()},
    }
    write_private(folder / _STATE, json.dumps(state, indent=1).encode("ascii"))


def _remove_files(folder: Path) -> None:
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder for as long as the process lives: the kernel lets go of the lock, however it ends."""
    with (folder / "lock").open("wb") as lock:
        if sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another local cloud is up, or coming up, in {folder}", Diagnosis(hint="beam-entra local down")
                ) from None
        yield


@contextlib.contextmanager
def _asked(cloud: RunningCloud, command: str, *, timeout_s: float) -> Iterator[IO[bytes]]:
    with socket.create_connection(("127.0.0.1", cloud.control), timeout=timeout_s) as connection:
        connection.sendall(f"{cloud.marker.reveal()} {command}\n".encode("ascii"))
        with connection.makefile("rb") as line:
            yield line


def _listen(control: socket.socket, marker: Secret, stopping: threading.Event, asking: list[socket.socket]) -> None:
    while not stopping.is_set():
        connection, _ = control.accept()
        try:
            command = _obey(connection, marker)
        except OSError:
            command = ""  # it hung up
        if command == "stop":
            asking.append(connection)
            stopping.set()
        else:
            connection.close()


def _obey(connection: socket.socket, marker: Secret) -> str:
    """Answer `status`; return the command, or nothing when the marker is not ours."""
    connection.settimeout(_ANSWER_S)
    with connection.makefile("rb") as line:
        given, _, command = line.readline(200).decode("ascii", "replace").strip().partition(" ")
    if not secrets.compare_digest(given.encode(), marker.reveal().encode()):
        return ""
    if command == "status":
        connection.sendall(f"{os.getpid()}\n".encode("ascii"))
    return command


def _hang_up(asking: list[socket.socket]) -> None:
    for connection in asking:
        connection.close()


def _wake(control: socket.socket) -> None:
    """End the listener's wait: `stopping` is set by now, so one more connection is all it takes."""
    with contextlib.suppress(OSError), socket.create_connection(control.getsockname(), timeout=_ANSWER_S):
        pass


def _main(folder: Path) -> int:
    if hasattr(os, "fork") and os.fork():
        os._exit(0)  # the launcher reaps this process now; the child that goes on is nobody's zombie later
    plan = CloudPlan(**{name: _frozen(value) for name, value in json.load(sys.stdin).items()})
    ready, stopping = threading.Event(), threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    told = threading.Thread(target=_tell_when_ready, args=(ready,), name="tell", daemon=True)
    told.start()
    try:
        serve(folder, plan, ready, stopping)
    except ConfigError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
        return 1
    return 0


def _tell_when_ready(ready: threading.Event) -> None:
    ready.wait()
    print(json.dumps({"ready": True}), flush=True)
    # The launcher reads to the end of our output; from here on there is none.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
