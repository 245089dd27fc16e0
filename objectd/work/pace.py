"""Pace: how fast background work may go, in bytes per second, by the Clock.

Owns one reservation mark per limiter. Invariant: over any span, at most rate x span + one burst passes; a rate of 0
is no limit. Fair enough among few users: whoever asks first reserves first.
"""

from __future__ import annotations

from typing import Final

from tierstore.clock import Clock

#: What may pass at once after a silence, in seconds of the rate: keeps the disk's queue from emptying between turns.
BURST_SECONDS: Final = 0.25
#: Longest single sleep: a changed rate or a lost lease is noticed within it.
SLEEP_SECONDS_MAX: Final = 1.0


class Pace:
    """A limiter shared by everything that must stay below one rate."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        self._clock = clock
        self.bytes_per_second = bytes_per_second
        self._paid_until = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes may pass. A single take may be larger than the burst."""
        if self.bytes_per_second <= 0:
            return
        now = self._clock.monotonic()
        self._paid_until = max(self._paid_until, now - BURST_SECONDS) + count / self.bytes_per_second
        # each round waits at most SLEEP_SECONDS_MAX, so the loop ends after the reserved time
        while (wait := self._paid_until - self._clock.monotonic()) > 0 and self.bytes_per_second > 0:
            await self._clock.sleep(min(wait, SLEEP_SECONDS_MAX))
