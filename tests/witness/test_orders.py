"""`pipelines.orders` end to end with entra-emulator in place of the local tenant, and Azurite."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import jwt
import pytest

from beam_entra.audit.record import SEAL_NAME
from beam_entra.audit.verify import verify
from beam_entra.secret import Secret
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import endpoints_toml
from beam_entra.testing.storage_requests import StorageRequest
from pipelines.demo.totals import compute, differences
from pipelines.orders import main
from tests.identity.hosts import plain
from tests.identity.test_application import Made
from tests.pipelines.conftest import Shop, ended
from tests.pipelines.test_orders_over_the_wire import outcome
from tests.witness.emulators import EmulatedApp, EntraEmulator, Front

pytestmark = pytest.mark.witness
SHORT_LIFE_S = 3


class Directory(Protocol):
    """Who gives out tokens."""

    @property
    def tenant_id(self) -> str: ...
    @property
    def authority(self) -> str: ...


class Registered(Protocol):
    """An app there."""

    @property
    def client_id(self) -> str: ...


DirectoryT = TypeVar("DirectoryT", bound=Directory)
RegisteredT = TypeVar("RegisteredT", bound=Registered)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[DirectoryT, RegisteredT]):
    """The shop's pipeline as an app of a witness."""

    shop: Shop
    emulator: DirectoryT
    app: RegisteredT

    def flags(self, credential: str, *, scoping: str = "sas", **settings: str) -> dict[str, str]:
        """Manifest and endpoints for this credential."""
        cloud = self.shop.cloud
        identity = "\n".join(f'{name} = "{value}"' for name, value in settings.items())
        manifest = self.shop.manifest(
            ('environment = "prod"', f'environment = "prod"\nscoping = "{scoping}"'),
            (cloud.tenant_id, self.emulator.tenant_id),
            (cloud.client_id, self.app.client_id),
            ('"federated_file"', f'"{credential}"'),
            ('assertion_file = "env:AZURE_FEDERATED_TOKEN_FILE"', identity),
        )
        endpoints = self.shop.folder / "endpoints.toml"
        endpoints.write_text(
            endpoints_toml(
                authority=self.emulator.authority,
                ca_file=cloud.ca_file,
                assertion_file=cloud.assertion_file,
                accounts={account: cloud.endpoint(account) for account in cloud.accounts},
            ),
            encoding="utf-8",
        )
        return {"access_manifest": str(manifest), "access_endpoints": str(endpoints)}

    def run(self, credential: str, **settings: str) -> None:
        """Run it in this process; the outcome is the one computed without Beam."""
        shop = self.shop
        source = shop.upload_sample(200)
        flags = {
            **self.flags(credential, **settings),
            "input": shop.raw.url("orders/*"),
            "products": shop.raw.url("products.csv"),
            "output": shop.output,
            "job_report": str(shop.report_file),
            "runner": "DirectRunner",
            "prism_location": "none",
        }
        main([f"--{name}={value}" for name, value in flags.items()])
        assert differences(compute(source, url=shop.raw.url()).outcome, outcome(shop)) == []
        # the local tenant had no part in it
        assert self.emulator is shop.cloud.tenant or shop.cloud.tenant.token_requests == 0

    def tokens(self) -> list[dict[str, Any]]:
        """The tokens in the last run's trail, which holds together."""
        trail = self.shop.trail()
        verify(trail, seal_digest=self.shop.report()["seal_digest"])
        segments = [trail.read(name) for name in trail.names() if name != SEAL_NAME]
        records = [json.loads(line) for segment in segments for line in segment.splitlines()]
        return [record for record in records if record["kind"] == "token_acquired"]


EmulatedJob = Job[EntraEmulator, EmulatedApp]


@pytest.fixture
def job(shop: Shop, front: Front) -> EmulatedJob:
    """With tokens that carry `oid` and `uti`: by SAS."""
    assert isinstance(front.emulator, EntraEmulator)
    return Job(shop=shop, emulator=front.emulator, app=front.emulator.register_app())


@pytest.fixture
def brief(shop: Shop) -> Iterator[EmulatedJob]:
    """The same with tokens that live for some seconds."""
    certificates = shop.cloud.certificates
    with (
        Front(certificates) as before,
        EntraEmulator(certificates, authority=before.url, token_life_s=SHORT_LIFE_S) as emulator,
    ):
        before.emulator = emulator
        yield Job(shop=shop, emulator=emulator, app=emulator.register_app())


@pytest.fixture
def untouched(shop: Shop, emulator: EntraEmulator) -> EmulatedJob:
    """With the emulator's tokens as they are: nobody gets a delegation key for them."""
    return Job(shop=shop, emulator=emulator, app=emulator.register_app())


