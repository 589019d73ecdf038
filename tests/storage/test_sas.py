"""SAS: Azurite itself refuses what each is not for, and what is signed is what the protocol says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote, urlencode

import pytest
import urllib3
from azure.storage.blob import UserDelegationKey, generate_blob_sas, generate_container_sas

from beam_entra.access import SasSpec
from beam_entra.clock import utc_now
from beam_entra.errors import AccessDenied, StorageError
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.secret import Secret
from beam_entra.storage import DelegationKey, Sas, connection_pool, mint
from beam_entra.storage.answers import Answer
from beam_entra.storage.service import _parse_key
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import ACCOUNT, Desk, identity_of

# ---------------------------------------------------------------- what Storage lets each do


@dataclass(frozen=True)
class Attempt:
    """A request that somebody with a SAS makes."""

    method: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


READ = Attempt("GET")
HEAD = Attempt("HEAD")
DELETE = Attempt("DELETE")
PUT_BLOB = Attempt("PUT", "", (("x-ms-blob-type", "BlockBlob"),), b"forged")
PUT_BLOCK = Attempt("PUT", "comp=block&blockid=AAAA", (), b"forged")
PUT_LIST = Attempt("PUT", "comp=blocklist", (), b"<BlockList><Latest>AAAA</Latest></BlockList>")
METADATA = Attempt("PUT", "comp=metadata", (("x-ms-meta-a", "b"),))
SNAPSHOT = Attempt("PUT", "comp=snapshot")
LEASE = Attempt("PUT", "comp=lease", (("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "15")))
APPEND = Attempt("PUT", "comp=appendblock", (), b"forged\n")
CREATE_APPEND = Attempt("PUT", "", (("x-ms-blob-type", "AppendBlob"),))
LIST = Attempt("GET", "restype=container&comp=list")


def answered(desk: Desk, attempt: Attempt, sas: Secret, blob: str | None) -> int:
    """The status of Azurite's answer."""
    url = f"{desk.cloud.azurite.endpoint(ACCOUNT)}/{desk.container.name}" + ("" if blob is None else f"/{blob}")
    query = "&".join(part for part in (attempt.query, sas.reveal()) if part)
    headers = {"x-ms-version": "2025-07-05", "Content-Length": str(len(attempt.body)), **dict(attempt.headers)}
    pool = connection_pool(str(desk.cloud.ca_file))
    response: urllib3.BaseHTTPResponse = pool.urlopen(
        attempt.method, f"{url}?{query}", body=attempt.body, headers=headers, retries=False
    )
    return response.status


@pytest.fixture
def stocked(desk: Desk) -> Desk:
    """A container with a blob, its neighbour, and a segment."""
    for name in ("a.jsonl", "b.jsonl"):
        desk.container.upload(name, b"content")
    client = desk.container.admin.client(ACCOUNT).get_blob_client(desk.container.name, "segment.jsonl")
    client.create_append_blob()
    client.append_block(b"one\n")
    return desk


def contents(desk: Desk) -> dict[str, bytes]:
    """Everything in the container."""
    return {name: desk.container.download(name) for name in desk.container.list()}


ANY = (READ, HEAD, DELETE, PUT_BLOB, PUT_BLOCK, PUT_LIST, METADATA, SNAPSHOT, LEASE)


def refused(desk: Desk, sas: Secret, blob: str | None, *attempts: Attempt) -> None:
    """Azurite says 403 to each of these, and nothing changes."""
    before = contents(desk)
    for attempt in attempts:
        assert answered(desk, attempt, sas, blob) == 403, attempt
    assert contents(desk) == before


def test_a_readers_sas(stocked):
    """It reads its blob; it cannot write, change or delete it, nor touch its neighbour, nor list."""
    sas = stocked.sas("a.jsonl", "r")
    assert answered(stocked, READ, sas, "a.jsonl") == 200
    refused(stocked, sas, "a.jsonl", DELETE, PUT_BLOB, PUT_BLOCK, PUT_LIST, METADATA, SNAPSHOT, LEASE)
    refused(stocked, sas, "b.jsonl", *ANY)
    refused(stocked, sas, "a.jsonl/below", *ANY)
    refused(stocked, sas, None, LIST)


