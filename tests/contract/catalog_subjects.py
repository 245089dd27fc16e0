"""The engines that the catalog's contract tests run on: SQLite in memory without threads, SQLite in a file with its
writer thread, PostgreSQL. One PostgreSQL server for all tests of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.postgres import PostgresServer

ENGINES = ("memory", "sqlite", "postgresql")
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


@pytest.fixture
def run(url_of: Callable[[], Awaitable[str]]) -> Run:
    """Runs a coroutine function on a world with a bucket "bbb"."""

    def runner(test: Callable[[NamesWorld], Awaitable[None]]) -> None:
        async def main() -> None:
            url = await url_of()
            world = await NamesWorld.open(url, threads=url != "sqlite://")
            try:
                await world.buckets.create("bbb", ADMIN)
                async with asyncio.timeout(300):
                    await test(world)
            finally:
                await world.close()

        asyncio.run(main())

    return runner
