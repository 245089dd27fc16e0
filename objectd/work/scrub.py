"""The scrub: reads every chunk of a device from the disk, again and again, at a pace, and has bad copies repaired.

Owns the cursor of each device, kept in a small file so that restarts go on where they were. Invariants: never faster
than its rate (all reading counts, also of headers); one chunk at a time per device; a chunk deleted meanwhile is no
finding; while paused, or while the device is not well, nothing is read.

What was written within the last `fresh_seconds` waits for a later round: the server summed it when it came, the disk
has had no time to rot it, and a round that ran after the writers would read each of their bytes again while they write.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import msgspec

from objectd.slots import Slot
from objectd.work.inventory import ENTRY_COST_BYTES, chunk_page
from objectd.work.pace import Pace
from objectd.work.verified import RunBlocking
from objectd.work.verify import VerifyWork
from tierstore.clock import Clock
from tierstore.errors import IntegrityError, NotFound, TierstoreError
from tierstore.names import ChunkId, allocated_at_ms
from tierstore.telemetry.log import get_logger

log = get_logger("objectd.work.scrub")

PAGE_CHUNKS: Final = 256
IDLE_SECONDS: Final = 30.0            # paused, or nothing to read
ROUND_SECONDS_MIN: Final = 3600.0     # a small device is not read over and over


ChunkAfter = bytes                    # in the class below the name `bytes` is a field


class Cursor(msgspec.Struct):
    """How far a device is: id of the last chunk read in this round, and what the round saw. Times: ms since 1970."""

    after: ChunkAfter = b""
    started_at_ms: int = 0
    chunks: int = 0
    bytes: int = 0
    bad: int = 0
    rounds: int = 0


@dataclass(slots=True)
class CursorFile:
    """The cursors of all devices by uuid, in hex. Loss costs a round of reading, so it is renamed but not synced."""

    path: str

    def load(self) -> dict[str, Cursor]:
        try:
            with open(self.path, "rb") as file:
                return msgspec.json.decode(file.read(), type=dict[str, Cursor])
        except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
            return {}

    def save(self, cursors: dict[str, Cursor]) -> None:
        with open(f"{self.path}.new", "wb") as file:
            file.write(msgspec.json.encode(cursors))
        os.replace(f"{self.path}.new", self.path)


class Scrub:
    """The scrub of all devices of a server: one `run` per device. Event loop only."""

    def __init__(
        self, *, clock: Clock, verify: VerifyWork, run_blocking: RunBlocking | None, rate: int, file: CursorFile | None,
        fresh_seconds: float,
    ) -> None:  # fmt: skip
        """fresh_seconds: younger chunks are left to a later round (those whose ids lie further ahead, because a clock
        was wrong, are not)."""
        self._clock = clock
        self._verify = verify
        self._run_blocking = run_blocking
        self._file = file
        self._cursors = file.load() if file is not None else {}
        self._paces: list[Pace] = []
        self.rate = rate
        self.fresh_seconds = fresh_seconds
        self.is_paused = False
        self.chunks_total = 0
        self.bytes_total = 0

    def cursor(self, slot: Slot) -> Cursor:
        return self._cursors.setdefault(slot.device.uuid.hex(), Cursor())

    def set_rate(self, bytes_per_second: int) -> None:
        """0: as before."""
        if bytes_per_second > 0 and bytes_per_second != self.rate:
            self.rate = bytes_per_second
            for pace in self._paces:
                pace.bytes_per_second = bytes_per_second

    async def run(self, slot: Slot) -> None:
        """Round after round over one device, for ever."""
        pace = Pace(self._clock, self.rate)
        self._paces.append(pace)
        while True:
            cursor = self.cursor(slot)
            if self.is_paused or slot.device.state == "failed" or not slot.id:
                await self._clock.sleep(IDLE_SECONDS)
                continue
            try:
                is_over = await self.step(slot, pace)
            except (OSError, TimeoutError, TierstoreError) as error:
                log.warning("scrub stopped for a while", device_path=slot.device.path, detail=str(error))
                await self._clock.sleep(IDLE_SECONDS)
                continue
            if is_over:
                age = (self._clock.now_ms() - cursor.started_at_ms) / 1000
                log.info("scrub round over", device_path=slot.device.path, chunks=cursor.chunks, bad=cursor.bad)
                self._cursors[slot.device.uuid.hex()] = Cursor(rounds=cursor.rounds + 1)
                self._save()
                await self._clock.sleep(max(IDLE_SECONDS, ROUND_SECONDS_MIN - age))

    async def step(self, slot: Slot, pace: Pace) -> bool:
        """One page of chunks; True when the round is over. Raises what the device raises."""
        cursor = self.cursor(slot)
        if not cursor.started_at_ms:
            cursor.started_at_ms = self._clock.now_ms()
        page = await chunk_page(slot.device, cursor.after, PAGE_CHUNKS, self._run_blocking)
        await pace.take(ENTRY_COST_BYTES * len(page))
        for chunk, size, _ in page:
            if self._is_fresh(chunk):
                cursor.after = bytes(chunk)
                continue
            try:
                await self._verify.check(slot, chunk, crc32c=None, on_piece=pace.take)
            except IntegrityError:
                cursor.bad += 1         # quarantined and reported by verify
            except NotFound:
                pass                    # deleted since the page was read
            cursor.after = bytes(chunk)
            cursor.chunks += 1
            cursor.bytes += size
            self.chunks_total += 1
            self.bytes_total += size
            if self.is_paused:
                break
        self._save()
        return len(page) < PAGE_CHUNKS and not self.is_paused

    def _is_fresh(self, chunk: ChunkId) -> bool:
        return abs(self._clock.now_ms() - allocated_at_ms(chunk)) < self.fresh_seconds * 1000

    def _save(self) -> None:
        if self._file is not None:
            try:
                self._file.save(self._cursors)
            except OSError as error:
                log.warning("the scrub's cursor cannot be written", detail=str(error))
