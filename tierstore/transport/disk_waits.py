"""Reads of lent files that must wait for a disk: a few threads, so that the loop waits for none.

Invariants: at most WAITING_MAX reads are begun and not done, so that a disk that hangs holds so many and then costs
nobody any more; after one that was too slow nothing is begun for SLOW_SECONDS; a view is written to by one thread, and
until that is done whoever gave it must not use it, whatever became of the waiting.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

THREADS_MAX: Final = 4
WAITING_MAX: Final = 2 * THREADS_MAX
#: After a disk did not answer: long enough that not each read waits for it in vain.
SLOW_SECONDS: Final = 5.0


class DiskWaits:
    """One per borrower. Event loop only, but for what says it runs in a thread."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS_MAX, "lent-files")
        self._counting = threading.Lock()
        self._waiting = 0
        self._slow_until = 0.0
        self._is_closed = False
        #: Reads that a thread did, for metrics and tests.
        self.reads_total = 0

    @property
    def has_room(self) -> bool:
        """Whether a read would be begun now."""
        return self._waiting < WAITING_MAX and not self._is_closed and time.monotonic() >= self._slow_until

    def submit(self, fd: int, view: memoryview, offset: int, ahead: int) -> Future[bool] | None:
        """Fill the view from the file: True when it is full. None: there is no room. ahead: so many bytes behind it
        are wanted next, which the disk may begin with. The descriptor stays open until the future is done."""
        if not self.has_room:
            return None
        with self._counting:
            self._waiting += 1
        self.reads_total += 1
        future = self._threads.submit(_read, fd, view, offset, ahead)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[bool]) -> None:
        """In a thread."""
        with self._counting:
            self._waiting -= 1

    def is_slow(self) -> None:
        """A read was given up."""
        self._slow_until = time.monotonic() + SLOW_SECONDS

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)


def _read(fd: int, view: memoryview, offset: int, ahead: int) -> bool:
    """In a thread. Whatever the disk says is met again, and told, on the other way."""
    with suppress(OSError):
        if ahead > 0:
            os.posix_fadvise(fd, offset, len(view) + ahead, os.POSIX_FADV_WILLNEED)
        done = 0
        while done < len(view):
            count = os.preadv(fd, (view[done:],), offset + done)
            if count <= 0:
                return False
            done += count
        return True
    return False
