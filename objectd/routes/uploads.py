"""PUT /v1/chunks/{ticket}?index=I&name=N: a chunk's data, then its block sums; answered with a receipt when durable.

Owns uploads under way and their bounds. Invariants: refusals that need no body come before it is read; nothing is
kept unless the sums computed here equal those sent; the receipt is signed after the device said "durable"; whatever
goes wrong, the space is freed and the bytes in flight are given back exactly once.

Small chunks (a segment's record) are collected in memory and stored by one call; larger ones stream into the device's
writer, which lags by its own bound: then the body is paused until the disk has caught up.

Cost of 4 KiB, us: ticket and query 5, CRC 0.3, the store's share of a group commit 5, receipt 2, one task 4.
1 MiB: CRC 50, write into the page cache 150.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import unquote_to_bytes

from objectd.config import STREAM_WINDOW_BYTES, Chunks
from objectd.routes.streams import RECEIPT_LINES, ChunkStream, Comparing, Source, mismatch
from objectd.slots import Slot, Slots
from objectd.standing import Standing
from objectd.store.device import ChunkWriter, Location
from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, combine_sums, sums_of
from tierstore.errors import (
    CapacityError,
    ConflictError,
    RequestError,
    TicketRefused,
    TooLarge,
    UnavailableError,
)
from tierstore.failpoints import hit
from tierstore.names import ChunkId, chunk_id
from tierstore.serving.exchange import Exchange
from tierstore.ticket import open_write
from tierstore.wire.hints import HINT_BYTES_MAX

#: A bucket, a slash and a key, and what a rebuild needs to make the object again.
NAME_BYTES_MAX: Final = HINT_BYTES_MAX
#: Every so many puts of a device go through put_small, which waits while the device's index is behind (its own bound).
BACK_PRESSURE_EVERY: Final = 256
_INDEX_MAX: Final = (1 << 32) - 1


class ChunkUploads:
    """The handler of the PUT route. Event loop only."""

    def __init__(self, *, standing: Standing, slots: Slots, settings: Chunks) -> None:
        self._standing = standing
        self._slots = slots
        self._settings = settings
        self._streaming: set[tuple[int, ChunkId]] = set()
        self.uploads = 0              # under way
        self.upload_bytes = 0         # held by them
        self.uploads_total = 0
        self.bytes_total = 0

    def handle(self, exchange: Exchange) -> None:
        """Check everything that can be checked without the body, then receive it."""
        index_text, name_text = _parameters(exchange.target)
        body_bytes = exchange.content_length
        if body_bytes is None:
            raise RequestError("a chunk needs a Content-Length", code="length-required")
        chunk_bytes = data_bytes(body_bytes)
        slot, chunk = self.admit(exchange.route_arg, _index(index_text), chunk_bytes)
        name = name_text[:NAME_BYTES_MAX].decode("utf-8", "replace")
        self.check_room(min(chunk_bytes, STREAM_WINDOW_BYTES))
        settings = self._settings
        if chunk_bytes <= settings.segment_chunk_bytes_max:
            exchange.receive(_Small(self, exchange, slot, chunk, chunk_bytes, name=name))
        else:
            stream = self.begin(exchange, slot, chunk, chunk_bytes, name)
            exchange.receive(stream)
            exchange.spawn(stream.run())

    def admit(self, ticket_text: bytes, index: int, chunk_bytes: int) -> tuple[Slot, ChunkId]:
        """Where a chunk of that many bytes may be written under this ticket, and its id. Raises TicketRefused,
        TooLarge, NotFound, CapacityError, UnavailableError."""
        standing = self._standing
        ticket = open_write(ticket_text, standing.keys, server=standing.server, now_seconds=standing.now_seconds())
        if not ticket.covers(index):
            raise TicketRefused(
                f"the ticket is for chunks {ticket.first_index} to {ticket.first_index + ticket.index_count - 1}"
            )
        if chunk_bytes > min(ticket.chunk_bytes_max, self._settings.chunk_bytes_max):
            raise TooLarge(f"the ticket is for chunks of at most {ticket.chunk_bytes_max} bytes")
        slot = self._slots.slot(ticket.device)
        _check_writable(slot)
        return slot, chunk_id(ticket.upload, index)

    def check_room(self, count: int) -> None:
        """Raises UnavailableError when too many uploads, or too many bytes of them, are under way for so many more."""
        settings = self._settings
        if self.uploads >= settings.uploads_max or self.upload_bytes + count > settings.upload_bytes_max:
            raise UnavailableError(
                f"{self.uploads} uploads hold {self.upload_bytes} bytes here; try again", code="too-many-uploads"
            )

    @property
    def small_bytes_max(self) -> int:
        """A chunk of up to this lies in a segment."""
        return self._settings.segment_chunk_bytes_max

    def begin(self, source: Source, slot: Slot, chunk: ChunkId, chunk_bytes: int, name: str) -> ChunkStream:
        """The stream of a large chunk that was admitted; run() it. Raises UnavailableError when the same one is under
        way, and what the device raises."""
        under_way = (slot.id, chunk)
        if under_way in self._streaming:
            raise UnavailableError(f"chunk {chunk.hex()} is being uploaded already", code="upload-under-way")
        writer: ChunkWriter
        try:
            writer = slot.device.begin(chunk, chunk_bytes, name_hint=name)
        except ConflictError:
            # it is here: with the same bytes this is a repeat and gets its receipt, which only the body can tell
            writer = Comparing(slot, chunk, chunk_bytes)
        self._streaming.add(under_way)
        return ChunkStream(self, source, slot, chunk, chunk_bytes, writer=writer)

    def receipt(self, slot: Slot, chunk: ChunkId, chunk_bytes: int, sums: bytes, at: Location) -> bytes:
        """Sign for a chunk that is durable at `at`."""
        crc = int.from_bytes(sums, "little") if chunk_bytes <= BLOCK_BYTES else combine_sums(sums, chunk_bytes)
        self.uploads_total += 1
        self.bytes_total += chunk_bytes
        return self._standing.sign(
            device=slot.id, chunk=chunk, segment=at.segment, offset=at.offset, chunk_bytes=chunk_bytes, crc32c=crc
        )

    def hold(self, count: int) -> None:
        self.uploads += 1
        self.upload_bytes += count

    def give_back(self, count: int) -> None:
        self.uploads -= 1
        self.upload_bytes -= count

    def streamed(self, slot: Slot, chunk: ChunkId) -> None:
        """The stream of this chunk has ended, one way or the other."""
        self._streaming.discard((slot.id, chunk))

    @property
    def device_timeout(self) -> float:
        return self._settings.device_timeout


class _Small:
    """Collects one small chunk and stores it. Holds its bytes from the head on until the answer."""

    __slots__ = ("_body", "_chunk", "_chunk_bytes", "_exchange", "_is_ended", "_name", "_slot", "_sums", "_uploads")

    def __init__(
        self, uploads: ChunkUploads, exchange: Exchange, slot: Slot, chunk: ChunkId, chunk_bytes: int, *, name: str
    ) -> None:
        self._uploads = uploads
        self._exchange = exchange
        self._slot = slot
        self._chunk = chunk
        self._chunk_bytes = chunk_bytes
        self._name = name
        self._body: bytes | bytearray = b""
        self._sums = b""
        self._is_ended = False
        uploads.hold(chunk_bytes)

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._uploads.give_back(self._chunk_bytes)

    def __del__(self) -> None:
        # a coroutine that is cancelled before its first step never reaches its own finally
        self._end()

    def data(self, piece: memoryview) -> None:
        if self._body:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += piece
        else:
            # most small bodies come in one piece; a bytes object cannot change after the call, so it needs no copy
            whole = piece.obj
            self._body = whole if type(whole) is bytes and len(whole) == piece.nbytes else bytes(piece)

    def complete(self) -> None:
        """Check it and put it into the device's log; the answer follows when that is synced."""
        size, slot = self._chunk_bytes, self._slot
        data = memoryview(self._body)[:size]
        self._sums = bytes(self._body[size:])
        if sums_of(data) != self._sums:
            self._end()
            self._exchange.fail(mismatch(self._chunk))
            return
        slot.puts += 1
        if slot.puts % BACK_PRESSURE_EVERY == 0:
            self._exchange.spawn(self._store(data))
            return
        # its errors become the answer
        future = slot.device.submit_small(self._chunk, data, self._sums, name_hint=self._name)
        slot.waiting += 1
        future.add_done_callback(self._stored)

    def aborted(self, error: BaseException) -> None:
        self._end()

    def _stored(self, future: asyncio.Future[Location]) -> None:
        self._slot.waiting -= 1
        self._end()
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._answer(future.result())
        else:
            self._exchange.fail(error)

    async def _store(self, data: memoryview) -> None:
        self._slot.waiting += 1
        try:
            at = await self._slot.device.put_small(self._chunk, data, self._sums, name_hint=self._name)
        finally:
            self._slot.waiting -= 1
            self._end()
        self._answer(at)

    def _answer(self, at: Location) -> None:
        try:
            hit("objectd.upload.before_receipt")
            receipt = self._uploads.receipt(self._slot, self._chunk, self._chunk_bytes, self._sums, at)
        except Exception as error:  # in a callback nobody else would answer for it, and the request would hang
            self._exchange.fail(error)
        else:
            self._exchange.reply(200, receipt, RECEIPT_LINES)


