"""Chunks (or ranges of them) as they are read: which blocks, and piece by piece with each block's sum compared.

Invariant: nothing of a block is given out before its sum was right; the sums themselves must combine to the chunk's
CRC32C of the catalog.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, combine_sums, crc_of, unpack_sums
from tierstore.errors import IntegrityError
from tierstore.names import ChunkId
from tierstore.transport.loans import LentBody
from tierstore.transport.peer import Buffer, PeerStream
from tierstore.transport.pieces import PieceBuffers

#: A piece of a stream: a share of its data, so that the first byte is not late, in whole blocks within these bounds.
PIECE_BYTES: Final = 4 * BLOCK_BYTES
LONG_PIECE_BYTES: Final = 16 * BLOCK_BYTES


class Reader(Protocol):
    """What a stream needs of the client that opened it."""

    pieces: PieceBuffers
    blocks_verified: int


class Blocks:
    """The blocks that a byte range of a chunk touches."""

    __slots__ = ("begin", "data_bytes", "first_block", "last_block", "sums_bytes", "target")

    def __init__(self, ticket: bytes, chunk_bytes: int, first: int, length: int) -> None:
        assert length > 0 and first >= 0 and first + length <= chunk_bytes, "the range is outside the chunk"
        count = block_count(chunk_bytes)
        self.first_block = first // BLOCK_BYTES
        self.last_block = (first + length - 1) // BLOCK_BYTES
        self.begin = self.first_block * BLOCK_BYTES
        self.data_bytes = min((self.last_block + 1) * BLOCK_BYTES, chunk_bytes) - self.begin
        self.sums_bytes = count * SUM_BYTES
        if self.last_block - self.first_block + 1 == count:
            self.target = b"/v1/chunks/" + ticket
        else:
            self.target = b"/v1/chunks/%b?blocks=%d-%d" % (ticket, self.first_block, self.last_block)

    def check_sums(self, sums: Buffer, chunk: ChunkId, chunk_bytes: int, crc32c: int) -> tuple[int, ...]:
        if combine_sums(sums, chunk_bytes) != crc32c:
            raise IntegrityError(f"the block sums of chunk {chunk.hex()} do not fit the catalog", code="bad-block")
        return unpack_sums(sums)


class FetchedChunk(NamedTuple):
    """Verified bytes, and the tier that served them; "" when the server did not say."""

    data: memoryview
    tier: str


class VerifiedStream:
    """A chunk (or a range of it) that is read piece by piece. Always close() it."""

    def __init__(  # noqa: PLR0917 - made in one place
        self, client: Reader, stream: PeerStream | LentBody, blocks: Blocks, sums: tuple[int, ...],
        chunk: ChunkId, first: int, length: int, tier: str,
    ) -> None:  # fmt: skip
        self._client = client
        self.length = length
        self.first_byte_seconds = 0.0   # from the request to the verified sums: steers hedging and load figures
        self.tier = tier
        self._stream = stream
        self._sums = sums
        self._chunk = chunk
        self._block = blocks.first_block
        self._data_left = blocks.data_bytes
        self._skip = first - blocks.begin
        self._left = length
        self._piece_bytes = _piece_bytes(blocks.data_bytes)
        self._memory = client.pieces.take(self._piece_bytes)
        self._buffer = memoryview(self._memory)
        self._given: memoryview | None = None

    @property
    def unread(self) -> int:
        """Bytes of the range that were not yet given out."""
        return self._left

    async def next_piece(self) -> memoryview:
        """The next verified bytes, up to LONG_PIECE_BYTES; empty at the end. Valid until the next call (one buffer).
        Raises IntegrityError(code="bad-block") or UnavailableError; nothing of the bad block was released."""
        if not self._left:
            return self._buffer[:0]
        if not self._memory:        # given away
            self._memory = self._client.pieces.take(self._piece_bytes)
            self._buffer = memoryview(self._memory)
        size = min(self._piece_bytes, self._data_left)
        view = self._buffer[:size]
        await self._stream.read_into(view)
        self._data_left -= size
        self._verify(view, size)
        begin, self._skip = self._skip, 0
        piece = self._given = view[begin : begin + self._left]
        self._left -= len(piece)
        return piece

    def give_away(self) -> None:
        """The last piece stays valid for as long as its taker wants, who hands its buffer (`piece.obj`) to the client's
        `pieces` in the end: this stream goes on in another one."""
        self._given = None
        self._buffer = memoryview(b"")
        self._memory = bytearray()

    def _verify(self, view: memoryview, size: int) -> None:
        block, sums = self._block, self._sums
        for at in range(0, size, BLOCK_BYTES):
            if crc_of(view[at : at + BLOCK_BYTES]) != sums[block]:
                raise IntegrityError(
                    f"block {block} of chunk {self._chunk.hex()} has a wrong checksum", code="bad-block"
                )
            block += 1
        self._client.blocks_verified += block - self._block
        self._block = block

    def close(self) -> None:
        """Harmless to repeat. The last piece is no longer valid."""
        self._stream.close()
        if self._memory:
            memory, self._memory = self._memory, bytearray()
            try:
                if self._given is not None:
                    self._given.release()
                self._buffer.release()
            except BufferError:
                return          # a write of it is still under way: the buffer is not kept
            self._client.pieces.give_back(memory)


def _piece_bytes(data_bytes: int) -> int:
    """Half of the data, in whole blocks within the bounds: a chunk of 1 MiB comes in two pieces."""
    half = block_count(-(-data_bytes // 2)) * BLOCK_BYTES
    return min(max(half, PIECE_BYTES), LONG_PIECE_BYTES)
