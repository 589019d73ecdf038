"""What the tables of an access manifest, and of an endpoints file, may hold; the rules have their numbers there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from beam_entra.access._toml import Document, Problem, Table, table
from beam_entra.errors import ConfigError
from beam_entra.paths import BlobPath

__all__ = ["AccountTable", "EndpointsFile", "ManifestFile", "endpoints_rules", "manifest_rules"]

_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOMAIN = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}")
_HTTPS_URL = re.compile(
    r"https://(?P<host>[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*|\[[0-9a-f:]{2,39}\])(?::[1-9][0-9]{0,4})?"
    r"(?P<path>(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)/?"
)
_AUDIENCE = re.compile(r"https://[a-z0-9-]+(?:\.[a-z0-9-]+)+(?:/[A-Za-z0-9_~-]+)*|api://[A-Za-z0-9._~/-]+")
_STORAGE_AUDIENCE = re.compile(r"https://(?:storage\.azure\.com|.*\.(?:blob|dfs|file|queue|table)\.core\.).*")
_STORAGE_HOST = re.compile(r".*\.(?:core\.windows\.net|storage\.azure\.net)")
_SECRET_KEY = re.compile(r"(?:secret|password|passphrase|pwd|assertion|token|key|sas|connection_?string)s?$")
_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]{0,127}|file:[^\s\x00]+|keyvault:https://[^\s?#@]+")
_SECRET_TEXT = re.compile(r"eyJ[\w-]{8,}\.|-----BEGIN|(?:AccountKey|SharedAccessSignature|[?&]sig)=", re.IGNORECASE)
# Settings of credential sources that an overlay must not replace: they choose the source, the principal, the command.
_WHO = frozenset(
    {
        "assertion_command",
        "assertion_from",
        "assigned",
        "chain",
        "developer_cli",
        "keyvault_client",
        "keyvault_credential",
        "keyvault_host",
        "object_id",
        "oidc_client",
        "resource_id",
    }
)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_REFER = "Refer to it: env:NAME, file:PATH or keyvault:https://..."


def _matching(rule: str, text: str, cause: str) -> str:
    if not re.fullmatch(rule, text):
        raise ValueError(cause)
    return text


def _tenant(text: str) -> str:
    if not (_GUID.fullmatch(text.lower()) or _DOMAIN.fullmatch(text.lower())):
        raise ValueError("is neither a GUID nor a domain. Copy the tenant ID of the directory; no alias such as common")
    return text.lower()


def _client(text: str) -> str:
    cause = "is not a GUID. Copy the application (client) ID, not a name or a secret"
    return _matching(_GUID.pattern, text.lower(), cause)


def _slug(text: str) -> str:
    cause = "is not a short name. Use at most 63 lower-case letters, digits and hyphens, a hyphen not first"
    return _matching("[a-z0-9][a-z0-9-]{0,62}", text, cause)


def _scoping(text: str) -> str:
    cause = 'is not known. Write "sas", or "bearer" for an identity that may not get a user delegation key'
    return _matching("sas|bearer", text, cause)


def _source(text: str) -> str:
    cause = 'names no credential source. Write it as "federated_file" is written'
    return _matching("[a-z][a-z0-9_]{0,62}", text, cause)


def _file(text: str) -> str:
    return _matching(r"[^\x00-\x1f]+", text, "is not a path. Name a PEM file, or leave the key out")


def _https_url(text: str) -> str:  # rule 7
    cause = "is not an https URL of host, port and path. Write it in lower case as https://host[:port][/path]"
    return _matching(_HTTPS_URL.pattern, text, cause).removesuffix("/")


def _authority(text: str) -> str:
    return _matching(r"https://[^/]+", _https_url(text), "has a path. Leave it out; the tenant is a key of its own")


def _audience(text: str) -> str:
    cause = 'is not the URI of a resource. Write it as "https://graph.microsoft.com", without /.default'
    _matching(_AUDIENCE.pattern, text, cause)
    if _STORAGE_AUDIENCE.fullmatch(text):  # rule 5
        raise ValueError("is Storage itself, and would reach past every grant on a path. Grant paths in read and write")
    return text


def _literal(text: str) -> str:
    path = BlobPath.parse(text)
    if re.search(r"[*?[]", path.name):  # rule 2
        raise ValueError(f'{path} holds a glob, but grants are literal. Cut it at the last "/" to grant all below that')
    return str(path)


def _prefix(text: str) -> str:
    if not BlobPath.parse(_literal(text)).is_prefix:
        raise ValueError('is one blob, not a prefix. End it in "/"')
    return _literal(text)


def _duration(text: object) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text) if isinstance(text, str) else None
    if not found:
        raise ValueError('is not a duration. Write a number and a unit in quotes: "90s", "15m", "2h" or "7d"')
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


Duration = Annotated[timedelta, BeforeValidator(_duration)]
GrantPath = Annotated[str, AfterValidator(_literal)]


class IdentityTable(Table):
    """`[identity]`; keys that are not known here are the settings of the credential's source."""

    model_config = ConfigDict(extra="allow")

    tenant: Annotated[str, AfterValidator(_tenant)] = Field(examples=['tenant = "contoso.onmicrosoft.com"'])
    client: Annotated[str, AfterValidator(_client)] = Field(examples=['client = "<application (client) ID>"'])
    credential: Annotated[str, AfterValidator(_source)] = Field(examples=['credential = "federated_file"'])
    authority: Annotated[str, AfterValidator(_authority)] = "https://login.microsoftonline.com"
    ca_file: Annotated[str, AfterValidator(_file)] | None = None
    rotate_after: Duration | None = None
    strict: bool = False


