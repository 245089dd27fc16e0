"""Reads that begin before metadata has answered: of small objects that a fast device served a moment ago.

A read of a small object is two steps that wait for each other: metadata says which copy, an object server sends it.
Where the copy is on a fast device both take about the same time. So the copy that the last answer named is asked at the
same time as metadata. What it sends is used only when this request's own answer names that copy of that chunk (rule 9:
a chunk id is write-once, so a read begun afterwards would bring the same bytes); else it is dropped, unseen. Reads of
slow copies wait for the answer: there is little to gain, and a seek for nothing makes others wait.

Owns what is remembered (a name's chunk and the copy to ask first) and the reads under way. Bounds: ENTRIES_MAX names,
each for ENTRY_SECONDS (less than its ticket lives), UNDER_WAY_MAX reads; each read ends within `stall_seconds`.
Cost: a dict access for a name that is not known; else a task, instead of the one that its read would have had.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import msgspec

from tierstore.clock import Clock
from tierstore.errors import TierstoreError
from tierstore.names import TIERS, ChunkId
from tierstore.sdk.limits import StoreLimits
from tierstore.sdk.servers import ServerBook
from tierstore.transport.object_client import ObjectClient
from tierstore.transport.verified import FetchedChunk
from tierstore.wire.names import ChunkView, ReplicaView

#: About 600 bytes each.
ENTRIES_MAX: Final = 8192
#: Tickets live five minutes, and a lookup's may be a second old.
ENTRY_SECONDS: Final = 240.0
UNDER_WAY_MAX: Final = 256
#: Reads of one name begun in a row without one that was of use: then it is not what it was.
CREDIT: Final = 16
_SLOWEST: Final = TIERS[-1]


@dataclass(slots=True)
class _Entry:
    """What was served last under a name. credit: reads that may still be begun before one was of use again."""

    chunk: bytes
    chunk_bytes: int
    crc32c: int
    offset: int
    length: int
    replica: ReplicaView
    until: float
    credit: int = CREDIT


class EarlyReads:
    """One per Store. Event loop only."""

    def __init__(self, objects: ObjectClient, servers: ServerBook, clock: Clock, limits: StoreLimits) -> None:
        self._objects = objects
        self._servers = servers
        self._clock = clock
        self._limits = limits
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._under_way: set[asyncio.Task[FetchedChunk]] = set()
        self.begun_total = 0
        self.used_total = 0

    def begin(self, bucket: str, key: str) -> EarlyRead:
        """A read of a whole object is about to be looked up; its caller's rights were judged."""
        entry = self._entries.get((bucket, key))
        url = self._url(entry) if entry is not None else None
        if entry is None or url is None:
            return EarlyRead(self, bucket, key, None, None)
        entry.credit -= 1
        self.begun_total += 1
        task = asyncio.get_running_loop().create_task(self._read(url, entry))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return EarlyRead(self, bucket, key, entry, task)

    def _url(self, entry: _Entry) -> str | None:
        """Where to ask; None when it should not be asked now."""
        if entry.credit <= 0 or len(self._under_way) >= UNDER_WAY_MAX or self._clock.monotonic() >= entry.until:
            return None
        server = entry.replica.server
        if self._servers.has_suspects and self._servers.is_suspect(server):
            return None
        return self._servers.known_url(server)

    async def _read(self, url: str, entry: _Entry) -> FetchedChunk:
        # The lookup takes longer: it leaves first, two turns of the event loop after it was asked for.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        began = self._clock.monotonic()
        fetched = await self._objects.fetch_chunk(
            url, entry.replica.ticket, chunk=ChunkId(entry.chunk), chunk_bytes=entry.chunk_bytes, crc32c=entry.crc32c,
            first=entry.offset, length=entry.length, seconds=self._limits.stall_seconds,
        )  # fmt: skip
        self._servers.note_first_byte(self._clock.monotonic() - began)
        return fetched

    def _ended(self, task: asyncio.Task[FetchedChunk]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()        # looked at here: nobody may be waiting for it any more

    def learn(self, bucket: str, key: str, chunk: ChunkView, tier: str) -> None:
        """A whole object of this one chunk was served by `tier`. The copy to ask next time is the answer's first, which
        need not be the one that was read: where a chunk has several fast copies the answers take turns."""
        name = (bucket, key)
        if tier == _SLOWEST or not chunk.replicas:
            self._entries.pop(name, None)
            return
        if name not in self._entries and len(self._entries) >= ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        self._entries[name] = _Entry(
            chunk.id, chunk.chunk_bytes, chunk.crc32c, chunk.chunk_offset, chunk.length, chunk.replicas[0],
            self._clock.monotonic() + ENTRY_SECONDS,
        )  # fmt: skip

    @property
    def is_idle(self) -> bool:
        """None is under way."""
        return not self._under_way

    async def close(self) -> None:
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EarlyRead:
    """The part of one request in it. A read whose result is not taken ends by itself."""

    __slots__ = ("_book", "_bucket", "_entry", "_key", "_task")

    def __init__(
        self, book: EarlyReads, bucket: str, key: str, entry: _Entry | None, task: asyncio.Task[FetchedChunk] | None
    ) -> None:
        self._book = book
        self._bucket = bucket
        self._key = key
        self._entry = entry
        self._task = task

    def ordered(self, chunk: ChunkView) -> ChunkView:
        """The chunk as metadata named it; of its first copies' equals the one that is being read comes first."""
        entry, replicas = self._entry, chunk.replicas
        if entry is None or len(replicas) < 2 or replicas[0].device == entry.replica.device:
            return chunk
        for n, replica in enumerate(replicas):
            if replica.device == entry.replica.device and replica.tier == replicas[0].tier:
                return msgspec.structs.replace(chunk, replicas=[replica, *replicas[:n], *replicas[n + 1 :]])
        return chunk

    def now(self, chunk: ChunkView) -> tuple[ReplicaView, FetchedChunk] | None:
        """The copy and what it sent, when that is here already and the copy is still one to ask first."""
        task = self._task
        if task is None or not task.done() or not chunk.replicas or not self._is_of(chunk):
            return None
        replica = self.ordered(chunk).replicas[0]
        if self._entry is None or replica.device != self._entry.replica.device or task.cancelled() or task.exception():
            return None
        self._book.used_total += 1
        return replica, task.result()

    async def take(self, chunk: ChunkView, replica: ReplicaView) -> FetchedChunk | None:
        """What this copy sends of the whole view; None when it was not asked early, or sent nothing that is right. Then
        it is asked again, with the ticket of now: the old one may be refused where the copy is well."""
        entry, task = self._entry, self._task
        if entry is None or task is None or replica.device != entry.replica.device or not self._is_of(chunk):
            return None
        self._task = None
        try:
            # a reader that goes away must not break the connection off in the middle of an answer
            fetched = await asyncio.shield(task)
        except TierstoreError:
            return None
        self._book.used_total += 1
        return fetched

    def _is_of(self, chunk: ChunkView) -> bool:
        entry = self._entry
        return (
            entry is not None and chunk.id == entry.chunk and chunk.chunk_offset == entry.offset
            and chunk.length == entry.length
        )  # fmt: skip

    def learn(self, chunk: ChunkView, tier: str) -> None:
        """The object was read: it is this chunk."""
        self._book.learn(self._bucket, self._key, chunk, tier)
