"""Looking ahead: what will be read next is asked for while something else is, once, and only while the order holds."""

from __future__ import annotations

import gzip
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beam_entra import Bytes, Lines, Parquet, ReadFromBlob
from beam_entra.errors import BlobChanged
from beam_entra.io.ahead import LookAhead, Piece, ReadOrder
from beam_entra.io.blocks import Range
from beam_entra.io.match import match
from beam_entra.io.source import BlobSource
from beam_entra.paths import BlobPattern
from beam_entra.session import BundleSession
from beam_entra.testing.storage_requests import matching

SIZE = 1000
BLOCK = 100
AHEAD = 600


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Where it is found out what is wanted."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


def content(number: int) -> bytes:
    """What the blob of this number holds."""
    return bytes([number]) * SIZE


def pieces_of(lake: Any, bundle: BundleSession, count: int) -> list[Piece]:
    """Blobs to be read as a whole."""
    for number in range(count):
        lake.raw.upload(f"in/{number}", content(number))
    blobs = match(bundle, BlobPattern.parse(lake.raw.url("in/*")))
    return [Piece(blob, 0, blob.size_bytes) for blob in blobs]


def in_order(pieces: list[Piece]) -> ReadOrder:
    """Cut in this order."""
    order = ReadOrder()
    for piece in pieces:
        order.add(piece)
    return order


def look_ahead(bundle: BundleSession, order: ReadOrder, executor: ThreadPoolExecutor) -> LookAhead:
    """Over streams."""

    def wanted(piece: Piece, source: BlobSource) -> Iterator[Range]:
        return source.requests(piece.start, piece.stop)

    return LookAhead(order, open_source=partial(opened, bundle), wanted=wanted, executor=executor)


def opened(bundle: BundleSession, piece: Piece) -> BlobSource:
    """A source whose requests are of one block, two and so on."""
    return BlobSource(bundle, piece.blob, block_bytes=BLOCK, prefetch_bytes=AHEAD, max_record_bytes=SIZE)


def read(source: BlobSource) -> bytes:
    """All of it."""
    return b"".join(source.stream(0, source.size_bytes))


def gets(lake: Any, number: int) -> int:
    """Requests for the bytes of a blob so far."""
    return int(lake.cloud.proxy.count(matching("GetBlob", container=lake.raw.name, blob=f"in/{number}")))


def test_what_comes_next_is_here_when_it_is_read(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """While one blob is read the next ones are asked for; each byte is fetched once, and goes to its own blob."""
    pieces = pieces_of(lake, bundle, 4)
    ahead = look_ahead(bundle, in_order(pieces), executor)
    assert read(ahead.source(pieces[0])) == content(0)
    lake.cloud.proxy.wait_for(lambda _: gets(lake, 1) > 0)
    for number in (1, 2, 3):
        assert read(ahead.source(pieces[number])) == content(number)
    ahead.close()
    a_blob = len(list(opened(bundle, pieces[0]).requests(0, SIZE)))
    assert [gets(lake, number) for number in range(4)] == [a_blob] * 4


def test_no_more_is_begun_than_there_is_room_for(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """What is begun of the pieces to come takes no more than the prefetch leaves."""
    pieces = pieces_of(lake, bundle, 4)
    ahead = look_ahead(bundle, in_order(pieces), executor)
    assert read(ahead.source(pieces[0])) == content(0)
    ahead.close()
    assert bundle.session.take_counts()["bytes_read"] <= SIZE + AHEAD


def test_another_order_ends_it(lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor) -> None:
    """What was begun for nothing is dropped, what is read is right, and nothing is begun for nothing again."""
    pieces = pieces_of(lake, bundle, 6)
    ahead = look_ahead(bundle, in_order(pieces), executor)
    assert read(ahead.source(pieces[0])) == content(0)
    lake.cloud.proxy.wait_for(lambda _: gets(lake, 1) > 0)
    assert read(ahead.source(pieces[3])) == content(3)
    assert read(ahead.source(pieces[4])) == content(4)
    ahead.close()
    assert gets(lake, 5) == 0
    assert read(ahead.source(pieces[1])) == content(1)


def test_a_piece_that_changed_meanwhile_fails_when_it_is_read(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """Not the one before it."""
    pieces = pieces_of(lake, bundle, 2)
    lake.raw.upload("in/1", b"another")
    ahead = look_ahead(bundle, in_order(pieces), executor)
    assert read(ahead.source(pieces[0])) == content(0)
    with pytest.raises(BlobChanged):
        read(ahead.source(pieces[1]))
    ahead.close()


def test_what_was_begun_and_not_asked_for_ends_before_the_bundle(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """A reader that fails at once leaves nothing behind that would be recorded after the bundle's end."""
    pieces = pieces_of(lake, bundle, 2)
    ahead = look_ahead(bundle, in_order(pieces), executor)
    held = lake.cloud.proxy.hold(answer=True, where=matching("GetBlob", container=lake.raw.name, blob="in/1"))
    ended = threading.Event()

    def let_go() -> None:
        held.gate.wait_for_arrivals()
        ended.wait(0.5)
        held.gate.open()

    with ThreadPoolExecutor(1) as other:
        letting = other.submit(let_go)
        assert read(ahead.source(pieces[0])) == content(0)
        held.gate.wait_for_arrivals()
        ahead.source(pieces[1])
        ahead.close()
        bundle.close()
        ended.set()
        letting.result()
    bundle.session.close()
    assert [record["kind"] for record in lake.only_trail().records() if record["bundle"] == bundle.id][-1:] == [
        "bundle_closed"
    ]


def test_without_threads_nothing_is_prepared(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """As at the end of the interpreter: what can be read is read, and nobody waits for what was never begun."""
    pieces = pieces_of(lake, bundle, 3)
    ahead = look_ahead(bundle, in_order(pieces), executor)
    executor.shutdown()
    assert [read(ahead.source(piece)) for piece in pieces] == [content(number) for number in range(3)]
    ahead.close()


def test_what_comes_next_may_be_damaged_in_any_way(
    lake: Any, bundle: BundleSession, executor: ThreadPoolExecutor
) -> None:
    """Whatever a format raises over it, the blob before is read, and who reads the damaged one meets the error."""
    pieces = pieces_of(lake, bundle, 2)

    def wanted(piece: Piece, source: BlobSource) -> Iterator[Range]:
        yield 0, BLOCK
        raise ZeroDivisionError

    ahead = LookAhead(in_order(pieces), open_source=partial(opened, bundle), wanted=wanted, executor=executor)
    assert [read(ahead.source(piece)) for piece in pieces] == [content(0), content(1)]
    ahead.close()


def test_a_small_blob_behind_a_large_one_is_asked_for_as_it_is_read(lake: Any) -> None:
    """A Parquet file that is small is read as a whole, and not by its footer."""
    lake.raw.upload("in/a", large := parquet(0))
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [1]}), file)
    lake.raw.upload("in/b", file.getvalue())
    assert len(file.getvalue()) <= len(large) // 2
    with lake.pipeline() as p:
        read = ReadFromBlob(lake.raw.url("in/*"), Parquet(columns=["id"]), block_bytes=len(large))
        found = p | read | beam.Map(lambda row: row["id"])
        assert_that(found, equal_to([*range(100), 1]))
    reads = [each for each in lake.only_trail().records("read") if each["path"].endswith("/b")]
    assert [(each["start"], each["end"]) for each in reads] == [(0, len(file.getvalue()))]


def parquet(first: int) -> bytes:
    """A few rows in several row groups."""
    file = io.BytesIO()
    columns = {"id": range(first, first + 100), "more": [f"{first + row}" * 50 for row in range(100)]}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), file, row_group_size=30)
    return file.getvalue()


