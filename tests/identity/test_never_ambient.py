"""Nothing ambient: neither variables that other tools go by, nor sign-ins in a home, choose or move a source."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from beam_entra.access import AccessManifest, IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import BeamEntraError, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.https import Answer, Request
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import Host, Imds, identity_of, plain, said, secure, token_for
from tests.identity.test_application import Made
from tests.identity.test_sources import stand_in_for_az

OTHER_SUBJECT = "system:serviceaccount:other:other"


class Lure(Host):
    """Gives a good token of another application to whoever asks for anything."""

    client = ""

    def serve(self, request: Request) -> Answer:
        token = token_for(self.cloud, STORAGE_AUDIENCE, self.client)
        return said(200, {"access_token": token.secret.reveal(), "expires_in": 3600, "token_type": "Bearer"})


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """A machine that is full of somebody else's credentials, each of which would work.

    Attributes:
        hosts: Whoever asks one of them was led astray.
        ran: A file that is there if the Azure CLI was run.
    """

    cloud: LocalCloud
    hosts: tuple[Lure, ...]
    ran: Path

    def check_that_nobody_followed(self) -> None:
        """No host was asked, no CLI run, and the tenant knows of one client alone."""
        assert [list(host.requests) for host in self.hosts] == [[]] * len(self.hosts)
        assert not self.ran.exists()
        asked = {request.client for request in self.cloud.tenant.requests if request.kind == "token"}
        assert asked <= {self.cloud.client_id}


@pytest.fixture
def surroundings(
    beam_entra_cloud: LocalCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Surroundings]:
    """Everything that azure-identity's default chain, other SDKs and command lines go by."""
    cloud, home, ran = beam_entra_cloud, tmp_path / "home", tmp_path / "az-was-run"
    other = cloud.add_client()
    other.add_federated_credential(cloud.issuer.url, OTHER_SUBJECT)
    cloud.issuer.write_assertion_file(tmp_path / "other-assertion", OTHER_SUBJECT)
    made = Made.new()
    other.add_certificate(made.public)
    write_private(tmp_path / "other.pem", made.pem())
    token = token_for(cloud, STORAGE_AUDIENCE).secret.reveal()
    (home / ".azure").mkdir(parents=True)
    profile = {"subscriptions": [{"tenantId": cloud.tenant_id, "isDefault": True, "user": {"name": other.client_id}}]}
    (home / ".azure" / "azureProfile.json").write_text(json.dumps(profile))
    (home / ".azure" / "msal_token_cache.json").write_text(json.dumps({"AccessToken": {"a": {"secret": token}}}))
    said_by_az = json.dumps({"accessToken": token, "expiresOn": "2099-01-01 00:00:00.0", "expires_on": 4070908800})
    (tmp_path / "bin").mkdir()
    path = stand_in_for_az(tmp_path / "bin", f"open({str(ran)!r}, 'w').close()\nprint({said_by_az!r})\n")
    lures = (Lure(cloud), Lure(cloud))
    for lure in lures:
        lure.client = other.client_id
    with plain(lures[0]) as url, secure(lures[1]) as https_url:
        variables = {
            "AZURE_TENANT_ID": cloud.tenant_id,
            "AZURE_CLIENT_ID": other.client_id,
            "AZURE_CLIENT_SECRET": other.add_secret().reveal(),
            "AZURE_CLIENT_CERTIFICATE_PATH": str(tmp_path / "other.pem"),
            "AZURE_USERNAME": "somebody@contoso.example",
            "AZURE_PASSWORD": "of somebody",
            "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "other-assertion"),
            "AZURE_AUTHORITY_HOST": https_url,
            "AZURE_TOKEN_CREDENTIALS": "dev",
            "AZURE_ADDITIONALLY_ALLOWED_TENANTS": "*",
            "AZURE_CONFIG_DIR": str(home / ".azure"),
            "IDENTITY_ENDPOINT": f"{url}/msi/token",
            "IDENTITY_HEADER": "anything",
            "MSI_ENDPOINT": f"{url}/msi/token",
            "MSI_SECRET": "anything",
            "IMDS_ENDPOINT": url,
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": url,
            "REGION_NAME": "westeurope",
            "HOME": str(home),
            "PATH": path,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        cloud.tenant.requests.clear()
        yield Surroundings(cloud=cloud, hosts=lures, ran=ran)


def _by_secret(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    write_private(folder / "secret", cloud.app.add_secret().reveal().encode())
    return identity_of(cloud, "client_secret", client_secret=f"file:{folder / 'secret'}")


def _by_certificate(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    made = Made.new()
    write_private(folder / "certificate", made.pem())
    cloud.app.add_certificate(made.public)
    return identity_of(cloud, "certificate", certificate=f"file:{folder / 'certificate'}")


def _by_command(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    command = f"/bin/cat {cloud.assertion_file}"
    return identity_of(cloud, "federated", assertion_from="command", assertion_command=command)


def _by_chain(cloud: LocalCloud, folder: Path) -> IdentitySettings:
    settings = {"assertion_file": str(cloud.assertion_file), "chain": "federated_file, developer"}
    return identity_of(cloud, "chain", **settings)


SOURCES: dict[str, Callable[[LocalCloud, Path], IdentitySettings]] = {
    "client_secret": _by_secret,
    "certificate": _by_certificate,
    "federated_file": lambda cloud, folder: identity_of(
        cloud, "federated_file", assertion_file=str(cloud.assertion_file)
    ),
    "workload_identity": lambda cloud, folder: identity_of(
        cloud, "workload_identity", assertion_file=str(cloud.assertion_file)
    ),
    "federated:command": _by_command,
    "chain": _by_chain,
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_manifest_alone_says_who_the_job_is(surroundings: Surroundings, tmp_path: Path, source: str) -> None:
    """The token is the manifest's client's, from the manifest's authority, whatever lies about."""
    cloud = surroundings.cloud
    token = EntraSource(SOURCES[source](cloud, tmp_path), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert (token.claims.appid, token.claims.tenant) == (cloud.client_id, cloud.tenant_id)
    assert token.source == ("federated_file" if source == "chain" else source)
    surroundings.check_that_nobody_followed()
    assert cloud.tenant.token_requests == 1


@pytest.fixture
def way_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Where this process would go, if there were a way out of the machine: what it asks its proxy for."""
    asked: list[str] = []

    def answer() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as received:
                asked.append(received.readline().decode("latin-1").rpartition(" ")[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name, value in {"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "NO_PROXY": ""}.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setenv(name.lower(), value)
        thread = threading.Thread(target=answer)
        thread.start()
        yield asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("credential", ["client_secret", "certificate", "federated_file", "workload_identity"])
def test_a_manifest_that_names_no_authority_means_entras_own(
    surroundings: Surroundings, way_out: list[str], tmp_path: Path, credential: str
) -> None:
    """`AZURE_AUTHORITY_HOST` names another, which would get the secret or assertion: nobody asks it for anything."""
    identity = SOURCES[credential](surroundings.cloud, tmp_path)
    settings = "\n".join(f"{name} = {json.dumps(value)}" for name, value in identity.settings.items())
    manifest = AccessManifest.parse(
        f"""
        pipeline = "orders"
        environment = "test"
        [identity]
        tenant = "{identity.tenant}"
        client = "{identity.client}"
        credential = "{credential}"
        {settings}
        [lifetime]
        job = "1h"
        [grants]
        read = ["abfss://raw@contosolake.dfs.core.windows.net/orders/"]
        [audit]
        path = "abfss://audit@contosolake.dfs.core.windows.net/orders/"
        """,
        file="orders.access.toml",
    )
    with pytest.raises(IdentityUnavailable) as caught:
        EntraSource(manifest.identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert "https://login.microsoftonline.com/" in caught.value.diagnosis.tried
    assert set(way_out) == {"CONNECT login.microsoftonline.com:443"}
    surroundings.check_that_nobody_followed()
    assert surroundings.cloud.tenant.token_requests == 0


ABSENT: dict[str, dict[str, str]] = {
    "client_secret": {"client_secret": "file:/nonexistent/secret"},
    "certificate": {"certificate": "file:/nonexistent/certificate"},
    "federated_file": {"assertion_file": "/nonexistent/assertion"},
    "workload_identity": {"assertion_file": "/nonexistent/assertion"},
    "federated": {"assertion_from": "command", "assertion_command": "/nonexistent/vouch"},
    "chain": {
        "chain": "federated:file, workload_identity",
        "assertion_file": "env:BEAM_ENTRA_TEST_UNSET",
    },
}


@pytest.mark.parametrize("credential", ABSENT)
def test_what_is_not_there_is_not_replaced(surroundings: Surroundings, credential: str) -> None:
    """A source without its credential is an error, and nothing else is tried."""
    identity = identity_of(surroundings.cloud, credential, **ABSENT[credential])
    with pytest.raises(BeamEntraError) as caught:
        EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert caught.value.hint
    surroundings.check_that_nobody_followed()
    assert surroundings.cloud.tenant.token_requests == 0


def test_a_managed_identity_is_the_manifests(
    surroundings: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform says where its token service is; whose token is asked for, the manifest alone."""
    machine = Imds(surroundings.cloud)
    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT"):
        monkeypatch.delenv(name)
    with plain(machine) as url:
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", url)
        identity = identity_of(surroundings.cloud, "managed_identity")
        token = EntraSource(identity, clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert token.claims.appid == surroundings.cloud.client_id
    assert [request.query["client_id"] for request in machine.requests] == [surroundings.cloud.client_id]
    surroundings.check_that_nobody_followed()