def test_a_writers_sas(stocked):
    """It stages blocks of its blob; it cannot read, list or delete, nor touch its neighbour."""
    sas = stocked.sas("new.jsonl", "w")
    assert answered(stocked, PUT_BLOCK, sas, "new.jsonl") == 201
    refused(stocked, stocked.sas("a.jsonl", "w"), "a.jsonl", READ, HEAD, DELETE)
    refused(stocked, sas, "a.jsonl", *ANY)
    refused(stocked, sas, None, LIST)


def test_a_listers_sas(stocked):
    """It shows names; it opens none of them."""
    sas = stocked.sas("", "l", resource="container")
    assert answered(stocked, LIST, sas, None) == 200
    refused(stocked, sas, "a.jsonl", *ANY)


def test_the_audits_sas(stocked):
    """It creates and appends to one segment; it cannot read, empty, rewrite or delete it, nor write elsewhere."""
    sas = stocked.sas("fresh.jsonl", "ac")
    assert answered(stocked, CREATE_APPEND, sas, "fresh.jsonl") == 201
    assert answered(stocked, APPEND, sas, "fresh.jsonl") == 201
    there = stocked.sas("segment.jsonl", "ac")
    refused(stocked, there, "segment.jsonl", READ, HEAD, DELETE, METADATA, LEASE)
    refused(stocked, there, "a.jsonl", *ANY, APPEND, CREATE_APPEND)
    refused(stocked, there, None, LIST)


def test_an_expired_sas_opens_nothing(stocked):
    """After its end, Azurite refuses it."""
    sas = stocked.sas("a.jsonl", "r", expires=datetime.now(UTC) - timedelta(seconds=1))
    refused(stocked, sas, "a.jsonl", READ)


def test_an_expired_sas_is_access_denied(desk):
    """In our words it is a refusal, with the request id."""
    blob = desk.upload(b"content")
    expired = desk.sas("a.jsonl", "r", expires=datetime.now(UTC) - timedelta(seconds=1))
    authorise = desk.may("a.jsonl", "r")
    authorization = replace(authorise(), sas=expired)
    with pytest.raises(AccessDenied) as caught:
        desk.service.read_range(blob, 0, 7, lambda: authorization, desk.next_id, lambda *_: None)
    assert caught.value.hint
    assert caught.value.diagnosis.request_id


@pytest.mark.parametrize(
    ("field", "value"),
    [("sp", "rwd"), ("se", "2099-01-01T00:00:00Z"), ("sr", "c"), ("spr", "https,http"), ("sv", "2020-02-10")],
)
def test_a_widened_sas_opens_nothing(stocked, field, value):
    """What it says is signed: changing the permission, the end or the resource breaks it."""
    parameters = {name: values[0] for name, values in parse_qs(stocked.sas("a.jsonl", "r").reveal()).items()}
    assert field in parameters
    forged = Secret(urlencode(parameters | {field: value}), what="SAS")
    refused(stocked, forged, "a.jsonl", READ)


# ---------------------------------------------------------------- what is signed


KEY = DelegationKey(
    key_id="key-1",
    token_id="token-1",
    account=ACCOUNT,
    expires=datetime(2026, 3, 1, 14, tzinfo=UTC),
    value=Secret(base64.b64encode(b"k" * 32).decode(), what="user delegation key"),
    signed_oid="11111111-1111-4111-8111-111111111111",
    signed_tid="22222222-2222-4222-8222-222222222222",
    signed_start="2026-03-01T12:00:00Z",
    signed_expiry="2026-03-01T14:00:00Z",
    signed_service="b",
    signed_version="2025-07-05",
)
CORRELATION = "33333333-3333-4333-8333-333333333333"


def spec(**changes: object) -> SasSpec:
    """A reader's SAS for one blob."""
    facts = {
        "account": ACCOUNT,
        "container": "raw",
        "name": "orders/a b.jsonl",
        "resource": "blob",
        "permissions": "r",
        "expires": datetime(2026, 3, 1, 12, 15, tzinfo=UTC),
        "guarded_prefix": "orders/a b.jsonl",
    }
    return SasSpec(**(facts | changes))


def parameters_of(sas: Secret) -> dict[str, str]:
    """A SAS, taken apart."""
    return {name: values[0] for name, values in parse_qs(sas.reveal(), strict_parsing=True).items()}


def string_to_sign(parameters: dict[str, str], resource: str) -> str:
    """What the protocol says is signed, in version 2025-07-05.

    See: https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas
    """
    fields = ("sp", "st", "se", resource, "skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid", "scid")
    fields += ("skdutid", "sduoid", "sip", "spr", "sv", "sr", "", "ses", "rscc", "rscd", "rsce", "rscl", "rsct")
    return "\n".join(field if field.startswith("/") else parameters.get(field, "") for field in fields)


