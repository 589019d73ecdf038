"""The registry: which credential sources there are, what each needs, and which of them a manifest means.

A source has a name, `managed_identity`, and may come in kinds, `federated:gcp`. A manifest names the source and, by one
setting of its own, the kind; a chain and `keyvault_credential` name both in one word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from azure.core.credentials import SupportsTokenInfo

from beam_entra.access.manifest import IdentitySettings
from beam_entra.clock import Clock
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.identity.http import Timeouts
from beam_entra.identity.references import VAULT_SCHEME, check_reference, read_reference
from beam_entra.identity.rotation import Rotation, Secured
from beam_entra.secret import Secret

__all__ = [
    "Connection",
    "Planned",
    "check_credential",
    "credential_names",
    "plan",
    "register",
    "seconds_of",
    "vault_plan",
]

CHAIN = "chain"
_ROTATED = frozenset({"client_secret", "oidc_client_secret"})  # what others know, too, and stays what it is
_VAULT_SETTINGS = frozenset({"keyvault_credential", "keyvault_client", "keyvault_host"})


class Connection(Mapping[str, Any]):
    """What a source gets to work with: azure-identity's keyword arguments as a mapping, and the way to read references.

    Attributes:
        settings: The source's own.
        clock: For every decision about time.
        rotation: Looks at the age of what is read.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        settings: Mapping[str, str],
        clock: Clock,
        read_vault: Callable[[str], Secured],
        rotation: Rotation,
    ) -> None:
        self._options = options
        self.settings = settings
        self.clock = clock
        self.rotation = rotation
        self._read_vault = read_vault

    def secret(self, setting: str) -> Secret:
        """Read the secret that this setting refers to.

        Raises:
            ConfigError: It cannot be had.
            IdentityRejected: It has expired, or is too old for a strict manifest.
        """
        found = self._read(setting)
        if setting in _ROTATED:
            self.rotation.check(setting, made=found.made, ends=found.ends)
        try:
            return Secret(found.content.decode("utf-8").strip(), what=setting)
        except UnicodeDecodeError:
            raise ConfigError(
                f"[identity] {setting} refers to something that is not text", Diagnosis(hint="check what it refers to")
            ) from None

    def content(self, setting: str) -> bytes:
        """Read the secret that this setting refers to, byte for byte."""
        return self._read(setting).content

    def _read(self, setting: str) -> Secured:
        return read_reference(self.settings[setting], setting=setting, read_vault=self._read_vault)

    @property
    def timeouts(self) -> Timeouts:
        """Those of the keyword arguments."""
        return Timeouts(connect_s=self._options["connection_timeout"], read_s=self._options["read_timeout"])

    def __getitem__(self, name: str) -> Any:
        return self._options[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)


