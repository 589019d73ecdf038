"""Where the services are on this machine: an overlay for an access manifest, such as a local tenant and Azurite.

It says where, never who or what: it cannot change the tenant, the client, the grants, the audit path or a lifetime.

    [entra]
    authority = "https://127.0.0.1:8443"
    ca_file   = "ca.pem"

    [accounts.contosolake]
    endpoint = "https://127.0.0.1:10000/contosolake"
    emulator = true
    ca_file  = "ca.pem"

    [settings]                                    # in place of the manifest's settings of the credential source
    assertion_file = "file:assertion.jwt"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from beam_entra.access._schema import EndpointsFile, endpoints_rules
from beam_entra.access._toml import check, parse_toml, read

__all__ = ["Endpoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """An endpoints file that has been checked.

    Attributes:
        tables: The checked file.
    """

    tables: EndpointsFile

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Endpoints:
        """Read an endpoints file.

        Raises:
            ConfigError: One line for each problem: `file: [table] key: cause. next step`.
        """
        return cls._checked(read(path, "endpoints file"), str(path))

    @classmethod
    def parse(cls, text: str, *, file: str) -> Endpoints:
        """Read an endpoints file from text; `file` is its name in errors.

        Raises:
            ConfigError: As `load`.
        """
        return cls._checked(text.encode(errors="surrogatepass"), file)

    def applied_to(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """A manifest's document with what this file says in place; accounts that it does not use are ignored."""
        said = self.tables.model_dump(exclude_none=True)
        accounts = {name: account | said["accounts"].get(name, {}) for name, account in manifest["accounts"].items()}
        return {**manifest, "identity": manifest["identity"] | said["settings"] | said["entra"], "accounts": accounts}

    @classmethod
    def _checked(cls, data: bytes, file: str) -> Endpoints:
        return cls(tables=check(EndpointsFile, parse_toml(data, file), file, [endpoints_rules]))
