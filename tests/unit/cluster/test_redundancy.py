"""Lost servers, bad copies, drained and returning devices: nothing below N+1, nothing doubled, nothing left over."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from metadata.catalog import jobs, leases, operations, schema, workload
from metadata.catalog.packed import BAD, DELETING
from metadata.services.jobs.queue import RESULTS_AT_ONCE
from metadata.services.jobs.work import is_alive
from metadata.services.names.copies import Copies
from metadata.services.upkeep.collect import DeletionGuard
from tests.unit.cluster.cluster_kit import follow_feed, new_cluster, report
from tierstore.errors import ConflictError
from tierstore.policy.parser import parse_toml
from tierstore.wire.cluster import BadChunk, JobReport


async def test_a_dead_servers_chunks_are_copied_after_the_grace() -> None:
    """The promise of N+1: redundancy is rebuilt without being asked, but not for a short absence."""
    c = await new_cluster("a", "b", "c")
    chunks = [await c.put(f"k{i}", "a", "b") for i in range(10)] + [await c.put("s", "a", "c", shared=True)]
    await c.pass_time(25, "b", "c")
    await c.settle("b", "c")
    assert await c.homes(chunks[0]) == {"a", "b"}, "repaired within the grace"
    await c.pass_time(20, "b", "c")
    await c.settle("b", "c")
    for chunk in chunks:
        assert await c.homes(chunk) == {"b", "c"}
    assert c.queue.tallies["repair"].done == 11 and c.queue.tallies["repair"].bytes_moved == 1100


async def test_a_returning_server_is_reconciled_and_nothing_is_doubled() -> None:
    """Its old copies were replaced while it was away: they go to the trash, and what is still its own counts again."""
    c = await new_cluster("a", "b", "c")
    replaced = await c.put("k1", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.settle("b", "c")
    kept = await c.put("k2", "a", "b")     # written by a commit that came just before it died
    c.stores["a"].server.incarnation = 2
    await c.stores["a"].server.join()
    assert not c.world.cluster.view.devices[c.device("a")].counts_for_copies
    await c.pass_time(1000, "a", "b", "c")
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].counts_for_copies
    assert await c.homes(replaced) == {"b", "c"} and replaced not in c.stores["a"].held[c.device("a")]
    assert await c.homes(kept) == {"a", "b"}
    assert c.inventories.done.strays == 1


async def test_a_hung_server_that_wakes_up_is_reconciled_too() -> None:
    """It keeps its incarnation, but deletions went past it while it was dead."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await c.pass_time(25, "b", "c")
    await c.delete("k")
    await c.pass_time(1000, "b", "c")
    await c.settle("b", "c")
    assert chunk in c.stores["a"].held[c.device("a")]
    await c.stores["a"].server.beat()
    assert not c.world.cluster.view.devices[c.device("a")].counts_for_copies
    await c.settle()
    assert chunk not in c.stores["a"].held[c.device("a")]
    assert c.world.cluster.view.devices[c.device("a")].counts_for_copies


async def test_repair_halts_when_most_servers_vanish_and_goes_on_at_a_word() -> None:
    """A cut network must not set off copying of everything."""
    c = await new_cluster("a", "b", "c", "d")
    chunk = await c.put("k", "a", "c")
    await c.pass_time(60, "c", "d")
    await c.settle("c", "d")
    assert c.repair.losses.status.is_halted and "a, b" in c.repair.losses.status.halted_why
    assert await c.homes(chunk) == {"a", "c"}
    await c.repair.losses.resume()
    await c.settle("c", "d")
    assert await c.homes(chunk) == {"c", "d"}


