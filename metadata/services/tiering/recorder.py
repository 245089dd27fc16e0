"""Recorded access history: which object was read, written or deleted when, as what-if replays it.

Owns the requests of the last moments, the rolling log (policy/history.py) and its files in this process' own directory.
A request costs an append to five columns (0.6 us, 21 bytes and its name); encoding, sampling and files are off the
event loop, in one thread at a time. With several metadata processes each records what it answered.

Bounds: PENDING_MAX requests with PENDING_NAME_BYTES_MAX of names wait at most (more are not recorded, counted); the log
has `bytes_max` bytes in memory and on disk. A crash loses what was not yet written: at most FLUSH_SECONDS, or a segment
that was still open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiofiles
import aiofiles.os
import numpy as np
import numpy.typing as npt

from metadata.catalog import schema
from metadata.services.names.writes import Committed
from tierstore.clock import Clock
from tierstore.errors import IntegrityError
from tierstore.policy.history import History, is_sampled
from tierstore.policy.segment import Requests
from tierstore.policy.trace import DELETE, GET, PUT

log = logging.getLogger(__name__)

BYTES_MAX: Final = 64 << 20
HOURS_KEPT: Final = 24.0
PENDING_MAX: Final = 1_000_000
PENDING_NAME_BYTES_MAX: Final = 64 << 20
SEGMENT_FILE_BYTES_MAX: Final = 64 << 20
#: Of the packed log that one question about an object looks through: 8 MiB unpack in 0.1 s.
REREAD_BYTES_MAX: Final = 8 << 20
SUFFIX: Final = ".history"


@dataclass(frozen=True, slots=True)
class ObjectPast:
    """reads_at: when it was read, s since 1970, in order. is_recorded: False when only a sample of the keys is."""

    reads_at: npt.NDArray[np.float64]
    is_recorded: bool


class Recorder:
    """One per process. `read`, `committed`: event loop; the log itself is touched by one thread at a time."""

    def __init__(self, clock: Clock, directory: Path | None, *, bytes_max: int = BYTES_MAX) -> None:
        self._clock = clock
        self._directory = directory
        self._bytes_max = bytes_max
        self._pending = Requests()
        self._one_at_a_time = asyncio.Lock()
        self._history = History(bytes_max=bytes_max, hours_kept=HOURS_KEPT)
        self._files: set[str] = set()
        self._parts_read = 0.0      # of bodies read in part, what is not recorded yet: below 1
        self.requests = 0
        self.dropped = 0

    # -- recording --------------------------------------------------------------------------------------------
    def read(self, bucket: str, key: str, size: int, share: float = 1.0) -> None:
        """A body is about to be read, or a share of it: of small parts so many are recorded, as whole reads, as make up
        their bytes. So a replay serves the bytes that were served, and a chunk gets the heat that it got."""
        if share < 1.0:
            self._parts_read += share
            if self._parts_read < 1.0:
                return
            self._parts_read -= 1.0
        self._note(self._clock.now_ms(), GET, bucket, key, size)

    def committed(self, events: Sequence[Committed]) -> None:
        """Objects were written or deleted."""
        now_ms = self._clock.now_ms()
        for event in events:
            if event.kind == schema.CHANGE_PUT:
                self._note(now_ms, PUT, event.bucket, event.key, event.size)
            elif event.kind == schema.CHANGE_DELETE:
                self._note(now_ms, DELETE, event.bucket, event.key, event.size)

    def _note(self, at_ms: int, op: int, bucket: str, key: str, size: int) -> None:
        if len(self._pending) >= PENDING_MAX or self._pending.name_bytes >= PENDING_NAME_BYTES_MAX:
            self.dropped += 1
            return
        self.requests += 1
        self._pending.add(at_ms, op, bucket, key, size)

    @property
    def used_bytes(self) -> int:
        return self._history.used_bytes

    # -- the log ----------------------------------------------------------------------------------------------
    async def load(self) -> None:
        """Take up the segments of earlier lives; damaged ones are left out and removed at the next flush."""
        if self._directory is None:
            return
        segments: list[bytes] = []
        for name in sorted(n for n in await aiofiles.os.listdir(self._directory) if n.endswith(SUFFIX)):
            path = self._directory / name
            try:
                if path.stat().st_size > SEGMENT_FILE_BYTES_MAX:
                    raise IntegrityError("larger than any segment of ours", code="bad-history")
                async with aiofiles.open(path, "rb") as file:
                    segment = await file.read()
                History(segments=[segment])     # checks its header
            except (OSError, IntegrityError) as error:
                log.warning("recorded history is left out: %s: %s", path, error)
                continue
            segments.append(segment)
            self._files.add(name)
        try:
            self._history = await asyncio.to_thread(
                lambda: History(bytes_max=self._bytes_max, hours_kept=HOURS_KEPT, segments=segments)
            )
        except IntegrityError as error:
            log.warning("recorded history starts anew: %s", error)

    async def flush(self, *, close: bool = False) -> int:
        """Take what was recorded into the log, and closed segments to files; how many requests. close: also the open
        segment (before a stop, or for what-if)."""
        async with self._one_at_a_time:
            pending, self._pending = self._pending, Requests()
            await asyncio.to_thread(self._take, pending, close)
            await self._write_files()
            return len(pending)

    def _take(self, pending: Requests, close: bool) -> None:
        self._history.take(pending)
        if close:
            self._history.close_segment()

    async def _write_files(self) -> None:
        if self._directory is None:
            return
        wanted = {_name(segment): segment for segment in self._history.segments}
        for name in sorted(set(wanted) - self._files):
            unfinished = self._directory / f"{name}.new"
            async with aiofiles.open(unfinished, "wb") as file:
                await file.write(wanted[name])
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await aiofiles.os.replace(unfinished, self._directory / name)
            self._files.add(name)
        for name in sorted(self._files - set(wanted)):
            try:
                await aiofiles.os.remove(self._directory / name)
            except FileNotFoundError:
                pass    # removed by hand: that is what we wanted
            self._files.discard(name)

    async def reads_of(self, bucket: str, key: str, *, hours: int) -> ObjectPast:
        """When an object was read in the last hours, from the newest REREAD_BYTES_MAX of the log; off the loop."""
        since_ms = self._clock.now_ms() - hours * 3_600_000
        async with self._one_at_a_time:
            pending, self._pending = self._pending, Requests()
            return await asyncio.to_thread(self._reads_of, pending, bucket, key, since_ms)

    def _reads_of(self, pending: Requests, bucket: str, key: str, since_ms: int) -> ObjectPast:
        self._take(pending, False)
        history = self._history
        reads = history.reads_of(bucket, key, since_ms=since_ms, bytes_max=REREAD_BYTES_MAX)
        return ObjectPast(reads / 1000.0, history.share >= 1.0 or is_sampled(bucket, key, history.share))

    async def segments(self) -> tuple[bytes, ...]:
        """All that is recorded up to now, oldest first."""
        await self.flush(close=True)
        return self._history.segments


def _name(segment: bytes) -> str:
    """First millisecond and checksum: the order of names is that of time, and a resampled segment gets another."""
    first_ms = int.from_bytes(segment[8:16], "little", signed=True)
    return f"{first_ms:015d}-{zlib.crc32(segment):08x}{SUFFIX}"
