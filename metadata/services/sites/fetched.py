"""Bodies of other sites that were fetched for readers are let go of, the coldest first, once they take more than their
share of this site's disks.

Their names stay, and the next reader fetches them again: the site that wrote them keeps them. A step looks at PAGE of
those that were fetched (or found to be hot) the longest ago: the colder half goes, the hotter one is put to the back.
So a body that is read stays, without a record of each read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from metadata.catalog import fetched
from metadata.catalog.database import Database
from metadata.catalog.fetched import Fetched
from metadata.catalog.leases import require_epoch
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.catalog.sites import versions_of
from metadata.services.cluster.duties import PROMOTER
from tierstore.clock import Clock

PAGE: Final = 64
#: Once over the share, so much of it is left.
LEFT: Final = 0.9
#: Chunks of one body whose heat is asked.
CHUNKS_MAX: Final = 64


class FetchedBodies:
    """Runs in the holder of the promoter's lease. capacity: bytes of all devices; copies: of each chunk."""

    def __init__(
        self, database: Database, clock: Clock, *, heat_of: Callable[[bytes], float], capacity: Callable[[], int],
        copies: Callable[[], int], share: float,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._heat_of = heat_of
        self._capacity = capacity
        self._copies = copies
        self._share = share
        self._is_over = False
        self.kept_bytes = 0
        self.let_go_bytes = 0

    async def step(self, epoch: int) -> tuple[int, bool]:
        """(bytes let go of, more at once)."""
        self.kept_bytes = await self._database.scan(fetched.total_bytes)
        limit = self._capacity() * self._share / max(1, self._copies())
        if self.kept_bytes <= limit * (LEFT if self._is_over else 1.0):
            self._is_over = False
            return 0, False
        self._is_over = True
        ranked = await self._database.scan(self._rank)
        half = (len(ranked) + 1) // 2
        cold, hot = ranked[:half], ranked[half:]
        gone = await self._database.batch(lambda session: self._settle(session, epoch, cold, hot))
        self.let_go_bytes += gone
        return gone, bool(ranked)

    def _rank(self, c: Connection) -> list[Fetched]:
        """The oldest, the coldest of them first."""
        some = fetched.oldest(c, PAGE)
        rows = versions_of(c, [one[:3] for one in some])
        heats = {
            one[:3]: max(map(self._heat_of, fetched.chunks(c, row.ref, CHUNKS_MAX)), default=0.0)
            for one in some if (row := rows.get(one[:3])) is not None and row.ref is not None
        }
        return sorted(some, key=lambda one: heats.get(one[:3], 0.0))

    def _settle(self, session: Session, epoch: int, cold: list[Fetched], hot: list[Fetched]) -> int:
        require_epoch(session.connection, PROMOTER, epoch)
        now_ms = self._clock.now_ms()
        fetched.keep(session.connection, hot, at_ms=now_ms)
        return fetched.let_go(session, cold, at_ms=now_ms)
