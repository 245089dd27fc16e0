"""What daemons tell metadata (register, heartbeat, inventory) and the cluster map, as HTTP. No rules here.

Messages are MessagePack structs of wire.cluster; heartbeat and inventory are hot handlers (no ASGI task), the rest
is FastAPI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from metadata.services.cluster.heartbeat import Heartbeats
from metadata.services.cluster.join import Registrar
from metadata.services.cluster.membership import Cluster
from tierstore.auth.access import DAEMON_TOKEN, Principal, parse_bearer
from tierstore.errors import AccessDenied, NotAuthenticated, TooLarge
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.cluster import Heartbeat, HeartbeatAnswer, Inventory, InventoryAnswer, Register

T = TypeVar("T")

HEARTBEAT_BYTES_MAX = 32 << 20
INVENTORY_BYTES_MAX = 32 << 20
REGISTER_BYTES_MAX = 1 << 20
SUMMARIES = {
    "heartbeat": ("A server is alive, and what it has to tell", "Heartbeat", "HeartbeatAnswer"),
    "inventory": ("A page of what a device holds", "Inventory", "InventoryAnswer"),
}
_LINES = b"content-type: " + MEDIA_TYPE.encode() + b"\r\n"


class ServerModel(BaseModel):
    id: int
    name: str
    role: str = Field(description="gateway or objectd")
    url: str
    site: str
    state: str = Field(description="up, suspect, dead, draining, drained or stopping")


class SiteModel(BaseModel):
    id: int
    name: str
    gateways: list[str]
    metadata: list[str]
    networks: list[str]


class ClusterModel(BaseModel):
    """The map that SDK and mounts work with."""

    cluster_id: str
    revision: int = Field(description="rises with every change")
    site: str
    servers: list[ServerModel]
    sites: list[SiteModel]
    policy_revision: int
    policy: dict[str, Any] = Field(description="the policy document")
    chunk_bytes: int
    auth_revision: int
    copies: int


@dataclass(frozen=True, slots=True)
class ClusterRoutes:
    """The FastAPI part and the hot rows of the table."""

    router: APIRouter
    hot: list[Route]


def daemon_of(cluster: Cluster, authorization: bytes | str | None) -> Principal:
    """The daemon that shows its secret. Raises NotAuthenticated, AccessDenied for a user's token."""
    kind, who, token = parse_bearer(authorization)
    if kind != DAEMON_TOKEN:
        raise AccessDenied("only the cluster's own servers may call this")
    return cluster.authenticate(who, token)


def build(
    cluster: Cluster, registrar: Registrar, heartbeats: Heartbeats, *, metadata_urls: Callable[[], list[str]],
    any_key: Callable[[Request], Awaitable[Principal]],
    inventory: Callable[[Inventory], Awaitable[InventoryAnswer]],
) -> ClusterRoutes:  # fmt: skip
    """any_key: the caller of a request, whoever it is; raises NotAuthenticated for nobody."""
    router = APIRouter(tags=["cluster"])

    @router.post(
        "/v1/internal/register",
        response_class=Response,
        summary="Join the cluster or come back",
        openapi_extra={"requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
        responses={200: {"content": {MEDIA_TYPE: {}}, "description": "wire.cluster.Registered"}},
    )
    async def register(request: Request) -> Response:
        body = await _body(request, REGISTER_BYTES_MAX)
        server = 0
        header = request.headers.get("authorization")
        message = decode(body, Register)
        if header:
            try:
                server = daemon_of(cluster, header).server
            except NotAuthenticated:
                # Its secret is of a catalog that was lost, or of an old life: the join token decides.
                if not message.join_token:
                    raise
        answer = await registrar.register(message, server=server)
        return Response(encode(answer), media_type=MEDIA_TYPE)

    @router.get("/v1/cluster", response_model=ClusterModel, summary="The cluster map")
    async def cluster_map(request: Request) -> Response:
        await any_key(request)
        view = cluster.cluster_map(metadata_urls=metadata_urls())
        if MEDIA_TYPE in request.headers.get("accept", ""):
            return Response(encode(view), media_type=MEDIA_TYPE)
        policy = msgspec.json.decode(view.policy) if view.policy else {}
        model = ClusterModel(
            cluster_id=view.cluster_id, revision=view.revision, site=view.site,
            servers=[
                ServerModel(id=s.id, name=s.name, role=s.role, url=s.url, site=s.site, state=s.state)
                for s in view.servers
            ],
            sites=[
                SiteModel(id=s.id, name=s.name, gateways=s.gateways, metadata=s.metadata, networks=s.networks)
                for s in view.sites
            ],
            policy_revision=view.policy_revision, policy=policy, chunk_bytes=view.chunk_bytes,
            auth_revision=view.auth_revision, copies=view.copies,
        )  # fmt: skip
        return Response(model.model_dump_json(), media_type="application/json")

    def heartbeat(exchange: Exchange) -> None:
        header = exchange.header(b"authorization") or b""
        try:
            server = daemon_of(cluster, header).server
        except NotAuthenticated:
            if not header.startswith(b"Bearer " + DAEMON_TOKEN.encode() + b"."):
                raise
            # Its secret is of a catalog that was lost or restored: it may join again if it has the join token.
            again = HeartbeatAnswer(now_ms=cluster.now_ms(), sequence=0, map_revision=0, reregister=True)
            exchange.collect(HEARTBEAT_BYTES_MAX, lambda body: exchange.reply(200, encode(again), _LINES))
            return

        async def work(body: bytes) -> None:
            answer = await heartbeats.beat(decode(body, Heartbeat), server=server)
            exchange.reply(200, encode(answer), _LINES)

        exchange.collect(HEARTBEAT_BYTES_MAX, lambda body: exchange.spawn(work(body)))

    def take_inventory(exchange: Exchange) -> None:
        server = daemon_of(cluster, exchange.header(b"authorization")).server

        async def work(body: bytes) -> None:
            page = decode(body, Inventory)
            if page.server != server:
                raise AccessDenied(f"an inventory of server {page.server} came with {server}'s secret")
            exchange.reply(200, encode(await inventory(page)), _LINES)

        exchange.collect(INVENTORY_BYTES_MAX, lambda body: exchange.spawn(work(body)))

    hot = [
        Route(b"POST", b"/v1/internal/heartbeat", heartbeat),
        Route(b"POST", b"/v1/internal/inventory", take_inventory),
    ]
    return ClusterRoutes(router, hot)


async def _body(request: Request, limit: int) -> bytes:
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > limit:
            raise TooLarge(f"the message has more than {limit} bytes")
    return bytes(pieces)
