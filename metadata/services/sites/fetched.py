"""Bodies of other sites that were fetched for readers are let go of, the coldest first, once they take more than their
share of this site's disks.

Their names stay, and the next reader fetches them again. A step looks at PAGE of those that were fetched (or found to
be hot) the longest ago: of those that another site vouches for (services/sites/holds) the colder half goes, the rest is
put to the back. So a body that is read stays, without a record of each read, and so does the only copy of one whose
site was lost, removed or restored from an old backup.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from metadata.catalog import fetched, schema
from metadata.catalog.database import Database
from metadata.catalog.fetched import Fetched
from metadata.catalog.leases import require_epoch
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.catalog.sites import buckets_of, versions_of
from metadata.services.cluster.duties import PROMOTER
from tierstore.clock import Clock
from tierstore.wire.sites import HOLDS_MAX, BodyName

PAGE: Final = HOLDS_MAX
#: Once over the share, so much of it is left.
LEFT: Final = 0.9
#: Chunks of one body whose heat is asked.
CHUNKS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class _Candidate:
    """is_kept_here: there are bytes to let go of; else what was noted was replaced, or became this site's own."""

    fetched: Fetched
    name: BodyName
    heat: float
    is_kept_here: bool


class FetchedBodies:
    """Runs in the holder of the promoter's lease. capacity: bytes of all devices; copies: of each chunk; vouched: those
    of some bodies that another site has for good now."""

    def __init__(
        self, database: Database, clock: Clock, *, heat_of: Callable[[bytes], float], capacity: Callable[[], int],
        copies: Callable[[], int], share: float, vouched: Callable[[Sequence[BodyName]], Awaitable[set[BodyName]]],
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._heat_of = heat_of
        self._capacity = capacity
        self._copies = copies
        self._share = share
        self._vouched = vouched
        self._is_over = False
        self.kept_bytes = 0
        self.let_go_bytes = 0
        #: How often one would have gone, but no other site was known to have it.
        self.kept_back = 0

    async def step(self, epoch: int) -> tuple[int, bool]:
        """(bytes let go of, more at once)."""
        self.kept_bytes = await self._database.scan(fetched.total_bytes)
        limit = self._capacity() * self._share / max(1, self._copies())
        if self.kept_bytes <= limit * (LEFT if self._is_over else 1.0):
            self._is_over = False
            return 0, False
        self._is_over = True
        ranked = await self._database.scan(self._rank)
        stale = [one.fetched for one in ranked if not one.is_kept_here]
        here = [one for one in ranked if one.is_kept_here]
        vouched = await self._vouched([one.name for one in here]) if here else set()
        safe = [one.fetched for one in here if one.name in vouched]
        going = safe[: (len(safe) + 1) // 2]
        staying = [one.fetched for one in here if one.fetched not in going]
        self.kept_back += len(here) - len(safe)
        gone = await self._database.batch(
            lambda session: self._settle(session, epoch, going=[*stale, *going], staying=staying)
        )
        self.let_go_bytes += gone
        return gone, bool(stale or going)

    def _rank(self, c: Connection) -> list[_Candidate]:
        """The oldest, the coldest of them first."""
        some = fetched.oldest(c, PAGE)
        rows = versions_of(c, [one[:3] for one in some])
        named = buckets_of(c, {one.bucket_id for one in some})
        found = []
        for one in some:
            row, bucket = rows.get(one[:3]), named.get(one.bucket_id)
            name = BodyName(bucket.name if bucket is not None else "", one.key, one.version)
            if row is None or row.kind != schema.KIND_REMOTE or row.ref is None:
                found.append(_Candidate(one, name, 0.0, is_kept_here=False))
            else:
                heat = max(map(self._heat_of, fetched.chunks(c, row.ref, CHUNKS_MAX)), default=0.0)
                found.append(_Candidate(one, name, heat, is_kept_here=True))
        return sorted(found, key=lambda one: one.heat)

    def _settle(self, session: Session, epoch: int, *, going: list[Fetched], staying: list[Fetched]) -> int:
        require_epoch(session.connection, PROMOTER, epoch)
        now_ms = self._clock.now_ms()
        fetched.keep(session.connection, staying, at_ms=now_ms)
        return fetched.let_go(session, going, at_ms=now_ms)
