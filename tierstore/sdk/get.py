"""The GET walk: extents from metadata, bodies from object servers, every block verified before it is let go.

Owns the window of chunks known ahead, the stream being read and the one opened ahead of it. Reads from the best
replica; on an error, a bad block or silence it goes on at the same byte with the next one and reports bad copies; a
slow first byte is hedged. Knows nothing of HTTP conditions: the caller looks at `Found` first and then reads.

Invariants: no byte is returned whose block was not checked against sums that combine to the catalog's CRC32C
(object_client does both); the pieces are exactly bytes first .. first + length - 1 of one version; at most two streams
(with one piece each) are open; after close() no task is left.

Cost of a small object: one lookup, one task, one request, one reply in one piece. Larger ones: one read and one
CRC32C pass per byte, in pieces of up to 256 KiB, no further copy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from tierstore.clock import Clock
from tierstore.errors import IntegrityError, NotFound, TicketRefused, TierstoreError, UnavailableError
from tierstore.names import ChunkId
from tierstore.sdk.early import EarlyRead
from tierstore.sdk.limits import SMALL_BYTES, StoreLimits
from tierstore.sdk.pins import Pins
from tierstore.sdk.race import Race
from tierstore.sdk.servers import ServerBook
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.pieces import PieceBuffers
from tierstore.transport.verified import FetchedChunk, VerifiedStream
from tierstore.wire.cluster import BadChunk
from tierstore.wire.names import ChunkView, LookupItem, LookupResult, ReplicaView

_EMPTY: Final = memoryview(b"")
#: How much of a chunk is left when the next one is opened.
_OPEN_AHEAD_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class GetParts:
    """What a walk works with."""

    client: MetadataClient
    objects: ObjectClient
    servers: ServerBook
    limits: StoreLimits
    clock: Clock


@dataclass(slots=True)
class _Opened:
    """A stream with its first piece, from one replica."""

    stream: VerifiedStream
    first_piece: memoryview


class GetWalk:
    """Read bytes first .. first + length - 1 of a version that a lookup found.

    `found` must hold the chunks from `first` on (as many as metadata gave). start() fetches the first piece, so `tier`
    is known and most failures come before anything was answered; then next_piece() until it is empty; then close()."""

    def __init__(
        self, parts: GetParts, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str = "",
        lookup: Callable[[int], Awaitable[LookupResult]] | None = None, early: EarlyRead | None = None,
    ) -> None:  # fmt: skip
        """lookup: how to find the chunks from a byte on, when not by name and version (files of a mount). early: a read
        of the whole object that was begun before the lookup."""
        self._early = early
        self._parts = parts
        self._bucket = bucket
        self._key = key
        self._access = access
        self._find = lookup
        self._version = found.version
        self._at = first
        self._end = first + length
        self._chunks = deque(chunk for chunk in found.chunks if first < chunk.start + chunk.length)
        self._known_to = self._chunks[-1].start + self._chunks[-1].length if self._chunks else first
        self._learning: asyncio.Task[None] | None = None
        self._stream: VerifiedStream | None = None
        self._replica: ReplicaView | None = None
        self._ready = _EMPTY
        self._ahead: asyncio.Task[tuple[ReplicaView, _Opened]] | None = None
        self._chunk_end = first
        self._pins: Pins | None = None
        self.tier = ""
        self.site = ""
        #: The whole range in one piece when it is small; else None.
        self.whole: memoryview | bytes | None = None

    async def start(self) -> None:
        """Fetch the first piece. Raises UnavailableError(no-replica | deadline)."""
        length = self._end - self._at
        if length <= 0:
            self.whole = b""
            return
        if not self._chunks:
            await self._more_chunks()
        chunk = self._chunks[0]
        if length <= SMALL_BYTES and self._end <= chunk.start + chunk.length:
            await self._start_small(chunk, length)
            return
        self._learn_soon()
        await self._open_current()
        if self._learning is not None:
            # What was answered can be read to its end, also if the object is replaced in this moment.
            await asyncio.wait([self._learning], timeout=self._parts.limits.whole_body_seconds)
        self._pins = Pins(self._parts.client, self._parts.limits, lambda: self._chunks, self._renewed)

    async def _start_small(self, chunk: ChunkView, length: int) -> None:
        """The whole range in one piece."""
        early, offset = self._early, chunk.chunk_offset + self._at - chunk.start

        async def read(replica: ReplicaView) -> FetchedChunk:
            fetched = await early.take(chunk, replica) if early is not None else None
            return fetched or await self._read_small(replica, chunk, offset, length)

        found = early.now(chunk) if early is not None else None
        asked = early.ordered(chunk) if early is not None else chunk
        replica, fetched = found or await self._any_replica(read, chunk=asked)
        self.whole = fetched.data
        self._served(fetched.tier or replica.tier)
        self._at = self._end
        if early is not None:
            early.learn(chunk, self.tier)

    async def next_piece(self) -> memoryview:
        """The next verified bytes, in order; valid until the next call; empty at the end."""
        if self._ready:
            piece, self._ready = self._ready, _EMPTY
            return self._passed(piece)
        if self.whole is not None:
            piece, self.whole = memoryview(self.whole), None
            return piece
        if self._at >= self._end:
            return _EMPTY
        if self._at < self._chunk_end:
            assert self._stream is not None
            assert self._replica is not None
            try:
                piece = await self._stream.next_piece()
                if piece:
                    return self._passed(piece)
                raise UnavailableError("the body ended early", code="broken-answer")
            except TierstoreError as error:
                # in the middle of a body: the same byte from another replica
                self._note_failure(self._replica, self._chunks[0], error)
                self._close_stream()
                await self._open_current()
        else:
            self._close_stream()
            self._chunks.popleft()
            if not self._chunks:
                await self._more_chunks()
            await self._open_current()
        piece, self._ready = self._ready, _EMPTY
        return self._passed(piece)

    def _passed(self, piece: memoryview) -> memoryview:
        self._at += len(piece)
        if self._ahead is None and self._chunk_end - self._at <= _OPEN_AHEAD_BYTES and self._chunk_end < self._end:
            self._look_ahead()
        return piece

    def give_away(self) -> None:
        """The piece that next_piece() has just returned stays valid for as long as its taker wants. A buffer that it
        lies in (`piece.obj`, if that is a bytearray) goes to `buffers` in the end."""
        if self._stream is not None:
            self._stream.give_away()

    @property
    def buffers(self) -> PieceBuffers:
        """Where the buffers of pieces come from."""
        return self._parts.objects.pieces

    async def close(self) -> None:
        """Let go of everything; harmless to repeat."""
        self._close_stream()
        if self._pins is not None:
            pins, self._pins = self._pins, None
            await pins.close()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
            self._learning = None
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            if not ahead.cancel() and not ahead.cancelled() and ahead.exception() is None:
                ahead.result()[1].stream.close()
            await asyncio.gather(ahead, return_exceptions=True)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    # -- chunks ---------------------------------------------------------------------------------------------
    async def _more_chunks(self) -> None:
        """Wait for the chunks at the current byte, by version (the object may have been replaced meanwhile)."""
        if self._learning is not None:
            # its first window is what is waited for; if it failed, that is asked for once more
            await asyncio.wait([self._learning])
        if not self._chunks:
            self._take_window(await self._lookup(self._at))
        if not self._chunks:
            raise UnavailableError(f"metadata knows no chunk at byte {self._at}", code="no-replica")

    def _take_window(self, result: LookupResult) -> None:
        for chunk in result.chunks:
            if chunk.start + chunk.length > max(self._at, self._known_to if self._chunks else 0):
                self._chunks.append(chunk)
        if self._chunks:
            self._known_to = self._chunks[-1].start + self._chunks[-1].length

    def _learn_soon(self) -> None:
        """Begin to ask for the rest of the body, unless as much is known as is kept of it."""
        is_wanted = self._known_to < self._end and len(self._chunks) <= self._parts.limits.lookup_chunks_ahead // 2
        if is_wanted and (self._learning is None or self._learning.done()):
            self._learning = asyncio.get_running_loop().create_task(self._learn())

    async def _learn(self) -> None:
        """Window after window, at once: when the object is replaced, what is known of it can be read to its end and
        the rest cannot be looked up any more. A failure is met again, and raised, when its chunks are needed."""
        with contextlib.suppress(TierstoreError):
            while self._known_to < self._end and len(self._chunks) < self._parts.limits.lookup_chunks_ahead:
                known_to = self._known_to
                self._take_window(await self._lookup(known_to))
                if self._known_to == known_to:
                    return

    async def _lookup(self, first: int) -> LookupResult:
        if self._find is not None:
            return await self._find(first)
        item = LookupItem(
            self._bucket, self._key, self._access, self._version, first=first, length=self._end - first
        )
        return await self._parts.client.lookup(item, seconds=self._parts.limits.request_seconds)

    def _look_ahead(self) -> None:
        """Open the next chunk while the rest of this one is passed on; ask for further windows in good time."""
        self._learn_soon()
        if len(self._chunks) > 1:
            chunk = self._chunks[1]
            self._ahead = asyncio.get_running_loop().create_task(self._open_chunk(chunk, chunk.start))

    def _renewed(self, fresh: dict[int, ChunkView]) -> None:
        # by place, as some were read and others came meanwhile
        self._chunks = deque(fresh.get(chunk.start, chunk) for chunk in self._chunks)

    # -- replicas -------------------------------------------------------------------------------------------
    async def _open_current(self) -> None:
        """Open the chunk under the current byte (or take the one opened ahead) with its first piece."""
        chunk = self._chunks[0]
        ahead = self._ahead
        opened: tuple[ReplicaView, _Opened] | None = None
        if ahead is not None and self._at == chunk.start:
            self._ahead = None
            try:
                opened = await ahead
            except TierstoreError:
                opened = None       # tried again below, from the start
        if opened is None:
            opened = await self._open_chunk(chunk, self._at)
        self._replica, found = opened
        self._stream = found.stream
        # taken out: whoever still holds the answer (the race that it won) must not keep the stream's buffer from reuse
        self._ready, found.first_piece = found.first_piece, _EMPTY
        self._chunk_end = min(chunk.start + chunk.length, self._end)
        if not self.tier:
            self._served(found.stream.tier or self._replica.tier)

    def _served(self, tier: str) -> None:
        """The first byte is here, from this tier (its server may have had it in RAM)."""
        self.tier = tier
        self._parts.servers.note_served(tier)

    async def _open_chunk(self, chunk: ChunkView, at: int) -> tuple[ReplicaView, _Opened]:
        offset = chunk.chunk_offset + at - chunk.start
        length = min(chunk.start + chunk.length, self._end) - at

        async def attempt(replica: ReplicaView) -> _Opened:
            started = self._parts.clock.monotonic()
            seconds = self._parts.limits.stall_seconds
            stream = await self._parts.objects.open_chunk(
                await self._parts.servers.url(replica.server), replica.ticket, chunk=ChunkId(chunk.id),
                chunk_bytes=chunk.chunk_bytes, crc32c=chunk.crc32c, first=offset, length=length, seconds=seconds,
            )  # fmt: skip
            try:
                piece = await stream.next_piece()
            except BaseException:
                stream.close()
                raise
            self._parts.servers.note_first_byte(self._parts.clock.monotonic() - started)
            return _Opened(stream, piece)

        return await self._any_replica(attempt, chunk=chunk)

    async def _read_small(
        self, replica: ReplicaView, chunk: ChunkView, offset: int, length: int
    ) -> FetchedChunk:
        parts = self._parts
        started = parts.clock.monotonic()
        fetched = await parts.objects.fetch_chunk(
            await parts.servers.url(replica.server), replica.ticket, chunk=ChunkId(chunk.id),
            chunk_bytes=chunk.chunk_bytes, crc32c=chunk.crc32c, first=offset, length=length,
            seconds=parts.limits.stall_seconds,
        )  # fmt: skip
        parts.servers.note_first_byte(parts.clock.monotonic() - started)
        return fetched

    async def _any_replica(self, attempt: Any, *, chunk: ChunkView | None = None) -> tuple[ReplicaView, Any]:
        """The first good answer of any replica: hedged, in rounds with fresh tickets. Raises UnavailableError."""
        limits, servers = self._parts.limits, self._parts.servers
        loop = asyncio.get_running_loop()
        until = loop.time() + limits.first_byte_seconds
        chunk = chunk or self._chunks[0]
        failure: TierstoreError | None = None
        for round_number in range(limits.read_rounds_max):
            if round_number:
                await asyncio.sleep(0.05 * round_number)
                chunk = await self._fresh(chunk) or chunk
            replicas = chunk.replicas
            if servers.has_suspects and len(replicas) > 1:
                replicas = sorted(replicas, key=lambda replica: servers.is_suspect(replica.server))
            if not replicas or loop.time() >= until:
                break
            current = chunk
            race: Race[ReplicaView, Any] = Race(
                replicas, attempt, hedge_seconds=servers.hedge_seconds, seconds=until - loop.time(),
                failed=lambda replica, error, of=current: self._note_failure(replica, of, error),  # type: ignore[misc]
                discard=_discard, hedged=servers.note_hedge,
            )  # fmt: skip
            try:
                return await race.run()
            except TierstoreError as error:
                failure = error
        raise UnavailableError(
            f"no copy of chunk {chunk.id.hex()} could be read: {failure or 'none is known'}", code="no-replica"
        ) from failure

    async def _fresh(self, chunk: ChunkView) -> ChunkView | None:
        """The same chunk with the replicas and tickets of now; None when metadata cannot say."""
        try:
            result = await self._lookup(chunk.start)
        except TierstoreError:
            return None
        return next((fresh for fresh in result.chunks if fresh.id == chunk.id and fresh.start == chunk.start), None)

    def _note_failure(self, replica: ReplicaView, chunk: ChunkView, error: Exception) -> None:
        """Remember who failed, and tell metadata about a copy that is bad or missing."""
        self._parts.servers.read_failures_total += 1
        if isinstance(error, IntegrityError):
            self._parts.client.report_bad(BadChunk(chunk.id, replica.device, error.code))
        elif isinstance(error, NotFound):
            self._parts.client.report_bad(BadChunk(chunk.id, replica.device, "missing"))
        elif not isinstance(error, TicketRefused):
            self._parts.servers.note_failure(replica.server)


def _discard(answer: Any) -> None:
    """An answer that lost its race."""
    if isinstance(answer, _Opened):
        answer.stream.close()
