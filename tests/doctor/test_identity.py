"""Manifest, clock, credential, token, delegation key: each failing line, over the wire."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from beam_entra.clock import utc_now
from beam_entra.doctor.identity import lasting
from beam_entra.testing.storage_requests import matching
from tests.doctor.conftest import LAKE, Patient, Seen

AFTER_THE_TOKEN = ("delegation key", "audit", "read", "write", "public access", "shared key", "time", "seal")


def check_nothing_after_it(seen: Seen, why: str) -> None:
    """What needs a token was not looked at, for this reason, and no trail was begun."""
    marks = seen.marks()
    assert {check: marks[check] for check in AFTER_THE_TOKEN} == dict.fromkeys(AFTER_THE_TOKEN, "skipped")
    because = {line.because for line in seen.examination.findings if line.check in AFTER_THE_TOKEN}
    assert because == {why}
    assert seen.examination.trail == ""


def test_a_manifest_that_does_not_hold_together(patient: Patient) -> None:
    """Its problem is the line; there is nothing to go by for all others, and nothing is sent."""
    seen = patient.examine(read=["abfss://raw@contosolake.dfs.core.windows.net/*"])
    assert seen.failures == ("manifest",)
    assert set(seen.marks().values()) == {"fail", "skipped"}
    assert "[grants] read" in seen.of("manifest").found
    assert seen.examination.job == seen.examination.trail == seen.examination.seal_digest == ""
    assert not list(patient.cloud.proxy.requests)


def test_a_credential_that_does_not_exist(patient: Patient) -> None:
    """That the source is not known is the manifest's problem."""
    seen = patient.examine(credential="magic")
    assert "magic" in seen.of("manifest").found
    assert seen.failures == ("manifest",)


def test_a_wrong_tenant(patient: Patient) -> None:
    """The credential is found; Entra's code is in the line, and where to mend it."""
    seen = patient.examine(tenant="00000000-0000-4000-8000-000000000000")
    assert (seen.failures, seen.marks()["credential"]) == (("token",), "ok")
    facts = seen.of("token").facts
    assert (facts["code"], len(str(facts["correlation_id"]))) == ("AADSTS90002", 36)
    assert f"correlation id {facts['correlation_id']}" in seen.of("token").found
    assert "[identity] tenant" in seen.of("token").fix
    check_nothing_after_it(seen, "there is no token")
    assert patient.audit.list() == []


def test_a_wrong_client(patient: Patient) -> None:
    """Likewise."""
    seen = patient.examine(client="00000000-0000-4000-8000-000000000000")
    assert seen.of("token").facts["code"] == "AADSTS700016"
    assert "client" in seen.of("token").fix


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_client_secret(patient: Patient, tmp_path: Path, right: bool) -> None:
    """A wrong one is Entra's to say; neither is ever said."""
    secret = patient.cloud.app.add_secret().reveal()
    shown = secret if right else "x" + secret
    file = tmp_path / "secret"
    file.write_text(shown)
    file.chmod(0o600)
    try:
        seen = patient.examine(credential="client_secret", client_secret=f"file:{file}", assertion_file="")
    finally:
        patient.cloud.app.remove_secrets()
    assert seen.failures == (() if right else ("token",))
    assert seen.of("credential").about == "client_secret"
    assert right or seen.of("token").facts["code"] == "AADSTS7000215"
    assert secret not in seen.everything()


def test_a_client_secret_that_is_old(patient: Patient, tmp_path: Path) -> None:
    """A line of its own, with its fix apart."""
    file = tmp_path / "secret"
    file.write_text(patient.cloud.app.add_secret().reveal())
    file.chmod(0o600)
    written = (utc_now() - timedelta(days=100)).timestamp()
    os.utime(file, (written, written))
    try:
        seen = patient.examine(credential="client_secret", client_secret=f"file:{file}", assertion_file="")
    finally:
        patient.cloud.app.remove_secrets()
    assert seen.failures == ()
    (line,) = [each for each in seen.examination.findings if each.mark == "warn"]
    assert line.check == "credential"
    assert line.found.startswith("the client secret is 100 days old or more, and should be replaced after 90 (")
    assert line.fix == "replace it, or choose a credential without a secret"


@pytest.mark.parametrize("there", ["nothing", "not mine"])
def test_a_source_that_has_no_credential(patient: Patient, tmp_path: Path, there: str) -> None:
    """No file, or one that others can read: the credential's line fails, and nobody was asked for a token."""
    file = tmp_path / "secret"
    if there == "not mine":
        file.write_text("open to all")
        file.chmod(0o644)
    seen = patient.examine(credential="client_secret", client_secret=f"file:{file}", assertion_file="")
    assert seen.failures == ("credential",)
    assert str(file) in seen.of("credential").found + seen.of("credential").fix
    assert seen.of("token").because == "there is no credential to ask with"
    assert patient.cloud.tenant.token_requests == 0
    check_nothing_after_it(seen, "there is no token")


def test_an_authority_that_is_out_of_order(patient: Patient) -> None:
    """Whether the credential is good nobody has said."""
    patient.cloud.tenant.throttle(600)
    seen = patient.examine()
    assert (seen.marks()["credential"], seen.failures) == ("skipped", ("token",))
    assert "HTTP 429" in seen.of("token").found
    assert seen.of("token").facts["status"] == 429


