"""The object client against an object server that lies, over both transports."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.contract.exchange_subjects import run, until
from tests.kit import virtual_time
from tierstore import wire
from tierstore.checksum import BLOCK_BYTES, block_count, crc_of, sums_of
from tierstore.clock import LoopClock
from tierstore.errors import CapacityError, ChecksumMismatch, IntegrityError, NotFound, TicketRefused, UnavailableError
from tierstore.names import ChunkId
from tierstore.serving.exchange import Exchange
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.limits import Limits
from tierstore.serving.run import Serving, listen
from tierstore.serving.table import Route
from tierstore.transport.chunk_lanes import ALONE_SECONDS
from tierstore.transport.inprocess import Network
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.pool import PooledTransport
from tierstore.transport.verified import LONG_PIECE_BYTES
from tierstore.wire.chunks import ChunkSet, StoredChunk, StoredSet

CHUNK = ChunkId(b"c" * 16)


class FakeObjectServer:
    """Speaks the chunk routes over a dict; can be told to flip bits or refuse."""

    def __init__(self) -> None:
        self.chunks: dict[bytes, bytes] = {}
        self.flip_data_at: int | None = None
        self.flip_sums_at: int | None = None
        self.refuse: Exception | None = None
        self.targets: list[bytes] = []

    def routes(self) -> list[Route]:
        return [Route(b"GET", b"/v1/chunks/", self.get), Route(b"PUT", b"/v1/chunks/", self.put)]

    def get(self, exchange: Exchange) -> None:
        self.targets.append(exchange.target)
        if self.refuse is not None:
            raise self.refuse
        data = self.chunks[exchange.route_arg]
        sums = bytearray(sums_of(data))
        blocks = exchange.query(b"blocks")
        first, last = map(int, blocks.split(b"-")) if blocks else (0, block_count(len(data)) - 1)
        body = bytearray(data[first * BLOCK_BYTES : (last + 1) * BLOCK_BYTES])
        if self.flip_data_at is not None:
            body[self.flip_data_at] ^= 1
        if self.flip_sums_at is not None:
            sums[self.flip_sums_at] ^= 1
        exchange.reply(200, bytes(sums + body), b"x-tierstore-sums: %d\r\nx-tierstore-tier: ssd\r\n" % len(sums))

    def put(self, exchange: Exchange) -> None:
        self.targets.append(exchange.target)
        if self.refuse is not None:
            raise self.refuse
        exchange.collect(100 << 20, lambda body: self.store(exchange, body))

    def store(self, exchange: Exchange, body: bytes) -> None:
        size = len(body)
        count = next(n for n in range(size // BLOCK_BYTES + 2) if n == block_count(size - 4 * n))
        data, sums = body[: size - 4 * count], body[size - 4 * count :]
        if sums_of(data) != sums:
            raise ChecksumMismatch("the sums do not fit")
        self.chunks[exchange.route_arg] = data
        exchange.reply(200, b"receipt-of-" + exchange.route_arg)


@asynccontextmanager
async def client_of(server: FakeObjectServer, kind: str) -> AsyncIterator[tuple[ObjectClient, str]]:
    if kind == "in-process":
        host = InProcessServer(server.routes())
        network = Network(random.Random(1))
        network.register("http://o:1", host)
        yield ObjectClient(network.transport("http://g:1"), LoopClock()), "http://o:1"
        await host.close()
        return
    serving = Serving(
        _nothing, server.routes(), sock=listen("127.0.0.1", 0), limits=Limits(drain_idle_seconds=0, drain_seconds=1)
    )
    task = asyncio.create_task(serving.run())
    transport = PooledTransport()
    try:
        await until(lambda: serving.is_started)
        yield ObjectClient(transport, LoopClock()), f"http://127.0.0.1:{serving.port}"
    finally:
        await transport.close()
        serving.stop()
        await task


async def _nothing(scope: dict[str, object], receive: object, send: Callable[[object], Awaitable[None]]) -> None:
    """Cold routes: there are none, as on a server of an older release."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


kinds = pytest.mark.parametrize("kind", ["protocol", "in-process"])
SIZES = [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 17, 1 << 20]


