"""What a device makes of a directory after a kill, a power cut or damage."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from objectd.store import records
from tests.unit.store.place import Place, body, chunk, content, put, put_large
from tierstore.checksum import sums_of
from tierstore.errors import IntegrityError, NotFound
from tierstore.names import ChunkId


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_everything_acknowledged_survives_a_kill(place: Place) -> None:
    """The promise of an acknowledged write, without any orderly end and with an index that knows nothing of it."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(50):
                await put(device, chunk(n), body(n, 1000 + n))
            await put_large(device, chunk(90), body(90, 200_000))
            place.kill()
        async with place.open() as device:
            assert device.recovered.records == 50 and device.recovered.files_adopted == 1
            assert device.recovered.bad_ranges == 0
            for n in range(50):
                assert await content(device, chunk(n)) == body(n, 1000 + n)
            assert await content(device, chunk(90)) == body(90, 200_000)
            assert device.usage().chunks == 51

    asyncio.run(walk())


def test_recovery_scans_only_behind_the_applied_mark(place: Place) -> None:
    """A start after a kill must not read the whole device."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(40):
                await put(device, chunk(n), body(n, 1000))
            await device.flush()
            await put(device, chunk(41), body(41, 1000))
            place.kill()
        async with place.open() as device:
            assert device.recovered.records == 1
            assert device.usage().chunks == 41

    asyncio.run(walk())


def test_a_clean_stop_leaves_nothing_to_recover(place: Place) -> None:
    """Regular restarts are routine and must be quick."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 1000))
            await put_large(device, chunk(2), body(2, 100_000))
            before = device.usage()
        async with place.open() as device:
            assert device.recovered.records == 0 and device.recovered.files_adopted == 0
            assert device.usage().used_bytes == before.used_bytes and device.usage().chunks == 2

    asyncio.run(walk())


@pytest.mark.parametrize("damage", ["missing", "garbage", "shorter", "other"])
def test_a_lost_or_damaged_index_is_rebuilt(place: Place, damage: str) -> None:
    """The index is a cache: chunks, trash and what was emptied or quarantined must come out the same without it."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(30):
                await put(device, chunk(n), body(n, 9000))
            await put_large(device, chunk(50), body(50, 100_000))
            await put_large(device, chunk(51), body(51, 100_000))
            for name in (chunk(3), chunk(4), chunk(5), chunk(51)):
                await device.trash(name)
            await device.restore(chunk(4))
            await device.quarantine(chunk(6), "test")
            await device.trash(chunk(7))
            await device.empty_trash(1 << 60)
            await device.trash(chunk(8))
            uuid, before = device.uuid, [*device.chunks()]
        data = os.path.join(place.path, "index", "data.mdb")
        if damage == "missing":
            place.lose_index()
        elif damage == "garbage":
            place.overwrite(data, 0, bytes(8192))
        elif damage == "shorter":
            os.truncate(data, os.path.getsize(data) // 2)
        else:
            place.overwrite(data, 0, random.Random(1).randbytes(os.path.getsize(data)))
        async with place.open(uuid=uuid) as device:
            assert [*device.chunks()] == before
            for n in range(30):
                if n in (3, 5, 6, 7, 8):
                    with pytest.raises(NotFound):
                        await device.find(chunk(n))
                else:
                    assert await content(device, chunk(n)) == body(n, 9000)
            await device.restore(chunk(8))
            for gone in (3, 5, 6, 7, 51):
                with pytest.raises(NotFound):
                    await device.restore(chunk(gone))

    asyncio.run(walk())


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"TSR1" + b"\xff" * 300, random.Random(5).randbytes(777)])
def test_a_torn_tail_is_cut_and_the_log_goes_on(place: Place, tail: bytes) -> None:
    """A power cut in the middle of an append must neither lose what came before nor stop what comes after."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(5):
                await put(device, chunk(n), body(n, 3000))
            place.kill()
        number, path = max(place.segments().items())
        size = os.path.getsize(path)
        with open(path, "ab") as file:
            file.write(tail)
        async with place.open() as device:
            assert device.recovered.cut_bytes == len(tail) and device.recovered.bad_ranges == 0
            assert os.path.getsize(path) == size
            assert (await put(device, chunk(9), body(9, 3000))).segment == number
            place.kill()
        async with place.open() as device:
            for n in (0, 1, 2, 3, 4, 9):
                assert await content(device, chunk(n)) == body(n, 3000)

    asyncio.run(walk())


