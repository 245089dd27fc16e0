"""The promoter's tick over a catalog in memory: what it queues, what it takes back, what it never touches."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metadata.catalog.schema import CHANGE_PUT
from metadata.promoter.heat import HeatGatherer
from metadata.services.names.writes import Committed
from metadata.services.tiering import service
from metadata.services.tiering.recorder import Recorder
from metadata.services.tiering.whatif import WhatIf
from tests.kit.names_world import ADMIN, NamesWorld
from tests.unit.cluster.cluster_kit import follow_feed
from tests.unit.cluster.tiering_rig import new_rig
from tierstore.clock import ManualClock
from tierstore.errors import ConflictError
from tierstore.policy.heat import pack_delta
from tierstore.policy.rules import Policy
from tierstore.policy.simulate import Fleet, replay
from tierstore.policy.trace import parse_csv
from tierstore.ticket import ROLE_CACHE, ROLE_HOME
from tierstore.wire.names import LookupItem

MIB = 1 << 20


def test_a_chunk_that_is_read_gets_a_copy_on_the_fast_device_and_keeps_its_homes() -> None:
    """Promotion is a copy: losing every fast device loses nothing."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        homes = await rig.cluster.homes(chunk)
        rig.read(chunk, 5)
        await rig.tick()
        assert await rig.cached(chunk) == {rig.fast}
        assert chunk in rig.cluster.held_on(rig.fast)
        assert await rig.cluster.homes(chunk) - {"f"} == homes == {"a", "b"}
        await rig.tick()
        assert rig.tiering.totals.promotions == 1 and len(rig.tiering.copies) == 0
        assert [d.action for d in rig.tiering.decisions.of(chunk)] == ["promote"]

    asyncio.run(run())


