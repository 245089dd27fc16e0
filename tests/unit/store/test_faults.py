"""A device whose disk fails: failed syncs, full disks, hangs; and whose directory is not what it should be."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from objectd.store.committer import ThreadCommitter
from objectd.store.disk import DiskDevice
from tests.unit.store.place import SETTINGS, Place, body, chunk, content, put, put_large
from tierstore import failpoints
from tierstore.checksum import sums_of
from tierstore.clock import ManualClock
from tierstore.errors import CapacityError, ConfigError, NotFound, UnavailableError


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_a_failed_sync_fails_every_waiter_and_the_device(place: Place) -> None:
    """Rule 2: after a failed fsync nothing may be acknowledged; the pages may be gone though a retry says ok."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.segment.before_sync=error:EIO@1")
            answers = await asyncio.gather(*(put(device, chunk(n), body(n, 1000)) for n in range(2, 10)),
                                           return_exceptions=True)
            assert all(isinstance(a, UnavailableError) and a.code == "device-failed" for a in answers)
            assert device.state == "failed" and "sync failed" in device.detail
            for attempt in (put(device, chunk(20), b"x"), device.trash(chunk(1))):     # the next sync would succeed
                with pytest.raises(UnavailableError):
                    await attempt
            with pytest.raises(UnavailableError):
                device.begin(chunk(21), 100_000)
            assert await content(device, chunk(1)) == body(1, 1000)     # reads go on

    asyncio.run(walk())


def test_a_checked_device_goes_on_in_a_new_segment(place: Place) -> None:
    """The descriptor whose sync failed is never synced again: what it acknowledged later could be lost."""

    async def walk() -> None:
        async with place.open() as device:
            first = await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.segment.before_sync=error:EIO@1")
            with pytest.raises(UnavailableError):
                await put(device, chunk(2), body(2, 1000))
            failpoints.arm("store.check.before_write=error:EIO@1")
            with pytest.raises(UnavailableError):
                await device.check()
            assert device.state == "failed"
            await device.check()
            assert device.state == "ok"
            with pytest.raises(NotFound):
                await device.find(chunk(2))
            second = await put(device, chunk(2), body(2, 1000))
            assert second.segment > first.segment
            place.kill()
        async with place.open() as device:
            assert await content(device, chunk(1)) == body(1, 1000)
            assert await content(device, chunk(2)) == body(2, 1000)

    asyncio.run(walk())


@pytest.mark.parametrize("point", ["store.file.before_sync", "store.file.before_write", "store.directory.before_sync"])
def test_a_failed_write_or_sync_of_a_file_fails_the_device(place: Place, point: str) -> None:
    """A large chunk whose name or bytes may not be on the disk is never acknowledged."""

    async def walk() -> None:
        async with place.open() as device:
            await put_large(device, chunk(1), body(1, 100_000))
            failpoints.arm(f"{point}=error:EIO@1")
            with pytest.raises(UnavailableError):
                await put_large(device, chunk(2), body(2, 100_000))
            failpoints.arm("")
            assert device.state == "failed"
            await device.check()
            with pytest.raises(NotFound):
                await device.find(chunk(2))
            assert await content(device, chunk(1)) == body(1, 100_000)

    asyncio.run(walk())


