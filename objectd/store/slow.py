"""An honest slow device: one spindle that seeks and transfers at a set pace, whatever the page cache knows.

For demonstrations and tests of tiering on machines whose only disk is fast. Owns the model of one arm: requests go one
at a time; one that does not continue where the last one ended pays the seek; bytes pay the rate. Invariant: transfer()
is called only in the device's threads, never in the loop, and sleeps while it holds the arm, so that waiting requests
queue as they would at a real disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

#: A read that begins up to so many bytes behind the last one's end counts as its continuation (track buffer).
NEAR_BYTES: Final = 256 * 1024


class Spindle:
    def __init__(self, *, seek_ms: float, bytes_per_second: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._seek_seconds = seek_ms / 1000
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0.0
        self._sleep = sleep
        self._arm = threading.Lock()
        self._at: tuple[object, int] = (None, 0)
        self.seeks = 0

    def transfer(self, where: object, offset: int, count: int) -> None:
        """Be as slow as reading or writing count bytes at that offset of `where` (a segment number or chunk id)."""
        with self._arm:
            seconds = count * self._seconds_per_byte
            if not (self._at[0] == where and 0 <= offset - self._at[1] <= NEAR_BYTES):
                seconds += self._seek_seconds
                self.seeks += 1
            self._at = (where, offset + count)
            self._sleep(seconds)
