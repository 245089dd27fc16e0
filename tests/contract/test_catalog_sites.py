"""Names and bytes of another site in the catalog, on every engine."""

from __future__ import annotations

import asyncio
import os
import random
from typing import cast

import pytest
import sqlalchemy as sa

from metadata.catalog import backfill, backlog, feed, schema, sites
from metadata.catalog.backlog import Backlog, Gone
from metadata.catalog.database import Database
from metadata.catalog.queries import Connection
from metadata.services.sites import backfill as backfills
from metadata.services.sites import backlog as counting
from metadata.services.sites.apply import NameTaker
from metadata.services.sites.backlog import BacklogCount
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.kit.meddling import MeddlingDatabase
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import HybridClock
from tierstore.errors import ConflictError, RequestError
from tierstore.names import SiteId, VersionId
from tierstore.wire.names import CommitResult, Fill, ObjectMeta
from tierstore.wire.sites import NAME_GONE, NAME_MARKER, NAME_META, NAME_PUT, NameAnswer, NameBatch, NameRecord

__all__ = ["postgres", "run", "url_of"]

_MS = 1 << 21


def version(w: NamesWorld, ahead_ms: int = 0) -> int:
    """An id of site 2."""
    return VersionId((w.clock.now_ms() + ahead_ms) * _MS + 2)


async def take(w: NamesWorld, *records: NameRecord, versioning: str = "") -> NameAnswer:
    return await w.taker.take(NameBatch("site2", list(records), {"bbb": versioning, "new": ""}), "site2")


async def fill(w: NamesWorld, key: str, of: int, start: int, sizes: list[int]) -> CommitResult:
    return (await w.commit(Fill("bbb", key, of, start, [w.chunk(size) for size in sizes])))[0]


