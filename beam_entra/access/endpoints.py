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

Files are relative to the folder of this one, wherever the processes that read it stand. Of the settings, those count
that the manifest has, too: the overlay gives another value, never another key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
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
        """Read an endpoints file; the relative paths in it get its folder.

        Raises:
            ConfigError: One line for each problem: `file: [table] key: cause. next step`.
        """
        found = cls._checked(read(path, "endpoints file"), str(path))
        return cls(tables=_anchored(found.tables, Path(path).absolute().parent))

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
        identity = manifest["identity"]
        settings = {name: value for name, value in said["settings"].items() if name in identity}
        return {**manifest, "identity": identity | settings | said["entra"], "accounts": accounts}

    @classmethod
    def _checked(cls, data: bytes, file: str) -> Endpoints:
        return cls(tables=check(EndpointsFile, parse_toml(data, file), file, [endpoints_rules]))


def _anchored(tables: EndpointsFile, folder: Path) -> EndpointsFile:
    """The file with every path in it absolute."""
    document = tables.model_dump(exclude_none=True)
    for table in (document["entra"], *document["accounts"].values()):
        if "ca_file" in table:
            table["ca_file"] = str(folder / table["ca_file"])
    for name, value in document["settings"].items():
        scheme, _, rest = value.partition(":")
        if scheme == "file" and rest:
            document["settings"][name] = f"file:{folder / rest}"
        elif name == "assertion_file" and value and scheme != "env":
            document["settings"][name] = str(folder / value)
    return EndpointsFile.model_validate(document)
