"""Which commits wait for other sites, and that all others do not wait with them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from metadata.routes.hot import HotRoutes, Revisions
from metadata.services.sites.sync import SyncWaits
from tests.kit.names_world import ADMIN, NamesWorld
from tierstore.clock import SystemClock
from tierstore.errors import UnavailableError
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.peer import PeerReply
from tierstore.wire import decode, encode
from tierstore.wire.names import UNDER_WAY, WAITED, CommitBatch, CommitReply, CommitResult, Delete


class _Exchange:
    """Takes one request; keeps what becomes of it."""

    peer = ""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.spawned = 0
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def header(self, name: bytes) -> bytes | None:
        return None

    def collect(self, limit: int, then: Callable[[bytes], None]) -> None:
        then(self._body)

    def spawn(self, work: Any) -> None:
        self.spawned += 1
        self.work = asyncio.ensure_future(work)

    def reply(self, status: int, body: bytes, lines: bytes) -> None:
        self.answered.set_result(body)

    def fail(self, error: Exception) -> None:
        self.answered.set_exception(error)


def test_commits_are_answered_without_a_task_where_only_other_buckets_have_a_sync_rule() -> None:
    """Each answer took a task as soon as any bucket had such a rule; what the commit woke went first."""

    async def main() -> None:
        w = await NamesWorld.open("sqlite://", threads=False)
        everybody = SimpleNamespace(
            caller_now=lambda _: ADMIN, sending=lambda caller, _: caller, behind_now=lambda caller, _: caller
        )
        try:
            for name in ("plain", "synced"):
                await w.buckets.create(name, ADMIN)
            nothing: Any = None
            members: Any = SimpleNamespace(sync_buckets={"synced"})
            routes: Any = HotRoutes(
                credentials=everybody, lookups=w.lookups, allocations=w.allocations,  # type: ignore[arg-type]
                commits=w.commits, listings=w.listings, uploads=w.uploads, clock=w.clock, report_bad=nothing,
                revisions=Revisions(lambda: 1, lambda: 1, lambda: 1),
            )  # fmt: skip
            routes.sync = SyncWaits(
                nothing, members, nothing, nothing, is_away=lambda _: False, wait_seconds=1
            )
            exchange = _Exchange(encode(CommitBatch([w.item(Delete("plain", "k"))])))
            routes.commit(exchange)
            assert [r.code for r in decode(await exchange.answered, CommitReply).results] == [""]
            assert exchange.spawned == 0
            assert routes.sync.holds_back([w.item(Delete("plain", "k")), w.item(Delete("synced", "k"))])
        finally:
            await w.close()

    asyncio.run(main())


def test_commits_of_other_buckets_do_not_wait_for_those_that_wait_for_another_site() -> None:
    """A gateway has few messages of commits under way at a time. Those of a sync rule whose site hangs took them all,
    and every write through that gateway waited with them."""

    class Metadata:
        """Answers at once but for the bucket whose site hangs."""

        hangs = False

        async def call(self, url: str, method: bytes, target: bytes, *, body: bytes, **_: Any) -> PeerReply:
            items = decode(body, CommitBatch).items
            is_far = any(item.mutation.bucket == "synced" for item in items)
            if is_far and self.hangs:
                await asyncio.Event().wait()
            results = [CommitResult(waits=WAITED if is_far else 0) for _ in items]
            return PeerReply(200, [], encode(CommitReply(results)))

    async def main() -> None:
        metadata: Any = Metadata()
        client = MetadataClient(metadata, ["http://m"], token="", clock=SystemClock(), rng=random.Random(1))
        client.refresh_map = lambda: None  # type: ignore[method-assign, assignment, return-value]
        await client.commit(Delete("synced", "k"))
        metadata.hangs = True
        waiting = []
        for number in range(12):
            waiting.append(asyncio.ensure_future(client.commit(Delete("synced", f"k{number}"), seconds=600)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await client.commit(Delete("plain", "k"), seconds=120)
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await client.close()

    asyncio.run(main())


def test_a_gateway_asks_as_long_as_it_is_under_way_and_not_again_when_it_failed() -> None:
    """It repeated a failure three times: who wrote under `fail` heard after 32 s what the rule says after 8."""

    class Metadata:
        asked = 0

        async def call(self, *_: Any, body: bytes, **__: Any) -> PeerReply:
            self.asked += 1
            waits = UNDER_WAY if self.asked < 20 else WAITED
            result = CommitResult(code="outcome-unknown", waits=waits)
            return PeerReply(200, [], encode(CommitReply([result for _ in decode(body, CommitBatch).items])))

    async def main() -> None:
        metadata: Any = Metadata()
        client = MetadataClient(metadata, ["http://m"], token="", clock=SystemClock(), rng=random.Random(1))
        with pytest.raises(UnavailableError) as told:
            await client.commit(Delete("synced", "k"), seconds=120)
        assert told.value.code == "outcome-unknown" and metadata.asked == 20
        await client.close()

    asyncio.run(main())


def test_what_is_asked_again_travels_apart_from_new_commits() -> None:
    """A message that brings something new is answered when that is: what waits with it would be asked all the time."""

    class Metadata:
        """Takes what is asked the third time."""

        def __init__(self) -> None:
            self.asked: dict[str, int] = {}
            self.messages: list[set[int]] = []

        async def call(self, *_: Any, body: bytes, **__: Any) -> PeerReply:
            keys = [item.mutation.key for item in decode(body, CommitBatch).items]
            for key in keys:
                self.asked[key] = self.asked.get(key, 0) + 1
            self.messages.append({min(self.asked[key], 2) for key in keys})
            await asyncio.sleep(0)
            results = [
                CommitResult(waits=WAITED) if self.asked[key] == 3
                else CommitResult(code="outcome-unknown", waits=UNDER_WAY) for key in keys
            ]
            return PeerReply(200, [], encode(CommitReply(results)))

    async def main() -> None:
        metadata: Any = Metadata()
        client = MetadataClient(metadata, ["http://m"], token="", clock=SystemClock(), rng=random.Random(1))
        client.refresh_map = lambda: None  # type: ignore[method-assign, assignment, return-value]
        await client.commit(Delete("synced", "first"))
        waiting = []
        for number in range(12):
            waiting.append(asyncio.ensure_future(client.commit(Delete("synced", f"k{number}"), seconds=120)))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        assert set(metadata.asked.values()) == {3}
        assert all(len(message) == 1 for message in metadata.messages)
        await client.close()

    asyncio.run(main())
