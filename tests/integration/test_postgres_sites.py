"""Two sites of two metadata processes each, every site on a PostgreSQL database of its own. Real processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_postgres import holder
from tests.integration.test_sites import Site
from tests.kit.cluster import Cluster, cluster, wait_until
from tests.kit.extra import Extra
from tests.kit.postgres import PostgresServer

KEYS_PER_DOOR = 40
WRITE_SECONDS = 120.0
#: Bucket -> members of its rules, in both directions.
RULES = {"later": {"mode": "async"}, "together": {"mode": "sync", "on_failure": "fail"}}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    running = PostgresServer()
    yield running
    running.stop()


@dataclass
class Pair:
    """A site: its cluster with a second metadata process, and a gateway for each of the two."""

    c: Cluster
    second: Extra
    database: str
    doors: list[Site]

    def kill_holder(self) -> None:
        """The process that speaks to the other site; it comes back."""
        url = wait_until(lambda: holder(self.database), seconds=60, what="a holder of the lease")
        if url == self.second.url:
            self.second.kill()
            self.second.start()
        else:
            self.c.kill("metadata1")

    def figures(self) -> list[tuple[int, dict[str, int], tuple[int, ...]]]:
        """What each door says: what waits, and what all processes have counted."""
        found = []
        for door in self.doors:
            said = door.admin("GET", "replication")
            counted = tuple(int(said[name]) for name in ("names_applied", "names_lost", "names_parked"))
            found.append((sum(t["backlog_objects"] for t in said["targets"]), said["sync"], counted))
        return found


@contextlib.contextmanager
def _site(data: Path, number: int, database: str) -> Iterator[Pair]:
    name = f"site{number}"
    placement = {"site": name, "site_number": number}
    env = {"TIERSTORE_PLACEMENT__SITE": name, "TIERSTORE_PLACEMENT__SITE_NUMBER": str(number)}
    with cluster(data, "--servers", "2", "--database-url", database, env=env) as c:
        (c.data / "metadata2").mkdir()
        changes = {"catalog": {"data": str(c.data / "metadata2")}, "placement": placement}
        second = Extra(c, "metadata", "metadata1", 2, changes)
        door = Extra(c, "gateway", "gateway1", 3, {"membership": {"metadata": [second.url]}})
        try:
            second.start()
            door.start()
            with httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180) as http:
                yield Pair(c, second, database, [Site(name, url, http) for url in (c.gateway, door.url)])
        finally:
            door.kill()
            second.kill()


def _write(door: Site, key: str, body: bytes) -> None:
    """Until it is acknowledged in both buckets: while a process is away, a writer is told to try again."""
    for bucket in RULES:
        until = time.monotonic() + WRITE_SECONDS
        while (answer := door.put(key, body, bucket)).status_code != 200:
            assert answer.status_code == 503 and time.monotonic() < until, answer.text


def _writes(door: Site, place: int) -> dict[str, bytes]:
    rng = random.Random(place)
    keys = [f"{door.name}-{place}-{i:02}" for i in range(KEYS_PER_DOOR)]
    bodies = {key: rng.randbytes(rng.choice((10, 5_000, 70_000))) for key in keys}
    for key, body in bodies.items():
        _write(door, key, body)
    return bodies


def _join(here: Pair, there: Pair) -> None:
    wish = {
        "name": there.doors[0].name, "gateway": there.doors[0].url, "token": there.c.token,
        "own_gateways": [door.url for door in here.doors],
    }  # fmt: skip
    here.doors[0].admin("POST", "sites", json=wish)
    here.doors[0].admin(
        "PATCH", f"sites/{there.doors[0].name}", json={"gateways": [door.url for door in there.doors]}
    )
    a, b = here.doors[0], there.doors[0]
    for bucket, members in RULES.items():
        assert a.http.put(f"{a.url}/v1/buckets/{bucket}").status_code == 201
        a.rules(bucket, b.name, **members)
        _write_first(a, bucket)
        wait_until(
            lambda name=bucket: b.http.get(f"{b.url}/v1/buckets/{name}").status_code == 200,    # type: ignore[misc]
            seconds=60, what=bucket,
        )
        b.rules(bucket, a.name, **members)


def _write_first(a: Site, bucket: str) -> None:
    wait_until(lambda: a.put("first", b"1", bucket).status_code == 200, seconds=60, what=f"a write to {bucket}")


@pytest.mark.slow
def test_two_sites_of_two_metadata_processes_each_lose_nothing_when_the_ones_that_speak_are_killed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """Commits come to a process that sends nothing itself; the one that does dies, and the other goes on where it
    was. Whoever is asked gives the same figures."""
    databases = [asyncio.run(postgres.create_database()) for _ in range(2)]
    with _site(tmp_path / "a", 1, databases[0]) as here, _site(tmp_path / "b", 2, databases[1]) as there:
        _join(here, there)
        doors = [*here.doors, *there.doors]
        with ThreadPoolExecutor(len(doors)) as pool:
            writing = [pool.submit(_writes, door, place) for place, door in enumerate(doors)]
            here.kill_holder()
            there.kill_holder()
            bodies = {key: body for each in writing for key, body in each.result().items()}
        for pair in (here, there):
            wait_until(partial(_agree, pair), seconds=120, what=lambda p=pair: str(p.figures()), every=0.5)  # type: ignore[misc]
        for door in doors:
            for bucket in RULES:
                assert door.names(bucket) == doors[0].names(bucket)
                assert door.names(bucket).keys() == {*bodies, "first"}
                for key, body in bodies.items():
                    assert door.get(key, bucket).content == body, (door.url, bucket, key)
        for pair in (here, there):
            assert pair.figures()[0][1]["waits"] > 0


def _agree(pair: Pair) -> Any:
    first, second = pair.figures()
    return first == second and first[0] == 0
