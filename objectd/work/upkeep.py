"""Upkeep of the devices: emptying the trash, compaction, checks of devices that failed.

Owns no data. Invariants: trash lives `trash_seconds`, shorter only while space is short and never below
`trash_seconds_min` (a ticket's life and more); compaction moves a bounded number of bytes a round; a device comes back
only through its own check; an error of one device does not keep the others waiting.
"""

from __future__ import annotations

import asyncio
from typing import Final

from objectd.config import Upkeep as UpkeepSettings
from objectd.slots import Slot
from tierstore.clock import Clock
from tierstore.errors import TierstoreError
from tierstore.telemetry.log import get_logger

log = get_logger("objectd.work.upkeep")

STEP_SECONDS_MAX: Final = 300.0       # for one round of compaction or emptying on a slow device
CHECK_SECONDS_MAX: Final = 30.0
#: A device that is short of space with at least this share of it dead is looked at each HURRY_SECONDS: a fast tier is
#: always nearly full, and copies that are let go must make room for those that come.
HURRY_SHARE: Final = 1 / 64
HURRY_SECONDS: Final = 1.0
#: Dead share from which segments are rewritten when what is dead is more than what is free. A fast tier is filled to
#: 95 %: with a fifth of each segment dead, as `garbage_ratio` would have it, nothing new would find room there.
STARVED_RATIO: Final = 0.03


class Upkeep:
    """One `run` per device. Event loop only."""

    def __init__(self, *, clock: Clock, settings: UpkeepSettings) -> None:
        self._clock = clock
        self._settings = settings
        self.trash_seconds = settings.trash
        self.is_paused = False
        self.freed_bytes_total = 0

    async def run(self, slot: Slot) -> None:
        """A round each interval, for ever."""
        while True:
            await self._wait(slot)
            try:
                await self.round(slot)
            except (OSError, TimeoutError, TierstoreError) as error:
                log.warning("upkeep failed", device_path=slot.device.path, detail=str(error))

    async def _wait(self, slot: Slot) -> None:
        """Until the next round; a copy that finds no room cuts it short."""
        left = self._pause(slot)
        while left > 0 and not self._is_wanted(slot):
            step = min(left, HURRY_SECONDS)
            await self._clock.sleep(step)
            left -= step

    def _pause(self, slot: Slot) -> float:
        """Seconds until the next round."""
        usage = slot.device.usage()
        is_hurried = self._is_short(slot) and usage.garbage_bytes >= HURRY_SHARE * usage.capacity_bytes
        is_hurried = is_hurried or self._is_wanted(slot)
        return min(HURRY_SECONDS, self._settings.interval) if is_hurried else self._settings.interval

    def _garbage_ratio(self, slot: Slot, *, is_short: bool) -> float:
        """Dead share from which a segment is rewritten."""
        if not is_short:
            return self._settings.garbage_ratio
        usage = slot.device.usage()
        # dead records keep more room than is left: now every segment pays that has some of it (the worst go first)
        is_starved = usage.garbage_bytes > usage.free_bytes or self._is_wanted(slot)
        return min(STARVED_RATIO, self._settings.garbage_ratio / 2) if is_starved else self._settings.garbage_ratio / 2

    def _is_short(self, slot: Slot) -> bool:
        usage = slot.device.usage()
        return slot.device.state == "full" or usage.free_bytes < self._settings.short_of_space * usage.capacity_bytes

    @staticmethod
    def _is_wanted(slot: Slot) -> bool:
        """A copy found too little room, while what is dead would make enough."""
        usage = slot.device.usage()
        dead = usage.garbage_bytes + usage.trash_bytes
        return usage.free_bytes < slot.wanted_bytes <= usage.free_bytes + dead

    async def round(self, slot: Slot) -> None:
        """Check a device that takes no writes; else empty the trash and compact. Raises what the device raises."""
        device = slot.device
        if device.state in ("failed", "read-only"):     # mended, or mounted for writing again: nobody tells us
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                await device.check()
            log.info("device is back", device_path=device.path)
            return
        is_short = self._is_short(slot) or self._is_wanted(slot)
        seconds = min(self.trash_seconds, self._settings.trash_min) if is_short else self.trash_seconds
        async with asyncio.timeout(STEP_SECONDS_MAX):
            freed = await device.empty_trash(self._clock.now_ms() - int(seconds * 1000))
            # while space is short a segment pays off earlier; deletes must always find room, so this is never paused
            if is_short or not self.is_paused:
                ratio = self._garbage_ratio(slot, is_short=is_short)
                freed += await device.compact(garbage_ratio=ratio, bytes_max=self._settings.compact_bytes_max)
        slot.wanted_bytes = 0       # a copy that still finds too little room asks again
        self.freed_bytes_total += freed
