"""One batch on PostgreSQL, in as few round trips as it has steps that depend on each other.

Usually four: BEGIN with the commits' shared lock; all reads that were announced (`ask_ahead`) as one statement; all
writes that were put off (`defer`) with the feed's head and its changes as one statement; COMMIT. A round trip costs
about 100 us on a quiet machine and milliseconds on a busy one, whatever it carries.

Invariants: the lock is taken by a statement before the first read, for a statement sees what was committed before it
began, not what it waited for. A table stands once among the writes of one statement: its parts all see the same
snapshot and none of the others' rows. What was asked ahead answers one `fetch` of just those keys, none after a write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.util import await_only

from metadata.catalog.session import COMMIT_LOCK, BulkRead, BulkWrite, NameWitness, Row, StaleRows, unnest

T = TypeVar("T")

#: Every statement of a batch looks up the few rows it names. Without statistics (a new table, one that has grown since
#: they were made) the planner takes the arrays' length for large and reads the whole table to hash it; so it may only
#: go from key to key, which is by the primary key.
BY_KEY: Final = {"enable_hashjoin": "off", "enable_mergejoin": "off"}
_BEGIN: Final = "; ".join(
    ["BEGIN ISOLATION LEVEL READ COMMITTED", *(f"SET LOCAL {name} = {value}" for name, value in BY_KEY.items())]
)
_LOCK: Final = f"SELECT pg_advisory_xact_lock_shared({COMMIT_LOCK})"
_ADVANCE: Final = (
    "UPDATE feed_head SET sequence = sequence + $1, version = greatest(version, $2) WHERE id = 1 "
    "RETURNING sequence, version"
)
#: Different sets of statements that are kept as text: there are as many as kinds of batches.
STATEMENTS_KEPT: Final = 256


class PostgresSession:
    """See session.Session. Runs in SQLAlchemy's greenlet, on a connection whose transactions it makes itself."""

    is_remote = True
    #: Other processes bring names too, and are not heard.
    witness: NameWitness | None = None

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._raw: Any = connection.connection.driver_connection
        self._is_begun = False
        self._ahead: dict[BulkRead, tuple[list[Row], list[Row]]] = {}
        self._deferred: list[tuple[BulkWrite, Sequence[Row]]] = []

    @property
    def connection(self) -> sa.Connection:
        self._settle()
        return self._connection

    # -- the transaction --------------------------------------------------------------------------------------
    def run(self, fn: Callable[[PostgresSession], T]) -> T:
        """The whole transaction: what fn says, committed."""
        try:
            result = fn(self)
            self._settle()
            await_only(self._raw.execute("COMMIT"))
            return result
        except Exception:           # whatever it was, the connection must not keep a transaction open
            self._give_up()
            raise
        except BaseException:       # cancelled in the middle of a statement: its answer may still be on the way
            self._connection.invalidate()
            raise

    def _give_up(self) -> None:
        try:
            if self._raw.is_in_transaction():
                await_only(self._raw.execute("ROLLBACK"))
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.invalidate()       # the first error is the one to tell

    def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            await_only(self._raw.execute(_BEGIN))

    def savepoint(self) -> None:
        self._settle()
        await_only(self._raw.execute("SAVEPOINT item"))

    def undo(self) -> None:
        self._deferred.clear()
        await_only(self._raw.execute("ROLLBACK TO SAVEPOINT item"))

    def keep(self) -> None:
        """A later one of the same name takes its place: nothing is worth a round trip."""

    def guard(self) -> None:
        text = _LOCK if self._is_begun else f"{_BEGIN}; {_LOCK}"
        self._is_begun = True
        await_only(self._raw.execute(text))

    # -- reads ------------------------------------------------------------------------------------------------
    def ask_ahead(self, reads: Sequence[tuple[BulkRead, Sequence[Row]]]) -> None:
        wanted = [(read, list(keys)) for read, keys in reads if keys]
        if len(wanted) < 2:
            return
        self._settle()
        text = _reads(tuple(read for read, _ in wanted))
        row = await_only(self._raw.fetchrow(text, *_arrays(keys for _, keys in wanted)))
        for (read, keys), found in zip(wanted, row, strict=True):
            self._ahead[read] = keys, [tuple(record) for record in found]

    def fetch(self, read: BulkRead, keys: Sequence[Row]) -> list[Row]:
        if not keys:
            return []
        asked = self._ahead.pop(read, None)
        if asked is not None and asked[0] == list(keys):
            return asked[1]
        self._settle()
        return [tuple(row) for row in await_only(self._raw.fetch(read.postgres_sql, *_arrays([keys])))]

    # -- writes -----------------------------------------------------------------------------------------------
    def write(self, write: BulkWrite, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        self._settle()
        return self._execute([(write, rows)], None)[0][0]

    def defer(self, write: BulkWrite, rows: Sequence[Row]) -> None:
        if not rows:
            return
        if any(earlier.table is write.table for earlier, _ in self._deferred):
            self._settle()
        self._deferred.append((write, rows))

    def advance(self, count: int, version: int) -> tuple[int, int]:
        self._settle()
        row = await_only(self._raw.fetchrow(_ADVANCE, count, version))
        return int(row[0]), int(row[1])

    def append(self, write: BulkWrite, rows: Sequence[Row], version: int) -> tuple[int, int]:
        self._begin()
        deferred, self._deferred = self._deferred, []
        return self._execute(deferred, (write, rows, version))[1]

    def _settle(self) -> None:
        """Have the server know everything that was put off, in a transaction."""
        self._begin()
        if self._deferred:
            deferred, self._deferred = self._deferred, []
            self._execute(deferred, None)

    def _execute(
        self, writes: Sequence[tuple[BulkWrite, Sequence[Row]]], feed: tuple[BulkWrite, Sequence[Row], int] | None
    ) -> tuple[list[int], tuple[int, int]]:
        """(how many rows each write took effect on, the feed's head). feed: rows that get its next sequences."""
        self._ahead.clear()
        kinds = tuple(write for write, _ in writes)
        rows = [[row[: len(write.by)] for row in of] if write.act == "delete" else of for write, of in writes]
        if feed is None:
            row = await_only(self._raw.fetchrow(_writes(kinds, None), *_arrays(rows)))
        else:
            write, entries, version = feed
            arguments = (*_arrays([*rows, entries]), len(entries), version)
            row = await_only(self._raw.fetchrow(_writes(kinds, write), *arguments))
        for (write, wanted), count in zip(writes, row, strict=False):
            if write.exact and count != len(wanted):
                raise StaleRows(f"{write.act} {write.table.name}: {count} of {len(wanted)} rows")
        head = (int(row[-2]), int(row[-1])) if feed is not None else (0, 0)
        return [int(count) for count in row[: len(writes)]], head


def _arrays(rows_of: Any) -> list[list[Any]]:
    """The parameters of unnest: one list for each column of each set of rows."""
    return [list(column) for rows in rows_of for column in zip(*rows, strict=True)]


@lru_cache(STATEMENTS_KEPT)
def _reads(reads: tuple[BulkRead, ...]) -> str:
    """One row, a column for each read: its rows as an array of records."""
    parts, at = [], 1
    for read in reads:
        parts.append(f"ARRAY({read.postgres_text(at, as_record=True)})")
        at += len(read.by)
    return "SELECT " + ", ".join(parts)


@lru_cache(STATEMENTS_KEPT)
def _writes(writes: tuple[BulkWrite, ...], feed: BulkWrite | None) -> str:
    """One row: how many rows each write took effect on, then sequence and version of the feed's head."""
    parts, counts, at = [], [], 1
    for number, write in enumerate(writes):
        parts.append(f"w{number} AS ({write.postgres_text(at)} RETURNING 1)")
        counts.append(f"(SELECT count(*) FROM w{number})")
        at += len(write.by) if write.act == "delete" else len(write.columns)
    if feed is None:
        return f"WITH {', '.join(parts)} SELECT {', '.join(counts)}"
    names = feed.columns[1:]
    count, version = at + len(names), at + len(names) + 1
    # The head last: who updates it keeps the other batches waiting until the commit.
    after = "".join(f" AND {counted} >= 0" for counted in counts)
    columns = ", ".join(f'"{name}"' for name in names)
    values = ", ".join(f'q."{name}"' for name in names)
    parts.append(
        f"head AS (UPDATE feed_head SET sequence = sequence + ${count}::BIGINT, "
        f"version = greatest(version, ${version}::BIGINT) WHERE id = 1{after} RETURNING sequence, version)"
    )
    parts.append(
        f'fed AS (INSERT INTO {feed.table.name} ("{feed.columns[0]}", {columns}) '
        f"SELECT head.sequence - ${count}::BIGINT + q.place, {values} "
        f"FROM head, {unnest(feed.table, names, at, with_place=True)})"
    )
    return f"WITH {', '.join(parts)} SELECT {', '.join([*counts, 'head.sequence', 'head.version'])} FROM head"
