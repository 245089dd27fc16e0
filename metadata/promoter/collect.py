"""Collect: queues the deletion of chunks that lost their last reference."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.collect import Collection


class CollectDuty:
    name = "collect"
    interval_seconds = 5.0
    is_single = True

    def __init__(self, collection: Collection) -> None:
        self._collection = collection

    async def step(self, epoch: int) -> Step:
        done, more = await self._collection.step(epoch)
        return Step(done=done, more=more, detail=self._collection.why_idle)