def test_a_provider_that_gives_no_assertion(patient: Patient, tmp_path: Path) -> None:
    """What an executable prints is none: the credential's line fails, and Entra was not asked."""
    vouch = tmp_path / "vouch"
    vouch.write_text("#!/bin/sh\necho who are you\n")
    vouch.chmod(0o700)
    identity = {"credential": "federated", "assertion_from": "command", "assertion_command": str(vouch)}
    seen = patient.examine(**identity, assertion_file="")
    assert seen.failures == ("credential",)
    assert seen.of("credential").about == "federated:command"
    assert patient.cloud.tenant.token_requests == 0


def test_a_vault_that_the_identity_gets_no_token_for(patient: Patient) -> None:
    """The secret was not found, and nobody was refused with it: the credential's line fails, and says why."""
    at = "keyvault:https://contoso.vault.azure.net/secrets/orders"
    asking = {"keyvault_credential": "federated_file", "assertion_file": str(patient.cloud.assertion_file)}
    seen = patient.examine(credential="client_secret", client_secret=at, **asking)
    assert seen.failures == ("credential",)
    line = seen.of("credential")
    assert line.found.startswith("there is no token to ask Key Vault for client_secret with: Entra refused ")
    assert line.facts["code"] == "AADSTS500011"


def test_a_chain_says_which_source_it_was(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The member that gave the token, not the chain."""
    monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL", raising=False)
    identity = {"credential": "chain", "chain": "federated:github, federated:file"}
    urls = {"github_url": "env:ACTIONS_ID_TOKEN_REQUEST_URL", "github_token": "env:ACTIONS_ID_TOKEN_REQUEST_TOKEN"}
    seen = patient.examine(**identity, **urls)
    assert seen.failures == ()
    assert seen.of("credential").about == "federated:file"


def test_a_managed_identity_needs_no_authority(patient: Patient) -> None:
    """The line says so, also where there is none to be had."""

    def move(document: dict[str, Any]) -> None:
        document["identity"]["authority"] = "https://nowhere.invalid"

    seen = patient.examine(at=move, credential="managed_identity", assertion_file="")
    assert seen.of("network", "authority").mark == "skipped"
    assert seen.of("network", LAKE).mark == "ok"


@pytest.mark.parametrize(
    ("minutes", "mark", "says"),
    [
        (0, "ok", f"agrees with authority and {LAKE}"),
        (1, "warn", " ahead of "),
        (8, "warn", "about 8 min ahead of "),
        (-8, "warn", "about 8 min behind "),
        (20, "fail", "about 20 min ahead of "),
        (-20, "fail", "about 20 min behind "),
    ],
)
def test_a_skewed_clock(patient: Patient, minutes: int, mark: str, says: str) -> None:
    """Up to ten minutes it is put right, and the job can run; beyond, the clock's line is the one that fails."""
    seen = patient.examine(clock=lambda: utc_now() + timedelta(minutes=minutes))
    line = seen.of("clock")
    assert line.mark == mark
    assert says in line.found
    assert minutes - 0.2 <= float(line.facts["ahead_s"]) / 60 <= minutes + 0.2
    assert seen.failures == (("clock",) if mark == "fail" else ())
    if mark == "fail":
        check_nothing_after_it(seen, "this machine's clock is wrong")
        assert patient.cloud.tenant.token_requests == 0


def test_no_role_for_delegation_keys(patient: Patient) -> None:
    """The line names the role, the scope, and to whom."""
    patient.cloud.proxy.without_role()
    seen = patient.examine()
    assert seen.failures == ("delegation key",)
    line = seen.of("delegation key", LAKE)
    who = seen.of("token").facts["object_id"]
    assert line.fix == f"give object id {who} the role Storage Blob Delegator on storage account {LAKE}"
    assert (line.facts["status"], line.facts["code"]) == (403, "AuthorizationPermissionMismatch")
    assert line.facts["request_id"]
    assert seen.of("audit").because == seen.of("read").because == f"{LAKE} gives no delegation key"
    assert patient.audit.list() == []


def test_a_firewall_is_not_a_missing_role(patient: Patient) -> None:
    """Another code has another fix."""
    patient.cloud.proxy.respond(403, "AuthorizationFailure", where=matching("GetUserDelegationKey"))
    line = patient.examine().of("delegation key", LAKE)
    assert "firewall" in line.fix
    assert "role" not in line.fix


def test_a_token_that_ends_before_a_sas(patient: Patient) -> None:
    """It is said; the job can run, and asks more often."""
    patient.cloud.tenant.token_life_s, before = 120, patient.cloud.tenant.token_life_s
    try:
        seen = patient.examine()
    finally:
        patient.cloud.tenant.token_life_s = before
    assert seen.failures == ()
    assert seen.of("time").mark == "warn"
    assert "[lifetime]" in seen.of("time").fix


def test_a_rolling_life(patient: Patient) -> None:
    """It is said to be one."""
    seen = patient.examine(lifetime='job = "2h"\ntoken = "5m"\nrolling = true')
    assert seen.failures == ()
    assert seen.of("time").found.startswith("the job may run 2 h after each fresh token;")


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(days=7), "7 d"),
        (timedelta(days=1, hours=2, minutes=3), "1 d 2 h"),
        (timedelta(hours=2), "2 h"),
        (timedelta(hours=1, minutes=59, seconds=59), "1 h 59 min"),
        (timedelta(hours=1, seconds=30), "1 h"),
        (timedelta(seconds=500), "8 min 20 s"),
        (timedelta(seconds=0.2), "0 s"),
    ],
)
def test_spans_in_words(span: timedelta, text: str) -> None:
    """The two largest units are enough."""
    assert lasting(span) == text
