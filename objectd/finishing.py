"""Finishing a large chunk so that a cancelled caller does not disturb it.

A writer's last step runs in a thread of the device (footer, sync). If the caller is cancelled in the middle (the client
went away, a job lost its lease), the step goes on to its end: closing the descriptor under it could let its bytes land
in another file. The chunk is then durable but nobody's: the collection of lapsed uploads removes it.

Owns the finishes whose callers are gone; each has the device's own deadline.
"""

from __future__ import annotations

import asyncio
from typing import Final

from objectd.store.device import ChunkWriter, Location

_under_way: Final[set[asyncio.Task[Location]]] = set()


async def finish(writer: ChunkWriter, sums: bytes, *, seconds: float) -> Location:
    """writer.finish(sums), waited for at most `seconds`. Raises TimeoutError, or what the device raises."""
    task = asyncio.create_task(_finish(writer, sums))
    _under_way.add(task)
    task.add_done_callback(_ended)
    async with asyncio.timeout(seconds):
        return await asyncio.shield(task)


async def _finish(writer: ChunkWriter, sums: bytes) -> Location:
    return await writer.finish(sums)


def _ended(task: asyncio.Task[Location]) -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()    # told to the caller, if he is still there; the device's state says the rest
