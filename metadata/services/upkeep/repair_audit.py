"""The slow pass over everything, which catches what no event told: chunks with too few homes, with too many, bad copies
that nothing replaces, deletions that got stuck, rows of the reverse table that nothing agrees with.

A page is read without locks, beside the loop; only what does not look well there is judged, under its row's lock, in
the transaction that mends it. What changes behind the reader is met in the next pass.

Cost: a page of PAGE rows of the reverse table per step, 20 us a row; a transaction only where something is to mend.
"""

from __future__ import annotations

from collections.abc import Sequence

from metadata.catalog import buckets, garbage, jobs, tiering, workload
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import BAD, DELETING, LIVE, Replica
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.work import ReplicaBook, counts, home_servers, is_alive
from metadata.services.upkeep.leftovers import Leftovers
from metadata.services.upkeep.repair import PAGE, Scan
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.repair_plan import Planner
from tierstore.ticket import ROLE_HOME


class Audit:
    """Runs in the holder of the promoter's lease; the epoch guards each transaction."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, planner: Planner, losses: Losses
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._book = book
        self._planner = planner
        self._replicas = planner.queue.replicas
        self._losses = losses
        self._device = 0
        self._leftovers = Leftovers(book)
        self.scan = Scan("repair")

    @property
    def leftovers_removed(self) -> int:
        """Rows of the reverse table that were wrong and went, since this process started."""
        return self._leftovers.removed

    async def step(self, epoch: int) -> tuple[int, bool]:
        """The next page of a slow pass over all devices: too few homes are copied, too many let go, bad ones mended."""
        devices = sorted(d.id for d in self._view.devices.values() if d.state == "ok" and is_alive(self._view, d.id))
        if not devices or self._losses.status.is_halted:
            return 0, False
        if self._device not in devices:
            self._device = next((d for d in devices if d > self._device), devices[0])
            self.scan.after = b""
        device, now_ms = self._device, self._cluster.now_ms()

        page = await self._database.scan(lambda c: self._page(c, device))
        doubtful = [chunk for chunk, located in page if not self._is_well(located, device, chunk)]
        acted = 0
        if doubtful:
            acted = await self._database.write(lambda c: self._mend(c, device, doubtful, epoch=epoch, now_ms=now_ms))
        self.scan.seen += len(page)
        if len(page) < PAGE:
            self.scan.after = b""
            self._device += 1
            self.scan.passes += device == devices[-1]
        else:
            self.scan.after = page[-1][0]
        return acted, len(page) == PAGE

    def _page(self, c: Connection, device: int) -> list[tuple[bytes, Located | None]]:
        """The next chunks that the reverse table has on a device, and their rows as this snapshot has them."""
        chunks = [i for i, _ in garbage.placed_between(c, device, after=self.scan.after, last=None, limit=PAGE)]
        found = tiering.find(c, {chunk: [device] for chunk in chunks}, buckets.names(c))
        return [(chunk, found.get(chunk)) for chunk in chunks]

    def _is_well(self, located: Located | None, device: int, chunk: bytes) -> bool:
        """Whether `_judge` and the leftovers would find nothing to do."""
        mine = next((r for r in located.chunk.replicas if r.device == device), None) if located is not None else None
        if located is None or mine is None or self._leftovers.is_suspect(device, chunk):
            return False
        if mine.state == DELETING or (mine.state == BAD and self._replicas.has_enough(located)):
            return False
        counted = [r for r in located.chunk.replicas if counts(self._view, r)]
        if device != min((r.device for r in counted), default=device):
            return True
        homes = home_servers(self._view, located.chunk.replicas)
        return len(counted) == len(homes) == self._replicas.copies_of(located)

    def _mend(self, c: Connection, device: int, chunks: Sequence[bytes], *, epoch: int, now_ms: int) -> int:
        """Judge these chunks as their rows are now, locked; how many were acted upon."""
        require_epoch(c, PROMOTER, epoch)
        busy = workload.open_kinds_of(c, chunks)
        acted = 0
        for chunk in chunks:
            located = self._book.locate(c, device, chunk)
            if self._leftovers.met(c, located, device, chunk) or located is None:
                continue
            if not busy.get(chunk):
                acted += self._judge(c, located, device, now_ms=now_ms)
        return acted

    def _judge(self, c: Connection, located: Located, device: int, *, now_ms: int) -> int:
        replicas = located.chunk.replicas
        mine = next(r for r in replicas if r.device == device)
        if mine.state == DELETING:
            return self._planner.requeue_drop(c, located, mine, now_ms=now_ms)
        if mine.state == BAD and self._replicas.has_enough(located):
            left = [r for r in replicas if r.device != device]
            self._book.rewrite(c, located, left, at_ms=now_ms)
            return 1
        counted = [r for r in replicas if counts(self._view, r)]
        # Each chunk is judged once per pass: at the first of its devices that counts.
        if device != min((r.device for r in counted), default=device):
            return 0
        homes, wanted = home_servers(self._view, replicas), self._replicas.copies_of(located)
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
            job = self._planner.plan(located, why="repair", drop=bad)
            return jobs.add(c, [job], now_ms=now_ms) if job is not None else 0
        if len(counted) > max(wanted, len(homes)) or len(homes) > wanted:
            victim = self._excess(counted)
            left = self._replicas.without(c, located, list(replicas), victim.device, via=device, now_ms=now_ms)
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
