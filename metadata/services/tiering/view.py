"""What operators and users see of tiering: heat by object, prefix, bucket and tier; explain; hit ratios of the tiers.

Reads the promoter's own picture and the catalog; changes nothing. Heat is asked of the hottest chunks that the table
knows exactly (REPORTED_CHUNKS_MAX of them), so sums over prefixes and buckets are of what is hot, not of everything.

Heat of an object is in whole reads per hour: the mean of its chunks, weighted by their bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from metadata.catalog import sites
from metadata.catalog import tiering as rows
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.packed import BAD, DELETING, LIVE, PackedChunk
from metadata.services.cluster.membership import Cluster
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.rights import authorize_in
from metadata.services.tiering import fleet as tiering_fleet
from metadata.services.tiering.recorder import Recorder
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.walk import ShelfWalk
from tierstore.auth.access import Principal
from tierstore.clock import version_site
from tierstore.errors import NotFound, RequestError, UnavailableError
from tierstore.names import TIERS, check_key, version_text
from tierstore.policy.explain import ReplicaView, explain_chunk, past_heat
from tierstore.policy.simulate import Fleet, Speed
from tierstore.policy.sketch import COLD
from tierstore.policy.trace import prefix_of
from tierstore.ticket import ROLE_HOME

REPORTED_CHUNKS_MAX: Final = 10_000
EXPLAINED_CHUNKS_MAX: Final = 256
PAST_HOURS: Final = 24
BY: Final = ("object", "prefix", "bucket", "tier")
_STATES: Final = {LIVE: "ok", DELETING: "deleting", BAD: "bad"}


@dataclass(slots=True)
class Hot:
    """One line of the heat report. tier: the fastest one that holds (some of) it."""

    name: str
    heat_per_hour: float
    bytes: int
    tier: str


@dataclass(frozen=True, slots=True)
class TierUse:
    """What a tier did, since this process started, and what the promoter keeps there. lowest_rank: of its lowest
    resident, None without one."""

    tier: str
    reads: int
    read_bytes: int
    hit_ratio: float
    byte_hit_ratio: float
    resident_chunks: int
    resident_bytes: int
    lowest_rank: float | None
    exposed_bytes: int
    exposed_seconds: float
    grey_devices: list[int]


class TieringView:
    """One per process."""

    def __init__(
        self, database: Database, cluster: Cluster, names: BucketNames, tiering: Tiering, walk: ShelfWalk,
        *, recorder: Recorder,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._names = names
        self._tiering = tiering
        self._walk = walk
        self._recorder = recorder

    # -- heat -------------------------------------------------------------------------------------------------
    async def heat(self, by: str, limit: int, *, prefix: str = "") -> list[Hot]:
        """The hottest, first. prefix: only names that begin so (bucket/key). Raises RequestError."""
        if by not in BY:
            raise RequestError(f"by is one of {', '.join(BY)}, not {by!r}", code="bad-heat-question")
        table, now = self._tiering.heat.table, self._tiering.now()
        # For single objects a few more than asked for: several chunks may be of one.
        wanted = min(REPORTED_CHUNKS_MAX, limit * 4 + 64) if by == "object" and not prefix else REPORTED_CHUNKS_MAX
        hottest = table.hottest(wanted)
        located = await self._tiering.finder.find([chunk for chunk, _ in hottest])
        found: dict[str, Hot] = {}
        for chunk, score in hottest:
            where = located.get(chunk)
            if where is None:
                continue
            bucket, key, size = self._tiering.finder.name_of(where)
            name = f"{bucket}/{key}" if bucket else f"chunk {chunk.hex()}"
            if not name.startswith(prefix):
                continue
            tier, per_hour = self._tier_of(where.chunk), table.per_hour(score, now)
            if by == "object":
                share = where.chunk.chunk_bytes / size if size else 1.0
                _add(found, name, per_hour * min(share, 1.0), size or where.chunk.chunk_bytes, tier, keep_bytes=True)
            else:
                group = {"bucket": bucket or "(unknown)", "tier": tier}.get(by) or (
                    prefix_of(bucket, key) if bucket else "(unknown)"
                )
                _add(found, group, per_hour, where.chunk.chunk_bytes, tier)
        ordered = sorted(found.values(), key=lambda hot: (-hot.heat_per_hour, hot.name))
        return ordered[:limit]

    def _tier_of(self, chunk: PackedChunk) -> str:
        tiers = {
            self._view.devices[r.device].tier for r in chunk.replicas
            if r.state == LIVE and r.device in self._view.devices
        }  # fmt: skip
        return min(tiers, key=lambda tier: TIERS.index(tier) if tier in TIERS else len(TIERS), default="")

    # -- explain ----------------------------------------------------------------------------------------------
    async def explain(self, bucket_name: str, key: str, who: Principal, *, version: int = 0) -> dict[str, Any]:
        """Why an object is where it is, and what happens to it next (DESIGN section 10). version: 0 is the latest; the
        reads by the hour are of all versions. chunks: the first EXPLAINED_CHUNKS_MAX of chunks_total. remote: the site
        that the body is of, when it is not or only in part here; else null. Ranks and decisions are those of the
        process that holds the promoter's lease; another one knows the copies and the rule. Raises NotFound,
        AccessDenied."""
        bucket = await self._names.get(bucket_name)
        authorize_in(who, "read", bucket, key)
        check_key(key)
        explained = await self._database.scan(lambda c: rows.object_named(c, bucket.id, key, version))
        if explained is None:
            of = f"version {version_text(version)} of {key!r}" if version else repr(key)
            raise NotFound(f"there is no {of} in bucket {bucket_name!r}")
        found = explained.named
        remote = None
        if found.is_remote:
            site = version_site(found.version)
            others = await self._database.read(sites.others)
            remote = {
                "site": next((other.name for other in others if other.id == site), ""),
                "bytes_here": explained.bytes_here,
            }
        planner, now = self._tiering.picture(), self._tiering.now()
        located = [
            Located((bucket.id, key, found.version), chunk, bucket_name, found.size, found.storage_class)
            for chunk in found.chunks[:EXPLAINED_CHUNKS_MAX]
        ]
        rule = self._tiering.finder.rule_for(bucket_name, key, found.size, found.storage_class)
        home_tier = self._walk.home_tier(rule)
        chunks = [
            explain_chunk(
                planner, one.chunk.id, one.chunk.chunk_bytes, replicas=self._replicas(one.chunk), rule=rule, now=now,
                decisions=self._tiering.decisions.of(one.chunk.id), home_tier=home_tier,
            )
            for one in located
        ]  # fmt: skip
        heat = sum(c["heat_per_hour"] * c["bytes"] for c in chunks) / max(sum(c["bytes"] for c in chunks), 1)
        past = await self._recorder.reads_of(bucket_name, key, hours=PAST_HOURS)
        hours = past_heat(past.reads_at, now, self._tiering.rules.half_life_seconds, PAST_HOURS)
        return {
            "key": key, "version": version_text(found.version), "rule": rule.name, "mode": rule.mode,
            "heat_per_hour": round(heat, 6),
            "heat_history": {"is_recorded": past.is_recorded, "hours": [asdict(hour) for hour in hours]},
            "chunks": chunks, "chunks_total": explained.chunks_total, "remote": remote,
        }  # fmt: skip

    def _replicas(self, chunk: PackedChunk) -> list[ReplicaView]:
        found = []
        for r in chunk.replicas:
            device = self._view.devices.get(r.device)
            server = self._view.servers.get(device.server) if device is not None else None
            state = _STATES.get(r.state, "bad")
            if state == "ok" and not self._view.can_read(r.device):
                state = "unreachable"
            found.append(
                ReplicaView(
                    server.name if server else "", r.device, device.tier if device else "",
                    "home" if r.role == ROLE_HOME else "cache", server.site if server else self._view.site, state,
                )
            )  # fmt: skip
        return found

    # -- tiers ------------------------------------------------------------------------------------------------
    def tiers(self) -> list[TierUse]:
        """Hit ratios and residents of each tier, `mem` among them, fastest first."""
        served, planner, now = self._tiering.served, self._tiering.planner, self._tiering.now()
        reads, size = max(sum(served.reads.values()), 1), max(sum(served.bytes.values()), 1)
        tiers = {d.tier for d in self._view.devices.values() if d.state != "removed"} | set(served.reads)
        if any(capacity for _, capacity in served.mem.values()):
            tiers.add("mem")
        found = []
        for tier in sorted(tiers, key=lambda t: TIERS.index(t) if t in TIERS else len(TIERS)):
            devices = [d for d in self._view.devices.values() if d.tier == tier]
            exposed = [self._walk.exposed[d.id] for d in devices if d.id in self._walk.exposed]
            oldest = min((e.oldest_at for e in exposed if e.oldest_at), default=0.0)
            lowest = planner.lowest_rank(tier) if planner is not None else COLD
            found.append(
                TierUse(
                    tier, served.reads[tier], served.bytes[tier], served.reads[tier] / reads,
                    served.bytes[tier] / size,
                    sum(len(planner.residents_of(d.id)) for d in devices) if planner else 0,
                    planner.used_bytes(tier) if planner else 0, None if lowest == COLD else lowest,
                    sum(e.bytes for e in exposed), max(0.0, now - oldest) if oldest else 0.0,
                    [d for d in self._tiering.grey_devices if any(i.id == d for i in devices)],
                )
            )  # fmt: skip
        return found

    @property
    def chunk_bytes(self) -> int:
        """Into chunks of this size new bodies are cut; what-if takes all to be."""
        return self._cluster.settings.chunk_bytes

    def fleet(self) -> Fleet:
        """Today's tiers for what-if: capacity, what home copies take of it, and measured speeds."""
        planner = self._tiering.planner
        by_tier: dict[str, list[Any]] = {}
        for device in tiering_fleet.devices(
            self._view, resident_bytes=planner.device_bytes if planner else lambda _: 0, leaving_bytes={}
        ):
            by_tier.setdefault(device.tier, []).append(device)
        order = sorted(by_tier, key=lambda t: TIERS.index(t) if t in TIERS else len(TIERS))
        if not order:
            raise UnavailableError("no device is known yet", code="not-ready")
        fast = {tier: sum(d.capacity_bytes for d in by_tier[tier]) for tier in order[:-1]}
        speeds = {
            tier: Speed(
                sum(d.seconds for d in some) / len(some), sum(d.bytes_per_second for d in some) / len(some)
            )
            for tier, some in by_tier.items()
        }  # fmt: skip
        mem = sum(capacity for _, capacity in self._tiering.served.mem.values())
        return Fleet(
            fast, mem, order[-1], speeds | {"mem": Speed(0.01e-3, 8e9)}, chunk_bytes=self.chunk_bytes,
            # one device stands for a tier's; of tiers of several sizes the smallest, which is the first to be busy
            rate_scale=min((len(by_tier[tier]) for tier in order[:-1]), default=1),
            taken={tier: sum(d.other_bytes for d in by_tier[tier]) for tier in fast},
        )  # fmt: skip


def _add(found: dict[str, Hot], name: str, per_hour: float, size: int, tier: str, *, keep_bytes: bool = False) -> None:
    hot = found.get(name)
    if hot is None:
        found[name] = Hot(name, per_hour, size, tier)
        return
    hot.heat_per_hour += per_hour
    if not keep_bytes:
        hot.bytes += size
    if tier in TIERS and (hot.tier not in TIERS or TIERS.index(tier) < TIERS.index(hot.tier)):
        hot.tier = tier
