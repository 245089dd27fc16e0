"""Who is alive: one pure judgement over times of the catalog's clock. Owns no state and does no I/O.

A server is judged only by when it last answered in time (a hung server still accepts connections), never by a
connection attempt. The invariant: after a metadata process starts, or takes over, nobody is dead before one full
lease (`dead_seconds`) has passed under its own eyes, because until then silence may be ours and not theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

Life = Literal["up", "suspect", "dead", "stopping"]

#: More than this share of the object servers gone at once is taken for a fault of the network or of ourselves.
VANISHED_SHARE_MAX: Final = 1 / 3


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds of catalog time. `repair_grace_seconds` counts from the moment a server was judged dead."""

    heartbeat_seconds: float = 1.0
    suspect_seconds: float = 3.0
    no_placement_seconds: float = 5.0
    dead_seconds: float = 20.0
    repair_grace_seconds: float = 600.0
    restart_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """`silent_ms`: how long nothing was heard, counted from the later of the last heartbeat and our own start."""

    life: Life
    may_place: bool
    silent_ms: int


def judge(
    timers: Timers, *, now_ms: int, seen_ms: int, watching_since_ms: int, restart_until_ms: int = 0,
    stopping: bool = False,
) -> Judgement:  # fmt: skip
    """The state of one server. restart_until_ms: end of an announced restart, 0 without one.

    An announced restart only delays death: reads still prefer others at once (suspect) and nothing new is placed."""
    silent_ms = max(0, now_ms - max(seen_ms, watching_since_ms))
    # For reads and placement the last heartbeat itself counts: a server unheard since before our start is no good
    # target, though it is not dead yet.
    unheard_ms = max(0, now_ms - seen_ms)
    may_place = not stopping and unheard_ms < timers.no_placement_seconds * 1000 and now_ms >= restart_until_ms
    if silent_ms >= timers.dead_seconds * 1000 and now_ms >= restart_until_ms:
        return Judgement("dead", False, silent_ms)
    if unheard_ms >= timers.suspect_seconds * 1000:
        return Judgement("suspect", may_place, silent_ms)
    return Judgement("stopping" if stopping else "up", may_place, silent_ms)


def vanished_too_many(newly_dead: Collection[int], members: int) -> bool:
    """True when repair must halt (rule 15): more than a third of at least two lost servers vanished at once.

    One dead server of two or three is the ordinary case that N+1 exists for, so a single loss never halts."""
    return len(newly_dead) > 1 and len(newly_dead) > members * VANISHED_SHARE_MAX
