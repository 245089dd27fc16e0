"""What-if: the current and the proposed policy on the same recorded history, and what the change would bring.

Owns the comparison and the hit-ratio curve; one replay is simulate.py's. Both policies are replayed exactly; the curve
is replayed on a sample of the keys (SHARDS, Waldspurger et al., FAST 2015: sizes scaled by the same share), and its
error is stated: what the sample gets wrong at the fleet's own size, where the exact answer is known.

Objects are cut into the store's chunks (chunked.py); of a trace that would become too long by it, into larger ones, and
`chunk_bytes` of the answer says so.

Cost: 1 M requests of 24 h, current and proposed exact: about 40 s of one core; the curve about 1 s a point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from tierstore.policy.chunked import chunk_bytes_for
from tierstore.policy.rules import Policy
from tierstore.policy.simulate import Fleet, Outcome, replay
from tierstore.policy.trace import Trace

#: Fast-tier sizes of the curve, as shares of the footprint.
CURVE_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
SAMPLE_REQUESTS_MAX: Final = 25_000
PREFIXES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Curve:
    """Hit ratio against the size of the fast tier. points: (bytes, share of GETs served by mem or a fast tier)."""

    points: tuple[tuple[int, float], ...]
    sample_share: float
    error: float                  # |sampled - exact| at the fleet's own size


def compare(trace: Trace, current: Policy, proposed: Policy, fleet: Fleet, *, has_curve: bool = True) -> dict[str, Any]:
    """The answer of the simulate route: current, proposed, difference, prefixes that gain or lose most."""
    fleet = replace(fleet, chunk_bytes=chunk_bytes_for(trace, fleet.chunk_bytes))
    now, then = replay(trace, current, fleet), replay(trace, proposed, fleet)
    documents = {"current": now.document(), "proposed": then.document()}
    if has_curve:
        for name, policy, outcome in (("current", current, now), ("proposed", proposed, then)):
            found = curve(trace, policy, fleet, outcome)
            documents[name]["curve"] = {
                "points": [{"fast_bytes": size, "hit_ratio": round(ratio, 6)} for size, ratio in found.points],
                "sample_share": round(found.sample_share, 6),
                "error": round(found.error, 6),
            }
    return {
        **documents,
        "difference": {
            "hit_ratio": round(then.fast_ratio - now.fast_ratio, 6),
            "mean_ms": round(then.mean_ms - now.mean_ms, 4),
            "p99_ms": round(then.p99_ms - now.p99_ms, 4),
            "bytes_moved_per_day": round(then.moved_bytes_per_day - now.moved_bytes_per_day),
            "ssd_wear_bytes_per_day": round(then.wear_bytes_per_day - now.wear_bytes_per_day),
        },
        "prefixes": gains(now, then),
        "chunk_bytes": fleet.chunk_bytes,
    }


def gains(now: Outcome, then: Outcome) -> list[dict[str, Any]]:
    """Prefixes whose share of fast GETs changes, those with the most GETs gained or lost first."""
    rows: list[dict[str, Any]] = []
    for name, (gets, fast) in now.prefixes.items():
        changed = then.prefixes[name][1] - fast
        if changed:
            rows.append({"prefix": name, "gets": gets, "current": round(fast / gets, 6),
                         "proposed": round((fast + changed) / gets, 6), "gets_gained": changed})  # fmt: skip
    rows.sort(key=lambda row: (-abs(row["gets_gained"]), row["prefix"]))
    return rows[:PREFIXES_MAX]


def curve(trace: Trace, policy: Policy, fleet: Fleet, exact: Outcome) -> Curve:
    """The hit-ratio curve of a policy; exact: its replay on the whole trace and fleet."""
    share = min(1.0, SAMPLE_REQUESTS_MAX / max(len(trace), 1))
    sample = trace.sampled(share)
    free = {tier: size - fleet.taken.get(tier, 0) for tier, size in fleet.fast.items()}
    actual = max(sum(free.values()), 1)
    kept = sample.footprint_bytes / max(trace.footprint_bytes, 1)  # the sample's share by bytes scales the tiers
    def ratio(fast_bytes: float) -> float:
        scale = fast_bytes / actual * kept
        smaller = replace(
            fleet, fast={tier: int(size * scale) for tier, size in free.items()}, taken={},
            mem_bytes=int(fleet.mem_bytes * kept), rate_scale=fleet.rate_scale * kept,
        )  # fmt: skip
        return replay(sample, policy, smaller).fast_ratio

    footprint = trace.footprint_bytes
    points = tuple((int(footprint * part), ratio(footprint * part)) for part in CURVE_SHARES)
    return Curve(points, share, abs(ratio(actual) - exact.fast_ratio))
