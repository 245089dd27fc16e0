"""Bodies that are still at another site: fetched once, verified, given to all who wait, kept.

A remote version is fetched in segments of SEGMENT_BYTES. One `Flight` per segment and process: whoever wants bytes of
it, a thousand readers or the replication of that site, reads from the same buffer while it fills (single flight); when
it is whole it is stored on N+1 servers and committed as a fill: for a reader as a cached one, which the site may let
go again (metadata/services/sites/fetched), for replication as the site's own. A break goes on at the same byte, from
the next gateway or site that has the version.

Invariants: no byte is given out whose frame was not checked; at most FLIGHT_BYTES_MAX are in memory (readers
may hold the last one they read); a failed store costs the reader nothing, the bytes are fetched again next time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tierstore.clock import Clock, version_site
from tierstore.errors import ConflictError, NotFound, TierstoreError, UnavailableError
from tierstore.gateway.bodies_walk import FetchWalk, Flight, FlightKey, covers
from tierstore.sdk.budget import BufferBudget
from tierstore.sdk.frames import FrameReader
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.store import Store
from tierstore.transport.peer import PeerTransport
from tierstore.wire.names import LookupResult
from tierstore.wire.sites import SEGMENT_BYTES, FetchItem, FetchResult, Peer, Peers

_log = logging.getLogger("tierstore.gateway.bodies")

#: Of segments on their way or being stored; further ones wait. A small one counts as FLIGHT_BYTES_MIN, so at most 256
#: are under way: over a far link each takes round trips, and one site sends up to 144 small ones at a time.
FLIGHT_BYTES_MAX: Final = 16 * SEGMENT_BYTES
FLIGHT_BYTES_MIN: Final = 512 << 10
WAITING_MAX: Final = 4096
#: For the first and for each further frame of another site.
FRAME_SECONDS: Final = 10.0
ROUNDS_MAX: Final = 3
ROUND_PAUSE_SECONDS: Final = 0.2
PEERS_FRESH_SECONDS: Final = 5.0

class Bodies:
    """One per gateway process; also the Store's RemoteSource."""

    def __init__(self, store: Store, transport: PeerTransport, clock: Clock) -> None:
        self._store = store
        self._transport = transport
        self._clock = clock
        self._flights: dict[FlightKey, tuple[Flight, asyncio.Task[None]]] = {}
        self._turns = BufferBudget(FLIGHT_BYTES_MAX)
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
    def fly(
        self, bucket: str, key: str, version: int, size: int, *, segment: int, access: str, is_relay: bool = False,
        is_cached: bool = True,
    ) -> Flight:  # fmt: skip
        """The flight of a segment, begun if there is none. Raises UnavailableError(busy)."""
        name = (bucket, key, version, segment, is_relay)
        known = self._flights.get(name)
        if known is not None:
            return known[0]
        if len(self._flights) >= WAITING_MAX:
            raise UnavailableError(f"{WAITING_MAX} fetches from other sites are under way, the bound", code="busy")
        length = min(SEGMENT_BYTES, size - segment * SEGMENT_BYTES)
        flight = Flight(name, length, access, is_cached=is_cached)
        task = asyncio.get_running_loop().create_task(self._run(flight), name="fetch")
        self._flights[name] = (flight, task)
        task.add_done_callback(lambda _: self._flights.pop(name, None))
        return flight

    async def _run(self, flight: Flight) -> None:
        weight = max(flight.length, FLIGHT_BYTES_MIN)
        try:
            await self._turns.take(weight)
            try:
                await self._bring(flight)
            finally:
                self._turns.give_back(weight)
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

    async def _bring(self, flight: Flight) -> None:
        if await self._is_here(flight):
            flight.is_here = True
            return
        flight.buffer = bytearray(flight.length)
        await self._fetch(flight)
        self.fetches += 1
        await self._keep(flight)

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
            found = await self._try_all(flight, relay=False)
            if found is not None and not flight.is_relay:
                found = await self._try_all(flight, relay=True) or found    # who wrote it may be unknown here
            if found is None:
                return
            failure = found
            if isinstance(failure, NotFound):
                break       # replaced or deleted there: its newer name is on the way
        raise UnavailableError(
            f"bytes of {flight.key!r} are at another site, which does not give them now ({failure})",
            code="body-unreachable",
        )

    async def _try_all(self, flight: Flight, *, relay: bool) -> TierstoreError | None:
        """Every gateway of every site in turn; None when the buffer is full, else the last failure (that the version is
        not there only when all of them say so)."""
        failure: TierstoreError | None = None
        for peer in self._sources(flight.version):
            for url in peer.gateways:
                try:
                    await self._fetch_from(flight, peer, url, relay=relay)
                except TierstoreError as error:
                    if failure is None or isinstance(failure, NotFound):
                        failure = error
                else:
                    return None
        return failure or UnavailableError("no other site is known", code="body-unreachable")

    async def _fetch_from(self, flight: Flight, peer: Peer, url: str, *, relay: bool) -> None:
        reader = await FrameReader.open(
            self._transport, url, peer.token, bucket=flight.bucket, key=flight.key, version=flight.version,
            first=flight.first + flight.filled, length=flight.length - flight.filled, local=not relay,
            relay=relay, seconds=FRAME_SECONDS,
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
                access=flight.access, is_cached=flight.is_cached,
            )  # fmt: skip
        except ConflictError as error:
            if error.code != "already-here":
                raise

    async def _own(self, item: FetchItem, access: str) -> None:
        """What a reader's fetch has kept for a while becomes this site's own."""
        try:
            await self._store.fill(
                item.bucket, item.key, item.version, item.first, memoryview(b""), access=access
            )
        except ConflictError as error:
            if error.code != "already-here":
                raise

    # -- whole ranges ---------------------------------------------------------------------------------------
    async def fetch(self, item: FetchItem, access: str) -> FetchResult:
        """One segment, durable here when it returns; and this site's own, unless it may go again (is_cached)."""
        try:
            found = await self._store.find(
                item.bucket, item.key, version=item.version, first=item.first, length=item.length, access=access
            )
            if not found.is_remote:
                return FetchResult()
            if covers(found.chunks, item.first, min(item.first + item.length, found.size)):
                if not item.is_cached:
                    await self._own(item, access)
                return FetchResult()
            segment = item.first // SEGMENT_BYTES
            flight = self.fly(
                item.bucket, item.key, item.version, found.size, segment=segment, access=access,
                is_cached=item.is_cached,
            )  # fmt: skip
            _, task = self._flights[item.bucket, item.key, item.version, segment, False]
            await asyncio.shield(task)
            if flight.error is not None:
                raise flight.error
            if not item.is_cached and (flight.is_cached or flight.is_here):
                await self._own(item, access)
            return FetchResult(bytes=0 if flight.is_here else flight.length)
        except TierstoreError as error:
            return FetchResult(error.code, error.detail)

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
    ) -> BodyWalk:
        return FetchWalk(self, bucket, key, found, first=first, length=length, access=access)

    def relay(
        self, bucket: str, key: str, found: LookupResult, *, first: int, length: int, access: str
    ) -> BodyWalk:
        """For a site that does not know who has the bytes: what is here, or what a third site has itself. Flights of
        their own: two sites that ask each other must not wait for each other."""
        if not found.is_remote:
            return self.local_walk(bucket, key, found, first=first, length=length, access=access)
        return FetchWalk(self, bucket, key, found, first=first, length=length, access=access, is_relay=True)

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
