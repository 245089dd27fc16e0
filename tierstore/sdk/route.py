"""Where a client should go: the sites in the order of nearness, as any gateway of any of them tells.

GET /v1/route ranks by the sites' networks, then by latency from the gateway that answers; where no network decides, the
client measures for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from tierstore.errors import TierstoreError, UnavailableError
from tierstore.transport.metadata_calls import error_of
from tierstore.transport.peer import PeerTransport

ROUTE_SECONDS: Final = 2.0


class RouteSite(msgspec.Struct, frozen=True):
    site: str
    gateways: list[str]


class _Route(msgspec.Struct, frozen=True):
    sites: list[RouteSite]
    is_by_network: bool = False


async def sites_by_nearness(transport: PeerTransport, endpoints: Sequence[str], token: str) -> list[RouteSite]:
    """The first endpoint that answers names them all. Raises NotAuthenticated, UnavailableError when none answers."""
    route = await _route(transport, endpoints, token)
    if route.is_by_network:
        return route.sites
    seconds = await asyncio.gather(*(_latency(transport, site) for site in route.sites))
    return [site for _, _, site in sorted(zip(seconds, range(len(seconds)), route.sites, strict=True))]


async def nearest_gateway(transport: PeerTransport, endpoints: Sequence[str], token: str) -> str:
    """The first gateway, by nearness, that is ready. Raises UnavailableError when none is."""
    for site in await sites_by_nearness(transport, endpoints, token):
        for url in site.gateways:
            if await is_ready(transport, url):
                return url
    raise UnavailableError("no gateway of any site is ready", code="unreachable")


async def is_ready(transport: PeerTransport, url: str, *, seconds: float = ROUTE_SECONDS) -> bool:
    with contextlib.suppress(TierstoreError):
        return (await transport.call(url, b"GET", b"/-/readyz", seconds=seconds)).status == 200
    return False


async def _route(transport: PeerTransport, endpoints: Sequence[str], token: str) -> _Route:
    headers = [(b"authorization", b"Bearer " + token.encode("latin-1"))]
    failure: TierstoreError | None = None
    for url in endpoints:
        try:
            reply = await transport.call(
                url.rstrip("/"), b"GET", b"/v1/route", headers=headers, seconds=ROUTE_SECONDS
            )
        except UnavailableError as error:
            failure = error
            continue
        if reply.status == 200:
            return msgspec.json.decode(reply.body, type=_Route)
        failure = error_of(reply)
        if not failure.retryable:
            break
    assert failure is not None, "there is at least one endpoint"
    raise failure


async def _latency(transport: PeerTransport, site: RouteSite) -> float:
    """Seconds of the quicker of two small requests to the site's first gateway; infinite when it does not answer."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        with contextlib.suppress(TierstoreError):
            await transport.call(site.gateways[0], b"GET", b"/-/healthz", seconds=ROUTE_SECONDS)
            best = min(best, time.perf_counter() - began)
    return best
