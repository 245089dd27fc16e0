"""Bodies that are still at another site: fetched once, verified, given to all who wait, kept.

A remote version is fetched in segments of SEGMENT_BYTES. One `Flight` per segment and process: whoever wants bytes of
it, a thousand readers or the replication of that site, reads from the same buffer while it fills (single flight); when
it is whole it is stored on N+1 servers and committed as a fill. A break goes on at the same byte, from the next
gateway or site that has the version.

Invariants: no byte is given out whose frame was not checked; at most FLIGHTS_MAX segments are in memory (readers may
hold the last one they read); a failed store costs the reader nothing, the bytes are fetched again next time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tierstore.checksum import crc_of
from tierstore.clock import Clock, version_site
from tierstore.errors import ConflictError, NotFound, TierstoreError, UnavailableError
from tierstore.sdk.frames import FrameReader
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.store import Store
from tierstore.transport.peer import PeerTransport
from tierstore.wire.names import ChunkView, LookupResult
from tierstore.wire.sites import (
    SEGMENT_BYTES,
    FetchItem,
    FetchResult,
    NameAnswer,
    NameBatch,
    Peer,
    Peers,
    Push,
    PushAnswer,
)

_log = logging.getLogger("tierstore.gateway.bodies")

#: Segments on their way or being stored; further ones wait.
FLIGHTS_MAX: Final = 16
WAITING_MAX: Final = 4096
#: For the first and for each further frame of another site.
FRAME_SECONDS: Final = 10.0
ROUNDS_MAX: Final = 3
ROUND_PAUSE_SECONDS: Final = 0.2
PIECE_BYTES: Final = 256 * 1024
PEERS_FRESH_SECONDS: Final = 5.0
PUSH_SECONDS: Final = 10.0
#: What a fill says when its bytes are here, or are of a version that a later one replaced.
_NEEDLESS: Final = frozenset({"already-here", "no-such-version", "no-such-key"})

_Key = tuple[str, str, int, int]


class Flight:
    """One segment on its way. `buffer[:filled]` is verified."""

    def __init__(self, name: _Key, length: int, access: str) -> None:
        self.bucket, self.key, self.version, self.segment = name
        self.first = self.segment * SEGMENT_BYTES
        self.length = length
        self.access = access
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


class Bodies:
    """One per gateway process; also the Store's RemoteSource."""

    def __init__(self, store: Store, transport: PeerTransport, clock: Clock) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._flights: dict[_Key, tuple[Flight, asyncio.Task[None]]] = {}
        self._turns = asyncio.Semaphore(FLIGHTS_MAX)
        self._peers = Peers("")
        self._peers_until = 0.0
        self._watch: asyncio.Task[None] | None = None
        self.fetched_bytes = 0
        self.fetches = 0
        self.failures = 0

    # -- who has it -----------------------------------------------------------------------------------------
    async def peers(self) -> Peers:
        """The other sites, as metadata knew them at most PEERS_FRESH_SECONDS ago."""
        now = self._clock.monotonic()
        if now >= self._peers_until:
            self._peers = await self._store.client.ask(b"/v1/internal/sites", {}, Peers)
            self._peers_until = now + PEERS_FRESH_SECONDS
        return self._peers

    @property
    def known(self) -> Peers:
        """The other sites as last heard of, at once."""
        return self._peers

    def start(self) -> None:
        """Keep the other sites known, so that no request waits for that. close() ends it."""
        self._watch = asyncio.get_running_loop().create_task(self._keep_known(), name="peers")

    async def _keep_known(self) -> None:
        while True:
            try:
                await self.peers()
            except TierstoreError as error:
                _log.warning("the other sites are not known now: %s", error)
            await self._clock.sleep(PEERS_FRESH_SECONDS / 2)

    def _sources(self, version: int) -> list[Peer]:
        """Where the version was written, then the others, the nearest first."""
        origin = version_site(version)
        return sorted(self._peers.peers, key=lambda peer: (peer.number != origin, peer.latency_ms, peer.name))

    # -- flights --------------------------------------------------------------------------------------------
    def fly(self, bucket: str, key: str, version: int, size: int, *, segment: int, access: str) -> Flight:
        """The flight of a segment, begun if there is none. Raises UnavailableError(busy)."""
        name = (bucket, key, version, segment)
        known = self._flights.get(name)
        if known is not None:
            return known[0]
        if len(self._flights) >= WAITING_MAX:
            raise UnavailableError(f"{WAITING_MAX} fetches from other sites are under way, the bound", code="busy")
        flight = Flight(name, min(SEGMENT_BYTES, size - segment * SEGMENT_BYTES), access)
        task = asyncio.get_running_loop().create_task(self._run(flight), name="fetch")
        self._flights[name] = (flight, task)
        task.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    async def _run(self, flight: Flight) -> None:
        try:
            async with self._turns:
                if await self._is_here(flight):
                    flight.is_here = True
                    return
                flight.buffer = bytearray(flight.length)
                await self._fetch(flight)
                self.fetches += 1
                await self._keep(flight)
        except TierstoreError as error:
            self.failures += 1
            flight.error = error
        except Exception as error:  # whoever waits must hear of it, or it waits for ever
            _log.exception("a fetch failed")
            flight.error = UnavailableError(f"the fetch failed: {error}", code="body-unreachable")
        finally:
            if flight.filled < flight.length and not flight.is_here and flight.error is None:
                flight.error = UnavailableError("the gateway is stopping", code="draining")
            flight.advance()

    async def _is_here(self, flight: Flight) -> bool:
        found = await self._store.find(
            flight.bucket, flight.key, version=flight.version, first=flight.first, length=flight.length,
            access=flight.access,
        )  # fmt: skip
        return not found.is_remote or covers(found.chunks, flight.first, flight.first + flight.length)

    async def _fetch(self, flight: Flight) -> None:
        """Fill the buffer. Raises UnavailableError when no site gives the bytes, NotFound when none has the version."""
        failure: TierstoreError = UnavailableError("no other site is known", code="body-unreachable")
        for number in range(ROUNDS_MAX):
            if number:
                await self._clock.sleep(ROUND_PAUSE_SECONDS * number)
            if number or not self._peers.peers:
                self._peers_until = 0.0         # a site that was added a moment ago may be the one that has it
            await self.peers()
            for peer in self._sources(flight.version):
                for url in peer.gateways:
                    try:
                        return await self._fetch_from(flight, peer, url)
                    except TierstoreError as error:
                        failure = error
            if isinstance(failure, NotFound):
                break       # replaced or deleted there: its newer name is on the way
        raise UnavailableError(
            f"bytes of {flight.key!r} are at another site, which does not give them now ({failure})",
            code="body-unreachable",
        )

    async def _fetch_from(self, flight: Flight, peer: Peer, url: str) -> None:
        reader = await FrameReader.open(
            self._transport, url, peer.token, bucket=flight.bucket, key=flight.key, version=flight.version,
            first=flight.first + flight.filled, length=flight.length - flight.filled, local=True, seconds=FRAME_SECONDS,
        )  # fmt: skip
        flight.site = peer.name
        try:
            while piece := await reader.next_frame():
                flight.buffer[flight.filled : flight.filled + len(piece)] = piece
                flight.filled += len(piece)
                self.fetched_bytes += len(piece)
                flight.advance()
        finally:
            reader.close()

    async def _keep(self, flight: Flight) -> None:
        try:
            await self._store.fill(
                flight.bucket, flight.key, flight.version, flight.first, memoryview(flight.buffer),
                access=flight.access,
            )  # fmt: skip
        except ConflictError as error:
            if error.code != "already-here":
                raise

    # -- whole ranges ---------------------------------------------------------------------------------------
    async def fetch(self, item: FetchItem, access: str) -> FetchResult:
        """One segment, durable here when it returns."""
        try:
            found = await self._store.find(
                item.bucket, item.key, version=item.version, first=item.first, length=item.length, access=access
            )
            if not found.is_remote or covers(found.chunks, item.first, min(item.first + item.length, found.size)):
                return FetchResult()
            segment = item.first // SEGMENT_BYTES
            flight = self.fly(item.bucket, item.key, item.version, found.size, segment=segment, access=access)
            _, task = self._flights[item.bucket, item.key, item.version, segment]
            await asyncio.shield(task)
            if flight.error is not None:
                raise flight.error
            return FetchResult(bytes=0 if flight.is_here else flight.length)
        except TierstoreError as error:
            return FetchResult(error.code, error.detail)

    async def take_push(self, push: Push, access: str) -> PushAnswer:
        """A name with bytes of its body: the bytes are stored while metadata takes the name; both are durable here
        when it returns. A version that a later one has replaced here meanwhile needs no bytes."""
        name = push.name
        if crc_of(push.data) != push.crc32c:
            return PushAnswer("checksum-mismatch", "the bytes do not have the CRC32C that was sent with them")
        batch = NameBatch(push.site, [name], {name.bucket: push.versioning})
        taken = asyncio.ensure_future(
            self._store.client.ask(b"/v1/sites/names", batch, NameAnswer, seconds=PUSH_SECONDS, access=access)
        )
        try:
            await self._store.fill(
                name.bucket, name.key, name.version, push.first, memoryview(push.data), access=access, named=taken
            )
            return PushAnswer(bytes=len(push.data))
        except TierstoreError as error:
            if taken.done() and not taken.cancelled() and taken.exception() is None:
                if taken.result().parked:
                    return PushAnswer("name-parked", "its version id lies a day ahead of this site's clock")
                if error.code in _NEEDLESS:
                    return PushAnswer()
            return PushAnswer(error.code, error.detail)
        finally:
            if not taken.done():
                taken.cancel()
            await asyncio.gather(taken, return_exceptions=True)

    async def bring(self, bucket: str, key: str, *, access: str) -> None:
        """All bytes of the latest version, durable here when it returns."""
        found = await self._store.find(bucket, key, access=access, want_chunks=False)
        for first in range(0, found.size, SEGMENT_BYTES):
            length = min(SEGMENT_BYTES, found.size - first)
            result = await self.fetch(FetchItem(bucket, key, found.version, first, length), access)
            if result.code:
                raise UnavailableError(result.detail, code=result.code)

    def walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> FetchWalk:
        return FetchWalk(self, bucket, key, found, first=first, length=length, access=access)

    def local_walk(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> BodyWalk:
        """Of bytes that are at this site."""
        return self._store.local_walk(bucket, key, found, first=first, length=length, access=access)

    async def look(
        self, bucket: str, key: str, version: int, *, first: int, length: int, access: str
    ) -> LookupResult:
        """The chunks of a range that are at this site now."""
        return await self._store.find(bucket, key, version=version, first=first, length=length, access=access)

    async def close(self) -> None:
        tasks = [task for _, task in self._flights.values()]
        if self._watch is not None:
            tasks.append(self._watch)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class FetchWalk:
    """A range of a remote version: each segment from its flight, or from this site when it is here."""

    def __init__(
        self, bodies: Bodies, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> None:  # fmt: skip
        self._bodies = bodies
        self._bucket = bucket
        self._key = key
        self._found = found
        self._access = access
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
            self._bucket, self._key, found.version, found.size, segment=segment, access=self._access
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
