"""Several small chunks in one message: each is judged for itself, stored as if it had come alone, and bounded."""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from objectd.app import ObjectServer
from objectd.config import Chunks
from objectd.routes.uploads import BACK_PRESSURE_EVERY
from tests.kit.devices import Fault, FaultyDevice, MemoryDevice
from tests.unit.objectd.world import SECONDS, World, play
from tests.unit.store.place import SETTINGS, Place
from tests.unit.store.place import content as content_of
from tierstore import failpoints, wire
from tierstore.checksum import sums_of
from tierstore.clock import SystemClock
from tierstore.errors import CapacityError, TicketRefused
from tierstore.names import chunk_id
from tierstore.wire.chunks import SET_BYTES_MAX, SET_ITEMS_MAX, ChunkSet, SmallChunk, StoredChunk, StoredSet


def body(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def small(ticket: bytes, data: bytes, *, index: int = 0, sums: bytes | None = None) -> SmallChunk:
    return SmallChunk(ticket, index, "b/k", sums_of(data) if sums is None else sums, memoryview(data))


async def send(world: World, server: ObjectServer, message: bytes) -> Any:
    return await world.network.transport("client").call(
        world.url(server), b"PUT", b"/v1/chunks", body=message, seconds=SECONDS
    )


async def stored(world: World, server: ObjectServer, *items: SmallChunk) -> list[StoredChunk]:
    reply = await send(world, server, wire.encode(ChunkSet(list(items))))
    assert reply.status == 200, reply.body
    return wire.decode(reply.body, StoredSet).results


def test_each_chunk_of_a_set_has_its_own_result() -> None:
    """A gateway sends chunks of many clients together: one client's fault must not fail another's write."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        uploads = [world.upload() for _ in range(4)]
        tickets = [world.write_ticket(server, 1, upload) for upload in uploads]
        data = [body(1000 + number, number) for number in range(4)]
        results = await stored(
            world, server, small(tickets[0], data[0]), small(b"nonsense", data[1]),
            small(tickets[2], data[2], sums=b"\0\0\0\0"), small(tickets[3], data[3], index=5),
        )  # fmt: skip
        assert [result.code for result in results] == ["", TicketRefused.code, "checksum-mismatch", ""]
        for place, index in ((0, 0), (3, 5)):
            receipt = world.receipt(server, results[place].receipt)
            chunk = chunk_id(uploads[place], index)
            assert (receipt.chunk, receipt.chunk_bytes) == (chunk, len(data[place]))
            assert await world.get(server, 1, chunk, data[place]) == data[place]
        again = await stored(world, server, small(tickets[0], data[0]), small(tickets[0], data[1]))
        assert [result.code for result in again] == ["", "chunk-exists"]
        assert server.uploads.uploads == server.uploads.upload_bytes == 0

    play(test)


def test_a_device_that_is_full_or_fails_refuses_its_chunks_only() -> None:
    """Two devices in one message: the answer of the good one must not wait for, or fall with, the bad one."""

    async def test(world: World) -> None:
        full = FaultyDevice(world.device(1))
        full.faults.append(Fault("write", errno.ENOSPC))
        server = await world.start("one", full, world.device(2))
        data = body(4096)
        results = await stored(
            world, server, *(small(world.write_ticket(server, device, world.upload()), data) for device in (1, 2))
        )
        assert [result.code for result in results] == [CapacityError.code, ""]
        assert results[0].status == CapacityError.status

    play(test)


@pytest.mark.parametrize("count", [0, SET_ITEMS_MAX + 1])
def test_a_set_that_is_empty_or_too_long_is_refused_whole(count: int) -> None:
    """The number of chunks that one message may hold open is bounded."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        items = [small(world.write_ticket(server, 1, world.upload()), b"x") for _ in range(count)]
        reply = await send(world, server, wire.encode(ChunkSet(items)))
        assert (reply.status, b"too-many-items" in reply.body) == (400, True)
        assert server.uploads.uploads == server.uploads.upload_bytes == server.uploads.uploads_total == 0

    play(test)


def test_what_cannot_be_read_or_is_too_large_is_refused_before_it_is_stored() -> None:
    """Bad input gets a clear error, never a 500, and leaves nothing held."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1), chunks=Chunks(upload_bytes_max=1 << 20))
        assert (await send(world, server, b"\xc1")).status == 400
        assert (await send(world, server, bytes(SET_BYTES_MAX + 1))).status == 413
        busy = await send(world, server, bytes(2 << 20))
        assert (busy.status, b"too-many-uploads" in busy.body) == (503, True)
        ticket = world.write_ticket(server, 1, world.upload())
        results = await stored(world, server, small(ticket, body(300_000)), small(ticket, b""))
        assert [result.status for result in results] == [413, 413]
        assert server.uploads.uploads == server.uploads.upload_bytes == server.uploads.uploads_total == 0

    play(test)


@pytest.mark.parametrize(
    ("errno_", "code", "is_whole"), [(errno.ENOSPC, CapacityError.code, True), (errno.EIO, "device-failed", False)]
)
def test_a_disk_that_goes_wrong_in_the_middle_of_a_set(tmp_path: Path, errno_: int, code: str, is_whole: bool) -> None:
    """The real store, the third of five appends fails. Full: what was appended before it is stored. An error: it is
    failed, and what was appended but not synced is no more acknowledged than the rest. The other device goes on, and
    every receipt is true in the next life."""

    async def test() -> None:
        place = Place(tmp_path)
        clock = SystemClock()
        async with place.open() as disk:
            world = World(asyncio.get_running_loop(), clock=clock)
            try:
                server = await world.start("one", disk, MemoryDevice(clock=clock, uuid=bytes([9]) * 16, path="memory"))
                uploads = [world.upload() for _ in range(6)]
                data = [body(3000, number) for number in range(6)]
                items = [
                    small(world.write_ticket(server, 2 if number == 5 else 1, upload), content)
                    for number, (upload, content) in enumerate(zip(uploads, data, strict=True))
                ]
                failpoints.arm(f"store.segment.before_write=error:{errno.errorcode[errno_]}@3")
                results = await stored(world, server, *items)
                failpoints.arm("")
                before = ["", ""] if is_whole else [code, code]
                assert [result.code for result in results] == [*before, code, code, code, ""]
                assert server.uploads.uploads == server.uploads.upload_bytes == 0
                assert all(slot.waiting == 0 for slot in server.slots)
                await disk.check()
                again = await stored(world, server, *items)
                assert [result.code for result in again] == [""] * 6
            finally:
                failpoints.arm("")
                await world.stop()
            place.kill()
        async with place.open() as disk:
            for upload, content in zip(uploads[:5], data, strict=False):
                assert await content_of(disk, chunk_id(upload, 0)) == content

    asyncio.run(test())


def test_a_set_waits_for_a_disk_that_hangs_no_longer_than_the_disk_is_given(tmp_path: Path) -> None:
    """One message, a hung disk and one that is well: both chunks have their answer when the hung one's time is over."""

    async def test() -> None:
        place = Place(tmp_path, settings=replace(SETTINGS, io_deadline_seconds=0.5))
        clock = SystemClock()
        async with place.open() as disk:
            world = World(asyncio.get_running_loop(), clock=clock)
            try:
                server = await world.start("one", disk, MemoryDevice(clock=clock, uuid=bytes([9]) * 16, path="memory"))
                failpoints.arm("store.segment.before_sync=sleep:3@1")
                items = [small(world.write_ticket(server, device, world.upload()), body(500)) for device in (1, 2)]
                message = wire.encode(ChunkSet(items))
                reply = await world.network.transport("client").call(
                    world.url(server), b"PUT", b"/v1/chunks", body=message, seconds=120
                )
                assert [result.code for result in wire.decode(reply.body, StoredSet).results] == ["device-failed", ""]
                assert server.uploads.uploads == server.uploads.upload_bytes == 0
            finally:
                failpoints.arm("")
                await world.stop()

    asyncio.run(test())


def test_a_chunk_named_twice_in_one_set_is_stored_once() -> None:
    """A gateway that sends a chunk again while the first is under way: the same bytes get the same place, other bytes
    are refused, and the ones that came first stay."""

    async def test(world: World) -> None:
        device = world.device(1, sync_seconds=1.0)
        server = await world.start("one", device)
        upload, data = world.upload(), body(2000)
        ticket = world.write_ticket(server, 1, upload)
        results = await stored(
            world, server, small(ticket, data), small(ticket, data), small(ticket, body(2000, 2)),
            small(ticket, data[:1999]), small(ticket, data, index=1),
        )  # fmt: skip
        assert [result.code for result in results] == ["", "", "chunk-exists", "chunk-exists", ""]
        first, second = (world.receipt(server, result.receipt) for result in results[:2])
        assert (first.chunk, first.segment, first.offset) == (second.chunk, second.segment, second.offset)
        assert set(device.kept) == {chunk_id(upload, 0), chunk_id(upload, 1)}
        assert await world.get(server, 1, chunk_id(upload, 0), data) == data

    play(test)


def test_tickets_that_are_not_for_this_place_buy_nothing() -> None:
    """Each of these among good ones: of another server, of a device that is not here, lapsed, for fewer chunks, for
    smaller ones, for reading, cut short; and the good ones beside them are stored."""

    async def test(world: World) -> None:
        device = world.device(1)
        server, other = await world.start("one", device), await world.start("two", world.device(2))
        upload, data = world.upload(), body(4000)
        good = world.write_ticket(server, 1, upload)
        bad = {
            "another server": small(world.write_ticket(other, 2, upload), data),
            "another server, our key": small(world.write_ticket(server, 1, upload, to=other.standing.server), data),
            "no such device": small(world.write_ticket(server, 77, upload), data),
            "lapsed": small(world.write_ticket(server, 1, upload, expires_at=world.clock.now_ms() // 1000 - 1), data),
            "too few": small(world.write_ticket(server, 1, upload, index_count=1), data, index=1),
            "negative": small(good, data, index=-1),
            "beyond": small(good, data, index=1 << 32),
            "too small": small(world.write_ticket(server, 1, upload, chunk_bytes_max=3999), data),
            "to read": small(world.read_ticket(server, 1, chunk_id(upload, 0), len(data)), data),
            "cut": small(good[:-1], data),
            "empty": small(b"", data),
            "no sums": small(good, data, sums=b""),
            "too many sums": small(good, data, sums=sums_of(data) * 2),
        }  # fmt: skip
        results = await stored(world, server, small(good, data, index=2), *bad.values(), small(good, data, index=3))
        assert results[0].receipt and results[-1].receipt
        for name, result in zip(bad, results[1:-1], strict=True):
            assert not result.receipt and result.code and 400 <= result.status < 500, (name, result)
        assert set(device.kept) == {chunk_id(upload, 2), chunk_id(upload, 3)}
        assert server.uploads.uploads_total == 2

    play(test)


def test_messages_that_are_no_sets_are_refused_and_hold_nothing() -> None:
    """Malformed frames: cut anywhere, bytes added or changed. A clear refusal of the whole or of single chunks, never a
    500, nothing held; a chunk that is stored all the same has the bytes that its sums say."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        upload = world.upload()
        ticket, data = world.write_ticket(server, 1, upload), body(300)
        whole = wire.encode(ChunkSet([small(ticket, data, index=number) for number in range(4)]))
        rng = random.Random(3)
        messages = [whole[:at] for at in range(0, len(whole), 7)] + [whole + b"\0", b"", b"\xc0", b"\x91" * 5000]
        for _ in range(600):
            changed = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(changed) if rng.random() < 0.5 else 40)] = rng.randrange(256)
            messages.append(bytes(changed))
        statuses = Counter[int]()
        for message in messages:
            reply = await send(world, server, message)
            statuses[reply.status] += 1
            if reply.status == 200:
                results = wire.decode(reply.body, StoredSet).results
                assert all(result.receipt or 400 <= result.status < 500 for result in results), results
        assert set(statuses) <= {200, 400, 411, 413} and min(statuses[200], statuses[400]) > 50, statuses
        assert server.uploads.uploads == server.uploads.upload_bytes == 0
        assert all(sums_of(kept.data) == kept.sums for kept in device.kept.values())
        assert set(device.kept) <= {chunk_id(upload, number) for number in range(8)}

    play(test)


def test_a_receipt_that_cannot_be_signed_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours behind the store's callback: nobody else would answer, the gateway would wait for its deadline
    and the message's bytes would count as held."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        ticket, data = world.write_ticket(server, 1, world.upload()), body(300)

        def broken(**_: object) -> bytes:
            raise ValueError("no key")

        monkeypatch.setattr(server.standing, "sign", broken)
        results = await stored(world, server, small(ticket, data), small(b"nonsense", data))
        assert [result.status for result in results] == [500, TicketRefused.status]
        alone = await world.network.transport("client").call(
            world.url(server), b"PUT", b"/v1/chunks/" + ticket + b"?index=1", body=data + sums_of(data), seconds=SECONDS
        )
        assert alone.status == 500
        assert server.uploads.uploads == server.uploads.upload_bytes == 0

    play(test)


def test_chunks_of_one_moment_share_a_message_and_keep_their_results() -> None:
    """The client's half, far enough that puts that wait for the index (every 256th) are among them."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        calls = 0
        inside = world.client._lanes._transport
        call = inside.call

        async def counted(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            return await call(*arguments, **named)

        inside.call = counted       # type: ignore[method-assign]
        uploads = [world.upload() for _ in range(BACK_PRESSURE_EVERY + 50)]
        data = [body(100 + number, number) for number in range(len(uploads))]
        waiting = [
            world.client.store_small(
                world.url(server), 1, world.write_ticket(server, 1, upload), index=0, name="b/k", data=content,
                sums=sums_of(content), seconds=SECONDS,
            )
            for upload, content in zip(uploads, data, strict=True)
        ]  # fmt: skip
        waiting[3].cancel()
        receipts = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(receipts.pop(3), asyncio.CancelledError)
        assert calls <= 2 + len(uploads) // SET_ITEMS_MAX
        del uploads[3], data[3]
        for upload, content, receipt in zip(uploads, data, receipts, strict=True):
            assert isinstance(receipt, bytes)
            assert world.receipt(server, receipt).chunk == chunk_id(upload, 0)
            assert await world.get(server, 1, chunk_id(upload, 0), content) == content

    play(test)
