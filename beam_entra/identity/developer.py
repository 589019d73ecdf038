"""The person who is signed in on a developer's machine, to the Azure CLI or the Azure Developer CLI."""

from __future__ import annotations

from azure.core.credentials import SupportsTokenInfo
from azure.identity import AzureCliCredential, AzureDeveloperCliCredential

from beam_entra.access.manifest import IdentitySettings
from beam_entra.identity.registry import Connection, register

__all__ = ["azure_cli", "azure_developer_cli"]

_TIMEOUT_S = 20


@register("developer", kind_setting="developer_cli", fix="sign in with `az login`, or choose another credential")
@register("developer:az", fix="sign in with `az login`, or choose another credential")
def azure_cli(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The Azure CLI."""
    return AzureCliCredential(tenant_id=identity.tenant, process_timeout=_TIMEOUT_S)


@register("developer:azd", fix="sign in with `azd auth login`, or choose another credential")
def azure_developer_cli(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The Azure Developer CLI."""
    return AzureDeveloperCliCredential(tenant_id=identity.tenant, process_timeout=_TIMEOUT_S)
