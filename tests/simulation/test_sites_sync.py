"""Waits of sync rules, on virtual time: what a gateway asks again belongs to the delivery that is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from metadata.catalog import schema
from metadata.catalog.sites import SiteRow
from metadata.services.sites.ahead import AheadReader
from metadata.services.sites.registry import Known, Self
from metadata.services.sites.sync import SYNC_SECONDS, SyncWaits
from tests.kit import virtual_time
from tests.kit.names_world import ADMIN, NamesWorld
from tests.simulation.test_sites import _site
from tierstore.transport.metadata_calls import MetadataLimits
from tierstore.wire.names import UNDER_WAY, WAITED, CommitResult, Condition, Delete, Put
from tierstore.wire.sites import PushAnswer

ATTEMPT_SECONDS = MetadataLimits().attempt_seconds


class FarSite:
    """Takes what is pushed after some seconds, of which it shows each one if it moves."""

    def __init__(self, world: NamesWorld, seconds: float, *, moves: bool = False) -> None:
        self.seconds = seconds
        self.moves = moves
        self.pushed = 0
        self.heard: list[bytes] = []
        self._clock = world.clock
        self.read_from_servers = 0

    async def send(self, *args: Any, moved: Callable[[], None], **_: Any) -> PushAnswer:
        self.pushed += 1
        self.heard.append(args[2].data)
        for _ in range(int(self.seconds)):
            await self._clock.sleep(1)
            if self.moves:
                moved()
        return PushAnswer()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        yield

    async def read(self, *_: Any, first: int, length: int) -> bytes:
        self.read_from_servers += 1
        return bytes(length)

    async def read_packed(self, body: bytes, size: int, *, first: int, length: int) -> bytes:
        self.read_from_servers += 1
        return b"a" * length


def _waits(world: NamesWorld, far: FarSite, *, wait_seconds: float = 300.0) -> SyncWaits:
    known = Known(rows=[SiteRow(2, "site2", [], [], {}), SiteRow(1, "site1", [], [], {})])
    parts: Any = SimpleNamespace(database=world.database, me=lambda: Self("site1", 1, []))
    members: Any = SimpleNamespace(known=known, courier=far, sync_buckets={"bbb"})
    body: Any = far
    ahead = AheadReader(body, world.commits.reads.receipts_of)
    return SyncWaits(parts, members, body, ahead, is_away=lambda _: False, wait_seconds=wait_seconds)


def _on_a_site(test: Callable[[NamesWorld], Awaitable[None]], *, on_failure: str = "fail") -> None:
    async def main() -> None:
        world = await _site(1, 1, 0)
        try:
            rules = [{"target": "site2", "mode": "sync", "on_failure": on_failure}]
            await world.buckets.set_replication("bbb", rules, ADMIN)
            await test(world)
        finally:
            await world.close()

    virtual_time.run(1, lambda _: main(), simulation=True)


async def _attempt(world: NamesWorld, waits: SyncWaits, made: CommitResult) -> CommitResult:
    """What a gateway hears, in time."""
    item = world.item(Delete("bbb", "k"))       # of the mutation its bucket and key count
    async with asyncio.timeout(ATTEMPT_SECONDS):
        return (await waits.confirm([item], [made]))[0]


async def _asked_on(world: NamesWorld, waits: SyncWaits, made: CommitResult) -> CommitResult:
    """What it hears in the end."""
    answer = await _attempt(world, waits, made)
    while answer.waits == UNDER_WAY:
        assert answer.code == "outcome-unknown"     # what a gateway of the release before makes of it
        answer = await _attempt(world, waits, made)
    return answer


@pytest.mark.parametrize(
    ("on_failure", "seconds", "code"), [("fail", 6.0, ""), ("fail", 60.0, "outcome-unknown"), ("degrade", 60.0, "")]
)
def test_a_gateway_that_asks_again_waits_for_the_delivery_that_is_under_way(
    on_failure: str, seconds: float, code: str
) -> None:
    """A far site that hangs, or a body that takes longer than an attempt: begun anew each time it would never arrive,
    and what the rule says of a failure would never be said, nor counted."""

    async def test(world: NamesWorld) -> None:
        far = FarSite(world, seconds)
        waits = _waits(world, far)
        made = await world.put("k")
        answer = await _asked_on(world, waits, made)
        assert (answer.code, answer.waits) == (code, WAITED)
        assert (far.pushed, waits.waits) == (1, 1)
        assert waits.failed == (code != "") and waits.degraded == (on_failure == "degrade")
        again = await _attempt(world, waits, made)      # a later one: of what failed it is a new delivery
        assert (again.waits, far.pushed) == ((WAITED, 1) if seconds < SYNC_SECONDS else (UNDER_WAY, 2))
        await waits.close()

    _on_a_site(test, on_failure=on_failure)


def test_who_has_an_answer_does_not_wait_for_others_of_its_message() -> None:
    """A write whose site had it, or that was let go on without it, waited 3 s when a gateway had packed it with one
    whose site hung."""

    class TwoSites(FarSite):
        """site1 takes what it is sent in 0.1 s; site2 hangs."""

        async def send(self, *args: Any, moved: Callable[[], None], **_: Any) -> PushAnswer:
            self.pushed += 1
            await self._clock.sleep(0.1 if args[0].name == "site1" else 1000)
            return PushAnswer()

    async def test(world: NamesWorld) -> None:
        rules = [
            {"target": target, "prefix": prefix, "mode": "sync", "on_failure": "fail"}
            for target, prefix in (("site1", "near/"), ("site2", "hung/"))
        ]
        await world.buckets.set_replication("bbb", rules, ADMIN)
        far = TwoSites(world, 0.0)
        waits = _waits(world, far)
        keys = ["near/k", "hung/k"]
        made = [await world.put(key) for key in keys]
        items = [world.item(Delete("bbb", key)) for key in keys]
        began = world.clock.monotonic()
        answers = await waits.confirm(items, made)
        assert [(answer.code, answer.waits) for answer in answers] == [("", WAITED), ("outcome-unknown", UNDER_WAY)]
        assert world.clock.monotonic() - began < 1.0    # of virtual time
        while (answer := (await waits.confirm(items[1:], made[1:]))[0]).waits == UNDER_WAY:
            pass
        assert (answer.code, waits.failed, far.pushed) == ("outcome-unknown", 1, 2)
        assert SYNC_SECONDS <= world.clock.monotonic() - began < SYNC_SECONDS + 1

    _on_a_site(test)


def test_a_body_that_moves_is_waited_for_and_one_that_moves_without_end_is_not() -> None:
    """64 MiB on a slow link are no failure: only what stands still is, or takes longer than the operator allows."""

    async def test(world: NamesWorld) -> None:
        far = FarSite(world, 100.0, moves=True)
        waits = _waits(world, far)
        answer = await _asked_on(world, waits, await world.put("k"))
        assert (answer.code, answer.waits, far.pushed, waits.failed) == ("", WAITED, 1, 0)
        bounded = _waits(world, far, wait_seconds=30.0)
        answer = await _asked_on(world, bounded, await world.put("k"))
        assert answer.code == "outcome-unknown" and "after 30 s" in answer.detail
        await bounded.close()

    _on_a_site(test)


def test_a_body_under_way_is_left_alone_by_the_queue_however_long_it_takes() -> None:
    """Two seconds were left to a push; of a body that took longer the queue sent every byte a second time beside it."""

    async def test(world: NamesWorld) -> None:
        waits = _waits(world, FarSite(world, 100.0, moves=True))
        made = await world.put("k")
        bucket_id = (await world.rows(schema.buckets))[0].id
        asking = asyncio.ensure_future(_asked_on(world, waits, made))
        await world.clock.sleep(50)
        assert waits.is_under_way("site2", bucket_id, "k", made.version)
        await asking
        assert not waits.is_under_way("site2", bucket_id, "k", made.version)
        assert waits.is_delivered("site2", bucket_id, "k", made.version)

    _on_a_site(test)


def test_a_body_is_read_beside_its_commit_and_only_what_was_committed_is_sent() -> None:
    """Before the commit there are receipts of which nothing is checked."""

    async def test(world: NamesWorld) -> None:
        far = FarSite(world, 0.0)
        waits = _waits(world, far)
        item, refused = (
            world.item(Put("bbb", "k", 100, "", [world.chunk(100)], condition=condition))
            for condition in (None, Condition(if_match=["another"]))
        )
        with waits.read_ahead([item, refused]) as ahead:
            results = await world.commits.commit([(item, ADMIN), (refused, ADMIN)])
            answers = await waits.confirm([item, refused], results, ahead)
        assert [answer.code for answer in answers] == ["", "precondition-failed"]
        assert far.heard == [b"a" * 100] and far.read_from_servers == 2

        other = world.item(Put("bbb", "k", 100, "", [world.chunk(100)]))
        with waits.read_ahead([item]) as ahead:     # of other bytes than those that are committed
            results = await world.commits.commit([(other, ADMIN)])
            assert [answer.code for answer in await waits.confirm([other], results, ahead)] == [""]
        assert far.heard == [b"a" * 100, bytes(100)]

    _on_a_site(test)
