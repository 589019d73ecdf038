"""`keyvault:` references against azure-keyvault-emulator, which checks the tokens of entra-emulator."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import IdentityRejected, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import VAULT
from tests.identity.leaks import everything_in
from tests.witness.emulators import EmulatedApp, EntraEmulator, VaultEmulator

pytestmark = pytest.mark.witness


@dataclass(kw_only=True)
class Box:
    """An app whose client secret lies in the vault, which it reads by a federated assertion."""

    cloud: LocalCloud
    entra: EntraEmulator
    vault: VaultEmulator
    app: EmulatedApp
    told: list[AccessToken] = field(default_factory=list)

    def token(self) -> str:
        """A token for the vault."""
        identity = self.identity("federated_file", assertion_file=str(self.cloud.assertion_file))
        return EntraSource(identity, clock=utc_now).acquire(VAULT).secret.reveal()

    def put(self, value: str) -> str:
        """Put the secret there, and return its version."""
        return self.vault.set_secret("job", value, self.token())

    def put_days_ago(self, days: int, value: str, tmp_path: Path) -> None:
        """Put it there so many days ago, as the clocks of both emulators have it."""
        write_private(tmp_path / "secret", self.app.add_secret().reveal().encode())
        by_secret = self.identity("client_secret", client_secret=f"file:{tmp_path / 'secret'}")
        with self.entra.days_ago(days), self.vault.days_ago(days):
            token = EntraSource(by_secret, clock=utc_now).acquire(VAULT).secret.reveal()
            self.vault.set_secret("job", value, token)

    def identity(self, credential: str, **settings: str) -> IdentitySettings:
        return IdentitySettings(
            tenant=self.entra.tenant_id,
            client=self.app.client_id,
            authority=self.entra.authority,
            ca_file=str(self.cloud.ca_file),
            credential=credential,
            settings=settings,
        )

    def acquire(self, path: str = "secrets/job", *, strict: bool = False) -> AccessToken:
        """One attempt at a token for Storage."""
        identity = self.identity(
            "client_secret",
            client_secret=f"keyvault:{self.vault.url}/{path}",
            keyvault_host=self.vault.host,
            keyvault_credential="federated:file",
            assertion_file=str(self.cloud.assertion_file),
        )
        source = EntraSource(replace(identity, strict=strict), clock=utc_now, on_the_way=self.told.append)
        return source.acquire(STORAGE_AUDIENCE)


@pytest.fixture
def box(beam_entra_cloud: LocalCloud, emulator: EntraEmulator, vault: VaultEmulator) -> Box:
    """An app of its own, and a vault that is empty yet."""
    app = emulator.register_app()
    app.add_federated_credential(beam_entra_cloud.issuer.url, beam_entra_cloud.subject)
    return Box(cloud=beam_entra_cloud, entra=emulator, vault=vault, app=app)


def test_a_client_secret_in_a_vault(box: Box) -> None:
    """The vault challenges, takes the job's token for it, and gives the secret; Entra's stand-in takes that."""
    box.put(box.app.add_secret().reveal())
    token = box.acquire()
    assert (token.source, token.claims.appid, token.claims.audience) == (
        "client_secret",
        box.app.client_id,
        STORAGE_AUDIENCE,
    )
    assert [(each.source, each.claims.audience) for each in box.told] == [("federated:file", VAULT)]


def test_a_version_of_a_secret(box: Box) -> None:
    """The newest is given unless the reference says which."""
    good = box.put(box.app.add_secret().reveal())
    box.put("a secret that is none of the app's")
    with pytest.raises(IdentityRejected, match="AADSTS7000215"):
        box.acquire()
    assert box.acquire(f"secrets/job/{good}").source == "client_secret"


def test_a_secret_of_ninety_one_days(box: Box, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The vault says when it was made, by its own clock; it opens the door still, with a warning."""
    box.put_days_ago(91, box.app.add_secret().reveal(), tmp_path)
    made = box.vault.ask("GET", "/secrets/job?api-version=7.5", Authorization=f"Bearer {box.token()}")["attributes"]
    age = utc_now() - datetime.fromtimestamp(made["created"], UTC)
    assert timedelta(days=91) <= age < timedelta(days=91, minutes=5)
    assert made["updated"] == made["created"]
    with caplog.at_level(logging.WARNING, logger="beam_entra"):
        assert box.acquire().source == "client_secret"
    [said] = [record.getMessage() for record in caplog.records if record.name == "beam_entra.identity.rotation"]
    assert said.startswith("the client secret is 91 days old or more, and should be replaced after 90 (")


def test_an_old_secret_of_a_strict_manifest(box: Box, tmp_path: Path) -> None:
    """It is refused; one of eighty-nine days is not."""
    box.put_days_ago(91, box.app.add_secret().reveal(), tmp_path)
    with pytest.raises(IdentityRejected, match=r"91 days old or more, .*; the manifest is strict"):
        box.acquire(strict=True)
    box.put_days_ago(89, box.app.add_secret().reveal(), tmp_path)
    assert box.acquire(strict=True).source == "client_secret"


def test_a_secret_that_is_not_there(box: Box) -> None:
    """The vault's code and what to check."""
    with pytest.raises(IdentityRejected, match="HTTP 404") as refused:
        box.acquire()
    assert refused.value.diagnosis.code == "SecretNotFound"
    assert "name and version" in refused.value.hint


def test_a_vault_that_throttles(box: Box) -> None:
    """It says how long to wait, and the broker is told; the next attempt goes through."""
    secret = box.app.add_secret().reveal()
    box.put(secret)
    box.vault.ask("POST", "/_emulator/faults", {"throttleNextRequests": 1})
    with pytest.raises(IdentityUnavailable) as throttled:
        box.acquire()
    assert throttled.value.diagnosis.status == 429
    assert (throttled.value.diagnosis.retry_after_s or 0) > 0
    assert secret not in everything_in(throttled.value)
    assert box.acquire().source == "client_secret"


def test_a_vault_that_forbids(box: Box) -> None:
    """A principal without the right to read is told which role it needs."""
    box.put(box.app.add_secret().reveal())
    box.vault.ask("POST", "/_emulator/permissions", {box.app.client_id: ["keys/get"]})
    with pytest.raises(IdentityRejected, match="HTTP 403") as refused:
        box.acquire()
    assert "Key Vault Secrets User" in refused.value.hint


def test_a_token_whose_time_is_over_for_the_vault(box: Box) -> None:
    """The vault's clock is two hours ahead: it does not take the token, and the error says what may be wrong."""
    box.put(box.app.add_secret().reveal())
    box.vault.ask("POST", "/_emulator/clock", {"advance": 7200})
    with pytest.raises(IdentityRejected, match="HTTP 401") as refused:
        box.acquire()
    assert "clock" in refused.value.hint
