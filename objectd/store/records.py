"""The on-disk form of records in segments and of footers of chunk files. Pure: bytes in, bytes out.

Record in a segment, at an offset divisible by 8:
    header 64 B | block sums 4 B each | data | name hint | zeros up to 8
so that one pread of a small chunk at a known place gets header, sums and data. Header, little-endian:
    0 magic "TSR1" | 4 version u8 | 5 kind u8 | 6 state u8 | 7 zero | 8 length u32 | 12 chunk id 16 |
    28 sums count u16 | 30 hint bytes u16 | 32 crc32c of the data u32 | 36 crc32c of sums+hint u32 | 40 wall ms u64 |
    48 offset u64 | 56 segment u32 | 60 crc32c of bytes 0..59 with state 0, seeded by the device's uuid u32
The header names its own place and the device's uuid seeds its sum: bytes that merely look like a record (a chunk that
is a copy of a segment, a stale block) are never taken for one when recovery searches for the next record.

`state` is advice for readers that come with a hint and is the only byte ever written in place: the log decides.
Kinds other than CHUNK have no body. MARK: length = bytes of this segment that were synced before it was written.
TRASH, RESTORE, FORGET, REJECT: length = segment, crc32c = offset / 8 of the CHUNK record that they speak of; they
have no effect on a record elsewhere, so that compaction may copy records without reviving or killing anything.

Chunk file: data | block sums | name hint | footer 64 B (magic "TSF1", the same header with segment 0, offset = file
bytes before the footer). A file without a valid footer at its very end is unfinished.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from tierstore.checksum import BLOCK_BYTES, SUM_BYTES, block_count, combine_sums, unpack_sums

MAGIC: Final = b"TSR1"
FILE_MAGIC: Final = b"TSF1"
VERSION: Final = 1
ALIGN: Final = 8
HEADER_BYTES: Final = 64

CHUNK: Final = 1
MARK: Final = 2
TRASH: Final = 3        # the chunk was deleted at wall ms, its record is kept
RESTORE: Final = 4      # taken back from the trash
FORGET: Final = 5       # emptied from the trash: the record is garbage
REJECT: Final = 6       # quarantined: the record is garbage and was copied aside
KINDS: Final = frozenset((CHUNK, MARK, TRASH, RESTORE, FORGET, REJECT))

LIVE: Final = 0
IN_TRASH: Final = 1
REJECTED: Final = 2

_HEADER = struct.Struct("<4sBBBBI16sHHIIQQI")
_HEADER_CRC = struct.Struct("<4sBBBBI16sHHIIQQII")
_PREFIX = struct.Struct("<4sBBBBI16s")
_CRC = struct.Struct("<I")
_CRC_AT: Final = 60
_STATE_AT: Final = 6
PREFIX_BYTES: Final = _PREFIX.size
NO_CHUNK: Final = bytes(16)

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """A header or footer whose own sum was right."""

    kind: int
    state: int
    length: int
    chunk: bytes
    sums_count: int
    hint_bytes: int
    data_crc: int
    extra_crc: int
    wall_ms: int
    offset: int
    segment: int

    @property
    def sums_bytes(self) -> int:
        return self.sums_count * SUM_BYTES

    @property
    def data_offset(self) -> int:
        """Of the data within the segment."""
        return self.offset + HEADER_BYTES + self.sums_bytes

    @property
    def record_bytes(self) -> int:
        """Whole record with padding; the next one may begin there."""
        if self.kind != CHUNK:
            return HEADER_BYTES
        return chunk_record_bytes(self.length, self.hint_bytes)

    @property
    def target(self) -> tuple[int, int]:
        """Segment and offset that a TRASH, RESTORE, FORGET or REJECT record speaks of."""
        return self.length, self.data_crc * ALIGN


def aligned(count: int) -> int:
    return (count + ALIGN - 1) & -ALIGN


def chunk_record_bytes(chunk_bytes: int, hint_bytes: int) -> int:
    return aligned(HEADER_BYTES + block_count(chunk_bytes) * SUM_BYTES + chunk_bytes + hint_bytes)


def file_bytes(chunk_bytes: int, hint_bytes: int) -> int:
    return chunk_bytes + block_count(chunk_bytes) * SUM_BYTES + hint_bytes + HEADER_BYTES


def prefix_of(chunk: bytes, chunk_bytes: int) -> bytes:
    """The first bytes of a live record of that chunk: what a hinted read compares."""
    return _PREFIX.pack(MAGIC, VERSION, CHUNK, LIVE, 0, chunk_bytes, chunk)


def state_offset(record_offset: int) -> int:
    return record_offset + _STATE_AT


def seed_of(uuid: bytes) -> int:
    return int(crc32c(uuid))


def _seal(magic: bytes, kind: int, state: int, length: int, chunk: bytes,  # noqa: PLR0917 -- one per field, in order
          sums_count: int, hint_bytes: int,
          data_crc: int, extra_crc: int, wall_ms: int, offset: int, segment: int, seed: int) -> bytes:
    plain = _HEADER.pack(magic, VERSION, kind, 0, 0, length, chunk, sums_count, hint_bytes, data_crc, extra_crc,
                         wall_ms, offset, segment)
    sealed = plain + _CRC.pack(crc32c(plain, seed))
    return sealed if state == LIVE else sealed[:_STATE_AT] + bytes((state,)) + sealed[_STATE_AT + 1 :]


def chunk_head(chunk: bytes, chunk_bytes: int, sums: Buffer, hint: bytes, *, state: int, wall_ms: int, segment: int,
               offset: int, data_crc: int, seed: int) -> bytes:
    """Header of a CHUNK record."""
    extra = crc32c(hint, crc32c(sums)) if hint else crc32c(sums)
    return _seal(MAGIC, CHUNK, state, chunk_bytes, chunk, len(sums) // SUM_BYTES, len(hint), data_crc, extra, wall_ms,
                 offset, segment, seed)


def mark(synced_bytes: int, *, wall_ms: int, segment: int, offset: int, seed: int) -> bytes:
    return _seal(MAGIC, MARK, LIVE, synced_bytes, NO_CHUNK, 0, 0, 0, 0, wall_ms, offset, segment, seed)


def verdict(kind: int, chunk: bytes, target_segment: int, target_offset: int, *, wall_ms: int, segment: int,
            offset: int, seed: int) -> bytes:
    """A TRASH, RESTORE, FORGET or REJECT record."""
    return _seal(MAGIC, kind, LIVE, target_segment, chunk, 0, 0, target_offset // ALIGN, 0, wall_ms, offset, segment,
                 seed)


def footer(chunk: bytes, chunk_bytes: int, sums: bytes, hint: bytes, *, wall_ms: int, data_crc: int,
           seed: int) -> bytes:
    """Footer of a chunk file."""
    before = chunk_bytes + len(sums) + len(hint)
    extra = crc32c(hint, crc32c(sums))
    return _seal(FILE_MAGIC, CHUNK, LIVE, chunk_bytes, chunk, len(sums) // SUM_BYTES & 0xFFFF, len(hint), data_crc,
                 extra, wall_ms, before, 0, seed)


def parse(raw: Buffer, *, segment: int, offset: int, seed: int) -> Header | None:
    """The record header in the first 64 bytes of raw, or None unless it is whole and says that it lies there."""
    return _parse(raw, MAGIC, segment, offset, seed)


def parse_footer(raw: Buffer, *, file_bytes_all: int, chunk: bytes, seed: int) -> Header | None:
    """The footer in the last 64 bytes of a file of that length and name, or None."""
    header = _parse(raw, FILE_MAGIC, 0, file_bytes_all - HEADER_BYTES, seed)
    if header is None or header.chunk != chunk or file_bytes(header.length, header.hint_bytes) != file_bytes_all:
        return None
    return header


def live_length(raw: Buffer, chunk: bytes, *, segment: int, offset: int, seed: int) -> int:
    """The chunk's length if raw begins with the whole header of its live record, else -1. The short form of parse()
    for reads: 0.7 us."""
    magic, version, kind, state, _, length, name, _, _, _, _, _, at, number, crc = _HEADER_CRC.unpack_from(raw)
    if (name != chunk or magic != MAGIC or version != VERSION or kind != CHUNK or state != LIVE or at != offset
            or number != segment or crc32c(memoryview(raw)[:_CRC_AT], seed) != crc):
        return -1
    return int(length)


def _parse(raw: Buffer, magic: bytes, segment: int, offset: int, seed: int) -> Header | None:
    if len(raw) < HEADER_BYTES or raw[:4] != magic:
        return None
    plain = bytearray(raw[:_CRC_AT])
    state = plain[_STATE_AT]
    plain[_STATE_AT] = 0
    if crc32c(plain, seed) != _CRC.unpack_from(raw, _CRC_AT)[0]:
        return None
    (_, version, kind, _, _, length, chunk, sums_count, hint_bytes, data_crc, extra_crc, wall_ms, at, number) = (
        _HEADER.unpack(plain))
    if version != VERSION or kind not in KINDS or number != segment or at != offset:
        return None
    if kind == CHUNK:
        blocks = block_count(length)
        if sums_count != blocks & 0xFFFF:
            return None
        sums_count = blocks
    return Header(kind, state, length, chunk, sums_count, hint_bytes, data_crc, extra_crc, wall_ms, at, number)


def has_good_extra(header: Header, sums: Buffer, hint: Buffer) -> bool:
    """True if block sums and name hint are as they were written."""
    return bool(crc32c(hint, crc32c(sums)) == header.extra_crc)


def has_good_body(header: Header, sums: Buffer, data: Buffer, hint: Buffer) -> bool:
    """True if the whole record is as it was written: sums, hint, and each block of the data."""
    if len(data) != header.length or len(sums) != header.sums_bytes or not has_good_extra(header, sums, hint):
        return False
    view = memoryview(data)
    values = unpack_sums(sums)
    for block, expected in enumerate(values):
        if crc32c(view[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]) != expected:
            return False
    return combine_sums(sums, header.length) == header.data_crc


def places_of_magic(raw: Buffer) -> Iterator[int]:
    """Offsets divisible by 8 at which a record could begin."""
    blob = bytes(raw)
    at = blob.find(MAGIC)
    while at >= 0:
        if at % ALIGN == 0:
            yield at
        at = blob.find(MAGIC, at + 1)
