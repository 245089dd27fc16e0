"""Reconciling a device with the catalog, page by page of its inventory (rule 16), and orphans of uploads that were
never committed.

A chunk on the device that no row names there is judged in this order:
- its upload is young, leased or open -> later
- it is being collected, pinned, copied or otherwise worked on -> later
- some row names it on another device -> a stray copy: its deletion is queued as a job of its own, so that no copy job
  to this device can start before it is gone
- else its upload is condemned durably, the reverse table is waited for until it has passed that moment, the question
  is asked again, and only then the answer is "orphan" (rules 2 and 3).
A chunk that a row names here and that the page lacks gets a verify job; its server finds it missing, or there.

Nothing is an orphan while deletion is barred (rule 1) or after ORPHAN_SHARE_PER_DAY of the device was orphaned within
a day and no operator agreed: then the catalog is more likely wrong than the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, operations, servers, workload
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.queue import JobQueue
from metadata.services.jobs.work import CLASS_CHECK, CLASS_INVENTORY, InventoryWork, ReplicaBook, VerifyWork
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.snapshot_ids import is_reserved
from tierstore.clock import Clock
from tierstore.errors import ConflictError, RequestError
from tierstore.names import CHUNK_ID_BYTES, UPLOAD_ID_BYTES, UploadId, allocated_at_ms
from tierstore.wire.cluster import Inventory, InventoryAnswer

#: An upload that is neither leased nor committed this long after its allocation is given up, unless set otherwise. It
#: lapses after 10 min; a shorter time is safe too, since its uploads are condemned before anything is deleted (rule 3).
UPLOAD_OVER_MS: Final = 15 * 60_000
PAGE_CHUNKS_MAX: Final = 16_384
#: How long a page may wait for the reverse table.
MARK_WAIT_SECONDS: Final = 10.0
MARK_POLL_SECONDS: Final = 0.1
GARBAGE_ROWS_LOOKED_AT: Final = 20_000


@dataclass(slots=True)
class Reconciled:
    """Counters since this process started."""

    pages: int = 0
    orphans: int = 0
    strays: int = 0
    missing: int = 0
    later: int = 0


class Inventories:
    """Judges inventory pages and schedules inventory jobs."""

    def __init__(
        self, database: Database, cluster: Cluster, *, queue: JobQueue, book: ReplicaBook, guard: DeletionGuard,
        clock: Clock, over_ms: int = UPLOAD_OVER_MS,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._queue = queue
        self._book = book
        self._guard = guard
        self._clock = clock
        self._over_ms = over_ms
        self._listed_at_ms: dict[int, int] = {}
        #: When to list a device again because something on it was too young to be judged.
        self._again_at_ms: dict[int, int] = {}
        self.done = Reconciled()

    # -- scheduling -------------------------------------------------------------------------------------------
    async def schedule(self, *, every_ms: int) -> int:
        """Queue an inventory for each device that must be reconciled, or was not listed for so long; how many."""
        now_ms = self._cluster.now_ms()
        view = self._cluster.view
        wanted: list[NewJob] = []
        for device in view.devices.values():
            server = view.servers.get(device.server)
            if server is None or server.state not in ("up", "draining", "drained") or device.health == "failed":
                continue
            if device.state == "removed":
                continue
            listed = self._listed_at_ms.setdefault(device.id, now_ms)
            is_again = now_ms >= self._again_at_ms.get(device.id, now_ms + 1)
            if device.counts_for_copies and now_ms - listed < every_ms and not is_again:
                continue
            payload = msgspec.msgpack.encode(InventoryWork(server.incarnation))
            wanted.append(NewJob("inventory", "reconcile", CLASS_INVENTORY, device.server, device.id, payload=payload))

        def work(c: Connection) -> int:
            fresh = [
                job for job in wanted
                if not workload.open_on_device(c, job.device_id, ["inventory"], why="reconcile")
            ]  # fmt: skip
            return jobs.add(c, fresh, now_ms=now_ms)

        return await self._database.write(work) if wanted else 0

    # -- one page ---------------------------------------------------------------------------------------------
    async def page(self, message: Inventory) -> InventoryAnswer:
        """Judge one page. What it answers as orphans was condemned durably before.

        Raises RequestError, ConflictError (another life, another server's device)."""
        view = self._cluster.view
        device = view.devices.get(message.device)
        server = view.servers.get(message.server)
        if device is None or server is None or device.server != message.server:
            raise ConflictError(f"device {message.device} is not server {message.server}'s", code="device-in-use")
        if server.incarnation != message.incarnation:
            raise ConflictError("this inventory is of another life of the server", code="stale-incarnation")
        if len(message.ids) % CHUNK_ID_BYTES or len(message.ids) > PAGE_CHUNKS_MAX * CHUNK_ID_BYTES:
            raise RequestError(f"a page has at most {PAGE_CHUNKS_MAX} ids of 16 bytes", code="bad-message")
        self.done.pages += 1
        ids = [message.ids[at : at + CHUNK_ID_BYTES] for at in range(0, len(message.ids), CHUNK_ID_BYTES)]
        # What `last` bounds: rows behind the page's end belong to the next page.
        last = None if message.is_last else (ids[-1] if ids else message.after)
        rows = await self._database.scan(
            lambda c: garbage.placed_between(
                c, message.device, after=message.after, last=last, limit=4 * PAGE_CHUNKS_MAX
            )
        )
        here, named = set(ids), {chunk for chunk, _ in rows}
        await self._check_missing(message.device, [(chunk, size) for chunk, size in rows if chunk not in here])
        unnamed = [chunk for chunk in ids if chunk not in named and not is_reserved(chunk)]
        if not message.after:
            self._again_at_ms.pop(message.device, None)
        answer, strays = await self._judge(message.device, unnamed) if unnamed else (InventoryAnswer(), 0)
        now_ms = self._cluster.now_ms()
        if answer.later or strays:
            # The deletion of a stray is judged once more when it is handed out, and is given up when too few homes
            # count just then (servers that have only just come back): no row speaks of the copy, so only this asks.
            self._again_at_ms[message.device] = now_ms + self._over_ms
        if message.is_last:
            self._listed_at_ms[message.device] = now_ms
        return answer

    async def _check_missing(self, device: int, missing: list[tuple[bytes, int]]) -> None:
        if not missing:
            return
        now_ms = self._cluster.now_ms()
        server = self._cluster.view.devices[device].server
        payload = msgspec.msgpack.encode(VerifyWork(0, 0))
        made = [NewJob("verify", "reconcile", CLASS_CHECK, server, device, chunk, payload) for chunk, _ in missing]
        self.done.missing += await self._database.write(lambda c: jobs.add(c, made, now_ms=now_ms))

    async def _judge(self, device: int, unnamed: list[bytes]) -> tuple[InventoryAnswer, int]:
        """(the answer, strays whose deletion was queued)."""
        now_ms = self._cluster.now_ms()
        devices = list(self._cluster.view.devices)
        placed = await self._database.scan(lambda c: garbage.placed(c, unnamed, devices))
        # What a row names on another device was committed, so its age says nothing: it is a stray.
        old = [
            chunk for chunk in unnamed
            if chunk in placed or now_ms - allocated_at_ms(UploadId(chunk[:UPLOAD_ID_BYTES])) > self._over_ms
        ]  # fmt: skip
        later = len(unnamed) - len(old)
        why_not = self._guard.why_not(device)
        if not old or why_not:
            self.done.later += later + len(old)
            return InventoryAnswer(later=later + len(old)), 0
        condemned, asked_at = await self._database.write(lambda c: self._condemn(c, old, now_ms))
        later += len(old) - len(condemned)
        if condemned and not await self._mark_passes(asked_at):
            return InventoryAnswer(later=later + len(condemned)), 0
        orphans, strays = await self._database.write(lambda c: self._verdict(c, device, condemned, now_ms))
        orphans = await self._guard.spare_rebuilt(orphans)
        allowed = await self._guard.spend(device, orphans)
        later += len(condemned) - len(orphans) - strays + len(orphans) - len(allowed)
        self.done.orphans += len(allowed)
        self.done.strays += strays
        self.done.later += later
        return InventoryAnswer(orphans=allowed, later=later), strays

    def _condemn(self, c: Connection, chunks: list[bytes], now_ms: int) -> tuple[list[bytes], int]:
        """Condemn the uploads that may be; (chunks of those, the feed's sequence behind which no commit of them is)."""
        uploads = {chunk[:UPLOAD_ID_BYTES] for chunk in chunks}
        alive = garbage.leased(c, uploads, now_ms=now_ms)
        placed = garbage.placed(c, chunks, list(self._cluster.view.devices))
        # An upload with a committed chunk needs no condemnation to judge a stray copy of it.
        over = {chunk[:UPLOAD_ID_BYTES] for chunk in chunks if chunk not in placed} - alive
        if over:
            operations.condemn(c, over, at_ms=now_ms)
        judged = [chunk for chunk in chunks if chunk in placed or chunk[:UPLOAD_ID_BYTES] not in alive]
        return judged, servers.feed_sequence(c)

    async def _mark_passes(self, sequence: int) -> bool:
        until = self._clock.monotonic() + MARK_WAIT_SECONDS
        while await self._database.read(self._book.mark) < sequence:
            if self._clock.monotonic() >= until:
                return False
            await self._clock.sleep(MARK_POLL_SECONDS)
        return True

    def _verdict(self, c: Connection, device: int, chunks: list[bytes], now_ms: int) -> tuple[list[bytes], int]:
        """(orphans, strays whose deletion was queued) of chunks whose uploads can no longer commit."""
        placed = garbage.placed(c, chunks, list(self._cluster.view.devices))
        busy = workload.open_kinds_of(c, chunks)
        held = operations.pinned(c, chunks, now_ms=now_ms)
        collecting = garbage.in_garbage(
            c, chunks, since_ms=now_ms - self._over_ms, rows_max=GARBAGE_ROWS_LOOKED_AT
        )
        if collecting is None:
            return [], 0    # so much is being deleted just now that readers' grace cannot be checked: ask later
        orphans: list[bytes] = []
        strays = 0
        for chunk in chunks:
            if chunk in busy or chunk in held or chunk in collecting or device in placed.get(chunk, []):
                continue
            if chunk in placed:
                # The row itself decides: a copy made here since the question is in it before it is in the reverse
                # table, and then this is no stray.
                located = self._queue.replicas.locate(c, placed[chunk][0], chunk)
                if located is None or any(r.device == device for r in located.chunk.replicas):
                    continue
                if not self._queue.replicas.has_enough(located, without=device):
                    continue    # it would be refused at its hand-out, and nobody else ever asks for it: ask later
                self._queue.replicas.queue_drop(c, chunk, device, via=placed[chunk][0], generation=0, now_ms=now_ms)
                strays += 1
            else:
                orphans.append(chunk)
        return orphans, strays
