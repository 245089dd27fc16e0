"""Jobs under leases: copies, deletes, checks, inventories; and the scrub and upkeep that nobody asks for."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest

from objectd.store.device import Location, OpenChunk
from objectd.work.pace import Pace
from objectd.work.runner import Lease
from tests.kit.devices import LIVE, Buffer, Fault, FaultyDevice, SlowDevice, Wrapper
from tests.unit.objectd.world import World, play
from tierstore.checksum import crc_of, sums_of
from tierstore.clock import LoopClock
from tierstore.errors import ConflictError
from tierstore.names import ChunkId, chunk_id, upload_id
from tierstore.wire.cluster import Job

SMALL, LARGE = 5000, 3 * 1024 * 1024 + 7


def body(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def test_a_copy_from_a_peer_is_durable_and_signed() -> None:
    """Repair and promotion are copies: what arrives must be the chunk, and the receipt name the new place."""

    async def test(world: World) -> None:
        one = await world.start("one", world.device(1))
        two = await world.start("two", world.device(2))
        for size in (SMALL, LARGE):
            data = body(size)
            chunk = await world.put(one, 1, data)
            job = world.job(
                two, "copy", 2, chunk=chunk, chunk_bytes=size, crc32c=crc_of(data),
                sources=[world.source(one, 1, chunk, size)],
            )  # fmt: skip
            report = await world.done(job)
            assert (report.code, report.bytes_moved, report.progress) == ("", size, 1.0)
            receipt = world.receipt(two, report.receipt)
            assert (receipt.chunk, receipt.device, receipt.crc32c) == (chunk, 2, crc_of(data))
            assert await world.get(two, 2, chunk, data) == data
        told = [beat.heat for beat in world.metadata.heartbeats if beat.server == one.standing.server]
        assert not one.heat.distinct and not any(told), "copies are no heat"

    play(test)


def test_a_copy_between_devices_of_one_server_uses_no_network() -> None:
    """A tier move inside a server."""

    async def test(world: World) -> None:
        hdd, ssd = world.device(1, tier="hdd"), world.device(2)
        server = await world.start("one", hdd, ssd)
        data = body(LARGE)
        chunk = await world.put(server, 1, data)
        reads = server.reads.reads_total
        job = world.job(
            server, "copy", 2, chunk=chunk, chunk_bytes=LARGE, crc32c=crc_of(data),
            sources=[world.source(server, 1, chunk, LARGE)],
        )  # fmt: skip
        assert (await world.done(job)).code == ""
        assert ssd.kept[chunk].data == data and server.reads.reads_total == reads

    play(test)


def test_a_fast_copy_that_is_let_go_leaves_the_chunk_in_ram_and_a_deleted_chunk_leaves_it() -> None:
    """Demotion is no sign of coldness for the RAM beside it; bytes of a deleted object are only in the way."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1, tier="hdd"), world.device(2))
        data = body(SMALL)
        chunk = await world.put(server, 1, data)
        copied = world.job(
            server, "copy", 2, chunk=chunk, chunk_bytes=SMALL, crc32c=crc_of(data),
            sources=[world.source(server, 1, chunk, SMALL)],
        )  # fmt: skip
        assert (await world.done(copied)).code == ""
        assert server.memory.admit(chunk, sums_of(data), data)
        assert (await world.done(world.job(server, "delete", 2, batch=chunk, discard=True))).code == ""
        assert server.memory.get(chunk) is not None
        assert (await world.done(world.job(server, "delete", 1, batch=chunk))).code == ""
        assert server.memory.get(chunk) is None

    play(test)


def test_a_copy_goes_on_with_the_next_source_when_one_is_rotten_or_gone() -> None:
    """Promise 4: a bad copy is never copied; it is reported, and the good one used."""

    async def test(world: World) -> None:
        rotten, good = world.device(1), world.device(2)
        one, two = await world.start("one", rotten), await world.start("two", good)
        three = await world.start("three", world.device(3))
        for size in (SMALL, LARGE):
            data, upload = body(size), world.upload()
            chunk = await world.put(one, 1, data, upload=upload)
            await world.put(two, 2, data, upload=upload)
            rotten.flip(chunk, size - 1)
            sources = [world.source(one, 1, chunk, size), world.source(two, 2, chunk, size)]
            job = world.job(three, "copy", 3, chunk=chunk, chunk_bytes=size, crc32c=crc_of(data), sources=sources)
            assert (await world.done(job)).code == ""
            assert await world.get(three, 3, chunk, data) == data
        assert {(b.device, b.why) for b in world.metadata.bad} == {(1, "bad-block")}

    play(test)


