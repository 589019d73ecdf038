"""Each thing that can stand between a machine and a service has its line, with the fix."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from beam_entra.clock import utc_now
from beam_entra.doctor.network import Place, reach
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from tests.doctor.conftest import LAKE, OTHER, Patient, Seen

ENTRA, ACCOUNTS = "authority", "accounts"


def moved(url: str, ca_file: str = "", *, authority: bool = False) -> Callable[[dict[str, Any]], None]:
    """Where the account, or the authority, is in place of where it was."""

    def move(document: dict[str, Any]) -> None:
        if authority:
            document["identity"]["authority"] = url or document["identity"]["authority"]
            document["identity"]["ca_file"] = ca_file or document["identity"]["ca_file"]
        else:
            account = document["accounts"][LAKE]
            account["endpoint"], account["ca_file"] = url or account["endpoint"], ca_file or account["ca_file"]

    return move


def check_line(seen: Seen, about: str, found: str, fix: str) -> None:
    """The network's line about a service failed, with these words."""
    line = seen.of("network", about)
    assert line.mark == "fail"
    assert found in line.found
    assert fix in line.fix


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, while it is held."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address at which connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def plain() -> Iterator[str]:
    """An address at which something is said that is no TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def talk() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(b"220 mail.contoso.example ESMTP\r\n")
                        connection.recv(65536)

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("authority", [True, False], ids=["authority", "account"])
def test_a_certificate_of_another_ca(patient: Patient, tmp_path: Path, authority: bool) -> None:
    """It names the problem, and the setting that names the CA; what depends on it is not looked at."""
    other = RunCertificates.issue(tmp_path)
    seen = patient.examine(at=moved("", str(other.ca_file), authority=authority))
    table = "[identity]" if authority else f"[accounts.{LAKE}]"
    check_line(seen, "authority" if authority else LAKE, "is not trusted", f"as ca_file in {table}")
    assert seen.failures == ("network",)
    why = "the authority is out of reach" if authority else f"account {LAKE} is out of reach"
    assert seen.of("read").because == why
    assert seen.marks()["token"] == "ok" if not authority else "token" not in seen.marks()


def test_a_ca_file_that_is_not_there(patient: Patient, tmp_path: Path) -> None:
    """It says which, and which setting names it."""
    seen = patient.examine(at=moved("", str(tmp_path / "nothing.pem")))
    check_line(seen, LAKE, "nothing.pem cannot be used: No such file", f"ca_file in [accounts.{LAKE}]")


def test_a_ca_file_that_is_none(patient: Patient, tmp_path: Path) -> None:
    """Text that is no certificate is said to be none."""
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    check_line(patient.examine(at=moved("", str(file))), LAKE, "cannot be used: ", "the PEM file of a CA")


@pytest.mark.parametrize("authority", [True, False], ids=["authority", "account"])
def test_a_refused_port(patient: Patient, nobody: str, authority: bool) -> None:
    """Nothing listens there."""
    seen = patient.examine(at=moved(f"https://{nobody}", authority=authority))
    check_line(seen, "authority" if authority else LAKE, f"{nobody} refuses the connection", "check host and port")


@pytest.mark.parametrize("authority", [True, False], ids=["authority", "account"])
def test_an_unknown_host(patient: Patient, authority: bool) -> None:
    """A name that DNS does not know."""
    seen = patient.examine(at=moved("https://nowhere.invalid", authority=authority))
    check_line(seen, "authority" if authority else LAKE, "nowhere.invalid cannot be resolved", "DNS")


def test_something_else_than_tls(patient: Patient, plain: str) -> None:
    """Something answers, and it is no TLS."""
    check_line(patient.examine(at=moved(f"https://{plain}")), LAKE, f"{plain} does not speak TLS", "check the port")


def test_silence(silent: str) -> None:
    """Who never answers is given up, with what to open."""
    place = Place(about="authority", url=f"https://{silent}/", ca_file="", setting="[identity]")
    line = reach(place, utc_now, timeout_s=0.2).finding
    assert (line.mark, line.found) == ("fail", f"{silent} does not answer within 0.2 s")
    assert line.fix.startswith(f"open the way from this machine to {silent}")


def test_nothing_can_be_said_of_the_time_where_nobody_is_there(patient: Patient, nobody: str) -> None:
    """The clock is not right and not wrong."""

    def move(document: dict[str, Any]) -> None:
        moved(f"https://{nobody}")(document)
        moved(f"https://{nobody}", authority=True)(document)

    seen = patient.examine(at=move)
    assert [line.mark for line in seen.examination.findings if line.check == "network"] == ["fail", "fail"]
    assert seen.marks()["clock"] == "skipped"
    assert seen.of("credential").because == "the authority is out of reach"


def test_a_service_that_is_out_of_order(patient: Patient) -> None:
    """It is there and says that it cannot: the line warns, and the checks go on."""
    patient.cloud.proxy.respond(503, "ServerBusy", where=lambda request: request.method == "HEAD", times=1)
    seen = patient.examine()
    line = seen.of("network", LAKE)
    assert (line.mark, "answers HTTP 503" in line.found) == ("warn", True)
    assert seen.failures == ()


class Hours:
    """A service whose clock, or Date header, is as it is told."""

    def __init__(self, date: str) -> None:
        self.date = date

    def answer(self, request: Request) -> Answer:
        """Nothing but the headers."""
        return Answer(headers={"Date": self.date})


class Tunnel:
    """An HTTP proxy that takes whatever it is asked for to one place."""

    def __init__(self, target: int, *, says: str = "200 Connection established") -> None:
        self._says = f"HTTP/1.1 {says}\r\n\r\n".encode()
        self.asked: list[str] = []
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://someone:s3same@127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Tunnel:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                with client, socket.create_connection(("127.0.0.1", self._target)) as target:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += client.recv(4096)
                    self.asked.append(head.decode())
                    client.sendall(self._says)
                    back = threading.Thread(target=_pump, args=(target, client), daemon=True)
                    back.start()
                    _pump(client, target)
                    back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_the_authority_is_reached_as_azure_identity_reaches_it(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the environment's proxy, accounts past it; a certificate for another name says so."""
    tenant = int(patient.cloud.authority.rpartition(":")[2])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Tunnel(tenant) as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        seen = patient.examine(at=moved("https://login.contoso.example", authority=True))
    check_line(seen, "authority", "login.contoso.example:443 is not trusted: Hostname mismatch", "the name that the")
    assert "through the proxy 127.0.0.1" in seen.of("network", "authority").found
    assert tunnel.asked[0].startswith("CONNECT login.contoso.example:443 ")
    assert "Proxy-Authorization: Basic " in tunnel.asked[0]
    assert "s3same" not in seen.everything()
    assert seen.of("network", LAKE).mark == "ok"


