"""Collection of garbage, and the guard that stands before every deletion (rule 1).

Garbage rows hold chunks that lost their last reference in a committed transaction. After KEEP_MS, and when nobody
holds a pin, they become delete jobs, batched per device; the object servers move them to their trash. A device whose
server is away is left out: its inventory on return shows the copies as orphans.

DeletionGuard: nothing is deleted anywhere while any device has seen a higher commit sequence than this catalog has,
or before every device that is not dead has been heard (an old copy of the catalog would not know what it does not
know). Orphans, chunks that no row of this catalog explains, stop for an operator's word beyond ORPHAN_SHARE_PER_DAY of
a device (see docs/adr/0043: garbage has a committed transaction as its reason, an orphan has none).

Cost: one transaction per GARBAGE_ROWS rows; a delete job of 1,024 ids is one row of 16 KiB.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, leases, operations, placements, workload
from metadata.catalog.database import Database
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import PackedChunk
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import DeviceInfo
from metadata.services.jobs.queue import delete_batches
from metadata.services.jobs.work import is_alive
from tierstore.names import UPLOAD_ID_BYTES, UploadId, allocated_at_ms

#: Unreferenced chunks live at least this long, for readers that looked them up before (rule 14).
KEEP_MS: Final = 15 * 60_000
GARBAGE_ROWS: Final = 512
IDS_PER_JOB: Final = 1024
#: Open delete jobs of collection; more wait as garbage rows.
OPEN_MAX: Final = 256
ORPHAN_SHARE_PER_DAY: Final = 0.01
#: However small a device is, this many orphans a day need nobody's word: a few crashed uploads are no catalog loss.
ORPHANS_FREE: Final = 1000
DAY_MS: Final = 86_400_000


class Spent(msgspec.Struct, array_like=True, frozen=True):
    """Orphans of one device within the running day."""

    since_ms: int = 0
    chunks: int = 0


class DeletionGuard:
    """Says whether anything may be deleted. Barrier, the day's count of each device and an operator's word are rows of
    the catalog: neither a restart nor another process forgets them."""

    SETTING: Final = "deletion-barred"
    #: Setting "from,to" in ms: chunks of uploads that began between them were lost to a rebuild and are spared.
    REBUILT_WINDOW: Final = "rebuilt-window"
    #: Setting: until when (catalog ms) orphans may go without a bound.
    AGREED: Final = "orphans-agreed-until"
    #: Settings, one a device: Spent as JSON.
    SPENT: Final = "orphans-spent."

    def __init__(
        self, database: Database, cluster: Cluster, *, orphan_share: float = ORPHAN_SHARE_PER_DAY
    ) -> None:
        self._database = database
        self._cluster = cluster
        self._orphan_share = orphan_share
        self.barred = ""
        self._is_kept = False       # `barred` stands in the catalog
        #: Devices that stopped for an operator's word.
        self.asking: dict[int, int] = {}

    async def check(self) -> None:
        """Compare what devices have seen with this catalog; bar deletion durably if one has seen more."""
        if not self.barred:
            self.barred = await self._database.read(lambda c: leases.setting(c, self.SETTING))
            self._is_kept = bool(self.barred)
        sequence = self._cluster.sequence
        ahead = self._ahead()
        if ahead and not self.barred:
            worst = max(ahead, key=lambda d: d.seen_sequence)
            self.barred = (
                f"device {worst.id} has seen sequence {worst.seen_sequence}, this catalog is at {sequence}: it is an "
                "old copy; run `tierstore metadata rebuild`"
            )
        if self.barred and not self._is_kept:
            text = self.barred
            # Until it is written down: the next writes take this catalog past what the device has seen, and after a
            # restart nothing would show any more that it is an old one.
            await self._database.write(lambda c: leases.set_setting(c, self.SETTING, text))
            self._is_kept = True

    @property
    def has_heard_all(self) -> bool:
        """Whether every object server that lives has been heard since this process began, and none of their devices has
        seen a later state of the catalog."""
        view = self._cluster.view
        heard = any(
            s.role == "objectd" and s.seen_at_ms >= self._cluster.watching_since_ms for s in view.servers.values()
        )
        return heard and not self._ahead() and not self.why_not()

    def _ahead(self) -> list[DeviceInfo]:
        """Devices that have seen a later state of the catalog."""
        devices = self._cluster.view.devices.values()
        return [d for d in devices if d.seen_sequence > self._cluster.sequence and d.state != "removed"]

    async def lift(self) -> None:
        """After a rebuild has adopted what the catalog did not know."""
        await self._database.write(lambda c: leases.set_setting(c, self.SETTING, ""))
        self.barred = ""

    def why_not(self, device: int = 0) -> str:
        """Why nothing may be deleted now; "" when it may. device: also whether that one waits for a word."""
        if self.barred:
            return self.barred
        now_ms = self._cluster.now_ms()
        settled = now_ms - self._cluster.watching_since_ms >= self._cluster.settings.timers.dead_seconds * 1000
        view = self._cluster.view
        unheard = [
            s.name for s in view.servers.values()
            if s.role == "objectd" and s.state not in ("dead", "removed")
            and s.seen_at_ms < self._cluster.watching_since_ms
        ]  # fmt: skip
        if unheard and not settled:
            return f"not heard yet since this process started: {', '.join(unheard)}"
        return ""

    async def spend(self, device: int, orphans: list[bytes]) -> list[bytes]:
        """Those orphans of a device that may go today; the rest waits for an operator's word."""
        if not orphans:
            return []
        now_ms = self._cluster.now_ms()
        allowed = max(ORPHANS_FREE, int(self._cluster.view.devices[device].chunks * self._orphan_share))

        def work(c: Connection) -> list[bytes]:
            take: list[bytes] = []

            def count(text: str) -> str:
                nonlocal take
                spent = msgspec.json.decode(text, type=Spent) if text else Spent()
                if now_ms - spent.since_ms >= DAY_MS:
                    spent = Spent(now_ms)
                is_free = now_ms < self._agreed_until_ms(c)
                take = orphans if is_free else orphans[: max(0, allowed - spent.chunks)]
                return msgspec.json.encode(Spent(spent.since_ms, spent.chunks + len(take))).decode()

            leases.change_setting(c, f"{self.SPENT}{device}", count)
            return take

        take = await self._database.write(work)
        if len(take) < len(orphans):
            self.asking[device] = self.asking.get(device, 0) + len(orphans) - len(take)
        return take

    def _agreed_until_ms(self, c: Connection) -> int:
        return int(leases.setting(c, self.AGREED) or 0)

    async def spare_rebuilt(self, orphans: list[bytes]) -> list[bytes]:
        """Orphans without those that a rebuild could not know: written behind the last journal piece. They wait for
        an operator's word."""
        if not orphans:
            return orphans
        text, agreed_until_ms = await self._database.read(
            lambda c: (leases.setting(c, self.REBUILT_WINDOW), self._agreed_until_ms(c))
        )
        if not text or self._cluster.now_ms() < agreed_until_ms:
            return orphans
        first_ms, last_ms = (int(part) for part in text.split(","))
        return [
            chunk for chunk in orphans
            if not first_ms <= allocated_at_ms(UploadId(chunk[:UPLOAD_ID_BYTES])) <= last_ms
        ]  # fmt: skip

    async def agree(self) -> None:
        """An operator's word: for a day orphans may go without a bound. Durable when it returns."""
        until_ms = self._cluster.now_ms() + DAY_MS
        await self._database.write(lambda c: leases.set_setting(c, self.AGREED, str(until_ms)))
        self.asking.clear()