def test_a_copy_that_finds_its_device_full_is_tried_again_while_room_is_made() -> None:
    """What it displaces is deleted and compacted within seconds; given up at once, a full tier hardly turns over."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.cluster.stores["f"].refuse = "device-full"
        rig.read(chunk, 5)
        await rig.tick()
        await rig.tick()
        assert len(rig.tiering.copies) == 1 and rig.tiering.totals.failed == 0
        rig.cluster.stores["f"].refuse = ""
        await rig.tick()
        assert await rig.cached(chunk) == {rig.fast}
        cold = await rig.cluster.put("c", "a", "b", size=MIB)
        rig.cluster.stores["f"].refuse = "device-full"
        rig.read(cold, 5)
        for _ in range(12):
            await rig.tick()
        assert len(rig.tiering.copies) == 0 and rig.tiering.totals.failed == 1

    asyncio.run(run())


def test_what_if_forecasts_what_the_service_then_does() -> None:
    """An operator buys a fast device by it: the same requests must find the same copies in both."""

    async def run() -> None:
        rig = await new_rig(capacity=4 * MIB)
        size, rng = 200_000, random.Random(5)
        chunks = [await rig.cluster.put(f"k{n}", "a", "b", size=size) for n in range(60)]
        requests = [(tick, min(int(rng.paretovariate(0.7)), 60) - 1) for tick in range(40) for _ in range(12)]
        hits = 0
        for tick in range(40):
            fast = {n for n, chunk in enumerate(chunks) if await rig.cached(chunk)}
            wanted = [n for at, n in requests if at == tick]
            hits += sum(n in fast for n in wanted)
            for n in sorted(set(wanted)):
                rig.read(chunks[n], wanted.count(n))
            await rig.tick()
        rows = ["time,key,size,op", *(f"{tick * 10 + 1},{n},{size},GET" for tick, n in requests)]
        forecast = replay(parse_csv(rows), rig.policy, Fleet({"ssd": 4 * MIB})).hit_ratio["ssd"]
        assert 0.3 < forecast < 1.0
        assert abs(forecast - hits / len(requests)) < 0.03, (forecast, hits / len(requests))

    asyncio.run(run())


def test_copies_read_first_from_the_server_that_clients_read_from() -> None:
    """It has the bytes in memory: another server would go to its disk for them."""

    async def run() -> None:
        rig = await new_rig()
        for server in ("a", "b"):
            chunk = await rig.cluster.put(f"of-{server}", "a", "b", size=MIB)
            rig.read(chunk, 5, server=server)
            await rig.tick()
            job = rig.cluster.stores["f"].jobs_seen[-1]
            assert job.sources[0].server == rig.cluster.stores[server].server.id

    asyncio.run(run())


def test_a_hotter_chunk_takes_the_place_of_the_lowest_and_no_home_copy_is_let_go() -> None:
    """The one thing a tier must never do is to lose the copies that count."""

    async def run() -> None:
        rig = await new_rig(capacity=10 * MIB)
        chunks = [await rig.cluster.put(f"k{n}", "a", "b", size=4 * MIB) for n in range(3)]
        for count, chunk in zip((2, 4), chunks[:2], strict=True):
            rig.read(chunk, count)
        await rig.tick()
        assert await rig.cached(chunks[0]) == await rig.cached(chunks[1]) == {rig.fast}
        rig.read(chunks[2], 50)
        await rig.tick()
        await rig.tick()
        assert await rig.cached(chunks[0]) == set(), "the coldest went"
        assert await rig.cached(chunks[1]) == await rig.cached(chunks[2]) == {rig.fast}
        assert rig.cluster.held_on(rig.fast) == set(chunks[1:])
        deletes = [j for j in rig.cluster.stores["f"].jobs_seen if j.kind == "delete"]
        assert len(deletes) == 1 and deletes[0].discard, "its room is free at once"
        for chunk in chunks:
            assert {d for d, r in (await rig.cluster.replicas(chunk)).items() if r.role == ROLE_HOME} == {
                rig.cluster.device("a"), rig.cluster.device("b")
            }  # fmt: skip

    asyncio.run(run())


def test_a_copy_that_cannot_be_made_gives_its_room_back_and_is_decided_anew() -> None:
    """A full or erring fast device fails nothing and leaves no job behind."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.cluster.stores["f"].refuse = "device-failed"
        rig.read(chunk, 5)
        await rig.tick()
        await rig.tick()
        assert await rig.cached(chunk) == set() and await rig.counts() == []
        assert rig.tiering.totals.failed == 1
        assert rig.tiering.planner is not None and rig.tiering.planner.device_bytes(rig.fast) == 0
        rig.cluster.stores["f"].refuse = ""
        rig.read(chunk, 1)
        await rig.tick()
        assert await rig.cached(chunk) == {rig.fast}

    asyncio.run(run())


def test_a_tick_under_an_old_epoch_writes_nothing() -> None:
    """A holder that slept past its lease must not act beside the new one (rule 15)."""

    async def run() -> None:
        rig = await new_rig()
        world = rig.cluster.world
        epoch = await world.lease.renew()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.read(chunk, 5)
        with pytest.raises(ConflictError):
            await rig.tick(epoch=epoch + 1)
        assert await rig.counts() == [] and rig.tiering.planner is not None
        assert rig.tiering.planner.device_bytes(rig.fast) == 0, "what was not queued is not resident"

    asyncio.run(run())


def test_a_new_holder_learns_from_the_catalog_what_is_resident() -> None:
    """A restart in the middle of a tick must neither forget copies nor make them twice."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.read(chunk, 5)
        await rig.tick()
        await rig.tiering.begin(7)
        assert rig.tiering.planner is not None and rig.tiering.planner.devices_of(chunk) == ()
        while not rig.walk.is_complete:
            await rig.walk.step(7)
        assert rig.tiering.planner.devices_of(chunk) == (rig.fast,)

    asyncio.run(run())


def test_a_deleted_object_is_forgotten_with_its_heat() -> None:
    """Else the fast tier fills with what nobody can read."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.read(chunk, 5)
        await rig.tick()
        await rig.cluster.delete("k")
        await rig.tick()
        assert rig.tiering.planner is not None and rig.tiering.planner.devices_of(chunk) == ()
        assert rig.heat.heat_per_hour(chunk) == 0.0

    asyncio.run(run())


