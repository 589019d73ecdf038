"""The manifest: what it says, what it refuses, and that it never repeats a secret."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from dataclasses import FrozenInstanceError, dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.access import (
    AccessManifest,
    AccountSettings,
    Endpoints,
    Grant,
    IdentitySettings,
    Lifetime,
    Permission,
    Scoping,
    Trail,
)
from beam_entra.errors import ConfigError
from beam_entra.paths import BlobPath

FILE = "orders.access.toml"
HIDDEN = "hunter2-do-not-show"
LAKE = "contosolake.dfs.core.windows.net"
MANIFEST = f"""\
pipeline    = "orders"
environment = "prod"

[identity]
tenant     = "contoso.onmicrosoft.com"
client     = "0B8E22F4-8F2D-4C1A-9B54-6B1C0D3E5A77"
credential = "federated_file"
assertion_file = "env:AZURE_FEDERATED_TOKEN_FILE"

[lifetime]
job = "2h"

[grants]
read  = ["abfss://raw@{LAKE}/orders/", "https://contosolake.blob.core.windows.net/raw/products.csv"]
write = ["azfs://contosolake/curated/orders/"]
token = ["https://graph.microsoft.com"]

[audit]
path = "abfss://audit@{LAKE}/orders/"
"""


def manifest(*changes: tuple[str, str]) -> AccessManifest:
    """The manifest with some of its text replaced; each change must hit."""
    text = MANIFEST
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return AccessManifest.parse(text, file=FILE)


def refused(*changes: tuple[str, str]) -> list[str]:
    """The lines of the refusal of a changed manifest."""
    with pytest.raises(ConfigError) as refusal:
        manifest(*changes)
    return refusal.value.message.split("\n")


def path(text: str) -> BlobPath:
    """A path, for short."""
    return BlobPath.parse(text)


def test_a_manifest_says_who_what_how_long_and_where() -> None:
    """Each table is read, and every default is filled in."""
    made = manifest()
    assert (made.pipeline, made.environment) == ("orders", "prod")
    assert made.identity == IdentitySettings(
        tenant="contoso.onmicrosoft.com",
        client="0b8e22f4-8f2d-4c1a-9b54-6b1c0d3e5a77",
        credential="federated_file",
        settings={"assertion_file": "env:AZURE_FEDERATED_TOKEN_FILE"},
        authority="https://login.microsoftonline.com",
    )
    assert made.lifetime == Lifetime(job=timedelta(hours=2), token=timedelta(minutes=15))
    assert made.grants == (
        Grant(permission=Permission.READ, path=path(f"abfss://raw@{LAKE}/orders/")),
        Grant(permission=Permission.READ, path=path(f"abfss://raw@{LAKE}/products.csv")),
        Grant(permission=Permission.WRITE, path=path(f"abfss://curated@{LAKE}/orders/")),
    )
    assert made.audiences == ("https://graph.microsoft.com",)
    assert made.audit == path(f"abfss://audit@{LAKE}/orders/")
    assert made.accounts == {"contosolake": AccountSettings(endpoint="https://contosolake.blob.core.windows.net")}


def test_the_digest_is_that_of_the_bytes_of_the_file(tmp_path: Path) -> None:
    """What the audit records can be compared with `sha256sum`, line ends and all."""
    file = tmp_path / FILE
    data = MANIFEST.replace("\n", "\r\n").encode()
    file.write_bytes(data)
    assert AccessManifest.load(file).digest == hashlib.sha256(data).hexdigest()
    assert AccessManifest.load(str(file)) == AccessManifest.load(file)
    assert manifest().digest == hashlib.sha256(MANIFEST.encode()).hexdigest()


def test_account_tables_are_read() -> None:
    """What is said of an account is kept; the rest is the default."""
    table = """
