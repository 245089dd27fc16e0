"""A whole cluster in one process and in virtual time: real metadata, real object servers, real clients.

Owns the processes and their lives: a process is started, killed (all its tasks end at once, what was not synced is lost
by the seed's dice) and started again on what it had made durable. The network is the in-process one with faults, the
devices are in memory, the catalog is SQLite in memory, run in-line. Nothing here uses threads, sockets, files or a
clock but the loop's, so that the same seed gives the same run: `trace` is a hash over every message.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

import msgspec

from metadata import config as metadata_config
from metadata.app import MetadataServer
from metadata.catalog.database import open_database
from metadata.catalog.sqlite import SqliteDatabase
from metadata.surroundings import Surroundings
from objectd.agent_state import AgentState
from objectd.app import ObjectServer
from objectd.config import Chunks, ObjectdConfig, Upkeep
from objectd.store.device import Device
from tests.kit.devices import LIVE, MemoryDevice, Stored
from tests.kit.virtual_time import VirtualLoop
from tierstore.clock import Clock, LoopClock
from tierstore.config.sections import Auth, Background, Membership, Timers
from tierstore.errors import UnavailableError
from tierstore.names import ChunkId, Tier
from tierstore.sdk.buckets import Buckets
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.store import Store
from tierstore.serving.inprocess import InProcessCall, InProcessServer
from tierstore.transport.inprocess import Network, PeerCall
from tierstore.transport.metadata_calls import MetadataLimits
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient

T = TypeVar("T")
METADATA_URL = "http://metadata:7400"
JOIN_TOKEN = "join-me"
ROOT_TOKEN = "tst.root.0123456789abcdef0123456789abcdef"
CHUNK_BYTES = 64 * 1024
SEGMENT_CHUNK_BYTES_MAX = 16 * 1024
#: Rounds in which a killed process' tasks must have ended; one that swallows its cancellation needs a second.
KILL_ROUNDS_MAX = 200

_LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


class Life:
    """One life of a process: knows every task that was started in it, and ends them all at once."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.is_over = False
        self.tasks: dict[int, asyncio.Task[Any]] = {}
        self._loop = loop
        self._context: Context = copy_context()
        self._context.run(_LIFE.set, self)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something so that the tasks it starts are of this life."""
        return self._context.copy().run(function, *arguments)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        return await self.call(self._loop.create_task, work)  # type: ignore[arg-type]

    async def end(self) -> None:
        """The process is killed."""
        self.is_over = True
        for _ in range(KILL_ROUNDS_MAX):
            left = [task for task in self.tasks.values() if not task.done()]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"tasks of {self.name} outlive their process: {left}")


def watch_lives(loop: VirtualLoop) -> None:
    """Let every task of this loop be known to the life in which it was started."""

    def note(task: asyncio.Task[Any]) -> None:
        life = _LIFE.get()
        if life is not None:
            key = hash(task)
            life.tasks[key] = task
            task.add_done_callback(lambda _: life.tasks.pop(key, None))

    loop.on_task = note


class Trace:
    """What happened, as a hash; the last lines are kept for people, all of them when `keep_all`."""

    def __init__(self, loop: VirtualLoop, *, keep_all: bool = False) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=16)
        self._keep_all = keep_all
        self.lines: list[str] = []
        self.count = 0

    def note(self, *what: object) -> None:
        line = f"{self._loop.time():.6f} " + " ".join(map(str, what))
        self._hash.update(line.encode())
        self.count += 1
        if self._keep_all:
            self.lines.append(line)

    def say(self, *what: object) -> None:
        """Something worth reading: a fault, an operation, a verdict."""
        self.note(*what)
        if not self._keep_all:
            self.lines.append(f"{self._loop.time():.3f} " + " ".join(map(str, what)))

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class _Door:
    """A process as the network sees it: requests start in the server's life, not in the caller's."""

    def __init__(self, inner: InProcessServer, life: Life, trace: Trace, name: str) -> None:
        self._inner = inner
        self._life = life
        self._trace = trace
        self._name = name

    def begin(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], *, length: int | None, peer: str
    ) -> PeerCall:
        self._trace.note(peer, "->", self._name, method.decode(), target[:80].decode("latin-1"), length)
        if self._life.is_over:      # a copy of a message that came late
            call = InProcessCall()
            call.cut()
            return call
        return self._life.call(
            lambda: self._inner.begin(method, target, headers, length=length, peer=peer)
        )


class SimClock(LoopClock):
    """Wall time that somebody can set while processes run; time that passes is the loop's."""

    def jump(self, ms: int) -> None:
        self._epoch_ms += ms


