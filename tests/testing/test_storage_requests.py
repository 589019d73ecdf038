"""How a request on the wire reads as a Storage operation."""

from __future__ import annotations

import pytest

from beam_entra.testing.storage_requests import StorageRequest, matching


def request(method: str, url: str, **headers: str) -> StorageRequest:
    """A request as the proxy makes it from the wire."""
    path, _, query = url.partition("?")
    return StorageRequest(method=method, path=path, query=query, headers=headers)


OPERATIONS = [
    ("POST", "/lake/?restype=service&comp=userdelegationkey", "GetUserDelegationKey"),
    ("GET", "/lake/?comp=list", "ListContainers"),
    ("GET", "/lake/?restype=service&comp=properties", "GetServiceProperties"),
    ("PUT", "/lake/raw?restype=container", "CreateContainer"),
    ("DELETE", "/lake/raw?restype=container", "DeleteContainer"),
    ("HEAD", "/lake/raw?restype=container", "GetContainerProperties"),
    ("GET", "/lake/raw?restype=container&comp=list&prefix=a", "ListBlobs"),
    ("GET", "/lake/raw/a/b.txt", "GetBlob"),
    ("HEAD", "/lake/raw/a/b.txt?sv=1&sig=x", "GetBlobProperties"),
    ("PUT", "/lake/raw/a", "PutBlob"),
    ("PUT", "/lake/raw/a?comp=block&blockid=MQ%3D%3D", "PutBlock"),
    ("PUT", "/lake/raw/a?comp=blocklist", "PutBlockList"),
    ("GET", "/lake/raw/a?comp=blocklist", "GetBlockList"),
    ("PUT", "/lake/raw/a?comp=appendblock", "AppendBlock"),
    ("DELETE", "/lake/raw/a", "DeleteBlob"),
    ("PUT", "/lake/raw/a?comp=snapshot", "PUT snapshot"),
    ("PATCH", "/lake/raw/a", "PATCH"),
]


@pytest.mark.parametrize(("method", "url", "operation"), OPERATIONS, ids=[case[2] for case in OPERATIONS])
def test_an_operation_has_its_name_of_the_reference(method: str, url: str, operation: str) -> None:
    """Method, level and `comp` name the operation; what has no name here reads as it came."""
    assert request(method, url).operation == operation


def test_account_container_and_blob_are_decoded_once() -> None:
    """A blob's name may hold slashes, spaces and percent signs."""
    seen = request("GET", "/lake/raw/a%20b/c%2525.txt?x=%2F")
    assert (seen.account, seen.container, seen.blob) == ("lake", "raw", "a b/c%25.txt")
    assert seen.parameters == {"x": "/"}


@pytest.mark.parametrize(
    ("url", "headers", "credential"),
    [
        ("/lake/raw/a?sv=1&sig=abc", {}, "sas"),
        ("/lake/raw/a", {"authorization": "Bearer abc"}, "bearer"),
        ("/lake/raw/a", {"authorization": "SharedKey lake:abc"}, "key"),
        ("/lake/raw/a", {}, "none"),
    ],
    ids=["sas", "bearer", "key", "none"],
)
def test_the_kind_of_credential_is_told(url: str, headers: dict[str, str], credential: str) -> None:
    """A test can ask how a request was authorised without looking at the secret."""
    assert request("GET", url, **headers).credential == credential


def test_secrets_do_not_show_in_a_repr() -> None:
    """Neither a SAS nor a bearer token shows when an assertion on a request fails."""
    seen = request("GET", "/lake/raw/a?sig=hush", authorization="Bearer hush")
    assert "hush" not in repr(seen)


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"operation": "PutBlock"}, True),
        ({"operation": "PutBlock", "account": "lake", "container": "raw", "blob": "a/b"}, True),
        ({"operation": "GetBlob"}, False),
        ({"account": "other"}, False),
        ({"container": "curated"}, False),
        ({"blob": "a"}, False),
    ],
)
def test_a_predicate_matches_what_is_named(wanted: dict[str, str], fits: bool) -> None:
    """All that is named must fit; what is not named fits always."""
    assert matching(**wanted)(request("PUT", "/lake/raw/a/b?comp=block&blockid=MQ")) is fits
