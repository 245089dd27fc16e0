"""Fast devices: nearly full ones on which copies come and go make room again, slow ones are noticed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from pathlib import Path

from objectd.app import open_disks
from objectd.config import Chunks, DeviceConfig, ObjectdConfig, Upkeep
from objectd.fresh import Fresh
from objectd.slots import Slot
from objectd.work import speed
from objectd.work.upkeep import Upkeep as UpkeepDuty
from tests.kit.devices import MemoryDevice, SlowDevice
from tests.unit.objectd.world import World, play
from tierstore.checksum import crc_of, sums_of
from tierstore.clock import SystemClock
from tierstore.errors import CapacityError
from tierstore.names import ChunkId

MIB = 1 << 20
SIZE = 30_000
EACH_SECOND = 10


def test_a_full_fast_device_takes_new_copies_as_long_as_old_ones_go(tmp_path: Path) -> None:
    """Else a small fast tier is full of dead records after an hour, and nothing is promoted any more."""

    async def run() -> None:
        config = ObjectdConfig(
            devices=(DeviceConfig(path=str(tmp_path / "ssd"), tier="ssd", capacity=8 * MIB),),
            chunks=Chunks(), upkeep=Upkeep(interval=10.0),
        )  # fmt: skip
        clock = SystemClock()
        [device] = await open_disks(config, clock)
        duty, slot, rng = UpkeepDuty(clock=clock, settings=config.upkeep), Slot(device), random.Random(1)
        held: deque[ChunkId] = deque()
        refused = 0
        try:
            for second in range(40):        # 12 MiB through 8 MiB, filled as the promoter does
                while (len(held) + EACH_SECOND) * SIZE > 0.84 * 8 * MIB:
                    gone = held.popleft()
                    await device.trash(gone)
                    await device.forget_trashed(gone)

                async def store(number: int) -> int:
                    data, chunk = rng.randbytes(SIZE), ChunkId(number.to_bytes(16, "big"))
                    try:
                        await device.put_small(chunk, data, sums_of(data))
                    except CapacityError:
                        return 1
                    held.append(chunk)
                    return 0

                first = second * EACH_SECOND
                refused += sum(await asyncio.gather(*(store(first + n) for n in range(EACH_SECOND))))
                await duty.round(slot)
            assert refused <= 8, f"{refused} of {40 * EACH_SECOND} found no room"
        finally:
            await device.close()

    asyncio.run(run())


def test_reads_that_readers_gave_up_show_that_a_device_is_slow() -> None:
    """Hedged readers leave a slow device before it answers: what it answers in time would make it look healthy."""
    device = MemoryDevice(tier="ssd", clock=SystemClock())
    slot = Slot(device, read_ms=0.1, read_bytes_per_second=2e9)
    for _ in range(40):
        slot.note_read(0.0001, 4096)
    healthy = slot.report().read_ms
    for _ in range(120):
        slot.note_given_up(0.05)
    assert healthy < 0.2 and slot.report().read_ms > 8.0
    shown = slot.report().read_ms
    for _ in range(100):
        slot.note_given_up(0.0)      # left at once for reasons of their own
    assert slot.report().read_ms >= shown * 0.9


def test_a_device_is_measured_in_a_bounded_time_and_nothing_stays_behind(tmp_path: Path) -> None:
    """Tiers are ordered by what devices can do; a start must not wait for it."""
    began = time.monotonic()
    found = speed.measure(str(tmp_path), "ssd", random.Random(1))
    assert time.monotonic() - began < 10 * speed.BUDGET_SECONDS + 60, "an fsync of 4 MiB on a busy disk included"
    assert 0 < found.read_ms < 1000 and found.read_bytes_per_second > 1e5
    assert list(tmp_path.iterdir()) == []
    assert speed.measure(str(tmp_path / "gone"), "hdd", random.Random(1)) == speed.TYPICAL["hdd"]


def test_a_copy_of_what_was_just_read_costs_the_slow_device_no_second_access() -> None:
    """Promotions follow reads by seconds: reading everything twice would put dozens of seeks before the clients'."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1, tier="hdd"), clock=world.clock, seek_seconds=1.0, bytes_per_second=1e9)
        one = await world.start("one", slow, world.device(2))
        two = await world.start("two", world.device(3))
        data = random.Random(2).randbytes(SIZE)
        for target, device in ((one, 2), (two, 3)):
            chunk = await world.put(one, 1, data)
            assert await world.get(one, 1, chunk, data) == data
            assert len(one.fresh) == 1
            slow._seek_seconds = 1000.0
            job = world.job(
                target, "copy", device, chunk=chunk, chunk_bytes=SIZE, crc32c=crc_of(data), why="promote",
                sources=[world.source(one, 1, chunk, SIZE)],
            )  # fmt: skip
            assert (await world.done(job)).code == ""
            assert await world.get(target, device, chunk, data) == data
            slow._seek_seconds = 1.0
        assert one.fresh.taken_total == 2 and one.fresh.used_bytes == 0

    play(test)


