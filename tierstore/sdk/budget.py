"""Memory for bodies of uploads: one bound for all uploads of a process, taken in order of arrival.

Full-size chunk buffers are kept for reuse: fresh memory costs a page fault per 4 KiB, which at 8 MiB is as much as
sending it.
"""

from __future__ import annotations

from typing import Final

from tierstore.transport.byte_budget import ByteBudget
from tierstore.transport.shared_memory import SharedMemory

#: Buffers kept for reuse, in all.
_KEPT_BYTES_MAX: Final = 32 << 20
#: Smaller buffers are not worth keeping.
_KEPT_SIZE_MIN: Final = (256 << 10) + 1

ChunkBuffer = bytearray | SharedMemory


class BufferBudget(ByteBudget):
    """A bound, and the buffers that are held under it. Event loop only."""

    def __init__(self, bytes_max: int, *, is_shared: bool = False) -> None:
        """is_shared: buffers of chunks are in memory that can be handed to other processes of this machine."""
        super().__init__(bytes_max)
        self._is_shared = is_shared
        self._kept: dict[int, list[ChunkBuffer]] = {}
        self._kept_bytes = 0

    def new_buffer(self, size: int) -> ChunkBuffer:
        """A buffer of at least `size` bytes with any content; in shared memory if chunks may be handed over in it."""
        if size < _KEPT_SIZE_MIN:
            return bytearray(size)
        size = 1 << (size - 1).bit_length()     # few lengths, so that a body of any length finds a kept one
        kept = self._kept.get(size)
        if kept:
            self._kept_bytes -= size
            return kept.pop()
        if self._is_shared:
            try:
                return SharedMemory(size)
            except OSError:
                pass        # no descriptor is left: the chunk goes by the network
        return bytearray(size)

    def reuse(self, buffer: ChunkBuffer) -> None:
        """Keep a buffer that nobody looks at any more."""
        size = len(buffer)
        if size >= _KEPT_SIZE_MIN and not size & (size - 1) and self._kept_bytes + size <= _KEPT_BYTES_MAX:
            self._kept_bytes += size
            self._kept.setdefault(size, []).append(buffer)
