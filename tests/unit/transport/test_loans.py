"""Reading from lent files: the same bytes and the same checks as by the network, and the network whenever it fails.

The lender is the object server's own door over a list of files; the network is an object server that remembers what it
was asked.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from objectd.routes.loans import LoanDoor
from tests.contract.exchange_subjects import run, until
from tests.unit.transport.test_object_client import FakeObjectServer
from tierstore.checksum import BLOCK_BYTES, crc_of, sums_of
from tierstore.clock import SystemClock
from tierstore.errors import IntegrityError, RequestError, UnavailableError
from tierstore.names import ChunkId
from tierstore.serving.inprocess import InProcessServer
from tierstore.transport import disk_waits
from tierstore.transport.inprocess import Network
from tierstore.transport.loans import Borrower, Loan
from tierstore.transport.object_client import ObjectClient
from tierstore.wire import loans as forms
from tierstore.wire.loans import Answer, Question, socket_name

CHUNK = ChunkId(b"c" * 16)
SIZE = (1 << 20) + 17
DATA = random.Random(3).randbytes(SIZE)
LONG_SECONDS = 120.0


class Files:
    """Lends the file of the test, whoever asks (ChunkLoans decides for real servers)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums = sums_of(DATA)
        self.asked: list[Question] = []
        self.refuses = False
        self.is_memory = True

    def lend(self, question: Question) -> tuple[Answer, int]:
        self.asked.append(question)
        if self.refuses:
            return Answer(question.number, is_granted=False), -1
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return Answer(question.number, True, is_memory=self.is_memory, tier="ssd", sums=self.sums), fd


class Place:
    """A lender, a network, and a client that knows both."""

    def __init__(self, path: Path, *, can_wait: bool) -> None:
        self.url = f"http://{uuid.uuid4()}:7411"        # a name that no other test has
        self.files = Files(path)
        self.door = LoanDoor(self.files)  # type: ignore[arg-type]  # all that it needs
        self.server = FakeObjectServer()
        self.server.chunks[b"t"] = DATA
        self.host = InProcessServer(self.server.routes())
        self.network = Network(random.Random(1))
        self.network.register(self.url, self.host)
        self.borrower = Borrower(answer_seconds=LONG_SECONDS, retry_seconds=0.0, can_wait=can_wait)
        self.client = ObjectClient(self.network.transport("http://g:1"), SystemClock(), borrower=self.borrower)

    async def read(self, first: int = 0, length: int = SIZE) -> bytes:
        stream = await self.client.open_chunk(
            self.url, b"t", chunk=CHUNK, chunk_bytes=SIZE, crc32c=crc_of(DATA), first=first, length=length,
            seconds=LONG_SECONDS,
        )  # fmt: skip
        pieces = bytearray()
        try:
            while piece := await stream.next_piece():
                pieces += piece
        finally:
            stream.close()
        return bytes(pieces)

    async def borrow(self) -> Loan | None:
        return await self.borrower.borrow(self.url, b"t", first_block=0, last_block=0, seconds=LONG_SECONDS)


@asynccontextmanager
async def place(path: Path, *, can_wait: bool = False) -> AsyncIterator[Place]:
    path.write_bytes(DATA)
    made = Place(path, can_wait=can_wait)
    made.door.open(made.url)
    try:
        yield made
    finally:
        await made.client.close()
        made.door.close()
        await made.host.close()


def descriptors_of(path: Path) -> int:
    """How many descriptors of this process are open on the file."""
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))


def test_what_is_lent_reads_as_what_comes_by_the_network(tmp_path: Path) -> None:
    """Ranges are widened and trimmed alike; not a byte of it passes the network, and no descriptor stays."""

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path) as here:
            edges = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 5 * BLOCK_BYTES + 3, SIZE - 1, SIZE]
            reads = 0
            for first in edges:
                for last in edges:
                    if first < last:
                        assert await here.read(first, last - first) == DATA[first:last]
                        reads += 1
            assert here.server.targets == [] and len(here.files.asked) == here.client.loans_total == reads
            assert here.client.blocks_verified >= reads
            assert descriptors_of(path) == 0

    run(main())


def test_a_rotten_file_gives_an_error_and_none_of_its_bad_bytes(tmp_path: Path) -> None:
    """Promise 4 holds on every way: the sums fit the catalog, the block does not fit its sum."""

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path) as here:
            at = 9 * BLOCK_BYTES + 5
            path.write_bytes(DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :])
            with pytest.raises(IntegrityError) as caught:
                await here.read()
            assert caught.value.code == "bad-block"
            assert await here.read(0, BLOCK_BYTES) == DATA[:BLOCK_BYTES]
            here.files.sums = b"\0" * len(here.files.sums)
            with pytest.raises(IntegrityError):
                await here.read(0, BLOCK_BYTES)
            assert descriptors_of(path) == 0

    run(main())


