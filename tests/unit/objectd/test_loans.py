"""What an object server lends to readers on its machine: one chunk, for reading, to who may; counted as a read."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from objectd.config import Chunks
from objectd.fresh import Fresh
from objectd.heat import HeatCounter, unpack_entries
from objectd.memory import Memory
from objectd.residency import Residency
from objectd.routes.loans import ChunkLoans
from objectd.routes.reads import ChunkReads
from objectd.slots import Slot
from objectd.store.device import Location
from objectd.store.disk import DiskDevice
from objectd.store.reading import read_fully
from tests.unit.objectd.one_device import DEVICE, KEY, SERVER, one_device
from tests.unit.store import place
from tierstore.checksum import BLOCK_BYTES, sums_of
from tierstore.names import ChunkId, DeviceId, ServerId
from tierstore.ticket import NO_HEAT, ReadTicket, mint_read
from tierstore.wire.loans import Answer, Question

IN_FILE = Location(0, 0)
LARGE = 6 * BLOCK_BYTES + 11
COLD_READS_MAX = 3


@dataclass
class Lender:
    device: DiskDevice
    loans: ChunkLoans
    reads: ChunkReads
    heat: HeatCounter
    memory: Memory
    slot: Slot

    def ask(
        self, name: ChunkId, size: int, first: int = 0, last: int = -1, *, at: Location = IN_FILE,
        key: bytes = KEY, server: ServerId = SERVER, device: DeviceId = DEVICE, seconds: int = 300, flags: int = 0,
    ) -> tuple[Answer, int]:  # fmt: skip
        expires_at = int(time.time()) + seconds
        ticket = ReadTicket(server, device, name, at.segment, at.offset, size, expires_at, flags)
        last = last if last >= 0 else -(-size // BLOCK_BYTES) - 1
        lent = self.loans.lend(Question(9, first, last, mint_read(ticket, key_id=1, key=key)))
        assert isinstance(lent, tuple), "who does not say that he can wait is answered at once"
        return lent

    async def ask_cold(self, name: ChunkId, size: int, *, at: Location = IN_FILE) -> tuple[Answer, int]:
        """By a reader that can wait for the disk."""
        ticket = ReadTicket(SERVER, DEVICE, name, at.segment, at.offset, size, int(time.time()) + 300, 0)
        last = -(-size // BLOCK_BYTES) - 1
        lent = self.loans.lend(Question(9, 0, last, mint_read(ticket, key_id=1, key=KEY), can_wait=True))
        return lent if isinstance(lent, tuple) else await lent()


@asynccontextmanager
async def lender(root: Path) -> AsyncIterator[Lender]:
    """What reads and lends of one device."""
    async with one_device(root) as here:
        standing, slots = here.standing, here.slots
        heat = HeatCounter(entries_max=100, now_seconds=0)
        memory = Memory(8 << 20)
        reads = ChunkReads(
            standing=standing, slots=slots, heat=heat, memory=memory, fresh=Fresh(0), residency=Residency(),
            settings=Chunks(), on_damage=_nothing,
        )  # fmt: skip
        loans = ChunkLoans(
            standing=standing, slots=slots, reads=reads, residency=Residency(), bytes_min=2 * BLOCK_BYTES,
            cold_reads_max=COLD_READS_MAX,
        )  # fmt: skip
        yield Lender(here.device, loans, reads, heat, memory, slots.slot(DEVICE))


def _nothing(slot: Slot, chunk: ChunkId, chunk_bytes: int) -> None:
    """Nobody is told."""


def play(root: Path, test: Callable[[Lender], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(300), lender(root) as made:
            await test(made)

    asyncio.run(main())


def test_the_file_of_a_large_chunk_is_lent_for_reading_only(tmp_path: Path) -> None:
    """It is the descriptor it was written through that is at hand: passed on as it is, a reader could change a chunk
    that others trust. Also after its server let go of it, it stays readable."""

    async def test(here: Lender) -> None:
        data, name = place.body(1, LARGE), place.chunk(1)
        await place.put_large(here.device, name, data)
        answer, fd = here.ask(name, LARGE)
        try:
            assert (answer.number, answer.is_granted, answer.tier, answer.sums) == (9, True, "ssd", sums_of(data))
            await here.device.trash(name)
            assert os.pread(fd, LARGE, answer.data_offset) == data
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            with pytest.raises(OSError):
                os.pwrite(fd, b"x", 0)
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)

    play(tmp_path, test)


def test_a_file_opened_for_reading_is_lent_by_a_descriptor_of_its_own(tmp_path: Path) -> None:
    """A server that started again opens its chunks anew; what a reader closes must not be the server's."""

    async def test(here: Lender) -> None:
        data, name = place.body(1, LARGE), place.chunk(1)
        await place.put_large(here.device, name, data)
        here.device.forget_open(name)
        (await here.device.find(name)).close()
        for _ in range(3):
            answer, fd = here.ask(name, LARGE)
            assert answer.is_granted and os.pread(fd, 100, 50) == data[50:150] and not os.get_inheritable(fd)
            os.close(fd)

    play(tmp_path, test)


