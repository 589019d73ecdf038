"""The testing kit: a real Entra tenant and a real Azurite on this machine, over real HTTPS.

    LocalCloud                        everything below, up together, in one `with`
    ├ certificates.RunCertificates    a certificate authority made for this run
    ├ tenant.LocalTenant              Entra's stand-in: token endpoint, keys, discovery, faults on request
    ├ issuer.WorkloadIssuer           whatever runs the job: signs the assertions that the tenant federates with
    ├ azurite.Azurite                 Azurite with several accounts, keys made for the run
    └ proxy.StorageProxy              in front of Azurite: records each request, takes fault rules

`filesystem_contract` is what every Beam FileSystem has to do, as tests; `plugin` is the pytest plugin;
`clock.FakeClock` is a clock that stands still. Nothing is imported until it is named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from beam_entra.testing.azurite import Azurite
    from beam_entra.testing.certificates import RunCertificates
    from beam_entra.testing.clock import FakeClock
    from beam_entra.testing.issuer import WorkloadIssuer
    from beam_entra.testing.local import LocalCloud, LocalContainer
    from beam_entra.testing.proxy import StorageProxy
    from beam_entra.testing.tenant import LocalTenant

__all__ = [
    "Azurite",
    "FakeClock",
    "LocalCloud",
    "LocalContainer",
    "LocalTenant",
    "RunCertificates",
    "StorageProxy",
    "WorkloadIssuer",
]

_HOMES = {
    "Azurite": "azurite",
    "FakeClock": "clock",
    "LocalCloud": "local",
    "LocalContainer": "local",
    "LocalTenant": "tenant",
    "RunCertificates": "certificates",
    "StorageProxy": "proxy",
    "WorkloadIssuer": "issuer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
