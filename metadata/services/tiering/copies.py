"""What the promoter decided, carried out: copies queued, copies let go, and what became of both.

Owns the promotions under way, the copies that are let go and not deleted yet, those that wait for a faster one, and
the counts of what came of it all. One transaction for up to PAGE copies, conditional on the lease's epoch. Nothing here
touches a home copy.

Invariant: a promotion is under way here, or it is told to the planner as made (it stays resident) or failed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.catalog import jobs, tiering
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import LIVE, PackedChunk
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import CLASS_TIER, CopyWork, ReplicaBook
from metadata.services.tiering.find import Finder
from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable
from tierstore.policy.plan import Demotion, Plan, Promotion
from tierstore.ticket import ROLE_CACHE, ROLE_HOME

#: A copy that no server took up within this time is forgotten.
STALE_MS: Final = 60_000
#: The reverse table follows within a second or two; a copy that it does not show by then is the walk's to find.
AGAIN_SECONDS: Final = 30.0
_PAGE: Final = 256


@dataclass(slots=True)
class _Copy:
    """A promotion under way. located: where the chunk's row was."""

    promotion: Promotion
    homes: tuple[int, ...]
    score: float


@dataclass(slots=True)
class TieringTotals:
    """Since this process started."""

    ticks: int = 0
    candidates: int = 0
    promotions: int = 0
    demotions: int = 0
    failed: int = 0
    wasted: int = 0               # copies let go without one read since they were made
    promoted_bytes: int = 0
    served_bytes: int = 0


