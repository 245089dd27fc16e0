"""Compaction: the living records of a segment full of garbage are appended to the log again, then the segment goes.

Invariants:
- The old segment is unlinked only after every living record's copy was synced and the index switched and flushed, its
  number stands below the durable high-water mark, and segment_grace_seconds have passed (tickets out there still name
  the old place; twice their life) or room is short.
- A copy is checked against its sums before it is written: rot is quarantined, not multiplied.
- A verdict (TRASH, RESTORE, FORGET, REJECT) is copied as long as the record it speaks of still exists elsewhere and it
  is the present truth; so a rebuild from the log alone neither revives nor loses a chunk.
- A chunk is moved under device.exclusive: no deletion comes between the look at its state and the switch.

Cost: one read and one append per living byte, AT_ONCE records at a time, which share their syncs; at most bytes_max per
run.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from objectd.store import records
from objectd.store.index import is_live, pack, unpack
from objectd.store.layout import sync_directory
from objectd.store.openfiles import Handle
from objectd.store.records import Header
from objectd.store.recovery import next_record
from tierstore.errors import IntegrityError
from tierstore.failpoints import hit
from tierstore.names import ChunkId

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice


#: With less free space than this share of the capacity, emptied segments are unlinked without waiting out the grace.
SHORT_SHARE: Final = 0.15
#: Living records of a segment that are moved at once. One by one, each would wait for a sync of its own, and a full
#: fast tier of small chunks would not be compacted as quickly as it turns over.
AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class _Retired:
    number: int
    due: float      # monotonic


class Compactor:
    def __init__(self, device: DiskDevice) -> None:
        self._device = device
        self._retired: deque[_Retired] = deque()    # in the order of their due time; so the log's order is kept
        self._is_running = False

    async def run(self, *, garbage_ratio: float, bytes_max: int) -> int:
        """Unlink what is due, then move at most bytes_max of living records. Returns bytes freed or to be freed."""
        if self._is_running:
            return 0
        self._is_running = True
        try:
            await self._unlink_due()
            freed = 0
            for number in self._candidates(garbage_ratio):
                figures = self._device.index.figures.segments[number]
                if figures.used > bytes_max:
                    continue
                bytes_max -= figures.used
                end = figures.end
                if await self._empty(number, end):
                    self._retire(number)
                    freed += end
            await self._unlink_due()
        finally:
            self._is_running = False
        return freed

    def _candidates(self, garbage_ratio: float) -> list[int]:
        """Sealed segments whose garbage passes the ratio, the worst first."""
        waiting = {r.number for r in self._retired}
        found = [
            ((f.end - f.used) / f.end if f.end else 1.0, number)
            for number, f in self._device.index.figures.segments.items()
            if number not in waiting and not self._device.log.is_open(number)
        ]
        return [number for ratio, number in sorted(found, key=lambda c: (-c[0], c[1]))
                if ratio > garbage_ratio or ratio >= 1.0]

    async def _empty(self, number: int, end: int) -> bool:
        """Move every living record away; False if something could not be moved now."""
        device = self._device
        handle = await device.segment_handle(number)
        handle.acquire()
        try:
            offset = 0
            moving: list[Header] = []
            while offset < end:
                header = await self._header(handle, number, offset)
                if header is None:
                    offset = await device.run(lambda at=offset: next_record(
                        handle.fd, number=number, offset=at + records.ALIGN, end=end,
                        seed=records.seed_of(device.uuid)))
                    continue
                if header.kind == records.CHUNK:
                    moving.append(header)
                    if len(moving) == AT_ONCE:
                        await self._move_all(handle, moving)
                        moving = []
                elif header.kind != records.MARK:
                    await self._keep_verdict(header)
                offset += header.record_bytes
            await self._move_all(handle, moving)
        finally:
            handle.release()
        figures = device.index.figures.segments.get(number)
        return figures is not None and figures.used == 0

    async def _header(self, handle: Handle, number: int, offset: int) -> Header | None:
        try:
            raw = await self._device.threads.read(number, offset, records.HEADER_BYTES, handle)
        except (OSError, IntegrityError):
            return None     # an unreadable place: whatever lived there is found by scrub and stays in this segment
        return records.parse(raw, segment=number, offset=offset, seed=records.seed_of(self._device.uuid))

    async def _move_all(self, handle: Handle, headers: list[Header]) -> None:
        """Raises the first failure, after all have ended."""
        ended = await asyncio.gather(*(self._move(handle, header) for header in headers), return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException):
                raise result

    async def _move(self, handle: Handle, header: Header) -> None:
        device = self._device
        chunk = ChunkId(header.chunk)
        is_bad = False
        async with device.exclusive(chunk):
            value = device.index.lookup(chunk)
            entry = unpack(value) if value else None
            if value is None or entry is None or (entry.segment, entry.offset) != (header.segment, header.offset):
                return
            raw = await self._record(handle, header)
            sums_end = records.HEADER_BYTES + header.sums_bytes
            data_end = sums_end + header.length
            sums, data = raw[records.HEADER_BYTES : sums_end], raw[sums_end:data_end]
            hint = raw[data_end : data_end + header.hint_bytes]
            if records.has_good_body(header, sums, data, hint):
                await self._append(chunk, data, sums, hint, header, live=is_live(value), wall_ms=entry.wall_ms)
            else:
                is_bad = True
        if is_bad:
            await device.quarantine(chunk, "unreadable or wrong checksum, found by compaction")

    async def _record(self, handle: Handle, header: Header) -> bytes:
        """The whole record; empty if the disk cannot read it: then it is as bad as wrong sums."""
        try:
            return await self._device.threads.read(header.segment, header.offset, header.record_bytes, handle)
        except (OSError, IntegrityError):
            return b""

    async def _append(self, chunk: ChunkId, data: bytes, sums: bytes, hint: bytes, header: Header, *,
                      live: bool, wall_ms: int) -> None:
        device = self._device
        device.check_writable()
        try:
            place = device.log.append_chunk(chunk, data, sums, hint, data_crc=header.data_crc, wall_ms=header.wall_ms)
            state = records.LIVE if live else records.IN_TRASH
            value = pack(place.segment, place.offset, header.length, header.record_bytes, header.data_crc, state,
                         wall_ms)
            copied = device.log_appended(place, chunk, value if live else None)
            if not live:
                told = device.log.append_verdict(records.TRASH, chunk, (place.segment, place.offset), wall_ms=wall_ms)
                copied.future.add_done_callback(lambda f: f.cancelled() or f.exception())
                copied = device.log_appended(told, chunk, value)
        except OSError as error:
            raise device.write_failed(error) from error
        await copied.future

    async def _keep_verdict(self, header: Header) -> None:
        """Copy a verdict on a record in another segment that still exists, if it is the present truth."""
        device = self._device
        segment, offset = header.target
        if segment == header.segment or segment not in device.index.figures.segments:
            return
        chunk = ChunkId(header.chunk)
        async with device.exclusive(chunk):
            value = device.index.lookup(chunk)
            entry = unpack(value) if value else None
            is_there = entry is not None and (entry.segment, entry.offset) == (segment, offset)
            if header.kind in (records.FORGET, records.REJECT):
                is_true = not is_there
            else:
                state = records.IN_TRASH if header.kind == records.TRASH else records.LIVE
                is_true = (is_there and entry is not None
                           and (entry.state, entry.wall_ms) == (state, header.wall_ms))
            if not is_true:
                return
            device.check_writable()
            try:
                place = device.log.append_verdict(header.kind, chunk, header.target, wall_ms=header.wall_ms)
            except OSError as error:
                raise device.write_failed(error) from error
            await device.log_appended(place, chunk, None).future

    def _retire(self, number: int) -> None:
        due = self._device.clock.monotonic() + self._device.settings.segment_grace_seconds
        self._retired.append(_Retired(number, due))

    async def _unlink_due(self) -> None:
        device = self._device
        now = device.clock.monotonic()
        while self._retired and (self._retired[0].due <= now or self._is_short()):
            number = self._retired[0].number
            await device.flush()    # the switch is durable in the index before its old target goes
            try:
                await device.run(_unlink, device, number)
            except OSError as error:
                raise device.write_failed(error) from error
            self._retired.popleft()
            device.forget_segment(number)


    def _is_short(self) -> bool:
        """Room is wanted now: a ticket that names an old place costs a look into the index, no more. A fast device
        whose cache copies come and go would else be full of their remains for the whole grace."""
        usage = self._device.usage()
        return self._device.state == "full" or usage.free_bytes < SHORT_SHARE * usage.capacity_bytes


def _unlink(device: DiskDevice, number: int) -> None:
    device.layout.raise_high_water(number)
    hit("store.segment.before_unlink")
    try:
        os.unlink(device.layout.segment_path(number))
    except FileNotFoundError:
        pass    # the last run was cut off between unlink and directory sync
    sync_directory(device.layout.segments)
    hit("store.segment.after_unlink")