class SimDevice(MemoryDevice):
    """A device whose syncs take a time from the seed; it can hang, be full, become read-only and rot, and it tells of
    each deletion."""

    def __init__(self, rng: random.Random, *, clock: Clock, number: int, tier: Tier, capacity_bytes: int) -> None:
        super().__init__(
            tier=tier, clock=clock, uuid=bytes([number]) * 16, path=f"memory-{number}", capacity_bytes=capacity_bytes,
            segment_chunk_bytes_max=SEGMENT_CHUNK_BYTES_MAX,
        )  # fmt: skip
        self._rng = rng
        self._whole_capacity = capacity_bytes
        self._awake = asyncio.Event()
        self._awake.set()
        self._is_locked = False
        #: The copies whose bytes rotted: the very ones, for a chunk whose rotten copy went may be stored here anew.
        self._rotten: dict[bytes, Stored] = {}
        self.before_trash: Callable[[SimDevice, bytes], None] = lambda device, chunk: None

    async def _sync(self) -> None:
        await self._clock.sleep(self._rng.uniform(0.0005, 0.02))
        await self._awake.wait()

    async def trash(self, chunk: ChunkId) -> bool:
        if chunk in self.kept and self.kept[chunk].state == LIVE:
            self.before_trash(self, chunk)
        return await super().trash(chunk)

    def hang(self, *, ends: bool = False) -> None:
        if ends:
            self._awake.set()
        else:
            self._awake.clear()

    def lock(self, *, ends: bool = False) -> None:
        """Its file system becomes read-only: what was not synced then fails; it stays so until a check succeeds."""
        self._is_locked = not ends
        if not ends:
            self.state, self.detail = "read-only", "the file system became read-only"
            self._life += 1
            self._unsynced.clear()

    async def check(self) -> None:
        if self._is_locked:
            raise UnavailableError(f"{self.path} is read-only", code="device-failed")
        await super().check()

    def squeeze(self, free_bytes: int | None) -> None:
        """Leave so little room; None: as it was."""
        usage = self.usage()
        used = usage.capacity_bytes - usage.free_bytes
        self._capacity = self._whole_capacity if free_bytes is None else used + free_bytes

    def rot(self, chunk: bytes) -> None:
        self.flip(chunk, self._rng.randrange(len(self.kept[chunk].data)))
        self._rotten[chunk] = self.kept[chunk]

    def is_rotten(self, chunk: bytes) -> bool:
        stored = self.kept.get(chunk)
        return stored is not None and self._rotten.get(chunk) is stored

    def is_good(self, chunk: bytes) -> bool:
        stored = self.kept.get(chunk)
        return stored is not None and stored.state == LIVE and not self.is_rotten(chunk)


