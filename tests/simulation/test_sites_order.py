"""What goes to another site first, on virtual time with the production workers: names before bodies, though neither
waits for the other without end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from metadata.catalog import schema
from metadata.catalog.sites import SiteRow
from metadata.services.sites import send
from metadata.services.sites.compare import Comparison
from metadata.services.sites.hot import HotParts
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.send import TargetWorker
from metadata.services.sites.target import Parts
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import Carrier, Link, _site
from tierstore.wire.sites import NAME_GONE, FetchBatch, NameAnswer, NameBatch


class Listening(Carrier):
    """Remembers what went, in order: how many names, which bodies."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.said: list[int | list[str]] = []

    async def send(self, row: Any, path: str, message: Any, kind: type[Any], *, seconds: float) -> Any:
        if isinstance(message, NameBatch):
            self.said.append(len(message.names))
        elif isinstance(message, FetchBatch):
            self.said.append([item.key for item in message.items])
        return await super().send(row, path, message, kind, seconds=seconds)


@asynccontextmanager
async def _sending(
    hot: set[bytes], kind: type[Listening] | None = None
) -> AsyncIterator[tuple[NamesWorld, TargetWorker, Any]]:
    """A site that writes, and its worker for another one, not begun. hot: chunks that are read, the others are not."""
    worlds = [await _site(n + 1, n, 0) for n in range(2)]
    world = worlds[0]
    carrier = (kind or Listening)(Link(random.Random(1)), worlds[1], "site2", world)
    courier: Any = carrier
    parts = Parts(
        world.database, world.clock, courier, Known(rows=[SiteRow(2, "site2", [], [], {})]),
        lambda: Self("site1", 1, []), lambda chunks: [float(chunk in hot) for chunk in chunks], lambda: 1,
        Comparison(world.database, world.clock, courier, keep_ms=1 << 40), HotParts(),
    )  # fmt: skip
    try:
        yield world, TargetWorker(parts, "site2"), carrier
    finally:
        for each in worlds:
            await each.close()


class Parking(Listening):
    """The first word of a removed version is parked there, as by a clock that is a day behind."""

    parked = 0

    async def send(self, row: Any, path: str, message: Any, kind: type[Any], *, seconds: float) -> Any:
        if isinstance(message, NameBatch) and not self.parked and message.names[0].kind == NAME_GONE:
            self.parked = 1
            return NameAnswer(0, 0, [0])
        return await super().send(row, path, message, kind, seconds=seconds)


def test_a_removed_version_that_was_parked_is_said_again() -> None:
    """Nothing of it is here any more, so its row was taken for done: at the other site it stayed for good."""

    async def main() -> None:
        async with _sending(set(), Parking) as (world, worker, carrier):
            await world.buckets.configure("bbb", ADMIN, versioning="enabled")
            old = await world.put("k")
            await world.put("k")
            task = asyncio.get_running_loop().create_task(worker.run())
            while worker.status.bodies_sent < 2:
                await world.clock.sleep(0.1)
            await world.delete("k", version=old.version)
            worker.kick()
            far = carrier.target
            async with asyncio.timeout(600):
                while carrier.parked == 0 or worker.status.backlog.objects:
                    await world.clock.sleep(0.1)
            assert carrier.parked and [row.version for row in await far.rows(schema.versions)] == []
            assert len(await far.rows(schema.objects)) == 1
            await _ended(task)

    virtual_time.run(1, lambda _: main(), simulation=True)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_bodies_follow_at_once_while_clients_keep_writing() -> None:
    """Each write brings a name: were bodies to wait until none is under way, they would be away for as long as it goes
    on, and with them what a lost site leaves behind."""

    async def main() -> None:
        async with _sending(set()) as (world, worker, _):
            task = asyncio.get_running_loop().create_task(worker.run())
            late = 0
            for written in range(300):
                await world.put(f"k{written}")
                worker.kick()
                await world.clock.sleep(0.02)
                late = max(late, written - worker.status.bodies_sent)
            await _ended(task)
            assert worker.status.bodies_sent and late <= 100, f"{late} bodies were away, those of {late / 50} s"

    virtual_time.run(1, lambda _: main(), simulation=True)


def test_a_hot_body_goes_while_the_names_of_others_still_do_and_cold_ones_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a long queue the names alone take seconds: what is read most would wait for the names of the rest."""
    monkeypatch.setattr(send, "NAMES_PER_BATCH", 8)

    async def main() -> None:
        hot: set[bytes] = set()
        async with _sending(hot) as (world, worker, carrier):
            for number in range(400):
                chunk = world.chunk()
                await world.put(f"k{number:03}", chunks=[chunk])
                if number == 5:
                    hot.add(chunk.id)
            task = asyncio.get_running_loop().create_task(worker.run())
            while worker.status.bodies_sent < 400:
                await world.clock.sleep(0.1)
            await _ended(task)
            said = carrier.said
            names = [place for place, what in enumerate(said) if isinstance(what, int)]
            bodies = [(place, what) for place, what in enumerate(said) if isinstance(what, list)]
            assert sum(what for what in said if isinstance(what, int)) == 400
            first, keys = bodies[0]
            assert "k005" in keys and len([place for place in names if place > first]) > 20
            # the parcel of the hot one was filled up; whoever is not read waits until all names were sent
            assert all(place > names[-1] for place, _ in bodies[1:])
            arrived = [key for _, what in bodies for key in what]
            assert sorted(arrived) == sorted(set(arrived)) and len(arrived) == 400

    virtual_time.run(1, lambda _: main(), simulation=True)
