"""Second implementations of the Device seam: in memory, faulty, slow. They pass tests/contract/test_device.py.

MemoryDevice uses no threads, no clock but the one passed in and no randomness but what is passed to power_cut: it is
what a simulated cluster stores its chunks on. FaultyDevice and SlowDevice wrap any device.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from asyncio import Future
from collections.abc import Iterator
from dataclasses import dataclass, field

from objectd.store.device import Buffer, ChunkHeader, ChunkWriter, Device, DeviceUsage, Location, OpenChunk
from tierstore.checksum import combine_sums
from tierstore.clock import Clock
from tierstore.errors import CapacityError, ConflictError, IntegrityError, NotFound, UnavailableError
from tierstore.names import ChunkId, Tier

FRAME_BYTES = 128
LIVE, TRASHED = "live", "trashed"


@dataclass(slots=True)
class Stored:
    data: bytes
    sums: bytes
    location: Location
    state: str = LIVE
    wall_ms: int = 0
    hint: str = ""

    @property
    def framed(self) -> int:
        return len(self.data) + FRAME_BYTES


class MemoryChunk:
    fd = -1
    data_offset = 0

    def __init__(self, stored: Stored) -> None:
        self._data = stored.data
        self.sums = stored.sums
        self.chunk_bytes = len(stored.data)

    def read_now(self, offset: int, count: int) -> bytes | None:
        return self._data[offset : offset + count] if offset + count <= self.chunk_bytes else None

    async def read(self, offset: int, count: int) -> bytes:
        raw = self.read_now(offset, count)
        if raw is None or offset < 0:
            raise IntegrityError("behind the end", code="short-read")
        return raw

    def close(self) -> None:
        """Nothing is held."""


class MemoryDevice:
    """Chunks in a dict. What was not synced (put_small or finish under way) is lost or kept by a power cut's dice."""

    def __init__(self, *, tier: Tier = "ssd", capacity_bytes: int = 1 << 30, clock: Clock, path: str = "memory",
                 uuid: bytes = bytes(16), sync_seconds: float = 0.0, segment_chunk_bytes_max: int = 256 * 1024) -> None:
        self.uuid = uuid
        self.tier: Tier = tier
        self.path = path
        self.state = "ok"
        self.detail = ""
        self.seen_sequence = 0
        self.cluster_id = ""
        self.kept: dict[bytes, Stored] = {}             # durable
        self.quarantined: dict[bytes, str] = {}         # chunk -> why
        self._capacity = capacity_bytes
        self._clock = clock
        self._sync_seconds = sync_seconds
        self._small_max = segment_chunk_bytes_max
        self._unsynced: dict[bytes, Stored] = {}
        self._next_offset = 0
        self._life = 0      # power cuts survived: what was under way in another life fails

    # what a test may do to it

    def power_cut(self, rng: random.Random) -> None:
        """Everything acknowledged stays; of what was not synced, each chunk stays whole or is gone."""
        self._life += 1
        for chunk, stored in sorted(self._unsynced.items()):
            if rng.random() < 0.5:
                self.kept.setdefault(chunk, stored)
        self._unsynced.clear()

    def flip(self, chunk: bytes, offset: int) -> None:
        """One bit of the stored data rots."""
        stored = self.kept[chunk]
        raw = bytearray(stored.data)
        raw[offset] ^= 1
        stored.data = bytes(raw)

    # Device

    def usage(self) -> DeviceUsage:
        live = sum(s.framed for s in self.kept.values() if s.state == LIVE)
        trash = sum(s.framed for s in self.kept.values() if s.state == TRASHED)
        pending = sum(s.framed for s in self._unsynced.values())
        return DeviceUsage(self._capacity, live, trash, 0, max(0, self._capacity - live - trash - pending),
                           sum(s.state == LIVE for s in self.kept.values()))

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        stored = self.kept.get(chunk)
        if stored is None or stored.state != LIVE:
            raise NotFound(chunk.hex(), code="no-such-chunk")
        return MemoryChunk(stored)

    def forget_open(self, chunk: ChunkId) -> None:
        """Nothing is kept open."""

    async def find(self, chunk: ChunkId) -> OpenChunk:
        found = self.open_chunk(chunk)
        assert found is not None
        return found

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        stored = self.kept.get(chunk)
        if stored is None or stored.state != LIVE or stored.location != hint or len(stored.data) != chunk_bytes:
            return None
        return memoryview(stored.sums + stored.data)

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        if len(data) > self._small_max:
            raise IntegrityError("no small chunk", code="chunk-too-long")
        return await self._put(chunk, bytes(data), sums, is_small=True, hint=name_hint)

    def stored_since(self, since_ms: int, after: bytes = b"") -> Iterator[ChunkHeader]:
        for chunk in sorted(self.kept):
            stored = self.kept[chunk]
            if chunk > after and stored.state == LIVE and stored.wall_ms >= since_ms:
                crc = combine_sums(stored.sums, len(stored.data))
                yield ChunkHeader(
                    ChunkId(chunk), len(stored.data), crc, stored.wall_ms, stored.location, stored.hint
                )

    def submit_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Future[Location]:
        self._check_writable()
        taken = bytes(data)
        return asyncio.ensure_future(self.put_small(chunk, taken, sums, name_hint=name_hint))

    async def _put(self, chunk: bytes, data: bytes, sums: bytes, *, is_small: bool, hint: str = "") -> Location:
        known = self.kept.get(chunk) or self._unsynced.get(chunk)
        if known is not None and (known.sums != sums or len(known.data) != len(data)):
            raise ConflictError(chunk.hex(), code="chunk-exists")
        self._check_writable()
        if known is None:
            if len(data) + FRAME_BYTES > self.usage().free_bytes:
                self.state, self.detail = "full", "no space"
                raise CapacityError(self.path)
            self._next_offset += 8
            location = Location(1, self._next_offset) if is_small else Location(0, 0)
            known = self._unsynced[chunk] = Stored(data, sums, location, LIVE, self._clock.now_ms(), hint)
        life = self._life
        await self._sync()
        if life != self._life:
            raise UnavailableError(self.path, code="device-failed")
        self._unsynced.pop(chunk, None)
        self.kept.setdefault(chunk, known).state = LIVE
        return known.location

    async def _sync(self) -> None:
        if self._sync_seconds:
            await self._clock.sleep(self._sync_seconds)
        else:
            await asyncio.sleep(0)

    def _check_writable(self) -> None:
        if self.state == "full" and self.usage().free_bytes > FRAME_BYTES:
            self.state, self.detail = "ok", ""
        if self.state not in ("ok", "full"):
            raise UnavailableError(f"{self.path} is {self.state}", code="device-failed")

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> ChunkWriter:
        self._check_writable()
        known = self.kept.get(chunk)
        if known is not None and len(known.data) != chunk_bytes:
            raise ConflictError(chunk.hex(), code="chunk-exists")
        if known is None and chunk_bytes + FRAME_BYTES > self.usage().free_bytes:
            raise CapacityError(self.path)
        return MemoryWriter(self, chunk, chunk_bytes, name_hint)

    async def trash(self, chunk: ChunkId) -> bool:
        self._check_writable()
        await self._sync()
        stored = self.kept.get(chunk)
        if stored is None or stored.state != LIVE:
            return False
        stored.state, stored.wall_ms = TRASHED, self._clock.now_ms()
        return True

    async def restore(self, chunk: ChunkId) -> Location:
        self._check_writable()
        await self._sync()
        stored = self.kept.get(chunk)
        if stored is None or stored.state != TRASHED:
            raise NotFound(chunk.hex(), code="not-in-trash")
        stored.state, stored.wall_ms = LIVE, self._clock.now_ms()
        return stored.location

    async def forget_trashed(self, chunk: ChunkId) -> int:
        self._check_writable()
        await self._sync()
        stored = self.kept.get(chunk)
        if stored is None or stored.state != TRASHED:
            return 0
        return self.kept.pop(chunk).framed

    async def empty_trash(self, older_than_ms: int) -> int:
        self._check_writable()
        await self._sync()
        old = [c for c, s in self.kept.items() if s.state == TRASHED and s.wall_ms < older_than_ms]
        return sum(self.kept.pop(chunk).framed for chunk in old)

    async def quarantine(self, chunk: ChunkId, why: str) -> bool:
        await self._sync()
        if self.kept.pop(chunk, None) is None:
            return False
        self.quarantined[chunk] = why
        return True

    def chunks(self, after: bytes = b"") -> Iterator[tuple[ChunkId, int, Location]]:
        for chunk in sorted(self.kept):
            stored = self.kept.get(chunk)
            if chunk > after and stored is not None and stored.state == LIVE:
                yield ChunkId(chunk), len(stored.data), stored.location

    async def compact(self, *, garbage_ratio: float, bytes_max: int) -> int:
        return 0

    async def note(self, *, cluster_id: str, seen_sequence: int) -> None:
        self.cluster_id, self.seen_sequence = cluster_id, seen_sequence

    async def check(self) -> None:
        await self._sync()
        self.state, self.detail = "ok", ""

    async def close(self) -> None:
        """Nothing is held."""


