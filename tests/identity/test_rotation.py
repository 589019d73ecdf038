"""Rotation: what is old, or near its end, is said in time, or refused."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from beam_entra.access import AccessManifest, IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError, IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.testing.certificates import write_private
from beam_entra.testing.local import LocalCloud
from tests.identity.hosts import VAULT, Vault, identity_of, secure
from tests.identity.test_application import Made

LOG = "beam_entra.identity.rotation"
DAY_S = 24 * 3600


def acquire(identity: IdentitySettings, **changes: object) -> None:
    """Two tokens of one worker."""
    source = EntraSource(replace(identity, **changes), clock=utc_now)
    for _ in range(2):
        source.acquire(STORAGE_AUDIENCE)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of rotation."""
    return [record.getMessage() for record in caplog.records if record.name == LOG]


@pytest.fixture
def aged(beam_entra_cloud: LocalCloud, tmp_path: Path) -> IdentitySettings:
    """A client secret in a file that was written 100 days ago."""
    path = tmp_path / "secret"
    write_private(path, beam_entra_cloud.app.add_secret().reveal().encode())
    written = time.time() - 100 * DAY_S
    os.utime(path, (written, written))
    return identity_of(beam_entra_cloud, "client_secret", client_secret=f"file:{path}")


def test_an_old_file_warns_once(aged, caplog):
    """After 90 days, unless the manifest says otherwise; the job goes on."""
    acquire(aged)
    [said] = warnings(caplog)
    assert said.startswith("the client secret is 100 days old or more, and should be replaced after 90 ([identity] ")


def test_the_age_is_the_manifests(aged, caplog):
    """`rotate_after` says from when on."""
    acquire(aged, rotate_after=timedelta(days=101))
    assert warnings(caplog) == []
    acquire(aged, rotate_after=timedelta(days=99))
    assert len(warnings(caplog)) == 1


def test_a_strict_manifest_refuses_it(aged, beam_entra_cloud, caplog):
    """Before anything is sent."""
    with pytest.raises(IdentityRejected, match=r"100 days old or more.*the manifest is strict") as caught:
        acquire(aged, strict=True)
    assert "replace it" in caught.value.hint
    assert (beam_entra_cloud.tenant.token_requests, warnings(caplog)) == (0, [])


def test_of_a_variable_nothing_is_known(beam_entra_cloud, monkeypatch, caplog):
    """A secret in the environment has no age."""
    monkeypatch.setenv("JOB_SECRET", beam_entra_cloud.app.add_secret().reveal())
    identity = identity_of(beam_entra_cloud, "client_secret", client_secret="env:JOB_SECRET")
    acquire(identity, strict=True, rotate_after=timedelta(seconds=1))
    assert warnings(caplog) == []


# ---------------------------------------------------------------- Key Vault


@pytest.fixture
def vault(beam_entra_cloud: LocalCloud) -> Iterator[tuple[Vault, IdentitySettings]]:
    """A vault with the job's client secret, and the identity that refers to it."""
    host = Vault(beam_entra_cloud)
    host.secrets["job"] = beam_entra_cloud.app.add_secret().reveal()
    beam_entra_cloud.tenant.resources.append(VAULT)
    try:
        with secure(host) as url:
            yield host, identity_of(
                beam_entra_cloud,
                "client_secret",
                client_secret=f"keyvault:{url}/secrets/job",
                keyvault_host=url.removeprefix("https://"),
                keyvault_credential="federated:file",
                assertion_file=str(beam_entra_cloud.assertion_file),
            )
    finally:
        beam_entra_cloud.tenant.resources.remove(VAULT)


SAID = {
    "young": ({"created": -89}, ""),
    "old": ({"created": -91}, "the client secret is 91 days old or more"),
    "old, its tags are new": ({"created": -91, "updated": -1}, "the client secret is 91 days old or more"),
    "young, near its end": ({"created": -1, "exp": 29.5}, "the client secret ends in 29 days"),
    "its end is far": ({"created": -1, "exp": 31}, ""),
}


@pytest.mark.parametrize(("days", "said"), SAID.values(), ids=SAID)
def test_a_secret_in_a_vault(vault, caplog, days, said):
    """The vault knows when this version was made, and when it ends."""
    host, identity = vault
    host.attributes = {name: int(time.time() + each * DAY_S) for name, each in days.items()}
    acquire(identity)
    assert [text.startswith(said) for text in warnings(caplog)] == ([True] if said else [])
    if said:
        with pytest.raises(IdentityRejected, match=said):
            acquire(identity, strict=True)
    else:
        acquire(identity, strict=True)


def test_a_secret_that_has_ended_in_its_vault(vault):
    """It is refused whether the manifest is strict or not, and not presented."""
    host, identity = vault
    host.attributes = {"exp": int(time.time() - 60)}
    with pytest.raises(IdentityRejected, match="the client secret has expired: it was good until"):
        acquire(identity)
    assert {request.grant for request in host.cloud.tenant.requests if request.kind == "token"} == {"federated"}


# ---------------------------------------------------------------- certificates


@pytest.mark.parametrize(("days", "near"), [(29, True), (31, False)])
def test_a_certificate_near_its_end(beam_entra_cloud, tmp_path, caplog, days, near):
    """From 30 days before its end it warns; its age does not matter."""
    made = Made.new(life=timedelta(days=days, hours=1))
    write_private(tmp_path / "certificate", made.pem())
    identity = identity_of(beam_entra_cloud, "certificate", certificate=f"file:{tmp_path / 'certificate'}")
    registered = beam_entra_cloud.app.add_certificate(made.public)
    try:
        acquire(identity)
        assert len(warnings(caplog)) == near
        assert all(text.startswith("the certificate ends in 29 days, on ") for text in warnings(caplog))
        if near:
            with pytest.raises(IdentityRejected, match="the certificate ends in 29 days"):
                acquire(identity, strict=True)
    finally:
        beam_entra_cloud.app.remove_certificate(registered)


# ---------------------------------------------------------------- the manifest

TEXT = """
pipeline = "orders"
environment = "prod"
[identity]
tenant = "contoso.onmicrosoft.com"
client = "11111111-2222-4333-8444-555555555555"
credential = "client_secret"
client_secret = "env:JOB_SECRET"
{more}
[lifetime]
job = "1h"
[grants]
read = ["abfss://raw@contosolake.dfs.core.windows.net/orders/"]
[audit]
path = "abfss://audit@contosolake.dfs.core.windows.net/trails/"
"""


def test_the_manifest_says_it():
    """Both travel with the manifest to the workers; left out, it is 90 days and a warning."""
    plain = AccessManifest.parse(TEXT.format(more=""), file="m").identity
    assert (plain.rotate_after, plain.strict) == (timedelta(days=90), False)
    manifest = AccessManifest.parse(TEXT.format(more='rotate_after = "30d"\nstrict = true'), file="m")
    travelled = AccessManifest.from_dict(manifest.to_dict()).identity
    assert (travelled.rotate_after, travelled.strict) == (timedelta(days=30), True)


@pytest.mark.parametrize("more", ['rotate_after = "soon"', 'strict = "yes"', "rotate_after = 90"])
def test_a_manifest_that_says_it_wrong(more):
    """The key is named."""
    with pytest.raises(ConfigError, match=more.partition(" ")[0]):
        AccessManifest.parse(TEXT.format(more=more), file="m")


def test_it_says_nothing_below_warning(aged, caplog):
    """What is fine is not told."""
    with caplog.at_level(logging.DEBUG, logger=LOG):
        acquire(aged, rotate_after=timedelta(days=200))
    assert warnings(caplog) == []
