"""From byte ranges to whole records: no record lost, none twice, however a blob is cut."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.errors import FormatError
from beam_entra.io.blocks import BYTE_ORDER_MARK, Block, fetch_ahead, split_blocks, stream_blocks, strip_line_end
from beam_entra.io.formats import Csv, Format, Lines
from beam_entra.io.read import _Claims

PATH = "abfss://raw@lake.dfs.core.windows.net/a.txt"
NO_LIMIT = 1 << 30

# Records without line ends, as short and as long as the block sizes below, empty ones, ones with "\r" in them, and
# ones of characters that a cut may take apart.
_bytes = st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"").rstrip(b"\r"))
_records = st.lists(_bytes | st.text("aé€😀", max_size=4).map(str.encode), max_size=25)
_line_ends = st.sampled_from([b"\n", b"\r\n"])


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    """The bytes of a blob: records with line ends of both kinds, the last one perhaps without, perhaps a mark first."""
    mark = draw(st.sampled_from([b"", BYTE_ORDER_MARK]))
    records = [record + draw(_line_ends) for record in draw(_records)]
    if records and draw(st.booleans()):
        records[-1] = strip_line_end(records[-1])
    return mark + b"".join(records)


def plain(data: bytes) -> list[tuple[int, bytes]]:
    """The reading to compare with: offset and bytes of each record, one after another."""
    found, at = [], len(BYTE_ORDER_MARK) if data.startswith(BYTE_ORDER_MARK) else 0
    while at < len(data):
        newline = data.find(b"\n", at)
        end = len(data) if newline < 0 else newline + 1
        found.append((at, strip_line_end(data[at:end])))
        at = end
    return found


def chunks_of(data: bytes, size: int) -> Callable[[int, int], Iterator[bytes]]:
    """Bytes of a blob in memory, at most `size` at a time."""

    def chunks(start: int, stop: int) -> Iterator[bytes]:
        assert 0 <= start <= stop <= len(data)
        return (data[at : min(at + size, stop)] for at in range(start, stop, size))

    return chunks


def in_blocks(blocks: Iterable[Block], format: Format | None = None) -> list[tuple[int, bytes]]:
    """Offset and bytes of each record of some blocks."""
    found = []
    for block in blocks:
        at = block.offset
        for line in (format or Lines()).records(block.data):
            found.append((at, strip_line_end(line)))
            at += len(line)
        assert at == block.offset + len(block.data), "a block holds whole records and nothing else"
    return found


def read_range(
    data: bytes, tracker: OffsetRestrictionTracker, *, block_bytes: int = 7, limit: int = NO_LIMIT
) -> Iterator[Block]:
    """What the splittable read does with one restriction, to its end."""
    claims, restriction = _Claims(tracker), tracker.current_restriction()
    yield from split_blocks(
        PATH,
        chunks_of(data, block_bytes),
        restriction.start,
        restriction.stop,
        len(data),
        claims,
        max_record_bytes=limit,
    )
    claims.finish()


@given(data=blobs(), block_bytes=st.integers(1, 40), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_any_partition_of_a_blob_gives_each_record_once_at_its_offset(
    data: bytes, block_bytes: int, cuts: list[int]
) -> None:
    """The ranges of any partition together read what a plain reading reads, and every restriction is done."""
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = []
    for start, stop in itertools.pairwise(bounds):
        tracker = OffsetRestrictionTracker(OffsetRange(start, stop))
        found += in_blocks(read_range(data, tracker, block_bytes=block_bytes))
        tracker.check_done()
    assert found == plain(data)


@settings(max_examples=300)
@given(data=blobs(), block_bytes=st.integers(1, 20), source=st.data())
def test_splits_while_reading_lose_and_repeat_nothing(data: bytes, block_bytes: int, source: st.DataObject) -> None:
    """A runner may split before any claim, as often as it likes; primary and residuals read each record once."""
    waiting = [OffsetRange(0, len(data))]
    found = []
    splits = 0
    while waiting:
        tracker = OffsetRestrictionTracker(waiting.pop())
        reader = read_range(data, tracker, block_bytes=block_bytes)
        while True:
            if splits < 12 and source.draw(st.booleans(), label="split?"):
                split = tracker.try_split(source.draw(st.sampled_from([0, 0.1, 0.5, 0.9]), label="of the rest"))
                if split is not None:
                    splits += 1
                    waiting.append(split[1])
            block = next(reader, None)
            if block is None:
                break
            found += in_blocks([block])
        tracker.check_done()
    assert sorted(found) == plain(data)


def test_a_split_between_the_last_claim_and_the_end_is_respected() -> None:
    """A runner that splits in the middle of the fetch for the next block gets the records behind the split back."""
    data = b"".join(b"%03d\n" % number for number in range(100))
    tracker = OffsetRestrictionTracker(OffsetRange(0, len(data)))
    residuals: list[OffsetRange] = []

    def chunks(start: int, stop: int) -> Iterator[bytes]:
        for at, piece in enumerate(chunks_of(data, 40)(start, stop)):
            if at == 3:
                residuals.append(tracker.try_split(0.25)[1])
            yield piece

    claims = _Claims(tracker)
    mine = in_blocks(split_blocks(PATH, chunks, 0, len(data), len(data), claims, max_record_bytes=NO_LIMIT))
    claims.finish()
    tracker.check_done()
    rest = in_blocks(read_range(data, OffsetRestrictionTracker(residuals[0])))
    assert mine + rest == plain(data)
    assert 120 <= len(mine) * 4 < len(data), "the split took effect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A blob read in two ranges, and what each must give."""

    name: str
    data: bytes
    at: int
    first: list[bytes]
    second: list[bytes]


