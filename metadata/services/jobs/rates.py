"""How fast jobs may move bytes, and what they came to lately. Pure data, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class JobRates:
    """Bytes per second; 0: no limit. `total` bounds what is handed out over all devices, endangered chunks too."""

    per_device: int = 50 << 20
    total: int = 0
    promote: int = 50 << 20     # per device; the policy's, lowered while clients need the servers

    def of(self, why: str) -> int:
        """Bytes per second of one device that a job of this reason may move."""
        return self.promote if why == "promote" else self.per_device


#: Rates are means over this long; what is older counts ever less.
RATE_SECONDS: Final = 30.0


@dataclass(slots=True)
class Tally:
    """What jobs of one reason came to since this process started, with decaying rates."""

    done: int = 0
    bytes_moved: int = 0
    failed: int = 0
    last_at_ms: int = 0
    _recent_bytes: float = 0.0
    _recent_jobs: float = 0.0

    def add(self, size: int, *, now_ms: int) -> None:
        fade = self._fade(now_ms)
        self._recent_bytes = self._recent_bytes * fade + size
        self._recent_jobs = self._recent_jobs * fade + 1
        self.last_at_ms = now_ms
        self.done += 1
        self.bytes_moved += size

    def _fade(self, now_ms: int) -> float:
        return math.exp(-max(0, now_ms - self.last_at_ms) / 1000 / RATE_SECONDS)

    def rate(self, now_ms: int) -> float:
        """Bytes per second lately."""
        return self._recent_bytes * self._fade(now_ms) / RATE_SECONDS

    def jobs_rate(self, now_ms: int) -> float:
        """Jobs per second lately."""
        return self._recent_jobs * self._fade(now_ms) / RATE_SECONDS