def test_what_the_file_does_not_give_now_comes_by_the_network(tmp_path: Path) -> None:
    """The page cache may lose a chunk in the middle of a read: it goes on at the same block, and waits for no disk."""

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path) as here:
            path.write_bytes(DATA[: 10 * BLOCK_BYTES])
            assert await here.read() == DATA
            [target] = here.server.targets
            begin, _, end = target.partition(b"?blocks=")[2].partition(b"-")
            assert 0 < int(begin) <= 10 and int(end) == SIZE // BLOCK_BYTES
            assert descriptors_of(path) == 0

    run(main())


def forget_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing that is lent is in the page cache."""
    monkeypatch.setattr(Loan, "read_now", lambda self, view, at: False)


def test_a_reader_with_threads_waits_for_the_disk_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold chunks too need not cross loopback twice. The same bytes, the same checks, no descriptor left."""
    forget_pages(monkeypatch)

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path, can_wait=True) as here:
            for first, last in ((0, SIZE), (1, BLOCK_BYTES), (5 * BLOCK_BYTES + 3, SIZE - 1)):
                assert await here.read(first, last - first) == DATA[first:last]
            assert here.server.targets == [] and here.client.loans_total == 3
            assert all(question.can_wait for question in here.files.asked)
            path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
            with pytest.raises(IntegrityError):
                await here.read()
            path.write_bytes(DATA[: 10 * BLOCK_BYTES])
            assert await here.read() == DATA and len(here.server.targets) == 1, "the file is too short"
            assert descriptors_of(path) == 0

    run(main())


def test_a_lent_file_on_a_disk_that_hangs_is_left_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader hears it in time and goes elsewhere; the next ones do not wait for that disk; and what the thread
    writes in the end is in nobody's buffer, its descriptor is closed."""
    forget_pages(monkeypatch)
    answered, real = threading.Event(), disk_waits._read

    def hang(fd: int, view: memoryview, offset: int, ahead: int) -> bool:
        answered.wait(LONG_SECONDS)
        return real(fd, view, offset, ahead)

    monkeypatch.setattr(disk_waits, "_read", hang)
    patient = Loan.read

    async def hasty(self: Loan, view: memoryview, at: int, *, ahead: int, seconds: float) -> bool:
        return await patient(self, view, at, ahead=ahead, seconds=0.01)

    monkeypatch.setattr(Loan, "read", hasty)

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path, can_wait=True) as here:
            with pytest.raises(UnavailableError) as caught:
                await here.read()
            assert caught.value.code == "device-slow" and descriptors_of(path) == 1
            path.write_bytes(bytes(SIZE))
            assert await here.read() == DATA and len(here.server.targets) == 1
            assert [question.can_wait for question in here.files.asked] == [True, False]
            stream = await here.client.open_chunk(
                here.url, b"t", chunk=CHUNK, chunk_bytes=SIZE, crc32c=crc_of(DATA), seconds=LONG_SECONDS
            )
            piece = await stream.next_piece()
            answered.set()
            await until(lambda: descriptors_of(path) == 1)      # the stream's own; the thread is done
            assert piece == DATA[: len(piece)]
            stream.close()
            assert descriptors_of(path) == 0

    run(main())


def test_no_more_reads_wait_for_a_disk_than_the_bound_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs holds so many; all others go by the network at once."""
    forget_pages(monkeypatch)
    answered, real = threading.Event(), disk_waits._read

    def hang(fd: int, view: memoryview, offset: int, ahead: int) -> bool:
        answered.wait(LONG_SECONDS)
        return real(fd, view, offset, ahead)

    monkeypatch.setattr(disk_waits, "_read", hang)

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path, can_wait=True) as here:
            reads = [asyncio.ensure_future(here.read()) for _ in range(disk_waits.WAITING_MAX)]
            await until(lambda: len(here.files.asked) == len(reads) and not here.borrower.has_room)
            assert await here.read() == DATA and len(here.server.targets) == 1
            answered.set()
            assert all(data == DATA for data in await asyncio.gather(*reads))
            assert descriptors_of(path) == 0

    run(main())


def test_a_lender_that_refuses_costs_the_reader_nothing(tmp_path: Path) -> None:
    """Cold, small or strange chunks: the network's answer counts, errors and all."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            here.files.refuses = True
            assert await here.read() == DATA
            here.server.refuse = RequestError("no", code="bad-request")
            with pytest.raises(RequestError):
                await here.read()
            assert here.client.loans_total == 0 and len(here.files.asked) == 2

    run(main())


