"""The job queue: hands work to object servers under leases and takes their results.

Rules: a job goes out only if there is still a reason for it (its chunk is referenced and still lacks the copy); a
result counts only under the current token and only if the chunk is still referenced (rule 4), else what was copied is
queued for collection; a failure is tried again with a growing pause and given up, visibly, after ATTEMPTS_MAX.
Rates: per device (each job carries it), and in all (a token bucket over the bytes handed out).

Cost: one transaction per heartbeat that brings results, one per heartbeat that gets jobs; none when idle.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, servers
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import JobRow, NewJob
from metadata.catalog.leases import Connection
from metadata.catalog.packed import BAD, DELETING, LIVE, PackedChunk, Replica
from metadata.services.cluster import Cluster
from metadata.services.duties import DutySwitches
from metadata.services.jobs_work import (
    CLASS_CHECK,
    CLASS_COLLECT,
    CLASS_DRAIN,
    INTERNAL,
    BatchWork,
    CopyWork,
    DropWork,
    InventoryWork,
    MendWork,
    ReplicaBook,
    VerifyWork,
    home_servers,
    is_alive,
    readable,
)
from tierstore.errors import TicketRefused
from tierstore.names import ChunkId, DeviceId, ServerId
from tierstore.ticket import (
    NO_HEAT,
    ROLE_CACHE,
    ROLE_HOME,
    TICKET_SECONDS_MAX,
    ReadTicket,
    Receipt,
    mint_read,
    open_receipt,
)
from tierstore.wire.cluster import BadChunk, CopySource, Job, JobReport

log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 10
BACKOFF_MS_MAX: Final = 600_000
#: Leased at once to one server, whatever it asks for.
HAND_OUT_MAX: Final = 64
SOURCES_MAX: Final = 4
#: The reason of copies for tiering: never tried again by the queue.
PROMOTE: Final = "promote"
#: How long a lease runs without a report; object servers report progress each heartbeat.
LEASE_MS: Final = 60_000
VERIFY_LEASE_MS: Final = 120_000
FAILED_KEPT_MS: Final = 7 * 86_400_000
AGE_MS: Final = 600_000
#: A job whose chunk cannot be read from anywhere now is asked again after this pause.
NO_SOURCE_MS: Final = 10_000
#: Verify jobs fail with these when the copy is bad; the bad copy itself is reported beside.
FOUND_BAD: Final = frozenset({"bad-block", "bad-footer", "bad-sums", "no-such-chunk", "integrity"})


@dataclass(frozen=True, slots=True)
class JobRates:
    """Bytes per second; 0: no limit. `total` bounds what is handed out over all devices, endangered chunks too."""

    per_device: int = 50 << 20
    total: int = 0
    promote: int = 50 << 20     # per device; the policy's, lowered while clients need the servers

    def of(self, why: str) -> int:
        """Bytes per second of one device that a job of this reason may move."""
        return self.promote if why == "promote" else self.per_device


#: Rates are means over this long; what is older counts ever less.
RATE_SECONDS: Final = 30.0


@dataclass(slots=True)
class Tally:
    """What jobs of one reason came to since this process started, with decaying rates."""

    done: int = 0
    bytes_moved: int = 0
    failed: int = 0
    last_at_ms: int = 0
    _recent_bytes: float = 0.0
    _recent_jobs: float = 0.0

    def add(self, size: int, *, now_ms: int) -> None:
        fade = self._fade(now_ms)
        self._recent_bytes = self._recent_bytes * fade + size
        self._recent_jobs = self._recent_jobs * fade + 1
        self.last_at_ms = now_ms
        self.done += 1
        self.bytes_moved += size

    def _fade(self, now_ms: int) -> float:
        return math.exp(-max(0, now_ms - self.last_at_ms) / 1000 / RATE_SECONDS)

    def rate(self, now_ms: int) -> float:
        """Bytes per second lately."""
        return self._recent_bytes * self._fade(now_ms) / RATE_SECONDS

    def jobs_rate(self, now_ms: int) -> float:
        """Jobs per second lately."""
        return self._recent_jobs * self._fade(now_ms) / RATE_SECONDS


class JobQueue:
    """Heartbeats' side of the queue (cluster_heartbeat.JobDesk)."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, switches: DutySwitches, *,
        rates: JobRates | None = None, copies_of: Callable[[Located], int] | None = None,
        heat_of: Callable[[bytes], float] = lambda chunk: 0.0,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._book = book
        self._switches = switches
        self.rates = rates or JobRates()
        self.copies_of = copies_of or (lambda located: cluster.settings.copies)
        self.heat_of = heat_of
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self._allowance = 0.0
        self._allowance_at_ms = 0
        #: Called with the reason of a job that ended, so that its duty may go on at once.
        self.on_done: Callable[[str], None] = lambda why: None

    # -- handing out ------------------------------------------------------------------------------------------
    async def hand_out(self, server: int, slots: int) -> list[Job]:
        """Up to `slots` jobs for a server, leased to it."""
        now_ms = self._cluster.now_ms()
        if not self._has_allowance(now_ms):
            return []
        waiting = await self._database.read(lambda c: jobs.waiting_servers(c, now_ms))
        if server not in waiting:
            return []
        limit = min(slots, HAND_OUT_MAX)
        paused = self._switches.paused
        made = await self._database.write(lambda c: self._lease(c, server, limit, now_ms, paused))
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

    def _lease(self, c: Connection, server: int, limit: int, now_ms: int, paused: frozenset[str]) -> list[Job]:
        rows = jobs.lease(c, server, limit=limit, now_ms=now_ms, until_ms=now_ms + LEASE_MS, without=paused)
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
                drop = msgspec.msgpack.decode(row.payload, type=DropWork)
                return msgspec.structs.replace(
                    job, batch=row.chunk, generation=drop.generation, discard=drop.discard
                )
            return msgspec.structs.replace(job, batch=msgspec.msgpack.decode(row.payload, type=BatchWork).ids)
        if row.kind == "verify":
            check = msgspec.msgpack.decode(row.payload, type=VerifyWork)
            located = None if check.chunk_bytes else self.locate(c, row.device_id, row.chunk)
            if located is not None:     # whole and right are two things: a copy may hold another chunk's bytes
                check = VerifyWork(located.chunk.chunk_bytes, located.chunk.crc32c)
            return msgspec.structs.replace(job, chunk_bytes=check.chunk_bytes, crc32c=check.crc32c)
        if row.kind == "inventory":
            asked = msgspec.msgpack.decode(row.payload, type=InventoryWork)
            return msgspec.structs.replace(job, since_ms=asked.since_ms)
        return job

    def _wire_copy(self, c: Connection, row: JobRow, job: Job, now_ms: int) -> Job | None:
        work = msgspec.msgpack.decode(row.payload, type=CopyWork)
        located = self.locate(c, work.via, row.chunk)
        if located is None or not self._is_wanted(located, row, work):
            jobs.remove(c, [row.id])
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

    def locate(self, c: Connection, via: int, chunk: bytes) -> Located | None:
        """The chunk's row: by the device that the job remembers, else by any that has it now (it may have moved)."""
        located = self._book.locate(c, via, chunk)
        if located is not None:
            return located
        for device in garbage.placed(c, [chunk], list(self._view.devices)).get(chunk, []):
            located = self._book.locate(c, device, chunk)
            if located is not None:
                return located
        return None

    def _is_wanted(self, located: Located, row: JobRow, work: CopyWork) -> bool:
        replicas = located.chunk.replicas
        if any(r.device == row.device_id and r.state == LIVE for r in replicas):
            return False
        if work.role != ROLE_HOME:
            return True
        server = self._view.devices[row.device_id].server
        homes = home_servers(self._view, replicas, without=work.drop)
        if server in homes:
            return False    # two homes never share a server
        return len(homes) < self.copies_of(located)

    def _sources(self, chunk: PackedChunk, target: int, now_ms: int) -> list[CopySource]:
        sources: list[CopySource] = []
        own = self._view.devices[target].server
        # An own device first: no network.
        for replica in sorted(
            readable(self._view, chunk.replicas), key=lambda r: self._view.devices[r.device].server != own
        )[:SOURCES_MAX]:
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

    # -- results ----------------------------------------------------------------------------------------------
    async def report(self, server: int, reports: Sequence[JobReport]) -> tuple[list[Job], list[int]]:
        """Take results and progress. Answers (renewed leases, job ids to give up). Durable when it returns."""
        now_ms = self._cluster.now_ms()
        renewed, cancelled, ended = await self._database.write(
            lambda c: self._take(c, server, reports, now_ms)
        )
        for row, report in ended:
            tally = self.tallies[row.why]
            if report.code and not (row.kind == "verify" and report.code in FOUND_BAD):
                tally.failed += 1
            else:
                tally.add(report.bytes_moved, now_ms=now_ms)
            if row.kind == "inventory" and not report.code:
                await self._cluster.refresh()
        for why in {row.why for row, _ in ended}:
            self.on_done(why)
        return renewed, cancelled

    def _take(
        self, c: Connection, server: int, reports: Sequence[JobReport], now_ms: int
    ) -> tuple[list[Job], list[int], list[tuple[JobRow, JobReport]]]:
        renewed: list[Job] = []
        cancelled: list[int] = []
        ended: list[tuple[JobRow, JobReport]] = []
        for report in reports:
            row = jobs.held(c, report.id, report.token)
            if row is None or row.server_id != server:
                if not report.done:
                    cancelled.append(report.id)
                continue    # too late: the job went to somebody else, or its reason is gone
            if not report.done:
                until_ms = now_ms + LEASE_MS
                jobs.extend(c, row.id, row.token, progress=report.progress, until_ms=until_ms)
                renewed.append(Job(id=row.id, token=row.token, kind=row.kind, device=row.device_id, lease_ms=until_ms))
                continue
            ended.append((row, report))
            if report.code and not (row.kind == "verify" and report.code in FOUND_BAD):
                self._failed(c, row, report.code, report.detail, now_ms)
            else:
                self._succeeded(c, row, report, now_ms)
        return renewed, cancelled, ended

    def _failed(self, c: Connection, row: JobRow, code: str, detail: str, now_ms: int) -> None:
        if row.why == PROMOTE:
            # An extra copy that could not be made: the promoter sees it and decides anew at the chunk's next read.
            jobs.remove(c, [row.id])
        elif row.kind == "copy" and code == "chunk-exists":
            # Other bytes stand under this id there: never overwritten, never counted; people must look at it.
            jobs.give_up(c, row.id, code=code, detail=detail, now_ms=now_ms)
        elif row.attempts >= ATTEMPTS_MAX:
            log.warning("job %d (%s, %s) is given up: %s %s", row.id, row.kind, row.why, code, detail)
            jobs.give_up(c, row.id, code=code, detail=detail, now_ms=now_ms)
        else:
            pause_ms = min(1000 * 2**row.attempts, BACKOFF_MS_MAX) if code != "no-slot" else 1000
            jobs.put_back(c, row.id, code=code, detail=detail, not_before_ms=now_ms + pause_ms)

    def _succeeded(self, c: Connection, row: JobRow, report: JobReport, now_ms: int) -> None:
        if row.kind == "copy":
            self._copied(c, row, report.receipt, now_ms)
            return
        if row.kind == "delete" and row.chunk:
            self._dropped(c, row, now_ms)
        elif row.kind == "inventory":
            life = msgspec.msgpack.decode(row.payload, type=InventoryWork).incarnation
            server = self._view.servers.get(row.server_id)
            if server is not None and server.incarnation == life:
                servers.change_device(c, row.device_id, reconciled_incarnation=life)
        jobs.remove(c, [row.id])

    def _dropped(self, c: Connection, row: JobRow, now_ms: int) -> None:
        work = msgspec.msgpack.decode(row.payload, type=DropWork)
        located = self.locate(c, work.via, row.chunk)
        if located is None:
            return
        left = [
            r for r in located.chunk.replicas
            if not (r.device == row.device_id and r.state == DELETING and r.generation == work.generation)
        ]  # fmt: skip
        if len(left) != len(located.chunk.replicas):
            self._book.rewrite(c, located, left, at_ms=now_ms)

    def _copied(self, c: Connection, row: JobRow, receipt_text: bytes, now_ms: int) -> None:
        work = msgspec.msgpack.decode(row.payload, type=CopyWork)
        try:
            receipt = open_receipt(receipt_text, self._view.ticket_keys.get(row.server_id, {}))
        except TicketRefused as error:
            self._failed(c, row, error.code, error.detail, now_ms)
            return
        device = servers.lock_device(c, row.device_id)
        server = servers.server_by_id(c, row.server_id)
        is_ours = receipt.device == row.device_id and receipt.chunk == row.chunk and receipt.server == row.server_id
        if not is_ours or server is None or receipt.incarnation != server.incarnation:
            self._failed(c, row, "wrong-receipt", "the receipt is of another job or another life", now_ms)
            return
        located = self.locate(c, work.via, row.chunk)
        new = Replica(row.device_id, work.role, LIVE, 0, receipt.segment, receipt.offset)
        if located is None:
            # It lost its last reference meanwhile: what was just copied goes the way of its siblings.
            garbage.add(c, [_as_garbage(row.chunk, receipt, new)], at_ms=now_ms)
            jobs.remove(c, [row.id])
            return
        chunk = located.chunk
        if receipt.crc32c != chunk.crc32c or receipt.chunk_bytes != chunk.chunk_bytes:
            self._failed(c, row, "wrong-receipt", "the receipt names other bytes", now_ms)
            return
        is_refused = device is None or device.wish in ("drained", "removed") or not self._is_wanted(located, row, work)
        jobs.remove(c, [row.id])
        if is_refused:
            if not any(r.device == row.device_id for r in chunk.replicas):
                self.queue_drop(c, row.chunk, row.device_id, via=work.via, generation=0, now_ms=now_ms)
            return
        new = replace(new, generation=(max((r.generation for r in chunk.replicas), default=0) + 1) & 0xFFFF)
        replicas = [r for r in chunk.replicas if r.device != row.device_id] + [new]
        if work.keep and self._may_stay(chunk, work.drop):
            replicas = [replace(r, role=ROLE_CACHE) if r.device == work.drop else r for r in replicas]
        elif work.drop and work.drop != row.device_id:
            replicas = self.without(c, located, replicas, work.drop, via=row.device_id, now_ms=now_ms)
        self._book.rewrite(c, located, replicas, at_ms=now_ms)

    @staticmethod
    def _may_stay(chunk: PackedChunk, device: int) -> bool:
        """Whether a home copy that has just been replaced may stay as the chunk's only cache copy."""
        victim = next((r for r in chunk.replicas if r.device == device), None)
        others = any(r.role == ROLE_CACHE and r.state == LIVE for r in chunk.replicas)
        return victim is not None and victim.state == LIVE and not others

    def without(
        self, c: Connection, located: Located, replicas: list[Replica], device: int, *, via: int, now_ms: int
    ) -> list[Replica]:
        """The replicas after the one on `device` was let go, if the rest is enough without it (rule 4).

        On a device that answers it is marked as deleting, which never reverts, and its deletion is queued; on one that
        is gone its entry is dropped: should the device return, its inventory shows the copy as a stray."""
        victim = next((r for r in replicas if r.device == device), None)
        if victim is None or victim.state == DELETING:
            return replicas
        if victim.role == ROLE_HOME and victim.state == LIVE:
            homes = home_servers(self._view, replicas, without=device)
            if len(homes) < self.copies_of(located):
                return replicas
        rest = [r for r in replicas if r.device != device]
        if victim.state == BAD or not is_alive(self._view, device):
            return rest
        generation = (victim.generation + 1) & 0xFFFF
        self.queue_drop(
            c, located.chunk.id, device, via=via, generation=generation, now_ms=now_ms,
            discard=victim.role == ROLE_CACHE,
        )  # fmt: skip
        return [*rest, replace(victim, state=DELETING, generation=generation)]

    def queue_drop(
        self, c: Connection, chunk: bytes, device: int, *, via: int, generation: int, now_ms: int,
        discard: bool = False,
    ) -> None:  # fmt: skip
        """Queue the deletion of one replica that is marked as deleting (or that no row names)."""
        info = self._view.devices.get(device)
        if info is None:
            return
        payload = msgspec.msgpack.encode(DropWork(via, generation, discard))
        job = NewJob("delete", "demote", CLASS_DRAIN, info.server, device, chunk=chunk, payload=payload)
        jobs.add(c, [job], now_ms=now_ms)

    # -- bad copies -------------------------------------------------------------------------------------------
    async def report_bad(self, bad: Sequence[BadChunk]) -> None:
        """An object server found copies of its own bad or missing (and put them aside): they are mended. Durable."""
        now_ms, asked_at = self._cluster.now_ms(), self._cluster.sequence
        new = [
            NewJob(
                "mend", "repair", CLASS_CHECK, INTERNAL, b.device, chunk=b.chunk,
                payload=msgspec.msgpack.encode(MendWork(b.why, asked_at)),
            )
            for b in bad
            if len(b.chunk) == 16
        ]  # fmt: skip

        def note(c: Connection) -> None:
            # Another job for the same copy (a verify, a drop) must not hide that it is bad, waiting or under way.
            jobs.remove_checks(c, [b.chunk for b in bad])
            jobs.add_internal(c, new, kind="mend", now_ms=now_ms)

        await self._database.write(note)
        self.on_done("repair")

    async def report_suspect(self, bad: Sequence[BadChunk]) -> int:
        """A reader found copies bad: their servers check them, twice, before anything is believed. Durable."""
        now_ms = self._cluster.now_ms()
        new: list[NewJob] = []
        for b in bad:
            device = self._view.devices.get(b.device)
            if device is not None and len(b.chunk) == 16:
                payload = msgspec.msgpack.encode(VerifyWork(0, 0))
                new.append(NewJob("verify", "repair", CLASS_CHECK, device.server, b.device, b.chunk, payload))
        return await self._database.write(lambda c: jobs.add(c, new, now_ms=now_ms)) if new else 0

    # -- operators ----------------------------------------------------------------------------------------------
    async def retry_failed(self, why: str = "") -> int:
        """Queue jobs again that were given up; how many."""
        return await self._database.write(lambda c: jobs.retry_failed(c, why))

    # -- upkeep -----------------------------------------------------------------------------------------------
    async def upkeep(self) -> int:
        """Take back lapsed leases, let old jobs move forward, forget old failures; how many lapsed."""
        now_ms = self._cluster.now_ms()

        def work(c: Connection) -> int:
            lapsed = jobs.lapse(c, now_ms=now_ms, not_before_ms=now_ms + 1000, limit=1000)
            for row in lapsed:
                if row.attempts >= ATTEMPTS_MAX:
                    jobs.give_up(c, row.id, code="lease-lapsed", detail="no result in time", now_ms=now_ms)
            jobs.forget_failed(c, before_ms=now_ms - FAILED_KEPT_MS)
            return len(lapsed)

        return await self._database.write(work)

    async def age(self) -> int:
        """Move jobs that wait long one class forward, behind the endangered ones; how many."""
        before = self._cluster.now_ms() - AGE_MS
        return await self._database.write(lambda c: jobs.age_waiting(c, older_than_ms=before, floor=CLASS_CHECK))


def _as_garbage(chunk: bytes, receipt: Receipt, replica: Replica) -> PackedChunk:
    return PackedChunk(chunk, receipt.chunk_bytes, receipt.chunk_bytes, receipt.crc32c, 0, (replica,))


def delete_batches(view_server: int, device: int, ids: Sequence[bytes], *, per_job: int, why: str) -> list[NewJob]:
    """Delete jobs over many chunks of one device that nothing refers to."""
    made: list[NewJob] = []
    for at in range(0, len(ids), per_job):
        some = ids[at : at + per_job]
        payload = msgspec.msgpack.encode(BatchWork(b"".join(some)))
        made.append(NewJob("delete", why, CLASS_COLLECT, view_server, device, payload=payload))
    return made
