"""A small cluster in one process for tests of the SDK and the gateway: metadata as a dict, object servers in memory.

It speaks the real routes over the in-process network, so the walks under test run whole. Faults are attributes of the
object servers. Tickets are opaque here (server, chunk or upload); the real ones have tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response

from tierstore import wire
from tierstore.auth.access import token_hash
from tierstore.checksum import BLOCK_BYTES, combine_sums, sums_of, unpack_sums
from tierstore.clock import SystemClock
from tierstore.errors import CapacityError, NotFound, TierstoreError
from tierstore.names import UploadId, chunk_id, upload_id
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.store import Store
from tierstore.serving import problem_handlers
from tierstore.serving.exchange import Exchange
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.table import Route
from tierstore.transport.inprocess import Network
from tierstore.transport.metadata_calls import MetadataLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.wire import names
from tierstore.wire.cluster import BadChunk, ClusterMap, Credential, HeartbeatAnswer, Registered, ServerView, SiteView

METADATA_URL = "http://metadata:1"
TOKEN = "tst.root.secretsecretsecret"
READER_TOKEN = "tst.reader.secretsecretsecret"
CREDENTIALS = {
    token_hash(TOKEN): Credential("root", "root", {"*": "admin"}),
    token_hash(READER_TOKEN): Credential("reader", "reader", {"*": "readonly"}),
}


@dataclass
class FakeObjectServer:
    """Chunks in a dict. before_read/before_write: awaited at the start of a request; may raise or wait."""

    id: int
    tier: str
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, str] = field(default_factory=dict)
    before_read: Callable[[], Any] | None = None
    before_write: Callable[[], Any] | None = None
    flip: bool = False              # answers have one bit wrong
    cut_after: int = -1             # bytes of data after which an answer breaks off
    reads: int = 0
    writes: int = 0
    tickets: list[bytes] = field(default_factory=list)      # that reads showed

    @property
    def url(self) -> str:
        return f"http://objectd{self.id}:1"

    def routes(self) -> list[Route]:
        return [Route(b"GET", b"/v1/chunks/", self._get), Route(b"PUT", b"/v1/chunks/", self._put)]

    def _get(self, exchange: Exchange) -> None:
        exchange.spawn(self._read(exchange))

    async def _read(self, exchange: Exchange) -> None:
        self.reads += 1
        self.tickets.append(exchange.route_arg)
        if self.before_read is not None:
            await self.before_read()
        data = self.chunks.get(bytes.fromhex(exchange.route_arg.decode()))
        if data is None:
            raise NotFound("no such chunk here", code="no-such-chunk")
        sums = sums_of(data)
        first, last = 0, len(sums) // 4 - 1
        asked = exchange.query(b"blocks")
        if asked is not None:
            first, last = map(int, asked.split(b"-"))
        body = data[first * BLOCK_BYTES : (last + 1) * BLOCK_BYTES]
        if self.flip:
            body = body[:-1] + bytes([body[-1] ^ 1])
        lines = b"x-tierstore-sums: %d\r\nx-tierstore-tier: %b\r\n" % (len(sums), self.tier.encode())
        exchange.begin(200, lines, len(sums) + len(body))
        await exchange.send(sums)
        if self.cut_after >= 0:
            await exchange.send(body[: self.cut_after])
            exchange.abort()
            return
        await exchange.send(body)
        exchange.end()

    def _put(self, exchange: Exchange) -> None:
        exchange.collect(80 << 20, lambda body: exchange.spawn(self._write(exchange, body)))

    async def _write(self, exchange: Exchange, body: bytes) -> None:
        self.writes += 1
        if self.before_write is not None:
            await self.before_write()
        upload = UploadId(bytes.fromhex(exchange.route_arg.decode()))
        index = int(exchange.query(b"index") or b"0")
        count = (len(body) + BLOCK_BYTES + 3) // (BLOCK_BYTES + 4)
        data, sums = body[: len(body) - 4 * count], body[len(body) - 4 * count :]
        assert sums_of(data) == sums
        chunk = chunk_id(upload, index)
        assert self.chunks.get(chunk, data) == data, "a chunk id is write-once"
        self.chunks[chunk] = data
        self.names[chunk] = (exchange.query(b"name") or b"").decode()
        assert len(unpack_sums(sums)) == count
        receipt = json.dumps([self.id, chunk.hex(), len(data), combine_sums(sums, len(data))])
        exchange.reply(200, receipt.encode())


@dataclass
class _Version:
    version: int
    size: int
    etag: str
    chunks: list[names.CommitChunk]
    meta: names.ObjectMeta | None
    at_ms: int


class FakeMetadata:
    """Names in a dict; answers as the contract says, with `copies` checked at commit."""

    def __init__(self, servers: list[FakeObjectServer], *, copies: int, chunk_bytes: int, rng: random.Random) -> None:
        self.servers = servers
        self.copies = copies
        self.chunk_bytes = chunk_bytes
        self.rng = rng
        self.clock = SystemClock()
        self.objects: dict[str, dict[str, _Version]] = {"bkt": {}}
        self.old: dict[tuple[str, str, int], _Version] = {}
        self.operations: dict[bytes, names.CommitResult] = {}
        self.bad: list[BadChunk] = []
        self.batches: list[tuple[str, int]] = []
        self.renewed: list[bytes] = []
        self.pinned: list[bytes] = []
        self.down: set[int] = set()
        self.revision = 1
        self.auth_revision = 1
        self.credentials = dict(CREDENTIALS)
        self.credential_lookups = 0
        self.lose_answers = 0           # commits that are applied and then answered 503
        self.refuse_receipts_of: set[int] = set()
        self.read_soon: list[str] = []      # buckets whose new objects get a copy on server 1, the fast one
        self.window = names.LOOKUP_CHUNKS_MAX
        self._last_version = 1
        self.app = self._application()

    # -- http -----------------------------------------------------------------------------------------------
    def routes(self) -> list[Route]:
        table = {
            b"lookup": (names.LookupBatch, self._lookups), b"allocate": (names.AllocateBatch, self._allocates),
            b"commit": (names.CommitBatch, self._commits), b"list": (names.ListItem, self._list),
            b"renew": (names.Renew, self._renew), b"bad-chunks": (list[BadChunk], self._bad_chunks),
        }
        return [
            Route(b"POST", b"/v1/internal/" + name, self._handler(kind, act)) for name, (kind, act) in table.items()
        ]

    def _handler(self, kind: Any, act: Callable[[Any], object]) -> Callable[[Exchange], None]:
        def handle(exchange: Exchange) -> None:
            def then(body: bytes) -> None:
                exchange.reply(200, wire.encode(act(wire.decode(body, kind))))

            exchange.collect(16 << 20, then)

        return handle

    def _application(self) -> FastAPI:
        app = FastAPI()
        problem_handlers.install(app)

        @app.get("/v1/cluster")
        async def cluster() -> Response:
            return Response(wire.encode(self.map()), media_type=wire.MEDIA_TYPE)

        @app.post("/v1/internal/credential")
        async def credential(request: Request) -> Response:
            self.credential_lookups += 1
            digest = wire.decode(await request.body(), dict[str, bytes])["token_sha256"]
            found = self.credentials.get(digest)
            if found is None:
                raise NotFound("no such key", code="no-such-key")
            return Response(wire.encode(found))

        @app.post("/v1/internal/register")
        async def register(request: Request) -> Response:
            return Response(wire.encode(Registered("cluster", 99, "tsd.99.secret", "site1", 1, self.clock.now_ms())))

        @app.post("/v1/internal/heartbeat")
        async def heartbeat(request: Request) -> Response:
            return Response(wire.encode(HeartbeatAnswer(self.clock.now_ms(), 1, self.revision, policy_revision=0)))

        return app

    def map(self) -> ClusterMap:
        servers = [
            ServerView(s.id, f"objectd{s.id}", "objectd", s.url, "site1", "dead" if s.id in self.down else "up")
            for s in self.servers
        ]
        return ClusterMap(
            "cluster", self.revision, "site1", servers, [SiteView(1, "site1", ["http://gateway:1"])],
            chunk_bytes=self.chunk_bytes, auth_revision=self.auth_revision, copies=self.copies,
            read_soon=self.read_soon,
        )  # fmt: skip

    # -- messages -------------------------------------------------------------------------------------------
    def _lookups(self, batch: names.LookupBatch) -> names.LookupReply:
        self.batches.append(("lookup", len(batch.items)))
        return names.LookupReply([self._lookup(i) for i in batch.items], self.revision, self.auth_revision, 0)

    def _lookup(self, item: names.LookupItem) -> names.LookupResult:
        bucket = self.objects.get(item.bucket)
        if bucket is None:
            return names.LookupResult("no-such-bucket", "no such bucket")
        found = bucket.get(item.key)
        if item.version and (found is None or found.version != item.version):
            found = self.old.get((item.bucket, item.key, item.version))
        if found is None:
            return names.LookupResult("no-such-key", "no such key")
        views, start, more = [], 0, False
        end = found.size if item.length < 0 else min(found.size, item.first + item.length)
        for chunk in found.chunks if item.want_chunks else ():
            if start < end and start + chunk.chunk_bytes > item.first:
                if len(views) == self.window:
                    more = True
                    break
                views.append(names.ChunkView(
                    chunk.id, start, 0, chunk.chunk_bytes, chunk.chunk_bytes, chunk.crc32c, self._replicas(chunk)
                ))
            start += chunk.chunk_bytes
        return names.LookupResult(
            version=found.version, size=found.size, etag=found.etag, created_at_ms=found.at_ms, meta=found.meta,
            chunks=views, more=more,
        )  # fmt: skip

    def _replicas(self, chunk: names.CommitChunk) -> list[names.ReplicaView]:
        holders = [json.loads(receipt)[0] for receipt in chunk.receipts]
        by_id = {server.id: server for server in self.servers}
        return [names.ReplicaView(h, h * 10, by_id[h].tier, 0, chunk.id.hex().encode()) for h in sorted(holders)]

    def _allocates(self, batch: names.AllocateBatch) -> names.AllocateReply:
        self.batches.append(("allocate", len(batch.items)))
        results = [self._allocate(item) for item in batch.items]
        return names.AllocateReply(results, self.clock.now_ms(), self.revision, self.auth_revision, 0)

    def _allocate(self, item: names.AllocateItem) -> names.AllocateResult:
        if not 1 <= item.count <= names.ALLOCATIONS_PER_ITEM_MAX:
            return names.AllocateResult("bad-allocation", f"count is {item.count}")
        able = [s for s in self.servers if s.id not in self.down and s.id not in item.exclude_servers]
        if len(able) < item.copies:
            return names.AllocateResult("not-enough-servers", f"{len(able)} servers, {item.copies} needed")
        out = []
        fast = self.servers[0] if item.extra_tiers else None
        able = [s for s in able if s is not fast]        # home copies are slow ones then
        for number in range(item.count):
            now = self.clock.now_ms()
            upload = item.upload or upload_id(now, self.rng.getrandbits(48))
            chosen = self.rng.sample(able, len(able))
            targets = [names.Target(s.id, s.id * 10, s.tier, upload.hex().encode()) for s in chosen]
            index = item.first_index + number if item.upload else 0
            extras = [names.Target(fast.id, fast.id * 10, fast.tier, upload.hex().encode())] if fast else []
            out.append(
                names.Allocation(
                    upload, index, targets[: item.copies], targets[item.copies :][:1], now + 300_000, extras
                )
            )
        return names.AllocateResult(allocations=out)

    def _commits(self, batch: names.CommitBatch) -> names.CommitReply:
        self.batches.append(("commit", len(batch.items)))
        results = []
        for item in batch.items:
            done = self.operations.get(item.operation)
            if done is None:
                done = self._commit(item.mutation)
                if not done.code:
                    self.operations[item.operation] = done
            results.append(done)
        if self.lose_answers:
            self.lose_answers -= 1
            raise TierstoreErrorUnavailable()
        return names.CommitReply(results, self.revision, self.auth_revision, 0)

    def _commit(self, mutation: names.Mutation) -> names.CommitResult:
        bucket = self.objects.get(mutation.bucket)
        if bucket is None:
            return names.CommitResult("no-such-bucket", "no such bucket")
        here = bucket.get(mutation.key)
        if (why := _refused(here, mutation.condition)) is not None:
            return names.CommitResult(*why)
        if isinstance(mutation, names.Delete):
            if here is not None:
                self._retire(mutation.bucket, mutation.key)
            return names.CommitResult(existed=here is not None)
        if isinstance(mutation, names.Put):
            return self._put(mutation)
        if isinstance(mutation, names.Copy):
            source = self.objects.get(mutation.from_bucket, {}).get(mutation.from_key)
            if source is None:
                return names.CommitResult("no-such-key", "no such key")
            meta = source.meta if mutation.meta is None else mutation.meta
            made = self._store(mutation.bucket, mutation.key, source.size, source.etag, source.chunks, meta)
            if mutation.rename:
                self._retire(mutation.from_bucket, mutation.from_key)
            return made
        if here is None:
            return names.CommitResult("no-such-key", "no such key")
        here.meta = mutation.meta
        return names.CommitResult(version=here.version, etag=here.etag, size=here.size)

    def _put(self, put: names.Put) -> names.CommitResult:
        for chunk in put.chunks:
            holders = {json.loads(receipt)[0] for receipt in chunk.receipts}
            if holders & self.refuse_receipts_of:
                return names.CommitResult("device-refused", "the device was drained")
            if len(holders) < self.copies:
                return names.CommitResult("not-enough-servers", "too few receipts")
        assert sum(chunk.chunk_bytes for chunk in put.chunks) == put.size
        return self._store(put.bucket, put.key, put.size, put.etag, put.chunks, put.meta)

    def _store(self, bucket: str, key: str, size: int, etag: str, chunks: Any, meta: Any) -> names.CommitResult:
        self._retire(bucket, key)
        self._last_version += 1
        now = self.clock.now_ms()
        self.objects[bucket][key] = _Version(self._last_version, size, etag, list(chunks), meta, now)
        return names.CommitResult(version=self._last_version, etag=etag, created_at_ms=now, size=size)

    def _retire(self, bucket: str, key: str) -> None:
        before = self.objects[bucket].pop(key, None)
        if before is not None:
            self.old[bucket, key, before.version] = before

    def _list(self, item: names.ListItem) -> names.ListResult:
        bucket = self.objects.get(item.bucket)
        if bucket is None:
            return names.ListResult("no-such-bucket", "no such bucket")
        objects: list[names.ListEntry] = []
        prefixes: list[str] = []
        last = ""
        for key in sorted(bucket, key=str.encode):
            if not key.startswith(item.prefix):
                continue
            at = key.find(item.delimiter, len(item.prefix)) if item.delimiter else -1
            name = key if at < 0 else key[: at + len(item.delimiter)]
            if name.encode() <= item.start_after.encode() or (at >= 0 and name in prefixes):
                continue
            if len(objects) + len(prefixes) == item.limit:
                return names.ListResult(objects=objects, prefixes=prefixes, next_start_after=last)
            if at >= 0:
                prefixes.append(name)
            else:
                v = bucket[key]
                objects.append(names.ListEntry(key, v.size, v.etag, v.version, v.at_ms, "hdd", 0.0))
            last = name
        return names.ListResult(objects=objects, prefixes=prefixes)

    def _renew(self, renew: names.Renew) -> names.Renewed:
        self.renewed += renew.uploads
        self.pinned += renew.pins
        return names.Renewed([ticket.upper() for ticket in renew.tickets])      # so that they can be told apart

    def _bad_chunks(self, bad: list[BadChunk]) -> dict[str, object]:
        self.bad += bad
        return {}


class TierstoreErrorUnavailable(TierstoreError):
    """The answer is lost on its way: the client sees 503."""

    code = "unavailable"
    status = 503


def _refused(here: _Version | None, condition: names.Condition | None) -> tuple[str, str] | None:
    if condition is None:
        return None
    if condition.if_match and (here is None or not ("*" in condition.if_match or here.etag in condition.if_match)):
        return "precondition-failed", "If-Match does not hold"
    none = condition.if_none_match
    if none and here is not None and ("*" in none or here.etag in none):
        return "precondition-failed", "If-None-Match does not hold"
    return None


class FakeCluster:
    """All of it on one in-process network."""

    def __init__(self, *, servers: int = 3, copies: int = 2, chunk_bytes: int = 1 << 20, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        self.network = Network(self.rng)
        self.servers = [FakeObjectServer(n, "ssd" if n == 1 else "hdd") for n in range(1, servers + 1)]
        self.metadata = FakeMetadata(self.servers, copies=copies, chunk_bytes=chunk_bytes, rng=self.rng)
        self.serving: list[InProcessServer] = []
        self._register(METADATA_URL, InProcessServer(self.metadata.routes(), self.metadata.app))
        for server in self.servers:
            self._register(server.url, InProcessServer(server.routes()))
        self.transport = self.network.transport("client")
        self.clock = SystemClock()

    def _register(self, url: str, server: InProcessServer) -> None:
        self.serving.append(server)
        self.network.register(url, server)

    def client(self, **limits: Any) -> MetadataClient:
        return MetadataClient(
            self.transport, [METADATA_URL], token=TOKEN, clock=self.clock, rng=self.rng,
            limits=MetadataLimits(**{"hold_seconds": 2.0, **limits}),
        )  # fmt: skip

    def store(self, **limits: Any) -> Store:
        return Store(
            self.client(), ObjectClient(self.transport, self.clock), clock=self.clock, limits=StoreLimits(**limits)
        )

    def remove(self, server: FakeObjectServer) -> None:
        """The process of an object server is gone: connections are refused."""
        self.network.remove(server.url)

    async def close(self) -> None:
        await self.network.close()
        for server in self.serving:
            await server.close()


async def full() -> None:
    """For before_write: the device has no space."""
    raise CapacityError("no space left", code="device-full")


async def hang() -> None:
    """For before_read and before_write: never an answer."""
    await asyncio.get_running_loop().create_future()


def run(work: Callable[[FakeCluster, Store], Awaitable[None]], *, servers: int = 3, **limits: object) -> None:
    """Do some work on a store of a new cluster, to the end of both."""

    async def main() -> None:
        cluster = FakeCluster(servers=servers)
        store = cluster.store(**limits)
        async with asyncio.timeout(180):
            await store.open()
            try:
                await work(cluster, store)
            finally:
                await store.close()
                await cluster.close()

    asyncio.run(main())
