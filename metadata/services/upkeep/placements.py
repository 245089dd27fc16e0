"""Keeps the reverse table near the feed: small pieces in the catalog's idle moments, steadily when it falls behind.

Not a duty with a lease: the mark's row lock orders several processes, and a piece that another one did is nothing to
do. Bound: it lets writers go first for IDLE_WAIT_SECONDS at most, then takes a piece whether they pause or not.
"""

from __future__ import annotations

from typing import Final

from metadata.catalog import placements
from metadata.catalog.database import Database
from metadata.catalog.session import StaleRows
from tierstore.clock import Clock
from tierstore.errors import TierstoreError

#: Looks at the feed at least so often: other processes write too.
INTERVAL_SECONDS: Final = 1.0
IDLE_WAIT_SECONDS: Final = 0.25
IDLE_POLL_SECONDS: Final = 0.01
FAILURE_PAUSE_SECONDS: Final = 1.0


class PlacementIndexer:
    """One per process; `run` is its task."""

    def __init__(self, database: Database, clock: Clock, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._database = database
        self._clock = clock
        self._interval_seconds = interval_seconds
        self.mark = 0
        self.changes = 0
        self.failures = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            more = False
            try:
                more = await self.step()
            except (TierstoreError, StaleRows):
                # The catalog is away or another process was quicker: later again; `failures` shows it.
                self.failures += 1
                await self._clock.sleep(FAILURE_PAUSE_SECONDS)
            if more:
                await self._let_writers_go_first()
            else:
                await self._clock.sleep(self._interval_seconds)

    async def step(self) -> bool:
        """One piece; whether there is more."""
        done = await self._database.batch(placements.index_piece)
        self.mark = done.mark
        self.changes += done.done
        return done.more

    async def catch_up(self) -> int:
        """Everything that is in the feed now; the mark."""
        more = True
        while more:
            more = await self.step()
        return self.mark

    async def _let_writers_go_first(self) -> None:
        until = self._clock.monotonic() + IDLE_WAIT_SECONDS
        while not self._database.is_idle and self._clock.monotonic() < until:
            await self._clock.sleep(IDLE_POLL_SECONDS)
