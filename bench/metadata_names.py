"""Metadata in process: commits against plain sqlite3, grouping under a slow commit, lookups, listings.

    python -m bench.metadata_names [--seconds 1.0] [--directory DIR]

Must, aim and measured for the bars "metadata put, 64 waiting" and "with 8 ms per commit", and the cost of a
lookup and of a page. Both sides of a ratio alternate in one run; the median of the ratios counts. What is compared:
a put writes four rows (object, operation, change, the feed's head), so that is what the reference writes, with the same
settings; the ratio to the object's row alone stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import sqlalchemy as sa
import uvloop

from bench.options import bench_main
from bench.result import Result
from metadata.catalog import schema
from metadata.catalog.feed import INSERT_CHANGES
from metadata.catalog.objects import INSERT_LATEST
from metadata.catalog.operations import INSERT_RESULTS
from metadata.catalog.packed import pack_new
from metadata.catalog.session import Row, Session
from metadata.catalog.sqlite import WRITER_CACHE_KIB, SqliteDatabase
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import SystemClock
from tierstore.serving.daemon import settle
from tierstore.wire import encode
from tierstore.wire.names import CommitItem, CommitResult, LookupItem, Put

GROUP = 64
ROUNDS = 7


class Plain:
    """The reference: rows made beforehand, written by executemany, one commit per 64, with the service's settings.

    with_all: the rows that a put writes (object, operation, change, the feed's head); else the object's row alone.
    """

    def __init__(self, directory: Path, *, with_all: bool) -> None:
        self.raw = sqlite3.connect(directory / f"plain-{with_all}.db", isolation_level=None)
        # The service copies its log beside the writers beyond 32 MiB; here it is copied by the writer at the same size.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", f"cache_size = -{WRITER_CACHE_KIB}",
                       "mmap_size = 4294967296", "wal_autocheckpoint = 8192"):  # fmt: skip
            self.raw.execute("PRAGMA " + pragma)
        engine = sa.create_engine("sqlite://", creator=lambda: self.raw)
        for table in (schema.objects, schema.operations, schema.changes, schema.feed_head):
            self.raw.execute(str(sa.schema.CreateTable(table).compile(engine)))
        self.raw.execute("INSERT INTO feed_head (id, sequence, version) VALUES (1, 0, 0)")
        self.with_all = with_all
        self.made = 0

    def rows(self, count: int) -> dict[str, Sequence[tuple[object, ...]]]:
        """The rows of so many puts by statement, in the order and of the sizes of the service's."""
        body = pack_new(b"c" * 16, 4096, 1, [(10, 0, 3, 4096), (20, 0, 3, 4096)])
        now_ms = time.time_ns() // 1_000_000
        first = self.made + 1
        self.made += count
        places = range(first, first + count)
        objects = [
            (1, f"k{i:012}", 1 << 60, 0, 1, 4096, f"ts-{i:016x}", now_ms, body, None, None) for i in places
        ]
        if not self.with_all:
            return {INSERT_LATEST.sqlite_sql: objects}
        result = encode(CommitResult(version=1 << 60, etag="ts-0123456789abcdef", created_at_ms=now_ms, size=4096))
        ids = [(now_ms + i // 50).to_bytes(6, "big") + os.urandom(6) + bytes(4) for i in places]
        return {
            INSERT_LATEST.sqlite_sql: objects,
            INSERT_RESULTS.sqlite_sql: [(operation, result) for operation in ids],
            INSERT_CHANGES.sqlite_sql: [(i, now_ms, 1, 1, f"k{i:012}", 1 << 60) for i in places],
            "UPDATE feed_head SET sequence = sequence + ?1, version = max(version, ?2)": [(count, 1 << 60)],
        }

    def rate(self, seconds: float) -> tuple[float, float]:
        """Puts per second, and CPU us of each."""
        count, spent, cpu = 0, 0.0, 0.0
        while spent < seconds:
            batches = [self.rows(GROUP) for _ in range(50)]
            begun, cpu_begun = time.perf_counter(), time.process_time()
            for batch in batches:
                self.raw.execute("BEGIN IMMEDIATE")
                for sql, rows in batch.items():
                    self.raw.executemany(sql, rows)
                self.raw.execute("COMMIT")
            spent += time.perf_counter() - begun
            cpu += time.process_time() - cpu_begun
            count += GROUP * len(batches)
        return count / spent, cpu / count * 1e6


def items(world: NamesWorld, count: int, serial: list[int]) -> list[CommitItem]:
    """Puts as they come decoded from the wire."""
    made = []
    for _ in range(count):
        serial[0] += 1
        made.append(world.item(Put("bbb", f"k{serial[0]:012}", 4096, "", [world.chunk(4096)])))
    return made


async def commit_rate(world: NamesWorld, waiting: int, count: int, serial: list[int]) -> tuple[float, float]:
    """Puts per second, and CPU us of each, with `waiting` callers that each send the next one when the last is
    answered."""
    queue = deque(items(world, count, serial))
    settle()            # as a daemon does; what was made for the measurement is not the service's to traverse
    begun, cpu = time.perf_counter(), time.process_time()

    async def caller() -> None:
        while queue:
            [result] = await world.commits.commit([(queue.popleft(), ADMIN)])
            assert not result.code, result

    await asyncio.gather(*(caller() for _ in range(waiting)))
    return count / (time.perf_counter() - begun), (time.process_time() - cpu) / count * 1e6


async def puts(world: NamesWorld, data: Path, seconds: float, serial: list[int]) -> list[Result]:
    same, bare = Plain(data, with_all=True), Plain(data, with_all=False)
    ratios: dict[Plain, list[float]] = {same: [], bare: []}
    ours, cpu, reference_cpu = [], [], []
    await commit_rate(world, GROUP, 2000, serial)
    for _ in range(ROUNDS):
        reference = {plain: plain.rate(seconds / 2) for plain in ratios}
        reference_cpu.append(reference[same][1])
        count = int(reference[same][0] * seconds / 3) // GROUP * GROUP + GROUP
        rate, cpu_us = await commit_rate(world, GROUP, count, serial)
        ours.append(rate)
        cpu.append(cpu_us)
        for plain, found in ratios.items():
            found.append(rate / reference[plain][0])
    by_cpu = statistics.median(theirs / mine for theirs, mine in zip(reference_cpu, cpu, strict=True))
    detail = f"{statistics.median(ours):,.0f} puts/s in process; by CPU {by_cpu:.2f}"
    return [
        Result("metadata put, 64 waiting", statistics.median(ratios[same]), must=0.60, aim=0.80,
               cpu_us=statistics.median(cpu), detail=detail + "; against executemany of the same rows"),
        Result("the same, object rows alone", statistics.median(ratios[bare]),
               detail="against executemany of the objects' rows, without operation, change and feed"),
    ]  # fmt: skip


async def grouping(world: NamesWorld, serial: list[int]) -> Result:
    database = world.database
    assert isinstance(database, SqliteDatabase)
    database.commit_delay_seconds = 0.008
    one, _ = await commit_rate(world, 1, 60, serial)
    many, _ = await commit_rate(world, GROUP, 60 * GROUP, serial)
    database.commit_delay_seconds = 0.0
    return Result("metadata put, 8 ms a commit", many / one, must=40, aim=55, unit="times",
                  detail=f"{many:,.0f} puts/s with 64 waiting, {one:,.0f} with one")  # fmt: skip


def lookups(world: NamesWorld, serial: list[int]) -> list[Result]:
    asks = [LookupItem("bbb", f"k{1 + i * 7919 % serial[0]:012}") for i in range(20_000)]
    begun = time.process_time()
    for item in asks:
        result = world.lookups.lookup_now(item, ADMIN)
        assert result is not None and len(result.chunks[0].replicas) == 2
    any_us = (time.process_time() - begun) / len(asks) * 1e6
    item = asks[0]
    begun = time.process_time()
    for _ in range(20_000):
        world.lookups.lookup_now(item, ADMIN)
    hot_us = (time.process_time() - begun) / 20_000 * 1e6
    return [
        Result("lookup in process, any", any_us, unit="us", is_less_better=True, cpu_us=any_us),
        Result("lookup in process, a hot one", hot_us, unit="us", is_less_better=True, cpu_us=hot_us),
    ]


def _insert(session: Session, *, rows: Sequence[Row]) -> None:
    session.write(INSERT_LATEST, rows)


async def listings(world: NamesWorld) -> Result:
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
            await database.batch(partial(_insert, rows=rows))
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
        folded_ms = (time.perf_counter() - begun) * 1e3
    return Result(
        "page of 1,000,000 / of 10,000", times["large"] / times["small"], must=3.0, aim=1.5, is_less_better=True,
        detail=f"{times['large'] * 1e3:.2f} ms for 1,000 keys; {folded_ms:.2f} ms to fold all with a delimiter",
    )  # fmt: skip


async def measure(data: Path, rows: list[str], seconds: float) -> list[Result]:
    # Real time: operation and upload ids begin with it, which is why their rows lie together.
    world = await NamesWorld.open(f"sqlite:///{data}/catalog.db", clock=SystemClock())
    serial = [0]
    results = []
    try:
        await world.buckets.create("bbb", ADMIN)
        if "put" in rows or "lookup" in rows:
            results += await puts(world, data, seconds, serial)
        if "grouping" in rows:
            results.append(await grouping(world, serial))
        if "lookup" in rows:
            results += lookups(world, serial)
        if "page" in rows:
            results.append(await listings(world))
    finally:
        await world.close()
    return results


def run(root: Path, options: argparse.Namespace) -> list[Result]:
    return uvloop.run(measure(root, options.rows, options.seconds))


if __name__ == "__main__":
    bench_main("metadata in process", ["put", "grouping", "lookup", "page"], run, rounds=ROUNDS, seconds=1.0)