def test_a_rotten_copy_of_our_own_is_in_quarantine_before_it_is_told() -> None:
    """Metadata believes what a server says of its own devices: a copy told but not put aside would stay, and the new
    one that is sent there would be taken for a repeat of it."""

    async def test(world: World) -> None:
        hdd, ssd, peer = world.device(1, tier="hdd"), world.device(2), world.device(3)
        server, other = await world.start("one", hdd, ssd), await world.start("two", peer)
        data, upload = body(SMALL), world.upload()
        chunk = await world.put(server, 1, data, upload=upload)
        await world.put(other, 3, data, upload=upload)
        hdd.flip(chunk, 7)
        sources = [world.source(server, 1, chunk, SMALL), world.source(other, 3, chunk, SMALL)]
        job = world.job(server, "copy", 2, chunk=chunk, chunk_bytes=SMALL, crc32c=crc_of(data), sources=sources)
        assert (await world.done(job)).code == ""
        assert chunk in hdd.quarantined and ssd.kept[chunk].data == data
        await world.until(lambda: world.metadata.bad)
        assert [(b.device, b.chunk) for b in world.metadata.bad] == [(1, chunk)]

    play(test)


def test_a_copy_job_replaces_rotten_bytes_that_are_there_already() -> None:
    """A repeat is believed by its sums, not by its bytes: repair must look at what it finds."""

    async def test(world: World) -> None:
        stale, peer = world.device(1), world.device(2)
        one, two = await world.start("one", stale), await world.start("two", peer)
        for size in (SMALL, LARGE):
            data, upload = body(size), world.upload()
            chunk = await world.put(one, 1, data, upload=upload)
            await world.put(two, 2, data, upload=upload)
            stale.flip(chunk, 7)
            about = {"chunk": chunk, "chunk_bytes": size, "crc32c": crc_of(data)}
            job = world.job(one, "copy", 1, sources=[world.source(two, 2, chunk, size)], **about)
            assert (await world.done(job)).code == ""
            assert chunk in stale.quarantined and stale.kept[chunk].data == data

    play(test)


def test_a_copy_job_reads_what_lies_in_the_trash_before_it_is_taken_back() -> None:
    """A copy that was deleted here and is wanted again comes back from the trash: only if its bytes are good, and then
    without being sent (found by seed 4 of the simulation)."""

    async def test(world: World) -> None:
        stale, peer = world.device(1), world.device(2)
        one, two = await world.start("one", stale), await world.start("two", peer)
        for size, is_rotten in ((SMALL, True), (LARGE, True), (SMALL, False)):
            data, upload = body(size), world.upload()
            chunk = await world.put(one, 1, data, upload=upload)
            await world.put(two, 2, data, upload=upload)
            await stale.trash(chunk)
            if is_rotten:
                stale.flip(chunk, 7)
            about = {"chunk": chunk, "chunk_bytes": size, "crc32c": crc_of(data)}
            job = world.job(one, "copy", 1, sources=[world.source(two, 2, chunk, size)], **about)
            assert (await world.done(job)).code == ""
            assert stale.kept[chunk].data == data
            assert stale.kept[chunk].state == LIVE
            assert (chunk in stale.quarantined) == is_rotten

    play(test)


def test_a_copy_without_a_good_source_leaves_nothing() -> None:
    """A half or wrong copy must not even take space."""

    async def test(world: World) -> None:
        rotten, target = world.device(1), world.device(2)
        one, two = await world.start("one", rotten), await world.start("two", target)
        data = body(LARGE)
        chunk = await world.put(one, 1, data)
        rotten.flip(chunk, LARGE - 1)
        job = world.job(
            two, "copy", 2, chunk=chunk, chunk_bytes=LARGE, crc32c=crc_of(data),
            sources=[world.source(one, 1, chunk, LARGE)],
        )  # fmt: skip
        assert (await world.done(job)).code == "bad-block"
        assert not target.kept and target.usage().used_bytes == 0
        lying = world.job(
            two, "copy", 2, chunk=chunk, chunk_bytes=LARGE, crc32c=crc_of(data) ^ 1,
            sources=[world.source(one, 1, chunk, LARGE)],
        )  # fmt: skip
        assert (await world.done(lying)).code == "bad-block"
        assert not target.kept

    play(test)


