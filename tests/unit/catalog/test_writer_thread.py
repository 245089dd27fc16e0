"""The thread that commits: order, failures, waiters that give up, the end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from metadata.catalog.writer_thread import WriterThread


def test_work_is_done_in_order_in_one_other_thread() -> None:
    """Two commits at the same time, or in another order than they were begun, would break the catalog."""
    seen: list[tuple[int, int]] = []

    async def main() -> None:
        writer = WriterThread("w")
        found = await asyncio.gather(
            *(writer.run(lambda n=n: seen.append((n, threading.get_ident())) or n) for n in range(100))  # type: ignore[misc, func-returns-value]
        )
        assert found == list(range(100))
        writer.close()

    asyncio.run(main())
    assert [number for number, _ in seen] == list(range(100))
    assert {ident for _, ident in seen}.isdisjoint({threading.get_ident()}) and len({i for _, i in seen}) == 1


def test_what_work_raises_is_raised_to_its_waiter_alone() -> None:
    """A full disk must reach who waits, and the thread must go on for the next."""

    def fail() -> None:
        raise OSError(28, "no room")

    async def main() -> None:
        writer = WriterThread("w")
        with pytest.raises(OSError, match="no room"):
            await writer.run(fail)
        assert await writer.run(lambda: 7) == 7
        writer.close()

    asyncio.run(main())


def test_work_given_up_before_its_turn_is_not_begun() -> None:
    """Its transaction was rolled back: it would write outside of one."""
    done: list[str] = []

    async def main() -> None:
        writer, go_on = WriterThread("w"), threading.Event()
        first = writer.run(lambda: go_on.wait(60))
        second = writer.run(lambda: done.append("second"))
        second.cancel()
        go_on.set()
        assert await first
        await writer.run(lambda: done.append("third"))
        writer.close()

    asyncio.run(main())
    assert done == ["third"]


def test_close_waits_for_what_was_handed_over() -> None:
    """An orderly stop loses no commit that was begun."""
    done: list[int] = []

    async def main() -> None:
        writer = WriterThread("w")
        kept = [writer.run(lambda n=n: done.append(n)) for n in range(50)]  # type: ignore[misc]
        writer.close()
        writer.close()
        assert done == list(range(50))
        await asyncio.gather(*kept)

    asyncio.run(main())
