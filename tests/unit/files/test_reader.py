"""Streams that read ahead: whoever waits for one is answered, whatever becomes of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tierstore.errors import UnavailableError
from tierstore.files.memory import ReadMemory
from tierstore.files.reader import Reader
from tierstore.files.stream import AHEAD_BYTES, NEAR_BYTES
from tierstore.units import KIB, MIB
from tierstore.wire.files import S_IFREG, Attributes, Entry, FileResult

SIZE = 64 * MIB
PIECE = bytes(range(256)) * 1024
#: Far more than any of it takes, far less than the deadline of a read.
PATIENCE_SECONDS = 20.0


class Walk:
    """Gives pieces for as long as `gate` lets it; its end takes a while, as that of a connection does."""

    def __init__(self, first: int, length: int, gate: asyncio.Event, *, fails: bool) -> None:
        self.at, self.end, self._gate, self._fails = first, first + length, gate, fails
        self.whole = None

    async def start(self) -> None:
        return None

    async def next_piece(self) -> memoryview:
        await self._gate.wait()
        if self._fails:
            raise UnavailableError("every server left")
        offset = self.at % len(PIECE)
        piece = memoryview(PIECE)[offset : min(len(PIECE), offset + self.end - self.at)]
        self.at += len(piece)
        return piece

    async def close(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class Bodies:
    """The store: the first walk stands still until `gate` is set, later ones run."""

    def __init__(self, *, fails: bool = False) -> None:
        self.gate = asyncio.Event()
        self.walks = 0
        self._fails = fails

    def file_walk(self, bucket: str, key: str, found: Any, *, first: int, length: int, lookup: Any) -> Walk:
        self.walks += 1
        free = asyncio.Event()
        free.set()
        is_first = self.walks == 1
        return Walk(first, length, self.gate if is_first else free, fails=self._fails and is_first)


def reader_of(bodies: Bodies) -> Reader:
    async def find(first: int, length: int) -> FileResult:
        return FileResult()

    store: Any = SimpleNamespace(file_walk=bodies.file_walk)
    return Reader(store, "b", lambda: "f", find, ReadMemory(64 * MIB), version=1, size=SIZE)


async def waiting(reader: Reader, first: int, length: int) -> asyncio.Task[bytes]:
    """A read that has begun to wait."""
    async def read() -> bytes:
        return bytes(await reader.read(first, length))

    task = asyncio.create_task(read())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_a_reader_of_a_stream_that_is_dropped_reads_by_range() -> None:
    """The kernel reads ahead side by side; a read far off begins a new stream while others wait for the old one. They
    used to wait for ever, that is, until the deadline of a read."""

    async def main() -> None:
        bodies = Bodies()
        reader = reader_of(bodies)
        near = await waiting(reader, 0, 128 * KIB)
        far = AHEAD_BYTES + NEAR_BYTES
        reader._next = far
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert bytes(await reader.read(far, 1000)) == PIECE[:1000]
            assert await near == PIECE[: 128 * KIB]
        await reader.close()

    asyncio.run(main())


def test_a_file_that_is_cut_while_it_is_read_ends_there() -> None:
    """The kernel reads ahead while a program, or another mount, cuts the file: what is left was EIO too, because
    metadata knew no chunk behind the new end."""
    size, left = 300_000, 50_000

    class Cut(Walk):
        async def next_piece(self) -> memoryview:
            if self.end > left:
                raise UnavailableError(f"metadata knows no chunk at byte {left}", code="no-replica")
            return await super().next_piece()

    async def main() -> None:
        def walk(bucket: str, key: str, found: Any, *, first: int, length: int, lookup: Any) -> Walk:
            free = asyncio.Event()
            free.set()
            return Cut(first, length, free, fails=False)

        async def find(first: int, length: int) -> FileResult:
            return FileResult(entry=Entry("f", Attributes(7, S_IFREG | 0o644), left, 2))

        store: Any = SimpleNamespace(file_walk=walk)
        reader = Reader(store, "b", lambda: "f", find, ReadMemory(64 * MIB), version=1, size=size)
        assert bytes(await reader.read(0, 128 * KIB)) == PIECE[:left]
        assert bytes(await reader.read(128 * KIB, 128 * KIB)) == b""
        await reader.close()

    asyncio.run(main())


def test_bytes_that_nobody_has_are_an_error_and_no_end() -> None:
    """A file that nobody has cut, whose servers are away: never shorter than it is."""

    class Lost(Walk):
        async def next_piece(self) -> memoryview:
            raise UnavailableError("metadata knows no chunk at byte 0", code="no-replica")

    async def main() -> None:
        async def find(first: int, length: int) -> FileResult:
            return FileResult(entry=Entry("f", Attributes(7, S_IFREG | 0o644), 1000, 1))

        def walk(bucket: str, key: str, found: Any, *, first: int, length: int, lookup: Any) -> Walk:
            return Lost(first, length, asyncio.Event(), fails=False)

        store: Any = SimpleNamespace(file_walk=walk)
        reader = Reader(store, "b", lambda: "f", find, ReadMemory(64 * MIB), version=1, size=1000)
        with pytest.raises(UnavailableError):
            await reader.read(0, 1000)
        await reader.close()

    asyncio.run(main())


def test_a_reader_of_a_closed_stream_is_answered() -> None:
    """A commit of the same file drops what was read ahead."""

    async def main() -> None:
        reader = reader_of(Bodies())
        near = await waiting(reader, 0, 128 * KIB)
        reader.reset(2, SIZE)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await near == PIECE[: 128 * KIB]
        await reader.close()

    asyncio.run(main())


def test_a_reader_of_a_stream_that_fails_tries_by_itself() -> None:
    async def main() -> None:
        bodies = Bodies(fails=True)
        reader = reader_of(bodies)
        near = await waiting(reader, 0, 128 * KIB)
        bodies.gate.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await near == PIECE[: 128 * KIB]
        await reader.close()

    asyncio.run(main())


def test_pieces_are_kept_while_the_walk_goes_on() -> None:
    """Reads at the kernel's pace, each request over the edge of two pieces, and one behind the last."""

    async def main() -> None:
        bodies = Bodies()
        bodies.gate.set()
        reader = reader_of(bodies)
        step = 128 * KIB
        async with asyncio.timeout(PATIENCE_SECONDS):
            for first in range(0, 24 * MIB, step):
                offset = first % len(PIECE)
                assert bytes(await reader.read(first, step)) == (PIECE + PIECE)[offset : offset + step]
                if first:
                    offset = (first - step // 2) % len(PIECE)
                    assert bytes(await reader.read(first - step // 2, step)) == (PIECE + PIECE)[offset : offset + step]
        assert bodies.walks == 1
        await reader.close()

    asyncio.run(main())


def test_a_stream_that_is_stopped_has_nothing_more() -> None:
    """A read that finds its stream ended by another must not take that for the end of the file."""

    async def main() -> None:
        bodies = Bodies()
        bodies.gate.set()
        reader = reader_of(bodies)
        await reader.read(0, 128 * KIB)
        stream = reader._stream
        assert stream is not None
        await reader.close()
        assert await stream.read(0, 128 * KIB) is None
        assert await stream.read(128 * KIB, 256 * KIB) is None

    asyncio.run(main())
