"""Reading what others change, one read after the other.

A read that began earlier may end later (PostgreSQL answers on several connections). Were two taken over in the order in
which they end, the process would believe the older state until its next look: a device that must be reconciled would
count again, a server that has just come back would be known by its old secret.

Invariant: what `now` returned after has been taken over from a read that began after it was called, and no older one is
taken over behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Refreshing:
    """One per thing that is read. work: reads it and takes it over; may be called again at once."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._turn = asyncio.Lock()
        self._begun = 0
        self._taken = 0

    async def now(self) -> None:
        """Take over a state that is no older than this call. Those who wait for the same turn share one read. Raises
        what the read raises."""
        asked = self._begun
        async with self._turn:
            if self._taken > asked:
                return          # the read of somebody who waited in front began after this call
            self._begun += 1
            await self._work()
            self._taken = self._begun
