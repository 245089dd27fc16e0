"""The `mem` tier of an object server: whole chunks in RAM, in front of reads that wait for a disk.

Owns the cached chunks (policy/memcache.py decides which) as the bytes of a whole answer: block sums, then data. A chunk
enters when it was read whole and had to wait for its device, so what the page cache serves anyway takes no room here.
Only the server's slowest devices are waited for: what was promoted leaves with its first read from a faster one, else
the hottest chunks of all would be here twice, and those that wait for a disk would find no room.
Readers come back to the server that serves a chunk (the order of replicas is stable): the RAM of all servers adds up.

Invariants: never above `capacity_bytes`; what enters was checked against its sums, so that one rotten read is not
served for hours; an id is write-once, so an entry is never stale, only unneeded.

Cost: a hit 0.3 us and no system call before the answer's write; an insert one copy and one CRC pass.
"""

from __future__ import annotations

from typing import Final

from objectd.store.device import Buffer
from tierstore.checksum import sums_of
from tierstore.names import ChunkId
from tierstore.policy.memcache import MemCache

TIER: Final = "mem"
#: A chunk above this share of the cache does not enter. It is a tenth of three servers' RAM: the cache is cut into as
#: many parts as there are servers, and a part must not refuse what the whole would take.
ADMIT_SHARE: Final = 0.3


class Memory:
    """One per server. Event loop only. 0 bytes: off."""

    def __init__(self, capacity_bytes: int) -> None:
        self._cache: MemCache[bytes, bytes] = MemCache(
            capacity_bytes, admit_bytes_max=int(capacity_bytes * ADMIT_SHARE)
        )
        self._lines: dict[int, bytes] = {}
        self.is_on = capacity_bytes > 0

    def get(self, chunk: ChunkId) -> bytes | None:
        """Sums and data of a chunk, counted as a read; None when it is not here."""
        return self._cache.get(chunk)

    def admits(self, chunk_bytes: int) -> bool:
        """Whether a chunk of that size may enter at all."""
        return self.is_on and 0 < chunk_bytes <= self._cache.admit_bytes_max

    def admit(self, chunk: ChunkId, sums: Buffer, data: Buffer) -> bool:
        """Keep a chunk that was just read from a device; False when it does not fit its sums or may not enter."""
        if not self.admits(len(data)) or sums_of(data) != bytes(sums):
            return False
        return self._cache.put(chunk, b"".join((sums, data)), len(sums) + len(data))

    def forget(self, chunk: ChunkId) -> None:
        """It was deleted or found bad."""
        self._cache.remove(chunk)

    def answer_lines(self, sums_bytes: int) -> bytes:
        """The header lines of an answer from memory."""
        lines = self._lines.get(sums_bytes)
        if lines is None:
            lines = self._lines[sums_bytes] = (
                b"content-type: application/octet-stream\r\nx-tierstore-sums: %d\r\nx-tierstore-tier: mem\r\n"
                % sums_bytes
            )
        return lines

    @property
    def used_bytes(self) -> int:
        return self._cache.used_bytes

    @property
    def capacity_bytes(self) -> int:
        return self._cache.capacity_bytes

    @property
    def chunks(self) -> int:
        return len(self._cache)
