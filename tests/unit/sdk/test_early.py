"""Reads that begin beside their lookup: they may only save time, never change an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.sdk.fake_cluster import FakeCluster, hang, run
from tierstore.errors import NotFound
from tierstore.sdk import early
from tierstore.sdk.early import EarlyReads
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.store import Store

DATA = random.Random(1).randbytes(70_000)


async def read(store: Store, key: str) -> bytes:
    """As a door reads a whole object."""
    begun = store.early.begin("bkt", key)
    found = await store.find("bkt", key)
    walk = store.read_walk("bkt", key, found, first=0, length=found.size, early=begun)
    try:
        await walk.start()
        return bytes(await walk.next_piece())
    finally:
        await walk.close()


async def turned(cluster: FakeCluster, store: Store, other: str) -> None:
    """A second read, for which metadata puts the copy on server 2 first."""
    cluster.servers[1].tier = other
    await store.put("bkt", "k", DATA)
    assert await read(store, "k") == DATA
    begun = store.early.begin("bkt", "k")
    found = await store.find("bkt", "k")
    found.chunks[0].replicas.reverse()
    walk = store.read_walk("bkt", "k", found, first=0, length=found.size, early=begun)
    await walk.start()
    assert bytes(await walk.next_piece()) == DATA
    await walk.close()
    while not store.early.is_idle:
        await asyncio.sleep(0)


def steady(work: Callable[[FakeCluster, Store], Awaitable[None]]) -> None:
    """On two servers, of which the first is fast; no read is hedged or given up because the machine is busy."""
    run(work, servers=2, hedge_seconds_min=60.0, hedge_seconds_max=60.0, stall_seconds=60.0)


def test_the_copy_that_served_last_is_asked_beside_metadata() -> None:
    """That is what it is for: the second read asks its object server once, and uses what came."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        assert await read(store, "k") == DATA
        assert (store.early.begun_total, store.early.used_total) == (0, 0)
        for n in range(1, 40):
            assert await read(store, "k") == DATA
            assert (store.early.begun_total, store.early.used_total) == (n, n)
        assert [server.reads for server in cluster.servers] == [40, 0]      # the ssd's only, each time once

    steady(work)


def test_it_is_begun_while_metadata_has_not_answered() -> None:
    """An early read that waited for the lookup would save nothing."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        begun = store.early.begin("bkt", "k")
        while not store.early.is_idle:
            await asyncio.sleep(0)
        assert cluster.servers[0].reads == 2        # and nobody has asked metadata
        found = await store.find("bkt", "k")
        assert begun.now(found.chunks[0]) is not None

    steady(work)


def test_the_bytes_of_an_older_version_are_never_the_answer() -> None:
    """Read-after-write: what is remembered is a guess, this request's own lookup decides."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        for n in range(20):
            data = bytes([n]) * (60_000 + n % 2)
            await store.put("bkt", "k", data)
            assert await read(store, "k") == data
        assert (store.early.begun_total, store.early.used_total) == (19, 0)

    steady(work)


def test_a_deleted_object_is_gone_although_its_bytes_are_on_the_way() -> None:
    """And asking for a name that is gone does not go on waking an object server for ever."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        await store.delete("bkt", "k")
        for _ in range(2 * early.CREDIT):
            with pytest.raises(NotFound):
                await read(store, "k")
        assert store.early.begun_total == early.CREDIT

    steady(work)


def test_a_copy_that_is_gone_is_asked_once_more_and_then_the_next() -> None:
    """The fast copy was dropped: the early read finds nothing, the answer comes from a home copy, which is slow: later
    reads are not begun early."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        cluster.servers[0].chunks.clear()
        assert await read(store, "k") == DATA
        assert await read(store, "k") == DATA
        assert (store.early.begun_total, store.early.used_total) == (1, 0)
        assert cluster.servers[1].reads == 2

    steady(work)