class ServerProcess:
    """One object server: its devices and its durable state outlive its lives."""

    def __init__(self, cluster: SimCluster, name: str, devices: list[SimDevice], clock: SimClock) -> None:
        self.cluster = cluster
        self.name = name
        self.url = f"http://{name}:7411"
        self.devices = devices
        self.clock = clock
        self.server: ObjectServer | None = None
        self._state = AgentState(name=name, instance=name.encode().ljust(16, b"-"))
        self._life: Life | None = None

    @property
    def is_up(self) -> bool:
        return self.server is not None

    async def start(self) -> None:
        cluster = self.cluster
        self._life = life = Life(cluster.loop, self.name)
        self._state = msgspec.structs.replace(self._state, incarnation=self._state.incarnation + 1)

        async def open_devices(config: ObjectdConfig, clock: Clock) -> list[Device]:
            return list(self.devices)

        async def begin() -> ObjectServer:
            server = ObjectServer(
                ObjectdConfig(
                    membership=Membership(metadata=(METADATA_URL,), name=self.name), auth=Auth(join_token=JOIN_TOKEN),
                    chunks=Chunks(segment_chunk_bytes_max=SEGMENT_CHUNK_BYTES_MAX, device_timeout=5.0),
                    upkeep=Upkeep(scrub=True, scrub_after=0.0, trash=60.0, trash_min=30.0),
                    background=Background(scrub_rate=1 << 20),
                ),
                clock=self.clock, transport=cluster.network.transport(self.url), open_devices=open_devices,
                state=self._state, state_file=None, run_blocking=None, rng=cluster.fork(), advertise=self.url,
            )  # fmt: skip
            # The CPU time of the machine is no part of the run.
            server.agent._cpu_seconds = lambda: 0.0
            server.agent._last_cpu = 0.0
            await server.start()
            return server

        self.server = await life.run(begin())
        inside = InProcessServer(self.server.routes, self.server.app)
        cluster.network.register(self.url, _Door(inside, life, cluster.trace, self.name))

    async def kill(self, *, wipe: bool = False) -> None:
        """Nothing of it goes on; of what was not synced, each chunk is lost or kept by the dice."""
        assert self.server is not None and self._life is not None
        self.cluster.network.remove(self.url)
        self._state = self.server.agent._state
        self.server = None
        await self._life.end()
        for device in self.devices:
            device.power_cut(self.cluster.rng)
            if wipe:
                device.kept.clear()


