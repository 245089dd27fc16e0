"""One open transaction, seen the same way on both engines: bulk statements for the hot path, a SQLAlchemy connection
for everything else.

A `BulkRead` or `BulkWrite` is one statement over one table, described once. SQLite runs an insert by a few statements
of many rows each, other writes row by row, and a read by a join with VALUES (0.3 us a key, where a call each costs 3 to
4), all on the raw connection; PostgreSQL runs both once for all rows by unnest (one round trip).
Sessions are synchronous: on PostgreSQL they run inside SQLAlchemy's greenlet.

Invariant: a write that must hit existing rows, or must not, says so (`exact`); another count raises StaleRows and the
whole transaction is given up and redone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Final, Literal, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

Row = tuple[Any, ...]

#: Keys of one read on SQLite: a statement is prepared for each of these sizes and filled up with NULLs, which match
#: no row. More keys are read in pieces.
KEYS_PER_READ: Final = (4, 16, 64, 256)
#: Rows of one INSERT on SQLite, largest first; what is left is inserted row by row (docs/adr/0730).
ROWS_PER_INSERT: Final = (64, 16, 4)

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")


@cache
def _postgres() -> sa.Dialect:
    """Loaded with the first statement for PostgreSQL: the embedded catalog starts without it."""
    from sqlalchemy.dialects import postgresql

    return postgresql.dialect()  # type: ignore[no-untyped-call]


class StaleRows(Exception):
    """A row was not as this transaction saw it (another process wrote in between). Redo the transaction."""


@dataclass(frozen=True)
class BulkRead:
    """Rows of `table` whose `by` columns equal one of the given tuples. lock: until the end of the transaction, in
    the order of the keys (so two batches cannot wait for each other)."""

    table: sa.Table
    columns: tuple[str, ...]
    by: tuple[str, ...]
    lock: Literal["", "UPDATE", "KEY SHARE", "SHARE"] = ""

    @cached_property
    def sqlite_sql(self) -> str:
        c = self.table.c
        query = sa.select(*(c[name] for name in self.columns)).where(
            *(c[name] == sa.bindparam(f"p{i}", type_=c[name].type) for i, name in enumerate(self.by))
        )
        return str(query.compile(dialect=_SQLITE))

    @cached_property
    def sqlite_many(self) -> dict[int, str]:
        """The same for several keys, by each of KEYS_PER_READ; parameters are the keys one after the other. CROSS JOIN
        makes the keys the outer loop, whatever the planner thinks of the table's size."""
        name = self.table.name
        columns = ", ".join(f'{name}."{c}"' for c in self.columns)
        on = " AND ".join(f'{name}."{b}" = q."{b}"' for b in self.by)
        names = ", ".join(f'"{b}"' for b in self.by)
        marks = "(" + ", ".join("?" * len(self.by)) + ")"
        return {
            size: f"WITH q({names}) AS (VALUES {', '.join([marks] * size)}) "
            f"SELECT {columns} FROM q CROSS JOIN {name} ON {on}"
            for size in KEYS_PER_READ
        }

    @cached_property
    def postgres_sql(self) -> str:
        return self.postgres_text(1)

    def postgres_text(self, first: int, *, as_record: bool = False) -> str:
        """first: number of its first parameter. as_record: each row as one value."""
        name = self.table.name
        columns = ", ".join(f'{name}."{c}"' for c in self.columns)
        if as_record:
            columns = f"ROW({columns})"
        on = " AND ".join(f'{name}."{b}" = q."{b}"' for b in self.by)
        order = ", ".join(f'{name}."{b}"' for b in self.by)
        lock = f" FOR {self.lock} OF {name}" if self.lock else ""
        return f"SELECT {columns} FROM {unnest(self.table, self.by, first)} JOIN {name} ON {on} ORDER BY {order}{lock}"


class InsertShape(NamedTuple):
    """An INSERT on SQLite that names so many columns, for one row and for each of ROWS_PER_INSERT."""

    width: int
    left_out: tuple[None, ...]      # values of the columns that it does not name
    one: str
    many: dict[int, str]

    @classmethod
    def of(cls, table: str, columns: Sequence[str], left_out: int) -> InsertShape:
        names = ", ".join(f'"{name}"' for name in columns)
        marks = "(" + ", ".join("?" * len(columns)) + ")"
        head = f"INSERT INTO {table} ({names}) VALUES "
        return cls(
            len(columns), (None,) * left_out, head + marks,
            {size: head + ", ".join([marks] * size) for size in ROWS_PER_INSERT},
        )  # fmt: skip