async def test_the_most_endangered_chunks_go_first() -> None:
    """With three copies and two servers lost, a chunk with one copy left must not wait behind one with two."""
    c = await new_cluster("a", "b", "c", "d", "e", copies=3)
    two_left = [await c.put(f"x{i}", "a", "c", "d") for i in range(5)]
    one_left = [await c.put(f"y{i}", "a", "b", "c") for i in range(5)]
    await c.pass_time(61, "c", "d", "e", "b")
    await c.pass_time(61, "c", "d", "e")
    for _ in range(3):
        await c.repair.step(0)
    rows = await c.world.database.read(lambda k: workload.listing(k))
    ranks = {row.chunk: row.rank for row in rows}
    assert {ranks[chunk] for chunk in one_left if chunk in ranks} == {1}
    assert {ranks[chunk] for chunk in two_left if chunk in ranks} == {2}
    assert rows[0].chunk in one_left
    await c.settle("c", "d", "e", rounds=60)
    for chunk in one_left + two_left:
        assert await c.homes(chunk) == {"c", "d", "e"}


async def test_a_bad_copy_is_replaced_also_when_only_its_own_server_is_left() -> None:
    """With two servers and two copies the good bytes must go back to the server whose copy was bad."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    c.stores["b"].held[c.device("b")].discard(chunk)      # its server put it into quarantine
    c.stores["b"].found_bad.append(BadChunk(chunk, c.device("b"), "bad-block"))
    await c.stores["b"].turn(c)
    await c.repair.mend(0)
    assert (await c.replicas(chunk))[c.device("b")].state == BAD
    await c.settle()
    assert await c.homes(chunk) == {"a", "b"}
    assert all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_a_readers_suspicion_is_checked_before_it_is_believed() -> None:
    """A broken client must not be able to condemn good copies."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    assert await c.queue.report_suspect([BadChunk(chunk, c.device("a"), "bad-block")]) == 1
    await c.settle()
    assert await c.homes(chunk) == {"a", "b"} and c.stores["a"].jobs_seen[0].kind == "verify"
    c.stores["a"].bad.add(chunk)
    await c.queue.report_suspect([BadChunk(chunk, c.device("a"), "bad-block")])
    await c.settle()
    assert len(await c.homes(chunk)) == 2 and all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_a_bad_copy_is_mended_also_while_the_job_that_found_it_is_leased() -> None:
    """The server tells of the bad copy before its verify job is over: were the report dropped because the copy is
    busy, it would lie in quarantine, be counted as live for ever, and never be made again."""
    c = await new_cluster("a", "b")
    chunk, server = await c.put("k", "a", "b"), c.stores["a"].server.id
    await c.queue.report_suspect([BadChunk(chunk, c.device("a"), "bad-block")])
    verify = (await c.queue.hand_out(server, 4))[0]
    assert verify.kind == "verify" and verify.chunk_bytes and verify.crc32c    # so that a whole but wrong copy is found
    c.stores["a"].held[c.device("a")].discard(chunk)
    for _ in range(2):      # the report is repeated until it is acknowledged
        await c.queue.report_bad([BadChunk(chunk, c.device("a"), "bad-block")])
    await c.repair.mend(0)
    assert (await c.replicas(chunk))[c.device("a")].state == BAD
    await c.queue.report(server, [JobReport(verify.id, verify.token, True, code="bad-block")])
    await c.pass_time(3, "a", "b")
    await c.repair.mend(0)
    await c.settle()
    assert await c.homes(chunk) == {"a", "b"} and chunk in c.stores["a"].held[c.device("a")]
    assert all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_many_results_of_one_message_are_taken_in_pieces() -> None:
    """Each result costs the one writer milliseconds: clients' commits wait for a piece of them, not for all."""
    c = await new_cluster("a", "b")
    server = c.stores["a"].server.id
    chunks = [await c.put(f"k{number}", "a", "b") for number in range(2 * RESULTS_AT_ONCE + 1)]
    await c.queue.report_suspect([BadChunk(chunk, c.device("a"), "bad-block") for chunk in chunks])
    handed = []
    while more := await c.queue.hand_out(server, 8):
        handed += more
    taken: list[int] = []
    take = c.queue._results.take
    c.queue._results.take = lambda c, server, some, now_ms: (  # type: ignore[method-assign]
        taken.append(len(some)), take(c, server, some, now_ms)
    )[1]
    renewed, cancelled = await c.queue.report(server, [
        JobReport(handed[0].id, handed[0].token, False, progress=0.5),
        JobReport(handed[1].id, handed[1].token + 1, False, progress=0.5),
        *(JobReport(job.id, job.token, True) for job in handed[2:]),
    ])  # fmt: skip
    assert taken == [RESULTS_AT_ONCE, RESULTS_AT_ONCE, 1]
    assert [job.id for job in renewed] == [handed[0].id] and cancelled == [handed[1].id]
    assert c.queue.tallies["repair"].done == len(chunks) - 2