[accounts.contosolake]
endpoint = "https://127.0.0.1:10000/contosolake/"
hierarchical = true
emulator = true
create_only = true
ca_file = "ca.pem"
"""
    assert AccessManifest.parse(MANIFEST + table, file=FILE).accounts["contosolake"] == AccountSettings(
        endpoint="https://127.0.0.1:10000/contosolake",
        hierarchical=True,
        emulator=True,
        create_only=True,
        ca_file="ca.pem",
    )


LIVES = {"1m": 60, "90s": 90, "15m": 900, "2h": 7200, "7d": 604800, "604800s": 604800}


@pytest.mark.parametrize(("text", "seconds"), LIVES.items(), ids=LIVES)
def test_a_lifetime_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    """And a SAS by default lives 15 minutes, but never longer than the job."""
    life = manifest(('job = "2h"', f'job = "{text}"')).lifetime
    assert life == Lifetime(job=timedelta(seconds=seconds), token=timedelta(seconds=min(seconds, 900)))


def test_a_trail_is_divided_and_sealed_as_the_audit_table_says() -> None:
    """What is not said is the default; it travels with the manifest."""
    assert manifest().trail == Trail()
    written = 'segment_bytes = 65536\nsegment_records = 100\nsegment_age = "1m"\nseal_every = "5s"'
    made = manifest((AUDIT, f"{AUDIT}\n{written}"))
    shortest = timedelta(minutes=1), timedelta(seconds=5)
    assert made.trail == Trail(
        segment_bytes=65536, segment_records=100, segment_age=shortest[0], seal_every=shortest[1]
    )
    assert AccessManifest.from_dict(made.to_dict()) == pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - our own


# ---------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Wrong:
    """A change to the manifest, and the start of the line that must be told."""

    old: str
    new: str
    line: str


READS = f'"abfss://raw@{LAKE}/orders/", '
ONLY_READ = '"https://contosolake.blob.core.windows.net/raw/products.csv"'
AUDIT = f'path = "abfss://audit@{LAKE}/orders/"'
ACCOUNT = AUDIT + "\n[accounts.contosolake]\n"
WRONG = {
    "no pipeline": Wrong('pipeline    = "orders"', "", "pipeline: is missing. Add pipeline ="),
    "a pipeline in upper case": Wrong('"orders"', '"Orders"', "pipeline: is not a short name"),
    "a pipeline that is a path": Wrong('"orders"', '"a/../b"', "pipeline: is not a short name"),
    "a pipeline that is too long": Wrong('"orders"', f'"{"a" * 64}"', "pipeline: is not a short name"),
    "a pipeline that ends its line": Wrong('"orders"', '"a\\n"', "pipeline: is not a short name"),
    "a pipeline that is a number": Wrong('"orders"', "7", "pipeline: must be text. Put it in quotes"),
    "a misspelt environment": Wrong(
        "environment =", "enviroment =", "enviroment: is not known. Did you mean environment?"
    ),
    "an unknown key": Wrong("[identity]", "x = 1\n[identity]", "x: is not known"),
    "an unknown table": Wrong("[audit]", "[x]\n[audit]", "[x]: is not known. Known here: accounts, audit"),
    "a table that is a key": Wrong("[identity]", "lifetime = 3\n[identity]", "is not TOML"),
    "no identity": Wrong("[identity]", "[x]", "[identity]: is missing. Add the table"),
    # identity
    "no tenant": Wrong('tenant     = "contoso.onmicrosoft.com"', "", "[identity] tenant: is missing. Add tenant ="),
    "a tenant alias": Wrong("contoso.onmicrosoft.com", "common", "[identity] tenant: is neither a GUID nor a domain"),
    "a tenant that is a URL": Wrong('"contoso.', '"https://contoso.', "[identity] tenant: is neither"),
    "a tenant with a path": Wrong("onmicrosoft.com", "onmicrosoft.com/x", "[identity] tenant: is neither"),
    "a client that is a name": Wrong(
        "0B8E22F4-8F2D-4C1A-9B54-6B1C0D3E5A77", "orders", "[identity] client: is not a GUID"
    ),
    "a client that is a secret": Wrong(
        "0B8E22F4-8F2D-4C1A-9B54-6B1C0D3E5A77", HIDDEN, "[identity] client: is not a GUID"
    ),
    "no credential source": Wrong('"federated_file"', '""', "[identity] credential: names no credential source"),
    "a plain authority": Wrong(
        "assertion_file", 'authority = "http://localhost"\nassertion_file', "[identity] authority: is not an https URL"
    ),
    "an authority with a user": Wrong(
        "assertion_file", f'authority = "https://a:{HIDDEN}@x.com"\nassertion_file', "[identity] authority: is not an"
    ),
    "an authority with a tenant": Wrong(
        "assertion_file", 'authority = "https://x.com/t"\nassertion_file', "[identity] authority: has a path"
    ),
    "a setting that is a number": Wrong(
        "assertion_file", "retries = 3\nassertion_file", "[identity] retries: must be text"
    ),
    "a setting in a table": Wrong("[lifetime]", "[identity.x]\ny = 1\n[lifetime]", "[identity] x: must be text"),
    "a setting with an odd name": Wrong(
        "assertion_file", '"a b" = "c"\nassertion_file', "[identity] 'a b': is no name"
    ),
    # scoping
    "an unknown scoping": Wrong("[identity]", 'scoping = "key"\n[identity]', 'scoping: is not known. Write "sas", or'),
    "a scoping in upper case": Wrong("[identity]", 'scoping = "Bearer"\n[identity]', "scoping: is not known. Write"),
    "a scoping of another type": Wrong("[identity]", "scoping = true\n[identity]", "scoping: must be text"),
    "no scoping": Wrong("[identity]", 'scoping = ""\n[identity]', "scoping: is not known. Write"),
    "a scoping in the identity": Wrong(
        "assertion_file", 'scoping = "bearer"\nassertion_file', "[identity] scoping: stands at the top of the manifest"
    ),
    # lifetimes
    "a rolling life in quotes": Wrong('"2h"', '"2h"\nrolling = "true"', "[lifetime] rolling: must be true or false"),
    "no lifetime of the job": Wrong('job = "2h"', "", '[lifetime] job: is missing. Add job = "2h"'),
    "a job that is too short": Wrong('"2h"', '"59s"', "[lifetime] job: is out of range. Choose 1m to 7d"),
    "a job that is too long": Wrong('"2h"', '"8d"', "[lifetime] job: is out of range"),
    "a job without a unit": Wrong('"2h"', "7200", "[lifetime] job: is not a duration"),
    "a job of other digits": Wrong('"2h"', '"\u0662h"', "[lifetime] job: is not a duration"),
    "a job of no time": Wrong('"2h"', '"0h"', "[lifetime] job: is not a duration"),
    "a job of huge time": Wrong('"2h"', '"9999999d"', "[lifetime] job: is out of range"),
    "a token that is too short": Wrong(
        '"2h"', '"2h"\ntoken = "4s"', "[lifetime] token: is out of range. Choose 5s to 1h"
    ),
    "a token that is too long": Wrong('"2h"', '"2h"\ntoken = "61m"', "[lifetime] token: is out of range"),
    "a token that outlives the job": Wrong(
        '"2h"', '"5m"\ntoken = "6m"', "[lifetime] token: is longer than the job's life"
    ),
    # grants
    "a glob": Wrong('orders/", ', 'orders/*.jsonl", ', "[grants] read: entry 1: abfss://raw@"),
    "a class": Wrong("products.csv", "[p]roducts.csv", "[grants] read: entry 2: abfss://raw@"),
    "a step up": Wrong('orders/", ', 'orders/../", ', "[grants] read: entry 1: the name 'orders/../'"),
    "a SAS": Wrong(
        "products.csv", f"products.csv?sv=1&sig={HIDDEN}", "[grants] read: entry 2: the https path has a query"
    ),
    "a path that is a number": Wrong(ONLY_READ, "3", "[grants] read: entry 2: must be text"),
    "a path that is no list": Wrong("write = [", 'write = "x" #', "[grants] write: must be a list"),
    "a misspelt permission": Wrong("write = ", "writes = ", "[grants] writes: is not known. Did you mean write?"),
    "a permission that does not exist": Wrong(
        "write = ", "own = ", "[grants] own: is not known. Known here: delete, read"
    ),
    "a grant said twice": Wrong(
        ONLY_READ, READS, f"[grants] read: entry 2: abfss://raw@{LAKE}/orders/ is already granted"
    ),
    "a grant within another": Wrong(
        "products.csv", "orders/a", f"[grants] read: entry 2: abfss://raw@{LAKE}/orders/a is already granted by"
    ),
    "a grant that holds another": Wrong(
        "products.csv", "", f"[grants] read: entry 1: abfss://raw@{LAKE}/orders/ is already granted by abfss://raw@"
    ),
    # audiences
    "the audience of Storage": Wrong(
        "graph.microsoft.com", "storage.azure.com", "[grants] token: entry 1: is Storage itself"
    ),
    "the audience of Storage, with a path": Wrong(
        "graph.microsoft.com", "storage.azure.com/x", "[grants] token: entry 1: is Storage itself"
    ),
    "the audience of one account": Wrong(
        "graph.microsoft.com", "contosolake.blob.core.windows.net", "[grants] token: entry 1: is Storage itself"
    ),
    "the audience of Storage in upper case": Wrong(
        "graph.microsoft.com", "STORAGE.azure.com", "[grants] token: entry 1: is not the URI of a resource"
    ),
    "the audience of Storage with a port": Wrong(
        "graph.microsoft.com", "storage.azure.com:443", "[grants] token: entry 1: is not the URI"
    ),
    "the audience of Storage with a dot": Wrong(
        "graph.microsoft.com", "storage.azure.com.", "[grants] token: entry 1: is not the URI"
    ),
    "the audience of Storage by its GUID": Wrong(
        "https://graph.microsoft.com", "e406a681-f3d4-42a8-90b6-c2b029497af1", "[grants] token: entry 1: is not the URI"
    ),
    "a scope": Wrong("graph.microsoft.com", "graph.microsoft.com/.default", "[grants] token: entry 1: is not the URI"),
    "an audience said twice": Wrong(
        "token = [", 'token = ["https://graph.microsoft.com", ', "[grants] token: entry 2: is said twice"
    ),
    # audit
    "no audit": Wrong(AUDIT, "", '[audit] path: is missing. Add path = "abfss://'),
    "an audit that is a blob": Wrong(
        AUDIT, AUDIT.replace('/"', '"'), '[audit] path: is one blob, not a prefix. End it in "/"'
    ),
    "an audit that is a pattern": Wrong(AUDIT, AUDIT.replace('/"', '*/"'), "[audit] path: abfss://audit@"),
    "an audit below a write grant": Wrong(
        AUDIT, f'path = "abfss://curated@{LAKE}/orders/audit/"', "[grants] write: entry 1: abfss://curated@"
    ),
    "an audit below a read grant": Wrong(
        AUDIT,
        f'path = "abfss://raw@{LAKE}/orders/audit/"',
        f"[grants] read: entry 1: abfss://raw@{LAKE}/orders/ overlaps",
    ),
    "an audit above a grant": Wrong(
        AUDIT, f'path = "abfss://curated@{LAKE}/"', "[grants] write: entry 1: abfss://curated@"
    ),
    "an audit above a blob that is granted": Wrong(
        AUDIT,
        f'path = "abfss://raw@{LAKE}/"',
        f"[grants] read: entry 2: abfss://raw@{LAKE}/products.csv overlaps the audit",
    ),
    "a grant of the audit's container": Wrong(
        '"azfs://contosolake/curated/orders/"', '"azfs://contosolake/audit/"', "[grants] write: entry 1: abfss://audit@"
    ),
    "segments without a size": Wrong(
        AUDIT, AUDIT + '\nsegment_bytes = "64M"', "[audit] segment_bytes: must be a whole number. Write it without"
    ),
    "segments that are too short": Wrong(
        AUDIT, AUDIT + "\nsegment_bytes = 65535", "[audit] segment_bytes: is out of range. Choose 65536 (64 KiB) to"
    ),
    "segments that are too long": Wrong(
        AUDIT, AUDIT + f"\nsegment_bytes = {(1 << 30) + 1}", "[audit] segment_bytes: is out of range"
    ),
    "segments of few records": Wrong(
        AUDIT, AUDIT + "\nsegment_records = 99", "[audit] segment_records: is out of range. Choose 100 to 10000000"
    ),
    "segments of too many records": Wrong(
        AUDIT, AUDIT + "\nsegment_records = 10000001", "[audit] segment_records: is out of range"
    ),
    "segments that are too young": Wrong(
        AUDIT, AUDIT + '\nsegment_age = "59s"', "[audit] segment_age: is out of range. Choose 1m to 7d"
    ),
    "segments that are too old": Wrong(
        AUDIT, AUDIT + '\nsegment_age = "8d"', "[audit] segment_age: is out of range"
    ),
    "interim seals too rarely": Wrong(
        AUDIT, AUDIT + '\nseal_every = "8d"', "[audit] seal_every: is out of range. Choose 1s to 7d"
    ),
    "interim seals never": Wrong(AUDIT, AUDIT + "\nseal_every = 0", "[audit] seal_every: is not a duration"),
    # accounts
    "an account that no path names": Wrong(
        AUDIT, AUDIT + "\n[accounts.other]", "[accounts.other]: no path uses this account"
    ),
    "an account with an odd name": Wrong(AUDIT, AUDIT + '\n[accounts."A/b"]', "[accounts.'A/b']: is no account"),
    "an account that is no table": Wrong(
        AUDIT, AUDIT + "\n[accounts]\ncontosolake = 1", "[accounts] contosolake: must be a"
    ),
    "an unknown key of an account": Wrong(
        AUDIT, ACCOUNT + "endpont = 1", "[accounts.contosolake] endpont: is not known. Did"
    ),
    "a plain endpoint": Wrong(
        AUDIT, ACCOUNT + 'endpoint = "http://127.0.0.1"', "[accounts.contosolake] endpoint: is not an https URL"
    ),
    "an endpoint with a SAS": Wrong(
        AUDIT,
        ACCOUNT + f'endpoint = "https://x.com/?sig={HIDDEN}"',
        "[accounts.contosolake] endpoint: is not an https URL",
    ),
    "an endpoint with a step up": Wrong(
        AUDIT, ACCOUNT + 'endpoint = "https://x.com/a/../b"', "[accounts.contosolake] endpoint: is not an https URL"
    ),
    "the endpoint of another account": Wrong(
        AUDIT,
        ACCOUNT + 'endpoint = "https://other.blob.core.windows.net"',
        "[accounts.contosolake] endpoint: is not the Blob endpoint of contosolake",
    ),
    "the endpoint of an account whose name starts alike": Wrong(
        AUDIT,
        ACCOUNT + 'endpoint = "https://contosolake2.blob.core.windows.net"',
        "[accounts.contosolake] endpoint: is not the Blob endpoint of contosolake",
    ),
    "the endpoint of another service": Wrong(
        AUDIT,
        ACCOUNT + 'endpoint = "https://contosolake.queue.core.windows.net"',
        "[accounts.contosolake] endpoint: is not the Blob endpoint of contosolake",
    ),
    "an emulator that is nowhere": Wrong(
        AUDIT, ACCOUNT + "emulator = true", "[accounts.contosolake] emulator: needs an endpoint that is not Storage's"
    ),
    "a flag in quotes": Wrong(
        AUDIT, ACCOUNT + 'hierarchical = "true"', "[accounts.contosolake] hierarchical: must be true or false"
    ),
    "a flag that is a number": Wrong(
        AUDIT, ACCOUNT + "emulator = 1", "[accounts.contosolake] emulator: must be true or"
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_manifest_is_refused_at_the_key_that_is_wrong(wrong: Wrong) -> None:
    """A line of the refusal names file, table and key, the cause and the next step, and repeats no secret."""
    lines = refused((wrong.old, wrong.new))
    assert any(line.startswith(f"{FILE}: {wrong.line}") for line in lines), lines
    assert all(line.startswith(f"{FILE}: ") and ". " in line for line in lines)
    assert HIDDEN not in "\n".join(lines)


def test_all_problems_of_a_file_are_told_at_once() -> None:
    """One run shows everything: bad keys, bad paths, and what only the whole shows."""
    lines = refused(
        ('"orders"', '"Orders"'),
        ("contoso.onmicrosoft.com", "common"),
        ('"env:AZURE_FEDERATED_TOKEN_FILE"', "1"),
        ('"2h"', '"9d"'),
        ("products.csv", "orders/a"),
        ("azfs://contosolake/curated/orders/", "gs://bucket/"),
        (f"abfss://audit@{LAKE}/orders/", f"abfss://raw@{LAKE}/orders/audit/"),
    )
    assert [line.removeprefix(FILE).split(": ")[1] for line in lines] == [
        "pipeline",
        "[identity] tenant",
        "[lifetime] job",
        "[grants] write",
        "[identity] assertion_file",
        "[grants] read",
        "[grants] read",
    ]


def test_scoping_is_by_sas_unless_it_is_said_otherwise() -> None:
    """What is wider has to be asked for by name, and what only a SAS can keep is not promised with it."""
    bearer = "[identity]", 'scoping = "bearer"\n[identity]'
    assert manifest().scoping is Scoping.SAS
    assert manifest(("[identity]", 'scoping = "sas"\n[identity]')).scoping is Scoping.SAS
    assert manifest(bearer).scoping is Scoping.BEARER
    create_only = AUDIT, ACCOUNT + "create_only = true"
    assert manifest(create_only)
    (line,) = refused(bearer, create_only)
    assert line.startswith(f"{FILE}: [accounts.contosolake] create_only: is a promise that only a SAS can keep. With")


def test_a_life_is_fixed_unless_it_is_said_to_be_rolling() -> None:
    """A streaming job says so."""
    assert not manifest().lifetime.rolling
    assert manifest(('"2h"', '"2h"\nrolling = true')).lifetime.rolling


def test_a_manifest_that_grants_nothing_is_refused() -> None:
    """Empty lists, and no lists at all."""
    grants = MANIFEST[MANIFEST.index("read  =") : MANIFEST.index("[audit]")]
    for nothing in ("", "read = []\n", "read = []\nwrite = []\ntoken = []\n"):
        assert refused((grants, nothing))[0].startswith(f"{FILE}: [grants]: grants nothing. Name what")


def test_an_empty_file_is_refused_table_by_table() -> None:
    """Whoever starts from nothing is told what to write."""
    with pytest.raises(ConfigError) as refusal:
        AccessManifest.parse("", file=FILE)
    assert refusal.value.message.count("is missing. Add") == 6


def test_read_and_write_may_be_granted_on_one_path() -> None:
    """Redundancy is judged within one permission."""
    both = manifest(('"azfs://contosolake/curated/orders/"', f'"abfss://raw@{LAKE}/orders/a"'))
    assert len(both.grants) == 3


SECRET_KEYS = [
    "secret",
    "client_secret",
    "clientsecret",
    "CLIENT_SECRET",
    "client-secret",
    "password",
    "certificate_password",
    "assertion",
    "token",
    "key",
    "private_key",
    "account_key",
    "sas",
    "connection_string",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
@pytest.mark.parametrize(
    "value",
    [HIDDEN, f"env:{HIDDEN}", f"env: {HIDDEN}", f"keyvault:http://{HIDDEN}", f"keyvault:https://x?{HIDDEN}", ""],
)
def test_a_secret_in_the_manifest_is_refused_and_not_repeated(key: str, value: str) -> None:
    """A key that is named like a secret takes a reference, and its value is never shown."""
    lines = refused(("assertion_file", f'{key} = "{value}"\nassertion_file'))
    assert any("must not hold the secret itself. Refer to it: env:NAME" in line for line in lines)
    assert HIDDEN not in "\n".join(lines)


@pytest.mark.parametrize(
    "value", ["env:CLIENT_SECRET", "file:/run/secrets/client", "keyvault:https://v.vault.azure.net/secrets/s"]
)
def test_a_reference_to_a_secret_is_kept_as_it_is(value: str) -> None:
    """The worker reads the secret; the manifest only says where."""
    made = manifest(("assertion_file", f'client_secret = "{value}"\nassertion_file'))
    assert made.identity.settings["client_secret"] == value


SECRET_VALUES = {
    "a JWT": "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
    "a PEM": "-----BEGIN " + "PRIVATE KEY-----",
    "a connection string": "DefaultEndpointsProtocol=https;AccountKey=abc",
    "a SAS": "https://x.com/?sp=r&sig=abc",
}


@pytest.mark.parametrize("value", SECRET_VALUES.values(), ids=SECRET_VALUES)
def test_what_looks_like_a_secret_is_refused_under_any_key(value: str) -> None:
    """Somebody will put it under the wrong name."""
    lines = refused(("assertion_file", f'audience = "{value}"\nassertion_file'))
    assert lines[0].startswith(f"{FILE}: [identity] audience: holds what looks like a secret")
    assert value not in lines[0]


@pytest.mark.parametrize("value", ["3", "true", '["hunter2-do-not-show"]', '{ a = "hunter2-do-not-show" }'])
def test_a_secret_of_another_type_is_not_repeated_either(value: str) -> None:
    """Neither lists nor tables are shown."""
    assert HIDDEN not in "\n".join(refused(("assertion_file", f"client_secret = {value}\nassertion_file")))


SYNTAX = {
    "a string that is not closed": ('pipeline = "orders', "line 1, column 19"),
    "a table that is not closed": ("[identity\n", "line 1, column 10"),
    "a key that is said twice": ("a = 1\na = 2\n", "line 2, column 6"),
    "a list that is not closed": ("a = [1,\n2,", "line 2, column 3"),
    "a long string that is not closed": ('a = """x\ny\n', "line 3, column 1"),
    "brackets without end": ("a = " + "[" * 100_000, "brackets too deep"),
    "a number without end": ("a = " + "1" * 10_000, "a number is too long"),
    "a lone surrogate": ("a = '\ud800'", "UTF-8 (at line 1)"),
}


