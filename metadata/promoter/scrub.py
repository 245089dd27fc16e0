"""Scrub: queues the verify jobs of a pass that an operator started; the steady pace is the object servers' own."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.scrub import Scrub


class ScrubDuty:
    name = "scrub"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, scrub: Scrub) -> None:
        self._scrub = scrub

    async def step(self, epoch: int) -> Step:
        done, more = await self._scrub.step(epoch)
        return Step(done=done, more=more)
