"""Several small chunks in one message: each is judged for itself, stored as if it had come alone, and bounded."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from objectd.app import ObjectServer
from objectd.config import Chunks
from objectd.routes.uploads import BACK_PRESSURE_EVERY
from tests.kit.devices import Fault, FaultyDevice
from tests.unit.objectd.world import SECONDS, World, play
from tierstore import wire
from tierstore.checksum import sums_of
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