def data_bytes(body_bytes: int) -> int:
    """How many of the body's bytes are data, the rest being one sum per block. Raises RequestError."""
    blocks = -(-body_bytes // (BLOCK_BYTES + SUM_BYTES))
    size = body_bytes - blocks * SUM_BYTES
    if size <= 0 or block_count(size) != blocks:
        raise RequestError(
            f"{body_bytes} bytes are not a chunk's data with {SUM_BYTES} bytes of sum per block of {BLOCK_BYTES}",
            code="bad-length",
        )
    return size


def _parameters(target: bytes) -> tuple[bytes, bytes]:
    """index and name (percent-decoded) of the query in one pass, half the time of two look-ups; b"" when missing."""
    index = name = b""
    for pair in target.partition(b"?")[2].split(b"&"):
        if pair.startswith(b"index="):
            index = pair[6:]
        elif pair.startswith(b"name="):
            name = pair[5:]
            if b"%" in name or b"+" in name:
                name = unquote_to_bytes(name.replace(b"+", b" "))
    return index, name


def _index(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) > _INDEX_MAX:
        raise RequestError("index=I, the number of the chunk in its upload, is missing or wrong", code="bad-index")
    return int(text)


def _check_writable(slot: Slot) -> None:
    state = slot.device.state
    if slot.grant == "removed":
        raise UnavailableError(f"device {slot.id} was removed from the cluster", code="device-removed")
    if state == "full":
        raise CapacityError(f"device {slot.id} is full: {slot.device.detail}")
    if state != "ok":
        raise UnavailableError(f"device {slot.id} is {state}: {slot.device.detail}", code="device-failed")