async def test_a_server_that_finds_a_peers_copy_bad_only_raises_a_suspicion() -> None:
    """A copy job reads from peers. Were its word believed, the peer's bad copy would not be in quarantine, and the new
    copy that is sent there would be taken for a repeat of the bad one."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    c.stores["b"].found_bad.append(BadChunk(chunk, c.device("a"), "bad-block"))
    await c.stores["b"].turn(c)
    await c.repair.mend(0)
    assert (await c.replicas(chunk))[c.device("a")].state == 0
    await c.settle()
    assert [job.kind for job in c.stores["a"].jobs_seen] == ["verify"]


async def test_a_report_ahead_of_the_reverse_table_waits() -> None:
    """Rule 2: "not known here" is only an answer when the table has passed the moment of the question."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await c.world.database.write(lambda k: leases.set_setting(k, "placements_sequence", "0"))
    await c.world.database.write(lambda k: k.execute(sa.delete(schema.placements)))
    await c.queue.report_bad([BadChunk(chunk, c.device("a"), "missing")])
    assert (await c.repair.mend(0))[0] == 0
    await follow_feed(c.world)
    await c.pass_time(3, "a", "b", "c")
    assert (await c.repair.mend(0))[0] == 1
    c.stores["a"].held[c.device("a")].discard(chunk)
    await c.settle()
    assert len(await c.homes(chunk)) == 2


async def test_drain_empties_a_server_without_going_below_n_plus_1() -> None:
    """Every copy is elsewhere before the drained one is deleted, and then commits refuse the device."""
    c = await new_cluster("a", "b", "c")
    chunks = [await c.put(f"k{i}", "a", "b") for i in range(6)]
    await c.drains.drain("a")
    assert not c.world.cluster.view.can_place(c.world.cluster.view.devices[c.device("a")])
    await c.settle()
    for chunk in chunks:
        assert await c.homes(chunk) == {"b", "c"}
    assert not c.stores["a"].held[c.device("a")]
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"
    assert c.world.cluster.view.servers[c.stores["a"].server.id].state == "drained"
    await c.drains.undrain("a")
    assert c.world.cluster.view.can_place(c.world.cluster.view.devices[c.device("a")])


async def test_rows_left_behind_in_the_reverse_table_do_not_keep_a_device_from_being_drained() -> None:
    """A copy that moves while its version is superseded leaves its old row: the device looked never empty."""
    c = await new_cluster("a", "b", "c")
    await c.put("k1", "a", "b")
    chunk = await c.put("k2", "b", "c")

    def leave_rows(k: leases.Connection) -> None:
        row = k.execute(sa.select(schema.placements).where(schema.placements.c.chunk_id == chunk)).mappings().first()
        assert row is not None
        stale = dict(row, device_id=c.device("a"))
        k.execute(sa.insert(schema.placements), [stale, dict(stale, chunk_id=bytes(15) + b"x", key="gone")])

    await c.world.database.write(leave_rows)
    await c.drains.drain("a")
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"
    assert await c.homes(chunk) == {"b", "c"}


async def test_a_drain_that_would_break_the_promise_is_refused() -> None:
    """Two copies need two servers."""
    c = await new_cluster("a", "b")
    with pytest.raises(ConflictError) as caught:
        await c.drains.drain("a")
    assert caught.value.code == "not-enough-servers"


