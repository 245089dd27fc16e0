"""Several small chunks to one object server in one message, and what became of each.

`PUT /v1/chunks` takes ChunkSet and answers StoredSet, one result per chunk, in order. Each chunk stands for itself, as
if it had been sent alone: one that is refused changes nothing of the others. Write-once ids make the whole message safe
to repeat.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Chunks of one message, and bytes of it. A chunk that may be sent this way has at most SET_CHUNK_BYTES_MAX.
SET_ITEMS_MAX: Final = 64
SET_CHUNK_BYTES_MAX: Final = 32 * 1024
SET_BYTES_MAX: Final = 4 * 1024 * 1024


class SmallChunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """ticket: a write ticket. index: the chunk's number in its upload. name: the hint for a rebuild. sums: one CRC32C
    per block, as they follow the data of a chunk that is sent alone."""

    ticket: bytes
    index: int
    name: str
    sums: bytes
    data: memoryview


class ChunkSet(msgspec.Struct, array_like=True, frozen=True):
    items: list[SmallChunk]


class StoredChunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """receipt: the chunk is durable. Else status, code and detail are those of the problem."""

    receipt: bytes = b""
    status: int = 0
    code: str = ""
    detail: str = ""


class StoredSet(msgspec.Struct, array_like=True, frozen=True):
    results: list[StoredChunk]
