"""Inventory jobs: tell metadata, page by page in id order, what a device holds; carry off what it says is orphaned.

Owns nothing. Invariants: pages are complete and in order (`after` is the last id of the page before, the last page
says so), so metadata can tell what is missing; orphans go to the trash under the same guards as any delete.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Final

from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store import device as device_seam
from objectd.store.device import Device, Location
from objectd.work.remove import SLICE, RemoveWork
from objectd.work.runner import Lease, Outcome
from objectd.work.verified import RunBlocking
from tierstore.names import ChunkId
from tierstore.wire.cluster import ChunkHeader, Inventory, InventoryAnswer, Job

PAGE_CHUNKS: Final = 4096
PAGE_HEADERS: Final = 1024
#: A small read of the disk each.
HEADER_COST_BYTES: Final = 4096
#: What one listed chunk counts against rates, in bytes.
ENTRY_COST_BYTES: Final = 256

Page = list[tuple[ChunkId, int, Location]]


class InventoryWork:
    """What an inventory job does."""

    def __init__(
        self, *, standing: Standing, slots: Slots, remove: RemoveWork, run_blocking: RunBlocking | None,
        send: Callable[[Inventory], Awaitable[InventoryAnswer]],
    ) -> None:  # fmt: skip
        self._standing = standing
        self._slots = slots
        self._remove = remove
        self._run_blocking = run_blocking
        self._send = send

    async def __call__(self, job: Job, lease: Lease) -> Outcome:
        slot = self._slots.slot(job.device)
        if job.since_ms > 0:
            return await self._headers(slot, job.since_ms, lease)
        after = b""
        chunks = orphans = later = 0
        while True:     # ends: ids rise strictly and the last page is shorter than PAGE_CHUNKS
            page = await chunk_page(slot.device, after, PAGE_CHUNKS, self._run_blocking)
            is_last = len(page) < PAGE_CHUNKS
            lease.check()
            answer = await self._send(
                Inventory(
                    server=self._standing.server, incarnation=self._standing.incarnation, device=slot.id, after=after,
                    ids=b"".join([chunk for chunk, _, _ in page]), sizes=[size for _, size, _ in page],
                    is_last=is_last,
                )
            )  # fmt: skip
            # only what this page held may be deleted on its answer's word
            named = {bytes(orphan) for orphan in answer.orphans}
            orphaned = [chunk for chunk, _, _ in page if chunk in named]
            for at in range(0, len(orphaned), SLICE):
                orphans += await self._remove.trash(slot, orphaned[at : at + SLICE], lease)
            chunks += len(page)
            later += answer.later
            await lease.moved(ENTRY_COST_BYTES * len(page))
            if is_last:
                return Outcome(detail=f"{chunks} chunks, {orphans} orphans to the trash, {later} not yet judged")
            after = bytes(page[-1][0])


    async def _headers(self, slot: Slot, since_ms: int, lease: Lease) -> Outcome:
        """For a rebuild: what stands in the headers of young chunks. Nothing is judged or deleted on its answers."""
        after, chunks = b"", 0
        while True:     # ends as above
            page = await header_page(slot.device, since_ms, after, PAGE_HEADERS, self._run_blocking)
            is_last = len(page) < PAGE_HEADERS
            lease.check()
            await self._send(
                Inventory(
                    server=self._standing.server, incarnation=self._standing.incarnation, device=slot.id, after=after,
                    ids=b"", sizes=[], is_last=is_last, since_ms=since_ms,
                    headers=[
                        ChunkHeader(
                            h.chunk, h.chunk_bytes, h.crc32c, h.stored_at_ms, h.location.segment, h.location.offset,
                            h.name_hint,
                        )
                        for h in page
                    ],
                )
            )  # fmt: skip
            chunks += len(page)
            await lease.moved(HEADER_COST_BYTES * len(page))
            if is_last:
                return Outcome(detail=f"{chunks} headers")
            after = bytes(page[-1].chunk)


async def header_page(
    device: Device, since_ms: int, after: bytes, limit: int, run_blocking: RunBlocking | None
) -> list[device_seam.ChunkHeader]:
    """The next `limit` headers of chunks stored since then, read off the loop when there is an executor."""

    def read() -> list[device_seam.ChunkHeader]:
        return list(islice(device.stored_since(since_ms, after), limit))

    return read() if run_blocking is None else await run_blocking(read)


async def chunk_page(device: Device, after: bytes, limit: int, run_blocking: RunBlocking | None) -> Page:
    """The next `limit` chunks of a device in id order, read off the loop when there is an executor."""

    def read() -> Page:
        return list(islice(device.chunks(after), limit))

    return read() if run_blocking is None else await run_blocking(read)
