"""Is a range of a file in the page cache? Asked before sendfile, which would block the loop on a cold page.

Owns no state but whether the kernel can tell. cachestat(2) (Linux 6.5) counts the cached pages of a range in about
1.5 us; where it is missing or not allowed, one byte per readahead window is read with RWF_NOWAIT (0.5 us each), which
may miss a hole inside a window: then one sendfile turn waits for the disk, nothing worse.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

PAGE_BYTES: Final = 4096
#: Linux reads ahead in windows of 128 KiB by default: cached data has holes of about this size, rarely smaller.
PROBE_STEP_BYTES: Final = 128 * 1024
#: The same number on every architecture that Linux numbers from the generic table, and on x86-64.
_SYS_CACHESTAT: Final = 451


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class _Stat(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")]


class Residency:
    """Asks the kernel; falls back for good once it refused. Event loop only (the buffers are reused)."""

    def __init__(self, *, can_cachestat: bool | None = None) -> None:
        self._range = _Range()
        self._stat = _Stat()
        self._range_ref = ctypes.byref(self._range)
        self._stat_ref = ctypes.byref(self._stat)
        self._syscall = ctypes.CDLL(None).syscall
        self._can_cachestat = platform.system() == "Linux" if can_cachestat is None else can_cachestat
        self._probe = bytearray(1)

    def is_resident(self, fd: int, offset: int, count: int) -> bool:
        """Whether bytes [offset, offset + count) can be sent without waiting for the disk. count > 0."""
        if self._can_cachestat:
            self._range.offset = offset
            self._range.length = count
            if self._syscall(_SYS_CACHESTAT, fd, self._range_ref, self._stat_ref, 0) == 0:
                pages: int = (offset + count - 1) // PAGE_BYTES - offset // PAGE_BYTES + 1
                return bool(self._stat.cached >= pages)
            self._can_cachestat = False
        return self._probed(fd, offset, count)

    def _probed(self, fd: int, offset: int, count: int) -> bool:
        buffers = [self._probe]
        last = offset + count - 1
        try:
            for at in (*range(offset, last, PROBE_STEP_BYTES), last):
                if os.preadv(fd, buffers, at, os.RWF_NOWAIT) != 1:
                    return False
        except OSError:
            return False    # EAGAIN: cold. Anything else: the path that waits in a thread meets and reports it
        return True
