"""Taking the results of jobs: what each changes in the catalog, in one transaction per message.

A result counts only under the current token and only if the chunk is still referenced (rule 4), else what was copied is
queued for deletion; a failure is tried again with a growing pause and given up, visibly, after ATTEMPTS_MAX.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import feed, jobs, servers
from metadata.catalog.feed import NewChange
from metadata.catalog.jobs import JobRow
from metadata.catalog.leases import Connection
from metadata.catalog.packed import DELETING, LIVE, Replica
from metadata.catalog.servers import DeviceRow
from metadata.services.cluster.view import ClusterView
from metadata.services.jobs.handout import LEASE_MS
from metadata.services.jobs.replicas import Replicas
from metadata.services.jobs.work import CopyWork, DropWork, InventoryWork, ReplicaBook
from tierstore.errors import TicketRefused
from tierstore.ticket import ROLE_CACHE, open_receipt
from tierstore.wire.cluster import Job, JobReport

log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 10
BACKOFF_MS_MAX: Final = 600_000
#: The reason of copies for tiering: tried again by the queue only while room for them is being made.
PROMOTE: Final = "promote"
#: What a copy displaced is deleted and compacted within seconds; until then its device is full.
ROOM_ATTEMPTS_MAX: Final = 8
ROOM_PAUSE_MS: Final = 1000
#: An object server sends back, untouched, what it has no slot for: one of a release before wire/slots gives each job a
#: whole one.
NO_SLOT: Final = "no-slot"
NO_SLOT_PAUSE_MS: Final = 1000
#: Verify jobs fail with these when the copy is bad; the bad copy itself is reported beside.
FOUND_BAD: Final = frozenset({"bad-block", "bad-footer", "bad-sums", "no-such-chunk", "integrity"})


@dataclass(slots=True)
class _Message:
    """What the results of one message share: rows that are read (and locked) once, and the feed's entries, which are
    appended together at the end, so that its head is locked for the shortest time."""

    c: Connection
    now_ms: int
    changes: list[NewChange] = field(default_factory=list)
    devices: dict[int, DeviceRow | None] = field(default_factory=dict)
    incarnations: dict[int, int | None] = field(default_factory=dict)

    def device(self, device: int) -> DeviceRow | None:
        """Its row, locked to the end of the transaction."""
        if device not in self.devices:
            self.devices[device] = servers.lock_device(self.c, device)
        return self.devices[device]

    def incarnation(self, server: int) -> int | None:
        """Which life the server is in; None: there is no such server."""
        if server not in self.incarnations:
            row = servers.server_by_id(self.c, server)
            self.incarnations[server] = row.incarnation if row is not None else None
        return self.incarnations[server]


class Results:
    """One per job queue."""

    def __init__(self, view: ClusterView, book: ReplicaBook, replicas: Replicas) -> None:
        self._view = view
        self._book = book
        self._replicas = replicas

    def take(
        self, c: Connection, server: int, reports: Sequence[JobReport], now_ms: int
    ) -> tuple[list[Job], list[int], list[tuple[JobRow, JobReport]]]:
        """(renewed leases, job ids to give up, jobs that ended with their reports) of one server's message."""
        renewed: list[Job] = []
        cancelled: list[int] = []
        ended: list[tuple[JobRow, JobReport]] = []
        message = _Message(c, now_ms)
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
                self._succeeded(message, row, report)
        feed.append(c, message.changes, at_ms=now_ms)
        return renewed, cancelled, ended

    def _failed(self, c: Connection, row: JobRow, code: str, detail: str, now_ms: int) -> None:
        if code == NO_SLOT:
            jobs.put_back(
                c, row.id, code=code, detail=detail, not_before_ms=now_ms + NO_SLOT_PAUSE_MS, is_begun=False
            )
        elif row.why == PROMOTE and code == "device-full" and row.attempts < ROOM_ATTEMPTS_MAX:
            jobs.put_back(c, row.id, code=code, detail=detail, not_before_ms=now_ms + ROOM_PAUSE_MS)
        elif row.why == PROMOTE:
            # An extra copy that could not be made: the promoter sees it and decides anew at the chunk's next read.
            jobs.remove(c, [row.id])
        elif row.kind == "copy" and code == "chunk-exists":
            # Other bytes stand under this id there: never overwritten, never counted; people must look at it.
            jobs.give_up(c, row.id, code=code, detail=detail, now_ms=now_ms)
        elif row.attempts >= ATTEMPTS_MAX:
            log.warning("job %d (%s, %s) is given up: %s %s", row.id, row.kind, row.why, code, detail)
            jobs.give_up(c, row.id, code=code, detail=detail, now_ms=now_ms)
        else:
            pause_ms = min(1000 * 2**row.attempts, BACKOFF_MS_MAX)
            jobs.put_back(c, row.id, code=code, detail=detail, not_before_ms=now_ms + pause_ms)

    def _succeeded(self, message: _Message, row: JobRow, report: JobReport) -> None:
        c = message.c
        if row.kind == "copy":
            self._copied(message, row, report.receipt)
            return
        if row.kind == "delete" and row.chunk:
            self._dropped(message, row)
        elif row.kind == "inventory":
            asked = msgspec.msgpack.decode(row.payload, type=InventoryWork)
            server = self._view.servers.get(row.server_id)
            if asked.since_ms == 0 and server is not None and server.incarnation == asked.incarnation:
                servers.change_device(c, row.device_id, reconciled_incarnation=asked.incarnation)
        jobs.remove(c, [row.id])

    def _dropped(self, message: _Message, row: JobRow) -> None:
        work = msgspec.msgpack.decode(row.payload, type=DropWork)
        located = self._replicas.locate(message.c, work.via, row.chunk)
        if located is None:
            return
        left = [
            r for r in located.chunk.replicas
            if not (r.device == row.device_id and r.state == DELETING and r.generation == work.generation)
        ]  # fmt: skip
        if len(left) != len(located.chunk.replicas):
            message.changes.append(self._book.put_replicas(message.c, located, left))

    def _copied(self, message: _Message, row: JobRow, receipt_text: bytes) -> None:
        c, now_ms = message.c, message.now_ms
        work = msgspec.msgpack.decode(row.payload, type=CopyWork)
        try:
            receipt = open_receipt(receipt_text, self._view.ticket_keys.get(row.server_id, {}))
        except TicketRefused as error:
            self._failed(c, row, error.code, error.detail, now_ms)
            return
        device, incarnation = message.device(row.device_id), message.incarnation(row.server_id)
        is_ours = receipt.device == row.device_id and receipt.chunk == row.chunk and receipt.server == row.server_id
        if not is_ours or receipt.incarnation != incarnation:
            self._failed(c, row, "wrong-receipt", "the receipt is of another job or another life", now_ms)
            return
        located = self._replicas.locate(c, work.via, row.chunk)
        new = Replica(row.device_id, work.role, LIVE, 0, receipt.segment, receipt.offset)
        if located is None:
            # It lost its last reference meanwhile, or the reverse table is late: the copy goes by a job that is judged
            # anew. Not as garbage: that says of a chunk, not of a copy, that nothing names it any more.
            jobs.remove(c, [row.id])
            self._replicas.queue_drop(c, row.chunk, row.device_id, via=work.via, generation=0, now_ms=now_ms)
            return
        chunk = located.chunk
        if receipt.crc32c != chunk.crc32c or receipt.chunk_bytes != chunk.chunk_bytes:
            self._failed(c, row, "wrong-receipt", "the receipt names other bytes", now_ms)
            return
        is_refused = (
            device is None or device.wish in ("drained", "removed")
            or not self._replicas.is_wanted(located, row, work)
        )  # fmt: skip
        jobs.remove(c, [row.id])
        if is_refused:
            if not any(r.device == row.device_id for r in chunk.replicas):
                self._replicas.queue_drop(c, row.chunk, row.device_id, via=work.via, generation=0, now_ms=now_ms)
            return
        new = new._replace(generation=(max((r.generation for r in chunk.replicas), default=0) + 1) & 0xFFFF)
        replicas = [r for r in chunk.replicas if r.device != row.device_id] + [new]
        if work.keep and self._replicas.may_stay(chunk, work.drop):
            replicas = [r._replace(role=ROLE_CACHE) if r.device == work.drop else r for r in replicas]
        elif work.drop and work.drop != row.device_id:
            replicas = self._replicas.without(c, located, replicas, work.drop, via=row.device_id, now_ms=now_ms)
        message.changes.append(self._book.put_replicas(c, located, replicas))
