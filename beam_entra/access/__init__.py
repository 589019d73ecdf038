"""What a job may touch: the manifest that says so, and the pure decision over each access. Knows no network."""

from __future__ import annotations

from beam_entra.access.downscope import (
    SasSpec,
    downscope,
    downscope_audit,
    downscope_marker,
    downscope_version,
    granted,
)
from beam_entra.access.endpoints import Endpoints
from beam_entra.access.manifest import (
    AccessManifest,
    AccountSettings,
    Grant,
    IdentitySettings,
    Lifetime,
    Permission,
    Scoping,
    Trail,
)

__all__ = [
    "AccessManifest",
    "AccountSettings",
    "Endpoints",
    "Grant",
    "IdentitySettings",
    "Lifetime",
    "Permission",
    "SasSpec",
    "Scoping",
    "Trail",
    "downscope",
    "downscope_audit",
    "downscope_marker",
    "downscope_version",
    "granted",
]
