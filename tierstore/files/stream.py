"""A stream: bytes of a file fetched ahead of the program that reads on from where it was.

Owns a queue of pieces around the reader: AHEAD_BYTES before it, and BEHIND_BYTES behind, because the kernel sends its
requests side by side. A task fills it; whoever waits is woken by what comes, or by the end.

Cost of a byte: none beyond the walk's own (a read into the piece, its checksum): pieces of a walk over our own chunks
are kept with their buffers, not copied, and the buffers are used again (fresh memory costs a page fault per 4 KiB, as
much as a copy). Pieces that come through a gateway are copied once. A request within one piece is answered from it; one
that spans several is put together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.errors import TierstoreError
from tierstore.sdk.get import GetWalk
from tierstore.sdk.remote import BodyWalk
from tierstore.transport.pieces import PieceBuffers
from tierstore.units import KIB, MIB

#: Sequential reads get so many bytes ahead, and so many behind stay for requests that arrive late.
AHEAD_BYTES: Final = 8 * MIB
BEHIND_BYTES: Final = 2 * MIB
#: What a walk gives in one go at most.
PIECE_BYTES: Final = 1 * MIB
#: A request that begins within this distance of the stream's end waits for it.
NEAR_BYTES: Final = 4 * MIB

Bytes = bytes | memoryview


class Stream:
    """Bytes [first, end) of a file. Event loop only."""

    def __init__(self, walk: Callable[[int, int], Awaitable[BodyWalk]], first: int, end: int) -> None:
        """walk: (first, end) -> a walk over those bytes."""
        self._walk = walk
        self._end = end
        self._pieces: deque[tuple[int, memoryview]] = deque()
        self._buffers = PieceBuffers(AHEAD_BYTES)
        self._low = self._high = self._wanted = first
        self._moved = asyncio.Event()       # more is there, or the end
        self._room = asyncio.Event()
        self._is_ended = False              # nothing more comes: the end, an error, or nobody wants it any more
        self._task = asyncio.get_running_loop().create_task(self._fill(first), name="read-ahead")

    def reaches(self, first: int, end: int) -> bool:
        return self._low <= first <= self._high + NEAR_BYTES and end <= self._end

    async def read(self, first: int, end: int) -> Bytes | None:
        """Bytes that are good until the next await. None: the stream does not have all of it any more; read by
        range."""
        self._wanted = max(self._wanted, end)
        self._room.set()
        while self._high < end:
            if self._is_ended:
                return None
            self._moved.clear()
            await self._moved.wait()
        if self._low > first:
            return None
        found = [
            piece[max(0, first - start) : end - start] for start, piece in self._pieces
            if start + len(piece) > first and start < end
        ]  # fmt: skip
        self._forget()
        return found[0] if len(found) == 1 else b"".join(found)

    def _forget(self) -> None:
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) < self._wanted - BEHIND_BYTES:
            start, piece = self._pieces.popleft()
            self._low = start + len(piece)
            self._let_go(piece)

    def _let_go(self, piece: memoryview) -> None:
        memory = piece.obj
        piece.release()
        if isinstance(memory, bytearray):
            self._buffers.give_back(memory)

    def _keep(self, walk: BodyWalk, piece: memoryview) -> None:
        """Have the piece for longer than until the walk's next one."""
        if isinstance(walk, GetWalk):
            walk.give_away()
        else:
            piece = self._copied(piece)
        self._pieces.append((self._high, piece))
        self._high += len(piece)

    def _copied(self, piece: memoryview) -> memoryview:
        size = len(piece)
        copy = memoryview(self._buffers.take(PIECE_BYTES) if size <= PIECE_BYTES else bytearray(size))
        copy[:size] = piece     # of the view: a slice of a bytearray makes a second copy of what it is given
        return copy[:size]

    async def _fill(self, first: int) -> None:
        walk = None
        try:
            walk = await self._walk(first, self._end)
            if isinstance(walk, GetWalk):
                self._buffers = walk.buffers
            await walk.start()
            while piece := await walk.next_piece():
                self._keep(walk, piece)
                self._moved.set()
                while self._high - self._wanted > AHEAD_BYTES - 512 * KIB:
                    self._room.clear()
                    await self._room.wait()
        except TierstoreError:
            pass        # who waits reads by range, and hears why
        finally:
            self._is_ended = True       # before the waking: the walk's end takes a while
            self._moved.set()
            if walk is not None:
                await walk.close()

    def stop(self) -> None:
        """Nobody reads on: whoever waits reads by range."""
        self._task.cancel()
        self._is_ended = True
        self._moved.set()
        self._low = self._high
        while self._pieces:
            self._let_go(self._pieces.popleft()[1])
