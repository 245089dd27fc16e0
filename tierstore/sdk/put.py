"""The PUT walk: cut a body into chunks, store each on `copies` servers, commit once.

Owns the chunk being filled, the chunks on their way and the lease of a long upload. Bytes are pushed in (`push`,
never blocks); when it says stop, `has_room` tells when to go on. `finish` commits; only then is anything visible.
A chunk is sent when it is whole (docs/adr/0060): a slow client never holds a connection to an object server, lengths
are always known, and a spare server needs nothing but the buffer.

Invariants: at most chunks_in_flight_max whole chunks and the one being filled are in memory, all within the Store's
budget; the receipts in the commit are of `copies` servers per chunk; after an error or `abort` no task is left and
nothing was committed.

Cost: one copy of each byte into the chunk's buffer (10 GB/s), one CRC32C pass (20 GB/s), `copies` sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from tierstore.checksum import combine, encode_crc
from tierstore.errors import ChecksumMismatch, ConflictError, RequestError, TooLarge, UnavailableError
from tierstore.sdk.allocations import AllocationPool, PlacementClass, UploadRooms
from tierstore.sdk.budget import BufferBudget, ChunkBuffer
from tierstore.sdk.fanout import ChunkFanout
from tierstore.sdk.limits import OBJECT_BYTES_MAX, StoreLimits
from tierstore.sdk.receipts import renew_receipts
from tierstore.sdk.servers import ServerBook
from tierstore.transport.metadata_client import MetadataClient
from tierstore.transport.object_client import ObjectClient
from tierstore.wire.hints import WriteHint, hint_of, name_of, native_etag
from tierstore.wire.names import CommitChunk, CommitResult, Condition, ObjectMeta, Put, Renew

Buffer = bytes | bytearray | memoryview
#: A body of unknown length grows its chunk's buffer by this much at a time.
_GROWTH_BYTES = 256 * 1024

#: A body's onlooker is shown so much at a time, and what is left of a chunk when that is whole.
SHOWN_BYTES: Final = 1 << 20

#: Codes of a commit that was refused because a server left between store and commit (rule 11): store elsewhere.
STALE_RECEIPT_CODES: Final = frozenset({"device-refused", "upload-condemned", "upload-lapsed"})


class StaleReceipts(UnavailableError):
    """A server that holds a chunk left or came back as another before the commit: nothing was committed, and the same
    body put once more is stored elsewhere. For the caller 503 and not 409: nothing of his is in conflict."""


class Onlooker(Protocol):
    """Who looks at a body in the buffers of its chunks (sums of the whole), beside the sending."""

    def show(self, view: memoryview) -> None:
        """The next bytes, in order; they stay as they are until seen() has returned for them."""
        ...

    async def seen(self, size: int) -> None:
        """Return when nobody looks at the first `size` bytes of the body any more. Raises what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class PutParts:
    """What a walk works with."""

    client: MetadataClient
    objects: ObjectClient
    servers: ServerBook
    allocations: AllocationPool
    budget: BufferBudget
    limits: StoreLimits
    placement: PlacementClass


def etag_crc32c(etag: str) -> str | None:
    """The CRC32C (S3's base64 form) that a native ETag carries, else None."""
    parts = etag.split("-")
    if len(parts) != 4 or parts[0] != "ts" or len(parts[1]) != 8:
        return None
    try:
        return encode_crc(int(parts[1], 16))
    except ValueError:
        return None