def test_a_segment_is_never_lent(tmp_path: Path) -> None:
    """Its other chunks are not the reader's business, however large the one he may read is."""

    async def test(here: Lender) -> None:
        size = place.SETTINGS.segment_chunk_bytes_max
        here.loans._bytes_min = 1
        for number in range(3):
            name = place.chunk(number)
            at = await place.put(here.device, name, place.body(number, size))
            for hint in (at, Location(0, 0), Location(at.segment, 0)):
                assert here.ask(name, size, at=hint) == (Answer(9, is_granted=False), -1)

    play(tmp_path, test)


def test_what_a_get_would_refuse_is_not_lent(tmp_path: Path) -> None:
    """Tickets are the only right there is: forged, expired, another server's, another length, blocks it has not."""

    async def test(here: Lender) -> None:
        name = place.chunk(1)
        await place.put_large(here.device, name, place.body(1, LARGE))
        refused = (Answer(9, is_granted=False), -1)
        assert here.ask(name, LARGE, key=b"x" * 32) == refused
        assert here.ask(name, LARGE, seconds=-10) == refused
        assert here.ask(name, LARGE, server=ServerId(2)) == refused
        assert here.ask(name, LARGE, device=DeviceId(5)) == refused
        assert here.ask(name, LARGE + 1) == refused
        assert here.ask(place.chunk(2), LARGE) == refused
        assert here.ask(name, LARGE, 3, 7) == refused and here.ask(name, LARGE, 4, 3) == refused
        assert here.loans.lend(Question(9, 0, 0, b"not a ticket")) == refused
        assert here.ask(name, LARGE, 0, 0) == refused, "less than it is worth"
        assert here.loans.loans_total == here.reads.reads_total == 0 and here.heat.distinct == 0

    play(tmp_path, test)