class Copies:
    """One per process; acts only in the holder of the promoter's lease."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, queue: JobQueue, finder: Finder, *,
        table: Callable[[], HeatTable],
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._book = book
        self._queue = queue
        self._finder = finder
        self._table = table
        self.totals = TieringTotals()
        self._copies: dict[tuple[bytes, int], _Copy] = {}
        self._leaving: dict[tuple[bytes, int], int] = {}      # let go, not deleted yet: bytes
        self._superseded: dict[bytes, list[Demotion]] = {}
        self._unread: dict[tuple[bytes, int], float] = {}     # promoted: its score then
        self._again: list[Demotion] = []                      # to be let go, not found in the reverse table yet
        self._demoted_at: dict[bytes, float] = {}

    def clear(self) -> None:
        """A new holder of the lease: what the last one had under way is in the catalog."""
        self._copies.clear()
        self._leaving.clear()
        self._superseded.clear()
        self._unread.clear()
        self._again.clear()
        self._demoted_at.clear()

    def __len__(self) -> int:
        """Copies queued or running."""
        return len(self._copies)

    def __contains__(self, pair: tuple[bytes, int]) -> bool:
        return pair in self._copies

    def under_way_bytes(self) -> Mapping[int, int]:
        """By device, of copies that are being made."""
        found: dict[int, int] = defaultdict(int)
        for (_, device), copy in self._copies.items():
            found[device] += copy.promotion.size
        return found

    def leaving_bytes(self) -> Mapping[int, int]:
        """By device, of copies that are let go but not deleted yet."""
        found: dict[int, int] = defaultdict(int)
        for (_, device), size in self._leaving.items():
            found[device] += size
        return found

    def forget(self, chunk: PackedChunk) -> None:
        """It was deleted or replaced: whether its copies were read is no question any more."""
        for replica in chunk.replicas:
            self._unread.pop((chunk.id, replica.device), None)

    def _now(self) -> float:
        return self._cluster.now_ms() / 1000

    async def carry_out(self, planner: Planner, plan: Plan, located: dict[bytes, Located], epoch: int) -> None:
        """Demotions make the room, so they go first. What cannot be queued is told to the planner as failed."""
        promoted = {p.chunk for p in plan.promotions}
        now_demoted, self._again = self._again, []
        for demotion in plan.demotions:
            if demotion.why == "superseded" and demotion.chunk in promoted:
                self._superseded.setdefault(demotion.chunk, []).append(demotion)
            else:
                now_demoted.append(demotion)
        for at in range(0, len(now_demoted), _PAGE):
            await self._demote(now_demoted[at : at + _PAGE], epoch)
        for at in range(0, len(plan.promotions), _PAGE):
            await self._promote(planner, plan.promotions[at : at + _PAGE], located, epoch)

    async def _demote(self, demotions: Sequence[Demotion], epoch: int) -> None:
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> tuple[list[tuple[bytes, int, int]], list[Demotion]]:
            require_epoch(c, PROMOTER, epoch)
            gone, unknown = [], []
            for demotion in demotions:
                located = self._queue.replicas.locate(c, demotion.device, demotion.chunk)
                if located is None:
                    unknown.append(demotion)
                replica = next(
                    (r for r in located.chunk.replicas if r.device == demotion.device), None
                ) if located is not None else None  # fmt: skip
                if located is None or replica is None or replica.role != ROLE_CACHE or replica.state != LIVE:
                    continue    # it went another way; a home copy is never let go here
                via = next((r.device for r in located.chunk.replicas if r.role == ROLE_HOME), demotion.device)
                left = self._queue.replicas.without(
                    c, located, list(located.chunk.replicas), demotion.device, via=via, now_ms=now_ms
                )
                self._book.rewrite(c, located, left, at_ms=now_ms)
                gone.append((demotion.chunk, demotion.device, located.chunk.chunk_bytes))
            return gone, unknown

        let_go, unknown = await self._database.write(work)
        # The reverse table may not have come so far. A chunk that is gone is found in the garbage.
        now = self._now()
        for demotion in demotions:
            if demotion not in unknown:
                self._demoted_at.pop(demotion.chunk, None)
            elif now - self._demoted_at.setdefault(demotion.chunk, now) < AGAIN_SECONDS:
                self._again.append(demotion)
            else:
                self._demoted_at.pop(demotion.chunk, None)
        for chunk, device, size in let_go:
            self._leaving[chunk, device] = size
            self.totals.demotions += 1
            made = self._unread.pop((chunk, device), None)
            if made is not None and self._table().score(chunk) <= made:
                self.totals.wasted += 1

    async def _promote(
        self, planner: Planner, promotions: Sequence[Promotion], located: dict[bytes, Located], epoch: int
    ) -> None:
        now_ms, wanted = self._cluster.now_ms(), []
        for promotion in promotions:
            where = located.get(promotion.chunk)
            device = self._view.devices.get(promotion.device)
            # A copy that is being deleted still has its entry; its chunk may come back when that is gone.
            is_free = where is not None and all(r.device != promotion.device for r in where.chunk.replicas)
            if where is None or device is None or not is_free or not planner.is_wanted(promotion):
                planner.failed(promotion)
                continue
            via = where.chunk.replicas[0].device
            job = NewJob(
                "copy", "promote", CLASS_TIER, device.server, device.id, chunk=promotion.chunk, bytes=promotion.size,
                payload=msgspec.msgpack.encode(CopyWork(via, ROLE_CACHE)),
                heat=self._queue.heat_of(promotion.chunk),
            )  # fmt: skip
            homes = tuple(r.device for r in where.chunk.replicas if r.role == ROLE_HOME)
            wanted.append((promotion, job, homes))

        def work(c: Connection) -> set[tuple[bytes, int]]:
            require_epoch(c, PROMOTER, epoch)
            busy = jobs.busy_chunks(c, {(j.chunk, j.device_id) for _, j, _ in wanted})
            jobs.add(c, [j for _, j, _ in wanted if (j.chunk, j.device_id) not in busy], now_ms=now_ms)
            return busy

        if not wanted:
            return
        try:
            busy = await self._database.write(work)
        except BaseException:  # cancelled too: what was not queued gives its budget and its room back
            for promotion, _, _ in wanted:
                planner.failed(promotion)
            raise
        for promotion, job, homes in wanted:
            if (job.chunk, job.device_id) in busy:
                planner.failed(promotion)
            else:
                score = self._table().score(promotion.chunk)
                self._copies[promotion.chunk, promotion.device] = _Copy(promotion, homes, score)

    async def settle(self, planner: Planner, epoch: int, *, tick_seconds: float) -> None:
        """Look which copies and deletions ended since the last tick, and how."""
        if not self._copies and not self._leaving:
            return
        stale_ms = self._cluster.now_ms() - max(STALE_MS, int(3000 * tick_seconds))

        def work(c: Connection) -> tiering.OpenWork:
            require_epoch(c, PROMOTER, epoch)
            tiering.drop_stale(c, before_ms=stale_ms)
            return tiering.open_work(c)

        still = await self._database.write(work) if self._copies else await self._database.read(tiering.open_work)
        self._leaving = {pair: size for pair, size in self._leaving.items() if pair in still.demoting}
        ended = [pair for pair in self._copies if pair not in still.promoting]
        if not ended:
            return
        found = await self._finder.find([chunk for chunk, _ in ended])
        done: list[Demotion] = []
        for chunk, device in ended:
            copy = self._copies.pop((chunk, device))
            where = found.get(chunk)
            is_made = where is not None and any(
                r.device == device and r.state == LIVE for r in where.chunk.replicas
            )
            outdated = self._superseded.pop(chunk, [])
            if is_made:
                self.totals.promotions += 1
                self.totals.promoted_bytes += copy.promotion.size
                if planner.is_wanted(copy.promotion):
                    self._unread[chunk, device] = copy.score
                    done += outdated
                else:   # displaced while it was made
                    done.append(Demotion(chunk, copy.promotion.size, device, copy.promotion.rank, "displaced"))
            else:
                self.totals.failed += 1
                planner.failed(copy.promotion)
        for at in range(0, len(done), _PAGE):
            await self._demote(done[at : at + _PAGE], epoch)

    # -- figures
    def moved_per_served(self) -> float:
        """Bytes copied to fast devices per byte that clients read."""
        return self.totals.promoted_bytes / max(self.totals.served_bytes, 1)

    def waste_ratio(self) -> float:
        """Share of the copies made that were let go without a read."""
        return self.totals.wasted / self.totals.promotions if self.totals.promotions else math.nan
