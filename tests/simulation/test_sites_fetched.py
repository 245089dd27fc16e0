"""A site under an on-demand rule lets go of what its readers fetched, while the way is cut, answers are lost, and the
site that wrote it loses its disks and begins anew: nothing goes that is nowhere else. Virtual time; the production
workers, duty and question between the sites; of the bytes only their lengths travel. A failure replays from its seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from metadata.catalog import schema, sites
from metadata.services.sites.compare import Comparison
from metadata.services.sites.fetched import FetchedBodies
from metadata.services.sites.holds import Holdings, Vouchers
from metadata.services.sites.hot import HotParts
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import Carrier, Link, _site
from tierstore.wire.names import Fill
from tierstore.wire.sites import Holds

KEYS = [f"k{i}" for i in range(16)]
STEPS = 80
SETTLE_SECONDS = 10.0
SEEDS = 2


class Asked(Carrier):
    """Also answers which bodies its site has."""

    async def _answer(self, path: str, message: Any) -> Any:
        if isinstance(message, Holds):
            return await Holdings(self.target.database, is_sound=lambda: True).answer(message.bodies)
        return await super()._answer(path, message)


class Pair:
    """site1 writes, site2 reads. `lose` takes everything from site1."""

    def __init__(self, writer: NamesWorld, reader: NamesWorld, link: Link) -> None:
        self.writer, self.reader, self.link = writer, reader, link
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.worker = self._begin(writer, Asked(link, reader, "site2", writer), me=1)
        self.asking = Asked(link, writer, "site1", reader)
        self.looking = self._begin(reader, self.asking, me=2)
        known = Known(rows=[sites.SiteRow(1, "site1", [], [], {})])
        courier: Any = self.asking
        vouchers = Vouchers(
            reader.clock, courier, known, statuses=lambda: [self.looking.status], settle_seconds=SETTLE_SECONDS
        )
        self.duty = FetchedBodies(
            reader.database, reader.clock, heat_of=lambda chunk: float(chunk[-1]), capacity=lambda: 0,
            copies=lambda: 2, share=0.1, vouched=vouchers.vouched,
        )  # fmt: skip

    def _begin(self, world: NamesWorld, carrier: Any, *, me: int) -> TargetWorker:
        other = f"site{3 - me}"
        parts = Parts(
            world.database, world.clock, carrier, Known(rows=[sites.SiteRow(3 - me, other, [], [], {})]),
            lambda: Self(f"site{me}", me, []), lambda chunks: [0.0] * len(chunks), lambda: 1,
            Comparison(world.database, world.clock, carrier, keep_ms=1 << 40), HotParts(),
        )  # fmt: skip
        worker = TargetWorker(parts, other)
        self.tasks[me] = asyncio.get_running_loop().create_task(worker.run())
        return worker

    async def lose(self, seed: int) -> None:
        """All disks of site1: an empty one answers at its place."""
        self.tasks[1].cancel()
        await asyncio.gather(self.tasks[1], return_exceptions=True)
        await self.writer.close()
        self.writer = await _writer(seed)
        self.asking.target = self.writer
        self.worker = self._begin(self.writer, Asked(self.link, self.reader, "site2", self.writer), me=1)

    async def read(self, key: str) -> bool:
        """As a reader at site2 does: the gateway fetches from site1, and keeps."""
        found = await self.reader.look(key)
        if found.code or not found.is_remote or found.chunks or "site1" in self.link.cut:
            return False
        if (await self.writer.look(key, version=found.version)).code:
            return False
        fill = Fill("bbb", key, found.version, 0, [self.reader.chunk(found.size)], is_cached=True)
        return not (await self.reader.commit(fill))[0].code

    async def only_here(self) -> set[tuple[str, int]]:
        """Bodies of site2 that site1 has not."""
        rows = await self.reader.rows(schema.objects)
        here = {(row.key, row.version) for row in rows if row.ref is not None}
        return {(key, version) for key, version in here if (await self.writer.look(key, version=version)).code}

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        for world in (self.writer, self.reader):
            await world.close()


async def _writer(seed: int) -> NamesWorld:
    world = await _site(1, seed, 0)
    await world.buckets.set_replication("bbb", [{"target": "site2", "bodies": "on-demand"}], ADMIN)
    return world


async def _scenario(seed: int) -> Counter[str]:
    rng = random.Random(seed)
    link = Link(rng, lose=rng.choice((0.0, 0.05)))
    reader = await _site(2, seed + 1, 0)
    await reader.buckets.set_replication("bbb", [], ADMIN)
    pair = Pair(await _writer(seed), reader, link)
    seen: Counter[str] = Counter()
    try:
        for step in range(STEPS):
            act = rng.random()
            if step in (STEPS // 3, 3 * STEPS // 4):
                await pair.lose(seed + step)
                seen["losses"] += 1
            elif act < 0.20:
                for key in rng.sample(KEYS, 4):
                    await pair.writer.put(key, chunks=[pair.writer.chunk(100)])
                pair.worker.kick()
            elif act < 0.45:
                for key in KEYS:
                    seen["fetched"] += await pair.read(key)
            elif act < 0.50:
                link.cut = rng.choice((set(), set(), {"site1"}))
            elif act < 0.80:
                await reader.clock.sleep(rng.uniform(0.1, 20.0))
            else:
                before = await pair.only_here()
                seen["let go"] += (await pair.duty.step(1))[0] // 100
                seen["only here"] += len(before)
                gone = [
                    (key, version) for key, version in before - await pair.only_here()
                    if (await reader.look(key)).version == version      # else a newer one has just replaced it
                ]
                assert not gone, f"seed {seed}, step {step}: the only copies of {gone} went"
        return seen
    finally:
        await pair.close()


def test_what_is_nowhere_else_is_never_let_go_of() -> None:
    """Room on a disk is not worth the last copy; and room must be made wherever it can be."""
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        seen += virtual_time.run(seed, lambda _, s=seed: _scenario(s), simulation=True)  # type: ignore[misc]
    assert all(seen[name] for name in ("fetched", "losses", "let go", "only here")), seen
