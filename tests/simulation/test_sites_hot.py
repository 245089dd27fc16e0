"""Bodies under a `hot` rule on virtual time, with the production workers and duty: what is hot travels, the rest stays
on demand, and a rule that changes meanwhile is obeyed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from metadata.catalog import schema
from metadata.catalog.book import Located
from metadata.catalog.packed import PackedChunk
from metadata.catalog.sites import SiteRow
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.hot import LOOK_SECONDS, HotBodies
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import Carrier, Link, _site
from tierstore.wire.names import CommitChunk
from tierstore.wire.sites import SEGMENT_BYTES, FetchBatch, NameBatch

SEGMENTS = 20
RULES = {"bbb": [("", "site2")]}


class Fetched(Carrier):
    """Remembers which segments were asked for. on_names: called before a message of names is answered."""

    on_names: Callable[[], Awaitable[None]] | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[str, int]] = []

    async def _answer(self, path: str, message: Any) -> Any:
        if isinstance(message, FetchBatch):
            self.asked += [(item.key, item.first // SEGMENT_BYTES) for item in message.items]
        answer = await super()._answer(path, message)
        if isinstance(message, NameBatch) and self.on_names is not None:
            begin, self.on_names = self.on_names, None
            await begin()
        return answer


class Pair:
    """site1 writes under a rule, and is read; site2 hears of it. hot: chunk -> key."""

    def __init__(self, worlds: list[NamesWorld]) -> None:
        self.here, self.there = worlds
        self.carrier = Fetched(Link(random.Random(1)), self.there, "site2", self.here)
        self.hot: dict[bytes, str] = {}
        self.duty = HotBodies(
            self.here.database, self.here.clock, hottest=lambda _: [(chunk, 5.0) for chunk in self.hot],
            find=self._find, name_of=lambda located: ("bbb", self.hot[located.chunk.id], 1),
        )  # fmt: skip
        self.backfills = Backfills(self.here.database, self.here.clock)
        courier: Any = self.carrier
        parts = Parts(
            self.here.database, self.here.clock, courier, Known(rows=[SiteRow(2, "site2", [], [], {})]),
            lambda: Self("site1", 1, []), lambda chunks: [float(chunk in self.hot) for chunk in chunks], lambda: 1,
            Comparison(self.here.database, self.here.clock, courier, keep_ms=1 << 40), self.duty.parts,
        )  # fmt: skip
        self.worker = TargetWorker(parts, "site2")

    async def _find(self, chunks: Collection[bytes]) -> dict[bytes, Located]:
        return {chunk: Located(None, PackedChunk(chunk, 1, 1, 0)) for chunk in chunks}

    async def rule(self, bodies: str) -> None:
        await self.here.buckets.set_replication("bbb", [{"target": "site2", "bodies": bodies}], ADMIN)
        await self.backfills.begin("site2", "bbb")

    async def film(self, key: str) -> list[CommitChunk]:
        upload = self.here.upload()
        chunks = [self.here.chunk(SEGMENT_BYTES, upload=upload, index=i) for i in range(SEGMENTS)]
        await self.here.put(key, chunks=chunks)
        return chunks

    async def settled(self) -> None:
        """What is hot was looked for, and all that goes has arrived: figures and queue agree."""
        await self.here.clock.sleep(LOOK_SECONDS)
        await self.duty.step(RULES)
        while True:
            while await self.backfills.step("site2"):
                pass
            self.worker.kick()
            await self.here.clock.sleep(1.0)
            if not await self.here.rows(schema.replication_queue):
                break
        await self.worker.measure()
        assert self.worker.status.backlog[:2] == (0, 0)

    async def segments(self, key: str) -> tuple[set[int], bool]:
        """Those that the other site has, and whether it has the body for good."""
        found = await self.there.look(key)
        return {chunk.start // SEGMENT_BYTES for chunk in found.chunks}, not found.is_remote


@asynccontextmanager
async def _pair() -> AsyncIterator[Pair]:
    worlds = [await _site(n + 1, n, 0) for n in range(2)]
    await worlds[1].buckets.set_replication("bbb", [], ADMIN)
    pair = Pair(worlds)
    task = asyncio.get_running_loop().create_task(pair.worker.run())
    try:
        yield pair
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for world in worlds:
            await world.close()


def test_only_the_hot_segments_of_a_body_travel_and_the_rest_once_it_is_hot_or_the_rule_says_all() -> None:
    """The other site's link and disks are for what is read; and what was sent in parts must end as one body."""

    async def main() -> None:
        async with _pair() as pair:
            await pair.rule("hot")
            films = {key: await pair.film(key) for key in ("one", "two")}
            await pair.settled()
            assert not pair.carrier.asked and await pair.segments("one") == (set(), False)
            pair.hot |= {bytes(films["one"][i].id): "one" for i in (0, 7)}
            await pair.settled()
            assert sorted(pair.carrier.asked) == [("one", 0), ("one", 7)]
            assert await pair.segments("one") == ({0, 7}, False)
            notes = await pair.there.rows(schema.fetched_bodies)
            assert [(row.key, row.bytes) for row in notes] == [("one", 2 * SEGMENT_BYTES)], "they may go again"
            pair.hot[bytes(films["one"][3].id)] = "one"
            await pair.settled()
            assert sorted(pair.carrier.asked) == [("one", 0), ("one", 3), ("one", 7)], "each travels once"
            pair.hot |= {bytes(chunk.id): "one" for chunk in films["one"]}
            await pair.settled()
            assert await pair.segments("one") == (set(range(SEGMENTS)), True)
            assert not await pair.there.rows(schema.fetched_bodies)
            pair.hot[bytes(films["two"][1].id)] = "two"
            await pair.settled()
            assert await pair.segments("two") == ({1}, False)
            await pair.rule("all")
            await pair.settled()
            assert await pair.segments("two") == (set(range(SEGMENTS)), True)

    virtual_time.run(1, lambda _: main(), simulation=True)


def test_a_rule_that_says_all_while_names_are_on_their_way_brings_their_bodies() -> None:
    """The rows were judged by the rule before, and the new one's backfill leaves out what waits: between the two the
    bodies would be forgotten."""

    async def main() -> None:
        async with _pair() as pair:
            await pair.rule("on-demand")
            await pair.settled()

            async def change() -> None:
                await pair.rule("all")
                while await pair.backfills.step("site2"):
                    pass

            pair.carrier.on_names = change
            await pair.here.put("k")
            await pair.settled()
            assert pair.carrier.on_names is None
            assert not (await pair.there.look("k")).is_remote

    virtual_time.run(1, lambda _: main(), simulation=True)
