"""Looking ahead: who has asked for all of what it reads asks for what it will read next.

Beam hands a reader one restriction at a time, and each begins with a round trip or two in which nothing else would
happen. In which order they will come nobody says; but where the process that cut them also reads them, as with the
runners that work in one process, they come as they were cut. The first one that does not ends it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from beam_entra.errors import BeamEntraError
from beam_entra.io.blocks import Range
from beam_entra.io.source import BlobSource
from beam_entra.storage import BlobProperties

__all__ = ["LookAhead", "Piece", "ReadOrder"]

_KEPT = 10_000  # pieces whose successor is known
_PREPARED = 4  # pieces ahead


class Piece(NamedTuple):
    """A restriction of one blob."""

    blob: BlobProperties
    start: int
    stop: int


class ReadOrder:
    """In which order a step's restrictions were cut in this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._following: dict[Piece, Piece] = {}
        self._last: Piece | None = None
        self._holds = True

    def add(self, piece: Piece | None) -> None:
        """The next one; None is something that is not prepared."""
        with self._lock:
            if self._holds and self._last is not None and piece is not None and len(self._following) < _KEPT:
                self._following[self._last] = piece
            self._last = piece

    def after(self, piece: Piece) -> Piece | None:
        """What follows, told once."""
        with self._lock:
            return self._following.pop(piece, None)

    def give_up(self) -> None:
        """They come in another order."""
        with self._lock:
            self._holds = False
            self._following.clear()


@dataclass(slots=True, kw_only=True, eq=False)
class _Prepared:
    """A piece to come.

    Attributes:
        wanted: What is still to be begun of it; to find it out may take a request.
        held: The first of these, if there was no room for it.
        begun_bytes: How much has been begun.
        complete: All of it has been.
        at_work: More of it is being begun right now.
    """

    piece: Piece
    source: BlobSource
    wanted: Iterator[Range]
    held: Range | None = None
    begun_bytes: int = 0
    complete: bool = False
    at_work: bool = False


class LookAhead:
    """Of one reader and bundle, which reads its pieces one after the other.

    Args:
        open_source: Opens a piece.
        wanted: What reading a piece will ask for, in order.
        executor: Where this is found out.
    """

    def __init__(
        self,
        order: ReadOrder,
        *,
        open_source: Callable[[Piece], BlobSource],
        wanted: Callable[[Piece, BlobSource], Iterator[Range]],
        executor: Executor,
    ) -> None:
        self._order = order
        self._open_source, self._wanted, self._executor = open_source, wanted, executor
        self._reading: BlobSource | None = None
        self._prepared: deque[_Prepared] = deque()
        self._changed = threading.Condition()

    def source(self, piece: Piece) -> BlobSource:
        """The piece that is read now; of it, something may be here already."""
        self._leave()
        prepared: _Prepared | None = None
        with self._changed:
            if self._prepared and self._prepared[0].piece == piece:
                prepared = self._prepared.popleft()
                self._changed.wait_for(lambda: not prepared.at_work)
        if prepared is None:
            self.close()
        source = self._open_source(piece) if prepared is None else prepared.source
        source.drained = lambda room_bytes: self._go_on(piece, room_bytes)
        self._reading = source
        return source

    def close(self) -> None:
        """Give up what was prepared, and the hope that it goes on in this order if there was any."""
        self._leave()
        with self._changed:
            dropped = list(self._prepared)
            self._prepared.clear()
            self._changed.wait_for(lambda: not any(each.at_work for each in dropped))
        if dropped:
            self._order.give_up()
        for each in dropped:
            each.source.give_up()

    def _leave(self) -> None:
        """Give up what was begun of the piece that was read, and not asked for."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.give_up()

    def _go_on(self, piece: Piece, room_bytes: int) -> None:
        """Begin as much of what comes as there is room for."""
        with self._changed:
            left_bytes = room_bytes - sum(each.begun_bytes for each in self._prepared)
            if left_bytes <= 0 or any(each.at_work for each in self._prepared):
                return
            prepared = next((each for each in self._prepared if not each.complete), None) or self._prepare(piece)
            if prepared is None:
                return
            prepared.at_work = True
        try:
            self._executor.submit(self._begin, prepared, piece, room_bytes, left_bytes)
        except RuntimeError:  # the interpreter ends, or has no more threads: it is read without having been prepared
            with self._changed:
                prepared.complete, prepared.at_work = True, False
                self._changed.notify_all()

    def _prepare(self, piece: Piece) -> _Prepared | None:
        """One more piece, if there is one to come."""
        last = self._prepared[-1].piece if self._prepared else piece
        following = self._order.after(last) if len(self._prepared) < _PREPARED else None
        if following is None:
            return None
        source = self._open_source(following)
        prepared = _Prepared(piece=following, source=source, wanted=self._wanted(following, source))
        self._prepared.append(prepared)
        return prepared

    def _begin(self, prepared: _Prepared, piece: Piece, room_bytes: int, left_bytes: int) -> None:
        begun_bytes, complete = 0, False
        try:
            while (wanted := prepared.held or next(prepared.wanted, None)) is not None:
                length = wanted[1] - wanted[0]
                prepared.held = wanted if begun_bytes + length > left_bytes else None
                if prepared.held:
                    break
                prepared.source.begin(*wanted)
                begun_bytes += length
            complete = wanted is None
        except BeamEntraError:
            complete = True  # whoever reads it comes upon it, too
        finally:
            with self._changed:
                prepared.begun_bytes += begun_bytes
                prepared.complete = complete
                prepared.at_work = False
                goes_on = complete and prepared in self._prepared
                self._changed.notify_all()
        if goes_on:
            self._go_on(piece, room_bytes)
