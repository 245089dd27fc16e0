"""SQLite: one write connection, one read connection read in-line, group commit. Its log is sqlite_log's.

A batch's statements run in-line in the event loop (3 us each; in another thread each statement would have to win the
GIL back from the loop, which costs 10 times that under load) and only COMMIT, which waits for the disk, runs in the
writer thread, together with the `write(fn)` calls that wait. While it runs, later batches gather: no timers.

Batches that may be durable a moment later (`soon`) need no disk: they commit in-line, where nothing else waits with
them (unsynced.py).

Cost of a batch of n items: one hop (about 30 us) + one fsync + n times the statements of the item.
Invariant: at most one write transaction is open, and only `_turn` opens or ends one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from metadata.catalog.session import BulkRead, NameWitness, Row, Session
from metadata.catalog.sqlite_log import LOG_KEPT_BYTES, WriteAheadLog
from metadata.catalog.sqlite_session import SqliteSession, fetch_each
from metadata.catalog.unsynced import Unsynced
from metadata.catalog.writer_thread import WriterThread
from tierstore.errors import CapacityError, IntegrityError, UnavailableError
from tierstore.failpoints import hit

T = TypeVar("T")

#: Pages that a connection keeps for itself. Few: what is not in the log is read from the mapped file, without a copy; a
#: reader drops its pages whenever somebody has written; the writer needs those that it changes in one turn.
WRITER_CACHE_KIB: Final = 8 << 10
READER_CACHE_KIB: Final = 2 << 10
MMAP_BYTES: Final = 4 << 30
BUSY_MS: Final = 5000
#: Waiting write calls; more are refused as `unavailable`.
WRITES_WAITING_MAX: Final = 10_000
#: write(fn) calls that share one transaction.
WRITES_PER_TURN_MAX: Final = 512
#: Room kept on the catalog's disk, given back when it is full so that deletes and checkpoints still work (rule 19).
BALLAST_BYTES: Final = 16 << 20


def translate(error: Exception) -> Exception:
    """The error of our tree for one of sqlite3 or SQLAlchemy; anything else as it is."""
    cause = getattr(error, "orig", None) or error
    if not isinstance(cause, sqlite3.Error):
        return error
    name = getattr(cause, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return CapacityError("the catalog's disk is full: delete objects or make room", code="catalog-full")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return IntegrityError(f"the catalog is damaged: {cause}", code="catalog-corrupt")
    if name.startswith(("SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return UnavailableError(f"the catalog cannot be written or read: {cause}", code="catalog-unavailable")
    return error


@dataclass(slots=True, eq=False)
class _Waiting:
    fn: Callable[[Any], Any]
    done: asyncio.Future[Any]
    is_soon: bool = False
    value: Any = None
    error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """Tell the caller; a caller that gave up (cancelled) is not disturbed."""
        if self.done.done():
            return
        failure = self.error or error
        if failure is not None:
            self.done.set_exception(translate(failure))
        else:
            self.done.set_result(self.value)


class SqliteDatabase:
    """See metadata.catalog.database.Database."""

    dialect = "sqlite"
    batches_under_way_max = 1

    def __init__(self, path: str, *, threads: bool) -> None:
        self.path = path
        self._threads = threads and bool(path)
        self._raw_write = _connect(path)
        self._raw_read = _connect(path, read_only=True) if path else self._raw_write
        self._connection_write = _sqlalchemy(self._raw_write)
        self._connection_read = _sqlalchemy(self._raw_read) if path else self._connection_write
        self._session = SqliteSession(self._raw_write, self._connection_write)
        self.witness: NameWitness | None = None
        self._batches: list[_Waiting] = []
        self._writes: list[_Waiting] = []
        self._turning: asyncio.Task[None] | None = None
        self._writer = WriterThread("catalog-writer") if self._threads else None
        self._scanner = ThreadPoolExecutor(1, "catalog-scan") if self._threads else None
        self._scan_connection: tuple[sqlite3.Connection, sa.Connection] | None = None
        self._closed = False
        #: Seconds that a test adds to each commit, to stand for a slow disk.
        self.commit_delay_seconds = 0.0
        self.commits = 0
        self.log = WriteAheadLog(path, self._raw_write, self._writer, lambda: _connect(path)) if path else None
        #: Where a commit may be answered before its sync.
        self.unsynced: Unsynced | None = None
        if self.log is not None and self._writer is not None:
            self.unsynced = Unsynced(self._raw_write, self._writer, self.log.sync)
        self.has_ballast = False
        if path:
            self._keep_ballast()

    @classmethod
    async def open(cls, url: str, *, threads: bool) -> SqliteDatabase:
        path = unquote(url.removeprefix("sqlite://").removeprefix("/"))
        if path == ":memory:":
            path = ""
        try:
            return cls(path, threads=threads)
        except sqlite3.Error as error:
            raise translate(error) from error

    # -- reads ----------------------------------------------------------------------------------------------
    def select_now(self, read: BulkRead, keys: list[Row]) -> list[Row] | None:
        try:
            return fetch_each(self._raw_read, read, keys)
        except sqlite3.Error as error:
            raise translate(error) from error

    async def select(self, read: BulkRead, keys: list[Row]) -> list[Row]:
        return self.select_now(read, keys) or []

    async def read(self, fn: Callable[[sa.Connection], T], *, seconds: float = 10.0) -> T:
        return self.read_now(fn)

    def read_now(self, fn: Callable[[sa.Connection], T]) -> T:
        if self._raw_read is self._raw_write:       # in memory: never while a transaction is open (no yields)
            return fn(self._connection_read)
        return _in_snapshot(self._raw_read, self._connection_read, fn)

    async def scan(self, fn: Callable[[sa.Connection], T], *, seconds: float = 60.0) -> T:
        if self._scanner is None:
            return self.read_now(fn)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            return await loop.run_in_executor(self._scanner, self._scan, fn)

    def _scan(self, fn: Callable[[sa.Connection], T]) -> T:
        if self._scan_connection is None:
            raw = _connect(self.path, read_only=True)
            self._scan_connection = raw, _sqlalchemy(raw)
        return _in_snapshot(*self._scan_connection, fn)

    # -- writes ---------------------------------------------------------------------------------------------
    def watch_names(self, witness: NameWitness) -> bool:
        self.witness = self._session.witness = witness
        return True

    @property
    def is_idle(self) -> bool:
        return not self._batches and not self._writes and (self._turning is None or self._turning.done())

    async def write(self, fn: Callable[[sa.Connection], T], *, seconds: float = 30.0) -> T:
        return await self._queue(self._writes, fn, seconds)

    async def batch(self, fn: Callable[[Session], T], *, seconds: float = 30.0, soon: bool = False) -> T:
        return await self._queue(self._batches, fn, seconds, soon)

    async def synced(self) -> None:
        if self.unsynced is not None:
            await self.unsynced.synced()

    async def work(self, fn: Callable[[Session], T], *, seconds: float = 30.0) -> T:
        return await self._queue(self._writes, lambda _: fn(self._session), seconds)

    async def _queue(
        self, queue: list[_Waiting], fn: Callable[[Any], T], seconds: float, is_soon: bool = False
    ) -> T:
        if self._closed or len(queue) >= WRITES_WAITING_MAX:
            raise UnavailableError("the catalog is closing" if self._closed else "too many writes wait for the catalog")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(fn, loop.create_future(), is_soon)
        queue.append(waiting)
        if self._turning is None or self._turning.done():
            self._turning = loop.create_task(self._turns(), name="catalog-writer")
        try:
            async with asyncio.timeout(seconds):
                return await waiting.done     # type: ignore[no-any-return]
        except TimeoutError:
            raise UnavailableError(
                "the catalog did not commit in time; the outcome is not known", code="outcome-unknown"
            ) from None

    async def _turns(self) -> None:
        """One transaction after the other for as long as anything waits."""
        while self._batches or self._writes:
            # Those who were woken by the last commit get to speak first: they belong to the next one.
            await asyncio.sleep(0)
            batches, self._batches = self._batches, []
            writes, self._writes = self._writes[:WRITES_PER_TURN_MAX], self._writes[WRITES_PER_TURN_MAX:]
            failure: Exception | None = None
            try:
                await self._turn(batches, writes)
            except Exception as error:    # whatever failed must reach the waiting callers, else they hang
                failure = error
                if isinstance(translate(error), CapacityError):
                    self.release_ballast()
            for waiting in (*batches, *writes):
                waiting.settle(failure)
            if self.log is not None:
                await self.log.look()

    async def _turn(self, batches: list[_Waiting], writes: list[_Waiting]) -> None:
        is_soon = self.unsynced is not None and not writes and all(waiting.is_soon for waiting in batches)
        if self.unsynced is not None:
            self.unsynced.begin(is_soon=is_soon)
        changes = self._raw_write.total_changes
        self._raw_write.execute("BEGIN IMMEDIATE")
        try:
            for waiting in batches:
                self._attempt(waiting, self._session)
            if self._writer is None or is_soon:
                self._finish(writes)
            else:
                await self._writer.run(partial(self._finish, writes))
        except BaseException as error:  # a cancelled turn too must not leave its transaction open for the next
            if self.unsynced is not None and isinstance(error, sqlite3.Error):
                self.unsynced.failed(error)
            if self._raw_write.in_transaction:
                self._raw_write.execute("ROLLBACK")
            raise
        self.commits += 1
        if self.unsynced is not None:
            # Without a change nothing is written to the log, so SQLite does not sync it either. What was changed and
            # undone under a savepoint is written.
            self.unsynced.committed(has_written=self._raw_write.total_changes != changes)

    def _finish(self, writes: list[_Waiting]) -> None:
        """The write calls and the commit: in the writer thread, unless nothing of it waits for the disk."""
        for waiting in writes:
            self._attempt(waiting, self._connection_write)
        hit("catalog.before_commit")
        self._raw_write.execute("COMMIT")
        hit("catalog.after_commit")
        if self.commit_delay_seconds:
            time.sleep(self.commit_delay_seconds)

    def _attempt(self, waiting: _Waiting, target: object) -> None:
        """Run one call under a savepoint: its failure undoes only itself."""
        waiting.error = None
        if waiting.done.done():       # gave up before it began: nothing was promised
            return
        self._raw_write.execute("SAVEPOINT one")
        try:
            waiting.value = waiting.fn(target)
        except Exception as error:    # handed to the caller by settle()
            waiting.error = error
            if not self._raw_write.in_transaction:      # SQLite gave the whole transaction up (disk full, I/O error)
                raise
            self._raw_write.execute("ROLLBACK TO one")
        self._raw_write.execute("RELEASE one")

    # -- ballast --------------------------------------------------------------------------------------------
    def _keep_ballast(self) -> None:
        name = self.path + ".ballast"
        try:
            if not os.path.exists(name) or os.stat(name).st_size < BALLAST_BYTES:
                with open(name, "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
            self.has_ballast = True
            if self.log is not None:
                self.log.is_to_be_cut = False
        except OSError:
            # No room now: the ballast comes back at the next start, and `has_ballast` says so.
            with contextlib.suppress(OSError):
                os.unlink(name)

    @property
    def is_full(self) -> bool:
        """The ballast was given up and there is no room yet to keep it again. Looked at anew at every question: it is
        asked only once per batch, and one statvfs costs 2 us."""
        if self.has_ballast or not self.path:
            return False
        try:
            free = os.statvfs(os.path.dirname(self.path) or ".")
        except OSError:
            return True
        if free.f_bavail * free.f_frsize < 2 * BALLAST_BYTES:
            return True
        self._keep_ballast()
        return not self.has_ballast

    def release_ballast(self) -> None:
        """Give the kept room back; from now on only deletes should be let through until there is space again."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path + ".ballast")
        self.has_ballast = False
        if self.log is not None:
            self.log.is_to_be_cut = True

    async def close(self) -> None:
        """Finish what waits, checkpoint, close. Safe to repeat."""
        self._closed = True
        if self._turning is not None and not self._turning.done():
            await asyncio.wait([self._turning])
        if self.log is not None:
            await self.log.settled()
        if self.unsynced is not None:
            await self.unsynced.close()
        if self._writer is not None:
            self._writer.close()
        if self._scanner is not None:
            self._scanner.shutdown(wait=True)
        if self._scan_connection is not None:
            self._scan_connection[0].close()
            self._scan_connection = None
        if self._raw_read is not self._raw_write:
            self._raw_read.close()
        if self.log is not None:
            self.log.close()
        with contextlib.suppress(sqlite3.Error):
            self._raw_write.close()


