"""What the routes of sites say and take, as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SiteModel(BaseModel):
    name: str
    number: int = Field(description="in version ids; unique among sites that know each other")
    is_local: bool
    gateways: list[str]
    networks: list[str] = Field(description="CIDR; clients in them are served here first")
    paused: bool = False
    rate: str = Field(default="", description="bandwidth towards it; empty: no limit")
    schedule: list[dict[str, str]] = Field(default_factory=list, description="other rates by time of day, UTC")
    share: float = Field(default=0.5, description="of the time for bodies while clients are busy at this site")
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
    rebuild: bool = Field(False, description="this site is new and replaces one of its name that was lost there")


class JoinWish(BaseModel):
    """From another site, which may be of the next release: what it says beyond this is left alone (wire/sites)."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=63)
    number: int = Field(ge=1, le=255)
    gateways: list[str]
    token: str
    replace: bool = Field(False, description="the site of that name was lost; its rules stay")
    called: str = Field("", description="by askers of earlier releases: the name they take this site for")


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
    share: float | None = Field(None, ge=0.05, le=1.0, description="of the time for bodies while clients are busy here")


class Backfill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bucket: str = Field("", description="empty: all that a rule sends there")
    prefix: str = ""


class RemovedModel(BaseModel):
    dropped: int = Field(description="queued changes that went with it")
    buckets: list[str] = Field(description="buckets whose rules to it went with it")
    homeless: list[str] = Field(description="buckets whose home it was; conditional writes are local to each site now")


class TargetModel(BaseModel):
    site: str
    backlog_objects: int
    backlog_bytes: int
    backlog_names: int = Field(description="of them, not even the name was sent")
    oldest_seconds: float = Field(description="age of the oldest change that is not there; 0: it has everything")
    confirmed_seconds: float | None = Field(description="since it is known to have had everything; null: not yet")
    rate_bytes_per_second: float
    drain_seconds: float | None = Field(description="at that rate; null: nothing moves")
    state: str = Field(description="ok, paused, unreachable, or held: this site was restored, and hears from it first")
    latency_ms: float
    error: str
    names_sent: int
    bodies_sent: int
    bytes_sent: int
    parked: int
    failures: int
    backfill_left: int = Field(description="buckets and prefixes still to be walked")
    backfill_walked: int = Field(description="objects looked at by the backfill under way, or the last one")
    backfill_queued: int = Field(description="of them, those that go there")
    backfill_paused: bool
    compare_left: int = Field(description="what that site has still to send to this one, which was restored")


class SyncModel(BaseModel):
    waits: int = Field(description="deliveries that a writer waited for")
    degraded: int = Field(description="answers of success before the other site had it; of each try of a gateway one")
    failed: int = Field(description="answers outcome-unknown; of each try of a gateway one, so a write may count twice")


class OpenedModel(BaseModel):
    not_compared: list[str] = Field(description="sites that had not sent their names yet")


class ReplicationModel(BaseModel):
    targets: list[TargetModel]
    comparing: list[str] = Field(description="this site was restored: it waits for the names of these")
    refusal: str = Field(description="why writes to shared buckets are refused here; empty: they are not")
    sync: SyncModel
    names_applied: int
    names_lost: int
    names_parked: int
