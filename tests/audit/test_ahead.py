"""Reading ahead: as one after the other, but at once; and never more than there is room for."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing

import pytest

from beam_entra.audit.ahead import read_ahead
from beam_entra.errors import AuditUnavailable

MIB = 1 << 20


def test_several_are_read_at_once_and_given_in_their_order() -> None:
    """The first is not there before the sixteenth has been asked for; what is given is in order all the same."""
    together = threading.Barrier(16)

    def read(number: int) -> bytes:
        together.wait(30)
        return bytes([number])

    found = list(read_ahead(read, [(number, 1) for number in range(64)]))
    assert found == [(number, bytes([number])) for number in range(64)]


@pytest.mark.parametrize(("size_bytes", "most"), [(40 * MIB, 1), (30 * MIB, 2), (200 * MIB, 1), (1, 256)])
def test_there_is_no_more_ahead_than_there_is_room_for(size_bytes: int, most: int) -> None:
    """64 MiB, or one that is longer, or 256 files: beside the one that is looked at, and that one is not counted."""
    asked: list[int] = []
    ready = threading.Event()

    def read(number: int) -> bytes:
        asked.append(number)
        ready.wait(30)
        return b""

    ready.set()
    reading = read_ahead(read, [(number, size_bytes) for number in range(600)])
    with closing(reading):
        for number in range(4):
            assert next(reading)[0] == number
            assert max(asked) <= number + most
    assert len(asked) <= 4 + most


def test_the_next_is_on_its_way_while_one_is_looked_at() -> None:
    """However long they are: who looks at one need not wait for the next."""
    begun = [threading.Event() for _ in range(3)]

    def read(number: int) -> bytes:
        begun[number].set()
        return b""

    reading = read_ahead(read, [(number, 100 * MIB) for number in range(3)])
    with closing(reading):
        next(reading)
        assert begun[1].wait(30)
        assert not begun[2].is_set()


def test_an_error_comes_in_its_turn() -> None:
    """What stands before it is given, though it failed earlier; of two the first counts, and nothing behind is read."""
    failed = threading.Event()
    asked: Counter[int] = Counter()

    def read(number: int) -> bytes:
        asked[number] += 1
        if number == 2:
            assert failed.wait(30)
            raise AuditUnavailable("the second")
        if number == 3:
            failed.set()
            raise AuditUnavailable("the third")
        return b"x"

    given: list[int] = []
    with pytest.raises(AuditUnavailable, match="the second"):
        given += (number for number, _ in read_ahead(read, [(number, 20 * MIB) for number in range(100)]))
    assert given in ([], [0, 1])
    assert max(asked) <= 5
    assert set(asked.values()) == {1}


def test_what_was_not_begun_when_it_failed_is_not_read() -> None:
    """Nobody waits for the rest of a long list, of which nothing will be taken."""
    asked, never = set(), threading.Event()

    def read(number: int) -> bytes:
        asked.add(number)
        if number == 0:
            raise AuditUnavailable("the first")
        never.wait(0.02)
        return b""

    with pytest.raises(AuditUnavailable, match="the first"):
        list(read_ahead(read, [(number, 1) for number in range(250)]))
    assert len(asked) < 200


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), AuditUnavailable("no"), None], ids=["interrupted", "fails", "stops"]
)
def test_nobody_waits_for_what_is_not_wanted(error: BaseException | None) -> None:
    """Who is interrupted, or fails, or stops, need not see the others to their end."""
    begun, hanging = threading.Event(), threading.Event()

    def read(number: int) -> bytes:
        if number == 0:
            return b""
        if number == 1:
            assert begun.wait(30)
            if error is not None:
                raise error
        begun.set()
        hanging.wait(30)
        return b""

    reading = read_ahead(read, [(number, 1) for number in range(16)])
    try:
        assert next(reading) == (0, b"")
        if error is None:
            reading.close()
        else:
            with pytest.raises(type(error)):
                next(reading)
        assert begun.wait(30)
        at_it = readers()
        assert at_it, "they are at it still"
    finally:
        hanging.set()
    for thread in at_it:
        thread.join(30)
    assert not any(thread.is_alive() for thread in at_it)


def readers() -> list[threading.Thread]:
    """The threads that read for somebody."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("beam-entra-trail")]


def test_nothing_is_nothing() -> None:
    """No file, no thread."""
    assert list(read_ahead(lambda name: b"", [])) == []
