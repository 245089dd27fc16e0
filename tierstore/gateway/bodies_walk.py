"""A segment on its way from another site (Flight), and the walk of a reader over such segments.

Many readers share a flight: each reads from its buffer while it fills. A walk takes each segment from its flight, or
from this site when it is here. Who begins flights, and fetches: gateway/bodies.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from tierstore.errors import TierstoreError, UnavailableError
from tierstore.sdk.remote import BodyWalk
from tierstore.wire.names import ChunkView, LookupResult
from tierstore.wire.sites import SEGMENT_BYTES

PIECE_BYTES: Final = 256 * 1024
#: bucket, key, version, segment, is_relay.
FlightKey = tuple[str, str, int, int, bool]


class Flight:
    """One segment on its way. `buffer[:filled]` is verified."""

    def __init__(self, name: FlightKey, length: int, access: str, *, is_cached: bool) -> None:
        self.bucket, self.key, self.version, self.segment, self.is_relay = name
        self.first = self.segment * SEGMENT_BYTES
        self.length = length
        self.access = access
        self.is_cached = is_cached      # begun for a reader: the site may let go of the bytes again
        self.buffer = bytearray()
        self.filled = 0
        self.site = ""
        self.error: TierstoreError | None = None
        self.is_here = False            # it was at this site already; the buffer stays empty
        self._waiting: list[asyncio.Future[None]] = []

    def advance(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def reach(self, offset: int) -> bool:
        """Wait until the byte at `offset` is in the buffer; False: read it at this site. Raises what went wrong."""
        while self.filled <= offset and not self.is_here:
            if self.error is not None:
                raise self.error
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return not self.is_here


class Source(Protocol):
    """What a walk asks of gateway/bodies."""

    def fly(
        self, bucket: str, key: str, version: int, size: int, *, segment: int, access: str, is_relay: bool = False
    ) -> Flight: ...

    async def look(
        self, bucket: str, key: str, version: int, *, first: int, length: int, access: str
    ) -> LookupResult: ...

    def local_walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> BodyWalk: ...


class FetchWalk:
    """A range of a remote version: each segment from its flight, or from this site when it is here."""

    def __init__(
        self, bodies: Source, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str,
        is_relay: bool = False,
    ) -> None:  # fmt: skip
        self._bodies = bodies
        self._bucket = bucket
        self._key = key
        self._found = found
        self._access = access
        self._is_relay = is_relay
        self._at = first
        self._end = first + length
        self._segment_end = first
        self._flight: Flight | None = None
        self._inner: BodyWalk | None = None
        self._piece: memoryview | None = None
        self.tier = ""
        self.site = ""
        self.whole: memoryview | bytes | None = None

    async def start(self) -> None:
        """The first piece is here when it returns, so that most failures come before anything was answered."""
        if self._at >= self._end:
            self.whole = b""
            return
        self._piece = await self._next()

    async def next_piece(self) -> memoryview:
        if self._piece is not None:
            piece, self._piece = self._piece, None
            return piece
        return await self._next()

    async def _next(self) -> memoryview:
        if self._at >= self._end:
            return memoryview(b"")
        if self._at >= self._segment_end:
            await self._open()
        if self._flight is not None:
            base = self._segment_first()
            offset = self._at - base
            if await self._flight.reach(offset):
                self.site = self._flight.site
                stop = min(self._flight.filled, offset + PIECE_BYTES, self._end - base)
                piece = memoryview(self._flight.buffer)[offset:stop]
                self._at += len(piece)
                return piece
            self._flight = None
            await self._read_here(await self._look())
        assert self._inner is not None
        piece = await self._inner.next_piece()
        if not piece:
            raise UnavailableError("the body ended early", code="broken-answer")
        self._at += len(piece)
        return piece

    def _segment_first(self) -> int:
        return self._at // SEGMENT_BYTES * SEGMENT_BYTES

    async def _open(self) -> None:
        """Begin the segment under the current byte, and have the next one fetched meanwhile."""
        await self._drop()
        found = self._found
        first = self._segment_first()
        self._segment_end = min(first + SEGMENT_BYTES, self._end, found.size)
        if covers(found.chunks, self._at, self._segment_end):
            await self._read_here(found)
        else:
            self._flight = self._fly(first // SEGMENT_BYTES)
        if self._segment_end < self._end:
            self._fly(first // SEGMENT_BYTES + 1)

    def _fly(self, segment: int) -> Flight:
        found = self._found
        return self._bodies.fly(
            self._bucket, self._key, found.version, found.size, segment=segment, access=self._access,
            is_relay=self._is_relay,
        )

    async def _look(self) -> LookupResult:
        return await self._bodies.look(
            self._bucket, self._key, self._found.version, first=self._at, length=self._segment_end - self._at,
            access=self._access,
        )  # fmt: skip

    async def _read_here(self, found: LookupResult) -> None:
        self._inner = self._bodies.local_walk(
            self._bucket, self._key, found, first=self._at, length=self._segment_end - self._at, access=self._access
        )
        await self._inner.start()
        self.tier = self.tier or self._inner.tier

    async def _drop(self) -> None:
        self._flight = None
        if self._inner is not None:
            await self._inner.close()
            self._inner = None

    async def close(self) -> None:
        """Let go; the flights go on, for the others and to be kept."""
        await self._drop()


def covers(chunks: list[ChunkView], first: int, stop: int) -> bool:
    """Whether the chunks, in order, hold all bytes from first to stop."""
    at = first
    for chunk in chunks:
        if chunk.start <= at < chunk.start + chunk.length:
            at = chunk.start + chunk.length
    return at >= stop
