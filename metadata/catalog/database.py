"""The database seam: transactions on SQLite or PostgreSQL, with deadlines, batching and one error tree.

`open_database` gives one of two implementations (sqlite.py, postgres.py), which pass one contract suite. It owns the
connections and the order of writes; it knows no table.

    read(fn)    fn(connection) -> T in one read transaction. SQLite: in-line in the loop: keep it to a page of rows.
    scan(fn)    the same for reads that may take long; SQLite: on a connection and thread of their own.
    write(fn)   fn(connection) -> T in one write transaction, durable when it returns. SQLite: in the one writer
                thread, joined with whatever else waits into one transaction (a savepoint each).
    batch(fn)   fn(session) -> T, the hot form: bulk statements; durable when it returns. soon: seen by all when it
                returns, durable a moment later (SQLite: catalog/unsynced.py; PostgreSQL: when it returns).
    work(fn)    the same for what takes long: SQLite runs it in the writer thread, beside the loop.

fn is synchronous, must not touch the event loop, must not commit, and may be run again (it is redone when the
transaction that it shared failed). An exception of fn undoes only fn and is raised to its caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import sqlalchemy as sa

from metadata.catalog.session import BulkRead, NameWitness, Row, Session
from tierstore.errors import ConfigError

T = TypeVar("T")


class Database(Protocol):
    """One catalog. Event loop only."""

    dialect: str                    # sqlite | postgresql
    batches_under_way_max: int      # how many batch() calls make sense at once
    witness: NameWitness | None     # told of names before they are there; set by watch_names

    async def read(self, fn: Callable[[sa.Connection], T], *, seconds: float = 10.0) -> T: ...

    async def scan(self, fn: Callable[[sa.Connection], T], *, seconds: float = 60.0) -> T: ...

    async def write(self, fn: Callable[[sa.Connection], T], *, seconds: float = 30.0) -> T: ...

    async def batch(self, fn: Callable[[Session], T], *, seconds: float = 30.0, soon: bool = False) -> T: ...

    async def synced(self) -> None:
        """Return when every commit that was answered until now is durable. Raises UnavailableError."""
        ...

    async def work(self, fn: Callable[[Session], T], *, seconds: float = 30.0) -> T: ...

    def select_now(self, read: BulkRead, keys: list[Row]) -> list[Row] | None:
        """The rows at once, without waiting, outside of any transaction; None when this engine cannot."""
        ...

    def read_now(self, fn: Callable[[sa.Connection], T]) -> T | None:
        """read(fn) at once, without waiting; None when this engine cannot."""
        ...

    async def select(self, read: BulkRead, keys: list[Row]) -> list[Row]:
        """The rows, by a statement that starts after this call (rule 9)."""
        ...

    def watch_names(self, witness: NameWitness) -> bool:
        """Have every name that comes told to the witness before its commit. False where other processes write to the
        catalog too: then it is told nothing."""
        ...

    @property
    def is_full(self) -> bool:
        """The disk has only the room that was kept for deletes and checkpoints (rule 19)."""
        ...

    @property
    def is_idle(self) -> bool:
        """Nothing waits to be written: background duties may write now."""
        ...

    async def close(self) -> None: ...


async def open_database(url: str, *, threads: bool = True) -> Database:
    """Connect to `sqlite:///path`, `sqlite://` (in memory) or `postgresql://...`. The schema is not touched.

    threads False: every statement runs in-line in the loop (simulation). Raises ConfigError for another URL, for a
    PostgreSQL with synchronous_commit off, and UnavailableError when it cannot be reached."""
    scheme = url.split(":", 1)[0]
    if scheme == "sqlite":
        from metadata.catalog.sqlite import SqliteDatabase

        return await SqliteDatabase.open(url, threads=threads)
    if scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
        from metadata.catalog.postgres import PostgresDatabase

        return await PostgresDatabase.open(url)
    raise ConfigError(f"database url {scheme!r}: use sqlite:///PATH or postgresql://USER@HOST/NAME")