class MemoryWriter:
    def __init__(self, device: MemoryDevice, chunk: ChunkId, chunk_bytes: int, hint: str = "") -> None:
        self._device = device
        self._hint = hint
        self._chunk = chunk
        self._chunk_bytes = chunk_bytes
        self._data = bytearray()
        self._is_over = False
        self.pending_bytes = 0

    def write(self, piece: Buffer) -> None:
        if self._is_over:
            raise UnavailableError("ended", code="writer-ended")
        if len(self._data) + len(piece) > self._chunk_bytes:
            self._is_over = True
            raise IntegrityError("more than announced", code="chunk-too-long")
        self._data += piece

    async def drained(self) -> None:
        """Nothing is pending."""

    async def finish(self, sums: bytes) -> Location:
        if self._is_over:
            raise UnavailableError("ended", code="writer-ended")
        self._is_over = True
        if len(self._data) != self._chunk_bytes:
            raise IntegrityError("less than announced", code="chunk-too-short")
        combine_sums(sums, self._chunk_bytes)
        return await self._device._put(self._chunk, bytes(self._data), sums, is_small=False, hint=self._hint)

    def abort(self) -> None:
        self._is_over = True


# wrappers


class Wrapper:
    """A device that passes everything on; wrappers change what they are about."""

    def __init__(self, inner: Device) -> None:
        self.inner = inner

    @property
    def uuid(self) -> bytes:
        return self.inner.uuid

    @property
    def tier(self) -> Tier:
        return self.inner.tier

    @property
    def path(self) -> str:
        return self.inner.path

    @property
    def state(self) -> str:
        return self.inner.state

    @property
    def detail(self) -> str:
        return self.inner.detail

    @property
    def seen_sequence(self) -> int:
        return self.inner.seen_sequence

    @property
    def cluster_id(self) -> str:
        return self.inner.cluster_id

    def usage(self) -> DeviceUsage:
        return self.inner.usage()

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        return self.inner.open_chunk(chunk, hint)

    def forget_open(self, chunk: ChunkId) -> None:
        self.inner.forget_open(chunk)

    async def find(self, chunk: ChunkId) -> OpenChunk:
        return await self.inner.find(chunk)

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        return self.inner.read_small_now(chunk, hint, chunk_bytes)

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        return await self.inner.put_small(chunk, data, sums, name_hint=name_hint)

    def submit_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Future[Location]:
        taken = bytes(data)
        return asyncio.ensure_future(self.put_small(chunk, taken, sums, name_hint=name_hint))

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> ChunkWriter:
        return self.inner.begin(chunk, chunk_bytes, name_hint=name_hint, keep_warm=keep_warm)

    def stored_since(self, since_ms: int, after: bytes = b"") -> Iterator[ChunkHeader]:
        return self.inner.stored_since(since_ms, after)

    async def trash(self, chunk: ChunkId) -> bool:
        return await self.inner.trash(chunk)

    async def restore(self, chunk: ChunkId) -> Location:
        return await self.inner.restore(chunk)

    async def forget_trashed(self, chunk: ChunkId) -> int:
        return await self.inner.forget_trashed(chunk)

    async def empty_trash(self, older_than_ms: int) -> int:
        return await self.inner.empty_trash(older_than_ms)

    async def quarantine(self, chunk: ChunkId, why: str) -> bool:
        return await self.inner.quarantine(chunk, why)

    def chunks(self, after: bytes = b"") -> Iterator[tuple[ChunkId, int, Location]]:
        return self.inner.chunks(after)

    async def compact(self, *, garbage_ratio: float, bytes_max: int) -> int:
        return await self.inner.compact(garbage_ratio=garbage_ratio, bytes_max=bytes_max)

    async def note(self, *, cluster_id: str, seen_sequence: int) -> None:
        await self.inner.note(cluster_id=cluster_id, seen_sequence=seen_sequence)

    async def check(self) -> None:
        await self.inner.check()

    async def close(self) -> None:
        await self.inner.close()


