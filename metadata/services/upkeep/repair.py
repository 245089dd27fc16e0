"""Redundancy: finds chunks that lack copies and queues the copies, most endangered first.

Four ways in, one plan (repair_plan): devices that are gone (repair_losses: dead server past its grace, failed device),
devices being drained (services.drain), copies reported bad, and a slow audit over everything that catches what the
others missed (repair_audit). Each looks at a chunk's row, counts the live homes on different servers, and either queues
one copy job (which carries the replica it replaces) or, when there are enough elsewhere, lets the replica on the device
go.

Cost: a page of PAGE rows of the reverse table per step, one row lock per chunk; OPEN_MAX open jobs per reason bound
the queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, workload
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import BAD, DELETING, Replica
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import MendWork, ReplicaBook, can_delete
from metadata.services.upkeep.leftovers import Leftovers
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.repair_plan import Planner
from tierstore.ticket import ROLE_HOME

#: Rows looked at in one transaction.
PAGE: Final = 256
#: Open copy jobs per reason; planning waits while there are more.
OPEN_MAX: Final = 2000
#: A reported copy that the reverse table does not know yet is asked about again after this.
LATER_MS: Final = 2000


@dataclass(slots=True)
class Scan:
    """How far one pass over a device has come. planned: jobs queued in this pass; stuck: chunks with nowhere to go."""

    why: str
    after: bytes = b""
    seen: int = 0
    planned: int = 0
    stuck: int = 0
    passes: int = 0


class Repair:
    """Plans copies. Runs in the holder of the promoter's lease; the epoch guards each transaction."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, planner: Planner, losses: Losses
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._queue = planner.queue
        self._book = book
        self.planner = planner
        self.losses = losses
        self._scans: dict[int, Scan] = {}
        self._leftovers = Leftovers(book)

    async def step(self, epoch: int) -> tuple[int, bool]:
        """Mend reported copies, then go on with lost devices; (jobs queued or entries dropped, is there more)."""
        done, more = await self.mend(epoch)
        await self.losses.recall()
        lost = self.losses.devices()
        for device in [d for d, scan in self._scans.items() if scan.why == "repair" and d not in lost]:
            del self._scans[device]
        for device in lost:
            moved, is_unfinished = await self.evacuate(device, "repair", epoch)
            done += moved
            more = more or is_unfinished
        self.losses.status.stuck = sum(scan.stuck for scan in self._scans.values())
        return done, more

    async def evacuate(self, device: int, why: str, epoch: int) -> tuple[int, bool]:
        """The next page of a device whose chunks must live elsewhere; (chunks acted on, more at once)."""
        scan = self._scans.get(device)
        if scan is None or scan.why != why:
            scan = self._scans[device] = Scan(why)
        if await self._database.read(lambda c: workload.open_count(c, why)) >= OPEN_MAX:
            return 0, False
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> tuple[int, int, int, bytes]:
            require_epoch(c, PROMOTER, epoch)
            page = garbage.placed_between(c, device, after=scan.after, last=None, limit=PAGE)
            located = [self._book.locate(c, device, chunk) for chunk, _ in page]
            busy = workload.open_kinds_of(c, [chunk for chunk, _ in page])
            made: list[NewJob] = []
            dropped = stuck = 0
            for (chunk, _), found in zip(page, located, strict=True):
                if self._leftovers.met(c, found, device, chunk) or found is None:
                    continue    # else the device would never be empty
                outcome = self._leave(c, found, device, why, busy.get(found.chunk.id, []), now_ms=now_ms)
                if outcome is None:
                    stuck += 1
                elif isinstance(outcome, NewJob):
                    made.append(outcome)
                elif outcome:
                    dropped += 1
            planned = jobs.add(c, made, now_ms=now_ms)
            return planned + dropped, len(page), stuck, page[-1][0] if page else b""

        done, seen, stuck, last = await self._database.write(work)
        scan.seen += seen
        scan.planned += done
        scan.stuck = stuck if scan.after == b"" else scan.stuck + stuck
        is_pass_over = seen < PAGE
        scan.after = b"" if is_pass_over else last
        scan.passes += is_pass_over
        return done, not is_pass_over

    def _leave(
        self, c: Connection, located: Located, device: int, why: str, busy: list[tuple[str, int]], *, now_ms: int
    ) -> NewJob | bool | None:
        """Make a chunk independent of a device: a copy job, True (its entry was changed), False (nothing to do now),
        None (it must be copied and there is nowhere to)."""
        chunk = located.chunk
        victim = next((r for r in chunk.replicas if r.device == device), None)
        if victim is None:
            return False
        if victim.state == DELETING:
            if can_delete(self._view, device):
                self.planner.requeue_drop(c, located, victim, now_ms=now_ms)
                return False
            self._book.rewrite(c, located, [r for r in chunk.replicas if r.device != device], at_ms=now_ms)
            return True
        replicas = self._queue.replicas.without(c, located, list(chunk.replicas), device, via=device, now_ms=now_ms)
        if replicas != list(chunk.replicas):
            self._book.rewrite(c, located, replicas, at_ms=now_ms)
            return True
        if any(kind == "copy" for kind, _ in busy):
            return False
        return self.planner.plan(located, why=why, drop=device)

    # -- reported copies --------------------------------------------------------------------------------------
    async def mend(self, epoch: int) -> tuple[int, bool]:
        """Mark reported copies as bad and queue their replacement; (handled, more)."""
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> tuple[int, int]:
            require_epoch(c, PROMOTER, epoch)
            rows = jobs.internal(c, limit=PAGE, now_ms=now_ms)
            mark = self._book.mark(c)
            finished: list[int] = []
            made: list[tuple[int, NewJob]] = []
            for row in rows:
                report = msgspec.msgpack.decode(row.payload, type=MendWork)
                located = self._book.locate(c, row.device_id, row.chunk)
                if located is None and mark < report.asked_at:
                    jobs.put_back(c, row.id, code="", detail="", not_before_ms=now_ms + LATER_MS)
                    continue    # the reverse table has not come that far (rule 2)
                finished.append(row.id)
                if located is None:
                    continue
                job = self._mend_one(c, located, row.device_id, now_ms=now_ms)
                if job is not None:
                    made.append((row.id, job))
            # First the rows go: a copy may well have to go to the same device.
            jobs.remove(c, [id for id in finished if id not in {mending for mending, _ in made}])
            busy = self._still_busy(c, made)
            for id in busy:     # the job that found the copy bad is not over: the same device may be the only one left
                jobs.put_back(c, id, code="", detail="", not_before_ms=now_ms + LATER_MS)
            jobs.remove(c, [id for id, _ in made if id not in busy])
            jobs.add(c, [job for id, job in made if id not in busy], now_ms=now_ms)
            return len(finished) - len(busy), len(rows)

        done, seen = await self._database.write(work)
        return done, seen == PAGE

    @staticmethod
    def _still_busy(c: Connection, made: list[tuple[int, NewJob]]) -> set[int]:
        """Those mend jobs whose copy cannot be queued now, as another job works on that chunk of that device."""
        kinds = workload.open_kinds_of(c, {job.chunk for _, job in made})
        return {
            id for id, job in made
            if any(device == job.device_id and kind != "mend" for kind, device in kinds.get(job.chunk, []))
        }

    def _mend_one(self, c: Connection, located: Located, device: int, *, now_ms: int) -> NewJob | None:
        chunk = located.chunk
        victim = next((r for r in chunk.replicas if r.device == device), None)
        if victim is None or victim.state == DELETING:
            return None
        rest = [r for r in chunk.replicas if r.device != device]
        if victim.role != ROLE_HOME:
            self._book.rewrite(c, located, rest, at_ms=now_ms)    # a cache copy is extra: it just goes
            return None
        bad = Replica(victim.device, victim.role, BAD, victim.generation, victim.segment, victim.offset)
        marked = located._replace(chunk=chunk.with_replicas([*rest, bad]))
        if rest and self._queue.replicas.has_enough(marked):
            self._book.rewrite(c, located, rest, at_ms=now_ms)    # enough without it: nothing replaces it
            return None
        if victim.state != BAD:
            self._book.rewrite(c, located, marked.chunk.replicas, at_ms=now_ms)
        return self.planner.plan(marked, why="repair", drop=device)

    def scan_of(self, device: int) -> Scan | None:
        return self._scans.get(device)

    def forget_scan(self, device: int) -> None:
        self._scans.pop(device, None)
