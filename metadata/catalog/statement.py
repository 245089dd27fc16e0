"""Statements that are described once by SQLAlchemy and run as they are: on SQLite on the raw connection.

Building and compiling a small query costs SQLAlchemy ten times what SQLite needs to answer it; a mount asks several
for each lookup, a job's result a dozen. On PostgreSQL the round trip outweighs that, so there SQLAlchemy's own cache
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")


class Statement:
    """One statement with named parameters (`sa.bindparam`), none of them a list."""

    def __init__(self, query: sa.Executable, *, columns: Sequence[str] | None = None) -> None:
        """columns: of an insert, those that its rows name; the others take their defaults."""
        self._query = query
        self._columns = columns

    @cached_property
    def _sqlite(self) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        """(SQL, the names of its parameters in order, those that the query itself gives a value)."""
        compiled = self._query.compile(dialect=_SQLITE, column_keys=self._columns)  # type: ignore[attr-defined]
        given = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), tuple(compiled.positiontup or ()), given

    def rows(self, connection: sa.Connection, **values: Any) -> list[Any]:
        """All rows, as tuples."""
        if connection.dialect.name != "sqlite":
            return [tuple(row) for row in connection.execute(self._query, values)]
        return self._on_sqlite(connection, values).fetchall()  # type: ignore[no-any-return]

    def first(self, connection: sa.Connection, **values: Any) -> Any:
        """The first row, or None."""
        rows = self.rows(connection, **values)
        return rows[0] if rows else None

    def run(self, connection: sa.Connection, **values: Any) -> int:
        """For a statement that changes rows and returns none: how many it changed."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._query, values).rowcount
        return int(self._on_sqlite(connection, values).rowcount)

    def run_many(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
        """The same for each of the rows; on PostgreSQL in one message."""
        if not rows:
            return
        if connection.dialect.name != "sqlite":
            connection.execute(self._query, rows)
            return
        sql, names, given = self._sqlite
        raw: Any = connection.connection.driver_connection
        raw.executemany(sql, [[row[n] if n in row else given[n] for n in names] for row in rows])

    def _on_sqlite(self, connection: sa.Connection, values: dict[str, Any]) -> Any:
        sql, names, given = self._sqlite
        raw: Any = connection.connection.driver_connection
        return raw.execute(sql, [values[n] if n in values else given[n] for n in names])
