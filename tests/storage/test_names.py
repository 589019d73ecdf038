"""Odd blob names: what is written under a name is found, listed and read under the same name."""

from __future__ import annotations

import ssl
import uuid

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from beam_entra.errors import ConfigError, StorageError
from beam_entra.paths import BlobPath
from beam_entra.storage import new_block_id
from beam_entra.storage.blobs import parse_list_page
from beam_entra.storage.transport import ConnectionPool
from beam_entra.testing.storage_requests import matching
from tests.storage.conftest import Desk

NAMES = [
    "plain.jsonl",
    "with space.jsonl",
    " leading and trailing ",
    "100%.jsonl",
    "a%41.jsonl",
    "a+b=c&d.jsonl",
    "year=2026/month=03/part-0.jsonl",
    "what?.jsonl",
    "number#1.jsonl",
    "semi;colon,comma:colon@at",
    "quote'\"quote",
    "<tag>&amp;",
    "[brackets]{braces}|pipe",
    "tilde~and^caret`",
    "grüße/日本語/🙂.jsonl",
    "e\u0301 is not \u00e9",
    "back$slash!and*star(s)",
    "deep/" * 20 + "er",
]


def write(desk: Desk, name: str, data: bytes) -> None:
    """Stage and commit with the SAS of a writer of this one blob."""
    block = new_block_id()
    desk.stage(data, block, name)
    desk.service.commit(
        desk.path(name),
        [block],
        desk.may(name, "w"),
        desk.next_id(),
        commit_id="c-1",
        content_type="text/plain",
        overwrite=False,
    )


def listed(desk: Desk, prefix: str = "") -> list[str]:
    """All names below a prefix, by a lister's SAS."""
    where = BlobPath(account="contosolake", container=desk.container.name, name="")
    pages = desk.service.list_pages(where, prefix, desk.may("", "l", container=True), desk.next_id)
    return [blob.path.name for page, _ in pages for blob in page.blobs]


def check(desk: Desk, name: str) -> None:
    """Written, seen by others under this name, listed, described, read."""
    data = name.encode()
    write(desk, name, data)
    assert name in desk.container.list()
    assert listed(desk, name) == [name]
    found, _ = desk.service.properties(desk.path(name), desk.may(name, "r"), desk.next_id())
    assert (found.path.name, found.size_bytes) == (name, len(data))
    assert desk.read(found) == data


@pytest.mark.parametrize("name", NAMES)
def test_a_name_makes_the_round_trip(desk, name):
    """Put Block, Put Block List, List Blobs, HEAD and GET agree on the name, and so does the SAS."""
    check(desk, name)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=40))
def test_any_name_that_is_allowed_makes_the_round_trip(desk, name):
    """Whatever `BlobPath` lets through, Storage understands as the same name."""
    name = f"{uuid.uuid4().hex}/{name}"  # no example meets another's blobs
    try:
        path = desk.path(name)
    except ConfigError:
        assume(False)
    assume(not path.is_prefix)
    check(desk, name)


class SmallPages(ConnectionPool):
    """The wire, but for one thing: it asks for pages of 3, where Storage gives 5,000."""

    def __init__(self, ca_file: str) -> None:
        super().__init__(ssl.create_default_context(cafile=ca_file))

    def open(self, method, url, **more):
        return super().open(method, f"{url}&maxresults=3", **more)


def test_all_pages_are_listed(desk):
    """Storage gives a listing in pages; the marker leads through all of them, each a request with its own id."""
    names = [f"p/{number:04d}" for number in range(7)]
    for name in names:
        desk.container.upload(name, b"x")
    desk.cloud.proxy.respond(503, "ServerBusy", where=matching("ListBlobs"), times=1, skip=1)
    where = BlobPath(account="contosolake", container=desk.container.name, name="p/")
    service = desk.service_at(pool=SmallPages)
    pages = list(service.list_pages(where, "p/", desk.may("", "l", container=True), desk.next_id))
    assert [len(page.blobs) for page, _ in pages] == [3, 3, 1]
    assert [blob.path.name for page, _ in pages for blob in page.blobs] == names
    asked = [answer.client_request_id for _, answer in pages]
    assert len(set(asked)) == 3