def test_a_name_is_there_before_its_bytes_and_one_fill_makes_it_ordinary(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = version(w)
        assert (await take(w, NameRecord("bbb", "k", NAME_PUT, v, 100, "e", 5))).applied == 1
        found = await w.look("k")
        assert (found.version, found.size, found.etag, found.is_remote, found.chunks) == (v, 100, "e", True, [])
        assert [entry.key for entry in (await w.page()).objects] == ["k"]
        assert (await take(w, NameRecord("bbb", "k", NAME_PUT, v, 100, "e", 5))).lost == 1
        assert not (await fill(w, "k", v, 0, [100])).code
        found = await w.look("k")
        assert not found.is_remote and found.version == v and found.chunks[0].length == 100
        assert (await fill(w, "k", v, 0, [100])).code == "already-here"

    run(check)


def test_pieces_come_in_any_order_and_only_gaps_are_taken(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = version(w)
        await take(w, NameRecord("bbb", "k", NAME_PUT, v, 300, "e", 5))
        assert not (await fill(w, "k", v, 200, [100])).code
        found = await w.look("k")
        assert found.is_remote and [c.start for c in found.chunks] == [200]
        assert (await fill(w, "k", v, 150, [100])).code == "already-here"
        assert (await fill(w, "k", v, 250, [100])).code == "size-mismatch"
        assert not (await fill(w, "k", v, 0, [100, 100])).code
        found = await w.look("k")
        assert not found.is_remote and [(c.start, c.length) for c in found.chunks] == [(0, 100), (100, 100), (200, 100)]
        await w.indexer.catch_up()
        assert len(await w.placed()) == 6
        await w.delete("k")
        assert len(await w.garbage()) == 3 and not await w.rows(schema.extents)

    run(check)


def test_what_was_filled_of_a_version_that_is_replaced_becomes_garbage(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = version(w)
        await take(w, NameRecord("bbb", "k", NAME_PUT, v, 300, "e", 5))
        await fill(w, "k", v, 100, [100])
        await take(w, NameRecord("bbb", "k", NAME_PUT, v + 256, 10, "f", 6))
        assert len(await w.garbage()) == 1 and (await w.look("k")).etag == "f"
        assert (await fill(w, "k", v, 0, [100])).code in ("no-such-version", "no-such-key")

    run(check)


def test_the_larger_id_wins_whoever_comes_first(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        early = version(w, -1000)
        await w.put("k", etag="here")
        assert (await take(w, NameRecord("bbb", "k", NAME_PUT, early, 0, "there", 1))).applied == 0
        assert (await w.look("k")).etag == "here"
        late = version(w, 60_000)
        assert (await take(w, NameRecord("bbb", "k", NAME_MARKER, late))).applied == 1
        assert (await w.look("k")).code == "no-such-key"
        assert (await take(w, NameRecord("bbb", "k", NAME_PUT, late - 256, 0, "older", 1))).applied == 0
        assert (await w.look("k")).code == "no-such-key"
        # a later write here is later than what it saw, though the other clock is a minute ahead
        assert (await w.put("k", etag="last")).version > late
        assert (await w.look("k")).etag == "last"

    run(check)


def test_ids_of_a_clock_a_day_ahead_are_parked(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        mad = version(w, 3 * 86_400_000)
        answer = await take(w, NameRecord("bbb", "a", NAME_PUT, mad), NameRecord("bbb", "b", NAME_PUT, version(w)))
        assert answer.parked == [0] and answer.applied == 1
        assert (await w.put("c")).version < mad

    run(check)


def test_versions_keep_their_order_on_both_sides(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = version(w, 1000)
        on = "enabled"
        await take(w, NameRecord("bbb", "k", NAME_PUT, v, 0, "new", 2, False), versioning=on)
        await take(w, NameRecord("bbb", "k", NAME_PUT, v - 512, 0, "old", 1, False), versioning=on)
        assert (await w.look("k")).etag == "new" and (await w.look("k", version=v - 512)).etag == "old"
        await take(w, NameRecord("bbb", "k", NAME_GONE, v), versioning=on)
        assert (await w.look("k")).etag == "old"
        await take(w, NameRecord("bbb", "k", NAME_META, v - 512, 0, "old", 1, False), versioning=on)
        await take(w, NameRecord("bbb", "k", NAME_GONE, v - 512), versioning=on)
        assert (await w.look("k")).code == "no-such-key"

    run(check)


def test_of_the_null_versions_of_a_key_the_newest_is_kept_whatever_comes_first(run: Run) -> None:
    """What a bucket held before versioning was on is an older version since, and is to be found at the other site."""

    async def check(w: NamesWorld) -> None:
        v = version(w, 1000)

        async def null(etag: str, at: int) -> int:
            record = NameRecord("bbb", "k", NAME_PUT, at, 0, etag, 1, True)
            return (await take(w, record, versioning="enabled")).applied

        await take(w, NameRecord("bbb", "k", NAME_PUT, v, 0, "new", 2, False), versioning="enabled")
        assert await null("null", v - 512) == 1 and await null("null", v - 512) == 0
        assert await null("older", v - 1024) == 0
        assert await null("newer", v - 256) == 1
        assert [row.etag for row in await w.rows(schema.versions)] == ["newer"]
        assert (await w.look("k")).etag == "new"
        assert await null("last", v + 256) == 1 and await null("late", v + 128) == 0

    run(check)


def test_a_change_of_metadata_is_passed_on_though_its_transaction_was_run_twice(run: Run) -> None:
    """It was noted as passed on in a transaction that was rolled back: run again, it went to nobody, and the sites
    behind this one kept the old metadata."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
        meddling = MeddlingDatabase(w.database)
        taker = NameTaker(cast(Database, meddling), w.names, w.clock, HybridClock(w.clock, SiteId(1), floor=0))
        taker.numbers = lambda: {3: "site3"}
        v = version(w)

        async def hear(record: NameRecord) -> None:
            assert (await taker.take(NameBatch("site3", [record], {"bbb": ""}), "site3")).applied == 1

        await hear(NameRecord("bbb", "k", NAME_PUT, v, 0, "e", 1))
        before = len(await w.rows(schema.replication_queue))
        meddling.stale_batches = 1
        await hear(NameRecord("bbb", "k", NAME_META, v, 0, "e", 1, meta=ObjectMeta(content_type="a/b")))
        assert len(await w.rows(schema.replication_queue)) == before + 1

    run(check)


def test_a_bucket_comes_with_its_names_and_deletes_there_leave_tombstones(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        v = version(w)
        await take(w, NameRecord("new", "k", NAME_PUT, v, 0, "e", 1))
        assert (await w.delete("k", bucket="new")).existed
        assert (await take(w, NameRecord("new", "k", NAME_PUT, v, 0, "e", 1))).applied == 0
        assert (await w.look("k", bucket="new")).code == "no-such-key"
        await w.buckets.delete("new", ADMIN)
        with pytest.raises(RequestError, match="at most"):
            await take(w, *[NameRecord("bbb", os.urandom(4).hex(), NAME_PUT, v)] * 600)

    run(check)


def test_the_queue_moves_from_names_to_bodies_and_what_is_finished_goes(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
        for i in range(5):
            await w.put(f"k{i}", size=100)
        rows = await w.database.read(lambda c: sites.waiting_names(c, "site2", 3))
        assert [row.key for row in rows] == ["k0", "k1", "k2"]
        through, done = rows[-1].sequence, [rows[0].sequence]
        count = BacklogCount(w.database, "site2", epoch=lambda: 1)
        await count.measure()
        assert count.now[:2] == (5, 500) and count.now.names == 5

        def named(c: Connection) -> list[Gone]:
            sites.set_names_through(c, "site2", through)
            return backlog.finish(c, "site2", done)

        await count.change(named, named=[row.sequence for row in rows])
        bodies = await w.database.read(lambda c: sites.waiting_bodies(c, "site2", 0, 10))
        assert [row.key for row in bodies] == ["k1", "k2"]
        await count.measure()
        assert (count.now.objects, count.now.bytes, count.now.names) == (4, 400, 2)
        await count.change(lambda c: backlog.finish(c, "site2", [row.sequence for row in bodies]))
        assert [row.key for row in await w.database.read(lambda c: sites.waiting_names(c, "site2", 9))] == ["k3", "k4"]

    run(check)


def _reference(c: Connection) -> Backlog:
    """What a scan of the whole queue says."""
    rows = c.execute(sa.select(schema.replication_queue).order_by(schema.replication_queue.c.sequence)).all()
    mark = sites.names_through(c, "site2")
    return Backlog(
        len(rows), sum(row.size for row in rows if row.kind == schema.CHANGE_PUT), rows[0].at_ms if rows else 0,
        sum(row.sequence > mark for row in rows),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
def test_the_backlog_is_what_a_scan_of_the_queue_would_say_whatever_happens_between(
    run: Run, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators judge by it when a site may be taken away; a figure that drifts is worse than a slow one."""
    monkeypatch.setattr(counting, "PAGE_ROWS", 3)

    async def check(w: NamesWorld) -> None:
        rng = random.Random(seed)
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
        epoch = 1
        count = BacklogCount(w.database, "site2", epoch=lambda: epoch)

        async def send(*, is_lost: bool = False) -> None:
            rows = await w.database.read(lambda c: sites.waiting_names(c, "site2", rng.randrange(1, 5)))
            done = [row.sequence for row in rows if rng.random() < 0.5]

            def work(c: Connection) -> list[Gone]:
                sites.set_names_through(c, "site2", rows[-1].sequence)
                return backlog.finish(c, "site2", done)

            if is_lost and rows:        # another process does it, unseen; or the answer of ours was lost
                await w.database.write(work)
                return
            if rows:
                await count.change(work, named=[row.sequence for row in rows])

        async def finish() -> None:
            rows = await w.database.read(lambda c: sites.waiting_bodies(c, "site2", 0, rng.randrange(1, 6)))
            done = [row.sequence for row in rows]
            await count.change(lambda c: backlog.finish(c, "site2", done + done))

        def fails(c: Connection) -> list[Gone]:
            raise ConflictError("the lease went", code="lease-lost")

        for _ in range(16):
            act = rng.randrange(8)
            if act < 4:
                await w.put(f"k{rng.randrange(9)}", size=rng.randrange(1, 99))
            elif act == 4:
                await asyncio.gather(send(), count.measure(), finish(), count.measure(), finish())
            elif act == 5:
                await w.delete(f"k{rng.randrange(9)}")
            elif act == 6:
                await send(is_lost=True)
                if rng.random() < 0.5:
                    epoch += 1
                else:
                    with pytest.raises(ConflictError):
                        await count.change(fails)
            elif rng.random() < 0.3:
                await w.database.write(lambda c: sites.forget_progress(c, "site2"))
            await count.measure()
            assert count.now == await w.database.read(_reference)

    run(check)


def test_a_backfill_queues_what_exists_page_by_page(run: Run) -> None:
    async def check(w: NamesWorld) -> None:
        for i in range(7):
            await w.put(f"logs/{i}", size=10)
        await w.put("other")
        bucket = (await w.rows(schema.buckets))[0].id
        after, pages = "", 0
        while True:
            page = await w.database.batch(
                lambda s, a=after: backfill.queue_page(  # type: ignore[misc]
                    s, "site2", bucket, prefix="logs/", after=a, limit=3, at_ms=5
                )
            )
            after = page.last
            pages += 1
            if not after:
                break
        queue = await w.rows(schema.replication_queue)
        assert [row.key for row in queue] == [f"logs/{i}" for i in range(7)] and pages == 3
        changes = await w.database.read(lambda c: feed.read(c, 0, 100))
        assert [c.sequence for c in changes] == list(range(1, len(changes) + 1))

    run(check)


def test_a_backfill_brings_the_older_versions_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that is rebuilt has every version of a versioned bucket again, not only the latest."""
    monkeypatch.setattr(backfills, "BACKFILL_PAGE", 3)

    async def check(w: NamesWorld) -> None:
        expected = {("null", (await w.put("null")).version)}
        await w.put("other")
        await w.buckets.configure("bbb", ADMIN, versioning="enabled")
        for key in ("null", "k", "k", "k", "k", "k", "l", "l", "prefix"):
            expected.add((key, (await w.put(key)).version))
        expected.add(("k", (await w.delete("k")).version))
        gone = (await w.put("k")).version
        await w.delete("k", version=gone)
        work = backfills.Backfills(w.database, w.clock)
        for prefix in ("k", "l", "null", "pre"):
            await work.begin("site2", "bbb", prefix)
        steps = 1
        while await work.step("site2"):
            steps += 1
        queue = await w.rows(schema.replication_queue)
        found = [(row.key, row.version) for row in queue]
        assert sorted(found) == sorted(expected) and len(set(found)) == len(found)
        assert (await work.progress("site2")).queued == len(expected) and steps > 8

    run(check)


def test_a_backfill_leaves_out_what_waits_already(run: Run) -> None:
    """A rule is set and the bucket filled at once: everything would travel twice."""

    async def check(w: NamesWorld) -> None:
        await w.put("before", size=10)
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
        await w.put("after", size=10)
        bucket = (await w.rows(schema.buckets))[0].id

        async def fill(*, is_again: bool) -> list[str]:
            page = await w.database.batch(
                lambda s: backfill.queue_page(
                    s, "site2", bucket, prefix="", after="", limit=10, at_ms=5, is_again=is_again
                )
            )
            assert (page.queued, page.walked) == (2, 2)
            return [row.key for row in await w.database.read(lambda c: sites.waiting_names(c, "site2", 10))]

        assert await fill(is_again=False) == ["after", "before"]
        assert await fill(is_again=True) == ["after", "before"]
        # their names were sent, their bodies wait: a target that has forgotten names must hear of them again
        queue = await w.rows(schema.replication_queue)
        last = max(row.sequence for row in queue)
        await w.database.write(lambda c: sites.set_names_through(c, "site2", last))
        assert await fill(is_again=False) == []
        assert await fill(is_again=True) == ["after", "before"]

    run(check)
