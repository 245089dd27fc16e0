"""The promoter's tick in the cluster: from what was read to copies on faster devices, and back.

Owns the Planner (policy/decide.py) of the process that holds the lease, what of its plans is under way, and the last
decisions per chunk for explain. Every tick: what ended is taken note of -> touched chunks are looked up in one
batched read -> the planner decides -> one transaction, conditional on the lease's epoch, lets copies go (deletes of
cache copies) and queues copies. Nothing here touches a home copy, and no read of a client causes a statement.

Invariants: what the planner takes for resident is a cache copy in the catalog or a job that makes one; a plan that
was not carried out is told to it as failed; after a change of holder the picture is built anew from the catalog.

Cost of a tick: 15 us a candidate in the catalog, 25 us in the planner, 30 us a copy queued; an idle tick one read.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec

from metadata.catalog import jobs, tiering
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import LIVE, iter_packed
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import CLASS_TIER, CopyWork, ReplicaBook
from metadata.services.names.writes import Committed
from metadata.services.tiering import fleet as tiering_fleet
from metadata.services.tiering.decided import Decisions
from metadata.services.tiering.find import Finder
from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable
from tierstore.policy.plan import Candidate, Demotion, Plan, Promotion
from tierstore.policy.rules import Policy, PromoterRules
from tierstore.policy.shelf import Device
from tierstore.ticket import ROLE_CACHE, ROLE_HOME

log = logging.getLogger(__name__)

#: Copies for tiering that may be queued at once: beyond, the next tick decides again.
OPEN_MAX: Final = 2_000
#: A copy that no server took up within this time is forgotten.
STALE_MS: Final = 60_000
#: The reverse table follows within a second or two; a copy that it does not show by then is the walk's to find.
AGAIN_SECONDS: Final = 30.0
SETTLED_MAX: Final = 16
_PAGE: Final = 256


class HeatSource(Protocol):
    """The gathered heat (metadata/promoter/heat.py)."""

    table: HeatTable

    def reporter(self, chunk: bytes) -> int: ...

    def set_half_life(self, seconds: float) -> None: ...


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


class Tiering:
    """One per process; `tick` runs only in the holder of the promoter's lease."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, queue: JobQueue, heat: HeatSource, *,
        policy: Callable[[], tuple[int, Policy]],
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._book = book
        self._queue = queue
        self.heat = heat
        self._policy = policy
        self.finder = Finder(database, cluster, self._held, reporter=heat.reporter, policy=policy)
        self.served = tiering_fleet.Served()
        self.totals = TieringTotals()
        self._began_at = self.now()
        self.planner: Planner | None = None
        self.grey_devices: tuple[int, ...] = ()
        self.decisions = Decisions()
        self._epoch = -1
        self._revision = -1
        self._garbage_seen = 0
        self._copies: dict[tuple[bytes, int], _Copy] = {}
        self._leaving: dict[tuple[bytes, int], int] = {}      # let go, not deleted yet: bytes
        self._superseded: dict[bytes, list[Demotion]] = {}
        self._unread: dict[tuple[bytes, int], float] = {}     # promoted: its score then
        self._offers: deque[bytes] = deque()                  # to be judged under a changed policy
        self._again: list[Demotion] = []                      # to be let go, not found in the reverse table yet
        self._demoted_at: dict[bytes, float] = {}
        self._scores: dict[bytes, float] = {}
        self._last_at = 0.0

    # -- the picture ------------------------------------------------------------------------------------------
    @property
    def rules(self) -> PromoterRules:
        return self._policy()[1].promoter

    async def begin(self, epoch: int) -> None:
        """A new holder of the lease: forget the picture of the last one."""
        if epoch == self._epoch and self.planner is not None:
            return
        self.heat.set_half_life(self.rules.half_life_seconds)
        self.planner = Planner(self.heat.table, self.rules, self._devices(None))
        self._revision = self._policy()[0]
        self._copies.clear()
        self._leaving.clear()
        self._superseded.clear()
        self._unread.clear()
        self._again.clear()
        self._demoted_at.clear()
        self._garbage_seen = await self._database.read(tiering.newest_garbage)
        self._epoch = epoch

    def picture(self) -> Planner:
        """The planner; before the first tick, and in processes without the lease, one that knows no residents."""
        return self.planner or Planner(self.heat.table, self.rules, self._devices(None))

    def _devices(self, planner: Planner | None) -> list[Device]:
        under_way: dict[int, int] = defaultdict(int)
        for (_, device), copy in self._copies.items():
            under_way[device] += copy.promotion.size
        leaving: dict[int, int] = defaultdict(int)
        for (_, device), size in self._leaving.items():
            leaving[device] += size

        def resident(device: int) -> int:
            return planner.device_bytes(device) - under_way[device] if planner is not None else 0

        return tiering_fleet.devices(self._view, resident_bytes=resident, leaving_bytes=leaving)

    def _held(self, chunk: bytes) -> Sequence[int]:
        return self.planner.devices_of(chunk) if self.planner is not None else ()

    def committed(self, events: Sequence[Committed]) -> None:
        """New chunks of an overwrite begin with the heat of the ones that they replace (rule 18)."""
        table = self.heat.table
        for event in events:
            if event.old_body and event.new_body:
                for old, new in zip(iter_packed(event.old_body), iter_packed(event.new_body), strict=False):
                    if old.id != new.id and old.id in table:
                        table.inherit(new.id, old.id)

    def now(self) -> float:
        return self._cluster.now_ms() / 1000

    # -- the tick ---------------------------------------------------------------------------------------------
    async def tick(self, epoch: int, pinned: Sequence[Located] = ()) -> Plan:
        """One round; pinned: chunks of rules that pin, to be offered beside those that were read."""
        await self.begin(epoch)
        planner = self.planner
        assert planner is not None
        self._follow_policy(planner)
        await self._settle_copies(planner, epoch)
        await self._forget_garbage(planner)
        now, share = self.now(), tiering_fleet.rate_share(self._view)
        self._throttle(planner, share)
        planner.set_devices(self._devices(planner))
        served_bytes, reads_of = self.served.take()
        self.totals.served_bytes += served_bytes
        room = max(0, OPEN_MAX - len(self._copies))
        touched = self.heat.table.take_touched(self.rules.candidates_max, SETTLED_MAX)
        offered = [self._offers.popleft() for _ in range(min(len(self._offers), self.rules.candidates_max))]
        scores = dict(touched.settled) | dict(touched.movable)
        for chunk in offered:
            scores.setdefault(chunk, self.heat.table.score(chunk))
        located = await self.finder.find(list(scores))
        for one in pinned:
            located.setdefault(one.chunk.id, one)
            scores.setdefault(one.chunk.id, self.heat.table.score(one.chunk.id))
        candidates = self._candidates(scores, located, now, reads_of)
        plan = planner.tick(now, candidates if room else [], served_bytes)
        self.grey_devices = plan.grey_devices
        self.decisions.note(plan.decisions)
        self.totals.candidates += len(candidates)
        await self._carry_out(planner, plan, located, epoch)
        self._scores, self._last_at = scores, now
        self.totals.ticks += 1
        return plan

    def _follow_policy(self, planner: Planner) -> None:
        revision, policy = self._policy()
        if revision == self._revision:
            return
        self._revision = revision
        planner.set_rules(policy.promoter)
        self.heat.set_half_life(policy.promoter.half_life_seconds)
        planner.unpin()
        self._offers = deque(planner.chunks())

    def _throttle(self, planner: Planner, share: float) -> None:
        """Lower the rate of each device while clients need the servers."""
        rules = self.rules
        rate = int(rules.device_bytes_per_second_max * share)
        self._queue.rates = replace(self._queue.rates, promote=rate)
        planner.set_rules(replace(rules, device_bytes_per_second_max=max(rate, 1) if rate else 0))

    def _candidates(
        self, scores: dict[bytes, float], located: dict[bytes, Located], now: float, reads_of: dict[int, int]
    ) -> list[Candidate]:
        table, seconds = self.heat.table, max(now - self._last_at, 1e-3)
        found = []
        for chunk, score in scores.items():
            where = located.get(chunk)
            if where is None:
                continue
            rule = self.finder.rule_of(where)
            for replica in where.chunk.replicas:
                if replica.role == ROLE_CACHE and replica.state == LIVE:
                    self.adopt(where, replica.device)    # a fast copy that came with the write
            usable = tuple(r.device for r in where.chunk.replicas if r.state == LIVE and self._view.can_read(r.device))
            before = self._scores.get(chunk)
            reads = table.reads(score, now) - table.reads(before, now) if before is not None else 0.0
            server = self.heat.reporter(chunk)
            found.append(
                Candidate(
                    chunk, where.chunk.chunk_bytes, score, usable, rule.mode, rule.fast,
                    server_reads=reads_of.get(server, 0) / seconds, reads_per_second=max(0.0, reads / seconds),
                )
            )  # fmt: skip
        return found

    # -- carrying out -----------------------------------------------------------------------------------------
    async def _carry_out(self, planner: Planner, plan: Plan, located: dict[bytes, Located], epoch: int) -> None:
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
        now = self.now()
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
            if made is not None and self.heat.table.score(chunk) <= made:
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
                score = self.heat.table.score(promotion.chunk)
                self._copies[promotion.chunk, promotion.device] = _Copy(promotion, homes, score)

    # -- what became of it ------------------------------------------------------------------------------------
    async def _settle_copies(self, planner: Planner, epoch: int) -> None:
        """Look which copies and deletions ended since the last tick, and how."""
        if not self._copies and not self._leaving:
            return
        stale_ms = self._cluster.now_ms() - max(STALE_MS, int(3000 * self.rules.tick_seconds))

        def work(c: Connection) -> tiering.OpenWork:
            require_epoch(c, PROMOTER, epoch)
            tiering.drop_stale(c, before_ms=stale_ms)
            return tiering.open_work(c)

        still = await self._database.write(work) if self._copies else await self._database.read(tiering.open_work)
        self._leaving = {pair: size for pair, size in self._leaving.items() if pair in still.demoting}
        ended = [pair for pair in self._copies if pair not in still.promoting]
        if not ended:
            return
        found = await self.finder.find([chunk for chunk, _ in ended])
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

    async def _forget_garbage(self, planner: Planner) -> None:
        """Chunks that were deleted or replaced since the last tick: their heat and their copies are no more."""
        chunks, self._garbage_seen = await self._database.read(
            lambda c: tiering.garbage_after(c, self._garbage_seen, 1000)
        )
        for chunk in chunks:
            planner.forget(chunk.id)
            self.decisions.forget(chunk.id)
            for replica in chunk.replicas:
                self._unread.pop((chunk.id, replica.device), None)

    # -- what the walk over the fast devices found -------------------------------------------------------------
    def adopt(self, located: Located, device: int) -> None:
        """A cache copy that is in the catalog: resident, unless it is known to be."""
        planner = self.planner
        chunk = located.chunk
        if planner is None or device in planner.devices_of(chunk.id):
            return
        homes = [r.device for r in chunk.replicas if r.role == ROLE_HOME]
        mode = self.finder.rule_of(located).mode
        planner.resident(chunk.id, chunk.chunk_bytes, device, homes, is_pinned=mode == "pin")
        if mode == "never":
            self._offers.append(chunk.id)

    def disown(self, device: int, seen: Collection[bytes], known: Iterable[bytes]) -> int:
        """Residents that were `known` when a pass over a device began and that it did not see; how many went."""
        if self.planner is None:
            return 0
        gone = [c for c in known if c not in seen and (c, device) not in self._copies]
        for chunk in gone:
            self.planner.dropped(chunk, device)
        return len(gone)

    @property
    def under_way(self) -> int:
        """Copies queued or running."""
        return len(self._copies)

    def moved_per_served(self) -> float:
        """Bytes copied to fast devices per byte that clients read."""
        return self.totals.promoted_bytes / max(self.totals.served_bytes, 1)

    def written_per_day(self) -> float:
        """Bytes that the promoter wrote to fast devices in a day, at its pace since this process started."""
        return self.totals.promoted_bytes / max(self.now() - self._began_at, 1.0) * 86_400

    def waste_ratio(self) -> float:
        """Share of the copies made that were let go without a read."""
        return self.totals.wasted / self.totals.promotions if self.totals.promotions else math.nan
