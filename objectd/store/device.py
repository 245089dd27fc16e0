"""The Device seam: one directory or disk of one tier that keeps chunks. Three implementations pass the same suite
(tests/contract/test_device.py): the real one (store.disk), the in-memory one and the faulty/slow wrapper of tests/kit.

Promises of every implementation:
- put_small and ChunkWriter.finish return only when the bytes are durable (synced) on this device.
- A chunk id is write-once: putting the same bytes again succeeds and returns where it lies, other bytes raise
  ConflictError(code="chunk-exists").
- What cannot be read back whole is never returned as if it could: sums come with the data, the reader checks them.
- A failed sync or write error (EIO) puts the device into state "failed" before the exception leaves: no more writes
  until check() succeeded. Reads go on as far as they can.
- Deleting moves to the trash; only the trash's age (or space pressure) frees bytes.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tierstore.names import ChunkId, Tier

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Location:
    """Where a chunk lies: segment number and offset of its record, or segment 0 for a file of its own."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    capacity_bytes: int
    used_bytes: int          # live chunks with their framing
    trash_bytes: int
    garbage_bytes: int       # dead records in segments, not yet compacted
    free_bytes: int          # what may still be written: capacity and file system free space less the reserve
    chunks: int
    #: Since the start: groups of small records made durable together (a sync each), their records and bytes.
    log_syncs: int = 0
    log_records: int = 0
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What stands beside a chunk. crc32c: of its data. stored_at_ms: this server's wall clock. name_hint: what the
    writer gave, "" when there is none or it cannot be read."""

    chunk: ChunkId
    chunk_bytes: int
    crc32c: int
    stored_at_ms: int
    location: Location
    name_hint: str


class OpenChunk(Protocol):
    """A chunk that can be read now. Close it (reference on an open descriptor)."""

    chunk_bytes: int
    sums: bytes              # block sums, u32 little-endian each (tierstore.checksum)
    fd: int                  # >= 0: data may be sent by sendfile from data_offset; -1: use read()
    data_offset: int

    def read_now(self, offset: int, count: int) -> bytes | None:
        """Bytes [offset, offset + count) of the data if they are in memory (RWF_NOWAIT), else None. Never blocks."""
        ...

    async def read(self, offset: int, count: int) -> bytes:
        """The same, waiting for the disk in the device's threads. Raises IntegrityError (short) or OSError."""
        ...

    def close(self) -> None: ...


class ChunkWriter(Protocol):
    """A chunk larger than a segment takes, under way. Not durable, not visible until finish() returned."""

    def write(self, piece: Buffer) -> None:
        """Next bytes, taken at once (page cache or buffer). `pending_bytes` tells how far the disk is behind."""
        ...

    @property
    def pending_bytes(self) -> int: ...

    async def drained(self) -> None:
        """Returns when pending_bytes is below the writer's bound: call it between pieces for back-pressure."""
        ...

    async def finish(self, sums: bytes) -> Location:
        """All bytes are written: add the footer, sync file and directory. `sums` were computed by the receiver over
        what was written and compared with the sender's."""
        ...

    def abort(self) -> None:
        """Forget it; the space is freed. Safe after finish (no effect) and to repeat."""
        ...


class Device(Protocol):
    """One device. Methods that touch the disk are async or documented as never blocking."""

    uuid: bytes              # 16 bytes, written when it was formatted
    tier: Tier
    path: str
    state: str               # ok | read-only | failed | full
    detail: str              # why, when not ok
    seen_sequence: int       # highest catalog sequence noted (rule 1)
    cluster_id: str          # "" until adopted

    def usage(self) -> DeviceUsage: ...

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        """The chunk if it can be found without waiting for the disk: at the hint (record header checked) or by an
        index page in memory. None: ask `find`. Raises NotFound(code="no-such-chunk") when it is surely not here."""
        ...

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        """The hot path of small chunks: block sums, then data (4 bytes per block + chunk_bytes), if the record lies at
        the hint and in memory. Never blocks. None: use open_chunk. The reader checks the sums as ever."""
        ...

    def submit_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Future[Location]:
        """put_small without a coroutine, for the protocol: data is taken when it returns, durable when the future is
        done. Raises at once what put_small raises at once; the future holds the rest."""
        ...

    def forget_open(self, chunk: ChunkId) -> None:
        """Let go of what is kept open of a chunk: the next find() reads its sums from the disk again."""
        ...

    async def find(self, chunk: ChunkId) -> OpenChunk:
        """The chunk by the device's own index, waiting for the disk. Raises NotFound(code="no-such-chunk")."""
        ...

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        """Store a chunk of at most segment_chunk_bytes_max bytes. Durable when it returns.
        Raises CapacityError, ConflictError(code="chunk-exists"), UnavailableError(code="device-failed")."""
        ...

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> ChunkWriter:
        """Start a large chunk. keep_warm: it is read often, so what was written should stay in memory.
        Raises as put_small does."""
        ...

    async def trash(self, chunk: ChunkId) -> bool:
        """Move a chunk to the trash; durable when it returns. False if it is not here. Safe to repeat."""
        ...

    async def restore(self, chunk: ChunkId) -> Location:
        """Take a chunk back from the trash. Raises NotFound(code="not-in-trash")."""
        ...

    async def forget_trashed(self, chunk: ChunkId) -> int:
        """Forget one trashed chunk now; bytes that can be freed, 0 when it is not in the trash. Safe to repeat."""
        ...

    async def empty_trash(self, older_than_ms: int) -> int:
        """Forget what was trashed before that wall time (ms since 1970); bytes that can be freed. May compact later."""
        ...

    async def quarantine(self, chunk: ChunkId, why: str) -> bool:
        """Put a bad copy aside (kept for people, never served, does not count as present). False if not here."""
        ...

    def chunks(self, after: bytes = b"") -> Iterator[tuple[ChunkId, int, Location]]:
        """Live chunks with id > after, in id order: (id, bytes, location). Reads the index in bounded steps; blocking:
        call it from a thread or with small takes."""
        ...

    def stored_since(self, since_ms: int, after: bytes = b"") -> Iterator[ChunkHeader]:
        """Headers of live chunks with id > after that were stored at or after that wall time, in id order. Blocking,
        and reads the disk for each: call it from a thread."""
        ...

    async def compact(self, *, garbage_ratio: float, bytes_max: int) -> int:
        """Rewrite segments whose garbage passes the ratio, moving at most bytes_max; bytes freed or to be freed."""
        ...

    async def note(self, *, cluster_id: str, seen_sequence: int) -> None:
        """Write down (durably) to whom this device belongs and the highest catalog sequence seen."""
        ...

    async def check(self) -> None:
        """After a failure: write, sync and read back a probe; on success the state is "ok" again."""
        ...

    async def close(self) -> None: ...