def test_a_record_torn_by_the_power_cut_does_not_take_whole_ones_behind_it_along(place: Place) -> None:
    """The disk writes sectors in any order: a whole record may stand behind a torn one."""

    async def walk() -> None:
        async with place.open() as device:
            wheres = await asyncio.gather(*(put(device, chunk(n), body(n, 3000)) for n in range(5)))
            place.kill()
        path = place.segments()[wheres[2].segment]
        place.overwrite(path, wheres[2].offset + 1000, bytes(100))
        async with place.open() as device:
            with pytest.raises(NotFound):
                await device.find(chunk(2))
            for n in (0, 1, 3, 4):
                assert await content(device, chunk(n)) == body(n, 3000)
            assert device.recovered.bad_ranges == 1 and len(place.quarantined()) == 1

    asyncio.run(walk())


def test_garbage_before_the_last_mark_is_skipped_and_quarantined_never_cut(place: Place) -> None:
    """Damage in the middle of a segment must cost only the records that it hit."""

    async def walk() -> None:
        async with place.open() as device:
            wheres = [await put(device, chunk(n), body(n, 3000)) for n in range(10)]
            uuid = device.uuid
            place.kill()
        path = place.segments()[wheres[4].segment]
        size = os.path.getsize(path)
        place.overwrite(path, wheres[4].offset, random.Random(3).randbytes(3100))   # headers of 4 and of the mark after
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert os.path.getsize(path) == size and device.recovered.bad_ranges == 1
            for n in range(10):
                if n == 4:
                    with pytest.raises(NotFound):
                        await device.find(chunk(n))
                else:
                    assert await content(device, chunk(n)) == body(n, 3000)
            assert len(place.quarantined()) == 1

    asyncio.run(walk())


def test_damage_at_the_very_end_of_a_marked_range_is_kept_for_people(place: Place) -> None:
    """What a mark covers was synced: if it is bad now, that is damage, not a torn tail."""

    async def walk() -> None:
        async with place.open() as device:
            where = await put(device, chunk(1), body(1, 3000))
            uuid = device.uuid
        path = place.segments()[where.segment]      # closed cleanly: a mark covers everything
        size = os.path.getsize(path)
        assert size > where.offset + 3064
        place.overwrite(path, where.offset, bytes(64))
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert os.path.getsize(path) == size
            assert device.recovered.bad_ranges == 1 and device.recovered.cut_bytes == 0
            assert len(place.quarantined()) == 1

    asyncio.run(walk())


def test_a_chunk_that_holds_a_copy_of_a_segment_is_not_mistaken_for_records(place: Place) -> None:
    """Bytes of a user that look like our records must never come to life when recovery searches for the next one."""

    async def walk() -> None:
        async with place.open() as device:
            await put(device, chunk(1), body(1, 500))
            await device.trash(chunk(1))
            await device.empty_trash(1 << 60)
            with open(max(place.segments().values()), "rb") as file:
                copy = file.read()
            where = await put(device, chunk(2), copy)
            await put(device, chunk(3), body(3, 500))
            uuid = device.uuid
            place.kill()
        place.overwrite(place.segments()[where.segment], where.offset, bytes(64))   # recovery must search in the copy
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert [c for c, _, _ in device.chunks()] == [chunk(3)]

    asyncio.run(walk())


def test_a_mark_counts_only_where_it_was_written() -> None:
    """A stale mark (of another segment, another place, another device) must not protect or cut anything."""
    raw = records.mark(4096, wall_ms=1, segment=7, offset=640, seed=5)
    assert records.parse(raw, segment=7, offset=640, seed=5) is not None
    for segment, offset, seed in ((8, 640, 5), (7, 648, 5), (7, 640, 6)):
        assert records.parse(raw, segment=segment, offset=offset, seed=seed) is None
    for at in range(64):
        changed = bytearray(raw)
        changed[at] ^= 1
        parsed = records.parse(changed, segment=7, offset=640, seed=5)
        assert parsed is None or at == 6    # the state byte is advice, not part of the sum


