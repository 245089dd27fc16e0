"""/v1/sites/*, /v1/admin/sites*, /v1/admin/replication and /v1/internal/sites: HTTP of services/sites*."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.callers import Callers
from metadata.services.audit import AuditService
from metadata.services.sites import Sites
from metadata.services.sites_apply import NameTaker
from metadata.services.sites_run import Replication
from metadata.services.sites_send import TargetStatus
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, TooLarge
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import SITE_USER, Hello, HelloAnswer, NameBatch, NewKey

BODY_BYTES_MAX = 8 << 20


class SiteModel(BaseModel):
    name: str
    number: int = Field(description="in version ids; unique among sites that know each other")
    is_local: bool
    gateways: list[str]
    networks: list[str] = Field(description="CIDR; clients in them are served here first")
    paused: bool = False
    rate: str = Field(default="", description="bandwidth towards it; empty: no limit")
    schedule: list[dict[str, str]] = Field(default_factory=list, description="other rates by time of day, UTC")
    latency_ms: float | None = None
    reachable: bool | None = None


class SitesModel(BaseModel):
    sites: list[SiteModel]


class SiteWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    gateway: str = Field(description="URL of a gateway of that site")
    token: str = Field(description="an administrator's token of that site; used once, not kept")
    own_gateways: list[str] = Field(default_factory=list, description="how that site reaches this one; else as known")


class JoinWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    number: int = Field(ge=1, le=255)
    gateways: list[str]
    token: str


class SpanModel(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: str = Field(alias="from")
    stop: str = Field(alias="to")
    rate: str


class SiteChange(BaseModel):
    """What is left out stays."""

    model_config = ConfigDict(extra="forbid")

    gateways: list[str] | None = None
    networks: list[str] | None = None
    rate: str | None = None
    schedule: list[SpanModel] | None = None


class Backfill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bucket: str = Field("", description="empty: all that a rule sends there")
    prefix: str = ""


class RemovedModel(BaseModel):
    dropped: int = Field(description="queued changes that went with it")


class TargetModel(BaseModel):
    site: str
    backlog_objects: int
    backlog_bytes: int
    backlog_names: int = Field(description="of them, not even the name was sent")
    oldest_seconds: float = Field(description="age of the oldest change that is not there; 0: it has everything")
    confirmed_seconds: float | None = Field(description="since it is known to have had everything; null: not yet")
    rate_bytes_per_second: float
    drain_seconds: float | None = Field(description="at that rate; null: nothing moves")
    state: str = Field(description="ok, paused or unreachable")
    latency_ms: float
    error: str
    names_sent: int
    bodies_sent: int
    bytes_sent: int
    parked: int
    failures: int
    backfill_left: int = Field(description="buckets and prefixes still to be walked")
    backfill_queued: int


class SyncModel(BaseModel):
    waits: int
    degraded: int = Field(description="answered with success before the other site had it")
    failed: int = Field(description="answered outcome-unknown")


class ReplicationModel(BaseModel):
    targets: list[TargetModel]
    sync: SyncModel
    names_applied: int
    names_lost: int
    names_parked: int


def build(
    callers: Callers, audit: AuditService, sites: Sites, *, replication: Replication, taker: NameTaker, clock: Clock,
) -> APIRouter:  # fmt: skip
    """The router."""
    router = APIRouter(tags=["sites"])
    _between(router, callers, sites, taker, clock)
    _members(router, callers, audit, sites, replication)

    @router.get("/v1/admin/replication", operation_id="replicationStatus", summary="How far each site is behind")
    async def status(request: Request) -> ReplicationModel:
        await callers.admin(request)
        now_ms = clock.now_ms()
        targets = [_target(s, now_ms, await sites.backfill_left(s.site)) for s in await replication.measured()]
        return ReplicationModel(
            targets=targets,
            sync=SyncModel(
                waits=replication.sync_waits, degraded=replication.sync_degraded, failed=replication.sync_failed
            ),
            names_applied=taker.applied, names_lost=taker.lost, names_parked=taker.parked,
        )  # fmt: skip

    return router


def _target(s: TargetStatus, now_ms: int, backfill: dict[str, Any]) -> TargetModel:
    b = s.backlog
    rate = s.bytes_per_second
    drain = 0.0 if not b.objects else b.bytes / rate if rate else None
    return TargetModel(
        site=s.site, backlog_objects=b.objects, backlog_bytes=b.bytes, backlog_names=b.names,
        oldest_seconds=max(0, now_ms - b.oldest_ms) / 1000 if b.objects else 0.0,
        confirmed_seconds=max(0, now_ms - s.confirmed_at_ms) / 1000 if s.confirmed_at_ms else None,
        rate_bytes_per_second=rate, drain_seconds=drain,
        state="paused" if s.is_paused else "ok" if s.is_reachable else "unreachable", latency_ms=s.latency_ms,
        error=s.error, names_sent=s.names_sent, bodies_sent=s.bodies_sent, bytes_sent=s.bytes_sent, parked=s.parked,
        failures=s.failures, backfill_left=len(backfill.get("parts", ())), backfill_queued=backfill.get("queued", 0),
    )  # fmt: skip


def _between(router: APIRouter, callers: Callers, sites: Sites, taker: NameTaker, clock: Clock) -> None:
    """What other sites and this site's gateways ask."""
    binary: dict[str, Any] = {
        "requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
    }

    async def site(request: Request) -> tuple[str, Principal]:
        who = await callers.who(request)
        if not who.user.startswith(SITE_USER):
            raise AccessDenied("only other sites may call this")
        return sites.caller(who), who

    @router.post("/v1/internal/sites", response_class=Response, operation_id="sites_peers", openapi_extra=binary,
                 summary="The other sites, for a gateway: wire.sites.Peers", tags=["internal"])  # fmt: skip
    async def peers(request: Request) -> Response:
        await callers.daemon(request)
        return _packed(sites.peers())

    @router.post("/v1/sites/hello", response_class=Response, operation_id="sites_hello", openapi_extra=binary,
                 summary="A site lives: wire.sites.Hello -> HelloAnswer")  # fmt: skip
    async def hello(request: Request) -> Response:
        name, who = await site(request)
        decode(await _body(request), Hello)
        await sites.seen(name, who)
        me = sites.me()
        return _packed(HelloAnswer(me.name, clock.now_ms(), me.cluster_id))

    @router.post("/v1/sites/names", response_class=Response, operation_id="sites_names", openapi_extra=binary,
                 summary="Names of another site: wire.sites.NameBatch -> NameAnswer")  # fmt: skip
    async def names(request: Request) -> Response:
        name, _ = await site(request)
        return _packed(await taker.take(decode(await _body(request), NameBatch), name))

    @router.post("/v1/sites/rotate", response_class=Response, operation_id="sites_rotate", openapi_extra=binary,
                 summary="New keys: wire.sites.NewKey -> NewKey")  # fmt: skip
    async def rotate(request: Request) -> Response:
        name, who = await site(request)
        return _packed(await sites.rotated(name, decode(await _body(request), NewKey).token, who))


