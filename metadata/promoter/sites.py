"""Sites: keeps a worker for each other site while this process holds the promoter's lease; forgets tombstones that no
site needs any more."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.sites.run import Replication
from metadata.services.sites.tombstones import Tombstones


class SitesDuty:
    name = "sites"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, replication: Callable[[], Replication]) -> None:
        self._replication = replication

    async def step(self, epoch: int) -> Step:
        count = await self._replication().step()
        return Step(detail=f"{count} other sites")


class TombstoneDuty:
    name = "tombstones"
    interval_seconds = 5.0
    is_single = True

    def __init__(self, tombstones: Callable[[], Tombstones]) -> None:
        self._tombstones = tombstones

    async def step(self, epoch: int) -> Step:
        work = self._tombstones()
        dropped, has_more = await work.step(epoch)
        return Step(done=dropped, more=has_more, detail=f"{work.kept} kept since the walk began")
