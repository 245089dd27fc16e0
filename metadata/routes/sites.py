"""/v1/sites/*, /v1/admin/sites*, /v1/admin/replication and /v1/internal/sites: HTTP of services/sites*."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from msgspec import structs

from metadata.routes.callers import Callers
from metadata.routes.holder import AskHolder
from metadata.routes.sites_models import (
    Backfill,
    JoinWish,
    OpenedModel,
    RemovedModel,
    ReplicationModel,
    SiteChange,
    SiteModel,
    SitesModel,
    SiteWish,
    SyncModel,
    TargetModel,
)
from metadata.services.access.audit import AuditService
from metadata.services.names.buckets import BucketService
from metadata.services.sites.apply import NameTaker
from metadata.services.sites.backfill import BackfillProgress, Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.holds import Holdings
from metadata.services.sites.link import SHARE
from metadata.services.sites.registry import Sites
from metadata.services.sites.run import Replication
from metadata.services.sites.target import TargetStatus
from tierstore.auth.access import Principal
from tierstore.clock import Clock
from tierstore.errors import AccessDenied, TooLarge
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.sites import (
    SITE_USER,
    BucketRule,
    Compare,
    CompareAnswer,
    Hello,
    HelloAnswer,
    Holds,
    NameBatch,
    NewKey,
    RulesAnswer,
    RulesAsk,
)

BODY_BYTES_MAX = 8 << 20
_BINARY: dict[str, Any] = {
    "requestBody": {"content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}}
}


def build(
    callers: Callers, audit: AuditService, sites: Sites, *, replication: Replication, taker: NameTaker, clock: Clock,
    buckets: BucketService, comparison: Comparison, backfills: Backfills, holdings: Holdings, holder: AskHolder,
) -> APIRouter:  # fmt: skip
    """The router. holder: the process that speaks to other sites, so it alone knows how far and how fast they are."""
    router = APIRouter(tags=["sites"])
    _own(router, callers, sites, buckets, holder)
    _between(router, callers, sites, taker, clock, comparison=comparison, backfills=backfills, holdings=holdings)
    _members(router, callers, audit, sites, replication, comparison=comparison, backfills=backfills, holder=holder)

    @router.get("/v1/admin/replication", operation_id="replicationStatus", summary="How far each site is behind",
                response_model=ReplicationModel)  # fmt: skip
    async def status(request: Request) -> ReplicationModel | Response:
        await callers.admin(request)
        if (told := await holder.answer(request)) is not None:
            return told
        now_ms = clock.now_ms()
        targets = [_target(s, now_ms, await backfills.progress(s.site)) for s in await replication.measured()]
        sync = replication.sync
        answer = ReplicationModel(
            targets=targets, comparing=comparison.waiting, refusal=comparison.refusal(),
            sync=SyncModel(waits=sync.waits, degraded=sync.degraded, failed=sync.failed),
            names_applied=taker.applied, names_lost=taker.lost, names_parked=taker.parked,
        )  # fmt: skip
        for body in await holder.of_others(request):
            with contextlib.suppress(ValueError):       # of another release, while they are replaced one by one
                add_counts(answer, ReplicationModel.model_validate_json(body))
        return answer

    return router


def add_counts(to: ReplicationModel, other: ReplicationModel) -> None:
    """What another process of this site has counted of the commits and names that came to it."""
    for name in ("waits", "degraded", "failed"):
        setattr(to.sync, name, getattr(to.sync, name) + getattr(other.sync, name))
    for name in ("names_applied", "names_lost", "names_parked"):
        setattr(to, name, getattr(to, name) + getattr(other, name))


def _target(s: TargetStatus, now_ms: int, backfill: BackfillProgress) -> TargetModel:
    b = s.backlog
    return TargetModel(
        site=s.site, backlog_objects=b.objects, backlog_bytes=b.bytes, backlog_names=b.names,
        oldest_seconds=max(0, now_ms - b.oldest_ms) / 1000 if b.objects else 0.0,
        confirmed_seconds=max(0, now_ms - s.confirmed_at_ms) / 1000 if s.confirmed_at_ms else None,
        rate_bytes_per_second=s.bytes_per_second,
        drain_seconds=None if math.isinf(s.drain_seconds) else s.drain_seconds,
        state=_state_of(s), latency_ms=s.latency_ms,
        error=s.error, names_sent=s.names_sent, bodies_sent=s.bodies_sent, bytes_sent=s.bytes_sent, parked=s.parked,
        failures=s.failures, backfill_left=backfill.parts, backfill_walked=backfill.walked,
        backfill_queued=backfill.queued, backfill_paused=backfill.is_paused, compare_left=s.compare_left,
    )  # fmt: skip


def _state_of(s: TargetStatus) -> str:
    if s.is_paused:
        return "paused"
    if not s.is_reachable:
        return "unreachable"
    return "held" if s.is_held else "ok"


def _between(
    router: APIRouter, callers: Callers, sites: Sites, taker: NameTaker, clock: Clock, *, comparison: Comparison,
    backfills: Backfills, holdings: Holdings,
) -> None:  # fmt: skip
    """What other sites ask."""
    async def site(request: Request) -> tuple[str, Principal]:
        who = await callers.who(request)
        if not who.user.startswith(SITE_USER):
            raise AccessDenied("only other sites may call this")
        return sites.caller(who), who

    @router.post("/v1/sites/hello", response_class=Response, operation_id="sites_hello", openapi_extra=_BINARY,
                 summary="A site lives: wire.sites.Hello -> HelloAnswer")  # fmt: skip
    async def hello(request: Request) -> Response:
        name, who = await site(request)
        said = decode(await _body(request), Hello)
        await sites.seen(name, who)
        heard = await comparison.hear(name, said.epoch, said.sequence, said.confirmed_ms_ago, mark=said.mark)
        me = sites.me()
        return _packed(
            HelloAnswer(me.name, clock.now_ms(), me.cluster_id, heard.epoch, heard.sequence, heard.mark)
        )

    @router.post("/v1/sites/compare", response_class=Response, operation_id="sites_compare", openapi_extra=_BINARY,
                 summary="Send a restored site what it forgot: wire.sites.Compare -> CompareAnswer")  # fmt: skip
    async def compare(request: Request) -> Response:
        name, _ = await site(request)
        wanted = decode(await _body(request), Compare)
        return _packed(CompareAnswer(await backfills.answer_compare(name, wanted.epoch)))

    @router.post("/v1/sites/holds", response_class=Response, operation_id="sites_holds", openapi_extra=_BINARY,
                 summary="Which bodies are this site's for good: wire.sites.Holds -> HoldsAnswer")  # fmt: skip
    async def holds(request: Request) -> Response:
        await site(request)
        return _packed(await holdings.answer(decode(await _body(request), Holds).bodies))

    @router.post("/v1/sites/seen", response_class=Response, operation_id="sites_seen", openapi_extra=_BINARY,
                 summary="Which deletes this site has heard of: wire.sites.Holds -> HoldsAnswer")  # fmt: skip
    async def seen(request: Request) -> Response:
        await site(request)
        return _packed(await holdings.seen(decode(await _body(request), Holds).bodies))

    @router.post("/v1/sites/names", response_class=Response, operation_id="sites_names", openapi_extra=_BINARY,
                 summary="Names of another site: wire.sites.NameBatch -> NameAnswer")  # fmt: skip
    async def names(request: Request) -> Response:
        name, _ = await site(request)
        return _packed(await taker.take(decode(await _body(request), NameBatch), name))

    @router.post("/v1/sites/rotate", response_class=Response, operation_id="sites_rotate", openapi_extra=_BINARY,
                 summary="New keys: wire.sites.NewKey -> NewKey")  # fmt: skip
    async def rotate(request: Request) -> Response:
        name, who = await site(request)
        return _packed(await sites.rotated(name, decode(await _body(request), NewKey).token, who))


def _own(router: APIRouter, callers: Callers, sites: Sites, buckets: BucketService, holder: AskHolder) -> None:
    """What this site's gateways ask: where the other sites are; a bucket's rules, for a user at the S3 door."""

    @router.post("/v1/internal/sites", response_class=Response, operation_id="sites_peers", openapi_extra=_BINARY,
                 summary="The other sites, for a gateway: wire.sites.Peers", tags=["internal"])  # fmt: skip
    async def peers(request: Request) -> Response:
        await callers.daemon(request)
        return await holder.answer(request) or _packed(sites.peers())

    @router.post(
        "/v1/internal/replication", response_class=Response, operation_id="bucket_rules", openapi_extra=_BINARY,
        summary="A bucket's rules, shown or replaced: wire.sites.RulesAsk -> RulesAnswer", tags=["internal"],
    )  # fmt: skip
    async def rules(request: Request) -> Response:
        await callers.daemon(request)
        who = await callers.who(request)
        ask = decode(await _body(request), RulesAsk)
        if ask.rules is None:
            found = await buckets.replication(ask.bucket, who)
        else:
            found = await buckets.set_replication(ask.bucket, [structs.asdict(rule) for rule in ask.rules], who)
        return _packed(RulesAnswer([BucketRule(**rule) for rule in found], sites.names()))


def _members(
    router: APIRouter, callers: Callers, audit: AuditService, sites: Sites, replication: Replication, *,
    comparison: Comparison, backfills: Backfills, holder: AskHolder,
) -> None:  # fmt: skip
    """What operators ask and tell."""

    @router.get("/v1/admin/sites", operation_id="listSites", summary="This site and those it knows",
                response_model=SitesModel)  # fmt: skip
    async def listed(request: Request) -> SitesModel | Response:
        await callers.who(request)
        return await holder.answer(request) or await everyone(request)

    async def everyone(request: Request) -> SitesModel:
        """Also what changes answer with: what this process has just read, though latencies may be missing."""
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
                    share=row.link.get("share", SHARE), schedule=row.link.get("schedule") or [],
                    latency_ms=sites.known.latency_ms.get(row.name),
                    reachable=away.get(row.name),
                )
            )  # fmt: skip
        return SitesModel(sites=shown)

    @router.post("/v1/admin/sites", operation_id="addSite", status_code=201, summary="Make two sites known to another")
    async def add(request: Request, wish: SiteWish) -> SiteModel:
        who = await callers.admin(request)
        row = await sites.add(
            wish.name, wish.gateway, wish.token, own_gateways=wish.own_gateways, who=who, is_rebuild=wish.rebuild
        )
        if wish.rebuild:
            await comparison.begin([wish.name])
        await audit.note(who=who.access, action="site.add", target=wish.name, detail=wish.gateway)
        return SiteModel(name=row.name, number=row.id, is_local=False, gateways=row.gateways, networks=row.networks)

    @router.post("/v1/admin/sites/join", operation_id="joinSite", summary="The other site's half of adding")
    async def join(request: Request, wish: JoinWish) -> dict[str, Any]:
        who = await callers.admin(request)
        answer = await sites.join(
            wish.name, wish.number, wish.gateways, wish.token, who=who, is_replacement=wish.replace, called=wish.called
        )
        await audit.note(who=who.access, action="site.join", target=wish.name)
        return answer

    @router.delete("/v1/admin/sites/{name}", operation_id="removeSite", summary="Forget a site, and end its key")
    async def remove(
        request: Request, name: str,
        drop_queue: bool = Query(False, description="also when it has not got everything"),
    ) -> RemovedModel:  # fmt: skip
        who = await callers.admin(request)
        dropped, without, homeless = await sites.remove(name, drop_queue=drop_queue, who=who)
        await audit.note(who=who.access, action="site.remove", target=name, detail=f"{dropped} changes dropped")
        return RemovedModel(dropped=dropped, buckets=without, homeless=homeless)

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
        replication.kick()
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
        sites.known.get(name)
        await backfills.begin(name, wish.bucket, wish.prefix)
        await audit.note(who=who.access, action="site.backfill", target=name, detail=wish.bucket)
        return await everyone(request)

    async def backfill_pause(request: Request, name: str, *, paused: bool) -> SitesModel:
        who = await callers.admin(request)
        sites.known.get(name)
        await backfills.pause(name, paused=paused)
        action = "site.backfill.pause" if paused else "site.backfill.resume"
        await audit.note(who=who.access, action=action, target=name)
        return await everyone(request)

    @router.post("/v1/admin/sites/{name}/backfill/pause", operation_id="pauseBackfill", summary="Queue no more")
    async def pause_backfill(request: Request, name: str) -> SitesModel:
        return await backfill_pause(request, name, paused=True)

    @router.post("/v1/admin/sites/{name}/backfill/resume", operation_id="resumeBackfill", summary="Go on with it")
    async def resume_backfill(request: Request, name: str) -> SitesModel:
        return await backfill_pause(request, name, paused=False)

    @router.post("/v1/admin/sites/open", operation_id="openSite", summary="Take writes though not compared with all")
    async def accept(request: Request) -> OpenedModel:
        who = await callers.admin(request)
        left = await comparison.accept()
        await audit.note(who=who.access, action="site.open", target=sites.me().name, detail=", ".join(left))
        return OpenedModel(not_compared=left)


def _packed(message: object) -> Response:
    return Response(encode(message), media_type=MEDIA_TYPE)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise TooLarge(f"the message has more than {BODY_BYTES_MAX} bytes")
    return bytes(body)
