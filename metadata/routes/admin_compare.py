"""`/v1/admin/compare`: what object servers hold against what the catalog says."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from metadata.routes.callers import Callers
from metadata.services.access.audit import AuditService
from metadata.services.cluster.view import ClusterView
from metadata.services.upkeep.compare import CatalogComparison, DeviceComparison


class FindingModel(BaseModel):
    chunk: str = Field(description="its id, 32 hex digits")
    what: str = Field(description="missing, unknown, size or checksum")
    detail: str


class ComparedDeviceModel(BaseModel):
    device: int
    name: str = Field(description="server/tier/id")
    state: str = Field(description="running or done")
    progress: float = Field(description="0..1, by the number of chunks that the catalog expects")
    chunks: int = Field(description="headers read so far")
    bytes: int
    missing: int = Field(description="the catalog counts on it, the device lacks it")
    unknown: int = Field(description="on the device, in no row of the catalog")
    size_differs: int
    checksum_differs: int
    pending: int = Field(description="not judged: uploads that may be under way, chunks that wait for collection")
    findings: list[FindingModel] = Field(description="the first 200 differences")


class CompareModel(BaseModel):
    is_running: bool
    started_at: str | None = Field(description="RFC 3339; null: never compared")
    finished_at: str | None
    differences: int
    unreached: list[str] = Field(description="devices that do not answer now: nothing is said of them")
    devices: list[ComparedDeviceModel]


def build(callers: Callers, audit: AuditService, comparison: CatalogComparison, view: ClusterView) -> APIRouter:
    router = APIRouter(prefix="/v1/admin/compare", tags=["admin"])

    @router.get("", operation_id="comparison", summary="Progress and result of the comparison with the catalog")
    async def status(request: Request) -> CompareModel:
        await callers.admin(request)
        return _model(await comparison.status(), view)

    @router.post("", operation_id="startComparison", summary="Compare what all devices hold with the catalog, anew")
    async def start(request: Request) -> CompareModel:
        who = await callers.admin(request)
        found = await comparison.start()
        await audit.note(who=who.access, action="compare")
        return _model(found, view)

    return router


def _model(found: list[DeviceComparison], view: ClusterView) -> CompareModel:
    is_running = any(not d.finished_at_ms for d in found)
    compared = {d.device for d in found}
    unreached = [d.id for d in view.devices.values() if d.state != "removed" and d.id not in compared] if found else []
    return CompareModel(
        is_running=is_running,
        started_at=_moment(max((d.started_at_ms for d in found), default=0)),
        finished_at=None if is_running else _moment(max((d.finished_at_ms for d in found), default=0)),
        differences=sum(d.differences for d in found),
        unreached=[_name(device, view) for device in sorted(unreached)],
        devices=[_device(d, view) for d in found],
    )


def _device(d: DeviceComparison, view: ClusterView) -> ComparedDeviceModel:
    is_done = d.finished_at_ms > 0
    return ComparedDeviceModel(
        device=d.device, name=_name(d.device, view), state="done" if is_done else "running",
        progress=1.0 if is_done else min(0.99, d.chunks / max(1, d.expected)), chunks=d.chunks, bytes=d.total_bytes,
        missing=d.missing, unknown=d.unknown, size_differs=d.size_differs, checksum_differs=d.checksum_differs,
        pending=d.pending,
        findings=[FindingModel(chunk=f.chunk, what=f.what, detail=f.detail) for f in d.findings],
    )  # fmt: skip


def _name(device: int, view: ClusterView) -> str:
    info = view.devices.get(device)
    server = view.servers.get(info.server) if info is not None else None
    return f"{server.name}/{info.tier}/{device}" if info is not None and server is not None else str(device)


def _moment(at_ms: int) -> str | None:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat() if at_ms else None
