"""Explain: why a chunk is where it is, and what happens to it next. Pure assembly from the promoter's own picture.

Owns the words of the answer. It asks the same questions as decide.py in the same order, but moves nothing: what it
says holds at the chunk's next read, for only chunks that were read are candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tierstore.names import TIERS
from tierstore.policy.decide import Planner
from tierstore.policy.plan import Candidate, Decision
from tierstore.policy.rules import Rule
from tierstore.policy.sketch import COLD
from tierstore.units import format_size


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One stored copy. device: its id; role: home or cache; state: the catalog's (ok, deleting, ...)."""

    server: str
    device: int
    tier: str
    role: str
    site: str
    state: str = "ok"


@dataclass(frozen=True, slots=True)
class Next:
    """What happens at the next read: action is promote, demote or stay; to_tier "" when it stays or goes home."""

    action: str
    to_tier: str
    why: str


@dataclass(frozen=True, slots=True)
class PastHour:
    """One hour of an object's past: reads in it, and the heat at its end. until: s since 1970."""

    until: float
    reads: int
    heat_per_hour: float


def explain_chunk(
    planner: Planner, chunk: bytes, size: int, *, replicas: Sequence[ReplicaView], rule: Rule, now: float,
    decisions: Iterable[Decision] = (), home_tier: str = "",
) -> dict[str, Any]:  # fmt: skip
    """One entry of `chunks` of GET /v1/explain. rank and lowest_resident_rank are null when there is none.

    rank: on the fastest tier that the chunk may reach. replicas: all of it that the catalog knows. home_tier: where
    its home copies belong; "" when that is not known.
    """
    usable = tuple(replica.device for replica in replicas if replica.state == "ok")
    score = planner.heat.score(chunk)
    candidate = Candidate(chunk, size, score, usable, rule.mode, rule.fast)
    tier = next((t for t in planner.fast_tiers if not rule.fast or t in rule.fast), "")
    return {
        "id": chunk.hex(),
        "bytes": size,
        "heat_per_hour": round(planner.heat.per_hour(score, now), 6) if score > COLD else 0.0,
        "rank": _finite(planner.best_rank(candidate, tier)) if tier else None,
        "lowest_resident_rank": _finite(planner.lowest_rank(tier)) if tier else None,
        "replicas": [
            {"server": r.server, "device": r.device, "tier": r.tier, "role": r.role, "site": r.site, "state": r.state}
            for r in replicas
        ],
        "next": asdict(_landed(replicas, rule, home_tier) or next_of(planner, candidate, rule, now)),
        "decisions": [
            {"at": d.at, "action": d.action, "tier": planner.tier_of(d.device), "device": d.device,
             "rank": _finite(d.rank), "lowest": _finite(d.lowest), "why": d.why}
            for d in decisions
        ],
    }  # fmt: skip


def _landed(replicas: Sequence[ReplicaView], rule: Rule, home_tier: str) -> Next | None:
    """Home copies that lie on a faster tier than they belong to go home whether the chunk is read or not."""
    place: dict[str, int] = {tier: at for at, tier in enumerate(TIERS)}
    landed = [
        r.tier for r in replicas
        if r.role == "home" and r.state == "ok" and place.get(r.tier, len(TIERS)) < place.get(home_tier, 0)
    ]  # fmt: skip
    if not landed:
        return None
    stays = "" if rule.mode == "never" else f", and one stays on {landed[0]} as a fast copy"
    copies = f"{len(landed)} home {'copy' if len(landed) == 1 else 'copies'}"
    return Next("demote", home_tier, f"{copies} landed on {landed[0]}: they go home to {home_tier}{stays}")


def past_heat(reads_at: npt.NDArray[np.float64], now: float, half_life_seconds: float, hours: int) -> list[PastHour]:
    """Reads and heat of an object by the hour, the last one up to now. reads_at: s since 1970, in order."""
    found = []
    for n in range(hours, 0, -1):
        start, until = now - n * 3600.0, now - (n - 1) * 3600.0
        before = reads_at[reads_at <= until]
        decayed = float(np.exp2((before - until) / half_life_seconds).sum())
        per_hour = decayed * math.log(2) * 3600.0 / half_life_seconds
        found.append(PastHour(until, int((before > start).sum()), round(per_hour, 6)))
    return found


def next_of(planner: Planner, candidate: Candidate, rule: Rule, now: float) -> Next:
    """What the promoter would do with the chunk if it were read now."""
    rules = planner.rules
    held = planner.held_tiers(candidate.chunk)
    allowed = [tier for tier in planner.fast_tiers if not candidate.fast or tier in candidate.fast]
    if candidate.mode == "never":
        why = f"rule {rule.name!r} says never"
        return Next("demote", "", why) if held else Next("stay", "", why)
    if not allowed:
        return Next("stay", "", "there is no faster tier that it may go to")
    if allowed[0] in held:
        if candidate.mode == "pin":
            return Next("stay", "", f"rule {rule.name!r} pins it on {allowed[0]}")
        return Next("stay", "", f"it is on {allowed[0]} already; it goes when hotter chunks need the room")
    if not rules.may_move(now):
        return Next("stay", "", "the promoter is paused" if rules.is_paused else "the promoter is outside its schedule")
    reads = planner.heat.reads(candidate.score, now)
    if candidate.mode != "pin" and reads < rules.count_min:
        return Next("stay", "", f"{reads:.3g} decayed reads; min_count asks for {rules.count_min:g}")
    why = ""
    for tier in allowed:
        if tier in held:
            break
        verdict = _tier(planner, candidate, tier)
        if verdict is None:
            return Next("promote", tier, _promotes(planner, candidate, tier, rule))
        why = why or verdict
    if candidate.mode == "pin":
        why = f"rule {rule.name!r} pins it on {allowed[0]}, which has to wait: {why}"
    return Next("stay", "", why)


def _tier(planner: Planner, candidate: Candidate, tier: str) -> str | None:
    """None: it would be promoted to `tier`; else why not."""
    largest = planner.chunk_bytes_max(tier)
    if candidate.size > largest:
        return f"its {format_size(candidate.size)} are above the largest chunk that may move to {tier}, " \
               f"{format_size(largest)}"  # fmt: skip
    rank = planner.best_rank(candidate, tier)
    if rank == COLD and candidate.score == COLD and candidate.mode != "pin":
        return "nobody has read it"
    if rank == COLD and candidate.score > COLD:
        return f"no usable device of {tier} would serve it faster"
    if candidate.size > planner.budget_bytes:
        return f"the migration budget has {format_size(max(planner.budget_bytes, 0))} left"
    if planner.has_room(candidate.size, tier) or candidate.mode == "pin":
        return None
    lowest = planner.lowest_rank(tier)
    short = lowest + math.log2(1 + planner.rules.hysteresis) - rank
    if short >= 0:
        return f"rank {rank:.2f} against the lowest resident's {lowest:.2f} on {tier}: " \
               f"it needs {2.0 ** min(short, 60):.2g} times its reads"  # fmt: skip
    return None


def _promotes(planner: Planner, candidate: Candidate, tier: str, rule: Rule) -> str:
    if candidate.mode == "pin":
        return f"rule {rule.name!r} pins it on {tier}"
    if planner.has_room(candidate.size, tier):
        return f"{tier} has room"
    rank, lowest = planner.best_rank(candidate, tier), planner.lowest_rank(tier)
    return f"rank {rank:.2f} passes the lowest resident's {lowest:.2f} on {tier} by more than the hysteresis"


def _finite(rank: float) -> float | None:
    return round(rank, 4) if math.isfinite(rank) else None
