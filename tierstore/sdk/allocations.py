"""Allocations held ahead: room for chunks, with write tickets, asked for in batches before it is needed.

Owns, per placement class, a queue of single-chunk allocations (each a new upload). A PUT takes one without waiting;
the queue is topped up in the background when it falls below half of what was used since the last time. Unused ones
simply expire: an allocation is no row in the catalog.

What is held ahead is for whole chunks. When no device has room for one, a chunk that is shorter is asked for by its own
length: a nearly full cluster takes small objects as long as there is room for them.

Those that came together are handed out in runs to the same devices, so that small chunks of one moment share messages
and syncs; who writes more takes from all over the queue, so that large chunks spread (docs/adr/0320).

Invariants: nothing is handed out that expires within EXPIRY_MARGIN_MS, or whose targets include a server that the
cluster map no longer calls up; over a queue, each device gets as many as metadata drew for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from tierstore.errors import CapacityError, UnavailableError
from tierstore.sdk.limits import StoreLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.chunks import SET_CHUNK_BYTES_MAX
from tierstore.wire.cluster import ClusterMap
from tierstore.wire.names import ALLOCATIONS_PER_ITEM_MAX, AllocateItem, Allocation

#: Time left that a chunk needs to be sent under its ticket.
EXPIRY_MARGIN_MS: Final = 30_000
#: Refills that one taker waits for while others empty them, before it asks for itself.
_REFILLS_AWAITED: Final = 3
#: Steps of this share of the queue visit all of it evenly, whatever its length (the golden section).
_SPREAD: Final = 0.618_034


@dataclass(frozen=True, slots=True)
class PlacementClass:
    """What decides where a chunk may go. tiers: of its home copies, in order of preference; chunk_bytes: where bodies
    are cut."""

    tiers: tuple[str, ...]
    copies: int
    chunk_bytes: int
    #: Tiers for one more copy, beside the home ones, fastest first; () = none.
    extra: tuple[str, ...] = ()


@dataclass(slots=True)
class _Stock:
    ready: deque[Allocation] = field(default_factory=deque)
    used: int = 0                                   # since the last refill: how much is asked for next time
    place: float = 0.0                              # where in the queue the next spread one is taken, 0..1
    refill: asyncio.Task[None] | None = None

    def take_spread(self) -> Allocation:
        self.place = (self.place + _SPREAD) % 1.0
        at = int(self.place * len(self.ready))
        allocation = self.ready[at]
        del self.ready[at]
        return allocation


class AllocationPool:
    """One per Store. Bounded by `allocations_ahead_max` per class; there are as many classes as policy rules."""

    def __init__(self, client: MetadataClient, limits: StoreLimits) -> None:
        self._client = client
        self.limits = limits
        self._stocks: dict[PlacementClass, _Stock] = {}
        client.on_map_change.append(self._learn)

    def take_ready(self, placement: PlacementClass, chunk_bytes: int) -> Allocation | None:
        """One allocation for a chunk of so many bytes if there is one at hand; starts a refill when few are left."""
        in_run = chunk_bytes <= SET_CHUNK_BYTES_MAX
        stock = self._stocks.get(placement)
        if stock is None:
            stock = self._stocks[placement] = _Stock()
        stock.used += 1
        found: Allocation | None = None
        while stock.ready:
            allocation = stock.ready.popleft() if in_run else stock.take_spread()
            if not self.is_stale(allocation):
                found = allocation
                break
        if len(stock.ready) <= self._wanted(stock) // 2 and (stock.refill is None or stock.refill.done()):
            stock.refill = asyncio.get_running_loop().create_task(self._refill(placement, stock))
            stock.refill.add_done_callback(_retrieve)
        return found

    async def take(self, placement: PlacementClass, chunk_bytes: int) -> Allocation:
        """One allocation for a chunk of so many bytes, waiting for metadata if none is at hand. Raises
        UnavailableError, CapacityError."""
        try:
            return await self._take_whole(placement, chunk_bytes)
        except CapacityError:
            if chunk_bytes >= placement.chunk_bytes:
                raise
        return (await self._ask(_item(placement, chunk_bytes=chunk_bytes)))[0]

    async def _take_whole(self, placement: PlacementClass, chunk_bytes: int) -> Allocation:
        for _ in range(_REFILLS_AWAITED):
            found = self.take_ready(placement, chunk_bytes)
            if found is not None:
                return found
            refill = self._stocks[placement].refill
            assert refill is not None
            # others wait for the same refill: a waiter that gives up must not cancel it for them
            await asyncio.shield(refill)
        return (await self._ask(_item(placement)))[0]

    async def take_more(
        self, placement: PlacementClass, upload: bytes, first_index: int, count: int, chunk_bytes: int,
        *, copies: int | None = None, exclude: list[int] | None = None,
    ) -> list[Allocation]:  # fmt: skip
        """Room for further chunks of an upload, of at most chunk_bytes each, or for a chunk whose targets failed
        (exclude)."""
        return await self._ask(AllocateItem(
            list(placement.tiers), copies or placement.copies, count, upload, first_index, chunk_bytes,
            exclude_servers=exclude or [], extra_tiers=[] if exclude else list(placement.extra),
        ))  # fmt: skip

    async def _ask(self, item: AllocateItem) -> list[Allocation]:
        """Room from metadata. Too few servers are waited for while some are expected back in a moment: a restart must
        not fail a write. Raises what metadata says, at the latest after placement_wait_seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.limits.placement_wait_seconds
        while True:
            try:
                return (await self._client.allocate(item, seconds=self.limits.request_seconds)).allocations
            except UnavailableError as error:
                if not error.fields.get("returning") or loop.time() >= until:
                    raise
            await asyncio.sleep(self.limits.placement_poll_seconds)

    def drop(self, placement: PlacementClass) -> None:
        """Forget what is held ahead: its tickets are refused."""
        stock = self._stocks.get(placement)
        if stock is not None:
            stock.ready.clear()

    def is_stale(self, allocation: Allocation) -> bool:
        return allocation.expires_at_ms <= self._client.catalog_ms() + EXPIRY_MARGIN_MS

    def _wanted(self, stock: _Stock) -> int:
        return min(max(stock.used * 2, self.limits.allocations_ahead_min), self.limits.allocations_ahead_max)

    async def _refill(self, placement: PlacementClass, stock: _Stock) -> None:
        count = min(self._wanted(stock) - len(stock.ready), ALLOCATIONS_PER_ITEM_MAX)
        stock.used = 0
        stock.ready.extend(_in_runs(await self._ask(_item(placement, count=count))))

    def _learn(self, fresh: ClusterMap) -> None:
        """A server left: drop what would be written to it."""
        up = {server.id for server in fresh.servers if server.state == "up"}
        for stock in self._stocks.values():
            kept = [a for a in stock.ready if all(target.server in up for target in a.targets)]
            if len(kept) != len(stock.ready):
                stock.ready = deque(kept)

    async def close(self) -> None:
        tasks = [stock.refill for stock in self._stocks.values() if stock.refill is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class UploadRooms:
    """The allocations of one upload, chunk by chunk: the first from the stock, further ones of the same upload a few
    ahead. `size`: of the whole body, None when it is not known."""

    def __init__(self, pool: AllocationPool, placement: PlacementClass, size: int | None) -> None:
        self._pool = pool
        self._placement = placement
        self._size = size
        self._held: dict[int, Allocation] = {}
        # first come, first served: chunk 0, whose allocation names the upload, is asked for before all others
        self._lock = asyncio.Lock()
        self.upload = b""

    async def of(self, index: int) -> Allocation:
        """Room for chunk number `index`. Raises UnavailableError, CapacityError."""
        async with self._lock:
            if not self.upload:
                assert index == 0, "chunks are stored in order"
                allocation = await self._pool.take(self._placement, self._bytes_of(0))
                self.upload = allocation.upload
                return allocation
            held = self._held.pop(index, None)
            if held is not None and not self._pool.is_stale(held):
                return held
            count = self._pool.limits.chunks_allocated_ahead
            if self._size is not None:
                count = min(count, -(-self._size // self._placement.chunk_bytes) - index)
            found = await self._pool.take_more(
                self._placement, self.upload, index, max(count, 1), self._bytes_of(index)
            )
            self._held.update((allocation.index, allocation) for allocation in found)
            return self._held.pop(index)

    def _bytes_of(self, index: int) -> int:
        """Length of a chunk and at most that of those behind it: whole, but for the last one of a known size."""
        whole = self._placement.chunk_bytes
        return whole if self._size is None else max(1, min(whole, self._size - index * whole))


def _item(placement: PlacementClass, *, count: int = 1, chunk_bytes: int = 0) -> AllocateItem:
    """A question for room of this class. chunk_bytes: of the longest chunk; 0: whole ones."""
    return AllocateItem(
        list(placement.tiers), placement.copies, count, chunk_bytes_max=chunk_bytes or placement.chunk_bytes,
        extra_tiers=list(placement.extra),
    )  # fmt: skip


def _in_runs(found: list[Allocation]) -> list[Allocation]:
    """Those to the same devices one behind the other; runs in the order in which metadata drew the first of each, so
    that who takes only one takes what metadata would have him take."""
    runs: dict[frozenset[int], list[Allocation]] = {}
    for allocation in found:
        runs.setdefault(frozenset([target.device for target in allocation.targets]), []).append(allocation)
    return [allocation for run in runs.values() for allocation in run]


def _retrieve(task: asyncio.Task[None]) -> None:
    """A background refill that failed is no error by itself: the next take asks again and hears why."""
    if not task.cancelled():
        task.exception()
