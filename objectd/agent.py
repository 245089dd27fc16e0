"""The agent: this server's conversation with metadata. Registers, sends heartbeats, carries out what answers ask.

Owns the registration, the heartbeat sequence and the delivery of heat, bad chunks and job reports, each kept until a
heartbeat that carried it was answered. Invariants: one heartbeat is under way at a time; what was learned and must
survive (id, secret, keys, grants) is on disk before it is used; the server serves with what it kept while metadata is
away; nothing is deleted on a device while the catalog shows another cluster or a lower sequence than the device has
noted (rule 1; see `may_delete`).

Cost: one small request per interval (1 s), 18 bytes per distinct chunk read, one report per device.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from objectd.agent_state import AgentState, AgentStateFile
from objectd.heat import HeatCounter
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.work.runner import JobRunner
from tierstore.clock import Clock
from tierstore.errors import (
    AccessDenied,
    NotAuthenticated,
    TierstoreError,
    UnavailableError,
    from_answer,
)
from tierstore.telemetry.log import get_logger
from tierstore.transport.peer import PeerTransport
from tierstore.wire import MEDIA_TYPE, decode, encode
from tierstore.wire.cluster import Heartbeat, HeartbeatAnswer, Inventory, InventoryAnswer, Register, Registered

log = get_logger("objectd.agent")
T = TypeVar("T")

REGISTER_SECONDS: Final = 5.0        # deadline of one registration
HEARTBEAT_SECONDS: Final = 3.0       # deadline of one heartbeat
INVENTORY_SECONDS: Final = 30.0      # deadline of one page: metadata compares it with its reverse table
RETRY_SECONDS_MAX: Final = 1.0       # between attempts to reach metadata: as often as a heartbeat, no oftener
REMIND_SECONDS: Final = 60.0         # the same reason for waiting is logged again this often
NOTE_SECONDS: Final = 5.0            # the devices write the catalog's sequence down this often at most
QUEUE_SAMPLES: Final = 4             # samples of the devices' queues per heartbeat
SOFTWARE: Final = "tierstore/0.1"


class Agent:
    """One per object server. `run` is its life; the rest is asked by jobs and pages. Event loop only."""

    def __init__(
        self, *, clock: Clock, transport: PeerTransport, metadata_urls: tuple[str, ...], advertise: str,
        failure_domain: str, join_token: str, heartbeat_seconds: float, state: AgentState,
        state_file: AgentStateFile | None, standing: Standing, slots: Slots, heat: HeatCounter, jobs: JobRunner,
        on_answer: Callable[[HeartbeatAnswer], None], in_flight: Callable[[], int], is_draining: Callable[[], bool],
        served: Callable[[], tuple[dict[str, tuple[int, int]], int, int]] = lambda: ({}, 0, 0),
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._transport = transport
        self._urls = [url.rstrip("/") for url in metadata_urls]
        self.advertise = advertise
        self._failure_domain = failure_domain
        self._join_token = join_token
        self._heartbeat_seconds = heartbeat_seconds
        self._state = state
        self._state_file = state_file
        self._standing = standing
        self._slots = slots
        self._heat = heat
        self._jobs = jobs
        self._on_answer = on_answer
        self._in_flight = in_flight
        self._is_draining = is_draining
        self._served = served
        self._cpu_seconds = cpu_seconds
        self._last_cpu = cpu_seconds()
        self._last_beat = clock.monotonic()
        self._noted_at = -NOTE_SECONDS
        self._sequence = 0
        self._wish = asyncio.Event()
        self._one_beat = asyncio.Lock()
        self._is_stopping = False
        self.is_registered = False     # in this life
        #: Why metadata has not taken its registration or its last heartbeat, for people; "" when it has.
        self.waits_for = "metadata has not answered yet"
        self._told_at = -REMIND_SECONDS
        self.answered_at = clock.monotonic()
        self.map_revision = 0
        self.heartbeats_total = 0
        self.failures_total = 0

    @property
    def secret(self) -> str:
        """This server's bearer credential; "" before the first registration."""
        return self._state.secret

    def adopt_kept(self) -> None:
        """Take up what an earlier life learned, so that reads are served before metadata answers."""
        state = self._state
        if state.server:
            self._take(state.server, state.cluster_id, state)

    async def run(self) -> None:
        """Register, then a heartbeat each interval, for ever. Errors of metadata or the way to it never end it."""
        pause = 0.2
        while True:
            try:
                if not self.is_registered:
                    await self.register()
                await self.beat()
                self.waits_for, self._told_at = "", -REMIND_SECONDS
                pause = 0.2
                await self._until_next_beat()
            except TierstoreError as error:
                self.failures_total += 1
                if isinstance(error, NotAuthenticated | AccessDenied):
                    self.is_registered = False      # another catalog: come back by secret or by join token
                self._tell(error)
                # reads go on with the keys at hand; what was to be told is kept and told later
                await self._clock.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)

    def _tell(self, error: TierstoreError) -> None:
        """Into the log when the reason is news, and once a minute while it lasts: the attempts go on each second."""
        now, why = self._clock.monotonic(), str(error)
        if why == self.waits_for and now - self._told_at < REMIND_SECONDS:
            return
        self.waits_for, self._told_at = why, now
        log.warning(
            "metadata did not take a heartbeat, trying on" if self.is_registered else "not joined, trying on",
            code=error.code, detail=error.detail,
        )  # fmt: skip

    def beat_soon(self) -> None:
        """Do not wait for the interval: a job is done, or the state changed."""
        self._wish.set()

    @property
    def announced(self) -> str:
        """up | draining (a restart is announced) | stopping, as each heartbeat tells it."""
        return "stopping" if self._is_stopping else "draining" if self._is_draining() else "up"

    async def say_goodbye(self) -> None:
        """Tell metadata now that this server stops. Best effort: it is found out anyway."""
        self._is_stopping = True
        if self.is_registered:
            with contextlib.suppress(TierstoreError):
                await self.beat()

    # -- registration -----------------------------------------------------------------------------------------
    async def register(self) -> None:
        """Join or come back. Raises UnavailableError, or what metadata answered."""
        state = self._state
        message = Register(
            role="objectd", name=state.name, url=self.advertise, instance=state.instance,
            incarnation=state.incarnation, join_token=self._join_token,
            devices=[slot.report() for slot in self._slots], failure_domain=self._failure_domain, software=SOFTWARE,
        )  # fmt: skip
        try:
            registered = await self._post("register", message, Registered, REGISTER_SECONDS)
        except (NotAuthenticated, AccessDenied):
            if not (state.secret and self._join_token):
                raise
            # a catalog that was made anew knows no secret of ours, but the operator gave us a token for it
            self._state = msgspec.structs.replace(state, secret="")
            registered = await self._post("register", message, Registered, REGISTER_SECONDS)
        self._learn(registered)

    def _learn(self, registered: Registered) -> None:
        state = self._state
        if state.cluster_id and registered.cluster_id != state.cluster_id:
            log.warning("another cluster", was=state.cluster_id, now=registered.cluster_id)
        kept = msgspec.structs.replace(
            state, server=registered.server, secret=registered.secret or state.secret,
            cluster_id=registered.cluster_id, site=registered.site, site_id=registered.site_id,
            devices=registered.devices or state.devices, ticket_keys=registered.ticket_keys or state.ticket_keys,
        )  # fmt: skip
        self._keep(kept)
        self._standing.set_catalog_time(registered.now_ms)
        self._take(registered.server, registered.cluster_id, kept)
        if registered.heartbeat_seconds > 0:
            self._heartbeat_seconds = registered.heartbeat_seconds
        self.is_registered = True
        missing = [slot.device.path for slot in self._slots if not slot.id]
        if missing:
            log.error("devices were not granted", paths=",".join(missing))
        log.info("registered", server=registered.server, site=registered.site, incarnation=state.incarnation)

    def _take(self, server: int, cluster_id: str, kept: AgentState) -> None:
        standing = self._standing
        standing.server = type(standing.server)(server)
        standing.cluster_id = cluster_id
        standing.set_keys(kept.ticket_keys)
        self._slots.grant(kept.devices)

    def _keep(self, state: AgentState) -> None:
        if state != self._state and self._state_file is not None:
            try:
                self._state_file.save(state)
            except OSError as error:
                raise UnavailableError(
                    f"the server's state cannot be written: {error}", code="state-not-written"
                ) from error
        self._state = state

    # -- heartbeat --------------------------------------------------------------------------------------------
    async def beat(self) -> None:
        """One heartbeat and its answer."""
        async with self._one_beat:      # an announcement comes beside the loop's own
            await self._beat()

    async def _beat(self) -> None:
        clock, jobs = self._clock, self._jobs
        now = clock.monotonic()
        heat = self._heat.batch(now)
        bad = self._slots.bad_chunks()
        reports = jobs.reports()
        served, mem_used, mem_capacity = self._served()
        self._sequence += 1
        message = Heartbeat(
            server=self._standing.server, incarnation=self._standing.incarnation, sequence=self._sequence,
            devices=[slot.report() for slot in self._slots],
            heat=heat.entries if heat else b"", heat_sequence=heat.sequence if heat else 0,
            heat_seconds=heat.seconds if heat else 0.0, reports=reports, bad_chunks=bad,
            job_slots=jobs.free_slots() if self.announced == "up" else 0, load=self._load(now),
            in_flight=self._in_flight(), state=self.announced, served=served, mem_used_bytes=mem_used,
            mem_capacity_bytes=mem_capacity,
        )  # fmt: skip
        answer = await self._post("heartbeat", message, HeartbeatAnswer, HEARTBEAT_SECONDS)
        if answer.reregister:
            # nothing of this heartbeat was taken: all of it is told again under the new registration
            self.is_registered = False
            log.warning("metadata asks this server to register again")
            return
        self.heartbeats_total += 1
        self.answered_at = clock.monotonic()
        if heat and answer.heat_acknowledged >= heat.sequence:
            self._heat.acknowledge(heat.sequence)
        self._slots.bad_acknowledged(bad)
        jobs.reported(reports)
        await self._obey(answer)

    async def _obey(self, answer: HeartbeatAnswer) -> None:
        standing = self._standing
        standing.set_catalog_time(answer.now_ms)
        standing.sequence = answer.sequence
        self.map_revision = answer.map_revision
        if answer.ticket_keys and answer.ticket_keys != self._state.ticket_keys:
            self._keep(msgspec.structs.replace(self._state, ticket_keys=answer.ticket_keys))
            standing.set_keys(answer.ticket_keys)
        self._follow_promoter(answer.heat_url)
        await self._note_sequence()
        self._on_answer(answer)
        self._jobs.cancel(answer.cancelled)
        self._jobs.offer(answer.jobs)

    def _follow_promoter(self, heat_url: str) -> None:
        """Heat goes to the holder of the promoter's lease (rule 15): it takes the heartbeats from now on."""
        url = heat_url.rstrip("/")
        if url and url != self._urls[0]:
            self._urls = [url, *[other for other in self._urls if other != url]]

    async def _note_sequence(self) -> None:
        """Let the devices write down cluster and sequence, every few seconds and only upwards."""
        now = self._clock.monotonic()
        if now - self._noted_at < NOTE_SECONDS:
            return
        self._noted_at = now
        for slot in self._slots:
            await self.note(slot)

    async def note(self, slot: Slot) -> None:
        """Write the cluster and the catalog's sequence on one device, unless they contradict what stands there."""
        device, standing = slot.device, self._standing
        is_ours = device.cluster_id in ("", standing.cluster_id)
        is_news = standing.sequence > device.seen_sequence or not device.cluster_id
        if not (is_ours and is_news and slot.id and device.state == "ok"):
            return
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await device.note(cluster_id=standing.cluster_id, seen_sequence=standing.sequence)
        except (OSError, TimeoutError, TierstoreError) as error:
            log.warning("the device did not note the catalog's sequence", device_path=device.path, detail=str(error))

    def may_delete(self, slot: Slot) -> bool:
        """Rule 1: only while the catalog is of the device's cluster and not older than what the device has seen."""
        standing, device = self._standing, slot.device
        return self.is_registered and device.cluster_id == standing.cluster_id != "" and (
            standing.sequence >= device.seen_sequence
        )

    async def send_inventory(self, page: Inventory) -> InventoryAnswer:
        """Tell metadata one page of a device's chunks."""
        return await self._post("inventory", page, InventoryAnswer, INVENTORY_SECONDS)

    async def _until_next_beat(self) -> None:
        """Sleep the interval in steps that sample the queues; a wish ends it early."""
        step = self._heartbeat_seconds / QUEUE_SAMPLES
        for _ in range(QUEUE_SAMPLES):
            for slot in self._slots:
                slot.sample_queue()
            if self._wish.is_set():
                break
            sleeping = asyncio.ensure_future(self._clock.sleep(step))
            wishing = asyncio.ensure_future(self._wish.wait())
            try:
                await asyncio.wait((sleeping, wishing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                wishing.cancel()
        self._wish.clear()

    def _load(self, now: float) -> float:
        """Share of the time since the last heartbeat that the loop's thread was on a CPU."""
        cpu = self._cpu_seconds()
        seconds, self._last_beat = now - self._last_beat, now
        used, self._last_cpu = cpu - self._last_cpu, cpu
        return min(1.0, max(0.0, used / seconds)) if seconds > 0 else 0.0

    async def _post(self, what: str, message: object, kind: type[T], seconds: float) -> T:
        """One request to the first metadata service that answers; the one that did is asked first the next time."""
        body = encode(message)
        headers = [(b"content-type", MEDIA_TYPE.encode())]
        if self._state.secret:
            headers.append((b"authorization", b"Bearer " + self._state.secret.encode()))
        failure: TierstoreError = UnavailableError("no metadata service is configured", code="metadata-unreachable")
        for url in list(self._urls):
            try:
                reply = await self._transport.call(
                    url, b"POST", f"/v1/internal/{what}".encode(), headers=headers, body=body, seconds=seconds
                )
            except UnavailableError as error:
                failure = error
                continue
            if reply.status == 200:
                if url != self._urls[0]:
                    self._urls.remove(url)
                    self._urls.insert(0, url)
                return decode(reply.body, kind)
            failure = _answered(reply.status, reply.body)
            if reply.status < 500:
                break
        raise failure


def _answered(status: int, body: bytes) -> TierstoreError:
    try:
        problem = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, msgspec.ValidationError):
        problem = {}
    code, detail = problem.get("code"), problem.get("detail")
    return from_answer(status, str(code or "unexpected-answer"), str(detail or f"metadata answered {status}"))


