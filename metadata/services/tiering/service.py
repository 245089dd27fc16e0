"""The promoter's tick in the cluster: from what was read to copies on faster devices, and back.

Owns the Planner (policy/decide.py) of the process that holds the lease and the last decisions per chunk for explain;
what of its plans is under way is copies.py's. Every tick: what ended is taken note of -> touched chunks are looked up
in one batched read -> the planner decides -> one transaction, conditional on the lease's epoch, lets copies go (deletes
of cache copies) and queues copies. Nothing here touches a home copy, and no read of a client causes a statement.

Invariants: what the planner takes for resident is a cache copy in the catalog or a job that makes one; a plan that
was not carried out is told to it as failed; after a change of holder the picture is built anew from the catalog.

Cost of a tick: 15 us a candidate in the catalog, 25 us in the planner, 30 us a copy queued; an idle tick one read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from metadata.catalog import tiering
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.packed import LIVE, iter_packed
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import ReplicaBook
from metadata.services.names.writes import Committed
from metadata.services.tiering import fleet as tiering_fleet
from metadata.services.tiering.copies import Copies, TieringTotals
from metadata.services.tiering.decided import Decisions
from metadata.services.tiering.find import Finder
from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable
from tierstore.policy.plan import Candidate, Plan
from tierstore.policy.rules import Policy, PromoterRules
from tierstore.policy.shelf import Device
from tierstore.ticket import ROLE_CACHE, ROLE_HOME

log = logging.getLogger(__name__)

#: Copies for tiering that may be queued at once: beyond, the next tick decides again.
OPEN_MAX: Final = 2_000
SETTLED_MAX: Final = 16
#: Garbage that one tick takes notice of, at most: 3,200 deleted chunks a second at the usual pace of ticks. With one
#: page a tick the promoter fell ever further behind whoever deletes more than 100, and kept what nobody can read.
GARBAGE_PAGE_ROWS: Final = 1_000
GARBAGE_PAGES_MAX: Final = 32


class HeatSource(Protocol):
    """The gathered heat (metadata/promoter/heat.py)."""

    table: HeatTable

    def reporter(self, chunk: bytes) -> int: ...

    def set_half_life(self, seconds: float) -> None: ...


class Tiering:
    """One per process; `tick` runs only in the holder of the promoter's lease."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, queue: JobQueue, heat: HeatSource, *,
        policy: Callable[[], tuple[int, Policy]],
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._queue = queue
        self.heat = heat
        self._policy = policy
        self.finder = Finder(database, cluster, self._held, reporter=heat.reporter, policy=policy)
        self.served = tiering_fleet.Served()
        self.copies = Copies(database, cluster, book, queue, self.finder, table=lambda: heat.table)
        self._began_at = self.now()
        self.planner: Planner | None = None
        self.grey_devices: tuple[int, ...] = ()
        self.decisions = Decisions()
        self._epoch = -1
        self._revision = -1
        self._garbage_seen = 0
        self._offers: deque[bytes] = deque()                  # to be judged under a changed policy
        self._scores: dict[bytes, float] = {}
        self._last_at = 0.0
        self.commits = 0              # by clients, since this process started

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
        self.copies.clear()
        self._garbage_seen = await self._database.read(tiering.newest_garbage)
        self._epoch = epoch

    def picture(self) -> Planner:
        """The planner; before the first tick, and in processes without the lease, one that knows no residents."""
        return self.planner or Planner(self.heat.table, self.rules, self._devices(None))

    def _devices(self, planner: Planner | None) -> list[Device]:
        under_way = self.copies.under_way_bytes()

        def resident(device: int) -> int:
            return planner.device_bytes(device) - under_way.get(device, 0) if planner is not None else 0

        return tiering_fleet.devices(
            self._view, resident_bytes=resident, leaving_bytes=self.copies.leaving_bytes()
        )

    def _held(self, chunk: bytes) -> Sequence[int]:
        return self.planner.devices_of(chunk) if self.planner is not None else ()

    def committed(self, events: Sequence[Committed]) -> None:
        """New chunks of an overwrite begin with the heat of the ones that they replace (rule 18)."""
        table = self.heat.table
        self.commits += len(events)
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
        await self.copies.settle(planner, epoch, tick_seconds=self.rules.tick_seconds)
        await self._forget_garbage(planner)
        now, share = self.now(), tiering_fleet.rate_share(self._view)
        self._throttle(planner, share)
        planner.set_devices(self._devices(planner))
        served_bytes, reads_of = self.served.take()
        self.totals.served_bytes += served_bytes
        room = max(0, OPEN_MAX - len(self.copies))
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
        await self.copies.carry_out(planner, plan, located, epoch)
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

    async def _forget_garbage(self, planner: Planner) -> None:
        """Chunks that were deleted or replaced since the last tick: their heat and their copies are no more."""
        for _ in range(GARBAGE_PAGES_MAX):
            before = self._garbage_seen
            chunks, self._garbage_seen = await self._database.read(
                partial(tiering.garbage_after, seen=before, limit=GARBAGE_PAGE_ROWS)
            )
            if self._garbage_seen == before:
                return
            for chunk in chunks:
                planner.forget(chunk.id)
                self.decisions.forget(chunk.id)
                self.copies.forget(chunk)

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
        gone = [c for c in known if c not in seen and (c, device) not in self.copies]
        for chunk in gone:
            self.planner.dropped(chunk, device)
        return len(gone)

    @property
    def totals(self) -> TieringTotals:
        return self.copies.totals

    def written_per_day(self) -> float:
        """Bytes that the promoter wrote to fast devices in a day, at its pace since this process started."""
        return self.totals.promoted_bytes / max(self.now() - self._began_at, 1.0) * 86_400
