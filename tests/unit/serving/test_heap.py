"""Free memory between small pieces in use goes back to the system."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.kit.waits import until
from tierstore.serving.heap import given_back

PIECE_BYTES = 12 << 10
PIECES = 4000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_what_is_free_between_pieces_in_use_goes_back_to_the_system() -> None:
    async def main() -> None:
        pieces = [bytearray(os.urandom(PIECE_BYTES)) for _ in range(PIECES)]
        kept, full = pieces[::16], resident_bytes()
        del pieces
        async with given_back(every_seconds=0.01):
            await until(lambda: resident_bytes() < full - PIECES * PIECE_BYTES // 2)
        assert len(kept) == PIECES // 16

    asyncio.run(main())


def test_the_task_ends_with_its_block() -> None:
    async def names() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks()}

    async def main() -> None:
        async with given_back(every_seconds=3600):
            assert "heap" in await names()
        assert "heap" not in await names()

    asyncio.run(main())