async def test_an_empty_device_is_drained_only_when_the_reverse_table_has_caught_up() -> None:
    """Rule 11: a commit that came just before must be seen, also when nobody has entered it in the table yet."""
    c = await new_cluster("a", "b", "c")
    await c.put("k", "b", "c")
    await c.drains.drain("a")
    late = await c.put("late", "a", "b", is_indexed=False)
    await c.drains.step(0)
    assert c.world.cluster.view.devices[c.device("a")].state == "draining"
    assert c.drains.progress[c.device("a")].waits_for == "chunks"
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"
    assert await c.homes(late) == {"b", "c"}


async def test_a_drain_ends_under_writers_that_never_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """R20: between any two transactions somebody commits; the feed's head then always runs ahead of the reverse table
    and a drain that waits for the two to meet waits for ever."""
    c = await new_cluster("a", "b", "c")
    moved = await c.put("k", "a", "b")
    written: list[bytes] = []
    plain = c.world.database.batch

    async def batch(fn: Any, **named: Any) -> Any:
        result = await plain(fn, **named)
        written.append(await c.put(f"more{len(written)}", "b", "c", is_indexed=False))
        return result

    monkeypatch.setattr(c.world.database, "batch", batch)
    await c.drains.drain("a")
    for _ in range(30):
        await c.repair.step(0)
        await c.drains.step(0)
        for name in ("a", "b", "c"):
            await c.stores[name].turn(c)
        if c.world.cluster.view.devices[c.device("a")].state == "drained":
            break
    assert c.world.cluster.view.devices[c.device("a")].state == "drained", c.drains.progress
    assert await c.homes(moved) == {"b", "c"} and len(written) > 1


async def test_a_drain_waits_for_long_uploads_that_began_before_it_but_not_for_ever() -> None:
    """A stream of many chunks cannot be sent again: what it stored before the drain is let in, within bounds."""
    c = await new_cluster("a", "b", "c")
    begun = c.world.clock.now_ms().to_bytes(6, "big") + b"stream"
    young = (c.world.clock.now_ms() + 60_000).to_bytes(6, "big") + b"young!"

    def renew(until_ms: int) -> Any:
        return lambda k: operations.lease(k, [begun, young], until_ms=until_ms)

    await c.world.database.write(renew(c.world.clock.now_ms() + 300_000))
    await c.drains.drain("a")
    await c.settle()
    assert c.drains.progress[c.device("a")].waits_for == "uploads under way"
    await c.pass_time(500, "a", "b", "c")
    await c.world.database.write(renew(c.world.clock.now_ms() + 300_000))
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "draining"
    await c.pass_time(101, "a", "b", "c")
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"


async def test_a_drain_does_not_wait_for_uploads_that_began_after_it() -> None:
    """They were given other devices; under many long uploads a drain would else take its longest time."""
    c = await new_cluster("a", "b", "c")
    young = (c.world.clock.now_ms() + 60_000).to_bytes(6, "big") + b"young!"
    until_ms = c.world.clock.now_ms() + 3_000_000
    await c.world.database.write(lambda k: operations.lease(k, [young], until_ms=until_ms))
    await c.drains.drain("a")
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"