@pytest.mark.parametrize("keep", [0, 1, 50_000, 200_000, 200_063])
def test_a_truncated_chunk_file_that_was_whole_is_quarantined(place: Place, keep: int) -> None:
    """A file that lost its end is never served as if it were whole, and people can look at it."""

    async def walk() -> None:
        async with place.open() as device:
            await put_large(device, chunk(1), body(1, 200_000))
            await device.flush()
            place.kill()
        os.truncate(place.file_of(chunk(1)), keep)
        async with place.open() as device:
            with pytest.raises(NotFound):
                await device.find(chunk(1))
            assert device.recovered.files_bad == 1 and len(place.quarantined()) == 1
            await put_large(device, chunk(1), body(1, 200_000))
            assert await content(device, chunk(1)) == body(1, 200_000)

    asyncio.run(walk())


def test_an_unfinished_file_is_removed(place: Place) -> None:
    """An upload cut off by a kill must not hold space, nor block its id."""

    async def walk() -> None:
        async with place.open() as device:
            writer = device.begin(chunk(1), 200_000)
            writer.write(body(1, 150_000))
            place.kill()
            writer.abort()
        assert os.path.exists(place.file_of(chunk(1)))
        async with place.open() as device:
            assert device.recovered.files_unfinished == 1 and not os.path.exists(place.file_of(chunk(1)))
            await put_large(device, chunk(1), body(1, 200_000))

    asyncio.run(walk())


def test_a_file_that_somebody_removed_does_not_count_as_present(place: Place) -> None:
    """The inventory must report the loss, so that repair makes a new copy."""

    async def walk() -> None:
        async with place.open() as device:
            await put_large(device, chunk(1), body(1, 100_000))
            await device.flush()
            place.kill()
        os.unlink(place.file_of(chunk(1)))
        async with place.open() as device:
            assert device.recovered.files_missing == 1 and device.usage().chunks == 0

    asyncio.run(walk())


def test_a_lost_segment_does_not_count_as_present(place: Place) -> None:
    """The same for a whole segment."""

    async def walk() -> None:
        async with place.open() as device:
            for n in range(60):
                await put(device, chunk(n), body(n, 10_000))
            lost = (await put(device, chunk(0), body(0, 10_000))).segment
            await device.flush()
            expected = [c for c, _, where in device.chunks() if where.segment != lost]
            place.kill()
        os.unlink(place.segments()[lost])
        async with place.open() as device:
            assert [c for c, _, _ in device.chunks()] == expected and 0 < len(expected) < 60

    asyncio.run(walk())


def test_a_flipped_bit_is_seen_by_who_reads(place: Place) -> None:
    """The device does not check each read; sums and data must disagree so that the reader finds it."""

    async def walk() -> None:
        async with place.open() as device:
            where = await put(device, chunk(1), body(1, 4096))
            place.overwrite(place.segments()[where.segment], where.offset + 500, b"\x55")
            fast = device.read_small_now(chunk(1), where, 4096)
            raw = bytes(fast) if fast is not None else b""
            found = await device.find(chunk(1))
            data = await found.read(0, 4096)
            assert found.sums == sums_of(body(1, 4096)) != sums_of(data)
            assert not raw or raw == found.sums + data
            place.overwrite(place.segments()[where.segment], where.offset + 20, b"\xaa\xbb")   # now its header
            assert device.open_chunk(chunk(1), where) is None
            with pytest.raises(IntegrityError):
                await device.find(chunk(1))

    asyncio.run(walk())


def test_segment_numbers_are_never_used_again(place: Place) -> None:
    """Rule 10: a ticket names a segment and offset; another record must never lie there."""

    async def walk() -> None:
        async with place.open() as device:
            names: list[ChunkId] = [chunk(n) for n in range(60)]
            for n, name in enumerate(names):
                await put(device, name, body(n, 10_000))
            highest = max(place.segments())
            for name in names:
                await device.trash(name)
            await device.empty_trash(1 << 60)
            await put(device, chunk(99), body(99, 60_000))
            await device.compact(garbage_ratio=0.5, bytes_max=1 << 30)
            await device.compact(garbage_ratio=0.5, bytes_max=1 << 30)
            unlinked = set(range(1, highest + 1)) - set(place.segments())
            assert len(unlinked) >= 2
            uuid = device.uuid
        for path in place.segments().values():
            os.unlink(path)
        place.lose_index()
        async with place.open(uuid=uuid) as device:
            assert (await put(device, chunk(1), b"x")).segment > max(unlinked)

    asyncio.run(walk())
