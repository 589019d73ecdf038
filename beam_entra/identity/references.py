"""Secrets by reference: the manifest names where a secret is, the worker reads it there.

env:NAME                                             a variable of the worker's environment
file:PATH                                            a file that only its owner can read
keyvault:https://VAULT/secrets/NAME[/VERSION]        a secret in Azure Key Vault
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.identity.rejection import NotHere
from beam_entra.identity.rotation import Secured

__all__ = ["VAULT_SCHEME", "VaultReference", "check_reference", "read_reference", "resolve_path"]

VAULT_SCHEME = "keyvault:"
_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]{0,127})")
_FILE = re.compile(r"file:([^\x00-\x1f]+)")
_VAULT = re.compile(
    r"keyvault:https://(?P<host>[A-Za-z0-9.-]+(?::[0-9]{1,5})?)/secrets/(?P<name>[0-9A-Za-z-]{1,127})"
    r"(?:/(?P<version>[0-9a-f]{32}))?"
)
# A token for a vault goes to nobody else. See: https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
_VAULT_DOMAINS = ("vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultReference:
    """A secret in Key Vault.

    Attributes:
        url: Of the vault: `https://contoso.vault.azure.net`.
        version: "" for the newest.
        audience: For whom a token for it is.
        named: The host is no vault's by its name: the manifest's `keyvault_host` says that it is one.
    """

    url: str
    name: str
    version: str
    audience: str
    named: bool

    @classmethod
    def parse(cls, reference: str, *, setting: str, vault_host: str = "") -> VaultReference:
        """Take a reference apart.

        Args:
            vault_host: The one `host[:port]` that is a vault although its name does not say so.

        Raises:
            ConfigError: It is none, or its host is no vault's.
        """
        found = _VAULT.fullmatch(reference)
        if not found:
            raise ConfigError(
                f"[identity] {setting} is no reference to a secret in Key Vault",
                Diagnosis(hint="write keyvault:https://<vault>.vault.azure.net/secrets/<name>[/<version>]"),
            )
        host = found["host"].lower()
        domain = next((each for each in _VAULT_DOMAINS if re.fullmatch(rf"[a-z0-9-]{{3,24}}\.{each}", host)), "")
        if not domain and host != vault_host.lower():
            raise ConfigError(
                f"[identity] {setting} refers to {host}, which is no host of Key Vault: a token must not go there",
                Diagnosis(hint="correct the host, or name it as keyvault_host in [identity] if it is a vault's"),
            )
        return cls(
            url=f"https://{host}",
            name=found["name"],
            version=found["version"] or "",
            audience=f"https://{domain or _VAULT_DOMAINS[0]}",
            named=not domain,
        )


def check_reference(reference: str, *, setting: str, vault_host: str = "") -> None:
    """See that a setting holds a reference; reads nothing.

    Raises:
        ConfigError: It holds none. The text is not repeated: it may be the secret.
    """
    if reference.startswith(VAULT_SCHEME):
        VaultReference.parse(reference, setting=setting, vault_host=vault_host)
    elif not (_ENV.fullmatch(reference) or _FILE.fullmatch(reference)):
        raise ConfigError(
            f"[identity] {setting} is no reference to a secret",
            Diagnosis(
                hint="name the secret by reference: env:NAME, file:PATH or keyvault:https://...; secrets themselves do "
                "not belong in the manifest"
            ),
        )


def read_reference(
    reference: str,
    *,
    setting: str,
    read_vault: Callable[[str], Secured],
    environ: Mapping[str, str] = os.environ,
) -> Secured:
    """Read what `reference` names.

    Args:
        setting: The manifest's key, for the error.
        read_vault: Reads a `keyvault:` reference.
        environ: The process environment.

    Raises:
        NotHere: The variable is not set, or there is no such file.
        ConfigError: The file can be read by others, is empty, too long or unreadable.
    """
    if reference.startswith(VAULT_SCHEME):
        return read_vault(setting)
    if found := _ENV.fullmatch(reference):
        text = _variable(found[1], setting, environ, hint="or refer to a file with file:PATH")
        return Secured(content=text.encode(errors="surrogateescape"))
    return _read_private_file(Path(reference.removeprefix("file:")), setting)


def resolve_path(value: str, *, setting: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The path that a setting gives: itself, or what the variable of `env:NAME` holds.

    Raises:
        NotHere: The variable is not set.
    """
    scheme, _, name = value.partition(":")
    if scheme == "env":
        return Path(_variable(name, setting, environ, hint="or write the path into the manifest"))
    return Path(name if scheme == "file" else value)


def _variable(name: str, setting: str, environ: Mapping[str, str], *, hint: str) -> str:
    text = environ.get(name, "").strip()
    if not text:
        raise NotHere(
            ConfigError(
                f"[identity] {setting} refers to the environment variable {name}, which is not set on this worker",
                Diagnosis(hint=f"set {name} where the workers run, {hint}"),
            )
        )
    return text


def _read_private_file(path: Path, setting: str) -> Secured:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        unreadable = ConfigError(
            f"[identity] {setting} refers to the file {path}, which cannot be read: {error.strerror}",
            Diagnosis(hint="check the path and that the worker's user may read the file"),
        )
        raise (NotHere(unreadable) if isinstance(error, FileNotFoundError) else unreadable) from None
    if facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which others on the machine can read",
            Diagnosis(
                hint=f"chmod 600 {path} (a Kubernetes volume: defaultMode: 0400), and replace the secret if others may "
                "have seen it"
            ),
        )
    if not content.strip():
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which is empty",
            Diagnosis(hint="write the secret into the file"),
        )
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which is longer than {_MOST_BYTES >> 20} MiB",
            Diagnosis(hint="name the file that holds the secret, and nothing else"),
        )
    return Secured(content=content, made=datetime.fromtimestamp(facts.st_mtime, UTC))
