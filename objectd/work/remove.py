"""Delete and undelete jobs: chunks into the trash of their device, and back.

Owns nothing. Invariants: nothing is deleted unless the guard of rule 1 allows it (the catalog is the device's own and
not older than what the device has seen) and the job's lease and token hold, both checked right before each slice;
the catalog's sequence stands on the device before anything is deleted by its order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from objectd.slots import Slot, Slots
from objectd.work.runner import Lease, Outcome
from tierstore.errors import ConflictError, NotFound
from tierstore.names import CHUNK_ID_BYTES, ChunkId
from tierstore.wire.cluster import Job

#: Deleted together: they share one group commit of the device.
SLICE: Final = 64
SLICE_SECONDS: Final = 30.0
#: What one delete counts against rates, in bytes: a small write and its share of a sync.
DELETE_COST_BYTES: Final = 4096


class RemoveWork:
    """What delete and undelete jobs do."""

    def __init__(
        self, *, slots: Slots, may_delete: Callable[[Slot], bool], note: Callable[[Slot], Awaitable[None]],
        on_removed: Callable[[ChunkId], None] = lambda chunk: None,
    ) -> None:  # fmt: skip
        self._slots = slots
        self._may_delete = may_delete
        self._note = note
        self._on_removed = on_removed
        self.trashed_total = 0

    async def delete(self, job: Job, lease: Lease) -> Outcome:
        """Move the batch to the trash. Chunks that are not here count as deleted. Safe to repeat."""
        slot = self._slots.slot(job.device)
        await self._note(slot)
        here = 0
        for chunks in _slices(job):
            here += await self.trash(slot, chunks, lease, is_extra=job.discard)
            if job.discard:
                await self._free(slot, chunks)
            await lease.moved(DELETE_COST_BYTES * len(chunks))
        return Outcome(detail=f"{here} of {len(_ids(job))} were here")

    async def trash(self, slot: Slot, chunks: list[ChunkId], lease: Lease, *, is_extra: bool = False) -> int:
        """Up to SLICE chunks; how many were here. is_extra: cache copies, of chunks that live on elsewhere. Raises
        ConflictError when they must not be deleted (now)."""
        assert len(chunks) <= SLICE
        lease.check()
        if not self._may_delete(slot):
            raise ConflictError(
                f"device {slot.id} has seen another or a newer catalog; nothing is deleted until it was adopted",
                code="catalog-behind",
            )
        async with asyncio.timeout(SLICE_SECONDS):
            here = sum(await asyncio.gather(*(slot.device.trash(chunk) for chunk in chunks)))
        self.trashed_total += here
        if not is_extra:        # else RAM keeps them: a chunk that is let go on a fast device is not colder there
            for chunk in chunks:
                self._on_removed(chunk)
        return here

    async def _free(self, slot: Slot, chunks: list[ChunkId]) -> None:
        """Cache copies are extra: their room is wanted now, and nobody takes them back from the trash."""
        async with asyncio.timeout(SLICE_SECONDS):
            await asyncio.gather(*(slot.device.forget_trashed(chunk) for chunk in chunks))

    async def undelete(self, job: Job, lease: Lease) -> Outcome:
        """Take the batch back from the trash. Raises NotFound naming how many were gone, after the rest is back."""
        slot = self._slots.slot(job.device)
        gone: list[ChunkId] = []
        for chunk in _ids(job):
            lease.check()
            try:
                async with asyncio.timeout(SLICE_SECONDS):
                    await slot.device.restore(chunk)
            except NotFound:
                gone.append(chunk)
            await lease.moved(DELETE_COST_BYTES)
        if gone:
            raise NotFound(
                f"{len(gone)} of {len(_ids(job))} chunks are not in the trash, the first is {gone[0].hex()}",
                code="not-in-trash",
            )
        return Outcome()


def _ids(job: Job) -> list[ChunkId]:
    """The chunk ids of a batch; a job about one chunk may name it in `chunk` instead."""
    batch = job.batch or job.chunk
    return [ChunkId(batch[at : at + CHUNK_ID_BYTES]) for at in range(0, len(batch), CHUNK_ID_BYTES)]


def _slices(job: Job) -> Iterator[list[ChunkId]]:
    ids = _ids(job)
    for at in range(0, len(ids), SLICE):
        yield ids[at : at + SLICE]
