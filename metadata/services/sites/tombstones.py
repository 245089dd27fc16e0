"""Tombstones: the delete markers of replicated buckets without versioning, forgotten once no site can bring back what
they deleted.

A tombstone goes when it is older than `keep`, and older than the moment up to which every other site is known to have
had everything of ours (our worker's figure) and to have sent us everything of its own (it says so in its hellos): then
every site has it, and nothing older than it is on its way. A site that is away or paused keeps all of them. A site that
writes to a bucket here, and hears of it from here by no rule, may hear of a delete by a longer way (a ring), or never:
it is asked (services/sites/holds), and the tombstone stays until it says that it has.

One walk over the replicated buckets each WALK_SECONDS, PAGE rows a step: a range read of the key index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from metadata.catalog import buckets, sites, tombstones
from metadata.catalog.buckets import Bucket
from metadata.catalog.database import Database
from metadata.catalog.leases import require_epoch
from metadata.catalog.queries import Connection
from metadata.catalog.session import Session
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.apply import sources_of
from metadata.services.sites.holds import MARGIN_MS
from tierstore.clock import Clock
from tierstore.wire.sites import SEEN_MAX, BodyName

WALK_SECONDS: Final = 3600.0
PAGE: Final = SEEN_MAX


class Tombstones:
    """Runs in the holder of the promoter's lease. confirmed: site -> when it had everything of ours, ms, 0: not
    known. Its keys are the sites known. seen: those of some deletes that a site has heard of."""

    def __init__(
        self, database: Database, clock: Clock, *, keep_ms: int, confirmed: Callable[[], dict[str, int]],
        seen: Callable[[str, Sequence[BodyName]], Awaitable[set[BodyName]]],
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._keep_ms = keep_ms
        self._confirmed = confirmed
        self._seen = seen
        self._todo: list[Bucket] = []
        self._after = ""
        self._walked_at: float | None = None
        self.dropped = 0
        self.kept = 0

    async def floor_ms(self) -> int:
        """Tombstones made before it have been seen everywhere; 0 while a site is not known to be up to date."""
        mine = self._confirmed()

        def work(c: Connection) -> list[int]:
            return [sites.heard(c, name).confirmed_at_ms for name in mine]

        theirs = await self._database.read(work)
        now_ms = self._clock.now_ms()
        return min([now_ms - self._keep_ms, *(at - MARGIN_MS for at in [*mine.values(), *theirs])])

    async def step(self, epoch: int) -> tuple[int, bool]:
        """One page; (tombstones that went, more at once)."""
        now = self._clock.monotonic()
        if not self._todo:
            if self._walked_at is not None and now - self._walked_at < WALK_SECONDS:
                return 0, False
            self._walked_at = now
            self.kept = 0
            every = await self._database.read(buckets.everything)
            self._todo = [b for b in every if b.is_replicated and not b.versioning]
            return 0, bool(self._todo)
        floor = await self.floor_ms()
        bucket = self._todo[0]
        page = await self._database.scan(lambda c: tombstones.page(c, bucket.id, self._after, PAGE))
        old = [m for m in page.markers if max(m.made_at_ms, m.created_at_ms) < floor]
        old = await self._seen_by_writers(bucket, old)
        self.kept += len(page.markers) - len(old)
        if old:
            self.dropped += await self._database.batch(lambda session: self._drop(session, epoch, bucket, old))
        if page.last:
            self._after = page.last
        else:
            self._todo.pop(0)
            self._after = ""
        return len(old), bool(self._todo)

    def _drop(self, session: Session, epoch: int, bucket: Bucket, old: list[tombstones.Marker]) -> int:
        require_epoch(session.connection, PROMOTER, epoch)
        return tombstones.drop(session, bucket.id, old, at_ms=self._clock.now_ms())

    async def _seen_by_writers(self, bucket: Bucket, old: list[tombstones.Marker]) -> list[tombstones.Marker]:
        """Those that every known site that writes to this bucket has heard of: from here, or by another way."""
        known = self._confirmed()
        names = {marker.key: BodyName(bucket.name, marker.key, marker.version) for marker in old}
        asked: dict[str, list[BodyName]] = defaultdict(list)
        for name in names.values():
            for source in set(sources_of(bucket)) - set(bucket.targets(name.key)):
                if source in known:
                    asked[source].append(name)
        unseen: set[BodyName] = set()
        for source, wanted in asked.items():
            unseen |= set(wanted) - await self._seen(source, wanted)
        return [marker for marker in old if names[marker.key] not in unseen]
