"""The local cloud: everything up together, and gone together."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError
from azure.identity import ClientAssertionCredential, ClientSecretCredential
from azure.storage.blob import (
    BlobClient,
    BlobSasPermissions,
    BlobServiceClient,
    UserDelegationKey,
    generate_blob_sas,
)

from beam_entra.access.endpoints import Endpoints
from beam_entra.access.manifest import AccessManifest
from beam_entra.errors import BlobNotFound, ConfigError
from beam_entra.testing import LocalCloud as LazyLocalCloud
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.local import AssertionKeeper, LocalCloud, LocalContainer, endpoints_toml, past_proxies
from beam_entra.testing.storage_requests import matching

TENANT = "8d2b1c7e-3a44-4f0e-9a53-3b8f4c1f2a10"
CLIENT = "5f0c2f7a-6e0b-4a6e-8a58-0d6f0c1b9e21"


def credential(cloud: LocalCloud) -> ClientAssertionCredential:
    """The job's credential, as a worker makes it."""
    return ClientAssertionCredential(
        cloud.tenant_id,
        cloud.client_id,
        cloud.assertion_file.read_text,
        authority=cloud.authority,
        disable_instance_discovery=True,
        connection_verify=str(cloud.ca_file),
        retry_total=0,
    )


def delegation_key(cloud: LocalCloud, account: str) -> UserDelegationKey:
    """A user delegation key for the job's token."""
    now = datetime.now(UTC)
    with (
        credential(cloud) as job,
        BlobServiceClient(cloud.endpoint(account), credential=job, connection_verify=str(cloud.ca_file)) as service,
    ):
        return service.get_user_delegation_key(now, now + timedelta(hours=1))


def test_a_proxy_in_the_environment_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a cloud is up, this process reaches it past HTTPS_PROXY; afterwards the environment is what it was."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "intranet.contoso.com")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with LocalCloud() as cloud:
        container = cloud.create_container("contosolake", "raw")
        container.upload("a", b"x")
        delegation_key(cloud, "contosolake")
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "intranet.contoso.com,127.0.0.1,localhost"
    assert "NO_PROXY" not in os.environ
    assert os.environ["no_proxy"] == "intranet.contoso.com"


def test_hosts_are_excepted_from_proxies_once() -> None:
    """For both spellings of the variable, and what is excepted already stays so."""
    once = past_proxies({"NO_PROXY": "a.com, localhost", "no_proxy": "b.com"})
    assert once == dict.fromkeys(("NO_PROXY", "no_proxy"), "a.com,localhost,b.com,127.0.0.1")
    assert past_proxies(once) == once


def blob_client(cloud: LocalCloud, container: LocalContainer, name: str, sas: str) -> BlobClient:
    """A client for one blob with a SAS and without retries."""
    return BlobClient(
        cloud.endpoint(container.account),
        container.name,
        name,
        credential=sas,
        connection_verify=str(cloud.ca_file),
        retry_total=0,
    )


def test_everything_comes_up_and_goes_down(process_is_gone: Callable[[int], bool]) -> None:
    """In a few seconds, with a temporary folder; at the end no thread, process or file is left."""
    before = set(threading.enumerate())
    began = time.monotonic()
    with LocalCloud(accounts=["alake", "blake", "alake"]) as cloud:
        took_s = time.monotonic() - began
        folder, pid = cloud.folder, cloud.azurite.pid
        assert cloud.accounts == ("alake", "blake")
        assert cloud.ca_file.is_file()
        container = cloud.create_container("blake", "raw")
        container.upload("a", b"x")
        assert cloud.download("blake", "raw", "a") == b"x"
        with credential(cloud) as job:
            assert job.get_token("https://storage.azure.com/.default").token
    cloud.close()
    assert took_s < 15  # it takes about one; this is a crowded machine's limit
    assert pid is not None
    assert process_is_gone(pid)
    assert not folder.exists()
    assert not set(threading.enumerate()) - before


def test_a_failing_start_leaves_nothing(tmp_path: Path) -> None:
    """When one part does not come up the parts before it are taken down."""
    before = set(threading.enumerate())
    broken = tmp_path / "cache" / "azurite-3.37.0" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    broken.parent.mkdir(parents=True)
    broken.write_text("console.error('not today'); process.exit(3)")
    with pytest.raises(ConfigError, match="not today"):
        LocalCloud(cache=tmp_path / "cache").start()
    assert not set(threading.enumerate()) - before


