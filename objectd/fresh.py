"""What clients have just read from slow devices: kept for a moment in RAM, for the copy that the promoter may ask for.

A chunk is promoted because it was read, seconds ago. Reading it again would cost the slow device a second seek, and
dozens of such reads right behind a tick would stand before the clients'. So the last whole answers that had to wait
for a device are kept, oldest out first, and a copy takes its bytes from here. No read of a client is served from it:
that is the RAM cache's part (memory.py), which chooses what it keeps.

Invariants: never above `capacity_bytes`; an entry is given away once. What is here was not checked: whoever takes it
compares the whole with the catalog's CRC32C, as a copy does with every source.

Cost: 0.3 us for each read that waited for a disk; the bytes are those of the answer, not a copy of them.
"""

from __future__ import annotations

from collections import OrderedDict

from tierstore.checksum import SUM_BYTES, block_count
from tierstore.names import ChunkId


class Fresh:
    """One per server. Event loop only. 0 bytes: off."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.taken_total = 0
        self._answers: OrderedDict[ChunkId, bytes] = OrderedDict()

    def keep(self, chunk: ChunkId, answer: bytes) -> None:
        """Sums and data of a whole chunk, as they were just sent."""
        if len(answer) > self.capacity_bytes:
            return
        self.forget(chunk)
        self._answers[chunk] = answer
        self.used_bytes += len(answer)
        while self.used_bytes > self.capacity_bytes:
            self.used_bytes -= len(self._answers.popitem(last=False)[1])

    def take(self, chunk: ChunkId, chunk_bytes: int) -> bytes | None:
        """Sums and data, which are not here any more afterwards; None when they are not, or of another length."""
        answer = self._answers.pop(chunk, None)
        if answer is None:
            return None
        self.used_bytes -= len(answer)
        if len(answer) != block_count(chunk_bytes) * SUM_BYTES + chunk_bytes:
            return None
        self.taken_total += 1
        return answer

    def forget(self, chunk: ChunkId) -> None:
        """It was deleted or found bad."""
        answer = self._answers.pop(chunk, None)
        if answer is not None:
            self.used_bytes -= len(answer)

    def __len__(self) -> int:
        return len(self._answers)
