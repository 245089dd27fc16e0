"""Snapshot: keeps a copy of the catalog on the object servers, journal pieces every few seconds."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.snapshot import Snapshots


class SnapshotDuty:
    name = "snapshot"
    is_single = True

    def __init__(self, snapshots: Snapshots, *, interval_seconds: float) -> None:
        self._snapshots = snapshots
        self.interval_seconds = interval_seconds

    async def step(self, epoch: int) -> Step:
        size, more = await self._snapshots.step(epoch)
        detail = f"{len(self._snapshots.pieces)} pieces, up to sequence {self._snapshots.journalled}"
        return Step(done=1 if size else 0, bytes_moved=size, more=more, detail=detail)