def signature(text: str) -> str:
    """Of a string to sign, under the key."""
    key = base64.b64decode(KEY.value.reveal())
    return base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()


@dataclass(frozen=True)
class Signed:
    """A spec, and what it must look like."""

    changes: dict[str, object]
    resource: str
    shown: dict[str, str]


SIGNED = {
    "one blob": Signed({}, "/blob/contosolake/raw/orders/a b.jsonl", {"sr": "b", "sp": "r"}),
    "a writer": Signed({"permissions": "w"}, "/blob/contosolake/raw/orders/a b.jsonl", {"sr": "b", "sp": "w"}),
    "a container": Signed(
        {"resource": "container", "name": "", "permissions": "l"}, "/blob/contosolake/raw", {"sr": "c", "sp": "l"}
    ),
    "a directory": Signed(
        {"resource": "directory", "name": "orders/2026", "permissions": "l"},
        "/blob/contosolake/raw/orders/2026",
        {"sr": "d", "sp": "l", "sdd": "2"},
    ),
    "a directory at the top": Signed(
        {"resource": "directory", "name": "orders", "permissions": "l"},
        "/blob/contosolake/raw/orders",
        {"sr": "d", "sdd": "1"},
    ),
}


@pytest.mark.parametrize("name", SIGNED)
def test_the_signature_is_of_the_documented_string(name):
    """Recomputed by the page: a user delegation SAS for https only, with the bundle's id signed, and no wider."""
    case = SIGNED[name]
    parameters = parameters_of(mint(spec(**case.changes), KEY, correlation=CORRELATION))
    assert parameters["sig"] == signature(string_to_sign(parameters, case.resource))
    assert case.shown.items() <= parameters.items()
    assert ("sdd" in parameters) == ("directory" in name)
    assert parameters["sv"] == "2025-07-05"
    assert parameters["spr"] == "https"
    assert parameters["se"] == "2026-03-01T12:15:00Z"
    assert parameters["scid"] == CORRELATION
    assert parameters["skoid"] == KEY.signed_oid
    assert "st" not in parameters  # a worker whose clock is ahead would be locked out


@pytest.mark.parametrize("name", SIGNED)
def test_says_what_azure_storage_blob_says(name):
    """The SDK's SAS for the same has the same parameters, and but for two later fields it signs the same string."""
    signed: list[str] = []
    asked = spec(**SIGNED[name].changes)
    key = UserDelegationKey()
    for field in ("oid", "tid", "start", "expiry", "service", "version"):
        setattr(key, f"signed_{field}", getattr(KEY, f"signed_{field}"))
    key.value = KEY.value.reveal()
    common = {
        "user_delegation_key": key,
        "permission": asked.permissions,
        "expiry": asked.expires,
        "protocol": "https",
        "correlation_id": CORRELATION,
        "sts_hook": signed.append,
    }
    if asked.resource == "container":
        theirs = generate_container_sas(ACCOUNT, asked.container, **common)
    else:
        directory = asked.resource == "directory"
        theirs = generate_blob_sas(ACCOUNT, asked.container, asked.name, is_directory=directory, **common)
    expected = parameters_of(Secret(theirs, what="SAS"))
    ours = parameters_of(mint(asked, KEY, correlation=CORRELATION))
    assert {**ours, "sv": "", "sig": ""} == {**expected, "sv": "", "sig": ""}
    *before, version = signed[0].split("\n")[:18]
    assert version == expected["sv"] >= "2026-04-06", "since then a SAS can demand headers (srh) and parameters (srq)"
    as_of_ours = "\n".join([*before, ours["sv"], *signed[0].split("\n")[18:21], *signed[0].split("\n")[23:]])
    assert ours["sig"] == signature(as_of_ours)


def test_azurite_gets_the_correlation_unsigned():
    """Azurite leaves it out of its string to sign; its log shows it all the same."""
    parameters = parameters_of(mint(spec(), KEY, correlation=CORRELATION, sign_correlation=False))
    assert parameters["scid"] == CORRELATION
    unsigned = {name: value for name, value in parameters.items() if name != "scid"}
    assert parameters["sig"] == signature(string_to_sign(unsigned, "/blob/contosolake/raw/orders/a b.jsonl"))


