"""Lending the file of a chunk to a reader on the same machine (tierstore.wire.loans), which reads it itself.

Owns the Unix socket and what is decided there. Lent is what a GET would send from the page cache by sendfile, if it
lies in a file of its own; to a reader that can wait for a disk also what is not cached, once this server's own threads
have read its first block: so its devices are measured, their queue is bounded and a hung one is noticed, as by a GET.
Everything else is refused, and the reader asks by the network, where each error has its answer. Checked and counted
like a GET: ticket, expiry, length; heat, tier, blocks.

Invariants: a descriptor that leaves is open for reading only and its file holds one chunk, the ticket's; the loop waits
neither for a disk nor for a reader (one whose socket is full is dropped: it has asked more than it may); connections
and questions that wait for a device are bounded, and these in time (COLD_SECONDS).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from objectd.residency import Residency
from objectd.routes.machine_door import MachineDoor
from objectd.routes.reads import ChunkReads
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store.device import Location, OpenChunk
from objectd.store.reading import is_memory
from tierstore.checksum import BLOCK_BYTES, block_count
from tierstore.errors import RequestError, TierstoreError
from tierstore.names import ChunkId
from tierstore.ticket import read_fields
from tierstore.wire.loans import (
    QUESTION_BYTES_MAX,
    QUESTIONS_MAX,
    SUMS_BYTES_MAX,
    Answer,
    Question,
    pack_answer,
    socket_name,
    unpack_question,
)

#: A device that takes longer for a first block is left to the network, whose reads wait for it with all patience. Less
#: than readers wait for an answer.
COLD_SECONDS: Final = 0.5

Lent = tuple[Answer, int]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A question that was found good."""

    number: int
    slot: Slot
    chunk: ChunkId
    chunk_bytes: int
    first: int
    count: int
    flags: int


class ChunkLoans:
    """Decides what is lent. Event loop only."""

    def __init__(
        self, *, standing: Standing, slots: Slots, reads: ChunkReads, residency: Residency, bytes_min: int,
        cold_reads_max: int,
    ) -> None:  # fmt: skip
        """bytes_min: less than that is not worth a loan. cold_reads_max: with so many reads waiting for the disks, no
        further one is begun."""
        self._standing = standing
        self._slots = slots
        self._reads = reads
        self._residency = residency
        self._bytes_min = bytes_min
        self._cold_reads_max = cold_reads_max
        self._in_memory: dict[int, bool] = {}
        self.loans_total = 0

    def lend(self, question: Question) -> Lent | Callable[[], Awaitable[Lent]]:
        """The answer and a descriptor, which the caller closes; -1 when nothing is lent. A function: a device must be
        waited for, and it does that. Never raises, here or there."""
        try:
            server, device, chunk_bytes_, segment, chunk_bytes, offset, expires_at, flags = read_fields(
                question.ticket, self._standing.keys
            )
            slot = self._slots.by_id.get(device)
            first, count = _range(question, chunk_bytes)
            if (
                server != self._standing.server or expires_at < self._standing.now_seconds() or slot is None
                or count < self._bytes_min
            ):  # fmt: skip
                return _refused(question.number)
            opened = slot.device.open_chunk(ChunkId(chunk_bytes_), Location(segment, offset))
        except TierstoreError:
            return _refused(question.number)    # by the network it is told what is wrong, and noted where it must be
        wanted = _Wanted(question.number, slot, ChunkId(chunk_bytes_), chunk_bytes, first, count, flags)
        can_wait = question.can_wait and not segment and self._reads.cold_reads < self._cold_reads_max
        if opened is not None:
            try:
                if not _is_lendable(opened, chunk_bytes):
                    return _refused(question.number)
                if self._residency.is_resident(opened.fd, first, count):
                    return self._lent(wanted, opened)
            finally:
                opened.close()
        return partial(self._lend_cold, wanted) if can_wait else _refused(question.number)

    async def _lend_cold(self, wanted: _Wanted) -> Lent:
        """Have the device's threads read the first block, then lend the file."""
        slot, loop = wanted.slot, asyncio.get_running_loop()
        opened = None
        self._reads.cold_reads += 1
        slot.waiting += 1
        began, waiting = loop.time(), slot.waiting
        try:
            async with asyncio.timeout(COLD_SECONDS):
                opened = await slot.device.find(wanted.chunk)
                if not _is_lendable(opened, wanted.chunk_bytes):
                    return _refused(wanted.number)
                data = await opened.read(wanted.first, min(wanted.count, BLOCK_BYTES))
            slot.note_read((loop.time() - began) / waiting, len(data))
            return self._lent(wanted, opened)
        except TimeoutError:
            slot.note_given_up((loop.time() - began) / waiting)
            return _refused(wanted.number)
        except (TierstoreError, OSError):
            return _refused(wanted.number)      # the network's read meets it again, tells it and notes it
        finally:
            self._reads.cold_reads -= 1
            slot.waiting -= 1
            if opened is not None:
                opened.close()

    def _lent(self, wanted: _Wanted, opened: OpenChunk) -> Lent:
        try:
            descriptor = _read_only(opened.fd)
        except OSError:
            return _refused(wanted.number)      # no descriptor left, or no /proc
        slot = wanted.slot
        self.loans_total += 1
        self._reads.count_lent(slot, wanted.chunk, wanted.chunk_bytes, wanted.count, wanted.flags)
        answer = Answer(
            wanted.number, True, self._is_memory(slot), opened.data_offset, slot.device.tier, opened.sums
        )
        return answer, descriptor

    def _is_memory(self, slot: Slot) -> bool:
        known = self._in_memory.get(slot.id)
        if known is None:
            known = self._in_memory[slot.id] = is_memory(slot.device.path)
        return known


