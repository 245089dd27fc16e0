"""A chunk of an own device, read piece by piece and checked against its block sums: for copies, verify jobs and scrub.

Owns no state. Invariant: no piece leaves before each of its blocks had the right sum, and before the sums were found
to combine to the chunk's CRC32C when the caller knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from objectd.store.device import OpenChunk
from objectd.work.diskread import PIECE_BYTES, DiskReader
from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, combine_sums, unpack_sums, verify_block
from tierstore.errors import IntegrityError
from tierstore.names import ChunkId

T = TypeVar("T")


class RunBlocking(Protocol):
    """Runs a blocking function somewhere else (the process' executor), or in-line in the simulation."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


#: For one piece of a background read; a disk slower than that is sick.
PIECE_SECONDS_MAX: Final = 30.0


async def verified_pieces(
    opened: OpenChunk, chunk: ChunkId, *, crc32c: int | None, from_disk: RunBlocking | None = None
) -> AsyncGenerator[bytes, None]:
    """The data in pieces of up to 1 MiB (whole blocks). from_disk: read past the page cache by this executor.

    Raises IntegrityError(bad-footer | bad-sums | bad-block), OSError, TimeoutError. Does not close `opened`."""
    size = opened.chunk_bytes
    if len(opened.sums) != block_count(size) * SUM_BYTES:
        raise IntegrityError(f"chunk {chunk.hex()} has {len(opened.sums)} bytes of sums", code="bad-footer")
    if crc32c is not None and combine_sums(opened.sums, size) != crc32c:
        raise IntegrityError(f"the sums of chunk {chunk.hex()} do not combine to its CRC32C", code="bad-footer")
    sums = unpack_sums(opened.sums)
    reader = DiskReader(opened.fd) if from_disk is not None and opened.fd >= 0 else None
    try:
        for at in range(0, size, PIECE_BYTES):
            count = min(PIECE_BYTES, size - at)
            async with asyncio.timeout(PIECE_SECONDS_MAX):
                if reader is not None and from_disk is not None:
                    data = await from_disk(_reading(reader, opened.data_offset + at, count))
                else:
                    data = await opened.read(at, count)
            view = memoryview(data)
            for first in range(0, count, BLOCK_BYTES):
                block = (at + first) // BLOCK_BYTES
                verify_block(view[first : first + BLOCK_BYTES], sums[block], chunk=chunk, block=block)
            yield data
    finally:
        if reader is not None:
            reader.close()


def _reading(reader: DiskReader, offset: int, count: int) -> Callable[[], bytes]:
    return lambda: reader.read(offset, count)


async def check_chunk(
    opened: OpenChunk, chunk: ChunkId, *, crc32c: int | None, from_disk: RunBlocking | None,
    on_piece: Callable[[int], Awaitable[None]],
) -> None:  # fmt: skip
    """Read it all and keep nothing; on_piece(bytes) after each piece sets the pace. Raises as verified_pieces."""
    async with aclosing(verified_pieces(opened, chunk, crc32c=crc32c, from_disk=from_disk)) as pieces:
        async for piece in pieces:
            await on_piece(len(piece))