def test_a_full_disk_refuses_puts_but_takes_deletes(place: Place) -> None:
    """ENOSPC is no failure of the device: 507, reads and deletes go on, it opens again when space returns."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            await put_large(device, chunk(2), body(2, 100_000))
            failpoints.arm("store.segment.before_write=error:ENOSPC@1")
            with pytest.raises(CapacityError):
                await put(device, chunk(3), body(3, 1000))
            assert device.state == "full"
            failpoints.arm("store.file.before_write=error:ENOSPC@1")
            with pytest.raises(CapacityError):
                await put_large(device, chunk(4), body(4, 100_000))
            failpoints.arm("")
            assert await device.trash(chunk(1)) and await device.trash(chunk(2))
            assert await content(device, (await _restored(device, 1))) == body(1, 1000)
            await put(device, chunk(3), body(3, 1000))     # space is back
            assert device.state == "ok"

    asyncio.run(walk())


async def _restored(device: DiskDevice, number: int) -> object:
    await device.restore(chunk(number))
    return chunk(number)


def test_the_ballast_is_given_back_for_a_delete(tmp_path: Path) -> None:
    """Rule 19: on a disk filled to the last byte a tombstone must still find room."""
    place = Place(tmp_path, settings=replace(SETTINGS, ballast_bytes=1 << 20))

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            assert os.path.getsize(os.path.join(place.path, "reserve")) == 1 << 20
            failpoints.arm("store.segment.before_write=error:ENOSPC@1")
            assert await device.trash(chunk(1))
            assert os.path.getsize(os.path.join(place.path, "reserve")) == 0

    asyncio.run(walk())


def test_the_ballast_is_given_back_for_the_index_and_puts_do_not_eat_it(tmp_path: Path) -> None:
    """Emptying the trash needs the index; on a full disk it could otherwise free nothing, for ever."""
    place = Place(tmp_path, settings=replace(SETTINGS, ballast_bytes=1 << 20))

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            free = device.usage().free_bytes
            await device.trash(chunk(1))
            failpoints.arm("store.index.before_commit=error:ENOSPC@1")
            assert await device.empty_trash(1 << 60) > 0
            assert os.path.getsize(os.path.join(place.path, "reserve")) == 0
            assert device.usage().free_bytes <= free - (1 << 20) + 4096
            assert device.state == "ok"

    asyncio.run(walk())


def test_a_read_only_disk_is_named_so(place: Place) -> None:
    """A file system remounted read-only after errors: reads go on, writes go elsewhere."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.segment.before_write=error:EROFS")
            with pytest.raises(UnavailableError):
                await put(device, chunk(2), body(2, 1000))
            assert device.state == "read-only"
            assert await content(device, chunk(1)) == body(1, 1000)

    asyncio.run(walk())


def test_a_sync_that_hangs_fails_the_device_within_its_deadline(tmp_path: Path) -> None:
    """A hung disk must not hold uploads for ever."""
    place = Place(tmp_path, settings=replace(SETTINGS, io_deadline_seconds=0.8))

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.segment.before_sync=sleep:4@1")
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(put(device, chunk(2), body(2, 1000)), 60)
            assert device.state == "failed"

    asyncio.run(walk())


def test_an_index_that_cannot_be_written_loses_nothing(place: Place) -> None:
    """The flush failed: entries stay in memory, the device is failed until checked, a restart finds all."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.index.before_commit=error:EIO@1")
            await device.flush()
            assert device.state == "failed"
            assert await content(device, chunk(1)) == body(1, 1000)
            await device.check()
            await put(device, chunk(2), body(2, 1000))
            await device.flush()
            assert device.state == "ok"
            place.kill()
        async with place.open() as device:
            assert device.recovered.records == 0
            assert await content(device, chunk(1)) == body(1, 1000)
            assert await content(device, chunk(2)) == body(2, 1000)

    asyncio.run(walk())


def test_a_device_is_opened_once(place: Place) -> None:
    """Two processes on one directory would overwrite each other's records."""

    async def walk() -> None:
        async with place.open():
            with pytest.raises(UnavailableError) as caught:
                async with place.open():
                    pytest.fail("opened twice")
            assert caught.value.code == "device-in-use"
        async with place.open() as device:
            assert device.state == "ok"

    asyncio.run(walk())


def test_a_wrong_directory_is_refused(tmp_path: Path) -> None:
    """Somebody's home directory must not be formatted; exchanged disks must not be taken for each other."""

    async def walk() -> None:
        foreign = Place(tmp_path / "foreign")
        Path(foreign.path).mkdir(parents=True)
        (Path(foreign.path) / "letter.txt").write_text("mine")
        with pytest.raises(ConfigError, match=r"letter\.txt"):
            async with foreign.open():
                pytest.fail("formatted")
        assert os.listdir(foreign.path) == ["letter.txt"]
        place = Place(tmp_path / "good")
        async with place.open(uuid=b"\x07" * 16) as device:
            assert device.uuid == b"\x07" * 16
            await device.note(cluster_id="c", seen_sequence=9)
        with pytest.raises(ConfigError, match="exchanged"):
            async with place.open(uuid=b"\x08" * 16):
                pytest.fail("opened")
        described = Path(place.path) / "device.json"
        async with place.open(uuid=b"\x07" * 16) as device:
            assert (device.cluster_id, device.seen_sequence) == ("c", 9)
        described.write_text(json.dumps({**json.loads(described.read_text()), "format": 99}))
        with pytest.raises(ConfigError, match="format 99"):
            async with place.open():
                pytest.fail("opened")
        described.write_text("{")
        with pytest.raises(ConfigError, match="damaged"):
            async with place.open():
                pytest.fail("opened")

    asyncio.run(walk())


