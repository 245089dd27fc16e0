"""/v1/admin/heat, /v1/explain, /v1/admin/tiering and /v1/admin/policy/simulate. HTTP only."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.callers import Callers
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.view import TieringView
from metadata.services.tiering.whatif import WhatIf
from tierstore.names import parse_version


class HotModel(BaseModel):
    name: str
    heat_per_hour: float = Field(description="decayed reads per hour; of an object: whole reads")
    bytes: int
    tier: str = Field(description="fastest tier that holds it, or some of it")


class HeatModel(BaseModel):
    items: list[HotModel]


class TierUseModel(BaseModel):
    tier: str
    reads: int = Field(description="client reads served since this metadata process started")
    read_bytes: int
    hit_ratio: float
    byte_hit_ratio: float
    resident_chunks: int = Field(description="cache copies, those under way included")
    resident_bytes: int
    lowest_resident_rank: float | None
    exposed_bytes: int = Field(description="home copies that landed here and are to go home")
    exposed_seconds: float = Field(description="age of the oldest of them")
    grey_devices: list[int] = Field(description="slower than a slower tier: not preferred")


class TieringModel(BaseModel):
    tiers: list[TierUseModel]
    ticks: int
    promotions: int
    demotions: int
    failed: int
    under_way: int
    promoted_bytes: int
    served_bytes: int
    bytes_moved_per_byte_served: float
    wasted_promotions: int = Field(description="let go without one read since they were made")
    written_bytes_per_day: float = Field(description="to fast devices, at the pace since this process started")
    read_soon_buckets: int = Field(description="whose new objects get a fast copy with the write")
    budget_bytes: float = Field(description="what may move now")
    heat_chunks: int = Field(description="chunks whose heat is known exactly")
    mem_used_bytes: int = Field(description="chunks in the RAM of the object servers")
    mem_capacity_bytes: int
    history_requests: int
    history_bytes: int
    chunk_bytes: int = Field(description="new bodies are cut into chunks of this size, in what-if too")


class SimulateModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    policy: Any = Field(description="a policy document; what is wrong with it is told as PUT would")
    hours: float = Field(24.0, gt=0, le=24 * 366)
    curve: bool = True


def build(
    callers: Callers, tiering: Tiering, view: TieringView, whatif: WhatIf, *, soon: Callable[[], int]
) -> APIRouter:
    """The router. soon: how many buckets are read soon."""
    router = APIRouter(tags=["tiering"])

    @router.get(
        "/v1/admin/heat", operation_id="heat", summary="What is read most", response_model=HeatModel,
        responses={200: {"content": {"text/csv": {}}}},
    )  # fmt: skip
    async def heat(
        request: Request, by: Annotated[str, Query(max_length=20)] = "object",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
        prefix: Annotated[str, Query(max_length=2048, description="bucket/key begins so")] = "",
        format: Annotated[Literal["json", "csv"], Query()] = "json",
    ) -> Any:
        await callers.admin(request)
        found = await view.heat(by, limit, prefix=prefix)
        if format == "csv":
            lines = [[h.name, f"{h.heat_per_hour:.6g}", h.bytes, h.tier] for h in found]
            return Response(_csv(lines), media_type="text/csv")
        return HeatModel(
            items=[
                HotModel(name=h.name, heat_per_hour=round(h.heat_per_hour, 6), bytes=h.bytes, tier=h.tier)
                for h in found
            ]
        )

    @router.get(
        "/v1/explain/{bucket}/{key:path}", operation_id="explain", summary="Why an object is where it is, what is next",
        response_model=dict[str, Any],
    )  # fmt: skip
    async def explain(
        request: Request, bucket: str, key: str,
        version: Annotated[str, Query(description="16 hex digits, in place of the latest")] = "",
    ) -> dict[str, Any]:  # fmt: skip
        who = await callers.who(request)
        return await view.explain(bucket, key, who, version=parse_version(version) if version else 0)

    @router.get("/v1/admin/tiering", operation_id="tieringStatus", summary="Hit ratios and what the promoter did")
    async def status(request: Request) -> TieringModel:
        await callers.admin(request)
        totals, planner = tiering.totals, tiering.planner
        return TieringModel(
            tiers=[
                TierUseModel(
                    tier=t.tier, reads=t.reads, read_bytes=t.read_bytes, hit_ratio=round(t.hit_ratio, 6),
                    byte_hit_ratio=round(t.byte_hit_ratio, 6), resident_chunks=t.resident_chunks,
                    resident_bytes=t.resident_bytes, lowest_resident_rank=t.lowest_rank,
                    exposed_bytes=t.exposed_bytes, exposed_seconds=t.exposed_seconds, grey_devices=t.grey_devices,
                )
                for t in view.tiers()
            ],
            ticks=totals.ticks, promotions=totals.promotions, demotions=totals.demotions, failed=totals.failed,
            under_way=len(tiering.copies), promoted_bytes=totals.promoted_bytes, served_bytes=totals.served_bytes,
            bytes_moved_per_byte_served=tiering.copies.moved_per_served(),
            written_bytes_per_day=tiering.written_per_day(),
            wasted_promotions=totals.wasted, read_soon_buckets=soon(),
            budget_bytes=planner.budget_bytes if planner else 0.0,
            heat_chunks=len(tiering.heat.table), mem_used_bytes=sum(used for used, _ in tiering.served.mem.values()),
            mem_capacity_bytes=sum(capacity for _, capacity in tiering.served.mem.values()),
            history_requests=whatif.recorder.requests,
            history_bytes=whatif.recorder.used_bytes, chunk_bytes=view.chunk_bytes,
        )  # fmt: skip

    @router.post(
        "/v1/admin/policy/simulate", operation_id="simulatePolicy", response_model=dict[str, Any],
        summary="What a policy would have done on recorded history, beside the one in force",
    )  # fmt: skip
    async def simulate(request: Request, wish: SimulateModel) -> dict[str, Any]:
        await callers.admin(request)
        return await whatif.compare(wish.policy, hours=wish.hours, has_curve=wish.curve)

    @router.get(
        "/v1/admin/history", operation_id="accessHistory", response_class=Response,
        summary="Recorded accesses as CSV (time,key,size,op), as simulate takes them",
        responses={200: {"content": {"text/csv": {}}}},
    )  # fmt: skip
    async def history(request: Request, hours: Annotated[float, Query(gt=0, le=24 * 366)] = 24.0) -> Response:
        await callers.admin(request)
        return Response(await whatif.history_csv(hours), media_type="text/csv")

    return router


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "heat_per_hour", "bytes", "tier"])
    writer.writerows(rows)
    return text.getvalue()
