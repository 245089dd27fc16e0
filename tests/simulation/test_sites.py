"""Two sites on virtual time with the production workers between them: cuts both ways, restarts, repeated and lost
answers, clocks minutes apart. After the heal every key, version and byte count is the same on both, the winner is the
one with the largest id, and both queues are empty. A failure replays from its seed.

Names, queue, order, retries and marks are the real ones; of the bytes only their lengths travel.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa

from metadata.catalog import leases, schema, sites
from metadata.catalog.packed import unpack
from metadata.services.cluster.duties import PROMOTER
from metadata.services.sites import send
from metadata.services.sites.compare import Comparison
from metadata.services.sites.hot import HotParts
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import LoopClock
from tierstore.errors import UnavailableError
from tierstore.wire.names import Fill
from tierstore.wire.sites import FetchAnswer, FetchBatch, FetchResult, Hello, HelloAnswer, NameBatch

KEYS = [f"k{i}" for i in range(12)]
STEPS = 80
HEAL_SECONDS = 300


@dataclass
class Link:
    """The way between the sites; cut in one direction or both. lose: chance that an answer is lost after its work."""

    rng: random.Random
    cut: set[str] = field(default_factory=set)      # names of sites that nothing reaches
    lose: float = 0.0
    lost: int = 0
    refused: int = 0


class Carrier:
    """The courier of one site: carries to the other world, or not."""

    def __init__(self, link: Link, target: NamesWorld, name: str, source: NamesWorld) -> None:
        self._link, self.target, self._name, self._source = link, target, name, source
        self.heard: dict[str, tuple[int, int]] = {}

    async def send(self, row: Any, path: str, message: Any, kind: type[Any], *, seconds: float) -> Any:
        clock = self._source.clock
        await clock.sleep(self._link.rng.uniform(0.001, 0.2))
        if self._name in self._link.cut:
            self._link.refused += 1
            await clock.sleep(seconds)
            raise UnavailableError("cut off", code="unreachable")
        answer = await self._answer(path, message)
        if self._link.rng.random() < self._link.lose:
            self._link.lost += 1
            raise UnavailableError("the answer was lost", code="unreachable")
        return answer

    async def _answer(self, path: str, message: Any) -> Any:
        if isinstance(message, Hello):
            return HelloAnswer(self._name, 0, "", message.epoch, message.sequence)
        if isinstance(message, NameBatch):
            return await self.target.taker.take(message, message.site)
        assert isinstance(message, FetchBatch), path
        return FetchAnswer([await self._fetch(item) for item in message.items])

    async def _fetch(self, item: Any) -> FetchResult:
        found = await self.target.look(item.key, version=item.version)
        if found.code:
            return FetchResult(found.code, found.detail)
        if not found.is_remote:
            return FetchResult()
        chunks = [self.target.chunk(item.length)]
        made = await self.target.commit(
            Fill(item.bucket, item.key, item.version, item.first, chunks, item.is_cached)
        )
        if made[0].code == "already-here" and not item.is_cached:
            await self.target.commit(Fill(item.bucket, item.key, item.version, item.first, []))
            return FetchResult()
        return FetchResult(made[0].code if made[0].code != "already-here" else "", made[0].detail, item.length)


async def _site(number: int, seed: int, skew_ms: int) -> NamesWorld:
    world = await NamesWorld.open(
        "sqlite://", threads=False, seed=seed, clock=LoopClock(skew_ms=skew_ms), site=number
    )
    await world.buckets.create("bbb", ADMIN)
    await world.buckets.set_replication("bbb", [{"target": f"site{3 - number}"}], ADMIN)

    def lead(c: sa.Connection) -> None:
        row = {"name": PROMOTER, "holder": "here", "url": "", "epoch": 1, "until_ms": 1 << 60}
        leases.upsert(c, schema.leases, ["name"], row)

    await world.database.write(lead)
    return world


async def _state(world: NamesWorld) -> dict[str, tuple[int, int, int, int]]:
    """key -> (version, is marker, size, bytes that are here)."""
    return {
        row.key: (
            row.version, int(row.kind == schema.KIND_MARKER), row.size, sum(c.length for c in unpack(row.body or b""))
        )
        for row in await world.rows(schema.objects)
    }  # fmt: skip


async def _scenario(seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    worlds = [await _site(n + 1, seed + n, rng.choice((0, 0, 240_000, -600_000)) if n else 0) for n in range(2)]
    link = Link(rng, lose=rng.choice((0.0, 0.02, 0.1)))
    carriers = [Carrier(link, worlds[1 - n], f"site{2 - n}", worlds[n]) for n in range(2)]

    def begin(n: int) -> tuple[TargetWorker, asyncio.Task[None]]:
        """A worker as a metadata process starts it: what it knows is in the catalog alone."""
        other = f"site{2 - n}"
        known = Known(rows=[sites.SiteRow(2 - n, other, [], [], {})])
        courier: Any = carriers[n]
        comparison = Comparison(worlds[n].database, worlds[n].clock, courier, keep_ms=1 << 40)
        parts = Parts(
            worlds[n].database, worlds[n].clock, courier, known, lambda: Self(f"site{n + 1}", n + 1, []),
            lambda chunks: [float(chunk[-1]) for chunk in chunks], lambda: 1, comparison, HotParts(),
        )  # fmt: skip
        worker = TargetWorker(parts, other)
        return worker, asyncio.get_running_loop().create_task(worker.run())

    workers = [begin(n) for n in range(2)]
    newest: dict[str, int] = {}
    kills = 0
    try:
        for _ in range(STEPS):
            at, act, key = rng.randrange(2), rng.random(), rng.choice(KEYS)
            world = worlds[at]
            if act < 0.5:
                size = rng.choice((0, 100, 5000))
                made = await world.put(key, chunks=[world.chunk(size)] if size else [])
                newest[key] = max(newest.get(key, 0), made.version)
            elif act < 0.65:
                gone = await world.delete(key)
                newest[key] = max(newest.get(key, 0), gone.version if gone.existed else 0)
            elif act < 0.75:
                link.cut = rng.choice((set(), {"site1"}, {"site2"}, {"site1", "site2"}))
            elif act < 0.85:
                kills += 1
                workers[at][1].cancel()
                await asyncio.gather(workers[at][1], return_exceptions=True)
                workers[at] = begin(at)
            else:
                await world.clock.sleep(rng.uniform(0.1, 20.0))
            workers[at][0].kick()
        link.cut, link.lose = set(), 0.0
        queued = 1
        for _ in range(HEAL_SECONDS):
            await worlds[0].clock.sleep(1.0)
            backlogs = [
                await w.database.read(lambda c, n=n: sites.is_queue_longer(c, f"site{2 - n}", 0))  # type: ignore[misc]
                for n, w in enumerate(worlds)
            ]
            queued = sum(backlogs)
            if not queued:
                break
        assert not queued, f"seed {seed}: {backlogs} still wait, {[w.status for w, _ in workers]}"
        left, right = [await _state(world) for world in worlds]
        assert left == right, f"seed {seed}"
        assert {key: state[0] for key, state in left.items()} == {k: v for k, v in newest.items() if v}, f"seed {seed}"
        assert all(marker or size == here for _, marker, size, here in left.values()), f"seed {seed}: bytes are missing"
        return {"kills": kills, "refused": link.refused, "lost": link.lost}
    finally:
        for _, task in workers:
            task.cancel()
        await asyncio.gather(*(task for _, task in workers), return_exceptions=True)
        for world in worlds:
            await world.close()


@pytest.mark.parametrize("seed", range(20))
def test_cut_off_sites_end_equal_after_the_heal(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name lost in a cut, a mark that moved too early, a body dropped from the queue: each would show here. In every
    other seed the names take many messages, several of them under way."""
    if seed % 2:
        monkeypatch.setattr(send, "NAMES_PER_BATCH", 3)
    virtual_time.run(seed, lambda _: _scenario(seed), simulation=True)


def test_the_faults_of_all_seeds_together_are_many() -> None:
    """An empty run is no pass."""
    totals: dict[str, int] = {}
    for seed in (0, 3):
        for name, count in virtual_time.run(seed, lambda _, s=seed: _scenario(s), simulation=True).items():  # type: ignore[misc]
            totals[name] = totals.get(name, 0) + count
    assert totals["kills"] >= 5 and totals["refused"] >= 5, totals