def test_a_cancelled_copy_leaves_nothing_and_says_so() -> None:
    """Metadata gives jobs up when their reason is gone."""

    async def test(world: World) -> None:
        source, target = world.device(1), world.device(2)
        one, two = await world.start("one", source), await world.start("two", target)
        data = body(LARGE)
        chunk = await world.put(one, 1, data)
        job = world.job(
            two, "copy", 2, chunk=chunk, chunk_bytes=LARGE, crc32c=crc_of(data),
            sources=[world.source(one, 1, chunk, LARGE)], rate_bytes_per_second=100_000,
        )  # fmt: skip
        await world.until(lambda: two.jobs.running)
        await world.until(lambda: any(r.id == job and 0 < r.progress < 1 for r in world.metadata.progress))
        world.metadata.cancelled[two.standing.server] = [job]
        assert (await world.done(job)).code == "cancelled"
        assert two.jobs.running == 0 and not target.kept and target.usage().used_bytes == 0

    play(test)


def test_a_lease_ends_the_job_and_a_renewal_prolongs_it() -> None:
    """A job whose lease is over belongs to somebody else: it must change nothing any more."""

    async def test(world: World) -> None:
        one, two = await world.start("one", world.device(1)), await world.start("two", world.device(2))
        data = body(LARGE)
        chunk = await world.put(one, 1, data)
        about = {
            "chunk": chunk, "chunk_bytes": LARGE, "crc32c": crc_of(data), "rate_bytes_per_second": 400_000,
            "sources": [world.source(one, 1, chunk, LARGE)],
        }  # fmt: skip
        short = world.job(two, "copy", 2, lease_ms=world.clock.now_ms() + 3000, **about)
        assert (await world.done(short)).code == "lease-lost"
        renewed = world.job(two, "copy", 2, lease_ms=world.clock.now_ms() + 3000, **about)
        await world.until(lambda: two.jobs.running)
        world.job(two, "copy", 2, id=renewed, lease_ms=world.clock.now_ms() + 60_000)
        assert (await world.done(renewed)).code == ""

    play(test)


def test_a_job_offered_twice_runs_once_and_an_old_token_never() -> None:
    """Answers are repeated and reordered by networks."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        data = body(SMALL)
        chunk = await world.put(server, 1, data)
        job = world.job(server, "delete", 1, token=5, batch=chunk)
        assert (await world.done(job)).code == ""
        assert device.kept[chunk].state == "trashed"
        await device.restore(chunk)
        world.metadata.reports.clear()
        world.job(server, "delete", 1, id=job, token=4, batch=chunk)
        await asyncio.sleep(5)
        assert not world.metadata.reports and device.kept[chunk].state == "live"

    play(test)


def test_nothing_is_deleted_while_the_catalog_is_behind_or_anothers() -> None:
    """Rule 1: a restored or foreign catalog must not eat data."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        chunk = await world.put(server, 1, body(SMALL))
        await world.until(lambda: device.seen_sequence == 100)
        world.metadata.sequence = 99
        await asyncio.sleep(2)
        behind = world.job(server, "delete", 1, batch=chunk)
        assert (await world.done(behind)).code == "catalog-behind"
        world.metadata.sequence = 200
        device.cluster_id = "another"
        await asyncio.sleep(2)
        foreign = world.job(server, "delete", 1, batch=chunk)
        assert (await world.done(foreign)).code == "catalog-behind"
        assert device.kept[chunk].state == "live" and device.cluster_id == "another"

    play(test)


def test_a_slice_is_not_deleted_after_its_job_lost_the_lease() -> None:
    """The token is checked right before the act: metadata may have given the chunk another life meanwhile (rule 4)."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        chunk = await world.put(server, 1, body(SMALL))
        lease = Lease(Job(id=1, token=1, kind="delete", device=1, lease_ms=0), server.standing, ())
        lease.is_revoked = True
        with pytest.raises(ConflictError) as caught:
            await server.remove.trash(server.slots.slot(1), [chunk], lease)
        assert caught.value.code == "lease-lost"
        assert device.kept[chunk].state == LIVE

    play(test)


def test_deleted_chunks_come_back_by_undelete() -> None:
    """The trash is the last net under a mistake of metadata or of a person."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        data = body(SMALL)
        chunks = [await world.put(server, 1, data) for _ in range(70)]
        world.metadata.sequence = 150
        gone = world.job(server, "delete", 1, batch=b"".join(chunks))
        report = await world.done(gone)
        assert report.code == "" and report.detail == "70 of 70 were here"
        assert device.seen_sequence == 150, "the catalog's sequence is written before it orders a deletion"
        back = world.job(server, "undelete", 1, batch=b"".join(chunks))
        assert (await world.done(back)).code == ""
        assert await world.get(server, 1, chunks[69], data) == data
        missing = world.job(server, "undelete", 1, batch=chunk_id(world.upload(), 0))
        assert (await world.done(missing)).code == "not-in-trash"

    play(test)