@pytest.mark.parametrize(("text", "where"), SYNTAX.values(), ids=SYNTAX)
def test_a_syntax_error_says_where_it_is(text: str, where: str) -> None:
    """Line and column, in the file that is named."""
    with pytest.raises(ConfigError) as refusal:
        AccessManifest.parse(text, file=FILE)
    assert refusal.value.message.startswith(f"{FILE}: is not ")
    assert where in refusal.value.message


def test_bytes_that_are_no_text_say_on_which_line(tmp_path: Path) -> None:
    """A manifest is UTF-8."""
    file = tmp_path / FILE
    file.write_bytes(b'a = 1\nb = "\xff"\n')
    with pytest.raises(ConfigError, match="is not UTF-8 \\(at line 2\\)"):
        AccessManifest.load(file)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    """The error says which file there is none of, and a folder is no file."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such access manifest") as refusal:
        AccessManifest.load(tmp_path / "nowhere.toml")
    assert refusal.value.hint == "check the path of the access manifest"
    with pytest.raises(ConfigError, match="cannot be read"):
        AccessManifest.load(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        AccessManifest.load("a\0b")


# ---------------------------------------------------------------- travel


def test_a_manifest_travels_as_json_and_as_a_pickle() -> None:
    """What arrives on a worker is what was launched."""
    made = AccessManifest.parse(
        MANIFEST
        + '[accounts.contosolake]\nendpoint = "https://127.0.0.1:1/contosolake"\nemulator = true\nca_file = "c"',
        file=FILE,
    )
    made = replace(made, scoping=Scoping.BEARER, lifetime=replace(made.lifetime, rolling=True))
    assert AccessManifest.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301  # our own bytes
    assert pickle.loads(pickle.dumps(made.identity)) == made.identity  # noqa: S301  # our own bytes
    assert copy.deepcopy(made) == made


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.sampled_from(["a/", "b/", "c", "d e/\"f'\\u00e9".replace("\\u00e9", "\u00e9")]), unique=True, min_size=1
    ),
    st.integers(60, 604_800),
    st.dictionaries(
        st.from_regex("[a-c]{1,2}x_file", fullmatch=True), st.text("abc:/ \n\u00e9", max_size=9), max_size=3
    ),
)
def test_any_manifest_survives_the_round_trip(names: list[str], job_s: int, source: dict[str, str]) -> None:
    """to_dict and from_dict lose nothing."""
    document = manifest().to_dict()
    document["grants"]["read"] = [str(BlobPath(account="alake", container="raw", name=name)) for name in names]
    document["lifetime"] = {"job": f"{job_s}s"}
    document["identity"] |= source
    del document["accounts"]
    made = AccessManifest.from_dict(document)
    assert AccessManifest.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert [grant.path.name for grant in made.grants if grant.permission is Permission.READ] == names
    assert made.lifetime.token <= made.lifetime.job


def test_what_travelled_is_checked_as_strictly_as_a_file() -> None:
    """Nobody widens a grant on the way without the rules seeing it."""
    document = manifest().to_dict()
    for table, key, value in (
        ("grants", "write", [f"abfss://audit@{LAKE}/"]),
        ("grants", "read", [f"abfss://raw@{LAKE}/orders/../"]),
        ("identity", "client_secret", HIDDEN),
        ("lifetime", "token", "2h"),
    ):
        with pytest.raises(ConfigError) as refusal:
            AccessManifest.from_dict(document | {table: document[table] | {key: value}})
        assert refusal.value.message.startswith(f"access manifest as data: [{table}] {key}: ")
        assert HIDDEN not in refusal.value.message
    for digest in (None, 3, "abc", "G" * 64):
        with pytest.raises(ConfigError, match="digest: is no SHA-256"):
            AccessManifest.from_dict(document | {"digest": digest})


def test_a_manifest_that_is_made_by_hand_is_checked_too() -> None:
    """Even `replace` cannot grant the audit path, or forget an account."""
    made = manifest()
    with pytest.raises(ConfigError, match="overlaps the audit path"):
        replace(made, grants=(*made.grants, Grant(permission=Permission.WRITE, path=made.audit)))
    with pytest.raises(ConfigError, match="no settings for contosolake"):
        replace(made, accounts={})
    with pytest.raises(ConfigError, match="client_secret: must not hold"):
        replace(made, identity=replace(made.identity, settings={"client_secret": HIDDEN}))


def test_a_manifest_cannot_be_changed() -> None:
    """Neither a field nor what a mapping holds."""
    made = manifest()
    with pytest.raises(FrozenInstanceError):
        made.pipeline = "x"  # type: ignore[misc]  # the point of the test
    for mapping in (made.accounts, made.identity.settings):
        with pytest.raises(TypeError):
            mapping["x"] = "y"  # type: ignore[index]  # the point of the test


def test_endpoints_change_where_and_nothing_else() -> None:
    """With a local tenant and Azurite in place, who, what and how long stay as reviewed."""
    text = """
