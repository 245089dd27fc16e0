"""Memory for reads of one mount: streams that read ahead, and ranges that are fetched at once.

Invariants: both together never hold more than `bytes_max`; streams leave RANGES_SHARE of it to ranges, so that a range
waits for other ranges at most, each of which ends by its deadline; a stream is begun only if there is memory for it,
and may take that of the stream that nobody read from for the longest time, after IDLE_SECONDS of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from tierstore.sdk.budget import BufferBudget

#: One part in so many is for ranges only.
RANGES_SHARE: Final = 8
#: A stream that was not read from for so long makes room for one that is wanted.
IDLE_SECONDS: Final = 2.0


class ReadMemory:
    """One per mount. Event loop only. streams_dropped: idle ones that made room."""

    def __init__(self, bytes_max: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.budget = BufferBudget(bytes_max)
        self._for_streams = bytes_max - bytes_max // RANGES_SHARE
        self._monotonic = monotonic
        #: How to end it -> (bytes, last read from); the one that was not read from for the longest time first.
        self._streams: dict[Callable[[], None], tuple[int, float]] = {}
        self._stream_bytes = 0
        self.streams_dropped = 0

    def begin(self, end: Callable[[], None], size: int) -> bool:
        """Take `size` bytes for a stream, if there is room. end: stops the stream, which calls ended()."""
        while self._stream_bytes + size > self._for_streams or not self.budget.try_take(size):
            oldest = next(iter(self._streams), None)
            if oldest is None or self._monotonic() - self._streams[oldest][1] < IDLE_SECONDS:
                return False
            oldest()
            self.streams_dropped += 1
        self._stream_bytes += size
        self._streams[end] = size, self._monotonic()
        return True

    def used(self, end: Callable[[], None]) -> None:
        """The stream was read from."""
        size, _ = self._streams.pop(end)
        self._streams[end] = size, self._monotonic()

    def ended(self, end: Callable[[], None]) -> None:
        """The stream is no more: give back what it had."""
        size, _ = self._streams.pop(end)
        self._stream_bytes -= size
        self.budget.give_back(size)

    @contextlib.asynccontextmanager
    async def range(self, size: int) -> AsyncIterator[None]:
        """Hold `size` bytes. Waits in line for other ranges."""
        await self.budget.take(size)
        try:
            yield
        finally:
            self.budget.give_back(size)
