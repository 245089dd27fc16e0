"""A bound on bytes of bodies held at once, taken in order of arrival.

Invariant: the bytes given out never exceed `bytes_max`, except that one asker may always hold something when nothing
else is held (what is larger than the bound can still pass, alone).
"""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """Event loop only."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

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