Build = Callable[[IdentitySettings, Connection], SupportsTokenInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registered:
    build: Build
    required: frozenset[str]
    optional: frozenset[str]
    references: tuple[str, ...]
    check: Callable[[IdentitySettings], None]
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One source that a manifest means.

    Attributes:
        name: `managed_identity`, `federated:gcp`: what is printed and audited.
        identity: The manifest's identity with the settings that this source knows.
        fix: What to do when it is not to be had.
    """

    name: str
    identity: IdentitySettings
    build: Build
    fix: str


_REGISTRY: dict[str, _Registered] = {}
_KIND_SETTINGS: dict[str, str] = {}


def register(
    name: str,
    *,
    required: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    references: tuple[str, ...] = (),
    kind_setting: str = "",
    check: Callable[[IdentitySettings], None] = lambda identity: None,
    fix: str = "see that the job runs where this source is to be had, or choose another",
) -> Callable[[Build], Build]:
    """Make a credential source known to manifests as `credential = "<name>"`.

    The decorated function gets the identity's settings and a `Connection` (authority, CA, timeouts as keyword
    arguments; `secret()` for references) and returns an azure-identity credential. It is called anew for each token, so
    that files are read again.

    Args:
        name: What the manifest calls it; `name:kind` for one kind of it.
        required: Settings without which it cannot work.
        optional: Settings that it knows besides.
        references: Settings, of those, that refer to a secret.
        kind_setting: The setting by which a manifest chooses the kind.
        check: Sees, without any network, that the settings' values will do; raises ConfigError.
        fix: What to do when it says CredentialUnavailableError.
    """

    def add(build: Build) -> Build:
        if kind_setting:
            _KIND_SETTINGS[name.partition(":")[0]] = kind_setting
        _REGISTRY[name] = _Registered(
            build=build,
            required=frozenset(required),
            optional=frozenset(optional),
            references=references,
            check=check,
            fix=fix,
        )
        return build

    return add


def credential_names() -> tuple[str, ...]:
    """The names that a manifest can give as `credential`, sorted."""
    return tuple(sorted({name.partition(":")[0] for name in _REGISTRY} | {CHAIN}))


def check_credential(identity: IdentitySettings) -> None:
    """See, without any network, that the named source exists and has the settings it needs and no others.

    Raises:
        ConfigError: It does not.
    """
    plan(identity)


def plan(identity: IdentitySettings) -> tuple[Planned, ...]:
    """The sources that a manifest means, in the order in which to ask them; checked.

    Raises:
        ConfigError: As `check_credential`.
    """
    entries = _entries(identity)
    vault = _vault_entry(identity)
    names = [_full_name(entry, identity.settings, single=len(entries) == 1) for entry in entries]
    if len(set(names)) < len(names):
        raise ConfigError(
            "[identity] chain: names a source twice", Diagnosis(hint="name each once, in the order in which to ask")
        )
    known = {CHAIN} if identity.credential == CHAIN else set()
    known |= _settings_of(names) | {_KIND_SETTINGS[entry] for entry in entries if entry in _KIND_SETTINGS}
    if vault:
        known |= _settings_of([vault]) | _VAULT_SETTINGS
    if unknown := identity.settings.keys() - known:
        raise ConfigError(
            f"[identity] the credential {_shown(identity, names)!r} knows no setting {', '.join(sorted(unknown))}",
            Diagnosis(hint="remove it from [identity], or choose the credential that it belongs to"),
        )
    planned = tuple(_planned(name, identity) for name in names)
    if vault:
        vault_plan(identity)
    return planned


def vault_plan(identity: IdentitySettings) -> Planned:
    """The source that proves the job to Key Vault, for `keyvault:` references.

    Raises:
        ConfigError: There is none, or it needs Key Vault itself.
    """
    name = _vault_entry(identity)
    client = identity.settings.get("keyvault_client", identity.client)
    planned = _planned(name, dataclasses.replace(identity, client=client))
    if any(value.startswith(VAULT_SCHEME) for value in planned.identity.settings.values()):
        raise ConfigError(
            f"[identity] keyvault_credential: {name!r} needs Key Vault itself",
            Diagnosis(hint='choose one without a secret there, such as keyvault_credential = "managed_identity"'),
        )
    return planned


def _entries(identity: IdentitySettings) -> list[str]:
    if identity.credential != CHAIN:
        return [identity.credential]
    entries = [entry.strip() for entry in identity.settings.get(CHAIN, "").split(",")]
    if len(entries) < 2 or CHAIN in entries or not all(entries):
        raise ConfigError(
            "[identity] chain: is no list of sources",
            Diagnosis(hint='name two or more in order: chain = "federated:gcp, federated:github, developer"'),
        )
    return entries


def _full_name(name: str, settings: Mapping[str, str], *, single: bool = False) -> str:
    """The name in the registry that an entry means.

    Raises:
        ConfigError: There is no such source.
    """
    setting = _KIND_SETTINGS.get(name)
    full = f"{name}:{settings[setting]}" if setting and setting in settings else name
    if full in _REGISTRY:
        return full
    kinds = sorted(known.partition(":")[2] for known in _REGISTRY if known.startswith(f"{name.partition(':')[0]}:"))
    if setting and setting not in settings:
        raise ConfigError(
            f"[identity] the credential {name!r} needs {setting}",
            Diagnosis(hint=f"add it to [identity] in the access manifest; one of {', '.join(kinds)}"),
        )
    if kinds:
        kind = full.partition(":")[2]
        raise ConfigError(
            f"[identity] {setting or 'chain'}: the credential {name.partition(':')[0]!r} knows no kind {kind!r}",
            Diagnosis(hint=f"use one of {', '.join(kinds)}"),
        )
    raise ConfigError(
        f"[identity] {'credential' if single else 'chain'}: there is no credential source {name!r}",
        Diagnosis(hint="use one of " + ", ".join(credential_names())),
    )


def _settings_of(names: list[str]) -> set[str]:
    return {setting for name in names for setting in _REGISTRY[name].required | _REGISTRY[name].optional}


def _shown(identity: IdentitySettings, names: list[str]) -> str:
    return names[0] if identity.credential != CHAIN else CHAIN


def _planned(name: str, identity: IdentitySettings) -> Planned:
    found = _REGISTRY[name]
    if missing := found.required - identity.settings.keys():
        raise ConfigError(
            f"[identity] the credential {name!r} needs {', '.join(sorted(missing))}",
            Diagnosis(hint="add it to [identity] in the access manifest"),
        )
    own = {key: value for key, value in identity.settings.items() if key in found.required | found.optional}
    planned = dataclasses.replace(identity, credential=name.partition(":")[0], settings=own)
    for setting in found.references:
        if setting in own:
            check_reference(own[setting], setting=setting, vault_host=identity.settings.get("keyvault_host", ""))
    found.check(planned)
    return Planned(name=name, identity=planned, build=found.build, fix=found.fix)


def _vault_entry(identity: IdentitySettings) -> str:
    """The full name of `keyvault_credential`; empty when nothing refers to Key Vault."""
    if not any(value.startswith(VAULT_SCHEME) for value in identity.settings.values()):
        return ""
    entry = identity.settings.get("keyvault_credential", "")
    if not entry or entry == CHAIN:
        raise ConfigError(
            "[identity] a keyvault: reference needs keyvault_credential: as whom to ask the vault",
            Diagnosis(hint='name a source without a secret: keyvault_credential = "managed_identity"'),
        )
    return _full_name(entry, identity.settings)


def seconds_of(identity: IdentitySettings, setting: str, default_s: float) -> float:
    """A setting such as `20s` in seconds.

    Raises:
        ConfigError: It is none, or out of range.
    """
    text = identity.settings.get(setting, f"{default_s:g}s")
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in {"s", "m"}:
        raise ConfigError(
            f"[identity] {setting}: is not a duration", Diagnosis(hint='write a number and a unit: "20s" or "2m"')
        )
    life = timedelta(**{{"s": "seconds", "m": "minutes"}[unit]: int(number[:6])})
    if not timedelta(seconds=1) <= life <= timedelta(minutes=5):
        raise ConfigError(f"[identity] {setting}: is out of range", Diagnosis(hint="choose 1s to 5m"))
    return life.total_seconds()
