"""Reads of committed bytes: by range, or as a stream with read-ahead when a program reads on from where it was.

Owns the chunk views of the last window (tickets live five minutes; views are kept two) and at most one stream. A
stream fills a queue of pieces ahead of the reader, within its share of the mount's budget; pieces just behind the
reader are kept for a while, because the kernel sends its requests side by side.

Cost of a byte of a stream: one copy into a piece that is kept (the walk reuses its own), none when the request lies
within one piece. Pieces are used again: fresh memory costs a page fault per 4 KiB, as much as the copy.

Invariants: bytes come from the version the body was last told of, or a newer one (close-to-open); a stream that is
not read from gives its memory back when the file is closed or the mount needs it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.errors import TierstoreError
from tierstore.sdk import Store
from tierstore.sdk.budget import BufferBudget
from tierstore.sdk.remote import BodyWalk
from tierstore.transport.pieces import PieceBuffers
from tierstore.units import KIB, MIB
from tierstore.wire.files import FileResult
from tierstore.wire.names import ChunkView, LookupResult

VIEWS_SECONDS: Final = 120.0
#: Sequential reads get so many bytes ahead, and so many behind stay for requests that arrive late.
AHEAD_BYTES: Final = 8 * MIB
BEHIND_BYTES: Final = 2 * MIB
#: A stream's pieces: what a walk gives in one go at most.
PIECE_BYTES: Final = 1 * MIB
#: Files up to this size are read by range: their first read fetches most of them anyway.
STREAM_BYTES_MIN: Final = 1 * MIB
#: A request that begins within this distance of the stream's end waits for it.
NEAR_BYTES: Final = 4 * MIB
READ_SECONDS: Final = 30.0

Bytes = bytes | memoryview
#: (first, length) -> chunks of that range and the file as it stands.
Find = Callable[[int, int], Awaitable[FileResult]]


class Reader:
    """One per body. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, path: Callable[[], str], find: Find, budget: BufferBudget, *,
        version: int, size: int,
    ) -> None:  # fmt: skip
        self._store = store
        self._bucket = bucket
        self._path = path
        self.find = find
        self._budget = budget
        self._version = version
        self._size = size
        self._views: list[ChunkView] = []
        self._views_until = 0.0
        self._is_remote = False     # its bytes come from another site, through a gateway
        self._stream: _Stream | None = None
        self._next = -1         # where a program that reads on would read

    def reset(self, version: int, size: int) -> None:
        """The file has another version: what was known of its chunks is not true any more."""
        self._version, self._size, self._views = version, size, []
        self._drop_stream()

    async def read(self, first: int, length: int) -> Bytes:
        """Good until the next await. Raises UnavailableError(no-replica), NotFound when the file is gone."""
        async with asyncio.timeout(READ_SECONDS):
            end = min(first + length, self._size)
            if end <= first:
                return b""
            stream = self._stream
            if stream is not None and stream.reaches(first, end):
                data = await stream.read(first, end)
                if data is not None:
                    self._next = end
                    return data
            is_next = abs(first - self._next) <= NEAR_BYTES and self._next >= 0
            if self._size >= STREAM_BYTES_MIN and (is_next or first == 0) and end < self._size:
                data = await self._begin_stream(first, end)
                if data is not None:
                    self._next = end
                    return data
            self._next = end
            return await self._range(first, end)

    async def _begin_stream(self, first: int, end: int) -> Bytes | None:
        if not self._budget.try_take(AHEAD_BYTES + BEHIND_BYTES):
            return None         # no memory to read ahead: range by range
        self._drop_stream()
        self._stream = _Stream(self, first, self._size)
        return await self._stream.read(first, end)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream = None
            self._budget.give_back(AHEAD_BYTES + BEHIND_BYTES)

    async def _range(self, first: int, end: int) -> bytes:
        walk = await self.walk(first, end)
        try:
            await walk.start()
            out = bytearray()
            while piece := await walk.next_piece():
                out += piece
            return bytes(out)
        finally:
            await walk.close()

    async def walk(self, first: int, end: int) -> BodyWalk:
        """A walk over the bytes [first, end)."""
        views = await self._known(first, end)
        found = LookupResult(version=self._version, size=self._size, chunks=views, is_remote=self._is_remote)
        if self._is_remote:
            return self._store.remote_walk(self._bucket, self._path(), found, first=first, length=end - first)

        async def look(at: int) -> LookupResult:
            self._views = []
            return LookupResult(version=self._version, size=self._size, chunks=await self._known(at, end))

        return self._store.file_walk(
            self._bucket, self._path(), found, first=first, length=end - first, lookup=look
        )

    async def _known(self, first: int, end: int) -> list[ChunkView]:
        """Views from the byte on: those at hand when they hold it, else a fresh window."""
        views = self._views
        now = time.monotonic()
        if not (views and now < self._views_until and views[0].start <= first < views[-1].start + views[-1].length):
            result = await self.find(first, max(end - first, AHEAD_BYTES))
            views = self._views = result.chunks
            self._is_remote = result.is_remote
            self._views_until = now + VIEWS_SECONDS
        return [view for view in views if view.start + view.length > first and view.start < end]

    async def close(self) -> None:
        self._drop_stream()
        self._views = []


class _Stream:
    """Bytes [first, ...) of a file, fetched ahead of whoever reads."""

    def __init__(self, reader: Reader, first: int, end: int) -> None:
        self._reader = reader
        self._end = end
        self._pieces: deque[tuple[int, memoryview]] = deque()
        self._spare = PieceBuffers(AHEAD_BYTES)
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
            memory = piece.obj
            piece.release()
            assert isinstance(memory, bytearray), "pieces lie in buffers of their own"
            self._spare.give_back(memory)

    def _keep(self, piece: memoryview) -> None:
        """The walk's piece is its own buffer: copy it."""
        size = len(piece)
        memory = self._spare.take(PIECE_BYTES) if size <= PIECE_BYTES else bytearray(size)
        memory[:size] = piece
        self._pieces.append((self._high, memoryview(memory)[:size]))
        self._high += size

    async def _fill(self, first: int) -> None:
        walk = None
        try:
            walk = await self._reader.walk(first, self._end)
            await walk.start()
            while piece := await walk.next_piece():
                self._keep(piece)
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
        self._task.cancel()
        self._is_ended = True
        self._moved.set()
