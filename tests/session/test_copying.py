"""Copying a blob, however large: into no more blocks than a blob holds."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from beam_entra.session.copying import _carried_bytes, _copied_bytes
from beam_entra.storage import MOST_BLOCKS

LARGEST = 50_000 * (4000 << 20)  # that Storage has


@given(st.integers(1, LARGEST))
@example(MOST_BLOCKS * (4 << 20) + 1)
@example(MOST_BLOCKS * (64 << 20))
@example(MOST_BLOCKS * (64 << 20) + 1)
@example(LARGEST)
def test_a_copy_has_no_more_blocks_than_a_blob_holds(size_bytes: int) -> None:
    """Whether Storage copies it, or it is carried in pieces of what Storage would have copied at a time."""
    step, carried = _copied_bytes(size_bytes), _carried_bytes(size_bytes)
    whole, rest = divmod(size_bytes, step)
    assert whole + bool(rest) <= MOST_BLOCKS
    assert whole * -(-step // carried) + -(-rest // carried) <= MOST_BLOCKS
