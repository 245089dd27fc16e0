"""Commits on PostgreSQL beside what the same server does with plain inserts of the same row.

    python -m bench.postgres_names [--seconds 2.0]

Two references, in turns with ours on one server: as pgbench does it (16 connections, each one row per transaction), and
one connection that inserts 64 rows per transaction by unnest. Ours does more for a put: receipts are checked, the key's
row is read under its lock, four tables are written, the result is kept for repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from pathlib import Path

import asyncpg
import uvloop

from bench.options import bench_main
from bench.result import Result
from metadata.catalog.objects import INSERT_LATEST
from metadata.catalog.packed import pack_new
from tests.kit.names_world import ADMIN, NamesWorld
from tests.kit.postgres import PostgresServer
from tierstore.clock import SystemClock
from tierstore.wire.names import CommitItem, Put

GROUP = 64
PGBENCH_CLIENTS = 16
PLAIN_BUCKET = 1 << 20      # beside those of the catalog
BODY = pack_new(b"c" * 16, 4096, 1, [(10, 0, 3, 4096), (20, 0, 3, 4096)])


class Plain:
    """The references, on connections of their own to the same database."""

    def __init__(self, connections: list[asyncpg.Connection]) -> None:
        self._connections = connections
        self._made = 0
        columns = ", ".join(f'"{name}"' for name in INSERT_LATEST.columns)
        marks = ", ".join(f"${i + 1}" for i in range(len(INSERT_LATEST.columns)))
        self._one = f"INSERT INTO objects ({columns}) VALUES ({marks})"

    @classmethod
    async def open(cls, url: str) -> Plain:
        return cls([await asyncpg.connect(url) for _ in range(PGBENCH_CLIENTS)])

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    def _row(self) -> tuple[object, ...]:
        self._made += 1
        key = f"k{self._made:012}"
        return (PLAIN_BUCKET, key, 1 << 40, 0, 1, 4096, "ts-0123456789abcdef", 1 << 40, BODY, None, None)

    async def one_by_one(self, seconds: float) -> float:
        """Rows per second, each in a transaction of its own."""
        count, begun = 0, time.perf_counter()

        async def client(connection: asyncpg.Connection) -> None:
            nonlocal count
            statement = await connection.prepare(self._one)
            while time.perf_counter() - begun < seconds:
                await statement.fetch(*self._row())
                count += 1

        await asyncio.gather(*map(client, self._connections))
        return count / (time.perf_counter() - begun)

    async def in_groups(self, seconds: float) -> float:
        """Rows per second, 64 by one statement."""
        count, begun = 0, time.perf_counter()
        connection = self._connections[0]
        while time.perf_counter() - begun < seconds:
            rows = [self._row() for _ in range(GROUP)]
            await connection.execute(INSERT_LATEST.postgres_sql, *map(list, zip(*rows, strict=True)))
            count += GROUP
        return count / (time.perf_counter() - begun)


def _items(world: NamesWorld, count: int, serial: list[int]) -> list[CommitItem]:
    made = []
    for _ in range(count):
        serial[0] += 1
        made.append(world.item(Put("bbb", f"k{serial[0]:012}", 4096, "", [world.chunk(4096)])))
    return made


async def _ours(world: NamesWorld, count: int, serial: list[int]) -> tuple[float, list[float]]:
    """(puts per second, the time of each in ms) with 64 callers that each send the next when the last is answered."""
    queue, spent = _items(world, count, serial), []
    gc.collect()
    begun = time.perf_counter()

    async def caller() -> None:
        while queue:
            asked = time.perf_counter()
            [result] = await world.commits.commit([(queue.pop(), ADMIN)])
            assert not result.code, result
            spent.append((time.perf_counter() - asked) * 1e3)

    await asyncio.gather(*(caller() for _ in range(GROUP)))
    return count / (time.perf_counter() - begun), spent


async def measure(url: str, rounds: int, seconds: float) -> list[Result]:
    world = await NamesWorld.open(url, clock=SystemClock())
    plain = await Plain.open(url)
    serial = [0]
    try:
        await world.buckets.create("bbb", ADMIN)
        rate, _ = await _ours(world, 1000, serial)
        single, grouped, ours, spent = [], [], [], []
        for _ in range(rounds):
            single.append(await plain.one_by_one(seconds / 2))
            grouped.append(await plain.in_groups(seconds / 2))
            rate, times = await _ours(world, max(GROUP, int(rate * seconds)), serial)
            ours.append(rate)
            spent += times
    finally:
        await plain.close()
        await world.close()
    spent.sort()
    of_single = statistics.median(o / s for o, s in zip(ours, single, strict=True))
    of_grouped = statistics.median(o / g for o, g in zip(ours, grouped, strict=True))
    p99 = spent[len(spent) * 99 // 100]
    return [
        Result(
            "PostgreSQL put / pgbench", of_single, cpu_us=1e6 / statistics.median(ours),
            detail=f"{statistics.median(ours):,.0f} puts/s, {statistics.median(single):,.0f} inserts/s one by one",
        ),
        Result(
            "PostgreSQL put / 64 a statement", of_grouped,
            detail=f"{statistics.median(grouped):,.0f} inserts/s in groups",
        ),
        Result(
            "PostgreSQL put p99", p99, unit="ms", is_less_better=True,
            detail=f"p50 {statistics.median(spent):.1f} ms, 64 waiting, {len(spent)} puts",
        ),
    ]  # fmt: skip


def run(data: Path, options: argparse.Namespace) -> list[Result]:
    server = PostgresServer()
    try:
        # PostgreSQL's data lies in memory where there is some: what is compared is work, not disks.
        return uvloop.run(measure(server.url(), options.rounds, options.seconds))
    finally:
        server.stop()


if __name__ == "__main__":
    bench_main("Commits on PostgreSQL.", ["put"], run, rounds=5, seconds=2.0)
