"""ObjectClient: typed reads and writes of chunks on object servers, verified end to end.

Reads: the answer carries all block sums of the chunk, then the asked blocks. The sums must combine to the chunk's
CRC32C of the catalog, and each block must match its sum before a byte of it is released, so an object server may use
sendfile and need not be trusted. Ranges are widened to blocks on the wire and trimmed here.
Writes: data, then its block sums; the object server compares and answers with a signed receipt.

Cost per piece of a stream: one read or a few straight into the piece's buffer, a CRC32C per 64 KiB (about 3 us each),
no copy. A small read: one call, one or a few sums, a memoryview of the answer.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import quote_from_bytes

import msgspec

from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, verify_block
from tierstore.clock import Clock
from tierstore.errors import TierstoreError, UnavailableError, from_answer
from tierstore.names import ChunkId
from tierstore.transport.chunk_lanes import ChunkLanes
from tierstore.transport.handovers import Handovers
from tierstore.transport.loans import Borrower, LentBody
from tierstore.transport.peer import Buffer, Headers, PeerReply, PeerStream, PeerTransport, PeerUpload
from tierstore.transport.pieces import PieceBuffers
from tierstore.transport.shared_memory import memory_of
from tierstore.transport.verified import Blocks, FetchedChunk, VerifiedStream
from tierstore.wire.chunks import SmallChunk
from tierstore.wire.handovers import Answer

#: Chunks up to this are sent by one call; larger ones stream, so that an early refusal saves the bytes.
SMALL_PUT_BYTES: Final = 256 * 1024
ERROR_BODY_BYTES_MAX: Final = 64 * 1024
_TIER: Final = b"x-tierstore-tier"


def error_of(status: int, body: bytes, url: str) -> TierstoreError:
    """The exception for an error answer; a body that is no problem document becomes `unexpected-answer`."""
    try:
        members = msgspec.json.decode(body, type=dict[str, object])
        code, detail = str(members["code"]), str(members.get("detail", ""))
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError):
        return UnavailableError(f"{url} answered {status}", code="unexpected-answer", url=url)
    fields = {
        name: value
        for name, value in members.items()
        if name not in ("type", "title", "status", "detail", "code", "instance", "request_id")
    }
    return from_answer(status, code, detail, **fields)


class ChunkUpload:
    """One chunk on its way to one server. After finish() or abort() it is over."""

    def __init__(self, upload: PeerUpload, url: str) -> None:
        self._upload = upload
        self._url = url

    async def write(self, piece: Buffer) -> None:
        """The next bytes of the chunk; returns when the server keeps up, then the piece may be reused.
        Raises the server's own error when it refused early (CapacityError, ConflictError, TicketRefused ...)."""
        try:
            await self._upload.write(piece)
        except UnavailableError as error:
            await self._raise_early(error)

    async def finish(self, sums: bytes) -> bytes:
        """All bytes are written: send the block sums, wait until the chunk is durable. Returns the receipt."""
        await self.write(sums)
        return _receipt(await self._upload.finish(), self._url)

    def abort(self) -> None:
        """Break it off: the server keeps nothing. Safe to repeat and after finish()."""
        self._upload.abort()

    async def _raise_early(self, error: UnavailableError) -> None:
        if error.code != "answered-early":
            self._upload.abort()
            raise error
        reply = await self._upload.finish()
        if reply.status < 300:
            raise UnavailableError(f"{self._url} answered before it had the chunk", code="broken-answer") from error
        raise error_of(reply.status, reply.body, self._url) from error


