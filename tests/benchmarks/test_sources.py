"""The sources that the time to a first byte is measured with: each proves the same app in its own way."""

from __future__ import annotations

import stat

import pytest
import urllib3

from beam_entra.clock import utc_now
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.testing.local import LocalCloud
from benchmarks.sources import every_source
from tests.identity.hosts import identity_of

PROOFS = {
    "federated_file": ("federated_file", "federated"),
    "workload_identity": ("workload_identity", "federated"),
    "command": ("federated:command", "federated"),
    "client_secret": ("client_secret", "secret"),
    "certificate": ("certificate", "certificate"),
    "managed_identity": ("managed_identity", "federated"),  # as the stand-in itself gets its tokens
}


def test_each_source_proves_the_app(beam_entra_cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token names its source, the tenant its proof; nothing secret stands in a manifest, or is open to others."""
    cloud = beam_entra_cloud
    try:
        with every_source(cloud) as (identities, found):
            monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(cloud.assertion_file))
            for name, value in found.items():
                monkeypatch.setenv(name, value)
            proofs = {}
            for name, settings in identities.items():
                token = EntraSource(identity_of(cloud, **settings), clock=utc_now).acquire(STORAGE_AUDIENCE)
                assert token.claims.appid == cloud.client_id
                proofs[name] = token.source, [each.grant for each in cloud.tenant.requests if each.kind == "token"][-1]
            assert proofs == PROOFS
            assert cloud.find_leaks(repr(identities)) == []
            certificate = cloud.folder / "certificate.pem"
            assert stat.S_IMODE(certificate.stat().st_mode) == 0o600
            stranger = urllib3.request("GET", found["IDENTITY_ENDPOINT"], fields={"resource": STORAGE_AUDIENCE})
            assert stranger.status == 401
    finally:
        cloud.app.remove_secrets()
