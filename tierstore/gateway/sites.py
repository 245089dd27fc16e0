"""The gateway's part between sites: bodies given and fetched, and where a client should go.

Site routes are for sites' keys (user "site:<name>"); names and hellos are passed on to metadata, which checks the
same. GET /v1/bodies is also how the SDK reads what is still at another site, under the caller's own rights.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from tierstore.auth.access import Principal
from tierstore.checksum import crc_of
from tierstore.errors import NotFound, RangeNotSatisfiable, RequestError
from tierstore.gateway.bodies import Bodies
from tierstore.gateway.bodies_walk import covers
from tierstore.gateway.credentials import CredentialCache
from tierstore.gateway.forward import Forwarder, read_body
from tierstore.gateway.models import Route as RouteModel
from tierstore.gateway.models import RouteSite
from tierstore.gateway.object_request import split_object_path
from tierstore.gateway.objects import ObjectDoor
from tierstore.gateway.rights import NativeRights
from tierstore.gateway.sites_push import PUSH_PATH, check_site
from tierstore.names import parse_version
from tierstore.sdk.frames import BODIES_PATH, FRAME_BYTES, HEAD, frame_bytes, framed_length
from tierstore.sdk.remote import BodyWalk
from tierstore.sdk.store import Store
from tierstore.serving.declared import declare
from tierstore.serving.exchange import Exchange
from tierstore.serving.table import Route
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import FETCHES_MAX, SEGMENT_BYTES, SITE_USER, FetchAnswer, FetchBatch, Peers

_FETCH_BODY_BYTES_MAX: Final = 1 << 20
#: Frames are gathered up to this before they are written.
_WRITE_BYTES: Final = 4 * (FRAME_BYTES + HEAD.size)


class BodyDoor:
    """GET /v1/bodies/{bucket}/{key}: frames."""

    def __init__(
        self, store: Store, bodies: Bodies, credentials: CredentialCache, rights: NativeRights, door: ObjectDoor
    ) -> None:  # fmt: skip
        self._store = store
        self._bodies = bodies
        self._credentials = credentials
        self._rights = rights
        self._door = door
        self.sent_bytes = 0

    def get(self, exchange: Exchange) -> None:
        self._door.begin(exchange, self._send(exchange))

    async def _send(self, exchange: Exchange) -> None:
        bucket, key = split_object_path(exchange.route_arg)
        version = parse_version((exchange.query(b"version") or b"").decode("latin-1"))
        first, length = _number(exchange, b"first"), _number(exchange, b"length")
        principal = await self._credentials.resolve(exchange.header(b"authorization"))
        await self._rights.require(exchange, principal, "read", bucket, key, version=version)
        found = await self._store.find(
            bucket, key, version=version, first=first, length=length, access=principal.access,
            is_own=principal.user.startswith(SITE_USER),
        )
        if not length or first + length > found.size:
            raise RangeNotSatisfiable(f"the version has {found.size} bytes", size=found.size)
        walk: BodyWalk
        if exchange.query(b"local"):
            if found.is_remote and not covers(found.chunks, first, first + length):
                raise NotFound("these bytes are not at this site", code="no-such-version")
            walk = self._store.local_walk(bucket, key, found, first=first, length=length, access=principal.access)
        elif exchange.query(b"relay"):
            walk = self._bodies.relay(bucket, key, found, first=first, length=length, access=principal.access)
        else:
            walk = self._store.read_walk(bucket, key, found, first=first, length=length, access=principal.access)
        try:
            await walk.start()
            exchange.begin(200, b"content-type: application/octet-stream\r\n", framed_length(length))
            await self._frames(exchange, walk, length)
            exchange.end()
        finally:
            await walk.close()

    async def _frames(self, exchange: Exchange, walk: BodyWalk, length: int) -> None:
        out = bytearray()
        frame = bytearray()
        left = length
        while left:
            piece = await walk.next_piece()
            at = 0
            while at < len(piece):
                want = min(frame_bytes(length - left), left) - len(frame)
                taken = piece[at : at + want]
                frame += taken
                at += len(taken)
                if len(taken) == want:
                    out += HEAD.pack(len(frame), crc_of(frame)) + frame
                    left -= len(frame)
                    self.sent_bytes += len(frame)
                    frame = bytearray()
                    if len(out) >= _WRITE_BYTES or length - left <= FRAME_BYTES:
                        await exchange.send(out)
                        out = bytearray()
        if out:
            await exchange.send(out)


def _number(exchange: Exchange, name: bytes) -> int:
    raw = exchange.query(name) or b""
    if not raw.isdigit() or len(raw) > 18:
        raise RequestError(f"{name.decode()} is a number of bytes", code="bad-range")
    return int(raw)


def hot_route(door: BodyDoor) -> Route:
    return Route(b"GET", BODIES_PATH.encode(), door.get, accepts=lambda rest: b"/" in rest)


def add_routes(
    app: FastAPI, route: Route, push: Route, bodies: Bodies, *, credentials: CredentialCache, forwarder: Forwarder,
    problems: dict[int | str, dict[str, Any]],
) -> None:  # fmt: skip
    """All routes between sites."""
    binary = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    query = [
        {"name": name, "in": "query", "required": required, "schema": {"type": "string"}, "description": text}
        for name, required, text in (
            ("version", True, "16 hex digits"), ("first", True, "byte"), ("length", True, "bytes"),
            ("local", False, "1: only what is at this site"),
            ("relay", False, "1: also what another site gives, asked with local=1"),
        )
    ]
    path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in ("bucket", "key")]
    declare(
        app, route, BODIES_PATH + "{bucket}/{key:path}", summary="Bytes of a version in frames with checksums",
        operation_id="getBody", tags=["sites"], responses={200: {"description": "Frames", **binary}, **problems},
        openapi_extra={"parameters": [*path, *query]},
    )  # fmt: skip

    declare(
        app, push, PUSH_PATH, summary="A name with its bytes", operation_id="sites_push", tags=["sites"],
        responses={200: {"description": "MessagePack of wire.sites", "content": {MEDIA_TYPE: {}}}, **problems},
        openapi_extra={"requestBody": {"required": True, "content": {
            MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
    )  # fmt: skip

    async def fetch(request: Request) -> Response:
        principal = await _site(request, credentials)
        batch = decode(await read_body(request, _FETCH_BODY_BYTES_MAX), FetchBatch)
        if len(batch.items) > FETCHES_MAX:
            raise RequestError(f"at most {FETCHES_MAX} items in one batch", code="too-many-items")
        for item in batch.items:
            if item.first % SEGMENT_BYTES or not 0 < item.length <= SEGMENT_BYTES:
                raise RequestError(f"a fetch begins at a multiple of {SEGMENT_BYTES}, no longer", code="bad-range")
        results = await asyncio.gather(*(bodies.fetch(item, principal.access) for item in batch.items))
        return Response(encode(FetchAnswer(list(results))), media_type=MEDIA_TYPE)

    async def forward(request: Request) -> Response:
        await _site(request, credentials)
        return await forwarder.forward(request)

    for name, handler, summary in (
        ("fetch", fetch, "Fetch bytes from the caller's site now"),
        ("names", forward, "Names of another site"),
        ("hello", forward, "A site lives"), ("compare", forward, "What a restored site forgot"),
        ("rotate", forward, "Exchange new keys"), ("holds", forward, "Which bodies a site has for good"),
        ("seen", forward, "Which deletes a site has heard of"),
    ):  # fmt: skip
        app.add_api_route(
            f"/v1/sites/{name}", handler, methods=["POST"], operation_id=f"sites_{name}", summary=summary,
            tags=["sites"], response_model=None,
            openapi_extra={"requestBody": {"required": True, "content": {
                MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
            responses={200: {"description": "MessagePack of wire.sites", "content": {MEDIA_TYPE: {}}}, **problems},
        )  # fmt: skip


async def _site(request: Request, credentials: CredentialCache) -> Principal:
    """The site that calls. Raises AccessDenied for everybody else."""
    value = request.headers.get("authorization")
    return check_site(await credentials.resolve(None if value is None else value.encode("latin-1")))


# -- the near site ----------------------------------------------------------------------------------------------
def route_of(address: str, own_gateways: Sequence[str], peers: Peers) -> RouteModel:
    """Sites in the order in which a client at `address` should try them: those whose networks hold the address (the
    narrowest first), this one, then the others by latency from here."""
    ranked = [(-_width(address, peers.networks), 0.0, peers.site, list(own_gateways))]
    for peer in peers.peers:
        far = peer.latency_ms or 10_000.0
        ranked.append((-_width(address, peer.networks), far, peer.name, list(peer.gateways)))
    ranked.sort()
    sites = [RouteSite(site=name, gateways=gateways) for _, _, name, gateways in ranked]
    return RouteModel(
        site=sites[0].site, gateways=[url for site in sites for url in site.gateways], sites=sites,
        served_by=peers.site, is_by_network=ranked[0][0] < 0,
    )


def _width(address: str, networks: Sequence[str]) -> int:
    """Bits of the narrowest network that holds the address, plus one; 0: none does."""
    try:
        at = ipaddress.ip_address(address)
    except ValueError:
        return 0
    widths = [0]
    for text in networks:
        network = ipaddress.ip_network(text, strict=False)
        if network.version == at.version and at in network:
            widths.append(network.prefixlen + 1)
    return max(widths)
