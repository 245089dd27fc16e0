"""Commits of SQLite that were answered before the disk had them, and the syncs that follow (docs/adr/0740).

Such a commit is in the log, in the page cache: every reader sees it, it outlives this process, and whatever is synced
later takes it along, for the log is synced as a whole and read back up to its first gap. A power cut may take the last
ones back, of SOON_SECONDS and the time of a sync.

Invariants: what must not be taken back by anybody (a sequence told to devices, a journal stored elsewhere) waits for
synced() first; after a sync that failed nothing more is written, for nobody knows then which pages of the log the disk
has, and a commit behind a gap would be lost though it was synced itself.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Final

from metadata.catalog.writer_thread import WriterThread
from tierstore.errors import UnavailableError
from tierstore.telemetry.log import get_logger

log = get_logger("metadata")

#: What was answered is synced after so long.
SOON_SECONDS: Final = 0.25


class Unsynced:
    """One per catalog in a file. Event loop only. syncs: how many were made for commits that came before them."""

    def __init__(self, raw: sqlite3.Connection, writer: WriterThread, sync: Callable[[], None]) -> None:
        """sync: the log's, blocking; raises OSError."""
        self._raw = raw
        self._writer = writer
        self._sync = sync
        self._is_soon = False
        self._count = 0             # commits that were answered before their sync
        self._synced = 0            # of these, the disk has so many
        self._syncing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.failure: UnavailableError | None = None
        self.syncs = 0

    @property
    def is_any(self) -> bool:
        """Something that was answered is not on the disk yet."""
        return self._count > self._synced

    def begin(self, *, is_soon: bool) -> None:
        """Before a transaction's BEGIN: whether its commit is not to wait for the disk. Raises UnavailableError after a
        sync that failed."""
        if self.failure is not None:
            raise self.failure
        if is_soon != self._is_soon:
            # executescript: this takes effect when it is compiled, and execute() keeps what it has compiled once.
            self._raw.executescript(f"PRAGMA synchronous = {'NORMAL' if is_soon else 'FULL'}")
            self._is_soon = is_soon

    def committed(self, *, has_written: bool) -> None:
        """The transaction has ended well. has_written: else its commit had nothing to sync, nor anything of before."""
        if not self._is_soon:
            if has_written:
                self._synced = self._count
            return
        self._count += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self._begin_sync)

    def failed(self, error: Exception) -> None:
        """The transaction's commit has not ended well."""
        if self.is_any and getattr(error, "sqlite_errorname", "").startswith("SQLITE_IOERR"):
            self._fail(error)

    async def synced(self) -> None:
        """Return when all that was answered until now is durable. Raises UnavailableError."""
        wanted = self._count
        while self._synced < wanted:
            if self.failure is not None:
                raise self.failure
            await asyncio.wait([self._begin_sync()])

    def _begin_sync(self) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._syncing is None or self._syncing.done():
            self._syncing = asyncio.get_running_loop().create_task(self._sync_all(), name="catalog-sync")
        return self._syncing

    async def _sync_all(self) -> None:
        while self.is_any and self.failure is None:
            count = self._count
            try:
                await self._writer.run(self._sync)
            except OSError as error:
                return self._fail(error)
            self.syncs += 1
            self._synced = max(self._synced, count)

    def _fail(self, error: Exception) -> None:
        self.failure = UnavailableError(
            f"the catalog's disk failed a sync ({error}), and changes that mounts with --sync interval were answered "
            "may be lost: nothing more is written; see to the disk, then restart metadata",
            code="catalog-unavailable",
        )  # fmt: skip
        log.error("the catalog takes no more changes", error=str(error))

    async def close(self) -> None:
        """Everything is synced, or was said to be lost. Safe to repeat."""
        if self.is_any and self.failure is None:
            await asyncio.wait([self._begin_sync()])
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._syncing is not None and not self._syncing.done():
            await asyncio.wait([self._syncing])
