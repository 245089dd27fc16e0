"""Draining: emptying a device or a server while it serves, and taking that back.

A drained device goes ok -> draining -> drained. While it drains nothing new is allocated there, receipts of tickets
already given are still good, and repair.evacuate copies its chunks away and lets its replicas go one by one.
Completion is one transaction that locks commits out and the device's row, brings the reverse table to the feed's head
itself, finds the device empty in it, and only then writes `drained`: a commit whose receipts name it came before and
was seen, or comes after and is refused (rule 11). So the end is reached also under writers that never pause: nobody
else has to bring the table to a head that runs away.

Uploads that began before the drain may have chunks on the device that no row names yet. Those under a lease are waited
for, LONG_UPLOADS_WAIT_MS at most; the others commit within seconds or are stored anew by their writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from metadata.catalog import garbage, jobs, operations, placements, servers, workload
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.session import Session, StaleRows, lock_out_commits
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import DeviceInfo
from metadata.services.jobs.work import can_delete
from metadata.services.upkeep.repair import Repair
from tierstore.errors import ConflictError, NotFound

WHY: Final = "drain"
REVERSE_TABLE: Final = "the reverse table"
CHUNKS: Final = "chunks"
#: Pieces of the feed that a step applies to the reverse table before it tries to finish, beside the writers.
PIECES_AHEAD_MAX: Final = 64
#: And while commits are locked out: about 2 ms each.
PIECES_LOCKED_MAX: Final = 4
#: An upload under a lease that began before the drain has this long to commit; as long as one without a lease lives.
LONG_UPLOADS_WAIT_MS: Final = operations.UPLOAD_LIFE_MS


@dataclass(slots=True)
class DrainProgress:
    """total: chunks when it began (as far as known); left: by the reverse table; stuck: with nowhere to go now."""

    device: int
    server: int
    total_chunks: int
    left_chunks: int
    left_bytes: int
    stuck: int = 0
    state: str = "draining"
    waits_for: str = ""


class Drains:
    """The operators' wishes and their fulfilment."""

    def __init__(self, database: Database, cluster: Cluster, repair: Repair) -> None:
        self._database = database
        self._cluster = cluster
        self._repair = repair
        self.progress: dict[int, DrainProgress] = {}
        #: When this process first saw each device drain: a new holder of the lease waits anew, never too short.
        self._since_ms: dict[int, int] = {}

    # -- wishes -----------------------------------------------------------------------------------------------
    async def drain(self, server_name: str, *, device: int = 0) -> list[int]:
        """Empty a server, or one of its devices; the device ids that drain now. Durable when it returns.

        Raises NotFound, ConflictError when the rest could not hold the promised copies."""
        server = self._cluster.server_named(server_name)
        devices = self._devices_of(server.id, device)
        if not device:
            self._check_enough_left(server.id)

        def work(c: Connection) -> None:
            lock_out_commits(c)
            if not device:
                servers.change_server(c, server.id, state="draining")
            for d in devices:
                if d.state == "ok":
                    servers.change_device(c, d.id, state="draining")

        await self._database.write(work)
        await self._cluster.refresh()
        self._cluster.judge_all()
        return [d.id for d in devices]

    async def undrain(self, server_name: str, *, device: int = 0) -> list[int]:
        """Take it back: the server or device takes new chunks again; what was moved stays moved."""
        server = self._cluster.server_named(server_name)
        devices = self._devices_of(server.id, device)

        def work(c: Connection) -> None:
            if not device:
                servers.change_server(c, server.id, state="up")
            for d in devices:
                if d.state in ("draining", "drained"):
                    servers.change_device(c, d.id, state="ok")
            jobs.remove_waiting(c, WHY)

        await self._database.write(work)
        for d in devices:
            self._repair.forget_scan(d.id)
            self.progress.pop(d.id, None)
        await self._cluster.refresh()
        self._cluster.judge_all()
        return [d.id for d in devices]

    def _devices_of(self, server: int, device: int) -> list[DeviceInfo]:
        found = [
            d for d in self._cluster.view.devices.values()
            if d.server == server and d.state != "removed" and device in (0, d.id)
        ]  # fmt: skip
        if device and not found:
            raise NotFound(f"the server has no device {device}", code="no-such-device")
        return found

    def _check_enough_left(self, server: int) -> None:
        view, copies = self._cluster.view, self._cluster.settings.copies
        left = [
            s for s in view.servers.values()
            if s.role == "objectd" and s.id != server and self._cluster.wishes.get(s.id) == "up"
            and s.state not in ("dead", "removed")
        ]  # fmt: skip
        if len(left) < copies:
            raise ConflictError(
                f"{copies} copies need {copies} object servers and {len(left)} would be left: add a server first",
                code="not-enough-servers",
            )

    # -- the duty ---------------------------------------------------------------------------------------------
    async def step(self, epoch: int) -> tuple[int, bool]:
        """Go on with everything that drains; (chunks acted on, more at once)."""
        view, now_ms = self._cluster.view, self._cluster.now_ms()
        draining = [d for d in view.devices.values() if d.state == "draining"]
        self._since_ms = {d.id: self._since_ms.get(d.id, now_ms) for d in draining}
        for gone in set(self.progress) - {d.id for d in draining}:
            if self.progress[gone].state != "drained":
                del self.progress[gone]
        done, more = 0, False
        for device in draining:
            acted, is_unfinished = await self._repair.evacuate(device.id, WHY, epoch)
            done += acted
            more = more or is_unfinished
            if not is_unfinished:
                more = await self._finish(device, epoch) or more
        await self._finish_servers(epoch)
        return done, more

    async def _finish(self, device: DeviceInfo, epoch: int) -> bool:
        """Declare the device drained if nothing is left on it; whether it is worth trying again at once."""
        since_ms, now_ms = self._since_ms[device.id], self._cluster.now_ms()

        # What is to be deleted on a device that takes no writes may stay there: nothing names it any more.
        kinds = ["copy", "delete"] if can_delete(self._cluster.view, device.id) else ["copy"]

        def look(c: Connection) -> tuple[int, int, str]:
            chunks, size = garbage.count_on_device(c, device.id)
            if chunks:
                return chunks, size, CHUNKS
            return 0, 0, _still_open(c, device.id, kinds, since_ms=since_ms, now_ms=now_ms)

        chunks, size, waits_for = await self._database.read(look)
        is_drained = False
        try:
            if waits_for in ("", CHUNKS):   # what has moved away may stand there still; wrong rows wait for the mark
                await self._catch_up()
            if not waits_for:
                waits_for, is_drained = await self._database.batch(
                    lambda session: self._close(session, device.id, epoch, kinds, since_ms=since_ms, now_ms=now_ms)
                )
        except StaleRows:
            waits_for = waits_for or REVERSE_TABLE  # another process wrote the same rows of it: again in a moment
        known = self.progress.get(device.id)
        if known is None:
            known = self.progress[device.id] = DrainProgress(device.id, device.server, chunks, chunks, size)
        scan = self._repair.scan_of(device.id)
        known.total_chunks = max(known.total_chunks, chunks)
        known.left_chunks, known.left_bytes, known.waits_for = chunks, size, waits_for
        known.stuck = scan.stuck if scan is not None else 0
        if is_drained:
            known.state = "drained"
            self._repair.forget_scan(device.id)
            await self._cluster.refresh()
        return waits_for == REVERSE_TABLE

    async def _catch_up(self) -> None:
        """Bring the reverse table near the feed's head without waiting for a pause of the writers, as its own task
        does: they may never make one."""
        for _ in range(PIECES_AHEAD_MAX):
            if not (await self._database.batch(placements.index_piece)).more:
                return

    @staticmethod
    def _close(
        session: Session, device: int, epoch: int, kinds: list[str], *, since_ms: int, now_ms: int
    ) -> tuple[str, bool]:
        """(what it still waits for, whether it is drained now). With commits locked out the feed has an end."""
        c = session.connection
        require_epoch(c, PROMOTER, epoch)
        lock_out_commits(c)
        row = servers.lock_device(c, device)
        if row is None or row.wish != "draining":
            return "", False
        for _ in range(PIECES_LOCKED_MAX):
            if not placements.index_piece(session).more:
                break
        else:
            return REVERSE_TABLE, False
        if garbage.placed_between(c, device, after=b"", last=None, limit=1):
            return CHUNKS, False
        waits_for = _still_open(c, device, kinds, since_ms=since_ms, now_ms=now_ms)
        if waits_for:
            return waits_for, False
        servers.change_device(c, device, state="drained")
        return "", True

    async def _finish_servers(self, epoch: int) -> None:
        """A server is drained when all its devices are."""
        for server_id, wish in list(self._cluster.wishes.items()):
            devices = [d for d in self._cluster.view.devices.values() if d.server == server_id]
            if wish != "draining" or not all(d.state in ("drained", "removed") for d in devices):
                continue

            def work(c: Connection, server: int = server_id) -> None:
                require_epoch(c, PROMOTER, epoch)
                lock_out_commits(c)
                servers.change_server(c, server, state="drained")

            await self._database.write(work)
            await self._cluster.refresh()
            self._cluster.judge_all()


def _still_open(c: Connection, device: int, kinds: list[str], *, since_ms: int, now_ms: int) -> str:
    """What may still bring chunks to a device, or take them from it; "" for nothing. kinds: of jobs that matter."""
    if workload.open_on_device(c, device, kinds):
        return "jobs under way"
    if now_ms - since_ms < LONG_UPLOADS_WAIT_MS and operations.is_any_leased(c, begun_ms=since_ms, now_ms=now_ms):
        return "uploads under way"
    return ""