def _refused(number: int) -> Lent:
    return Answer(number, is_granted=False), -1


def _is_lendable(opened: OpenChunk, chunk_bytes: int) -> bool:
    """A file of its own, of the ticket's length. In a segment, whose other chunks are not the reader's business, a
    record's header stands before the data; fd -1: a device that is read through its server only."""
    return (
        opened.fd >= 0 and opened.data_offset == 0 and opened.chunk_bytes == chunk_bytes
        and len(opened.sums) <= SUMS_BYTES_MAX
    )  # fmt: skip


def _range(question: Question, chunk_bytes: int) -> tuple[int, int]:
    """(first byte, count) of the blocks asked for. Raises RequestError when the chunk does not have them."""
    first = question.first_block * BLOCK_BYTES
    if not question.first_block <= question.last_block < block_count(chunk_bytes):
        raise RequestError("the chunk does not have these blocks", code="bad-request")
    return first, min((question.last_block + 1) * BLOCK_BYTES, chunk_bytes) - first


def _read_only(fd: int) -> int:
    """A new descriptor of the file that nobody can write through. The one of a chunk just written is for writing, and
    a duplicate would share that. Raises OSError."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return os.dup(fd)
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class LoanDoor(MachineDoor):
    """The socket and its connections. open() in the loop, close() at the end."""

    def __init__(self, loans: ChunkLoans) -> None:
        super().__init__(message_bytes_max=QUESTION_BYTES_MAX, messages_max=QUESTIONS_MAX)
        self._loans = loans
        #: Questions that wait for a device; their number is bounded by who asks (CONNECTIONS_MAX * QUESTIONS_MAX).
        self._waiting: set[asyncio.Task[None]] = set()

    def open(self, url: str) -> None:
        """Listen under the name of the server's address."""
        self.open_under(socket_name(url), url=url, without="chunks are not lent to readers on this machine")

    def close(self) -> None:
        """Harmless to repeat; what was lent stays with its readers."""
        self.shut()
        for task in self._waiting:
            task.cancel()

    def received(self, connection: socket.socket, message: bytes, descriptors: list[int]) -> bool:
        """False: the reader is gone, does not keep to the form or does not take its answers."""
        try:
            lent = self._loans.lend(unpack_question(message))
        except RequestError:
            return False
        if isinstance(lent, tuple):
            return _sent(connection, *lent)
        task = asyncio.get_running_loop().create_task(self._answer_later(connection, lent))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return True

    async def _answer_later(self, connection: socket.socket, lend: Callable[[], Awaitable[Lent]]) -> None:
        if not _sent(connection, *await lend()):
            self.drop(connection)


def _sent(connection: socket.socket, answer: Answer, descriptor: int) -> bool:
    """Give the answer and close the descriptor; False: the reader is gone or does not take its answers."""
    try:
        if descriptor < 0:
            connection.send(pack_answer(answer))
        else:
            socket.send_fds(connection, [pack_answer(answer)], [descriptor])
    except OSError:
        return False
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True
