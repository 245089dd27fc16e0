"""Sums of bodies that come in pieces: the same as of the whole, whatever the pieces, and with buffers used again."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
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


def test_bytes_that_are_shown_are_summed_where_they_lie() -> None:
    """What is summed beside the sending of a chunk is the body, in order, however it is cut; `seen` is the leave to use
    the memory again, so it must not come before the sums are done."""

    async def main() -> None:
        with ThreadPoolExecutor(2) as threads:
            hasher = Hasher({"md5", "crc32"}, threads)
            memory = bytearray(DATA)
            cuts = [0, 1, HASH_STEP_BYTES, HASH_STEP_BYTES + 5, len(DATA)]
            for begin, end in itertools.pairwise(cuts):
                hasher.show(memoryview(memory)[begin:end])
            await hasher.seen(HASH_STEP_BYTES)
            memory[:HASH_STEP_BYTES] = bytes(HASH_STEP_BYTES)
            waiting = asyncio.create_task(hasher.seen(len(DATA)))
            await asyncio.sleep(0)
            waiting.cancel()            # an upload that was given up waits for nothing, and disturbs nobody
            await asyncio.gather(waiting, return_exceptions=True)
            await hasher.seen(len(DATA))
            memory[:] = bytes(len(DATA))
            assert await hasher.finish() == {
                "md5": hashlib.md5(DATA).digest(), "crc32": zlib.crc32(DATA).to_bytes(4, "big"),
            }  # fmt: skip

    asyncio.run(main())


@pytest.mark.parametrize("is_shown", [True, False])
def test_sums_that_failed_in_the_thread_are_no_sums(monkeypatch: pytest.MonkeyPatch, is_shown: bool) -> None:
    """A digest of a part of the body would become the ETag of an object that is committed."""

    class Failing:
        def update(self, data: object) -> None:
            raise MemoryError

        def digest(self) -> bytes:
            return bytes(16)

    monkeypatch.setattr("tierstore.gateway.s3.checksums.new", lambda _: Failing())

    async def main() -> None:
        with ThreadPoolExecutor(1) as threads:
            hasher = Hasher({"md5"}, threads)
            ended = asyncio.get_running_loop().create_future()
            hasher.on_progress = lambda: ended.done() or ended.set_result(None)
            piece = memoryview(DATA)[:HASH_STEP_BYTES]
            if is_shown:
                hasher.show(piece)
                with pytest.raises(MemoryError):
                    await hasher.seen(len(piece))
            else:
                hasher.update(piece)
            await ended
            with pytest.raises(MemoryError):
                await hasher.finish()

    asyncio.run(main())
