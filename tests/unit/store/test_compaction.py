"""Compaction: garbage goes, living chunks stay, and the log alone still tells the truth."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from objectd.store.disk import DiskDevice
from tests.unit.store.place import SETTINGS, Place, body, chunk, content, put
from tierstore.clock import ManualClock
from tierstore.errors import NotFound


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_compaction_moves_the_living_and_frees_the_rest(place: Place) -> None:
    """Deleted small chunks must give their bytes back, or a device fills up with garbage."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(100):
                await put(device, chunk(n), body(n, 9000))
            for n in range(100):
                if n % 5:
                    await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            before = device.usage()
            assert before.garbage_bytes > 600_000
            freed = await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            after = device.usage()
            assert freed > 600_000 and after.garbage_bytes < 250_000
            assert after.used_bytes == before.used_bytes and after.chunks == 20
            on_disk = sum(os.path.getsize(p) for p in place.segments().values())
            assert on_disk <= after.used_bytes + after.garbage_bytes + 64
            for n in range(0, 100, 5):
                assert await content(device, chunk(n)) == body(n, 9000)

    asyncio.run(walk())


def test_the_old_place_can_be_read_until_tickets_have_expired(tmp_path: Path) -> None:
    """A reader with a hint from before the compaction must not get an error in the middle."""
    clock = ManualClock()
    place = Place(tmp_path, settings=replace(SETTINGS, segment_grace_seconds=600), clock=clock)

    async def walk() -> None:
        async with place.open() as device:
            wheres = [await put(device, chunk(n), body(n, 9000)) for n in range(60)]
            for n in range(1, 60):
                await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            assert next(iter(device.chunks()))[2] != wheres[0]
            assert wheres[0].segment in place.segments()
            clock.advance(599)
            await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            assert wheres[0].segment in place.segments()
            held = device.open_chunk(chunk(0), wheres[0]) or await device.find(chunk(0))
            clock.advance(2)
            await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            assert wheres[0].segment not in place.segments()
            assert await held.read(0, 9000) == body(0, 9000)    # also one that holds the old segment open
            held.close()
            assert await content(device, chunk(0)) == body(0, 9000)

    asyncio.run(walk())


def test_the_log_alone_tells_the_same_after_compactions(place: Place) -> None:
    """Without the index, a copied record must not revive a deleted chunk, nor a stale verdict kill a living one."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(80):
                await put(device, chunk(n), body(n, 9000))
            for n in range(0, 80, 2):
                await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            for n in range(1, 80, 8):
                await device.trash(chunk(n))                    # stay in the trash
            for n in range(3, 80, 8):
                await device.trash(chunk(n))
                await device.restore(chunk(n))
            for n in range(0, 80, 16):
                await put(device, chunk(n), body(n, 9000))      # came again after they were forgotten
            for round_ in range(6):
                await device.compact(garbage_ratio=0.05, bytes_max=1 << 30)
                await put(device, chunk(200 + round_), body(200 + round_, 60_000))
            expected = [c for c, _, _ in device.chunks()]
            trash = device.usage().trash_bytes
            uuid = device.uuid
            assert trash > 0
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert [c for c, _, _ in device.chunks()] == expected
            assert device.usage().trash_bytes == trash
            for n in range(1, 80, 8):
                await device.restore(chunk(n))
                assert await content(device, chunk(n)) == body(n, 9000)

    asyncio.run(walk())


def test_rot_is_quarantined_not_copied(place: Place) -> None:
    """A copy of a rotten record with a fresh place would look as good as new."""

    async def walk() -> None:
        async with place.open() as device:
            wheres = [await put(device, chunk(n), body(n, 9000)) for n in range(60)]
            for n in range(2, 60):
                await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            place.overwrite(place.segments()[wheres[1].segment], wheres[1].offset + 3000, b"\x00\x01\x02")
            await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
            with pytest.raises(NotFound):
                await device.find(chunk(1))
            assert len(place.quarantined()) == 1
            assert await content(device, chunk(0)) == body(0, 9000)

    asyncio.run(walk())


def test_deleting_while_compacting_is_not_undone(place: Place) -> None:
    """A deletion that comes while the record is being copied must win."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(60):
                await put(device, chunk(n), body(n, 9000))
            for n in range(0, 60, 2):
                await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            compacting = asyncio.ensure_future(device.compact(garbage_ratio=0.2, bytes_max=1 << 30))
            deleted = []
            for n in range(1, 60, 4):
                assert await device.trash(chunk(n))
                deleted.append(n)
            await compacting
            uuid = device.uuid
            for n in deleted:
                with pytest.raises(NotFound):
                    await device.find(chunk(n))
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert [c for c, _, _ in device.chunks()] == sorted(chunk(n) for n in range(3, 60, 4))

    asyncio.run(walk())


def test_compaction_is_bounded(place: Place) -> None:
    """One run moves at most bytes_max, so that it never takes the disk for itself."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(100):
                await put(device, chunk(n), body(n, 9000))
            for n in range(0, 100, 2):
                await device.trash(chunk(n))
            await device.empty_trash(1 << 60)
            assert await device.compact(garbage_ratio=0.3, bytes_max=1000) == 0
            before = len(place.segments())
            await device.compact(garbage_ratio=0.3, bytes_max=150_000)
            assert before - len(place.segments()) <= 2

    asyncio.run(walk())


async def fill(device: DiskDevice, names: Iterator[int]) -> list[int]:
    """Put chunks until a new segment has begun; their numbers."""
    used = []
    start = device.log.number
    while device.log.number == start:
        n = next(names)
        await put(device, chunk(n), body(n, 9000))
        used.append(n)
    return used


def test_verdicts_outlive_the_segment_they_stand_in(tmp_path: Path) -> None:
    """A deletion whose record was compacted away must still hold when only the log is left; one that was taken back
    must not come again."""
    clock = ManualClock()
    place = Place(tmp_path, clock=clock)

    async def walk() -> None:
        async with place.open() as device:
            names = iter(range(1000, 2000))
            first = [(await put(device, chunk(n), body(n, 9000))).segment for n in (1, 2, 3)]
            await fill(device, names)
            verdicts = device.log.number
            await device.trash(chunk(1))            # taken back later
            await device.trash(chunk(2))            # forgotten
            clock.advance(1)
            await device.empty_trash(clock.now_ms())
            await put(device, chunk(1), body(1, 9000))
            await device.trash(chunk(1))
            clock.advance(1)
            await device.trash(chunk(3))            # stays in the trash
            garbage = await fill(device, names)
            await device.restore(chunk(3))
            clock.advance(1)
            await device.trash(chunk(3))
            clock.advance(1)
            await device.restore(chunk(3))
            await fill(device, names)
            for n in garbage:
                await device.trash(chunk(n))
            clock.advance(1)
            await device.empty_trash(clock.now_ms())
            await device.compact(garbage_ratio=0.5, bytes_max=1 << 30)
            assert verdicts not in place.segments() and first[0] in place.segments()
            expected = [c for c, _, _ in device.chunks()]
            uuid = device.uuid
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert [c for c, _, _ in device.chunks()] == expected
            assert await content(device, chunk(3)) == body(3, 9000)
            for gone in (1, 2):
                with pytest.raises(NotFound):
                    await device.find(chunk(gone))

    asyncio.run(walk())
