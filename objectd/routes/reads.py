"""GET /v1/chunks/{ticket}?blocks=A-B: all block sums of a chunk, then the data of the blocks asked for.

Owns the choice of the way: one write from memory (small), sendfile (large and in the page cache), or the device's
threads (anything that would wait for the disk). Invariants: the loop never waits for a disk; a copy that is missing or
of another length than its ticket says is reported; a read is counted once, by its share of the chunk, unless the
ticket says NO_HEAT; of a chunk of one piece at most one whole read waits for a device, others wait for that one.

Cost of 4 KiB in the page cache, us (budget of the whole request: 19): ticket 1.8, clock and tables 0.6, heat 0.2, one
preadv of header, sums and data 2.5, then the adapter's one write. 1 MiB: one cachestat (1.5) and one sendfile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from objectd.config import Chunks
from objectd.fresh import Fresh
from objectd.heat import HeatCounter
from objectd.memory import TIER, Memory
from objectd.residency import Residency
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store.device import Location, OpenChunk
from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count
from tierstore.errors import IntegrityError, NotFound, RangeNotSatisfiable, TicketRefused, UnavailableError
from tierstore.names import ChunkId, DeviceId
from tierstore.serving.exchange import Exchange
from tierstore.ticket import NO_HEAT, read_fields

#: Chunks from here on are left to the page cache where there is one: sending from it is cheaper than from RAM, and one
#: reader of a large object would fill the RAM of its server.
PAGE_CACHE_BYTES_MIN: Final = 4 << 20
#: Digits of a block number: more than any chunk has blocks.
_BLOCK_DIGITS_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a read that must wait is about."""

    slot: Slot
    chunk: ChunkId
    chunk_bytes: int
    first: int
    count: int
    is_client: bool = True


