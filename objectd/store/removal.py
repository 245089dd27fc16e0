"""Deleting and taking back: trash, restore, emptying the trash, quarantine.

A record's fate is written as a verdict behind it in the log; a file's fate is the directory it lies in. Invariants:
- The verdict (or the rename and both directories) is synced before the index follows and the caller is answered.
- A full device still deletes: verdicts use the reserve, and the ballast when the file system itself is full.
- What is quarantined was copied (or moved) aside first; its id may then come again.

Cost of deleting a small chunk: 64 bytes in the log, a share of a group's sync, one byte written in place by a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Final

from objectd.store import files, quarantine, records
from objectd.store.device import Location
from objectd.store.index import Entry, is_live, pack, unpack
from tierstore.errors import NotFound
from tierstore.names import ChunkId

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice

TRASH_BATCH: Final = 1000       # chunks forgotten per look into the index
FORGET_AT_ONCE: Final = 64
_ANY_AGE_MS: Final = 1 << 62
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


class Removal:
    def __init__(self, device: DiskDevice) -> None:
        self._device = device

    async def trash(self, chunk: ChunkId) -> bool:
        device = self._device
        async with device.exclusive(chunk):
            value = await device.current(chunk)
            if value is None or not is_live(value):
                return False
            entry, wall_ms = unpack(value), device.clock.now_ms()
            trashed = pack(*entry[:5], records.IN_TRASH, wall_ms)
            if entry.segment:
                await self._verdict(records.TRASH, chunk, entry, trashed, wall_ms)
            else:
                device.open_files.drop(bytes(chunk))
                await self._move(device.layout.file_path(chunk), device.layout.trash_path(chunk, wall_ms))
                device.index.apply(chunk, trashed, value)
            return True

    async def restore(self, chunk: ChunkId) -> Location:
        device = self._device
        async with device.exclusive(chunk):
            value = await device.current(chunk)
            if value is None or is_live(value):
                raise NotFound(f"chunk {chunk.hex()} is not in the trash", code="not-in-trash")
            entry, wall_ms = unpack(value), device.clock.now_ms()
            restored = pack(*entry[:5], records.LIVE, wall_ms)
            if entry.segment:
                await self._verdict(records.RESTORE, chunk, entry, restored, wall_ms)
            else:
                await self._move(device.layout.trash_path(chunk, entry.wall_ms), device.layout.file_path(chunk))
                device.index.apply(chunk, restored, value)
            return Location(entry.segment, entry.offset)

    async def forget_trashed(self, chunk: ChunkId) -> int:
        freed = await self._forget(chunk, _ANY_AGE_MS)
        if freed:
            self._device.refresh_room()
        return freed

    async def empty_trash(self, older_than_ms: int) -> int:
        device = self._device
        await device.flush()
        freed = 0
        while True:
            batch: list[bytes] = await device.run(device.index.trashed_before, older_than_ms, TRASH_BATCH)
            for at in range(0, len(batch), FORGET_AT_ONCE):     # together, so that they share their group's sync
                freed += sum(await asyncio.gather(
                    *(self._forget(ChunkId(c), older_than_ms) for c in batch[at : at + FORGET_AT_ONCE])))
            if len(batch) < TRASH_BATCH:
                device.refresh_room()
                return freed
            await device.flush()
            device.check_writable()     # a flush that failed would show the same batch again, for ever

    async def _forget(self, chunk: ChunkId, older_than_ms: int) -> int:
        device = self._device
        async with device.exclusive(chunk):
            value = await device.current(chunk)
            if value is None or is_live(value) or unpack(value).wall_ms >= older_than_ms:
                return 0
            entry = unpack(value)
            if entry.segment:
                await self._verdict(records.FORGET, chunk, entry, b"", device.clock.now_ms())
            else:
                device.check_writable()
                try:
                    await device.run(files.discard, device.layout.trash_path(chunk, entry.wall_ms))
                except OSError as error:
                    raise device.write_failed(error) from error
                device.index.apply(chunk, b"", value)
            return entry.stored_bytes

    async def quarantine(self, chunk: ChunkId, why: str) -> bool:
        device = self._device
        async with device.exclusive(chunk):
            value = await device.current(chunk)
            if value is None:
                return False
            entry, wall_ms = unpack(value), device.clock.now_ms()
            name = f"{chunk.hex()}.{wall_ms}"
            if entry.segment:
                await self._put_aside(chunk, entry, name, why)
                await self._verdict(records.REJECT, chunk, entry, b"", wall_ms)
            else:
                device.open_files.drop(bytes(chunk))
                source = device.layout.file_path(chunk) if is_live(value) else device.layout.trash_path(
                    chunk, entry.wall_ms)
                await self._move(source, os.path.join(device.layout.quarantine, name))
                await device.run(lambda: quarantine.describe(device.layout.quarantine, name=name, wall_ms=wall_ms,
                                                           why=why, chunk=chunk, count=entry.stored_bytes))
                device.index.apply(chunk, b"", value)
            return True

    async def _put_aside(self, chunk: ChunkId, entry: Entry, name: str, why: str) -> None:
        device = self._device
        handle = await device.segment_handle(entry.segment)
        handle.acquire()
        try:
            await device.run(lambda: quarantine.keep_range(
                device.layout.quarantine, name=name, fd=handle.fd, offset=entry.offset, count=entry.stored_bytes,
                wall_ms=device.clock.now_ms(), why=why, chunk=chunk))
        except OSError as error:
            if error.errno not in NO_SPACE:    # without room for the copy the bad record is still taken out of service
                raise device.write_failed(error) from error
        finally:
            handle.release()

    async def _move(self, source: str, target: str) -> None:
        device = self._device
        device.check_writable()
        try:
            await device.run(files.move, source, target)
        except FileNotFoundError:
            pass    # gone from the directory: the index follows
        except OSError as error:
            raise device.write_failed(error) from error

    async def _verdict(self, kind: int, chunk: ChunkId, entry: Entry, value: bytes, wall_ms: int) -> None:
        """Log what happened to a record and have it durable and indexed. Deletes go on when the disk is full."""
        device = self._device
        device.check_writable()
        target = (entry.segment, entry.offset)
        try:
            try:
                place = device.log.append_verdict(kind, chunk, target, wall_ms=wall_ms)
            except OSError as error:
                if error.errno not in NO_SPACE or not device.release_ballast():
                    raise
                place = device.log.append_verdict(kind, chunk, target, wall_ms=wall_ms)
        except OSError as error:
            raise device.write_failed(error) from error
        await device.log_appended(place, chunk, value).future
        state = {records.TRASH: records.IN_TRASH, records.RESTORE: records.LIVE}.get(kind, records.REJECTED)
        handle = await device.segment_handle(entry.segment)
        handle.acquire()
        future = device.submit(os.pwrite, handle.fd, bytes((state,)), records.state_offset(entry.offset))
        future.add_done_callback(lambda _: handle.release())
        try:
            await asyncio.wait_for(asyncio.shield(future), device.settings.io_deadline_seconds)
        except (OSError, TimeoutError):
            pass    # only advice for readers with a hint; log and index are right already
