"""The access manifest: who a job is, what it may read and write, how long it lives, where its audit goes.

Rules beyond the shape of each key, cited by number in the code:

 1. Nothing is granted that is not written down: a manifest without any grant is an error, and so is an unknown key.
 2. A grant is literal: no globs; a path that ends in "/" is a prefix, any other is exactly one blob.
 3. No grant touches the audit path, from above or below: a job cannot write, or read back, its own record.
 4. No grant is said twice, and none lies within another of its kind: what is reviewed is what holds.
 5. No audience is Storage's: a token for it would reach past every grant on a path.
 6. No secret is held, only references to one; the value of a key that is named like a secret's is never repeated.
 7. Everything goes over https, and an endpoint at Storage is that of the account it stands for.
 8. What is wider than a SAS is asked for by name, `scoping = "bearer"`, and with no setting that only a SAS can keep.

What travels, in a pickle or as JSON, is the document itself, and it comes back in through the same checks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from beam_entra.access._schema import AccountTable, ManifestFile, manifest_rules
from beam_entra.access._toml import check, parse_toml, read, table
from beam_entra.access.endpoints import Endpoints
from beam_entra.errors import ConfigError
from beam_entra.paths import BlobPath

__all__ = [
    "AccessManifest",
    "AccountSettings",
    "Grant",
    "IdentitySettings",
    "Lifetime",
    "Permission",
    "Scoping",
    "Trail",
]

_AS_DATA = "access manifest as data"
_DEFAULT_ROTATION = timedelta(days=90)
_DEFAULT_TOKEN_LIFE = timedelta(minutes=15)


class Permission(StrEnum):
    """What can be asked for. LIST follows from a read grant; APPEND is never granted, the audit path alone has it."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"
    APPEND = "append"


class Scoping(StrEnum):
    """What opens a blob: a SAS for it alone, or the job's own access token, which reaches as far as the identity."""

    SAS = "sas"
    BEARER = "bearer"


