"""Closed files that nobody waits for: each is committed, tried again, or given up with a word."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.kit.waits import until
from tierstore.errors import AccessDenied, UnavailableError
from tierstore.files import behind
from tierstore.files.behind import FILES_MAX, ROUND_MAX, Behind
from tierstore.files.node import Node
from tierstore.wire.files import Attributes

#: Far more than any of it takes.
PATIENCE_SECONDS = 60.0


def node_of(number: int) -> Node:
    return Node(number, Attributes(number, 0o100644), names=[(1, f"file{number}")])


async def given_up_never(node: Node) -> None:
    raise AssertionError(f"{node.ino} was given up")


def run(work: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(behind, "GATHER_SECONDS", 0.01)

    async def main() -> None:
        async with asyncio.timeout(2 * PATIENCE_SECONDS):
            await work()

    asyncio.run(main())


def test_every_file_is_committed_many_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side is what shares messages and transactions; one file must never be committed twice at a time."""

    async def work() -> None:
        times: Counter[int] = Counter()
        under_way: set[int] = set()
        most = 0

        async def commit(node: Node) -> None:
            nonlocal most
            assert node.ino not in under_way
            under_way.add(node.ino)
            most = max(most, len(under_way))
            await asyncio.sleep(0)
            under_way.discard(node.ino)
            times[node.ino] += 1

        files = Behind(commit, given_up_never)
        task = asyncio.create_task(files.run())
        for number in range(1000):
            await files.add(node_of(number))
        # a file is counted a moment before the round that committed it ends
        await until(lambda: files.committed == 1000 and files.waiting == 0)
        task.cancel()
        assert set(times) == set(range(1000)) and set(times.values()) == {1}
        assert 1 < most <= ROUND_MAX

    run(work, monkeypatch)


def test_what_may_pass_is_tried_again_and_refusals_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is away for a minute costs nothing; a file that may not be written must not be tried for ever."""

    async def work() -> None:
        tries: Counter[int] = Counter()
        lost: list[int] = []

        async def commit(node: Node) -> None:
            tries[node.ino] += 1
            if node.ino == 1 and tries[1] < 4:
                raise UnavailableError("no server answers")
            if node.ino == 2:
                raise AccessDenied("the key was taken back")
            if node.ino == 3 and tries[3] < 2:
                raise RuntimeError("a bug")

        async def give_up(node: Node) -> None:
            lost.append(node.ino)

        files = Behind(commit, give_up)
        task = asyncio.create_task(files.run())
        for number in range(5):
            await files.add(node_of(number))
        await until(lambda: files.committed == 4 and files.given_up == 1)
        task.cancel()
        assert lost == [2]
        assert tries == {0: 1, 1: 4, 2: 1, 3: 2, 4: 1}

    run(work, monkeypatch)


def test_a_close_waits_when_too_many_files_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of what a mount that dies may lose, and of its memory beside the bytes."""

    async def work() -> None:
        gate = asyncio.Event()

        async def commit(node: Node) -> None:
            await gate.wait()

        files = Behind(commit, given_up_never)
        task = asyncio.create_task(files.run())

        async def close_all() -> None:
            for number in range(FILES_MAX + ROUND_MAX + 1):
                await files.add(node_of(number))

        closing = asyncio.create_task(close_all())
        await until(lambda: files.waiting == FILES_MAX)
        assert not closing.done()
        gate.set()
        await closing
        await until(lambda: files.committed == FILES_MAX + ROUND_MAX + 1)
        task.cancel()

    run(work, monkeypatch)


def test_a_close_that_finds_no_room_is_told_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is gone must end in an error, not in a program that hangs for ever."""
    monkeypatch.setattr(behind, "ROOM_SECONDS", 0.05)

    async def work() -> None:
        async def commit(node: Node) -> None:
            raise UnavailableError("the cluster is away")

        files = Behind(commit, given_up_never)
        for number in range(FILES_MAX):
            await files.add(node_of(number))
        with pytest.raises(UnavailableError, match="is the cluster there"):
            await files.add(node_of(FILES_MAX))
        await files.add(node_of(1))     # one that waits already needs no room
        assert files.waiting == FILES_MAX

    run(work, monkeypatch)


def test_a_file_written_again_in_its_round_goes_back_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end of the round makes room: were it waited for inside, nothing would ever be committed again."""
    monkeypatch.setattr(behind, "ROOM_SECONDS", 10 * PATIENCE_SECONDS)

    async def work() -> None:
        again = set(range(ROUND_MAX))

        async def commit(node: Node) -> None:
            if node.ino in again:
                again.discard(node.ino)
                for number in range(FILES_MAX - files.waiting):      # others took the room meanwhile
                    await files.add(node_of(10_000 + number))
                await files.add(node)

        files = Behind(commit, given_up_never)
        for number in range(ROUND_MAX):
            await files.add(node_of(number))
        task = asyncio.create_task(files.run())
        await until(lambda: not files.waiting and not again, PATIENCE_SECONDS)
        task.cancel()
        assert files.committed >= FILES_MAX - ROUND_MAX

    run(work, monkeypatch)


def test_no_more_wait_than_may_while_the_cluster_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round takes some out and puts them back: what comes meanwhile must not take their places."""
    monkeypatch.setattr(behind, "ROOM_SECONDS", 10 * PATIENCE_SECONDS)

    async def work() -> None:
        tries, most = 0, 0

        async def commit(node: Node) -> None:
            nonlocal tries, most
            tries += 1
            await asyncio.sleep(0)
            most = max(most, files.waiting)
            raise UnavailableError("the cluster is away")

        files = Behind(commit, given_up_never)
        round_task = asyncio.create_task(files.run())
        adding = [asyncio.create_task(files.add(node_of(number))) for number in range(FILES_MAX + 3 * ROUND_MAX)]
        await until(lambda: tries > 5 * ROUND_MAX, PATIENCE_SECONDS)
        for task in (round_task, *adding):
            task.cancel()
        await asyncio.gather(round_task, *adding, return_exceptions=True)
        assert most <= FILES_MAX and files.waiting <= FILES_MAX
        assert sum(task.cancelled() for task in adding) == 3 * ROUND_MAX

    run(work, monkeypatch)
