"""Settings of one device's store: sizes, bounds and times, with the reason of each default.

Invariant: everything here may change between two starts on the same directory; what the directory's format depends on
stands in device.json and in the records themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class StoreSettings:
    segment_chunk_bytes_max: int = 256 * KIB    # larger chunks get a file: the gain of segments fades with size
    segment_bytes_max: int = 256 * MIB          # one compaction step; a record's offset/8 fits u32
    reserve_bytes: int = -1                     # kept for tombstones and compaction; -1: 2 %, at most 1 GiB
    ballast_bytes: int = 4 * MIB                # really allocated, given back when a delete meets ENOSPC
    name_hint_bytes_max: int = 2 * KIB
    index_map_bytes: int = 16 * 1024 * MIB      # address space of the index (about 100 bytes a chunk), not memory
    index_inline_bytes: int = 256 * MIB         # an index up to here is looked up in the loop (stays in page cache)
    index_fresh_max: int = 200_000              # entries not yet flushed; at the bound, puts wait for the flush
    index_flush_seconds: float = 1.0
    open_files_max: int = 512                   # descriptors of chunk files and segments, each
    io_threads: int = 4
    io_deadline_seconds: float = 30.0           # longest wait for one disk action before the device counts as failed
    sync_waiters_max: int = 4096                # puts waiting for the committer
    write_behind_bytes: int = 8 * MIB           # a writer asks the disk to start after so many bytes
    write_pending_bytes_max: int = 32 * MIB     # bound of ChunkWriter.pending_bytes
    direct_bytes_min: int = MIB                 # chunks from here on are written around the page cache; 0: none
    segment_grace_seconds: float = 600.0        # a compacted segment stays for twice a ticket's life (rule 10)
    simulate_seek_ms: float = 0.0               # honest slow device (slow.py); 0: off
    simulate_bytes_per_second: int = 0

    def __post_init__(self) -> None:
        if not 4 * KIB <= self.segment_chunk_bytes_max <= 4 * MIB:
            raise ConfigError("segment_chunk_bytes_max must lie between 4 KiB and 4 MiB")
        if not self.segment_chunk_bytes_max + 64 * KIB <= self.segment_bytes_max <= 4096 * MIB - 8:
            raise ConfigError("segment_bytes_max must hold a whole record and stay below 4 GiB")

    @property
    def is_simulated(self) -> bool:
        return self.simulate_seek_ms > 0 or self.simulate_bytes_per_second > 0

    def reserve_of(self, capacity_bytes: int) -> int:
        """Bytes of a device kept for tombstones and compaction."""
        if self.reserve_bytes >= 0:
            return self.reserve_bytes
        return min(1024 * MIB, capacity_bytes // 50)