async def test_a_late_result_of_another_holder_is_ignored() -> None:
    """Rule 4: a job leased anew has a new token; the old holder's result must not change the row."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.repair.step(0)
    c.stores["c"].slots = 1
    first = (await c.stores["c"].server.beat(slots=1)).jobs[0]
    await c.pass_time(61, "b", "c")
    assert await c.queue.upkeep() == 1
    await c.pass_time(2, "b", "c")
    second = (await c.stores["c"].server.beat(slots=1)).jobs[0]
    assert second.id == first.id and second.token == first.token + 1
    late = await c.stores["c"].server.beat(reports=[JobReport(first.id, first.token, False, progress=0.5)])
    assert late.cancelled == [first.id]
    await c.stores["c"].server.beat(reports=[JobReport(first.id, first.token, True, receipt=b"x")])
    assert await c.homes(chunk) == {"a", "b"}
    report_ = await c.stores["c"]._do(c, second)
    await c.stores["c"].server.beat(reports=[report_])
    assert await c.homes(chunk) == {"b", "c"}


async def test_a_copy_of_a_chunk_that_was_deleted_meanwhile_is_collected() -> None:
    """Rule 4: the result of a copy counts only if the chunk is still referenced; else the copy must not stay."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.repair.step(0)
    job = (await c.stores["c"].server.beat(slots=1)).jobs[0]
    await c.delete("k")
    result = await c.stores["c"]._do(c, job)
    await c.stores["c"].server.beat(reports=[result])
    assert chunk in c.stores["c"].held[c.device("c")]
    await c.pass_time(1000, "b", "c")
    await c.settle("b", "c")
    assert chunk not in c.stores["c"].held[c.device("c")]


async def test_a_job_that_always_fails_is_given_up_visibly() -> None:
    """Endless retries would hide a broken disk."""
    c = await new_cluster("a", "b", "c")
    await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.repair.step(0)
    c.stores["c"].refuse = "device-failed"
    for _ in range(14):
        await c.stores["c"].turn(c)
        await c.pass_time(700, "b", "c")
    failed = await c.world.database.read(lambda k: workload.listing(k, state="failed"))
    assert [(row.code, row.attempts) for row in failed] == [("device-failed", 10)]
    c.stores["c"].refuse = ""
    assert await c.world.database.write(lambda k: jobs.retry_failed(k)) == 1
    await c.settle("b", "c")


async def test_paused_work_waits() -> None:
    """Operators can stop repair or a kind of job, and it stays stopped after a restart."""
    c = await new_cluster("a", "b", "c")
    await c.put("k", "a", "b")
    await c.pass_time(45, "b", "c")
    await c.repair.step(0)
    switches = c.switches
    await switches.set("repair", paused=True)
    assert not (await c.stores["c"].server.beat(slots=4)).jobs
    await switches.load()
    assert switches.is_paused("repair")
    await switches.set("repair", paused=False)
    assert (await c.stores["c"].server.beat(slots=4)).jobs


async def test_garbage_is_collected_after_fifteen_minutes_unless_pinned() -> None:
    """Readers that looked an object up before it was overwritten still get its bytes."""
    c = await new_cluster("a", "b")
    free, held = await c.put("k1", "a", "b"), await c.put("k2", "a", "b")
    await c.delete("k1")
    await c.delete("k2")
    until_ms = c.world.clock.now_ms() + 2_000_000
    await c.world.database.write(lambda k: k.execute(sa.insert(schema.pins).values(chunk_id=held, until_ms=until_ms)))
    await c.pass_time(14 * 60, "a", "b")
    await c.settle()
    assert free in c.held_on(c.device("a"))
    await c.pass_time(2 * 60, "a", "b")
    await c.settle()
    assert free not in c.held_on(c.device("a")) and free not in c.held_on(c.device("b"))
    assert held in c.held_on(c.device("a"))
    await c.pass_time(20 * 60, "a", "b")
    await c.settle()
    assert held not in c.held_on(c.device("a"))
    kinds = [job.kind for store in c.stores.values() for job in store.jobs_seen]
    assert kinds == ["delete"] * 4


