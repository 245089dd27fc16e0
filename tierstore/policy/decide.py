"""The promoter's tick: which chunks get a copy on a faster device, and which copies go to make room. Pure code.

Owns the budget and the order of the decisions; what is where, at which rank r, is picture.py's. A candidate takes free
room, else displaces residents v while `r_v + log2(1 + hysteresis) < r`, lowest first, and gives up when that does not
free enough. The same rule serves every pair of tiers; a candidate asks the fastest first.

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

from tierstore.policy.heat import HeatTable
from tierstore.policy.picture import Picture
from tierstore.policy.plan import Candidate, Decision, Demotion, Plan, Promotion, Why
from tierstore.policy.rules import PromoterRules
from tierstore.policy.shelf import Device, Shelf
from tierstore.policy.sketch import COLD

#: A very hot chunk gets one fast copy for each share of a device's time that its reads take, ...
SPREAD_BUSY_SHARE: Final = 0.25
#: ... and one more when its server is this busy and the chunk makes up at least SPREAD_LOAD_PART of its reads.
SPREAD_LOAD: Final = 0.7
SPREAD_LOAD_PART: Final = 0.1
_DECISIONS_MAX: Final = 4096


class Planner(Picture):
    """Decides, tick by tick. Deterministic: same calls, same plans.

    The caller keeps HeatTable.keep/release in step (`tick` does it for what it decides) and tells by `resident`,
    `dropped` and `failed` what became of the copies.
    """

    def __init__(
        self, heat: HeatTable, rules: PromoterRules, devices: Iterable[Device], *,
        displaced_max: int = 256, decisions_max: int = _DECISIONS_MAX,
    ) -> None:
        super().__init__(heat, rules, devices)
        self.moved_bytes = 0
        self.served_bytes = 0
        self._displaced_max = displaced_max
        self._decisions_max = decisions_max
        self._last_at: float | None = None
        self._chunk_max: dict[str, int] = {}  # of each fast tier, for the tick under way
        self._may_move = True
        self._tokens = float(self.chunk_bytes_max())

    @property
    def budget_bytes(self) -> float:
        """What the budget still allows to move now."""
        return self._tokens

    def failed(self, promotion: Promotion) -> None:
        """The copy was not made: the room and the bytes of the budget are given back. May be repeated."""
        if promotion.device in self._held.get(promotion.chunk, ()):
            self.dropped(promotion.chunk, promotion.device)
            self._tokens += promotion.size
            self.moved_bytes -= promotion.size

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

    def _note(self, plan: Plan, decision: Decision) -> None:
        if len(plan.decisions) < self._decisions_max:
            plan.decisions.append(decision)
