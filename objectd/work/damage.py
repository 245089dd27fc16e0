"""What a read noticed to be damaged is checked at once, put aside, and only then told.

A read that finds a file without a footer or a record with a broken header knows that the copy is bad, but must not tell
metadata so by itself: what a server says of its own devices is believed, the copy is made up for elsewhere, and the bad
bytes would lie where they are until the scrub comes by. So the read hands the chunk over here: the verify work reads it
again, quarantines it and reports it.

Owns the checks under way: at most CHECKS_MAX, one per copy; the rest is found again by the next read or the scrub.
"""

from __future__ import annotations

import asyncio
from typing import Final

from objectd.slots import Slot, Slots
from objectd.work.verify import VerifyWork
from tierstore.errors import NotFound, TierstoreError
from tierstore.names import ChunkId
from tierstore.telemetry.log import get_logger

log = get_logger("objectd.work.damage")

CHECKS_MAX: Final = 16


class DamageChecks:
    """Event loop only; close() ends what is under way."""

    def __init__(self, *, slots: Slots, verify: VerifyWork) -> None:
        self._slots = slots
        self._verify = verify
        self._under_way: dict[tuple[int, ChunkId], asyncio.Task[None]] = {}

    def look(self, slot: Slot, chunk: ChunkId, chunk_bytes: int) -> None:
        """Check a copy that a read found damaged; chunk_bytes: what it should have. Returns at once."""
        copy = (slot.id, chunk)
        if copy in self._under_way or len(self._under_way) >= CHECKS_MAX:
            return
        task = asyncio.get_running_loop().create_task(self._check(slot, chunk, chunk_bytes))
        self._under_way[copy] = task
        task.add_done_callback(lambda _: self._under_way.pop(copy, None))

    async def _check(self, slot: Slot, chunk: ChunkId, chunk_bytes: int) -> None:
        try:
            await self._verify.check(slot, chunk, crc32c=None, on_piece=_at_full_speed, chunk_bytes=chunk_bytes)
        except NotFound:
            self._slots.note_bad(chunk, slot.id, "missing")
        except (TierstoreError, OSError, TimeoutError) as error:
            # found bad, put aside and reported; or a disk that does not answer, whose state the heartbeats tell
            log.info("a read found damage", chunk=chunk.hex(), device_path=slot.device.path, detail=str(error))

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _at_full_speed(count: int) -> None:
    """One copy, and a reader has just met it: no pacing."""
