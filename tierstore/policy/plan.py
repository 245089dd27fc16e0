"""What goes into a tick of the promoter and what comes out: candidates, promotions, demotions, decisions.

Owns the words of the promoter's decisions; how they are reached is decide.py's. Values only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tierstore.policy.rules import Mode

Why = Literal[
    "promoted", "pinned", "spread", "displaced", "superseded", "never", "gone", "over-fill",
    "rank-too-low", "no-room", "budget", "device-rate", "too-large", "too-few-reads", "not-faster", "no-device",
    "paused",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk that was read and may move: where its usable copies are, and what its rule says."""

    chunk: bytes
    size: int
    score: float
    devices: tuple[int, ...]      # of all its usable copies, home and cache
    mode: Mode = "auto"
    fast: tuple[str, ...] = ()    # tiers that it may be promoted to; () = any
    server_reads: float = 0.0     # reads per second of the server that serves it, 0 = unknown
    reads_per_second: float = 0.0  # of the last interval, when known: heat learns of a crowd only by its half-life


@dataclass(frozen=True, slots=True)
class Promotion:
    """Copy `chunk` to `device`. Re-check with Planner.is_wanted when the copy is about to begin."""

    chunk: bytes
    size: int
    device: int
    rank: float
    why: Why


@dataclass(frozen=True, slots=True)
class Demotion:
    """Drop the cache copy of `chunk` on `device`; for `superseded`: after the promotion of this chunk is done."""

    chunk: bytes
    size: int
    device: int
    rank: float
    why: Why


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a chunk, for explain. lowest: rank it had to pass (COLD when there was room)."""

    at: float
    chunk: bytes
    action: Literal["promote", "demote", "skip"]
    device: int                   # 0: none
    rank: float
    lowest: float
    why: Why


@dataclass(slots=True)
class Plan:
    """The outcome of one tick, in the order in which it is to be carried out (demotions make the room)."""

    at: float
    demotions: list[Demotion] = field(default_factory=list)
    promotions: list[Promotion] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    budget_bytes: float = 0.0     # left after it
    grey_devices: tuple[int, ...] = ()  # fast devices that are slower than a slower tier: not preferred

    @property
    def bytes_moved(self) -> int:
        return sum(p.size for p in self.promotions)