async def test_nothing_is_deleted_by_a_catalog_older_than_what_a_device_has_seen() -> None:
    """Rule 1: a catalog restored from a backup would take everything newer for garbage."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    await c.delete("k")
    c.stores["a"].server.devices = [report(1, seen_sequence=10_000)]
    await c.pass_time(1000, "a", "b")
    await c.settle()
    assert chunk in c.held_on(c.device("a")) and "10000" in c.collection.why_idle
    c.stores["a"].server.devices = [report(1)]
    await c.pass_time(5, "a", "b")
    await c.settle()
    assert chunk in c.held_on(c.device("a")), "the bar is durable: only a rebuild lifts it"
    await c.guard.lift()
    await c.settle()
    assert chunk not in c.held_on(c.device("a"))


async def test_chunks_of_an_upload_that_never_committed_are_orphans_only_after_it_is_condemned() -> None:
    """Rule 3: between the answer "delete" and the deletion no commit of it may succeed."""
    c = await new_cluster("a", "b")
    await c.put("k", "a", "b")
    orphan = c.world.clock.now_ms().to_bytes(6, "big") + b"orphan" + bytes(4)
    c.stores["a"].held[c.device("a")].add(orphan)
    await follow_feed(c.world)
    await c.inventories.schedule(every_ms=0)
    await c.stores["a"].turn(c)
    assert orphan in c.held_on(c.device("a")) and c.inventories.done.later == 1
    await c.pass_time(16 * 60, "a", "b")
    await c.inventories.schedule(every_ms=0)
    await c.stores["a"].turn(c)
    assert orphan not in c.held_on(c.device("a")) and c.inventories.done.orphans == 1
    condemned = await c.world.database.read(lambda k: k.execute(sa.select(schema.condemned_uploads.c.upload_id)).all())
    assert [bytes(row[0]) for row in condemned] == [orphan[:12]]


async def test_a_leased_upload_is_never_condemned() -> None:
    """An upload of hours renews its lease; its chunks must be left alone."""
    c = await new_cluster("a", "b")
    chunk = c.world.clock.now_ms().to_bytes(6, "big") + b"longup" + bytes(4)
    c.stores["a"].held[c.device("a")].add(chunk)
    await c.pass_time(16 * 60, "a", "b")
    until_ms = c.world.clock.now_ms() + 600_000
    await c.world.database.write(
        lambda k: k.execute(sa.insert(schema.upload_leases).values(upload_id=chunk[:12], until_ms=until_ms))
    )
    await c.inventories.schedule(every_ms=0)
    await c.stores["a"].turn(c)
    assert chunk in c.held_on(c.device("a"))


async def test_many_orphans_wait_for_an_operators_word() -> None:
    """A catalog that suddenly does not know a large part of a device is more likely wrong than the device."""
    c = await new_cluster("a", "b")
    at = c.world.clock.now_ms().to_bytes(6, "big")
    many = {at + i.to_bytes(6, "big") + bytes(4) for i in range(1500)}
    c.stores["a"].held[c.device("a")] = set(many)
    await c.pass_time(16 * 60, "a", "b")
    await c.inventories.schedule(every_ms=0)
    await c.stores["a"].turn(c)
    assert len(c.held_on(c.device("a"))) == 500 and c.guard.asking == {c.device("a"): 500}
    again = DeletionGuard(c.world.database, c.world.cluster)
    assert await again.spend(c.device("a"), [bytes(16)]) == [], "a restart begins no new day"
    await again.agree()     # and another process hears the word
    await c.inventories.schedule(every_ms=0)
    await c.stores["a"].turn(c)
    assert not c.held_on(c.device("a"))


async def test_a_missing_copy_found_by_an_inventory_is_made_again() -> None:
    """A disk that lost a file must not count as a copy."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    c.stores["a"].held[c.device("a")].clear()
    await c.inventories.schedule(every_ms=0)
    await c.settle()
    assert len(await c.homes(chunk)) == 2 and c.inventories.done.missing == 1


