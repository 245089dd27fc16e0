"""Settings of the metadata service. Owns nothing; the values that all daemons share are tierstore.config.sections'.

What may differ between the processes of one cluster stands here; what must be the same for all of them and survives
(policy, rules, keys) is in the catalog.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.config.load import Rate, Seconds, Size, secret, section, setting, tables
from tierstore.config.sections import Auth, Background, Limits, Listen, Log, Telemetry, Timers, Tls
from tierstore.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Where names, versions, chunks and replicas are kept."""

    data: str = setting("data/metadata", "directory of the embedded catalog and of this process's own files")
    url: str = secret("", "database in place of the embedded one: postgresql://user:password@host/name")
    feed_retention: Seconds = setting(7 * 86400.0, "changes are kept for readers of the feed")
    snapshot_interval: Seconds = setting(300.0, "between two snapshots of the catalog on the object servers; 0: none")
    journal_interval: Seconds = setting(5.0, "between two pieces of the journal on the object servers")

    def __post_init__(self) -> None:
        if self.journal_interval <= 0 or self.feed_retention <= 0:
            raise ValueError("journal_interval and feed_retention must be more than 0")
        if self.snapshot_interval and self.journal_interval > self.snapshot_interval:
            raise ValueError("journal_interval must not be longer than snapshot_interval: it fills the time between")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How bodies are cut and where they go when no policy rule says otherwise."""

    site: str = setting("site1", "name of this site")
    site_number: int = setting(1, "1..255, in version ids: sites that know each other have different ones")
    copies: int = setting(2, "home replicas of a chunk, on different servers (N+1)")
    chunk_bytes: Size = setting(8 * MIB, "bodies are cut into chunks of this size, up to 64 MiB")

    def __post_init__(self) -> None:
        if not 1 <= self.copies <= 8:
            raise ValueError(f"copies must be 1..8, not {self.copies}")
        if not 1 <= self.site_number <= 255:
            raise ValueError(f"site_number must be 1..255, not {self.site_number}")
        if not 64 * 1024 <= self.chunk_bytes <= 64 * MIB:
            raise ValueError("chunk_bytes must be 64KiB..64MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Duties:
    """Background work of the metadata service: how often, and its safety marks."""

    collect_after: Seconds = setting(900.0, "unreferenced chunks live at least that long, for readers under way")
    orphan_after: Seconds = setting(900.0, "an upload that never committed is given up, and its chunks are orphans")
    inventory_interval: Seconds = setting(21_600.0, "between two listings of a device's chunks, which find orphans")
    trash: Seconds = setting(86400.0, "deleted chunks stay in the trash of their device")
    placements_interval: Seconds = setting(1.0, "between two batches of the reverse table")
    lifecycle_interval: Seconds = setting(3600.0, "between two rounds of the lifecycle rules of buckets")
    lifecycle_day: Seconds = setting(86400.0, "how long a day of a lifecycle rule lasts; seconds, for tests only")
    fetched_share: float = setting(
        0.2, "of all devices: bodies fetched from other sites for readers, beyond which the coldest go; 1: all of them"
    )
    fetched_settle: Seconds = setting(
        600.0, "another site must have answered that long without a break before a body is let go of on its word"
    )
    sync_wait: Seconds = setting(
        300.0, "a write under a sync rule waits at most so long for a body that is moving towards the other site"
    )
    tombstone_keep: Seconds = setting(604_800.0, "deletes are remembered for other sites; bounds the age of a backup")
    deleted_share_max: float = setting(0.01, "share of a device that collection may delete a day without an operator")

    def __post_init__(self) -> None:
        for name in ("orphan_after", "inventory_interval", "placements_interval", "sync_wait"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        if not 0 < self.deleted_share_max <= 1:
            raise ValueError(f"deleted_share_max is a share, more than 0 and at most 1, not {self.deleted_share_max}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """How fast copies of repair, drain and tiering may go."""

    device_rate: Rate = setting(50 * MIB, "bytes a second of one device that a repair or drain may write; 0: no limit")
    promote_rate: Rate = setting(50 * MIB, "the same for promotions, until the policy says otherwise; 0: no limit")
    total_rate: Rate = setting(0, "bytes a second of all copies together, endangered chunks too; 0: no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The first administrator's key. Made in the catalog when it is not there yet."""

    access_key: str = setting("", "access key")
    secret_key: str = secret("", "secret key, for signed requests")
    token: str = secret("", "bearer token, tst.<access key>.<random>")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user's key for signed S3 requests, kept in step with the settings at every start."""

    name: str = setting(description="the user; also the canonical id that S3 answers show")
    access_key: str = setting(description="access key")
    secret_key: str = secret("", "secret key, for signed requests")
    grants: str = setting("", "roles, like photos=readwrite,*=readonly; empty: none")
    policy: str = setting("", "JSON policy document attached to the user: what his signed requests may do")

    def __post_init__(self) -> None:
        if not self.secret_key:
            raise ValueError(f"user {self.name!r} needs a secret_key")

    @property
    def roles(self) -> dict[str, str]:
        """grants as bucket -> role."""
        pairs = (part.partition("=") for part in self.grants.split(",") if part.strip())
        return {bucket.strip(): role.strip() for bucket, _, role in pairs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where notifications of buckets go that name it by arn:tierstore:sns:::NAME."""

    name: str = setting(description="letters, digits and dashes, as the ARN names it")
    url: str = secret("", "http or https URL that takes the POSTs; it may carry a key of its own")

    def __post_init__(self) -> None:
        if not self.name.replace("-", "").isalnum() or not self.url.startswith(("http://", "https://")):
            raise ValueError(f"webhook {self.name!r} needs a name of letters, digits and dashes, and an http(s) url")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of `python -m metadata serve`."""

    listen: Listen = section(Listen, port=7400)
    tls: Tls = section(Tls)
    catalog: Catalog = section(Catalog)
    placement: Placement = section(Placement)
    duties: Duties = section(Duties)
    jobs: Jobs = section(Jobs)
    background: Background = section(Background)
    root: Root = section(Root)
    users: tuple[User, ...] = tables(User, "users' keys that are given by configuration")
    webhooks: tuple[Webhook, ...] = tables(Webhook, "where notifications may go")
    auth: Auth = section(Auth)
    limits: Limits = section(Limits)
    timers: Timers = section(Timers)
    log: Log = section(Log)
    telemetry: Telemetry = section(Telemetry)
