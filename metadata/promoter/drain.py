"""Drain: empties the devices that operators want empty."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.drain import Drains


class DrainDuty:
    name = "drain"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, drains: Drains) -> None:
        self._drains = drains

    async def step(self, epoch: int) -> Step:
        done, more = await self._drains.step(epoch)
        left = sum(p.left_chunks for p in self._drains.progress.values())
        return Step(done=done, more=more, detail=f"{left} chunks left")