class LifetimeTable(Table):
    """`[lifetime]`."""

    job: Duration = Field(examples=['job = "2h"'])
    token: Duration | None = None
    rolling: bool = False

    @field_validator("job")
    @classmethod
    def _job_in_range(cls, job: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= job <= timedelta(days=7):
            raise ValueError("is out of range. Choose 1m to 7d, the most for which Storage gives a delegation key")
        return job

    @field_validator("token")
    @classmethod
    def _token_in_range(cls, token: timedelta, info: ValidationInfo) -> timedelta:
        if not timedelta(seconds=5) <= token <= timedelta(hours=1):
            raise ValueError("is out of range. Choose 5s to 1h")
        if token > info.data.get("job", token):
            raise ValueError("is longer than the job's life. Make it at most as long as job")
        return token


class GrantsTable(Table):
    """`[grants]`."""

    read: list[GrantPath] = Field(default_factory=list)
    write: list[GrantPath] = Field(default_factory=list)
    delete: list[GrantPath] = Field(default_factory=list)
    token: list[Annotated[str, AfterValidator(_audience)]] = Field(default_factory=list)


class AuditTable(Table):
    """`[audit]`."""

    path: Annotated[str, AfterValidator(_prefix)] = Field(
        examples=['path = "abfss://<container>@<account>.dfs.core.windows.net/<pipeline>/"']
    )
    segment_bytes: int = 64 << 20
    segment_records: int = 1_000_000
    segment_age: Duration = timedelta(days=1)
    seal_every: Duration = timedelta(minutes=15)

    @field_validator("segment_bytes")
    @classmethod
    def _bytes_in_range(cls, size: int) -> int:
        if not 64 << 10 <= size <= 1 << 30:
            raise ValueError("is out of range. Choose 65536 (64 KiB) to 1073741824 (1 GiB)")
        return size

    @field_validator("segment_records")
    @classmethod
    def _records_in_range(cls, records: int) -> int:
        if not 100 <= records <= 10_000_000:
            raise ValueError("is out of range. Choose 100 to 10000000")
        return records

    @field_validator("segment_age")
    @classmethod
    def _age_in_range(cls, age: timedelta) -> timedelta:
        if not timedelta(minutes=1) <= age <= timedelta(days=7):
            raise ValueError("is out of range. Choose 1m to 7d")
        return age

    @field_validator("seal_every")
    @classmethod
    def _interval_in_range(cls, interval: timedelta) -> timedelta:
        if interval > timedelta(days=7):
            raise ValueError("is out of range. Choose 1s to 7d")
        return interval


class AccountTable(Table):
    """`[accounts.<name>]` of a manifest."""

    endpoint: Annotated[str, AfterValidator(_https_url)] | None = None
    hierarchical: bool = False
    emulator: bool = False
    create_only: bool = False
    ca_file: Annotated[str, AfterValidator(_file)] | None = None


class ManifestFile(Table):
    """A whole access manifest."""

    pipeline: Annotated[str, AfterValidator(_slug)] = Field(examples=['pipeline = "orders"'])
    environment: Annotated[str, AfterValidator(_slug)] = Field(examples=['environment = "prod"'])
    scoping: Annotated[str, AfterValidator(_scoping)] = "sas"
    identity: IdentityTable = Field(examples=["the table, with tenant, client and credential"])
    lifetime: LifetimeTable = Field(examples=['the table, with job = "2h"'])
    grants: GrantsTable = Field(examples=["the table, with paths in read and write"])
    audit: AuditTable = Field(examples=["the table, with path"])
    accounts: dict[str, AccountTable] = Field(default_factory=dict)


class EntraOverlay(Table):
    """`[entra]` of an endpoints file."""

    authority: Annotated[str, AfterValidator(_authority)] | None = None
    ca_file: Annotated[str, AfterValidator(_file)] | None = None


class AccountOverlay(Table):
    """`[accounts.<name>]` of an endpoints file."""

    endpoint: Annotated[str, AfterValidator(_https_url)] | None = None
    emulator: bool | None = None
    ca_file: Annotated[str, AfterValidator(_file)] | None = None


class EndpointsFile(Table):
    """A whole endpoints file."""

    entra: EntraOverlay = EntraOverlay()
    accounts: dict[str, AccountOverlay] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)


