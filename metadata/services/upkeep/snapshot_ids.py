"""Ids of the chunks that hold the catalog's own snapshot and journal on the object servers. Pure.

Their upload ids begin with two bytes that no allocation can have (a time 8,900 years ahead), so that they are found by
listing devices from RESERVED on, with no catalog at hand: `ff ff`, kind, u64 sequence (big-endian: the newest is the
last in id order), one byte of the writer's lease epoch (so that two writers never give one id to different bytes).
The chunk index counts the parts.

Invariant: `is_reserved` chunks are never orphans, never placed and never counted for N+1; only services.snapshot
writes and deletes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tierstore.names import ChunkId, UploadId, chunk_id

RESERVED: Final = b"\xff\xff"
SNAPSHOT: Final = ord("S")
JOURNAL: Final = ord("J")
Kind = Literal["snapshot", "journal"]
_KINDS: Final[dict[int, Kind]] = {SNAPSHOT: "snapshot", JOURNAL: "journal"}


@dataclass(frozen=True, slots=True)
class CatalogChunk:
    """What an id says. sequence: of the feed, up to which this snapshot or journal piece goes."""

    kind: Kind
    sequence: int
    epoch: int
    part: int


def is_reserved(chunk: bytes) -> bool:
    return chunk[:2] == RESERVED


def upload_for(kind: Kind, sequence: int, epoch: int) -> UploadId:
    """The upload id of one snapshot or journal piece; epoch: of the writer's lease, its low byte counts."""
    letter = SNAPSHOT if kind == "snapshot" else JOURNAL
    return UploadId(RESERVED + bytes([letter]) + sequence.to_bytes(8, "big") + bytes([epoch & 0xFF]))


def chunk_for(kind: Kind, sequence: int, epoch: int, part: int) -> ChunkId:
    return chunk_id(upload_for(kind, sequence, epoch), part)


def parse(chunk: bytes) -> CatalogChunk | None:
    """What a chunk id says, None for an ordinary one or one of another kind."""
    if len(chunk) != 16 or not is_reserved(chunk) or chunk[2] not in _KINDS:
        return None
    return CatalogChunk(
        _KINDS[chunk[2]], int.from_bytes(chunk[3:11], "big"), chunk[11], int.from_bytes(chunk[12:16], "big")
    )