def test_a_machine_without_the_server_is_looked_at_once_in_a_while(tmp_path: Path) -> None:
    """Most object servers are on other machines: their readers must not try again with each chunk."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            here.door.close()
            patient = Borrower(retry_seconds=3600.0)
            assert await patient.borrow(here.url, b"t", first_block=0, last_block=0, seconds=LONG_SECONDS) is None
            here.door.open(here.url)
            assert await patient.borrow(here.url, b"t", first_block=0, last_block=0, seconds=LONG_SECONDS) is None
            assert await here.read() == DATA and here.client.loans_total == 1
            patient.close()

    run(main())


def test_a_lender_that_goes_away_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Killed between question and answer: the reader hears it at once and goes on by the network; later it is back."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            here.door.close()
            silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            silent.setblocking(False)
            silent.bind(socket_name(here.url))
            silent.listen(1)
            reading = asyncio.ensure_future(here.read())
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            await asyncio.get_running_loop().sock_recv(connection, 1000)
            connection.close()
            silent.close()
            assert await reading == DATA and here.client.loans_total == 0
            here.door.open(here.url)
            assert await here.read() == DATA and here.client.loans_total == 1

    run(main())


def test_a_lender_that_hangs_is_left(tmp_path: Path) -> None:
    """A stopped process keeps its socket: a read waits once for it, and those after it do not."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            here.door.close()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
                silent.bind(socket_name(here.url))
                silent.listen(1)
                hasty = Borrower(answer_seconds=0.01, retry_seconds=3600.0)
                for _ in range(3):
                    loan = await hasty.borrow(here.url, b"t", first_block=0, last_block=0, seconds=LONG_SECONDS)
                    assert loan is None
                silent.accept()[0].close()
                silent.setblocking(False)
                with pytest.raises(BlockingIOError):
                    silent.accept()
                hasty.close()

    run(main())


def test_answers_that_nobody_waits_for_are_closed(tmp_path: Path) -> None:
    """Readers go away all the time: a descriptor left open for each is an object server's disk that never gets free."""

    async def main() -> None:
        path = tmp_path / "chunk"
        async with place(path) as here:
            first = await here.borrow()
            assert first is not None
            first.close()
            first.close()
            for turns in range(6):
                asking = asyncio.ensure_future(here.borrow())
                for _ in range(turns):
                    await asyncio.sleep(0)
                asking.cancel()
                [given] = await asyncio.gather(asking, return_exceptions=True)
                if isinstance(given, Loan):
                    given.close()               # it came before the reader went
            last = await here.borrow()          # its answer is behind all others
            assert last is not None
            last.close()
            await until(lambda: descriptors_of(path) == 0)

    run(main())


def test_tickets_are_shown_to_servers_of_this_user_and_of_root_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody on the machine may take the name of a server that is elsewhere: he must not collect tickets with it."""
    real = socket.socket.getsockopt
    stranger = [os.geteuid() + 1]

    def getsockopt(self: socket.socket, level: int, option: int, *size: int) -> object:
        if option == socket.SO_PEERCRED:
            return struct.pack("iII", 1, stranger[0], 0)
        return real(self, level, option, *size)

    monkeypatch.setattr(socket.socket, "getsockopt", getsockopt)

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            assert await here.read() == DATA
            assert here.files.asked == [] and here.client.loans_total == 0
            stranger[0] = 0
            assert await here.read() == DATA and here.client.loans_total == 1

    run(main())


def test_more_questions_than_the_bound_go_by_the_network(tmp_path: Path) -> None:
    """The answers of those that may be open fit the socket, so the server never waits for a reader."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            loans = await asyncio.gather(*(here.borrow() for _ in range(forms.QUESTIONS_MAX + 5)))
            given = [loan for loan in loans if loan is not None]
            assert len(given) == forms.QUESTIONS_MAX
            for loan in given:
                loan.close()

    run(main())


@pytest.mark.parametrize("message", [b"x", b"x" * 12, b"x" * (forms.QUESTION_BYTES_MAX + 50)])
def test_who_does_not_keep_to_the_form_is_dropped_alone(tmp_path: Path, message: bytes) -> None:
    """The socket stands open to every process of the machine."""

    async def main() -> None:
        async with place(tmp_path / "chunk") as here:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as rude:
                rude.setblocking(False)
                rude.connect(socket_name(here.url))
                rude.send(message)
                assert await asyncio.get_running_loop().sock_recv(rude, 100) == b""
            assert await here.read() == DATA and here.client.loans_total == 1

    run(main())


@pytest.mark.parametrize("size", [1, SIZE, 64 << 20])
def test_messages_keep_their_content_and_their_bounds(size: int) -> None:
    """Also the answer about the largest chunk fits what the reader takes."""
    for question in (Question(7, 0, 3, b"ticket"), Question(7, 0, 3, b"ticket", can_wait=True)):
        assert forms.unpack_question(forms.pack_question(question)) == question
    answer = Answer(7, True, False, 4096, "nvme", b"s" * (4 * -(-size // BLOCK_BYTES)))
    packed = forms.pack_answer(answer)
    assert forms.unpack_answer(packed) == answer and len(packed) <= forms.ANSWER_BYTES_MAX
    for cut in range(len(packed) - len(answer.sums)):
        with pytest.raises(RequestError):
            forms.unpack_answer(packed[:cut])