def test_a_client_secret(job: EmulatedJob, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trail names the token as the emulator did: its uti, the app as client and principal, the tenant."""
    secret = job.app.add_secret()
    monkeypatch.setenv("ORDERS_SECRET", secret.reveal())
    job.run("client_secret", client_secret="env:ORDERS_SECRET")
    (record,) = job.tokens()
    issued = {claims_of(each)["uti"] for each in front.issued}
    assert record["uti"] in issued
    assert (record["oid"], record["appid"], record["tenant"], record["source"]) == (
        job.app.client_id,
        job.app.client_id,
        job.emulator.tenant_id,
        "client_secret",
    )
    written = [path.read_bytes() for path in (job.shop.folder / "trails").rglob("*") if path.is_file()]
    written.append(job.shop.report_file.read_bytes())
    for each in (secret, *front.issued):
        assert not any(each.reveal().encode() in text for text in written)


def test_a_certificate(job: EmulatedJob, tmp_path: Path) -> None:
    """The certificate's key signs the assertion that azure-identity sends."""
    made = Made.new()
    job.app.add_certificate(made.public)
    write_private(tmp_path / "certificate.pem", made.pem())
    job.run("certificate", certificate=f"file:{tmp_path / 'certificate.pem'}")
    assert [record["source"] for record in job.tokens()] == ["certificate"]


def test_an_outside_issuers_assertion(job: EmulatedJob) -> None:
    """The emulator fetches the test's issuer's keys by discovery, and believes what they sign."""
    cloud = job.shop.cloud
    job.app.add_federated_credential(cloud.issuer.url, cloud.subject)
    cloud.issuer.fetches.clear()
    job.run("federated_file", assertion_file=str(cloud.assertion_file))
    assert [record["source"] for record in job.tokens()] == ["federated_file"]
    assert "/keys" in list(cloud.issuer.fetches)


def test_a_managed_identity(job: EmulatedJob, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """App Service's endpoint, as the emulator speaks it: the identity is the one that the manifest names."""
    with plain(front) as url:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", job.emulator.identity_header)
        job.run("managed_identity")
    (record,) = job.tokens()
    assert (record["source"], record["appid"]) == ("managed_identity", job.app.client_id)


def test_tokens_that_end_before_the_job(brief: EmulatedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is slower than a token lives: the job goes on with the next one."""
    monkeypatch.setenv("ORDERS_SECRET", brief.app.add_secret().reveal())
    goes_on_with_the_next_token(brief)


def test_a_credential_that_is_revoked_in_the_middle(brief: EmulatedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends with one clear refusal, and has written nothing that anybody could take for an outcome."""
    monkeypatch.setenv("ORDERS_SECRET", brief.app.add_secret().reveal())
    ends_when_it_is_revoked(brief, brief.app.remove_secrets, "AADSTS7000215")


def goes_on_with_the_next_token(job: Job[Any, Any]) -> None:
    """Storage holds a job, by the secret in the environment, for longer than a token lives."""
    slow = job.shop.cloud.proxy.hold(SHORT_LIFE_S, where=reads_an_order, times=1)
    job.run("client_secret", client_secret="env:ORDERS_SECRET")
    assert slow.hits == 1
    tokens = job.tokens()
    assert len(tokens) >= 2
    assert len({record["uti"] for record in tokens}) == len(tokens)


def ends_when_it_is_revoked(job: Job[Any, Any], revoke: Callable[[], object], code: str) -> None:
    """A job, by the secret in the environment, whose right to tokens is taken away while it reads."""
    shop = job.shop
    shop.upload_sample(200)
    held = shop.cloud.proxy.hold(where=reads_an_order, times=1)
    flags = job.flags("client_secret", client_secret="env:ORDERS_SECRET")
    manifest = Path(flags.pop("access_manifest"))
    with shop.launch(manifest=manifest, **flags) as process:
        assert held.gate is not None
        held.gate.wait_for_arrivals(timeout_s=60)
        revoke()
        time.sleep(SHORT_LIFE_S)  # until the token at hand has ended, which nothing announces
        held.gate.open()
        done = ended(process)
    assert done.status == 1, done.said
    assert done.err.startswith("IdentityRejected: "), done.said
    assert code in done.err
    assert "fix:" in done.err
    assert [name for name in shop.curated.list() if "_SUCCESS" in name] == []


def reads_an_order(request: StorageRequest) -> bool:
    """Whether a request is for the bytes of an input blob."""
    return request.operation == "GetBlob" and request.container.startswith("raw") and "orders/" in request.blob


@pytest.mark.parametrize("credential", ["client_secret", "federated_file"])
def test_by_the_token_itself(untouched: EmulatedJob, monkeypatch: pytest.MonkeyPatch, credential: str) -> None:
    """`scoping = "bearer"`: no delegation key, and a trail that holds together without `oid` and `uti`."""
    cloud = untouched.shop.cloud
    monkeypatch.setenv("ORDERS_SECRET", untouched.app.add_secret().reveal())
    untouched.app.add_federated_credential(cloud.issuer.url, cloud.subject)
    settings = {
        "client_secret": {"client_secret": "env:ORDERS_SECRET"},
        "federated_file": {"assertion_file": str(cloud.assertion_file)},
    }
    untouched.run(credential, scoping="bearer", **settings[credential])
    (record,) = untouched.tokens()
    assert (record["oid"], record["uti"]) == (None, None)
    assert (record["appid"], record["tenant"]) == (untouched.app.client_id, untouched.emulator.tenant_id)
    assert {each.request.credential for each in cloud.proxy.requests} == {"bearer"}


def claims_of(token: Secret) -> dict[str, Any]:
    """What a token says; Azurite does not check the signature either."""
    claims: dict[str, Any] = jwt.decode(token.reveal(), options={"verify_signature": False})
    return claims