def _settings(name: str, document: Document, known: Iterable[str] = ()) -> Iterator[Problem]:  # rule 6
    for key, value in table(document, name).items():
        if key in known:
            continue
        if key == "scoping":
            yield (name, key), "stands at the top of the manifest, before the first table. Move it there"
        elif not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", key):
            yield (name, key), "is no name for a setting. Use lower-case letters, digits and underscores"
        if not isinstance(value, str):
            yield (name, key), 'must be text. Put it in quotes: "..."'
        elif _SECRET_KEY.search(key.lower()) and not _REFERENCE.fullmatch(value):
            yield (name, key), f"must not hold the secret itself. {_REFER}"
        elif _SECRET_TEXT.search(value):
            yield (name, key), f"holds what looks like a secret. {_REFER}"


def _accounts(document: Document) -> Iterator[Problem]:
    for name, settings in table(document, "accounts").items():
        if not re.fullmatch(r"[a-z0-9]{3,24}", name):
            yield ("accounts", name, "[key]"), "is no account. Name it by 3 to 24 lower-case letters and digits"
        endpoint = settings.get("endpoint", "") if isinstance(settings, Mapping) else ""
        found = _HTTPS_URL.fullmatch(endpoint) if isinstance(endpoint, str) else None
        at_storage = bool(found and _STORAGE_HOST.fullmatch(found["host"]))
        if found and at_storage and not re.match(rf"{re.escape(name)}\.(?:.+\.)?blob\.", found["host"]):  # rule 7
            yield ("accounts", name, "endpoint"), f"is not the Blob endpoint of {name}. Correct it or leave the key out"
        if isinstance(settings, Mapping) and settings.get("emulator") is True and (not endpoint or at_storage):
            yield ("accounts", name, "emulator"), "needs an endpoint that is not Storage's. Say where Azurite listens"


def _list(document: Document, kind: str) -> list[Any]:
    found = table(document, "grants").get(kind)
    return found if isinstance(found, list) else []


def _paths(document: Document) -> tuple[dict[tuple[str | int, ...], BlobPath], bool]:
    """The paths that can be read, by where they are, and whether all can."""
    found: dict[tuple[str | int, ...], BlobPath] = {}
    texts: dict[tuple[str | int, ...], Any] = {("audit", "path"): table(document, "audit").get("path")}
    for kind in ("read", "write", "delete"):
        texts |= {("grants", kind, entry): text for entry, text in enumerate(_list(document, kind))}
    for where, text in texts.items():
        try:
            found[where] = BlobPath.parse(text)
        except (ConfigError, AttributeError):
            continue
    return found, len(found) == len(texts)


def _overlaps(document: Document) -> Iterator[Problem]:
    paths, _ = _paths(document)
    audit = paths.pop(("audit", "path"), None)
    for where, path in paths.items():
        for other_where, other in paths.items():  # rule 4
            told_once = path != other or other_where < where
            if where[1] == other_where[1] and where != other_where and other.covers(path) and told_once:
                yield where, f"{path} is already granted by {other}. Remove one of the two"
        if audit and (audit.covers(path) or path.covers(audit)):  # rule 3
            yield where, f"{path} overlaps the audit path {audit}. Move the audit to where the job is granted nothing"


def _nothing_granted(document: Document) -> Iterator[Problem]:  # rule 1
    grants = document.get("grants")
    if isinstance(grants, Mapping) and not any(grants.values()):
        yield ("grants",), "grants nothing. Name what the job reads in read, what it writes in write"
    audiences = _list(document, "token")
    for entry, audience in enumerate(audiences):
        if audience in audiences[:entry]:  # rule 4
            yield ("grants", "token", entry), "is said twice. Remove one of the two"


def _scoped_by_sas_alone(document: Document) -> Iterator[Problem]:  # rule 8
    if document.get("scoping") == "bearer":
        for name, settings in table(document, "accounts").items():
            if isinstance(settings, Mapping) and settings.get("create_only") is True:
                cause = 'is a promise that only a SAS can keep. With scoping = "bearer" leave it out'
                yield ("accounts", name, "create_only"), cause


def _unused_accounts(document: Document) -> Iterator[Problem]:
    paths, all_read = _paths(document)
    used = {path.account for path in paths.values()}
    for name in table(document, "accounts"):
        if all_read and name not in used:
            yield ("accounts", name, "[key]"), f"no path uses this account. Remove it; used: {', '.join(sorted(used))}"


def manifest_rules(document: Document) -> Iterator[Problem]:
    """All that no single key of a manifest can show."""
    yield from _settings("identity", document, IdentityTable.model_fields)
    yield from _nothing_granted(document)
    yield from _overlaps(document)
    yield from _accounts(document)
    yield from _unused_accounts(document)
    yield from _scoped_by_sas_alone(document)


def endpoints_rules(document: Document) -> Iterator[Problem]:
    """All that no single key of an endpoints file can show."""
    yield from _settings("settings", document)
    yield from _accounts(document)
    for key in table(document, "settings").keys() & IdentityTable.model_fields.keys():
        yield ("settings", key), "is no setting of a credential's source. Who the job is stands in the manifest alone"
    for key in table(document, "settings").keys() & _WHO:
        yield ("settings", key), "says who the job is, or what it runs to prove that. That stands in the manifest alone"
