"""Two sites, each of two metadata processes that share a PostgreSQL: one process of a site speaks to the other site,
all of them take writes, and whoever is gone, what was acknowledged arrives."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault.test_sites import Writers, _everything_is_equal, _replicate
from tests.integration.test_postgres import holder
from tests.integration.test_sites import Site
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.extra import Extra
from tests.kit.postgres import PostgresServer

PUTS = 5


@dataclass
class Pair:
    """A site of two metadata processes. first, second: itself through a gateway that knows the one or the other."""

    cluster: Cluster
    database: str
    first: Site
    second: Site
    other: Extra
    door: Extra

    @property
    def gateways(self) -> list[int]:
        assert self.door.process is not None
        return [self.cluster.pid("gateway1"), self.door.process.pid]


@contextmanager
def _pair(directory: Path, number: int, postgres: PostgresServer) -> Iterator[Pair]:
    name = f"site{number}"
    url = asyncio.run(postgres.create_database())
    env = {"TIERSTORE_PLACEMENT__SITE": name, "TIERSTORE_PLACEMENT__SITE_NUMBER": str(number)}
    with ExitStack() as stack:
        c = stack.enter_context(cluster(directory, "--servers", "2", "--database-url", url, env=env))
        (c.data / "metadata2").mkdir()
        placement = {"site": name, "site_number": number}
        other = Extra(
            c, "metadata", "metadata1", 2, {"catalog": {"data": str(c.data / "metadata2")}, "placement": placement}
        )
        door = Extra(c, "gateway", "gateway1", 3, {"membership": {"metadata": [other.url]}})
        for extra in (other, door):
            stack.callback(extra.kill)
            extra.start()
        http = stack.enter_context(httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180))
        yield Pair(c, url, Site(name, c.gateway, http), Site(name, door.url, http), other, door)


@contextmanager
def _hung(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _sync(site: Site) -> dict[str, int]:
    found: dict[str, int] = site.admin("GET", "replication")["sync"]
    return found


def _sync_rules_hold_at_both(a: Pair, b: Pair) -> None:
    """Each process waits for the other site, or says so; what they count is one sum, whichever is asked."""
    assert a.first.http.put(f"{a.first.url}/v1/buckets/ledger").status_code == 201
    a.first.rules("ledger", b.first.name, mode="sync", on_failure="fail")
    def is_waited_for(door: Site) -> bool:
        before = _sync(door)["waits"]
        return door.put("first", b"2", "ledger").status_code == 200 and _sync(door)["waits"] > before

    for door in (a.first, a.second):    # a process hears of another one's new rule within a second
        wait_until(lambda d=door: is_waited_for(d), seconds=60, what="writes of each process wait")  # type: ignore[misc]
    before = _sync(a.first)
    for number in range(PUTS):
        for door, name in ((a.first, "one"), (a.second, "two")):
            body = f"{name} {number}".encode()
            assert door.put(f"{name}-{number}", body, "ledger").status_code == 200
            there = b.first.get(f"{name}-{number}", "ledger")
            assert there.content == body and there.headers["x-tierstore-site"] == b.first.name
    assert _sync(a.first) == _sync(a.second) == before | {"waits": before["waits"] + 2 * PUTS}
    with _hung(b.gateways):
        for door in (a.first, a.second):
            answer = door.put("nobody", b"there", "ledger")
            assert answer.status_code == 503 and answer.json()["code"] == "outcome-unknown", answer.text
    assert _sync(a.first)["failed"] == _sync(a.second)["failed"] == before["failed"] + 2


def _one_arrives(door: Site, there: Pair, key: str) -> None:
    """What is written at one process is at the other site; a new body each time."""
    body = os.urandom(100)
    wait_until(lambda: door.put(key, body).status_code == 200, seconds=120, what=f"{key} is taken")
    wait_until(lambda: there.second.get(key).content == body, seconds=120, what=f"{key} arrives", every=0.3)


def _the_duties_move(pair: Pair, there: Pair) -> None:
    """The holder is killed; the other process goes on where it was. Back again: the first is hung, since it would be
    started again at once."""
    metadata1 = pair.cluster.processes("metadata")[0].url
    for _ in range(2):
        if wait_until(lambda: holder(pair.database), seconds=60, what="a holder of the lease") == metadata1:
            with _hung([pair.cluster.pid("metadata1")]):
                wait_until(lambda: holder(pair.database) == pair.other.url, seconds=60, what="the lease at the second")
                _one_arrives(pair.second, there, f"by-the-second-{pair.first.name}")
        else:
            pair.other.kill()
            wait_until(lambda: holder(pair.database) == metadata1, seconds=60, what="the lease at the first")
            _one_arrives(pair.first, there, f"by-the-first-{pair.first.name}")
            pair.other.start()
        for door, name in ((pair.first, "one"), (pair.second, "two")):
            _one_arrives(door, there, f"{name}-{pair.first.name}")


@pytest.mark.slow
def test_two_sites_of_two_metadata_processes_each_end_equal_wherever_the_duties_are(tmp_path: Path) -> None:
    """What a client wrote at the process that does not speak to the other site must go there too, and go on when the
    one that does is killed."""
    postgres = PostgresServer()
    try:
        with _pair(tmp_path / "a", 1, postgres) as a, _pair(tmp_path / "b", 2, postgres) as b:
            _make_known(a, b)
            _sync_rules_hold_at_both(a, b)
            _replicate(a.first, b.first)
            writers = [Writers([pair.first], pair.cluster.token, 5, per_second=2) for pair in (a, b)]
            try:
                _the_duties_move(a, b)
                _the_duties_move(b, a)
            finally:
                for each in writers:
                    each.stop()
            assert all(len(each.acked) > 10 for each in writers)
            for each in writers:
                _everything_is_equal([a.first, b.first], each)
                _everything_is_equal([a.second, b.second], each)
    finally:
        postgres.stop()


def _make_known(a: Pair, b: Pair) -> None:
    """Each site knows both gateways of the other one."""
    wish: dict[str, Any] = {
        "name": b.first.name, "gateway": b.first.url, "own_gateways": [a.first.url], "token": b.cluster.token,
    }  # fmt: skip
    a.first.admin("POST", "sites", json=wish)
    for here, there in ((a, b), (b, a)):
        urls = [there.first.url, there.second.url]
        here.first.admin("PATCH", f"sites/{there.first.name}", json={"gateways": urls})