def test_verify_quarantines_a_rotten_copy_only_after_a_second_look() -> None:
    """One flip on the way from the disk is no reason to lose a copy; two are."""

    async def test(world: World) -> None:
        memory = world.device(1)
        device = FaultyDevice(memory)
        server = await world.start("one", device)
        data = body(LARGE)
        chunk = await world.put(server, 1, data)
        about = {"chunk": chunk, "chunk_bytes": LARGE, "crc32c": crc_of(data)}
        assert (await world.done(world.job(server, "verify", 1, **about))).code == ""
        device.flips[chunk] = 70_000
        assert (await world.done(world.job(server, "verify", 1, **about))).code == "bad-block"
        assert chunk in memory.quarantined
        await world.until(lambda: world.metadata.bad)
        assert (world.metadata.bad[0].chunk, world.metadata.bad[0].why) == (chunk, "bad-block")
        assert (await world.done(world.job(server, "verify", 1, **about))).code == "no-such-chunk"

    play(test)


def test_a_disk_error_during_verify_quarantines_nothing() -> None:
    """A sick controller must not put every chunk of a device aside."""

    async def test(world: World) -> None:
        memory = world.device(1)
        device = FaultyDevice(memory)
        server = await world.start("one", device)
        data = body(SMALL)
        chunk = await world.put(server, 1, data)
        device.faults.append(Fault("read", errno.EIO, times=-1))
        job = world.job(server, "verify", 1, chunk=chunk, chunk_bytes=SMALL, crc32c=crc_of(data))
        assert (await world.done(job)).code == "device-failed"
        assert not memory.quarantined

    play(test)


def test_an_inventory_tells_all_chunks_in_order_and_drops_only_named_orphans() -> None:
    """Rule 16: a returning server counts after this; an orphan named for another page must not be touched."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        chunks = sorted([await world.put(server, 1, body(100 + n)) for n in range(5)])
        await world.until(lambda: device.seen_sequence == 100)
        world.metadata.orphans = {chunks[2]}
        report = await world.done(world.job(server, "inventory", 1))
        assert (report.code, report.detail) == ("", "5 chunks, 1 orphans to the trash, 0 not yet judged")
        page = world.metadata.pages[0]
        assert page.ids == b"".join(chunks) and page.is_last and page.after == b"" and len(page.sizes) == 5
        assert [c for c in chunks if device.kept[c].state != "live"] == [chunks[2]]

    play(test)


def test_an_unknown_job_and_a_missing_device_are_told_not_ignored() -> None:
    """A newer metadata service may know more kinds of jobs than this release."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        assert (await world.done(world.job(server, "dance", 1))).code == "unknown-job"
        assert (await world.done(world.job(server, "verify", 9, chunk=bytes(16)))).code == "no-such-device"

    play(test)


def test_more_jobs_than_slots_go_back() -> None:
    """The bound on background work holds whatever metadata sends."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1), clock=world.clock, seek_seconds=2.0, bytes_per_second=1e9)
        server = await world.start("one", slow)
        chunk = await world.put(server, 1, body(SMALL))
        ids = [world.job(server, "verify", 1, chunk=chunk) for _ in range(server.config.background.job_slots + 2)]
        reports = [await world.done(job) for job in ids]
        assert sorted(report.code for report in reports) == [""] * server.config.background.job_slots + ["no-slot"] * 2

    play(test)


class _Queue(Wrapper):
    """Knows how many small puts waited for it at once."""

    waiting = most = 0

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            return await super().put_small(chunk, data, sums, name_hint=name_hint)
        finally:
            self.waiting -= 1


class _Arm(Wrapper):
    """Knows how many chunks were looked up to be read at once."""

    reading = most = 0

    async def find(self, chunk: ChunkId) -> OpenChunk:
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            return await super().find(chunk)
        finally:
            self.reading -= 1


@pytest.mark.parametrize(("why", "least", "most"), [("settle", 64, 64), ("repair", 1, 4)])
def test_small_chunks_that_go_home_stand_at_the_device_together(why: str, least: int, most: int) -> None:
    """A burst of small writes drains into large sequential ones only if the disk's log gets its records at once, one
    sync for dozens. Copies that read slow devices keep to few: each is a seek before the clients' own."""

    async def test(world: World) -> None:
        home = _Queue(SlowDevice(world.device(1), clock=world.clock, seek_seconds=0.01, bytes_per_second=1e8))
        server = await world.start("one", home, world.device(2))
        landed = [(await world.put(server, 2, body(SMALL, n)), crc_of(body(SMALL, n))) for n in range(64)]
        jobs = [
            world.job(
                server, "copy", 1, chunk=chunk, chunk_bytes=SMALL, crc32c=crc, why=why,
                sources=[world.source(server, 2, chunk, SMALL)],
            )
            for chunk, crc in landed
        ]  # fmt: skip
        codes = {(await world.done(job)).code for job in jobs}
        assert codes == ({""} if why == "settle" else {"", "no-slot"})
        assert least <= home.most <= most

    play(test)


