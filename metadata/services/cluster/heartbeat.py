"""Heartbeats: what a server says each second, and what it is told in return.

A heartbeat changes the view in memory at once; the rows follow with `flush`, once a second for all servers in one
transaction (each 5 s on SQLite, where no other process reads them). What must survive (job results, bad chunks) is
durable before the answer goes out, because the server forgets it then.

Cost of an idle heartbeat: no statement at all; with results or free slots and waiting jobs one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from metadata.catalog import servers
from metadata.catalog.database import Database
from metadata.services.cluster.duties import LeaseKeeper
from metadata.services.cluster.membership import Cluster
from tierstore.errors import RequestError
from tierstore.wire.cluster import BadChunk, DeviceReport, Heartbeat, HeartbeatAnswer, Job, JobReport

#: Messages with more entries than these are refused: no object server sends so many.
BAD_CHUNKS_MAX: Final = 10_000
REPORTS_MAX: Final = 10_000
FLUSH_SECONDS: Final = {"postgresql": 1.0, "sqlite": 5.0}


class JobDesk(Protocol):
    """The job queue as heartbeats need it (services.jobs)."""

    async def report(self, server: int, reports: Sequence[JobReport]) -> tuple[list[Job], list[int]]:
        """Take results; renewed leases and job ids to give up. Durable when it returns."""
        ...

    async def hand_out(self, server: int, slots: int) -> list[Job]: ...

    async def report_bad(self, bad: Sequence[BadChunk]) -> None:
        """Durable when it returns."""
        ...

    async def report_suspect(self, bad: Sequence[BadChunk]) -> int:
        """To be checked by the servers that hold them. Durable when it returns."""
        ...


HeatSink = Callable[[int, int, int, bytes], int]


class ServedSink(Protocol):
    """Takes what was served, per tier (services.tiering_fleet)."""

    mem: dict[int, tuple[int, int]]

    def note(self, server: int, incarnation: int, served: Mapping[str, tuple[int, int]]) -> None: ...


class Heartbeats:
    """Takes heartbeats for this process."""

    def __init__(
        self, database: Database, cluster: Cluster, lease: LeaseKeeper, *, desk: JobDesk | None = None,
        heat: HeatSink | None = None, served: ServedSink | None = None,
        scrub_bytes_per_second: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self._database = database
        self._cluster = cluster
        self._lease = lease
        self._desk = desk
        self._heat = heat
        self._served = served
        self._scrub_bytes_per_second = scrub_bytes_per_second
        self._seen: dict[int, servers.Seen] = {}
        self._reports: dict[int, DeviceReport] = {}
        self.flush_seconds = FLUSH_SECONDS[database.dialect]

    async def beat(self, message: Heartbeat, *, server: int) -> HeartbeatAnswer:
        """Take one heartbeat of the server that the credential names. Raises RequestError for another's."""
        cluster, view = self._cluster, self._cluster.view
        if message.server != server:
            raise RequestError(f"a heartbeat of server {message.server} came with {server}'s secret", code="not-yours")
        if len(message.bad_chunks) > BAD_CHUNKS_MAX or len(message.reports) > REPORTS_MAX:
            raise RequestError("the heartbeat has too many entries", code="bad-message")
        now_ms = cluster.now_ms()
        info = view.servers.get(server)
        if info is not None and info.incarnation != message.incarnation:
            # It may have registered with another metadata process a moment ago.
            await cluster.refresh()
            info = view.servers.get(server)
        if info is None or info.incarnation != message.incarnation:
            return HeartbeatAnswer(now_ms=now_ms, sequence=0, map_revision=view.revision, reregister=True)
        if any(report.seen_sequence > cluster.sequence for report in message.devices):
            # Another process on the same database told it a newer sequence: without ours it would delete nothing.
            await cluster.refresh()
        self._note(message, now_ms)
        acknowledged = 0
        if self._heat is not None and message.heat_sequence and (self._lease.is_mine or not self._lease.holder.url):
            acknowledged = self._heat(server, message.incarnation, message.heat_sequence, message.heat)
        if self._served is not None:
            self._served.note(server, message.incarnation, message.served)
            self._served.mem[server] = (message.mem_used_bytes, message.mem_capacity_bytes)
        jobs: list[Job] = []
        cancelled: list[int] = []
        if self._desk is not None:
            if message.bad_chunks:
                await self._take_bad(server, message.bad_chunks)
            if message.reports:
                jobs, cancelled = await self._desk.report(server, message.reports)
            if message.job_slots > 0 and info.state in ("up", "draining", "drained"):
                jobs += await self._desk.hand_out(server, message.job_slots)
        holder = self._lease.holder.url
        return HeartbeatAnswer(
            now_ms=cluster.now_ms(), sequence=cluster.sequence, map_revision=view.revision,
            heat_acknowledged=acknowledged, heat_url="" if self._lease.is_mine else holder, jobs=jobs,
            cancelled=cancelled, ticket_keys=cluster.keys_of(server),
            scrub_bytes_per_second=self._scrub_bytes_per_second(), trash_seconds=cluster.settings.trash_seconds,
            auth_revision=cluster.auth_revision(), policy_revision=cluster.policy()[0],
        )  # fmt: skip

    async def _take_bad(self, server: int, bad: Sequence[BadChunk]) -> None:
        """What a server says of its own devices is believed: it has put the copy aside. Of a peer's device, which a
        copy job of its read from, it is a suspicion: were it believed, the bad copy would stay where it is, and the
        new one that is sent there would be taken for a repeat of it."""
        assert self._desk is not None
        devices = self._cluster.view.devices
        own = [b for b in bad if b.device in devices and devices[b.device].server == server]
        others = [b for b in bad if b.device in devices and devices[b.device].server != server]
        if own:
            await self._desk.report_bad(own)
        if others:
            await self._desk.report_suspect(others)

    def _note(self, message: Heartbeat, now_ms: int) -> None:
        cluster = self._cluster
        info = cluster.view.servers[message.server]
        was_silent = info.state in ("dead", "suspect")
        announced = cluster.reported.get(message.server, "up")
        if message.state == "draining" and announced != "draining":
            cluster.restart_until_ms[message.server] = now_ms + int(cluster.settings.timers.restart_seconds * 1000)
        elif message.state == "up" and announced != "up":
            cluster.restart_until_ms[message.server] = 0    # it changed its mind, or an operator's roll is over
        cluster.reported[message.server] = message.state
        info.seen_at_ms, info.load, info.in_flight = now_ms, message.load, message.in_flight
        reported: set[int] = set()
        for report in message.devices:
            device_id = cluster.note_device(report)
            if device_id:
                reported.add(device_id)
                self._reports[device_id] = report
        if info.role == "objectd":
            for device in cluster.view.devices.values():
                if device.server == info.id and device.id not in reported and device.health != "failed":
                    device.health, device.detail = "failed", "not reported by its server"
                    cluster.view.bump()
        self._seen[message.server] = servers.Seen(
            message.server, now_ms, message.state, message.load, message.in_flight,
            cluster.restart_until_ms.get(message.server, 0),
        )
        if was_silent or announced != message.state:
            cluster.judge_all()

    async def flush(self) -> None:
        """Write what was heard, read what other processes heard, and judge who is alive."""
        seen, self._seen = list(self._seen.values()), {}
        reports, self._reports = list(self._reports.items()), {}
        stale = sorted(self._cluster.unreconciled)
        if seen or stale:
            await self._database.write(lambda c: servers.note_seen(c, seen, reports, unreconciled=stale))
            self._cluster.unreconciled.difference_update(stale)
        await self._cluster.refresh()
