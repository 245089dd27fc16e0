"""Whole clusters on a real PostgreSQL: one metadata process as on SQLite, two that share the database, and the settings
of a database that must be refused."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kit.admin import ask, open_jobs, server, wait_settled
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.extra import Extra
from tests.kit.http import Client
from tests.kit.load import Load, judge, list_keys
from tests.kit.postgres import PostgresServer


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    running = PostgresServer()
    yield running
    running.stop()


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    async def main() -> list[tuple[Any, ...]]:
        import asyncpg

        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()

    return asyncio.run(main())


def holder(url: str) -> str:
    """Address of the metadata process that holds the promoter's lease; "" while none does."""
    rows = query(url, "SELECT url FROM leases WHERE name = 'promoter' AND until_ms > extract(epoch FROM now()) * 1000")
    return str(rows[0][0]) if rows else ""


def _has(load: Load, count: int) -> bool:
    return len(load.outcome.acknowledged) > count


class TwoDoors(Load):
    """A load whose clients go to one gateway or the other in turn."""

    doors: Iterator[str]

    def _client(self) -> Client:
        return Client(next(self.doors), token=self._token, seconds=self._seconds)


def test_a_cluster_on_postgresql_loses_nothing_when_processes_are_killed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """Put, get, list, delete and conditional writes on the second engine, with kill -9 of metadata and object servers:
    the same promises as on the first."""
    url = asyncio.run(postgres.create_database())

    async def main(c: Cluster) -> None:
        load = Load(c.gateway, c.token, seed=41)
        await load.prepare()
        load.start()
        for name in ("metadata1", "objectd2", "metadata1"):
            enough = len(load.outcome.acknowledged) + 20
            await asyncio.to_thread(
                wait_until, partial(_has, load, enough), seconds=60, what="writes go on"
            )
            await asyncio.to_thread(c.kill, name)
        outcome = await load.stop()
        await asyncio.to_thread(
            wait_until, lambda: server(c, "objectd2")["state"] == "up", seconds=60, what="objectd2 back"
        )
        assert len(outcome.acknowledged) > 60, outcome.counts
        assert await judge(c.gateway, c.token, outcome) == []
        listed = await list_keys(c.gateway, c.token, prefix="once/")
        surely = set(outcome.acknowledged) - outcome.deleted - outcome.unsure
        assert surely <= listed

    with cluster(tmp_path, "--database-url", url) as c:
        asyncio.run(main(c))
        assert query(url, "SELECT count(*) FROM objects")[0][0] > 50, "the catalog is in PostgreSQL"
        assert not (c.data / "cluster" / "metadata" / "catalog.db").exists()


@pytest.mark.slow
def test_two_metadata_processes_share_a_database(tmp_path: Path, postgres: PostgresServer) -> None:
    """Both serve at the same time: every key stays linearizable, whoever is asked; the background duties run in one of
    them and go to the other when it hangs or is killed."""
    url = asyncio.run(postgres.create_database())
    with cluster(tmp_path, "--database-url", url) as c:
        second = Extra(c, "metadata", "metadata1", 2, {"catalog": {"data": str(c.data / "metadata2")}})
        (c.data / "metadata2").mkdir()
        door = Extra(c, "gateway", "gateway1", 3, {"membership": {"metadata": [second.url]}})
        try:
            second.start()
            door.start()
            asyncio.run(_two_of_them(c, second, door, url))
        finally:
            door.kill()
            second.kill()


