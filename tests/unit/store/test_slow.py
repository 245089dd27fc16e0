"""The simulated slow device: the page cache must not hide it, and it must not stop the loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from tests.unit.store.place import SETTINGS, Place, body, chunk, content, put, put_large


def test_each_read_of_a_slow_device_pays_and_none_is_in_memory(tmp_path: Path) -> None:
    """Else the tiering demonstration would compare two page caches."""
    place = Place(tmp_path, settings=replace(SETTINGS, simulate_seek_ms=20, simulate_bytes_per_second=50 << 20))

    async def walk() -> None:
        async with place.open() as device:
            where = await put(device, chunk(1), body(1, 4096))
            other = await put(device, chunk(2), body(2, 4096))
            await put_large(device, chunk(3), body(3, 300_000))
            for _ in range(2):
                assert device.read_small_now(chunk(1), where, 4096) is None
                assert device.open_chunk(chunk(1), where) is None
            large = await device.find(chunk(3))
            assert large.fd == -1 and large.read_now(0, 10) is None
            started = time.monotonic()
            for n in (1, 3, 1, 3):
                await content(device, chunk(n))
            assert time.monotonic() - started >= 4 * 0.02
            large.close()
            assert other.offset > where.offset

    asyncio.run(walk())


def test_waiting_for_a_slow_device_leaves_the_loop_free(tmp_path: Path) -> None:
    """Sleeps happen in the device's threads: other requests go on meanwhile, and the arm serves one at a time."""
    place = Place(tmp_path, settings=replace(SETTINGS, simulate_seek_ms=100))

    async def walk() -> None:
        async with place.open() as device:
            for n in (1, 2):
                await put_large(device, chunk(n), body(n, 100_000))
            turns = 0
            started = time.monotonic()
            reads = asyncio.gather(*(content(device, chunk(n)) for n in (1, 2, 1, 2)))
            while not reads.done():
                turns += 1
                await asyncio.sleep(0.001)
            assert time.monotonic() - started >= 3 * 0.1
            assert turns > 4, "a loop that waits itself has one turn for each read"

    asyncio.run(walk())


def test_puts_share_the_seek_of_their_group(tmp_path: Path) -> None:
    """Group commit is what makes a disk with seeks bearable; the model must show it."""
    place = Place(tmp_path, settings=replace(SETTINGS, simulate_seek_ms=30))

    async def walk() -> None:
        async with place.open() as device:
            spindle = device.spindle
            assert spindle is not None
            before = spindle.seeks
            await asyncio.gather(*(put(device, chunk(n), body(n, 1000)) for n in range(40)))
            assert 0 < spindle.seeks - before <= 40 / 3

    asyncio.run(walk())
