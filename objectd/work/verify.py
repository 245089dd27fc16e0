"""Verify jobs: read one chunk as the disk holds it and check every block; a bad copy goes to quarantine.

Owns nothing. Invariant: a copy is quarantined only after two readings failed (one flip on the way from the disk is no
reason to lose a copy), and every quarantine is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from objectd.slots import Slot, Slots, why_bad
from objectd.work.runner import Lease, Outcome
from objectd.work.verified import RunBlocking, check_chunk
from tierstore.errors import IntegrityError, NotFound
from tierstore.names import ChunkId
from tierstore.telemetry.log import get_logger
from tierstore.wire.cluster import Job

log = get_logger("objectd.work.verify")

FIND_SECONDS: Final = 15.0
READINGS: Final = 2


class VerifyWork:
    """What a verify job does, and what the scrub does with each chunk."""

    def __init__(self, *, slots: Slots, run_blocking: RunBlocking | None) -> None:
        self._slots = slots
        self._run_blocking = run_blocking
        self.bad_total = 0

    async def __call__(self, job: Job, lease: Lease) -> Outcome:
        """Raises IntegrityError when the copy was bad (it is in quarantine then), NotFound when it is not here."""
        chunk = ChunkId(job.chunk)
        slot = self._slots.slot(job.device)

        async def paced(count: int) -> None:
            await lease.moved(count, of=job.chunk_bytes)

        try:
            await self.check(slot, chunk, crc32c=job.crc32c if job.chunk_bytes else None, on_piece=paced)
        except NotFound:
            self._slots.note_bad(chunk, slot.id, "missing")
            raise
        except IntegrityError as error:
            raise IntegrityError(error.detail, code=why_bad(error)) from error     # the codes metadata knows
        return Outcome()

    async def check(
        self, slot: Slot, chunk: ChunkId, *, crc32c: int | None, on_piece: Callable[[int], Awaitable[None]],
        chunk_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """Read and check one chunk past the page cache; quarantine and report it when it is bad twice. chunk_bytes,
        crc32c: what it should have, when that is known.

        Raises IntegrityError (bad), NotFound, TimeoutError or OSError (a disk that does not answer is no bad chunk)."""
        for reading in range(1, READINGS + 1):
            try:
                await self._read(slot, chunk, crc32c=crc32c, on_piece=on_piece, chunk_bytes=chunk_bytes)
            except IntegrityError as error:
                if reading < READINGS:
                    continue
                await self._put_aside(slot, chunk, error)
                raise
            return

    async def _read(
        self, slot: Slot, chunk: ChunkId, *, crc32c: int | None, on_piece: Callable[[int], Awaitable[None]],
        chunk_bytes: int | None,
    ) -> None:  # fmt: skip
        # a file that readers keep open has its sums in memory: they may have rotted on the disk since
        slot.device.forget_open(chunk)
        async with asyncio.timeout(FIND_SECONDS):
            opened = await slot.device.find(chunk)
        try:
            if chunk_bytes is not None and opened.chunk_bytes != chunk_bytes:
                # a chunk id is written once, so another length is damage
                raise IntegrityError(
                    f"chunk {chunk.hex()} has {opened.chunk_bytes} bytes here, not {chunk_bytes}", code="bad-footer"
                )
            if opened.fd < 0 and self._run_blocking is not None:
                # read whole with its header, perhaps from the page cache: now that the header is there for sure, the
                # chunk can be opened by its descriptor and read past the cache
                by_descriptor = slot.device.open_chunk(chunk)
                if by_descriptor is not None:
                    opened.close()
                    opened = by_descriptor
            await check_chunk(opened, chunk, crc32c=crc32c, from_disk=self._run_blocking, on_piece=on_piece)
        finally:
            opened.close()

    async def _put_aside(self, slot: Slot, chunk: ChunkId, error: IntegrityError) -> None:
        why = why_bad(error)
        self.bad_total += 1
        log.warning("bad copy", chunk=chunk.hex(), device_path=slot.device.path, why=why, detail=error.detail)
        # reported first: repair must hear of it even when the device cannot take the quarantine's write
        self._slots.note_bad(chunk, slot.id, why)
        async with asyncio.timeout(FIND_SECONDS):
            await slot.device.quarantine(chunk, error.detail)
