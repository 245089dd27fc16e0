"""A catalog in memory, a clock that a test moves, and messages of scripted servers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from metadata.catalog import feed, garbage, schema
from metadata.catalog.book import CatalogBook
from metadata.catalog.database import Database, open_database
from metadata.catalog.packed import LIVE, PackedChunk, Replica, pack, pack_replicas, unpack, unpack_replicas
from metadata.services.cluster.duties import DutySwitches, Holder, LeaseKeeper
from metadata.services.cluster.heartbeat import Heartbeats
from metadata.services.cluster.join import Registrar
from metadata.services.cluster.liveness import Timers
from metadata.services.cluster.membership import Cluster, ClusterSettings
from metadata.services.cluster.view import ClusterView
from metadata.services.jobs.queue import JobQueue
from metadata.services.upkeep.collect import Collection, DeletionGuard
from metadata.services.upkeep.compare import CatalogComparison
from metadata.services.upkeep.drain import Drains
from metadata.services.upkeep.inventories import Inventories
from metadata.services.upkeep.placements import PlacementIndexer
from metadata.services.upkeep.repair import Repair
from metadata.services.upkeep.repair_audit import Audit
from metadata.services.upkeep.repair_losses import Losses
from metadata.services.upkeep.repair_plan import Planner
from metadata.services.upkeep.scrub import Scrub
from tierstore.clock import ManualClock
from tierstore.names import ChunkId, DeviceId, ServerId, upload_id
from tierstore.ticket import ROLE_HOME, Receipt, sign_receipt
from tierstore.wire.cluster import (
    BadChunk,
    ChunkHeader,
    DeviceReport,
    Heartbeat,
    HeartbeatAnswer,
    Inventory,
    Job,
    JobReport,
    Register,
    Registered,
)

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
    registrar: Registrar
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
    registrar = Registrar(database, cluster, lambda n: rng.randbytes(n))
    lease = LeaseKeeper(database, clock, Holder(name, f"http://{name}"))
    heartbeats = Heartbeats(database, cluster, lease)
    await cluster.load()
    return World(database, clock, cluster, registrar, lease, heartbeats)


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
        self.registered = await self.world.registrar.register(
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


# -- a cluster whose object servers keep chunks in memory ------------------------------------------------------


async def follow_feed(world: World) -> None:
    """Bring the reverse table up to the feed's head."""
    await PlacementIndexer(world.database, world.clock).catch_up()


