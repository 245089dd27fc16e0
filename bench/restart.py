"""A killed metadata process is ready again: its start on a catalog of 1,000,000 objects (RELIABILITY.md, R10).

    python -m bench.restart [--keys 1000000] [--rounds 5] [--directory DIR]

A cluster of three object servers is made and stopped; rows of so many objects with two copies each, and of their
placements, are written into its catalog as the service writes them. Then the metadata process alone is started, asked
for its readiness, and killed (SIGKILL) with the log of the catalog not yet copied, round by round; a start is measured
from the process's begin to its first answer of 200. The same with an empty catalog stands beside it, in turns.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from bench.cluster import BUCKET, running
from bench.options import bench_main
from bench.result import Result
from metadata.catalog.objects import INSERT_LATEST
from metadata.catalog.packed import pack_new
from metadata.catalog.placements import UPSERT
from tests.kit.cluster import Cluster

MUST_SECONDS = 2.0
ROWS = 10_000
LOGGED = 20_000     # objects whose rows are in the catalog's log alone when the process starts


def fill(cluster: Cluster, keys: int) -> None:
    """The rows of so many objects of 4 KiB, two copies each, the last of them in the log only."""
    path = cluster.data / "cluster" / "metadata" / "catalog.db"
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA synchronous = OFF")
    [bucket] = raw.execute("SELECT id FROM buckets WHERE name = ?", (BUCKET,)).fetchone()
    devices = [row[0] for row in raw.execute("SELECT id FROM devices WHERE tier = 'hdd' ORDER BY id")][:2]
    [first] = raw.execute("SELECT max(version) FROM feed_head").fetchone()
    now_ms = time.time_ns() // 1_000_000
    for begin in range(0, keys, ROWS):
        objects, placed = [], []
        for number in range(begin, min(begin + ROWS, keys)):
            key, version, chunk = f"d{number // 1000:04}/k{number:09}", first + 1 + number, os.urandom(16)
            body = pack_new(chunk, 4096, 1, [(device, 0, 3, 4160 * number) for device in devices])
            objects.append((bucket, key, version, 0, 1, 4096, f"ts-{number:016x}", now_ms, body, None, None))
            placed += [(device, chunk, bucket, key, version, 4096) for device in devices]
        if keys - begin <= LOGGED:
            raw.execute("PRAGMA wal_autocheckpoint = 0")
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(INSERT_LATEST.sqlite_sql, objects)
        raw.executemany(UPSERT.sqlite_sql, placed)
        raw.execute("COMMIT")
    raw.execute("BEGIN IMMEDIATE")
    raw.execute("UPDATE feed_head SET version = ?", (first + 1 + keys,))
    raw.execute("COMMIT")
    os.sync()
    os._exit(0)     # closing would copy the log


def start_and_kill(cluster: Cluster) -> tuple[float, float]:
    """(seconds until it is ready, its CPU seconds until then) of one life of the metadata process."""
    config = cluster.data / "cluster" / "config" / "metadata1.toml"
    at = urlsplit(cluster.processes("metadata")[0].url)
    assert at.hostname is not None
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "metadata", "serve", "--config", str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            took = time.monotonic() - began
            if took > 120 or process.poll() is not None:
                raise RuntimeError(f"the metadata process is not ready after {took:.0f} s ({process.poll()})")
            if _is_ready(at.hostname, at.port or 80):
                break
            time.sleep(0.005)
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return took, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    finally:
        process.kill()
        process.wait(30)


def _is_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/-/readyz")
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    sides: dict[int, Cluster] = {}
    for keys in (options.keys, 0):
        with running(root / f"{keys}") as made:
            sides[keys] = made.cluster
        if keys:
            child = os.fork()
            if not child:
                try:
                    fill(made.cluster, keys)
                finally:
                    os._exit(1)
            if os.waitpid(child, 0)[1]:
                raise RuntimeError("the catalog could not be filled")
    found: dict[int, list[tuple[float, float]]] = {keys: [] for keys in sides}
    for _ in range(options.rounds):
        for keys, cluster in sides.items():
            found[keys].append(start_and_kill(cluster))
    many, none = found[options.keys], found[0]
    detail = (
        f"{options.keys:,} objects; CPU {statistics.median(cpu for _, cpu in many):.2f} s; on an empty catalog "
        f"{statistics.median(took for took, _ in none):.2f} s, CPU {statistics.median(cpu for _, cpu in none):.2f} s"
    )
    return [Result(
        "metadata ready after a kill", statistics.median(took for took, _ in many), must=MUST_SECONDS,
        aim=MUST_SECONDS, unit="s", is_less_better=True, detail=detail,
    )]  # fmt: skip


if __name__ == "__main__":
    bench_main(
        "a killed metadata process starts on a large catalog", ["ready"], run, rounds=5, seconds=0,
        more=lambda parser: parser.add_argument("--keys", type=int, default=1_000_000),
    )  # fmt: skip
