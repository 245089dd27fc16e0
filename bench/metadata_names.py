"""Metadata in process: commits against plain sqlite3, grouping under a slow commit, lookups, listings.

    python -m bench.metadata_names [--seconds 1.0] [--data DIR]

Prints must, aim and measured for the bars "metadata put, 64 waiting" and "with 8 ms per commit", and the cost of a
lookup and of a page. Both sides of a ratio alternate in one run; the median of the ratios counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa
import uvloop

from metadata.catalog import schema
from metadata.catalog.objects import INSERT_LATEST
from metadata.catalog.packed import pack_new
from metadata.catalog.sqlite import SqliteDatabase
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import SystemClock
from tierstore.wire.names import CommitItem, LookupItem, Put

GROUP = 64
ROUNDS = 7


class Plain:
    """The reference: the same packed row by executemany, one commit per 64."""

    def __init__(self, directory: Path) -> None:
        self.raw = sqlite3.connect(directory / "plain.db", isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -131072", "wal_autocheckpoint = 0"):
            self.raw.execute("PRAGMA " + pragma)
        engine = sa.create_engine("sqlite://", creator=lambda: self.raw)
        self.raw.execute(str(sa.schema.CreateTable(schema.objects).compile(engine)))
        self.sql = INSERT_LATEST.sqlite_sql
        self.made = 0

    def rate(self, seconds: float) -> float:
        """Puts per second."""
        body = pack_new(b"c" * 16, 4096, 1, [(10, 0, 3, 4096), (20, 0, 3, 4096)])
        count, begun = 0, time.perf_counter()
        while (spent := time.perf_counter() - begun) < seconds:
            rows = [
                (1, f"k{self.made + i:012}", 1 << 40, 0, 1, 4096, "ts-0123456789abcdef", 1 << 40, body, None, None)
                for i in range(GROUP)
            ]  # fmt: skip
            self.raw.execute("BEGIN IMMEDIATE")
            self.raw.executemany(self.sql, rows)
            self.raw.execute("COMMIT")
            self.made += GROUP
            count += GROUP
        return count / spent


def items(world: NamesWorld, count: int, serial: list[int]) -> list[CommitItem]:
    """Puts as they come decoded from the wire."""
    made = []
    for _ in range(count):
        serial[0] += 1
        made.append(world.item(Put("bbb", f"k{serial[0]:012}", 4096, "", [world.chunk(4096)])))
    return made


async def commit_rate(world: NamesWorld, waiting: int, count: int, serial: list[int]) -> float:
    """Puts per second with `waiting` callers that each send the next one when the last is answered."""
    queue = items(world, count, serial)
    gc.collect()
    gc.freeze()         # what was made for the measurement is not the service's to traverse
    begun = time.perf_counter()

    async def caller() -> None:
        while queue:
            [result] = await world.commits.commit([(queue.pop(), ADMIN)])
            assert not result.code, result

    await asyncio.gather(*(caller() for _ in range(waiting)))
    return count / (time.perf_counter() - begun)


async def puts(world: NamesWorld, plain: Plain, seconds: float, serial: list[int]) -> None:
    ratios, ours = [], []
    await commit_rate(world, GROUP, 2000, serial)
    for _ in range(ROUNDS):
        reference = plain.rate(seconds / 2)
        rate = await commit_rate(world, GROUP, int(reference * seconds / 3) // GROUP * GROUP + GROUP, serial)
        ours.append(rate)
        ratios.append(rate / reference)
    print(f"put, 64 waiting / plain executemany   must 0.60  aim 0.80  measured {statistics.median(ratios):.2f}"
          f"   ({statistics.median(ours):,.0f} puts/s)")  # fmt: skip


async def grouping(world: NamesWorld, serial: list[int]) -> None:
    database = world.database
    assert isinstance(database, SqliteDatabase)
    database.commit_delay_seconds = 0.008
    one = await commit_rate(world, 1, 60, serial)
    many = await commit_rate(world, GROUP, 60 * GROUP, serial)
    database.commit_delay_seconds = 0.0
    print(f"8 ms per commit, 64 waiting / 1       must 40x   aim 55x   measured {many / one:.0f}x")


def lookups(world: NamesWorld, serial: list[int]) -> None:
    asks = [LookupItem("bbb", f"k{1 + i * 7919 % serial[0]:012}") for i in range(20_000)]
    begun = time.perf_counter()
    for item in asks:
        result = world.lookups.lookup_now(item, ADMIN)
        assert result is not None and len(result.chunks[0].replicas) == 2
    print(f"lookup in-line, any of many           {(time.perf_counter() - begun) / len(asks) * 1e6:.1f} us")


    item = asks[0]
    begun = time.perf_counter()
    for _ in range(20_000):
        world.lookups.lookup_now(item, ADMIN)
    print(f"lookup in-line, a hot one             {(time.perf_counter() - begun) / 20_000 * 1e6:.1f} us")


async def listings(world: NamesWorld) -> None:
    database = world.database
    body = pack_new(b"c" * 16, 4096, 1, [(10, 0, 3, 4096), (20, 0, 3, 4096)])
    times = {}
    for bucket, count in (("small", 10_000), ("large", 1_000_000)):
        row = await world.buckets.create(bucket, ADMIN)
        for at in range(0, count, 50_000):
            rows = [
                (row.id, f"k/{i:012}", 1 << 40, 0, 1, 4096, "e", 1_800_000_000_000, body, None, None)
                for i in range(at, min(at + 50_000, count))
            ]
            await database.batch(lambda session, rows=rows: session.write(INSERT_LATEST, rows))
        middle = f"k/{count // 2:012}"
        spent = []
        for _ in range(15):
            begun = time.perf_counter()
            page = await world.page(bucket=bucket, start_after=middle)
            spent.append(time.perf_counter() - begun)
            assert len(page.objects) == 1000
        times[bucket] = statistics.median(spent)
        begun = time.perf_counter()
        page = await world.page(bucket=bucket, delimiter="/")
        assert page.prefixes == ["k/"] and not page.objects
        print(f"list, delimiter over {count:>9,} keys     {(time.perf_counter() - begun) * 1e3:.2f} ms")
    print(f"page of 1,000 of 1,000,000 / of 10,000  must 3.0   measured {times['large'] / times['small']:.2f}"
          f"   ({times['large'] * 1e3:.2f} ms)")  # fmt: skip


async def main(seconds: float, data: Path) -> None:
    # Real time: operation and upload ids begin with it, which is why their rows lie together.
    world = await NamesWorld.open(f"sqlite:///{data}/catalog.db", clock=SystemClock())
    serial = [0]
    try:
        await world.buckets.create("bbb", ADMIN)
        await puts(world, Plain(data), seconds, serial)
        await grouping(world, serial)
        lookups(world, serial)
        await listings(world)
    finally:
        await world.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.data) as directory:
        uvloop.run(main(options.seconds, Path(directory)))
