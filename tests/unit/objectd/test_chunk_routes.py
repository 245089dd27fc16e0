"""The chunk routes on in-memory devices: what is stored comes back, what is wrong is refused and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import Any

import pytest

from objectd.config import Chunks
from objectd.routes.uploads import data_bytes
from tests.kit.devices import Fault, FaultyDevice, SlowDevice
from tests.unit.objectd.world import SECONDS, World, play
from tierstore.checksum import BLOCK_BYTES, block_count, crc_of, sums_of
from tierstore.errors import (
    CapacityError,
    ChecksumMismatch,
    ConflictError,
    IntegrityError,
    NotFound,
    RangeNotSatisfiable,
    RequestError,
    TicketRefused,
    TierstoreError,
    TooLarge,
    UnavailableError,
)
from tierstore.names import ChunkId, chunk_id
from tierstore.ticket import NO_HEAT

SIZES = (1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 256 * 1024, 256 * 1024 + 1, 3 * 1024 * 1024 + 7)


def body(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_stored_comes_back(size: int) -> None:
    """Small chunks and streamed ones alike; in the field, anything else is data loss."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data = body(size)
        chunk = await world.put(server, 1, data)
        assert await world.get(server, 1, chunk, data) == data
        assert server.uploads.uploads == server.uploads.upload_bytes == 0

    play(test)


def test_a_range_brings_only_its_blocks() -> None:
    """Readers of a piece of a large object must not pay for all of it; the sums must still be the chunk's."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data = body(5 * BLOCK_BYTES + 100)
        chunk = await world.put(server, 1, data)
        first, length = BLOCK_BYTES + 5, 2 * BLOCK_BYTES
        assert await world.get(server, 1, chunk, data, first=first, length=length) == data[first : first + length]
        assert server.reads.bytes_total == 3 * BLOCK_BYTES

    play(test)


@pytest.mark.parametrize("blocks", [b"1", b"-", b"a-b", b"2-1", b"0-6", b"6-6", b"0-99999999999", b"-1-2"])
def test_blocks_that_are_not_there_are_refused(blocks: bytes) -> None:
    """A bad range must be a clear 416, never an empty or wrong answer."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        chunk = await world.put(server, 1, body(5 * BLOCK_BYTES + 100))
        ticket = world.read_ticket(server, 1, chunk, 5 * BLOCK_BYTES + 100)
        reply = await call(world, server, b"GET", b"/v1/chunks/" + ticket + b"?blocks=" + blocks)
        assert (reply.status, RangeNotSatisfiable.code in reply.body.decode()) == (416, True)

    play(test)


async def call(world: World, server: Any, method: bytes, target: bytes, data: bytes = b"") -> Any:
    return await world.network.transport("client").call(world.url(server), method, target, body=data, seconds=SECONDS)


async def refused(world: World, server: Any, ticket: bytes, *, index: int = 0, data: bytes = b"x") -> TierstoreError:
    with pytest.raises(TierstoreError) as caught:
        await world.client.put_chunk(
            world.url(server), ticket, index=index, data=data, sums=sums_of(data), seconds=SECONDS
        )
    return caught.value


