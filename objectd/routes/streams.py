"""One large chunk on its way to the disk, whichever way its bytes come (routes.uploads, routes.handovers).

Owns the chunk from its admission to its receipt. Invariants: nothing is kept unless the sums computed here equal those
sent; the receipt is signed after the device said "durable"; whatever goes wrong, the space is freed and the bytes in
flight are given back exactly once.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from objectd.config import STREAM_WINDOW_BYTES
from objectd.finishing import finish
from objectd.slots import Slot
from objectd.store.device import ChunkWriter, Location
from tierstore.checksum import BlockSummer
from tierstore.errors import ChecksumMismatch, ConflictError, NotFound, TierstoreError, UnavailableError
from tierstore.failpoints import hit
from tierstore.names import ChunkId

RECEIPT_LINES: Final = b"content-type: text/plain\r\n"


class Source(Protocol):
    """Where the bytes come from and the receipt goes: an exchange, or a message of a writer on this machine."""

    def pause_body(self) -> None: ...
    def resume_body(self) -> None: ...
    def reply(self, status: int, body: bytes, lines: bytes, /) -> None: ...


class Uploads(Protocol):
    """What a stream needs of routes.uploads."""

    @property
    def device_timeout(self) -> float: ...
    def hold(self, count: int) -> None: ...
    def give_back(self, count: int) -> None: ...
    def streamed(self, slot: Slot, chunk: ChunkId) -> None: ...
    def receipt(self, slot: Slot, chunk: ChunkId, chunk_bytes: int, sums: bytes, at: Location) -> bytes: ...


class ChunkStream:
    """One large chunk on its way to the disk: sink of the body, and the coroutine that owns the exchange."""

    def __init__(
        self, uploads: Uploads, source: Source, slot: Slot, chunk: ChunkId, chunk_bytes: int, *,
        writer: ChunkWriter,
    ) -> None:  # fmt: skip
        self._uploads = uploads
        self._source = source
        self._slot = slot
        self._chunk = chunk
        self._chunk_bytes = chunk_bytes
        self._held = min(chunk_bytes, STREAM_WINDOW_BYTES)
        self._writer = writer
        self._summer = BlockSummer()
        self._sent_sums = bytearray()
        self._wake = asyncio.Event()
        self._is_complete = False
        self._is_paused = False
        self._is_ended = False
        self._error: BaseException | None = None
        uploads.hold(self._held)

    def _end(self) -> None:
        if not self._is_ended:
            self._is_ended = True
            self._writer.abort()    # no effect after finish
            self._uploads.streamed(self._slot, self._chunk)
            self._uploads.give_back(self._held)

    def __del__(self) -> None:
        # a coroutine that is cancelled before its first step never reaches its own finally
        self._end()

    def data(self, piece: memoryview) -> None:
        if self._error is not None:
            return      # already lost; the answer is on its way
        left = self._chunk_bytes - self._summer.size
        if left > 0:
            body = piece[:left]
            self._summer.update(body)
            try:
                self._writer.write(body)
            except (TierstoreError, OSError) as error:
                self.aborted(error)     # raised again by run(), which owns the answer
                return
            if self._writer.pending_bytes >= STREAM_WINDOW_BYTES and not self._is_paused:
                self._is_paused = True
                self._source.pause_body()
                self._wake.set()
        if left < len(piece):
            self._sent_sums += piece[left:]

    def complete(self) -> None:
        self._is_complete = True
        self._wake.set()

    def aborted(self, error: BaseException) -> None:
        self._error = error
        self._wake.set()

    async def run(self) -> None:
        """Until the body is here: wait, let the disk catch up. Then compare, sync, sign. How long the client may
        stall is the adapter's limit; how long the disk may is ours."""
        uploads, slot, timeout = self._uploads, self._slot, self._uploads.device_timeout
        slot.waiting += 1
        try:
            while not self._is_complete:
                await self._wake.wait()
                self._wake.clear()
                if self._error is not None:
                    raise self._error
                if self._is_paused:
                    async with asyncio.timeout(timeout):
                        await self._writer.drained()
                    self._is_paused = False
                    self._source.resume_body()
            if self._error is not None:
                raise self._error
            sums = self._summer.sums()
            if sums != self._sent_sums:
                raise mismatch(self._chunk)
            at = await finish(self._writer, sums, seconds=timeout)
            hit("objectd.upload.before_receipt")
            receipt = uploads.receipt(slot, self._chunk, self._chunk_bytes, sums, at)
        except TimeoutError:
            raise UnavailableError(
                f"device {slot.id} did not keep up within {timeout:g} s", code="device-slow"
            ) from None
        finally:
            slot.waiting -= 1
            self._end()
        self._source.reply(200, receipt, RECEIPT_LINES)


class Comparing:
    """A writer for a chunk that is here already: succeeds when what comes has the same sums."""

    def __init__(self, slot: Slot, chunk: ChunkId, chunk_bytes: int) -> None:
        self._slot = slot
        self._chunk = chunk
        self._chunk_bytes = chunk_bytes
        self.pending_bytes = 0

    def write(self, piece: bytes | bytearray | memoryview) -> None:
        """Nothing to keep: the sums decide."""

    async def drained(self) -> None:
        return

    async def finish(self, sums: bytes) -> Location:
        """Where it lies (a file of its own). Raises ConflictError when the bytes are others."""
        try:
            opened = await self._slot.device.find(self._chunk)
        except NotFound:
            raise UnavailableError(
                f"chunk {self._chunk.hex()} was deleted while it was sent again", code="upload-under-way"
            ) from None
        try:
            is_same = opened.chunk_bytes == self._chunk_bytes and opened.sums == sums
        finally:
            opened.close()
        if not is_same:
            raise ConflictError(f"chunk {self._chunk.hex()} is here with other bytes", code="chunk-exists")
        return Location(0, 0)

    def abort(self) -> None:
        """Nothing was begun."""


def mismatch(chunk: ChunkId) -> ChecksumMismatch:
    return ChecksumMismatch(f"the sums sent with chunk {chunk.hex()} do not fit its data; nothing was kept")