@dataclass
class Store:
    """An object server that does what jobs ask, at once."""

    server: Server
    held: dict[int, set[bytes]] = field(default_factory=dict)     # device -> chunks
    bad: set[bytes] = field(default_factory=set)
    found_bad: list[BadChunk] = field(default_factory=list)
    odd_headers: dict[bytes, tuple[int, int]] = field(default_factory=dict)   # chunk -> bytes, crc32c as stored
    refuse: str = ""                                              # every job fails with this code
    jobs_seen: list[Job] = field(default_factory=list)
    slots: int = 8
    is_of_before_parts: bool = False                              # a release that gives each job a whole slot

    async def turn(self, cluster: MiniCluster) -> int:
        """A heartbeat, the jobs of its answer, and the heartbeat that brings their results; how many jobs."""
        found, self.found_bad = self.found_bad, []
        answer = await self.server.beat(slots=self.slots, bad_chunks=found)
        self.jobs_seen += answer.jobs
        fits = self.slots if self.is_of_before_parts else len(answer.jobs)
        reports = [await self._do(cluster, job) for job in answer.jobs[:fits]]
        reports += [JobReport(job.id, job.token, True, code="no-slot") for job in answer.jobs[fits:]]
        if reports:
            await self.server.beat(reports=reports)
        return len(reports) + len(found)

    async def _do(self, cluster: MiniCluster, job: Job) -> JobReport:
        if self.refuse:
            return JobReport(job.id, job.token, True, code=self.refuse)
        here = self.held.setdefault(job.device, set())
        if job.kind == "copy":
            assert self.server.registered is not None
            assert any(job.chunk in cluster.held_on(source.device) for source in job.sources), "no source has it"
            here.add(job.chunk)
            key = self.server.registered.ticket_keys[-1]
            receipt = Receipt(
                ServerId(self.server.id), DeviceId(job.device), ChunkId(job.chunk), 0, 0, job.chunk_bytes, job.crc32c,
                self.server.incarnation,
            )  # fmt: skip
            text = sign_receipt(receipt, key_id=key.id, key=key.key)
            return JobReport(job.id, job.token, True, receipt=text, bytes_moved=job.chunk_bytes)
        if job.kind == "delete":
            for at in range(0, len(job.batch), 16):
                here.discard(job.batch[at : at + 16])
        if job.kind == "verify" and (job.chunk in self.bad or job.chunk not in here):
            why = "bad-block" if job.chunk in here else "missing"
            here.discard(job.chunk)
            self.bad.discard(job.chunk)
            self.found_bad.append(BadChunk(job.chunk, job.device, why))
            return JobReport(job.id, job.token, True, code="bad-block" if why == "bad-block" else "no-such-chunk")
        if job.kind == "inventory" and job.since_ms > 0:
            await self._tell_headers(cluster, job)
        elif job.kind == "inventory":
            ids = sorted(here)
            page = Inventory(
                self.server.id, self.server.incarnation, job.device, b"", b"".join(ids), [100] * len(ids), True
            )
            answer = await cluster.inventories.page(page)
            for orphan in answer.orphans:
                here.discard(orphan)
        return JobReport(job.id, job.token, True)

    async def _tell_headers(self, cluster: MiniCluster, job: Job) -> None:
        """Pages of two headers, so that pages follow each other."""
        headers = [
            ChunkHeader(chunk, *self.odd_headers.get(chunk, (100, 7)), 0, 0, 0, "")
            for chunk in sorted(self.held.setdefault(job.device, set()))
        ]
        after = b""
        for at in range(0, len(headers) + 1, 2):
            some = headers[at : at + 2]
            page = Inventory(
                self.server.id, self.server.incarnation, job.device, after, b"", [], len(some) < 2, job.since_ms, some
            )
            await cluster.comparison.page(page)
            await cluster.comparison.page(page)     # an answer got lost: it is sent again
            after = some[-1].chunk if some else after
            if len(some) < 2:
                return


