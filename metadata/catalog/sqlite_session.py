"""Bulk statements on a raw connection to SQLite: reads of many keys by a few prepared texts, inserts too.

Begins and ends no transaction: that is metadata.catalog.sqlite's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Final

import sqlalchemy as sa

from metadata.catalog.session import KEYS_PER_READ, ROWS_PER_INSERT, BulkRead, BulkWrite, NameWitness, Row, StaleRows

#: Up to so many keys are read with a statement each: cheaper than a join.
ONE_BY_ONE_MAX: Final = 2

_ADVANCE: Final = (
    "UPDATE feed_head SET sequence = sequence + ?1, version = max(version, ?2) WHERE id = 1 "
    "RETURNING sequence, version"
)


class SqliteSession:
    """Bulk statements on the raw write connection."""

    is_remote = False

    def __init__(self, raw: sqlite3.Connection, connection: sa.Connection) -> None:
        self.connection = connection
        self.witness: NameWitness | None = None
        self._raw = raw

    def fetch(self, read: BulkRead, keys: Sequence[Row]) -> list[Row]:
        return fetch_each(self._raw, read, keys)

    def write(self, write: BulkWrite, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        try:
            if write.act == "insert":
                insert_many(self._raw, write, rows)
                return len(rows)
            count = self._raw.executemany(write.sqlite_sql, rows).rowcount
        except sqlite3.IntegrityError as error:
            raise StaleRows(str(error)) from error
        if write.exact and count != len(rows):
            raise StaleRows(f"{write.act} {write.table.name}: {count} of {len(rows)} rows")
        return count

    def ask_ahead(self, reads: Sequence[tuple[BulkRead, Sequence[Row]]]) -> None:
        """There is no way to save."""

    def defer(self, write: BulkWrite, rows: Sequence[Row]) -> None:
        self.write(write, rows)

    def savepoint(self) -> None:
        self._raw.execute("SAVEPOINT item")

    def undo(self) -> None:
        self._raw.execute("ROLLBACK TO item")
        self._raw.execute("RELEASE item")

    def keep(self) -> None:
        # Each savepoint that stays open makes SQLite note every page again.
        self._raw.execute("RELEASE item")

    def guard(self) -> None:
        """One writer: nothing can come in between."""

    def advance(self, count: int, version: int) -> tuple[int, int]:
        row = self._raw.execute(_ADVANCE, (count, version)).fetchone()
        return int(row[0]), int(row[1])

    def append(self, write: BulkWrite, rows: Sequence[Row], version: int) -> tuple[int, int]:
        last, floor = self.advance(len(rows), version)
        first = last - len(rows) + 1
        self.write(write, [(sequence, *row) for sequence, row in enumerate(rows, first)])
        return last, floor


def insert_many(raw: sqlite3.Connection, write: BulkWrite, rows: Sequence[Row]) -> None:
    """All rows or an error. Many rows a statement: it costs half of a statement a row, whose parameters the module
    looks at, and whose lock of the interpreter it gives back, one by one. Columns at the end that are NULL in all rows
    are not named: each NULL and each BLOB is first offered to the module's adapters."""
    shape, short = write.sqlite_shapes[0], write.sqlite_shapes[-1]
    if short is not shape and set(map(itemgetter(slice(short.width, None)), rows)) == {short.left_out}:
        shape, rows = short, list(map(itemgetter(slice(0, short.width)), rows))
    at, left = 0, len(rows)
    for size in ROWS_PER_INSERT:
        while left >= size:
            values = tuple(chain.from_iterable(rows[at : at + size]))
            raw.execute(shape.many[size], values)
            at, left = at + size, left - size
    if left:
        raw.executemany(shape.one, rows[at:])


def fetch_each(raw: sqlite3.Connection, read: BulkRead, keys: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    if len(keys) <= ONE_BY_ONE_MAX:
        sql = read.sqlite_sql
        for key in keys:
            rows += raw.execute(sql, key).fetchall()
        return rows
    at, nothing = 0, (None,) * len(read.by)
    while at < len(keys):
        part = keys[at : at + KEYS_PER_READ[-1]]
        at += len(part)
        size = next(size for size in KEYS_PER_READ if size >= len(part))
        values = [value for key in part for value in key]
        values += nothing * (size - len(part))
        rows += raw.execute(read.sqlite_many[size], values).fetchall()
    return rows