def test_the_authority_is_trusted_as_azure_identity_trusts_it(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the CAs that the environment names for its library, where the manifest names none."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(patient.cloud.ca_file))
    seen = patient.examine(at=lambda document: document["identity"].pop("ca_file"))
    assert seen.of("network", "authority").mark == "ok"
    assert seen.failures == ()


@pytest.mark.parametrize(
    ("proxy", "found"),
    [
        ("http://127.0.0.1:{closed}", "the proxy 127.0.0.1:{closed} refuses the connection"),
        ("http://proxy.invalid:3128", "the name of the proxy proxy.invalid:3128 cannot be resolved"),
    ],
)
def test_a_proxy_that_is_not_there(patient: Patient, monkeypatch: pytest.MonkeyPatch, proxy: str, found: str) -> None:
    """It is the proxy that is wrong, not the authority, and it is mended where the environment names it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HTTPS_PROXY", proxy.format(closed=closed))
    seen = patient.examine(at=moved("https://login.contoso.example", authority=True))
    line = seen.of("network", "authority")
    assert line.found == f"login.contoso.example:443 is out of reach: {found.format(closed=closed)}"
    assert line.fix == "check HTTPS_PROXY where the job runs, or name login.contoso.example in NO_PROXY"


def test_a_proxy_that_refuses(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is in the line."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tenant = int(patient.cloud.authority.rpartition(":")[2])
    with Tunnel(tenant, says="407 Proxy Authentication Required") as tunnel:
        monkeypatch.setenv("HTTPS_PROXY", tunnel.url)
        seen = patient.examine(at=moved("https://login.contoso.example", authority=True))
    line = seen.of("network", "authority")
    assert line.found.endswith("cannot be talked to: Tunnel connection failed: 407 Proxy Authentication Required")


def test_an_unreachable_account_does_not_hide_the_other(
    patient: Patient, beam_entra_containers: Any, nobody: str
) -> None:
    """What does not need it is looked at."""
    other = beam_entra_containers("raw", account=OTHER)

    def move(document: dict[str, Any]) -> None:
        document["accounts"][OTHER]["endpoint"] = f"https://{nobody}"

    seen = patient.examine(at=move, read=[patient.raw.url("in/"), other.url("in/")])
    assert seen.failures == ("network",)
    assert (seen.of("read", LAKE).mark, seen.of("read", OTHER).because) == ("ok", f"account {OTHER} is out of reach")


@pytest.fixture
def hours(patient: Patient) -> Callable[[str], HttpsServer]:
    """Makes services that say that it is so late."""
    certificates = RunCertificates(
        ca_file=patient.cloud.ca_file,
        server_file=patient.cloud.folder / "server.pem",
        key_file=patient.cloud.folder / "server.key",
    )
    return lambda date: HttpsServer(certificates.server_context(), ServiceHandler, Hours(date), name="hours")


NOW = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        ("Thu, 31 Jan 2030 09:30:00 GMT", timedelta(0)),
        ("Thu, 31 Jan 2030 09:29:59 GMT", timedelta(0)),
        ("Thu, 31 Jan 2030 09:29:00 GMT", timedelta(seconds=59)),
        ("Thu, 31 Jan 2030 09:31:00 GMT", timedelta(seconds=-60)),
        ("yesterday", None),
        ("Thu, 31 Jan 2030 09:30:00 -0000", None),
    ],
)
def test_the_time_that_a_service_says(
    patient: Patient, hours: Callable[[str], HttpsServer], date: str, ahead: timedelta | None
) -> None:
    """As near as its Date header can be believed: it is cut to seconds; what is none says nothing."""
    with hours(date) as server:
        place = Place(about=LAKE, url=server.url, ca_file=str(patient.cloud.ca_file), setting="")
        reached = reach(place, lambda: NOW)
    assert reached.finding.mark == "ok"
    assert reached.ahead == ahead
