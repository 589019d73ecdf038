"""Small blobs travel in packs: many requests under way at once, and no order among them.

A small blob is one request whose time is the way there and back. A pack is what one worker takes at a time; how many of
its blobs are fetched at once, and held, is bounded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from beam_entra.paths import BlobPath
from beam_entra.storage import BlobProperties

__all__ = ["KeyedPack", "Pack", "fetch_unordered", "keyed", "packed"]

_COMPANY_S = 0.004  # so long is waited for the next one that could go along

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pack(tuple[BlobProperties, ...]):
    """Blobs that are read together, in a form that is cheap to pickle: Beam does so a dozen times on their way."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (
            [
                (
                    (blob.path.account, blob.path.container, blob.path.name),
                    blob.size_bytes,
                    blob.etag,
                    blob.last_modified,
                    blob.content_type,
                )
                for blob in self
            ],
        )


def _unpacked(blobs: list[tuple[tuple[str, str, str], Any, Any, Any, Any]]) -> Pack:
    """The same blobs; their paths were checked when they were made, as with any path that was pickled."""
    return Pack([_made(BlobProperties, (_made(BlobPath, path), *more)) for path, *more in blobs])


def _made(kind: type[Item], values: Iterable[Any]) -> Item:
    made = object.__new__(kind)
    for name, value in zip(kind.__slots__, values, strict=True):  # type: ignore[attr-defined]  # both have them
        object.__setattr__(made, name, value)
    return made


KeyedPack = tuple[int, Pack]  # what spreads packs over workers is a random key


def keyed(pack: Pack) -> KeyedPack:
    """The pack, and a key of its own."""
    return random.getrandbits(32), pack  # no secret


def packed(
    blobs: Iterable[BlobProperties], *, small_bytes: int, pack_blobs: int, pack_bytes: int
) -> Iterator[Pack]:
    """Small blobs together, each other one alone; it holds back no more than one pack.

    Args:
        small_bytes: How long a small blob may be.
        pack_blobs, pack_bytes: How many blobs, and bytes, may be in a pack.
    """
    pack: list[BlobProperties] = []
    size = 0
    for blob in blobs:
        if blob.size_bytes > small_bytes:
            yield Pack((blob,))
            continue
        if pack and (len(pack) >= pack_blobs or size + blob.size_bytes > pack_bytes):
            yield Pack(pack)
            pack, size = [], 0
        pack.append(blob)
        size += blob.size_bytes
    if pack:
        yield Pack(pack)


def fetch_unordered(
    fetch: Callable[[Item], Result], items: Iterable[Item], *, executor: Executor, depth: int, together: int
) -> Generator[list[tuple[Item, Result]], None, None]:
    """Each item with what was fetched for it, some at a time, as they come: one that takes long stalls no other.

    Args:
        depth: How many at most are under way, or here and not yet consumed.
        together: How many at most come together. Fewer do when no other comes within milliseconds.
    """
    waiting = iter(items)
    arrived: SimpleQueue[Future[Result]] = SimpleQueue()
    under_way: dict[Future[Result], Item] = {}

    def refill() -> None:
        for item in waiting:
            future = executor.submit(fetch, item)
            under_way[future] = item
            future.add_done_callback(arrived.put)
            if len(under_way) >= depth:
                return

    try:
        refill()
        while under_way:
            here = [arrived.get()]
            with suppress(Empty):
                while len(here) < min(together, len(under_way)):
                    here.append(arrived.get(timeout=_COMPANY_S))
            yield [(under_way[future], future.result()) for future in here]
            for future in here:  # only now: what the consumer holds counts
                del under_way[future]
            refill()
    finally:
        wait([future for future in under_way if not future.cancel()])
