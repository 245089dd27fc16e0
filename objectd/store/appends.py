"""Records on their way to being durable: appended to the log in the loop, synced in groups, then known to the index.

Owns what was appended and is not settled, the committer that settles it, and the watch over a sync that hangs.
Invariants: a future succeeds only when its record is synced and the index knows it, and what is not settled when the
device fails or ends is answered as failed; a committer that was given up syncs and settles nothing any more; two puts
of one chunk share one record, and who gives up waiting for it takes it from nobody.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING

from objectd.store import records, segments
from objectd.store.committer import Appended, Committer, InlineCommitter, ThreadCommitter
from objectd.store.device import Location
from objectd.store.index import Entry, is_live, pack, unpack
from tierstore.checksum import SUM_BYTES, combine_sums
from tierstore.errors import ConflictError, IntegrityError, UnavailableError
from tierstore.failpoints import hit
from tierstore.names import ChunkId

if TYPE_CHECKING:
    from objectd.store.disk import DiskDevice

Buffer = bytes | bytearray | memoryview


class Appends:
    """One per device. Event loop only."""

    def __init__(self, device: DiskDevice, log: segments.SegmentLog, *, inline: bool) -> None:
        """inline: on a memory file system, where a sync costs nothing and needs no thread."""
        self._device = device
        self._log = log
        self._inline = inline
        self._putting: dict[bytes, Appended] = {}
        self._outstanding: deque[Appended] = deque()
        self._appended: list[Appended] = []     # in this turn of the loop, not yet the committer's
        self._watch: asyncio.TimerHandle | None = None
        self._settled_all: asyncio.Future[None] | None = None      # somebody waits until nothing is outstanding
        self._generation = 0
        #: What was made durable since the start: groups (a sync each), their records and bytes.
        self.groups_total = 0
        self.records_total = 0
        self.bytes_total = 0
        self._loop = asyncio.get_running_loop()
        self.committer = self._new_committer()

    def _new_committer(self) -> Committer:
        self._generation += 1
        generation = self._generation

        def settle(group: list[Appended], error: OSError | None) -> None:
            if generation == self._generation:      # a committer that was given up has nothing to say any more
                self._settle(group, error)

        device = self._device
        if self._inline:
            return InlineCommitter(settle)
        return ThreadCommitter(self._loop, settle, name=f"commit-{os.path.basename(device.path)}",
                               spindle=device.spindle)

    def renew(self) -> Committer:
        """Begin anew after a failure; the committer that was given up, to be closed in a thread."""
        old, self.committer = self.committer, self._new_committer()
        return old

    def has(self, chunk: bytes) -> bool:
        """Whether a put of that chunk is under way."""
        return chunk in self._putting

    async def settled(self, seconds: float) -> bool:
        """Wait for all that was appended, whether anybody still waits for it or not, at most so long: for a device that
        takes no more. False: the disk did not keep up, and what it still has to sync was answered as failed."""
        if self._outstanding:
            # not the records' own futures: one that was cancelled is done before its record is
            self._settled_all = self._loop.create_future()
            await asyncio.wait({self._settled_all}, timeout=seconds)
        is_settled = not self._outstanding
        if not is_settled:
            self.fail("closed before its last writes were synced")
        if self._watch is not None:
            self._watch.cancel()
        return is_settled

    def fail(self, detail: str) -> None:
        """What was not settled is answered as failed; whatever the committer still settles comes too late."""
        self._generation += 1
        # before its descriptors are closed: their numbers may soon be those of other files
        self.committer.give_up()
        self._log.abandon()
        waiting, self._outstanding = self._outstanding, deque()
        self._appended = []
        self._putting.clear()
        for item in waiting:
            if not item.future.done():
                item.future.set_exception(UnavailableError(f"{self._device.path}: {detail}", code="device-failed"))
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        waiter = self._settled_all
        if waiter is not None and not self._outstanding and not waiter.done():
            waiter.set_result(None)

    def put(self, chunk: ChunkId, data: Buffer, sums: bytes, *,
            name_hint: str = "") -> asyncio.Future[Location]:
        """See device.Device."""
        device, count = self._device, len(data)
        crc = int.from_bytes(sums, "little") if len(sums) == SUM_BYTES else combine_sums(sums, count)
        known = device.index.lookup(chunk)
        if known is not None:
            return self._repeat(chunk, known, count, crc)
        under_way = self._putting.get(chunk)
        if under_way is not None:
            return self._join(under_way, count, crc)
        if device.is_writing(chunk):
            raise UnavailableError(f"chunk {chunk.hex()} is being written", code="chunk-busy")
        hint = name_hint.encode()[: device.settings.name_hint_bytes_max] if name_hint else b""
        framed = records.chunk_record_bytes(count, len(hint))
        if framed > device.settings.segment_chunk_bytes_max + 4096:
            raise IntegrityError(f"a chunk of {count} bytes is no small chunk", code="chunk-too-long")
        device.admit(framed)
        if len(self._outstanding) >= device.settings.sync_waiters_max:
            raise UnavailableError(f"{device.path}: too many writes wait for the disk", code="device-busy")
        wall_ms = device.clock.now_ms()
        try:
            hit(device.write_point)
            place = self._log.append_chunk(chunk, data, sums, hint, data_crc=crc, wall_ms=wall_ms)
        except OSError as error:
            raise device.write_failed(error) from error
        device.take_room(framed)
        value = pack(place.segment, place.offset, count, framed, crc, records.LIVE, wall_ms)
        item = self.log_appended(place, chunk, value)
        self._putting[chunk] = item
        return item.future

    def log_appended(self, place: segments.Place, chunk: bytes, value: bytes | None) -> Appended:
        """Have a record that was appended synced; its future is done when the index knows it."""
        future: asyncio.Future[Location] = self._loop.create_future()
        device, item = self._device, Appended(future, place, chunk, value)
        self._outstanding.append(item)
        if self._watch is None:
            self._watch = self._loop.call_later(device.settings.io_deadline_seconds, self._check_progress, item)
        if not self._appended:
            self._loop.call_soon(self._hand_over)
        self._appended.append(item)
        number = self._log.wanted()
        if number:
            self._prepare_segment(number)
        return item

    def _hand_over(self) -> None:
        """At the end of the turn: all that came in it shares one sync and one wake-up of the committer's thread."""
        items, self._appended = self._appended, []
        if items:
            self.committer.submit(items)

    def _prepare_segment(self, number: int) -> None:
        def offer(future: asyncio.Future[int]) -> None:
            failed = future.cancelled() or future.exception() is not None
            self._log.offer(number, -1 if failed else future.result())

        self._device.submit(segments.create, self._device.layout, number).add_done_callback(offer)

    def _settle(self, group: list[Appended], error: OSError | None) -> None:
        device = self._device
        if error is not None:
            device.fail("failed", f"sync failed: {error}")
            return
        index, outstanding, putting = device.index, self._outstanding, self._putting
        self.groups_total += 1
        self.records_total += len(group)
        self.bytes_total += sum(item.end - item.offset for item in group)
        ends: dict[int, int] = {}
        for item in group:
            outstanding.popleft()
            chunk = item.chunk
            is_new = putting.pop(chunk, None) is not None   # was nowhere; a verdict's or a copy's chunk is known
            if item.value is not None:
                index.apply(chunk, item.value, None if is_new else index.lookup(chunk))
            ends[item.segment] = item.end
            if not item.future.done():
                item.future.set_result(Location(item.segment, item.offset))
        for segment, end in ends.items():
            self._log.synced(segment, end)
            index.advance(segment, end)
        if len(index.fresh) > device.settings.index_fresh_max // 2:
            device.wake()
        self._tell_if_empty()

    def _check_progress(self, oldest: Appended) -> None:
        """A sync that hangs fails the device instead of letting its writers wait for ever."""
        device, self._watch = self._device, None
        if self._outstanding and self._outstanding[0] is oldest:
            device.fail("failed", f"a sync has not returned for {device.settings.io_deadline_seconds:.0f} s")
        elif self._outstanding:
            first = self._outstanding[0]
            self._watch = self._loop.call_later(device.settings.io_deadline_seconds, self._check_progress, first)

    def _repeat(self, chunk: ChunkId, value: bytes, count: int, crc: int) -> asyncio.Future[Location]:
        entry = unpack(value)
        self._check_same(chunk, entry, count, crc)
        if not is_live(value):
            return self._loop.create_task(self._device.accept_repeat(chunk, entry))
        future: asyncio.Future[Location] = self._loop.create_future()
        future.set_result(Location(entry.segment, entry.offset))
        return future

    def _join(self, under_way: Appended, count: int, crc: int) -> asyncio.Future[Location]:
        assert under_way.value is not None
        self._check_same(ChunkId(under_way.chunk), unpack(under_way.value), count, crc)
        if under_way.future.cancelled():    # the first writer is gone, its record is on its way all the same
            under_way.future = self._loop.create_future()
        joined: asyncio.Future[Location] = asyncio.shield(under_way.future)
        return joined

    @staticmethod
    def _check_same(chunk: ChunkId, entry: Entry, count: int, crc: int) -> None:
        if (entry.chunk_bytes, entry.crc) != (count, crc):
            raise ConflictError(f"chunk {chunk.hex()} is here with other bytes", code="chunk-exists")
