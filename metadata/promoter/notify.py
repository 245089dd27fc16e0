"""Notify: tells the configured webhooks what the feed says of objects."""

from __future__ import annotations

from collections.abc import Callable

from metadata.promoter.runner import Step
from metadata.services.names.notify import Notify


class NotifyDuty:
    name = "notify"
    interval_seconds = 1.0
    is_single = True

    #: A callable, because the names' services are built after the duties.
    def __init__(self, notify: Callable[[], Notify]) -> None:
        self._notify = notify

    async def step(self, epoch: int) -> Step:
        notify = self._notify()
        done, more = await notify.step(epoch)
        return Step(done=done, more=more, detail=notify.progress)
