"""The engines that the catalog's contract tests run on: SQLite in memory without threads, SQLite in a file with its
writer thread, PostgreSQL. One PostgreSQL server for all tests of a module."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from metadata.catalog.database import open_database
from metadata.catalog.migrate import upgrade
from metadata.catalog.setup import UPGRADE_SECONDS
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.postgres import PostgresServer

ENGINES = ("memory", "sqlite", "postgresql")
_SCHEMA = "with_schema"
_with_schema: weakref.WeakSet[PostgresServer] = weakref.WeakSet()
Run = Callable[[Callable[[NamesWorld], Awaitable[None]]], None]


@pytest.fixture(scope="module")     # a module that imports it has its own: 19 would run until the session ends
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    yield server
    server.stop()


@pytest.fixture(params=ENGINES)
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Awaitable[str]]:
    """Makes the URL of an empty catalog of this engine."""
    engine = request.param

    async def make() -> str:
        if engine == "memory":
            return "sqlite://"
        if engine == "sqlite":
            return f"sqlite:///{tmp_path}/catalog.db"
        server: PostgresServer = request.getfixturevalue("postgres")
        return await server.create_database()

    if engine == "postgresql":
        request.getfixturevalue("postgres")
    return make


async def with_schema(server: PostgresServer) -> str:
    """The URL of a new database with the catalog's tables, copied from one that is made once for a server: all that a
    migration does takes four times as long."""
    if server not in _with_schema:
        database = await open_database(await server.create_database(_SCHEMA))
        await database.write(upgrade, seconds=UPGRADE_SECONDS)
        await database.close()
        _with_schema.add(server)
    return await server.create_database(like=_SCHEMA)


@pytest.fixture
def run(url_of: Callable[[], Awaitable[str]], request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on a world with a bucket "bbb"."""
    is_postgresql = request.node.callspec.params.get("url_of") == "postgresql"

    def runner(test: Callable[[NamesWorld], Awaitable[None]]) -> None:
        async def main() -> None:
            url = await (with_schema(request.getfixturevalue("postgres")) if is_postgresql else url_of())
            world = await NamesWorld.open(url, threads=url != "sqlite://")
            try:
                await world.buckets.create("bbb", ADMIN)
                async with asyncio.timeout(300):
                    await test(world)
            finally:
                await world.close()

        asyncio.run(main())

    return runner
