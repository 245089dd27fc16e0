"""Waits of sync rules, on virtual time: what a gateway asks again belongs to the delivery that is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from metadata.catalog.sites import SiteRow
from metadata.services.sites.ahead import AheadReader
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.sync import SYNC_SECONDS, SyncWaits
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import _site
from tierstore.transport.metadata_calls import MetadataLimits
from tierstore.wire.names import CommitResult, Delete
from tierstore.wire.sites import PushAnswer

ATTEMPT_SECONDS = MetadataLimits().attempt_seconds


class FarSite:
    """Takes what is pushed after some seconds."""

    def __init__(self, world: NamesWorld, seconds: float) -> None:
        self.seconds = seconds
        self.pushed = 0
        self._clock = world.clock
        self.read_from_servers = 0

    async def send(self, *_: Any, **__: Any) -> PushAnswer:
        self.pushed += 1
        await self._clock.sleep(self.seconds)
        return PushAnswer()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        yield

    async def read(self, *_: Any, first: int, length: int) -> bytes:
        self.read_from_servers += 1
        return bytes(length)

    async def read_packed(self, body: bytes, size: int, *, first: int, length: int) -> bytes:
        self.read_from_servers += 1
        return bytes(length)


def _waits(world: NamesWorld, far: FarSite) -> SyncWaits:
    known = Known(rows=[SiteRow(2, "site2", [], [], {})])
    parts: Any = SimpleNamespace(database=world.database, me=lambda: Self("site1", 1, []))
    members: Any = SimpleNamespace(known=known, courier=far, sync_buckets={"bbb"})
    body: Any = far
    ahead = AheadReader(body, world.commits.reads.receipts_of)
    return SyncWaits(parts, members, body, ahead, is_away=lambda _: False)


async def _attempt(world: NamesWorld, waits: SyncWaits, made: CommitResult) -> str | None:
    """One of a gateway's: the code it hears, None when it hears nothing in its time."""
    item = world.item(Delete("bbb", "k"))       # of the mutation its bucket and key count
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            return (await waits.confirm([item], [made]))[0].code
    except TimeoutError:
        return None


@pytest.mark.parametrize(
    ("on_failure", "seconds", "code"), [("fail", 6.0, ""), ("fail", 60.0, "outcome-unknown"), ("degrade", 60.0, "")]
)
def test_a_gateway_that_asks_again_waits_for_the_delivery_that_is_under_way(
    on_failure: str, seconds: float, code: str
) -> None:
    """A far site that hangs, or a body that takes longer than an attempt: begun anew each time it would never arrive,
    and what the rule says of a failure would never be said, nor counted."""
    assert ATTEMPT_SECONDS < SYNC_SECONDS < 2 * ATTEMPT_SECONDS

    async def main() -> None:
        world = await _site(1, 1, 0)
        try:
            rules = [{"target": "site2", "mode": "sync", "on_failure": on_failure}]
            await world.buckets.set_replication("bbb", rules, ADMIN)
            far = FarSite(world, seconds)
            waits = _waits(world, far)
            made = await world.put("k")
            assert await _attempt(world, waits, made) is None
            assert await _attempt(world, waits, made) == code
            assert (far.pushed, waits.waits) == (1, 1)
            assert waits.failed == (code != "") and waits.degraded == (on_failure == "degrade")
            assert await _attempt(world, waits, made) is None and far.pushed == 2      # a later one is a new delivery
            await waits.close()
        finally:
            await world.close()

    virtual_time.run(1, lambda _: main(), simulation=True)
