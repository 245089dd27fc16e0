"""An inventory page is judged while copies are made: a chunk's row counts, not the reverse table that follows it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from metadata.catalog.packed import LIVE, Replica
from tests.unit.cluster.cluster_kit import follow_feed, new_cluster
from tierstore.ticket import ROLE_HOME
from tierstore.wire.cluster import Inventory


@pytest.mark.parametrize("shared", [False, True])
async def test_a_copy_made_while_its_page_is_judged_is_no_stray(shared: bool) -> None:
    """Else a live home is deleted behind the catalog's back (found by seed 109 of the simulation)."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b", shared=shared)
    await c.settle()
    device = c.device("c")
    c.stores["c"].held[device].add(chunk)
    database, book = c.world.database, c.inventories._book

    async def a_copy_is_made(sequence: int) -> bool:
        def work(k: sa.Connection) -> None:
            located = book.locate(k, c.device("a"), chunk)
            assert located is not None
            new = Replica(device, ROLE_HOME, LIVE, 2, 0, 0)
            book.rewrite(k, located, [*located.chunk.replicas, new], at_ms=c.world.clock.now_ms())

        await database.write(work)
        return True

    c.inventories._mark_passes = a_copy_is_made  # type: ignore[method-assign]
    server = c.stores["c"].server
    page = Inventory(
        server=server.id, device=device, incarnation=server.incarnation, after=b"", ids=chunk, sizes=[100], is_last=True
    )
    answer = await c.inventories.page(page)
    assert answer.orphans == [] and answer.later == 1
    assert c.inventories.done.strays == 0
    await follow_feed(c.world)
    await c.stores["c"].turn(c)
    assert chunk in c.held_on(device)


async def test_garbage_collected_before_the_reverse_table_came_to_it_is_not_named_for_ever() -> None:
    """After a restart of everything: what was let go in the last second is collected at once, while a server is away.
    It learns of it by its inventory, and a row left in the reverse table would hide the chunk from that for good."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    await c.delete("k", is_indexed=False)
    await c.pass_time(25, "b")
    c.collection._keep_ms, c.inventories._over_ms = 0, 1000
    assert (await c.collection.step(0))[0] == 1
    await c.pass_time(2, "a", "b")
    assert c.held_on(c.device("a")) == {chunk}
    await c.settle()
    assert not c.held_on(c.device("a")) and not c.held_on(c.device("b"))
