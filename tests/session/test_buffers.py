"""Long buffers are used again, by one at a time, and few are kept."""

from __future__ import annotations

import threading

from beam_entra.session.buffers import Buffers

MB = 1 << 20


def test_a_buffer_that_is_given_back_is_used_again() -> None:
    """For the same length, and by one only."""
    buffers = Buffers(8 * MB)
    first = buffers.take(2 * MB)
    buffers.give(first)
    other, again, new = buffers.take(MB), buffers.take(2 * MB), buffers.take(2 * MB)
    assert again is first
    assert new is not first
    assert [len(buffer) for buffer in (other, again, new)] == [MB, 2 * MB, 2 * MB]


def test_little_is_kept() -> None:
    """The longest unused go first, and short ones are not kept at all."""
    buffers = Buffers(4 * MB)
    several = [buffers.take(2 * MB) for _ in range(3)]
    for buffer in several:
        buffers.give(buffer)
    short = buffers.take(10)
    buffers.give(short)
    assert buffers.take(10) is not short
    kept = [id(buffers.take(2 * MB)) for _ in range(3)]
    assert kept[:2] == [id(buffer) for buffer in several[1:]]
    assert kept[2] != id(several[0])


def test_two_threads_never_have_the_same_buffer() -> None:
    """However they take and give at once."""
    buffers = Buffers(4 * MB)
    clashes: list[int] = []

    def use(number: int) -> None:
        for _ in range(300):
            buffer = buffers.take(MB)
            buffer[:1] = bytes([number])
            buffer[-1:] = bytes([number])
            if (buffer[0], buffer[-1]) != (number, number):
                clashes.append(number)
            buffers.give(buffer)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == []
