"""Chunks that come in a writer's memory: stored, refused and counted as by the network, and the network when it fails.

The door, the uploads and the device are the real ones; the network is an object server that remembers what it was
asked.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from objectd.config import Chunks
from objectd.routes.handovers import HandoverDoor
from objectd.routes.streams import ChunkStream
from objectd.routes.uploads import ChunkUploads
from objectd.store.disk import DiskDevice
from tests.kit.waits import until
from tests.unit.objectd.one_device import DEVICE, KEY, SERVER, one_device
from tests.unit.transport.test_object_client import FakeObjectServer
from tierstore.checksum import BLOCK_BYTES, crc_of, sums_of
from tierstore.clock import ManualClock, SystemClock
from tierstore.errors import ChecksumMismatch, IntegrityError, RequestError, TicketRefused, UnavailableError
from tierstore.names import UploadId, chunk_id
from tierstore.sdk.budget import BufferBudget
from tierstore.serving.inprocess import InProcessServer
from tierstore.ticket import WriteTicket, mint_write, open_receipt
from tierstore.transport.handovers import Handovers
from tierstore.transport.inprocess import Network
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerUpload
from tierstore.transport.shared_memory import SharedMemory
from tierstore.wire.handovers import Answer, Chunk, pack_answer, pack_chunk, socket_name, unpack_answer, unpack_chunk

LONG_SECONDS = 120.0
SIZE = 5 * BLOCK_BYTES + 11
DATA = random.Random(5).randbytes(3 << 20)


@dataclass
class World:
    url: str
    device: DiskDevice
    uploads: ChunkUploads
    door: HandoverDoor
    client: ObjectClient
    network: FakeObjectServer

    def ticket(self, upload: UploadId, *, key: bytes = KEY) -> bytes:
        expires_at = int(time.time()) + 300
        return mint_write(WriteTicket(SERVER, DEVICE, upload, 0, 8, 64 << 20, expires_at), key_id=1, key=key)

    async def put(
        self, upload: UploadId, data: bytes, *, key: bytes = KEY, sums: bytes | None = None, memory_bytes: int = 0
    ) -> bytes:
        """The receipt. memory_bytes: of the memory, when it is shorter than the chunk."""
        memory = memory_with(data)
        view = memoryview(memory)[: len(data)]
        if memory_bytes:
            os.ftruncate(memory.fd, memory_bytes)
        return await self.client.put_chunk(
            self.url, self.ticket(upload, key=key), index=2, name="b/käse", data=view,
            sums=sums_of(data) if sums is None else sums, seconds=LONG_SECONDS,
        )  # fmt: skip


def memory_with(data: bytes) -> SharedMemory:
    memory = SharedMemory(len(data))
    memory[: len(data)] = data
    return memory


def upload_of(number: int) -> UploadId:
    return UploadId(number.to_bytes(12, "big"))


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    async with one_device(root) as here:
        uploads = ChunkUploads(
            standing=here.standing, slots=here.slots, settings=Chunks(segment_chunk_bytes_max=64 << 10)
        )
        door = HandoverDoor(uploads)
        url = f"http://{uuid.uuid4()}:7411"
        door.open(url)
        server = FakeObjectServer()
        host = InProcessServer(server.routes())
        network = Network(random.Random(1))
        network.register(url, host)
        client = ObjectClient(network.transport("http://g:1"), SystemClock(), handovers=Handovers(retry_seconds=0.0))
        try:
            yield World(url, here.device, uploads, door, client, server)
        finally:
            await client.close()
            await door.close()
            await host.close()


def play(root: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(300), world(root) as made:
            await test(made)

    asyncio.run(main())


async def stored(here: World, upload: UploadId) -> bytes:
    opened = await here.device.find(chunk_id(upload, 2))
    try:
        return await opened.read(0, opened.chunk_bytes)
    finally:
        opened.close()


def descriptors() -> int:
    return sum("memfd:tierstore" in os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))


def test_chunks_of_every_length_are_stored_and_signed_for_without_the_network(tmp_path: Path) -> None:
    """Block edges, the direct way around the page cache and the one through it; no descriptor stays with the server."""

    async def test(here: World) -> None:
        sizes = [256 * 1024 + 1, SIZE, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, len(DATA)]
        for number, size in enumerate(sizes):
            upload = upload_of(number)
            receipt = open_receipt(await here.put(upload, DATA[:size]), {1: KEY})
            assert (receipt.chunk, receipt.chunk_bytes, receipt.crc32c) == (
                chunk_id(upload, 2), size, crc_of(DATA[:size]),
            )  # fmt: skip
            assert await stored(here, upload) == DATA[:size]
        assert here.network.targets == []
        assert here.client.handovers_total == here.door.handovers_total == len(sizes)
        assert (here.uploads.uploads, here.uploads.upload_bytes, here.uploads.uploads_total) == (0, 0, len(sizes))
        await until(lambda: descriptors() == 0)

    play(tmp_path, test)


def test_a_chunk_handed_over_again_gets_its_receipt_and_other_bytes_do_not(tmp_path: Path) -> None:
    """Who does not know whether the first one arrived sends it again; ids are write-once."""

    async def test(here: World) -> None:
        first, second = [open_receipt(await here.put(upload_of(1), DATA[:SIZE]), {1: KEY}) for _ in range(2)]
        assert (first.chunk, first.crc32c) == (second.chunk, second.crc32c)
        with pytest.raises(Exception, match="other bytes"):
            await here.put(upload_of(1), DATA[1 : SIZE + 1])

    play(tmp_path, test)


def test_what_the_server_refuses_is_the_same_error_as_by_the_network(tmp_path: Path) -> None:
    """Sums that do not fit (the memory changed), a forged ticket, memory that is shorter than it was said to be:
    nothing is kept, nothing is tried once more by TCP, and the door serves the next one."""

    async def test(here: World) -> None:
        with pytest.raises(ChecksumMismatch):
            await here.put(upload_of(1), DATA[:SIZE], sums=sums_of(DATA[1 : SIZE + 1]))
        with pytest.raises(TicketRefused):
            await here.put(upload_of(2), DATA[:SIZE], key=b"x" * 32)
        with pytest.raises(IntegrityError, match="shorter"):
            await here.put(upload_of(3), DATA[:SIZE], memory_bytes=4096)
        assert here.network.targets == []
        for number in (1, 2, 3):
            await here.put(upload_of(number), DATA[:SIZE])
            assert await stored(here, upload_of(number)) == DATA[:SIZE]
        assert (here.uploads.uploads, here.uploads.upload_bytes) == (0, 0)

    play(tmp_path, test)


def test_only_memory_is_taken(tmp_path: Path) -> None:
    """A file of a disk, or a pipe, could keep the loop waiting."""

    async def test(here: World) -> None:
        path = tmp_path / "file"
        path.write_bytes(DATA[:SIZE])
        chunk = Chunk(0, 2, SIZE, here.ticket(upload_of(1)), "b/k", sums_of(DATA[:SIZE]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as writer, path.open("rb") as file:
            writer.setblocking(False)
            writer.connect(socket_name(here.url))
            socket.send_fds(writer, [pack_chunk(chunk, 7)], [file.fileno()])
            answer = unpack_answer(await asyncio.get_running_loop().sock_recv(writer, 8192))
        assert (answer.number, answer.status) == (7, 400) and b"no shared memory" in answer.body

    play(tmp_path, test)


@pytest.mark.parametrize("message", [b"x", b"x" * 100, b""])
def test_who_breaks_the_form_is_dropped(tmp_path: Path, message: bytes) -> None:
    """Another release, or somebody who tries: what he sent is closed and forgotten."""

    async def test(here: World) -> None:
        memory = memory_with(DATA[:SIZE])
        chunk = Chunk(0, 2, SIZE, here.ticket(upload_of(1)), "b/k", sums_of(DATA[:SIZE]))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as writer:
            writer.setblocking(False)
            writer.connect(socket_name(here.url))
            if message:
                socket.send_fds(writer, [message], [memory.fd])
            else:
                writer.send(pack_chunk(chunk, 1))       # without its memory
            assert await asyncio.get_running_loop().sock_recv(writer, 100) == b""
        del memory
        await until(lambda: descriptors() == 0)

    play(tmp_path, test)


def test_without_the_socket_everything_goes_by_the_network_at_once(tmp_path: Path) -> None:
    """Another machine, another container, a server of an older release, one that stops."""

    async def test(here: World) -> None:
        await here.put(upload_of(1), DATA[:SIZE])
        await here.door.close()
        ticket = here.ticket(upload_of(2))
        memory = memory_with(DATA[:SIZE])
        await here.client.put_chunk(
            here.url, ticket, index=2, data=memoryview(memory)[:SIZE], sums=sums_of(DATA[:SIZE]), seconds=LONG_SECONDS
        )
        assert here.network.chunks[ticket] == DATA[:SIZE] and here.client.handovers_total == 1

    play(tmp_path, test)


def test_a_server_that_goes_away_in_the_middle_leaves_the_chunk_to_the_network(tmp_path: Path) -> None:
    """No deadline is waited for: the broken connection says it."""

    async def main() -> None:
        url = f"http://{uuid.uuid4()}:7411"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.setblocking(False)
            listener.bind(socket_name(url))
            listener.listen(1)
            handovers = Handovers(retry_seconds=0.0)
            memory = memory_with(DATA[:SIZE])
            handing = asyncio.create_task(handovers.hand_over(
                url, b"ticket", memory, chunk_bytes=SIZE, index=0, name="", sums=sums_of(DATA[:SIZE]),
                seconds=LONG_SECONDS,
            ))  # fmt: skip
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            assert unpack_chunk(await loop.sock_recv(connection, 65_536)).chunk_bytes == SIZE
            connection.close()
            assert await handing is None and handovers.handovers_total == 0
            handovers.close()

    asyncio.run(main())


@pytest.mark.parametrize(("waited", "left"), [(100.0, [20.0]), (130.0, [])])
def test_the_network_gets_what_a_broken_handover_left_of_the_time(waited: float, left: list[float]) -> None:
    """It got all of it again: a server that took a chunk and died cost a writer up to twice his deadline."""

    async def main() -> None:
        url, clock = f"http://{uuid.uuid4()}:7411", ManualClock()
        network, asked = Network(random.Random(1)).transport("http://g:1"), []

        async def upload(*_: object, seconds: float, **__: object) -> PeerUpload:
            asked.append(seconds)
            raise UnavailableError("the network is not of interest here", code="unreachable")

        network.upload = upload  # type: ignore[method-assign]
        client = ObjectClient(network, clock, handovers=Handovers(retry_seconds=0.0))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.setblocking(False)
            listener.bind(socket_name(url))
            listener.listen(1)
            memory = memory_with(DATA[:SIZE])
            putting = asyncio.create_task(client.put_chunk(
                url, b"ticket", index=0, data=memoryview(memory)[:SIZE], sums=sums_of(DATA[:SIZE]), seconds=120.0
            ))  # fmt: skip
            loop = asyncio.get_running_loop()
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            await loop.sock_recv(connection, 65_536)
            clock.advance(waited)
            connection.close()
            with pytest.raises(UnavailableError) as refused:
                await putting
            assert asked == left
            assert refused.value.code == ("unreachable" if left else "deadline")
        await client.close()

    asyncio.run(main())


def test_a_stop_waits_for_what_was_begun(tmp_path: Path) -> None:
    """A planned restart costs no writer his copy."""

    async def test(here: World) -> None:
        putting = asyncio.create_task(here.put(upload_of(1), DATA))
        await until(lambda: here.uploads.uploads == 1 or putting.done())
        await here.door.close()
        assert open_receipt(await putting, {1: KEY}).chunk_bytes == len(DATA)

    play(tmp_path, test)


@pytest.mark.parametrize(
    "message", [b"", b"x" * 15, b"\0" * 16, pack_chunk(Chunk(0, 0, 65_537, b"t", "n", b"1234"), 1)]
)
def test_messages_of_another_form_are_refused(message: bytes) -> None:
    with pytest.raises(RequestError):
        unpack_chunk(message)


def test_messages_survive_the_way() -> None:
    """Names are UTF-8; the number is that of the sending."""
    chunk = Chunk(9, 3, SIZE, b"ticket", "b/käse\0hint", sums_of(DATA[:SIZE]))
    assert unpack_chunk(pack_chunk(chunk, 9)) == chunk
    assert unpack_answer(pack_answer(Answer(9, 503, b"{}"))) == Answer(9, 503, b"{}")
    with pytest.raises(RequestError):
        unpack_answer(b"x")


def test_buffers_of_chunks_are_shared_memory_of_few_lengths_and_used_again() -> None:
    """Bodies of any length find a kept one; before, each length was kept for itself, and the first 32 MiB for ever."""
    budget = BufferBudget(64 << 20, is_shared=True)
    first = budget.new_buffer((1 << 20) + 17)
    assert isinstance(first, SharedMemory) and len(first) == 2 << 20
    budget.reuse(first)
    assert budget.new_buffer((1 << 20) + 99_999) is first
    assert type(budget.new_buffer(256 << 10)) is bytearray
    assert type(BufferBudget(64 << 20).new_buffer(1 << 20)) is bytearray


def test_what_a_chunk_took_is_freed_with_its_answer_and_not_by_the_collector(tmp_path: Path) -> None:
    """Some kilobytes for each chunk would wait for it, 800 chunks long."""

    async def main(w: World) -> None:
        gc.collect()
        gc.disable()
        try:
            for number in range(5):
                assert await w.put(upload_of(number), DATA[:SIZE])
            await until(lambda: not [o for o in gc.get_objects() if isinstance(o, ChunkStream)])
        finally:
            gc.enable()

    play(tmp_path, main)
