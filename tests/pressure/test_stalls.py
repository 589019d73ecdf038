"""One slow or failing range stalls nothing but itself, and a read that fails ends with one error and a sound trail."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import apache_beam as beam
import pytest

from beam_entra import Lines, ReadFromBlob, ScopedPipeline
from beam_entra.errors import AccessDenied, BeamEntraError, StorageError, Throttled
from beam_entra.testing.proxy import StorageFault, StorageProxy
from beam_entra.testing.storage_requests import StorageExchange, StorageRequest, matching
from beam_entra.testing.watch import Journal
from tests.pressure.conftest import Lake, Trail

DELIVERED: Journal[str] = Journal()  # what came out of the read; the runner works in this process

BLOCK_BYTES = 16 * 1024
BLOCKS = 64
ROW_BYTES = 8
ROWS = [f"{number:07d}" for number in range(BLOCKS * BLOCK_BYTES // ROW_BYTES)]  # and a line end

Where = Callable[[StorageRequest], bool]


def deliver(line: str) -> None:
    """Downstream of the read, and fused with it."""
    DELIVERED.append(line)


def read(lake: Lake, pipeline: ScopedPipeline) -> None:
    """Read everything, line by line."""
    DELIVERED.clear()
    with pipeline as p:
        lines = p | ReadFromBlob(lake.raw.url("in/*"), Lines(), block_bytes=BLOCK_BYTES)
        lines | beam.Map(deliver)


@contextmanager
def reading(lake: Lake, pipeline: ScopedPipeline) -> Iterator[None]:
    """Read in the background of the block, and then to the end."""
    thread = threading.Thread(target=read, args=(lake, pipeline))
    thread.start()
    try:
        yield
    finally:
        lake.cloud.proxy.clear_faults()
        thread.join()


def get(blob: str, *, end: int = 0) -> Where:
    """Requests for a blob, or for that range of it which ends here, wherever they begin."""

    def fits(request: StorageRequest) -> bool:
        asked = request.headers.get("x-ms-range", "")
        return request.operation == "GetBlob" and request.blob == blob and (not end or asked.endswith(f"-{end - 1}"))

    return fits


def asked(seen: list[StorageExchange], blob: str = "in/large.txt") -> dict[int, list[int]]:
    """Where each range of a blob ends: where the requests for it began, in order."""
    begins: dict[int, list[int]] = defaultdict(list)
    for exchange in seen:
        if get(blob)(exchange.request):
            begin, end = exchange.request.headers["x-ms-range"].removeprefix("bytes=").split("-")
            begins[int(end) + 1].append(int(begin))
    return begins


def check_trail(lake: Lake, trail: Trail, *, outcome: str) -> None:
    """It verifies, and has the answers that were let in, each once: those, and no others."""
    assert trail.verify().seal.outcome == outcome
    here = matching("GetBlob", container=lake.raw.name)
    answered = [
        (exchange.request_id, exchange.request.blob)
        for exchange in lake.cloud.proxy.requests
        if here(exchange.request) and exchange.status in {200, 206}
    ]
    folder = lake.raw.url()
    recorded = [(record["request_id"], record["path"].removeprefix(folder)) for record in trail.records("read")]
    assert sorted(recorded) == sorted(answered)


def put_large(lake: Lake) -> list[tuple[int, int]]:
    """A blob of many blocks, and the ranges that it is read in when nothing is in the way."""
    lake.raw.upload("in/large.txt", "".join(f"{row}\n" for row in ROWS).encode())
    read(lake, lake.pipeline())
    begins = asked(list(lake.cloud.proxy.requests))
    lake.cloud.proxy.clear()
    assert all(len(each) == 1 for each in begins.values())
    return sorted((begin, end) for end, (begin,) in begins.items())


def put_pack(lake: Lake) -> list[str]:
    """Small blobs that go in one pack, a row in each."""
    rows = ROWS[:60]
    for row in rows:
        lake.raw.upload(f"in/{row}.txt", f"{row}\n".encode())
    return rows


@pytest.mark.timeout(60)
@pytest.mark.parametrize("answer", [False, True], ids=["the request", "the answer"])
def test_one_slow_blob_holds_up_no_other_of_its_pack(lake: Lake, answer: bool) -> None:
    """All the others have come out of the read, their access on record, while one is still held."""
    rows = put_pack(lake)
    pipeline = lake.pipeline()
    trail = lake.trail(pipeline.scope.job)
    slow = lake.cloud.proxy.hold(where=get(f"in/{rows[7]}.txt"), answer=answer, times=1)
    with reading(lake, pipeline):
        slow.gate.wait_for_arrivals()
        others = DELIVERED.wait_for(lambda lines: len(lines) == len(rows) - 1, timeout_s=30)
        assert rows[7] not in others
        recorded = {record["path"] for record in trail.records("read")}
        assert recorded == {lake.raw.url(f"in/{row}.txt") for row in others}
    assert sorted(DELIVERED) == rows
    check_trail(lake, trail, outcome="ok")


@pytest.mark.timeout(60)
def test_a_range_that_breaks_again_and_again_is_resumed_at_the_byte_while_others_go_on(lake: Lake) -> None:
    """What came before is out, what comes behind is fetched ahead and not asked for again, and each row comes once."""
    ranges = put_large(lake)
    begin, end = ranges[3]
    pipeline, proxy, broken = lake.pipeline(), lake.cloud.proxy, get("in/large.txt", end=end)
    faults = [
        proxy.respond(503, "ServerBusy", where=broken, times=1),
        proxy.reset(where=broken, times=1),
        proxy.truncate(10_001, where=broken, times=1),
        proxy.truncate(5_000, where=broken, times=1),
        held := proxy.hold(where=broken, times=1),
    ]
    with reading(lake, pipeline):
        held.gate.wait_for_arrivals(timeout_s=30)
        behind = {behind: [begin] for begin, behind in ranges[4:7]}
        proxy.wait_for(lambda seen: behind.items() <= asked(seen).items())
        before = DELIVERED.wait_for(lambda lines: len(lines) >= begin // ROW_BYTES)
        assert before == ROWS[: begin // ROW_BYTES]
    assert [fault.hits for fault in faults] == [1] * len(faults)
    assert list(DELIVERED) == ROWS
    begins = asked(list(proxy.requests))
    assert begins.pop(end) == [begin, begin, begin, begin + 10_001, begin + 15_001]
    assert begins == {end: [begin] for begin, end in ranges[:3] + ranges[4:]}
    check_trail(lake, lake.trail(pipeline.scope.job), outcome="ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What never gets better, the error that it is, and how often it is asked."""

    fault: Callable[[StorageProxy, Where], StorageFault]
    error: type[BeamEntraError]
    attempts: int = 1


