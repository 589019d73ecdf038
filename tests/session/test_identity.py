"""Which credential source gave a token stands in the trail, and with it every token that it took to get it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.session import JobScope
from tests.identity.hosts import VAULT, Vault, identity_of, secure


@pytest.fixture
def vault(job) -> Iterator[tuple[Vault, str]]:
    """A vault with a client secret of the job, and its URL."""
    host = Vault(job.cloud)
    host.secrets["job"] = job.cloud.app.add_secret().reveal()
    job.cloud.tenant.resources.append(VAULT)
    try:
        with secure(host) as url:
            yield host, url
    finally:
        job.cloud.tenant.resources.remove(VAULT)


def as_(job, credential: str, **settings: str) -> None:
    """Launch the job by another credential."""
    manifest = replace(job.manifest, identity=identity_of(job.cloud, credential, **settings))
    job.scope = replace(job.scope, manifest=manifest)
    assert isinstance(job.scope, JobScope)


def test_a_chain_is_audited_by_its_member(job):
    """The segment says that it was a chain; the token's record says which of it; the seal counts them."""
    as_(
        job,
        "chain",
        chain="client_secret, federated:file",
        client_secret="env:BEAM_ENTRA_TEST_UNSET",
        assertion_file=str(job.cloud.assertion_file),
    )
    session = job.session()
    with session.bundle("work"):
        pass
    session.close()
    assert [record["source"] for record in job.records("token_acquired")] == ["federated:file"]
    assert {record["credential"] for record in job.records("segment_opened")} == {"chain"}


def test_the_vaults_token_is_in_the_trail(job, vault):
    """A job whose secret lies in Key Vault has two tokens: that for the vault first, each with its source."""
    _, url = vault
    as_(
        job,
        "client_secret",
        client_secret=f"keyvault:{url}/secrets/job",
        keyvault_host=url.removeprefix("https://"),
        keyvault_credential="federated:file",
        assertion_file=str(job.cloud.assertion_file),
    )
    session = job.session()
    with session.bundle("work"):
        pass
    found = [(record["audience"], record["source"]) for record in job.records("token_acquired")]
    assert found == [(VAULT, "federated:file"), (STORAGE_AUDIENCE, "client_secret")]
    summary = job.seal_and_verify(session)
    assert summary.counts["token_acquired"] == 2
