"""Reading chunks: what is in the page cache at once, everything else in the device's threads.

Invariant: nothing here blocks the loop on a disk. Where the file system cannot tell what is cached (no RWF_NOWAIT),
reads go through the threads, except in memory file systems, where there is no disk to wait for.

Cost of a cached 4 KiB read with its header and sums: one preadv, about 1.8 us.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Awaitable
from typing import Final, Protocol

from objectd.store.openfiles import Handle
from tierstore.errors import IntegrityError
from tierstore.failpoints import hit

_TMPFS: Final = 0x01021994
_RAMFS: Final = 0x858458F6


def is_memory(path: str) -> bool:
    """True if path lies on a file system that keeps its files in memory only."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_long * 64)()     # struct statfs is 120 bytes; f_type comes first (statfs(2))
    if libc.statfs(os.fsencode(path), ctypes.byref(answer)) != 0:
        return False
    return answer[0] & 0xFFFFFFFF in (_TMPFS, _RAMFS)


class PageCache:
    """How to read what needs no disk, on one file system."""

    def __init__(self, path: str, *, is_memory: bool, is_bypassed: bool) -> None:
        self._plain = is_memory and not is_bypassed
        self._nowait = not is_memory and not is_bypassed
        if self._nowait:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
            except OSError as error:
                self._nowait = error.errno == errno.EAGAIN
            finally:
                os.close(fd)

    @property
    def is_usable(self) -> bool:
        return self._plain or self._nowait

    def read(self, fd: int, count: int, offset: int) -> bytes | bytearray | None:
        """Exactly count bytes, or None if the disk would be needed (or they are not there)."""
        try:
            if self._nowait:
                buffer = bytearray(count)
                return buffer if os.preadv(fd, (buffer,), offset, os.RWF_NOWAIT) == count else None
            if self._plain:
                raw = os.pread(fd, count, offset)
                return raw if len(raw) == count else None
        except OSError:
            return None     # EAGAIN: not cached; anything else comes up again in the thread, with the right answer
        return None


def read_fully(fd: int, count: int, offset: int) -> bytes:
    """Exactly count bytes. Blocking. Raises IntegrityError(code="short-read") at the end of the file, or OSError."""
    hit("store.read.before")
    raw = os.pread(fd, count, offset)
    if len(raw) == count:
        return raw
    pieces = [raw]
    got = len(raw)
    while got < count and pieces[-1]:
        pieces.append(os.pread(fd, count - got, offset + got))
        got += len(pieces[-1])
    if got < count:
        raise IntegrityError(f"{got} of {count} bytes at {offset}: the file is too short", code="short-read")
    return b"".join(pieces)


class Pool(Protocol):
    """The device's threads, with its deadline and its pace."""

    def read(self, where: object, offset: int, count: int, handle: Handle) -> Awaitable[bytes]:
        """Exactly count bytes at offset of the handle's file, which stays open until the thread is done with it."""
        ...


class StoredChunk:
    """A chunk in an open segment or file."""

    __slots__ = ("_cache", "_handle", "_pool", "_where", "chunk_bytes", "data_offset", "fd", "sums")

    def __init__(self, handle: Handle, *, sums: bytes, chunk_bytes: int, data_offset: int, cache: PageCache,
                 pool: Pool, where: object) -> None:
        handle.acquire()
        self._handle: Handle | None = handle
        self._cache = cache
        self._pool = pool
        self._where = where
        self.sums = sums
        self.chunk_bytes = chunk_bytes
        self.data_offset = data_offset
        self.fd = handle.fd if cache.is_usable else -1

    def read_now(self, offset: int, count: int) -> bytes | None:
        handle = self._handle
        if handle is None or offset + count > self.chunk_bytes:
            return None
        raw = self._cache.read(handle.fd, count, self.data_offset + offset)
        return bytes(raw) if raw is not None else None

    async def read(self, offset: int, count: int) -> bytes:
        handle = self._handle
        if handle is None or offset < 0 or offset + count > self.chunk_bytes:
            raise IntegrityError(f"bytes {offset}+{count} of a chunk of {self.chunk_bytes}", code="short-read")
        return await self._pool.read(self._where, self.data_offset + offset, count, handle)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            self.fd = -1
            handle.release()


class MemoryChunk:
    """A small chunk that was read whole with its header."""

    __slots__ = ("_data", "chunk_bytes", "data_offset", "fd", "sums")

    def __init__(self, sums: bytes, data: bytes) -> None:
        self.sums = sums
        self._data = data
        self.chunk_bytes = len(data)
        self.data_offset = 0
        self.fd = -1

    def read_now(self, offset: int, count: int) -> bytes | None:
        return self._data[offset : offset + count] if offset + count <= self.chunk_bytes else None

    async def read(self, offset: int, count: int) -> bytes:
        raw = self.read_now(offset, count)
        if raw is None:
            raise IntegrityError(f"bytes {offset}+{count} of a chunk of {self.chunk_bytes}", code="short-read")
        return raw

    def close(self) -> None:
        """Nothing is held open."""