def test_a_manifest_for_the_cloud_runs_unchanged(tmp_path: Path) -> None:
    """Tenant, client and account of a manifest can be set, and the overlay points it here."""
    manifest = AccessManifest.parse(
        f"""
        pipeline = "orders"
        environment = "prod"
        [identity]
        tenant = "{TENANT}"
        client = "{CLIENT}"
        credential = "federated_file"
        assertion_file = "env:AZURE_FEDERATED_TOKEN_FILE"
        [lifetime]
        job = "2h"
        [grants]
        read = ["abfss://raw@contosolake.dfs.core.windows.net/orders/"]
        [audit]
        path = "abfss://audit@contosolake.dfs.core.windows.net/orders/"
        """,
        file="orders.access.toml",
    )
    with LocalCloud(folder=tmp_path / "cloud", tenant_id=TENANT, client_id=CLIENT, proxy=False) as cloud:
        here = manifest.at(Endpoints.load(cloud.endpoints_file))
        assert here.identity.authority == cloud.authority
        assert here.identity.settings["assertion_file"] == str(cloud.assertion_file)
        assert here.identity.ca_file == str(cloud.ca_file)
        account = here.accounts["contosolake"]
        assert (account.endpoint, account.emulator) == (cloud.azurite.endpoint("contosolake"), True)
        with ClientAssertionCredential(
            here.identity.tenant,
            here.identity.client,
            Path(here.identity.settings["assertion_file"]).read_text,
            authority=here.identity.authority,
            disable_instance_discovery=True,
            connection_verify=here.identity.ca_file,
        ) as job:
            assert job.get_token("https://storage.azure.com/.default").token
        with pytest.raises(ConfigError, match="no proxy"):
            _ = cloud.proxy
    assert (tmp_path / "cloud").exists()  # a folder that was given is not ours to remove


def test_the_overlay_quotes_what_needs_quoting(tmp_path: Path) -> None:
    """A path with quotes, backslashes and umlauts comes back as it was."""
    odd = tmp_path / 'a "b" \\ ü' / "ca.pem"
    text = endpoints_toml(
        authority="https://127.0.0.1:1", ca_file=odd, assertion_file=odd, accounts={"lake": "https://127.0.0.1:2/lake"}
    )
    assert Endpoints.parse(text, file="x").tables.settings["assertion_file"] == str(odd)


def test_more_clients_can_be_added(beam_entra_cloud: LocalCloud) -> None:
    """One cloud serves several manifests: each client gets tokens for the same assertion."""
    added = beam_entra_cloud.add_client()
    with ClientAssertionCredential(
        beam_entra_cloud.tenant_id,
        added.client_id,
        beam_entra_cloud.assertion_file.read_text,
        authority=beam_entra_cloud.authority,
        disable_instance_discovery=True,
        connection_verify=str(beam_entra_cloud.ca_file),
    ) as job:
        assert job.get_token("https://storage.azure.com/.default").token
    assert beam_entra_cloud.tenant.issued[-1].client == added.client_id


