"""Rows of the reverse table that outlive what they name, and copies that no row names: both are seen to in the end.

Run on PostgreSQL too, by test_on_postgres."""

from __future__ import annotations

import msgspec
import pytest
import sqlalchemy as sa

from metadata.catalog import feed, schema
from metadata.catalog.packed import LIVE, Replica, unpack
from metadata.services.upkeep import leftovers
from tests.unit.cluster.cluster_kit import MiniCluster, follow_feed, new_cluster
from tierstore.ticket import ROLE_HOME


async def placed(c: MiniCluster, chunk: bytes) -> set[str]:
    """The servers on which the reverse table has a chunk."""

    def read(k: sa.Connection) -> set[int]:
        rows = k.execute(sa.select(schema.placements.c.device_id).where(schema.placements.c.chunk_id == chunk))
        return {int(row[0]) for row in rows}

    devices = await c.world.database.read(read)
    return {name for name in c.stores if c.device(name) in devices}


async def move_copy(c: MiniCluster, chunk: bytes, source: str, target: str) -> None:
    """A copy job's result that the reverse table does not hear of yet: the home at source is at target now."""

    def work(k: sa.Connection) -> None:
        located = c.book.locate(k, c.device(source), chunk)
        assert located is not None
        rest = [r for r in located.chunk.replicas if r.device != c.device(source)]
        c.book.rewrite(k, located, [*rest, Replica(c.device(target), ROLE_HOME, LIVE, 2, 0, 0)], at_ms=0)

    await c.world.database.write(work)
    c.stores[target].held[c.device(target)].add(chunk)


async def rename(c: MiniCluster, key: str, to: str) -> None:
    """As services/files/moves does it: the row and the placements that are known, in one transaction."""

    def work(k: sa.Connection) -> None:
        t = schema.objects
        row = k.execute(sa.select(t.c.body, t.c.version).where(t.c.key == key)).one()
        k.execute(sa.update(t).where(t.c.key == key).values(key=to))
        for packed in unpack(row.body):
            for replica in packed.replicas:
                k.execute(
                    sa.update(schema.placements)
                    .where(
                        schema.placements.c.device_id == replica.device, schema.placements.c.chunk_id == packed.id
                    ).values(key=to)
                )  # fmt: skip
        gone = feed.NewChange(schema.CHANGE_DELETE, 1, key, 0)
        feed.append(k, [gone, feed.NewChange(schema.CHANGE_PUT, 1, to, row.version)], at_ms=0)

    await c.world.database.write(work)


async def restart(c: MiniCluster, name: str) -> None:
    """A new life of an object server whose device is not empty: it counts after its inventory."""
    server = c.stores[name].server
    server.devices = [msgspec.structs.replace(device, chunks=1) for device in server.devices]
    server.incarnation += 1
    await server.join()
    assert not c.world.cluster.view.devices[server.device()].counts_for_copies


async def audit_everything(c: MiniCluster, passes: int = 3) -> None:
    for _ in range(passes * len(c.stores)):
        await c.audit.step(0)
    await follow_feed(c.world)


async def test_a_copy_that_moved_and_was_let_go_before_the_table_heard_leaves_no_row() -> None:
    """The garbage names the copies of the end; the row of the one before would hide the chunk from every inventory."""
    for is_collected_first in (False, True):
        c = await new_cluster("a", "b", "c")
        chunk = await c.put("k", "a", "b")
        await move_copy(c, chunk, "a", "c")
        await c.delete("k", is_indexed=False)
        assert await placed(c, chunk) == {"a", "b"}
        if is_collected_first:
            await c.pass_time(25, "a", "b", "c")
            c.collection._keep_ms = 0
            assert (await c.collection.step(0))[0] == 1
            assert await placed(c, chunk) == set()
        await follow_feed(c.world)
        assert await placed(c, chunk) == set()


async def test_a_row_whose_name_is_gone_is_removed_and_its_copy_judged() -> None:
    """Left by an older release: inventories take the copy for named, and nobody else asks."""
    c = await new_cluster("a", "b", "c")
    gone = await c.put("k", "a", "b")
    kept = await c.put("other", "a", "b")
    device = c.device("a")

    def leave_a_row(k: sa.Connection) -> None:
        k.execute(sa.delete(schema.objects).where(schema.objects.c.key == "k"))
        k.execute(sa.delete(schema.placements).where(
            schema.placements.c.chunk_id == gone, schema.placements.c.device_id != device))  # fmt: skip

    await c.world.database.write(leave_a_row)
    assert await placed(c, gone) == {"a"}
    await audit_everything(c)
    assert await placed(c, gone) == set() and await placed(c, kept) == {"a", "b"}
    assert c.audit.leftovers_removed == 1
    await c.pass_time(3600, "a", "b", "c")
    await c.inventories.schedule(every_ms=0)
    await c.settle()
    assert gone not in c.held_on(device) and kept in c.held_on(device)


