"""Faults of a simulated cluster, from its seed: one after the other, each for a while, some at the same time.

Invariant: what N+1 does not promise to survive is not done. Bytes of a chunk rot only while another good copy is on
another server; devices are wiped never; any number of servers may be away at once, since they come back with all that
they had synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from tests.kit.devices import LIVE
from tests.kit.simulation import METADATA_URL, MetadataProcess, ServerProcess, SimCluster
from tests.simulation.invariants import DeletionWatch, references
from tierstore.errors import TierstoreError
from tierstore.transport.inprocess import Faults

CLIENTS = ("client-1", "client-2", "client-3")
CALM = Faults(delay_min=0.0002, delay_max=0.004)
#: How far a clock is set while processes run, ms.
JUMPS_MS = (-30_000, -3_000, 2_000, 10_000, 90_000)
#: Clocks of metadata after a restart, ms beside the truth.
SKEWS_MS = (0, 0, 800, -900, 5_000, -4_000)


class Nemesis:
    """Runs until `run` is cancelled or `seconds` are over; `heal` takes back everything."""

    def __init__(self, cluster: SimCluster, rng: random.Random, watch: DeletionWatch) -> None:
        self.cluster = cluster
        self._watch = watch
        self.rng = rng
        self.done: dict[str, int] = {}
        self._metadata_lock = asyncio.Lock()
        self._busy: set[str] = set()         # servers with a fault of their own

    async def run(self, seconds: float) -> None:
        """Two lines of faults beside each other."""
        self.cluster.network.faults = self._weather()
        until = self.cluster.loop.time() + seconds
        await asyncio.gather(self._line(until), self._line(until))

    async def _line(self, until: float) -> None:
        faults: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.crash, 4), (self.hang_process, 2), (self.hang_device, 2), (self.fill, 2), (self.rot, 4),
            (self.cut_off, 3), (self.restart_metadata, 2), (self.storm, 2), (self.drain, 2),
            (self.stop_metadata_after_a_commit, 2), (self.lock, 2), (self.jump, 2),
        ]  # fmt: skip
        while self.cluster.loop.time() < until:
            await asyncio.sleep(self.rng.uniform(3, 25))
            fault = self.rng.choices([f for f, _ in faults], [w for _, w in faults])[0]
            await fault()

    def _weather(self) -> Faults:
        """What every message meets."""
        loss = self.rng.choice([0.0, 0.0, 0.002, 0.02])
        return Faults(
            delay_min=0.0002, delay_max=self.rng.choice([0.002, 0.01, 0.05]), request_loss=loss, answer_loss=loss,
            duplication=self.rng.choice([0.0, 0.01, 0.05]),
        )  # fmt: skip

    def _note(self, what: str, *more: object) -> None:
        self.done[what] = self.done.get(what, 0) + 1
        self.cluster.trace.say("FAULT", what, *more)

    def _free_server(self) -> ServerProcess | None:
        free = [s for s in self.cluster.servers if s.is_up and s.name not in self._busy]
        return self.rng.choice(free) if free else None

    # -- one fault each ---------------------------------------------------------------------------------------
    async def _with_server(self, work: Callable[[ServerProcess], Awaitable[None]]) -> None:
        server = self._free_server()
        if server is None:
            return
        self._busy.add(server.name)
        try:
            await work(server)
        finally:
            self._busy.discard(server.name)

    async def crash(self) -> None:
        async def work(server: ServerProcess) -> None:
            self._note("crash", server.name)
            await server.kill()
            # Past 40 s it is dead and its chunks are copied elsewhere; on return it holds copies too many.
            await asyncio.sleep(self.rng.choice([0.5, 4, 15, 70]))
            await server.start()

        await self._with_server(work)

    async def hang_process(self) -> None:
        async def work(server: ServerProcess) -> None:
            self._note("hang", server.name)
            self.cluster.network.silent.add(server.url)
            await asyncio.sleep(self.rng.choice([2, 10, 50]))
            self.cluster.network.silent.discard(server.url)

        await self._with_server(work)

    async def hang_device(self) -> None:
        async def work(server: ServerProcess) -> None:
            device = self.rng.choice(server.devices)
            self._note("disk hangs", device.path)
            device.hang()
            await asyncio.sleep(self.rng.choice([1, 8, 30]))
            device.hang(ends=True)

        await self._with_server(work)

    async def fill(self) -> None:
        async def work(server: ServerProcess) -> None:
            device = self.rng.choice(server.devices)
            self._note("disk full", device.path)
            device.squeeze(self.rng.choice([0, 3_000, 100_000]))
            await asyncio.sleep(self.rng.choice([5, 30]))
            device.squeeze(None)

        await self._with_server(work)

    async def rot(self) -> None:
        """A bit of one copy flips, where a good copy is elsewhere that stays there."""
        if self.cluster.metadata.server is None:
            return
        devices = self.cluster.device_by_id()
        able = [
            (chunk, device)
            for chunk, found in sorted(references(self.cluster).items())
            for device in [r.device for r in found if r.state == 0]
            if not any(d.is_rotten(chunk) for d in devices.values())
            and devices[device].is_good(chunk)
            and sum(devices[r.device].is_good(chunk) for r in found if r.state == 0) >= 2
        ]
        for _ in range(self.rng.randint(1, 4)):
            if not able:
                return
            chunk, device = able.pop(self.rng.randrange(len(able)))
            able = [entry for entry in able if entry[0] != chunk]
            stored = devices[device].kept[chunk]
            assert stored.state == LIVE
            self._note("rot", devices[device].path, chunk.hex())
            devices[device].rot(chunk)
            self._watch.ever_rotten.add(chunk)

    async def cut_off(self) -> None:
        """A server or a client loses the way to some of the others, both ways or one."""
        network = self.cluster.network
        everyone = [METADATA_URL, *CLIENTS, *(s.url for s in self.cluster.servers)]
        side = {self.rng.choice(everyone)}
        other = set(self.rng.sample([e for e in everyone if e not in side], self.rng.randint(1, len(everyone) - 1)))
        both = self.rng.random() < 0.6
        self._note("partition", sorted(side), sorted(other), both)
        network.partition(side, other, both_ways=both)
        await asyncio.sleep(self.rng.choice([1, 6, 30]))
        network.heal()

    async def restart_metadata(self) -> None:
        """Killed and started again, perhaps with its clock elsewhere."""
        async with self._metadata_lock:
            process: MetadataProcess = self.cluster.metadata
            self._note("metadata")
            await process.kill()
            await asyncio.sleep(self.rng.choice([0.1, 2, 12]))
            process.skew_ms = self.rng.choice(SKEWS_MS)
            await process.start()

    async def stop_metadata_after_a_commit(self) -> None:
        """Killed between a commit and its answers: everybody who waits must ask again, and be told what was done."""
        async with self._metadata_lock:
            process: MetadataProcess = self.cluster.metadata
            self._note("metadata after a commit")
            reached = process.stop_after_commit()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    await reached.wait()
            await process.kill()
            await asyncio.sleep(self.rng.choice([0.1, 5]))
            await process.start()

    async def lock(self) -> None:
        """A file system becomes read-only, and an operator mends it later."""

        async def work(server: ServerProcess) -> None:
            device = self.rng.choice(server.devices)
            self._note("read-only", device.path)
            device.lock()
            await asyncio.sleep(self.rng.choice([5, 25, 60]))
            device.lock(ends=True)

        await self._with_server(work)

    async def jump(self) -> None:
        """Somebody sets the clock of a machine, and sets it right again."""
        server = self._free_server()
        clock = self.cluster.metadata.clock if server is None or self.rng.random() < 0.4 else server.clock
        by_ms = self.rng.choice(JUMPS_MS)
        self._note("clock", server.name if server is not None and clock is server.clock else "metadata", by_ms)
        clock.jump(by_ms)
        await asyncio.sleep(self.rng.choice([3, 20]))
        clock.jump(-by_ms)

    async def storm(self) -> None:
        """Messages take seconds, are lost and come twice."""
        self._note("storm")
        before = self.cluster.network.faults
        self.cluster.network.faults = Faults(
            delay_min=0.0, delay_max=self.rng.choice([0.3, 2.0]), request_loss=0.05, answer_loss=0.1, duplication=0.3
        )
        await asyncio.sleep(self.rng.choice([3, 10]))
        self.cluster.network.faults = before

    async def drain(self) -> None:
        """An operator empties a server, and takes it back after a while."""

        async def work(server: ServerProcess) -> None:
            self._note("drain", server.name)
            path = f"/v1/admin/servers/{server.name}/".encode()
            await self._operator(path + b"drain")
            await asyncio.sleep(self.rng.choice([5, 40]))
            await self._operator(path + b"undrain")

        await self._with_server(work)

    async def _operator(self, path: bytes) -> None:
        try:
            await self.cluster.admin(b"POST", path)
        except TierstoreError:
            pass        # the operator was cut off too; `heal` takes all servers back

    # -- the end ----------------------------------------------------------------------------------------------
    async def heal(self) -> None:
        """Nothing is broken any more, and operators want all servers."""
        cluster = self.cluster
        cluster.network.heal()
        cluster.network.silent.clear()
        cluster.network.faults = CALM
        for device in cluster.devices():
            device.hang(ends=True)
            device.squeeze(None)
            device.lock(ends=True)
        if cluster.metadata.server is None:
            await cluster.metadata.start()
        for server in cluster.servers:
            if not server.is_up:
                await server.start()
        for server in cluster.servers:
            status = await cluster.admin(b"POST", f"/v1/admin/servers/{server.name}/undrain".encode())
            assert status == 200, f"undrain answered {status}"
        # What rotted unread is found by a pass that an operator orders; the servers' own take hours by design.
        status = await cluster.admin(b"POST", b"/v1/admin/scrub", b'{"start": true}')
        assert status == 200, f"scrub answered {status}"
