"""Memory for reads: one bound for streams and ranges, and nobody waits for a stream that stands idle."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from tierstore.files.memory import IDLE_SECONDS, RANGES_SHARE, ReadMemory
from tierstore.files.reader import Reader
from tierstore.units import KIB, MIB
from tierstore.wire.files import FileResult

SIZE = 512 * KIB


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Streams:
    """Streams that end when they are told to."""

    def __init__(self, memory: ReadMemory) -> None:
        self.memory = memory
        self.ended: list[str] = []

    def begin(self, name: str, size: int) -> Any:
        def end() -> None:
            self.ended.append(name)
            self.memory.ended(end)

        return end if self.memory.begin(end, size) else None


def test_a_stream_that_nobody_reads_makes_room_for_one_that_is_wanted() -> None:
    """A program that keeps many files open would leave none of the memory to the one that it reads."""
    clock = Clock()
    streams = Streams(ReadMemory(8 * MIB, monotonic=clock))
    first, second = streams.begin("first", 3 * MIB), streams.begin("second", 3 * MIB)
    assert streams.begin("third", 3 * MIB) is None      # both are fresh
    clock.now += IDLE_SECONDS
    streams.memory.used(first)
    assert streams.begin("third", 3 * MIB) is not None
    assert streams.ended == ["second"]
    assert second is not None
    assert streams.memory.budget.held_bytes == 6 * MIB


def test_streams_leave_a_share_to_ranges() -> None:
    """Otherwise a cold random read would wait until somebody closes a file."""
    memory = ReadMemory(8 * MIB)
    streams = Streams(memory)
    assert streams.begin("too much", 8 * MIB) is None
    assert streams.begin("all that it may", 8 * MIB - 8 * MIB // RANGES_SHARE) is not None

    async def main() -> None:
        async with memory.range(8 * MIB // RANGES_SHARE):
            assert memory.budget.held_bytes == 8 * MIB

    asyncio.run(asyncio.wait_for(main(), 60))


class Bodies:
    """A store whose walks stand still until they are let go. most: the walks that were under way at once."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = self.under_way = self.most = 0

    def file_walk(self, *_: object, first: int, length: int, lookup: object) -> Any:
        return SimpleNamespace(whole=b"x" * length, start=self.start, next_piece=self.next_piece, close=self.close)

    async def start(self) -> None:
        self.begun += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()

    async def next_piece(self) -> memoryview:
        return memoryview(b"x" * SIZE)

    async def close(self) -> None:
        self.under_way -= 1


def test_ranges_wait_for_memory() -> None:
    """48 requests of the kernel at once would hold 100 MiB beside the budget."""

    async def main() -> None:
        bodies = Bodies()
        memory = ReadMemory(4 * MIB)
        store: Any = bodies

        async def find(first: int, length: int) -> FileResult:
            return FileResult()

        reader = Reader(store, "b", lambda: "f", find, memory, version=1, size=SIZE)
        reads = [asyncio.create_task(reader.read(0, SIZE)) for _ in range(20)]
        while bodies.begun < 3:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert bodies.begun == 3 and memory.budget.held_bytes <= 4 * MIB
        bodies.gate.set()
        assert [len(data) for data in await asyncio.gather(*reads)] == [SIZE] * 20
        assert bodies.most <= 3 and memory.budget.held_bytes == 0

    asyncio.run(asyncio.wait_for(main(), 60))