CUTS = [
    Cut(name="behind a line end", data=b"a\nb\n", at=2, first=[b"a"], second=[b"b"]),
    Cut(name="before a line end", data=b"a\nb\n", at=1, first=[b"a"], second=[b"b"]),
    Cut(name="on a record's first byte but one", data=b"a\nbb\n", at=3, first=[b"a", b"bb"], second=[]),
    Cut(name="within a CRLF", data=b"a\r\nb\r\n", at=2, first=[b"a"], second=[b"b"]),
    Cut(name="within the only record", data=b"abcdef", at=3, first=[b"abcdef"], second=[]),
    Cut(name="before a last record without an end", data=b"a\nb", at=2, first=[b"a"], second=[b"b"]),
    Cut(name="within the byte order mark", data=b"\xef\xbb\xbfa\nb\n", at=1, first=[b"a", b"b"][:1], second=[b"b"]),
    Cut(name="among empty records", data=b"\n\n\n", at=1, first=[b""], second=[b"", b""]),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
def test_a_record_belongs_to_the_range_of_its_first_byte(cut: Cut) -> None:
    """Where a record begins decides who reads it, wherever the cut is."""
    size = len(cut.data)
    ranges = [OffsetRange(0, cut.at), OffsetRange(cut.at, size)]
    found = [in_blocks(read_range(cut.data, OffsetRestrictionTracker(part))) for part in ranges]
    assert [[record for _, record in part] for part in found] == [cut.first, cut.second]


def test_a_record_longer_than_many_blocks_and_ranges_is_read_once() -> None:
    """The range where it begins completes it from beyond its end; the ranges that it covers give nothing."""
    data = b"x\n" + b"y" * 5000 + b"\nz\n"
    found = [
        in_blocks(read_range(data, OffsetRestrictionTracker(OffsetRange(at, min(at + 100, len(data)))), block_bytes=10))
        for at in range(0, len(data), 100)
    ]
    assert found[0] == plain(data)[:2]
    assert [part for part in found[1:] if part] == [plain(data)[2:]]


def test_a_long_tail_is_fetched_in_few_requests() -> None:
    """What lies beyond the range is asked for in growing pieces, not in thousands of small ones."""
    data = b"y" * (20 << 20)
    asked: list[tuple[int, int]] = []

    def chunks(start: int, stop: int) -> Iterator[bytes]:
        asked.append((start, stop))
        return chunks_of(data, 1 << 20)(start, stop)

    claims = _Claims(OffsetRestrictionTracker(OffsetRange(0, 10)))
    found = list(split_blocks(PATH, chunks, 0, 10, len(data), claims, max_record_bytes=NO_LIMIT))
    assert [len(block.data) for block in found] == [len(data)]
    assert len(asked) < 12


def test_a_range_fetches_little_beyond_its_end() -> None:
    """A record that ends soon behind the range costs one small request more."""
    data = b"0123456789\n" * 100_000
    asked: list[tuple[int, int]] = []

    def chunks(start: int, stop: int) -> Iterator[bytes]:
        asked.append((start, stop))
        return chunks_of(data, 1 << 16)(start, stop)

    claims = _Claims(OffsetRestrictionTracker(OffsetRange(500, 1000)))
    found = in_blocks(split_blocks(PATH, chunks, 500, 1000, len(data), claims, max_record_bytes=NO_LIMIT))
    assert [at for at, _ in found] == list(range(506, 1000, 11))
    assert sum(stop - start for start, stop in asked) <= 501 + 64 * 1024


@pytest.mark.parametrize("compressed", [False, True])
def test_a_record_without_an_end_in_sight_is_an_error(compressed: bool) -> None:
    """`max_record_bytes` bounds what is held of one record, and the error names it, the blob and the way out."""
    data = b"a\n" + b"x" * 300
    if compressed:
        blocks = stream_blocks(PATH, chunks_of(data, 10)(0, len(data)), Lines(), max_record_bytes=100)
    else:
        blocks = read_range(data, OffsetRestrictionTracker(OffsetRange(0, len(data))), block_bytes=10, limit=100)
    with pytest.raises(FormatError, match=r"record at byte 2 of abfss://raw@.* is longer than 100 bytes") as caught:
        list(blocks)
    assert "max_record_bytes" in caught.value.hint


def test_a_byte_order_mark_is_dropped_and_counted() -> None:
    """The mark is no part of the first record, and offsets stay those of the blob."""
    data = b"\xef\xbb\xbfa\nb\n"
    whole = OffsetRestrictionTracker(OffsetRange(0, len(data)))
    assert in_blocks(read_range(data, whole, block_bytes=1)) == [(3, b"a"), (5, b"b")]
    streamed = stream_blocks(PATH, chunks_of(data, 1)(0, len(data)), Lines(), max_record_bytes=NO_LIMIT)
    assert in_blocks(streamed) == [(3, b"a"), (5, b"b")]


def test_an_empty_blob_has_no_records_and_is_done() -> None:
    """Nothing is fetched, nothing is given, and nothing is left to claim."""
    tracker = OffsetRestrictionTracker(OffsetRange(0, 0))
    assert list(read_range(b"", tracker)) == []
    tracker.check_done()
    assert list(stream_blocks(PATH, iter([]), Csv(), max_record_bytes=NO_LIMIT)) == []


@given(data=blobs(), piece=st.integers(1, 40))
def test_a_stream_gives_what_a_plain_reading_gives(data: bytes, piece: int) -> None:
    """Blobs that are read as a whole give the same records and offsets."""
    found = stream_blocks(PATH, chunks_of(data, piece)(0, len(data)), Lines(), max_record_bytes=NO_LIMIT)
    assert in_blocks(found) == plain(data)


@given(piece=st.integers(1, 60), rows=st.integers(0, 8), end=_line_ends)
def test_quoted_line_ends_never_split_a_row(piece: int, rows: int, end: bytes) -> None:
    """However a CSV blob is cut into pieces, a row stays whole, and its offset and header are right."""
    header, row = b"id,text" + end, b'7,"two' + end + b'lines, ""quoted"""' + end
    data = header + row * rows
    blocks = list(stream_blocks(PATH, chunks_of(data, piece)(0, len(data)), Csv(), max_record_bytes=NO_LIMIT))
    expected = [(len(header) + number * len(row), strip_line_end(row)) for number in range(rows)]
    assert in_blocks(blocks, Csv()) == expected
    assert {block.header for block in blocks} <= {b"id,text"}
    bad: list[object] = []
    elements = [element for block in blocks for element in Csv().decode_each(block, bad)]
    text = f'two{end.decode()}lines, "quoted"'
    assert (elements, bad) == ([{"id": "7", "text": text}] * rows, [])


# Fetching ahead



def pieces_of(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """The ranges that [start, stop) is fetched in."""
    return ((begin, min(begin + step, stop)) for begin in range(start, stop, step))


class Source:
    """A way to fetch that counts what is under way and can be held."""

    def __init__(self, *, held: bool = False, fail_at: int = -1) -> None:
        self.lock = threading.Lock()
        self.under_way = self.most = self.started = 0
        self.ended = 0
        self.gate = threading.Event()
        self.fail_at = fail_at
        if not held:
            self.gate.set()

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes whose value is their offset."""
        with self.lock:
            self.started += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            assert self.gate.wait(10)
            if start == self.fail_at:
                raise OSError(f"no bytes at {start}")
            return bytes(range(start, stop))
        finally:
            with self.lock:
                self.under_way -= 1
                self.ended += 1


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads enough for every depth in these tests."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_chunks_come_in_order_and_no_deeper_than_asked(executor: ThreadPoolExecutor, depth: int) -> None:
    """Order is the blob's; requests under way are never more than the depth."""
    source = Source()
    ask = partial(executor.submit, source.fetch)
    chunks = fetch_ahead(ask, pieces_of(3, 201, 7), depth=depth, ahead_bytes=NO_LIMIT)
    found = b""
    for number, chunk in enumerate(chunks, start=1):
        found += chunk
        assert source.started <= number + depth
    assert found == bytes(range(3, 201))
    assert source.most <= depth


@pytest.mark.parametrize(("ahead_bytes", "most"), [(1, 1), (13, 1), (14, 2), (30, 4), (1000, 6)])
def test_bytes_ahead_are_bounded(executor: ThreadPoolExecutor, ahead_bytes: int, most: int) -> None:
    """However few may be ahead, one range is; more are as long as both bounds allow."""
    source = Source()
    ask = partial(executor.submit, source.fetch)
    arriving = fetch_ahead(ask, pieces_of(3, 199, 7), depth=6, ahead_bytes=ahead_bytes)
    found = b""
    for number, chunk in enumerate(arriving, start=1):
        found += chunk
        assert source.started <= number + most
    assert found == bytes(range(3, 199))
    assert source.most <= most


def test_room_is_told_when_all_has_been_asked_for(executor: ThreadPoolExecutor) -> None:
    """From the moment on in which nothing more is to be asked for, and more of it with each piece that is taken."""
    source, room = Source(), list[int]()
    ask = partial(executor.submit, source.fetch)
    arriving = fetch_ahead(ask, pieces_of(0, 50, 10), depth=9, ahead_bytes=30, drained=room.append)
    assert next(arriving) == bytes(range(10))
    assert room == []
    assert len(list(arriving)) == 4
    assert room == [0, 10, 20, 30]


def test_an_early_end_cancels_what_waits_and_waits_for_what_runs() -> None:
    """When the consumer stops, no request of its own is left under way, and none that waited is sent."""
    source = Source(held=True)
    with ThreadPoolExecutor(1) as pool:
        chunks = fetch_ahead(partial(pool.submit, source.fetch), pieces_of(0, 100, 10), depth=4, ahead_bytes=NO_LIMIT)
        source.gate.set()
        assert next(chunks) == bytes(range(10))
        source.gate.clear()
        opener = threading.Timer(0.05, source.gate.set)
        opener.start()
        chunks.close()
        assert source.under_way == 0
        started = source.started
        assert pool.submit(lambda: source.started).result() == started < 10, "what waited was cancelled"


def test_an_early_end_does_not_wait_for_a_busy_pool() -> None:
    """A request that never began is dropped at once, although every thread is busy with somebody else's."""
    others = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def fetch(start: int, stop: int) -> bytes:
            pool.submit(others.wait, 10)
            return bytes(range(start, stop))

        chunks = fetch_ahead(partial(pool.submit, fetch), pieces_of(0, 100, 10), depth=1, ahead_bytes=NO_LIMIT)
        assert next(chunks) == bytes(range(10))
        closed = threading.Event()
        closer = threading.Thread(target=lambda: (chunks.close(), closed.set()))
        closer.start()
        try:
            assert closed.wait(2), "it waits for a thread to tell it that its request is cancelled"
        finally:
            others.set()
            closer.join()


def test_an_error_in_a_range_surfaces_once(executor: ThreadPoolExecutor) -> None:
    """What was fetched before it comes first, then the error, then nothing more; the others are not left running."""
    source = Source(fail_at=20)
    chunks = fetch_ahead(partial(executor.submit, source.fetch), pieces_of(0, 100, 10), depth=3, ahead_bytes=NO_LIMIT)
    assert [next(chunks), next(chunks)] == [bytes(range(10)), bytes(range(10, 20))]
    with pytest.raises(OSError, match="no bytes at 20"):
        next(chunks)
    assert next(chunks, None) is None
    assert source.under_way == 0


def test_a_read_that_stops_early_leaves_no_request_behind(executor: ThreadPoolExecutor) -> None:
    """A split that ends the range closes its fetches."""
    data = b"".join(b"%03d\n" % number for number in range(1000))
    under_way = threading.Semaphore(0)

    def fetch(start: int, stop: int) -> bytes:
        under_way.release()
        return data[start:stop]

    def chunks(start: int, stop: int) -> Iterator[bytes | bytearray]:
        ask = partial(executor.submit, fetch)
        return fetch_ahead(ask, pieces_of(start, stop, 40), depth=2, ahead_bytes=NO_LIMIT)

    tracker = OffsetRestrictionTracker(OffsetRange(0, len(data)))
    claims = _Claims(tracker)
    blocks = split_blocks(PATH, chunks, 0, len(data), len(data), claims, max_record_bytes=NO_LIMIT)
    first = next(blocks)
    tracker.try_split(0)
    assert list(blocks) == []
    claims.finish()
    tracker.check_done()
    assert in_blocks([first]) == plain(data)[:10]
    fetched = 0
    while under_way.acquire(blocking=False):
        fetched += 1
    assert fetched <= 5, "reading ended soon after the split"
