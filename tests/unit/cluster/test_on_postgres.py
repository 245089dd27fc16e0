"""The same rules on PostgreSQL: leases, membership, redundancy and left-over rows once more, on a real server.

Catalog time is the test's clock here too (in production it is the database's), so that days can pass at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from types import ModuleType

import pytest
import sqlalchemy as sa

from metadata.catalog import leases, schema
from metadata.catalog.database import Database, open_database
from tests.kit.postgres import PostgresServer
from tests.unit.cluster import cluster_kit, test_duties, test_leftovers, test_membership, test_redundancy


def _tests_of(*modules: ModuleType) -> list[Callable[[], Awaitable[None]]]:
    return [
        function
        for module in modules
        for name, function in vars(module).items()
        if name.startswith("test_") and inspect.iscoroutinefunction(function)
        and not inspect.signature(function).parameters
    ]  # fmt: skip


TESTS = _tests_of(test_duties, test_leftovers, test_membership, test_redundancy)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    running = PostgresServer()
    yield running
    running.stop()


@pytest.mark.parametrize("case", TESTS, ids=lambda case: case.__name__)
async def test_it_holds_on_postgresql(
    case: Callable[[], Awaitable[None]], server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that only SQLite takes, or a lock that only PostgreSQL needs, shows here."""
    opened: list[Database] = []
    url = server.url()

    async def new_database() -> Database:
        database = await open_database(url)
        opened.append(database)

        def make(connection: sa.Connection) -> None:
            schema.tables.drop_all(connection)
            schema.tables.create_all(connection)
            connection.execute(sa.insert(schema.feed_head).values(id=1, sequence=0, version=0))

        await database.write(make)
        return database

    def manual_time(connection: sa.Connection, clock_ms: int) -> int:
        return clock_ms

    monkeypatch.setattr(leases, "catalog_now_ms", manual_time)
    for module in (cluster_kit, test_duties):
        monkeypatch.setattr(module, "new_database", new_database)
    try:
        await case()
    finally:
        for database in opened:
            await database.close()