def test_a_ticket_is_good_for_one_server_one_act_one_chunk_and_its_time() -> None:
    """Tickets are the only guard of the bytes: each wrong one must be refused."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data, upload = body(100), world.upload()
        chunk = await world.put(server, 1, data)
        past = world.clock.now_ms() // 1000 - 1
        good = world.read_ticket(server, 1, chunk, 100)
        forged = good[:-2] + (b"AA" if good[-2:] != b"AA" else b"BB")
        for ticket in (
            world.read_ticket(server, 1, chunk, 100, expires_at=past),
            world.read_ticket(server, 1, chunk, 100, to=99),
            world.write_ticket(server, 1, upload),
            forged,
            b"nonsense",
            b"!" * 82,
        ):
            reply = await call(world, server, b"GET", b"/v1/chunks/" + ticket)
            assert reply.status == 403, ticket
        for ticket in (
            world.write_ticket(server, 1, upload, expires_at=past),
            world.write_ticket(server, 1, upload, to=99),
            good,
        ):
            assert isinstance(await refused(world, server, ticket), TicketRefused)
        few = world.write_ticket(server, 1, upload, first_index=2, index_count=2)
        assert isinstance(await refused(world, server, few, index=1), TicketRefused)
        assert isinstance(await refused(world, server, few, index=4), TicketRefused)
        small = world.write_ticket(server, 1, upload, chunk_bytes_max=99)
        assert isinstance(await refused(world, server, small, data=data), TooLarge)
        elsewhere = world.write_ticket(server, 9, upload)
        assert (await refused(world, server, elsewhere)).code == "no-such-device"

    play(test)


@pytest.mark.parametrize("size", [100, 300_000])
def test_wrong_sums_are_refused_and_leave_nothing(size: int) -> None:
    """A flip between gateway and disk must be found before the receipt, and the space given back."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        data, upload = body(size), world.upload()
        with pytest.raises(ChecksumMismatch):
            await world.client.put_chunk(
                world.url(server), world.write_ticket(server, 1, upload), index=0, data=data,
                sums=sums_of(body(size, 2)), seconds=SECONDS,
            )  # fmt: skip
        assert not device.kept and device.usage().used_bytes == 0
        assert server.uploads.uploads == server.uploads.upload_bytes == 0
        assert await world.put(server, 1, data, upload=upload) == chunk_id(upload, 0)

    play(test)


@pytest.mark.parametrize("size", [100, 300_000])
def test_a_repeat_gets_a_receipt_and_other_bytes_a_conflict(size: int) -> None:
    """A lost answer makes clients send again: the same bytes must succeed, others must never replace them."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data, upload = body(size), world.upload()
        chunk = await world.put(server, 1, data, upload=upload)
        await world.put(server, 1, data, upload=upload)
        error = await refused(world, server, world.write_ticket(server, 1, upload), data=body(size, 2))
        assert isinstance(error, ConflictError) and error.code == "chunk-exists"
        assert await world.get(server, 1, chunk, data) == data

    play(test)


@pytest.mark.parametrize("length", [0, 1, 4, BLOCK_BYTES + 4 + 4, 2 * (BLOCK_BYTES + 4) + 1])
def test_a_body_that_cannot_be_data_and_sums_is_refused(length: int) -> None:
    """Its length alone says that sums are missing: a clear 400 before the body is read."""
    with pytest.raises(RequestError, match="bytes of sum per block"):
        data_bytes(length)


@pytest.mark.parametrize("size", SIZES)
def test_the_length_of_the_data_follows_from_that_of_the_body(size: int) -> None:
    """There is no header for it: a wrong split would shift every chunk by bytes."""
    assert data_bytes(size + 4 * block_count(size)) == size


def test_an_index_that_is_none_is_refused() -> None:
    """The index makes the chunk's id: it is never guessed."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        ticket = world.write_ticket(server, 1, world.upload())
        for query in (b"", b"?index=", b"?index=x", b"?index=-1", b"?index=4294967296", b"?name=a"):
            reply = await call(world, server, b"PUT", b"/v1/chunks/" + ticket + query, b"x" + sums_of(b"x"))
            assert (reply.status, b"bad-index" in reply.body) == (400, True), query

    play(test)