async def _two_of_them(c: Cluster, second: Extra, door: Extra, url: str) -> None:
    def wait(condition: Any, what: str, seconds: float = 60) -> Any:
        return asyncio.to_thread(wait_until, condition, seconds=seconds, what=what)

    metadata1 = next(p.url for p in c.processes("metadata"))
    load = TwoDoors(c.gateway, c.token, seed=43, clients=6)
    load.doors = itertools.cycle([c.gateway, door.url])
    await load.prepare()
    load.start()

    async def more(count: int) -> None:
        at = len(load.outcome.acknowledged)
        await wait(lambda: len(load.outcome.acknowledged) > at + count, "writes go on")

    await more(30)
    started = time.monotonic()
    for _ in range(2):      # the holder is away; the other one takes the duties over
        if await wait(lambda: holder(url), "a holder of the lease") == metadata1:
            # hangs: one that is killed is started again at once, and may be the first to ask for the lapsed lease
            hung = await asyncio.to_thread(c.send_signal, "metadata1", signal.SIGSTOP)
            try:
                await wait(lambda: holder(url) == second.url, "the lease at the second")
            finally:
                os.kill(hung, signal.SIGCONT)
        else:
            await asyncio.to_thread(second.kill)
            await wait(lambda: holder(url) == metadata1, "the lease at the first")
            await asyncio.to_thread(second.start)
        await more(20)
    print(f"the lease moved twice in {time.monotonic() - started:.1f} s")
    outcome = await load.stop()
    await wait(lambda: open_jobs(c) == 0, "no job open", seconds=60)
    assert len(outcome.acknowledged) > 90, outcome.counts
    for gateway in (c.gateway, door.url):
        assert await judge(gateway, c.token, outcome) == [], gateway
    await _heat_reaches_the_holder(c, url)


async def _heat_reaches_the_holder(c: Cluster, url: str) -> None:
    """Object servers know one metadata process; what was read must arrive at the one that ranks."""
    client = Client(c.gateway, token=c.token)
    assert (await client.request("PUT", "/v1/objects/load/hot", b"h" * 5000)).status == 200
    for _ in range(50):
        assert (await client.request("GET", "/v1/objects/load/hot")).status == 200
    client.close()
    address = await asyncio.to_thread(holder, url)
    asked = Client(address, token=c.token)

    async def is_hot() -> bool:
        answer = await asked.request("GET", "/v1/admin/heat?by=object&limit=5")
        return answer.status == 200 and b"load/hot" in answer.body

    deadline = time.monotonic() + 120
    while not await is_hot():
        assert time.monotonic() < deadline, "heat did not reach the holder of the lease"
        await asyncio.sleep(0.1)    # polling with a deadline
    asked.close()


def test_a_database_that_may_lose_commits_is_refused_at_start(tmp_path: Path, postgres: PostgresServer) -> None:
    """fsync or full_page_writes off acknowledge what a power cut takes back; the message says what to set. (Of one that
    has synchronous_commit off, tests/contract/test_catalog_database.py.)"""
    unsafe = PostgresServer(full_page_writes="off")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "metadata", "serve", "--set", f"catalog.url={unsafe.url()}",
             "--set", f"catalog.data={tmp_path}", "--set", "listen.port=0"],   # another cluster may have the usual one
            capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
    finally:
        unsafe.stop()
    assert done.returncode != 0 and "full_page_writes" in done.stderr, done
    assert "Traceback" not in done.stderr


def test_up_continues_on_an_existing_database(tmp_path: Path, postgres: PostgresServer) -> None:
    """Restart of everything: the same keys, the same objects, nothing left to do."""
    url = asyncio.run(postgres.create_database())
    with cluster(tmp_path, "--database-url", url) as c:
        token = c.token
        asyncio.run(_fill(c))
        assert c.stop() == 0
        c.start()
        assert c.token == token
        wait_settled(c, seconds=60)
        assert len(ask(c, "/v1/objects/load?limit=1000")["objects"]) == 30


async def _fill(c: Cluster) -> None:
    client = Client(c.gateway, token=c.token)
    assert (await client.request("PUT", "/v1/buckets/load")).status == 201
    for number in range(30):
        answer = await client.request("PUT", f"/v1/objects/load/k{number}", b"x" * number * 1000)
        assert answer.status == 200, answer
    client.close()
