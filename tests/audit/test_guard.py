"""What looks like a secret is found; what merely is long is not."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.audit.guard import looks_like_secret


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


JWT = ".".join([_part({"alg": "none", "typ": "JWT"}), _part({"sub": "nobody"}), _part("not a signature")])
KEY = base64.b64encode(bytes(range(100, 132))).decode()

SECRETS = {
    "a SAS query": ("a SAS signature", "se=2030-01-31&sp=r&sig=abc"),
    "a URL with a SAS": ("a SAS signature", "https://lake.example/raw/a?sv=1&SIG=abc"),
    "a percent-encoded SAS": ("a SAS signature", "path%3Fsig%3Dabc"),
    "a JWT": ("a JWT", JWT),
    "a JWT in a header": ("a JWT", f"Authorization: Bearer {JWT} (refused)"),
    "a JWT whose header is spaced": ("a JWT", "eyAiYWxnIjoi.c3ViamVjdHM.c2lnbmF0dXJl"),
    "a client secret": ("a client secret", "abc8Q~" + "a1B2c3D4e5" * 3 + "xyZ9"),
    "a 32-byte key": ("a base64 key", KEY),
    "a key in a sentence": ("a base64 key", f"signed with {KEY}, refused"),
    "a key below a path": ("a base64 key", f"abfss://raw@contosolake.dfs.core.windows.net/orders/{KEY}"),
    "an unpadded key": ("a base64 key", KEY.rstrip("=")),
    "a base64url key": ("a base64 key", KEY.replace("+", "-").replace("/", "_")),
}

INNOCENT = {
    "a digest": "ab01" * 16,
    "a path": "abfss://raw@contosolake.dfs.core.windows.net/orders/2030/01/31/part-00000-of-00010.jsonl",
    "a long path of words": "abfss://raw@contosolake.dfs.core.windows.net/" + "customers/Invoices/" * 10 + "a.csv",
    "a Hive partition": "abfss://raw@contosolake.dfs.core.windows.net/ordersOfAllCountries/year=2030/month=1/a.parquet",
    "a Spark part": "part-00000-7f8d9c6b-1f2e-4a3b-9c8d-7e6f5a4b3c2d-c000.snappy.parquet",
    "a name with a date": "Orders-2030-01-31T09-30-00-part-00000-of-00010.jsonl",
    "two UUIDs": "6f1f7a52-0f0a-4b5e-8a53-3a2c1c6d9e11-6f1f7a52-0f0a-4b5e-8a53-3a2c1c6d9e11",
    "a name with a time, and one in capitals": "abfss://curated@lake/orders/run-20300131T093000Z/dead/_COMMITTING",
    "a step": "ReadFromBlob/Match/SDFBoundedSourceReader/ParDo(SDFBoundedSourceDoFn)/pair_with_restriction2",
    "a camel-case step": "ReadAllCustomerOrdersOfTheYearAndJoinThemWithInvoices2030",
    "a pod": "dataflow-worker-orders-prod-7f8d9c6b5-abcde-harness-0",
    "an ETag": '"0x8DCAB1234567890"',
    "a uti": "bUWmx1QkPUGa8sO4bqQTAA",
    "a host": "accounts.contoso.example",
    "a word that ends in sig": "config=3 and dsig=4",
}


@pytest.mark.parametrize("name", SECRETS)
def test_finds(name: str) -> None:
    """Each shape of secret is found, and named, without being quoted."""
    what, text = SECRETS[name]
    assert looks_like_secret(text) == what


@pytest.mark.parametrize("name", INNOCENT)
def test_passes(name: str) -> None:
    """What audit records are full of is no secret."""
    assert looks_like_secret(INNOCENT[name]) == ""


NAMES = {
    "a key": f"orders/{KEY}",
    "an unpadded key": "orders/" + KEY.rstrip("="),
    "camel case with digits": "Q1Orders2030ByCountryAndRegionV2/Sales4You2Day3Way5Jx8Kp9LmT3RqW7.parquet",
    "a partition": "orders/sig=4/part-0.parquet",
    "a step": "Read sig=4/ParDo(Zx9Qw8Er7Ty6Ui5Op4As3Df2Gh1JkLmNbVcX0Qa1Ws2)",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_look_like_a_key(name: str) -> None:
    """Names of blobs and steps look like anything; elsewhere most of these are refused."""
    assert looks_like_secret(NAMES[name], named=True) == ""


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("orders/a.jsonl?sp=r&sig=abc", "a SAS signature"),
        ("orders/a.jsonl?SIG=abc", "a SAS signature"),
        ("orders/a.jsonl%3Fsig%3Dabc", "a SAS signature"),
        (f"orders/{JWT}", "a JWT"),
        ("abc8Q~" + "a1B2c3D4e5" * 3 + "xyZ9", "a client secret"),
    ],
)
def test_a_name_is_no_place_for_a_sas_or_a_token(text: str, what: str) -> None:
    """What has a shape of its own is found in a name too."""
    assert looks_like_secret(text, named=True) == what


@settings(max_examples=300, deadline=None)
@given(
    key=st.one_of(
        st.randoms(use_true_random=False).map(lambda r: r.randbytes(32)), st.just(b"\x00\x10\x83" * 10 + b"QR")
    )
)
def test_finds_every_delegation_key(key: bytes) -> None:
    """A padded 32-byte key, as Storage hands out, is found unless it is freakishly regular."""
    text = base64.b64encode(key).decode()
    mixed = sum(map(str.isupper, text)) >= 4 and sum(map(str.islower, text)) >= 4 and any(map(str.isdigit, text))
    assert bool(looks_like_secret(text)) == mixed


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-/._=", max_size=200).filter(lambda t: "sig=" not in t))
def test_passes_all_lower_case(text: str) -> None:
    """Without upper-case letters only `sig=` and JWTs are suspicious, and JWTs have upper case."""
    assert looks_like_secret(text) == ""
