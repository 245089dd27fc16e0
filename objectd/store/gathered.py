"""Bytes of a chunk file that is small enough to be written by one call: collected in memory until it is whole.

Owns the buffer of one file and the buffers that are kept for the next ones. One job of a thread writes the file around
the page cache and syncs it; a second hand-over to a thread costs as much as copying a quarter of a megabyte. Buffers
are used again and again, because memory that was given back must be found, zeroed and mapped anew.

Invariants: a buffer belongs to one file from its first byte until put_blocking() has ended; who gives up meanwhile does
not give it back. Memory is bounded by those who admit uploads, and by KEPT_MAX.

Cost of 1 MiB: one copy into memory that is at hand, 40 us; one hop to a thread, one pwritev there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Final

from objectd.store.direct import ALIGN_BYTES

#: Sizes of buffers, and how many of each are kept, in all devices of the process.
_SIZES: Final = (1 << 20, 4 << 20)
KEPT_MAX: Final = 8
#: Chunks of up to this are gathered.
GATHERED_BYTES_MAX: Final = _SIZES[-1]

_kept: Final[dict[int, list[mmap.mmap]]] = {size: [] for size in _SIZES}


class Gathered:
    """The data of one file. Event loop, but for put_blocking()."""

    def __init__(self, chunk_bytes: int) -> None:
        size = next(size for size in _SIZES if size >= chunk_bytes)
        kept = _kept[size]
        self._buffer = kept.pop() if kept else mmap.mmap(-1, size, mmap.MAP_PRIVATE)
        self._fill = 0

    def write(self, view: memoryview) -> None:
        """The next bytes (copied)."""
        end = self._fill + len(view)
        self._buffer[self._fill : end] = view
        self._fill = end

    def put_blocking(self, fd: int, tail: bytes) -> None:
        """In a thread, once: write what is aligned around the page cache, leave that way, write the rest and the tail.
        Raises OSError."""
        aligned = self._fill & -ALIGN_BYTES
        _write_all(fd, memoryview(self._buffer)[:aligned], 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        _write_all(fd, memoryview(self._buffer[aligned : self._fill] + tail), aligned)
        kept = _kept[len(self._buffer)]
        if len(kept) < KEPT_MAX:
            kept.append(self._buffer)


def _write_all(fd: int, view: memoryview, at: int) -> None:
    while view:     # a write may be short; a full disk ends it with ENOSPC
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
