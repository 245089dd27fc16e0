"""One whole chunk to `copies` object servers at the same time, with spares for those that fail.

Owns what sends and the choice of targets; all of it has ended when `run` returns or raises. The chunk stays
in the caller's memory until then, so a spare gets the same bytes (docs/adr/0060): nothing is read back from a server.

An allocation may name one more target, for a cache copy on a fast device. It runs beside the others, and whatever
becomes of it the home copies decide: it is waited for no longer than `extra_copy_seconds` after them.

Invariants: the receipts returned are of `copies` different servers; fewer is an error and nothing becomes visible
(chunks that were stored are collected as orphans); a slow server holds up only its own task: each sends from the
shared buffer under its own back-pressure.

Cost: per copy one task, one connection from the pool, no copy of the bytes; of a small chunk per copy one future, a
share of a message and one copy of the bytes (docs/adr/0220).
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import TYPE_CHECKING

from tierstore.checksum import combine_sums, sums_of
from tierstore.errors import CapacityError, TicketRefused, TierstoreError, UnavailableError
from tierstore.names import UploadId, chunk_id
from tierstore.wire.chunks import SET_CHUNK_BYTES_MAX
from tierstore.wire.names import Allocation, CommitChunk, Target

if TYPE_CHECKING:
    from tierstore.sdk.put import PutParts

_ONE_SUM = struct.Struct("<I")


class ChunkFanout:
    """Store one chunk. `data` must not change until run() has ended."""

    def __init__(self, parts: PutParts, allocation: Allocation, *, data: memoryview, name: str) -> None:
        self._parts = parts
        self._limits = parts.limits
        self._allocation = allocation
        self._data = data
        self._name = name
        self._copies = parts.placement.copies
        self._sums = sums_of(data)
        self.crc32c = _ONE_SUM.unpack(self._sums)[0] if len(self._sums) == 4 else combine_sums(self._sums, len(data))
        self._loop = asyncio.get_running_loop()
        self._settled: asyncio.Future[None] = self._loop.create_future()
        self._candidates: deque[Target] = deque(self._in_order(allocation))
        self._used: set[int] = set()
        #: Of those, the ones that could not take it now but perhaps a moment later (a restart, a broken connection).
        self._again: set[int] = set()
        self._running: dict[asyncio.Future[bytes], Target] = {}
        self._receipts: list[bytes] = []
        self._failures: list[TierstoreError] = []
        self._asking: asyncio.Task[None] | None = None
        self._asks = 0
        self._ask_until = self._loop.time() + parts.limits.placement_wait_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._extra: asyncio.Task[bytes] | None = None
        #: True when no send was cut off: nobody looks at `data` any more.
        self.is_quiet = True
        #: Tier of the first copy that was stored.
        self.tier = ""

    def _in_order(self, allocation: Allocation) -> list[Target]:
        targets = [*allocation.targets, *allocation.spares]
        servers = self._parts.servers
        if servers.has_suspects:
            targets.sort(key=lambda target: servers.is_suspect(target.server))
        return targets

    async def run(self) -> CommitChunk:
        """Send, and return what the commit needs. Raises UnavailableError(not-enough-servers), CapacityError."""
        try:
            self._fill()
            if self._allocation.extras:
                self._extra = self._loop.create_task(self._send(self._allocation.extras[0]))
            await self._settled
            extra = await self._extra_receipt()
        finally:
            self._stop()
        return CommitChunk(
            id=chunk_id(UploadId(self._allocation.upload), self._allocation.index),
            chunk_bytes=len(self._data), crc32c=self.crc32c, receipts=self._receipts, cache_receipts=extra,
        )  # fmt: skip

    async def _extra_receipt(self) -> list[bytes]:
        """The receipt of the copy beside the home ones, if it is there about when they are: nobody waits for it."""
        task = self._extra
        if task is None:
            return []
        done, _ = await asyncio.wait({task}, timeout=self._limits.extra_copy_seconds)
        if not done:
            self._parts.servers.extra_copies_failed_total += 1
            return []
        error = task.exception()
        if error is None:
            self.tier = self._allocation.extras[0].tier
            return [task.result()]
        if not isinstance(error, TierstoreError):
            raise error
        self._parts.servers.extra_copies_failed_total += 1
        return []

    def _fill(self) -> None:
        """See to it that as many servers as are still needed have the chunk on its way."""
        while not self._settled.done() and len(self._receipts) + len(self._running) < self._copies:
            if self._start_candidate():
                continue
            if self._asking is None:
                if self._asks < self._limits.chunk_attempts_max and self._loop.time() < self._ask_until:
                    self._asks += 1
                    self._asking = self._loop.create_task(self._ask_for_more())
                    self._asking.add_done_callback(self._asked)
                else:
                    self._give_up()
            return

    def _start_candidate(self) -> bool:
        """Give the chunk to the next candidate that has not had it. False: none is left."""
        while self._candidates:
            target = self._candidates.popleft()
            if target.server not in self._used:
                self._used.add(target.server)
                sending = self._send_with_others(target) or self._loop.create_task(self._send(target))
                self._running[sending] = target
                sending.add_done_callback(self._sent)
                return True
        return False

    def _send_with_others(self, target: Target) -> asyncio.Future[bytes] | None:
        """A small chunk shares a message with those that go to the same device now; None: send it by itself."""
        if len(self._data) > SET_CHUNK_BYTES_MAX:
            return None
        url = self._parts.servers.known_url(target.server)
        if url is None:
            return None
        try:
            return self._parts.objects.store_small(
                url, target.device, target.ticket, index=self._allocation.index, name=self._name, data=self._data,
                sums=self._sums, seconds=self._limits.chunk_store_seconds,
            )  # fmt: skip
        except UnavailableError:
            return None     # too many wait for that device: its own connection has its own bound

    async def _send(self, target: Target) -> bytes:
        limits = self._limits
        url = await self._parts.servers.url(target.server)
        return await self._parts.objects.put_chunk(
            url, target.ticket, index=self._allocation.index, name=self._name, data=self._data, sums=self._sums,
            seconds=limits.chunk_store_seconds + len(self._data) / limits.chunk_store_bytes_per_second,
        )  # fmt: skip

    def _sent(self, sending: asyncio.Future[bytes]) -> None:
        target = self._running.pop(sending, None)
        if target is None or self._settled.done():
            if not sending.cancelled():
                sending.exception()
            return
        if sending.cancelled():
            self._settled.cancel()
            return
        error = sending.exception()
        if error is None:
            self._receipts.append(sending.result())
            self.tier = self.tier or target.tier
            if len(self._receipts) == self._copies:
                self._settled.set_result(None)
            elif self._timer is None and len(self._receipts) + 1 == self._copies:
                self._timer = self._loop.call_later(self._limits.straggler_seconds, self._help_straggler)
        elif isinstance(error, TierstoreError):
            self._parts.servers.write_failures_total += 1
            if isinstance(error, UnavailableError):
                self._parts.servers.note_failure(target.server)
                self._again.add(target.server)
            self._failures.append(error)
            if isinstance(error, TicketRefused):
                # expired or of another key: the server itself may take the chunk under a new ticket, and what is
                # held ahead is as old as this one
                self._used.discard(target.server)
                self._parts.allocations.drop(self._parts.placement)
            self._fill()
        else:
            self._settled.set_exception(error)

    def _help_straggler(self) -> None:
        """All others have finished long ago: let a spare race the last one. The first receipt counts."""
        if not self._settled.done() and self._running and self._candidates:
            for target in self._running.values():
                self._parts.servers.note_failure(target.server)
            self._start_candidate()

    async def _ask_for_more(self) -> None:
        """The spares are used up: ask metadata for other servers, for the same chunk id. Servers that failed are
        among them from the second time on, after a pause: they may have been restarting. The id is write-once, so what
        they did store is no harm."""
        if self._asks > 1:
            await asyncio.sleep(self._limits.chunk_again_seconds * 2 ** (self._asks - 2))
            self._used -= self._again
            self._again.clear()
        a = self._allocation
        missing = max(self._copies - len(self._receipts) - len(self._running), 1)
        try:
            more = await self._parts.allocations.take_more(
                self._parts.placement, a.upload, a.index, 1, len(self._data), copies=missing,
                exclude=sorted(self._used),
            )  # fmt: skip
        except TierstoreError as error:
            if not self._failures:      # else what the servers said tells more
                self._failures.append(error)
            more = []
        self._asking = None
        for allocation in more:
            self._candidates.extend([*allocation.targets, *allocation.spares])
        # with no candidate it asks again, later, or gives up
        self._fill()

    def _asked(self, task: asyncio.Task[None]) -> None:
        """An unexpected fault of the asking must end the fan-out, not leave it waiting."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._settled.done():
            self._settled.set_exception(error)

    def _give_up(self) -> None:
        """What runs cannot make up the copies any more and nobody else can be asked."""
        if self._failures and all(isinstance(failure, CapacityError) for failure in self._failures):
            self._settled.set_exception(CapacityError(self._failures[-1].detail, code=self._failures[-1].code))
            return
        why = "; ".join(sorted({str(failure) for failure in self._failures})) or "no server is left"
        self._settled.set_exception(UnavailableError(
            f"{len(self._receipts)} of {self._copies} copies could be stored: {why}", code="not-enough-servers",
        ))  # fmt: skip

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
        if self._extra is not None:
            if not self._extra.done():
                self.is_quiet = False
                self._extra.cancel()
            elif not self._extra.cancelled():
                self._extra.exception()     # looked at, also when the home copies failed first
        for sending in self._running:
            self.is_quiet = False
            sending.cancel()
        self._running.clear()