def test_what_is_not_in_the_page_cache_is_not_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's loop would wait for the disk, or it asks twice: the server's threads and deadlines are for that."""

    async def test(here: Lender) -> None:
        name = place.chunk(1)
        await place.put_large(here.device, name, place.body(1, LARGE))
        asked = []

        def is_resident(self: Residency, fd: int, offset: int, count: int) -> bool:
            asked.append((offset, count))
            return False

        monkeypatch.setattr(Residency, "is_resident", is_resident)
        assert here.ask(name, LARGE, 2, 6) == (Answer(9, is_granted=False), -1)
        assert asked == [(2 * BLOCK_BYTES, LARGE - 2 * BLOCK_BYTES)]

    play(tmp_path, test)


def forget_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residency, "is_resident", lambda self, fd, offset, count: False)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_reader_that_can_wait_is_lent_what_is_cold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    """Also a chunk whose file was not open. Its first block is read by the device's threads, which measures the device
    as a GET would; it counts as one read."""
    forget_pages(monkeypatch)

    async def test(here: Lender) -> None:
        data, name = place.body(1, LARGE), place.chunk(1)
        await place.put_large(here.device, name, data)
        if not is_open:
            here.device.forget_open(name)
        answer, fd = await here.ask_cold(name, LARGE)
        try:
            assert answer.is_granted and os.pread(fd, LARGE, answer.data_offset) == data
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY and not os.get_inheritable(fd)
        finally:
            os.close(fd)
        assert here.slot._observations == 1 and (here.slot.waiting, here.reads.cold_reads) == (0, 0)
        assert (here.reads.reads_total, here.reads.bytes_total, here.loans.loans_total) == (1, LARGE, 1)

    play(tmp_path, test)


def test_cold_loans_have_the_bounds_of_cold_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in time: a device that does not answer is left to the network, which waits with all patience."""
    forget_pages(monkeypatch)
    monkeypatch.setattr("objectd.routes.loans.COLD_SECONDS", 0.01)

    async def test(here: Lender) -> None:
        name, refused = place.chunk(1), (Answer(9, is_granted=False), -1)
        await place.put_large(here.device, name, place.body(1, LARGE))
        here.reads.cold_reads = COLD_READS_MAX
        assert await here.ask_cold(name, LARGE) == refused
        here.reads.cold_reads = 0
        release = threading.Event()

        def hang(fd: int, count: int, offset: int) -> bytes:
            release.wait(300)
            return read_fully(fd, count, offset)

        monkeypatch.setattr("objectd.store.threads.read_fully", hang)
        try:
            assert await here.ask_cold(name, LARGE) == refused
            assert here.slot._observations == 1, "that it was slow is noticed"
            assert (here.slot.waiting, here.reads.cold_reads, here.loans.loans_total) == (0, 0, 0)
        finally:
            release.set()

    play(tmp_path, test)


def test_what_no_reader_may_have_is_not_lent_cold_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments, chunks that are not there, another length than the ticket's."""
    forget_pages(monkeypatch)

    async def test(here: Lender) -> None:
        refused = (Answer(9, is_granted=False), -1)
        small, size = place.chunk(1), place.SETTINGS.segment_chunk_bytes_max
        here.loans._bytes_min = 1
        at = await place.put(here.device, small, place.body(1, size))
        for hint in (at, IN_FILE):
            assert await here.ask_cold(small, size, at=hint) == refused
        assert await here.ask_cold(place.chunk(2), LARGE) == refused
        await place.put_large(here.device, place.chunk(3), place.body(3, LARGE))
        assert await here.ask_cold(place.chunk(3), LARGE + 1) == refused
        assert here.loans.loans_total == here.reads.reads_total == here.reads.cold_reads == 0

    play(tmp_path, test)


def test_a_loan_counts_as_the_read_that_it_is(tmp_path: Path) -> None:
    """Else the hottest large objects look cold to the promoter; and the system's own reads make nothing hot."""

    async def test(here: Lender) -> None:
        name = place.chunk(1)
        await place.put_large(here.device, name, place.body(1, LARGE))
        for first, last, flags in ((0, -1, 0), (2, 3, 0), (0, -1, NO_HEAT)):
            answer, fd = here.ask(name, LARGE, first, last, flags=flags)
            assert answer.is_granted
            os.close(fd)
        batch = here.heat.batch(1.0)
        assert batch is not None
        [(counted, heat)] = unpack_entries(batch.entries)
        part = 2 * BLOCK_BYTES
        assert counted == name and heat == pytest.approx(1 + part / LARGE, rel=0.01)
        reads = here.reads
        assert (reads.reads_total, reads.bytes_total, reads.blocks_total) == (3, 2 * LARGE + part, 9)
        assert reads.served == {"ssd": (2, LARGE + part)} and here.loans.loans_total == 3

    play(tmp_path, test)


def test_a_loan_from_a_fast_device_makes_room_in_ram(tmp_path: Path) -> None:
    """As a GET does: what was promoted leaves the RAM that is for what waits for the slowest devices."""

    async def test(here: Lender) -> None:
        data, name = place.body(1, LARGE), place.chunk(1)
        await place.put_large(here.device, name, data)
        assert here.memory.admit(name, sums_of(data), data)
        for here.slot.is_slowest in (True, False):
            answer, fd = here.ask(name, LARGE)
            assert answer.is_granted
            os.close(fd)
            assert (here.memory.get(name) is not None) == here.slot.is_slowest

    play(tmp_path, test)
