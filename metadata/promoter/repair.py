"""Repair: makes chunks whole again that lost copies with a server or device, or whose copy is bad; and the slow audit
over everything, which catches what no event announced."""

from __future__ import annotations

from metadata.promoter.runner import Step
from metadata.services.upkeep.repair import Repair
from metadata.services.upkeep.repair_audit import Audit


class RepairDuty:
    name = "repair"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, repair: Repair) -> None:
        self._repair = repair

    async def step(self, epoch: int) -> Step:
        done, more = await self._repair.step(epoch)
        status = self._repair.losses.status
        lost = f"{len(status.lost_devices)} devices lost, {status.stuck} chunks with nowhere to go"
        detail = status.halted_why or lost
        return Step(done=done, more=more, detail=detail)


class AuditDuty:
    """One page per interval: with 256 rows each 2 s, 11 million copies a day."""

    name = "audit"
    interval_seconds = 2.0
    is_single = True

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def step(self, epoch: int) -> Step:
        done, _ = await self._audit.step(epoch)
        scan = self._audit.scan
        removed = self._audit.leftovers_removed
        detail = f"{scan.seen} copies looked at, {scan.passes} passes, {removed} left-over placements removed"
        return Step(done=done, detail=detail)
