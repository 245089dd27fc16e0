"""Memory of this process that can be handed to another one by its descriptor (memfd_create(2)).

A buffer like any other: slices, memoryviews. Not sealed: who is handed it copies out of it before trusting a byte,
which costs less than pages that must be found and zeroed anew because a seal is for ever.
"""

from __future__ import annotations

import mmap
import os


class SharedMemory(mmap.mmap):
    """`fd`: to be handed over; open as long as this object lives, and read from offset 0."""

    fd: int

    def __new__(cls, size: int) -> SharedMemory:
        """Raises OSError: no descriptor or no memory is left."""
        fd = os.memfd_create("tierstore-chunk", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            made = super().__new__(cls, fd, size)
        except BaseException:
            os.close(fd)
            raise
        made.fd = fd
        return made

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


def memory_of(data: object) -> SharedMemory | None:
    """The shared memory that a buffer begins in, at its first byte; None for any other."""
    if isinstance(data, memoryview):
        return data.obj if isinstance(data.obj, SharedMemory) and data.c_contiguous else None
    return data if isinstance(data, SharedMemory) else None
