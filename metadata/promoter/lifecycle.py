"""Lifecycle: expires objects, versions, markers and uploads as rules say; sweeps parts without an upload."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.names.lifecycle import Lifecycle


class LifecycleDuty:
    name = "lifecycle"
    is_single = True

    #: A callable, because the names' services are built after the duties.
    def __init__(self, lifecycle: Callable[[], Lifecycle], *, interval_seconds: float) -> None:
        self._lifecycle = lifecycle
        self.interval_seconds = interval_seconds

    async def step(self, epoch: int) -> Step:
        done, more = await self._lifecycle().step()
        return Step(done=done, more=more, detail=self._lifecycle().progress)