def test_a_tick_takes_notice_of_all_that_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page a tick is overtaken by a client that deletes quickly: the picture filled with chunks that are no more."""

    async def run() -> None:
        monkeypatch.setattr(service, "GARBAGE_PAGE_ROWS", 2)
        rig = await new_rig(capacity=100 * MIB)
        chunks = [await rig.cluster.put(f"k{n}", "a", "b", size=MIB) for n in range(7)]
        for chunk in chunks:
            rig.read(chunk, 5)
        await rig.tick()
        assert all(rig.heat.heat_per_hour(chunk) for chunk in chunks)
        for n in range(7):
            await rig.cluster.delete(f"k{n}")
        await rig.tick()
        assert [chunk for chunk in chunks if rig.heat.heat_per_hour(chunk)] == []
        assert [chunk for chunk in chunks if rig.tiering.decisions.of(chunk)] == []

    asyncio.run(run())


def test_never_lets_copies_go_at_the_next_tick_though_nobody_reads_them() -> None:
    """A rule must not wait for a reader to take effect."""

    async def run() -> None:
        rig = await new_rig()
        chunk = await rig.cluster.put("k", "a", "b", size=MIB)
        rig.read(chunk, 5)
        await rig.tick()
        rig.set_policy({"version": 1, "rules": [{"name": "no", "mode": "never"}]})
        await rig.tick()
        assert await rig.cached(chunk) == set()

    asyncio.run(run())


def test_reads_cause_no_statement_and_a_large_delta_is_merged_in_half_a_second() -> None:
    """Ceph's and Gluster's tiers kept a database in the read path; here heat is only in memory."""

    async def run() -> None:
        rig = await new_rig()
        entries = pack_delta([(random.Random(n).randbytes(16), 1.0) for n in range(100_000)])
        writes = rig.cluster.world.cluster.sequence
        began = time.thread_time()      # what it costs, also on a machine that is busy with other things
        assert rig.heat.merge(1, 1, 1, entries) == 1
        assert time.thread_time() - began < 0.5
        assert rig.heat.merge(1, 1, 1, entries) == 1 and rig.heat.entries_merged == 100_000, "a repeat is not counted"
        await rig.cluster.world.cluster.refresh()
        assert rig.cluster.world.cluster.sequence == writes and await rig.counts() == []

    asyncio.run(run())


def test_heat_and_history_survive_a_restart(tmp_path: Path) -> None:
    """At most one interval is lost, and what-if still has its day of history."""

    async def run() -> None:
        clock = ManualClock()
        heat, recorder = HeatGatherer(clock, tmp_path / "heat.bin"), Recorder(clock, tmp_path)
        chunk = bytes(16)
        heat.merge(1, 1, 1, pack_delta([(chunk, 9.0)]))
        await heat.step(0)
        heat.merge(1, 1, 2, pack_delta([(chunk, 1.0)]))      # after the snapshot: lost by a kill
        for n in range(100):
            recorder.read("bkt", f"k{n % 7}", 1000)
        kept = await recorder.segments()
        recorder.read("bkt", "late", 5)                      # not flushed
        again, reloaded = HeatGatherer(clock, tmp_path / "heat.bin"), Recorder(clock, tmp_path)
        await again.load()
        await reloaded.load()
        assert again.heat_per_hour(chunk) == pytest.approx(heat.heat_per_hour(chunk) * 0.9)
        assert len(kept) == 1 and await reloaded.segments() == kept
        (tmp_path / "000000000000000-00000000.history").write_bytes(b"rot")
        damaged = Recorder(clock, tmp_path)
        await damaged.load()
        assert await damaged.segments() == kept

    asyncio.run(run())


def test_an_export_goes_over_segments_and_ends_the_asked_hours_before_the_last_request() -> None:
    """Operators replay it elsewhere: a request missing at the seam of two segments, or one of an hour that was not
    asked for, is another workload."""

    async def run() -> None:
        clock = ManualClock()
        recorder = Recorder(clock, None)
        whatif = WhatIf(recorder, policy=Policy, fleet=lambda: Fleet({}))
        assert await whatif.history_csv(1.0) == "time,key,size,op\n"
        for name in ("long ago", "kept", "with, comma"):
            recorder.read("bkt", name, 10)
            clock.advance(1800)
        await recorder.flush(close=True)
        recorder.committed([Committed(CHANGE_PUT, "bkt", "new\nline", 1, 20)])
        assert len(await recorder.segments()) == 2
        assert (await whatif.history_csv(1.0)).splitlines() == [
            "time,key,size,op", "0.000,bkt/kept,10,GET", "3600.000,bkt/new line,20,PUT",
        ]  # fmt: skip

    asyncio.run(run())


def test_reads_of_parts_are_recorded_by_their_share(tmp_path: Path) -> None:
    """A thousand reads of a footer are not a thousand reads of the file: what-if would serve gigabytes that nobody
    asked for, earn budget by them, and call every chunk of it hot."""

    async def run() -> None:
        world = await NamesWorld.open(f"sqlite:///{tmp_path}/catalog.db")
        recorder = Recorder(world.clock, None)
        world.lookups.on_read = recorder.read
        try:
            await world.buckets.create("bbb", ADMIN)
            assert (await world.put("k")).code == ""
            size = (await world.lookups.lookup(LookupItem("bbb", "k"), ADMIN)).size
            assert recorder.requests == 1
            for _ in range(8):
                await world.lookups.lookup(LookupItem("bbb", "k", first=size // 2), ADMIN)
                await world.lookups.lookup(LookupItem("bbb", "k", length=size // 4), ADMIN)
                await world.lookups.lookup(LookupItem("bbb", "k", length=1), ADMIN)     # a HEAD
                await world.lookups.lookup(LookupItem("bbb", "k", first=size + 5), ADMIN)
            assert recorder.requests - 1 == pytest.approx(8 * (size - size // 2 + size // 4) / size, abs=1)
            before = recorder.requests
            for _ in range(3):
                await world.lookups.lookup(LookupItem("bbb", "k", length=10 * size), ADMIN)
            assert recorder.requests == before + 3
        finally:
            await world.close()

    asyncio.run(run())


def test_what_cannot_be_recorded_any_more_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing takes what waits (a disk that hangs), it must not fill the memory, nor be lost unseen."""
    monkeypatch.setattr("metadata.services.tiering.recorder.PENDING_NAME_BYTES_MAX", 1000)

    async def run() -> None:
        recorder = Recorder(ManualClock(), None)
        for _ in range(30):
            recorder.read("bkt", "k" * 96, 1)
        assert (recorder.requests, recorder.dropped) == (10, 20)
        assert await recorder.flush() == 10
        recorder.read("bkt", "k", 1)
        assert (recorder.requests, recorder.dropped) == (11, 20)

    asyncio.run(run())


