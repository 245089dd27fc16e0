"""/v1/buckets/{bucket}/quota: HTTP of services/names/quotas."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.callers import Callers
from metadata.services.names.quotas import Quota, Quotas, Used

_MOST = (1 << 63) - 1


class QuotaChange(BaseModel):
    """The new quota, whole: what is left out is no bound."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(0, ge=0, le=_MOST, description="of all versions, each counted once; 0: no bound")
    objects: int = Field(0, ge=0, le=_MOST, description="versions that hold bytes; 0: no bound")


class QuotaView(QuotaChange):
    used_bytes: int | None = Field(None, description="null: no quota, so nothing is counted")
    used_objects: int | None = None


def _shown(quota: Quota, used: Used | None) -> QuotaView:
    held = (None, None) if used is None else (used.bytes, used.objects)
    return QuotaView(bytes=quota.bytes, objects=quota.objects, used_bytes=held[0], used_objects=held[1])


def build(quotas: Quotas, callers: Callers) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["buckets"])

    @router.get(
        "/v1/buckets/{bucket}/quota", response_model=QuotaView, summary="The quota and what is used of it",
        operation_id="get_quota",
    )  # fmt: skip
    async def get(request: Request, bucket: str) -> QuotaView:
        return _shown(*await quotas.get(bucket, await callers.who(request)))

    @router.put(
        "/v1/buckets/{bucket}/quota", response_model=QuotaView, summary="Set the quota; zeros remove it",
        operation_id="put_quota",
    )  # fmt: skip
    async def put(request: Request, bucket: str, change: QuotaChange) -> QuotaView:
        quota = Quota(change.bytes, change.objects)
        return _shown(quota, await quotas.set(bucket, quota, await callers.who(request)))

    return router
