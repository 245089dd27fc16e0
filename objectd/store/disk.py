"""DiskDevice: one directory that keeps chunks; puts segments, files, index, trash and states together.

Owns the device's state and its free space. Invariants:
- The index learns of a record only after the committer settled it, of a file only after finish(): what the index says
  is live can be read after a power cut.
- After a failed write or sync of an EIO kind no descriptor that was written through is used again; check() begins a new
  segment with a new committer.
- State changes of one chunk (trash, restore, quarantine, compaction) never overlap (`_changing`).
- Everything here runs in the loop, except what is handed to `run`.

Cost of a 4 KiB PUT: look-up 1 us, header and pwritev 5 us, group commit 2 us and its share of an fdatasync, index 1 us.
Of a cached 4 KiB GET with a hint: one preadv and one comparison, about 2.5 us.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import lmdb

from objectd.store import headers, records, segments
from objectd.store.appends import Appends
from objectd.store.committer import Appended
from objectd.store.compaction import Compactor
from objectd.store.device import Buffer, ChunkHeader, ChunkWriter, DeviceUsage, Location, OpenChunk
from objectd.store.index import Entry, Index
from objectd.store.keeper import IndexKeeper
from objectd.store.layout import Layout
from objectd.store.lookup import Lookup
from objectd.store.openfiles import Handle, OpenFiles
from objectd.store.opening import open_directory
from objectd.store.probe import probe
from objectd.store.reading import PageCache, is_memory
from objectd.store.recovery import Report
from objectd.store.removal import NO_SPACE, Removal
from objectd.store.settings import StoreSettings
from objectd.store.slow import Spindle
from objectd.store.threads import Threads
from objectd.store.uploads import Uploads
from tierstore.clock import Clock
from tierstore.errors import CapacityError, IntegrityError, NotFound, UnavailableError
from tierstore.names import ChunkId, Tier


class DiskDevice:
    """The Device on a directory. Made by open()."""

    def __init__(self, layout: Layout, index: Index, *, tier: Tier, capacity_bytes: int, clock: Clock,
                 settings: StoreSettings, loop: asyncio.AbstractEventLoop, pool: ThreadPoolExecutor,
                 report: Report) -> None:
        self.uuid = bytes.fromhex(layout.identity.uuid)
        self.tier = tier
        self.path = layout.root
        self.state = "ok"
        self.detail = ""
        self.seen_sequence = layout.identity.seen_sequence
        self.cluster_id = layout.identity.cluster_id
        self.recovered = report
        self.settings = settings
        self.layout = layout
        self.index = index
        self._capacity = capacity_bytes
        self.clock = clock
        self._loop = loop
        self._noting = asyncio.Lock()
        self._seed = records.seed_of(self.uuid)
        self.write_point = f"store.write.{tier}"      # failpoint of an append, of all devices of a tier
        self.spindle = Spindle(seek_ms=settings.simulate_seek_ms,
                               bytes_per_second=settings.simulate_bytes_per_second) if settings.is_simulated else None
        self._in_memory = is_memory(layout.root)
        cache = PageCache(os.path.join(layout.root, "device.json"), is_memory=self._in_memory,
                          is_bypassed=settings.is_simulated)
        self._open_segments = OpenFiles(settings.open_files_max)
        self.open_files = OpenFiles(settings.open_files_max)
        self._changing: dict[bytes, asyncio.Future[None]] = {}
        self.ballast_is_out = False     # given back for a delete; filled again when there is room
        self._room = 0
        self._is_closed = False
        self.log: segments.SegmentLog
        self._appends: Appends
        self.threads = Threads(self, pool, loop, spindle=self.spindle)
        self._uploads = Uploads(self, loop, direct_bytes_min=0 if self._in_memory else settings.direct_bytes_min)
        self._lookup = Lookup(self, cache, self._open_segments, self.open_files)
        self._compactor = Compactor(self)
        self._removal = Removal(self)
        self._keeper = IndexKeeper(self)

    # opening and closing

    @classmethod
    async def open(cls, path: str, *, tier: Tier, capacity_bytes: int, clock: Clock,
                   settings: StoreSettings | None = None, expected_uuid: bytes | None = None) -> DiskDevice:
        """Lock, format or recover the directory and serve it in the running loop; recovery runs in a thread.
        capacity_bytes 0: the file system's size. Raises ConfigError (not ours, exchanged disks),
        UnavailableError(code="device-in-use"), OSError."""
        settings = settings or StoreSettings()
        loop = asyncio.get_running_loop()
        pool = ThreadPoolExecutor(settings.io_threads, thread_name_prefix=f"io-{os.path.basename(path)}")
        try:
            layout, index, report = await loop.run_in_executor(
                pool, open_directory, path, tier, expected_uuid, settings, clock)
        except BaseException:   # whatever it was, the threads must not stay
            pool.shutdown(wait=False)
            raise
        if capacity_bytes <= 0:
            fs = os.statvfs(path)
            capacity_bytes = fs.f_frsize * fs.f_blocks
        device = cls(layout, index, tier=tier, capacity_bytes=capacity_bytes, clock=clock, settings=settings,
                     loop=loop, pool=pool, report=report)
        device._start()
        return device

    def _start(self) -> None:
        numbers = self.layout.segment_numbers()
        self.log = segments.SegmentLog(
            self.layout, self._open_segments, seed=self._seed, segment_bytes_max=self.settings.segment_bytes_max,
            next_number=max([self.layout.high_water(), *numbers]) + 1)
        last = numbers[-1] if numbers else 0
        known = self.index.figures.segments.get(last)
        if known is not None and known.end < self.settings.segment_bytes_max * 3 // 4:
            self.log.resume(last, known.end)
        self._appends = Appends(self, self.log, inline=self._in_memory and self.spindle is None)
        self.refresh_room()
        self._keeper.start()

    async def close(self) -> None:
        """Settle what was appended, write the index, release everything. Safe to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._keeper.stop()
        is_settled = await self._appends.settled(self.settings.io_deadline_seconds)
        is_ended = await self._uploads.ended(self.settings.io_deadline_seconds)
        is_clean = is_settled and is_ended and self.state in ("ok", "full")
        await self._loop.run_in_executor(None, self._appends.committer.close)
        await self._loop.run_in_executor(None, self._close_blocking, is_clean)
        self._open_segments.close()
        self.open_files.close()
        self.threads.close()

    def _close_blocking(self, is_clean: bool) -> None:
        try:
            self.log.close()
            flush = self.index.take()
            if flush is not None:
                self.index.write(flush)
                self.index.done()
            if is_clean:
                self.index.mark_clean(True)
        except (OSError, lmdb.Error):
            pass    # the device failed: the next start recovers from the log
        self.index.close()
        self.layout.close()

    # threads

    def run(self, call: Callable[..., Any], *arguments: Any) -> Coroutine[Any, Any, Any]:
        """Run a blocking call in the device's threads, within its deadline."""
        return self.settled(self.submit(call, *arguments))

    def settled(self, future: asyncio.Future[Any]) -> Coroutine[Any, Any, Any]:
        """The result of what was handed to the threads, within the deadline."""
        return self.threads.settled(future)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Hand a blocking call to the device's threads. The caller sees to the deadline and the result."""
        return self.threads.submit(call, *arguments)

    # state and space

    def usage(self) -> DeviceUsage:
        figures = self.index.figures
        return DeviceUsage(capacity_bytes=self._capacity, used_bytes=figures.live_bytes,
                           trash_bytes=figures.trash_bytes, garbage_bytes=figures.garbage_bytes,
                           free_bytes=max(0, self._room), chunks=figures.chunks,
                           log_syncs=self._appends.groups_total, log_records=self._appends.records_total,
                           log_bytes=self._appends.bytes_total)

    def refresh_room(self) -> None:
        """Look at the space again; opens a full device when there is some, fails one whose directory is gone."""
        figures = self.index.figures
        occupied = figures.live_bytes + figures.trash_bytes + figures.garbage_bytes
        reserve = self.settings.reserve_of(self._capacity)
        if self.ballast_is_out:
            reserve += self.settings.ballast_bytes      # what was given back is for deletes and the index, not for puts
        try:
            fs = os.statvfs(self.path)
        except OSError as error:    # unmounted or gone
            self._room = 0
            self.write_failed(error)
            return
        self._room = min(self._capacity - occupied, fs.f_bavail * fs.f_frsize) - reserve - self._uploads.reserved_bytes
        if fs.f_files and fs.f_favail < 8:
            self._room = min(self._room, 0)     # no inodes left
        if self.state in ("ok", "full"):
            self.state, self.detail = ("ok", "") if self._room > 0 else ("full", "no space beyond the reserve")

    def check_writable(self) -> None:
        """Raises UnavailableError unless records may be appended: a full device still takes verdicts and copies."""
        if self.state not in ("ok", "full") or self._is_closed:
            raise UnavailableError(f"{self.path} is {self.state}: {self.detail}", code="device-failed")

    def admit(self, count: int) -> None:
        """Raises CapacityError unless so many bytes more have room, UnavailableError when nothing may be written."""
        self.check_writable()
        if self._room < count:
            self.refresh_room()
            if self._room < count:
                raise CapacityError(f"{self.path} has {max(0, self._room)} bytes left for new chunks, {count} are "
                                    "asked for")

    def write_failed(self, error: OSError) -> Exception:
        """Take note of a failed write; the error to raise instead."""
        if error.errno in NO_SPACE:
            self._room = 0
            self.state, self.detail = "full", os.strerror(error.errno or 0)
            return CapacityError(f"{self.path}: {error.strerror}")
        self.fail("read-only" if error.errno == errno.EROFS else "failed", f"write failed: {error}")
        return UnavailableError(f"{self.path}: {error.strerror}", code="device-failed")

    def fail(self, state: str, detail: str) -> None:
        """No more writes until check(). What was not settled is answered as failed."""
        self.state, self.detail = state, detail
        self._appends.fail(detail)

    async def check(self) -> None:
        """Write, sync and read back a probe on a new descriptor; then the device serves again, in a new segment.
        Raises UnavailableError when the probe fails."""
        if self._is_closed:
            raise UnavailableError(f"{self.path} is closed", code="device-failed")
        try:
            await self.run(probe, self.path)
        except (OSError, IntegrityError) as error:
            if self.state in ("ok", "full"):
                self.write_failed(error) if isinstance(error, OSError) else self.fail("failed", str(error))
            raise UnavailableError(f"{self.path} failed its check: {error}", code="device-failed") from error
        if self.state not in ("ok", "full"):
            old = self._appends.renew()
            self.state, self.detail = "ok", ""
            self.submit(old.close)
        self.refresh_room()

    # small chunks

    async def put_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *, name_hint: str = "") -> Location:
        if len(self.index.fresh) >= self.settings.index_fresh_max:
            await self.flush()
        # who is cancelled must not take the record's future from another put of the same chunk
        return await asyncio.shield(self.submit_small(chunk, data, sums, name_hint=name_hint))

    def submit_small(self, chunk: ChunkId, data: Buffer, sums: bytes, *,
                     name_hint: str = "") -> asyncio.Future[Location]:
        """put_small without a coroutine: the bytes are taken when it returns, durable when the future is done."""
        return self._appends.put(chunk, data, sums, name_hint=name_hint)

    # large chunks

    def begin(
        self, chunk: ChunkId, chunk_bytes: int, *, name_hint: str = "", keep_warm: bool = False
    ) -> ChunkWriter:
        return self._uploads.begin(chunk, chunk_bytes, name_hint=name_hint, keep_warm=keep_warm)

    async def accept_repeat(self, chunk: ChunkId, entry: Entry) -> Location:
        """The same bytes came again."""
        if entry.state == records.LIVE:
            return Location(entry.segment, entry.offset)
        try:
            return await self.restore(chunk)
        except NotFound:    # it left the trash in this moment; the next attempt writes it anew
            raise UnavailableError(f"chunk {chunk.hex()} is being changed", code="chunk-busy") from None

    # reading

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        return self._lookup.read_small_now(chunk, hint, chunk_bytes)

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        return self._lookup.open_chunk(chunk, hint)

    def forget_open(self, chunk: ChunkId) -> None:
        self.open_files.drop(bytes(chunk))

    async def find(self, chunk: ChunkId) -> OpenChunk:
        return await self._lookup.find(chunk)

    async def segment_handle(self, number: int) -> Handle:
        """A handle of the segment; acquire it before the next await. Raises IntegrityError when its file is gone."""
        return await self._lookup.segment_handle(number)

    # deleting

    @asynccontextmanager
    async def exclusive(self, chunk: bytes) -> AsyncIterator[None]:
        """One change of a chunk's state at a time. Waits for the one before it, which has a deadline of its own."""
        while (other := self._changing.get(chunk)) is not None:
            await asyncio.wait({other})
        mine = self._changing[chunk] = self._loop.create_future()
        try:
            yield
        finally:
            del self._changing[chunk]
            mine.set_result(None)

    async def current(self, chunk: bytes) -> bytes | None:
        """The packed entry, waiting for the disk if the index is too large to stay in memory."""
        value = self.index.fresh.get(chunk)
        if value is None:
            value = await self.run(self.index.lookup_in_thread, chunk)
        return value or None

    async def trash(self, chunk: ChunkId) -> bool:
        return await self._removal.trash(chunk)

    async def restore(self, chunk: ChunkId) -> Location:
        return await self._removal.restore(chunk)

    async def forget_trashed(self, chunk: ChunkId) -> int:
        return await self._removal.forget_trashed(chunk)

    async def empty_trash(self, older_than_ms: int) -> int:
        return await self._removal.empty_trash(older_than_ms)

    async def quarantine(self, chunk: ChunkId, why: str) -> bool:
        return await self._removal.quarantine(chunk, why)

    # enumeration, compaction, identity

    def chunks(self, after: bytes = b"") -> Iterator[tuple[ChunkId, int, Location]]:
        for chunk, entry in self.index.iterate(after):
            yield ChunkId(chunk), entry.chunk_bytes, Location(entry.segment, entry.offset)

    def stored_since(self, since_ms: int, after: bytes = b"") -> Iterator[ChunkHeader]:
        return headers.stored_since(self.index, self.layout, self._seed, since_ms, after)

    async def compact(self, *, garbage_ratio: float, bytes_max: int) -> int:
        return await self._compactor.run(garbage_ratio=garbage_ratio, bytes_max=bytes_max)

    async def note(self, *, cluster_id: str, seen_sequence: int) -> None:
        # One at a time: two that replace the file at once would rename each other's staged file away.
        async with self._noting:
            if cluster_id == self.cluster_id and seen_sequence < self.seen_sequence:
                return      # a newer one was written while this one waited; the mark only rises
            identity = replace(self.layout.identity, cluster_id=cluster_id, seen_sequence=seen_sequence)
            if identity != self.layout.identity:
                try:
                    await self.run(self.layout.store, identity)
                except OSError as error:
                    raise self.write_failed(error) from error
            self.cluster_id, self.seen_sequence = cluster_id, seen_sequence

    # for those who do a part of its work

    async def flush(self) -> None:
        """Write all fresh entries of the index; returns when they are in LMDB. A failure is a state, not raised."""
        await self._keeper.flush()

    def log_appended(self, place: segments.Place, chunk: bytes, value: bytes | None) -> Appended:
        """Have a record that was appended synced; its future is done when the index knows it."""
        return self._appends.log_appended(place, chunk, value)

    def wake(self) -> None:
        """The index has many fresh entries."""
        self._keeper.wake()

    def is_writing(self, chunk: bytes) -> bool:
        """Whether a large chunk of that id is under way."""
        return chunk in self._uploads

    def is_appending(self, chunk: bytes) -> bool:
        """Whether a small chunk of that id is under way."""
        return self._appends.has(chunk)

    def take_room(self, count: int) -> None:
        """So many bytes were used of the room that is left."""
        self._room -= count

    @property
    def room_bytes(self) -> int:
        return self._room

    def release_ballast(self) -> bool:
        """Give the ballast back to a full disk, for a delete or the index; False if it is out already."""
        is_released = self.layout.release_ballast()
        self.ballast_is_out = self.ballast_is_out or is_released
        return is_released

    def forget_segment(self, number: int) -> None:
        self._open_segments.drop(number)
        self.index.drop_segment(number)
