"""What of a body follows because it is hot, on every engine: rows of the queue by segments, and what a change of rules
does to them."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from metadata.catalog import backlog, schema, sites
from metadata.catalog.book import Located
from metadata.catalog.packed import PackedChunk
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.hot import LOOK_SECONDS, Body, HotBodies
from tests.contract.catalog_subjects import Run, postgres, run, url_of
from tests.contract.test_catalog_sites import version
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.wire.names import CommitChunk, Fill
from tierstore.wire.sites import NAME_PUT, SEGMENT_BYTES, NameBatch, NameRecord

__all__ = ["postgres", "run", "url_of"]

HOT = [{"target": "site2", "bodies": "hot"}]
RULES = {"bbb": [("", "site2")]}


class Heat:
    """Chunks that are read, and whose they are."""

    def __init__(self, world: NamesWorld) -> None:
        self._world = world
        self.key_of: dict[bytes, str] = {}
        self.duty = HotBodies(
            world.database, world.clock, hottest=lambda _: [(chunk, 5.0) for chunk in self.key_of], find=self._find,
            name_of=lambda located: ("bbb", self.key_of[located.chunk.id], 1),
        )

    async def _find(self, chunks: Collection[bytes]) -> dict[bytes, Located]:
        return {chunk: Located(None, PackedChunk(chunk, 1, 1, 0, 0, ())) for chunk in chunks}

    async def read(self, key: str, *chunks: CommitChunk) -> int:
        """They become hot; for how many bodies the duty queues something then."""
        self.key_of |= {bytes(chunk.id): key for chunk in chunks}
        self._world.clock.advance(LOOK_SECONDS)
        return await self.duty.step(RULES)


async def _body(w: NamesWorld, key: str, count: int) -> tuple[Body, list[CommitChunk]]:
    """Of `count` segments; and a little more."""
    upload = w.upload()
    sizes = [SEGMENT_BYTES] * count + [100]
    chunks = [w.chunk(size, upload=upload, index=i) for i, size in enumerate(sizes)]
    made = await w.put(key, chunks=chunks)
    bucket = (await w.rows(schema.buckets))[0].id
    return Body("site2", bucket, key, made.version), chunks


async def _queued(w: NamesWorld, body: Body) -> list[int]:
    return [row.size for row in await w.rows(schema.replication_queue) if row.key == body.key][1:]


@pytest.mark.parametrize("count", [3, 40])      # kept with the row, and in rows of their own
def test_what_of_a_body_becomes_hot_is_queued_once_with_its_own_size(run: Run, count: int) -> None:
    """Else a film of which everybody reads the beginning travels whole, and the figures of the queue say so."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", HOT, ADMIN)
        body, chunks = await _body(w, "film", count)
        heat = Heat(w)
        parts = heat.duty.parts
        assert await heat.read("film", chunks[0], chunks[2]) == 1
        assert await _queued(w, body) == [2 * SEGMENT_BYTES]
        assert parts.waiting(body) == parts.segments(body) == {0, 2}
        assert await heat.read("film") == 0
        parts.arrived(body, {0, 2})
        assert not parts.waiting(body) and parts.chunks(body) == [chunks[0].id, chunks[2].id]
        assert await heat.read("film", chunks[count]) == 1      # the last, and smallest
        assert await _queued(w, body) == [2 * SEGMENT_BYTES, 100]
        assert parts.waiting(body) == {count} and parts.segments(body) == {0, 2, count}
        assert await heat.read("film", w.chunk()) == 0          # of a version that was replaced

    run(check)


def test_of_another_sites_body_what_is_here_and_hot_is_passed_on_but_not_to_its_writer(run: Run) -> None:
    """In a chain of `hot` rules the site in the middle has parts of a body; the one that wrote it has all."""

    async def check(w: NamesWorld) -> None:
        await w.database.write(lambda c: sites.put(c, sites.SiteRow(2, "site2", [], [], {})))
        await w.database.write(lambda c: sites.put(c, sites.SiteRow(3, "site3", [], [], {})))
        of = version(w)         # site2's
        await w.taker.take(
            NameBatch("site2", [NameRecord("bbb", "film", NAME_PUT, of, 4 * SEGMENT_BYTES, "e", 5)], {"bbb": ""}),
            "site2",
        )
        heat = Heat(w)
        chunk = w.chunk(SEGMENT_BYTES)
        await w.commit(Fill("bbb", "film", of, 2 * SEGMENT_BYTES, [chunk], is_cached=True))
        heat.key_of[bytes(chunk.id)] = "film"
        w.clock.advance(LOOK_SECONDS)
        assert await heat.duty.step({"bbb": [("", "site2"), ("", "site3")]}) == 1
        bucket = (await w.rows(schema.buckets))[0].id
        assert heat.duty.parts.segments(Body("site3", bucket, "film", of)) == {2}
        assert not heat.duty.parts.knows(Body("site2", bucket, "film", of))

    run(check)


def test_a_backfill_brings_the_whole_of_a_body_of_which_a_part_waits(run: Run) -> None:
    """A rule goes from `hot` to `all` while a hot chunk waits for its turn: the rest must follow, too."""

    async def check(w: NamesWorld) -> None:
        await w.buckets.set_replication("bbb", HOT, ADMIN)
        body, chunks = await _body(w, "film", 3)
        [named] = await w.rows(schema.replication_queue)
        await w.database.write(lambda c: backlog.finish(c, "site2", [named.sequence]))
        await Heat(w).read("film", chunks[1])
        await w.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
        backfills = Backfills(w.database, w.clock)
        await backfills.begin("site2", "bbb")
        while await backfills.step("site2"):
            pass
        sizes = [row.size for row in await w.rows(schema.replication_queue) if row.key == body.key]
        assert sizes == [SEGMENT_BYTES, named.size]

    run(check)
