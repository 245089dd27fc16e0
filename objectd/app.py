"""Builds an object server: the one place where its parts meet, and their start and stop.

Owns the order. Start: identity (incarnation durable) -> devices opened -> what was known before -> serving; metadata
may be away meanwhile. Stop: no new work -> jobs cancelled -> metadata told -> devices closed. Invariant: every task
has this object as its owner and has ended when stop() returns.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

from objectd import metrics
from objectd.agent import Agent
from objectd.agent_state import INSTANCE_BYTES, AgentState, AgentStateFile
from objectd.config import STREAM_WINDOW_BYTES, DeviceConfig, ObjectdConfig
from objectd.fresh import Fresh
from objectd.heat import HeatCounter
from objectd.memory import Memory
from objectd.residency import Residency
from objectd.routes.handovers import HandoverDoor
from objectd.routes.loans import ChunkLoans, LoanDoor
from objectd.routes.reads import ChunkReads
from objectd.routes.receipts import ReceiptRenewals
from objectd.routes.sets import ChunkSets
from objectd.routes.table import routes
from objectd.routes.uploads import ChunkUploads
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store.device import Device
from objectd.store.disk import DiskDevice
from objectd.store.settings import StoreSettings
from objectd.work import speed
from objectd.work.copy import CopyWork
from objectd.work.damage import DamageChecks
from objectd.work.inventory import InventoryWork
from objectd.work.remove import RemoveWork
from objectd.work.runner import JobRunner
from objectd.work.scrub import CursorFile, Scrub
from objectd.work.upkeep import Upkeep
from objectd.work.verified import RunBlocking
from objectd.work.verify import VerifyWork
from tierstore import statefile
from tierstore.clock import Clock
from tierstore.errors import ConfigError
from tierstore.names import ChunkId
from tierstore.serving.drain import Drain
from tierstore.serving.health import health_routes
from tierstore.telemetry.log import get_logger
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.peer import PeerTransport
from tierstore.wire.cluster import HeartbeatAnswer

if TYPE_CHECKING:
    from fastapi import FastAPI

log = get_logger("objectd")
T = TypeVar("T")
#: Opens the devices of the settings; the simulation passes one that makes them in memory.
OpenDevices = Callable[[ObjectdConfig, Clock], Awaitable[list[Device]]]

DUTY_PAUSE_SECONDS: Final = 5.0       # before a background duty that failed unexpectedly goes on
#: A device has at least so many segments; see segment_bytes_of.
SEGMENTS_MIN: Final = 64
STOP_SECONDS_MAX: Final = 20.0        # for metadata to hear of the stop and for the devices to close
SCRUB_FILE_NAME: Final = "scrub.json"


class ObjectServer:
    """One object server in this process (a simulation has several). Built with everything it needs from outside.

    run_blocking None: blocking reads happen in-line (simulation). state_file None: nothing is kept between lives."""

    def __init__(
        self, config: ObjectdConfig, *, clock: Clock, transport: PeerTransport, open_devices: OpenDevices,
        state: AgentState, state_file: AgentStateFile | None, run_blocking: RunBlocking | None, rng: random.Random,
        advertise: str,
    ) -> None:  # fmt: skip
        self.config = config
        self._clock = clock
        self._transport = transport
        self._state_file = state_file
        self._run_blocking = run_blocking
        self._rng = rng
        self._open_devices = open_devices
        self.drain = Drain()
        self.standing = Standing(clock, incarnation=state.incarnation)
        self.slots: Slots = Slots()
        self.heat: HeatCounter = HeatCounter(entries_max=config.chunks.heat_entries_max, now_seconds=clock.monotonic())
        self.memory: Memory = Memory(config.chunks.mem_bytes)
        self.fresh: Fresh = Fresh(config.chunks.fresh_bytes)
        self.verify: VerifyWork = VerifyWork(slots=self.slots, run_blocking=run_blocking)
        self.damage: DamageChecks = DamageChecks(slots=self.slots, verify=self.verify)
        residency = Residency()
        self.reads: ChunkReads = ChunkReads(
            standing=self.standing, slots=self.slots, heat=self.heat, memory=self.memory, fresh=self.fresh,
            residency=residency, settings=config.chunks, on_damage=self.damage.look,
        )  # fmt: skip
        self.loans: ChunkLoans = ChunkLoans(
            standing=self.standing, slots=self.slots, reads=self.reads, residency=residency,
            bytes_min=config.chunks.sendfile_bytes_min, cold_reads_max=config.chunks.cold_reads_max,
        )  # fmt: skip
        self._loan_door = LoanDoor(self.loans)
        self.uploads: ChunkUploads = ChunkUploads(standing=self.standing, slots=self.slots, settings=config.chunks)
        self.handovers: HandoverDoor = HandoverDoor(self.uploads)
        self.receipts = ReceiptRenewals(
            standing=self.standing, slots=self.slots, device_timeout=config.chunks.device_timeout
        )
        self.jobs: JobRunner = JobRunner(
            clock=clock, standing=self.standing, slots=config.background.job_slots,
            copy_rate=config.background.copy_rate,
        )  # fmt: skip
        self.agent: Agent = Agent(
            clock=clock, transport=transport, metadata_urls=config.membership.metadata, advertise=advertise,
            failure_domain=config.membership.failure_domain, join_token=config.auth.join_token,
            heartbeat_seconds=config.timers.heartbeat, state=state, state_file=state_file, standing=self.standing,
            slots=self.slots, heat=self.heat, jobs=self.jobs, on_answer=self._follow,
            served=lambda: (self.reads.served, self.memory.used_bytes, self.memory.capacity_bytes),
            in_flight=lambda: self.uploads.uploads + self.reads.cold_reads,
            is_draining=lambda: self.drain.is_announced,
        )  # fmt: skip
        self.remove = RemoveWork(slots=self.slots, may_delete=self.agent.may_delete, note=self.agent.note,
            on_removed=self._forget,
        )
        self.scrub: Scrub = Scrub(
            clock=clock, verify=self.verify, run_blocking=run_blocking, rate=config.background.scrub_rate,
            file=CursorFile(os.path.join(state_file.directory, SCRUB_FILE_NAME)) if state_file else None,
            fresh_seconds=config.upkeep.scrub_after,
        )  # fmt: skip
        self.upkeep = Upkeep(clock=clock, settings=config.upkeep)
        self._add_works()
        self._chunk_routes = routes(self.reads, self.uploads, ChunkSets(self.uploads), self.receipts)
        self.routes = [*self._chunk_routes, *health_routes(self.reasons_not_ready)]
        self._duties: set[asyncio.Task[None]] = set()
        self.drain.on_announce(self.agent.beat_soon)
        metrics.watch(self)

    def _add_works(self) -> None:
        jobs = self.jobs
        jobs.on_done = self.agent.beat_soon
        jobs.add("copy", CopyWork(
            standing=self.standing, slots=self.slots, client=ObjectClient(self._transport, self._clock),
            verify=self.verify, fresh=self.fresh,
            segment_chunk_bytes_max=self.config.chunks.segment_chunk_bytes_max,
            promotions_max=self.config.background.job_slots,
        ))  # fmt: skip
        jobs.add("delete", self.remove.delete)
        jobs.add("undelete", self.remove.undelete)
        jobs.add("verify", self.verify)
        jobs.add("inventory", InventoryWork(
            standing=self.standing, slots=self.slots, remove=self.remove, run_blocking=self._run_blocking,
            send=self.agent.send_inventory,
        ))  # fmt: skip

    def _forget(self, chunk: ChunkId) -> None:
        self.memory.forget(chunk)
        self.fresh.forget(chunk)

    @cached_property
    def app(self) -> FastAPI:
        """OpenAPI, metrics and whatever is no hot route; built when it is asked for."""
        from objectd.routes.declared import application

        return application(
            self._chunk_routes, reasons_not_ready=self.reasons_not_ready, telemetry=self.config.telemetry,
            own_secret=lambda: self.agent.secret,
        )

    def reasons_not_ready(self) -> list[str]:
        """Why this server should get no new work, for people; empty when it should."""
        reasons = []
        if self.drain.is_announced:
            reasons.append("a restart is announced")
        if not self.standing.is_known:
            reasons.append(f"it has not joined a cluster yet: {self.agent.waits_for or 'no ticket key'}")
        elif not self.slots.by_id:
            reasons.append("none of its devices is known to the cluster")
        reasons += [f"device {slot.device.path} has failed" for slot in self.slots if slot.device.state == "failed"]
        return reasons

    # -- life -------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Open the devices (recovery included), serve from what is kept at once, begin the background duties."""
        self.slots.add(await self._open_devices(self.config, self._clock))
        self.agent.adopt_kept()
        await self._declare_speeds()
        self._begin("agent", self.agent.run)
        for slot in self.slots:
            self._begin("upkeep", partial(self.upkeep.run, slot))
            if self.config.upkeep.scrub:
                self._begin("scrub", partial(self.scrub.run, slot))

    def lend(self, url: str) -> None:
        """Lend files to readers on this machine, who know the server as `url`, and take chunks from writers' memory,
        unless the settings say no."""
        if self.config.chunks.lend_files:
            self._loan_door.open(url)
        if self.config.chunks.take_memory:
            self.handovers.open(url)

    async def stop(self) -> None:
        """End everything. The sockets are closed already."""
        self._loan_door.close()
        await self.handovers.close()
        self._duties, duties = set(), self._duties
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await self.jobs.close()
        await self.damage.close()
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                await self.agent.say_goodbye()
        except TimeoutError:
            log.warning("metadata could not be told of the stop")
        for slot in self.slots:
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await slot.device.close()
            except (OSError, TimeoutError) as error:
                log.error("device did not close", device_path=slot.device.path, detail=str(error))
        await self._transport.close()
        if self._state_file is not None:
            self._state_file.close()

    def _begin(self, name: str, duty: Callable[[], Coroutine[object, object, None]]) -> None:
        task = asyncio.create_task(self._keep_going(name, duty), name=f"duty-{name}")
        self._duties.add(task)

    async def _keep_going(self, name: str, duty: Callable[[], Coroutine[object, object, None]]) -> None:
        while True:
            try:
                await duty()
            except Exception:   # a fault in one duty must not end the serving of chunks; it is logged and tried again
                log.exception("a background duty failed unexpectedly", duty=name)
            await self._clock.sleep(DUTY_PAUSE_SECONDS)

    async def _declare_speeds(self) -> None:
        """Speed of each device: simulated or declared in the settings, else measured, else typical of its tier."""
        declared = {os.path.abspath(device.path): device for device in self.config.devices}
        for slot in self.slots:
            tier = slot.device.tier
            found = speed.TYPICAL[tier]
            setting = declared.get(os.path.abspath(slot.device.path))
            if setting is not None:
                found = await self._speed_of(slot, setting)
            slot.read_ms, slot.read_bytes_per_second = found.read_ms, found.read_bytes_per_second

    async def _speed_of(self, slot: Slot, setting: DeviceConfig) -> speed.Speed:
        found = speed.TYPICAL[slot.device.tier]
        latency = setting.simulate_seek or setting.read_latency
        rate = setting.simulate_rate or setting.read_rate
        if self._run_blocking is not None and self.config.chunks.speed_test and not (latency and rate):
            path, tier, rng = slot.device.path, slot.device.tier, self._rng
            found = await self._run_blocking(lambda: speed.measure(path, tier, rng))
        return speed.Speed(latency * 1000 or found.read_ms, rate or found.read_bytes_per_second)

    def _follow(self, answer: HeartbeatAnswer) -> None:
        """What a heartbeat's answer says to those who work by themselves."""
        self.scrub.is_paused = self.upkeep.is_paused = answer.paused
        self.scrub.set_rate(answer.scrub_bytes_per_second)
        if answer.trash_seconds > 0:
            self.upkeep.trash_seconds = float(answer.trash_seconds)

    def advertise(self, url: str) -> None:
        """The address others reach this server under, once the port is known. Before start()."""
        self.agent.advertise = url


