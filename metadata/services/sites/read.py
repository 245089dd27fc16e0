"""Bytes of this site's own objects, for pushes to other sites under a sync rule: read from object servers, verified.

The only place where metadata holds bytes of a body, and only small ones (SEGMENT_BYTES at a time): a sync PUT waits for
one round trip between sites, and every hop through a gateway would be one more before it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from metadata.catalog.objects import ObjectRow
from metadata.services.cluster.view import ClusterView
from metadata.services.names.lookup import LookupService
from tierstore.auth.access import Principal
from tierstore.errors import IntegrityError, NotFound, TierstoreError, UnavailableError
from tierstore.names import ChunkId
from tierstore.transport.byte_budget import ByteBudget
from tierstore.transport.object_client import ObjectClient
from tierstore.wire.names import ChunkView, LookupItem

#: For one copy to answer; then the next is asked.
READ_SECONDS: Final = 3.0
#: Bytes held for pushes, from the read to the other site's answer; more wait in line.
PUSHED_BYTES_MAX: Final = 64 << 20
_SELF: Final = Principal("", "replication", {"*": "readonly"})


class BodyReader:
    """One per process."""

    def __init__(self, lookups: LookupService, view: ClusterView, client: ObjectClient) -> None:
        self._lookups = lookups
        self._view = view
        self._client = client
        self._room = ByteBudget(PUSHED_BYTES_MAX)

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Hold so many bytes of a body."""
        await self._room.take(size)
        try:
            yield
        finally:
            self._room.give_back(size)

    async def read(self, bucket: str, row: ObjectRow, *, first: int, length: int) -> bytes:
        """Of a version that was read a moment ago. Raises NotFound when it is gone or its bytes are elsewhere,
        UnavailableError."""
        if row.body:
            return await self.read_packed(row.body, row.size, first=first, length=length)
        item = LookupItem(bucket, row.key, "", row.version, first, length, is_own=True)
        found = await self._lookups.lookup(item, _SELF)
        if found.code:
            raise NotFound(found.detail, code=found.code)
        return await self._read(found.chunks, first, length)

    async def read_packed(self, body: bytes, size: int, *, first: int, length: int) -> bytes:
        """The same of a packed body of `size` bytes."""
        return await self._read(self._lookups.own_views(body, size, first=first, length=length), first, length)

    async def _read(self, chunks: Sequence[ChunkView], first: int, length: int) -> bytes:
        pieces = [await self._chunk(chunk, first, first + length) for chunk in chunks]
        body = b"".join(pieces)
        if len(body) != length:
            raise NotFound("its bytes are not all at this site", code="body-not-here")
        return body

    async def _chunk(self, chunk: ChunkView, first: int, stop: int) -> memoryview:
        """What of the chunk lies in the range."""
        skip = max(0, first - chunk.start)
        length = min(stop, chunk.start + chunk.length) - chunk.start - skip
        failure: TierstoreError = UnavailableError("no server of a copy is known", code="no-replica")
        for replica in chunk.replicas:
            server = self._view.servers.get(replica.server)
            if server is None:
                continue
            try:
                return await self._client.read_chunk(
                    server.url, replica.ticket, chunk=ChunkId(chunk.id), chunk_bytes=chunk.chunk_bytes,
                    crc32c=chunk.crc32c, first=chunk.chunk_offset + skip, length=length, seconds=READ_SECONDS,
                )
            except (UnavailableError, IntegrityError, NotFound) as error:
                failure = error
        raise failure
