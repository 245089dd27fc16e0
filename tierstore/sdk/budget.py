"""Memory for bodies of uploads: one bound for all uploads of a process, taken in order of arrival.

Invariant: the bytes given out never exceed `bytes_max`, except that one asker may always hold something when nothing
else is held (a chunk larger than the bound can still be stored, alone). Full-size chunk buffers are kept for reuse:
fresh memory costs a page fault per 4 KiB, which at 8 MiB is as much as sending it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from tierstore.transport.shared_memory import SharedMemory

#: Buffers kept for reuse, in all.
_KEPT_BYTES_MAX: Final = 32 << 20
#: Smaller buffers are not worth keeping.
_KEPT_SIZE_MIN: Final = (256 << 10) + 1

ChunkBuffer = bytearray | SharedMemory


class BufferBudget:
    """Event loop only."""

    def __init__(self, bytes_max: int, *, is_shared: bool = False) -> None:
        """is_shared: buffers of chunks are in memory that can be handed to other processes of this machine."""
        self.bytes_max = bytes_max
        self._is_shared = is_shared
        self.held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._kept: dict[int, list[ChunkBuffer]] = {}
        self._kept_bytes = 0

    def try_take(self, size: int) -> bool:
        """Take `size` bytes now, if they fit and nobody waits before."""
        if self._waiting or not self._fits(size):
            return False
        self.held_bytes += size
        return True

    async def take(self, size: int) -> None:
        """Take `size` bytes, waiting in line. Cancelling gives up the place."""
        if self.try_take(size):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        self.held_bytes -= size
        while self._waiting:
            wanted, future = self._waiting[0]
            if not future.done():
                if not self._fits(wanted):
                    return
                self.held_bytes += wanted
                future.set_result(None)
            self._waiting.popleft()

    def _fits(self, size: int) -> bool:
        return self.held_bytes == 0 or self.held_bytes + size <= self.bytes_max

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
