"""The machine's own cloud for the demo: for its time only, or kept up like that of `beam-entra local up`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from beam_entra.access import AccessManifest
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.testing.background import CloudPlan, find_running, launch
from beam_entra.testing.local import BlobAdmin, LocalCloud, past_proxies

__all__ = ["KEPT_FOLDER", "Cloud", "bring_up"]

KEPT_FOLDER = Path(".local", "cloud")  # where `beam-entra local` looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """A cloud that is up.

    Attributes:
        environment: What points a pipeline at it, as `beam-entra local env` prints it.
        admin: Access past every grant, to put data there and to look at the outcome.
    """

    authority: str
    storage: str
    endpoints_file: Path
    assertion_file: Path
    admin: BlobAdmin = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **past_proxies(os.environ),
            "BEAM_ENTRA_ENDPOINTS": str(self.endpoints_file),
            "AZURE_FEDERATED_TOKEN_FILE": str(self.assertion_file),
        }


@contextmanager
def bring_up(manifest: AccessManifest, *, account: str, keep: bool) -> Iterator[Cloud]:
    """A cloud in which the manifest's tenant, client and account exist; gone afterwards unless it is to be kept.

    Args:
        keep: Leave it up when all went well. One that is up already is used.
    """
    identity = manifest.identity
    if not keep:
        with LocalCloud(
            accounts=[account], domains=[identity.tenant], client_id=identity.client, proxy=False
        ) as local:
            yield Cloud(
                authority=local.authority,
                storage=local.endpoint(account),
                endpoints_file=local.endpoints_file,
                assertion_file=local.assertion_file,
                admin=local.admin,
            )
        return
    plan = CloudPlan(domains=(identity.tenant,), clients=(identity.client,), accounts=(account,))
    found = find_running(KEPT_FOLDER)
    if found is not None and (identity.client not in found.clients or account not in found.endpoints):
        raise ConfigError(
            "a local cloud is up that does not know the demo's client or account",
            Diagnosis(hint="take it down first: beam-entra local down (its blobs are gone then)"),
        )
    running = found or launch(KEPT_FOLDER, plan)
    admin = running.admin()
    try:
        yield Cloud(
            authority=running.authority,
            storage=running.endpoints[account],
            endpoints_file=running.endpoints_file,
            assertion_file=running.assertion_file,
            admin=admin,
        )
    except BaseException:
        if found is None:
            running.stop()
        raise
    finally:
        admin.close()