async def open_disks(config: ObjectdConfig, clock: Clock) -> list[Device]:
    """Open every configured device; formats empty directories. Raises ConfigError naming the device."""
    if not config.devices:
        raise ConfigError("an object server needs at least one [[devices]] with path and tier")
    opened: list[Device] = []
    for device in config.devices:
        statefile.make_directory(device.path)
        capacity = device.capacity or _file_system_bytes(device.path)
        settings = StoreSettings(
            segment_chunk_bytes_max=config.chunks.segment_chunk_bytes_max,
            segment_bytes_max=segment_bytes_of(config, capacity),
            reserve_bytes=min(device.reserve, capacity // 10),
            write_pending_bytes_max=STREAM_WINDOW_BYTES,
            direct_bytes_min=config.chunks.direct_bytes_min,
            io_deadline_seconds=config.chunks.device_timeout,
            segment_grace_seconds=config.upkeep.segment_grace,
            simulate_seek_ms=device.simulate_seek * 1000,
            simulate_bytes_per_second=device.simulate_rate,
        )
        disk = await DiskDevice.open(
            device.path, tier=device.tier, capacity_bytes=capacity, clock=clock, settings=settings
        )
        opened.append(disk)
    return opened


def segment_bytes_of(config: ObjectdConfig, capacity_bytes: int) -> int:
    """Bytes of a segment of a device: as configured, less on a small one. The open segment is never compacted, so what
    was let go in it takes room until it is full: at most a small share of the device may be lost so."""
    smallest = config.chunks.segment_chunk_bytes_max + (64 << 10)     # a record of any size fits
    return min(config.chunks.segment_bytes, max(capacity_bytes // SEGMENTS_MIN, smallest))


def _file_system_bytes(path: str) -> int:
    stat = os.statvfs(path)
    return stat.f_blocks * stat.f_frsize


def executor_runner(executor: ThreadPoolExecutor) -> RunBlocking:
    """Blocking work of this process goes through its one executor."""

    def run(work: Callable[[], T], /) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(executor, work)

    return run


def open_state(config: ObjectdConfig, rng: random.Random) -> tuple[AgentState, AgentStateFile]:
    """The server's identity, with this life's incarnation. Raises ConfigError."""
    file = AgentStateFile(config.membership.data)
    return file.open(name=config.name, new_instance=rng.randbytes(INSTANCE_BYTES)), file
