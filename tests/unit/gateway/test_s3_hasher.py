"""Sums of bodies that come in pieces: the same as of the whole, whatever the pieces, and with buffers used again."""

from __future__ import annotations

import asyncio
import hashlib
import random
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from tierstore.gateway.s3.body import HASH_STEP_BYTES, INLINE_BYTES, Hasher

DATA = random.Random(8).randbytes(3 * HASH_STEP_BYTES + 17)


@pytest.mark.parametrize(
    "size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, HASH_STEP_BYTES - 1, HASH_STEP_BYTES, HASH_STEP_BYTES + 1, len(DATA)]
)
def test_sums_do_not_depend_on_the_pieces(size: int) -> None:
    """The pieces lie in one buffer that is overwritten after each call, as the gateway's is."""

    async def main() -> None:
        source = random.Random(size)
        with ThreadPoolExecutor(2) as threads:
            for _ in range(4):
                hasher = Hasher({"md5", "crc32"}, threads)
                at, received = 0, bytearray(2 * HASH_STEP_BYTES)
                while at < size:
                    count = min(source.randrange(1, len(received)), size - at)
                    received[:count] = DATA[at : at + count]
                    hasher.update(memoryview(received)[:count])
                    received[:] = bytes(len(received))
                    at += count
                    await asyncio.sleep(0)
                found = await hasher.finish()
                assert found == {
                    "md5": hashlib.md5(DATA[:size]).digest(), "crc32": zlib.crc32(DATA[:size]).to_bytes(4, "big"),
                }  # fmt: skip

    asyncio.run(main())


def test_uploads_side_by_side_do_not_share_a_buffer() -> None:
    """A step is another upload's only when its sums are done."""

    async def one(number: int, threads: ThreadPoolExecutor) -> None:
        source = random.Random(number)
        body = source.randbytes(HASH_STEP_BYTES * 2 + number)
        hasher = Hasher({"md5"}, threads)
        for at in range(0, len(body), 100_000):
            hasher.update(memoryview(body)[at : at + 100_000])
            await asyncio.sleep(0)
        assert (await hasher.finish())["md5"] == hashlib.md5(body).digest()

    async def main() -> None:
        with ThreadPoolExecutor(2) as threads:
            await asyncio.gather(*(one(number, threads) for number in range(40)))

    asyncio.run(main())
