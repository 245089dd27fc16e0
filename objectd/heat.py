"""Counts of reads per chunk between two heartbeats, and their delivery exactly as often as metadata acknowledges.

Owns the counts of the running interval and the one batch that waits for its acknowledgement. Invariant: a read is in
exactly one batch; a batch keeps its sequence until it is acknowledged, so a repeat is recognised; both are bounded
(chunks beyond `entries_max` in one interval are not counted, `dropped` says how many).

Cost: one dictionary update a read (0.1-0.2 us); 18 bytes per distinct chunk and heartbeat on the wire.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tierstore.names import CHUNK_ID_BYTES, ChunkId

#: float16's largest number: more whole reads than that in one interval are reported as that many.
COUNT_MAX = 65_504.0
_ENTRY = struct.Struct(f"<{CHUNK_ID_BYTES}se")
ENTRY_BYTES = _ENTRY.size


@dataclass(frozen=True, slots=True)
class HeatBatch:
    """What one or more heartbeats carry until it is acknowledged. seconds: length of the interval counted."""

    sequence: int
    entries: bytes
    seconds: float


class HeatCounter:
    """Counts of whole reads; a ranged read counts its share of the chunk's bytes. Event loop only."""

    def __init__(self, *, entries_max: int, now_seconds: float) -> None:
        self._counts: dict[ChunkId, float] = {}
        self._entries_max = entries_max
        self._since = now_seconds
        self._sequence = 0
        self._waiting: HeatBatch | None = None
        self.dropped = 0

    def count(self, chunk: ChunkId, reads: float = 1.0) -> None:
        """Note `reads` whole reads (a share below one for a range) of a chunk."""
        counts = self._counts
        if chunk in counts:
            counts[chunk] += reads
        elif len(counts) < self._entries_max:
            counts[chunk] = reads
        else:
            self.dropped += 1

    def batch(self, now_seconds: float) -> HeatBatch | None:
        """What the next heartbeat carries: the batch not yet acknowledged, else the counts since the last one.

        None when nothing was read. now_seconds: monotonic."""
        if self._waiting is None and self._counts:
            pack = _ENTRY.pack
            entries = b"".join(
                [pack(chunk, reads if reads < COUNT_MAX else COUNT_MAX) for chunk, reads in self._counts.items()]
            )
            self._sequence += 1
            self._waiting = HeatBatch(self._sequence, entries, now_seconds - self._since)
            self._counts = {}
        if not self._counts:
            self._since = now_seconds
        return self._waiting

    def acknowledge(self, sequence: int) -> None:
        """Metadata has merged every batch up to `sequence`. Safe to repeat."""
        if self._waiting is not None and sequence >= self._waiting.sequence:
            self._waiting = None

    @property
    def distinct(self) -> int:
        """Chunks counted in the running interval."""
        return len(self._counts)


def unpack_entries(entries: bytes) -> list[tuple[ChunkId, float]]:
    """The (chunk, reads) pairs of a batch. Raises struct.error unless it is a multiple of ENTRY_BYTES."""
    return [(ChunkId(chunk), reads) for chunk, reads in _ENTRY.iter_unpack(entries)]
