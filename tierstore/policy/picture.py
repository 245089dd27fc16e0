"""The fast tiers as the promoter sees them: which chunk has a copy on which device, at which rank. Pure code.

Owns the shelves (one per fast device), which devices hold a chunk, and what a copy is worth: the rank of a chunk is
`r = s + log2(saved) - beta * log2(size)`: s its score (heat.py), saved the seconds that a read of it takes less on the
fast device than on the best copy that it has beside. What is to be done about it is decide.py's.

Invariants: a chunk is in `_held` as long as a shelf has it; the heat table is told of every copy that comes and goes
(HeatTable.keep and release); ranks that may have fallen are computed anew before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tierstore.names import TIERS
from tierstore.policy.heat import HeatTable
from tierstore.policy.plan import Candidate, Promotion
from tierstore.policy.rules import PromoterRules
from tierstore.policy.shelf import Device, Resident, Shelf, speed_changed
from tierstore.policy.sketch import COLD


class Picture:
    """What is where, told by the caller (`resident`, `dropped`) and by the planner's own decisions."""

    def __init__(self, heat: HeatTable, rules: PromoterRules, devices: Iterable[Device]) -> None:
        self.heat = heat
        self.rules = rules
        self._devices: dict[int, Device] = {}
        self._shelves: dict[int, Shelf] = {}
        self._tiers: list[tuple[str, list[Shelf]]] = []  # fastest first, the slowest tier left out
        self._held: dict[bytes, list[int]] = {}        # chunk -> fast devices that hold a cache copy of it
        self._epoch = heat.epoch
        self._speeds: dict[int, tuple[float, float]] = {}  # with which the ranks were computed
        self.set_devices(devices)

    # -- what is there

    def set_devices(self, devices: Iterable[Device]) -> None:
        """Take over today's devices with their measured speeds, fill, load and state; forget those that are gone."""
        self._devices = {device.id: device for device in devices}
        order: dict[str, int] = {tier: n for n, tier in enumerate(TIERS)}
        tiers = sorted({d.tier for d in self._devices.values() if d.tier != "mem"}, key=lambda t: order.get(t, 99))
        for gone in set(self._shelves) - {d.id for d in self._devices.values() if d.tier in tiers[:-1]}:
            for chunk in list(self._shelves[gone].residents):
                self.dropped(chunk, gone)
            del self._shelves[gone]
        self._tiers = []
        is_changed = any(speed_changed(self._speeds.get(d.id), d) for d in self._devices.values())
        for tier in tiers[:-1]:
            shelves = []
            for device in sorted((d for d in self._devices.values() if d.tier == tier), key=lambda d: d.id):
                shelf = self._shelves.setdefault(device.id, Shelf(device, self.rules.fill))
                shelf.device, shelf.fill = device, self.rules.fill
                shelves.append(shelf)
            self._tiers.append((tier, shelves))
        if is_changed:
            self._rerank()

    def set_rules(self, rules: PromoterRules) -> None:
        """A changed [promoter] section takes effect at the next tick."""
        is_reranked = rules.beta != self.rules.beta
        self.rules = rules
        for shelf in self._shelves.values():
            shelf.fill = rules.fill
        if is_reranked:
            self._rerank()

    def unpin(self) -> None:
        """The rules changed: no copy is pinned until a candidate under a pin rule says so again."""
        for shelf in self._shelves.values():
            for resident in shelf.residents.values():
                resident.is_pinned = False
            shelf.rebuild(self._rank)

    def chunks(self) -> list[bytes]:
        """All chunks with a cache copy, to be offered as candidates under changed rules (`never` drops the copies)."""
        return sorted(self._held)

    def resident(
        self, chunk: bytes, size: int, device: int, homes: Sequence[int], *, is_pinned: bool = False
    ) -> None:
        """A cache copy that exists (at start, from the catalog). homes: devices of its home copies."""
        shelf = self._shelves.get(device)
        if shelf is not None:
            self._place(shelf, chunk, size, homes, is_pinned=is_pinned)

    def dropped(self, chunk: bytes, device: int) -> None:
        """A cache copy is gone (or its promotion failed). Unknown ones are ignored: may be repeated."""
        shelf = self._shelves.get(device)
        if shelf is None or shelf.drop(chunk) is None:
            return
        left = [d for d in self._held.pop(chunk, []) if d != device]
        if left:
            self._held[chunk] = left
        self._tell_heat(chunk)

    def forget(self, chunk: bytes) -> None:
        """The chunk was deleted or replaced: all its copies and its heat go."""
        for device in self._held.get(chunk, [])[:]:
            self.dropped(chunk, device)
        self.heat.forget(chunk)

    def devices_of(self, chunk: bytes) -> tuple[int, ...]:
        """Fast devices that hold (or are about to hold) a cache copy of the chunk."""
        return tuple(self._held.get(chunk, ()))

    # -- questions

    def roomiest(self, size: int) -> int:
        """The usable device of the fastest tier that has room for `size` bytes, the emptiest first; 0 = none."""
        for _, shelves in self._tiers:
            fitting = [s for s in shelves if s.device.is_usable and s.room_bytes >= size]
            if fitting:
                return max(fitting, key=lambda s: (s.room_bytes / s.device.capacity_bytes, -s.device.id)).device.id
        return 0

    def is_wanted(self, promotion: Promotion) -> bool:
        """Is the promotion still right now that its copy is about to begin?"""
        shelf = self._shelves.get(promotion.device)
        return shelf is not None and shelf.device.is_usable and promotion.chunk in shelf.residents

    def chunk_bytes_max(self, tier: str = "") -> int:
        """The largest chunk that may move to a fast tier (to any, without one): a share of it, at most a device."""
        largest = 0
        for name, shelves in self._tiers:
            if shelves and tier in ("", name):
                share = self.rules.chunk_share_max * sum(s.device.capacity_bytes for s in shelves)
                largest = max(largest, int(min(share, max(s.device.capacity_bytes for s in shelves))))
        return largest

    def lowest_rank(self, tier: str) -> float:
        """Rank of the lowest resident of a fast tier that can be displaced; COLD when there is none."""
        ranks = [
            low[0] for name, shelves in self._tiers if name == tier
            for shelf in shelves if (low := shelf.lowest(self._rank)) is not None
        ]  # fmt: skip
        return min(ranks, default=COLD)

    def rank_of(self, chunk: bytes, size: int, devices: Sequence[int], device: int) -> float:
        """Rank that a chunk with copies on `devices` has, or would have, on `device`; COLD when it saves nothing."""
        slow = self._slow_seconds(size, devices, without=device)
        return self.heat.score(chunk) + self._gain(size, slow - self._devices[device].read_seconds(size))

    def best_rank(self, candidate: Candidate, tier: str) -> float:
        """Highest rank that the chunk has, or would have, on a usable device of a tier; COLD when it saves nothing."""
        gains = [
            self._gain_on(candidate, s.device.id)
            for name, shelves in self._tiers if name == tier for s in shelves if s.device.is_usable
        ]  # fmt: skip
        return candidate.score + max(gains, default=COLD)

    def has_room(self, size: int, tier: str) -> bool:
        """Whether a usable device of a fast tier takes `size` bytes without displacing anything."""
        return any(
            s.room_bytes >= size and s.device.is_usable
            for name, shelves in self._tiers if name == tier for s in shelves
        )  # fmt: skip

    def held_tiers(self, chunk: bytes) -> set[str]:
        """Fast tiers that hold (or are about to hold) a cache copy of the chunk."""
        return {self._devices[d].tier for d in self._held.get(chunk, ())}

    def tier_of(self, device: int) -> str:
        """Of a device that is known; else ""."""
        found = self._devices.get(device)
        return found.tier if found is not None else ""

    def used_bytes(self, tier: str) -> int:
        """Bytes of cache copies on a fast tier, those under way included."""
        return sum(shelf.used_bytes for name, shelves in self._tiers if name == tier for shelf in shelves)

    def device_bytes(self, device: int) -> int:
        """Bytes of cache copies on one fast device, those under way included."""
        shelf = self._shelves.get(device)
        return shelf.used_bytes if shelf is not None else 0

    def residents_of(self, device: int) -> list[bytes]:
        """Chunks with a cache copy on one fast device, those under way included."""
        shelf = self._shelves.get(device)
        return list(shelf.residents) if shelf is not None else []

    @property
    def fast_tiers(self) -> list[str]:
        """The tiers that the promoter fills, fastest first."""
        return [name for name, _ in self._tiers]

    # -- copies come and go

    def _place(
        self, shelf: Shelf, chunk: bytes, size: int, homes: Sequence[int], *, is_pinned: bool, share: float = 1.0
    ) -> None:
        resident = Resident(size, tuple(homes), COLD, is_pinned, share)
        resident.gain = self._resident_gain(shelf, resident)
        shelf.put(chunk, resident, self._rank(chunk, resident))
        held = self._held.setdefault(chunk, [])
        if shelf.device.id not in held:
            held.append(shelf.device.id)
        self._tell_heat(chunk)

    def _tell_heat(self, chunk: bytes) -> None:
        """Scores of residents stay exact; those on the fastest tier are no candidates."""
        held = self._held.get(chunk)
        if not held:
            self.heat.release(chunk)
            return
        tiers = {device.tier for d in held if (device := self._devices.get(d)) is not None}
        self.heat.keep(chunk, is_settled=bool(self._tiers) and self._tiers[0][0] in tiers)

    def _pin(self, chunk: bytes, devices: Sequence[int]) -> None:
        for device in devices:
            self._shelves[device].residents[chunk].is_pinned = True  # its entry in the heap goes at the top

    # -- ranks

    def _rank(self, chunk: bytes, resident: Resident) -> float:
        return self.heat.score(chunk) + resident.gain

    def _gain(self, size: int, saved: float) -> float:
        return math.log2(saved) - self.rules.beta * math.log2(max(size, 1)) if saved > 0 else COLD

    def _gain_on(self, candidate: Candidate, device: int) -> float:
        slow = self._slow_seconds(candidate.size, candidate.devices, without=device)
        return self._gain(candidate.size, slow - self._devices[device].read_seconds(candidate.size))

    def _slow_seconds(self, size: int, devices: Sequence[int], *, but: str = "", without: int = 0) -> float:
        """A read from the best of these copies, those on tier `but` or device `without` left out.

        Without any copy left, from the slowest device: a chunk whose copies are all unknown gains most.
        """
        best = math.inf
        for id in devices:
            device = self._devices.get(id)
            if device is not None and id != without and device.tier != but:
                best = min(best, device.seconds + size / device.bytes_per_second)
        if best < math.inf:
            return best
        return max((device.read_seconds(size) for device in self._devices.values()), default=0.0)

    def _is_faster(self, candidate: Candidate, device: int) -> bool:
        """Is its copy on `device` worth having beside those of other tiers? False for one on a grey device."""
        slow = self._slow_seconds(candidate.size, candidate.devices, but=self._devices[device].tier)
        return slow > self._devices[device].read_seconds(candidate.size)

    def _best_rank(self, candidate: Candidate) -> float:
        gains = [self._gain_on(candidate, s.device.id) for _, shelves in self._tiers for s in shelves[:1]]
        return candidate.score + max(gains, default=COLD)

    def _spread_gain(self, candidate: Candidate, device: Device) -> float:
        """Worth of one more fast copy: it takes its share of the reads off the others."""
        slow = self._slow_seconds(candidate.size, candidate.devices, but=device.tier)
        copies = len(self._held.get(candidate.chunk, ())) + 1
        return self._gain(candidate.size, (slow - device.read_seconds(candidate.size)) / copies)

    def _resident_gain(self, shelf: Shelf, resident: Resident) -> float:
        saved = self._slow_seconds(resident.size, resident.homes) - shelf.device.read_seconds(resident.size)
        return self._gain(resident.size, saved * resident.share)

    def _rerank(self) -> None:
        """Ranks may have fallen (a new landmark, a changed speed): compute all anew."""
        self._epoch = self.heat.epoch
        self._speeds = {d.id: (d.seconds, d.bytes_per_second) for d in self._devices.values()}
        for shelf in self._shelves.values():
            for resident in shelf.residents.values():
                resident.gain = self._resident_gain(shelf, resident)
            shelf.rebuild(self._rank)

    def _grey_devices(self) -> tuple[int, ...]:
        """Fast devices on which a 64 KiB read takes as long as on the next slower tier: failing, though they answer."""
        size = 65_536
        grey = []
        slower: float | None = None
        slow = [d for d in self._devices.values() if d.id not in self._shelves and d.tier != "mem" and d.is_usable]
        if slow:
            slower = min(d.read_seconds(size) for d in slow)
        for _, shelves in reversed(self._tiers):
            if slower is not None:
                grey += [s.device.id for s in shelves if s.device.is_usable and s.device.read_seconds(size) >= slower]
            times = [s.device.read_seconds(size) for s in shelves if s.device.is_usable and s.device.id not in grey]
            slower = min([*times, slower] if slower is not None else times, default=None)
        return tuple(sorted(grey))
