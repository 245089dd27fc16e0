"""A real object server process on a real directory: the paths that in-memory devices cannot show.

sendfile and cold reads, recovery after kill -9, keys kept over a restart without metadata, rot on the disk under a warm
page cache, privacy of the state.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.objectd_server import StandaloneObjectd
from objectd.residency import Residency
from objectd.work.diskread import PIECE_BYTES, DiskReader
from tierstore.checksum import BLOCK_BYTES, sums_of
from tierstore.errors import IntegrityError
from tierstore.transport.handovers import Handovers
from tierstore.transport.loans import Borrower, Loan
from tierstore.transport.shared_memory import SharedMemory
from tierstore.wire import handovers
from tierstore.wire.loans import socket_name

SIZES = (1, 4096, 65_536, 65_537, 200_000, 262_145, 5 << 20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandaloneObjectd]:
    alone = StandaloneObjectd(tmp_path)
    alone.prepare()
    alone.start()
    yield alone
    alone.stop()


def body(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def put(server: StandaloneObjectd, data: bytes, *, device: int = 1) -> bytes:
    """The receipt."""
    ticket = server.write_ticket(server.new_upload(), device=device).decode()
    status, receipt = request(server, "PUT", f"/v1/chunks/{ticket}?index=0&name=b/k", data + sums_of(data))
    assert status == 200, receipt
    return receipt


def get(server: StandaloneObjectd, receipt: bytes) -> tuple[int, bytes]:
    return request(server, "GET", "/v1/chunks/" + server.ticket_of(receipt).decode())


def request(server: StandaloneObjectd, method: str, target: str, data: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=180)
    try:
        connection.request(method, target, body=data)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_acknowledged_chunks_survive_kill_9_and_a_start_without_metadata(server: StandaloneObjectd) -> None:
    """R1 for one server: what it signed for is there after the kill, with the keys it kept, in a new incarnation."""
    stored = [(put(server, body(size), device=device), body(size)) for size in SIZES for device in (1, 2)]
    lives = {server.receipt(receipt).incarnation for receipt, _ in stored}
    server.stop(signal.SIGKILL)
    server.start()
    for receipt, data in stored:
        assert get(server, receipt) == (200, sums_of(data) + data)
    assert len(lives) == 1 and server.receipt(put(server, b"x")).incarnation == lives.pop() + 1


def test_cold_and_warm_reads_give_the_same_bytes(server: StandaloneObjectd, tmp_path: Path) -> None:
    """One comes from a thread, the other by sendfile: the answers must not differ."""
    stored = [(put(server, body(size)), body(size)) for size in SIZES]
    for path in (tmp_path / "ssd").rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    for receipt, data in stored * 2:
        assert get(server, receipt) == (200, sums_of(data) + data)


def test_readers_on_the_machine_are_lent_large_chunks_and_keep_them(server: StandaloneObjectd) -> None:
    """A kill -9 in the middle of a read costs those who hold the file nothing; small and cold chunks go by TCP."""
    large, small = body(5 << 20), body(200_000)
    receipt, other = put(server, large), put(server, small)

    async def read(borrower: Borrower, what: bytes, *, last_block: int) -> Loan | None:
        return await borrower.borrow(
            server.url, server.ticket_of(what), first_block=0, last_block=last_block, seconds=120.0
        )

    async def main() -> None:
        borrower = Borrower(answer_seconds=120.0, retry_seconds=0.0)
        loan = None
        async with asyncio.timeout(300):
            while loan is None:         # the file was written around the page cache: a GET brings it in
                assert get(server, receipt) == (200, sums_of(large) + large)
                loan = await read(borrower, receipt, last_block=79)
                await asyncio.sleep(0)      # so that the deadline is seen in any case
        assert await read(borrower, other, last_block=3) is None
        server.stop(signal.SIGKILL)
        view = memoryview(bytearray(len(large)))
        assert loan.read_now(view, 0) and view == large and loan.sums == sums_of(large)
        loan.close()
        assert await read(borrower, receipt, last_block=79) is None
        borrower.close()

    asyncio.run(main())


def test_readers_that_can_wait_are_lent_cold_chunks(server: StandaloneObjectd) -> None:
    """A chunk just written around the page cache, and one that the server has not opened in this life."""
    large = body(5 << 20)
    receipt = put(server, large)

    async def read(borrower: Borrower) -> None:
        loan = None
        async with asyncio.timeout(300):
            while loan is None:         # a disk that others keep busy for too long is left to the network
                loan = await borrower.borrow(
                    server.url, server.ticket_of(receipt), first_block=0, last_block=79, seconds=120.0
                )
                await asyncio.sleep(0)
            view = memoryview(bytearray(len(large)))
            is_read = loan.read_now(view, 0) or await loan.read(view, 0, ahead=0, seconds=120.0)
            loan.close()
        assert is_read and view == large and loan.sums == sums_of(large)

    async def main() -> None:
        borrower = Borrower(answer_seconds=120.0, retry_seconds=0.0, can_wait=True)
        await read(borrower)
        server.stop(signal.SIGKILL)
        server.start()
        await read(borrower)
        borrower.close()

    asyncio.run(main())


def test_writers_on_the_machine_hand_over_chunks_in_their_memory(server: StandaloneObjectd) -> None:
    """Nobody is at the other end of the network; what was stored reads back after a kill -9."""
    data = body(5 << 20)
    memory = SharedMemory(len(data))
    memory[:] = data

    async def main() -> bytes:
        writer = Handovers()
        answer = await writer.hand_over(
            server.url, server.write_ticket(server.new_upload()), memory, chunk_bytes=len(data), index=0, name="b/k",
            sums=sums_of(data), seconds=120.0,
        )  # fmt: skip
        writer.close()
        assert answer is not None and answer.status == 200, answer
        return answer.body

    receipt = asyncio.run(main())
    server.stop(signal.SIGKILL)
    server.start()
    assert get(server, receipt) == (200, sums_of(data) + data)


def test_a_server_lends_and_takes_nothing_when_its_settings_say_so(tmp_path: Path) -> None:
    """For those who want each byte to pass the network."""
    alone = StandaloneObjectd(tmp_path, settings={"chunks": {"lend_files": False, "take_memory": False}})
    alone.prepare()
    alone.start()
    try:
        assert get(alone, put(alone, body(262_145)))[0] == 200
        for name in (socket_name(alone.url), handovers.socket_name(alone.url)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer, pytest.raises(ConnectionRefusedError):
                peer.connect(name)
    finally:
        alone.stop()


def test_a_sigterm_ends_it_cleanly_and_the_state_is_private(server: StandaloneObjectd, tmp_path: Path) -> None:
    """Restarts are routine; the state file holds the server's secret and keys."""
    put(server, body(4096))
    assert server.stop() == 0
    for name in ("objectd.json", "objectd.lock"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    kept = json.loads((tmp_path / "state" / "objectd.json").read_text())
    assert kept["incarnation"] == 2 and kept["ticket_keys"]


def test_pages_and_openapi_are_there(server: StandaloneObjectd) -> None:
    """Operators and the supervisor steer by them."""
    assert request(server, "GET", "/-/readyz") == (200, b'{"status":"ready"}')
    status, text = request(server, "GET", "/v1/openapi.json")
    paths = json.loads(text)["paths"]
    assert status == 200 and set(paths["/v1/chunks/{ticket}"]) == {"get", "put"}
    assert request(server, "GET", "/-/metrics")[0] == 401
    status, text = request(server, "GET", "/v1/chunks/x")
    assert status == 403 and json.loads(text)["code"] == "ticket-refused"


def test_a_second_process_on_the_same_state_is_refused(server: StandaloneObjectd) -> None:
    """Two lives at once would sign for the same devices."""
    other = StandaloneObjectd(server.directory, key=server.key)
    with pytest.raises(RuntimeError, match="did not start"):
        other.start()
    assert other.process is not None and other.process.returncode == 2


def test_the_disk_reader_sees_the_disk_and_not_the_cache(tmp_path: Path) -> None:
    """Rot under a warm page cache is what a scrub is for."""
    path = tmp_path / "data"
    data = body(3 * PIECE_BYTES + 777)
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    reader = DiskReader(fd)
    os.close(fd)
    for offset, count in ((0, 1), (4095, 2), (5000, PIECE_BYTES), (3 * PIECE_BYTES, 777)):
        assert reader.read(offset, count) == data[offset : offset + count]
    with pytest.raises(IntegrityError):
        reader.read(3 * PIECE_BYTES, 778)
    reader.close()
    with pytest.raises(OSError, match="closed"):
        reader.read(0, 1)


def test_residency_is_known_both_ways(tmp_path: Path) -> None:
    """sendfile of a cold range would stop the loop for a disk."""
    path = tmp_path / "data"
    path.write_bytes(body(8 * BLOCK_BYTES))
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    for residency in (Residency(), Residency(can_cachestat=False)):
        os.pread(fd, 8 * BLOCK_BYTES, 0)
        assert residency.is_resident(fd, 100, 8 * BLOCK_BYTES - 100)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert not residency.is_resident(fd, 0, 8 * BLOCK_BYTES)
    os.close(fd)
