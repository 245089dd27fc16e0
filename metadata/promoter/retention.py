"""Retention: takes back lapsed job leases, lets old jobs move forward, forgets rows past their keep."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.jobs.queue import JobQueue
from metadata.services.upkeep.retention import Retention


class QueueDuty:
    """Upkeep of the job queue."""

    name = "jobs"
    interval_seconds = 2.0
    is_single = True
    AGE_SECONDS = 600.0

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._steps = 0

    async def step(self, epoch: int) -> Step:
        lapsed = await self._queue.upkeep()
        self._steps += 1
        if self._steps % int(self.AGE_SECONDS / self.interval_seconds) == 0:
            await self._queue.age()
        return Step(done=lapsed)


class RetentionDuty:
    """Trims results of operations, the feed, condemned uploads, pins and leases."""

    name = "retention"
    interval_seconds = 60.0
    is_single = True

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def step(self, epoch: int) -> Step:
        done, more = await self._retention.step(epoch)
        return Step(done=done, more=more)
