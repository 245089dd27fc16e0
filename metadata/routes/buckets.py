"""/v1/buckets*: HTTP of services/names/buckets."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from metadata.routes.callers import Callers
from metadata.services.names.buckets import BucketRow, BucketService


class Bucket(BaseModel):
    name: str
    created_at: str = Field(description="RFC 3339, UTC")
    owner: str
    versioning: Literal["", "enabled", "suspended"]
    objects: int | None = Field(None, description="counted only when asked for by count=true")
    bytes: int | None = None


class BucketList(BaseModel):
    buckets: list[Bucket]


class BucketChange(BaseModel):
    """What to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    versioning: Literal["enabled", "suspended"] | None = None
    documents: dict[str, str | None] | None = Field(None, description="documents of the S3 door to remove: null")


class BucketDocuments(BaseModel):
    documents: dict[str, str]


class Rule(BaseModel):
    """A replication rule."""

    model_config = ConfigDict(extra="forbid")

    prefix: str = ""
    target: str
    mode: Literal["async", "sync"] = "async"
    bodies: Literal["all", "hot", "on-demand"] = "all"
    on_failure: Literal["fail", "degrade"] = "degrade"


class Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[Rule]
    home: str | None = Field(
        default=None, description='site that judges conditional writes; "": each site its own; left out: as it is'
    )


def moment(at_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(bucket: BucketRow, counted: tuple[int, int] | None = None) -> Bucket:
    objects, size = counted if counted is not None else (None, None)
    return Bucket(
        name=bucket.name, created_at=moment(bucket.created_at_ms), owner=bucket.owner,
        versioning=bucket.versioning,  # type: ignore[arg-type]
        objects=objects, bytes=size,
    )  # fmt: skip


def build(service: BucketService, callers: Callers) -> APIRouter:
    """The router."""
    router = APIRouter(tags=["buckets"])

    @router.get(
        "/v1/buckets", response_model=BucketList, summary="The buckets you may list", operation_id="list_buckets"
    )
    async def everything(request: Request) -> BucketList:
        found = await service.everything(await callers.who(request))
        return BucketList(buckets=[_shown(bucket) for bucket in found])

    @router.get("/v1/buckets/{bucket}", response_model=Bucket, summary="One bucket", operation_id="get_bucket")
    async def get(request: Request, bucket: str, count: Annotated[bool, Query()] = False) -> Bucket:
        row = await service.get(bucket, await callers.who(request))
        return _shown(row, await service.count(row) if count else None)

    @router.put(
        "/v1/buckets/{bucket}", response_model=Bucket, status_code=201, summary="Make a bucket",
        operation_id="create_bucket",
    )  # fmt: skip
    async def create(request: Request, bucket: str) -> Bucket:
        return _shown(await service.create(bucket, await callers.who(request)))

    @router.patch(
        "/v1/buckets/{bucket}", response_model=Bucket, summary="Configure a bucket", operation_id="configure_bucket"
    )
    async def configure(request: Request, bucket: str, change: BucketChange) -> Bucket:
        row = await service.change(
            bucket, await callers.who(request), versioning=change.versioning, documents=change.documents
        )
        return _shown(row)

    @router.delete(
        "/v1/buckets/{bucket}", status_code=204, response_class=Response, summary="Remove an empty bucket",
        operation_id="delete_bucket",
    )  # fmt: skip
    async def delete(request: Request, bucket: str) -> Response:
        await service.delete(bucket, await callers.who(request))
        return Response(status_code=204)

    @router.get(
        "/v1/buckets/{bucket}/documents", response_model=BucketDocuments, summary="Configuration documents",
        operation_id="get_bucket_documents",
    )  # fmt: skip
    async def documents(request: Request, bucket: str) -> BucketDocuments:
        row = await service.get(bucket, await callers.who(request))
        return BucketDocuments(documents=row.config)

    @router.get(
        "/v1/buckets/{bucket}/replication", response_model=Rules, summary="Replication rules",
        operation_id="get_replication",
    )  # fmt: skip
    async def replication(request: Request, bucket: str) -> dict[str, Any]:
        who = await callers.who(request)
        return {"rules": await service.replication(bucket, who), "home": await service.home(bucket, who)}

    @router.put(
        "/v1/buckets/{bucket}/replication", response_model=Rules, summary="Replace the replication rules",
        operation_id="put_replication",
    )  # fmt: skip
    async def set_replication(request: Request, bucket: str, rules: Rules) -> dict[str, Any]:
        wanted = [rule.model_dump() for rule in rules.rules]
        who = await callers.who(request)
        made = await service.set_replication(bucket, wanted, who, home=rules.home)
        return {"rules": made, "home": await service.home(bucket, who)}

    return router