FAILURES = {
    "access is refused": Failure(
        fault=lambda proxy, where: proxy.respond(403, "AuthorizationFailure", where=where), error=AccessDenied
    ),
    "it is too busy for an hour": Failure(
        fault=lambda proxy, where: proxy.respond(503, "ServerBusy", headers={"Retry-After": "3600"}, where=where),
        error=Throttled,
    ),
    "nothing answers": Failure(fault=lambda proxy, where: proxy.reset(where=where), error=StorageError, attempts=7),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("large", [False, True], ids=["a blob of a pack", "a range of a large blob"])
def test_one_that_fails_for_good_ends_the_read_with_one_error(lake: Lake, failure: Failure, large: bool) -> None:
    """The error names the blob; nothing of what failed or is behind it comes out; the trail is sealed, and verifies."""
    if large:
        begin, end = put_large(lake)[3]
        failing, before = "in/large.txt", ROWS[: begin // ROW_BYTES]
    else:
        rows, end = put_pack(lake), 0
        failing, before = f"in/{rows[7]}.txt", rows[:7] + rows[8:]
    fault = failure.fault(lake.cloud.proxy, get(failing, end=end))
    pipeline = lake.pipeline()
    with pytest.raises(BeamEntraError) as caught:
        read(lake, pipeline)
    assert type(caught.value) is failure.error
    assert lake.raw.url(failing) in caught.value.diagnosis.tried
    assert caught.value.diagnosis.attempts == fault.hits == failure.attempts
    if large:
        assert list(DELIVERED) == before
    else:
        assert set(DELIVERED) <= set(before)
        assert len(DELIVERED) == len(set(DELIVERED))
    trail = lake.trail(pipeline.scope.job)
    check_trail(lake, trail, outcome="failed")
    assert len(trail.records("denied")) == (failure.error is AccessDenied)
