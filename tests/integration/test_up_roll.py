"""Planned restarts of every process under load, and unplanned ones, on a real cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.kit.cluster import Cluster, cluster, wait_until


@dataclass
class Load:
    """Clients that put, get and list through the gateway until stopped; every answer that is not right is a failure."""

    gateway: str
    token: str
    failures: list[str] = field(default_factory=list)
    puts: int = 0
    gets: int = 0
    lists: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        with self._client() as http:
            assert http.put("/v1/buckets/roll").status_code in (201, 409)
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)

    def _client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.gateway, headers=headers, timeout=180, trust_env=False)

    def _run(self, number: int) -> None:
        bodies = {4096: os.urandom(4096), 3 << 20: os.urandom(3 << 20)}
        with self._client() as http:
            turn = 0
            while not self._stop.is_set():
                turn += 1
                size = 3 << 20 if turn % 10 == 0 else 4096
                path = f"/v1/objects/roll/{number}/{turn}"
                self._check(http, "PUT", path, bodies[size])
                self.puts += 1
                self._check(http, "GET", path, bodies[size])
                self.gets += 1
                if turn % 10 == 5:
                    self._check(http, "GET", f"/v1/objects/roll?prefix={number}/&limit=5", None)
                    self.lists += 1

    def _check(self, http: httpx.Client, method: str, path: str, body: bytes | None) -> None:
        """One request; an idle connection that the server closed is opened anew once, as every HTTP client does."""
        for attempt in (1, 2):
            try:
                answer = http.request(method, path, content=body if method == "PUT" else None)
                break
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
                if attempt == 2 or "without sending" not in str(error):
                    self.failures.append(f"{method} {path}: {error!r}")
                    return
            except httpx.HTTPError as error:
                self.failures.append(f"{method} {path}: {error!r}")
                return
        if answer.status_code != 200 or (method == "GET" and body is not None and answer.content != body):
            self.failures.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("roll")) as started:
        yield started


def roll(running: Cluster, *words: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "tierstore.cli.main", "admin", "roll", "--json", *words],
        env={**os.environ, "TIERSTORE_PROFILE": str(running.data / "cluster/profile.toml")},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + running.log_tail()
    restarted: list[dict[str, object]] = json.loads(done.stdout)["restarted"]
    return restarted


@pytest.mark.slow   # the quick form is tests/fault/test_rolling.py
def test_every_process_restarts_under_load_and_no_request_fails(running: Cluster) -> None:
    """Regular restarts are routine (R13): drain, restart on the same socket, return."""
    before = {process.name: running.pid(process.name) for process in running.processes()}
    with Load(running.gateway, running.token) as load:
        wait_until(lambda: load.puts > 20, seconds=30, what="load runs")
        restarted = roll(running)
        seen = load.puts
        wait_until(lambda: load.puts > seen + 20, seconds=30, what="load goes on")
    assert [row["name"] for row in restarted] == ["objectd1", "objectd2", "objectd3", "metadata1", "gateway1"]
    after = {process.name: running.pid(process.name) for process in running.processes()}
    assert all(after[name] and after[name] != before[name] for name in before)
    print(f"{load.puts} puts, {load.gets} gets, {load.lists} lists during {len(restarted)} restarts")
    assert load.failures == []
    assert load.puts >= 50 and load.lists >= 5, "an empty run is no pass"


def test_a_killed_object_server_fails_no_read(running: Cluster) -> None:
    """N+1: a crash is seen by the clients as at most a slower answer."""
    with Load(running.gateway, running.token) as load:
        wait_until(lambda: load.gets > 20, seconds=30, what="load runs")
        running.kill("objectd2")
        wait_until(lambda: running.pid("objectd2") != 0, seconds=30, what="objectd2 started again")
        seen = load.gets
        wait_until(lambda: load.gets > seen + 20, seconds=30, what="load goes on")
    assert load.failures == []


def test_a_cluster_continues_on_its_data_after_a_power_cut(tmp_path: Path) -> None:
    """Everything killed at once, then `up` again: same keys, everything acknowledged is there; ready within bounds."""
    with cluster(tmp_path / "c") as running:
        headers = {"authorization": f"Bearer {running.token}"}
        with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as http:
            assert http.put("/v1/buckets/kept").status_code == 201
            for number in range(20):
                assert http.put(f"/v1/objects/kept/{number}", content=b"%d" % number * 1000).status_code == 200
        token = running.token
        running.kill_everything()
        began = time.monotonic()
        running.start()
        print(f"ready {time.monotonic() - began:.1f} s after the start")
        assert running.token == token
        with httpx.Client(base_url=running.gateway, headers=headers, timeout=180) as http:
            for number in range(20):
                assert http.get(f"/v1/objects/kept/{number}").content == b"%d" % number * 1000
        assert running.up is not None
        up = running.up
        up.send_signal(signal.SIGINT)
        assert up.wait(180) == 0, "Ctrl-C is a clean end"
