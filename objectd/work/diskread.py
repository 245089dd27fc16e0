"""Reads of a chunk as the disk holds it, not as the page cache remembers it: rot is only seen there.

Owns nothing. O_DIRECT on a second descriptor of the same file leaves the page cache of other readers alone; where the
file system knows no O_DIRECT (tmpfs, some network ones), clean pages of the range are dropped first (posix_fadvise
DONTNEED), which costs hot readers a miss. Devices without a descriptor (in memory, simulated slow ones) read as always.

Blocking: call it in a device thread or executor. At most PIECE_BYTES + two pages are held.
"""

from __future__ import annotations

import mmap
import os
import threading
from typing import Final

from tierstore.errors import IntegrityError

PIECE_BYTES: Final = 1 << 20
_ALIGN: Final = 4096


class DiskReader:
    """Reads ranges of one open file past the page cache. One thread at a time; closing waits for no read under way."""

    def __init__(self, fd: int) -> None:
        self._lock = threading.Lock()
        self._is_reading = False
        self._is_closed = False
        self._buffer = mmap.mmap(-1, PIECE_BYTES + 2 * _ALIGN, mmap.MAP_PRIVATE)   # shared would be a file of its own
        # descriptors of our own: the caller may close his while a read of a sick disk still hangs
        self._plain_fd = os.dup(fd)
        try:
            self._direct_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            self._direct_fd = -1    # no O_DIRECT here: the pages are dropped instead

    def read(self, offset: int, count: int) -> bytes:
        """Bytes [offset, offset + count), count <= PIECE_BYTES. Raises IntegrityError (short) or OSError."""
        assert 0 < count <= PIECE_BYTES
        with self._lock:
            if self._is_closed:
                raise OSError("the reader is closed")
            self._is_reading = True
        try:
            data = self._direct(offset, count) if self._direct_fd >= 0 else self._dropped(offset, count)
        finally:
            with self._lock:
                self._is_reading = False
                if self._was_closed():
                    self._free()
        if len(data) != count:
            raise IntegrityError(f"the file ends before byte {offset + count}", code="bad-block")
        return data

    def _direct(self, offset: int, count: int) -> bytes:
        low = offset // _ALIGN * _ALIGN
        high = -(-(offset + count) // _ALIGN) * _ALIGN
        view = memoryview(self._buffer)[: high - low]
        try:
            got = os.preadv(self._direct_fd, [view], low)
            return bytes(view[offset - low : min(got, offset - low + count)])
        finally:
            view.release()

    def _dropped(self, offset: int, count: int) -> bytes:
        os.posix_fadvise(self._plain_fd, offset, count, os.POSIX_FADV_DONTNEED)
        return os.pread(self._plain_fd, count, offset)

    def _was_closed(self) -> bool:
        return self._is_closed      # by another thread, while this one was reading

    def close(self) -> None:
        """Safe to repeat; a read under way frees things when it returns."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                if not self._is_reading:
                    self._free()

    def _free(self) -> None:
        os.close(self._plain_fd)
        if self._direct_fd >= 0:
            os.close(self._direct_fd)
        self._buffer.close()
