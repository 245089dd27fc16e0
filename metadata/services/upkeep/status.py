"""What operators see of the cluster: servers, devices, tiers, jobs with their progress, and what needs their word.

Reads the view, the counts of the queue and the duties' own figures; changes nothing. Rates are those of the last
RATE_SECONDS; an ETA is left out where nothing moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metadata.catalog import garbage, jobs, workload
from metadata.catalog.database import Database
from metadata.catalog.jobs import JobRow
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import DeviceInfo, ServerInfo
from metadata.services.jobs.queue import JobQueue
from metadata.services.names.copies import Copies
from metadata.services.upkeep.collect import DeletionGuard
from metadata.services.upkeep.drain import Drains
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.scrub import Scrub, ScrubStatus
from tierstore.names import TIERS


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """state: ok, draining, drained, removed, or what its server says of its health (read-only, failed, full)."""

    info: DeviceInfo
    state: str


@dataclass(frozen=True, slots=True)
class ServerStatus:
    info: ServerInfo
    silent_seconds: float
    restart_seconds_left: float
    devices: list[DeviceStatus]


@dataclass(slots=True)
class TierStatus:
    tier: str
    devices: int = 0
    servers: int = 0
    capacity_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    trash_bytes: int = 0
    garbage_bytes: int = 0
    chunks: int = 0
    read_ms: float = 0.0
    read_bytes_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """One reason for jobs (repair, drain, collect, ...). total = done + left; left counts what is known to be left,
    queued or not. eta_seconds None: nothing moves."""

    why: str
    waiting: int
    running: int
    failed: int
    done: int
    total: int
    left_bytes: int
    bytes_moved: int
    bytes_per_second: float
    eta_seconds: float | None
    is_paused: bool
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    cluster_id: str
    site: str
    revision: int
    copies: int
    sequence: int
    servers_up: int
    servers_total: int
    garbage_rows: int
    garbage_oldest_seconds: float
    repair_halted: str
    deletion_barred: str
    stuck_chunks: int
    scrub: ScrubStatus
    warnings: list[str] = field(default_factory=list)


class Status:
    """Questions of operators."""

    def __init__(
        self, database: Database, cluster: Cluster, queue: JobQueue, *, losses: Losses, drains: Drains,
        guard: DeletionGuard, scrub: Scrub, is_paused: Callable[[str], bool], copies: Copies,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._queue = queue
        self._losses = losses
        self._drains = drains
        self._guard = guard
        self._scrub = scrub
        self._is_paused = is_paused
        self._copies = copies

    def servers(self) -> list[ServerStatus]:
        now_ms = self._cluster.now_ms()
        return [
            ServerStatus(
                info, max(0, now_ms - info.seen_at_ms) / 1000,
                max(0, self._cluster.restart_until_ms.get(info.id, 0) - now_ms) / 1000,
                [DeviceStatus(d, _state(d)) for d in self._cluster.view.devices.values() if d.server == info.id],
            )
            for info in sorted(self._cluster.view.servers.values(), key=lambda s: s.id)
            if info.state != "removed"
        ]  # fmt: skip

    def tiers(self) -> list[TierStatus]:
        """Fastest first; speeds are means over the tier's devices."""
        found: dict[str, TierStatus] = {}
        servers: dict[str, set[int]] = {}
        for device in self._cluster.view.devices.values():
            if device.state == "removed":
                continue
            tier = found.setdefault(device.tier, TierStatus(device.tier))
            servers.setdefault(device.tier, set()).add(device.server)
            tier.devices += 1
            tier.capacity_bytes += device.capacity_bytes
            tier.used_bytes += device.used_bytes
            tier.free_bytes += device.free_bytes
            tier.trash_bytes += device.trash_bytes
            tier.garbage_bytes += device.garbage_bytes
            tier.chunks += device.chunks
            tier.read_ms += device.read_ms
            tier.read_bytes_per_second += device.read_bytes_per_second
        for name, tier in found.items():
            tier.servers = len(servers[name])
            tier.read_ms /= tier.devices
            tier.read_bytes_per_second /= tier.devices
        return sorted(found.values(), key=lambda t: TIERS.index(t.tier) if t.tier in TIERS else len(TIERS))

    async def work(self) -> list[WorkStatus]:
        """Each reason that has jobs or had any since this process started."""
        unplanned = {"repair": self._losses.status.lost_devices, "drain": list(self._drains.progress)}
        counts, left = await self._database.scan(
            lambda c: (
                workload.counts(c),
                {why: [garbage.count_on_device(c, d) for d in devices] for why, devices in unplanned.items()},
            )
        )
        now_ms = self._cluster.now_ms()
        reasons = sorted({n.why for n in counts} | set(self._queue.tallies))
        rows: list[WorkStatus] = []
        for why in reasons:
            mine = [n for n in counts if n.why == why]
            number = {state: sum(n.jobs for n in mine if n.state == state) for state in ("waiting", "leased", "failed")}
            open_jobs = number["waiting"] + number["leased"]
            open_bytes = sum(n.bytes for n in mine if n.state != jobs.FAILED)
            left_chunks = max(open_jobs, sum(n for n, _ in left.get(why, [])))
            left_bytes = max(open_bytes, sum(size for _, size in left.get(why, [])))
            tally = self._queue.tallies.get(why)
            done = tally.done if tally else 0
            rate = tally.rate(now_ms) if tally else 0.0
            pace = tally.jobs_rate(now_ms) if tally else 0.0
            eta = left_bytes / rate if rate > 0 and left_bytes else (left_chunks / pace if pace > 0 else None)
            oldest = min((n.oldest_at_ms for n in mine if n.state != jobs.FAILED), default=now_ms)
            rows.append(
                WorkStatus(
                    why, number["waiting"], number["leased"], number["failed"], done, done + left_chunks, left_bytes,
                    tally.bytes_moved if tally else 0, rate, eta if left_chunks else 0.0, self._is_paused(why),
                    max(0, now_ms - oldest) / 1000,
                )
            )  # fmt: skip
        return rows

    async def listing(self, *, state: str = "", why: str = "", limit: int = 100) -> list[JobRow]:
        """Jobs in the order of the queue."""
        return await self._database.read(lambda c: workload.listing(c, state=state, why=why, limit=limit))

    async def cluster(self) -> ClusterStatus:
        view, now_ms = self._cluster.view, self._cluster.now_ms()
        rows, oldest_ms = await self._database.read(garbage.waiting)
        stores = [s for s in view.servers.values() if s.role == "objectd" and s.state != "removed"]
        up = [s for s in stores if s.state == "up"]
        self._losses.devices()
        return ClusterStatus(
            cluster_id=view.cluster_id, site=view.site, revision=view.revision, copies=self._cluster.settings.copies,
            sequence=self._cluster.sequence, servers_up=len(up), servers_total=len(stores), garbage_rows=rows,
            garbage_oldest_seconds=max(0, now_ms - oldest_ms) / 1000 if rows else 0.0,
            repair_halted=self._losses.status.halted_why, deletion_barred=self._guard.barred,
            stuck_chunks=self._losses.status.stuck, scrub=await self._scrub.status(),
            warnings=self._warnings(stores, len(up)),
        )  # fmt: skip

    def _warnings(self, stores: Sequence[ServerInfo], up: int) -> list[str]:
        copies = self._cluster.settings.copies
        found = [f"server {s.name} is {s.state}" for s in stores if s.state not in ("up", "drained")]
        if up < copies:
            found.append(f"{up} object servers for {copies} copies: writes are refused (not-enough-servers)")
        elif up < copies + 1:
            found.append(f"{up} object servers for {copies} copies: one more lost stops writes; add a server")
        for rule, wanted in self._copies.beyond(up):
            found.append(f"rule {rule!r} of the policy asks for {wanted} copies, {up} object servers are up: "
                         "writes under it are refused (not-enough-servers)")  # fmt: skip
        for device in self._cluster.view.devices.values():
            if device.health != "ok" and device.state != "removed":
                found.append(f"device {device.id} ({device.path}) is {device.health} {device.detail}".rstrip())
        if self._losses.status.halted_why:
            found.append(self._losses.status.halted_why)
        if self._guard.barred:
            found.append(f"nothing is deleted: {self._guard.barred}")
        for device_id, count in self._guard.asking.items():
            found.append(f"{count} orphaned chunks on device {device_id} wait for an operator's word")
        if self._losses.status.stuck:
            found.append(f"{self._losses.status.stuck} chunks lack a copy and no device can take it")
        return found


def _state(device: DeviceInfo) -> str:
    return device.state if device.state != "ok" else device.health
