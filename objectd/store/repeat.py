"""The writer of a large chunk that is here already: it compares instead of writing (a chunk id is write-once)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from objectd.store.device import Buffer, Location
from objectd.store.index import Entry
from tierstore.checksum import combine_sums
from tierstore.errors import ConflictError, IntegrityError, UnavailableError
from tierstore.names import ChunkId


class RepeatedWriter:
    """Takes the bytes of a repeated PUT; finish() succeeds if they are those that are stored. Keeps nothing."""

    pending_bytes = 0

    def __init__(self, chunk: ChunkId, entry: Entry, chunk_bytes: int,
                 accept: Callable[[ChunkId, Entry], Awaitable[Location]]) -> None:
        """Raises ConflictError(code="chunk-exists") at once when the length differs."""
        self._chunk = chunk
        self._entry = entry
        self._accept = accept
        self._written = 0
        self._is_over = False
        if entry.chunk_bytes != chunk_bytes:
            raise self._conflict()

    def write(self, piece: Buffer) -> None:
        if self._is_over:
            raise UnavailableError("this chunk's writer has ended", code="writer-ended")
        self._written += len(piece)
        if self._written > self._entry.chunk_bytes:
            raise IntegrityError(f"more than the {self._entry.chunk_bytes} bytes announced", code="chunk-too-long")

    async def drained(self) -> None:
        """Nothing is pending."""

    async def finish(self, sums: bytes) -> Location:
        # the caller compared the sums with the bytes, so equal sums are equal bytes
        self._is_over = True
        if self._written != self._entry.chunk_bytes:
            raise IntegrityError(f"{self._written} bytes of {self._entry.chunk_bytes} came", code="chunk-too-short")
        if combine_sums(sums, self._written) != self._entry.crc:
            raise self._conflict()
        return await self._accept(self._chunk, self._entry)

    def abort(self) -> None:
        self._is_over = True

    def _conflict(self) -> ConflictError:
        return ConflictError(f"chunk {self._chunk.hex()} is here with other bytes", code="chunk-exists")
