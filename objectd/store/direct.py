"""Bytes of a large chunk file on their way around the page cache.

Owns the aligned buffers of one file under way, and the one thread job that writes those that are full. A body that is
larger than a reader's share of the page cache pushes out what is read, and its way through the cache is the dearest
part of storing it: a copy into pages that must first be found. Here the copy goes into a few buffers that are used
again and again, and the disk fetches the bytes itself (O_DIRECT).

Invariants: at most one job of a file is under way; everything given to the disk is aligned in memory, place and length;
what is left over at the end (less than ALIGN_BYTES) is the caller's to write the usual way. A file system that has no
O_DIRECT is noticed when the file is opened.

Cost of 8 MiB: one copy into memory that is at hand (0.8 ms), two writes in a thread; the page cache takes 2.4 ms.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from objectd.store.slow import Spindle

ALIGN_BYTES: Final = 4096
BUFFER_BYTES: Final = 4 << 20
#: Buffers that are kept for the next file, in all devices of the process.
KEPT_MAX: Final = 4

_kept: Final[list[mmap.mmap]] = []


class Threads(Protocol):
    """What is needed of the device."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]: ...
    def settled(self, future: asyncio.Future[Any]) -> Awaitable[Any]: ...


def open_direct(path: str, flags: int) -> int:
    """A descriptor that goes around the page cache, or -1 where the file system has no such way. Raises OSError."""
    try:
        return os.open(path, flags | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    try:
        os.unlink(path)         # it may have been made before its flags were refused
    except FileNotFoundError:
        pass
    return -1


class DirectBytes:
    """The data of one file. Event loop, but for what says it runs in a thread."""

    def __init__(self, threads: Threads, fd: int, *, spindle: Spindle | None, where: object) -> None:
        self._threads = threads
        self._fd = fd
        self._spindle = spindle
        self._where = where
        self._buffer: mmap.mmap | None = None
        self._fill = 0
        self._full: list[mmap.mmap] = []
        self._job: asyncio.Future[None] | None = None
        self._job_bytes = 0
        self._taken = 0         # bytes that the disk has, or is being given

    @property
    def pending_bytes(self) -> int:
        """Bytes that the disk does not have yet."""
        under_way = self._job_bytes if self._job is not None and not self._job.done() else 0
        return under_way + len(self._full) * BUFFER_BYTES + self._fill

    def abandon(self) -> asyncio.Future[None] | None:
        """Begin no further write. The one under way, after which the descriptor may be closed."""
        self._full.clear()
        self._buffer = None
        return self._job

    def write(self, view: memoryview) -> None:
        """The next bytes (copied). Raises the OSError of an earlier write."""
        self._look_at_job()
        at = 0
        while at < len(view):
            if self._buffer is None:
                self._buffer = _kept.pop() if _kept else mmap.mmap(-1, BUFFER_BYTES, mmap.MAP_PRIVATE)
                self._fill = 0
            count = min(BUFFER_BYTES - self._fill, len(view) - at)
            self._buffer[self._fill : self._fill + count] = view[at : at + count]
            self._fill += count
            at += count
            if self._fill == BUFFER_BYTES:
                self._full.append(self._buffer)
                self._buffer, self._fill = None, 0
                self._start()

    def _look_at_job(self) -> None:
        if self._job is not None and self._job.done():
            self._job.result()

    def _start(self) -> None:
        """Have a thread write what is full, unless one is still at it or has failed."""
        job = self._job
        if not self._full or (job is not None and (not job.done() or job.cancelled() or job.exception() is not None)):
            return
        batch, self._full = self._full, []
        at, self._job_bytes = self._taken, len(batch) * BUFFER_BYTES
        self._taken += self._job_bytes
        self._job = self._threads.submit(self._write_blocking, batch, at)
        self._job.add_done_callback(lambda _: self._start())

    def _write_blocking(self, batch: list[mmap.mmap], at: int) -> None:
        for buffer in batch:
            self._put(memoryview(buffer), at)
            at += BUFFER_BYTES
            if len(_kept) < KEPT_MAX:
                _kept.append(buffer)

    def _put(self, view: memoryview, at: int) -> None:
        if self._spindle is not None:
            self._spindle.transfer(self._where, at, len(view))
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count

    async def drained(self) -> None:
        """Until the disk has what was full. Raises OSError, UnavailableError when the disk hangs."""
        while (job := self._job) is not None:
            await self._threads.settled(job)
            self._start()
            if self._job is job:        # another one that has begun since may have failed already: look at it too
                return

    def finish_blocking(self) -> tuple[int, bytes]:
        """In a thread, after drained(): write what is aligned of the rest, and leave the direct way. Where the data not
        yet written begins, and that data. Raises OSError."""
        at, whole, rest = self._taken, self._fill & -ALIGN_BYTES, b""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            if whole:
                self._put(memoryview(buffer)[:whole], at)
            rest = buffer[whole : self._fill]
            if len(_kept) < KEPT_MAX:
                _kept.append(buffer)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        return at + whole, rest