@kinds
@pytest.mark.parametrize("size", SIZES)
def test_ranges_are_widened_to_blocks_and_trimmed(kind: str, size: int) -> None:
    """Every edge of a range against every edge of a block, read whole and as a stream."""

    async def main() -> None:
        server = FakeObjectServer()
        data = server.chunks[b"t"] = os.urandom(size)
        edges = sorted({0, 1, size // 2, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, size - 1, size})
        async with client_of(server, kind) as (client, url):
            common = {"chunk": CHUNK, "chunk_bytes": size, "crc32c": crc_of(data), "seconds": 5.0}
            for first in edges:
                for last in edges:
                    if not 0 <= first < last <= size:
                        continue
                    got = await client.read_chunk(url, b"t", first=first, length=last - first, **common)  # type: ignore[arg-type]
                    assert got == data[first:last]
                    stream = await client.open_chunk(url, b"t", first=first, length=last - first, **common)  # type: ignore[arg-type]
                    pieces = bytearray()
                    while piece := await stream.next_piece():
                        assert len(piece) <= LONG_PIECE_BYTES
                        pieces += piece
                    stream.close()
                    assert pieces == data[first:last] and stream.tier == "ssd" and stream.unread == 0

    run(main())


@kinds
def test_pieces_that_were_given_away_stay_as_they_are(kind: str) -> None:
    """Who reads ahead keeps pieces while the stream goes on. A buffer that came back would be written again."""

    async def main() -> None:
        server = FakeObjectServer()
        size = 40 * BLOCK_BYTES + 7
        data = server.chunks[b"t"] = os.urandom(size)
        async with client_of(server, kind) as (client, url):
            for _ in range(2):      # the second stream reads into the buffers of the first
                stream = await client.open_chunk(
                    url, b"t", chunk=CHUNK, chunk_bytes=size, crc32c=crc_of(data), seconds=60
                )
                pieces = []
                while piece := await stream.next_piece():
                    stream.give_away()
                    pieces.append(piece)
                stream.close()
                assert len(pieces) > 1 and b"".join(pieces) == data
                buffers = [piece.obj for piece in pieces]
                assert len({id(buffer) for buffer in buffers}) == len(buffers)
                for piece in pieces:
                    piece.release()
                del piece
                for buffer in buffers:
                    assert isinstance(buffer, bytearray)
                    client.pieces.give_back(buffer)
            assert client.pieces.kept_bytes >= size

    asyncio.run(main())



@kinds
def test_no_byte_of_a_bad_block_is_released_but_good_ones_before_it_are(kind: str) -> None:
    """Promise 4: a rotten replica costs a failover, never a wrong byte."""

    async def main() -> None:
        server = FakeObjectServer()
        size = 10 * BLOCK_BYTES
        data = server.chunks[b"t"] = os.urandom(size)
        server.flip_data_at = 5 * BLOCK_BYTES + 3       # in the second piece
        async with client_of(server, kind) as (client, url):
            with pytest.raises(IntegrityError) as caught:
                await client.read_chunk(url, b"t", chunk=CHUNK, chunk_bytes=size, crc32c=crc_of(data), seconds=60)
            assert caught.value.code == "bad-block"
            stream = await client.open_chunk(url, b"t", chunk=CHUNK, chunk_bytes=size, crc32c=crc_of(data), seconds=60)
            piece = await stream.next_piece()
            assert 0 < len(piece) <= 5 * BLOCK_BYTES and piece == data[: len(piece)]
            with pytest.raises(IntegrityError):
                await stream.next_piece()
            stream.close()

    run(main())


@kinds
def test_sums_that_do_not_fit_the_catalog_are_a_bad_copy(kind: str) -> None:
    """A whole other chunk with right sums of its own is still the wrong chunk."""

    async def main() -> None:
        server = FakeObjectServer()
        data = server.chunks[b"t"] = os.urandom(3 * BLOCK_BYTES)
        async with client_of(server, kind) as (client, url):
            for flip, crc in ((2, crc_of(data)), (None, crc_of(b"another"))):
                server.flip_sums_at = flip
                for step in (client.read_chunk, client.open_chunk):
                    with pytest.raises(IntegrityError) as caught:
                        await step(
                            url, b"t", chunk=CHUNK, chunk_bytes=len(data), crc32c=crc, first=5, length=9, seconds=5
                        )
                    assert caught.value.code == "bad-block"
            with pytest.raises(UnavailableError):
                await client.read_chunk(
                    url, b"t", chunk=CHUNK, chunk_bytes=len(data) + 1, crc32c=crc_of(data), seconds=5
                )

    run(main())


@kinds
@pytest.mark.parametrize("size", [0, 1, 4096, 200_000, 3_000_000])
def test_chunks_are_stored_with_their_sums_and_name(kind: str, size: int) -> None:
    """One call for small ones, a stream for large ones; the same bytes on the wire."""

    async def main() -> None:
        server = FakeObjectServer()
        data = os.urandom(size)
        async with client_of(server, kind) as (client, url):
            receipt = await client.put_chunk(
                url, b"w", index=3, name="b/a key&x=ü", data=data, sums=sums_of(data), seconds=5
            )
            assert receipt == b"receipt-of-w" and server.chunks[b"w"] == data
            assert server.targets == [b"/v1/chunks/w?index=3&name=b/a%20key%26x%3D%C3%BC"]
            upload = await client.begin_chunk(url, b"v", index=0, chunk_bytes=size, seconds=60)
            for at in range(0, size, 100_000):
                await upload.write(memoryview(data)[at : at + 100_000])
            assert await upload.finish(sums_of(data)) == b"receipt-of-v" and server.chunks[b"v"] == data

    run(main())


@kinds
def test_errors_of_the_object_server_come_back_as_themselves(kind: str) -> None:
    """The walks decide by class: another replica, a new ticket, a spare server."""

    async def main() -> None:
        server = FakeObjectServer()
        async with client_of(server, kind) as (client, url):
            for error in (NotFound("x", code="no-such-chunk"), TicketRefused("late"), CapacityError("full")):
                server.refuse = error
                for step in (client.read_chunk, client.open_chunk):
                    with pytest.raises(type(error)) as caught:
                        await step(url, b"t", chunk=CHUNK, chunk_bytes=9, crc32c=0, seconds=60)
                    assert caught.value.code == error.code
                for size in (9, 20_000_000):
                    data = bytes(size)
                    with pytest.raises(type(error)) as caught:
                        await client.put_chunk(url, b"t", index=0, data=data, sums=sums_of(data), seconds=60)
                    assert caught.value.code == error.code
            server.refuse = None
            with pytest.raises(ChecksumMismatch):
                await client.put_chunk(url, b"t", index=0, data=b"abc", sums=sums_of(b"abd"), seconds=60)

    run(main())


@kinds
def test_a_server_that_knows_no_sets_gets_small_chunks_one_by_one(kind: str) -> None:
    """While a cluster is upgraded, gateways meet object servers of the release before: writes must go on."""

    async def main() -> None:
        server = FakeObjectServer()
        async with client_of(server, kind) as (client, url):
            for _ in range(2):
                server.targets.clear()
                waiting = [
                    client.store_small(
                        url, 1, b"t%d" % n, index=0, name="", data=b"%d" % n, sums=sums_of(b"%d" % n), seconds=60
                    )
                    for n in range(5)
                ]
                assert await asyncio.gather(*waiting) == [b"receipt-of-t%d" % n for n in range(5)]
                assert len(server.targets) == 5
            server.refuse = CapacityError("full")
            refused = client.store_small(url, 1, b"u", index=0, name="", data=b"x", sums=sums_of(b"x"), seconds=60)
            with pytest.raises(CapacityError):
                await refused
            await client.close()
            with pytest.raises(UnavailableError):
                client.store_small(url, 1, b"v", index=0, name="", data=b"x", sums=sums_of(b"x"), seconds=60)

    run(main())


def test_a_server_that_learned_sets_gets_them_again_without_a_restart_of_the_gateway() -> None:
    """A roll replaces object servers by newer ones under running gateways: what these knew of the old lapses."""

    async def main(_: object) -> None:
        server = FakeObjectServer()
        routes = server.routes()
        host = InProcessServer(routes)
        network = Network(random.Random(1))
        network.register("http://o:1", host)
        client = ObjectClient(network.transport("http://g:1"), LoopClock())
        sets = 0

        def put_set(exchange: Exchange) -> None:
            def answer(body: bytes) -> None:
                items = wire.decode(body, ChunkSet).items
                exchange.reply(200, wire.encode(StoredSet([StoredChunk(b"set-" + item.ticket) for item in items])))

            nonlocal sets
            sets += 1
            exchange.collect(1 << 20, answer)

        async def receipts() -> list[bytes]:
            waiting = [
                client.store_small(
                    "http://o:1", 1, b"t%d" % n, index=0, name="", data=b"%d" % n, sums=sums_of(b"%d" % n), seconds=60
                )
                for n in range(5)
            ]
            return await asyncio.gather(*waiting)

        alone = [b"receipt-of-t%d" % n for n in range(5)]
        assert await receipts() == alone
        newer = InProcessServer([*routes, Route(b"PUT", b"/v1/chunks", put_set)])
        network.register("http://o:1", newer)
        assert (await receipts(), sets) == (alone, 0), "it is not asked with every message"
        await asyncio.sleep(ALONE_SECONDS)
        assert (await receipts(), sets) == ([b"set-t%d" % n for n in range(5)], 1)
        await client.close()
        await host.close()
        await newer.close()

    virtual_time.run(1, main)


def test_an_aborted_upload_stores_nothing() -> None:
    """A gateway that gives up must not leave half a chunk that looks whole."""

    async def main() -> None:
        server = FakeObjectServer()
        async with client_of(server, "protocol") as (client, url):
            upload = await client.begin_chunk(url, b"v", index=0, chunk_bytes=1000, seconds=60)
            await upload.write(b"x" * 500)
            upload.abort()
            upload.abort()
            assert (await client.put_chunk(url, b"w", index=0, data=b"abc", sums=sums_of(b"abc"), seconds=60))
            assert b"v" not in server.chunks

    run(main())
