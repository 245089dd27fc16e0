"""Object servers of a release before jobs took parts of a slot, under a metadata service that hands out parts."""

from __future__ import annotations

import asyncio

import pytest

from metadata.catalog import jobs
from metadata.services.jobs.handout import WHOLE_SLOTS_MS
from metadata.services.jobs.results import ATTEMPTS_MAX
from tests.unit.cluster.cluster_kit import follow_feed
from tests.unit.cluster.tiering_rig import new_rig
from tierstore.wire.cluster import Job

CHUNKS = 60
SLOTS = 2


@pytest.mark.parametrize("why", ["promote", "settle"])
def test_a_server_that_counts_whole_slots_gets_through_its_work(why: str) -> None:
    """In the middle of a roll it sends back nearly all that it is handed: that must cost neither the jobs (each was
    given up after ten refusals) nor a message for each of them every second."""

    async def run() -> None:
        rig = await new_rig()
        cluster = rig.cluster
        if why == "settle":
            await cluster.add_server("c", 5)
        chunks = [
            await cluster.put(f"k{n:03}", *(("c", "f") if why == "settle" else ("a", "b")), size=4000)
            for n in range(CHUNKS)
        ]
        for store in cluster.stores.values():
            store.slots, store.is_of_before_parts = SLOTS, True
        if why == "settle":
            await cluster.pass_time(1.0, *cluster.stores)
            await rig.walk.step(0)
        else:
            for chunk in chunks:
                rig.read(chunk, 5)
            await rig.tick()
        seconds = 0
        while any(count.why == why for count in await rig.counts()):
            seconds += 1
            assert seconds < 10 * CHUNKS, await rig.counts()
            await cluster.pass_time(1.0, *cluster.stores)
            for store in cluster.stores.values():
                await store.turn(cluster)
        await follow_feed(cluster.world)
        assert seconds > ATTEMPTS_MAX, "so many that each would have been given up"
        assert not any(count.state == jobs.FAILED for count in await rig.counts())
        for chunk in chunks:
            replicas = await cluster.replicas(chunk)
            tiers = {cluster.world.cluster.view.devices[d].tier for d, r in replicas.items() if r.state == 0}
            assert tiers == {"hdd", "ssd"}
        handed: list[Job] = [job for store in cluster.stores.values() for job in store.jobs_seen if job.why == why]
        bursts = seconds * 1000 // WHOLE_SLOTS_MS + 1
        assert CHUNKS < len(handed) <= CHUNKS + bursts * CHUNKS * len(cluster.stores)
        assert len(handed) < seconds * CHUNKS // 2, "it is not handed everything again each second"

    asyncio.run(run())


def test_a_server_that_was_replaced_by_a_newer_one_is_handed_parts_again() -> None:
    """The roll went on; ten seconds later it works at full speed."""

    async def run() -> None:
        rig = await new_rig()
        fast = rig.cluster.stores["f"]
        for n in range(CHUNKS):
            rig.read(await rig.cluster.put(f"k{n:03}", "a", "b", size=4000), 5)
        fast.slots, fast.is_of_before_parts = SLOTS, True
        await rig.tick()
        assert len(fast.jobs_seen) == CHUNKS
        fast.is_of_before_parts = False
        await rig.cluster.pass_time(2.0, *rig.cluster.stores)
        assert await fast.turn(rig.cluster) == SLOTS
        await rig.cluster.pass_time(WHOLE_SLOTS_MS / 1000, *rig.cluster.stores)
        assert await fast.turn(rig.cluster) == CHUNKS - 2 * SLOTS

    asyncio.run(run())
