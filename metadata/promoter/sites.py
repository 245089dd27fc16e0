"""Sites: keeps a worker for each other site while this process holds the promoter's lease."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.sites_run import Replication


class SitesDuty:
    name = "sites"
    interval_seconds = 1.0
    is_single = True

    def __init__(self, replication: Callable[[], Replication]) -> None:
        self._replication = replication

    async def step(self, epoch: int) -> Step:
        count = await self._replication().step()
        return Step(detail=f"{count} other sites")