@dataclass(slots=True)
class Fault:
    """What goes wrong: operation "write", "sync" or "read" fails with errno_ the next `times` times (-1: always)."""

    operation: str
    errno_: int = errno.EIO
    times: int = 1
    chunk: bytes | None = None      # only this one


@dataclass(slots=True)
class FaultCount:
    by_operation: dict[str, int] = field(default_factory=dict)


class FaultyDevice(Wrapper):
    """Errors by rule. EIO on write or sync fails the device until check(); ENOSPC makes it full; flips change what
    readers get, not what is stored."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner)
        self.faults: list[Fault] = []
        self.flips: dict[bytes, int] = {}       # chunk -> offset of the byte that is read wrongly
        self.count = FaultCount()
        self._state = ""
        self._detail = ""

    @property
    def state(self) -> str:
        return self._state or self.inner.state

    @property
    def detail(self) -> str:
        return self._detail or self.inner.detail

    def _fault(self, operation: str, chunk: bytes) -> OSError | None:
        for fault in self.faults:
            if fault.operation == operation and fault.times and fault.chunk in (None, chunk):
                fault.times -= 1
                self.count.by_operation[operation] = self.count.by_operation.get(operation, 0) + 1
                return OSError(fault.errno_, os.strerror(fault.errno_))
        return None

    def _before_write(self, chunk: bytes) -> None:
        if self._state in ("failed", "read-only"):
            raise UnavailableError(f"{self.path} is {self._state}: {self._detail}", code="device-failed")
        for operation in ("write", "sync"):
            error = self._fault(operation, chunk)
            if error is not None:
                self._detail = str(error)
                if error.errno == errno.ENOSPC:
                    self._state = "full"
                    raise CapacityError(self.path)
                self._state = "read-only" if error.errno == errno.EROFS else "failed"
                raise UnavailableError(f"{self.path}: {error}", code="device-failed")
        if self._state == "full":
            self._state = self._detail = ""

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        found = super().open_chunk(chunk, hint)
        return FaultyChunk(found, chunk, self) if found is not None else None

    async def find(self, chunk: ChunkId) -> OpenChunk:
        return FaultyChunk(await super().find(chunk), chunk, self)

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        if self.flips or any(f.operation == "read" and f.times for f in self.faults):
            return None
        return super().read_small_now(chunk, hint, chunk_bytes)

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        self._before_write(chunk)
        return await super().put_small(chunk, data, sums, name_hint=name_hint)

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> ChunkWriter:
        self._before_write(chunk)
        return super().begin(chunk, chunk_bytes, name_hint=name_hint, keep_warm=keep_warm)

    async def trash(self, chunk: ChunkId) -> bool:
        self._before_write(chunk)
        return await super().trash(chunk)

    async def restore(self, chunk: ChunkId) -> Location:
        self._before_write(chunk)
        return await super().restore(chunk)

    async def check(self) -> None:
        error = self._fault("sync", b"") or self._fault("write", b"")
        if error is not None:
            self._state, self._detail = "failed", str(error)
            raise UnavailableError(f"{self.path} failed its check: {error}", code="device-failed")
        await super().check()
        self._state = self._detail = ""


class FaultyChunk:
    fd = -1     # flips and errors must not be passed by with sendfile
    data_offset = 0

    def __init__(self, inner: OpenChunk, chunk: ChunkId, device: FaultyDevice) -> None:
        self._inner = inner
        self._chunk = chunk
        self._device = device
        self.sums = inner.sums
        self.chunk_bytes = inner.chunk_bytes

    def _flipped(self, raw: bytes, offset: int) -> bytes:
        at = self._device.flips.get(self._chunk)
        if at is None or not offset <= at < offset + len(raw):
            return raw
        changed = bytearray(raw)
        changed[at - offset] ^= 1
        return bytes(changed)

    def read_now(self, offset: int, count: int) -> bytes | None:
        if any(f.operation == "read" and f.times for f in self._device.faults):
            return None
        raw = self._inner.read_now(offset, count)
        return self._flipped(raw, offset) if raw is not None else None

    async def read(self, offset: int, count: int) -> bytes:
        error = self._device._fault("read", self._chunk)
        if error is not None:
            raise error
        return self._flipped(await self._inner.read(offset, count), offset)

    def close(self) -> None:
        self._inner.close()


class SlowDevice(Wrapper):
    """One arm on the clock that is passed in: each read and put waits its turn, then a seek and its bytes' time."""

    def __init__(self, inner: Device, *, clock: Clock, seek_seconds: float, bytes_per_second: float) -> None:
        super().__init__(inner)
        self._clock = clock
        self._seek_seconds = seek_seconds
        self._bytes_per_second = bytes_per_second
        self._arm = asyncio.Lock()

    async def transfer(self, count: int) -> None:
        async with self._arm:
            await self._clock.sleep(self._seek_seconds + count / self._bytes_per_second)

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        found = super().open_chunk(chunk, hint)
        return SlowChunk(found, self) if found is not None else None

    async def find(self, chunk: ChunkId) -> OpenChunk:
        await self.transfer(0)
        return SlowChunk(await super().find(chunk), self)

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        return None

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        taken = bytes(data)
        await self.transfer(len(taken))
        return await super().put_small(chunk, taken, sums, name_hint=name_hint)


class SlowChunk:
    fd = -1
    data_offset = 0

    def __init__(self, inner: OpenChunk, device: SlowDevice) -> None:
        self._inner = inner
        self._device = device
        self.sums = inner.sums
        self.chunk_bytes = inner.chunk_bytes

    def read_now(self, offset: int, count: int) -> bytes | None:
        return None

    async def read(self, offset: int, count: int) -> bytes:
        await self._device.transfer(count)
        return await self._inner.read(offset, count)

    def close(self) -> None:
        self._inner.close()
