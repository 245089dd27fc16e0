"""What-if: replay recorded reads under a policy, in virtual time, with the code that decides in production.

Owns the model around heat.py, decide.py and memcache.py: one slow tier that holds everything, faster tiers that the
promoter fills, an inline RAM cache in front of what would wait for the slow one (readers go to the fastest copy); new
objects land as rules say and, under `auto`, get a fast copy where their bucket is read soon (rereads.py). Every tick
the counts since the last one are merged as one heartbeat delta (the same 18-byte form) and the planner's copies take
effect at once: the time that a copy takes is not modelled (the budgets bound it to a small part of a tick); that of a
slow read is where the trace's times are fine enough: who comes meanwhile waits for it (`is_timed`). Objects are cut
into chunks as the store cuts them (chunked.py), where the fleet says how large. Latency is service time alone, that of
all chunks of a request, without queues: it compares policies, it does not predict an answer time. Pure: no I/O, no
clock, no chance; the same trace and policy give the same result.

Cost: 2-4 us a request without a tick, 20-30 us a candidate in a tick: 16-20 s for 1 M requests of 24 h.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tierstore.policy.chunked import in_chunks
from tierstore.policy.decide import Planner
from tierstore.policy.heat import HeatTable, pack_delta
from tierstore.policy.memcache import MemCache
from tierstore.policy.plan import Candidate, Plan
from tierstore.policy.rereads import Rereads
from tierstore.policy.rules import Policy, Rule
from tierstore.policy.shelf import Device
from tierstore.policy.trace import DELETE, GET, PUT, Ints, Trace, prefix_of

DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Speed:
    """Service time of one read: seconds + size / bytes_per_second."""

    seconds: float
    bytes_per_second: float


SPEEDS: Final = {
    "mem": Speed(0.01e-3, 8e9),
    "nvme": Speed(0.05e-3, 4e9),
    "ssd": Speed(0.1e-3, 2e9),
    "hdd": Speed(8e-3, 160e6),
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the replay runs on: capacity of each faster tier and of the RAM caches, in bytes; one slow tier below."""

    fast: dict[str, int]
    mem_bytes: int = 0
    slow: str = "hdd"
    speeds: dict[str, Speed] = field(default_factory=lambda: dict(SPEEDS))
    devices_per_tier: int = 1
    slow_devices: int = 1
    #: The trace's times tell who came while a read was under way: such a reader waits for the same access to the disk,
    #: and RAM serves him nothing. False for times in whole seconds: there a second's crowd would all seem to wait.
    is_timed: bool = False
    #: Objects above it are cut; 0: they are one piece, whatever their size. A larger value: see chunked.ROWS_MAX.
    chunk_bytes: int = 0
    #: Of device_rate_max, what a device of the replay has: one that stands for three has three times as much, in a
    #: sample of the keys the share of it.
    rate_scale: float = 1.0
    #: Bytes of the faster tiers that home copies take: fill and the largest movable chunk are shares of the whole tier.
    taken: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy does to a trace. Ratios count GETs from the first request on (cold start included); a GET of
    several chunks counts for each tier by the share of them that it served."""

    requests: int                       # GETs
    hit_ratio: dict[str, float]         # share of GETs served by each tier
    byte_hit_ratio: dict[str, float]    # share of bytes
    mean_ms: float
    p99_ms: float
    slow_mean_ms: float                 # with everything on the slow tier
    served_bytes: int
    moved_bytes: int
    moved_bytes_per_day: float
    moved_per_served: float
    wear_bytes_per_day: float           # written to fast devices: promotions and landed writes
    promotions: int
    demotions: int
    wasted_promotions: int              # dropped, or still there, without one read
    prefixes: dict[str, tuple[int, int]] = field(default_factory=dict)  # prefix -> (GETs, served faster than slow)
    tier_of: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))
    promoted_at: dict[int, list[float]] = field(default_factory=dict)  # of the watched keys
    dropped_at: dict[int, list[float]] = field(default_factory=dict)   # by the promoter
    tiers: tuple[str, ...] = ()         # tier_of[i] (of several chunks: the slowest) is an index into it, 255: no GET

    @property
    def fast_ratio(self) -> float:
        """Share of GETs served by anything faster than the slow tier."""
        return sum(share for tier, share in self.hit_ratio.items() if tier != self.tiers[-1])

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "requests": self.requests,
            "hit_ratio": {tier: round(share, 6) for tier, share in self.hit_ratio.items()},
            "byte_hit_ratio": {tier: round(share, 6) for tier, share in self.byte_hit_ratio.items()},
            "mean_ms": round(self.mean_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
            "all_slow_mean_ms": round(self.slow_mean_ms, 4),
            "bytes_moved_per_day": round(self.moved_bytes_per_day),
            "bytes_moved_per_byte_served": round(self.moved_per_served, 6),
            "ssd_wear_bytes_per_day": round(self.wear_bytes_per_day),
            "promotions": self.promotions,
            "demotions": self.demotions,
            "wasted_promotions": self.wasted_promotions,
        }


def replay(trace: Trace, policy: Policy, fleet: Fleet, *, watch: frozenset[int] = frozenset()) -> Outcome:
    """Replay all requests under a policy. watch: keys of which the times of promotion are wanted."""
    run = _Replay(trace, policy, fleet, watch)
    run.all()
    return run.outcome()


class _Replay:
    """One run. Keys are chunk ids of 16 bytes; a PUT makes a new body, which inherits the heat of the old one."""

    def __init__(self, trace: Trace, policy: Policy, fleet: Fleet, watch: frozenset[int]) -> None:
        self._watch = watch
        self._promoted_at: dict[int, list[float]] = {}
        self._dropped_at: dict[int, list[float]] = {}
        chunked = in_chunks(trace, fleet.chunk_bytes)
        #: Of each row the request that it is of, and of each key the bytes of its object; None: objects are one chunk.
        self._request = chunked.request if chunked is not None else None
        self._object_bytes = chunked.object_bytes.tolist() if chunked is not None else None
        trace = chunked.rows if chunked is not None else trace
        rules = policy.promoter
        if rules.device_bytes_per_second_max:   # 0: no bound
            rate = max(int(rules.device_bytes_per_second_max * fleet.rate_scale), 1)
            rules = replace(rules, device_bytes_per_second_max=rate)
            policy = Policy(policy.rules, rules)
        self._trace, self._policy, self._fleet = trace, policy, fleet
        self._heat = HeatTable(half_life_seconds=rules.half_life_seconds)
        devices, self._slow_ids = _devices(fleet)
        self._tier_of_device = {device.id: device.tier for device in devices}
        self._planner = Planner(self._heat, rules, devices)
        self._mem: MemCache[int, float] = MemCache(fleet.mem_bytes)      # key -> when its bytes are there
        self._order = ("mem", *fleet.fast, fleet.slow)
        self._index = {tier: n for n, tier in enumerate(self._order)}
        keys = int(trace.key.max()) + 1 if len(trace) else 0
        self._where = np.full(keys, self._index[fleet.slow], dtype=np.uint8).tolist()  # fastest disk tier of a key
        self._unread: set[int] = set()       # promoted and not read since
        self._counts: dict[int, int] = {}    # GETs since the last tick
        self._sizes: dict[int, int] = {}
        self._served_by = np.full(len(trace), 255, dtype=np.uint8)
        self._promotions = self._demotions = self._wasted = self._landed_bytes = 0
        self._is_named = bool(trace.names)
        # Judged as the service does, by its own code; a trace without writes has nothing to judge.
        self._rereads = Rereads() if rules.read_soon > 0 and bool((trace.op == PUT).any()) else None

    def all(self) -> None:
        tick = self._policy.promoter.tick_seconds
        times = self._trace.time
        if not len(times):
            return
        # The requests of one tick are a slice: no test of the time for each request.
        bounds = np.floor(times / tick).astype(np.int64)
        cuts = np.flatnonzero(np.diff(bounds)) + 1
        keys, sizes, ops = self._trace.key.tolist(), self._trace.size.tolist(), self._trace.op.tolist()
        start = 0
        for end in [*cuts.tolist(), len(times)]:
            served = self._requests(start, end, keys, sizes, ops)
            self._tick((int(bounds[start]) + 1) * tick, served)
            start = end

    def _requests(self, start: int, end: int, keys: list[int], sizes: list[int], ops: list[int]) -> int:
        """Serve one tick's requests; returns the bytes read."""
        mem_get, mem_put = self._mem.get, self._mem.put
        where, counts, unread = self._where, self._counts, self._unread
        has_mem, slow = self._mem.capacity_bytes > 0, self._index[self._fleet.slow]
        speed, is_timed = self._fleet.speeds[self._fleet.slow], self._fleet.is_timed
        rereads, times = self._rereads, self._trace.time[start:end].tolist()
        served = 0
        by = []
        for i, at in enumerate(times, start):
            key, size = keys[i], sizes[i]
            if ops[i] == GET:
                tier = where[key]
                if tier == slow and has_mem:
                    # Readers go to the fastest copy; RAM stands in front of those that wait for a slow device.
                    there_at = mem_get(key)
                    if there_at is None:
                        mem_put(key, at + speed.seconds + size / speed.bytes_per_second if is_timed else at, size)
                    elif there_at <= at:
                        tier = 0
                elif unread and key in unread:
                    unread.discard(key)
                by.append(tier)
                if rereads is not None:
                    rereads.read(*self._name(key), at)
                counts[key] = counts.get(key, 0) + 1
                self._sizes[key] = size
                served += size
            else:
                by.append(255)
                self._write(key, size, is_delete=ops[i] == DELETE, at=at)
        self._served_by[start:end] = by
        return served

    def _write(self, key: int, size: int, *, is_delete: bool, at: float) -> None:
        """A body is replaced or gone: its copies go, its heat stays with the new one (land-fast: on the fast tier)."""
        chunk = _id(key)
        self._mem.remove(key)
        for device in self._planner.devices_of(chunk):
            self._planner.dropped(chunk, device)
            self._drop(key)
        self._where[key] = self._index[self._fleet.slow]
        if is_delete:
            self._heat.forget(chunk)
            self._counts.pop(key, None)
        elif self._planner.fast_tiers:
            mode = self._rule(key, size, at).mode
            if mode == "land-fast" or (mode == "auto" and self._is_read_soon(key, chunk, at)):
                self._land(key, chunk, size)

    def _is_read_soon(self, key: int, chunk: bytes, at: float) -> bool:
        """Whether the bucket's new objects get a fast copy with the write; then the heat its past promises, too."""
        if self._rereads is None:
            return False
        bucket, name = self._name(key)
        self._rereads.written(bucket, name, at)
        if bucket not in self._rereads.soon:
            return False
        self._heat.expect([chunk], self._rereads.share(bucket), at)
        return True

    def _name(self, key: int) -> tuple[str, str]:
        return self._trace.names[key] if self._is_named else ("", str(key))

    def _land(self, key: int, chunk: bytes, size: int) -> None:
        """The body lands on the fastest tier with room (else home), and stays as long as its rank holds it there."""
        device = self._planner.roomiest(size)
        if device:
            self._planner.resident(chunk, size, device, self._slow_ids)
            self._landed_bytes += size
            self._locate(key, chunk)

    def _tick(self, at: float, served: int) -> None:
        counts, rules = self._counts, self._policy.promoter
        if self._rereads is not None:
            self._rereads.judge(at, rules.read_soon if rules.may_move(at + self._trace.start_at) else 0.0)
        if counts:
            self._heat.merge(pack_delta([(_id(key), count) for key, count in counts.items()]), at)
            counts.clear()
        movable, settled = self._heat.take_touched(self._policy.promoter.candidates_max, 16)
        candidates = [self._candidate(chunk, score, at) for chunk, score in movable]
        candidates += [self._candidate(chunk, score, at) for chunk, score in settled]
        plan = self._planner.tick(at, candidates, served)
        self._apply(plan)

    def _candidate(self, chunk: bytes, score: float, at: float) -> Candidate:
        key = int.from_bytes(chunk, "big")
        size = self._sizes.get(key, 0)
        devices = self._planner.devices_of(chunk) + self._slow_ids
        if not self._is_named and not self._policy.rules:
            return Candidate(chunk, size, score, devices)
        rule = self._rule(key, size, at)
        return Candidate(chunk, size, score, devices, rule.mode, rule.fast)

    def _rule(self, key: int, size: int, at: float) -> Rule:
        if self._object_bytes is not None:
            size = self._object_bytes[key]
        bucket, name = self._trace.names[key] if self._is_named else ("", "")
        return self._policy.rule_for(bucket, name, size, self._trace.start_at + at)

    def _apply(self, plan: Plan) -> None:
        self._demotions += len(plan.demotions)
        self._promotions += len(plan.promotions)
        for demotion in plan.demotions:
            key = int.from_bytes(demotion.chunk, "big")
            if key in self._watch:
                self._dropped_at.setdefault(key, []).append(plan.at)
            self._drop(key)
            self._locate(key, demotion.chunk)
        for promotion in plan.promotions:
            key = int.from_bytes(promotion.chunk, "big")
            self._unread.add(key)
            self._locate(key, promotion.chunk)
            if key in self._watch:
                self._promoted_at.setdefault(key, []).append(plan.at)

    def _drop(self, key: int) -> None:
        if key in self._unread:
            self._unread.discard(key)
            self._wasted += 1

    def _locate(self, key: int, chunk: bytes) -> None:
        tiers = [self._index[self._tier_of_device[d]] for d in self._planner.devices_of(chunk)]
        self._where[key] = min(tiers, default=self._index[self._fleet.slow])

    def outcome(self) -> Outcome:
        trace, by = self._trace, self._served_by
        is_get = by != 255
        sizes, tier = trace.size[is_get].astype(np.float64), by[is_get]
        speeds = [self._fleet.speeds[name] for name in self._order]
        rates = np.array([speed.bytes_per_second for speed in speeds])
        seconds = np.array([speed.seconds for speed in speeds])[tier] + sizes / rates[tier]
        slow_seconds = speeds[-1].seconds + sizes / speeds[-1].bytes_per_second
        total = max(float(sizes.sum()), 1.0)
        weights = np.ones(len(tier))        # of a row in its request
        if self._request is not None and len(tier):
            _, request, rows = np.unique(self._request[is_get], return_inverse=True, return_counts=True)
            weights = 1.0 / rows[request]
            seconds, slow_seconds = np.bincount(request, seconds), np.bincount(request, slow_seconds)
        gets = len(seconds)
        days = max(float(trace.time[-1] - trace.time[0]) if len(trace) else 0.0, 1.0) / DAY_SECONDS
        moved = self._planner.moved_bytes
        return Outcome(
            requests=gets,
            hit_ratio={n: float(weights[tier == i].sum()) / max(gets, 1) for i, n in enumerate(self._order)},
            byte_hit_ratio={name: float(sizes[tier == n].sum()) / total for n, name in enumerate(self._order)},
            mean_ms=float(seconds.mean()) * 1e3 if gets else 0.0,
            p99_ms=float(np.percentile(seconds, 99)) * 1e3 if gets else 0.0,
            slow_mean_ms=float(slow_seconds.mean()) * 1e3 if gets else 0.0,
            served_bytes=int(sizes.sum()),
            moved_bytes=moved,
            moved_bytes_per_day=moved / days,
            moved_per_served=moved / total,
            wear_bytes_per_day=(moved + self._landed_bytes) / days,
            promotions=self._promotions,
            demotions=self._demotions,
            wasted_promotions=self._wasted + len(self._unread),
            prefixes=self._prefixes(trace.key[is_get], tier, weights),
            tier_of=self._tier_of_requests(),
            tiers=self._order,
            promoted_at=self._promoted_at,
            dropped_at=self._dropped_at,
        )

    def _tier_of_requests(self) -> npt.NDArray[np.uint8]:
        if self._request is None:
            return self._served_by
        slowest = np.zeros(int(self._request[-1]) + 1, dtype=np.uint8)
        np.maximum.at(slowest, self._request, self._served_by)
        return slowest

    def _prefixes(
        self, keys: Ints, tier: npt.NDArray[np.uint8], weights: npt.NDArray[np.float64]
    ) -> dict[str, tuple[int, int]]:
        if not self._is_named:
            return {}
        names, is_fast = self._trace.names, tier != len(self._order) - 1
        gets = np.bincount(keys, weights, minlength=len(names))
        fast = np.bincount(keys[is_fast], weights[is_fast], minlength=len(names))
        found: dict[str, tuple[float, float]] = {}
        for key in np.flatnonzero(gets).tolist():
            name = prefix_of(*names[key])
            before = found.get(name, (0.0, 0.0))
            found[name] = (before[0] + float(gets[key]), before[1] + float(fast[key]))
        return {name: (round(both[0]), round(both[1])) for name, both in found.items()}


def _id(key: int) -> bytes:
    return key.to_bytes(16, "big")


def _devices(fleet: Fleet) -> tuple[list[Device], tuple[int, ...]]:
    """Devices of the fleet, one server each, and the ids of those of the slow tier, which never fill up."""
    devices: list[Device] = []
    for tier, capacity in fleet.fast.items():
        for n in range(fleet.devices_per_tier):
            speed = fleet.speeds[tier]
            share, taken = capacity // fleet.devices_per_tier, fleet.taken.get(tier, 0) // fleet.devices_per_tier
            devices.append(Device(len(devices) + 1, n + 1, tier, share, speed.seconds, speed.bytes_per_second, taken))
    slow, first = fleet.speeds[fleet.slow], len(devices) + 1
    for n in range(fleet.slow_devices):
        devices.append(Device(first + n, n + 1, fleet.slow, 1 << 62, slow.seconds, slow.bytes_per_second))
    return devices, tuple(range(first, first + fleet.slow_devices))