def test_promotions_are_told_of_together_and_read_slow_devices_a_few_at_a_time() -> None:
    """A heartbeat and two transactions for each copy cost metadata more than the reads that the copy saves; but dozens
    of seeks at once would stand before those of clients."""

    async def test(world: World) -> None:
        slow = _Arm(SlowDevice(world.device(2), clock=world.clock, seek_seconds=0.001, bytes_per_second=1e9))
        server = await world.start("one", world.device(1), slow)
        hot = [(await world.put(server, 2, body(SMALL, n)), crc_of(body(SMALL, n))) for n in range(64)]
        begun = len(world.metadata.heartbeats)
        jobs = [
            world.job(
                server, "copy", 1, chunk=chunk, chunk_bytes=SMALL, crc32c=crc, why="promote",
                sources=[world.source(server, 2, chunk, SMALL)],
            )
            for chunk, crc in hot
        ]  # fmt: skip
        assert {(await world.done(job)).code for job in jobs} == {""}
        assert 1 < slow.most <= server.config.background.job_slots
        told = [sum(r.done for r in beat.reports) for beat in world.metadata.heartbeats[begun:]]
        assert sum(n > 0 for n in told) <= 4, told

    play(test)


def test_the_scrub_finds_rot_that_nobody_reads() -> None:
    """R7: every flip is found by one round, quarantined and reported; good chunks stay."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device, scrub=True)
        good = [await world.put(server, 1, body(SMALL, n)) for n in range(3)]
        bad = [await world.put(server, 1, body(size, size)) for size in (SMALL, LARGE)]
        for chunk in bad:
            device.flip(chunk, 17)
        await world.until(lambda: len(device.quarantined) == 2, seconds=7200)
        assert set(device.quarantined) == set(bad)
        await world.until(lambda: {b.chunk for b in world.metadata.bad} == set(bad))
        assert all(device.kept[chunk].state == "live" for chunk in good)

    play(test)


def test_the_scrub_leaves_what_was_just_written_to_a_later_round() -> None:
    """A round that follows the writers would read all of their bytes again while they write, for nothing."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        scrub, slot = server.scrub, next(iter(server.slots))
        scrub.fresh_seconds = 3600.0
        ages_seconds = (7200, 3601, 10, -60, -7200)     # of the last ones a clock was wrong, the last by hours
        for number, age in enumerate(ages_seconds):
            upload = upload_id(world.clock.now_ms() - age * 1000, number)
            await world.put(server, 1, body(SMALL, number), upload=upload)
        assert await scrub.step(slot, Pace(world.clock, 0))
        assert scrub.chunks_total == 3 and scrub.cursor(slot).chunks == 3

    play(test)


def test_upkeep_brings_a_failed_device_back_after_its_check() -> None:
    """A device that failed once must not be lost until somebody restarts the server."""

    async def test(world: World) -> None:
        device = FaultyDevice(world.device(1))
        server = await world.start("one", device)
        device.faults.append(Fault("sync", errno.EIO))
        job = world.job(server, "copy", 1, chunk=bytes(16), chunk_bytes=1, crc32c=0, sources=[])
        assert (await world.done(job)).code == "no-replica"
        try:
            await device.put_small(ChunkId(bytes(16)), b"x", sums_of(b"x"))
        except Exception:   # the injected failure, whatever its class
            assert device.state == "failed"
        await world.until(lambda: device.state == "ok")

    play(test)


def test_a_pace_lets_through_its_rate_and_no_more() -> None:
    """Background work must leave the disks to clients."""

    async def test(world: World) -> None:
        clock = LoopClock()
        pace = Pace(clock, 1000)
        began = clock.monotonic()
        for _ in range(20):
            await pace.take(500)
        assert 9.5 <= clock.monotonic() - began <= 10.1
        pace.bytes_per_second = 0
        await pace.take(1 << 40)

    play(test)