def test_the_assertion_file_is_kept_fresh(issuer: WorkloadIssuer, tmp_path: Path) -> None:
    """It is rewritten before it expires, private each time, and no more after the end."""
    path = tmp_path / "assertion"
    before = set(threading.enumerate())
    rewritten = threading.Event()
    with AssertionKeeper(issuer, path, "job", life_s=2, after_write=rewritten.set):
        first = path.read_text()
        rewritten.clear()
        assert rewritten.wait(10)
        second = path.read_text()
        first_claims, second_claims = (
            jwt.decode(text, options={"verify_signature": False}) for text in (first, second)
        )
        assert first_claims["iat"] < second_claims["iat"] <= first_claims["exp"] < second_claims["exp"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not set(threading.enumerate()) - before


# ---- the way of a job: assertion, token, delegation key, SAS


def test_a_job_reads_with_a_sas_of_its_own(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Token from the tenant, key and bytes from Azurite; the key carries the app's object id."""
    account = beam_entra_container.account
    beam_entra_container.upload("a", b"hello")
    beam_entra_container.upload("b", b"other")
    key = delegation_key(beam_entra_cloud, account)
    assert (key.signed_oid, key.signed_tid) == (beam_entra_cloud.app.object_id, beam_entra_cloud.tenant_id)
    sas = generate_blob_sas(
        account,
        beam_entra_container.name,
        "a",
        user_delegation_key=key,
        permission=BlobSasPermissions(read=True),
        expiry=datetime.now(UTC) + timedelta(minutes=5),
        protocol="https",
    )
    with blob_client(beam_entra_cloud, beam_entra_container, "a", sas) as own:
        assert own.download_blob().readall() == b"hello"
        with pytest.raises(HttpResponseError, match="AuthorizationPermissionMismatch"):
            own.upload_blob(b"no", overwrite=True)
    with (
        blob_client(beam_entra_cloud, beam_entra_container, "b", sas) as neighbour,
        pytest.raises(HttpResponseError, match="AuthorizationFailure") as caught,
    ):
        neighbour.download_blob()
    assert caught.value.status_code == 403
    assert beam_entra_cloud.proxy.count(matching("GetUserDelegationKey")) == 1
    assert {exchange.request.credential for exchange in beam_entra_cloud.proxy.requests} == {"bearer", "sas"}


def test_an_expired_token_gets_no_key(beam_entra_cloud: LocalCloud) -> None:
    """Azurite reads our tokens' times: one that has expired is refused."""
    tenant, account = beam_entra_cloud.tenant, beam_entra_cloud.accounts[0]
    usual = tenant.token_life_s
    tenant.token_life_s = -10
    try:
        secret = beam_entra_cloud.app.add_secret()
        with ClientSecretCredential(
            beam_entra_cloud.tenant_id,
            beam_entra_cloud.client_id,
            secret.reveal(),
            authority=beam_entra_cloud.authority,
            disable_instance_discovery=True,
            connection_verify=str(beam_entra_cloud.ca_file),
        ) as job:
            now = datetime.now(UTC)
            with (
                BlobServiceClient(
                    beam_entra_cloud.endpoint(account),
                    credential=job,
                    connection_verify=str(beam_entra_cloud.ca_file),
                    retry_total=0,
                ) as service,
                pytest.raises(ClientAuthenticationError),
            ):
                service.get_user_delegation_key(now, now + timedelta(hours=1))
    finally:
        tenant.token_life_s = usual


# ---- data past every grant


def test_blobs_go_in_and_out_by_key(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Upload, list, download, delete; and none of it is in the proxy's journal."""
    first = beam_entra_container.upload("dir/a b.txt", b"1")
    second = beam_entra_container.upload("dir/a b.txt", b"2")
    assert first != second
    beam_entra_container.upload("other", b"3")
    assert beam_entra_container.list() == ["dir/a b.txt", "other"]
    assert beam_entra_container.list("dir/") == ["dir/a b.txt"]
    assert beam_entra_container.download("dir/a b.txt") == b"2"
    beam_entra_container.delete("other")
    assert beam_entra_cloud.list_blobs(beam_entra_container.account, beam_entra_container.name) == ["dir/a b.txt"]
    assert beam_entra_container.name in beam_entra_cloud.admin.list_containers(beam_entra_container.account)
    assert not beam_entra_cloud.proxy.requests


def test_a_container_is_created_once(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Creating it again keeps its blobs."""
    beam_entra_container.upload("a", b"x")
    again = beam_entra_cloud.create_container(beam_entra_container.account, beam_entra_container.name)
    assert again.list() == ["a"]


def test_what_is_not_there_is_not_found(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Missing blobs, containers and accounts are errors of ours."""
    with pytest.raises(BlobNotFound, match="missing"):
        beam_entra_container.download("missing")
    with pytest.raises(BlobNotFound, match="missing"):
        beam_entra_container.delete("missing")
    with pytest.raises(BlobNotFound, match="nowhere"):
        beam_entra_cloud.list_blobs(beam_entra_container.account, "nowhere")
    with pytest.raises(ConfigError, match="no account 'other'") as caught:
        beam_entra_cloud.upload("other", "c", "a", b"x")
    assert beam_entra_container.account in caught.value.hint


def test_a_container_knows_its_urls() -> None:
    """The URL of a blob, and of the container itself, as a pipeline takes them."""
    container = LocalContainer(account="lake", name="raw", admin=None)  # type: ignore[arg-type]  # no data is touched
    assert container.url("orders/a") == "abfss://raw@lake.dfs.core.windows.net/orders/a"
    assert container.url() == "abfss://raw@lake.dfs.core.windows.net/"


# ---- for tests


def test_leaks_are_found(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """Each kind of secret of this cloud is recognised in a text; a clean text has none."""
    cloud, account = beam_entra_cloud, beam_entra_container.account
    beam_entra_container.upload("a", b"x")
    secret = cloud.app.add_secret()
    sas = generate_blob_sas(
        account,
        beam_entra_container.name,
        "a",
        user_delegation_key=delegation_key(cloud, account),
        permission="r",
        expiry=datetime.now(UTC) + timedelta(minutes=5),
    )
    with blob_client(cloud, beam_entra_container, "a", sas) as own:
        own.download_blob().readall()
    assert cloud.find_leaks("nothing of the kind") == []
    found = {
        "access token": cloud.tenant.issued[-1].token.reveal(),
        "account key": cloud.azurite.keys[account].reveal(),
        "assertion": cloud.assertion_file.read_text(),
        "client secret": secret.reveal(),
        "SAS signature": sas,
    }
    for what, text in found.items():
        assert cloud.find_leaks(json.dumps({"log": f"it was {text}!"})) == [what]
    assert cloud.find_leaks(" ".join(found.values()).encode()) == sorted(found)


def test_a_reset_clears_faults_and_records(beam_entra_cloud: LocalCloud, beam_entra_container: LocalContainer) -> None:
    """After it the services work and have seen nothing."""
    delegation_key(beam_entra_cloud, beam_entra_container.account)
    beam_entra_cloud.tenant.fail()
    beam_entra_cloud.proxy.respond(500, "InternalError")
    beam_entra_cloud.reset()
    assert not beam_entra_cloud.tenant.requests
    assert not beam_entra_cloud.proxy.requests
    assert delegation_key(beam_entra_cloud, beam_entra_container.account)


def test_the_kit_gives_its_names_lazily() -> None:
    """`from beam_entra.testing import LocalCloud` is the class; a wrong name is an AttributeError."""
    import beam_entra.testing as kit  # noqa: PLC0415  # the module itself is what is tested

    assert LazyLocalCloud is LocalCloud
    assert all(getattr(kit, name) for name in kit.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = kit.Nothing