async def test_a_scrub_pass_checks_every_copy_and_has_bad_ones_repaired() -> None:
    """Rot in copies that nobody reads is found."""
    c = await new_cluster("a", "b", "c")
    chunks = [await c.put(f"k{i}", "a", "b") for i in range(20)]
    c.stores["b"].bad.update(chunks[:3])
    await c.scrub.start()
    await c.settle(rounds=60)
    status = await c.scrub.status()
    assert not status.is_running and status.checked == status.total == 40
    for chunk in chunks:
        assert len(await c.homes(chunk)) == 2
        assert all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_a_scrub_pass_ordered_while_nobody_answers_waits_for_them() -> None:
    """Just after a start of metadata it would check nothing, and say that it is over."""
    c = await new_cluster("a", "b")
    chunk = await c.put("k", "a", "b")
    c.stores["b"].bad.add(chunk)
    await c.pass_time(60)
    assert not any(is_alive(c.world.cluster.view, d) for d in c.world.cluster.view.devices)
    assert await c.scrub.start() == sorted(c.world.cluster.view.devices)
    await c.pass_time(2, "a", "b")
    await c.settle("a", "b", rounds=60)
    status = await c.scrub.status()
    assert not status.is_running and status.checked == status.total == 2
    assert all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_a_scrub_pass_waits_for_who_does_not_answer_yet_and_ends_without_who_never_will() -> None:
    """Ordered when one server had answered of all, it checked that one alone (simulation seed 1, short)."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b")
    c.stores["b"].bad.add(chunk)
    await c.pass_time(60, "a")
    assert not is_alive(c.world.cluster.view, c.device("b"))
    assert await c.scrub.start() == sorted(c.world.cluster.view.devices)
    await c.pass_time(2, "a", "b")
    await c.settle("a", "b", rounds=60)
    assert not (await c.scrub.status()).is_running      # c never came; it holds nothing
    assert all(r.state == 0 for r in (await c.replicas(chunk)).values())


async def test_the_audit_lets_an_extra_home_go_and_makes_a_missing_one() -> None:
    """Whatever no event announced is found in the end; two homes never stay on one server."""
    c = await new_cluster("a", "b", "c")
    extra, alone = await c.put("k1", "a", "b", "c"), await c.put("k2", "a")
    for _ in range(4):
        await c.audit.step(0)
    assert sum(r.state == DELETING for r in (await c.replicas(extra)).values()) == 1
    await c.settle()
    assert len(await c.homes(extra)) == 2 == len(await c.replicas(extra))
    assert len(await c.homes(alone)) == 2


async def test_a_bad_copy_beyond_the_wanted_ones_is_dropped_and_not_replaced() -> None:
    """Its entry stayed in the row for ever (seed 107): no job wanted to replace it and nobody else looked at it."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b", "c")
    c.stores["a"].held[c.device("a")].discard(chunk)
    await c.queue.report_bad([BadChunk(chunk, c.device("a"), "bad-block")])
    await c.repair.mend(0)
    assert set(await c.replicas(chunk)) == {c.device("b"), c.device("c")}
    await c.settle()
    assert all(job.kind != "copy" for store in c.stores.values() for job in store.jobs_seen)


async def test_a_replacement_that_is_no_longer_wanted_takes_the_bad_copy_with_it() -> None:
    """A server comes back between plan and hand-out: enough homes again, but the bad entry is still in the row."""
    c = await new_cluster("a", "b", "c", "d")
    chunk = await c.put("k", "a", "b", "c")
    await c.pass_time(25, "a", "b", "d")
    c.stores["a"].held[c.device("a")].discard(chunk)
    await c.queue.report_bad([BadChunk(chunk, c.device("a"), "bad-block")])
    await c.repair.mend(0)
    assert (await c.replicas(chunk))[c.device("a")].state == BAD
    await c.pass_time(2, "a", "b", "c", "d")
    await c.inventories.schedule(every_ms=1 << 50)
    await c.stores["c"].turn(c)     # reconciled: it counts again
    await c.settle()
    assert await c.homes(chunk) == {"b", "c"} and len(await c.replicas(chunk)) == 2
    assert all(job.kind != "copy" for store in c.stores.values() for job in store.jobs_seen)


