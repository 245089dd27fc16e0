"""A world for tests of object servers: virtual time, an in-process network, a metadata service that is a script.

The object servers are the real ones, on in-memory devices; the script answers what a test tells it to and remembers
what it was told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from objectd.agent_state import AgentState
from objectd.app import ObjectServer
from objectd.config import Chunks, ObjectdConfig, Upkeep
from objectd.store.device import Device
from tests.kit import virtual_time
from tests.kit.devices import MemoryDevice
from tierstore.checksum import crc_of, sums_of
from tierstore.clock import Clock, LoopClock
from tierstore.config.sections import Auth, Background, Membership
from tierstore.errors import NotAuthenticated, TierstoreError
from tierstore.names import ChunkId, DeviceId, ServerId, Tier, UploadId, chunk_id
from tierstore.serving.exchange import Exchange
from tierstore.serving.inprocess import InProcessServer
from tierstore.serving.table import Route
from tierstore.ticket import ReadTicket, Receipt, WriteTicket, mint_read, mint_write, open_receipt
from tierstore.transport.inprocess import Network
from tierstore.transport.object_client import ObjectClient
from tierstore.wire import decode, encode
from tierstore.wire.cluster import (
    BadChunk,
    CopySource,
    DeviceGrant,
    Heartbeat,
    HeartbeatAnswer,
    Inventory,
    InventoryAnswer,
    Job,
    JobReport,
    Register,
    Registered,
    TicketKey,
)

METADATA = "http://metadata:7400"
JOIN_TOKEN = "join-me"
CLUSTER = "cluster-1"
SECONDS = 10.0


class Metadata:
    """Registers whoever shows the join token or his secret; gives out the jobs a test put in."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sequence = 100
        self.registrations: list[Register] = []
        self.heartbeats: list[Heartbeat] = []
        self.reports: dict[int, JobReport] = {}
        self.progress: list[JobReport] = []
        self.bad: list[BadChunk] = []
        self.pages: list[Inventory] = []
        self.heat: dict[bytes, float] = {}
        self.orphans: set[bytes] = set()
        self.jobs: dict[int, list[Job]] = {}
        self.cancelled: dict[int, list[int]] = {}
        self.answer_fields: dict[str, Any] = {}
        self.reregister: set[int] = set()
        self.acknowledges_heat = True
        self.error: TierstoreError | None = None        # every answer, while it is set
        self.keys: dict[int, list[TicketKey]] = {}
        self.names: dict[str, int] = {}
        self.devices: dict[bytes, int] = {}
        self._seen_heat: set[tuple[int, int]] = set()
        routes = [
            Route(b"POST", b"/v1/internal/register", self._hot(self._register)),
            Route(b"POST", b"/v1/internal/heartbeat", self._hot(self._heartbeat)),
            Route(b"POST", b"/v1/internal/inventory", self._hot(self._inventory)),
        ]
        self.server = InProcessServer(routes)

    def _hot(self, work: Callable[[Exchange, bytes], object]) -> Callable[[Exchange], None]:
        def handler(exchange: Exchange) -> None:
            def with_body(body: bytes) -> None:
                if self.error is not None:
                    raise self.error
                exchange.reply(200, encode(work(exchange, body)))

            exchange.collect(1 << 24, with_body)

        return handler

    def _register(self, exchange: Exchange, body: bytes) -> Registered:
        message = decode(body, Register)
        known = self.names.get(message.name)
        secret = exchange.header(b"authorization")
        if secret != f"Bearer tsd.{known}.s".encode() and message.join_token != JOIN_TOKEN:
            raise NotAuthenticated("who are you?")
        self.registrations.append(message)
        server = self.names.setdefault(message.name, len(self.names) + 1)
        self.keys.setdefault(server, [TicketKey(1, bytes([server]) * 32)])
        grants = []
        for device in message.devices:
            number = self.devices.setdefault(device.uuid, len(self.devices) + 1)
            grants.append(DeviceGrant(device.uuid, number))
        self.reregister.discard(server)
        return Registered(
            cluster_id=CLUSTER, server=server, secret=f"tsd.{server}.s", site="site1", site_id=1,
            now_ms=self.clock.now_ms(), devices=grants, ticket_keys=self.keys[server],
        )  # fmt: skip

    def _heartbeat(self, exchange: Exchange, body: bytes) -> HeartbeatAnswer:
        message = decode(body, Heartbeat)
        self.heartbeats.append(message)
        if message.server in self.reregister:
            return HeartbeatAnswer(now_ms=0, sequence=0, map_revision=0, reregister=True)
        self.bad += message.bad_chunks
        for report in message.reports:
            if report.done:
                self.reports[report.id] = report
            else:
                self.progress.append(report)
        if message.heat_sequence and (message.server, message.heat_sequence) not in self._seen_heat:
            self._seen_heat.add((message.server, message.heat_sequence))
            from objectd.heat import unpack_entries

            for chunk, reads in unpack_entries(message.heat):
                self.heat[chunk] = self.heat.get(chunk, 0.0) + reads
        return HeartbeatAnswer(
            now_ms=self.clock.now_ms(), sequence=self.sequence, map_revision=1,
            heat_acknowledged=message.heat_sequence if self.acknowledges_heat else 0,
            jobs=self.jobs.pop(message.server, []), cancelled=self.cancelled.pop(message.server, []),
            ticket_keys=self.keys[message.server], **self.answer_fields,
        )  # fmt: skip

    def _inventory(self, exchange: Exchange, body: bytes) -> InventoryAnswer:
        page = decode(body, Inventory)
        self.pages.append(page)
        ids = [page.ids[at : at + 16] for at in range(0, len(page.ids), 16)]
        return InventoryAnswer(orphans=[id for id in ids if id in self.orphans])


