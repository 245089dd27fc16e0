"""The job runner: jobs leased to this server, under way within their slots, their leases and their fencing tokens.

Owns the running jobs and the reports not yet delivered. Invariants: at most one task per job id; a job that lost its
lease (time, cancellation, a newer token) changes nothing from then on: it is cancelled, and `Lease.check` stands in
front of every act that cannot be taken back; a finished job is reported until a heartbeat that carried the report was
answered (what is dropped at the bound is leased again by metadata).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from objectd.standing import Standing
from objectd.work.pace import Pace
from tierstore.clock import Clock
from tierstore.errors import ConflictError, TierstoreError
from tierstore.failpoints import hit
from tierstore.telemetry.log import get_logger
from tierstore.wire.cluster import Job, JobReport
from tierstore.wire.slots import UNITS, units_of

log = get_logger("objectd.work")

REPORTS_MAX: Final = 1024             # finished jobs not yet told
REPORTS_PER_HEARTBEAT: Final = 256
TOKENS_KEPT_MAX: Final = 4096         # newest token seen, per job id
LEASE_MARGIN_MS: Final = 250          # a lease ends for us this much before it ends for metadata
RENEW_SECONDS: Final = 30.0           # jobs that are a part of a slot are told of while they run from here on


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job that succeeded has to say."""

    receipt: bytes = b""
    detail: str = ""


class Lease:
    """A job's right to go on. Handed to the work, which checks it before each step that changes something."""

    def __init__(self, job: Job, standing: Standing, paces: tuple[Pace, ...]) -> None:
        self.job = job
        self.units = units_of(job.kind, job.why, job.chunk_bytes)
        self.until_ms = job.lease_ms
        self.is_revoked = False
        self.bytes_moved = 0
        self.progress = 0.0
        self._standing = standing
        self._paces = paces

    def left_seconds(self) -> float:
        """Until the lease ends, by catalog time as known here; without end when metadata gave none."""
        if not self.until_ms:
            return float("inf")
        return (self.until_ms - LEASE_MARGIN_MS - self._standing.now_ms()) / 1000

    def check(self) -> None:
        """Raises ConflictError(code="lease-lost") when this job may not act any more."""
        if self.is_revoked or self.left_seconds() <= 0:
            raise ConflictError(f"job {self.job.id} lost its lease (token {self.job.token})", code="lease-lost")

    async def moved(self, count: int, *, of: int = 0) -> None:
        """Account `count` bytes and wait until the job's, the device's and the server's rate allow them."""
        self.bytes_moved += count
        if of > 0:
            self.progress = min(1.0, self.bytes_moved / of)
        for pace in self._paces:
            await pace.take(count)
        self.check()


Work = Callable[[Job, Lease], Awaitable[Outcome]]


