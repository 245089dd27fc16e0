"""Reads of committed bytes: by range, or as a stream with read-ahead when a program reads on from where it was.

Owns the chunk views of the last window (tickets live five minutes; views are kept two) and at most one stream
(files/stream). Both take their memory from the mount's (files/memory), a range for as long as it is fetched.

Invariants: bytes come from the version the body was last told of, or a newer one (close-to-open); a stream that is
not read from gives its memory back when the file is closed, or another stream needs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tierstore.checksum import BLOCK_BYTES
from tierstore.errors import UnavailableError
from tierstore.files.memory import ReadMemory
from tierstore.files.stream import AHEAD_BYTES, BEHIND_BYTES, NEAR_BYTES, Bytes, Stream
from tierstore.sdk import Store
from tierstore.sdk.remote import BodyWalk
from tierstore.units import MIB
from tierstore.wire.files import FileResult
from tierstore.wire.names import ChunkView, LookupResult

VIEWS_SECONDS: Final = 120.0
#: Files up to this size are read by range: their first read fetches most of them anyway.
STREAM_BYTES_MIN: Final = 1 * MIB
READ_SECONDS: Final = 30.0

#: (first, length) -> chunks of that range and the file as it stands.
Find = Callable[[int, int], Awaitable[FileResult]]


class Reader:
    """One per body. Event loop only."""

    def __init__(
        self, store: Store, bucket: str, path: Callable[[], str], find: Find, memory: ReadMemory | None,
        *, version: int, size: int, seconds: float = READ_SECONDS,
    ) -> None:  # fmt: skip
        """memory: None where the caller holds it, and reads no further than what he asks for. seconds: of one read."""
        self._store = store
        self._seconds = seconds
        self._bucket = bucket
        self._path = path
        self.find = find
        self._memory = memory
        self._version = version
        self._size = size
        self._views: list[ChunkView] = []
        self._views_until = 0.0
        self._is_remote = False     # its bytes come from another site, through a gateway
        self._stream: Stream | None = None
        self._next = -1         # where a program that reads on would read

    def reset(self, version: int, size: int) -> None:
        """The file has another version: what was known of its chunks is not true any more."""
        self._version, self._size, self._views = version, size, []
        self._drop_stream()

    async def read(self, first: int, length: int) -> Bytes:
        """Good until the next await. Shorter where somebody cuts the file meanwhile. Raises
        UnavailableError(no-replica), NotFound when the file is gone."""
        async with asyncio.timeout(self._seconds):
            end = min(first + length, self._size)
            while end > first:
                try:
                    return await self._read(first, end)
                except UnavailableError as error:
                    if error.code != "no-replica":
                        raise
                    self._views = []
                    entry = (await self.find(first, 0)).entry
                    if entry is None or entry.size >= end:
                        raise
                    end = entry.size
            return b""

    async def _read(self, first: int, end: int) -> Bytes:
        stream = self._stream
        if stream is not None and stream.reaches(first, end):
            data = await stream.read(first, end)
            if data is not None:
                self._read_on(stream, end)
                return data
        is_next = abs(first - self._next) <= NEAR_BYTES and self._next >= 0
        if self._size >= STREAM_BYTES_MIN and (is_next or first == 0) and end < self._size:
            data = await self._begin_stream(first, end)
            if data is not None:
                self._next = end
                return data
        self._next = end
        return await self._range(first, end)

    def _read_on(self, stream: Stream, end: int) -> None:
        self._next = end
        if self._stream is stream and self._memory is not None:
            self._memory.used(self._drop_stream)

    async def _begin_stream(self, first: int, end: int) -> Bytes | None:
        self._drop_stream()
        if self._memory is None or not self._memory.begin(self._drop_stream, AHEAD_BYTES + BEHIND_BYTES):
            return None         # no memory to read ahead: range by range
        self._stream = Stream(self.walk, first, self._size)
        return await self._stream.read(first, end)

    def _drop_stream(self) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream = None
            if self._memory is not None:
                self._memory.ended(self._drop_stream)

    async def _range(self, first: int, end: int) -> Bytes:
        if self._memory is None:
            return await self._fetch(first, end)
        # Given back before the answer has left, which it does without a wait in between.
        # Twice, as a walk has a piece of its own, and in whole blocks.
        async with self._memory.range(2 * (end - first + BLOCK_BYTES)):
            return await self._fetch(first, end)

    async def _fetch(self, first: int, end: int) -> Bytes:
        walk = await self.walk(first, end)
        try:
            await walk.start()
            if walk.whole is not None:
                return await walk.next_piece()
            data = memoryview(bytearray(end - first))
            at = 0
            while piece := await walk.next_piece():
                data[at : at + len(piece)] = piece
                at += len(piece)
            return data[:at]
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

