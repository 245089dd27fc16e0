"""SQLite's write-ahead log: when it is copied into the database, and that it is written over and not cut.

Owns the checkpoints of one catalog. The file keeps its length when it begins anew (up to LOG_KEPT_BYTES): a sync of
bytes that lie within a file has only those to write, one that makes it longer waits for the file system's journal too,
at each commit. So the size of the file does not say how long the log is; its frames do, which carry the salts of the
header under which they were written.

Invariants: a checkpoint in the writer's turn finds little to copy, unless the log is URGENT; it waits for no reader.
Cost of a look, after each commit: two reads of a few bytes from the page cache, 3 us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable
from typing import Final

from metadata.catalog.writer_thread import WriterThread

#: Beyond this the log is copied into the database by a thread of its own; beyond the second, in the writer's turn.
CHECKPOINT_BYTES: Final = 32 << 20
CHECKPOINT_URGENT_BYTES: Final = 256 << 20
#: What the log keeps of its length when it begins anew: what it had grown to at a checkpoint, usually.
LOG_KEPT_BYTES: Final = 48 << 20
#: Between two checkpoints: a reader in the way makes the next one no better at once.
CHECKPOINT_PAUSE_SECONDS: Final = 0.25

# Page size and the two salts of the header; the salts of a frame: https://www.sqlite.org/fileformat2.html, section 4.1.
_HEADER: Final = struct.Struct(">8xI4x8s8x")
_FRAME_BYTES: Final = 24
_FRAME_SALTS_AT: Final = 8
_SALTS_BYTES: Final = 8


class WriteAheadLog:
    """The log of the database at `path`, as the process with its only writing connection sees it."""

    def __init__(
        self, path: str, raw_write: sqlite3.Connection, writer: WriterThread | None,
        connect: Callable[[], sqlite3.Connection],
    ) -> None:  # fmt: skip
        """connect: makes another connection, for the checkpoints beside the writer."""
        self._path = path
        self._raw_write = raw_write
        self._writer = writer
        self._connect = connect
        self._fd = -1
        self._task: asyncio.Task[None] | None = None
        self._after = 0.0
        self._is_copied = False         # a checkpoint beside the writers has just ended
        #: The disk is full: room counts for more than the pace of commits. Set by the owner.
        self.is_to_be_cut = False
        self.checkpoints = 0

    def reaches(self, count: int) -> bool:
        """Whether the log in use has so many bytes."""
        try:
            self._open()
            header = os.pread(self._fd, _HEADER.size, 0)
            if len(header) < _HEADER.size:
                return False
            page_bytes, salts = _HEADER.unpack(header)
            frame = count // (_FRAME_BYTES + page_bytes)
            at = _HEADER.size + frame * (_FRAME_BYTES + page_bytes) + _FRAME_SALTS_AT
            return bool(os.pread(self._fd, _SALTS_BYTES, at) == salts)
        except OSError:
            return False        # no log yet; one that cannot be read fails the next commit, which says so

    def _open(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path + "-wal", os.O_RDONLY)

    def sync(self) -> None:
        """All that was committed before this call is durable. Blocking. Raises OSError."""
        self._open()
        os.fdatasync(self._fd)

    async def look(self) -> None:
        """After a commit: see to a checkpoint when one is due. In the writer's turn."""
        if self._task is not None and not self._task.done():
            return
        if not self.reaches(CHECKPOINT_BYTES):
            self._is_copied = False     # it began anew by itself: what was copied is not what comes next
            return
        loop = asyncio.get_running_loop()
        is_urgent = self.reaches(CHECKPOINT_URGENT_BYTES)
        if loop.time() < self._after and not is_urgent:
            return
        self.checkpoints += 1
        self._after = loop.time() + CHECKPOINT_PAUSE_SECONDS
        if self._is_copied or is_urgent or self._writer is None:
            self._is_copied = False
            if self._writer is None:
                self._begin_anew()
            else:
                await self._writer.run(self._begin_anew)
        else:
            self._task = loop.create_task(self._copy_aside(), name="catalog-checkpoint")

    def _begin_anew(self) -> None:
        """Copy the rest of the log; the next commit writes at its beginning. Never waits for a long reader: then it is
        tried again later, and the log goes on growing for that long."""
        busy_ms = self._raw_write.execute("PRAGMA busy_timeout").fetchone()[0]
        self._raw_write.execute("PRAGMA busy_timeout = 0")
        try:
            mode = "TRUNCATE" if self.is_to_be_cut else "RESTART"
            self._raw_write.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.OperationalError:
            pass        # locked by the reader of a scan
        finally:
            self._raw_write.execute(f"PRAGMA busy_timeout = {busy_ms}")

    async def _copy_aside(self) -> None:
        """Copy nearly all of the log while writers go on; the little that came meanwhile is copied in their turn."""
        await asyncio.get_running_loop().run_in_executor(None, self._copy)
        self._is_copied = True
        self._after = 0.0

    def _copy(self) -> None:
        """In a thread, on a connection of its own. A busy log is tried again later."""
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._connect()) as raw:
            raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    async def settled(self) -> None:
        """Until no checkpoint is under way beside the writer."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Copy all of it and cut it: the writer has ended. Safe to repeat."""
        with contextlib.suppress(sqlite3.Error):
            self._raw_write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
