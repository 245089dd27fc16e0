"""The registration for the kernel's requests stays while workers come back for them, and goes while none does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Any

from tierstore.fuse.readable import Readable

PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_a_worker_that_comes_back_at_once_costs_no_new_registration() -> None:
    """It was taken out and put in again between any two requests: seven system calls for each."""

    async def main(reads: int, writes: int) -> None:
        loop: Any = asyncio.get_running_loop()
        registered: list[int] = []
        real = loop.add_reader
        loop.add_reader = lambda fd, *rest: (registered.append(fd), real(fd, *rest))
        readable = Readable()
        for number in range(50):
            os.write(writes, b"aa")     # the second request is there while the first one is answered
            for _ in range(2):
                await readable.wait(reads)
                assert len(os.read(reads, 1)) == 1
                await asyncio.sleep(0)
            assert registered == [reads], number
        readable.forget()

    with pipe() as (reads, writes):
        asyncio.run(asyncio.wait_for(main(reads, writes), PATIENCE_SECONDS))


def test_a_request_that_nobody_takes_does_not_turn_the_loop() -> None:
    """All workers are busy: the loop would run without pause beside them."""

    async def main(reads: int, writes: int) -> None:
        loop: Any = asyncio.get_running_loop()
        gone = asyncio.Event()
        real = loop.remove_reader
        loop.remove_reader = lambda fd: (gone.set(), real(fd))
        readable = Readable()
        os.write(writes, b"a")
        await readable.wait(reads)
        await gone.wait()               # and so nothing wakes the loop any more
        os.write(writes, b"b")
        await readable.wait(reads)
        assert os.read(reads, 2) == b"ab"
        readable.forget()

    with pipe() as (reads, writes):
        asyncio.run(asyncio.wait_for(main(reads, writes), PATIENCE_SECONDS))