def test_a_missing_chunk_is_404_and_told_to_metadata() -> None:
    """A copy the catalog believes in and the device lacks must start a repair."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        chunk = chunk_id(world.upload(), 0)
        with pytest.raises(NotFound) as caught:
            await world.get(server, 1, chunk, b"gone")
        assert caught.value.code == "no-such-chunk"
        await world.until(lambda: world.metadata.bad)
        assert (world.metadata.bad[0].chunk, world.metadata.bad[0].why) == (chunk, "missing")

    play(test)


def test_a_device_out_of_space_or_failed_refuses_before_the_body() -> None:
    """507 and 503 send the gateway elsewhere; the bytes must not travel first."""

    async def test(world: World) -> None:
        device = FaultyDevice(world.device(1))
        server = await world.start("one", device)
        device.faults.append(Fault("write", errno.ENOSPC))
        ticket = world.write_ticket(server, 1, world.upload())
        assert isinstance(await refused(world, server, ticket), CapacityError)
        device.faults.append(Fault("sync", errno.EIO))
        device._state = ""
        assert (await refused(world, server, ticket)).code == "device-failed"
        assert device.state == "failed"
        before = device.count.by_operation.copy()
        assert (await refused(world, server, ticket)).code == "device-failed"
        assert device.count.by_operation == before
        assert "failed" in " ".join(server.reasons_not_ready())

    play(test)


def test_a_disk_that_fills_in_the_middle_of_a_stream_ends_it_with_507() -> None:
    """The gateway must hear why, at once, and send the chunk elsewhere; nothing may hang or stay."""

    async def test(world: World) -> None:
        device = FillingDevice(world.device(1))
        server = await world.start("one", device)
        error = await refused(world, server, world.write_ticket(server, 1, world.upload()), data=body(3 << 20))
        assert isinstance(error, CapacityError)
        await world.until(lambda: server.uploads.uploads == 0)
        assert server.uploads.upload_bytes == 0 and device.usage().used_bytes == 0
        device.is_filling = False
        await world.put(server, 1, body(3 << 20))

    play(test)


class FillingDevice(FaultyDevice):
    """Its disk turns out to be full while a large chunk is written."""

    is_filling = True

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> Any:
        writer = super().begin(chunk, chunk_bytes, name_hint=name_hint, keep_warm=keep_warm)
        plain = writer.write

        def write(piece: Any) -> None:
            if self.is_filling:
                writer.abort()
                raise CapacityError("the disk is full")
            plain(piece)

        writer.write = write  # type: ignore[method-assign]
        return writer


def test_uploads_are_bounded_in_bytes_and_number() -> None:
    """Without a bound, slow disks and fast clients fill the memory."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1), clock=world.clock, seek_seconds=1.0, bytes_per_second=1e9)
        server = await world.start("one", slow, chunks=Chunks(upload_bytes_max=2500))
        first = [asyncio.ensure_future(world.put(server, 1, body(1000, n))) for n in range(2)]
        await world.until(lambda: server.uploads.uploads == 2)
        error = await refused(world, server, world.write_ticket(server, 1, world.upload()), data=body(1000))
        assert isinstance(error, UnavailableError) and error.code == "too-many-uploads"
        await asyncio.gather(*first)
        assert server.uploads.uploads == server.uploads.upload_bytes == 0
        await world.put(server, 1, body(1000))

    play(test)


def test_cold_reads_are_bounded_and_do_not_stop_warm_ones() -> None:
    """A slow disk must cost only those who wait for it."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1), clock=world.clock, seek_seconds=1.0, bytes_per_second=1e9)
        server = await world.start("one", slow, world.device(2), chunks=Chunks(cold_reads_max=2))
        data = body(1000)
        cold, warm = await world.put(server, 1, data), await world.put(server, 2, data)
        waiting = [asyncio.ensure_future(world.get(server, 1, cold, data)) for _ in range(2)]
        await world.until(lambda: server.reads.cold_reads == 2)
        began = world.clock.monotonic()
        assert await world.get(server, 2, warm, data) == data
        assert world.clock.monotonic() - began < 0.1
        with pytest.raises(UnavailableError) as caught:
            await world.get(server, 1, cold, data)
        assert caught.value.code == "too-many-reads"
        assert await asyncio.gather(*waiting) == [data, data]
        assert server.reads.cold_reads == 0

    play(test)


def test_a_crowd_for_a_cold_chunk_waits_for_one_access_to_the_disk() -> None:
    """Ten readers of the same chunk must not seek ten times, one behind the other; nor share the fate of the first."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1), clock=world.clock, seek_seconds=1.0, bytes_per_second=1e9)
        server = await world.start("one", slow)
        data = body(100_000)
        chunk, other = await world.put(server, 1, data), await world.put(server, 1, data[::-1])
        began = world.clock.monotonic()
        crowd = [asyncio.ensure_future(world.get(server, 1, chunk, data)) for _ in range(10)]
        apart = asyncio.ensure_future(world.get(server, 1, other, data[::-1]))
        await world.until(lambda: server.reads.cold_reads == 11)
        assert await asyncio.gather(*crowd, apart) == [data] * 10 + [data[::-1]]
        assert server.reads.joined_total == 9 and world.clock.monotonic() - began < 4.0
        third = await world.put(server, 1, data)
        first, *rest = [asyncio.ensure_future(world.get(server, 1, third, data)) for _ in range(4)]
        await world.until(lambda: server.reads.cold_reads == 4)
        first.cancel()
        assert await asyncio.gather(*rest) == [data] * 3
        await world.until(lambda: server.reads.cold_reads == 0)
        assert not server.reads._loading

    play(test)