def test_rotten_bytes_of_a_read_are_not_promoted() -> None:
    """Nobody checked them yet when they were kept: the copy must, and then read the device."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1, tier="hdd"), clock=world.clock, seek_seconds=0.1, bytes_per_second=1e9)
        server, other = await world.start("one", slow, world.device(2)), await world.start("two", world.device(3))
        data = random.Random(3).randbytes(SIZE)
        upload = world.upload()
        chunk = await world.put(server, 1, data, upload=upload)
        assert await world.put(other, 3, data, upload=upload) == chunk
        assert await world.get(server, 1, chunk, data) == data
        kept = server.fresh.take(chunk, SIZE)
        assert kept is not None
        server.fresh.keep(chunk, kept[:-1] + bytes([kept[-1] ^ 1]))
        job = world.job(
            server, "copy", 2, chunk=chunk, chunk_bytes=SIZE, crc32c=crc_of(data), why="promote",
            sources=[world.source(server, 1, chunk, SIZE), world.source(other, 3, chunk, SIZE)],
        )  # fmt: skip
        assert (await world.done(job)).code == ""
        assert await world.get(server, 2, chunk, data) == data

    play(test)


def test_what_was_just_read_is_kept_within_its_bound_oldest_out_first() -> None:
    """RAM that grows with the reads would end the server."""
    fresh, size = Fresh(1000), 396
    ids = [ChunkId(bytes([n]) * 16) for n in range(4)]
    for chunk in ids:
        fresh.keep(chunk, bytes(4 + size))
    assert (fresh.used_bytes, len(fresh)) == (800, 2)
    assert fresh.take(ids[0], size) is None and fresh.take(ids[2], size + 1) is None
    assert fresh.take(ids[3], size) == bytes(4 + size) and fresh.used_bytes == 0
    fresh.keep(ids[0], bytes(1001))
    fresh.keep(ids[1], bytes(500))
    fresh.forget(ids[1])
    assert (fresh.used_bytes, len(fresh)) == (0, 0)


def test_a_copy_without_room_reads_no_source_and_upkeep_makes_room_for_it() -> None:
    """A refused promotion that was read from a slow disk first delays clients for nothing, again and again."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1, tier="hdd"), clock=world.clock, seek_seconds=1000.0, bytes_per_second=1e9)
        small = world.device(2, capacity_bytes=2 * SIZE)
        slow._seek_seconds = 0.0
        server = await world.start("one", slow, small)
        data = random.Random(4).randbytes(SIZE)
        old, chunk = await world.put(server, 2, data), await world.put(server, 1, data[::-1])
        slow._seek_seconds = 1000.0
        job = world.job(
            server, "copy", 2, chunk=chunk, chunk_bytes=SIZE, crc32c=crc_of(data[::-1]), why="promote",
            sources=[world.source(server, 1, chunk, SIZE)],
        )  # fmt: skip
        assert (await world.done(job)).code == "device-full"
        slot = server.slots.slot(2)
        assert slot.wanted_bytes == SIZE and not server.upkeep._is_wanted(slot), "nothing dead would make room"
        await small.trash(old)
        assert server.upkeep._is_wanted(slot) and server.upkeep._pause(slot) <= 1.0
        await server.upkeep.round(slot)
        assert slot.wanted_bytes == 0

    play(test)


def test_ram_is_for_what_waits_for_a_slow_device_and_not_for_what_a_fast_one_has() -> None:
    """What was promoted is read most of all: kept in RAM too, it leaves no room there for what waits for a disk."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1, tier="hdd"), clock=world.clock, seek_seconds=0.1, bytes_per_second=1e9)
        ssd = SlowDevice(world.device(2), clock=world.clock, seek_seconds=0.01, bytes_per_second=1e9)
        server = await world.start("one", slow, ssd)
        upload, data = world.upload(), random.Random(4).randbytes(SIZE)
        chunk = await world.put(server, 1, data, upload=upload)
        assert await world.put(server, 2, data, upload=upload) == chunk
        assert await world.get(server, 1, chunk, data) == data
        assert server.memory.chunks == 1
        assert await world.get(server, 1, chunk, data) == data
        assert server.reads.served["mem"][0] == 1 and server.reads.served["hdd"][0] == 1
        for _ in range(2):
            assert await world.get(server, 2, chunk, data) == data
            assert server.memory.chunks == 0, "also a read that waited for the fast device brings nothing in"
        assert server.reads.served["mem"][0] == 1 and server.reads.served["ssd"][0] == 2
        assert await world.get(server, 1, chunk, data) == data
        assert server.memory.chunks == 1

    play(test)


def test_ram_is_for_all_devices_of_a_server_that_has_one_speed_only() -> None:
    """A cluster of SSDs alone has nothing slower to keep its RAM for."""

    async def test(world: World) -> None:
        devices = [
            SlowDevice(world.device(n), clock=world.clock, seek_seconds=0.01, bytes_per_second=1e9) for n in (1, 2)
        ]
        server = await world.start("one", *devices)
        for number in (1, 2):
            data = random.Random(number).randbytes(SIZE)
            chunk = await world.put(server, number, data)
            assert await world.get(server, number, chunk, data) == data
            assert await world.get(server, number, chunk, data) == data
        assert server.memory.chunks == 2 and server.reads.served["mem"][0] == 2

    play(test)
