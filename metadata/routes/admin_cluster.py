"""/v1/admin/{servers,tiers,status,repair,scrub,collect}: what operators see of the cluster and tell it. HTTP only;
each act is written to the audit log."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.callers import Callers
from metadata.services.access.audit import AuditService
from metadata.services.cluster.membership import Cluster
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.drain import Drains
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.scrub import Scrub, ScrubStatus
from metadata.services.upkeep.status import ServerStatus, Status, TierStatus


class DeviceModel(BaseModel):
    id: int
    name: str = Field(description="server/tier/id")
    path: str
    tier: str
    state: str = Field(description="ok, draining, drained, or its trouble: read-only, failed, full")
    detail: str
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    trash_bytes: int
    garbage_bytes: int = Field(description="dead records in segments, not compacted yet")
    chunks: int
    read_ms: float
    read_bytes_per_second: float
    is_reconciled: bool = Field(description="counts for N+1: its inventory was compared since it came back")
    drain_left_chunks: int | None = Field(description="null unless it is being drained")
    drain_left_bytes: int | None
    drain_waits_for: str = Field(description="chunks, jobs under way, uploads under way, the reverse table; else empty")


class AdminServerModel(BaseModel):
    name: str
    id: int
    role: str
    state: str = Field(description="up, suspect, dead, draining, drained or stopping")
    url: str
    site: str
    failure_domain: str
    software: str
    incarnation: int
    seen_seconds_ago: float
    restart_seconds_left: float = Field(description="of an announced restart; 0: none")
    takes_new: bool = Field(description="whether new chunks are placed on it now")
    load: float = Field(description="0..1")
    in_flight: int
    used_bytes: int
    capacity_bytes: int
    devices: list[DeviceModel]


class ServersModel(BaseModel):
    servers: list[AdminServerModel]


class TierModel(BaseModel):
    tier: str
    devices: int
    servers: int
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    trash_bytes: int
    garbage_bytes: int
    chunks: int
    read_ms: float = Field(description="mean small read of its devices")
    read_bytes_per_second: float


class TiersModel(BaseModel):
    tiers: list[TierModel]


class ScrubModel(BaseModel):
    bytes_per_second: int = Field(description="the steady pace of each device; 0: none")
    is_running: bool = Field(description="a pass over every copy is under way")
    started_at: str | None
    finished_at: str | None
    checked: int
    total: int


class StatusModel(BaseModel):
    cluster_id: str
    site: str
    revision: int
    copies: int
    sequence: int = Field(description="of the newest committed change")
    servers_up: int
    servers_total: int
    garbage_rows: int
    garbage_oldest_seconds: float
    stuck_chunks: int = Field(description="lack a copy, and no device can take it")
    repair_halted: str = Field(description="empty: repair goes on")
    deletion_barred: str = Field(description="empty: deletion goes on")
    scrub: ScrubModel
    warnings: list[str]


class DevicesModel(BaseModel):
    devices: list[int] = Field(description="ids concerned")


class RestartModel(BaseModel):
    seconds: float = Field(description="the server may be away that long without being taken for dead")


class DoneModel(BaseModel):
    done: bool = True


class ScrubWish(BaseModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    start: bool = Field(False, description="check every copy once, from now on")
    bytes_per_second: int | None = Field(None, ge=0, description="steady pace of each device")


def build(
    callers: Callers, audit: AuditService, status: Status, *, cluster: Cluster, drains: Drains, losses: Losses,
    scrub: Scrub, guard: DeletionGuard,
) -> APIRouter:  # fmt: skip
    router = APIRouter(prefix="/v1/admin", tags=["admin"])

    @router.get("/servers", operation_id="listServers", summary="Servers and their devices")
    async def servers(request: Request) -> ServersModel:
        await callers.admin(request)
        return ServersModel(servers=[_server(s, drains) for s in status.servers()])

    @router.get("/tiers", operation_id="listTiers", summary="Space and speed of each tier, fastest first")
    async def tiers(request: Request) -> TiersModel:
        await callers.admin(request)
        return TiersModel(tiers=[_tier(t) for t in status.tiers()])

    @router.get("/status", operation_id="clusterStatus", summary="The cluster in one answer, with warnings")
    async def in_one(request: Request) -> StatusModel:
        await callers.admin(request)
        now = await status.cluster()
        return StatusModel(
            cluster_id=now.cluster_id, site=now.site, revision=now.revision, copies=now.copies, sequence=now.sequence,
            servers_up=now.servers_up, servers_total=now.servers_total, garbage_rows=now.garbage_rows,
            garbage_oldest_seconds=now.garbage_oldest_seconds, stuck_chunks=now.stuck_chunks,
            repair_halted=now.repair_halted, deletion_barred=now.deletion_barred, scrub=_scrub(now.scrub),
            warnings=now.warnings,
        )  # fmt: skip

    @router.post("/servers/{name}/drain", operation_id="drainServer", summary="Empty a server while it serves")
    async def drain(
        request: Request, name: str, device: int = Query(0, ge=0, description="only this device; 0: all")
    ) -> DevicesModel:
        who = await callers.admin(request)
        devices = await drains.drain(name, device=device)
        await audit.note(who=who.access, action="drain", target=name, detail=str(device or ""))
        return DevicesModel(devices=devices)

    @router.post("/servers/{name}/undrain", operation_id="undrainServer", summary="Take a server back")
    async def undrain(
        request: Request, name: str, device: int = Query(0, ge=0, description="only this device; 0: all")
    ) -> DevicesModel:
        who = await callers.admin(request)
        devices = await drains.undrain(name, device=device)
        await audit.note(who=who.access, action="undrain", target=name, detail=str(device or ""))
        return DevicesModel(devices=devices)

    @router.post("/servers/{name}/restart", operation_id="announceRestart", summary="Announce a planned restart")
    async def restart(request: Request, name: str) -> RestartModel:
        who = await callers.admin(request)
        seconds = await cluster.announce_restart(name)
        await audit.note(who=who.access, action="announce-restart", target=name)
        return RestartModel(seconds=seconds)

    @router.post("/repair/continue", operation_id="continueRepair", summary="The servers that vanished are really gone")
    async def go_on(request: Request) -> DoneModel:
        who = await callers.admin(request)
        await losses.resume()
        await audit.note(who=who.access, action="continue-repair")
        return DoneModel()

    @router.post("/collect/agree", operation_id="agreeToCollect", summary="Orphans may go for a day, however many")
    async def agree(request: Request) -> DoneModel:
        who = await callers.admin(request)
        await guard.agree()
        await audit.note(who=who.access, action="agree-to-collect")
        return DoneModel()

    @router.get("/scrub", operation_id="scrubStatus", summary="Pace and progress of the scrub")
    async def scrub_status(request: Request) -> ScrubModel:
        await callers.admin(request)
        return _scrub(await scrub.status())

    @router.post("/scrub", operation_id="controlScrub", summary="Start a pass, or set the steady pace")
    async def scrub_control(request: Request, wish: ScrubWish) -> ScrubModel:
        who = await callers.admin(request)
        if wish.bytes_per_second is not None:
            await scrub.set_pace(wish.bytes_per_second)
        if wish.start:
            await scrub.start()
        await audit.note(who=who.access, action="scrub", detail=wish.model_dump_json())
        return _scrub(await scrub.status())

    return router


def _moment(at_ms: int) -> str | None:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds") if at_ms else None


def _scrub(s: ScrubStatus) -> ScrubModel:
    return ScrubModel(
        bytes_per_second=s.bytes_per_second, is_running=s.is_running, started_at=_moment(s.started_at_ms),
        finished_at=_moment(s.finished_at_ms), checked=s.checked, total=s.total,
    )  # fmt: skip


def _server(s: ServerStatus, drains: Drains) -> AdminServerModel:
    info = s.info
    devices = []
    for entry in s.devices:
        d, draining = entry.info, drains.progress.get(entry.info.id)
        devices.append(
            DeviceModel(
                id=d.id, name=f"{info.name}/{d.tier}/{d.id}", path=d.path, tier=d.tier, state=entry.state,
                detail=d.detail, capacity_bytes=d.capacity_bytes, used_bytes=d.used_bytes, free_bytes=d.free_bytes,
                trash_bytes=d.trash_bytes, garbage_bytes=d.garbage_bytes, chunks=d.chunks, read_ms=d.read_ms,
                read_bytes_per_second=d.read_bytes_per_second, is_reconciled=d.counts_for_copies,
                drain_left_chunks=draining.left_chunks if draining else None,
                drain_left_bytes=draining.left_bytes if draining else None,
                drain_waits_for=draining.waits_for if draining else "",
            )
        )  # fmt: skip
    return AdminServerModel(
        name=info.name, id=info.id, role=info.role, state=info.state, url=info.url, site=info.site,
        failure_domain=info.failure_domain, software=info.software, incarnation=info.incarnation,
        seen_seconds_ago=s.silent_seconds, restart_seconds_left=s.restart_seconds_left,
        takes_new=info.accepts_new and info.state == "up", load=info.load,
        in_flight=info.in_flight, used_bytes=sum(d.used_bytes for d in devices),
        capacity_bytes=sum(d.capacity_bytes for d in devices), devices=devices,
    )  # fmt: skip


def _tier(t: TierStatus) -> TierModel:
    return TierModel(
        tier=t.tier, devices=t.devices, servers=t.servers, capacity_bytes=t.capacity_bytes, used_bytes=t.used_bytes,
        free_bytes=t.free_bytes, trash_bytes=t.trash_bytes, garbage_bytes=t.garbage_bytes, chunks=t.chunks,
        read_ms=t.read_ms, read_bytes_per_second=t.read_bytes_per_second,
    )  # fmt: skip
