"""Tasks of a metadata process that no duty owns: the reverse table, what other processes changed, files of lost mounts.

Invariant: a task that was begun runs until `end`. One that a bug of its own ends is begun again and counted: nothing
else would bring the reverse table on or hear of a revoked key, and nobody would notice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.clock import Clock
from tierstore.telemetry.log import get_logger

log = get_logger("metadata")

#: Before a task that failed is begun again.
AGAIN_SECONDS: Final = 1.0


class Background:
    """One per process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0

    def begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run work, which may be called again and is cancelled by `end`."""
        task = asyncio.get_running_loop().create_task(self._keep(name, work), name=f"metadata {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except Exception as error:  # whatever it is: see the invariant
                self.failures += 1
                log.error("a background task failed and is begun again", task=name, error=repr(error), exc_info=True)
            await self._clock.sleep(AGAIN_SECONDS)

    async def end(self) -> None:
        """Cancel them all and wait for them. Safe to repeat."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
