"""Finding a chunk and opening it: at the hint, by the index in memory, or with the disk.

Invariant: what is opened is the chunk that was asked for: the header at the place names it, or the file's footer did.
Sums come along unchecked against the data: that is for the reader, end to end.

Cost: read_small_now one preadv and one comparison, 2.6 us; open_chunk by a hint 3.6 us, by the index 1 us more.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from objectd.store import files, records
from objectd.store.device import Location, OpenChunk
from objectd.store.index import is_live, unpack
from objectd.store.openfiles import Handle, OpenFiles
from objectd.store.reading import MemoryChunk, PageCache, StoredChunk
from tierstore.checksum import SUM_BYTES, block_count
from tierstore.errors import IntegrityError, NotFound
from tierstore.names import ChunkId

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice


class Lookup:
    def __init__(self, device: DiskDevice, cache: PageCache, open_segments: OpenFiles, open_files: OpenFiles) -> None:
        self._device = device
        self._cache = cache
        self._open_segments = open_segments
        self._open_files = open_files
        self._seed = records.seed_of(device.uuid)
        self._sums_bytes_max = SUM_BYTES * block_count(device.settings.segment_chunk_bytes_max)

    def read_small_now(self, chunk: ChunkId, hint: Location, chunk_bytes: int) -> memoryview | None:
        """Block sums, then data, of a chunk that lies at the hint and in memory: one preadv. None: use open_chunk."""
        handle = self._open_segments.get(hint.segment)
        if handle is None:
            return None
        raw = self._cache.read(handle.fd, records.HEADER_BYTES + chunk_bytes + SUM_BYTES * block_count(chunk_bytes),
                               hint.offset)
        if raw is None or not raw.startswith(records.prefix_of(chunk, chunk_bytes)):
            return None
        return memoryview(raw)[records.HEADER_BYTES :]

    def open_chunk(self, chunk: ChunkId, hint: Location | None = None) -> OpenChunk | None:
        if hint is not None:
            found = self._open_at(chunk, hint.segment, hint.offset)
            if found is not None:
                return found
        value = self._device.index.fresh.get(chunk)
        if value is None:
            if self._device.index.file_bytes > self._device.settings.index_inline_bytes:
                return None
            value = self._device.index.lookup(chunk)
        if not value or not is_live(value):
            raise _not_here(chunk)
        entry = unpack(value)
        return self._open_at(chunk, entry.segment, entry.offset)

    def _open_at(self, chunk: ChunkId, segment: int, offset: int) -> OpenChunk | None:
        if segment == 0:
            handle = self._open_files.get(bytes(chunk))
            if handle is None:
                return None
            return StoredChunk(handle, sums=handle.sums, chunk_bytes=handle.chunk_bytes, data_offset=0,
                               cache=self._cache, pool=self._device.threads, where=chunk)
        handle = self._open_segments.get(segment)
        if handle is None:
            return None
        # with room for the sums of the largest small chunk, so that one read brings both
        raw = self._cache.read(handle.fd, records.HEADER_BYTES + self._sums_bytes_max, offset)
        if raw is None:
            return None
        length = records.live_length(raw, chunk, segment=segment, offset=offset, seed=self._seed)
        data_offset = records.HEADER_BYTES + SUM_BYTES * block_count(length)
        if length < 0 or data_offset > len(raw):
            return None
        return StoredChunk(handle, sums=bytes(raw[records.HEADER_BYTES : data_offset]), chunk_bytes=length,
                           data_offset=offset + data_offset, cache=self._cache, pool=self._device.threads,
                           where=segment)

    async def find(self, chunk: ChunkId) -> OpenChunk:
        value = self._device.index.fresh.get(chunk)
        if value is None:
            value = await self._device.run(self._device.index.lookup_in_thread, chunk)
        if not value or not is_live(value):
            raise _not_here(chunk)
        entry = unpack(value)
        if entry.segment == 0:
            return await self._find_file(chunk)
        handle = await self.segment_handle(entry.segment)
        # header, sums and data in one read: a small chunk costs a slow disk one seek
        raw = await self._device.threads.read(entry.segment, entry.offset, records.aligned(
            records.HEADER_BYTES + SUM_BYTES * block_count(entry.chunk_bytes) + entry.chunk_bytes), handle)
        header = records.parse(raw[: records.HEADER_BYTES], segment=entry.segment, offset=entry.offset, seed=self._seed)
        if header is None or header.chunk != chunk or header.length != entry.chunk_bytes:
            raise IntegrityError(f"chunk {chunk.hex()}: its record's header is damaged", code="bad-header")
        at = records.HEADER_BYTES + header.sums_bytes
        return MemoryChunk(raw[records.HEADER_BYTES : at], raw[at : at + header.length])

    async def segment_handle(self, number: int) -> Handle:
        """A handle of the segment; acquire it before the next await. Raises IntegrityError when its file is gone."""
        handle = self._open_segments.get(number)
        if handle is None:
            fd = await self._device.run(_open_segment, self._device.layout.segment_path(number))
            handle = self._open_segments.add(number, Handle(fd))
        return handle

    async def _find_file(self, chunk: ChunkId) -> OpenChunk:
        handle = self._open_files.get(bytes(chunk))
        if handle is None:
            try:
                fd, footer, sums = await self._device.run(self._open_file_blocking, chunk)
            except FileNotFoundError:
                value = await self._device.current(chunk)
                if value is None or not is_live(value):     # deleted while the thread was on its way
                    raise _not_here(chunk) from None
                raise IntegrityError(f"the file of chunk {chunk.hex()} is missing", code="bad-footer") from None
            handle = self._open_files.add(bytes(chunk), Handle(fd, chunk_bytes=footer.length, sums=sums))
        return StoredChunk(handle, sums=handle.sums, chunk_bytes=handle.chunk_bytes, data_offset=0,
                           cache=self._cache, pool=self._device.threads, where=chunk)

    def _open_file_blocking(self, chunk: bytes) -> tuple[int, records.Header, bytes]:
        opened = files.open_file(self._device.layout.file_path(chunk), chunk, self._seed)
        if self._device.spindle is not None:
            self._device.spindle.transfer(chunk, opened[1].length, len(opened[2]) + records.HEADER_BYTES)
        return opened


def _not_here(chunk: ChunkId) -> NotFound:
    return NotFound(f"chunk {chunk.hex()} is not on this device", code="no-such-chunk")


def _open_segment(path: str) -> int:
    """Writable, for the state bytes; read-only on a disk that became so. Blocking. Raises IntegrityError, OSError."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing", code="bad-header") from None
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
