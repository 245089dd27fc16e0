"""From an endpoint and a token to a Store.

The endpoint is a gateway (or metadata itself): its cluster map names the metadata service and the object servers, to
which the Store then talks directly. A client that cannot reach them uses the gateway's REST in place of the SDK.
"""

from __future__ import annotations

import os
import random

from tierstore import wire
from tierstore.clock import Clock, SystemClock
from tierstore.errors import ConfigError, UnavailableError
from tierstore.sdk.buckets import Buckets
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.remote import GatewaySource
from tierstore.sdk.store import Store
from tierstore.transport.metadata_client import MetadataClient, error_of
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerTransport
from tierstore.transport.pool import PooledTransport
from tierstore.wire.cluster import ClusterMap

ENDPOINT_VARIABLE = "TIERSTORE_ENDPOINT"
TOKEN_VARIABLE = "TIERSTORE_TOKEN"  # noqa: S105 - the name of a variable, not a secret


async def connect(
    endpoint: str = "", token: str = "", *, limits: StoreLimits | None = None, transport: PeerTransport | None = None,
    clock: Clock | None = None, rng: random.Random | None = None, seconds: float = 10.0,
) -> Store:  # fmt: skip
    """An open Store; close it. endpoint, token: default to TIERSTORE_ENDPOINT and TIERSTORE_TOKEN.

    Raises ConfigError when they are missing, NotAuthenticated, UnavailableError."""
    endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE, "")).rstrip("/")
    token = token or os.environ.get(TOKEN_VARIABLE, "")
    if not endpoint or not token:
        raise ConfigError(
            f"where is the cluster? Give endpoint and token, or set {ENDPOINT_VARIABLE} and {TOKEN_VARIABLE}"
        )
    clock = clock or SystemClock()
    owned = transport is None
    transport = transport or PooledTransport()
    try:
        urls = await _metadata_urls(transport, endpoint, token, seconds)
        client = MetadataClient(transport, urls, token=token, clock=clock, rng=rng or random.Random())
        store = Store(
            client, ObjectClient(transport, clock), clock=clock, limits=limits,
            buckets=Buckets(transport, endpoint, token), owned=transport if owned else None,
        )  # fmt: skip
        store.remote = GatewaySource(transport, [endpoint], token)
        return await store.open()
    except BaseException:
        if owned:
            await transport.close()
        raise


async def _metadata_urls(transport: PeerTransport, endpoint: str, token: str, seconds: float) -> list[str]:
    headers = [(b"authorization", b"Bearer " + token.encode("latin-1")), (b"accept", wire.MEDIA_TYPE.encode())]
    reply = await transport.call(endpoint, b"GET", b"/v1/cluster", headers=headers, seconds=seconds)
    if reply.status != 200:
        raise error_of(reply)
    view = wire.decode(reply.body, ClusterMap)
    urls = [url for site in view.sites if site.name == view.site for url in site.metadata]
    if not urls:
        raise UnavailableError(f"the cluster map of {endpoint} names no metadata service", code="metadata-unreachable")
    return urls
