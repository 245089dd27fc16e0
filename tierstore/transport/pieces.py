"""Buffers for the pieces of streams, kept for the next one: fresh memory costs a page fault per 4 KiB, about as much as
reading the piece.

Invariants: a buffer is only kept when no view of it is left anywhere, so that a reader which holds on to a piece too
long reads its own bytes and never another stream's; what is kept is bounded.
"""

from __future__ import annotations

from typing import Final

#: Kept in all.
KEPT_BYTES_MAX: Final = 32 << 20


class PieceBuffers:
    """One per client. Event loop only."""

    def __init__(self, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[int, list[bytearray]] = {}
        self.kept_bytes = 0

    def take(self, size: int) -> bytearray:
        """A buffer of `size` bytes with any content."""
        kept = self._kept.get(size)
        if kept:
            self.kept_bytes -= size
            return kept.pop()
        return bytearray(size)

    def give_back(self, buffer: bytearray) -> None:
        """Done with it. Views of it that are still held keep it out."""
        size = len(buffer)
        if self.kept_bytes + size > self._kept_bytes_max:
            return
        try:
            buffer.append(0)        # only a buffer that nobody looks at may change its size
        except BufferError:
            return
        buffer.pop()
        self.kept_bytes += size
        self._kept.setdefault(size, []).append(buffer)
