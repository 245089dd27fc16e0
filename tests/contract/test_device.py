"""The Device contract: one suite, every implementation (real on disk, in memory file system, simulated slow; in memory,
faulty, slow of tests/kit)."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from objectd.store.device import Device, OpenChunk
from objectd.store.disk import DiskDevice
from objectd.store.settings import StoreSettings
from tests.kit.devices import FaultyDevice, MemoryDevice, SlowDevice
from tierstore.checksum import crc_of, sums_of
from tierstore.clock import ManualClock, SystemClock
from tierstore.errors import CapacityError, ConflictError, IntegrityError, NotFound, UnavailableError
from tierstore.names import ChunkId, chunk_id, upload_id

CAPACITY = 64 << 20
SUBJECTS = ["disk", "tmpfs", "disk-slow", "memory", "faulty", "slow"]
Make = Callable[[], Awaitable[Device]]


def chunk(number: int) -> ChunkId:
    return chunk_id(upload_id(1_800_000_000_000 + number, number * 7919 % (1 << 48)), 0)


def exact(number: int, size: int) -> bytes:
    """Bytes of that size, others for each number."""
    pattern = bytes((number + at * 31) % 251 for at in range(min(size, 4099)))
    return (pattern * (size // max(1, len(pattern)) + 1))[:size]


@pytest.fixture(params=SUBJECTS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes the device; called in the loop of the test."""
    kind: str = request.param
    root = tempfile.mkdtemp(dir="/dev/shm") if kind == "tmpfs" and os.path.isdir("/dev/shm") else str(tmp_path / "dev")
    settings = StoreSettings(reserve_bytes=0, ballast_bytes=0, index_flush_seconds=0.05,
                             simulate_seek_ms=0.5 if kind == "disk-slow" else 0)

    async def build() -> Device:
        clock = ManualClock()
        if kind in ("disk", "tmpfs", "disk-slow"):
            return await DiskDevice.open(root, tier="ssd", capacity_bytes=CAPACITY, clock=clock, settings=settings)
        memory = MemoryDevice(capacity_bytes=CAPACITY, clock=clock)
        if kind == "faulty":
            return FaultyDevice(memory)
        if kind == "slow":
            return SlowDevice(memory, clock=SystemClock(), seek_seconds=0.0005, bytes_per_second=1e9)
        return memory

    yield build
    if kind == "tmpfs":
        shutil.rmtree(root, ignore_errors=True)


@asynccontextmanager
async def opened(make: Make) -> AsyncIterator[Device]:
    device = await make()
    try:
        yield device
    finally:
        await device.close()


async def put(device: Device, name: ChunkId, data: bytes) -> None:
    await device.put_small(name, data, sums_of(data), name_hint="bucket/key")


async def put_large(device: Device, name: ChunkId, data: bytes) -> None:
    writer = device.begin(name, len(data), name_hint="bucket/key")
    for at in range(0, len(data), 100_000):
        writer.write(memoryview(data)[at : at + 100_000])
        await writer.drained()
    await writer.finish(sums_of(data))


async def open_any(device: Device, name: ChunkId) -> OpenChunk:
    found = device.open_chunk(name)
    return found if found is not None else await device.find(name)