def test_chunks_without_their_device_json_are_not_formatted_over(place: Place) -> None:
    """A lost device.json must not cost the chunks."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
        os.unlink(os.path.join(place.path, "device.json"))
        with pytest.raises(ConfigError, match=r"no device\.json"):
            async with place.open():
                pytest.fail("formatted")

    asyncio.run(walk())


def test_an_interrupted_format_is_taken_up_again(place: Place) -> None:
    """A kill during the first start leaves directories without device.json."""

    async def walk() -> None:
        failpoints.arm("store.layout.before_rename=error:EIO@1")
        with pytest.raises(OSError):
            async with place.open():
                pytest.fail("opened")
        async with place.open() as device:
            await put(device, chunk(1), body(1, 10))

    asyncio.run(walk())


POINTS = [
    "store.segment.before_write@9", "store.segment.after_write@9", "store.segment.before_sync@9",
    "store.segment.after_sync@9", "store.directory.before_sync@4", "store.directory.after_sync@4",
    "store.file.before_create@2", "store.file.before_write@2", "store.file.before_sync@2", "store.file.after_sync@2",
    "store.file.before_rename@1", "store.file.after_rename@1", "store.file.before_unlink@1",
    "store.index.before_write@3", "store.index.before_commit@3", "store.index.after_commit@3",
    "store.segment.before_unlink@1", "store.segment.after_unlink@1", "store.quarantine.before_sync@1",
]

CHILD = """
import asyncio, sys
from pathlib import Path
from tests.unit.store.place import Place, body, chunk, put, put_large
async def walk():
    async with Place(Path(sys.argv[1])).open() as device:
        def acked(*words): print(*words, flush=True)
        for n in range(40):
            await put(device, chunk(n), body(n, 9000)); acked("put", n, 9000)
            if n % 8 == 7:
                await put_large(device, chunk(100 + n), body(100 + n, 90_000)); acked("put", 100 + n, 90_000)
                print("try", n - 1, flush=True)
                await device.trash(chunk(n - 1)); acked("trash", n - 1)
                print("try", 100 + n, flush=True)
                await device.trash(chunk(100 + n)); acked("trash", 100 + n)
                print("try", n - 2, flush=True)
                await device.quarantine(chunk(n - 2), "test"); acked("gone", n - 2)
                await device.flush()
        for n in range(30):
            print("try", n, flush=True)
            await device.trash(chunk(n)); acked("gone", n)
        await device.empty_trash(1 << 60)
        await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
        await device.compact(garbage_ratio=0.3, bytes_max=1 << 30)
        await put(device, chunk(200), body(200, 9000)); acked("put", 200, 9000)
        acked("end")