_GRANTABLE = (Permission.READ, Permission.WRITE, Permission.DELETE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One line of `[grants]`.

    Attributes:
        permission: READ, WRITE or DELETE.
        path: A prefix, or exactly one blob.
    """

    permission: Permission
    path: BlobPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """How long things live.

    Attributes:
        job: From launch to the deadline; 1 minute to 7 days. Of a rolling life, from a fresh token to the deadline.
        token: Life of a SAS; 5 seconds to 1 hour, and no longer than `job`.
        rolling: Each fresh token moves the deadline on.
    """

    job: timedelta
    token: timedelta
    rolling: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trail:
    """When the segments of the trail are continued in another, and how often it is sealed while the job runs.

    Attributes:
        segment_bytes: Length from which a segment is continued; 64 KiB to 1 GiB.
        segment_records: Records from which it is; 100 to 10 million.
        segment_age: Time after its first record from which it is, with the next record; 1 minute to 7 days.
        seal_every: Time from one interim seal to the next; 1 second to 7 days.
    """

    segment_bytes: int = 64 << 20
    segment_records: int = 1_000_000
    segment_age: timedelta = timedelta(days=1)
    seal_every: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSettings:
    """How to talk to one storage account.

    Attributes:
        endpoint: URL of its Blob service, without a "/" at the end.
        hierarchical: It has a hierarchical namespace: a listing gets a SAS for one directory, not for the container.
        emulator: It is Azurite, which knows neither directory SAS nor signed correlation ids.
        create_only: A writer's SAS may create, not overwrite; needs a service of version 2026-04-06 or later.
        ca_file: PEM file of the authorities to trust instead of the system's; "" for none.
    """

    endpoint: str
    hierarchical: bool = False
    emulator: bool = False
    create_only: bool = False
    ca_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings:
    """Who the job is. Holds no secret, only references.

    Attributes:
        tenant: GUID or domain of the directory.
        client: GUID of the application.
        credential: Name of the credential source; `identity/` knows which exist.
        settings: The source's own keys, read-only.
        authority: https URL of the token endpoint's host, without a "/" at the end.
        ca_file: PEM file of the authorities to trust instead of the system's; "" for none.
        rotate_after: The age from which a secret should have been replaced.
        strict: Refuse an older one, and a certificate near its end, instead of warning.
    """

    tenant: str
    client: str
    credential: str
    settings: Mapping[str, str]
    authority: str = "https://login.microsoftonline.com"
    ca_file: str = ""
    rotate_after: timedelta = _DEFAULT_ROTATION
    strict: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __reduce__(self) -> tuple[Any, ...]:
        facts = {fact.name: getattr(self, fact.name) for fact in fields(self)}
        return _remade_identity, (facts | {"settings": dict(self.settings)},)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessManifest:
    """A manifest; it holds every rule of this module however it was made.

    Attributes:
        pipeline: Name of the pipeline.
        environment: Name of the environment: `prod`, `test`, ...
        identity: Who the job is.
        lifetime: How long it and its tokens live.
        grants: What it may read, write and delete; in this order, then in the file's.
        audiences: For which other resources its connectors may ask tokens.
        audit: The prefix below which its trail is written.
        accounts: Settings of every account that a path names; read-only.
        digest: SHA-256 of the file's bytes, in hex.
        scoping: What opens the blobs that it may touch.
        trail: How its trail is divided, and how often sealed.
    """

    pipeline: str
    environment: str
    identity: IdentitySettings
    lifetime: Lifetime
    grants: tuple[Grant, ...]
    audiences: tuple[str, ...]
    audit: BlobPath
    accounts: Mapping[str, AccountSettings]
    digest: str
    scoping: Scoping = Scoping.SAS
    trail: Trail = Trail()

    def __post_init__(self) -> None:
        object.__setattr__(self, "accounts", MappingProxyType(dict(self.accounts)))
        document = self.to_dict()
        del document["digest"]
        check(ManifestFile, document, _AS_DATA, [manifest_rules])
        if missing := {path.account for path in self._paths()} - self.accounts.keys():
            raise ConfigError(f"{_AS_DATA}: [accounts]: no settings for {', '.join(sorted(missing))}. Add them")

    def _paths(self) -> tuple[BlobPath, ...]:
        return self.audit, *(grant.path for grant in self.grants)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> AccessManifest:
        """Read a manifest from a file; a relative `ca_file` in it gets its folder.

        Raises:
            ConfigError: One line for each problem: `file: [table] key: cause. next step`.
        """
        data = read(path, "access manifest")
        document = _anchored(parse_toml(data, str(path)), Path(path).absolute().parent)
        return cls._checked(document, file=str(path), digest=hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str, *, file: str) -> AccessManifest:
        """Read a manifest from text; `file` is its name in errors.

        Raises:
            ConfigError: As `load`.
        """
        data = text.encode(errors="surrogatepass")
        return cls._checked(parse_toml(data, file), file=file, digest=hashlib.sha256(data).hexdigest())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> AccessManifest:
        """What `to_dict` gave, checked as strictly as a file.

        Raises:
            ConfigError: As `load`.
        """
        tables = dict(document)
        digest = tables.pop("digest", None)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(f"{_AS_DATA}: digest: is no SHA-256 in hex. Use what to_dict() gave, unchanged")
        return cls._checked(tables, file=_AS_DATA, digest=digest)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain data that JSON can hold: its tables with every default filled in, and its digest."""
        identity = self.identity
        return {
            "pipeline": self.pipeline,
            "environment": self.environment,
            "scoping": self.scoping.value,
            "identity": {
                **identity.settings,
                "tenant": identity.tenant,
                "client": identity.client,
                "credential": identity.credential,
                "authority": identity.authority,
                **({"ca_file": identity.ca_file} if identity.ca_file else {}),
                "rotate_after": _seconds(identity.rotate_after),
                "strict": identity.strict,
            },
            "lifetime": {
                "job": _seconds(self.lifetime.job),
                "token": _seconds(self.lifetime.token),
                "rolling": self.lifetime.rolling,
            },
            "grants": {
                **{
                    kind.value: [str(grant.path) for grant in self.grants if grant.permission is kind]
                    for kind in _GRANTABLE
                },
                "token": list(self.audiences),
            },
            "audit": {
                "path": str(self.audit),
                "segment_bytes": self.trail.segment_bytes,
                "segment_records": self.trail.segment_records,
                "segment_age": _seconds(self.trail.segment_age),
                "seal_every": _seconds(self.trail.seal_every),
            },
            "accounts": {name: _account_table(settings) for name, settings in self.accounts.items()},
            "digest": self.digest,
        }

    def at(self, endpoints: Endpoints) -> AccessManifest:
        """The same manifest with its services where `endpoints` says; grants and digest stay.

        Raises:
            ConfigError: The two together break a rule.
        """
        return self.from_dict(endpoints.applied_to(self.to_dict()))

    @classmethod
    def _checked(cls, document: Mapping[str, Any], *, file: str, digest: str) -> AccessManifest:
        checked = check(ManifestFile, document, file, [manifest_rules])
        grants = [
            Grant(permission=kind, path=BlobPath.parse(text))
            for kind in _GRANTABLE
            for text in getattr(checked.grants, kind.value)
        ]
        audit = BlobPath.parse(checked.audit.path)
        used = sorted({audit.account, *(grant.path.account for grant in grants)})
        identity, life = checked.identity, checked.lifetime
        return cls(
            pipeline=checked.pipeline,
            environment=checked.environment,
            identity=IdentitySettings(
                tenant=identity.tenant,
                client=identity.client,
                credential=identity.credential,
                settings=identity.model_extra or {},
                authority=identity.authority,
                ca_file=identity.ca_file or "",
                rotate_after=identity.rotate_after or _DEFAULT_ROTATION,
                strict=identity.strict,
            ),
            lifetime=Lifetime(
                job=life.job, token=life.token or min(_DEFAULT_TOKEN_LIFE, life.job), rolling=life.rolling
            ),
            grants=tuple(grants),
            audiences=tuple(checked.grants.token),
            audit=audit,
            accounts={name: _account(name, checked.accounts.get(name)) for name in used},
            digest=digest,
            scoping=Scoping(checked.scoping),
            trail=Trail(**checked.audit.model_dump(exclude={"path"})),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (json.dumps(self.to_dict()),)


@lru_cache(maxsize=64)
def _remade(document: str) -> AccessManifest:
    """The manifest of a pickle. Beam unpickles it for every step of every stage; the same text is checked once."""
    return AccessManifest.from_dict(json.loads(document))


def _anchored(document: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The document, not checked yet, with every `ca_file` in it absolute: workers run in other folders."""
    accounts = table(document, "accounts")
    for each in (table(document, "identity"), *(table(accounts, name) for name in accounts)):
        if isinstance(each, dict) and isinstance(each.get("ca_file"), str) and each["ca_file"]:
            each["ca_file"] = str(folder / each["ca_file"])
    return document


def _remade_identity(facts: dict[str, Any]) -> IdentitySettings:
    return IdentitySettings(**facts)


def _account(name: str, written: AccountTable | None) -> AccountSettings:
    facts = (written or AccountTable()).model_dump(exclude_none=True)
    return AccountSettings(**{"endpoint": f"https://{name}.blob.core.windows.net"} | facts)


def _account_table(settings: AccountSettings) -> dict[str, Any]:
    table: dict[str, Any] = {
        "endpoint": settings.endpoint,
        "hierarchical": settings.hierarchical,
        "emulator": settings.emulator,
        "create_only": settings.create_only,
    }
    return table | ({"ca_file": settings.ca_file} if settings.ca_file else {})


def _seconds(life: timedelta) -> str:
    return f"{life // timedelta(seconds=1)}s"
