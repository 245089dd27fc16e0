"""Reading a chunk from the file that an object server on the same machine lends, in place of receiving it by TCP.

Owns lent descriptors until they are closed, and a connection (transport.machine) to each object server of this machine.

Invariants: a loan is a shortcut and never a condition: whatever goes wrong with it, the caller reads by the network, or
from another copy; the loop waits for no disk: what is not in the page cache (any more) is read by a few
threads of the borrower, or, where it has none, by the network; each descriptor is closed exactly once, also when
whoever asked has gone, and after the last thread that reads from it.

Cost: one message each way (about 25 us for both processes together) in place of a request; then each byte is copied
once, from the page cache, and not into a socket and out of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final

from tierstore.errors import RequestError, UnavailableError
from tierstore.transport.disk_waits import DiskWaits
from tierstore.transport.machine import RETRY_SECONDS, MachineLink
from tierstore.transport.peer import PeerStream
from tierstore.wire.loans import (
    ANSWER_BYTES_MAX,
    QUESTIONS_MAX,
    Answer,
    Question,
    pack_question,
    socket_name,
    unpack_answer,
)

#: For an answer; a server that is slower than that serves no better by a loan.
ANSWER_SECONDS: Final = 1.0
#: Read without a turn of the loop at most: others wait meanwhile (about 0.3 ms).
TURN_BYTES: Final = 2 * 1024 * 1024


class Loan:
    """A chunk's file, open for reading. Close it."""

    __slots__ = ("_fd", "_is_memory", "_wait", "_waits", "data_offset", "sums", "tier")

    def __init__(self, fd: int, answer: Answer, waits: DiskWaits | None = None) -> None:
        """waits: who reads what is not in the page cache."""
        self._fd = fd
        self._is_memory = answer.is_memory
        self._waits = waits
        self._wait: Future[bool] | None = None
        self.data_offset = answer.data_offset
        self.sums = answer.sums
        self.tier = answer.tier

    def read_now(self, view: memoryview, at: int) -> bool:
        """Fill the view with the data from byte `at` of the chunk on, if no disk must be waited for; else False."""
        if self._fd < 0:
            return False
        flags = 0 if self._is_memory else os.RWF_NOWAIT
        try:
            return os.preadv(self._fd, (view,), self.data_offset + at, flags) == len(view)
        except OSError:
            return False        # EAGAIN: not in the page cache; anything else is met and told on the other way

    async def read(self, view: memoryview, at: int, *, ahead: int, seconds: float) -> bool:
        """The same, waiting for the disk; False when it is not to be had this way. ahead: bytes behind the view that
        will be wanted next. Raises UnavailableError(device-slow); the view must not be used again then."""
        if self._waits is None or self._fd < 0:
            return False
        first = self._wait is None      # the disk is told once what is wanted
        self._wait = self._waits.submit(self._fd, view, self.data_offset + at, ahead if first else 0)
        if self._wait is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(self._wait)
        except TimeoutError:
            self._waits.is_slow()
            raise UnavailableError("a lent file's disk does not answer", code="device-slow") from None

    def close(self) -> None:
        """Harmless to repeat."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._wait is None or self._wait.done():
            os.close(fd)
        else:       # a thread is reading from it: another file may get the number when it is closed
            self._wait.add_done_callback(lambda _: os.close(fd))


class LentBody:
    """The data of a range of blocks: from the loan, and from the network for what the loan does not give."""

    def __init__(
        self, loan: Loan, at: int, end: int, by_network: Callable[[int], Awaitable[PeerStream]], *, seconds: float
    ) -> None:
        """[at, end): the range in the chunk; by_network(at): the same data from byte `at` on. seconds: bounds each
        wait for the disk."""
        self._loan = loan
        self._at = at
        self._end = end
        self._seconds = seconds
        self._by_network = by_network
        self._stream: PeerStream | None = None
        self._turn_bytes = 0

    async def read_into(self, view: memoryview) -> None:
        """Fill the view with the next bytes. Raises what the network does."""
        if self._stream is None:
            if self._loan.read_now(view, self._at):
                self._at += len(view)
                self._turn_bytes += len(view)
                if self._turn_bytes > TURN_BYTES:
                    self._turn_bytes = 0
                    await asyncio.sleep(0)
                return
            ahead = self._end - self._at - len(view)
            if await self._loan.read(view, self._at, ahead=ahead, seconds=self._seconds):
                self._at += len(view)
                return
            self._stream = await self._by_network(self._at)
        await self._stream.read_into(view)
        self._at += len(view)

    def close(self) -> None:
        """Harmless to repeat."""
        self._loan.close()
        if self._stream is not None:
            self._stream.close()


class Borrower:
    """One per process that reads chunks. Event loop only; close() it."""

    def __init__(
        self, *, answer_seconds: float = ANSWER_SECONDS, retry_seconds: float = RETRY_SECONDS, can_wait: bool = False
    ) -> None:
        """can_wait: threads of this process read what is not in the page cache; else that comes by the network."""
        self._answer_seconds = answer_seconds
        self._waits = DiskWaits() if can_wait else None
        self._retry_seconds = retry_seconds
        self._lenders: dict[str, _Lender] = {}
        self._is_closed = False
        #: Chunks (or ranges) that were lent, for metrics.
        self.loans_total = 0

    async def borrow(
        self, url: str, ticket: bytes, *, first_block: int, last_block: int, seconds: float
    ) -> Loan | None:
        """The file of the ticket's chunk, if the server at `url` is on this machine, has the blocks in the page cache
        and lends it; None: read it by the network. Raises nothing; counts as a read of the chunk when it is lent."""
        lender = self._lenders.get(url)
        if lender is None:
            lender = self._lenders[url] = _Lender(url, self._retry_seconds, self._waits)
        if self._is_closed or not lender.is_found():
            return None
        loan = await lender.ask(ticket, first_block, last_block, min(seconds, self._answer_seconds))
        if loan is not None:
            self.loans_total += 1
        return loan

    @property
    def has_room(self) -> bool:
        """Whether one more read may wait for a disk."""
        return self._waits is not None and self._waits.has_room

    def close(self) -> None:
        """End the connections; who waits gets None. Loans that were given stay good."""
        self._is_closed = True
        for lender in self._lenders.values():
            lender.leave()
        if self._waits is not None:
            self._waits.close()


class _Lender(MachineLink[Loan]):
    """The connection to one object server, while there is one."""

    def __init__(self, url: str, retry_seconds: float, waits: DiskWaits | None) -> None:
        super().__init__(
            socket_name(url), retry_seconds=retry_seconds, questions_max=QUESTIONS_MAX,
            answer_bytes_max=ANSWER_BYTES_MAX,
        )  # fmt: skip
        self._waits = waits

    async def ask(self, ticket: bytes, first_block: int, last_block: int, seconds: float) -> Loan | None:
        can_wait = self._waits is not None and self._waits.has_room
        try:
            return await self.question(
                lambda number: pack_question(Question(number, first_block, last_block, ticket, can_wait)), seconds
            )
        except TimeoutError:
            return None

    def read(self, message: bytes, descriptors: list[int]) -> tuple[int, Loan | None]:
        answer = unpack_answer(message)
        if len(descriptors) != answer.is_granted:
            raise RequestError("a loan without a file, or a file without a loan", code="bad-request")
        return answer.number, Loan(descriptors[0], answer, self._waits) if descriptors else None

    def refuse(self, given: Loan) -> None:
        given.close()