def test_a_prefix_is_a_prefix_of_names(desk):
    """Listing below `orders/` shows neither `orders-secret/` nor a blob called `orders`."""
    for name in ("orders/1", "orders/2", "orders-secret/1", "orders"):
        desk.container.upload(name, b"x")
    assert listed(desk, "orders/") == ["orders/1", "orders/2"]


def page_of(*names: str, extra: str = "<Content-Length>1</Content-Length>") -> bytes:
    """What Storage answers."""
    blobs = "".join(
        f"<Blob>{name}<Properties><Etag>0x1</Etag>{extra}"
        "<Last-Modified>Fri, 06 Mar 2026 12:00:00 GMT</Last-Modified></Properties></Blob>"
        for name in names
    )
    return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>".encode()


ROOT = BlobPath(account="contosolake", container="raw", name="")


def test_directories_are_left_out():
    """A hierarchical account lists its directories too; they hold no bytes."""
    directory = "<Content-Length>0</Content-Length><ResourceType>directory</ResourceType>"
    assert parse_list_page(page_of("<Name>a</Name>", extra=directory), container=ROOT).blobs == ()
    assert parse_list_page(page_of("<Name>a/</Name>"), container=ROOT).blobs == ()


def test_encoded_names_are_decoded():
    """A name that XML cannot carry comes percent-encoded, and says so."""
    page = parse_list_page(page_of('<Name Encoded="true">a%EF%BF%BDb</Name>', "<Name>100%25</Name>"), container=ROOT)
    assert [blob.path.name for blob in page.blobs] == ["a\ufffdb", "100%25"]


def test_an_etag_without_quotes_gets_them():
    """List Blobs gives ETags bare; conditions need the quotes."""
    assert parse_list_page(page_of("<Name>a</Name>"), container=ROOT).blobs[0].etag == '"0x1"'


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>",
        page_of("<Nom>a</Nom>"),
        page_of("<Name>a</Name>", extra=""),
        page_of("<Name>a</Name>", extra="<Content-Length>many</Content-Length>"),
        page_of("<Name>a</Name>", extra="<Content-Length>-1</Content-Length>"),
        page_of("<Name>a</Name>").replace(b"0x1", b"0x1&#10;x-ms-date: now"),
        page_of("<Name>a</Name>").replace(b"0x1", b"\xe2\x82\xac"),
        page_of("<Name>a</Name>").replace(b"Fri, 06 Mar 2026 12:00:00 GMT", b"yesterday"),
    ],
)
def test_what_is_no_listing_is_an_error(document):
    """Something else in place of a listing is not an empty listing."""
    with pytest.raises(StorageError, match="list of abfss://raw@"):
        parse_list_page(document, container=ROOT)


def test_only_names_that_are_wanted_are_made_paths():
    """A name that our paths refuse harms nobody who does not want it; it is counted all the same."""
    page = page_of("<Name>a//b</Name>", "<Name>a/b</Name>", "<Name>c</Name>", "<Name>d/</Name>")
    found = parse_list_page(page, container=ROOT, wanted=lambda name: name.startswith("a/b"))
    assert [blob.path.name for blob in found.blobs] == ["a/b"]
    assert found.listed == 3, "a directory is no blob"
    with pytest.raises(ConfigError, match="a//b"):
        parse_list_page(page, container=ROOT, wanted=lambda name: name.startswith("a/"))


def test_a_listing_gives_the_names_that_are_wanted(desk):
    """Page by page, as they come."""
    for name in ("p/1", "p/x//2", "p/3"):
        desk.container.upload(name, b"x")
    where = BlobPath(account="contosolake", container=desk.container.name, name="p/")
    may = desk.may("", "l", container=True)
    pages = list(
        desk.service.list_pages(where, "p/", may, desk.next_id, page_size=2, wanted=lambda name: "//" not in name)
    )
    assert [blob.path.name for page, _ in pages for blob in page.blobs] == ["p/1", "p/3"]
    assert [page.listed for page, _ in pages] == [2, 1]


def test_a_name_that_cannot_be_addressed_is_an_error():
    """A blob that our paths refuse is named as the reason, not skipped: skipping would lose data silently."""
    with pytest.raises(ConfigError, match="cannot be addressed safely") as caught:
        parse_list_page(page_of("<Name>a//b</Name>"), container=ROOT)
    assert "rename the blob" in caught.value.hint
