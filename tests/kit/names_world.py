"""A name service on any engine, with made-up servers whose receipts it can sign: what tests of names stand on.

`NamesWorld.open(url)` upgrades the catalog and builds the services as the metadata process does, on a clock that a
test moves. No object server exists: `chunk` makes the receipts that one would have given.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from metadata.catalog import schema
from metadata.catalog.database import Database, open_database
from metadata.catalog.packed import unpack
from metadata.catalog.queries import Connection
from metadata.catalog.setup import prepare
from metadata.services.cluster.view import ClusterView, DeviceInfo, ServerInfo
from metadata.services.names.allocate import AllocateService
from metadata.services.names.bucket_names import BucketNames
from metadata.services.names.buckets import BucketService
from metadata.services.names.commit import CommitService
from metadata.services.names.listing import ListingService
from metadata.services.names.lookup import LookupService
from metadata.services.names.replicas import ReplicaOrder
from metadata.services.names.uploads import UploadService
from metadata.services.sites.apply import NameTaker
from metadata.services.upkeep.placements import PlacementIndexer
from tierstore.auth.access import JUDGED, Principal
from tierstore.clock import Clock, HybridClock, ManualClock
from tierstore.names import (
    ChunkId,
    DeviceId,
    ServerId,
    SiteId,
    UploadId,
    allocated_at_ms,
    chunk_id,
    operation_id,
    operation_of,
    upload_id,
)
from tierstore.ticket import Receipt, sign_receipt
from tierstore.transport.metadata_client import UPLOAD_YOUNG_MS
from tierstore.wire.names import (
    CommitChunk,
    CommitItem,
    CommitResult,
    Condition,
    Copy,
    Delete,
    ListItem,
    ListResult,
    LookupItem,
    LookupResult,
    Mutation,
    ObjectMeta,
    Put,
    SetMeta,
)

#: As a gateway asks for an administrator.
ADMIN = Principal("ADMIN", "admin", {"*": "admin"}, seen=JUDGED)
INCARNATION = 7


@dataclass
class NamesWorld:
    """Servers 1..4, each with an hdd device (10, 20, 30, 40) and an ssd device (11, 21, ...)."""

    database: Database
    view: ClusterView
    clock: Any      # a ManualClock unless the caller passed another Clock
    rng: random.Random
    names: BucketNames
    commits: CommitService
    lookups: LookupService
    listings: ListingService
    allocations: AllocateService
    buckets: BucketService
    uploads: UploadService
    indexer: PlacementIndexer
    taker: NameTaker
    sent: set[bytes] = field(default_factory=set)       # uploads that were in an item

    @classmethod
    async def open(
        cls, url: str, *, threads: bool = True, seed: int = 1, clock: Clock | None = None, copies: int = 2,
        site: int = 1,
    ) -> NamesWorld:  # fmt: skip
        database = await open_database(url, threads=threads)
        clock = clock or ManualClock()
        rng = random.Random(seed)
        start = await prepare(database, new_cluster_id="ab" * 16, site=f"site{site}", site_id=site)
        view = _view()
        await database.write(_members)
        names = BucketNames(database)
        order = ReplicaOrder(view, rng)
        versions = HybridClock(clock, SiteId(start.site_id), floor=start.version_floor)
        return cls(
            database, view, clock, rng, names,
            CommitService(database, view, clock, versions, rng=rng, copies_for=lambda *_: copies),
            LookupService(database, names, order, clock),
            ListingService(database, names, order, heats_of=lambda chunks: [1.0] * len(chunks)),
            AllocateService(view, clock, rng),
            BucketService(database, names, clock, sites=lambda: ["site1", "site2"]),
            UploadService(database, clock, view),
            PlacementIndexer(database, clock),
            NameTaker(database, names, clock, versions),
        )  # fmt: skip

    async def close(self) -> None:
        await self.commits.close()
        await self.database.close()

    # -- making things ----------------------------------------------------------------------------------------
    def upload(self) -> UploadId:
        return upload_id(self.clock.now_ms(), self.rng.getrandbits(48))

    def chunk(
        self, size: int = 100, *, upload: UploadId | None = None, index: int = 0, devices: tuple[int, ...] = (10, 20),
        incarnation: int = INCARNATION,
    ) -> CommitChunk:  # fmt: skip
        """A chunk as it is after it was written to these devices."""
        made = chunk_id(upload or self.upload(), index)
        crc = self.rng.getrandbits(32)
        receipts = []
        for device in devices:
            server = device // 10
            receipt = Receipt(
                ServerId(server), DeviceId(device), ChunkId(made), 3, 4096, size, crc, incarnation
            )
            receipts.append(sign_receipt(receipt, key_id=1, key=bytes([server]) * 32))
        return CommitChunk(made, size, crc, receipts)

    def item(self, mutation: Mutation, *, operation: bytes = b"", deadline_ms: int = 0) -> CommitItem:
        """A commit as clients send it: a put of one young upload under that upload's operation, the first time."""
        now_ms = self.clock.now_ms()
        if not operation and isinstance(mutation, Put):
            uploads = {UploadId(chunk.id[:12]) for chunk in mutation.chunks}
            if len(uploads) == 1 and now_ms - allocated_at_ms(upload := uploads.pop()) < UPLOAD_YOUNG_MS:
                operation = operation_of(upload) if upload not in self.sent else b""
                self.sent.add(upload)
        return CommitItem(
            operation or operation_id(now_ms, self.rng.getrandbits(80)), deadline_ms or now_ms + 30_000, mutation
        )

    async def commit(self, *mutations: Mutation, who: Principal = ADMIN) -> list[CommitResult]:
        return await self.commits.commit([(self.item(m), who) for m in mutations])

    async def put(
        self, key: str, *, bucket: str = "bbb", chunks: list[CommitChunk] | None = None, etag: str = "",
        condition: Condition | None = None, meta: ObjectMeta | None = None, size: int = 100, who: Principal = ADMIN,
    ) -> CommitResult:  # fmt: skip
        made = [self.chunk(size)] if chunks is None else chunks
        total = sum(c.chunk_bytes for c in made)
        return (await self.commit(Put(bucket, key, total, etag, made, meta, condition), who=who))[0]

    async def delete(
        self, key: str, *, bucket: str = "bbb", version: int = 0, condition: Condition | None = None
    ) -> CommitResult:
        return (await self.commit(Delete(bucket, key, version, condition)))[0]

    async def copy(self, source: str, target: str, *, rename: bool = False, bucket: str = "bbb", to: str = "",
                   version: int = 0) -> CommitResult:  # fmt: skip
        made = Copy(to or bucket, target, bucket, source, from_version=version, rename=rename)
        return (await self.commit(made))[0]

    async def set_meta(self, key: str, meta: ObjectMeta, *, version: int = 0) -> CommitResult:
        return (await self.commit(SetMeta("bbb", key, meta, version)))[0]

    async def look(self, key: str, *, bucket: str = "bbb", version: int = 0, first: int = 0, length: int = -1,
                   who: Principal = ADMIN) -> LookupResult:  # fmt: skip
        item = LookupItem(bucket, key, "", version, first, length)
        result = self.lookups.lookup_now(item, who)
        return result if result is not None else await self.lookups.lookup(item, who)

    async def page(self, *, bucket: str = "bbb", prefix: str = "", delimiter: str = "", start_after: str = "",
                   limit: int = 1000) -> ListResult:  # fmt: skip
        return await self.listings.page(ListItem(bucket, prefix, delimiter, start_after, limit), ADMIN)

    # -- looking under the surface ----------------------------------------------------------------------------
    async def rows(self, table: sa.Table) -> list[sa.Row[tuple[object, ...]]]:
        return await self.database.read(lambda c: list(c.execute(sa.select(table))))

    async def garbage(self) -> list[bytes]:
        """The ids of the chunks in the garbage, sorted."""
        return sorted(chunk.id for row in await self.rows(schema.garbage) for chunk in unpack(row.body))

    async def refcounts(self) -> dict[bytes, int]:
        return {bytes(row.id): row.refcount for row in await self.rows(schema.chunks)}

    async def placed(self) -> set[tuple[int, bytes, str | None]]:
        """(device, chunk, key of its owner) of the reverse table."""
        return {(row.device_id, bytes(row.chunk_id), row.key) for row in await self.rows(schema.placements)}


def _view() -> ClusterView:
    view = ClusterView(cluster_id="ab" * 16)
    for server in (1, 2, 3, 4):
        view.servers[server] = ServerInfo(
            server, f"s{server}", "objectd", f"http://127.0.0.1:{7000 + server}", incarnation=INCARNATION
        )
        view.ticket_keys[server] = {1: bytes([server]) * 32}
        for device, tier in ((server * 10, "hdd"), (server * 10 + 1, "ssd")):
            view.devices[device] = DeviceInfo(device, bytes([device]) * 16, server, tier, capacity_bytes=1 << 40)
    return view


def _members(connection: Connection) -> None:
    if connection.execute(sa.select(schema.servers.c.id).limit(1)).first() is not None:
        return
    view = _view()
    for server in view.servers.values():
        connection.execute(
            sa.insert(schema.servers).values(
                id=server.id, name=server.name, role="objectd", url=server.url, instance=bytes([server.id]) * 16,
                incarnation=INCARNATION,
            )
        )  # fmt: skip
    for device in view.devices.values():
        connection.execute(
            sa.insert(schema.devices).values(
                id=device.id, uuid=device.uuid, server_id=device.server, tier=device.tier, capacity_bytes=1 << 40
            )
        )
