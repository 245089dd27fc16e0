"""Chunks of a few megabytes are written, synced and named by one job of a thread: what may go wrong on that way."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from objectd.store import gathered
from objectd.store.device import Location
from objectd.store.disk import DiskDevice
from objectd.store.gathered import GATHERED_BYTES_MAX, KEPT_MAX
from tests.unit.store.place import Place, body, chunk, content
from tests.unit.store.test_direct import DIRECT, MIB
from tierstore.checksum import sums_of
from tierstore.errors import CapacityError, UnavailableError


@pytest.fixture(autouse=True)
def no_kept_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without buffers of others."""
    monkeypatch.setattr(gathered, "_kept", {size: [] for size in gathered._SIZES})


def kept() -> int:
    return sum(map(len, gathered._kept.values()))


async def _put(device: DiskDevice, number: int, data: bytes) -> Location:
    writer = device.begin(chunk(number), len(data))
    for at in range(0, len(data), 200_001):
        writer.write(memoryview(data)[at : at + 200_001])
    assert writer.pending_bytes == 0, "nothing to wait for before the end"
    return await writer.finish(sums_of(data))


def test_a_buffer_that_is_used_again_leaves_nothing_of_the_chunk_before(tmp_path: Path) -> None:
    """Bytes of another user's chunk behind a shorter one would be the worst of leaks; and rot, by the sums."""
    place = Place(tmp_path, settings=DIRECT)
    sizes = [MIB, MIB + 1, GATHERED_BYTES_MAX, MIB, 3 * MIB + 4097, MIB + 4096]

    async def walk() -> None:
        async with place.open() as device:
            for number, size in enumerate(sizes):
                await _put(device, number, body(number, size))
                assert kept() <= 2, "one of each size is enough for one writer after the other"
        place.kill()
        async with place.open() as device:
            for number, size in enumerate(sizes):
                assert await content(device, chunk(number)) == body(number, size)

    asyncio.run(walk())


def test_many_writers_at_a_time_have_buffers_of_their_own(tmp_path: Path) -> None:
    """And no more are kept for later than the bound says."""
    place = Place(tmp_path, settings=DIRECT)
    count = KEPT_MAX + 3

    async def walk() -> None:
        async with place.open() as device:
            writers = [device.begin(chunk(number), MIB) for number in range(count)]
            for at in range(0, MIB, MIB // 4):
                for number, writer in enumerate(writers):
                    writer.write(body(number, MIB)[at : at + MIB // 4])
            await asyncio.gather(*(writer.finish(sums_of(body(n, MIB))) for n, writer in enumerate(writers)))
            for number in range(count):
                assert await content(device, chunk(number)) == body(number, MIB)
        assert kept() == KEPT_MAX

    asyncio.run(walk())


def test_bytes_then_name_are_synced_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name a power cut takes away is a lost chunk, however well its bytes were synced."""
    place = Place(tmp_path, settings=DIRECT)
    synced: list[tuple[str, int]] = []

    def record(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            real(fd)
            synced.append((os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size))
        return sync

    async def walk() -> None:
        async with place.open() as device:
            monkeypatch.setattr(os, "fdatasync", record(os.fdatasync))
            monkeypatch.setattr(os, "fsync", record(os.fsync))
            await _put(device, 1, body(1, MIB + 5))
            told = list(synced)
            path = place.file_of(chunk(1))
            names = [name for name, _ in told]
            assert (path, os.path.getsize(path)) in told
            assert names.index(os.path.dirname(path)) > names.index(path)

    asyncio.run(walk())


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, UnavailableError), (errno.ENOSPC, CapacityError)])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_write_that_fails_fails_the_chunk_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], failing: int
) -> None:
    """The data, or what is behind it: no receipt, no file, and no buffer that a thread may still be at."""
    place = Place(tmp_path, settings=DIRECT)
    write, count = gathered._write_all, 0

    def broken(fd: int, view: memoryview, at: int) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(number, os.strerror(number))
        write(fd, view, at)

    async def walk() -> None:
        async with place.open() as device:
            monkeypatch.setattr(gathered, "_write_all", broken)
            with pytest.raises(error):
                await _put(device, 1, body(1, MIB + 100))
        assert count == failing
        assert kept() == 0
        assert not [path for path in Path(place.path, "files").rglob("*") if path.is_file()]

    asyncio.run(walk())


def test_giving_up_before_the_end_leaves_no_file(tmp_path: Path) -> None:
    """A client that goes away in the middle of its body."""
    place = Place(tmp_path, settings=DIRECT)

    async def walk() -> None:
        async with place.open() as device:
            writer = device.begin(chunk(1), 2 * MIB)
            writer.write(body(1, MIB))
            writer.abort()
            await _put(device, 2, body(2, 2 * MIB))
            assert await content(device, chunk(2)) == body(2, 2 * MIB)
        files = [path.name for path in Path(place.path, "files").rglob("*") if path.is_file()]
        assert files == [chunk(2).hex()]

    asyncio.run(walk())
