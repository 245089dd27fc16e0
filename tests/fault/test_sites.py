"""kill -9 at any site while replication runs, and real cuts of the way between sites: nothing lost, nothing doubled,
every queue drains."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.test_sites import Site
from tests.kit.cluster import Cluster, _is_running, cluster, wait_until
from tests.kit.proxy import FaultyLink

ROLES = ("metadata", "objectd", "gateway")
DRAIN_SECONDS = 240.0
#: At each site; a request that meets a killed process holds up one of them.
WRITERS = 4


class Writers:
    """Write-once keys at every site until stop(); what was acknowledged is remembered with its hash."""

    def __init__(self, sites: list[Site], token: str, seed: int, per_second: float) -> None:
        self.acked: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.refused = 0
        self._stop = threading.Event()
        self._pause = 1 / per_second
        self._threads = [
            threading.Thread(target=self._run, args=(site, token, seed, n), daemon=True)
            for site in sites for n in range(WRITERS)
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _run(self, site: Site, token: str, seed: int, writer: int) -> None:
        rng = random.Random(f"{seed} {site.name} {writer}")
        number = 0
        with httpx.Client(headers={"authorization": f"Bearer {token}"}, timeout=180) as http:
            while not self._stop.wait(self._pause):
                number += 1
                key = f"{site.name}-{writer}-{number:05}"
                body = rng.randbytes(rng.choice((0, 50, 3000, 200_000)))
                try:
                    answer = http.put(f"{site.url}/v1/objects/bbb/{key}", content=body)
                except httpx.HTTPError:
                    self.refused += 1
                    continue
                if answer.status_code != 200:
                    self.refused += 1
                    continue
                self.acked[key] = hashlib.sha256(body).hexdigest()
                if number % 7 == 0:
                    self.deleted.add(key)       # may be gone whatever the answer to the delete is
                    with contextlib.suppress(httpx.HTTPError):
                        http.delete(f"{site.url}/v1/objects/bbb/{key}")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)


def _replicate(a: Site, b: Site) -> None:
    assert a.http.put(f"{a.url}/v1/buckets/bbb").status_code == 201
    a.rules("bbb", b.name)
    a.put("first", b"1")
    wait_until(lambda: b.http.get(f"{b.url}/v1/buckets/bbb").status_code == 200, seconds=60, what="the bucket")
    b.rules("bbb", a.name)


def _everything_is_equal(sites: list[Site], writers: Writers) -> None:
    """Drained queues; the same versions on all sides; every acknowledged byte, read at both."""
    for site in sites:
        wait_until(lambda s=site: _backlog(s) == 0, seconds=DRAIN_SECONDS, what=f"{site.name} drains", every=1.0)  # type: ignore[misc]
    wait_until(lambda: sites[0].names() == sites[1].names(), seconds=60, what="equal names", every=1.0)
    names = sites[0].names()
    lost = [key for key in writers.acked if key not in names and key not in writers.deleted]
    assert not lost, f"{len(lost)} acknowledged objects are gone: {lost[:5]}"
    for site in sites:
        for key in names:
            if key in writers.acked:
                assert hashlib.sha256(site.get(key).content).hexdigest() == writers.acked[key], f"{key} at {site.name}"


def _backlog(site: Site) -> int:
    try:
        return site.backlog()
    except (httpx.HTTPError, AssertionError, KeyError):
        return -1


def _kill(c: Cluster, site: str, role: str) -> bool:
    pid = c.site_pid(site, role)
    if not pid:
        return False
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not _is_running(pid), seconds=20, what=f"{role} of {site} is gone")
    return True


def _rounds(tmp_path: Path, count: int, seed: int) -> None:
    rng = random.Random(seed)
    with cluster(tmp_path, "--sites", "2", "--servers", "3") as c:
        with httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180) as http:
            sites = [Site(site["name"], site["gateway"], http) for site in c.ready["sites"]]
            _replicate(sites[0], sites[1])
            writers = Writers(sites, c.token, seed, per_second=4)
            kills = 0
            try:
                for _ in range(count):
                    kills += _kill(c, rng.choice(sites).name, rng.choice(ROLES))
                    until = time.monotonic() + rng.uniform(2.0, 5.0)
                    wait_until(lambda u=until: time.monotonic() >= u, seconds=30, what="time to work")  # type: ignore[misc]
            finally:
                writers.stop()
            assert kills >= count * 0.7 and len(writers.acked) >= count * 5, (kills, len(writers.acked))
            _everything_is_equal(sites, writers)


@pytest.mark.slow
def test_thirty_kills_anywhere_during_replication_lose_nothing(tmp_path: Path) -> None:
    """Any process of either site, while both write."""
    _rounds(tmp_path, 30, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_way_between_sites_heals_within_the_predicted_time(tmp_path: Path, seed: int) -> None:
    """Both sites write and delete while nothing passes; then the backlog drains at no less than half the link."""
    rate = 4e6
    with cluster(tmp_path, "--sites", "2", "--servers", "2") as c:
        with httpx.Client(headers={"authorization": f"Bearer {c.token}"}, timeout=180) as http:
            sites = [Site(site["name"], site["gateway"], http) for site in c.ready["sites"]]
            _replicate(sites[0], sites[1])

            async def cut_and_heal() -> float:
                ports = [urlsplit(site.url).port or 0 for site in sites]
                async with FaultyLink(ports[0]) as to_a, FaultyLink(ports[1]) as to_b:
                    for here, there, link in ((sites[0], sites[1], to_b), (sites[1], sites[0], to_a)):
                        url = f"http://127.0.0.1:{link.port}"
                        await asyncio.to_thread(here.admin, "PATCH", f"sites/{there.name}", json={"gateways": [url]})
                        link.set(bytes_per_second=rate)
                    writers = Writers(sites, c.token, seed, per_second=2)
                    try:
                        for drop in ("both", "up", "down"):
                            for link in (to_a, to_b):
                                link.set(drop=drop)
                            await asyncio.sleep(4)      # of writing on both sides
                            for link in (to_a, to_b):
                                link.set(drop="")
                            await asyncio.sleep(1)
                        for link in (to_a, to_b):
                            link.set(drop="both")
                        await asyncio.sleep(6)
                    finally:
                        await asyncio.to_thread(writers.stop)
                    answers = [await asyncio.to_thread(site.admin, "GET", "replication") for site in sites]
                    waiting = sum(t["backlog_bytes"] for answer in answers for t in answer["targets"])
                    began = time.monotonic()
                    for link in (to_a, to_b):
                        link.set(drop="")
                    await asyncio.to_thread(_everything_is_equal, sites, writers)
                    took = time.monotonic() - began
                    assert len(writers.acked) > 50
                    return took / (waiting / rate + 30)     # a hello, a retry's pause, and the checker itself

            assert asyncio.run(cut_and_heal()) <= 2
