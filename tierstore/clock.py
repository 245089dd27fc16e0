"""Time, as a thing that is passed in: the Clock seam, its real form, and the hybrid logical clock.

Wall time is for leases, expiry and people; order comes from the hybrid clock or the catalog's sequence, never from
wall time. The second implementation (ManualClock) passes the same conformance test and drives the simulation.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

from tierstore.names import SiteId, VersionId

COUNTER_BITS: Final = 13
SITE_BITS: Final = 8
_TICK: Final = 1 << SITE_BITS
_MS: Final = 1 << (COUNTER_BITS + SITE_BITS)


class Clock(Protocol):
    """What the code may know of time."""

    def now_ms(self) -> int:
        """Wall time, ms since 1970 UTC. May jump."""
        ...

    def monotonic(self) -> float:
        """Seconds, never backwards; only differences mean anything."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class LoopClock:
    """Time of the running event loop: virtual when the loop is (simulation). Wall time is epoch_ms + loop time."""

    def __init__(self, *, epoch_ms: int = 1_800_000_000_000, skew_ms: int = 0) -> None:
        self._epoch_ms = epoch_ms + skew_ms

    def now_ms(self) -> int:
        return self._epoch_ms + int(asyncio.get_running_loop().time() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Time that stands still until a test moves it. sleep() returns when advance() has passed its end."""

    def __init__(self, *, now_ms: int = 1_800_000_000_000) -> None:
        self._now_ms = float(now_ms)
        self._start_ms = float(now_ms)
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        return int(self._now_ms)

    def monotonic(self) -> float:
        return (self._now_ms - self._start_ms) / 1000

    def advance(self, seconds: float) -> None:
        self._now_ms += seconds * 1000
        due = [f for at, f in self._waiting if at <= self._now_ms]
        self._waiting = [(at, f) for at, f in self._waiting if at > self._now_ms]
        for future in due:
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._now_ms + seconds * 1000, future))
        await future


class HybridClock:
    """Version ids: u42 ms | u13 counter | u8 site (hybrid logical clock, Kulkarni et al. 2014, packed in 63 bits).

    next() is above every id it gave, every id it was shown by `observe`, and above `after`. The physical part only
    follows this machine's clock and ids seen; it is never pulled forward beyond `ahead_ms_max` by an id from outside.
    """

    def __init__(self, clock: Clock, site: SiteId, *, floor: int = 0, ahead_ms_max: int = 86_400_000) -> None:
        self._clock = clock
        self._site = int(site)
        self._last = floor // _TICK
        self._ahead_ms_max = ahead_ms_max

    def next(self, after: int = 0, now_ms: int = 0) -> VersionId:
        """A new id: max(physical time, the last one + 1, after + 1), of this site. now_ms: the clock's time when the
        caller has just read it (a batch of commits reads it once), else 0."""
        now_ms = now_ms or self._clock.now_ms()
        tick = max(now_ms << COUNTER_BITS, self._last + 1)
        if after:
            self._last = tick
            tick = max(tick, after // _TICK + 1)
            if after // _MS > now_ms + self._ahead_ms_max:
                return VersionId(tick * _TICK + self._site)
        self._last = tick
        return VersionId(tick * _TICK + self._site)

    def is_acceptable(self, version: int) -> bool:
        """False for an id more than ahead_ms_max in the future: it must not drag this clock along."""
        return version // _MS <= self._clock.now_ms() + self._ahead_ms_max

    def observe(self, version: int) -> None:
        if self.is_acceptable(version):
            self._last = max(self._last, version // _TICK)


def version_ms(version: VersionId | int) -> int:
    """The physical part of a version id, ms since 1970."""
    return version // _MS


def version_site(version: VersionId | int) -> SiteId:
    return SiteId(version % _TICK)