async def content(device: Device, name: ChunkId) -> bytes:
    found = await open_any(device, name)
    try:
        data = await found.read(0, found.chunk_bytes)
        assert found.sums == sums_of(data)
        return data
    finally:
        found.close()


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 256 * 1024])
def test_a_small_chunk_comes_back_with_its_sums(make: Make, size: int) -> None:
    """Wrong framing of any size (no block, one, a partial one) would hand out other bytes than were stored."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(1, size)
            where = await device.put_small(chunk(1), data, sums_of(data))
            assert where.segment > 0
            assert await content(device, chunk(1)) == data
            hinted = device.open_chunk(chunk(1), where)
            if hinted is not None:
                assert hinted.sums == sums_of(data) and await hinted.read(0, size) == data
                hinted.close()
            fast = device.read_small_now(chunk(1), where, size)
            assert fast is None or bytes(fast) == sums_of(data) + data

    asyncio.run(walk())


@pytest.mark.parametrize("size", [1, 300_000, 3 * 1024 * 1024 + 17])
def test_a_large_chunk_comes_back_and_ranges_too(make: Make, size: int) -> None:
    """A chunk in a file of its own must read back whole and in any range."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(2, size)
            await put_large(device, chunk(2), data)
            assert await content(device, chunk(2)) == data
            found = await open_any(device, chunk(2))
            assert await found.read(size // 3, size // 2) == data[size // 3 : size // 3 + size // 2]
            now = found.read_now(0, 1)
            assert now is None or now == data[:1]
            with pytest.raises(IntegrityError):
                await found.read(size, 1)
            found.close()
            found.close()
            assert device.usage().chunks == 1

    asyncio.run(walk())


def test_many_puts_at_once_all_become_durable(make: Make) -> None:
    """Group commit must wake each waiter with its own place."""

    async def walk() -> None:
        async with opened(make) as device:
            places = await asyncio.gather(*(
                device.put_small(chunk(n), exact(n, 700 + n), sums_of(exact(n, 700 + n))) for n in range(100)))
            assert len({(p.segment, p.offset) for p in places}) == 100
            for n in range(100):
                assert await content(device, chunk(n)) == exact(n, 700 + n)
            assert device.usage().chunks == 100

    asyncio.run(walk())


def test_a_chunk_id_is_write_once(make: Make) -> None:
    """A repeated PUT succeeds, other bytes under the id are refused: a retry must neither fail nor replace."""

    async def walk() -> None:
        async with opened(make) as device:
            for number, writes in ((1, put), (2, put_large)):
                data = exact(number, 5000)
                await writes(device, chunk(number), data)
                await writes(device, chunk(number), data)
                for other in (exact(number + 9, 5000), exact(number, 4999)):
                    with pytest.raises(ConflictError) as caught:
                        await writes(device, chunk(number), other)
                    assert caught.value.code == "chunk-exists"
                assert await content(device, chunk(number)) == data
            assert device.usage().chunks == 2

    asyncio.run(walk())


def test_the_same_put_twice_at_the_same_time_is_one_chunk(make: Make) -> None:
    """A client that retries before the first attempt is answered."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(1, 4096)
            one, two = await asyncio.gather(device.put_small(chunk(1), data, sums_of(data)),
                                            device.put_small(chunk(1), data, sums_of(data)))
            assert one == two and device.usage().chunks == 1

    asyncio.run(walk())


def test_submitted_bytes_may_be_reused_at_once(make: Make) -> None:
    """The protocol's receive buffer is overwritten by the next request while the sync is under way."""

    async def walk() -> None:
        async with opened(make) as device:
            buffer = bytearray(exact(1, 4096))
            future = device.submit_small(chunk(1), memoryview(buffer), sums_of(buffer))
            buffer[:] = bytes(4096)
            await future
            assert await content(device, chunk(1)) == exact(1, 4096)

    asyncio.run(walk())


def test_what_is_not_there_is_not_found(make: Make) -> None:
    """A clear answer, also with a hint at another chunk's place: never another chunk's bytes."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(1, 4096)
            where = await device.put_small(chunk(1), data, sums_of(data))
            assert device.read_small_now(chunk(2), where, 4096) is None
            for ask in (None, where):
                with pytest.raises(NotFound) as caught:
                    device.open_chunk(chunk(2), ask)
                assert caught.value.code == "no-such-chunk"
            with pytest.raises(NotFound):
                await device.find(chunk(2))
            assert await device.trash(chunk(2)) is False
            assert await device.quarantine(chunk(2), "no") is False

    asyncio.run(walk())


@pytest.mark.parametrize("size", [4096, 400_000])
def test_the_trash_keeps_and_gives_back(make: Make, size: int) -> None:
    """A deletion by mistake can be undone until the trash is emptied; emptied bytes are gone."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(3, size)
            write = put if size <= 256 * 1024 else put_large
            await write(device, chunk(3), data)
            held = await open_any(device, chunk(3))
            assert await device.trash(chunk(3)) is True
            assert await device.trash(chunk(3)) is False
            assert await held.read(0, 10) == data[:10]     # a reader under way is not cut off
            held.close()
            with pytest.raises(NotFound):
                await device.find(chunk(3))
            assert list(device.chunks()) == []
            assert device.usage().chunks == 0 and device.usage().trash_bytes >= size
            await device.restore(chunk(3))
            with pytest.raises(NotFound) as caught:
                await device.restore(chunk(3))
            assert caught.value.code == "not-in-trash"
            assert await content(device, chunk(3)) == data
            await device.trash(chunk(3))
            assert await device.empty_trash(0) == 0
            await write(device, chunk(4), data)
            assert await device.forget_trashed(chunk(4)) == 0, "a live chunk is not forgotten"
            await device.trash(chunk(4))
            assert await device.forget_trashed(chunk(4)) >= size
            assert await device.forget_trashed(chunk(4)) == 0
            assert await device.empty_trash(1 << 60) >= size
            assert device.usage().trash_bytes == 0
            with pytest.raises(NotFound):
                await device.restore(chunk(3))
            await write(device, chunk(3), data)             # the id may come again: repair onto the same device
            assert await content(device, chunk(3)) == data

    asyncio.run(walk())


def test_a_put_of_a_trashed_chunk_takes_it_back(make: Make) -> None:
    """The same bytes are here already."""

    async def walk() -> None:
        async with opened(make) as device:
            await put(device, chunk(1), exact(1, 100))
            await device.trash(chunk(1))
            await put(device, chunk(1), exact(1, 100))
            assert await content(device, chunk(1)) == exact(1, 100)
            assert device.usage().trash_bytes == 0

    asyncio.run(walk())


@pytest.mark.parametrize("size", [4096, 400_000])
def test_quarantine_takes_a_chunk_out_of_service_and_lets_it_come_again(make: Make, size: int) -> None:
    """A bad copy must not be served, not even to who has its place, and the repair must be able to write it anew."""

    async def walk() -> None:
        async with opened(make) as device:
            data = exact(4, size)
            write = put if size <= 256 * 1024 else put_large
            await write(device, chunk(4), data)
            where = next(iter(device.chunks()))[2]
            assert await device.quarantine(chunk(4), "wrong checksum") is True
            assert await device.quarantine(chunk(4), "wrong checksum") is False
            assert device.read_small_now(chunk(4), where, size) is None
            with pytest.raises(NotFound):
                device.open_chunk(chunk(4), where)
            with pytest.raises(NotFound):
                await device.find(chunk(4))
            assert device.usage().chunks == 0
            await write(device, chunk(4), data)
            assert await content(device, chunk(4)) == data

    asyncio.run(walk())


def test_chunks_are_listed_in_order_from_any_place(make: Make) -> None:
    """The inventory pages through a device: nothing twice, nothing left out, also across index flushes."""

    async def walk() -> None:
        async with opened(make) as device:
            for n in range(40):
                await put(device, chunk(n), exact(n, 10 + n))
            await put_large(device, chunk(50), exact(50, 300_000))
            names = sorted([chunk(n) for n in range(40)] + [chunk(50)])
            assert [c for c, _, _ in device.chunks()] == names
            assert [c for c, _, _ in device.chunks(names[10])] == names[11:]
            assert {c: size for c, size, _ in device.chunks()}[chunk(7)] == 17

    asyncio.run(walk())


def test_headers_of_young_chunks_tell_what_was_given_with_them(make: Make) -> None:
    """After the loss of the catalog they are all that says which object a chunk belongs to."""

    async def walk() -> None:
        async with opened(make) as device:
            small, large = exact(1, 5000), exact(2, 400_000)
            hint = "bkt/kéy\0QUJD"
            await device.put_small(chunk(2), small, sums_of(small), name_hint=hint)
            await put_large(device, chunk(1), large)
            await device.put_small(chunk(3), b"x", sums_of(b"x"))
            await device.put_small(chunk(4), b"y", sums_of(b"y"), name_hint="gone")
            await device.trash(chunk(4))
            found = await asyncio.to_thread(lambda: list(device.stored_since(1)))
            assert [(h.chunk, h.chunk_bytes, h.crc32c, h.name_hint) for h in found] == [
                (chunk(1), 400_000, crc_of(large), "bucket/key"), (chunk(2), 5000, crc_of(small), hint),
                (chunk(3), 1, crc_of(b"x"), ""),
            ]  # fmt: skip
            assert all(h.location.segment == 0 or h.location.offset >= 0 for h in found)
            assert [h.chunk for h in device.stored_since(1, chunk(1))] == [chunk(2), chunk(3)]
            latest = max(h.stored_at_ms for h in found)
            assert list(device.stored_since(latest + 1)) == []

    asyncio.run(walk())


def test_an_aborted_or_wrong_upload_leaves_nothing(make: Make) -> None:
    """Half an object must never be readable and its space must come back."""

    async def walk() -> None:
        async with opened(make) as device:
            free = device.usage().free_bytes
            writer = device.begin(chunk(1), 500_000)
            writer.write(bytes(200_000))
            writer.abort()
            writer.abort()
            writer = device.begin(chunk(2), 500_000)
            writer.write(bytes(1000))
            with pytest.raises(IntegrityError):
                await writer.finish(sums_of(bytes(1000)))
            writer = device.begin(chunk(3), 1000)
            with pytest.raises(IntegrityError):
                writer.write(bytes(1001))
            for n in (1, 2, 3):
                with pytest.raises(NotFound):
                    await device.find(chunk(n))
            assert device.usage().chunks == 0
            assert device.usage().free_bytes >= free - 1_000_000
            await put_large(device, chunk(9), exact(9, 300_000))

    asyncio.run(walk())


def test_a_full_device_refuses_writes_and_goes_on_reading_and_deleting(make: Make) -> None:
    """507 instead of half a chunk; deleting makes room again."""

    async def walk() -> None:
        async with opened(make) as device:
            await put(device, chunk(1), exact(1, 1000))
            with pytest.raises(CapacityError):
                device.begin(chunk(2), CAPACITY + 1)
            big = exact(3, 8 << 20)
            with pytest.raises(CapacityError):
                for n in range(10, 30):
                    await put_large(device, chunk(n), big)
            assert await content(device, chunk(1)) == exact(1, 1000)
            stored = [c for c, size, _ in device.chunks() if size == len(big)]
            assert len(stored) >= 6
            for name in stored:
                assert await device.trash(name)
            assert await device.empty_trash(1 << 60) >= len(stored) * len(big)
            await put_large(device, chunk(40), big)
            assert device.state == "ok"

    asyncio.run(walk())


def test_notes_at_the_same_time_leave_the_newest_and_a_device_that_is_well(make: Make) -> None:
    """Several delete jobs note the catalog's sequence at once: replacing the file under each other's hands took the
    device out as failed."""

    async def walk() -> None:
        async with opened(make) as device:
            for base in range(10, 60, 10):
                await asyncio.gather(*(device.note(cluster_id="c1", seen_sequence=base + n) for n in range(8)))
            assert (device.cluster_id, device.seen_sequence, device.state) == ("c1", 57, "ok")

    asyncio.run(walk())


def test_the_owner_is_noted(make: Make) -> None:
    """Rule 1: a device knows its cluster and the highest sequence it has seen."""

    async def walk() -> None:
        async with opened(make) as device:
            await device.note(cluster_id="c1", seen_sequence=42)
            assert (device.cluster_id, device.seen_sequence) == ("c1", 42)
            await device.check()
            assert device.state == "ok"

    asyncio.run(walk())


def test_a_writer_that_ended_takes_no_more(make: Make) -> None:
    """A late piece must not be written into a file that is already somebody's."""

    async def walk() -> None:
        async with opened(make) as device:
            writer = device.begin(chunk(1), 300_000)
            writer.write(exact(1, 300_000))
            await writer.finish(sums_of(exact(1, 300_000)))
            with pytest.raises(UnavailableError):
                writer.write(b"x")
            writer.abort()
            assert await content(device, chunk(1)) == exact(1, 300_000)

    asyncio.run(walk())