async def test_a_row_of_the_name_before_is_removed_and_the_stray_copy_goes() -> None:
    """A copy moved, and its name too, before the table heard of either."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await move_copy(c, chunk, "a", "c")
    await rename(c, "k", "new")
    await follow_feed(c.world)
    assert await placed(c, chunk) == {"a", "b", "c"}
    await audit_everything(c)
    assert await placed(c, chunk) == {"b", "c"}
    await c.pass_time(25, "a", "b", "c")
    await c.inventories.schedule(every_ms=0)
    await c.settle()
    assert chunk not in c.held_on(c.device("a")) and await c.homes(chunk) == {"b", "c"}


async def test_a_row_that_is_only_late_stays() -> None:
    """Rule 2: the table may lag. A row goes only when the table has passed the moment it was first seen to be wrong."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")

    def rename_behind_the_table(k: sa.Connection) -> None:      # as where the row was not known yet to the rename
        t = schema.objects
        k.execute(sa.update(t).where(t.c.key == "k").values(key="new"))
        feed.append(k, [feed.NewChange(schema.CHANGE_PUT, 1, "new", c.next_chunk)], at_ms=0)

    await c.world.database.write(rename_behind_the_table)
    for _ in range(6):
        await c.audit.step(0)
    assert await placed(c, chunk) == {"a", "b"} and c.audit.leftovers_removed == 0
    await audit_everything(c)
    assert await placed(c, chunk) == {"a", "b"} and c.audit.leftovers_removed == 0


async def test_a_row_that_changed_hands_is_not_forgotten() -> None:
    """What is judged and what is deleted must be one row: it moves along with its chunk."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    await rename(c, "k", "new")
    assert not await c.world.database.write(lambda k: c.book.forget(k, c.device("a"), chunk))
    assert await placed(c, chunk) == {"a", "b"}


async def test_suspects_are_bounded() -> None:
    """A small bound: on PostgreSQL each suspect is a round trip, and thousands of them pass a transaction's deadline on
    a busy machine."""
    c = await new_cluster("a")
    judge = leftovers.Leftovers(c.book)

    def meet(k: sa.Connection) -> None:
        for number in range(30):
            assert judge.met(k, None, 1, number.to_bytes(16, "big"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leftovers, "SUSPECTS_MAX", 20)
        await c.world.database.write(meet)
    assert len(judge._suspects) == 20


async def test_a_stray_waits_while_too_few_homes_count_and_goes_when_they_do() -> None:
    """After a restart of everything the first inventories come while the other servers do not count yet (R1: two stray
    copies that stayed for two starts). Nobody but an inventory ever asks for such a copy."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    c.stores["c"].held[c.device("c")].add(chunk)
    for name in ("a", "b", "c"):
        await restart(c, name)
    c.inventories._over_ms = 1000
    await c.pass_time(25, "a", "b", "c")
    await c.inventories.schedule(every_ms=1 << 50)
    await c.stores["c"].turn(c)
    assert c.inventories.done.strays == 0 and c.inventories.done.later == 1
    await c.settle()
    await c.pass_time(2, "a", "b", "c")
    await c.settle()
    assert chunk not in c.held_on(c.device("c")) and await c.homes(chunk) == {"a", "b"}


async def test_a_stray_whose_deletion_was_given_up_at_its_hand_out_is_asked_about_again() -> None:
    """Enough homes when its page was judged, too few when the job was handed out."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    device = c.device("c")
    c.stores["c"].held[device].add(chunk)
    c.inventories._over_ms = 1000
    await c.pass_time(25, "a", "b", "c")
    await c.inventories.schedule(every_ms=0)
    c.stores["c"].slots = 0
    await c.stores["a"].turn(c)
    await c.stores["b"].turn(c)
    c.stores["c"].slots = 1
    answer = await c.stores["c"].server.beat(slots=1)
    reports = [await c.stores["c"]._do(c, job) for job in answer.jobs]
    assert c.inventories.done.strays == 1
    await restart(c, "a")
    assert (await c.stores["c"].server.beat(slots=8, reports=reports)).jobs == [], "its deletion was not handed out"
    await c.settle("a")
    await c.pass_time(2, "a", "b", "c")
    await c.settle()
    assert chunk not in c.held_on(device) and await c.homes(chunk) == {"a", "b"}


async def test_a_copy_made_for_a_chunk_that_is_gone_goes_by_a_job_of_its_own() -> None:
    """It is no garbage: garbage says that nothing names the chunk, and takes every row of it from the reverse table."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await follow_feed(c.world)
    await c.repair.step(0)
    found = [(name, await c.stores[name].server.beat(slots=8)) for name in ("b", "c")]
    made = [(name, job) for name, answer in found for job in answer.jobs if job.kind == "copy"]
    assert len(made) == 1
    await c.delete("k")
    for name, job in made:
        await c.stores[name].server.beat(reports=[await c.stores[name]._do(c, job)])
    await c.settle("b", "c")
    rows = await c.world.database.read(lambda k: k.execute(sa.select(schema.garbage.c.body)).all())
    assert [sorted(r.device for r in p.replicas) for row in rows for p in unpack(row.body)] == [
        sorted((c.device("a"), c.device("b")))
    ]
    assert chunk not in c.held_on(c.device("c"))
