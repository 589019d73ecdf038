"""Key Vault references, against a vault on loopback that takes the tenant's tokens and nothing else."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from beam_entra.clock import utc_now
from beam_entra.errors import AuditUnavailable, ConfigError, IdentityRejected, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, EntraSource, check_credential
from beam_entra.testing.https import Answer
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import VAULT, Vault, identity_of, said, secure
from tests.identity.leaks import everything_in
from tests.identity.test_application import Made


class Box:
    """The vault, and settings that refer to a secret in it."""

    def __init__(self, cloud: LocalCloud, vault: Vault, url: str) -> None:
        self.cloud, self.vault, self.url = cloud, vault, url
        self.host = url.removeprefix("https://")
        self.told: list[AccessToken] = []

    def settings(self, setting: str, path: str = "secrets/job", **more: str) -> dict[str, str]:
        return {
            setting: f"keyvault:{self.url}/{path}",
            "keyvault_host": self.host,
            "keyvault_credential": "federated:file",
            "assertion_file": str(self.cloud.assertion_file),
            **more,
        }

    def acquire(self, credential: str = "client_secret", **settings: str) -> AccessToken:
        settings = settings or self.settings("client_secret")
        identity = identity_of(self.cloud, credential, **settings)
        return EntraSource(identity, clock=utc_now, on_the_way=self.told.append).acquire(STORAGE_AUDIENCE)


@pytest.fixture
def box(beam_entra_cloud: LocalCloud) -> Iterator[Box]:
    """A vault that holds a client secret of the job."""
    vault = Vault(beam_entra_cloud)
    beam_entra_cloud.tenant.resources.append(VAULT)
    vault.secrets["job"] = beam_entra_cloud.app.add_secret().reveal()
    try:
        with secure(vault) as url:
            yield Box(beam_entra_cloud, vault, url)
    finally:
        beam_entra_cloud.tenant.resources.remove(VAULT)


def test_a_client_secret_in_a_vault(box):
    """It is asked for as `keyvault_credential`; that token is told of, with its source and audience."""
    token = box.acquire()
    assert (token.source, token.claims.appid) == ("client_secret", box.cloud.client_id)
    assert [(each.source, each.audience) for each in box.told] == [("federated:file", VAULT)]
    assert [request.path.rstrip("/") for request in box.vault.requests] == ["/secrets/job"] * 2  # challenge, answer


def test_a_version_of_a_secret(box):
    """A version is asked for by its id."""
    version = "0123456789abcdef" * 2
    box.vault.secrets = {f"job/{version}": box.vault.secrets["job"]}
    assert box.acquire(**box.settings("client_secret", f"secrets/job/{version}")).source == "client_secret"


def test_a_certificate_in_a_vault(box):
    """Key Vault gives a certificate's secret as a PFX in base64."""
    made = Made.new()
    box.vault.secrets["job"] = base64.b64encode(made.pfx()).decode()
    registered = box.cloud.app.add_certificate(made.public)
    try:
        assert box.acquire("certificate", **box.settings("certificate")).source == "certificate"
    finally:
        box.cloud.app.remove_certificate(registered)


def test_a_vault_of_another_identity(box):
    """`keyvault_client` says as whom the vault is asked, when that is not the job itself."""
    other = box.cloud.add_client()
    box.acquire(**box.settings("client_secret", keyvault_client=other.client_id))
    assert [each.claims.appid for each in box.told] == [other.client_id]


def test_a_rotated_secret_is_read_again(box):
    """The reference is read for each token."""
    box.acquire()
    box.cloud.app.remove_secrets()
    with pytest.raises(IdentityRejected):
        box.acquire()
    box.vault.secrets["job"] = box.cloud.app.add_secret().reveal()
    assert box.acquire().source == "client_secret"


FORBIDDEN = {"error": {"code": "Forbidden", "message": "Caller is not authorized to perform action on resource"}}
TROUBLE = {
    "no such secret": (said(404, {"error": {"code": "SecretNotFound"}}), IdentityRejected, "name"),
    "not allowed": (said(403, FORBIDDEN), IdentityRejected, "Key Vault Secrets User"),
    "throttled": (said(429, {}, Retry_After="13"), IdentityUnavailable, "too much"),
    "down": (Answer(status=503), IdentityUnavailable, "healthy"),
    "no value": (said(200, {"value": "", "id": "https://x/secrets/job/1"}), IdentityRejected, "name"),
    "a blank value": (said(200, {"value": " \n", "id": "https://x/secrets/job/1"}), IdentityRejected, "name"),
    "a page": (Answer(body=b"<html>Sign in"), IdentityUnavailable, ""),
}


