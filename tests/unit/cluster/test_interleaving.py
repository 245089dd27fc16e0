"""What happens between the steps of a service: answers that overtake each other, transactions that are rolled back,
operators who change something while a duty is at work."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import cast

import pytest

from metadata.catalog import feed, leases, servers
from metadata.catalog.database import Database
from metadata.services.access.policies import Policies
from metadata.services.cluster.refreshing import Refreshing
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.scrub import Scrub
from metadata.services.upkeep.snapshot import Snapshots
from tests.kit.meddling import MeddlingDatabase, until_idle
from tests.unit.cluster.cluster_kit import joined, new_cluster, new_database, new_world, registration, report
from tierstore.errors import UnavailableError
from tierstore.policy import parser


def as_database(meddling: MeddlingDatabase) -> Database:
    return cast(Database, meddling)


async def test_an_older_answer_never_overrides_a_newer_one() -> None:
    """On PostgreSQL a read that began before a drain could end behind the read after it: new chunks went to the device
    for a second more, and a device that was to be reconciled counted again."""
    meddling = MeddlingDatabase(await new_database())
    world = await new_world(as_database(meddling))
    device = (await joined(world, "a", 1)).device()
    meddling.hold_read = late = asyncio.Event()
    first = asyncio.create_task(world.cluster.refresh())
    await until_idle()
    await world.database.write(lambda c: servers.change_device(c, device, state="draining"))
    second = asyncio.create_task(world.cluster.refresh())
    await until_idle()
    late.set()
    await asyncio.gather(first, second)
    assert world.cluster.view.devices[device].state == "draining"


async def test_those_who_wait_for_a_refresh_share_the_next_one() -> None:
    """Each heartbeat may ask for one: a slow database must not get as many reads as there are servers."""
    gate, states, taken = asyncio.Event(), itertools.count(1), []

    async def work() -> None:
        state = next(states)
        await gate.wait()
        taken.append(state)

    refreshing = Refreshing(work)
    first = asyncio.create_task(refreshing.now())
    await until_idle()
    others = [asyncio.create_task(refreshing.now()) for _ in range(50)]
    await until_idle()
    gate.set()
    await asyncio.gather(first, *others)
    assert taken == [1, 2]


async def test_a_refresh_that_fails_is_nobody_elses() -> None:
    """Whoever waits behind one that failed reads himself; else he would go on with what the failed one left."""
    answers = iter([UnavailableError("away"), None, None])
    gate, reads = asyncio.Event(), 0

    async def work() -> None:
        nonlocal reads
        await gate.wait()
        reads += 1
        if (error := next(answers)) is not None:
            raise error

    refreshing = Refreshing(work)
    first = asyncio.create_task(refreshing.now())
    await until_idle()
    second = asyncio.create_task(refreshing.now())
    await until_idle()
    gate.set()
    assert isinstance((await asyncio.gather(first, second, return_exceptions=True))[0], UnavailableError)
    assert reads == 2


async def test_a_server_may_join_while_a_transaction_walks_over_the_devices() -> None:
    """Transactions run in a thread of their own: the walk ended with an error, and the heartbeat or duty with it."""
    world = await new_world()
    await joined(world, "a", 1, 2)
    walks = [iter(world.cluster.view.devices.values()), iter(world.cluster.view.servers.values())]
    seen = [next(walk) for walk in walks]
    await world.registrar.register(registration("b", devices=[report(3)]))
    assert [len(list(walk)) for walk in walks] == [1, 0] and len(seen) == 2
    assert len(world.cluster.view.devices) == 3 and len(world.cluster.view.servers) == 2


async def test_a_policy_that_is_older_never_comes_behind_a_newer_one() -> None:
    meddling = MeddlingDatabase(await new_database())
    policies = Policies(as_database(meddling), (await new_world()).clock, parser.parse, servers=lambda: 3)
    await policies.set({"version": 1}, who="a")
    other = Policies(as_database(meddling), (await new_world()).clock, parser.parse, servers=lambda: 3)
    meddling.hold_read = late = asyncio.Event()
    reading = asyncio.create_task(other.refresh())
    await until_idle()
    newest = await other.set({"version": 1}, who="b")
    late.set()
    await reading
    assert other.current.revision == newest.revision == 2


async def test_a_step_of_the_scrub_undoes_nothing_that_an_operator_said_meanwhile() -> None:
    """The step wrote the whole state back as it had seen it: the new pass was answered with success and never came,
    and the pace was the old one."""
    c = await new_cluster("a", "b")
    for number in range(5):
        await c.put(f"k{number}", "a", "b")
    meddling = MeddlingDatabase(c.world.database)
    scrub = Scrub(as_database(meddling), c.world.cluster, c.book)
    epoch = await c.world.lease.renew()
    await scrub.start()
    meddling.hold_write = late = asyncio.Event()
    step = asyncio.create_task(scrub.step(epoch))
    await until_idle()
    c.world.clock.advance(5)
    await scrub.set_pace(12_345)
    asked = await scrub.start()
    began_at_ms = (await scrub.status()).started_at_ms
    late.set()
    await step
    await scrub.load()
    status = await scrub.status()
    assert scrub.bytes_per_second == 12_345 and status.started_at_ms == began_at_ms
    assert len(asked) == 2 and status.total >= 10, "the new pass has everything before it"


async def test_deletion_is_barred_durably_also_when_the_first_try_to_write_it_down_failed() -> None:
    """It was remembered as barred and never written: after a restart, with the catalog's sequence past what the device
    had seen, an old catalog would have deleted what it did not know."""
    meddling = MeddlingDatabase(await new_database())
    world = await new_world(as_database(meddling))
    server = await joined(world, "a", 1)
    server.devices = [report(1, seen_sequence=50)]
    await server.beat()
    guard = DeletionGuard(as_database(meddling), world.cluster)
    meddling.failing_writes = 1
    with pytest.raises(UnavailableError):
        await guard.check()
    assert "sequence 50" in guard.why_not()
    await guard.check()
    kept = await world.database.read(lambda c: leases.setting(c, DeletionGuard.SETTING))
    assert kept == guard.barred
    meddling.failing_writes = 1
    with pytest.raises(UnavailableError):
        await guard.lift()
    assert guard.why_not() == kept, "it is lifted when that is durable"
    await guard.lift()
    assert not guard.barred and not await world.database.read(lambda c: leases.setting(c, DeletionGuard.SETTING))


async def test_the_journal_goes_on_where_another_process_left_it() -> None:
    """A process that had the lease before went on from its own last piece: the changes that the feed had forgotten
    since were missing from the journal, and a rebuild would have lost those names."""
    c = await new_cluster("a", "b")
    world = c.world
    for number in range(3):
        await c.put(f"k{number}", "a", "b")
    head = (await world.database.read(feed.head))[0]
    now_ms = world.clock.now_ms()

    async def note(*reached: int) -> None:
        pieces = ",".join(
            f'["{"journal" if at else "snapshot"}",{end},{start},{now_ms},[]]'
            for at, (start, end) in enumerate(itertools.pairwise((0, *reached)))
        )
        await world.database.write(lambda k: leases.set_setting(k, Snapshots.SETTING, f"[{pieces}]"))

    snapshots = Snapshots(
        world.database, world.cluster, None, c.guard,  # type: ignore[arg-type]  # nothing is stored here
        rng=random.Random(1), directory=lambda: None, snapshot_seconds=3600.0,
    )
    await note(1, 2)
    await snapshots.load()
    assert snapshots.journalled == 2
    await note(1, 2, head)                  # by the process that had the lease in between
    assert await snapshots.step(1) == (0, False)
    assert snapshots.journalled == head
