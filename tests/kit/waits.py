"""Waiting in coroutines, without guessing how long: for a fact with a deadline, or until the others had their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

SECONDS_MAX = 300.0
POLL_SECONDS = 0.005


async def until(condition: Callable[[], object], seconds: float = SECONDS_MAX) -> None:
    """Wait for a fact. Raises TimeoutError; a wait that succeeds costs nothing, so the deadline is long."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(POLL_SECONDS)   # polling with a deadline is what this function is for


async def until_told(ask: Callable[[], Awaitable[object]], seconds: float = SECONDS_MAX) -> None:
    """The same for a fact that has to be asked for: of a database, of a server."""
    async with asyncio.timeout(seconds):
        while not await ask():
            await asyncio.sleep(POLL_SECONDS)   # polling with a deadline is what this function is for


async def give_way() -> None:
    """One turn of the loop for everybody else who is ready."""
    await asyncio.sleep(0)


async def never() -> None:
    """Waits until it is cancelled."""
    await asyncio.Event().wait()
