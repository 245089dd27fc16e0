"""The promoter's tick: which chunks get a copy on a faster device, and which copies go to make room. Pure code.

Owns the picture of the fast tiers: what is resident on which device, at which rank. The rank of a chunk is
`r = s + log2(saved) - beta * log2(size)`: s its score (heat.py), saved the seconds that a read of it takes less on the
fast device than on the best copy that it has beside. A candidate takes free room, else displaces residents v while
`r_v + log2(1 + hysteresis) < r`, lowest first, and gives up when that does not free enough. The same rule serves
every pair of tiers; a candidate asks the fastest first.

Invariants: residents of a device never exceed its fill; bytes moved never exceed budget x bytes served plus one
bucket (the largest chunk that may move); a chunk is never displaced by one that is not better by the hysteresis, so
two chunks cannot push each other out in turn; promotion is a copy, demotion a delete of an extra copy: nothing here
touches a home copy.

Cost of a tick: candidates x fast devices comparisons plus log(residents) for each copy that goes; at most
`candidates_max` candidates and `displaced_max` displaced for each. About 25 us a candidate: 0.1 s at 4,096.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from tierstore.names import TIERS
from tierstore.policy.heat import COLD, HeatTable
from tierstore.policy.plan import Candidate, Decision, Demotion, Plan, Promotion, Why
from tierstore.policy.rules import PromoterRules
from tierstore.policy.shelf import Device, Resident, Shelf, speed_changed

#: A very hot chunk gets one fast copy for each share of a device's time that its reads take, ...
SPREAD_BUSY_SHARE: Final = 0.25
#: ... and one more when its server is this busy and the chunk makes up at least SPREAD_LOAD_PART of its reads.
SPREAD_LOAD: Final = 0.7
SPREAD_LOAD_PART: Final = 0.1
_DECISIONS_MAX: Final = 4096

class Planner:
    """Decides, tick by tick. Deterministic: same calls, same plans.

    The caller keeps HeatTable.keep/release in step (`tick` does it for what it decides) and tells by `resident`,
    `dropped` and `failed` what became of the copies.
    """

    def __init__(
        self, heat: HeatTable, rules: PromoterRules, devices: Iterable[Device], *,
        displaced_max: int = 256, decisions_max: int = _DECISIONS_MAX,
    ) -> None:
        self.heat = heat
        self.rules = rules
        self.moved_bytes = 0
        self.served_bytes = 0
        self._displaced_max = displaced_max
        self._decisions_max = decisions_max
        self._devices: dict[int, Device] = {}
        self._shelves: dict[int, Shelf] = {}
        self._tiers: list[tuple[str, list[Shelf]]] = []  # fastest first, the slowest tier left out
        self._held: dict[bytes, list[int]] = {}        # chunk -> fast devices that hold a cache copy of it
        self._epoch = heat.epoch
        self._last_at: float | None = None
        self._speeds: dict[int, tuple[float, float]] = {}  # with which the ranks were computed
        self.set_devices(devices)
        self._chunk_max: dict[str, int] = {}  # of each fast tier, for the tick under way
        self._may_move = True
        self._tokens = float(self.chunk_bytes_max())

    # -- the picture

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

    def failed(self, promotion: Promotion) -> None:
        """The copy was not made: the room and the bytes of the budget are given back. May be repeated."""
        if promotion.device in self._held.get(promotion.chunk, ()):
            self.dropped(promotion.chunk, promotion.device)
            self._tokens += promotion.size
            self.moved_bytes -= promotion.size

    def forget(self, chunk: bytes) -> None:
        """The chunk was deleted or replaced: all its copies and its heat go."""
        for device in self._held.get(chunk, [])[:]:
            self.dropped(chunk, device)
        self.heat.forget(chunk)

    def devices_of(self, chunk: bytes) -> tuple[int, ...]:
        """Fast devices that hold (or are about to hold) a cache copy of the chunk."""
        return tuple(self._held.get(chunk, ()))

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

    @property
    def budget_bytes(self) -> float:
        """What the budget still allows to move now."""
        return self._tokens

    # -- the tick

    def tick(self, at: float, candidates: Sequence[Candidate], served_bytes: int) -> Plan:
        """Decide about chunks that were read since the last tick; `served_bytes` refills the budget.

        Candidates beyond rules.candidates_max are not looked at (the caller brings the hottest). The plan's copies
        count as resident from now on: tell `failed` or `dropped` when they are not made.
        """
        if self._epoch != self.heat.epoch:
            self._rerank()
        self._refill(at, served_bytes)
        plan = Plan(at, grey_devices=self._grey_devices())
        self._demote_over_fill(plan)
        ranked: list[tuple[float, Candidate]] = []
        for candidate in candidates[: self.rules.candidates_max]:
            if candidate.mode == "never":
                self._drop_all(plan, candidate.chunk, "never")
            else:
                ranked.append((self._best_rank(candidate), candidate))
        ranked.sort(key=lambda pair: (pair[1].mode != "pin", -pair[0], pair[1].chunk))
        for rank, candidate in ranked:
            self._consider(plan, candidate, rank)
        plan.budget_bytes = self._tokens
        return plan

    def _refill(self, at: float, served_bytes: int) -> None:
        self.served_bytes += served_bytes
        self._chunk_max = {tier: self.chunk_bytes_max(tier) for tier, _ in self._tiers}
        self._may_move = self.rules.may_move(at)
        # The bucket holds one of the largest chunks, else such a chunk could never move; what `failed` gave back stays.
        bucket = max(float(max(self._chunk_max.values(), default=0)), self._tokens)
        self._tokens = min(self._tokens + self.rules.budget * served_bytes, bucket)
        seconds = self.rules.tick_seconds if self._last_at is None else max(at - self._last_at, 0.0)
        self._last_at = at
        rate = self.rules.device_bytes_per_second_max
        for shelf in self._shelves.values():
            # At most one tick's worth is saved up; a chunk larger than that puts the device into debt.
            shelf.rate_tokens = min(
                shelf.rate_tokens + rate * seconds, rate * self.rules.tick_seconds
            ) if rate else math.inf  # fmt: skip

    def _consider(self, plan: Plan, candidate: Candidate, rank: float) -> None:
        """The pairwise rule for one chunk: the fastest tier that takes it. rank: its best one."""
        why: Why = "no-device"
        lowest = COLD
        reads = self.heat.reads(candidate.score, plan.at)
        held = self._held.get(candidate.chunk, ())
        if candidate.size > max(self._chunk_max.values(), default=0):
            why = "too-large" if self._tiers else "no-device"
        elif reads < self.rules.count_min and candidate.mode != "pin":
            why = "too-few-reads"
        elif not self._may_move:
            why = "paused"
        else:
            for tier, shelves in self._tiers:
                if candidate.fast and tier not in candidate.fast:
                    continue
                on_tier = [d for d in held if self._devices[d].tier == tier]
                is_served = any(self._is_faster(candidate, d) for d in on_tier)
                if on_tier and candidate.mode == "pin":
                    self._pin(candidate.chunk, on_tier)
                if is_served and not self._wants_another(candidate, on_tier, reads):
                    return  # it has what it may have; a copy on a grey device does not count
                if candidate.size > self._chunk_max[tier]:
                    why = "too-large"
                    continue
                if candidate.size > self._tokens:
                    why = "budget"
                    break
                why, rank, lowest = self._try_tier(plan, candidate, shelves, is_spread=is_served)
                if why in {"promoted", "pinned", "spread"}:
                    self._supersede(plan, candidate, tier)
                    return
                if on_tier:
                    break
        self._note(plan, Decision(plan.at, candidate.chunk, "skip", 0, rank, lowest, why))

    def _try_tier(
        self, plan: Plan, candidate: Candidate, shelves: list[Shelf], *, is_spread: bool
    ) -> tuple[Why, float, float]:
        """Find a device of one tier: the one with most free room, else the one whose lowest resident ranks lowest."""
        size, best = candidate.size, COLD
        why: Why = "no-device"
        with_room: tuple[float, int, Shelf] | None = None
        others: list[tuple[float, int, Shelf]] = []
        # One more copy is to take load off a server: never a second one on the same server.
        servers = {self._devices[d].server for d in self._held.get(candidate.chunk, ())} if is_spread else ()
        for shelf in shelves:
            device = shelf.device
            if not device.is_usable or device.id in candidate.devices or device.server in servers:
                continue
            gain = self._spread_gain(candidate, device) if is_spread else self._gain_on(candidate, device.id)
            if gain == COLD:
                why = "not-faster"
                continue
            best = max(best, candidate.score + gain)
            if shelf.rate_tokens <= 0:
                why = "device-rate"
            elif shelf.room_bytes >= size:
                free = shelf.room_bytes / device.capacity_bytes - device.load
                if with_room is None or (-free, device.id) < with_room[:2]:
                    with_room = (-free, device.id, shelf)
            elif (low := shelf.lowest(self._rank)) is not None:
                others.append((low[0], device.id, shelf))
            else:
                why = "no-room"
        if with_room is None and not others:
            return why, best, COLD
        shelf = with_room[2] if with_room is not None else min(others, key=lambda other: other[:2])[2]
        gain = self._spread_gain(candidate, shelf.device) if is_spread else self._gain_on(candidate, shelf.device.id)
        rank = candidate.score + gain
        is_pinned = candidate.mode == "pin"
        if with_room is None:
            lowest = min(others, key=lambda other: other[:2])[0]
            victims = self._victims(shelf, size, math.inf if is_pinned else rank)
            if victims is None:
                return "rank-too-low", rank, lowest
            for victim_rank, chunk in victims:
                self._demote(plan, shelf, chunk, victim_rank, "displaced")
        else:
            lowest = COLD
        why = "spread" if is_spread else "pinned" if is_pinned else "promoted"
        held = self._held.get(candidate.chunk, ())
        share = 1.0 / (len(held) + 1) if is_spread else 1.0
        homes = [d for d in candidate.devices if d not in held]
        self._place(shelf, candidate.chunk, size, homes, is_pinned=is_pinned, share=share)
        self._tokens -= size
        shelf.rate_tokens -= size
        self.moved_bytes += size
        plan.promotions.append(Promotion(candidate.chunk, size, shelf.device.id, rank, why))
        self._note(plan, Decision(plan.at, candidate.chunk, "promote", shelf.device.id, rank, lowest, why))
        return why, rank, lowest

    def _victims(self, shelf: Shelf, size: int, rank: float) -> list[tuple[float, bytes]] | None:
        """The lowest residents that make room for `size` bytes, if all of them rank low enough; else None."""
        limit = rank - math.log2(1.0 + self.rules.hysteresis)
        room = shelf.room_bytes
        victims: list[tuple[float, bytes]] = []
        taken: set[bytes] = set()
        while room < size and len(victims) < self._displaced_max:
            low = shelf.lowest(self._rank)
            if low is None or not low[0] < limit:
                break
            heappop(shelf.heap)
            if low[1] not in taken:  # a chunk that left and came back stands in the heap twice
                taken.add(low[1])
                victims.append(low)
                room += shelf.residents[low[1]].size
        if room >= size:
            return victims
        for victim in victims:
            heappush(shelf.heap, victim)
        return None

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

    def _demote(self, plan: Plan, shelf: Shelf, chunk: bytes, rank: float, why: Why) -> None:
        size = shelf.residents[chunk].size
        self.dropped(chunk, shelf.device.id)
        plan.demotions.append(Demotion(chunk, size, shelf.device.id, rank, why))
        self._note(plan, Decision(plan.at, chunk, "demote", shelf.device.id, rank, COLD, why))

    def _drop_all(self, plan: Plan, chunk: bytes, why: Why) -> None:
        for device in self._held.get(chunk, [])[:]:
            self._demote(plan, self._shelves[device], chunk, COLD, why)

    def _supersede(self, plan: Plan, candidate: Candidate, tier: str) -> None:
        """Copies on the tiers between have done their work once a faster one is made."""
        order = self.fast_tiers
        for device in self._held.get(candidate.chunk, [])[:]:
            if order.index(self._devices[device].tier) > order.index(tier):
                self._demote(plan, self._shelves[device], candidate.chunk, COLD, "superseded")

    def _demote_over_fill(self, plan: Plan) -> None:
        """Home copies grew, or the fill was lowered: the lowest go, at most candidates_max a tick."""
        for shelf in self._shelves.values():
            for _ in range(self.rules.candidates_max):
                if shelf.room_bytes >= 0 or (low := shelf.lowest(self._rank)) is None:
                    break
                self._demote(plan, shelf, low[1], low[0], "over-fill")

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

    def _wants_another(self, candidate: Candidate, held: Sequence[int], reads: float) -> bool:
        """More than one fast copy: when its reads alone, or its server as a whole, take too much of a device."""
        decayed = self.heat.per_hour(candidate.score, self._last_at or 0.0) / 3600.0 if reads else 0.0
        per_second = max(decayed, candidate.reads_per_second)
        first = self._devices[held[0]]
        wanted = math.ceil(per_second * first.read_seconds(candidate.size) / SPREAD_BUSY_SHARE)
        if (
            all(self._devices[d].load >= SPREAD_LOAD for d in held)
            and candidate.server_reads > 0
            and per_second / len(held) >= SPREAD_LOAD_PART * candidate.server_reads
        ):
            wanted = max(wanted, len(held) + 1)
        return wanted > len(held)

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

    def _note(self, plan: Plan, decision: Decision) -> None:
        if len(plan.decisions) < self._decisions_max:
            plan.decisions.append(decision)
