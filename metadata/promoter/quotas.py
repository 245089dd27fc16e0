"""Quotas: counts anew what buckets with a quota hold: mounts and other sites write what commits do not count."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.names.quotas import RECOUNT_SECONDS, Quotas


class QuotasDuty:
    name = "quotas"
    is_single = True
    interval_seconds = RECOUNT_SECONDS

    #: A callable, because the names' services are built after the duties.
    def __init__(self, quotas: Callable[[], Quotas]) -> None:
        self._quotas = quotas

    async def step(self, epoch: int) -> Step:
        counted = await self._quotas().recount()
        return Step(done=counted, more=False, detail=f"{counted} buckets counted")