@dataclass
class World:
    """Servers "one", "two", ... each with the devices a test gives it."""

    loop: asyncio.AbstractEventLoop
    clock: LoopClock = field(default_factory=LoopClock)
    random: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self.network = Network(self.random)
        self.metadata = Metadata(self.clock)
        self.network.register(METADATA, self.metadata.server)
        self.client = ObjectClient(self.network.transport("client"), self.clock)
        self.servers: dict[str, ObjectServer] = {}
        self._inside: dict[str, InProcessServer] = {}
        self._next_job = 1

    async def start(
        self, name: str, *devices: Device, chunks: Chunks | None = None, state: AgentState | None = None,
        wait: bool = True, scrub: bool = False,
    ) -> ObjectServer:  # fmt: skip
        """Start a server and wait until it has registered (wait False: not)."""
        url = f"http://{name}:7411"

        async def open_devices(config: ObjectdConfig, clock: Clock) -> list[Device]:
            return list(devices)

        server = ObjectServer(
            ObjectdConfig(
                membership=Membership(metadata=(METADATA,), name=name), auth=Auth(join_token=JOIN_TOKEN),
                chunks=chunks or Chunks(), upkeep=Upkeep(scrub=scrub, scrub_after=0.0),
                background=Background(scrub_rate=1 << 20),
            ),
            clock=self.clock, transport=self.network.transport(url), open_devices=open_devices,
            state=state or AgentState(name=name, instance=name.encode().ljust(16, b"-"), incarnation=1),
            state_file=None, run_blocking=None, rng=random.Random(1), advertise=url,
        )  # fmt: skip
        inside = InProcessServer(server.routes, server.app)
        self.network.register(url, inside)
        await server.start()
        self.servers[name], self._inside[name] = server, inside
        if wait:
            await self.until(lambda: server.agent.heartbeats_total > 0)
        return server

    def device(self, number: int, *, tier: Tier = "ssd", **options: Any) -> MemoryDevice:
        return MemoryDevice(tier=tier, clock=self.clock, uuid=bytes([number]) * 16, path=f"memory-{number}", **options)

    async def stop(self) -> None:
        for name, server in self.servers.items():
            await self._inside[name].close()
            await server.stop()
        await self.network.close()

    async def until(self, fact: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait, in virtual time, for a fact."""
        async with asyncio.timeout(seconds):
            while not fact():
                await asyncio.sleep(0.05)

    # -- chunks -----------------------------------------------------------------------------------------------
    def write_ticket(self, server: ObjectServer, device: int, upload: UploadId, **changed: Any) -> bytes:
        fields: dict[str, Any] = {
            "server": changed.pop("to", server.standing.server), "device": DeviceId(device), "upload": upload,
            "first_index": 0, "index_count": 8, "chunk_bytes_max": 64 << 20,
            "expires_at": self.clock.now_ms() // 1000 + 300,
        } | changed  # fmt: skip
        return mint_write(WriteTicket(**fields), key_id=1, key=self.key_of(server))

    def read_ticket(self, server: ObjectServer, device: int, chunk: ChunkId, size: int, **changed: Any) -> bytes:
        fields: dict[str, Any] = {
            "server": changed.pop("to", server.standing.server), "device": DeviceId(device), "chunk": chunk,
            "segment": 0, "offset": 0, "chunk_bytes": size, "expires_at": self.clock.now_ms() // 1000 + 300,
        } | changed  # fmt: skip
        return mint_read(ReadTicket(**fields), key_id=1, key=self.key_of(server))

    def key_of(self, server: ObjectServer) -> bytes:
        return self.metadata.keys[server.standing.server][-1].key

    def url(self, server: ObjectServer) -> str:
        return server.agent.advertise

    def upload(self) -> UploadId:
        return UploadId(self.clock.now_ms().to_bytes(6, "big") + self.random.randbytes(6))

    async def put(self, server: ObjectServer, device: int, data: bytes, *, upload: UploadId | None = None) -> ChunkId:
        """Store a chunk over the route; its receipt is checked."""
        upload = upload or self.upload()
        ticket = self.write_ticket(server, device, upload)
        text = await self.client.put_chunk(
            self.url(server), ticket, index=0, name="b/k", data=data, sums=sums_of(data), seconds=SECONDS
        )
        receipt = self.receipt(server, text)
        chunk = chunk_id(upload, 0)
        assert (receipt.chunk, receipt.device, receipt.chunk_bytes) == (chunk, device, len(data))
        assert receipt.crc32c == crc_of(data) and receipt.incarnation == server.standing.incarnation
        return chunk

    async def get(self, server: ObjectServer, device: int, chunk: ChunkId, data: bytes, **range_: int) -> bytes:
        """Read it back over the route, verified against `data`'s CRC."""
        return bytes(
            await self.client.read_chunk(
                self.url(server), self.read_ticket(server, device, chunk, len(data)), chunk=chunk,
                chunk_bytes=len(data), crc32c=crc_of(data), seconds=SECONDS, **range_,
            )
        )  # fmt: skip

    def receipt(self, server: ObjectServer, text: bytes) -> Receipt:
        return open_receipt(text, {1: self.key_of(server)})

    # -- jobs -------------------------------------------------------------------------------------------------
    def job(self, server: ObjectServer, kind: str, device: int, **fields: Any) -> int:
        """Lease a job to a server with its next heartbeat; its id."""
        number = fields.pop("id", self._next_job)
        self._next_job = max(self._next_job, number) + 1
        fields.setdefault("lease_ms", self.clock.now_ms() + 60_000)
        job = Job(id=number, token=fields.pop("token", 1), kind=kind, device=device, **fields)
        self.metadata.jobs.setdefault(ServerId(server.standing.server), []).append(job)
        return number

    async def done(self, job: int) -> JobReport:
        await self.until(lambda: job in self.metadata.reports)
        return self.metadata.reports[job]

    def source(self, server: ObjectServer, device: int, chunk: ChunkId, size: int) -> CopySource:
        ticket = self.read_ticket(server, device, chunk, size, flags=1)
        return CopySource(self.url(server), server.standing.server, device, ticket)


def play(test: Callable[[World], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    """Run a test in a world of its own, in virtual time."""

    async def main(loop: virtual_time.VirtualLoop) -> None:
        world = World(loop)
        try:
            await test(world)
        finally:
            await world.stop()

    virtual_time.run(seed, main)
