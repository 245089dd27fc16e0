"""A site restored from a backup whose own queue names what the others saw removed for good, on virtual time with the
production workers and comparison."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from metadata.catalog import schema, sites
from metadata.services.sites.backfill import Backfills
from metadata.services.sites.compare import Comparison
from metadata.services.sites.hot import HotParts
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import Carrier, Link, _site
from tierstore.wire.names import Put
from tierstore.wire.sites import NAME_PUT, Compare, CompareAnswer, Hello, HelloAnswer, NameBatch, NameRecord

DAY_MS = 86_400_000


class Site:
    """One of two, with its worker for the other one."""

    def __init__(self, world: NamesWorld, number: int, link: Link) -> None:
        self.world, self.number, self.name = world, number, f"site{number}"
        self._link = link
        self.backfills = Backfills(world.database, world.clock)

    def meet(self, other: Site) -> None:
        courier: Any = Comparing(self._link, other.world, other.name, self.world)
        courier.site = other
        self.comparison = Comparison(self.world.database, self.world.clock, courier, keep_ms=7 * DAY_MS)
        known = Known(rows=[sites.SiteRow(other.number, other.name, [], [], {})])
        parts = Parts(
            self.world.database, self.world.clock, courier, known, lambda: Self(self.name, self.number, []),
            lambda chunks: [0.0] * len(chunks), lambda: 1, self.comparison, HotParts(),
        )  # fmt: skip
        self.worker = TargetWorker(parts, other.name)

    async def walk(self, other: Site) -> None:
        """What the duty does beside the worker."""
        while True:
            while await self.backfills.step(other.name):
                pass
            self.worker.kick()
            await self.world.clock.sleep(1.0)

    async def versions(self) -> set[tuple[str, int]]:
        rows = [*await self.world.rows(schema.objects), *await self.world.rows(schema.versions)]
        return {(row.key, row.version) for row in rows}


class Comparing(Carrier):
    """Answers hellos and questions as the other site's process does."""

    site: Site

    async def _answer(self, path: str, message: Any) -> Any:
        if isinstance(message, Hello):
            comparison = self.site.comparison
            seen = await comparison.hear(message.site, message.epoch, message.sequence, -1, mark=message.mark)
            return HelloAnswer(self.site.name, 0, "", seen.epoch, seen.sequence, seen.mark)
        if isinstance(message, Compare):
            return CompareAnswer(await self.site.backfills.answer_compare(message.site, message.epoch))
        return await super()._answer(path, message)


async def _put(world: NamesWorld, key: str) -> Any:
    return (await world.commit(Put("bbb", key, 100, "", [world.chunk()])))[0].version


@pytest.mark.parametrize(("by", "is_other_restored"), [("queue", False), ("backfill", False), ("queue", True)])
def test_what_an_old_queue_or_backfill_names_does_not_bring_back_versions_that_were_removed_for_good(
    by: str, is_other_restored: bool
) -> None:
    """They leave no tombstone, so the other site would take them for new. When both were restored neither may wait for
    the other for ever."""

    async def main() -> None:
        link = Link(random.Random(1))
        here, there = Site(await _site(1, 1, 0), 1, link), Site(await _site(2, 2, 0), 2, link)
        tasks: list[asyncio.Task[None]] = []
        try:
            for site, other in ((here, there), (there, here)):
                rules = [{"target": other.name}] if site is there or by == "queue" else []
                await site.world.buckets.configure("bbb", ADMIN, versioning="enabled")
                await site.world.buckets.set_replication("bbb", rules, ADMIN)
            # what the backup holds: two versions that had not been sent when it was made
            made = [await _put(here.world, key) for key in ("kept", "gone")]
            if by == "backfill":
                await here.world.buckets.set_replication("bbb", [{"target": "site2"}], ADMIN)
                await here.backfills.begin("site2", "bbb")
            # what happened since: both arrived, and one was removed for good
            for key, version in zip(("kept", "gone"), made, strict=True):
                record = NameRecord("bbb", key, NAME_PUT, version, 100, "", 5, is_null=False)
                await there.world.taker.take(NameBatch("site1", [record], {"bbb": "enabled"}), "site1")
            await there.world.delete("gone", version=made[1])
            await there.world.database.write(lambda c: sites.set_heard(c, "site1", sites.Heard(1, 1 << 40)))
            if is_other_restored:
                await here.world.database.write(lambda c: sites.set_heard(c, "site2", sites.Heard(1, 1 << 40)))
            for site, other in ((here, there), (there, here)):
                site.meet(other)
            for site, other in ((here, there), (there, here)):
                tasks += [asyncio.ensure_future(site.worker.run()), asyncio.ensure_future(site.walk(other))]
            clock = here.world.clock
            until = clock.monotonic() + 300
            while clock.monotonic() < until and not (
                here.worker.status.confirmed_at_ms and there.worker.status.confirmed_at_ms
            ):
                await clock.sleep(1.0)
            for site in (here, there):
                assert site.worker.status.confirmed_at_ms, f"{site.name} has not sent everything"
                assert not site.comparison.refusal()
                assert not await site.world.rows(schema.replication_queue)
            if not is_other_restored:       # else nobody may remember
                assert await here.versions() == await there.versions() == {("kept", made[0])}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for site in (here, there):
                await site.world.close()

    virtual_time.run(1, lambda _: main(), simulation=True)
