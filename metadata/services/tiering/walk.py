"""The walk over what lies on the fast devices: cache copies the promoter should know, landed home copies that go home.

Owns a cursor per pass over the reverse table of each fast device, and what a pass adds up: bytes whose home copies all
lie on fast devices (exposed) and the age of the oldest. A pass reconciles: copies it finds become residents, residents
it does not find are dropped; so whatever else changed the catalog (repair, drain, deletes, another holder of the lease)
is caught up with. A landed home copy (land-fast, or a write that found the slow tier full) is copied home; it stays as
a cache copy if the chunk has no other, and then competes by rank like all of them.

While a round over all devices takes longer than LATE_SECONDS, each step also looks at what was written of late: ids of
chunks begin with the time of their upload, so that is the end of a device's table. A burst that lands among millions of
cache copies goes home, and is shown as exposed, at once, not when the round comes to it.

Bounds: PAGE chunks a step, and as many on each of LATE_DEVICES_MAX devices of what is late; SETTLE_OPEN_MAX copies home
at once (SETTLE_OPEN_BUSY while clients write much). Cost: 15 us a chunk, one read a step, off the loop; of what is late
one more for each device, in a round that is long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec

from metadata.catalog import garbage, jobs, tiering, workload
from metadata.catalog.book import Located
from metadata.catalog.database import Database
from metadata.catalog.jobs import NewJob
from metadata.catalog.leases import Connection, require_epoch
from metadata.catalog.packed import LIVE, Replica
from metadata.services.cluster.duties import PROMOTER
from metadata.services.cluster.membership import Cluster
from metadata.services.cluster.view import DeviceInfo
from metadata.services.jobs.work import CLASS_TIER, CopyWork, is_alive
from metadata.services.tiering.service import Tiering
from tierstore.names import TIERS
from tierstore.policy.rules import Rule
from tierstore.ticket import ROLE_CACHE, ROLE_HOME

PAGE: Final = 500
#: A round that takes no longer finds by itself what landed.
LATE_SECONDS: Final = 10.0
#: How old the id of a chunk may be when it is committed, and some more: allocations are held for a few minutes.
LATE_IDS_SECONDS: Final = 900.0
LATE_DEVICES_MAX: Final = 16
SETTLE_OPEN_MAX: Final = 2_048
SETTLE: Final = "settle"
#: While clients commit more often than this and the fast devices are less than half full, draining yields to them: it
#: costs metadata as much as their writes do, and a burst is to have the speed of the fast devices. Not for ever: what
#: is exposed grows meanwhile, and a full device takes nothing more.
BUSY_COMMITS_PER_SECOND: Final = 10.0
YIELD_FREE_SHARE: Final = 0.5
SETTLE_OPEN_BUSY: Final = 32
_PLACE: Final[dict[str, int]] = {tier: place for place, tier in enumerate(TIERS)}

#: A device of a tier with room for so many bytes on none of these servers, or None.
Choose = Callable[[int, str, Collection[int]], DeviceInfo | None]


@dataclass(frozen=True, slots=True)
class Exposed:
    """Home copies on fast devices that are to go home. oldest_at: of their oldest upload, s since 1970; 0: none."""

    chunks: int = 0
    bytes: int = 0
    oldest_at: float = 0.0


@dataclass(slots=True)
class _Pass:
    """One pass over one device, or over what is late on it."""

    device: int
    after: bytes = b""
    seen: set[bytes] = field(default_factory=set)
    known: list[bytes] = field(default_factory=list)
    exposed: Exposed = Exposed()


class ShelfWalk:
    """One per process; `step` runs only in the holder of the promoter's lease."""

    def __init__(self, database: Database, cluster: Cluster, tiering: Tiering, *, choose: Choose) -> None:
        self._database = database
        self._cluster = cluster
        self._view = cluster.view
        self._tiering = tiering
        self._choose = choose
        self._pass: _Pass | None = None
        self._epoch = -1
        self._round_began_at = tiering.now()
        self._late: _Pass | None = None
        self._exposed: dict[int, Exposed] = {}
        self._exposed_late: dict[int, Exposed] = {}
        self._commits_seen = (tiering.commits, tiering.now())
        self._commits_per_second = 0.0
        self.passes = 0
        self.is_complete = False      # every fast device was walked once under this lease

    @property
    def exposed(self) -> dict[int, Exposed]:
        """By fast device, as the last pass over it found; what landed since, when that is more."""
        late = self._exposed_late
        return {
            device: max(self._exposed.get(device, Exposed()), late.get(device, Exposed()), key=lambda e: e.bytes)
            for device in {*self._exposed, *late}
        }

    async def step(self, epoch: int) -> tuple[int, bool]:
        """The next page; (what was acted on, is the pass over all devices unfinished)."""
        await self._tiering.begin(epoch)
        planner = self._tiering.planner
        assert planner is not None
        if epoch != self._epoch:
            self._epoch, self._pass, self._late, self.is_complete = epoch, None, None, False
            self._exposed_late = {}
        fast = self._fast_devices()
        if not fast:
            self._exposed, self._exposed_late, self.is_complete = {}, {}, True
            return 0, False
        if self._pass is None or self._pass.device not in fast:
            if self._pass is None:
                self._round_began_at = self._tiering.now()
            self._pass = self._begin(fast[0])
        now = self._pass
        self._look_at_commits()
        late = await self._look_at_late(fast, epoch)
        acted, is_full = await self._page(now, epoch)
        is_first = not self.is_complete     # only the first pass hurries, and one that finds something to do
        if is_full:
            return acted + late, is_first or (acted + late > 0 and not self._yields(now.device))
        acted += self._end(now)
        later = [device for device in fast if device > now.device]
        self._pass = self._begin(later[0]) if later else None
        if not later:
            self.passes += 1
            self.is_complete = True
        return acted + late, is_first and bool(later)

    async def _page(self, now: _Pass, epoch: int) -> tuple[int, bool]:
        """The next page of a pass; (what was acted on, may there be more)."""
        page = await self._database.scan(
            lambda c: garbage.placed_between(c, now.device, after=now.after, last=None, limit=PAGE)
        )
        if not page:
            return 0, False
        names = await self._tiering.finder.bucket_names()
        found = await self._database.scan(
            lambda c: tiering.find(c, {chunk: [now.device] for chunk, _ in page}, names)
        )
        acted = await self._look_at(now, found, epoch)
        now.after = page[-1][0]
        return acted, len(page) == PAGE

    async def _look_at_late(self, fast: list[int], epoch: int) -> int:
        """What was written of late, device after device, as far as one step goes; what was acted on."""
        at = self._tiering.now()
        if at - self._round_began_at < LATE_SECONDS:
            self._late, self._exposed_late = None, {}
            return 0
        acted = 0
        for _ in range(min(len(fast), LATE_DEVICES_MAX)):
            if self._late is None or self._late.device not in fast:
                self._late = _late_pass(fast[0], at)
            late = self._late
            done, is_full = await self._page(late, epoch)
            acted += done
            if is_full:
                break       # the rest with the next step
            self._exposed_late[late.device] = late.exposed
            self._late = _late_pass(next((device for device in fast if device > late.device), fast[0]), at)
        return acted

    def _look_at_commits(self) -> None:
        """How often clients commit, over the last second or more."""
        seen, at = self._commits_seen
        now, commits = self._tiering.now(), self._tiering.commits
        if now - at >= 1.0:
            self._commits_per_second = (commits - seen) / (now - at)
            self._commits_seen = (commits, now)

    def _yields(self, device: int) -> bool:
        info = self._view.devices[device]
        has_room = info.free_bytes > YIELD_FREE_SHARE * info.capacity_bytes
        return has_room and self._commits_per_second > BUSY_COMMITS_PER_SECOND

    def _fast_devices(self) -> list[int]:
        """Those of every tier but the slowest, that can be read."""
        tiers = {d.tier for d in self._view.devices.values() if self._view.can_read(d.id)}
        slowest = max(tiers, key=lambda tier: _PLACE.get(tier, 0), default="")
        return sorted(
            d.id for d in self._view.devices.values() if d.tier != slowest and self._view.can_read(d.id)
        )

    def _begin(self, device: int) -> _Pass:
        planner = self._tiering.planner
        return _Pass(device, known=planner.residents_of(device) if planner is not None else [])

    def _end(self, over: _Pass) -> int:
        self._exposed[over.device] = over.exposed
        for gone in {*self._exposed, *self._exposed_late} - set(self._fast_devices()):
            self._exposed.pop(gone, None)
            self._exposed_late.pop(gone, None)
        return self._tiering.disown(over.device, over.seen, over.known)

    async def _look_at(self, now: _Pass, found: dict[bytes, Located], epoch: int) -> int:
        landed: list[Located] = []
        for chunk, located in found.items():
            replica = next((r for r in located.chunk.replicas if r.device == now.device), None)
            if replica is None or replica.state != LIVE:
                continue
            if replica.role == ROLE_CACHE:
                now.seen.add(chunk)
                self._tiering.adopt(located, now.device)
            elif self._is_landed(located, now.device):
                landed.append(located)
                before = now.exposed
                at = int.from_bytes(chunk[:6], "big") / 1000    # an upload's id begins with its time
                oldest = min(before.oldest_at, at) if before.oldest_at else at
                now.exposed = Exposed(before.chunks + 1, before.bytes + located.chunk.chunk_bytes, oldest)
        return await self._settle(landed, now.device, epoch) if landed else 0

    def home_tier(self, rule: Rule) -> str:
        """The tier where home copies under a rule belong: the rule's, else the slowest there is."""
        tiers = {d.tier for d in self._view.devices.values() if self._view.can_place(d)}
        if rule.home in tiers:
            return rule.home
        return max(tiers, key=lambda tier: _PLACE.get(tier, 0), default="")

    def _is_landed(self, located: Located, device: int) -> bool:
        """Whether a home copy lies on a faster tier than it belongs to."""
        home = self.home_tier(self._tiering.finder.rule_of(located))
        info = self._view.devices.get(device)
        return bool(home) and info is not None and _PLACE.get(info.tier, 0) < _PLACE.get(home, 0)

    async def _settle(self, landed: list[Located], device: int, epoch: int) -> int:
        """Queue copies home."""
        now_ms = self._cluster.now_ms()
        wanted = [job for located in landed if (job := self._copy_home(located, device)) is not None]
        open_max = SETTLE_OPEN_BUSY if self._yields(device) else SETTLE_OPEN_MAX

        def work(c: Connection) -> int:
            require_epoch(c, PROMOTER, epoch)
            room = open_max - workload.open_count(c, SETTLE)
            busy = workload.open_kinds_of(c, [job.chunk for job in wanted])
            # One copy of a chunk at a time, so that the second sees where the first one went.
            return jobs.add(c, [job for job in wanted if job.chunk not in busy][: max(room, 0)], now_ms=now_ms)

        return await self._database.write(work) if wanted else 0

    def _copy_home(self, located: Located, device: int) -> NewJob | None:
        chunk, rule = located.chunk, self._tiering.finder.rule_of(located)
        home = self.home_tier(rule)
        taken = {
            self._view.devices[r.device].server for r in chunk.replicas
            if r.role == ROLE_HOME and r.device != device and r.device in self._view.devices
        }  # fmt: skip
        target = self._target(chunk.chunk_bytes, home, taken, device, chunk.replicas)
        if target is None:
            return None
        via = next((r.device for r in chunk.replicas if r.device != device), device)
        payload = msgspec.msgpack.encode(CopyWork(via, ROLE_HOME, device, keep=rule.mode != "never"))
        return NewJob(
            "copy", SETTLE, CLASS_TIER, target.server, target.id, chunk=chunk.id, bytes=chunk.chunk_bytes,
            payload=payload,
        )  # fmt: skip

    def _target(
        self, size: int, tier: str, taken: Collection[int], device: int, replicas: Collection[Replica]
    ) -> DeviceInfo | None:
        """The landed copy's own server when it has a device of the home tier with room: no network, same domain."""
        held = {r.device for r in replicas}
        own = self._view.devices[device].server
        for info in self._view.devices.values():
            if (
                info.server == own and info.tier == tier and info.id not in held and self._view.can_place(info)
                and is_alive(self._view, info.id) and info.counts_for_copies and info.free_bytes > 2 * size
            ):
                return info
        found = self._choose(size, tier, taken)
        return found if found is not None and found.tier == tier and found.id not in held else None


def _late_pass(device: int, at: float) -> _Pass:
    """A pass that begins with the chunks of the uploads of the last while. at: s since 1970."""
    since_ms = max(int((at - LATE_IDS_SECONDS) * 1000), 0)
    return _Pass(device, after=since_ms.to_bytes(6, "big") + bytes(10))