@dataclass
class MiniCluster:
    """One metadata process with its duties, and object servers with one device each."""

    world: World
    queue: JobQueue
    book: CatalogBook
    switches: DutySwitches
    repair: Repair
    audit: Audit
    drains: Drains
    guard: DeletionGuard
    collection: Collection
    inventories: Inventories
    comparison: CatalogComparison
    scrub: Scrub
    stores: dict[str, Store] = field(default_factory=dict)
    copies: int = 2
    next_chunk: int = 0

    def held_on(self, device: int) -> set[bytes]:
        for store in self.stores.values():
            if device in store.held:
                return store.held[device]
        return set()

    async def add_server(self, name: str, number: int) -> Store:
        store = self.stores[name] = Store(await joined(self.world, name, number))
        store.held[store.server.device()] = set()
        return store

    def device(self, name: str) -> int:
        return self.stores[name].server.device()

    async def put(
        self, key: str, *names: str, size: int = 100, shared: bool = False, is_indexed: bool = True
    ) -> bytes:
        """An object of one chunk with home replicas on these servers; its chunk id. is_indexed: the reverse table and
        this process hear of it at once."""
        self.next_chunk += 1
        chunk_id = upload_id(self.world.clock.now_ms(), self.next_chunk) + bytes(4)
        replicas = tuple(Replica(self.device(n), ROLE_HOME, LIVE, 1, 0, 0) for n in names)
        packed = PackedChunk(chunk_id, size, size, 7, 0, replicas)
        for name in names:
            self.stores[name].held[self.device(name)].add(chunk_id)

        def write(c: sa.Connection) -> None:
            if shared:
                c.execute(sa.insert(schema.chunks).values(
                    id=chunk_id, chunk_bytes=size, crc32c=7, refcount=1, replicas=pack_replicas(replicas)))  # fmt: skip
            else:
                c.execute(sa.insert(schema.objects).values(
                    bucket_id=1, key=key, version=self.next_chunk, kind=schema.KIND_INLINE, is_null=1, size=size,
                    etag="e", created_at_ms=0, body=pack([packed])))  # fmt: skip
            kind, name = (schema.CHANGE_CHUNK, chunk_id.hex()) if shared else (schema.CHANGE_PUT, key)
            change = feed.NewChange(kind, 1, name, self.next_chunk)
            feed.append(c, [change], at_ms=self.world.clock.now_ms())

        await self.world.database.write(write)
        if is_indexed:
            await follow_feed(self.world)
            await self.world.cluster.refresh()
        return chunk_id

    async def delete(self, key: str, *, is_indexed: bool = True) -> None:
        def write(c: sa.Connection) -> None:
            body = c.execute(sa.select(schema.objects.c.body).where(schema.objects.c.key == key)).scalar_one()
            c.execute(sa.delete(schema.objects).where(schema.objects.c.key == key))
            garbage.add(c, unpack(body), at_ms=self.world.clock.now_ms())
            feed.append(c, [feed.NewChange(schema.CHANGE_DELETE, 1, key, 0)], at_ms=self.world.clock.now_ms())

        await self.world.database.write(write)
        if is_indexed:
            await follow_feed(self.world)

    async def replicas(self, chunk: bytes) -> dict[int, Replica]:
        """Device -> replica, as the catalog has it now."""

        def read(c: sa.Connection) -> dict[int, Replica]:
            found: list[Replica] = []
            for row in c.execute(sa.select(schema.objects.c.body)):
                found += [r for p in unpack(row.body) if p.id == chunk for r in p.replicas]
            for row in c.execute(sa.select(schema.chunks.c.replicas).where(schema.chunks.c.id == chunk)):
                found += unpack_replicas(row.replicas)
            return {r.device: r for r in found}

        return await self.world.database.read(read)

    async def homes(self, chunk: bytes) -> set[str]:
        """Names of the servers that have a live home and hold the bytes."""
        replicas = await self.replicas(chunk)
        return {
            name for name, store in self.stores.items()
            if store.server.device() in replicas and replicas[store.server.device()].state == LIVE
            and chunk in store.held[store.server.device()]
        }  # fmt: skip

    async def pass_time(self, seconds: float, *alive: str) -> None:
        """Seconds go by while these servers send heartbeats and everybody else is silent."""
        while seconds > 0:
            self.world.clock.advance(min(1.0, seconds))
            seconds -= 1.0
            for name in alive:
                await self.stores[name].server.beat()
            self.world.cluster.judge_all()
        await self.world.heartbeats.flush()

    async def settle(self, *alive: str, rounds: int = 30) -> None:
        """Duties and servers take turns until nothing happens any more."""
        for _ in range(rounds):
            await follow_feed(self.world)
            done = (await self.repair.step(0))[0] + (await self.drains.step(0))[0]
            done += (await self.collection.step(0))[0] + (await self.scrub.step(0))[0]
            done += await self.inventories.schedule(every_ms=1 << 50)
            await follow_feed(self.world)
            for name in alive or tuple(self.stores):
                done += await self.stores[name].turn(self)
            await self.world.heartbeats.flush()
            if not done:
                return
            self.world.clock.advance(0.5)
            for name in alive or tuple(self.stores):
                await self.stores[name].server.beat()
        raise AssertionError(f"not settled after {rounds} rounds")


async def new_cluster(*names: str, copies: int = 2) -> MiniCluster:
    world = await new_world()
    world.cluster.settings = replace(world.cluster.settings, copies=copies)
    book, switches = CatalogBook(), DutySwitches(world.database)
    queue = JobQueue(world.database, world.cluster, book, switches)
    world.heartbeats._desk = queue
    planner, losses = Planner(world.cluster.view, queue, random.Random(3)), Losses(world.database, world.cluster)
    repair = Repair(world.database, world.cluster, book, planner, losses)
    guard = DeletionGuard(world.database, world.cluster)
    cluster = MiniCluster(
        world, queue, book, switches, repair, Audit(world.database, world.cluster, book, planner, losses),
        Drains(world.database, world.cluster, repair), guard,
        Collection(world.database, world.cluster, guard),
        Inventories(world.database, world.cluster, queue=queue, book=book, guard=guard, clock=world.clock),
        CatalogComparison(world.database, world.cluster, book, over_ms=15 * 60_000),
        Scrub(world.database, world.cluster, book), copies=copies,
    )  # fmt: skip
    for number, name in enumerate(names, 1):
        await cluster.add_server(name, number)
    return cluster
