"""A promoter over a catalog in memory: two slow servers with homes, one with a fast device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from metadata.catalog import buckets, workload
from metadata.catalog.workload import JobCount
from metadata.promoter.heat import HeatGatherer
from metadata.services.cluster.view import DeviceInfo
from metadata.services.tiering.service import Tiering
from metadata.services.tiering.walk import ShelfWalk
from tests.unit.cluster.cluster_kit import MiniCluster, follow_feed, new_cluster
from tierstore.policy.heat import pack_delta
from tierstore.policy.parser import parse
from tierstore.policy.rules import Policy
from tierstore.ticket import ROLE_CACHE
from tierstore.wire.cluster import DeviceReport

MIB = 1 << 20


@dataclass
class Rig:
    """Two slow servers with homes, one with a fast device."""

    cluster: MiniCluster
    heat: HeatGatherer
    tiering: Tiering
    walk: ShelfWalk
    sequence: int = 0
    revision: int = 1
    policy: Policy = field(default_factory=Policy)

    @property
    def fast(self) -> int:
        return self.cluster.device("f")

    def read(self, chunk: bytes, count: float, *, server: str = "a") -> None:
        """Count reads of a chunk as a heartbeat of that server brings them."""
        self.sequence += 1
        store = self.cluster.stores[server].server
        self.heat.merge(store.id, store.incarnation, self.sequence, pack_delta([(chunk, count)]))

    async def tick(self, *, epoch: int = 0) -> None:
        """Ten seconds pass, the promoter ticks, servers do what is queued, the reverse table follows."""
        await self.cluster.pass_time(10.0, *self.cluster.stores)
        self.tiering.served.note(1, 1, {"hdd": (0, self.sequence * 100 * MIB)})
        await self.tiering.tick(epoch)
        for store in self.cluster.stores.values():
            await store.turn(self.cluster)
        await follow_feed(self.cluster.world)

    async def cached(self, chunk: bytes) -> set[int]:
        return {d for d, r in (await self.cluster.replicas(chunk)).items() if r.role == ROLE_CACHE and r.state == 0}

    async def counts(self) -> list[JobCount]:
        return await self.cluster.world.database.read(workload.counts)

    def set_policy(self, document: dict[str, Any]) -> None:
        self.policy, self.revision = parse(document), self.revision + 1


async def new_rig(*, capacity: int = 10 * MIB) -> Rig:
    cluster = await new_cluster("a", "b")
    await cluster.world.database.write(lambda c: buckets.create(c, "bkt", owner="", at_ms=0))
    store = await cluster.add_server("f", 9)
    store.server.devices = [
        DeviceReport(bytes([9]) * 16, "ssd", "/d9", capacity_bytes=capacity, read_ms=0.1, read_bytes_per_second=2e9)
    ]
    await store.server.beat()
    heat = HeatGatherer(cluster.world.clock, None)
    rig: Rig

    def policy() -> tuple[int, Policy]:
        return rig.revision, rig.policy

    cluster.queue._handing._reporter = heat.reporter
    tiering = Tiering(
        cluster.world.database, cluster.world.cluster, cluster.book, cluster.queue, heat, policy=policy
    )

    def choose(size: int, tier: str, taken: Any) -> DeviceInfo | None:
        return cluster.repair.planner.choose(size, tier, exclude_servers=taken)

    rig = Rig(cluster, heat, tiering, ShelfWalk(cluster.world.database, cluster.world.cluster, tiering, choose=choose))
    rig.set_policy({"version": 1, "promoter": {"chunk_max": 1.0, "budget": 10.0}})
    return rig