class MetadataProcess:
    """The metadata service; its catalog outlives its lives as an image of what was committed."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.server: MetadataServer | None = None
        self.database: SqliteDatabase | None = None
        self.skew_ms = 0
        self.clock = SimClock()
        self._image = b""
        self._lives = 0
        self._life: Life | None = None

    async def start(self) -> None:
        cluster = self.cluster
        self._lives += 1
        self._life = life = Life(cluster.loop, f"metadata-{self._lives}")
        self.clock = SimClock(skew_ms=self.skew_ms)
        settings = metadata_config.Settings(
            catalog=metadata_config.Catalog(data="/nonexistent", snapshot_interval=0.0),
            placement=metadata_config.Placement(chunk_bytes=CHUNK_BYTES, copies=cluster.copies),
            duties=metadata_config.Duties(
                collect_after=40.0, orphan_after=60.0, inventory_interval=60.0, trash=60.0, deleted_share_max=1.0
            ),
            root=metadata_config.Root(access_key="root", secret_key="root-secret", token=ROOT_TOKEN),
            auth=Auth(join_token=JOIN_TOKEN), timers=Timers(repair_grace=20.0),
        )  # fmt: skip
        around = Surroundings(
            clock=self.clock, rng=cluster.fork(), random_bytes=cluster.fork().randbytes,
            advertise=METADATA_URL, instance=f"m{self._lives}", transport=cluster.network.transport(METADATA_URL),
        )  # fmt: skip

        async def begin() -> MetadataServer:
            database = await open_database("sqlite://", threads=False)
            assert isinstance(database, SqliteDatabase)
            if self._image:
                database._raw_write.deserialize(self._image)
            self.database = database
            server = await MetadataServer.open(settings, around, database)
            await server.start()
            return server

        self.server = await life.run(begin())
        inside = InProcessServer(self.server.routes, self.server.app)
        cluster.network.register(METADATA_URL, _Door(inside, life, cluster.trace, "metadata"))

    def stop_after_commit(self) -> asyncio.Event:
        """The next transaction becomes durable, and nobody hears of it: the process stands still there, to be killed.
        The event is set when it has come to that."""
        assert self.database is not None
        reached, plain = asyncio.Event(), self.database._queue

        async def queue(*arguments: Any) -> Any:
            await plain(*arguments)
            reached.set()
            await asyncio.Event().wait()

        self.database._queue = queue  # type: ignore[method-assign]
        return reached

    async def kill(self) -> None:
        """What was committed stays; commits are in-line, so none is half done."""
        assert self.database is not None and self._life is not None
        self.cluster.network.remove(METADATA_URL)
        self._image = self.database._raw_write.serialize()
        self.server = None
        await self._life.end()
        self.database._raw_write.close()


class SimCluster:
    """One metadata service, some object servers, a network between them. Build it inside the virtual loop."""

    def __init__(
        self, loop: VirtualLoop, seed: int, *, servers: int = 4, copies: int = 2, keep_all: bool = False
    ) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.copies = copies
        self.trace = Trace(loop, keep_all=keep_all)
        self.network = Network(self.fork())
        self.metadata = MetadataProcess(self)
        self.servers: list[ServerProcess] = []
        for number in range(1, servers + 1):
            tiers: list[Tier] = ["hdd", "ssd"] if number % 2 else ["hdd"]
            clock = SimClock(skew_ms=self.rng.choice([0, 0, -2000, 3000, 40_000]))
            devices = [
                SimDevice(self.fork(), clock=clock, number=number * 10 + at, tier=tier,
                          capacity_bytes=1 << 30)
                for at, tier in enumerate(tiers)
            ]  # fmt: skip
            self.servers.append(ServerProcess(self, f"objectd{number}", devices, clock))
        watch_lives(loop)

    def fork(self) -> random.Random:
        """Chance of its own for one part, from the seed."""
        return random.Random(self.rng.getrandbits(64))

    async def start(self) -> None:
        await self.metadata.start()
        for server in self.servers:
            await server.start()
        await self.until(lambda: sum(d.counts_for_copies for d in self.view.devices.values()) == len(self.devices()))

    @property
    def view(self) -> Any:
        assert self.metadata.server is not None
        return self.metadata.server.view

    def devices(self) -> list[SimDevice]:
        return [device for server in self.servers for device in server.devices]

    def device_by_id(self) -> dict[int, SimDevice]:
        """As the catalog numbers them."""
        by_uuid = {device.uuid: device for device in self.devices()}
        return {info.id: by_uuid[info.uuid] for info in self.view.devices.values()}

    async def until(self, fact: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait, in virtual time, for a fact."""
        async with asyncio.timeout(seconds):
            while not fact():
                await asyncio.sleep(0.1)

    async def client(self, name: str, *, skew_ms: int = 0) -> Store:
        """A client's own store, with its own clock and way to the servers."""
        transport = self.network.transport(name)
        clock = LoopClock(skew_ms=skew_ms)
        client = MetadataClient(
            transport, [METADATA_URL], token=ROOT_TOKEN, clock=clock, rng=self.fork(), limits=MetadataLimits()
        )
        store = Store(
            client, ObjectClient(transport, clock), clock=clock, limits=StoreLimits(),
            buckets=Buckets(transport, METADATA_URL, ROOT_TOKEN),
        )  # fmt: skip
        return await store.open()

    async def admin(self, method: bytes, path: bytes, body: bytes = b"") -> int:
        """One call of an operator; its status."""
        reply = await self.network.transport("operator").call(
            METADATA_URL, method, path, body=body, seconds=10.0,
            headers=[(b"authorization", b"Bearer " + ROOT_TOKEN.encode()), (b"content-type", b"application/json")],
        )  # fmt: skip
        return reply.status

    async def stop(self) -> None:
        for server in self.servers:
            if server.is_up:
                await server.kill()
        if self.metadata.server is not None:
            await self.metadata.kill()
        await self.network.close()

