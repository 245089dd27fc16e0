"""Gathering heat: merges the deltas of the object servers' heartbeats into the in-memory table and keeps its snapshot.

Owns the HeatTable of this process, the file it is saved to, and which server reported a chunk last (a hint for
finding its row). No read of an object ever writes to the catalog; what a crash loses is at most one snapshot interval
of heat. Only the holder of the promoter's lease gathers (rule 15): a server that reports elsewhere is told where in
its heartbeat answer.

    merge      about 0.4 us an entry, in the event loop; a heartbeat carries at most ENTRIES_MAX
    snapshot   encoded in the loop (tens of ms per 150,000 chunks), written by aiofiles, renamed over the old one
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Final

import aiofiles
import aiofiles.os
import numpy as np

from metadata.promoter.runner import Step
from tierstore.clock import Clock
from tierstore.errors import IntegrityError, RequestError
from tierstore.policy.heat import ENTRY, ENTRY_BYTES, HeatTable

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS: Final = 300.0
#: Distinct chunks one heartbeat may report; more are refused (a second's worth of reads is far below it).
ENTRIES_MAX: Final = 500_000
#: A snapshot larger than this is not read: no table of ours makes one.
SNAPSHOT_BYTES_MAX: Final = 512 << 20
#: Chunks of which the reporting server is remembered; beyond, the oldest quarter is forgotten.
REPORTERS_MAX: Final = 200_000


class HeatGatherer:
    """A duty of each process: `merge` is called by the heartbeat, `step` saves the table."""

    name = "heat"
    interval_seconds = SNAPSHOT_SECONDS
    is_single = False

    def __init__(self, clock: Clock, path: Path | None, *, half_life_seconds: float = 3600.0) -> None:
        self._clock = clock
        self._path = path
        self.table = HeatTable(half_life_seconds=half_life_seconds, landmark=clock.now_ms() / 1000)
        self._sequences: dict[int, tuple[int, int]] = {}  # server -> (incarnation, last sequence merged)
        self._reporters: dict[bytes, int] = {}
        self._is_saved = True
        self.entries_merged = 0
        self.merges = 0

    def merge(self, server: int, incarnation: int, sequence: int, entries: bytes) -> int:
        """Count a delta once; returns the sequence to acknowledge. Raises RequestError(code="bad-heat-delta").

        A resent delta (same incarnation, sequence not above the last) is acknowledged again and not counted."""
        if len(entries) > ENTRIES_MAX * ENTRY_BYTES:
            raise RequestError(f"a heat delta has at most {ENTRIES_MAX} entries", code="bad-heat-delta")
        seen = self._sequences.get(server)
        if seen is not None and seen[0] == incarnation and sequence <= seen[1]:
            return sequence
        if entries:
            self.entries_merged += self.table.merge(entries, self._clock.now_ms() / 1000)
            self._note_reporter(server, entries)
            self._is_saved = False
        self.merges += 1
        self._sequences[server] = (incarnation, sequence)
        return sequence

    def _note_reporter(self, server: int, entries: bytes) -> None:
        ids: list[bytes] = np.frombuffer(entries, dtype=ENTRY)["id"].tolist()
        self._reporters.update(zip(ids, repeat(server)))
        if len(self._reporters) > REPORTERS_MAX:
            excess = len(self._reporters) - REPORTERS_MAX * 3 // 4
            for chunk in list(self._reporters)[:excess]:
                del self._reporters[chunk]

    def reporter(self, chunk: bytes) -> int:
        """The server that reported reads of the chunk last; 0 when not known (any more)."""
        return self._reporters.get(chunk, 0)

    def heat_per_hour(self, chunk: bytes) -> float:
        return self.table.heat_per_hour(chunk, self._clock.now_ms() / 1000)

    def heats_per_hour(self, chunks: Sequence[bytes]) -> list[float]:
        return self.table.heats_per_hour(chunks, self._clock.now_ms() / 1000)

    def set_half_life(self, seconds: float) -> None:
        """Go on with today's decayed counts under another half-life."""
        if seconds != self.table.half_life_seconds:
            self.table.renormalise(self._clock.now_ms() / 1000, half_life_seconds=seconds)

    async def load(self) -> None:
        """Take up the snapshot of the last run; a missing or damaged one means starting cold, which is logged."""
        if self._path is None or not self._path.exists():
            return
        try:
            if self._path.stat().st_size > SNAPSHOT_BYTES_MAX:
                raise IntegrityError("larger than any snapshot of ours", code="bad-snapshot")
            async with aiofiles.open(self._path, "rb") as file:
                self.table = HeatTable.restore(await file.read())
        except (OSError, IntegrityError) as error:
            log.warning("heat starts cold: %s: %s", self._path, error)

    async def save(self) -> int:
        """Write the table to its file; bytes written. The old file stays until the new one is whole and synced.
        Raises OSError."""
        if self._path is None:
            return 0
        blob = self.table.snapshot()
        unfinished = self._path.with_suffix(".new")
        async with aiofiles.open(unfinished, "wb") as file:
            await file.write(blob)
            await file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        await aiofiles.os.replace(unfinished, self._path)
        return len(blob)

    async def step(self, epoch: int) -> Step:
        if self._is_saved:
            return Step(detail=f"{len(self.table)} chunks known")
        self._is_saved = True
        size = await self.save()
        return Step(done=len(self.table), bytes_moved=size, detail=f"{len(self.table)} chunks known")
