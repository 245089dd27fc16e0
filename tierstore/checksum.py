"""CRC32C of blocks and chunks: the sums that travel with every answer, and how they combine.

A chunk is cut into blocks of BLOCK_BYTES; each has a CRC32C (Castagnoli, RFC 3720 appendix B.4). The chunk's CRC32C,
held in the catalog, is the combination of its block sums, so a reader who has the sums and the catalog's value can
trust each block alone. Combining two sums needs only lengths: crc(A||B) = shift(crc(A), len(B)) ^ crc(B), where
shift() runs len(B) zero bytes through the register (linear over GF(2), as in zlib's crc32_combine).

Cost: 20 GB/s and more per core for the sums; about 0.6 us per block to combine.
"""

from __future__ import annotations

import base64
import functools
import struct
from collections.abc import Sequence
from typing import Final

from crc32c import crc32c

from tierstore.errors import ChecksumMismatch, IntegrityError

BLOCK_BYTES: Final = 64 * 1024
SUM_BYTES: Final = 4
_ZEROS: Final = bytes(BLOCK_BYTES)

Buffer = bytes | bytearray | memoryview


def crc_of(data: Buffer, seed: int = 0) -> int:
    """CRC32C of data, continued from seed."""
    return int(crc32c(data, seed))


def block_count(chunk_bytes: int) -> int:
    """Number of blocks of a chunk; an empty chunk has none."""
    return (chunk_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES


def sums_of(data: Buffer) -> bytes:
    """The block sums of a whole chunk: u32 little-endian each."""
    size = len(data)
    if size <= BLOCK_BYTES:
        return struct.pack("<I", crc32c(data)) if size else b""
    view = memoryview(data)
    sums = [crc32c(view[at : at + BLOCK_BYTES]) for at in range(0, size, BLOCK_BYTES)]
    return struct.pack(f"<{len(sums)}I", *sums)


def unpack_sums(sums: Buffer) -> tuple[int, ...]:
    return struct.unpack(f"<{len(sums) // SUM_BYTES}I", sums)


def _apply(columns: Sequence[int], value: int) -> int:
    out = 0
    bit = 0
    while value:
        if value & 1:
            out ^= columns[bit]
        value >>= 1
        bit += 1
    return out


def _shift_by_zeros(value: int, length: int) -> int:
    # the register is linear: running zeros with and without the start value differs by the shifted start value
    zeros = memoryview(_ZEROS)[:length]
    return int(crc32c(zeros, value)) ^ int(crc32c(zeros, 0))


@functools.cache
def _block_columns(power: int) -> tuple[int, ...]:
    """The images of the 32 register bits after 2**power blocks of zeros: column i = shift(1 << i)."""
    if not power:
        return tuple(_shift_by_zeros(1 << bit, BLOCK_BYTES) for bit in range(32))
    half = _block_columns(power - 1)
    return tuple(_apply(half, value) for value in half)


@functools.cache
def _block_table() -> tuple[tuple[int, ...], ...]:
    """Four tables of 256: shift(crc, BLOCK_BYTES) is the xor of one entry per byte of crc."""
    columns = _block_columns(0)
    tables = []
    for part in range(4):
        table = [0] * 256
        for byte in range(1, 256):
            low = byte & -byte
            table[byte] = table[byte ^ low] ^ columns[8 * part + low.bit_length() - 1]
        tables.append(tuple(table))
    return tuple(tables)


def shift(crc: int, length: int) -> int:
    """The register after `length` more zero bytes, without the zeros' own contribution. A matrix per set bit of the
    number of whole blocks (3 us each), real zeros for the rest."""
    if not crc:
        return 0
    blocks, rest = divmod(length, BLOCK_BYTES)
    power = 0
    while blocks:
        if blocks & 1:
            crc = _apply(_block_columns(power), crc)
        blocks >>= 1
        power += 1
    return _shift_by_zeros(crc, rest) if rest else crc


def combine(crc_a: int, crc_b: int, length_b: int) -> int:
    """CRC32C of A||B from those of A and B. Any length costs about the same."""
    return shift(crc_a, length_b) ^ crc_b if length_b else crc_a


def combine_sums(sums: Buffer, chunk_bytes: int) -> int:
    """The chunk's CRC32C from its block sums. Raises IntegrityError if their number does not fit chunk_bytes."""
    count = block_count(chunk_bytes)
    if len(sums) != count * SUM_BYTES:
        raise IntegrityError(f"{len(sums)} bytes of sums for a chunk of {chunk_bytes} bytes", code="bad-sums")
    if count == 0:
        return 0
    values = unpack_sums(sums)
    if count == 1:
        return values[0]
    t0, t1, t2, t3 = _block_table()
    crc = values[0]
    for value in values[1:-1]:
        crc = t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24] ^ value
    return combine(crc, values[-1], chunk_bytes - (count - 1) * BLOCK_BYTES)


def verify_block(data: Buffer, expected: int, *, chunk: bytes = b"", block: int = 0) -> None:
    """Raises IntegrityError(code="bad-block") unless CRC32C(data) == expected."""
    if crc32c(data) != expected:
        raise IntegrityError(f"block {block} of chunk {chunk.hex()} has a wrong checksum", code="bad-block")


class BlockSummer:
    """Block sums of a stream that comes in pieces of any size. Also knows the stream's whole CRC32C."""

    __slots__ = ("_crc", "_fill", "_sums", "size")

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._crc = 0
        self._fill = 0
        self.size = 0

    def update(self, data: Buffer) -> None:
        view = memoryview(data)
        self.size += len(view)
        at = 0
        while at < len(view):
            piece = view[at : at + BLOCK_BYTES - self._fill]
            self._crc = crc32c(piece, self._crc)
            self._fill += len(piece)
            at += len(piece)
            if self._fill == BLOCK_BYTES:
                self._sums.append(self._crc)
                self._crc = 0
                self._fill = 0

    def sums(self) -> bytes:
        """The sums so far; the last block may be partial. Does not end the stream."""
        sums = [*self._sums, self._crc] if self._fill else self._sums
        return struct.pack(f"<{len(sums)}I", *sums)

    def crc(self) -> int:
        return combine_sums(self.sums(), self.size)


def encode_crc(crc: int) -> str:
    """Base64 of the 4 big-endian bytes, S3's form of a CRC32C."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode("ascii")


def decode_crc(text: str) -> int:
    """Inverse of encode_crc. Raises ChecksumMismatch(code="bad-checksum") on any other form."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, UnicodeEncodeError):
        raw = b""
    if len(raw) != 4:
        raise ChecksumMismatch(f"{text!r} is not base64 of 4 bytes", code="bad-checksum")
    return int.from_bytes(raw, "big")
