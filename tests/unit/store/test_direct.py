"""Large chunks go around the page cache: every length, a disk that fails in the middle, a file system without it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from objectd.store import direct
from objectd.store.direct import ALIGN_BYTES, BUFFER_BYTES
from objectd.store.reading import is_memory
from objectd.store.settings import StoreSettings
from tests.kit.waits import give_way
from tests.unit.store.place import SETTINGS, Place, body, chunk, content
from tierstore.checksum import sums_of
from tierstore.errors import CapacityError, UnavailableError

MIB = 1 << 20
DIRECT: StoreSettings = replace(SETTINGS, direct_bytes_min=MIB)


def cached_pages(fd: int, count: int) -> int:
    """How many of the first pages are in the page cache (mincore(2)). A read with RWF_NOWAIT is no proof of it: the
    kernel may begin the read for it, and a fast disk has answered by then."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(fd, count, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view:
        start = ctypes.c_char.from_buffer(view)
        told = ctypes.create_string_buffer(-(-count // mmap.PAGESIZE))
        answer = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(count), told)
        del start
    assert answer == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in told.raw)


async def _store(place: Place, number: int, data: bytes, *, piece_bytes: int = 200_001) -> None:
    async with place.open() as device:
        writer = device.begin(chunk(number), len(data))
        for at in range(0, len(data), piece_bytes):
            writer.write(memoryview(data)[at : at + piece_bytes])
            if writer.pending_bytes > 2 * BUFFER_BYTES:
                await writer.drained()
        await writer.finish(sums_of(data))


@pytest.mark.parametrize(
    "size",
    [MIB, MIB + 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + ALIGN_BYTES, 3 * BUFFER_BYTES + ALIGN_BYTES + 17],
)
def test_every_length_reads_back_in_this_life_and_the_next(tmp_path: Path, size: int) -> None:
    """What is not aligned at the end is written the usual way behind what is; a gap or an overlap would be rot."""
    place = Place(tmp_path, settings=DIRECT)
    data = body(size, size)

    async def walk() -> None:
        await _store(place, 1, data)
        async with place.open() as device:
            assert await content(device, chunk(1)) == data
        place.kill()
        async with place.open() as device:
            assert await content(device, chunk(1)) == data

    asyncio.run(walk())


def test_its_bytes_are_not_left_in_the_page_cache(tmp_path: Path) -> None:
    """Else the way is not the one that this test file is about."""
    place = Place(tmp_path, settings=DIRECT)
    data = body(1, 2 * BUFFER_BYTES + 5)

    async def walk() -> None:
        async with place.open() as device:
            writer = device.begin(chunk(1), len(data))
            writer.write(data)
            await writer.finish(sums_of(data))
            opened = await device.find(chunk(1))
            assert is_memory(str(tmp_path)) or not cached_pages(opened.fd, 2 * BUFFER_BYTES)
            assert await opened.read(0, len(data)) == data
            opened.close()

    asyncio.run(walk())


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, UnavailableError), (errno.ENOSPC, CapacityError)])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_write_that_fails_fails_the_chunk_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], failing: int
) -> None:
    """The write happens behind the caller's back: it must still be he who hears of it, before any receipt."""
    place = Place(tmp_path, settings=DIRECT)
    data = body(1, 2 * BUFFER_BYTES + 2 * ALIGN_BYTES)
    put, count = direct.DirectBytes._put, 0

    def broken(self: Any, view: memoryview, at: int) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(number, os.strerror(number))
        put(self, view, at)

    async def walk() -> None:
        async with place.open() as device:
            monkeypatch.setattr(direct.DirectBytes, "_put", broken)
            writer = device.begin(chunk(1), len(data))
            with pytest.raises(error):
                for at in range(0, len(data), MIB):
                    writer.write(memoryview(data)[at : at + MIB])
                    await asyncio.sleep(0)
                await writer.finish(sums_of(data))
        assert count == failing
        assert not [path for path in Path(place.path, "files").rglob("*") if path.is_file()]

    asyncio.run(walk())


def test_giving_up_in_the_middle_of_a_write_leaves_no_file(tmp_path: Path) -> None:
    """A client that goes away: the descriptor may only be closed when no thread writes to it any more."""
    place = Place(tmp_path, settings=DIRECT)
    data = body(1, 3 * BUFFER_BYTES)

    async def walk() -> None:
        async with place.open() as device:
            for number in range(5):
                writer = device.begin(chunk(number), len(data))
                writer.write(data[: 2 * BUFFER_BYTES + number * 100_000])
                writer.abort()
        assert not [path for path in Path(place.path, "files").rglob("*") if path.is_file()]

    asyncio.run(walk())


def test_a_device_closes_after_the_file_of_a_writer_that_gave_up_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean start looks for no files without a footer: one that stayed would take its room for ever."""
    place = Place(tmp_path, settings=DIRECT)
    may_write, put = threading.Event(), direct.DirectBytes._put

    def late(self: Any, view: memoryview, at: int) -> None:
        assert may_write.wait(300)
        put(self, view, at)

    async def walk() -> None:
        monkeypatch.setattr(direct.DirectBytes, "_put", late)
        async with place.open() as device:
            writer = device.begin(chunk(1), 2 * BUFFER_BYTES)
            writer.write(body(1, BUFFER_BYTES))
            writer.abort()
            closing = asyncio.create_task(device.close())
            for _ in range(100):
                await give_way()
            assert not closing.done()
            may_write.set()
            await closing
        assert not [path for path in Path(place.path, "files").rglob("*") if path.is_file()]

    asyncio.run(walk())


def test_a_file_system_without_the_way_gets_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some refuse the flag only after they have made the file."""
    place = Place(tmp_path, settings=DIRECT)
    data = body(1, BUFFER_BYTES + 1)
    real, refused = os.open, 0

    def refusing(path: str, flags: int, *args: Any, **kwargs: Any) -> int:
        nonlocal refused
        if flags & os.O_DIRECT:
            refused += 1
            os.close(real(path, flags & ~os.O_DIRECT, *args, **kwargs))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *args, **kwargs)

    async def walk() -> None:
        monkeypatch.setattr(os, "open", refusing)
        await _store(place, 1, data)
        monkeypatch.setattr(os, "open", real)
        assert refused == 1
        async with place.open() as device:
            assert await content(device, chunk(1)) == data

    asyncio.run(walk())


def test_a_later_write_that_fails_before_the_earlier_is_looked_at_is_heard_of() -> None:
    """Else the file has a hole where that write was, and a receipt says that it is whole."""

    class Threads:
        def __init__(self) -> None:
            self.jobs: list[asyncio.Future[Any]] = []

        def submit(self, call: Any, *arguments: Any) -> asyncio.Future[Any]:
            job: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if self.jobs:
                job.set_exception(OSError(errno.EIO, "broken"))
            self.jobs.append(job)
            return job

        async def settled(self, job: asyncio.Future[Any]) -> Any:
            result = await job
            for _ in range(5):      # the loop is busy: by now the next job has begun and failed
                await asyncio.sleep(0)
            return result

    async def walk() -> None:
        threads = Threads()
        under_way = direct.DirectBytes(threads, -1, spindle=None, where=None)
        under_way.write(memoryview(bytes(2 * BUFFER_BYTES)))
        drained = asyncio.ensure_future(under_way.drained())
        await asyncio.sleep(0)
        threads.jobs[0].set_result(None)
        with pytest.raises(OSError, match="broken"):
            await drained
        assert len(threads.jobs) == 2

    asyncio.run(walk())
