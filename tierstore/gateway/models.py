"""Answers and questions of the REST interface as OpenAPI shows them. Shapes only: hot routes build their JSON directly,
and what metadata answers is passed on as it came (`extra` members of a newer metadata are allowed)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Problem(_Open):
    """RFC 9457. `code` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class ListedObject(BaseModel):
    key: str
    size: int
    etag: str = Field(description="without quotes")
    version: str = Field(description="16 hex digits")
    modified_at: str = Field(description="RFC 3339, UTC")
    tier: str = Field(description="fastest tier that holds it now")
    heat_per_hour: float


class ObjectPage(BaseModel):
    """One page of a listing, in key order."""

    objects: list[ListedObject]
    prefixes: list[str] = Field(description="common prefixes, when a delimiter was given")
    next_start_after: str | None = Field(description="start_after of the next page; null at the end")


class ObjectAction(BaseModel):
    """Exactly one of the two."""

    model_config = ConfigDict(extra="forbid")

    rename_to: str | None = Field(None, description="new key in the same bucket; one atomic step")
    copy_to: str | None = Field(None, description="bucket/key of the copy; no byte moves")


class ObjectMade(BaseModel):
    bucket: str
    key: str
    version: str
    etag: str
    size: int


class Bucket(_Open):
    name: str


class BucketList(_Open):
    buckets: list[Bucket]


class ReplicationRule(BaseModel):
    prefix: str = ""
    target: str
    mode: Literal["async", "sync"] = "async"
    bodies: Literal["all", "hot", "on-demand"] = "all"
    on_failure: Literal["fail", "degrade"] = "degrade"


class Replication(BaseModel):
    """home: the site that judges conditional writes; "": each site its own; left out in a PUT: as it is."""

    rules: list[ReplicationRule]
    home: str | None = None


class QuotaChange(BaseModel):
    """The new quota, whole: what is left out is no bound."""

    bytes: int = 0
    objects: int = 0


class Quota(QuotaChange):
    """used_*: null without a quota, because nothing is counted then."""

    used_bytes: int | None = None
    used_objects: int | None = None


class Replica(_Open):
    server: str
    device: str | int
    tier: str
    role: str
    site: str
    state: str


class ExplainedChunk(_Open):
    id: str
    bytes: int
    heat_per_hour: float
    replicas: list[Replica]


class Explanation(_Open):
    """Why an object is where it is, and what happens next."""

    key: str
    version: str
    rule: str | None
    heat_per_hour: float
    chunks: list[ExplainedChunk]


class Tree(_Open):
    """A JSON object whose members docs/reference describes."""


class Simulation(BaseModel):
    policy: dict[str, Any]
    hours: float = 24.0


class RouteSite(BaseModel):
    site: str
    gateways: list[str]


class Route(BaseModel):
    """Where a client should go: `gateways` in the order to try them; `site` is the first one's, `served_by`
    this. is_by_network: a site's networks hold the client's address; else it may measure."""

    site: str
    gateways: list[str]
    sites: list[RouteSite] = []
    served_by: str = ""
    is_by_network: bool = False
