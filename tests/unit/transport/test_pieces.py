"""Buffers of streams are used again only when nobody can see them any more."""

from __future__ import annotations

import pytest

from tierstore.transport.pieces import PieceBuffers


def test_a_buffer_that_is_still_looked_at_is_not_given_to_another_stream() -> None:
    """A reader that keeps a piece too long would see another object's bytes change under its eyes."""
    buffers = PieceBuffers()
    buffer = buffers.take(1000)
    view = memoryview(buffer)[10:20]
    buffers.give_back(buffer)
    assert buffers.kept_bytes == 0 and buffers.take(1000) is not buffer
    view.release()
    buffers.give_back(buffer)
    assert buffers.kept_bytes == 1000 and buffers.take(1000) is buffer and len(buffer) == 1000


@pytest.mark.parametrize("size", [1, 600, 1001])
def test_what_is_kept_is_bounded(size: int) -> None:
    """A burst of readers must not leave its memory behind."""
    buffers = PieceBuffers(kept_bytes_max=1000)
    for buffer in [buffers.take(size) for _ in range(5)]:
        buffers.give_back(buffer)
    assert buffers.kept_bytes == min(1000 // size, 5) * size