def _members(
    router: APIRouter, callers: Callers, audit: AuditService, sites: Sites, replication: Replication
) -> None:
    """What operators ask and tell."""

    @router.get("/v1/admin/sites", operation_id="listSites", summary="This site and those it knows")
    async def everyone(request: Request) -> SitesModel:
        await callers.who(request)
        me = sites.me()
        shown = [
            SiteModel(
                name=me.name, number=me.number, is_local=True, gateways=me.gateways, networks=sites.known.networks
            )
        ]
        away = {s.site: s.is_reachable for s in replication.statuses()}
        for row in sites.known.rows:
            shown.append(
                SiteModel(
                    name=row.name, number=row.id, is_local=False, gateways=row.gateways, networks=row.networks,
                    paused=bool(row.link.get("paused")), rate=row.link.get("rate", ""),
                    schedule=row.link.get("schedule") or [], latency_ms=sites.known.latency_ms.get(row.name),
                    reachable=away.get(row.name),
                )
            )  # fmt: skip
        return SitesModel(sites=shown)

    @router.post("/v1/admin/sites", operation_id="addSite", status_code=201, summary="Make two sites known to another")
    async def add(request: Request, wish: SiteWish) -> SiteModel:
        who = await callers.admin(request)
        row = await sites.add(wish.name, wish.gateway, wish.token, own_gateways=wish.own_gateways, who=who)
        await audit.note(who=who.access, action="site.add", target=wish.name, detail=wish.gateway)
        return SiteModel(name=row.name, number=row.id, is_local=False, gateways=row.gateways, networks=row.networks)

    @router.post("/v1/admin/sites/join", operation_id="joinSite", summary="The other site's half of adding")
    async def join(request: Request, wish: JoinWish) -> dict[str, Any]:
        who = await callers.admin(request)
        answer = await sites.join(wish.name, wish.number, wish.gateways, wish.token, who=who)
        await audit.note(who=who.access, action="site.join", target=wish.name)
        return answer

    @router.delete("/v1/admin/sites/{name}", operation_id="removeSite", summary="Forget a site, and end its key")
    async def remove(
        request: Request, name: str,
        drop_queue: bool = Query(False, description="also when it has not got everything"),
    ) -> RemovedModel:  # fmt: skip
        who = await callers.admin(request)
        dropped = await sites.remove(name, drop_queue=drop_queue, who=who)
        await audit.note(who=who.access, action="site.remove", target=name, detail=f"{dropped} changes dropped")
        return RemovedModel(dropped=dropped)

    @router.patch("/v1/admin/sites/{name}", operation_id="changeSite", summary="Networks, gateways, bandwidth")
    async def change(request: Request, name: str, wish: SiteChange) -> SitesModel:
        who = await callers.admin(request)
        await sites.change(name, wish.model_dump(by_alias=True, exclude_none=True))
        await audit.note(who=who.access, action="site.change", target=name)
        return await everyone(request)

    async def pause(request: Request, name: str, *, paused: bool) -> SitesModel:
        who = await callers.admin(request)
        sites.known.get(name)
        await sites.change(name, {"paused": paused})
        await audit.note(who=who.access, action="site.pause" if paused else "site.resume", target=name)
        return await everyone(request)

    @router.post("/v1/admin/sites/{name}/pause", operation_id="pauseSite", summary="Send it nothing; durable")
    async def pause_site(request: Request, name: str) -> SitesModel:
        return await pause(request, name, paused=True)

    @router.post("/v1/admin/sites/{name}/resume", operation_id="resumeSite", summary="Send again")
    async def resume_site(request: Request, name: str) -> SitesModel:
        return await pause(request, name, paused=False)

    @router.post("/v1/admin/sites/{name}/rotate", operation_id="rotateSite", summary="New keys in both directions")
    async def rotate_site(request: Request, name: str) -> SitesModel:
        who = await callers.admin(request)
        await sites.rotate(name, who)
        await audit.note(who=who.access, action="site.rotate", target=name)
        return await everyone(request)

    @router.post("/v1/admin/sites/{name}/backfill", operation_id="backfillSite", summary="Queue what exists for a site")
    async def backfill(request: Request, name: str, wish: Backfill) -> SitesModel:
        who = await callers.admin(request)
        await sites.backfill(name, wish.bucket, wish.prefix)
        await audit.note(who=who.access, action="site.backfill", target=name, detail=wish.bucket)
        return await everyone(request)


def _packed(message: object) -> Response:
    return Response(encode(message), media_type=MEDIA_TYPE)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"the message has more than {BODY_BYTES_MAX} bytes")
    return bytes(body)
