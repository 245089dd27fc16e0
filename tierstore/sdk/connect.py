"""From an endpoint and a token to a Store.

The endpoint is a gateway (or metadata itself): its cluster map names the metadata service and the object servers, to
which the Store then talks directly. When nobody but the gateway answers, names and bytes go through it (sdk.through).

Several endpoints, separated by commas, are gateways of one or more sites: the nearest that is ready is taken (see
sdk/route). sdk/near moves between sites while it runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from typing import Final

from tierstore import wire
from tierstore.auth.access import sendable_token
from tierstore.clock import Clock, SystemClock
from tierstore.errors import ConfigError, UnavailableError
from tierstore.sdk.buckets import Buckets
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.remote import GatewaySource
from tierstore.sdk.route import nearest_gateway
from tierstore.sdk.store import Store
from tierstore.sdk.through import GatewayStore
from tierstore.transport.handovers import Handovers
from tierstore.transport.loans import Borrower
from tierstore.transport.metadata_calls import MetadataLimits, error_of
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerTransport
from tierstore.transport.pool import PooledTransport
from tierstore.transport.tls import client_context, from_environment
from tierstore.wire.cluster import ClusterMap

ENDPOINT_VARIABLE = "TIERSTORE_ENDPOINT"
#: An answer within this time tells that a server can be reached from here; so many of them are asked.
PROBE_SECONDS: Final = 1.0
PROBES_MAX: Final = 4
TOKEN_VARIABLE = "TIERSTORE_TOKEN"  # noqa: S105 - the name of a variable, not a secret

_log = logging.getLogger("tierstore.sdk")


async def connect(
    endpoint: str = "", token: str = "", *, limits: StoreLimits | None = None, transport: PeerTransport | None = None,
    clock: Clock | None = None, rng: random.Random | None = None, seconds: float = 10.0,
    may_go_through: bool = True,
) -> Store:  # fmt: skip
    """An open Store; close it. endpoint, token: default to TIERSTORE_ENDPOINT and TIERSTORE_TOKEN. may_go_through:
    whether a Store is of use that reaches only the gateway.

    Raises ConfigError when they are missing, NotAuthenticated, UnavailableError."""
    endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE, "")).rstrip("/")
    token = sendable_token(token or os.environ.get(TOKEN_VARIABLE, ""))
    if not endpoint or not token:
        raise ConfigError(
            f"where is the cluster? Give endpoint and token, or set {ENDPOINT_VARIABLE} and {TOKEN_VARIABLE}"
        )
    clock = clock or SystemClock()
    owned = transport is None
    limits = limits or StoreLimits()
    transport = transport or PooledTransport(tls=client_context(from_environment()))
    try:
        if "," in endpoint:
            endpoint = await nearest_gateway(transport, endpoints_of(endpoint), token)
        view = await _cluster_map(transport, endpoint, token, seconds)
        urls = _metadata_urls(view, endpoint)
        if may_go_through and endpoint not in urls and not await _is_reachable(transport, view, urls):
            _log.warning("only the gateway %s can be reached from here: all bytes go through it", endpoint)
            return GatewayStore(
                transport, endpoint, token, clock=clock, limits=limits, owned=transport if owned else None
            )
        client = MetadataClient(
            transport, urls, token=token, clock=clock, rng=rng or random.Random(),
            limits=MetadataLimits(hold_seconds=limits.metadata_hold_seconds),
        )  # fmt: skip
        objects = ObjectClient(
            transport, clock, borrower=Borrower(can_wait=True) if owned else None,
            handovers=Handovers() if owned else None,
        )  # fmt: skip
        store = Store(
            client, objects, clock=clock, limits=limits,
            buckets=Buckets(transport, endpoint, token), owned=transport if owned else None,
        )  # fmt: skip
        store.remote = GatewaySource(transport, [endpoint], token)
        return await store.open()
    except BaseException:
        if owned:
            await transport.close()
        raise


def endpoints_of(text: str) -> list[str]:
    """Of a setting that may name several, separated by commas."""
    return [url.strip().rstrip("/") for url in text.split(",") if url.strip()]


async def _is_reachable(transport: PeerTransport, view: ClusterMap, urls: list[str]) -> bool:
    """Whether a metadata service answers from here, and an object server, if one is up at all."""
    servers = [s.url for s in view.servers if s.role == "objectd" and s.state == "up"]
    metadata, stores = await asyncio.gather(_any_answers(transport, urls), _any_answers(transport, servers))
    return metadata and (stores or not servers)


async def _any_answers(transport: PeerTransport, urls: list[str]) -> bool:
    async def answers(url: str) -> bool:
        try:
            await transport.call(url, b"GET", b"/-/healthz", seconds=PROBE_SECONDS)
        except UnavailableError:
            return False
        return True

    return any(await asyncio.gather(*map(answers, urls[:PROBES_MAX])))


async def _cluster_map(transport: PeerTransport, endpoint: str, token: str, seconds: float) -> ClusterMap:
    headers = [(b"authorization", b"Bearer " + token.encode("latin-1")), (b"accept", wire.MEDIA_TYPE.encode())]
    reply = await transport.call(endpoint, b"GET", b"/v1/cluster", headers=headers, seconds=seconds)
    if reply.status != 200:
        raise error_of(reply)
    return wire.decode(reply.body, ClusterMap)


def _metadata_urls(view: ClusterMap, endpoint: str) -> list[str]:
    urls = [url for site in view.sites if site.name == view.site for url in site.metadata]
    if not urls:
        raise UnavailableError(f"the cluster map of {endpoint} names no metadata service", code="metadata-unreachable")
    return urls