def test_reads_of_slow_copies_wait_for_the_lookup() -> None:
    """A seek for nothing makes others wait; what saves half a millisecond is not worth one."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        cluster.servers[0].tier = "hdd"
        await store.put("bkt", "k", DATA)
        for _ in range(3):
            assert await read(store, "k") == DATA
        assert store.early.begun_total == 0

    steady(work)


def test_a_copy_that_metadata_no_longer_puts_first_is_not_used() -> None:
    """Steering holds: the answer says where to read, and what was remembered may only be one of the best."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await turned(cluster, store, "nvme")        # a faster copy was made meanwhile
        assert (store.early.begun_total, store.early.used_total) == (1, 0)
        assert [server.reads for server in cluster.servers] == [2, 1]

    async def equals(cluster: FakeCluster, store: Store) -> None:
        await turned(cluster, store, "ssd")         # their turns changed: it is still among the best
        assert (store.early.begun_total, store.early.used_total) == (1, 1)
        assert [server.reads for server in cluster.servers] == [2, 0]

    steady(work)
    steady(equals)


@pytest.mark.parametrize("seed", range(5))
def test_reads_for_nothing_count_no_oftener_than_places_change(seed: int) -> None:
    """An object server counts a read as heat before anybody knows its use. What that adds is bounded: of a
    chunk that can still be read, one read each time that another copy comes first, and never one nobody began."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        rng, clients, changes, first = random.Random(seed), 0, 0, 0
        await store.put("bkt", "k", DATA)
        live = set(cluster.servers[0].chunks)
        for _ in range(300):
            step = rng.choice(("read", "read", "read", "turn", "overwrite"))
            if step == "turn":
                first, changes = 1 - first, changes + 1
            elif step == "overwrite":
                before = set(cluster.servers[0].chunks)
                await store.put("bkt", "k", rng.randbytes(60_000))
                live, clients, changes = set(cluster.servers[0].chunks) - before, 0, 0
                for server in cluster.servers:
                    server.tickets.clear()
            else:
                await read_from(cluster, store, cluster.servers[first].id)
                clients += 1
            counted = sum(bytes.fromhex(t.decode()) in live for server in cluster.servers for t in server.tickets)
            assert clients <= counted <= clients + min(changes, clients), (clients, changes, counted)

    steady(work)


async def read_from(cluster: FakeCluster, store: Store, server: int) -> None:
    """A whole read for which metadata puts this server's copy first, because it is on the faster device."""
    for each in cluster.servers:
        each.tier = "nvme" if each.id == server else "ssd"
    begun = store.early.begin("bkt", "k")
    found = await store.find("bkt", "k")
    for chunk in found.chunks:
        chunk.replicas.sort(key=lambda replica: replica.server != server)
    walk = store.read_walk("bkt", "k", found, first=0, length=found.size, early=begun)
    await walk.start()
    await walk.close()
    while not store.early.is_idle:
        await asyncio.sleep(0)


def test_an_early_read_that_hangs_is_hedged_as_any_other() -> None:
    """The server that was fast a moment ago may be stuck: its reader must not wait for it."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        cluster.servers[0].before_read = hang
        store.servers._limits = StoreLimits()       # from here on reads are hedged
        assert await read(store, "k") == DATA
        assert cluster.servers[1].reads == 1
        assert not store.early.is_idle                 # it ends by itself, by its deadline or with the store

    steady(work)


def test_a_flipped_bit_is_no_answer() -> None:
    """Early bytes are verified as all others are."""

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        cluster.servers[0].flip = True
        assert await read(store, "k") == DATA
        assert store.early.used_total == 0

    steady(work)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway serves any number of names."""
    monkeypatch.setattr(early, "ENTRIES_MAX", 4)

    async def work(cluster: FakeCluster, store: Store) -> None:
        for n in range(8):
            await store.put("bkt", f"k{n}", DATA)
            await read(store, f"k{n}")
        for n in range(8):
            await read(store, f"k{n}")
        assert store.early.begun_total <= 4

    steady(work)


def test_reads_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early reads outlive their requests; they must not pile up on a server that hangs."""
    monkeypatch.setattr(early, "UNDER_WAY_MAX", 2)

    async def work(cluster: FakeCluster, store: Store) -> None:
        await store.put("bkt", "k", DATA)
        await read(store, "k")
        cluster.servers[0].before_read = hang
        book: EarlyReads = store.early
        for _ in range(5):
            book.begin("bkt", "k")
        assert book.begun_total == 2

    steady(work)
