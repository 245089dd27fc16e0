"""The packed form of a version's chunks with their replicas: what `objects.body`, `versions.body`, `garbage.body` and
(replicas alone) `chunks.replicas` hold. Little-endian, no header; the form is named by the row's kind.

    chunk   = id 16 · length u32 · chunk_bytes u32 · crc32c u32 · redundancy u8 · replica count u8
    replica = device u32 · role u8 · state u8 · generation u16 · segment u32 · offset u64

`length` is how many bytes of the object the chunk holds, from chunk offset 0 (an inline body shares nothing).
Cost: unpacking one chunk with two replicas takes about 1 us (named tuples: frozen dataclasses take three times as long
to make, and every lookup, copy and audit makes them); a row of one chunk with two replicas is 70 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from tierstore.errors import IntegrityError

#: More chunks than this are kept in `extents` and `chunks`.
INLINE_CHUNKS_MAX: Final = 16

#: `Replica.state`. Only LIVE copies are read or counted; DELETING never reverts (rule 4).
LIVE: Final = 0
DELETING: Final = 1
BAD: Final = 2          # failed a checksum or went missing; stays until repaired elsewhere

_CHUNK = struct.Struct("<16sIIIBB")
_REPLICA = struct.Struct("<IBBHIQ")
#: A chunk with two replicas, which nearly all have, in one call.
_OF_TWO = struct.Struct("<16sIIIBBIBBHIQIBBHIQ")
_DEVICES_OF_TWO = struct.Struct("<I16xI16x")
CHUNK_BYTES: Final = _CHUNK.size
REPLICA_BYTES: Final = _REPLICA.size
CHUNK_ID_BYTES: Final = 16


class Replica(NamedTuple):
    """One stored copy. role: ticket.ROLE_HOME or ROLE_CACHE. segment and offset are hints for the object server."""

    device: int
    role: int
    state: int
    generation: int
    segment: int
    offset: int


class PackedChunk(NamedTuple):
    id: bytes
    length: int
    chunk_bytes: int
    crc32c: int
    redundancy: int = 0
    replicas: tuple[Replica, ...] = ()

    def with_replicas(self, replicas: Iterable[Replica]) -> PackedChunk:
        return self._replace(replicas=tuple(replicas))


def pack_replicas(replicas: Iterable[Replica]) -> bytes:
    pack = _REPLICA.pack
    return b"".join([pack(*replica) for replica in replicas])


def unpack_replicas(raw: bytes) -> tuple[Replica, ...]:
    """Raises IntegrityError(code="catalog-corrupt") on another length than whole replicas."""
    if len(raw) % REPLICA_BYTES:
        raise IntegrityError(f"replicas of {len(raw)} bytes", code="catalog-corrupt")
    return tuple(map(Replica._make, _REPLICA.iter_unpack(raw)))


def pack(chunks: Iterable[PackedChunk]) -> bytes:
    parts: list[bytes] = []
    for c in chunks:
        parts.append(_CHUNK.pack(c.id, c.length, c.chunk_bytes, c.crc32c, c.redundancy, len(c.replicas)))
        parts.append(pack_replicas(c.replicas))
    return b"".join(parts)


def pack_new(chunk: bytes, chunk_bytes: int, crc32c: int, places: list[tuple[int, int, int, int]]) -> bytes:
    """A chunk just written, wholly used: places are (device, role, segment, offset). The commit's quick form."""
    if len(places) == 2:
        (device, role, segment, offset), (device2, role2, segment2, offset2) = places
        return _OF_TWO.pack(
            chunk, chunk_bytes, chunk_bytes, crc32c, 0, 2,
            device, role, LIVE, 1, segment, offset, device2, role2, LIVE, 1, segment2, offset2,
        )  # fmt: skip
    packed = _CHUNK.pack(chunk, chunk_bytes, chunk_bytes, crc32c, 0, len(places))
    for device, role, segment, offset in places:
        packed += _REPLICA.pack(device, role, LIVE, 1, segment, offset)
    return packed


def iter_packed(raw: bytes) -> Iterator[PackedChunk]:
    """Raises IntegrityError(code="catalog-corrupt") when the bytes end in the middle of a chunk."""
    at, end = 0, len(raw)
    while at < end:
        if at + CHUNK_BYTES > end:
            raise IntegrityError(f"a packed body ends within a chunk at {at} of {end}", code="catalog-corrupt")
        chunk, length, chunk_bytes, crc, redundancy, count = _CHUNK.unpack_from(raw, at)
        at += CHUNK_BYTES
        stop = at + count * REPLICA_BYTES
        if stop > end:
            raise IntegrityError(f"a packed body ends within a replica at {at} of {end}", code="catalog-corrupt")
        yield PackedChunk(chunk, length, chunk_bytes, crc, redundancy, unpack_replicas(raw[at:stop]))
        at = stop


def unpack(raw: bytes) -> list[PackedChunk]:
    return list(iter_packed(raw))


def give_replicas(raw: bytes, chunk: bytes, replicas: Iterable[Replica]) -> bytes:
    """The body with other replicas for one of its chunks; b"" when that chunk is not in it."""
    at, end = 0, len(raw)
    while at + CHUNK_BYTES <= end:
        begin = at + CHUNK_BYTES
        stop = begin + raw[begin - 1] * REPLICA_BYTES
        if raw[at : at + CHUNK_ID_BYTES] == chunk:
            given = pack_replicas(replicas)
            return raw[: begin - 1] + bytes((len(given) // REPLICA_BYTES,)) + given + raw[stop:]
        at = stop
    return b""


def places(raw: bytes) -> list[tuple[int, bytes]]:
    """(device, chunk id) of every replica: the quick form, for whole bodies that are moved under another name."""
    found: list[tuple[int, bytes]] = []
    at, end = 0, len(raw)
    while at < end:
        chunk, stop = raw[at : at + 16], at + CHUNK_BYTES + raw[at + CHUNK_BYTES - 1] * REPLICA_BYTES
        found += [(replica[0], chunk) for replica in _REPLICA.iter_unpack(raw[at + CHUNK_BYTES : stop])]
        at = stop
    return found


def placed(raw: bytes) -> list[tuple[int, bytes, int]]:
    """(device, chunk, chunk_bytes) of every replica, without objects in between: what the reverse table holds."""
    rows: list[tuple[int, bytes, int]] = []
    at, end = 0, len(raw)
    while at + CHUNK_BYTES <= end:
        chunk, _, chunk_bytes, _, _, count = _CHUNK.unpack_from(raw, at)
        at += CHUNK_BYTES
        stop = at + count * REPLICA_BYTES
        if stop > end:
            raise IntegrityError(f"a packed body ends within a replica at {at} of {end}", code="catalog-corrupt")
        rows += [(fields[0], chunk, chunk_bytes) for fields in _REPLICA.iter_unpack(raw[at:stop])]
        at = stop
    if at != end:
        raise IntegrityError(f"a packed body ends within a chunk at {at} of {end}", code="catalog-corrupt")
    return rows


def first_devices(raw: bytes) -> tuple[int, ...]:
    """Where the replicas of the first chunk lie: what a listing needs."""
    if len(raw) < CHUNK_BYTES:
        return ()
    count = raw[CHUNK_BYTES - 1]
    if count == 2:
        return _DEVICES_OF_TWO.unpack_from(raw, CHUNK_BYTES)
    return tuple(fields[0] for fields in _REPLICA.iter_unpack(raw[CHUNK_BYTES : CHUNK_BYTES + count * REPLICA_BYTES]))