class PutWalk:
    """One upload. size None: not known before its end."""

    def __init__(
        self, parts: PutParts, bucket: str, key: str, *, size: int | None, access: str = "",
        size_max: int = OBJECT_BYTES_MAX, write: WriteHint | None = None,
    ) -> None:  # fmt: skip
        """write: what its chunks say of it to a rebuild, when it is a whole object; None: they only name it."""
        self._parts = parts
        self._bucket = bucket
        self._key = key
        self._declared = size
        self._size_max = size_max
        self._access = access
        self._write = write
        self.size = 0
        self.tier = ""
        self._buffer: ChunkBuffer | None = None
        self._fill = 0
        self._onlooker: Onlooker | None = None
        self._shown = 0         # of the chunk being filled
        self._reserved = 0
        self._overflow: list[bytes] = []
        self._chunks: dict[int, CommitChunk] = {}
        self._index = 0
        self._rooms = UploadRooms(parts.allocations, parts.placement, size)
        self._room: asyncio.Future[None] | None = None
        self._reserving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._ended = False

    # -- bytes in -------------------------------------------------------------------------------------------
    def show_to(self, onlooker: Onlooker) -> bool:
        """Before the first byte: have somebody look at the bytes where they lie. False: of a body whose length is not
        known the buffers move as they grow, so he must copy what he needs."""
        if self._declared is not None:
            self._onlooker = onlooker
        return self._onlooker is not None

    def push(self, piece: Buffer) -> bool:
        """Take the next bytes (copied). False: wait for has_room() before the next piece. Raises what went wrong with
        earlier chunks, RequestError when more comes than was declared."""
        self._check()
        view = memoryview(piece)
        self.size += len(view)
        if self._declared is not None and self.size > self._declared:
            raise RequestError(f"the body is longer than the {self._declared} bytes declared", code="body-length")
        if self.size > self._size_max:
            raise TooLarge(f"an object has at most {self._size_max} bytes")
        if not self._overflow:
            view = view[self._absorb(view) :]
        if len(view):
            self._overflow.append(bytes(view))
        return not self._overflow

    def _absorb(self, view: memoryview) -> int:
        """Copy what there is room for into chunk buffers; how much that was."""
        at = 0
        while at < len(view):
            if self._buffer is not None and self._fill == self._chunk_bytes():
                self._send_chunk()      # held back as a body of unknown length: it was not the last one
            if self._buffer is None and not self._new_buffer():
                break
            assert self._buffer is not None
            room = self._chunk_bytes() - self._fill
            count = min(room, len(view) - at)
            if isinstance(self._buffer, bytearray) and self._fill + count > len(self._buffer):
                self._buffer.extend(bytes(max(_GROWTH_BYTES, self._fill + count - len(self._buffer))))
            self._buffer[self._fill : self._fill + count] = view[at : at + count]
            self._fill += count
            at += count
            if self._fill == self._chunk_bytes() and self._declared is not None:
                self._send_chunk()
            elif self._onlooker is not None and self._fill - self._shown >= SHOWN_BYTES:
                self._show(self._onlooker, self._buffer)
        return at

    def _show(self, onlooker: Onlooker, buffer: ChunkBuffer) -> None:
        onlooker.show(memoryview(buffer)[self._shown : self._fill])
        self._shown = self._fill

    def _chunk_bytes(self) -> int:
        """Length of the chunk being filled: whole, or what the declared size leaves for it."""
        whole = self._parts.placement.chunk_bytes
        if self._declared is None:
            return whole
        return min(whole, self._declared - self._index * whole)

    def _new_buffer(self) -> bool:
        """Begin a chunk, if memory and the number in flight allow; else see to it that room is made."""
        if len(self._tasks) >= self._parts.limits.chunks_in_flight_max:
            return False
        size = self._chunk_bytes()
        if self._reserved < size:
            if self._reserving is not None or not self._parts.budget.try_take(size):
                if self._reserving is None:
                    self._reserving = self._start(self._reserve(size))
                return False
            self._reserved = size
        known = self._declared is not None
        self._buffer = self._parts.budget.new_buffer(size) if known else bytearray(min(size, _GROWTH_BYTES))
        self._fill = self._shown = 0
        return True

    async def _reserve(self, size: int) -> None:
        await self._parts.budget.take(size)
        self._reserved = size
        self._reserving = None
        self._go_on()

    async def has_room(self) -> None:
        """Return when push() may be called again. Raises what went wrong."""
        while self._overflow:
            self._check()
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._check()

    def _go_on(self) -> None:
        """Room may have come: take in what overflowed, wake the pusher."""
        while self._overflow and self._error is None:
            piece = self._overflow[0]
            taken = self._absorb(memoryview(piece))
            if taken < len(piece):
                self._overflow[0] = piece[taken:]
                break
            self._overflow.pop(0)
        if self._room is not None and not self._room.done() and (not self._overflow or self._error is not None):
            self._room.set_result(None)

    # -- chunks out -----------------------------------------------------------------------------------------
    def _name(self, *, is_last: bool) -> str:
        """The hint of the next chunk. A size that was not declared stands in the last one only."""
        if self._write is None:
            return name_of(self._bucket, self._key)
        size = self._declared if self._declared is not None else self.size if is_last else -1
        return hint_of(self._bucket, self._key, msgspec.structs.replace(self._write, size=size))

    def _send_chunk(self, *, is_last: bool = False) -> None:
        buffer, fill, reserved = self._buffer, self._fill, self._reserved
        assert buffer is not None
        if self._onlooker is not None:
            self._show(self._onlooker, buffer)
        self._buffer, self._reserved = None, 0
        index, self._index = self._index, self._index + 1
        task = self._start(self._store(index, buffer, fill, reserved, self._name(is_last=is_last)))
        self._tasks.add(task)
        task.add_done_callback(self._stored)
        if index == 1:
            self._keeper = self._start(self._keep_lease())

    async def _store(self, index: int, buffer: ChunkBuffer, fill: int, reserved: int, name: str) -> None:
        try:
            allocation = await self._rooms.of(index)
            fanout = ChunkFanout(self._parts, allocation, data=memoryview(buffer)[:fill], name=name)
            self._chunks[index] = await fanout.run()
            if index == 0:
                self.tier = fanout.tier
            if self._onlooker is not None:
                await self._onlooker.seen(index * self._parts.placement.chunk_bytes + fill)
            if fanout.is_quiet and self._declared is not None:
                self._parts.budget.reuse(buffer)
        finally:
            self._parts.budget.give_back(reserved)

    def _stored(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._go_on()

    async def _keep_lease(self) -> None:
        """An upload of many chunks may take longer than an upload's life: renew it (rule 3)."""
        limits = self._parts.limits
        while True:
            await asyncio.sleep(limits.renew_seconds)
            if self._rooms.upload:
                await self._parts.client.renew(Renew(uploads=[self._rooms.upload]), seconds=limits.request_seconds)

    # -- the end --------------------------------------------------------------------------------------------
    async def finish(
        self, *, meta: ObjectMeta | None = None, condition: Condition | None = None, etag: str = "",
        crc32c: int | None = None,
    ) -> CommitResult:  # fmt: skip
        """Send the last chunk, wait for all, commit. Durable on `copies` servers and in the catalog when it returns.

        crc32c: what the body must have (else ChecksumMismatch). Raises PreconditionFailed, UnavailableError, ..."""
        await self.has_room()
        if self._declared is not None and self.size != self._declared:
            raise RequestError(
                f"the body has {self.size} bytes, {self._declared} were declared", code="body-length"
            )
        if self._fill and self._buffer is not None:
            self._send_chunk(is_last=True)
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)      # let _stored run: it takes the task out of the set
        self._check()
        self._stop_keeper()
        whole = self.crc32c()
        if crc32c is not None and crc32c != whole:
            raise ChecksumMismatch(
                f"the body's CRC32C is {encode_crc(whole)}, the request says {encode_crc(crc32c)}; nothing was stored"
            )
        client = self._parts.client
        chunks = [self._chunks[index] for index in range(self._index)]
        operation = client.operation_for(chunks)
        etag = etag or native_etag(whole, self.size, self._write.begun if self._write is not None else operation)
        put = Put(self._bucket, self._key, self.size, etag, chunks, meta, condition)
        result = await self._commit(put, operation)
        self._ended = True
        return result

    async def _commit(self, put: Put, operation: bytes) -> CommitResult:
        """Commit; when a server that stored a part of it has restarted since, with receipts of its new life. The same
        operation each time: what was refused is judged anew."""
        limits = self._parts.limits
        for attempt in range(1, limits.commit_attempts_max + 1):
            try:
                return await self._parts.client.commit(
                    put, access=self._access, operation=operation, seconds=limits.request_seconds
                )
            except ConflictError as error:
                if error.code not in STALE_RECEIPT_CODES:
                    raise
                renewed = put.chunks
                if error.code == "device-refused" and attempt < limits.commit_attempts_max:
                    renewed = await renew_receipts(self._parts, put.chunks)
                if renewed == put.chunks:
                    self._parts.allocations.drop(self._parts.placement)
                    raise StaleReceipts(error.detail) from error
                put = msgspec.structs.replace(put, chunks=renewed)
        raise AssertionError("the loop returns or raises")

    def commit_as(self, bucket: str, key: str) -> None:
        """Commit under another name than the one whose rules said where the bytes go (parts of S3's uploads)."""
        self._bucket, self._key = bucket, key

    def crc32c(self) -> int:
        """Of the whole body; all chunks must be stored."""
        whole = 0
        for index in range(self._index):
            chunk = self._chunks[index]
            whole = combine(whole, chunk.crc32c, chunk.chunk_bytes)
        return whole

    async def abort(self) -> None:
        """Give up: nothing becomes visible; what was stored is collected later. Harmless after finish()."""
        self._error = self._error or RequestError("the upload was given up", code="aborted")
        tasks = [*self._tasks]
        if self._reserving is not None:
            tasks.append(self._reserving)
        self._stop_keeper()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop_buffer()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _drop_buffer(self) -> None:
        self._buffer = None
        if self._reserved:
            self._parts.budget.give_back(self._reserved)
            self._reserved = 0

    def _stop_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of this walk: its first error becomes the walk's."""
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._note_error)
        return task

    def _note_error(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._error is None:
            self._error = error
            self._go_on()