def test_the_key_of_another_account_signs_nothing():
    """A SAS for one account is not signed with the key of another; Storage would refuse it later and less clearly."""
    with pytest.raises(ValueError, match="its own account"):
        mint(spec(account="fabrikamlake"), KEY, correlation=CORRELATION)


# ---------------------------------------------------------------- nothing shows it


def _sas() -> Sas:
    query = mint(spec(), KEY, correlation=CORRELATION)
    return Sas(
        sas_id="sas-1", key_id="key-1", spec=spec(), query=query, expires=spec().expires, renew_at=spec().expires
    )


@pytest.mark.parametrize("make", [lambda: KEY, _sas, lambda: _sas().query], ids=["key", "sas", "query"])
def test_keys_and_sas_are_not_shown_and_not_pickled(make: Callable[[], object]):
    """They redact themselves wherever they are printed, and refuse pickling."""
    value = make()
    secrets = [KEY.value.reveal(), parameters_of(_sas().query)["sig"]]
    for shown in (repr(value), str(value), f"{value}"):
        assert "redacted" in shown
        assert not any(secret in unquote(shown) for secret in secrets)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(value, protocol)


# ---------------------------------------------------------------- the key itself


def token_of(desk: Desk):
    """A token for Storage."""
    return EntraSource(identity_of(desk.cloud), clock=utc_now).acquire(STORAGE_AUDIENCE)


def test_a_key_for_as_long_as_asked(desk):
    """The key ends when it was asked to end, belongs to the identity, and knows its token."""
    token = token_of(desk)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=3)
    key, answer = desk.service.delegation_key(ACCOUNT, lambda: token, expires=expires, client_request_id="my-id")
    assert (key.expires, key.account, key.token_id) == (expires, ACCOUNT, token.token_id)
    assert key.signed_oid == desk.cloud.app.object_id
    assert key.signed_tid == desk.cloud.tenant_id
    assert answer.client_request_id == "my-id"
    request = desk.cloud.proxy.requests[-1].request
    assert (request.operation, request.credential) == ("GetUserDelegationKey", "bearer")


def test_each_attempt_shows_a_token_of_its_own(desk):
    """A token may end during a pause: the next attempt asks for one again, and the key names the one that got it."""
    tokens = [token_of(desk), token_of(desk)]
    left = iter(tokens)
    desk.cloud.proxy.respond(503, "ServerBusy", where=matching("GetUserDelegationKey"), times=1)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    key, _ = desk.service.delegation_key(ACCOUNT, lambda: next(left), expires=expires, client_request_id="x")
    assert key.token_id == tokens[1].token_id
    assert next(left, None) is None


def test_a_missing_role_is_said(desk):
    """Without the right to get a key, the error names the role."""
    desk.cloud.proxy.without_role()
    token = token_of(desk)
    with pytest.raises(AccessDenied) as caught:
        desk.service.delegation_key(ACCOUNT, lambda: token, expires=KEY.expires, client_request_id="x")
    assert "Storage Blob Delegator" in caught.value.hint
    assert caught.value.diagnosis.tried == f"get a user delegation key of account {ACCOUNT}"
    assert desk.cloud.find_leaks(json.dumps(caught.value.diagnostics()) + str(caught.value)) == []


GOOD_KEY = (
    "<UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid><SignedStart>2026-03-01T12:00:00Z</SignedStart>"
    "<SignedExpiry>2026-03-01T14:00:00Z</SignedExpiry><SignedService>b</SignedService>"
    "<SignedVersion>2025-07-05</SignedVersion><Value>a2V5</Value></UserDelegationKey>"
)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "<html>",
        "<UserDelegationKey />",
        GOOD_KEY.replace("a2V5", ""),
        GOOD_KEY.replace("a2V5", "no base64!"),
        GOOD_KEY.replace("2026-03-01T14:00:00Z", "tomorrow"),
    ],
)
def test_what_is_no_key_is_an_error(desk, document):
    """An answer of something else is an error of ours, and shows nothing of it."""
    answer = Answer(status=200, headers={"x-ms-request-id": "r-1"}, client_request_id="c", body=document.encode())
    with pytest.raises(StorageError, match="no user delegation key") as caught:
        _parse_key(answer, ACCOUNT, token_of(desk))
    assert caught.value.diagnosis.request_id == "r-1"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    _parse_key(replace(answer, body=GOOD_KEY.encode()), ACCOUNT, token_of(desk))
