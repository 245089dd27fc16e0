"""Handing jobs to object servers: which ones, under which lease, with what they need to do them.

A job goes out only if there is still a reason for it: it is judged anew in the transaction that leases it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Final

import msgspec

from metadata.catalog import jobs
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import JobRow
from metadata.catalog.leases import Connection
from metadata.catalog.packed import DELETING, PackedChunk
from metadata.services.cluster.duties import DutySwitches
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.rates import JobRates
from metadata.services.jobs.replicas import Replicas
from metadata.services.jobs.work import (
    BatchWork,
    CopyWork,
    DropWork,
    InventoryWork,
    ReplicaBook,
    VerifyWork,
    readable,
    unwritable,
)
from tierstore.names import ChunkId, DeviceId, ServerId
from tierstore.ticket import NO_HEAT, TICKET_SECONDS_MAX, ReadTicket, mint_read
from tierstore.wire.cluster import CopySource, Job
from tierstore.wire.slots import UNITS, units_of

#: Leased at once to one server, whatever it asks for.
HAND_OUT_MAX: Final = 256
SOURCES_MAX: Final = 4
#: How long a lease runs without a report; object servers report progress each heartbeat.
LEASE_MS: Final = 60_000
#: A job whose chunk cannot be read from anywhere now is asked again after this pause.
NO_SOURCE_MS: Final = 10_000


#: A server that sent jobs back for want of a slot is taken for one that gives each a whole slot, for so long; then it
#: is asked again: it may be of a newer release by now, or have been late with a heartbeat.
WHOLE_SLOTS_MS: Final = 10_000


class HandOut:
    """One per job queue."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, replicas: Replicas, switches: DutySwitches,
        *, rates: JobRates, reporter: Callable[[bytes], int] = lambda chunk: 0,
    ) -> None:  # fmt: skip
        """reporter: the server that clients read a chunk from last; 0: not known."""
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._book = book
        self._replicas = replicas
        self._switches = switches
        self.rates = rates
        self._reporter = reporter
        self._allowance = 0.0
        self._allowance_at_ms = 0
        self._whole_slots_until: dict[int, int] = {}      # server -> catalog time; as many as the cluster has

    def note_no_slot(self, server: int) -> None:
        """It sent back what does not fit its slots as it counts them."""
        self._whole_slots_until[server] = self._cluster.now_ms() + WHOLE_SLOTS_MS

    async def hand_out(self, server: int, slots: int) -> list[Job]:
        """Jobs that fill up to `slots` slots of a server, leased to it."""
        now_ms = self._cluster.now_ms()
        if not self._has_allowance(now_ms):
            return []
        waiting = await self._database.read(lambda c: jobs.waiting_servers(c, now_ms))
        if server not in waiting:
            return []
        paused = self._switches.paused
        made = await self._database.write(lambda c: self._lease(c, server, slots, now_ms, paused))
        self._allowance -= sum(job.chunk_bytes for job in made if job.kind == "copy")
        return made

    def _has_allowance(self, now_ms: int) -> bool:
        if self.rates.total <= 0:
            return True
        seconds = max(0, now_ms - self._allowance_at_ms) / 1000
        self._allowance_at_ms = now_ms
        # Two seconds' worth may gather, so that large chunks pass at all and idle time is not saved up.
        self._allowance = min(self._allowance + seconds * self.rates.total, 2.0 * self.rates.total)
        return self._allowance > 0

    def _lease(self, c: Connection, server: int, slots: int, now_ms: int, paused: frozenset[str]) -> list[Job]:
        waiting = jobs.waiting(
            c, server, limit=min(slots * UNITS, HAND_OUT_MAX), now_ms=now_ms, without=paused,
            only_reads_on=unwritable(self._view),
        )  # fmt: skip
        is_counting_parts = self._whole_slots_until.get(server, 0) <= now_ms
        rows = _that_fit(waiting, slots) if is_counting_parts else waiting[:slots]
        rows = jobs.lease(c, rows, until_ms=now_ms + LEASE_MS)
        made: list[Job] = []
        for row in rows:
            job = self._wire(c, row, now_ms)
            if job is not None:
                made.append(job)
        return made

    def _wire(self, c: Connection, row: JobRow, now_ms: int) -> Job | None:
        """The job as it is sent; None when there is no more reason for it (its row is gone then) or not yet."""
        if row.device_id not in self._view.devices or self._view.devices[row.device_id].server != row.server_id:
            jobs.remove(c, [row.id])    # the device went to another server; its duty plans anew
            return None
        job = Job(
            id=row.id, token=row.token, kind=row.kind, device=row.device_id, chunk=row.chunk, lease_ms=row.lease_ms,
            rate_bytes_per_second=self.rates.of(row.why), why=row.why,
        )  # fmt: skip
        if row.kind == "copy":
            return self._wire_copy(c, row, job, now_ms)
        if row.kind in ("delete", "undelete"):
            if row.chunk:
                return self._wire_drop(c, row, job)
            return msgspec.structs.replace(job, batch=msgspec.msgpack.decode(row.payload, type=BatchWork).ids)
        if row.kind == "verify":
            check = msgspec.msgpack.decode(row.payload, type=VerifyWork)
            located = None if check.chunk_bytes else self._replicas.locate(c, row.device_id, row.chunk)
            if located is not None:     # whole and right are two things: a copy may hold another chunk's bytes
                check = VerifyWork(located.chunk.chunk_bytes, located.chunk.crc32c)
            return msgspec.structs.replace(job, chunk_bytes=check.chunk_bytes, crc32c=check.crc32c)
        if row.kind == "inventory":
            asked = msgspec.msgpack.decode(row.payload, type=InventoryWork)
            return msgspec.structs.replace(job, since_ms=asked.since_ms)
        return job

    def _wire_copy(self, c: Connection, row: JobRow, job: Job, now_ms: int) -> Job | None:
        work = msgspec.msgpack.decode(row.payload, type=CopyWork)
        located = self._replicas.locate(c, work.via, row.chunk)
        if located is None or not self._replicas.is_wanted(located, row, work):
            jobs.remove(c, [row.id])
            if located is not None and work.drop and not work.keep:
                self._let_go(c, located, work.drop, via=work.via, now_ms=now_ms)
            return None
        sources = self._sources(located.chunk, row.device_id, now_ms)
        if not sources:
            jobs.put_back(
                c, row.id, code="no-replica", detail="no copy can be read now", not_before_ms=now_ms + NO_SOURCE_MS
            )
            return None
        return msgspec.structs.replace(
            job, chunk_bytes=located.chunk.chunk_bytes, crc32c=located.chunk.crc32c, sources=sources
        )

    def _let_go(self, c: Connection, located: Located, device: int, *, via: int, now_ms: int) -> None:
        """The copy that a job was to replace: when others are enough by now, it goes without a replacement. A bad one
        would else stay in the row until somebody misses a copy again."""
        replicas = list(located.chunk.replicas)
        left = self._replicas.without(c, located, replicas, device, via=via, now_ms=now_ms)
        if left != replicas:
            self._book.rewrite(c, located, left, at_ms=now_ms)

    def _wire_drop(self, c: Connection, row: JobRow, job: Job) -> Job | None:
        """A deletion of one replica, judged anew: it was queued on what was known then. When it may not go now the job
        ends; the audit queues it again when it may."""
        drop = msgspec.msgpack.decode(row.payload, type=DropWork)
        located = self._replicas.locate(c, drop.via, row.chunk)
        if located is not None and not self._replicas.may_be_deleted(located, row.device_id, drop.generation):
            jobs.remove(c, [row.id])
            return None
        return msgspec.structs.replace(job, batch=row.chunk, generation=drop.generation, discard=drop.discard)

    def _sources(self, chunk: PackedChunk, target: int, now_ms: int) -> list[CopySource]:
        sources: list[CopySource] = []
        own = self._view.devices[target].server
        found = readable(self._view, chunk.replicas)
        if not found:   # copies that are to go are still good until they are gone
            found = [r for r in chunk.replicas if r.state == DELETING and self._view.can_read(r.device)]
        # What was just read somewhere is in memory there: no disk. Else an own device: no network.
        read_at = self._reporter(chunk.id)
        servers = {r.device: self._view.devices[r.device].server for r in found}
        found.sort(key=lambda r: (servers[r.device] != read_at, servers[r.device] != own))
        for replica in found[:SOURCES_MAX]:
            device = self._view.devices[replica.device]
            key = self._view.signing_key(device.server)
            if key is None or replica.device == target:
                continue
            ticket = ReadTicket(
                ServerId(device.server), DeviceId(replica.device), ChunkId(chunk.id), replica.segment, replica.offset,
                chunk.chunk_bytes, now_ms // 1000 + TICKET_SECONDS_MAX, NO_HEAT,
            )  # fmt: skip
            sources.append(
                CopySource(
                    self._view.servers[device.server].url, device.server, replica.device,
                    mint_read(ticket, key_id=key[0], key=key[1]),
                )
            )  # fmt: skip
        return sources


def _that_fit(rows: list[JobRow], slots: int) -> list[JobRow]:
    """The first of them, in their order, that fill no more than so many slots."""
    filled = accumulate(units_of(row.kind, row.why, row.bytes) for row in rows)
    return [row for row, units in zip(rows, filled, strict=True) if units <= slots * UNITS]
