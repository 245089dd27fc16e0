"""The C library's heap of a daemon: what is free in it goes back to the system once a minute.

Owns one background task. Where the C library has no such call (musl), it does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator, Callable
from typing import Final

#: Between two times. Each takes a few milliseconds of a thread of its own, without the interpreter's lock.
GIVE_BACK_SECONDS: Final = 60.0
#: More than one, because SQLite and checksums allocate beside the interpreter; the default of eight for each processor
#: leaves each thread's free memory to that thread alone.
ARENAS: Final = 2
M_ARENA_MAX: Final = -8         # malloc.h


def share_arenas() -> None:
    """Few arenas for all threads, unless MALLOC_ARENA_MAX says something. Called before any thread is started."""
    if "MALLOC_ARENA_MAX" not in os.environ and (mallopt := _of_libc("mallopt")) is not None:
        mallopt(M_ARENA_MAX, ARENAS)


@contextlib.asynccontextmanager
async def given_back(every_seconds: float = GIVE_BACK_SECONDS) -> AsyncIterator[None]:
    """While this is open, free memory is given back to the system at this interval.

    The C library returns by itself only what is free at the end of its heap: behind steady writes a third of metadata's
    heap was free memory between small pieces in use (docs/adr/0760)."""
    trim = _of_libc("malloc_trim")
    if trim is None:
        yield
        return

    async def again() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(trim, 0)

    task = asyncio.create_task(again(), name="heap")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _of_libc(name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
