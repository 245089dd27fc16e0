"""Sites: keeps a worker for each other site while this process holds the promoter's lease; forgets tombstones that no
site needs any more; lets go of bodies that were fetched for readers."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.sites.fetched import FetchedBodies
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


class FetchedDuty:
    name = "fetched"
    interval_seconds = 5.0
    is_single = True

    def __init__(self, fetched: Callable[[], FetchedBodies]) -> None:
        self._fetched = fetched

    async def step(self, epoch: int) -> Step:
        work = self._fetched()
        gone, has_more = await work.step(epoch)
        return Step(done=gone, more=has_more, detail=f"{work.kept_bytes} bytes of other sites kept for readers")