def test_a_disk_that_hangs_gives_503_within_the_device_timeout() -> None:
    """A hung disk must not hang its readers: they have other replicas."""

    async def test(world: World) -> None:
        slow = SlowDevice(world.device(1), clock=world.clock, seek_seconds=0.0, bytes_per_second=1e9)
        server = await world.start("one", slow, chunks=Chunks(device_timeout=2.0))
        data = body(1000)
        chunk = await world.put(server, 1, data)
        slow._seek_seconds = 1000.0
        began = world.clock.monotonic()
        with pytest.raises(UnavailableError) as caught:
            await world.get(server, 1, chunk, data)
        assert caught.value.code == "device-slow"
        assert world.clock.monotonic() - began < 3

    play(test)


def test_an_error_of_the_disk_is_an_integrity_error_and_reported() -> None:
    """EIO on read: the reader falls over to another replica and repair hears of it."""

    async def test(world: World) -> None:
        device = FaultyDevice(world.device(1))
        server = await world.start("one", device)
        data = body(1000)
        chunk = await world.put(server, 1, data)
        device.faults.append(Fault("read", errno.EIO))
        with pytest.raises(IntegrityError):
            await world.get(server, 1, chunk, data)
        assert await world.get(server, 1, chunk, data) == data
        await world.until(lambda: world.metadata.bad)
        assert world.metadata.bad[0].why == "bad-block"

    play(test)


def test_a_client_that_goes_away_leaves_nothing() -> None:
    """Half an upload must free its space and its place in the account."""

    async def test(world: World) -> None:
        device = world.device(1)
        server = await world.start("one", device)
        for size in (1000, 3 << 20):
            upload = await world.client.begin_chunk(
                world.url(server), world.write_ticket(server, 1, world.upload()), index=0, chunk_bytes=size,
                seconds=SECONDS,
            )  # fmt: skip
            await upload.write(body(size // 2))
            await world.until(lambda: server.uploads.uploads == 1)
            upload.abort()
            await world.until(lambda: server.uploads.uploads == 0)
            assert server.uploads.upload_bytes == 0 and not device.kept and device.usage().used_bytes == 0

    play(test)


def test_reads_count_as_heat_by_their_share_and_system_reads_do_not() -> None:
    """Wrong heat moves the wrong chunks; repair and scrub must not make anything hot."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data = body(4 * BLOCK_BYTES)
        chunk = await world.put(server, 1, data)
        await world.get(server, 1, chunk, data)
        await world.get(server, 1, chunk, data, first=0, length=10)
        ticket = world.read_ticket(server, 1, chunk, len(data), flags=NO_HEAT)
        assert (await call(world, server, b"GET", b"/v1/chunks/" + ticket)).status == 200
        await world.until(lambda: world.metadata.heat)
        assert world.metadata.heat == {chunk: 1.25}

    play(test)


def test_a_ticket_with_a_stale_hint_finds_the_chunk_by_the_index() -> None:
    """Compaction moves records; tickets minted before it live on for minutes."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        data = body(1000)
        chunk = await world.put(server, 1, data)
        ticket = world.read_ticket(server, 1, chunk, 1000, segment=77, offset=4096)
        assert (await call(world, server, b"GET", b"/v1/chunks/" + ticket)).body == sums_of(data) + data

    play(test)


def test_a_chunk_of_another_length_than_the_ticket_says_is_damage() -> None:
    """Lengths are in the MAC: a difference means the copy is torn or another, never that the reader erred."""

    async def test(world: World) -> None:
        server = await world.start("one", world.device(1))
        chunk = await world.put(server, 1, body(1000))
        reply = await call(world, server, b"GET", b"/v1/chunks/" + world.read_ticket(server, 1, chunk, 999))
        assert (reply.status, b"bad-footer" in reply.body) == (500, True)
        await world.until(lambda: world.metadata.bad)

    play(test)


def test_the_sums_of_an_answer_combine_to_the_chunks_crc() -> None:
    """Readers trust nothing else."""
    data = body(200_000)
    from tierstore.checksum import combine_sums

    assert combine_sums(sums_of(data), len(data)) == crc_of(data)