class ChunkReads:
    """The handler of the GET route. Event loop only."""

    def __init__(
        self, *, standing: Standing, slots: Slots, heat: HeatCounter, memory: Memory, fresh: Fresh,
        residency: Residency, settings: Chunks, on_damage: Callable[[Slot, ChunkId, int], None],
    ) -> None:  # fmt: skip
        """on_damage(slot, chunk, its right length): a copy was found damaged; it sees to it that this is told."""
        self._on_damage = on_damage
        self._standing = standing
        self._slots = slots
        self._heat = heat
        self._memory = memory
        self._fresh = fresh
        self._residency = residency
        self._sendfile_bytes_min = settings.sendfile_bytes_min
        self._cold_reads_max = settings.cold_reads_max
        self._piece_bytes = settings.cold_read_bytes
        self._device_timeout = settings.device_timeout
        self.cold_reads = 0          # under way
        self.reads_total = 0
        self.blocks_total = 0        # sent to clients; copies between servers are not counted
        self.cold_total = 0
        self.joined_total = 0        # answered from another's read of the same chunk
        self._loading: dict[tuple[int, ChunkId], asyncio.Future[bytes | None]] = {}
        self.bytes_total = 0
        #: Client reads and their bytes by the tier that served them, since this life began.
        self.served: dict[str, tuple[int, int]] = {}

    def handle(self, exchange: Exchange) -> None:
        """Answer, or hand the exchange to a coroutine when the disk must be waited for."""
        standing = self._standing
        server, device, chunk_bytes_, segment, chunk_bytes, offset, expires_at, flags = read_fields(
            exchange.route_arg, standing.keys
        )
        chunk = ChunkId(chunk_bytes_)
        if server != standing.server:
            raise TicketRefused("the ticket is for another server")
        if expires_at < standing.now_seconds():
            raise TicketRefused("the ticket has expired")
        slot = self._slots.by_id.get(device)
        if slot is None:
            raise NotFound(f"device {device} is not one of this object server's", code="no-such-device")
        first, count = 0, chunk_bytes
        if b"?" in exchange.target:
            first, count = _range(exchange.query(b"blocks"), chunk_bytes)
        self.reads_total += 1
        self.bytes_total += count
        hint = Location(segment, offset)
        if not flags & NO_HEAT:
            self.blocks_total += block_count(count)
            self._heat.count(chunk, 1.0 if count == chunk_bytes else count / chunk_bytes)
            if not slot.is_slowest:
                self._memory.forget(chunk)      # a faster device has it by now: its room is for what must wait
            elif self._memory.is_on and (held := self._memory.get(chunk)) is not None:
                wanted = _Wanted(slot, chunk, chunk_bytes, first, count)
                if count > self._sendfile_bytes_min and self._send_cached(exchange, wanted, hint):
                    return
                self._count_served(TIER, count)
                self._from_memory(exchange, held, chunk_bytes, first, count)
                return
            self._count_served(slot.device.tier, count)
        elif count == chunk_bytes and (answer := self._fresh.take(chunk, chunk_bytes)) is not None:
            exchange.reply(200, answer, slot.answer_lines(len(answer) - chunk_bytes))
            return
        if count == chunk_bytes <= self._sendfile_bytes_min and segment:
            raw = slot.device.read_small_now(chunk, hint, chunk_bytes)
            if raw is not None:
                exchange.reply(200, raw, slot.answer_lines(len(raw) - chunk_bytes))
                return
        try:
            opened = slot.device.open_chunk(chunk, hint)
        except NotFound:
            self._slots.note_bad(chunk, DeviceId(device), "missing")
            raise
        if opened is None:
            self._wait(exchange, _Wanted(slot, chunk, chunk_bytes, first, count, not flags & NO_HEAT), None)
            return
        if opened.chunk_bytes != chunk_bytes:
            opened.close()
            raise self._wrong_length(chunk, slot, opened.chunk_bytes, chunk_bytes)
        fd = opened.fd
        if fd >= 0 and count > self._sendfile_bytes_min:
            at = opened.data_offset + first
            if self._residency.is_resident(fd, at, count):
                exchange.reply_file(
                    200, slot.answer_lines(len(opened.sums)), opened.sums, fd, at, count, _Closing(opened)
                )
                return
        else:
            data = opened.read_now(first, count)
            if data is not None:
                sums = opened.sums
                opened.close()
                exchange.reply(200, sums + data, slot.answer_lines(len(sums)))
                return
        self._wait(exchange, _Wanted(slot, chunk, chunk_bytes, first, count, not flags & NO_HEAT), opened)

    def count_lent(self, slot: Slot, chunk: ChunkId, chunk_bytes: int, count: int, flags: int) -> None:
        """A read of `count` bytes that its reader makes itself (routes.loans)."""
        self.reads_total += 1
        self.bytes_total += count
        if not flags & NO_HEAT:
            self.blocks_total += block_count(count)
            self._heat.count(chunk, 1.0 if count == chunk_bytes else count / chunk_bytes)
            if not slot.is_slowest:
                self._memory.forget(chunk)      # as in handle()
            self._count_served(slot.device.tier, count)

    def _count_served(self, tier: str, count: int) -> None:
        reads, size = self.served.get(tier, (0, 0))
        self.served[tier] = (reads + 1, size + count)

    def _send_cached(self, exchange: Exchange, wanted: _Wanted, hint: Location) -> bool:
        """A chunk that is in RAM may be in the page cache by now: sendfile spares the copy that RAM costs."""
        slot, first, count = wanted.slot, wanted.first, wanted.count
        try:
            opened = slot.device.open_chunk(wanted.chunk, hint)
        except NotFound:
            return False            # its device lost it; what is in RAM was checked when it came in
        if opened is None:
            return False
        at = opened.data_offset + first
        if (
            opened.chunk_bytes != wanted.chunk_bytes or opened.fd < 0
            or not self._residency.is_resident(opened.fd, at, count)
        ):  # fmt: skip
            opened.close()
            return False
        self._count_served(slot.device.tier, count)
        exchange.reply_file(
            200, slot.answer_lines(len(opened.sums)), opened.sums, opened.fd, at, count, _Closing(opened)
        )
        return True

    def _from_memory(self, exchange: Exchange, held: bytes, chunk_bytes: int, first: int, count: int) -> None:
        sums_bytes = block_count(chunk_bytes) * SUM_BYTES
        if len(held) != sums_bytes + chunk_bytes:
            raise IntegrityError("the ticket names another length than the chunk has", code="bad-footer")
        lines = self._memory.answer_lines(sums_bytes)
        if count == chunk_bytes:
            exchange.reply(200, held, lines)
            return
        view, at = memoryview(held), sums_bytes + first
        exchange.reply(200, b"".join((view[:sums_bytes], view[at : at + count])), lines)

    def _wait(self, exchange: Exchange, wanted: _Wanted, opened: OpenChunk | None) -> None:
        if self.cold_reads >= self._cold_reads_max:
            if opened is not None:
                opened.close()
            raise UnavailableError(
                f"{self.cold_reads} reads wait for the disks of this object server", code="too-many-reads"
            )
        self.cold_total += 1
        exchange.spawn(self._cold(exchange, wanted, opened))

    async def _cold(self, exchange: Exchange, wanted: _Wanted, opened: OpenChunk | None) -> None:
        """Answer with what a read of the same chunk brings that is under way, else read it: a crowd that comes for a
        cold chunk waits for one access to the disk, not for one each."""
        if wanted.count != wanted.chunk_bytes or wanted.count > self._piece_bytes:
            await self._from_device(exchange, wanted, opened, None)
            return
        key = (wanted.slot.id, wanted.chunk)
        under_way = self._loading.get(key)
        if under_way is not None:
            if opened is not None:
                opened.close()
                opened = None
            held = await self._joined(under_way, wanted.slot)
            if held is not None:
                self.joined_total += 1
                exchange.reply(200, held, wanted.slot.answer_lines(len(held) - wanted.chunk_bytes))
                return
        loading: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._loading[key] = loading
        try:
            await self._from_device(exchange, wanted, opened, loading)
        finally:
            if not loading.done():
                loading.set_result(None)    # it failed or its reader went away: whoever waits reads for himself
            if self._loading.get(key) is loading:
                del self._loading[key]

    async def _joined(self, under_way: asyncio.Future[bytes | None], slot: Slot) -> bytes | None:
        """Sums and data that another read brings; None when it brings none. Raises UnavailableError(device-slow)."""
        self.cold_reads += 1
        try:
            async with asyncio.timeout(self._device_timeout):
                return await asyncio.shield(under_way)
        except TimeoutError:
            raise self._too_slow(slot) from None
        finally:
            self.cold_reads -= 1

    def _too_slow(self, slot: Slot) -> UnavailableError:
        return UnavailableError(
            f"device {slot.id} did not answer within {self._device_timeout:g} s", code="device-slow"
        )

    async def _from_device(
        self, exchange: Exchange, wanted: _Wanted, opened: OpenChunk | None,
        loading: asyncio.Future[bytes | None] | None,
    ) -> None:  # fmt: skip
        """Stream a range through the device's threads, in pieces; holds at most one piece. loading: told sums and data
        of the whole chunk as soon as they are here."""
        slot, chunk, chunk_bytes = wanted.slot, wanted.chunk, wanted.chunk_bytes
        first, count = wanted.first, wanted.count
        self.cold_reads += 1
        slot.waiting += 1
        began, waiting = asyncio.get_running_loop().time(), slot.waiting
        is_answered = False
        is_kept = slot.is_slowest and count == chunk_bytes and self._memory.admits(chunk_bytes)
        kept: list[bytes] | None = [] if is_kept else None
        try:
            async with asyncio.timeout(self._device_timeout):
                opened = opened or await slot.device.find(chunk)
                if opened.chunk_bytes != chunk_bytes:
                    raise self._wrong_length(chunk, slot, opened.chunk_bytes, chunk_bytes)
                fd = opened.fd
                if fd >= 0 and self._residency.is_resident(fd, opened.data_offset + first, count):
                    # only its descriptor was not at hand; the exchange closes the chunk when the bytes are sent
                    sending, opened = opened, None
                    exchange.reply_file(
                        200, slot.answer_lines(len(sending.sums)), sending.sums, fd, sending.data_offset + first,
                        count, _Closing(sending),
                    )  # fmt: skip
                    return
                if fd >= 0 and chunk_bytes >= PAGE_CACHE_BYTES_MIN:
                    kept = None
                data = await opened.read(first, min(count, self._piece_bytes))
            slot.note_read((asyncio.get_running_loop().time() - began) / waiting, len(data))
            is_answered = True
            answer = opened.sums + data
            if loading is not None and len(data) == chunk_bytes:
                loading.set_result(answer)
                if wanted.is_client:
                    self._fresh.keep(chunk, answer)
            # nothing is promised to the client before the first piece is here: a sick disk gives a clear error
            exchange.begin(200, slot.answer_lines(len(opened.sums)), len(opened.sums) + count)
            await exchange.send(answer)
            if kept is not None:
                kept.append(data)
            at, end = first + len(data), first + count
            while at < end:
                async with asyncio.timeout(self._device_timeout):
                    data = await opened.read(at, min(end - at, self._piece_bytes))
                await exchange.send(data)
                if kept is not None:
                    kept.append(data)
                at += len(data)
            exchange.end()
            if kept is not None:
                self._memory.admit(chunk, opened.sums, kept[0] if len(kept) == 1 else b"".join(kept))
        except asyncio.CancelledError:
            if not is_answered:
                slot.note_given_up((asyncio.get_running_loop().time() - began) / waiting)
            raise
        except NotFound:
            self._slots.note_bad(chunk, slot.id, "missing")
            raise
        except IntegrityError:
            self._on_damage(slot, chunk, chunk_bytes)
            raise
        except TimeoutError:
            raise self._too_slow(slot) from None
        except ConnectionError:
            raise               # the client went away; the adapter knows
        except OSError as error:
            self._slots.note_bad(chunk, slot.id, "bad-block")
            raise IntegrityError(
                f"device {slot.id} cannot read chunk {chunk.hex()}: {error.strerror}", code="read-error"
            ) from error
        finally:
            self.cold_reads -= 1
            slot.waiting -= 1
            if opened is not None:
                opened.close()

    def _wrong_length(self, chunk: ChunkId, slot: Slot, found: int, wanted: int) -> IntegrityError:
        """A chunk id is written once, so another length is damage (or a forged hint, which its MAC rules out)."""
        self._on_damage(slot, chunk, wanted)
        return IntegrityError(
            f"chunk {chunk.hex()} has {found} bytes here, its ticket says {wanted}", code="bad-footer"
        )


class _Closing:
    """Gives a chunk's descriptor back when its bytes were sent or the client went away."""

    __slots__ = ("_opened",)

    def __init__(self, opened: OpenChunk) -> None:
        self._opened = opened

    def __call__(self, error: BaseException | None) -> None:
        self._opened.close()


def _range(blocks: bytes | None, chunk_bytes: int) -> tuple[int, int]:
    """(first byte, count) of "A-B", blocks A to B inclusive; None: the whole chunk. Raises RangeNotSatisfiable."""
    if blocks is None:
        return 0, chunk_bytes
    a, dash, b = blocks.partition(b"-")
    last = block_count(chunk_bytes) - 1
    if dash and a.isdigit() and b.isdigit() and max(len(a), len(b)) <= _BLOCK_DIGITS_MAX:
        low, high = int(a), int(b)
        if low <= high <= last:
            first = low * BLOCK_BYTES
            return first, min((high + 1) * BLOCK_BYTES, chunk_bytes) - first
    raise RangeNotSatisfiable(f"blocks={blocks.decode('latin-1')} is not A-B with 0 <= A <= B <= {last}")
