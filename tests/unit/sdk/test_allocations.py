"""Allocations held ahead: how many are asked for, and in what order they are handed out."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise

from tests.unit.sdk import fake_cluster
from tests.unit.sdk.fake_cluster import FakeCluster
from tierstore.sdk.allocations import AllocationPool, PlacementClass
from tierstore.sdk.store import Store
from tierstore.wire.names import Allocation

CLASS = PlacementClass((), 2, 8 << 20)
SMALL, LARGE = 4096, 1 << 20

run = partial(fake_cluster.run, servers=4)


async def filled(store: Store) -> AllocationPool:
    """A pool with a queue at hand."""
    pool = AllocationPool(store.client, store.limits)
    await pool.take(CLASS, SMALL)
    return pool


def devices(allocation: Allocation) -> frozenset[int]:
    return frozenset(target.device for target in allocation.targets)


def taken(pool: AllocationPool, count: int, chunk_bytes: int) -> list[Allocation]:
    """So many in one turn of the loop: no refill comes between."""
    found = [pool.take_ready(CLASS, chunk_bytes) for _ in range(count)]
    return [allocation for allocation in found if allocation is not None]


def test_a_thousand_writers_at_once_ask_for_no_more_than_one_item_may() -> None:
    """Behind a metadata restart many wait: a refill of more than the bound would be refused, and they with it."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        pool = AllocationPool(store.client, store.limits)
        got = await asyncio.gather(*(pool.take(CLASS, SMALL) for _ in range(1000)))
        assert len({allocation.upload for allocation in got}) == 1000
        await pool.close()

    run(work)


def test_small_chunks_of_one_moment_go_to_the_same_devices() -> None:
    """They share messages and syncs; that is what a small write costs least by."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        pool = await filled(store)
        places = [devices(allocation) for allocation in taken(pool, 100, SMALL)]
        assert len(places) == 99
        changes = sum(one != other for one, other in pairwise(places))
        assert changes == len(set(places)) - 1, "each set of devices is one run"
        await pool.close()

    run(work, allocations_ahead_min=100)


def test_large_chunks_of_one_moment_spread_over_all_devices() -> None:
    """A run of large chunks would leave most disks idle."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        pool = await filled(store)
        places = [devices(allocation) for allocation in taken(pool, 12, LARGE)]
        assert len(set(places)) >= 4, "six pairs of four servers, about a sixth of the queue each"
        assert set().union(*places) == {10, 20, 30, 40}
        await pool.close()

    run(work, allocations_ahead_min=100)


def test_the_queue_is_used_up_whatever_the_order_and_nothing_twice() -> None:
    """Over a queue each device gets what metadata drew for it, so its balance is metadata's."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        pool = await filled(store)
        mixed = [pool.take_ready(CLASS, LARGE if number % 3 else SMALL) for number in range(99)]
        uploads = {allocation.upload for allocation in mixed if allocation is not None}
        assert len(uploads) == 99
        assert pool.take_ready(CLASS, SMALL) is None
        await pool.close()

    run(work, allocations_ahead_min=100)
