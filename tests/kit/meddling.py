"""A catalog between whose steps others get their turn: answers that come late, transactions that are rolled back after
they have run, writes that fail. What a service believes must not depend on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from metadata.catalog.database import Database
from metadata.catalog.session import StaleRows
from tierstore.errors import UnavailableError


class MeddlingDatabase:
    """A database as `inner`, which does everything; see metadata.catalog.database.Database."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        #: The next read, or write, is done, and its answer held until this is set.
        self.hold_read: asyncio.Event | None = None
        self.hold_write: asyncio.Event | None = None
        #: So many batches run, are rolled back, and say that their rows were stale.
        self.stale_batches = 0
        #: So many writes fail before they begin.
        self.failing_writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def read(self, fn: Callable[..., Any], **kwargs: float) -> Any:
        hold, self.hold_read = self.hold_read, None
        answer = await self._inner.read(fn, **kwargs)
        if hold is not None:
            await hold.wait()
        return answer

    async def write(self, fn: Callable[..., Any], **kwargs: float) -> Any:
        if self.failing_writes:
            self.failing_writes -= 1
            raise UnavailableError("the catalog cannot be written")
        hold, self.hold_write = self.hold_write, None
        answer = await self._inner.write(fn, **kwargs)
        if hold is not None:
            await hold.wait()
        return answer

    async def batch(self, fn: Callable[..., Any], **kwargs: float) -> Any:
        if not self.stale_batches:
            return await self._inner.batch(fn, **kwargs)
        self.stale_batches -= 1

        def run_in_vain(session: Any) -> None:
            fn(session)
            raise StaleRows("another process wrote in between")

        return await self._inner.batch(run_in_vain, **kwargs)


async def until_idle() -> None:
    """Everybody who can go on without an answer that is held has done so (catalogs in memory wait for nothing)."""
    for _ in range(100):
        await asyncio.sleep(0)  # a turn of the loop, no time
