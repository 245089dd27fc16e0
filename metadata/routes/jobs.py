"""/v1/admin/jobs: the queue, the duties, their progress; pause and resume. HTTP only."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from metadata.promoter.runner import DutyStatus
from metadata.routes.callers import Callers
from metadata.services.access.audit import AuditService
from metadata.services.cluster.duties import DutySwitches
from metadata.services.jobs.queue import JobQueue
from metadata.services.upkeep.status import Status
from tierstore.errors import RequestError


class JobModel(BaseModel):
    id: int
    kind: str = Field(description="copy, delete, verify, undelete, inventory or mend")
    why: str = Field(description="repair, drain, promote, demote, settle, collect, scrub or reconcile")
    state: str = Field(description="waiting, leased or failed")
    rank: int = Field(description="class; smaller goes first, 1..9: so many live homes are left")
    heat_per_hour: float
    server: int
    device: int
    chunk: str
    bytes: int
    attempts: int
    progress: float
    code: str
    detail: str


class WorkModel(BaseModel):
    why: str
    state: str = Field(description="idle, running or paused")
    waiting: int
    running: int
    failed: int
    done: int
    total: int
    left_bytes: int
    bytes_moved: int
    bytes_per_second: float
    eta_seconds: float | None
    oldest_seconds: float


class DutyModel(BaseModel):
    name: str
    state: str = Field(description="running, paused, elsewhere (another process holds the lease) or stopped")
    steps: int
    done: int
    failures: int
    last_step_seconds: float
    detail: str
    error: str


class JobsModel(BaseModel):
    jobs: list[JobModel]
    work: list[WorkModel] = Field(description="the queue by reason, with progress")
    duties: list[DutyModel]


class DutyWish(BaseModel):
    model_config = ConfigDict(extra="forbid")

    duty: str = Field("", description="a duty, a reason or a kind of jobs; empty: all")


class PausedModel(BaseModel):
    paused: list[str]


class RetriedModel(BaseModel):
    retried: int


#: What can be paused beside the duties: reasons and kinds of jobs.
KINDS = ("copy", "delete", "verify", "inventory")
REASONS = ("repair", "drain", "promote", "demote", "settle", "collect", "scrub", "reconcile")
#: Never paused: without them nobody would know who is alive, and pausing could not be undone.
ALWAYS = ("liveness", "jobs")


def build(
    callers: Callers, audit: AuditService, status: Status, *, queue: JobQueue, switches: DutySwitches,
    duties: Callable[[], list[DutyStatus]],
) -> APIRouter:  # fmt: skip
    router = APIRouter(prefix="/v1/admin/jobs", tags=["admin"])

    def names() -> set[str]:
        return {d.name for d in duties() if d.name not in ALWAYS} | set(KINDS) | set(REASONS)

    async def switch(request: Request, wish: DutyWish, *, paused: bool) -> PausedModel:
        who = await callers.admin(request)
        known = names()
        if wish.duty and wish.duty not in known:
            raise RequestError(f"{wish.duty!r} is none of {', '.join(sorted(known))}", code="no-such-duty")
        all_duties = {d.name for d in duties() if d.name not in ALWAYS} | set(REASONS)
        chosen = {wish.duty} if wish.duty else all_duties if paused else set(switches.paused)
        for name in sorted(chosen):
            await switches.set(name, paused=paused)
        await audit.note(who=who.access, action="pause" if paused else "resume", target=wish.duty or "all")
        return PausedModel(paused=sorted(switches.paused))

    @router.get("", operation_id="listJobs", summary="Background work: the queue, its progress, the duties")
    async def jobs(
        request: Request, duty: str = Query("", max_length=40), state: str = Query("", max_length=20),
        limit: int = Query(100, ge=1, le=1000),
    ) -> JobsModel:  # fmt: skip
        await callers.admin(request)
        rows = await status.listing(state=state, why=duty, limit=limit)
        work = [w for w in await status.work() if duty in ("", w.why)]
        return JobsModel(
            jobs=[
                JobModel(
                    id=r.id, kind=r.kind, why=r.why, state=r.state, rank=r.rank, heat_per_hour=r.heat,
                    server=r.server_id, device=r.device_id, chunk=r.chunk.hex(), bytes=r.bytes, attempts=r.attempts,
                    progress=r.progress, code=r.code, detail=r.detail,
                )
                for r in rows
            ],
            work=[
                WorkModel(
                    why=w.why, state="paused" if w.is_paused else "running" if w.waiting + w.running else "idle",
                    waiting=w.waiting, running=w.running, failed=w.failed, done=w.done, total=w.total,
                    left_bytes=w.left_bytes, bytes_moved=w.bytes_moved, bytes_per_second=w.bytes_per_second,
                    eta_seconds=w.eta_seconds, oldest_seconds=w.oldest_seconds,
                )
                for w in work
            ],
            duties=[
                DutyModel(
                    name=d.name, state=_state(d), steps=d.steps, done=d.done, failures=d.failures,
                    last_step_seconds=d.last_step_seconds, detail=d.detail, error=d.error,
                )
                for d in duties() if duty in ("", d.name)
            ],
        )  # fmt: skip

    @router.post("/pause", operation_id="pauseJobs", summary="Pause a duty or a kind of jobs; durable")
    async def pause(request: Request, wish: DutyWish) -> PausedModel:
        return await switch(request, wish, paused=True)

    @router.post("/resume", operation_id="resumeJobs", summary="Resume what was paused")
    async def resume(request: Request, wish: DutyWish) -> PausedModel:
        return await switch(request, wish, paused=False)

    @router.post("/retry", operation_id="retryJobs", summary="Try jobs again that were given up")
    async def retry(request: Request, wish: DutyWish) -> RetriedModel:
        who = await callers.admin(request)
        count = await queue.retry_failed(wish.duty)
        await audit.note(who=who.access, action="retry", target=wish.duty or "all")
        return RetriedModel(retried=count)

    return router


def _state(d: DutyStatus) -> str:
    if d.is_paused:
        return "paused"
    if d.is_waiting_for_lease:
        return "elsewhere"
    return "running" if d.is_running else "stopped"