asyncio.run(walk())
"""


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_each_failpoint_loses_nothing_acknowledged(tmp_path: Path, point: str) -> None:
    """R2: before and after each write, sync, rename and unlink that matters."""
    name, _, at_pass = point.partition("@")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, failpoints.VARIABLE: f"{name}=kill@{at_pass}", "PYTHONPATH": os.getcwd()})
    assert child.returncode == -signal.SIGKILL, child.stderr
    kept: dict[int, int] = {}
    trashed: set[int] = set()
    unsure: set[int] = set()
    for line in child.stdout.splitlines():
        word, *numbers = line.split()
        if word == "put":
            kept[int(numbers[0])] = int(numbers[1])
        elif word == "try":
            unsure = {int(numbers[0])}
        else:
            trashed.add(int(numbers[0]))
    assert len(kept) > 3
    place = Place(tmp_path)

    async def walk() -> None:
        async with place.open() as device:
            for n, size in kept.items():
                if n in trashed:
                    with pytest.raises(NotFound):
                        await device.find(chunk(n))
                elif n not in unsure:
                    assert await content(device, chunk(n)) == body(n, size)
            assert device.recovered.bad_ranges == 0
            await put(device, chunk(999), body(999, 9000))

    asyncio.run(walk())


def test_failpoints_act_at_the_pass_that_is_named() -> None:
    """Otherwise the fault suite would test nothing."""
    failpoints.arm("a=error:EIO@2; b=sleep:0")
    failpoints.hit("a")
    failpoints.hit("b")
    failpoints.hit("unknown")
    with pytest.raises(OSError) as caught:
        failpoints.hit("a")
    assert caught.value.errno == errno.EIO
    failpoints.hit("a")
    for wrong in ("a", "a=explode", "a=error:NOPE", "a=kill:1", "a=kill@x", "a=sleep:soon"):
        with pytest.raises(ConfigError):
            failpoints.arm(wrong)
    failpoints.hit("a")


def test_writes_that_wait_are_bounded(tmp_path: Path) -> None:
    """A stalled disk must push back instead of filling memory."""
    place = Place(tmp_path, settings=replace(SETTINGS, sync_waiters_max=10))

    async def walk() -> None:
        async with place.open() as device:
            failpoints.arm("store.segment.before_sync=sleep:0.2@1")
            waiting = [device.submit_small(chunk(n), body(n, 100), sums_of(body(n, 100))) for n in range(10)]
            with pytest.raises(UnavailableError) as caught:
                device.submit_small(chunk(11), b"x", sums_of(b"x"))
            assert caught.value.code == "device-busy"
            await asyncio.gather(*waiting)

    asyncio.run(walk())


def test_the_clock_is_the_one_passed_in(tmp_path: Path) -> None:
    """The trash's age is measured in the clock's time."""
    clock = ManualClock(now_ms=5_000)
    place = Place(tmp_path, clock=clock)

    async def walk() -> None:
        async with place.open() as device:
            for n in (1, 2):
                await put(device, chunk(n), body(n, 1000))
                await device.trash(chunk(n))
                clock.advance(10)
            assert await device.empty_trash(6_000) > 0
            await device.restore(chunk(2))
            with pytest.raises(NotFound):
                await device.restore(chunk(1))

    asyncio.run(walk())


def test_nothing_is_acknowledged_before_its_sync(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise itself: bytes, and for a file also its name, are synced before the answer."""
    synced: dict[str, int] = {}

    def record(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            path, size = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size
            real(fd)
            synced[path] = size
        return sync

    monkeypatch.setattr(os, "fdatasync", record(os.fdatasync))
    monkeypatch.setattr(os, "fsync", record(os.fsync))

    async def walk() -> None:
        async with place.open() as device:
            for n in range(40):
                where = await put(device, chunk(n), body(n, 9000))
                path = place.segments()[where.segment]
                assert synced[path] >= where.offset + 9000
                assert os.path.join(place.path, "segments") in synced
            synced.clear()
            await device.trash(chunk(1))
            assert [p for p in synced if p.endswith(".seg")]
            await put_large(device, chunk(90), body(90, 100_000))
            path = place.file_of(chunk(90))
            assert synced[path] == os.path.getsize(path)
            assert os.path.dirname(path) in synced
            synced.clear()
            await device.trash(chunk(90))
            assert {os.path.dirname(path), os.path.join(place.path, "trash")} <= set(synced)

    asyncio.run(walk())


def test_the_applied_mark_is_never_ahead_of_what_was_acknowledged(place: Place) -> None:
    """A put that was appended but not settled when the index was flushed, acknowledged later, then a kill: a mark that
    counted its bytes already would hide it for ever."""

    async def walk() -> None:
        async with place.open() as device:
            failpoints.arm("store.segment.after_sync=sleep:0.2@2")
            await put(device, chunk(1), body(1, 1000))
            first = device.submit_small(chunk(2), body(2, 1000), sums_of(body(2, 1000)))
            appends = device._appends
            while appends._appended or not appends.committer._items.empty():    # type: ignore[attr-defined]
                await asyncio.sleep(0)
            second = device.submit_small(chunk(3), body(3, 1000), sums_of(body(3, 1000)))
            await first
            await device.flush()
            await second
            place.kill()
        async with place.open() as device:
            for n in (1, 2, 3):
                assert await content(device, chunk(n)) == body(n, 1000)

    asyncio.run(walk())


@pytest.mark.parametrize("gives_up", [False, True])
def test_what_was_appended_in_the_turn_of_the_close_is_synced(place: Place, gives_up: bool) -> None:
    """A server that stops in the moment of a write: the record is in the log, its committer has not heard of it yet.
    Whether its writer waits or is gone, the close syncs it; a start that trusts a clean close looks for no more."""

    async def walk() -> None:
        async with place.open() as device:
            futures = [device.submit_small(chunk(n), body(n, 1000), sums_of(body(n, 1000))) for n in range(1, 4)]
            if gives_up:
                for future in futures:
                    future.cancel()
        if not gives_up:
            assert len({future.result() for future in futures}) == 3
        async with place.open() as device:
            assert device.recovered.records == 0
            for n in range(1, 4):
                assert await content(device, chunk(n)) == body(n, 1000)

    asyncio.run(walk())


def test_a_close_that_the_disk_does_not_follow_answers_who_waits(tmp_path: Path) -> None:
    """The sync hangs while the server stops: its writers get an error, never silence, and never a receipt later."""
    place = Place(tmp_path, settings=replace(SETTINGS, io_deadline_seconds=0.5))

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            failpoints.arm("store.segment.before_sync=sleep:3@1")
            future = device.submit_small(chunk(2), body(2, 1000), sums_of(body(2, 1000)))
        assert isinstance(future.exception(), UnavailableError)
        failpoints.arm("")
        async with place.open() as device:
            assert device.recovered.records == 1
            assert await content(device, chunk(1)) == body(1, 1000)

    asyncio.run(walk())


def test_what_was_appended_before_a_failure_is_answered_and_never_settled_later(place: Place) -> None:
    """A device fails between an append and its sync, is checked and renewed: the old records are answered as failed,
    and new writes, of the same chunk too, are settled in order."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            given_up = device.submit_small(chunk(2), body(2, 1000), sums_of(body(2, 1000)))
            device.fail("failed", "the test says so")      # in the same turn: not handed over yet
            await device.check()
            again = device.submit_small(chunk(2), body(2, 1000), sums_of(body(2, 1000)))
            others = [device.submit_small(chunk(n), body(n, 1000), sums_of(body(n, 1000))) for n in range(3, 9)]
            assert isinstance(given_up.exception(), UnavailableError)
            places = await asyncio.gather(again, *others)
            assert len(set(places)) == 7 and not device._appends.has(chunk(2))
            place.kill()
        async with place.open() as device:
            for n in range(1, 9):
                assert await content(device, chunk(n)) == body(n, 1000)

    asyncio.run(walk())


def test_a_committer_that_was_given_up_syncs_nothing_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync hangs, the device fails, its descriptors are closed and their numbers used again. The thread that comes
    back must not sync through them: it would take the error that the new log's committer has to see."""
    is_in, may_go, synced = threading.Event(), threading.Event(), []
    real = os.fdatasync

    def held(fd: int) -> None:
        if threading.current_thread() is old_thread[0]:
            is_in.set()
            may_go.wait(60)
        synced.append(threading.current_thread())
        real(fd)

    old_thread: list[threading.Thread | None] = [None]
    monkeypatch.setattr(os, "fdatasync", held)

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            old = device._appends.committer
            assert isinstance(old, ThreadCommitter)
            synced.clear()
            old_thread[0] = old._thread
            first = device.submit_small(chunk(2), body(2, 1000), sums_of(body(2, 1000)))
            await asyncio.to_thread(is_in.wait, 60)
            second = device.submit_small(chunk(3), body(3, 1000), sums_of(body(3, 1000)))
            await asyncio.sleep(0)      # one turn: the second group waits behind the first
            device.fail("failed", "the test says so")
            may_go.set()
            await device.check()
            await put(device, chunk(4), body(4, 1000))
            await asyncio.to_thread(old._thread.join, 60)
            assert all(isinstance(future.exception(), UnavailableError) for future in (first, second))
            assert synced.count(old._thread) == 1

    asyncio.run(walk())


def test_a_writer_that_gives_up_takes_the_record_from_nobody(place: Place) -> None:
    """Two writers send one chunk (a repeat after a cut connection), the first goes away: the second gets its answer."""

    async def walk() -> None:
        async with place.open() as device:
            for number, cancels_early in ((1, True), (2, False)):
                data = body(number, 1000)
                first = asyncio.ensure_future(put(device, chunk(number), data))
                await asyncio.sleep(0)
                assert device._appends.has(chunk(number))
                if cancels_early:
                    first.cancel()
                second = device.submit_small(chunk(number), data, sums_of(data))
                first.cancel()
                await second
                assert await content(device, chunk(number)) == data
            alone = device.submit_small(chunk(3), body(3, 1000), sums_of(body(3, 1000)))
            alone.cancel()
            await device.submit_small(chunk(3), body(3, 1000), sums_of(body(3, 1000)))
            assert await content(device, chunk(3)) == body(3, 1000)

    asyncio.run(walk())
