"""Redundancy: finds chunks that lack copies and queues the copies, most endangered first.

Four ways in, one plan: devices that are gone (dead server past its grace, failed device), devices being drained
(services.drain), copies reported bad, and a slow audit over everything that catches what the others missed. Each looks
at a chunk's row, counts the live homes on different servers, and either queues one copy job (which carries the replica
it replaces) or, when there are enough elsewhere, lets the replica on the device go.

Repair halts when more than a third of the servers vanish at once (rule 15), until they are back or an operator says
`continue`: then it is the network or ourselves that broke, and copying everything would make it worse.

Cost: a page of PAGE rows of the reverse table per step, one row lock per chunk; OPEN_MAX open jobs per reason bound
the queue. Deterministic given the passed-in random.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, leases
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import BAD, DELETING, LIVE, Replica
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.liveness import vanished_too_many
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import ClusterView, DeviceInfo
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import (
    CLASS_DRAIN,
    CopyWork,
    MendWork,
    ReplicaBook,
    can_delete,
    counts,
    endangered,
    home_servers,
    is_alive,
)
from tierstore.policy.placement import HEADROOM_BYTES
from tierstore.ticket import ROLE_HOME

#: Rows looked at in one transaction.
PAGE: Final = 256
#: Setting: ids of the servers of which an operator said that they are really gone (JSON).
CONTINUED: Final = "repair-continued"
#: Open copy jobs per reason; planning waits while there are more.
OPEN_MAX: Final = 2000
#: Servers whose last heartbeats lie within this span vanished at once.
AT_ONCE_MS: Final = 60_000
#: A reported copy that the reverse table does not know yet is asked about again after this.
LATER_MS: Final = 2000


@dataclass(slots=True)
class Scan:
    """How far one pass over a device has come. planned: jobs queued in this pass; stuck: chunks with nowhere to go;
    stale: rows of the reverse table that no chunk's row agrees with, and the feed's sequence when that was seen."""

    why: str
    after: bytes = b""
    seen: int = 0
    planned: int = 0
    stuck: int = 0
    passes: int = 0
    stale: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class RepairStatus:
    """For `admin status`: what is being made whole again."""

    is_halted: bool = False
    halted_why: str = ""
    lost_devices: list[int] = field(default_factory=list)
    stuck: int = 0


class Repair:
    """Plans copies. Runs in the holder of the promoter's lease; the epoch guards each transaction."""

    def __init__(
        self, database: Database, cluster: Cluster, queue: JobQueue, book: ReplicaBook, rng: random.Random
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._view: ClusterView = cluster.view
        self._queue = queue
        self._book = book
        self._rng = rng
        self._scans: dict[int, Scan] = {}
        self._audit = Scan("repair")
        self._audit_device = 0
        self._continued: frozenset[int] = frozenset()
        self._failed_since: dict[int, int] = {}
        self.status = RepairStatus()

    # -- who is gone ------------------------------------------------------------------------------------------
    def lost_devices(self) -> list[int]:
        """Devices whose copies are to be made elsewhere: past their grace, and not while repair is halted."""
        now_ms = self._cluster.now_ms()
        timers = self._cluster.settings.timers
        grace_ms = int((timers.dead_seconds + timers.repair_grace_seconds) * 1000)
        dead = [
            s for s in self._view.servers.values()
            if s.role == "objectd" and s.state in ("dead", "removed")
        ]  # fmt: skip
        self._judge_halt([s.id for s in dead if s.state == "dead"])
        if self.status.is_halted:
            return []
        gone = {s.id for s in dead if s.state == "removed" or now_ms - s.seen_at_ms >= grace_ms}
        absent = {s.id for s in dead}
        failed = {d.id for d in self._view.devices.values() if d.health == "failed" and d.server not in absent}
        # A device that failed may pass its check again: it has the same grace as a server, from when we first saw it.
        self._failed_since = {d: self._failed_since.get(d, now_ms) for d in failed}
        failed_ms = int(timers.repair_grace_seconds * 1000)
        lost = [
            d.id for d in self._view.devices.values()
            if d.server in gone or d.state == "removed" or now_ms - self._failed_since.get(d.id, now_ms) >= failed_ms
        ]  # fmt: skip
        self.status.lost_devices = lost
        return lost

    def _judge_halt(self, dead: list[int]) -> None:
        members = [s for s in self._view.servers.values() if s.role == "objectd" and s.state != "removed"]
        seen = {s.id: s.seen_at_ms for s in members}
        newest = max((seen[s] for s in dead), default=0)
        at_once = [s for s in dead if newest - seen[s] <= AT_ONCE_MS]
        self.status.is_halted = vanished_too_many(at_once, len(members)) and not set(at_once) <= self._continued
        names = ", ".join(sorted(self._view.servers[s].name for s in at_once))
        self.status.halted_why = (
            f"{len(at_once)} of {len(members)} object servers vanished at once ({names}): repair waits for them or for "
            "an operator's word"
            if self.status.is_halted
            else ""
        )

    async def resume(self) -> None:
        """An operator's word: the servers that are dead now are really gone. Durable when it returns; it holds for
        these servers until they came back."""
        gone = sorted(s.id for s in self._view.servers.values() if s.state == "dead")
        text = msgspec.json.encode(gone).decode()
        await self._database.write(lambda c: leases.set_setting(c, CONTINUED, text))
        self._continued = frozenset(gone)

    async def _recall(self) -> None:
        """Take up an operator's word from the catalog (a restart, another process), less whoever is back."""
        text = await self._database.read(lambda c: leases.setting(c, CONTINUED))
        given = frozenset(msgspec.json.decode(text, type=list[int])) if text else frozenset()
        dead = {s.id for s in self._view.servers.values() if s.state == "dead"}
        # Right after a start everybody counts as alive for one lease: what was said is not forgotten then.
        settled = self._cluster.now_ms() - self._cluster.watching_since_ms
        self._continued = given & dead
        if given - dead and settled > 2000 * self._cluster.settings.timers.dead_seconds:
            left = msgspec.json.encode(sorted(self._continued)).decode()
            await self._database.write(lambda c: leases.set_setting(c, CONTINUED, left))

    # -- steps ------------------------------------------------------------------------------------------------
    async def step(self, epoch: int) -> tuple[int, bool]:
        """Mend reported copies, then go on with lost devices; (jobs queued or entries dropped, is there more)."""
        done, more = await self.mend(epoch)
        await self._recall()
        lost = self.lost_devices()
        for device in [d for d, scan in self._scans.items() if scan.why == "repair" and d not in lost]:
            del self._scans[device]
        for device in lost:
            moved, is_unfinished = await self.evacuate(device, "repair", epoch)
            done += moved
            more = more or is_unfinished
        self.status.stuck = sum(scan.stuck for scan in self._scans.values())
        return done, more

    async def evacuate(self, device: int, why: str, epoch: int) -> tuple[int, bool]:
        """The next page of a device whose chunks must live elsewhere; (chunks acted on, more at once)."""
        scan = self._scans.get(device)
        if scan is None or scan.why != why:
            scan = self._scans[device] = Scan(why)
        if await self._database.read(lambda c: jobs.open_count(c, why)) >= OPEN_MAX:
            return 0, False
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> tuple[int, int, int, bytes]:
            require_epoch(c, PROMOTER, epoch)
            page = garbage.placed_between(c, device, after=scan.after, last=None, limit=PAGE)
            located = [self._book.locate(c, device, chunk) for chunk, _ in page]
            busy = jobs.open_kinds_of(c, [chunk for chunk, _ in page])
            made: list[NewJob] = []
            dropped = stuck = 0
            for (chunk, _), found in zip(page, located, strict=True):
                if found is None or all(r.device != device for r in found.chunk.replicas):
                    self._forget_stale(c, scan, device, chunk)
                    continue
                scan.stale.pop(chunk, None)
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

    def _forget_stale(self, c: Connection, scan: Scan, device: int, chunk: bytes) -> None:
        """A row that is still wrong when the reverse table has passed the moment it was first seen to be (rule 2) goes:
        else the device would never be empty."""
        seen_at = scan.stale.get(chunk)
        if seen_at is None:
            if len(scan.stale) < PAGE:
                scan.stale[chunk] = self._cluster.sequence
        elif self._book.mark(c) >= seen_at:
            self._book.forget(c, device, chunk)
            del scan.stale[chunk]

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
                self._requeue_drop(c, located, victim, now_ms=now_ms)
                return False
            self._book.rewrite(c, located, [r for r in chunk.replicas if r.device != device], at_ms=now_ms)
            return True
        replicas = self._queue.replicas.without(c, located, list(chunk.replicas), device, via=device, now_ms=now_ms)
        if replicas != list(chunk.replicas):
            self._book.rewrite(c, located, replicas, at_ms=now_ms)
            return True
        if any(kind == "copy" for kind, _ in busy):
            return False
        return self.plan(located, why=why, drop=device)

    def _requeue_drop(self, c: Connection, located: Located, victim: Replica, *, now_ms: int) -> bool:
        """Queue the deletion of a copy that is marked for it, unless it is missed by now; whether it may go."""
        if not self._queue.replicas.may_be_deleted(located, victim.device, victim.generation):
            return False
        via = next((r.device for r in located.chunk.replicas if r.device != victim.device), victim.device)
        self._queue.replicas.queue_drop(
            c, located.chunk.id, victim.device, via=via, generation=victim.generation, now_ms=now_ms
        )
        return True

    def plan(self, located: Located, *, why: str, drop: int = 0) -> NewJob | None:
        """A copy job for one more home of the chunk, replacing the one on `drop`; None when no device can take it."""
        chunk = located.chunk
        homes = home_servers(self._view, chunk.replicas, without=drop)
        old = self._view.devices.get(drop) if drop else None
        tier = old.tier if old else next(
            (self._view.devices[r.device].tier for r in chunk.replicas if r.device in self._view.devices), ""
        )  # fmt: skip
        # A readable home on a server keeps others of that server out, also one that does not count (not reconciled
        # yet, draining): else two homes would share it as soon as it counts again.
        taken = homes | {
            self._view.devices[r.device].server
            for r in chunk.replicas
            if r.state == LIVE and r.role == ROLE_HOME and r.device != drop and r.device in self._view.devices
        }
        target = self.choose(chunk.chunk_bytes, tier, exclude_servers=taken)
        if target is None:
            return None
        live = len(homes) + (1 if old is not None and why == "drain" and is_alive(self._view, drop) else 0)
        rank = CLASS_DRAIN if live >= self._queue.replicas.copies_of(located) else endangered(len(homes))
        via = next((r.device for r in chunk.replicas if r.device != drop), drop)
        return NewJob(
            "copy", why, rank, target.server, target.id, chunk=chunk.id, bytes=chunk.chunk_bytes,
            payload=msgspec.msgpack.encode(CopyWork(via, ROLE_HOME, drop)), heat=self._queue.heat_of(chunk.id),
        )  # fmt: skip

    def choose(self, size: int, tier: str, *, exclude_servers: Collection[int]) -> DeviceInfo | None:
        """A device for one home copy: of the wished tier if there is room, weighted by free space and load."""
        fit = [
            d for d in self._view.devices.values()
            if self._view.can_place(d) and d.counts_for_copies and d.server not in exclude_servers
            and d.free_bytes > size + HEADROOM_BYTES
        ]  # fmt: skip
        if not fit:
            return None
        same = [d for d in fit if d.tier == tier] or fit
        weights = [d.free_bytes * max(0.1, 1.0 - self._view.servers[d.server].load) / (1.0 + d.queue) for d in same]
        return self._rng.choices(same, weights)[0]

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
        kinds = jobs.open_kinds_of(c, {job.chunk for _, job in made})
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
        marked = replace(located, chunk=chunk.with_replicas([*rest, bad]))
        if rest and self._queue.replicas.has_enough(marked):
            self._book.rewrite(c, located, rest, at_ms=now_ms)    # enough without it: nothing replaces it
            return None
        if victim.state != BAD:
            self._book.rewrite(c, located, marked.chunk.replicas, at_ms=now_ms)
        return self.plan(marked, why="repair", drop=device)

    # -- audit ------------------------------------------------------------------------------------------------
    async def audit(self, epoch: int) -> tuple[int, bool]:
        """The next page of a slow pass over all devices: too few homes are copied, too many let go, bad ones mended."""
        devices = sorted(d.id for d in self._view.devices.values() if d.state == "ok" and is_alive(self._view, d.id))
        if not devices or self.status.is_halted:
            return 0, False
        if self._audit_device not in devices:
            self._audit_device = next((d for d in devices if d > self._audit_device), devices[0])
            self._audit.after = b""
        device, now_ms = self._audit_device, self._cluster.now_ms()

        def work(c: Connection) -> tuple[int, int, bytes]:
            require_epoch(c, PROMOTER, epoch)
            page = garbage.placed_between(c, device, after=self._audit.after, last=None, limit=PAGE)
            busy = jobs.open_kinds_of(c, [chunk for chunk, _ in page])
            acted = 0
            for chunk, _ in page:
                located = self._book.locate(c, device, chunk)
                if located is not None and not busy.get(chunk):
                    acted += self._audit_one(c, located, device, now_ms=now_ms)
            return acted, len(page), page[-1][0] if page else b""

        acted, seen, last = await self._database.write(work)
        self._audit.seen += seen
        if seen < PAGE:
            self._audit.after = b""
            self._audit_device += 1
            self._audit.passes += device == devices[-1]
        else:
            self._audit.after = last
        return acted, seen == PAGE

    def _audit_one(self, c: Connection, located: Located, device: int, *, now_ms: int) -> int:
        replicas = located.chunk.replicas
        mine = next((r for r in replicas if r.device == device), None)
        if mine is None:
            return 0
        if mine.state == DELETING:
            return self._requeue_drop(c, located, mine, now_ms=now_ms)
        if mine.state == BAD and self._queue.replicas.has_enough(located):
            left = [r for r in replicas if r.device != device]
            self._book.rewrite(c, located, left, at_ms=now_ms)
            return 1
        counted = [r for r in replicas if counts(self._view, r)]
        # Each chunk is judged once per pass: at the first of its devices that counts.
        if device != min((r.device for r in counted), default=device):
            return 0
        homes, wanted = home_servers(self._view, replicas), self._queue.replicas.copies_of(located)
        if len(homes) < wanted:
            # Homes on servers that are merely away are not replaced here: their grace has not passed.
            away = [
                r for r in replicas
                if r.role == ROLE_HOME and r.state == LIVE and not counts(self._view, r)
                and r.device in self._view.devices and self._view.devices[r.device].state == "ok"
                and self._view.devices[r.device].health != "failed"
            ]  # fmt: skip
            if len(homes) + len(away) >= wanted:
                return 0
            bad = next((r.device for r in replicas if r.state == BAD), 0)
            job = self.plan(located, why="repair", drop=bad)
            return jobs.add(c, [job], now_ms=now_ms) if job is not None else 0
        if len(counted) > max(wanted, len(homes)) or len(homes) > wanted:
            victim = self._excess(counted)
            left = self._queue.replicas.without(c, located, list(replicas), victim.device, via=device, now_ms=now_ms)
            if left != list(replicas):
                self._book.rewrite(c, located, left, at_ms=now_ms)
                return 1
        return 0

    def _excess(self, counted: list[Replica]) -> Replica:
        """The home to let go: one that shares its server with another, else the one on the fullest device."""
        servers = [self._view.devices[r.device].server for r in counted]

        def badness(r: Replica) -> tuple[int, float]:
            device = self._view.devices[r.device]
            fill = device.used_bytes / device.capacity_bytes if device.capacity_bytes else 1.0
            return servers.count(device.server), fill

        return max(counted, key=badness)

    def scan_of(self, device: int) -> Scan | None:
        return self._scans.get(device)

    def forget_scan(self, device: int) -> None:
        self._scans.pop(device, None)

    @property
    def audit_scan(self) -> Scan:
        return self._audit
