"""A catalog in memory, a clock that a test moves, and messages of scripted servers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.database import Database, open_database
from metadata.services.cluster import Cluster, ClusterSettings
from metadata.services.cluster_heartbeat import Heartbeats
from metadata.services.cluster_liveness import Timers
from metadata.services.duties import Holder, LeaseKeeper
from metadata.services.view import ClusterView
from tierstore.clock import ManualClock
from tierstore.wire.cluster import DeviceReport, Heartbeat, HeartbeatAnswer, JobReport, Register, Registered

JOIN = "join-token"
TIMERS = Timers(repair_grace_seconds=20.0)


async def new_database() -> Database:
    """A fresh in-memory catalog with all tables, run in-line."""
    database = await open_database("sqlite://", threads=False)

    def make(connection: sa.Connection) -> None:
        schema.tables.create_all(connection)
        connection.execute(sa.insert(schema.feed_head).values(id=1, sequence=0, version=0))

    await database.write(make)
    return database


@dataclass
class World:
    """One metadata process."""

    database: Database
    clock: ManualClock
    cluster: Cluster
    lease: LeaseKeeper
    heartbeats: Heartbeats
    sequences: dict[int, int] = field(default_factory=dict)


async def new_world(database: Database | None = None, clock: ManualClock | None = None, name: str = "m1") -> World:
    clock = clock or ManualClock()
    database = database or await new_database()
    rng = random.Random(7 if name == "m1" else name)
    cluster = Cluster(
        database, ClusterView(), clock, ClusterSettings(join_token=JOIN, timers=TIMERS), lambda n: rng.randbytes(n)
    )
    lease = LeaseKeeper(database, clock, Holder(name, f"http://{name}"))
    heartbeats = Heartbeats(database, cluster, lease)
    await cluster.load()
    return World(database, clock, cluster, lease, heartbeats)


def report(number: int, *, tier: str = "hdd", **fields: object) -> DeviceReport:
    values: dict[str, object] = {"capacity_bytes": 1 << 40, **fields}
    return DeviceReport(uuid=bytes([number]) * 16, tier=tier, path=f"/d{number}", **values)  # type: ignore[arg-type]


def registration(
    name: str, *, devices: list[DeviceReport], incarnation: int = 1, instance: int = 0, **fields: object
) -> Register:
    values: dict[str, object] = {"join_token": JOIN, **fields}
    return Register(
        role="objectd", name=name, url=f"http://{name}:1", instance=bytes([instance or ord(name[-1])]) * 16,
        incarnation=incarnation, devices=devices, **values,  # type: ignore[arg-type]
    )  # fmt: skip


@dataclass
class Server:
    """An object server as metadata sees it; devices are its reports, changed by the test."""

    world: World
    name: str
    devices: list[DeviceReport]
    incarnation: int = 1
    registered: Registered | None = None
    sequence: int = 0

    @property
    def id(self) -> int:
        assert self.registered is not None
        return self.registered.server

    def device(self, at: int = 0) -> int:
        assert self.registered is not None
        return self.registered.devices[at].device

    async def join(self) -> Registered:
        server = self.registered.server if self.registered else 0
        self.registered = await self.world.cluster.register(
            registration(self.name, devices=self.devices, incarnation=self.incarnation), server=server
        )
        return self.registered

    async def beat(
        self, *, state: str = "up", slots: int = 0, reports: list[JobReport] | None = None, **fields: object
    ) -> HeartbeatAnswer:
        self.sequence += 1
        message = Heartbeat(
            server=self.id, incarnation=self.incarnation, sequence=self.sequence, devices=self.devices, state=state,
            job_slots=slots, reports=reports or [], **fields,  # type: ignore[arg-type]
        )  # fmt: skip
        return await self.world.heartbeats.beat(message, server=self.id)


async def joined(world: World, name: str, *numbers: int) -> Server:
    server = Server(world, name, [report(n) for n in numbers])
    await server.join()
    return server
