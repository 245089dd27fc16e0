"""Chunks in files of their own: writing one, opening one, moving it to trash, back, or to quarantine.

The name is final from the beginning (the catalog's row makes a chunk visible, no rename is needed); the footer makes it
whole. Invariants: finish() returns only after fdatasync of the file and fsync of its directory; a file without a valid
footer is nobody's chunk; a failed sync is never repeated on the descriptor.

Cost of a chunk below direct_bytes_min: one copy into the page cache in the loop (about 60 us per 256 KiB piece); the
disk is kept busy behind it by sync_file_range in a thread every write_behind_bytes, so that the last fdatasync finds
little to do. Larger ones go around the page cache: up to 4 MiB written, synced and named by one job of a thread
(store.gathered), beyond that in buffers while more comes (store.direct).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from objectd.store import records
from objectd.store.device import Location
from objectd.store.direct import DirectBytes, open_direct
from objectd.store.gathered import GATHERED_BYTES_MAX, Gathered
from objectd.store.layout import Layout, sync_directory
from objectd.store.openfiles import Handle
from objectd.store.reading import read_fully
from objectd.store.slow import Spindle
from tierstore.checksum import combine_sums
from tierstore.errors import IntegrityError, UnavailableError
from tierstore.failpoints import hit
from tierstore.names import ChunkId

Buffer = bytes | bytearray | memoryview
FOOTER_TAIL_BYTES: Final = 16 * 1024    # read at once from the end of a file: footer, hint and the sums of 64 MiB
_WAIT_BEFORE: Final = 1
_WRITE: Final = 2
_WAIT_AFTER: Final = 4
_libc = ctypes.CDLL(None, use_errno=True)


def _write_behind(fd: int, offset: int, count: int) -> None:
    """Have the disk take that range now and wait. It only speeds up the sync that follows, which sees the errors."""
    _libc.sync_file_range(ctypes.c_int(fd), ctypes.c_long(offset), ctypes.c_long(count),
                          ctypes.c_uint(_WAIT_BEFORE | _WRITE | _WAIT_AFTER))


class Owner(Protocol):
    """What a writer needs of its device."""

    def run(self, call: Callable[..., Any], *arguments: Any) -> Awaitable[Any]: ...
    def submit(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]: ...
    def settled(self, future: asyncio.Future[Any]) -> Awaitable[Any]: ...
    def write_failed(self, error: OSError) -> Exception: ...


class Register(Protocol):
    """Who is told of a writer's end."""

    def finished(self, writer: FileWriter, handle: Handle, data_crc: int) -> None: ...
    def given_up(self, writer: FileWriter, gone: Coroutine[Any, Any, None]) -> None: ...


