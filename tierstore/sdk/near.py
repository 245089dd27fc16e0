"""A store of several sites: reads from the near one, from the next when it is gone, and from the near one again when
it is back.

`connect_near` asks any of the given gateways for the route (networks of the sites, then latency), measures where no
network decides, and opens a Store per site when it is first needed. Reads that are not begun within FAILOVER_SECONDS go
to the next site, whose names may lag behind by what its replication says. Writes go to the site in use and are never
repeated at another by themselves: they may have been made.

Bounds: one Store per site; one probe per PROBE_SECONDS while the nearest site is not in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tierstore.errors import ConfigError, IntegrityError, TierstoreError, UnavailableError
from tierstore.sdk.connect import connect
from tierstore.sdk.objects import ObjectInfo, ObjectReader
from tierstore.sdk.route import is_ready, sites_by_nearness
from tierstore.sdk.store import Store
from tierstore.transport.peer import PeerTransport
from tierstore.transport.pool import PooledTransport
from tierstore.transport.tls import client_context, from_environment

T = TypeVar("T")

FAILOVER_SECONDS: Final = 1.5
PROBE_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Place:
    """A site and its store, once opened."""

    name: str
    gateways: list[str]
    store: Store | None = None


class NearStore:
    """Sites in the order of nearness. Use `connect_near`; close() it."""

    def __init__(self, places: list[_Place], token: str, transport: PeerTransport) -> None:
        self._places = places
        self._token = token
        self._transport = transport
        self._at = 0
        self._probe: asyncio.Task[None] | None = None

    @property
    def site(self) -> str:
        """The site in use."""
        return self._places[self._at].name

    @property
    def sites(self) -> list[str]:
        """All of them, the nearest first."""
        return [place.name for place in self._places]

    async def store(self) -> Store:
        """The Store of the site in use, for writes and everything else. Raises UnavailableError when none answers."""
        return await self._first(_itself)

    async def get(
        self, bucket: str, key: str, *, first: int = 0, length: int = -1, version: int = 0
    ) -> ObjectReader:
        """Open an object for reading, at the near site if it answers. See Store.get."""
        return await self._first(lambda s: s.get(bucket, key, first=first, length=length, version=version))

    async def head(self, bucket: str, key: str) -> ObjectInfo:
        return await self._first(lambda s: s.head(bucket, key))

    async def _first(self, read: Callable[[Store], Awaitable[T]]) -> T:
        failure: TierstoreError | None = None
        for step in range(len(self._places)):
            at = (self._at + step) % len(self._places)
            try:
                async with asyncio.timeout(FAILOVER_SECONDS):
                    result = await read(await self._open(self._places[at]))
            except TimeoutError:
                failure = UnavailableError(f"{self._places[at].name} does not answer", code="unreachable")
            except (UnavailableError, IntegrityError) as error:
                failure = error
            else:
                self._use(at)
                return result
        raise failure or UnavailableError("no site is known", code="unreachable")

    def _use(self, at: int) -> None:
        self._at = at
        if at and (self._probe is None or self._probe.done()):
            self._probe = asyncio.get_running_loop().create_task(self._look_nearer(), name="near site")

    async def _look_nearer(self) -> None:
        """Until the nearest site is in use again."""
        while self._at:
            await asyncio.sleep(PROBE_SECONDS)
            for at in range(self._at):
                if await self._is_ready(self._places[at]):
                    self._at = at
                    break

    async def _is_ready(self, place: _Place) -> bool:
        for url in place.gateways:
            if await is_ready(self._transport, url, seconds=PROBE_SECONDS):
                return True
        return False

    async def _open(self, place: _Place) -> Store:
        if place.store is None:
            failure: TierstoreError = UnavailableError(f"{place.name} has no gateway", code="unreachable")
            for url in place.gateways:
                try:
                    place.store = await connect(
                        url, self._token, transport=self._transport, seconds=FAILOVER_SECONDS
                    )
                    break
                except UnavailableError as error:
                    failure = error
            else:
                raise failure
        return place.store

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        for place in self._places:
            if place.store is not None:
                await place.store.close()
        await self._transport.close()

    async def __aenter__(self) -> NearStore:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _itself(store: Store) -> Store:
    return store


async def connect_near(endpoints: Sequence[str], token: str) -> NearStore:
    """Any gateways of any of the sites will do: the first that answers names the others.

    Raises ConfigError without endpoints, NotAuthenticated, UnavailableError when none answers."""
    if not endpoints or not token:
        raise ConfigError("give the endpoints of some gateways, and a token")
    transport = PooledTransport(tls=client_context(from_environment()))
    try:
        sites = await sites_by_nearness(transport, endpoints, token)
        return NearStore([_Place(site.site, site.gateways) for site in sites], token, transport)
    except BaseException:
        await transport.close()
        raise