[entra]
authority = "https://127.0.0.1:8443"
ca_file = "tenant.pem"
[accounts.contosolake]
endpoint = "https://127.0.0.1:10000/contosolake"
emulator = true
[accounts.another]
endpoint = "https://127.0.0.1:10000/another"
[settings]
assertion_file = "file:here.jwt"
region = "local"
"""
    made = manifest()
    local = made.at(Endpoints.parse(text, file="local.toml"))
    azurite = AccountSettings(endpoint="https://127.0.0.1:10000/contosolake", emulator=True)
    assert local == replace(
        made,
        identity=replace(
            made.identity,
            authority="https://127.0.0.1:8443",
            ca_file="tenant.pem",
            settings={"assertion_file": "file:here.jwt"},  # what the manifest does not set is not added
        ),
        accounts={"contosolake": azurite},
    )
    assert made.at(Endpoints.parse("", file="local.toml")) == made
    assert pickle.loads(pickle.dumps(local)) == local  # noqa: S301  # our own bytes


def test_delete_is_a_grant_of_its_own() -> None:
    """It comes after the reads and writes, survives the round trip, and may lie within a grant of another kind."""
    text = MANIFEST.replace("[audit]", f'delete = ["abfss://curated@{LAKE}/orders/temporary/"]\n[audit]')
    manifest = AccessManifest.parse(text, file="orders.access.toml")
    assert [grant.permission for grant in manifest.grants][-1] is Permission.DELETE
    assert AccessManifest.from_dict(manifest.to_dict()) == manifest
    assert pickle.loads(pickle.dumps(manifest)) == manifest  # noqa: S301  our own bytes


def test_the_audit_cannot_be_granted_for_deletion() -> None:
    """A job cannot delete its own record."""
    text = MANIFEST.replace("[audit]", f'delete = ["abfss://audit@{LAKE}/"]\n[audit]')
    with pytest.raises(ConfigError, match=r"\[grants\] delete: entry 1: .*overlaps the audit path"):
        AccessManifest.parse(text, file="orders.access.toml")


def test_a_relative_ca_file_is_relative_to_the_manifests_folder(tmp_path: Path) -> None:
    """Workers run in other folders; what travels to them is absolute."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    text = MANIFEST.replace('credential = "federated_file"', 'credential = "federated_file"\nca_file = "private.pem"')
    assert text != MANIFEST
    (folder / "job.access.toml").write_text(text, encoding="utf-8")
    manifest = AccessManifest.load(folder / "job.access.toml")
    assert manifest.identity.ca_file == str(folder / "private.pem")
    assert AccessManifest.from_dict(manifest.to_dict()).identity.ca_file == str(folder / "private.pem")