class Collection:
    """Turns garbage rows into delete jobs."""

    def __init__(self, database: Database, cluster: Cluster, guard: DeletionGuard, *, keep_ms: int = KEEP_MS) -> None:
        self._database = database
        self._cluster = cluster
        self._guard = guard
        self._keep_ms = keep_ms
        self.why_idle = ""

    async def step(self, epoch: int) -> tuple[int, bool]:
        """Queue the deletion of the oldest garbage; (chunks queued, more)."""
        await self._guard.check()
        self.why_idle = self._guard.why_not()
        if self.why_idle or await self._database.read(lambda c: workload.open_count(c, "collect")) >= OPEN_MAX:
            return 0, False
        now_ms = self._cluster.now_ms()
        return await self._database.write(lambda c: self._collect(c, epoch, now_ms))

    def _collect(self, c: Connection, epoch: int, now_ms: int) -> tuple[int, bool]:
        require_epoch(c, PROMOTER, epoch)
        rows = garbage.collectable(c, before_ms=now_ms - self._keep_ms, limit=GARBAGE_ROWS)
        pinned = operations.pinned(c, [chunk.id for row in rows for chunk in row.chunks], now_ms=now_ms)
        by_device: dict[int, list[bytes]] = defaultdict(list)
        collected: list[tuple[int, bytes]] = []
        finished: list[int] = []
        count = 0
        for row in rows:
            held = [chunk for chunk in row.chunks if chunk.id in pinned]
            if held:
                garbage.keep_only(c, row.id, held)
            else:
                finished.append(row.id)
            for chunk in row.chunks:
                if chunk.id not in pinned:
                    count += 1
                    collected += [(replica.device, chunk.id) for replica in chunk.replicas]
                    self._add(by_device, chunk)
        for device, ids in sorted(by_device.items()):
            server = self._cluster.view.devices[device].server
            jobs.add(c, delete_batches(server, device, ids, per_job=IDS_PER_JOB, why="collect"), now_ms=now_ms)
        placements.forget(c, collected)     # the reverse table may not have come to these rows, and they go now
        garbage.remove(c, finished)
        return count, len(rows) == GARBAGE_ROWS

    def _add(self, by_device: dict[int, list[bytes]], chunk: PackedChunk) -> None:
        for replica in chunk.replicas:
            if is_alive(self._cluster.view, replica.device):
                by_device[replica.device].append(chunk.id)