@dataclass(frozen=True)
class BulkWrite:
    """insert: new rows (`columns`); update: sets the columns that are not in `by` where those in `by` match; upsert:
    insert, or update where a row with the same `by` (the primary key) stands; delete: where `by` matches.
    Rows are tuples in the order of `columns`; for deletes `columns` is `by`. exact: every row must take effect.
    Rows of one upsert must be distinct in `by`."""

    act: Literal["insert", "update", "upsert", "delete"]
    table: sa.Table
    columns: tuple[str, ...]
    by: tuple[str, ...] = ()
    exact: bool = True

    @cached_property
    def sqlite_sql(self) -> str:
        c = self.table.c
        if self.act == "insert":
            return self.sqlite_shapes[0].one
        if self.act == "upsert":
            marks = ", ".join("?" * len(self.columns))
            names = ", ".join(f'"{n}"' for n in self.columns)
            return f"INSERT OR REPLACE INTO {self.table.name} ({names}) VALUES ({marks})"
        # `by` columns are numbered so that one tuple serves both the SET and the WHERE part.
        numbered = {name: f"?{i + 1}" for i, name in enumerate(self.columns)}
        where = " AND ".join(f'"{b}" = {numbered[b]}' for b in self.by)
        if self.act == "delete":
            return f"DELETE FROM {self.table.name} WHERE {where}"
        sets = ", ".join(f'"{n}" = {numbered[n]}' for n in self.columns if n not in self.by)
        assert all(name in c for name in self.columns)
        return f"UPDATE {self.table.name} SET {sets} WHERE {where}"

    @cached_property
    def sqlite_shapes(self) -> tuple[InsertShape, ...]:
        """Of an insert: with all columns, then, where its last ones may be left out, without those."""
        spare = 0
        for name in reversed(self.columns):
            column = self.table.c[name]
            if not column.nullable or column.server_default is not None:
                break
            spare += 1
        width = len(self.columns)
        return tuple(InsertShape.of(self.table.name, self.columns[: width - k], k) for k in sorted({0, spare}))

    @cached_property
    def postgres_sql(self) -> str:
        return self.postgres_text(1)

    def postgres_text(self, first: int) -> str:
        """first: number of its first parameter."""
        name = self.table.name
        source = unnest(self.table, self.columns, first)
        names = ", ".join(f'"{n}"' for n in self.columns)
        where = " AND ".join(f'{name}."{b}" = q."{b}"' for b in self.by)
        if self.act == "insert":
            return f"INSERT INTO {name} ({names}) SELECT {names} FROM {source} ON CONFLICT DO NOTHING"
        if self.act == "upsert":
            key = ", ".join(f'"{b}"' for b in self.by)
            sets = ", ".join(f'"{n}" = excluded."{n}"' for n in self.columns if n not in self.by)
            return f"INSERT INTO {name} ({names}) SELECT {names} FROM {source} ON CONFLICT ({key}) DO UPDATE SET {sets}"
        if self.act == "delete":
            return f"DELETE FROM {name} USING {source} WHERE {where}"
        sets = ", ".join(f'"{n}" = q."{n}"' for n in self.columns if n not in self.by)
        return f"UPDATE {name} SET {sets} FROM {source} WHERE {where}"


def unnest(table: sa.Table, names: Sequence[str], first: int, *, with_place: bool = False) -> str:
    """unnest($1::t[], ...) AS q(names), with the types of the table's columns, from parameter `first` on. with_place:
    a column `place` more, from 1 on."""
    arrays = ", ".join(
        f"${first + i}::{table.c[name].type.compile(dialect=_postgres()).split(' COLLATE')[0]}[]"
        for i, name in enumerate(names)
    )
    columns = ", ".join(f'"{n}"' for n in names)
    if with_place:
        return f"unnest({arrays}) WITH ORDINALITY AS q({columns}, place)"
    return f"unnest({arrays}) AS q({columns})"


class NameWitness(Protocol):
    """Who is told of names before they are there: in the transaction that brings them, before its commit. What it is
    told may yet not happen. Called in the thread that the transaction runs in; must not block or raise."""

    def came(self, names: Sequence[tuple[int, str]], by: str) -> None:
        """Rows (bucket id, key) come to stand where none stood, or a delete marker. by: the mount that brings them, or
        ""."""
        ...

    def moved(self, bucket_id: int) -> None:
        """Directories of the bucket get other paths, or the bucket goes."""
        ...


class Session(Protocol):
    """The statements of one transaction. Not thread-safe; dies with the transaction."""

    #: Told of names that come; None: nobody wants to know.
    witness: NameWitness | None

    #: Whether each statement is a round trip to another process.
    is_remote: bool

    @property
    def connection(self) -> sa.Connection:
        """The same transaction for statements that are not hot. Never commit or roll back on it."""
        ...

    def ask_ahead(self, reads: Sequence[tuple[BulkRead, Sequence[Row]]]) -> None:
        """Where statements are round trips: make all these reads now, as one; `fetch` of the same keys then has its
        answer. Keys as for `fetch`; they may be guesses."""
        ...

    def fetch(self, read: BulkRead, keys: Sequence[Row]) -> list[Row]:
        """The rows that exist, in no promised order; keys must be distinct (and sorted, when the read locks)."""
        ...

    def write(self, write: BulkWrite, rows: Sequence[Row]) -> int:
        """How many rows took effect. Raises StaleRows when exact and not all did."""
        ...

    def defer(self, write: BulkWrite, rows: Sequence[Row]) -> None:
        """The same, done at the latest by the next read, `write`, `append`, use of `connection` or the end of the
        transaction, which raise StaleRows then. Writes that are put off must not rest on each other."""
        ...

    def savepoint(self) -> None:
        """What is written from here on is undone by `undo`, or stays with `keep`: one of them must follow."""
        ...

    def undo(self) -> None: ...

    def keep(self) -> None: ...

    def guard(self) -> None:
        """Share the lock that everything takes alone that changes what commits check (see `lock_out_commits`)."""
        ...

    def advance(self, count: int, version: int) -> tuple[int, int]:
        """Take `count` feed sequences and note the largest version id given. Returns (the last of the sequences, the
        largest version id in the catalog). The lock on the head is held until the transaction ends: call it last."""
        ...

    def append(self, write: BulkWrite, rows: Sequence[Row], version: int) -> tuple[int, int]:
        """`advance` by as many as there are rows, then insert them, each behind its own sequence (the first of the
        columns of `write`). Call it last."""
        ...


#: Key of the advisory lock that commits share (PostgreSQL only; SQLite has one writer).
COMMIT_LOCK: Final = 0x7469657273746F72


def lock_out_commits(connection: sa.Connection) -> None:
    """Wait for the commits under way and keep others out until this transaction ends.

    Whoever changes what a commit checks (condemned uploads, device states, incarnations) calls it first; so a commit
    either sees the change or was durable before it."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({COMMIT_LOCK})"))
