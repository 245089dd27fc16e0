"""The job queue: hands work to object servers under leases and takes their results.

Rules: a job goes out only if there is still a reason for it (its chunk is referenced and still lacks the copy); a
result counts only under the current token and only if the chunk is still referenced (rule 4), else what was copied is
queued for collection; a failure is tried again with a growing pause and given up, visibly, after ATTEMPTS_MAX.
Rates: per device (each job carries it), and in all (a token bucket over the bytes handed out).

    handout    which jobs a server gets now        replicas   whether a copy is wanted, or may go
    results    what their results change           rates      limits, and what was done lately

Cost: one transaction per RESULTS_AT_ONCE results of a heartbeat, so that clients' commits are never behind many, one
per heartbeat that gets jobs; none when idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from metadata.catalog import jobs
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection
from metadata.services.cluster.duties import DutySwitches
from metadata.services.cluster.membership import Cluster
from metadata.services.jobs.handout import HandOut
from metadata.services.jobs.rates import JobRates, Tally
from metadata.services.jobs.replicas import Replicas
from metadata.services.jobs.results import ATTEMPTS_MAX, FOUND_BAD, NO_SLOT, Results
from metadata.services.jobs.work import (
    CLASS_CHECK,
    CLASS_COLLECT,
    INTERNAL,
    BatchWork,
    MendWork,
    ReplicaBook,
    VerifyWork,
)
from tierstore.wire.cluster import BadChunk, Job, JobReport

FAILED_KEPT_MS: Final = 7 * 86_400_000
AGE_MS: Final = 600_000
#: Results taken in one transaction: each costs milliseconds of the one writer.
RESULTS_AT_ONCE: Final = 16


class JobQueue:
    """Heartbeats' side of the queue (services/cluster/heartbeat.JobDesk)."""

    def __init__(
        self, database: Database, cluster: Cluster, book: ReplicaBook, switches: DutySwitches, *,
        rates: JobRates | None = None, copies_of: Callable[[Located], int] | None = None,
        heat_of: Callable[[bytes], float] = lambda chunk: 0.0, reporter: Callable[[bytes], int] = lambda chunk: 0,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self.replicas = Replicas(self._view, book, copies_of or (lambda located: cluster.settings.copies))
        self._handing = HandOut(
            database, cluster, book, self.replicas, switches, rates=rates or JobRates(), reporter=reporter
        )
        self._results = Results(self._view, book, self.replicas)
        self.heat_of = heat_of
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        #: Called with the reason of a job that ended, so that its duty may go on at once.
        self.on_done: Callable[[str], None] = lambda why: None

    @property
    def rates(self) -> JobRates:
        return self._handing.rates

    @rates.setter
    def rates(self, rates: JobRates) -> None:
        self._handing.rates = rates

    # -- object servers -----------------------------------------------------------------------------------------
    async def hand_out(self, server: int, slots: int) -> list[Job]:
        """Up to `slots` jobs for a server, leased to it."""
        return await self._handing.hand_out(server, slots)

    async def report(self, server: int, reports: Sequence[JobReport]) -> tuple[list[Job], list[int]]:
        """Take results and progress. Answers (renewed leases, job ids to give up). Durable when it returns; what was
        taken before a failure stands, and is too late when it is told again."""
        renewed: list[Job] = []
        cancelled: list[int] = []
        for at in range(0, len(reports), RESULTS_AT_ONCE):
            more, lost = await self._take(server, reports[at : at + RESULTS_AT_ONCE])
            renewed += more
            cancelled += lost
        return renewed, cancelled

    async def _take(self, server: int, reports: Sequence[JobReport]) -> tuple[list[Job], list[int]]:
        now_ms = self._cluster.now_ms()
        renewed, cancelled, ended = await self._database.write(
            lambda c: self._results.take(c, server, reports, now_ms)
        )
        for row, report in ended:
            if report.code == NO_SLOT:
                self._handing.note_no_slot(server)
                continue
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


def delete_batches(view_server: int, device: int, ids: Sequence[bytes], *, per_job: int, why: str) -> list[NewJob]:
    """Delete jobs over many chunks of one device that nothing refers to."""
    made: list[NewJob] = []
    for at in range(0, len(ids), per_job):
        some = ids[at : at + per_job]
        payload = msgspec.msgpack.encode(BatchWork(b"".join(some)))
        made.append(NewJob("delete", why, CLASS_COLLECT, view_server, device, payload=payload))
    return made
