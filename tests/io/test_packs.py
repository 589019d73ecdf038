"""Packs: which blobs go together, and how they are fetched."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import apache_beam as beam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.io.packs import Pack, fetch_unordered, packed
from beam_entra.paths import BlobPath
from beam_entra.storage import BlobProperties

SMALL, BLOBS, BYTES = 100, 4, 300


def blob(size: int, number: int = 0) -> BlobProperties:
    """A blob of this length."""
    path = BlobPath(account="contosolake", container="raw", name=f"in/{number}")
    return BlobProperties(path=path, size_bytes=size, etag='"1"', last_modified=datetime(2030, 1, 1, tzinfo=UTC))


def sizes(*of: int) -> list[list[int]]:
    """The packs that blobs of these lengths make."""
    blobs = [blob(size, number) for number, size in enumerate(of)]
    packs = packed(blobs, small_bytes=SMALL, pack_blobs=BLOBS, pack_bytes=BYTES)
    return [[each.size_bytes for each in pack] for pack in packs]


CASES = {
    "nothing": ((), []),
    "a small one": ((1,), [[1]]),
    "a large one": ((101,), [[101]]),
    "exactly small": ((100, 100), [[100, 100]]),
    "as many as go in": ((1, 2, 3, 4, 5), [[1, 2, 3, 4], [5]]),
    "as much as goes in": ((100, 100, 100, 1), [[100, 100, 100], [1]]),
    "empty ones": ((0, 0), [[0, 0]]),
    "a large one between small ones": ((1, 101, 2), [[101], [1, 2]]),
}


@pytest.mark.parametrize(("of", "expected"), CASES.values(), ids=CASES)
def test_small_blobs_go_together(of: tuple[int, ...], expected: list[list[int]]) -> None:
    """By number and by bytes; a large one goes alone, at once."""
    assert sizes(*of) == expected


@given(st.lists(st.integers(0, 150)))
def test_packs_lose_and_repeat_nothing_and_stay_within_their_bounds(of: list[int]) -> None:
    """Whatever the lengths."""
    packs = sizes(*of)
    assert sorted(size for pack in packs for size in pack) == sorted(of)
    for pack in packs:
        assert pack
        assert len(pack) == 1 or (len(pack) <= BLOBS and sum(pack) <= BYTES and max(pack) <= SMALL)


def test_packs_come_while_blobs_are_still_being_listed() -> None:
    """No more is held back than one pack."""
    listed: list[int] = []

    def listing() -> Iterator[BlobProperties]:
        for number in range(100):
            listed.append(number)
            yield blob(1, number)

    packs = packed(listing(), small_bytes=SMALL, pack_blobs=BLOBS, pack_bytes=BYTES)
    next(packs)
    assert len(listed) == BLOBS + 1


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Some threads to fetch with."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_each_item_comes_once_with_what_was_fetched_for_it(threads: ThreadPoolExecutor) -> None:
    """In whatever order, some at a time."""
    arriving = list(fetch_unordered(lambda n: n * n, range(100), executor=threads, depth=8, together=3))
    assert sorted(each for some in arriving for each in some) == [(n, n * n) for n in range(100)]
    assert {len(some) for some in arriving} <= {1, 2, 3}


@pytest.mark.parametrize("together", [1, 4, 100])
def test_a_slow_one_stalls_no_other(threads: ThreadPoolExecutor, together: int) -> None:
    """Everything else comes before it, however much that is."""
    hold = threading.Event()

    def fetch(number: int) -> int:
        if number == 3:
            assert hold.wait(30)
        return number

    arriving = fetch_unordered(fetch, range(200), executor=threads, depth=6, together=together)
    first: list[int] = []
    while len(first) < 199:
        first += [item for item, _ in next(arriving)]
    assert 3 not in first
    hold.set()
    assert list(arriving) == [[(3, 3)]]


@pytest.mark.parametrize(("depth", "together"), [(1, 1), (3, 2), (8, 8), (8, 100)])
def test_no_more_is_held_than_it_may(threads: ThreadPoolExecutor, depth: int, together: int) -> None:
    """What is under way and what has not been consumed count together."""
    begun: list[int] = []
    consumed = 0
    for some in fetch_unordered(begun.append, range(50), executor=threads, depth=depth, together=together):
        assert len(begun) <= consumed + depth
        consumed += len(some)
    assert len(begun) == consumed == 50


def test_an_error_is_raised_when_it_comes(threads: ThreadPoolExecutor) -> None:
    """And nothing is under way any more when it is."""
    begun, ended = [], []

    def fetch(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("the first one")
        ended.append(number)

    with pytest.raises(ValueError, match="the first one"):
        list(fetch_unordered(fetch, range(1000), executor=threads, depth=1000, together=1))
    assert sorted(begun) == [0, *sorted(ended)]
    assert threads.submit(lambda: len(begun)).result() == len(ended) + 1, "the others never begin"


def test_who_stops_early_leaves_nothing_under_way(threads: ThreadPoolExecutor) -> None:
    """What has not begun is cancelled; what has is waited for."""
    ended: list[int] = []
    arriving = fetch_unordered(ended.append, range(1000), executor=threads, depth=20, together=2)
    next(arriving)
    arriving.close()
    count = len(ended)
    assert count <= 20
    assert threads.submit(lambda: len(ended)).result() == count


@given(st.lists(st.integers(0, 1 << 40), max_size=5), st.text(alphabet="abcé/ %", max_size=8))
def test_a_pack_is_the_same_once_it_has_travelled(of: list[int], name: str) -> None:
    """Pickled, and through the coder that Beam takes for it."""
    blobs = [replace(blob(size, number), content_type=name, etag=f'"{name}"') for number, size in enumerate(of)]
    pack = Pack(blobs)
    coder = beam.coders.registry.get_coder(Pack)
    for travelled in (pickle.loads(pickle.dumps(pack)), coder.decode(coder.encode(pack))):  # noqa: S301 - our own
        assert (type(travelled), travelled) == (Pack, pack)
        assert [(each.content_type, hash(each.path)) for each in travelled] == [(name, hash(b.path)) for b in blobs]