class FileWriter:
    """One chunk file under way. See device.ChunkWriter."""

    def __init__(self, owner: Owner, layout: Layout, chunk: ChunkId, chunk_bytes: int, hint: bytes, *,
                 register: Register, seed: int, wall_ms: int, behind_bytes: int, pending_bytes_max: int,
                 spindle: Spindle | None, direct_bytes_min: int = 0) -> None:
        """Creates the file. direct_bytes_min: go around the page cache from that length on; 0: never.
        Raises OSError; FileExistsError when the same chunk is being written already."""
        self.chunk = chunk
        self.chunk_bytes = chunk_bytes
        self.stored_bytes = records.file_bytes(chunk_bytes, len(hint))
        self.wall_ms = wall_ms
        self._owner = owner
        self._register = register
        self._hint = hint
        self._seed = seed
        self._behind_bytes = behind_bytes
        self._pending_max = pending_bytes_max
        self._spindle = spindle
        self._path = layout.file_path(chunk)
        self._written = 0
        self._asked = 0         # up to here the disk was asked to take the data
        self._taking_to = 0     # up to there it is at work
        self._taken = 0         # up to here it has
        self._behind: asyncio.Future[Any] | None = None
        self._is_over = False
        hit("store.file.before_create")
        self._direct: DirectBytes | None = None
        self._gathered: Gathered | None = None
        self._named: asyncio.Future[Any] | None = None
        self._directory = layout.file_directory(chunk)
        self._fd = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        is_direct = False
        if 0 < direct_bytes_min <= chunk_bytes:
            self._fd = open_direct(self._path, flags)
            is_direct = self._fd >= 0
        if self._fd < 0:
            self._fd = os.open(self._path, flags, 0o644)
        if is_direct and chunk_bytes <= GATHERED_BYTES_MAX:
            self._gathered = Gathered(chunk_bytes)
            return
        if is_direct:
            self._direct = DirectBytes(owner, self._fd, spindle=spindle, where=chunk)
        # the name is made durable while the data comes in
        self._named = owner.submit(sync_directory, self._directory)

    @property
    def pending_bytes(self) -> int:
        if self._direct is not None:
            return self._direct.pending_bytes
        if self._gathered is not None:
            return 0        # the disk is asked for nothing before the end
        self._look_behind()
        return self._written - self._taken

    def write(self, piece: Buffer) -> None:
        self._check_open()
        if self._written + len(piece) > self.chunk_bytes:
            self.abort()
            raise IntegrityError(f"more than the {self.chunk_bytes} bytes announced", code="chunk-too-long")
        try:
            hit("store.file.before_write")
            view = memoryview(piece)
            if self._gathered is not None:
                self._gathered.write(view)
                self._written += len(view)
                return
            if self._direct is not None:
                self._direct.write(view)
                self._written += len(view)
                return
            while view:    # a write may be short; a full disk ends it with ENOSPC
                count = os.pwrite(self._fd, view, self._written)
                self._written += count
                view = view[count:]
        except OSError as error:
            self.abort()
            raise self._owner.write_failed(error) from error
        if self._written - self._asked >= self._behind_bytes:
            self._start_behind()

    def _look_behind(self) -> None:
        """Take note of what the disk has taken since."""
        if self._behind is not None and self._behind.done():
            self._taken = self._taking_to

    def _start_behind(self) -> None:
        """Have the disk begin with what came since it was last asked, unless it is still at that."""
        if self._behind is not None and not self._behind.done():
            return
        self._look_behind()
        if self._asked == self._written:
            return
        start, count = self._asked, self._written - self._asked
        self._asked = self._written
        self._behind = self._owner.submit(self._take, start, count)
        self._taking_to = self._written

    def _take(self, start: int, count: int) -> None:
        if self._spindle is not None:
            self._spindle.transfer(self.chunk, start, count)
        _write_behind(self._fd, start, count)

    async def drained(self) -> None:
        if self._direct is not None:
            if self._direct.pending_bytes > self._pending_max:
                await self._drain_direct()
            return
        while self.pending_bytes > self._pending_max and not self._is_over:
            self._start_behind()
            assert self._behind is not None
            await self._owner.settled(self._behind)

    async def _drain_direct(self) -> None:
        assert self._direct is not None
        try:
            await self._direct.drained()
        except OSError as error:
            self.abort()
            raise self._owner.write_failed(error) from error

    async def finish(self, sums: bytes) -> Location:
        self._check_open()
        if self._written != self.chunk_bytes:
            self.abort()
            raise IntegrityError(f"{self._written} bytes of {self.chunk_bytes} came", code="chunk-too-short")
        data_crc = combine_sums(sums, self.chunk_bytes)
        tail = sums + self._hint + records.footer(self.chunk, self.chunk_bytes, sums, self._hint, seed=self._seed,
                                                  wall_ms=self.wall_ms, data_crc=data_crc)
        if self._direct is not None:
            await self._drain_direct()
            self._check_open()      # given up meanwhile
        self._is_over = True
        try:
            if self._behind is not None:
                await self._owner.settled(self._behind)
            await self._owner.run(self._complete, tail)
            if self._named is not None:
                await self._owner.settled(self._named)
        except BaseException as error:  # cancelled or failed alike: the file must not stay
            self._drop()
            if isinstance(error, OSError):
                raise self._owner.write_failed(error) from error
            raise
        fd, self._fd = self._fd, -1
        self._register.finished(self, Handle(fd, chunk_bytes=self.chunk_bytes, sums=sums), data_crc)
        return Location(0, 0)

    def _complete(self, tail: bytes) -> None:
        at = self._written
        if self._direct is not None:
            at, rest = self._direct.finish_blocking()
            tail = rest + tail
        elif self._spindle is not None:
            self._spindle.transfer(self.chunk, self._asked, self._written - self._asked + len(tail))
        if self._gathered is not None:
            self._gathered.put_blocking(self._fd, tail)
        elif os.pwrite(self._fd, tail, at) != len(tail):
            raise OSError(28, os.strerror(28))
        hit("store.file.before_sync")
        os.fdatasync(self._fd)
        hit("store.file.after_sync")
        if self._named is None:
            sync_directory(self._directory)

    def abort(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._drop()

    def _drop(self) -> None:
        """Have the file go; the device waits for it when it closes."""
        if self._direct is not None:
            self._behind = self._direct.abandon()
        if self._named is not None:
            self._named.add_done_callback(_look_at)
        self._register.given_up(self, self._gone())

    async def _gone(self) -> None:
        """Close and unlink once no thread uses the descriptor."""
        if self._behind is not None:
            await asyncio.wait({self._behind})      # unbounded as the thread is: the device's close bounds it
            _look_at(self._behind)
        await self._owner.submit(self._remove)

    def _remove(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        try:
            os.unlink(self._path)
        except OSError:
            pass    # recovery removes what has no footer

    def _check_open(self) -> None:
        if self._is_over:
            raise UnavailableError("this chunk's writer has ended", code="writer-ended")


def _look_at(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()      # taken note of: the writer has failed already


def open_file(path: str, chunk: bytes, seed: int) -> tuple[int, records.Header, bytes]:
    """Descriptor, footer and block sums of a chunk file. Blocking.
    Raises IntegrityError(code="bad-footer") when it is not whole, FileNotFoundError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        start = max(0, size - FOOTER_TAIL_BYTES)
        tail = read_fully(fd, size - start, start)
        footer = records.parse_footer(tail[-records.HEADER_BYTES :], file_bytes_all=size, chunk=chunk, seed=seed)
        if footer is None:
            raise IntegrityError(f"chunk file {chunk.hex()} has no valid footer", code="bad-footer")
        extra_bytes = footer.sums_bytes + footer.hint_bytes
        extra = read_fully(fd, extra_bytes, footer.length)
        sums = extra[: footer.sums_bytes]
        if not records.has_good_extra(footer, sums, extra[footer.sums_bytes :]):
            raise IntegrityError(f"chunk file {chunk.hex()} has wrong block sums", code="bad-footer")
    except BaseException:   # whatever it was, the descriptor must not leak
        os.close(fd)
        raise
    return fd, footer, sums


def move(source: str, target: str) -> None:
    """Rename within the device; durable when it returns. Blocking. Raises OSError."""
    hit("store.file.before_rename")
    os.rename(source, target)
    hit("store.file.after_rename")
    sync_directory(os.path.dirname(target))
    sync_directory(os.path.dirname(source))


def discard(path: str) -> None:
    """Unlink, if it is there. Blocking. Raises OSError."""
    hit("store.file.before_unlink")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