class ObjectClient:
    """Chunk calls over a peer transport. Share one per process; close() it where small chunks are stored together."""

    def __init__(
        self, transport: PeerTransport, clock: Clock, *, borrower: Borrower | None = None,
        handovers: Handovers | None = None,
    ) -> None:  # fmt: skip
        """borrower: reads large chunks from the files that object servers on this machine lend. handovers: gives large
        chunks that lie in shared memory to object servers on this machine. close() closes both."""
        self._transport = transport
        self._borrower = borrower
        self._handovers = handovers
        self._clock = clock
        self.pieces = PieceBuffers()
        #: Blocks whose sum was compared and right, for metrics.
        self.blocks_verified = 0
        self._lanes = ChunkLanes(transport, self._put_alone, lambda reply, url: error_of(reply.status, reply.body, url))

    async def close(self) -> None:
        """Fail what was handed to store_small() and is not done."""
        if self._borrower is not None:
            self._borrower.close()
        if self._handovers is not None:
            self._handovers.close()
        await self._lanes.close()

    @property
    def loans_total(self) -> int:
        """Chunks (or ranges) read from lent files."""
        return self._borrower.loans_total if self._borrower is not None else 0

    @property
    def hands_over(self) -> bool:
        """Whether chunks in shared memory may be spared the network."""
        return self._handovers is not None

    @property
    def handovers_total(self) -> int:
        """Chunks handed over in shared memory."""
        return self._handovers.handovers_total if self._handovers is not None else 0

    async def read_chunk(
        self, url: str, ticket: bytes, *, chunk: ChunkId, chunk_bytes: int, crc32c: int, first: int = 0,
        length: int | None = None, seconds: float,
    ) -> memoryview:  # fmt: skip
        """Bytes [first, first + length) of a chunk, verified; meant for up to a few MiB. May be repeated.

        Raises IntegrityError(code="bad-block"), the server's error, or UnavailableError."""
        read = await self.fetch_chunk(
            url, ticket, chunk=chunk, chunk_bytes=chunk_bytes, crc32c=crc32c, first=first, length=length,
            seconds=seconds,
        )  # fmt: skip
        return read.data

    async def fetch_chunk(
        self, url: str, ticket: bytes, *, chunk: ChunkId, chunk_bytes: int, crc32c: int, first: int = 0,
        length: int | None = None, seconds: float,
    ) -> FetchedChunk:  # fmt: skip
        """The same, with the tier that served it (a server may have it in RAM)."""
        length = chunk_bytes - first if length is None else length
        if not length:
            return FetchedChunk(memoryview(b""), "")
        blocks = Blocks(ticket, chunk_bytes, first, length)
        reply = await self._transport.call(url, b"GET", blocks.target, seconds=seconds)
        if reply.status != 200:
            raise error_of(reply.status, reply.body, url)
        body = memoryview(reply.body)
        if len(body) != blocks.sums_bytes + blocks.data_bytes:
            raise UnavailableError(f"{url} sent {len(body)} bytes for a chunk", code="broken-answer", url=url)
        data = body[blocks.sums_bytes :]
        sums = blocks.check_sums(body[: blocks.sums_bytes], chunk, chunk_bytes, crc32c)
        for number in range(blocks.first_block, blocks.last_block + 1):
            at = number * BLOCK_BYTES - blocks.begin
            verify_block(data[at : at + BLOCK_BYTES], sums[number], chunk=chunk, block=number)
        self.blocks_verified += blocks.last_block - blocks.first_block + 1
        begin = first - blocks.begin
        return FetchedChunk(data[begin : begin + length], _text(reply.headers, _TIER))

    async def open_chunk(
        self, url: str, ticket: bytes, *, chunk: ChunkId, chunk_bytes: int, crc32c: int, first: int = 0,
        length: int | None = None, seconds: float,
    ) -> VerifiedStream:  # fmt: skip
        """The same as a stream; `seconds` bounds the first byte and each later step. The sums are checked before it
        returns."""
        length = chunk_bytes - first if length is None else length
        blocks = Blocks(ticket, chunk_bytes, first, length)
        began_at = self._clock.monotonic()
        body: PeerStream | LentBody
        lent = await self._borrowed(url, ticket, blocks, chunk_bytes, seconds)
        if lent is not None:
            body, sums, tier = lent
        else:
            body, sums, tier = await self._opened(url, blocks, seconds)
        try:
            values = blocks.check_sums(sums, chunk, chunk_bytes, crc32c)
            verified = VerifiedStream(self, body, blocks, values, chunk, first, length, tier)
        except BaseException:
            body.close()
            raise
        verified.first_byte_seconds = self._clock.monotonic() - began_at
        return verified

    async def _opened(self, url: str, blocks: Blocks, seconds: float) -> tuple[PeerStream, Buffer, str]:
        """The blocks by the network: their data, still to come, the chunk's sums and the tier."""
        stream = await self._transport.open(url, b"GET", blocks.target, seconds=seconds)
        try:
            if stream.status != 200:
                raise error_of(stream.status, await stream.read_all(ERROR_BODY_BYTES_MAX), url)
            if stream.content_length != blocks.sums_bytes + blocks.data_bytes:
                raise UnavailableError(
                    f"{url} sends {stream.content_length} bytes for a chunk", code="broken-answer", url=url
                )
            sums = memoryview(bytearray(blocks.sums_bytes))
            await stream.read_into(sums)
        except BaseException:
            stream.close()
            raise
        return stream, sums, _text(stream.headers, _TIER)

    async def _borrowed(
        self, url: str, ticket: bytes, blocks: Blocks, chunk_bytes: int, seconds: float
    ) -> tuple[LentBody, Buffer, str] | None:
        """The same from the file of a server on this machine; None when it lends none. What the page cache loses
        meanwhile comes by the network: its sums were checked once, and are the same."""
        if self._borrower is None:
            return None
        loan = await self._borrower.borrow(
            url, ticket, first_block=blocks.first_block, last_block=blocks.last_block, seconds=seconds
        )
        if loan is None:
            return None
        if len(loan.sums) != blocks.sums_bytes:
            loan.close()
            return None

        async def by_network(at: int) -> PeerStream:
            rest = Blocks(ticket, chunk_bytes, at, blocks.begin + blocks.data_bytes - at)
            return (await self._opened(url, rest, seconds))[0]

        end = blocks.begin + blocks.data_bytes
        return LentBody(loan, blocks.begin, end, by_network, seconds=seconds), loan.sums, loan.tier

    async def put_chunk(
        self, url: str, ticket: bytes, *, index: int, name: str = "", data: Buffer, sums: bytes, seconds: float,
    ) -> bytes:  # fmt: skip
        """Store one whole chunk; durable there when it returns the receipt. May be repeated (write-once id). seconds:
        also for a handover that breaks and the network after it, together."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size > SMALL_PUT_BYTES:
            memory = memory_of(data) if self._handovers is not None else None
            if memory is not None and self._handovers is not None:
                ends_at = self._clock.monotonic() + seconds
                answer = await self._handovers.hand_over(
                    url, ticket, memory, chunk_bytes=size, index=index, name=name, sums=sums, seconds=seconds
                )
                if answer is not None:
                    return _taken(answer, url)
                seconds = ends_at - self._clock.monotonic()
                if seconds <= 0:
                    raise UnavailableError(f"{url} did not answer in time", code="deadline", url=url)
            upload = await self.begin_chunk(
                url, ticket, index=index, name=name, chunk_bytes=size, seconds=seconds
            )
            try:
                await upload.write(data)
                return await upload.finish(sums)
            except BaseException:
                upload.abort()
                raise
        body = b"".join((data, sums))
        reply = await self._transport.call(
            url, b"PUT", _put_target(ticket, index, name), body=body, seconds=seconds
        )
        return _receipt(reply, url)

    def store_small(
        self, url: str, device: int, ticket: bytes, *, index: int, name: str, data: Buffer, sums: bytes, seconds: float,
    ) -> asyncio.Future[bytes]:  # fmt: skip
        """The same for a chunk of at most wire.chunks.SET_CHUNK_BYTES_MAX, together with others that go to that device
        at this moment: no task, the receipt comes later. `data` must not change until then. Raises UnavailableError
        when too many wait; all other errors are the future's. One that is cancelled may store the chunk all the same.
        """
        return self._lanes.submit(url, device, SmallChunk(ticket, index, name, sums, memoryview(data)), seconds)

    async def _put_alone(self, url: str, put: SmallChunk, seconds: float) -> bytes:
        return await self.put_chunk(
            url, put.ticket, index=put.index, name=put.name, data=put.data, sums=put.sums, seconds=seconds
        )

    async def renew_receipt(self, url: str, receipt: bytes, *, seconds: float) -> bytes:
        """The same receipt signed by the server's present life, after it found the chunk. May be repeated.

        Raises NotFound when the chunk is not there, TicketRefused for another server's receipt, UnavailableError."""
        reply = await self._transport.call(
            url, b"POST", b"/v1/receipts", headers=((b"content-type", b"text/plain"),), body=receipt, seconds=seconds
        )
        return _receipt(reply, url)

    async def begin_chunk(
        self, url: str, ticket: bytes, *, index: int, name: str = "", chunk_bytes: int, seconds: float,
    ) -> ChunkUpload:  # fmt: skip
        """Begin to stream one chunk of exactly chunk_bytes; `seconds` bounds each step."""
        length = chunk_bytes + block_count(chunk_bytes) * SUM_BYTES
        upload = await self._transport.upload(
            url, b"PUT", _put_target(ticket, index, name), length=length, seconds=seconds
        )
        return ChunkUpload(upload, url)


def _put_target(ticket: bytes, index: int, name: str) -> bytes:
    if not name:
        return b"/v1/chunks/%b?index=%d" % (ticket, index)
    return b"/v1/chunks/%b?index=%d&name=%b" % (ticket, index, quote_from_bytes(name.encode()).encode("ascii"))


def _receipt(reply: PeerReply, url: str) -> bytes:
    if reply.status != 200:
        raise error_of(reply.status, reply.body, url)
    return reply.body.strip()


def _taken(answer: Answer, url: str) -> bytes:
    if answer.status != 200:
        raise error_of(answer.status, answer.body, url)
    return answer.body


def _text(headers: Headers, name: bytes) -> str:
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return ""
