"""Reconcile: asks devices that came back, and every device now and then, for their inventory."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.inventories import Inventories

#: Each device is listed at least this often: finds chunks of uploads that were never committed.
EVERY_SECONDS = 6 * 3600.0


class ReconcileDuty:
    name = "reconcile"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, inventories: Inventories, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._inventories = inventories
        self._every_ms = int(every_seconds * 1000)

    async def step(self, epoch: int) -> Step:
        queued = await self._inventories.schedule(every_ms=self._every_ms)
        d = self._inventories.done
        detail = f"{d.orphans} orphans, {d.strays} strays, {d.missing} missing, {d.later} later"
        return Step(done=queued, detail=detail)
