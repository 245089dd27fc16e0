"""Statements that are described once by SQLAlchemy and run as they are: on SQLite on the raw connection.

Building and compiling a small query costs SQLAlchemy ten times what SQLite needs to answer it; a mount asks several
for each lookup. On PostgreSQL the round trip outweighs that, so there SQLAlchemy's own cache does.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

_SQLITE: Final = sqlite.dialect(paramstyle="qmark")


class Statement:
    """One query with named parameters (`sa.bindparam`), none of them a list."""

    def __init__(self, query: sa.Executable) -> None:
        self._query = query

    @cached_property
    def _sqlite(self) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        """(SQL, the names of its parameters in order, those that the query itself gives a value)."""
        compiled = self._query.compile(dialect=_SQLITE)  # type: ignore[attr-defined]
        given = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), tuple(compiled.positiontup or ()), given

    def rows(self, connection: sa.Connection, **values: Any) -> list[Any]:
        """All rows, as tuples."""
        if connection.dialect.name != "sqlite":
            return [tuple(row) for row in connection.execute(self._query, values)]
        sql, names, given = self._sqlite
        raw: Any = connection.connection.driver_connection
        return raw.execute(sql, [values[n] if n in values else given[n] for n in names]).fetchall()  # type: ignore[no-any-return]

    def first(self, connection: sa.Connection, **values: Any) -> Any:
        """The first row, or None."""
        rows = self.rows(connection, **values)
        return rows[0] if rows else None