FORMATS: dict[str, tuple[Any, Any]] = {
    "lines": (Lines(), lambda n: b"".join(b"%d\n" % (n * 1000 + line) for line in range(500))),
    "gzip": (Lines(), lambda n: gzip.compress(b"".join(b"%d\n" % (n * 1000 + line) for line in range(500)), 0)),
    "whole": (Bytes(), lambda n: content(n) * 3),
    "parquet": (Parquet(columns=["id"]), parquet),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_job_reads_each_range_once(lake: Any, kind: str) -> None:
    """Blob after blob of any format: all there is, nothing asked for twice, and the trail says what was fetched."""
    format_, make = FORMATS[kind]
    blobs = {number: make(number) for number in range(5)}
    suffix = ".gz" if kind == "gzip" else ".data"
    for number, data in blobs.items():
        lake.raw.upload(f"in/{number}{suffix}", data)
    expected: list[Any] = {
        "whole": lambda: list(blobs.values()),
        "parquet": lambda: [{"id": number + row} for number in blobs for row in range(100)],
    }.get(kind, lambda: [str(number * 1000 + line) for number in blobs for line in range(500)])()
    with lake.pipeline() as p:
        read = ReadFromBlob(lake.raw.url(f"in/*{suffix}"), format_, block_bytes=200, prefetch_bytes=1600)
        assert_that(p | read | beam.Map(lambda element: element), equal_to(expected))
    ranges = [(each["path"], each["start"], each["end"]) for each in lake.only_trail().records("read")]
    assert len(set(ranges)) == len(ranges)
    wanted = sum(map(len, blobs.values())) if kind != "parquet" else 0
    assert sum(end - start for _, start, end in ranges if end) >= wanted
    lake.only_trail().verify()


def test_a_job_asks_for_the_next_blob_while_it_waits_for_one(lake: Any) -> None:
    """The first blob's answer is held until the second one has been asked for."""
    for number in range(3):
        lake.raw.upload(f"in/{number}", content(number))
    held = lake.cloud.proxy.hold(where=matching("GetBlob", blob="in/0"), times=1)

    def let_go() -> None:
        try:
            lake.cloud.proxy.wait_for(lambda _: gets(lake, 1) > 0)
        finally:
            held.gate.open()

    with ThreadPoolExecutor(1) as other:
        letting = other.submit(let_go)
        with lake.pipeline() as p:
            found = p | ReadFromBlob(lake.raw.url("in/*"), Bytes(), block_bytes=SIZE, prefetch_bytes=SIZE * 8)
            assert_that(found, equal_to([content(number) for number in range(3)]))
        letting.result()