async def test_the_audit_drops_bad_entries_that_nothing_else_drops() -> None:
    """The slow pass is what everything else rests on."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b", "c")

    def spoil(k: leases.Connection) -> None:
        located = c.book.locate(k, c.device("a"), chunk)
        assert located is not None
        replicas = [r._replace(state=BAD) if r.device == c.device("a") else r for r in located.chunk.replicas]
        c.book.rewrite(k, located, replicas, at_ms=0)

    await c.world.database.write(spoil)
    for _ in range(4):
        await c.audit.step(0)
    assert set(await c.replicas(chunk)) == {c.device("b"), c.device("c")}


async def test_a_queued_deletion_does_not_go_out_when_the_copy_is_missed_by_then() -> None:
    """Rule 4 once more at the hand-out: the homes it rested on rotted since. The copy that was to go is what repair
    reads from, and goes when there are enough again."""
    c = await new_cluster("a", "b", "c")
    chunk = await c.put("k", "a", "b", "c")
    for _ in range(4):
        await c.audit.step(0)
    (doomed,) = [d for d, r in (await c.replicas(chunk)).items() if r.state == DELETING]
    for name in ("a", "b", "c"):
        if c.device(name) != doomed:
            c.stores[name].held[c.device(name)].discard(chunk)
            await c.queue.report_bad([BadChunk(chunk, c.device(name), "bad-block")])
    await c.settle()
    assert chunk in c.held_on(doomed)
    for _ in range(12):     # one copy after the other, then the one too many
        await c.pass_time(3, "a", "b", "c")
        await c.audit.step(0)
        await c.settle()
    replicas = await c.replicas(chunk)
    assert len(await c.homes(chunk)) == len(replicas) == 2 and all(r.state == 0 for r in replicas.values())


async def test_shared_chunks_keep_no_more_homes_than_a_rule_asks_for() -> None:
    """They kept every home they ever got: a server that was away and came back left three for good."""
    policy = {"rules": parse_toml("version = 1")}
    c = await new_cluster("a", "b", "c")
    copies = Copies(2, policy=lambda: policy["rules"], now=lambda: 0.0)
    c.queue.replicas.copies_of = copies.of_chunk
    chunk = await c.put("k", "a", "b", "c", shared=True)
    policy["rules"] = parse_toml("version = 1\n[[rules]]\nname = \"careful\"\ncopies = 3\n")
    for _ in range(4):
        await c.audit.step(0)
    await c.settle()
    assert len(await c.homes(chunk)) == 3, "one of the versions that share it may be under that rule"
    policy["rules"] = parse_toml("version = 1")
    for _ in range(4):
        await c.audit.step(0)
    await c.settle()
    assert len(await c.homes(chunk)) == 2 == len(await c.replicas(chunk))


async def test_a_device_that_became_read_only_can_be_drained_and_burns_no_attempts() -> None:
    """It serves reads, so its chunks are copied from it; nothing can be deleted on it, and a drain that waits for that
    never ends. Jobs that could only fail wait, and go at once when it is writable again (seed 3001)."""
    c = await new_cluster("a", "b", "c")
    chunk, old = await c.put("k", "a", "b"), await c.put("old", "a", "b")
    await c.delete("old")
    await c.pass_time(1000, "a", "b", "c")
    c.stores["a"].server.devices = [report(1, state="read-only")]
    await c.pass_time(1, "a", "b", "c")
    await c.collection.step(0)
    await c.drains.drain("a")
    await c.settle()
    assert c.world.cluster.view.devices[c.device("a")].state == "drained"
    assert await c.homes(chunk) == {"b", "c"}
    assert {chunk, old} <= c.held_on(c.device("a")) and not c.stores["a"].jobs_seen
    c.stores["a"].server.devices = [report(1)]
    await c.pass_time(1, "a", "b", "c")
    await c.settle()
    assert old not in c.held_on(c.device("a"))
    await c.inventories.schedule(every_ms=0)
    await c.settle()
    assert not c.held_on(c.device("a"))
