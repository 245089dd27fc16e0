"""A server is drained while two metadata processes share one PostgreSQL and clients write through both."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_postgres import TwoDoors, holder, query
from tests.kit import admin
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.extra import Extra
from tests.kit.load import judge
from tests.kit.postgres import PostgresServer

DRAIN_SECONDS = 60.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    running = PostgresServer()
    yield running
    running.stop()


@pytest.mark.slow
@pytest.mark.parametrize("kills_holder", [False, True])
def test_a_server_is_drained_with_two_metadata_processes(
    tmp_path: Path, postgres: PostgresServer, kills_holder: bool
) -> None:
    """Whoever holds the duties drains; results of copies come in at either process; commits at both are locked out for
    the end. kills_holder: the duties move in the middle."""
    url = asyncio.run(postgres.create_database())
    with cluster(tmp_path, "--servers", "4", "--database-url", url) as c:
        (c.data / "metadata2").mkdir()
        second = Extra(c, "metadata", "metadata1", 2, {"catalog": {"data": str(c.data / "metadata2")}})
        door = Extra(c, "gateway", "gateway1", 3, {"membership": {"metadata": [second.url]}})
        try:
            second.start()
            door.start()
            asyncio.run(_drain(c, door, url, second=second if kills_holder else None))
        finally:
            door.kill()
            second.kill()


async def _drain(c: Cluster, door: Extra, url: str, *, second: Extra | None) -> None:
    async def until(condition: Any, what: str) -> None:
        await asyncio.to_thread(wait_until, condition, seconds=DRAIN_SECONDS, what=what)

    load = TwoDoors(c.gateway, c.token, seed=47, clients=4)
    load.doors = itertools.cycle([c.gateway, door.url])
    await load.prepare()
    load.start()

    def has_put(count: int) -> bool:
        return load.outcome.counts["put 200"] >= count

    await until(partial(has_put, 60), "writes before")
    drained = c.processes("objectd")[0].name
    began = time.monotonic()
    admin.call(c, "POST", f"/v1/admin/servers/{drained}/drain")
    if second is not None:
        await asyncio.to_thread(_kill_holder, c, url, second)
    try:
        await until(lambda: admin.server(c, drained)["state"] == "drained", "drained")
    except AssertionError:
        print(await asyncio.to_thread(_story, c, url, drained))
        raise
    took = time.monotonic() - began
    # All that the catalog has of its devices: nothing. What writers had under way went elsewhere.
    left = await asyncio.to_thread(
        query, url, f"SELECT count(*) FROM placements p JOIN devices d ON d.id = p.device_id JOIN servers s "
        f"ON s.id = d.server_id WHERE s.name = '{drained}'"
    )  # fmt: skip
    assert left == [(0,)]
    await until(partial(has_put, load.outcome.counts["put 200"] + 20), "writes after it")
    outcome = await load.stop()
    print(f"{drained} drained in {took:.1f} s; {dict(outcome.counts)}")
    assert await judge(c.gateway, c.token, outcome) == []
    # A gateway whose only metadata process was killed holds requests for 10 s; its restart may take longer.
    if second is None:
        assert await judge(door.url, c.token, outcome) == []
        failed = {what: n for what, n in outcome.counts.items() if what.endswith((" 503", " broken"))}
        assert not failed, failed
    assert not [what for what in outcome.counts if what.endswith(" 500")], outcome.counts


def _story(c: Cluster, url: str, drained: str) -> str:
    """What stands in the way, for people."""
    tables = (
        "jobs", "devices", "servers", "leases", "feed_head",
        "settings WHERE name LIKE 'placements%'", "upload_leases",
    )  # fmt: skip
    told = [str(admin.server(c, drained)), str(admin.ask(c, "/v1/admin/jobs?limit=30"))]
    return "\n".join(told + [f"{table}: {query(url, f'SELECT * FROM {table} LIMIT 40')}" for table in tables])


def _kill_holder(c: Cluster, url: str, second: Extra) -> None:
    wait_until(lambda: holder(url), seconds=30, what="a holder of the lease")
    if holder(url) == second.url:
        second.kill()
        second.start()
    else:
        c.kill("metadata1")