def _connect(path: str, *, read_only: bool = False) -> sqlite3.Connection:
    raw = sqlite3.connect(
        path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=512, timeout=BUSY_MS / 1000
    )
    cache_kib = READER_CACHE_KIB if read_only else WRITER_CACHE_KIB
    pragmas = [
        f"busy_timeout = {BUSY_MS}", "journal_mode = WAL", "synchronous = FULL", f"cache_size = -{cache_kib}",
        f"mmap_size = {MMAP_BYTES}", f"journal_size_limit = {LOG_KEPT_BYTES}", "temp_store = MEMORY",
        "wal_autocheckpoint = 0", "foreign_keys = OFF",
    ]  # fmt: skip
    if read_only:
        pragmas.append("query_only = ON")
    for pragma in pragmas:
        raw.execute("PRAGMA " + pragma)
    return raw


def _sqlalchemy(raw: sqlite3.Connection) -> sa.Connection:
    """A SQLAlchemy connection on a raw one whose transactions are run by this module: it never ends one itself."""
    engine = sa.create_engine(
        "sqlite://", creator=lambda: raw, poolclass=StaticPool, isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
    )  # fmt: skip
    return engine.connect()


def _in_snapshot(raw: sqlite3.Connection, connection: sa.Connection, fn: Callable[[sa.Connection], T]) -> T:
    raw.execute("BEGIN")
    try:
        return fn(connection)
    except (sqlite3.Error, sa.exc.DBAPIError) as error:
        raise translate(error) from error
    finally:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