class JobRunner:
    """Runs what metadata leases to this server. Event loop only."""

    def __init__(
        self, *, clock: Clock, standing: Standing, slots: int, copy_rate: int,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._standing = standing
        self._slots = slots
        self._server_pace = Pace(clock, copy_rate)
        self._device_paces: dict[int, Pace] = {}
        self._works: dict[str, Work] = {}
        self._running: dict[int, tuple[Lease, asyncio.Task[None], asyncio.Timeout]] = {}
        self._tokens: OrderedDict[int, int] = OrderedDict()
        self._finished: OrderedDict[tuple[int, int], JobReport] = OrderedDict()
        self._untold_units = 0      # of parts of slots that finished since the last heartbeat
        #: Called when a job ended, so that metadata hears of it soon.
        self.on_done = on_done
        self.done_total = 0
        self.failed_total = 0

    def add(self, kind: str, work: Work) -> None:
        """What a kind of job does."""
        self._works[kind] = work

    def free_slots(self) -> int:
        """Whole ones: parts are filled again when all of a slot is free, so that what shares a sync comes together."""
        return self._free_units() // UNITS

    def _free_units(self) -> int:
        return max(0, self._slots * UNITS - sum(lease.units for lease, _, _ in self._running.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    # -- from heartbeat answers -------------------------------------------------------------------------------
    def offer(self, jobs: Iterable[Job]) -> None:
        """Take up leased jobs. A repeat under the same token extends the lease; under a newer one replaces the job."""
        for job in jobs:
            newest = self._tokens.get(job.id, -1)
            under_way = self._running.get(job.id)
            if under_way is not None and under_way[0].job.token == job.token:
                self._extend(job.id, job.lease_ms)
            elif job.token < newest or (job.id, job.token) in self._finished:
                continue    # a late or repeated answer
            elif under_way is not None:
                # the old life of the job must be over before the new one begins: metadata offers it again
                self._revoke(job.id)
            elif self._free_units() < units_of(job.kind, job.why, job.chunk_bytes):
                self._finish(job, code="no-slot", detail="this object server has no free job slot")
            else:
                self._start(job)

    def cancel(self, ids: Iterable[int]) -> None:
        """Metadata gave these up; nothing of theirs stays."""
        for id in ids:
            self._revoke(id)

    def _start(self, job: Job) -> None:
        self._tokens[job.id] = job.token
        self._tokens.move_to_end(job.id)
        while len(self._tokens) > TOKENS_KEPT_MAX:
            self._tokens.popitem(last=False)
        paces = [self._server_pace]
        if job.rate_bytes_per_second > 0:
            device_pace = self._device_paces.setdefault(job.device, Pace(self._clock, 0))
            device_pace.bytes_per_second = job.rate_bytes_per_second
            paces.append(device_pace)
        lease = Lease(job, self._standing, tuple(paces))
        left = lease.left_seconds()
        timeout = asyncio.timeout(None if left == float("inf") else max(0.0, left))
        task = asyncio.create_task(self._run(job, lease, timeout), name=f"job-{job.kind}-{job.id}")
        self._running[job.id] = (lease, task, timeout)

    async def _run(self, job: Job, lease: Lease, timeout: asyncio.Timeout) -> None:
        """One job to its end; whatever happens becomes a report."""
        try:
            async with timeout:
                work = self._works.get(job.kind)
                if work is None:
                    raise ConflictError(f"this object server knows no job {job.kind!r}", code="unknown-job")
                lease.check()
                hit("agent.job.before")
                outcome = await work(job, lease)
                hit("agent.job.after")
            self._finish(job, outcome=outcome, lease=lease)
        except TierstoreError as error:
            self._finish(job, code=error.code, detail=error.detail, lease=lease)
        except TimeoutError:
            code = "lease-lost" if lease.left_seconds() <= 0 else "deadline"
            self._finish(job, code=code, detail="the job's time was over", lease=lease)
        except OSError as error:
            self._finish(job, code="device-failed", detail=str(error), lease=lease)
        except asyncio.CancelledError:
            self._finish(job, code="cancelled", detail="given up on request", lease=lease)
            if not lease.is_revoked:
                raise       # the server stops
        except Exception:   # any fault of one job must not end the server; it is told to metadata as such
            log.exception("a job failed unexpectedly", kind=job.kind, job=job.id)
            self._finish(job, code="internal", detail="unexpected error, see the object server's log", lease=lease)
        finally:
            self._running.pop(job.id, None)
            if self._is_to_be_told(lease):
                self.on_done()

    def _is_to_be_told(self, lease: Lease) -> bool:
        """Whether the next heartbeat should come now. Parts of slots are told of together, not one heartbeat and two
        transactions each: when half of all slots is done, or when none of them is under way any more."""
        if lease.units == UNITS:
            return True
        self._untold_units += lease.units
        is_last = all(other.units == UNITS for other, _, _ in self._running.values())
        return is_last or 2 * self._untold_units >= self._slots * UNITS

    def _extend(self, id: int, lease_ms: int) -> None:
        lease, _, timeout = self._running[id]
        if lease_ms > lease.until_ms and not lease.is_revoked and lease.left_seconds() > 0:
            lease.until_ms = lease_ms
            if timeout.when() is not None:
                timeout.reschedule(asyncio.get_running_loop().time() + lease.left_seconds())

    def _revoke(self, id: int) -> None:
        under_way = self._running.get(id)
        if under_way is not None and not under_way[0].is_revoked:
            under_way[0].is_revoked = True
            under_way[1].cancel()

    # -- to heartbeats ----------------------------------------------------------------------------------------
    def _finish(
        self, job: Job, *, code: str = "", detail: str = "", outcome: Outcome | None = None, lease: Lease | None = None
    ) -> None:
        if code:
            self.failed_total += 1
            log.info("job failed", kind=job.kind, job=job.id, code=code, detail=detail)
        else:
            self.done_total += 1
        self._finished[job.id, job.token] = JobReport(
            id=job.id, token=job.token, done=True, code=code, detail=outcome.detail if outcome else detail,
            receipt=outcome.receipt if outcome else b"", bytes_moved=lease.bytes_moved if lease else 0,
            progress=1.0 if outcome else 0.0,
        )  # fmt: skip
        while len(self._finished) > REPORTS_MAX:
            self._finished.popitem(last=False)

    def reports(self) -> list[JobReport]:
        """What the next heartbeat tells: finished jobs first, then the progress of those under way."""
        self._untold_units = 0
        finished = [report for report, _ in zip(self._finished.values(), range(REPORTS_PER_HEARTBEAT), strict=False)]
        return finished + [
            JobReport(
                id=lease.job.id, token=lease.job.token, done=False, bytes_moved=lease.bytes_moved,
                progress=lease.progress,
            )
            for lease, _, _ in self._running.values()
            if lease.units == UNITS or lease.left_seconds() < RENEW_SECONDS
        ]  # fmt: skip

    def reported(self, reports: Iterable[JobReport]) -> None:
        """A heartbeat that carried these was answered."""
        for report in reports:
            if report.done:
                self._finished.pop((report.id, report.token), None)

    async def close(self) -> None:
        """Cancel what is under way and wait for it: nothing half done stays."""
        tasks = [task for _, task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
