"""The metadata client: coalescing, retries over a restart, revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.sdk.fake_cluster import METADATA_URL, FakeCluster, hang
from tierstore.errors import NotFound, TierstoreError, UnavailableError
from tierstore.transport.batches import BatchLane, Waiter
from tierstore.transport.metadata_client import MetadataClient
from tierstore.wire.cluster import BadChunk, Heartbeat
from tierstore.wire.names import Delete, LookupItem, Put


def run(work: Callable[[FakeCluster, MetadataClient], Awaitable[None]], **limits: float) -> None:
    async def main() -> None:
        cluster = FakeCluster()
        client = cluster.client(**limits)
        async with asyncio.timeout(180):
            try:
                await work(cluster, client)
            finally:
                await client.close()
                await cluster.close()

    asyncio.run(main())


def test_items_that_arise_while_batches_are_under_way_share_the_next_one() -> None:
    """Two batches under way at most; the rest waits together. No timer delays anybody."""

    async def main() -> None:
        gates: list[asyncio.Future[None]] = []
        sizes: list[int] = []

        async def send(batch: list[Waiter[int, int]]) -> list[int]:
            sizes.append(len(batch))
            gates.append(asyncio.get_running_loop().create_future())
            await gates[-1]
            return [waiter.item * 10 for waiter in batch]

        lane: BatchLane[int, int] = BatchLane("test", send)  # type: ignore[arg-type]
        futures = [lane.submit(0, 5)]
        await asyncio.sleep(0.01)
        futures.append(lane.submit(1, 5))
        await asyncio.sleep(0.01)
        futures += [lane.submit(number, 5) for number in range(2, 50)]
        await asyncio.sleep(0.01)
        assert sizes == [1, 1]
        gates[0].set_result(None)
        await futures[0]
        await asyncio.sleep(0.01)
        assert sizes == [1, 1, 48]
        for gate in gates[1:]:
            gate.set_result(None)
        assert await asyncio.gather(*futures) == [number * 10 for number in range(50)]
        await lane.close()

    asyncio.run(main())


def test_what_is_asked_alone_needs_no_task_and_holds_up_nobody() -> None:
    """One program that waits for each answer: its item leaves at once, in its own task. What others ask meanwhile goes
    together, as ever, also when the first one is given up or fails."""

    async def main() -> None:
        gates: list[asyncio.Future[None]] = []
        sent: list[list[int]] = []
        senders: list[asyncio.Task[object] | None] = []

        async def send(batch: list[Waiter[int, int]]) -> list[int]:
            sent.append([waiter.item for waiter in batch])
            senders.append(asyncio.current_task())
            gates.append(asyncio.get_running_loop().create_future())
            await gates[-1]
            return [waiter.item * 10 for waiter in batch]

        lane: BatchLane[int, int] = BatchLane("test", send, depth=1)  # type: ignore[arg-type]
        first = asyncio.create_task(lane.ask(1, 5))
        await asyncio.sleep(0)
        assert sent == [[1]] and senders == [first]
        others = [asyncio.create_task(lane.ask(number, 5)) for number in (2, 3)]
        await asyncio.sleep(0.01)
        assert sent == [[1]] and not lane.is_idle
        gates[0].set_result(None)
        assert await first == 10
        await asyncio.sleep(0.01)
        assert sent == [[1], [2, 3]]
        gates[1].set_result(None)
        assert await asyncio.gather(*others) == [20, 30]
        given_up = asyncio.create_task(lane.ask(4, 5))
        await asyncio.sleep(0)
        last = asyncio.create_task(lane.ask(5, 5))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        await asyncio.sleep(0.01)
        assert sent[2:] == [[4], [5]]
        gates[3].set_exception(UnavailableError("away"))
        with pytest.raises(UnavailableError, match="away"):
            await last
        assert lane.is_idle
        under_way = asyncio.create_task(lane.ask(6, 5))
        await asyncio.sleep(0)
        await lane.close()
        with pytest.raises(UnavailableError, match="shutting down"):
            await under_way
        with pytest.raises(UnavailableError, match="closed"):
            await lane.ask(7, 5)

    asyncio.run(main())


def test_what_waits_behind_a_batch_that_hangs_leaves_after_its_patience() -> None:
    """One batch at a time makes the batches large; a commit that waits for another site must not stop all others."""

    async def main() -> None:
        gates: list[asyncio.Future[None]] = []
        batches: list[list[int]] = []
        came = asyncio.Condition()

        async def send(batch: list[Waiter[int, int]]) -> list[int]:
            gate = asyncio.get_running_loop().create_future()
            gates.append(gate)
            async with came:
                batches.append([waiter.item for waiter in batch])
                came.notify_all()
            await gate
            return [waiter.item for waiter in batch]

        async def sent(count: int) -> None:
            async with asyncio.timeout(60), came:
                await came.wait_for(lambda: len(batches) == count)

        lane: BatchLane[int, int] = BatchLane(
            "test", send, depth=3, eager=1, items_max=2, patience_seconds=0.01  # type: ignore[arg-type]
        )
        futures = [lane.submit(0, 120)]
        await sent(1)
        futures += [lane.submit(number, 120) for number in range(1, 8)]
        await sent(3)       # two more left, one after the other; the rest waits, for three are the bound
        assert batches == [[0], [1, 2], [3, 4]]
        gates[0].set_result(None)
        gates[1].set_result(None)
        gates[2].set_result(None)
        await sent(4)
        gates[3].set_result(None)
        await sent(5)
        gates[4].set_result(None)
        assert await asyncio.gather(*futures) == list(range(8))
        assert batches[3:] == [[5, 6], [7]]
        await lane.close()

    asyncio.run(main())


def test_an_item_whose_time_is_up_behind_a_hung_batch_fails() -> None:
    """No await without a deadline, also in a queue."""

    async def main() -> None:
        async def send(batch: list[Waiter[int, int]]) -> list[int]:
            await hang()
            return []

        lane: BatchLane[int, int] = BatchLane("test", send, depth=1)  # type: ignore[arg-type]
        first = lane.submit(0, 30)
        await asyncio.sleep(0.01)
        late = lane.submit(1, 0.1)
        with pytest.raises(UnavailableError) as caught:
            await late
        assert caught.value.code == "deadline"
        await lane.close()
        with pytest.raises((UnavailableError, asyncio.CancelledError)):
            await first

    asyncio.run(main())


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        async def send(batch: list[Waiter[int, int]]) -> list[int]:
            await hang()
            return []

        lane: BatchLane[int, int] = BatchLane("test", send, depth=1, waiting_max=2)  # type: ignore[arg-type]
        lane.submit(0, 5)
        await asyncio.sleep(0.01)
        lane.submit(1, 5)
        lane.submit(2, 5)
        with pytest.raises(UnavailableError):
            lane.submit(3, 5)
        await lane.close()

    asyncio.run(main())


def test_64_lookups_at_once_travel_in_few_batches() -> None:
    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        results = await asyncio.gather(
            *(client.lookup(LookupItem("bkt", f"k{n}")) for n in range(64)), return_exceptions=True
        )
        assert all(isinstance(result, NotFound) for result in results)
        assert cluster.metadata.batches == [("lookup", 64)]

    run(work)


def test_each_item_of_a_batch_has_its_own_result() -> None:
    """One bad item must not fail its neighbours."""

    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        made, missing = await asyncio.gather(
            client.commit(Put("bkt", "k", 0, "e", [])), client.commit(Put("none", "k", 0, "e", [])),
            return_exceptions=True,
        )  # fmt: skip
        assert not isinstance(made, BaseException)
        assert made.etag == "e"
        assert isinstance(missing, NotFound)

    run(work)


def test_a_request_is_held_while_metadata_is_away() -> None:
    """A restart of metadata fails no request that can wait for it."""

    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        serving = cluster.network.servers[METADATA_URL]
        cluster.network.remove(METADATA_URL)
        waiting = asyncio.create_task(client.commit(Put("bkt", "k", 0, "e", [])))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        cluster.network.register(METADATA_URL, serving)
        assert (await waiting).etag == "e"

    run(work, hold_seconds=5.0)


def test_metadata_away_for_longer_is_unavailable_and_a_commit_says_that_it_does_not_know() -> None:
    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        cluster.network.remove(METADATA_URL)
        with pytest.raises(UnavailableError) as caught:
            await client.lookup(LookupItem("bkt", "k"))
        assert caught.value.code == "metadata-unreachable"
        with pytest.raises(UnavailableError) as caught:
            await client.commit(Delete("bkt", "k"))
        assert caught.value.code == "outcome-unknown"

    run(work, hold_seconds=0.2)


def test_a_new_revision_of_the_map_is_fetched_once() -> None:
    """Answers carry the revision: thousands of them must not cause thousands of fetches."""

    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        await client.cluster_map()
        fetched: list[int] = []
        client.on_map_change.append(lambda fresh: fetched.append(fresh.revision))
        flushes: list[int] = []
        client.on_auth_change.append(lambda: flushes.append(1))
        cluster.metadata.revision = 7
        cluster.metadata.auth_revision = 9
        for _ in range(5):
            with pytest.raises(TierstoreError):
                await client.lookup(LookupItem("bkt", "k"))
        async with asyncio.timeout(60):
            while not fetched:
                await asyncio.sleep(0.01)
        assert (fetched, flushes) == ([7], [1])
        assert client.map is not None
        assert client.map.revision == 7

    run(work)


def test_a_gateway_without_requests_learns_of_a_new_revision_by_its_heartbeat() -> None:
    """Only answers to requests told of it: the first write after a quiet night went where the policy of the evening
    before said, home in place of the fast tier."""

    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        await client.cluster_map()
        fetched: list[int] = []
        client.on_map_change.append(lambda fresh: fetched.append(fresh.revision))
        cluster.metadata.revision = 7
        for sequence in (1, 2, 3):
            await client.heartbeat(Heartbeat(1, 1, sequence))
        async with asyncio.timeout(180):
            while not fetched:
                await asyncio.sleep(0.01)
        await client.heartbeat(Heartbeat(1, 1, 4))
        assert fetched == [7]

    run(work)


def test_bad_copies_are_reported_together_and_once() -> None:
    async def work(cluster: FakeCluster, client: MetadataClient) -> None:
        for _ in range(100):
            client.report_bad(BadChunk(b"c" * 16, 10, "bad-block"))
            client.report_bad(BadChunk(b"c" * 16, 20, "missing"))
        async with asyncio.timeout(60):
            while not cluster.metadata.bad:
                await asyncio.sleep(0.01)
        assert sorted(bad.device for bad in cluster.metadata.bad) == [10, 20]

    run(work)