@pytest.mark.parametrize(("answer", "kind", "fix"), TROUBLE.values(), ids=TROUBLE)
def test_no_secret_from_the_vault(box, answer, kind, fix):
    """What the vault said, for which setting, and the fix; the job's own secret is not presented anywhere."""
    box.vault.instead = answer
    with pytest.raises(kind) as caught:
        box.acquire()
    error = caught.value
    assert type(error) is kind
    assert error.message.startswith("Key Vault ")
    assert fix in error.hint
    assert f"read the secret {box.url}/secrets/job for [identity] client_secret" in error.diagnosis.tried
    assert error.diagnosis.retry_after_s == (13 if answer.status == 429 else None)
    assert [request.grant for request in box.cloud.tenant.requests if request.kind == "token"] == ["federated"]
    assert box.cloud.find_leaks(everything_in(error)) == []


def test_a_vault_that_sends_us_elsewhere(box):
    """A redirection is not followed, and the other host gets neither the token nor a request."""
    other = Vault(box.cloud)
    with secure(other) as url:
        box.vault.instead = Answer(status=307, headers={"Location": f"{url}/secrets/job"})
        with pytest.raises(IdentityUnavailable, match="Key Vault answered HTTP 307"):
            box.acquire()
    assert len(other.requests) == 0


def test_an_identity_that_may_not_have_the_vaults_token(box):
    """The refusal is about the vault's identity, and says so."""
    nobody = box.cloud.tenant.register_app().client_id
    with pytest.raises(IdentityRejected) as caught:
        box.acquire(**box.settings("client_secret", keyvault_client=nobody))
    assert nobody in caught.value.diagnosis.identity
    assert f"acquire a token for {VAULT}" in caught.value.diagnosis.tried
    assert len(box.vault.requests) == 0


def test_a_token_that_cannot_be_audited_is_not_used(box):
    """The vault is not asked before the token for it is on record."""

    def refuse(token: AccessToken) -> None:
        raise AuditUnavailable("the trail cannot be written")

    source = EntraSource(
        identity_of(box.cloud, "client_secret", **box.settings("client_secret")), clock=utc_now, on_the_way=refuse
    )
    with pytest.raises(AuditUnavailable):
        source.acquire(STORAGE_AUDIENCE)
    assert len(box.vault.requests) == 0


AT = "keyvault:https://contoso.vault.azure.net/secrets/job"
BY = {"keyvault_credential": "managed_identity"}
WRONG = {
    "nobody to ask as": ({"client_secret": AT}, "needs keyvault_credential"),
    "no vault's host": (
        {"client_secret": "keyvault:https://contoso.vault.azure.net.evil.example/secrets/job", **BY},
        "which is no host of Key Vault",
    ),
    "a storage host": ({"client_secret": "keyvault:https://x.blob.core.windows.net/secrets/job", **BY}, "no host of"),
    "another than the named host": (
        {"client_secret": "keyvault:https://127.0.0.1:2/secrets/job", "keyvault_host": "127.0.0.1:1", **BY},
        "no host of Key Vault",
    ),
    "no secret's path": ({"client_secret": "keyvault:https://contoso.vault.azure.net/keys/job", **BY}, "no reference"),
    "no version": ({"client_secret": f"{AT}/latest", **BY}, "no reference to a secret in Key Vault"),
    "over http": ({"client_secret": "keyvault:http://contoso.vault.azure.net/secrets/job", **BY}, "no reference to"),
    "round in a circle": ({"client_secret": AT, "keyvault_credential": "client_secret"}, "needs Key Vault itself"),
    "a chain": ({"client_secret": AT, "keyvault_credential": "chain"}, "needs keyvault_credential"),
    "an unknown source": ({"client_secret": AT, "keyvault_credential": "magic"}, "no credential source 'magic'"),
    "nothing in a vault": ({"client_secret": "env:S", **BY}, "knows no setting keyvault_credential"),
}


@pytest.mark.parametrize(("settings", "says"), WRONG.values(), ids=WRONG)
def test_settings_that_will_not_do(beam_entra_cloud, settings, says):
    """Found at launch: a token for a vault goes to vaults alone."""
    with pytest.raises(ConfigError, match=says) as caught:
        check_credential(identity_of(beam_entra_cloud, "client_secret", **settings))
    assert caught.value.hint


@pytest.mark.parametrize("domain", ["vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net"])
def test_vaults_of_every_cloud(beam_entra_cloud, domain):
    """Their hosts need no naming."""
    settings = {"client_secret": f"keyvault:https://contoso.{domain}/secrets/job", **BY}
    check_credential(identity_of(beam_entra_cloud, "client_secret", **settings))
