"""Replication of this process: a worker per target while it holds the promoter's lease, and what a commit meets: why
this site does not take it (refusal), and the waits of sync rules (services/sites/sync)."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from metadata.catalog import sites
from metadata.catalog.leases import require_epoch
from metadata.catalog.queries import Connection
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites.ahead import AheadReader
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.hot import HotBodies
from metadata.services.sites.read import BodyReader
from metadata.services.sites.registry import Sites
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.sync import SyncWaits
from metadata.services.sites.target import Parts, TargetStatus
from tierstore.wire.names import CommitItem, CommitResult, Fill

log = logging.getLogger(__name__)

#: From a commit under a sync rule to the worker's look at it. At once it ran before the push: 1 ms of each write.
KICK_SECONDS: Final = 0.002
#: Pages of a backfill per step.
BACKFILL_PAGES: Final = 8


class Replication:
    """One per process."""

    def __init__(
        self, parts: Parts, members: Sites, body: BodyReader, ahead: AheadReader, *, backfills: Backfills,
        hot: HotBodies, sync_seconds: float,
    ) -> None:  # fmt: skip
        self._parts = parts
        self._members = members
        self._backfills = backfills
        self._hot = hot
        self._workers: dict[str, tuple[TargetWorker, asyncio.Task[None]]] = {}
        self._kick: asyncio.TimerHandle | None = None
        self.sync = SyncWaits(parts, members, body, ahead, is_away=self.is_away, wait_seconds=sync_seconds)

    # -- workers --------------------------------------------------------------------------------------------
    async def step(self) -> int:
        """Follow membership, go on with backfills; how many targets there are."""
        await self._members.refresh()
        wanted = set(self._members.names())
        for name in sorted(wanted - self._workers.keys()):
            worker = TargetWorker(self._parts, name)
            task = asyncio.get_running_loop().create_task(worker.run(), name=f"site {name}")
            self._workers[name] = (worker, task)
        for name in sorted(self._workers.keys() - wanted):
            await self._end(name)
        for name, (worker, task) in list(self._workers.items()):
            if task.done():
                log.error("the worker of site %s ended: %s", name, task.exception() if not task.cancelled() else "")
                await self._end(name)       # begun again by the next step
            elif not worker.status.is_paused:
                for _ in range(BACKFILL_PAGES):
                    if not await self._backfills.step(name):
                        break
                    worker.kick()
        if await self._hot.step(self._members.hot_rules):
            self.kick()
        await self._tell_who_is_away()
        return len(self._workers)

    async def _tell_who_is_away(self) -> None:
        """Of several processes on a catalog this one alone speaks to other sites: the others read who is away (with
        their refresh, each second), so that a write under `degrade` waits there no longer than here."""
        away = {name for name in self._workers if self.is_away(name)}
        if away == self._members.away or not self._parts.epoch():
            return

        def work(c: Connection) -> None:
            require_epoch(c, PROMOTER, self._parts.epoch())
            sites.set_away(c, away)

        await self._parts.database.write(work)

    async def _end(self, name: str) -> None:
        _, task = self._workers.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def kick(self) -> None:
        """Something was queued. While a writer under a sync rule waits, the workers look at it a moment later."""
        if not self.sync.has_writers:
            self._kick_workers()
        elif self._kick is None:
            self._kick = asyncio.get_running_loop().call_later(KICK_SECONDS, self._kick_workers)

    def _kick_workers(self) -> None:
        if self._kick is not None:
            self._kick.cancel()
            self._kick = None
        for worker, _ in self._workers.values():
            worker.kick()

    def statuses(self) -> list[TargetStatus]:
        return [worker.status for _, (worker, _) in sorted(self._workers.items())]

    async def measured(self) -> list[TargetStatus]:
        """The same with the backlogs of this moment."""
        for worker, _ in list(self._workers.values()):
            await worker.measure()
        return self.statuses()

    def is_away(self, name: str) -> bool:
        """Whether a target is known not to answer: by this process, if it speaks to other sites, or by the one that
        does."""
        entry = self._workers.get(name)
        if entry is None or not self._parts.epoch():
            return name in self._members.away
        status = entry[0].status
        return status.has_asked and not status.is_reachable

    async def close(self) -> None:
        if self._kick is not None:
            self._kick.cancel()
        for name in list(self._workers):
            await self._end(name)
        await self.sync.close()

    @property
    def comparing(self) -> int:
        """Sites whose names this one, which was restored, waits for."""
        return len(self._parts.comparison.waiting)

    @property
    def hot_queued(self) -> int:
        """Bodies that were queued because they became hot."""
        return self._hot.queued

    def confirmed(self) -> dict[str, int]:
        """Site -> when it was last known to have everything, ms; 0: not yet."""
        workers = self._workers
        return {
            name: workers[name][0].status.confirmed_at_ms if name in workers else 0 for name in self._members.names()
        }

    # -- what a commit meets --------------------------------------------------------------------------------
    def refusal(self, item: CommitItem) -> CommitResult | None:
        """Why this site does not take a mutation, None when it does."""
        m = item.mutation
        if isinstance(m, Fill):
            return None
        if (closed := self.closed(m.bucket)) is not None:
            return closed
        home = self._members.homes.get(m.bucket)
        if home is not None and m.condition is not None:
            return CommitResult(
                code="not-home-site",
                detail=f"conditional writes to {m.bucket!r} are judged at its home site {home!r}: send it there",
            )
        return None

    def closed(self, bucket: str) -> CommitResult | None:
        """Why this site takes no mutations of a bucket at all, None when it does."""
        if bucket not in self._members.shared_buckets:
            return None
        if reason := self._parts.comparison.refusal():
            return CommitResult(code="site-comparing", detail=reason)
        return None

    @property
    def may_refuse(self) -> bool:
        """Whether any mutation may be refused by refusal()."""
        comparison = self._parts.comparison
        is_closed = bool(self._members.shared_buckets) and (bool(comparison.waiting) or not comparison.is_proven)
        return is_closed or bool(self._members.homes)

    async def settle(self) -> None:
        """Wait, for a while, until it is known whether this site's catalog is an old one."""
        await self._parts.comparison.settle()
