"""What `make bench-tiering` measures: each bar with what it must be, what it aims at, and what was measured.

The policy is driven by virtual time with its defaults; only the cap in MB/s per device is off (the traces' sizes span
nine orders of magnitude, a cap in bytes means nothing there), and the RAM cache has 1 % and the fast tier 10 % of the
footprint. Nothing is fitted to a trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from bench.tiering.synthetic import SCAN, ZIPF, Workload, fitted_alpha, generate, one_hit_share
from bench.tiering.workloads import cut, load
from tierstore.policy.heat import HeatTable, pack_delta
from tierstore.policy.memcache import MemCache
from tierstore.policy.rules import Policy, PromoterRules
from tierstore.policy.simulate import Fleet, Outcome, replay
from tierstore.policy.trace import GET, Trace

POLICY: Final = Policy((), PromoterRules(device_bytes_per_second_max=0))
SEEDS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Bar:
    """One row. at_most: the measured value must not be above `must`; else not below. aim None: only a must."""

    subject: str
    what: str
    must: float
    aim: float | None
    measured: float
    at_most: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool:
        return self.measured <= self.must if self.at_most else self.measured >= self.must

    @property
    def is_aim_met(self) -> bool:
        if self.aim is None:
            return self.is_met
        return self.measured <= self.aim if self.at_most else self.measured >= self.aim


def run(trace: Trace, *, footprint: int = 0, has_mem: bool = True, watch: frozenset[int] = frozenset()) -> Outcome:
    footprint = footprint or trace.footprint_bytes
    return replay(trace, POLICY, Fleet({"ssd": footprint // 10}, footprint // 100 if has_mem else 0), watch=watch)


def measure() -> Iterator[Bar]:
    """All bars, one after the other (about two minutes in all)."""
    yield from _real("twitter52", 0.82, 0.84, 0.65, (0.05, 0.03), (0.18, 0.16))
    yield from _real("fb2010", 0.32, 0.33, 0.28, (0.20, 0.15), (0.60, 0.56))
    yield from _synthetic()
    yield from _costs()


def _real(
    name: str, hits: float, hits_aim: float, alone: float, moved: tuple[float, float], latency: tuple[float, float]
) -> Iterator[Bar]:
    trace = load(name)
    both = run(trace)
    yield Bar(name, "served by mem or fast tier", hits, hits_aim, both.fast_ratio)
    yield Bar(name, "served by the fast tier, no mem", alone, None, run(trace, has_mem=False).fast_ratio)
    yield Bar(name, "bytes migrated per byte served", *moved, both.moved_per_served, at_most=True)
    if name == "twitter52":
        yield Bar(name, "mean latency / all-HDD", *latency, both.mean_ms / both.slow_mean_ms, at_most=True)
        return
    # An object of 21 TB is never one chunk: for the latency, which large objects dominate, objects are cut into chunks
    # that the smallest tier takes (0.1 % of the footprint). The other bars hold in that form, too.
    chunks, request = cut(trace, trace.footprint_bytes // 1000)
    in_chunks = run(chunks, footprint=trace.footprint_bytes)
    slowest = np.zeros(len(trace), dtype=np.uint8)
    np.maximum.at(slowest, request, in_chunks.tier_of)
    hit = float((slowest < len(in_chunks.tiers) - 1).mean())
    # Per request: the sum over its chunks; one seek a chunk on both sides of the ratio.
    ratio = in_chunks.mean_ms / in_chunks.slow_mean_ms
    yield Bar(name, "mean latency / all-HDD, in chunks", *latency, ratio, at_most=True,
              note=f"whole keys: {both.mean_ms / both.slow_mean_ms:.3f}")  # fmt: skip
    yield Bar(name, "served by mem or fast, in chunks", hits, hits_aim, hit, note="all chunks of a key")
    yield Bar(name, "bytes migrated / served, in chunks", *moved, in_chunks.moved_per_served, at_most=True)


def _synthetic() -> Iterator[Bar]:
    for seed in SEEDS:
        steady = generate("steady", seed=seed)
        footprint = steady.trace.footprint_bytes
        calm = run(steady.trace, footprint=footprint).fast_ratio
        subject = f"synthetic, seed {seed}"
        yield Bar(subject, "generator: |fitted alpha - 0.9|", 0.05, None, abs(fitted_alpha(steady) - 0.9), at_most=True)
        # Both with the fast tier of steady: what the scans read does not buy a larger one.
        yield Bar(subject, "scan: points lost against steady", 2.0, None,
                  100 * (calm - _zipf_ratio(generate("scan", seed=seed), footprint)), at_most=True)  # fmt: skip
        ticks, note = _flash_ticks(seed)
        yield Bar(subject, "flash: ticks from 5th read to fast", 2.0, None, ticks, at_most=True, note=note)
        drift = generate("drift", seed=seed).trace
        inline, judge = s3fifo_ratio(drift, drift.footprint_bytes // 10)
        yield Bar(subject, f"drift / inline S3-FIFO ({judge})", 0.95, None, run(drift).fast_ratio / inline)
    every = generate("all", seed=1)
    share = one_hit_share(every)
    yield Bar("synthetic, seed 1", "generator: one-hit keys of `all`", 0.60, None, share, at_most=True, note=">= 0.35")
    one, two = run(every.trace), run(generate("all", seed=1).trace)
    yield Bar("synthetic, seed 1", "same seed, same decisions", 1.0, None, float(_same(one, two)))


def _same(one: Outcome, two: Outcome) -> bool:
    return one.document() == two.document() and bool((one.tier_of == two.tier_of).all())


def _zipf_ratio(workload: Workload, footprint: int) -> float:
    """Share of the Zipf reads (scans and one-hit keys left out) that mem or the fast tier served."""
    assert (workload.origin == SCAN).any()
    outcome = run(workload.trace, footprint=footprint)
    return float((outcome.tier_of[workload.origin == ZIPF] < len(outcome.tiers) - 1).mean())


def _flash_ticks(seed: int) -> tuple[float, str]:
    """Worst crowd: ticks from its fifth read to the promotion of its key; and what was left out.

    Left out are crowds of a key above the largest chunk that may move (the store cuts such an object into chunks).
    """
    workload = generate("flash", seed=seed)
    trace = workload.trace
    outcome = run(trace, watch=frozenset(key for key, _ in workload.crowds))
    chunk_max = POLICY.promoter.chunk_share_max * (trace.footprint_bytes // 10)
    worst, left_out = 0.0, 0
    for key, start in workload.crowds:
        is_crowd = (trace.key == key) & (trace.time >= start)
        if trace.size[is_crowd][0] > chunk_max:
            left_out += 1
            continue
        fifth = float(trace.time[is_crowd][4])
        before = [at for at in outcome.promoted_at.get(key, []) if at < start]
        if before and not any(before[-1] < at < fifth for at in outcome.dropped_at.get(key, [])):
            continue  # it was on the fast tier when the crowd came
        promoted_at = min((at for at in outcome.promoted_at.get(key, []) if at >= start), default=np.inf)
        worst = max(worst, (promoted_at - fifth) / POLICY.promoter.tick_seconds)
    return worst, f"{left_out} crowd of an object above the movable chunk left out" if left_out else ""


def s3fifo_ratio(trace: Trace, size: int) -> tuple[float, str]:
    """Hit ratio of GETs of an inline S3-FIFO cache of `size` bytes, and whose it is (libcachesim's, else our own)."""
    keys, sizes, ops = trace.key.tolist(), trace.size.tolist(), trace.op.tolist()
    hits = gets = 0
    try:
        import libcachesim
    except ImportError:
        own: MemCache[int, bool] = MemCache(size, admit_bytes_max=size)
        for key, length, op in zip(keys, sizes, ops, strict=True):
            is_hit = own.get(key) is not None
            if not is_hit:
                own.put(key, True, length)
            hits, gets = hits + (is_hit and op == GET), gets + (op == GET)
        return hits / max(gets, 1), "own"
    cache, request = libcachesim.S3FIFO(cache_size=size), libcachesim.Request()
    for key, length, op in zip(keys, sizes, ops, strict=True):
        request.obj_id, request.obj_size = key, length
        is_hit = cache.get(request)
        hits, gets = hits + (is_hit and op == GET), gets + (op == GET)
    return hits / max(gets, 1), "libcachesim"


def _costs() -> Iterator[Bar]:
    random = np.random.Generator(np.random.PCG64(1))
    ids = [random.bytes(16) for _ in range(150_000)]
    counts: dict[bytes, float] = {}

    def count() -> None:
        for chunk in ids:
            counts[chunk] = counts.get(chunk, 0.0) + 1.0

    yield Bar("cost", "counting a read, us", 2.0, None, _seconds(count) / len(ids) * 1e6, at_most=True)
    delta = pack_delta((chunk, 1.0) for chunk in ids[:100_000])
    heat = HeatTable()
    first, again = _seconds(lambda: heat.merge(delta, 1.0)), _seconds(lambda: heat.merge(delta, 2.0))
    yield Bar("cost", "merge of 100,000 new deltas, s", 0.5, 0.1, first, at_most=True)
    yield Bar("cost", "merge of 100,000 known deltas, s", 0.5, 0.1, again, at_most=True)
    heat.merge(pack_delta((chunk, 1.0) for chunk in ids), 3.0)
    snapshots: list[bytes] = []
    yield Bar("cost", "snapshot of 150,000 chunks, s", 0.1, 0.02, _seconds(lambda: snapshots.append(heat.snapshot())),
              at_most=True)  # fmt: skip
    yield Bar("cost", "restore of 150,000 chunks, s", 0.1, 0.05, _seconds(lambda: HeatTable.restore(snapshots[0])),
              at_most=True)  # fmt: skip
    policy, rules = Policy(), 10_000
    yield Bar("cost", "rule_for, us", 3.0, None, at_most=True, measured=_seconds(
        lambda: [policy.rule_for("bucket", "logs/a", 4096, 0.0) for _ in range(rules)]) / rules * 1e6)  # fmt: skip
    million = generate("all", seed=1, objects=100_000, requests=1_000_000).trace
    twice = _seconds(lambda: (run(million), run(million)))
    yield Bar("cost", "24 h, 1 M requests, two policies, s", 60.0, None, twice, at_most=True)


def _seconds(work: Callable[[], object]) -> float:
    """Processor time: what others do on the machine meanwhile is no cost of ours."""
    start = time.process_time()
    work()
    return time.process_time() - start