def test_landed_homes_are_copied_home_and_stay_as_cache_copies() -> None:
    """land-fast: full speed for the writer, N+1 all the time, home in the end."""

    async def run() -> None:
        rig = await new_rig()
        await rig.cluster.add_server("c", 5)
        chunk = await rig.cluster.put("k", "a", "f", size=MIB)
        for _ in range(4):
            await rig.cluster.pass_time(1.0, *rig.cluster.stores)
            await rig.walk.step(0)
            exposed = sum(e.bytes for e in rig.walk.exposed.values())
            for store in rig.cluster.stores.values():
                await store.turn(rig.cluster)
            await follow_feed(rig.cluster.world)
            live = [r for r in (await rig.cluster.replicas(chunk)).values() if r.role == ROLE_HOME and r.state == 0]
            assert len(live) >= 2
        replicas = await rig.cluster.replicas(chunk)
        tiers = {d: rig.cluster.world.cluster.view.devices[d].tier for d in replicas}
        assert sorted(tiers[d] for d, r in replicas.items() if r.role == ROLE_HOME) == ["hdd", "hdd"]
        assert replicas[rig.fast].role == ROLE_CACHE and exposed == 0

    asyncio.run(run())


def test_a_burst_goes_home_before_the_walk_over_millions_of_copies_comes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ids stand at the end of the table: with a million copies before them the walk came there after an hour, and
    showed nothing as exposed until then."""
    monkeypatch.setattr("metadata.services.tiering.walk.PAGE", 1)

    async def run() -> None:
        rig = await new_rig()
        await rig.cluster.add_server("c", 5)
        rig.set_policy({"version": 1, "rules": [{"name": "old", "match": {"prefix": "old"}, "home": "ssd"}]})
        for n in range(40):
            await rig.cluster.put(f"old{n}", "a", "f", size=1000)
        while not rig.walk.is_complete:
            await rig.walk.step(0)
        for _ in range(100):
            await rig.cluster.pass_time(10.0, *rig.cluster.stores)
        passes = rig.walk.passes
        await rig.walk.step(0)      # a round begins
        landed = await rig.cluster.put("k", "a", "f", size=MIB)
        await rig.cluster.pass_time(11.0, *rig.cluster.stores)
        for _ in range(3):
            await rig.walk.step(0)
        assert rig.walk.passes == passes, "the round is not over"
        assert [e.bytes for e in rig.walk.exposed.values()] == [MIB]
        for _ in range(4):
            for store in rig.cluster.stores.values():
                await store.turn(rig.cluster)
            await follow_feed(rig.cluster.world)
            await rig.cluster.pass_time(1.0, *rig.cluster.stores)
            await rig.walk.step(0)
        assert rig.walk.passes == passes
        assert (await rig.cluster.replicas(landed))[rig.fast].role == ROLE_CACHE, "its home copies are on slow devices"
        assert [e.bytes for e in rig.walk.exposed.values()] == [0]

    asyncio.run(run())


@pytest.mark.parametrize(("size", "at_once"), [(4_000, 64), (100_000, 16), (MIB, 2)])
def test_small_landed_chunks_go_home_by_the_dozen(size: int, at_once: int) -> None:
    """A server with two free slots gets as many as fill two sequential writes of a megabyte, not two records."""

    async def run() -> None:
        rig = await new_rig()
        cluster = rig.cluster
        await cluster.add_server("c", 5)
        for n in range(240):
            await cluster.put(f"k{n:03}", "c", "f", size=size)
        await cluster.pass_time(1.0, *cluster.stores)
        await rig.walk.step(0)
        given = await cluster.queue.hand_out(cluster.stores["a"].server.id, 2)
        assert (len(given), {job.why for job in given}) == (at_once, {"settle"})
        chunks = [job.chunk for job in given]
        assert chunks == sorted(chunks), "in the order of their writing"

    asyncio.run(run())


def test_draining_yields_to_a_burst_and_catches_up_after_it() -> None:
    """The writer is to have the speed of the fast devices; what it wrote goes home when it is done."""

    async def run() -> None:
        rig = await new_rig()
        await rig.cluster.add_server("c", 5)
        for n in range(100):
            await rig.cluster.put(f"k{n:03}", "c", "f")

        async def queued() -> int:
            await rig.cluster.pass_time(2.0, *rig.cluster.stores)
            await rig.walk.step(0)
            return sum(count.jobs for count in await rig.counts() if count.why == "settle")

        rig.tiering.commits += 10_000
        assert await queued() == 32
        rig.tiering.commits += 10_000
        assert await queued() == 32
        assert await queued() == 100, "the burst is over"

    asyncio.run(run())


def test_the_rate_falls_while_clients_keep_the_servers_busy() -> None:
    """Clients first; but never to nothing, for moving what is hot takes the load away."""

    async def run() -> None:
        rig = await new_rig()
        await rig.tiering.tick(0)
        calm = rig.cluster.queue.rates.promote
        for server in rig.cluster.world.cluster.view.servers.values():
            server.load = 1.0
        await rig.tiering.tick(0)
        assert 0 < rig.cluster.queue.rates.promote <= calm // 9
        assert replace(rig.cluster.queue.rates, promote=calm).of("promote") == calm

    asyncio.run(run())
